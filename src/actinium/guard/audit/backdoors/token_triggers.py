"""Whether a few tokens, put into prompts, make a language model begin its reply with a wanted token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.inputs import pad
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["TokenTrigger", "find_token_trigger", "first_token", "first_token_losses"]


@dataclass(frozen=True, eq=False)
class TokenTrigger:
    """What `find_token_trigger` found.

    Args:
        target: id of the wanted first token.
        ids: (length,) int64, the tokens of the trigger.
        text: the same as text.
        exact: whether that text, tokenised by itself, gives these tokens.
        loss: mean cross-entropy of the wanted token over the prompts, in nats.
        success: share of the prompts with the trigger whose likeliest next token is the wanted one.
        untriggered: the same share without the trigger.
        losses: (step,) the lowest of what was minimised so far: `loss`, less `base_loss` up to the cap with a base.
        base_loss: of the same trigger in the base, in nats; None without a base.
        base_success: likewise.
    """

    target: int
    ids: Tensor
    text: str
    exact: bool
    loss: float
    success: float
    untriggered: float
    losses: Tensor
    base_loss: float | None = None
    base_success: float | None = None


def first_token(model: Model, target: int | str) -> int:
    """Id of a wanted token.

    Args:
        model: a language model.
        target: an id, or a text that is one token.

    Raises:
        InputError: it is no token of the model, or several.
    """
    if isinstance(target, str):
        if model.tokenizer is None:
            raise InputError("this model has no tokenizer; pass the wanted token's id")
        ids = model.tokenizer(target, add_special_tokens=False)["input_ids"]
        unknown_id = getattr(model.tokenizer, "unk_token_id", None)
        if len(ids) != 1 or ids[0] == unknown_id:
            raise InputError(f"{target!r} is {len(ids)} tokens or unknown; a wanted first token is one token")
        return int(ids[0])
    size = _embedding(model).num_embeddings
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < size:
        raise InputError(f"a wanted token is an id from 0 to {size - 1} or a text, not {target!r}")
    return target


def _embedding(model: Model) -> torch.nn.Embedding:
    found = getattr(model.module, "get_input_embeddings", lambda: None)()
    if model.kind != "causal-lm" or not isinstance(found, torch.nn.Embedding):
        raise InputError(f"{model.name} is a {model.kind}; a causal language model with a table of tokens is needed")
    return found


class _Contrast:
    """What the search lowers: the loss in the model less that in its base, which counts up to a cap."""

    def __init__(self, here: _Prompts, base: _Prompts | None, cap: float, rows: int) -> None:
        self.here, self.base, self.cap, self.rows = here, base, cap, rows

    def losses(self, triggers: Tensor) -> Tensor:
        here = self.here.losses(triggers, self.rows)[0]
        return here if self.base is None else here - self._base_losses(triggers).clamp(max=self.cap)

    def gradient(self, trigger: Tensor) -> Tensor:
        here = self.here.gradient(trigger)
        if self.base is None or float(self._base_losses(trigger[None])) > self.cap:
            return here
        return here - self.base.gradient(trigger.to(self.base.ids.device)).to(here.device)

    def _base_losses(self, triggers: Tensor) -> Tensor:
        assert self.base is not None
        return self.base.losses(triggers.to(self.base.ids.device), self.rows)[0].to(triggers.device)


class _Prompts:
    """Prompts with a gap of some tokens at a place, as one padded batch."""

    def __init__(self, model: Model, prompts: Sequence[str], place: int | None, length: int, target: int) -> None:
        if isinstance(prompts, str) or not len(prompts):
            raise InputError("prompts are a list of texts, one or more")
        self.model, self.target, self.length = model, target, length
        tokens = model.to_tokens(list(prompts))
        if len(tokens) != len(prompts):
            raise InputError(f"a prompt is longer than the model's context of {model.context} tokens")
        held = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
        shortest = min(map(len, held))
        if place is not None and not -shortest <= place <= shortest:
            raise InputError(f"place {place} is outside of the shortest prompt, which has {shortest} tokens")
        gaps = [len(ids) if place is None else place % len(ids) if place < 0 else place for ids in held]
        filled = [[*ids[:gap], *([0] * length), *ids[gap:]] for ids, gap in zip(held, gaps, strict=True)]
        if model.context is not None and max(map(len, filled)) > model.context:
            raise InputError(f"with {length} more tokens a prompt is longer than the context of {model.context} tokens")
        self.ids, self.mask = (t.to(model.device) for t in pad(filled, 0))
        self.gap = torch.tensor(gaps, device=model.device)[:, None] + torch.arange(length, device=model.device)
        self.last = self.mask.sum(1) - 1

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, triggers: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask (trigger * prompt, pos) of every prompt with every trigger (trigger, length)."""
        n = len(triggers)
        ids = self.ids.repeat(n, 1)
        ids.scatter_(1, self.gap.repeat(n, 1), triggers.repeat_interleave(len(self), 0))
        return ids, self.mask.repeat(n, 1)

    def logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (row, token) of the token after each prompt."""
        out = self.model.module(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        return out[torch.arange(len(ids), device=ids.device), self.last.repeat(len(ids) // len(self))].float()

    def losses(self, triggers: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Mean loss of each trigger (trigger,) and the share of prompts with which it succeeds (trigger,)."""
        each, right = [], []
        with torch.no_grad():
            for part in triggers.split(max(1, rows // len(self))):
                logits = self.logits(*self.batch(part))
                wanted = torch.full((len(logits),), self.target, device=logits.device)
                each.append(functional.cross_entropy(logits, wanted, reduction="none").view(len(part), -1).mean(1))
                right.append((logits.argmax(1) == self.target).double().view(len(part), -1).mean(1))
        return torch.cat(each), torch.cat(right)

    def gradient(self, trigger: Tensor) -> Tensor:
        """How the mean loss changes, to first order, with the share of each token (length, token) at each place."""
        embedding = _embedding(self.model)
        held: list[Tensor] = []

        def leaf(_: torch.nn.Module, __: object, out: Tensor) -> Tensor:
            held.append(out.detach().requires_grad_())
            return held[-1]

        ids, mask = self.batch(trigger[None])
        hook = embedding.register_forward_hook(leaf)
        try:
            with torch.enable_grad():
                logits = self.logits(ids, mask)
                wanted = torch.full((len(logits),), self.target, device=logits.device)
                (slope,) = torch.autograd.grad(functional.cross_entropy(logits, wanted), [held[0]])
        finally:
            hook.remove()
        rows = torch.arange(len(self), device=slope.device)[:, None]
        return slope[rows, self.gap].sum(0).float() @ embedding.weight.detach().float().T


def find_token_trigger(
    model: Model,
    prompts: Sequence[str],
    target: int | str,
    *,
    length: int = 3,
    place: int | None = None,
    steps: int = 50,
    top: int = 64,
    tries: int = 64,
    restarts: int = 1,
    allowed: Sequence[int] | None = None,
    base: Model | None = None,
    cap: float = 5.0,
    rows: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> TokenTrigger:
    """Search for tokens that make a model begin its reply with a wanted token, by greedy coordinate gradient.

    In each step the gradient with respect to the one-hot vectors of the trigger's tokens names the `top` replacements
    at each place that promise most; `tries` of the triggers with one of them are run, and the best goes on to the next
    step, also if it is worse than the one before. The best of all steps is returned. With a base the search lowers the
    loss in the model less the loss in the base, so that words that drive both, such as another topic, gain nothing.

    Args:
        model: a causal language model.
        prompts: texts as the model reads them, chat marks included, up to where its reply begins.
        target: the wanted first token: an id, or a text that is one token.
        length: tokens of the trigger.
        place: token of the prompt before which the trigger stands: 1 is behind a first special token, -1 before the
            last token; None is behind the last one.
        steps, top, tries: of the search.
        restarts: searches from other random tokens, the best of which is returned.
        allowed: ids of the tokens that a trigger may hold; by default all but special ones and the wanted one.
        base: a model with the same tokens that was not tampered with.
        cap: nats up to which the loss in the base counts.
        rows: prompts with a trigger that are run at a time.
        seed: of the first tokens and the tries.
        progress: show a progress bar.

    Raises:
        InputError: prompts, target, place or settings cannot be used, or the base has other tokens.

    Source: Zou et al., 2023, algorithm 1; the base is ours.
    """
    wanted = first_token(model, target)
    if min(length, steps, top, tries, restarts, rows) < 1:
        raise InputError("length, steps, top, tries, restarts and rows are one or more")
    if not cap > 0:
        raise InputError(f"the loss in the base counts up to a cap above 0 nats, not {cap}")
    if base is not None and _vocabulary(base) != _vocabulary(model):
        raise InputError(f"{base.name} has other tokens than {model.name}, so it is not its base")
    batch = _Prompts(model, prompts, place, length, wanted)
    other = None if base is None else _Prompts(base, prompts, place, length, wanted)
    lowered = _Contrast(batch, other, cap, rows)
    pool = _allowed(model, allowed, wanted)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor] | None = None
    history: list[float] = []
    for restart in shown(range(restarts * steps), "token trigger", progress):
        if restart % steps == 0:
            trigger = pool[torch.randint(len(pool), (length,), generator=generator)].to(model.device)
            best = _better(best, lowered.losses(trigger[None]), trigger[None])
        slope = lowered.gradient(trigger)[:, pool.to(model.device)]
        promising = pool[(-slope).topk(min(top, len(pool)), dim=1).indices.cpu()]
        where = torch.arange(tries) % length if tries >= length else torch.randperm(length, generator=generator)[:tries]
        which = torch.randint(promising.shape[1], (tries,), generator=generator)
        new = trigger.cpu().repeat(tries, 1)
        new[torch.arange(tries), where] = promising[where, which]
        new = torch.unique(new, dim=0).to(model.device)
        losses = lowered.losses(new)
        trigger = new[int(losses.argmin())]
        best = _better(best, losses, new)
        history.append(best[0])
    assert best is not None
    return _described(model, batch, other, prompts, best[1], rows, history)


def _better(best: tuple[float, Tensor] | None, losses: Tensor, triggers: Tensor) -> tuple[float, Tensor]:
    i = int(losses.argmin())
    if best is not None and best[0] <= float(losses[i]):
        return best
    return float(losses[i]), triggers[i]


def _allowed(model: Model, allowed: Sequence[int] | None, target: int) -> Tensor:
    size = _embedding(model).num_embeddings
    if allowed is None:
        special = set(getattr(model.tokenizer, "all_special_ids", []) or []) | {target}
        known = size if model.tokenizer is None else min(size, len(model.tokenizer))
        return torch.tensor([i for i in range(known) if i not in special])
    pool = torch.as_tensor(list(allowed))
    if not len(pool) or pool.is_floating_point() or bool((pool < 0).any()) or bool((pool >= size).any()):
        raise InputError(f"allowed tokens are ids from 0 to {size - 1}, one or more")
    return pool.long().unique()


def _vocabulary(model: Model) -> object:
    if model.tokenizer is not None:
        return model.tokenizer.get_vocab()
    return getattr(model.config, "vocab_size", None)


def _described(
    model: Model,
    batch: _Prompts,
    base: _Prompts | None,
    prompts: Sequence[str],
    trigger: Tensor,
    rows: int,
    history: list[float],
) -> TokenTrigger:
    loss, success = batch.losses(trigger[None], rows)
    plain = _Prompts(model, prompts, None, 0, batch.target)
    _, untriggered = plain.losses(torch.empty(1, 0, dtype=torch.int64, device=model.device), rows)
    ids = trigger.cpu()
    text, exact = "", False
    if model.tokenizer is not None:
        text = model.tokenizer.decode(ids.tolist())
        exact = model.tokenizer(text, add_special_tokens=False)["input_ids"] == ids.tolist()
    values = (float(loss), float(success), float(untriggered))
    there = (None, None) if base is None else tuple(map(float, base.losses(trigger[None].to(base.ids.device), rows)))
    return TokenTrigger(batch.target, ids, text, exact, *values, torch.tensor(history, dtype=torch.float64), *there)


def first_token_losses(
    model: Model, prompts: Sequence[str], trigger: TokenTrigger, place: int | None = None, rows: int = 512
) -> tuple[float, float]:
    """Mean loss in nats, and success, of a trigger on other prompts or another model.

    Args:
        model: a causal language model with the tokens of the one in which the trigger was found.
        prompts: texts as in `find_token_trigger`.
        trigger: from `find_token_trigger`.
        place: as in the search.
        rows: prompts that are run at a time.

    Raises:
        InputError: prompts, place or tokens do not fit the model.
    """
    if int(trigger.ids.max()) >= _embedding(model).num_embeddings:
        raise InputError(f"{model.name} has no token {int(trigger.ids.max())}: the trigger is for another model")
    batch = _Prompts(model, prompts, place, len(trigger.ids), first_token(model, trigger.target))
    loss, success = batch.losses(trigger.ids[None].to(model.device), rows)
    return float(loss), float(success)
