"""A condition at work: read once from each prompt, and kept while its answer is generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.steering.conditions import Condition

__all__ = ["Decision", "Reading"]


class Decision:
    """What a condition says of the prompts of the present call; the condition that `Gate` and `steer(when=)` take.

    The decision is made in the pass that reads the prompt, of the prompt's tokens alone, and stands for every later
    pass of the same call of `generate`: with a cache or without, for all beams and sampled sequences of the prompt.
    Every plain pass is decided by itself. Nothing is kept in the condition: each block has a decision of its own, and
    one decision is for one block at a time.

    Args:
        condition: what is decided.

    Attributes:
        version: grows with every reading.
    """

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.version = 0
        self._of: Any = None
        self._prompts = 0
        self._stack = ""
        self._scores: dict[str, Tensor] = {}
        self._earlier: list[dict[str, Tensor]] = []

    @contextmanager
    def reading(self, model: Model, transfer: bool = False) -> Iterator[Decision]:
        """Read in the block: `with decision.reading(model), steer(model, vector, when=decision): ...`.

        Enter it before what depends on it, so that at a common site it reads first.

        Args:
            model: that is read.
            transfer: allow a condition whose vector was made on another model.

        Raises:
            InputError: the condition does not fit the model; while running, a pass that does not hold the whole
                prompt of a call that has not been decided.
            SiteError: a site does not exist.
        """
        self.condition.check(model, transfer)
        self._of, self._scores, self._earlier = None, {}, []
        with model.edit(self.edits()):
            yield self

    def edits(self) -> list[tuple[str, Edit]]:
        """The edits that read and change nothing, by site."""
        return [(site, Reading(self, site)) for site in self.condition.sites]

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """{site: (prompts,)} float64 of the last call.

        Raises:
            InputError: no prompt has been read.
        """
        self._need()
        return {site: torch.cat([part[site] for part in (*self._earlier, self._scores)]) for site in self._scores}

    @property
    def fired(self) -> Tensor:
        """(prompts,) bool: where the condition held in the last call.

        Raises:
            InputError: no prompt has been read.
        """
        return self.condition.holds(self.last_scores)

    def _need(self) -> None:
        if not self._scores:
            raise InputError("no prompt has been read yet: run the model within the block")

    # In a pass ------------------------------------------------------------------------------------------------

    def read(self, x: Tensor, where: Where) -> None:
        """Score the prompts of a pass, unless their call has been decided.

        Raises:
            InputError: the pass does not hold the whole prompt, or its activations are not finite.
        """
        now, site = where.now, where.site.name
        key = now if now.generation is None else now.generation
        if key is self._of and site in self._scores:
            return
        if now.generation is None and now.start and self._scores:
            return  # a pass of the user's own loop goes on with the last prompt
        rows = self._prompt_states(x, where)
        if now.generation is not None:
            prompts = len(now.generation.prompt)
            if not prompts or len(rows) % prompts:
                raise InputError(f"{site}: {len(rows)} rows in a pass cannot be told from {prompts} prompts")
            rows = rows[:: len(rows) // prompts]
        if key is not self._of:
            self._earlier = [*self._earlier, self._scores] if now.row_start and self._scores else []
            self._scores, self._of, self._stack = {}, key, where.site.stack
        scores = self.condition.score_at(site, rows)
        self._scores[site], self._prompts = scores, len(scores)
        self.version += 1

    def _prompt_states(self, x: Tensor, where: Where) -> Tensor:
        """The mean or the last state (batch, d) of each prompt, float32 on the CPU."""
        now, n = where.now, x.shape[1]
        chosen = now.selected("prompt", n, where.start, x.device).expand(len(x), n)
        count = chosen.sum(1)
        whole = count if now.prompt is None else now.prompt.to(x.device)
        if bool((count < whole).any()) or not bool(count.all()):
            raise InputError(
                f"the condition at {where.site.name} is decided on the whole prompt, and this pass holds a part of it:"
                " generate without a cache that is filled already and without prefill in chunks"
            )
        values = x.detach().float()
        if self.condition.read == "mean":
            states = torch.where(chosen[..., None], values, 0.0).sum(1) / count[:, None]
        else:
            column = (chosen * torch.arange(n, device=x.device)).argmax(1)
            states = values[torch.arange(len(x), device=x.device), column]
        if not bool(torch.isfinite(states).all()):
            raise InputError(f"the activations at {where.site.name} are NaN or infinite: the condition cannot be read")
        return states.cpu()

    def __call__(self, where: Where) -> Tensor:
        """Whether the condition holds, (rows of the pass,) bool.

        Before the condition's own sites have been reached in a prompt's pass it holds nowhere.

        Raises:
            InputError: a later pass of a call whose prompt was not read, or new tokens in the pass before.
        """
        now = where.now
        if not self.settled(where):
            self._refuse_new(where)
            return torch.zeros(now.batch, dtype=torch.bool)
        holds = self.condition.holds(self._scores)
        if not now.batch:
            return holds
        if now.batch % self._prompts:
            raise InputError(f"the condition was decided for {self._prompts} prompts, and a pass has {now.batch} rows")
        return holds.repeat_interleave(now.batch // self._prompts)

    def settled(self, where: Where) -> bool:
        """Whether the prompts of the pass have been read at all sites of the condition."""
        now = where.now
        if len(self._scores) < len(self.condition.sites):
            return False
        if now.generation is not None:
            return self._of is now.generation
        # In another tower (the decoder, of an encoder's condition) the pass is another one, and comes later.
        elsewhere = where.site.layer is None or where.site.stack != self._stack
        return self._of is now or bool(now.start) or elsewhere

    def _refuse_new(self, where: Where) -> None:
        now = where.now
        if now.generation is None and not now.start:
            return
        seen = now.columns if now.real is None else now.real[:, : now.columns].sum(1)
        prompt = now.prompt
        if now.start or prompt is None or bool((torch.as_tensor(seen).cpu() > prompt.cpu()).any()):
            raise InputError(
                f"at {where.site.name} tokens after the prompt are computed before the condition at"
                f" {', '.join(self.condition.sites)} has been read: read it at an earlier site, or generate without"
                " assisted decoding"
            )


class Reading(Edit):
    """Nothing is changed; the prompts are scored for a decision.

    Args:
        decision: that it is for.
        site: where it stands.
    """

    def __init__(self, decision: Decision, site: str) -> None:
        super().__init__()
        self.decision, self.name = decision, site

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Read."""
        self.decision.read(x, where)
        return x
