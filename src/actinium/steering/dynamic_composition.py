"""Dynamic activation composition: several properties through a whole answer, each with just enough strength."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError
from actinium.core.inputs import tokenize
from actinium.core.model import Model
from actinium.steering.cached_logits import CachedLogits
from actinium.steering.operators import BEYOND, ScheduledAdd
from actinium.steering.property_deltas import PropertyDeltas, end_tokens

__all__ = [
    "ComposedText",
    "ConstantSchedule",
    "DiminishingSchedule",
    "DynamicActivationComposition",
    "DynamicKLSchedule",
    "StartSchedule",
    "composition_strength",
]

DIRECTIONS = ("plain_steered", "steered_plain")
REDUCTIONS = ("sum", "mean_q")


@dataclass(frozen=True)
class ConstantSchedule:
    """The same strength at every step."""

    alpha: float = 1.0

    def __call__(self, steps: Tensor) -> Tensor:
        """Strengths of steps."""
        return torch.full(steps.shape, self.alpha, device=steps.device)


@dataclass(frozen=True)
class StartSchedule:
    """Strength at the prompt's last token alone."""

    alpha: float = 1.0

    def __call__(self, steps: Tensor) -> Tensor:
        """Strengths of steps."""
        return torch.where(steps == 0, self.alpha, 0.0)


@dataclass(frozen=True)
class DiminishingSchedule:
    """alpha (1 - j / T) at step j, 0 from step T on."""

    alpha: float = 1.0
    steps: int = 30

    def __call__(self, steps: Tensor) -> Tensor:
        """Strengths of steps."""
        return self.alpha * (1 - steps.float() / self.steps).clamp_min(0)


@dataclass(frozen=True)
class DynamicKLSchedule:
    """Strength by how much a strongly steered next token differs from the plain one, on the tokens likely in either.

    Args:
        top_p: mass of the smallest set of likeliest tokens of each of the two distributions; the union is compared.
        strong: strength of the trial.
        most: largest strength that is used.
        direction: "plain_steered", KL(plain || steered) as the authors' program computes, or "steered_plain".
        reduction: "sum", the divergence; "mean_q", divided by the number of tokens compared, as the program does.

    Raises:
        InputError: a setting is out of range.
    """

    top_p: float = 0.5
    strong: float = 2.0
    most: float = 2.0
    direction: str = "plain_steered"
    reduction: str = "sum"

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p lies above 0 and up to 1, not at {self.top_p}")
        if not math.isfinite(self.strong):
            raise InputError(f"strong must be a finite number, not {self.strong}")
        if not self.most >= 0 or self.direction not in DIRECTIONS or self.reduction not in REDUCTIONS:
            raise InputError(
                f"most is 0 or more, direction one of {', '.join(DIRECTIONS)}, reduction one of {', '.join(REDUCTIONS)}"
            )


@dataclass(frozen=True, eq=False)
class ComposedText:
    """What was written, and how strongly each property was steered.

    Attributes:
        texts: the new texts.
        ids: (batch, T) new token ids, padded with the end-of-text token behind the end.
        strengths: {property: (batch, T)}; NaN behind the end.
        divergences: the same, before they were limited; empty for schedules that need none.
    """

    texts: list[str]
    ids: Tensor
    strengths: dict[str, Tensor]
    divergences: dict[str, Tensor] = field(default_factory=dict)


class DynamicActivationComposition:
    """Steer several properties at once with a schedule.

    Args:
        properties: deltas by name, of one model, all at the same sites.
        schedule: one for all properties, or one for each name: any function of the step, or `DynamicKLSchedule`.
        beyond: what steps after the last delta add: "hold_last" or "zero". Properties of fewer steps than others
            limit all of them.

    Raises:
        InputError: no property, other sites or shapes, deltas of different models, or a schedule is missing.

    Source: Scalena, Sarti and Nissim, 2024.
    """

    def __init__(
        self,
        properties: Mapping[str, PropertyDeltas],
        schedule: Any = None,
        *,
        beyond: str = "hold_last",
    ) -> None:
        if not properties:
            raise InputError("give one property or more")
        first = next(iter(properties.values()))
        for name, one in properties.items():
            shapes = {site: v.shape[1:] for site, v in one.deltas.items()}
            if shapes != {site: v.shape[1:] for site, v in first.deltas.items()}:
                raise InputError(f"the deltas of {name!r} have other sites or shapes than the first property's")
            if one.fingerprint and first.fingerprint and one.fingerprint != first.fingerprint:
                raise InputError(f"the deltas of {name!r} were made on another model than the first property's")
        if beyond not in BEYOND:
            raise InputError(f"beyond is one of {', '.join(BEYOND)}, not {beyond!r}")
        steps = min(one.steps for one in properties.values())
        self.properties = {name: one.first(steps) for name, one in properties.items()}
        given = DynamicKLSchedule() if schedule is None else schedule
        self.schedules = dict(given) if isinstance(given, Mapping) else dict.fromkeys(properties, given)
        if set(self.schedules) != set(properties):
            raise InputError(f"schedules are given for {sorted(self.schedules)}, properties for {sorted(properties)}")
        self.beyond = beyond

    @property
    def sites(self) -> list[str]:
        """Sites of the deltas."""
        return list(next(iter(self.properties.values())).deltas)

    def edits(self) -> list[tuple[str, Edit]]:
        """Edits for `model.edit`, with any of the library's ways to generate.

        Raises:
            InputError: a schedule is dynamic: its strengths are known only while decoding, see `generate`.
        """
        out: list[tuple[str, Edit]] = []
        for name, one in self.properties.items():
            schedule = self.schedules[name]
            if isinstance(schedule, DynamicKLSchedule):
                raise InputError(f"the schedule of {name!r} is dynamic; use generate")
            out += [(site, ScheduledAdd(v, schedule, self.beyond)) for site, v in one.deltas.items()]
        return out

    @torch.no_grad()
    def generate(
        self,
        model: Model,
        prompts: str | Sequence[str],
        max_new_tokens: int = 30,
        *,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
        transfer: bool = False,
    ) -> ComposedText:
        """Continue prompts; each step computes the plain and the strongly steered next tokens, then the composed one.

        A token keeps the strengths that it was given, in a key-value cache or, where the model has none, anew.

        Args:
            model: the model.
            prompts: one text or several.
            max_new_tokens: most new tokens.
            stop: words of one token that end an answer beside the end of text, as in `fit_property`.
            temperature: 0 takes the likeliest token.
            seed: of sampling.
            transfer: allow deltas that were made on another model.

        Raises:
            InputError: no prompts, deltas of another model, prompts too long, or strengths that make the logits NaN.
        """
        self._check(model, transfer)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts or max_new_tokens < 1 or temperature < 0:
            raise InputError("give one prompt or more, one new token or more, and a temperature of 0 or more")
        tokens = tokenize(model.tokenizer, texts, model.context, "left", window=False)
        if model.context is not None and tokens.ids.shape[1] + max_new_tokens > model.context:
            raise InputError(
                f"a prompt has {tokens.ids.shape[1]} tokens; with {max_new_tokens} more it exceeds the context of"
                f" {model.context}"
            )
        return _Decoding(self, model, tokens.ids, tokens.mask, end_tokens(model, stop), temperature, seed).run(
            max_new_tokens
        )

    @torch.no_grad()
    def surprisal(
        self, model: Model, prompts: Sequence[str], replies: Sequence[str], *, transfer: bool = False
    ) -> Tensor:
        """Nats (batch, T) of each token of given replies under the composed steering, NaN behind their ends.

        The exponential of its mean is the perplexity that the paper compares with that of prompts with examples.

        Args:
            model: the model.
            prompts: one text for each reply.
            replies: what follows them.
            transfer: allow deltas that were made on another model.

        Raises:
            InputError: no prompts or other numbers of them, a reply that is empty or joins the prompt's last token,
                texts too long, or deltas of another model.

        Source: Scalena, Sarti and Nissim, 2024, section 4 (fluency).
        """
        self._check(model, transfer)
        if isinstance(prompts, str) or not len(prompts) or len(prompts) != len(replies):
            raise InputError(f"give lists of as many replies as prompts, got {len(replies)} and {len(prompts)}")
        sides = ([*prompts], [p + r for p, r in zip(prompts, replies, strict=True)])
        start, whole = (tokenize(model.tokenizer, side, model.context, window=False) for side in sides)
        sizes = whole.mask.sum(1) - start.mask.sum(1)
        same = (whole.ids[:, : start.ids.shape[1]] == start.ids) | ~start.mask
        if not bool(same.all() and (sizes > 0).all()):
            raise InputError("a reply is empty, or its start and the prompt's end are one token")
        given = [row[mask][-size:] for row, mask, size in zip(whole.ids, whole.mask, sizes.tolist(), strict=True)]
        forced = torch.nn.utils.rnn.pad_sequence(given, batch_first=True, padding_value=-1)
        left = tokenize(model.tokenizer, sides[0], model.context, "left", window=False)
        decoding = _Decoding(self, model, left.ids, left.mask, (), 0.0, 0, forced)
        decoding.run(forced.shape[1])
        return torch.stack(decoding.nats, 1)

    def _check(self, model: Model, transfer: bool) -> None:
        made = next(iter(self.properties.values())).fingerprint
        if made and not transfer and made != model.fingerprint():
            raise InputError(f"the deltas were not made on {model.name}; pass transfer=True to use them all the same")


class _LastColumns(Edit):
    """Adds to the last columns of a pass, one for each step so far, what the decoding has prepared for each row."""

    def __init__(self, deltas: Sequence[Tensor], beyond: str) -> None:
        super().__init__()
        self.deltas, self.beyond = deltas, beyond
        self.strengths: list[Tensor] = []

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add with the strengths (property, row) of each step; with a cache a pass holds the newest step's column."""
        new = x.clone()
        for step in range(max(0, len(self.strengths) - x.shape[1]), len(self.strengths)):
            for delta, strength in zip(self.deltas, self.strengths[step], strict=True):
                if step >= len(delta) and self.beyond == "zero":
                    continue
                row = delta[min(step, len(delta) - 1)].to(x)
                new[:, step - len(self.strengths)] += strength.to(x).view(-1, *[1] * row.ndim) * row
        return new


class _Decoding:
    """One decoding: the trial streams (plain, and each dynamic property strongly) and the composed one."""

    def __init__(
        self,
        composition: DynamicActivationComposition,
        model: Model,
        ids: Tensor,
        mask: Tensor,
        ends: set[int],
        temperature: float,
        seed: int,
        forced: Tensor | None = None,
    ) -> None:
        self.forced, self.nats = forced, list[Tensor]()
        self.model, self.ids, self.mask = model, ids, mask
        self.names, self.schedules = list(composition.properties), composition.schedules
        self.dynamic = [n for n in self.names if isinstance(self.schedules[n], DynamicKLSchedule)]
        self.temperature, self.random = temperature, torch.Generator().manual_seed(seed)
        tokenizer: Any = model.tokenizer
        self.fill = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        self.ends = ends
        self.adds = {
            site: _LastColumns([composition.properties[n].deltas[site] for n in self.names], composition.beyond)
            for site in composition.sites
        }
        self.trial, self.final = ((CachedLogits(model), list[Tensor]()) for _ in range(2))

    def pass_(self, stream: tuple[CachedLogits, list[Tensor]], strengths: Tensor, copies: int = 1) -> Tensor:
        """Logits (copies, batch, d_vocab) float64 with strengths (property, copies * batch) at this step's token."""
        run, so_far = stream
        so_far.append(strengths)
        for add in self.adds.values():
            add.strengths = so_far
        with self.model.edit(self.adds):
            logits = run(self.ids.repeat(copies, 1), self.mask.repeat(copies, 1))
        if not bool(torch.isfinite(logits).any(-1).all()) or bool(logits.isnan().any()):
            raise InputError("steering made the logits NaN or infinite: lower the strengths")
        return logits.double().cpu().view(copies, len(self.ids), -1)

    def run(self, most: int) -> ComposedText:
        """Decode."""
        batch, start = self.ids.shape
        over = torch.zeros(batch, dtype=torch.bool)
        table = {n: torch.full((batch, most), torch.nan) for n in self.names}
        raw = {n: torch.full((batch, most), torch.nan) for n in self.dynamic}
        for step in range(most):
            strengths = {n: self.schedules[n](torch.full((batch,), step)).double() for n in self.names if n not in raw}
            if self.dynamic:
                trials = torch.zeros(len(self.names), 1 + len(self.dynamic), batch)
                for i, n in enumerate(self.dynamic, 1):
                    trials[self.names.index(n), i] = self.schedules[n].strong
                found = self.pass_(self.trial, trials.flatten(1), 1 + len(self.dynamic))
                for i, n in enumerate(self.dynamic, 1):
                    divergence, strengths[n] = composition_strength(found[0], found[i], self.schedules[n])
                    raw[n][:, step] = torch.where(over, torch.nan, divergence).float()
            each = torch.stack([strengths[n] for n in self.names])
            logits = self.pass_(self.final, each)[0]
            token = self._pick(logits) if self.forced is None else self._given(logits, self.forced[:, step])
            for n in self.names:
                table[n][:, step] = torch.where(over, torch.nan, strengths[n]).float()
            token = torch.where(over, torch.full_like(token, self.fill), token)
            self.ids = torch.cat([self.ids, token[:, None].to(self.ids)], 1)
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
            if self.forced is None:
                over = over | torch.tensor([int(t) in self.ends for t in token])
            if bool(over.all()):
                break
        new = self.ids[:, start:].cpu()
        n = new.shape[1]
        tokenizer: Any = self.model.tokenizer
        texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
        return ComposedText(texts, new, {k: v[:, :n] for k, v in table.items()}, {k: v[:, :n] for k, v in raw.items()})

    def _given(self, logits: Tensor, token: Tensor) -> Tensor:
        """The token of a given reply, its surprise kept; behind the end (-1) the filling."""
        nats = -logits.log_softmax(-1).gather(1, token.clamp_min(0)[:, None])[:, 0]
        self.nats.append(torch.where(token < 0, torch.nan, nats))
        return torch.where(token < 0, self.fill, token)

    def _pick(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits / self.temperature).softmax(-1)
        return torch.multinomial(p, 1, generator=self.random)[:, 0]


def composition_strength(plain: Tensor, steered: Tensor, schedule: DynamicKLSchedule) -> tuple[Tensor, Tensor]:
    """Divergence (n,) of next tokens on the tokens likely in either, and the strength (n,) that it gives.

    Args:
        plain: (n, d_vocab) logits without steering.
        steered: (n, d_vocab) logits with the property's strong trial.
        schedule: settings.

    Source: Scalena, Sarti and Nissim, 2024, equation 4.
    """
    sides = [logits.double().softmax(-1) for logits in (plain, steered)]
    kept = _nucleus(sides[0], schedule.top_p) | _nucleus(sides[1], schedule.top_p)
    logs = [torch.where(kept, z.double(), -torch.inf).log_softmax(-1) for z in (plain, steered)]
    one, other = logs if schedule.direction == "plain_steered" else logs[::-1]
    terms = torch.where(kept, one.exp() * (one - other), 0.0)
    # Outside the kept tokens both are impossible: -inf minus -inf says nothing.
    divergence = torch.nan_to_num(terms).sum(-1).clamp_min(0)
    if schedule.reduction == "mean_q":
        divergence = divergence / kept.sum(-1)
    return divergence, divergence.clamp(0, schedule.most)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Smallest set of likeliest tokens whose mass reaches `top_p`, bool (n, d_vocab)."""
    order = p.argsort(dim=-1, descending=True, stable=True)
    mass = p.gather(-1, order).cumsum(-1)
    # A token is in while the mass before it has not reached the limit.
    before = mass - p.gather(-1, order)
    return torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, before < top_p - 1e-12)
