"""Steering with equal force: the strength of a direction at which it changes the prediction by a given divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Add
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import kl
from actinium.core.model import Model
from actinium.core.passes import Positions
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["steer_to_kl", "steered_logits"]

# The strengths that are tried first begin with the largest one halved this many times: 0.5 for 2000.
HALVINGS = 12


def steer_to_kl(
    model: Model,
    directions: Any,
    site: str,
    prompts: Any,
    targets: float | Sequence[float] = 0.25,
    *,
    signs: Sequence[int] = (1, -1),
    positions: Positions | None = None,
    bounds: tuple[float, float] = (0.0, 2000.0),
    steps: int = 20,
    tolerance: float = 0.01,
    batch_size: int = 256,
    progress: bool = False,
) -> Result:
    """Find how strongly each direction has to be added for a given KL(plain || steered) of the next token.

    Methods are compared at equal divergence, for the lengths of their directions mean nothing. A small strength is
    doubled until the divergence is above the target; between the last two strengths bisection goes on. Of several
    strengths that give the target this looks for the smallest, since the divergence need not grow with the strength.

    Args:
        model: a language model.
        directions: (K, d) or (d,), of any length; they are used at unit length.
        site: one site with positions and one more dimension, such as "blocks.3.mlp.post" or "blocks.3.resid_post".
        prompts: neutral texts or tokens; the divergence is the mean over their last tokens.
        targets: divergences in nats, above 0.
        signs: 1 to add, -1 to subtract.
        positions: token positions that are steered; all by default.
        bounds: smallest and largest strength. (The authors' are 1 and 2000, for models of larger activations.)
        steps: most bisections.
        tolerance: distance from the target, in nats, at which bisection stops.
        batch_size: rows in a pass.
        progress: show a progress bar over the bisections.

    Returns:
        Result over direction, sign and target: `strength`, with its sign, of the unit direction; `kl`, its divergence;
        `reached`, whether that is within the tolerance. Where it is not, strength is the one that came nearest.

    Raises:
        InputError: directions that do not fit the site or are zero, targets or bounds out of range.
        SiteError: the site does not exist.

    Source: Shafran, Geiger, Geva, 2025 (steering evaluation).
    """
    units = _units(model, directions, site)
    wanted = np.atleast_1d(np.asarray(targets, dtype=np.float64))
    low, high = bounds
    if wanted.ndim != 1 or not len(wanted) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise InputError(f"targets are divergences above 0, got {targets}")
    if not 0 <= low < high < np.inf:
        raise InputError(f"bounds are two strengths with 0 <= low < high, got {bounds}")
    if not len(signs) or any(sign not in (1, -1) for sign in signs) or len(set(signs)) != len(signs):
        raise InputError(f"signs are 1, -1 or both, got {list(signs)}")
    if steps < 0 or not tolerance > 0 or batch_size < 1:
        raise InputError(f"expected steps >= 0, tolerance > 0, batch_size >= 1; got {steps}, {tolerance}, {batch_size}")
    measure = _Divergence(model, site, prompts, positions, batch_size)
    signed = torch.cat([units * sign for sign in signs])
    search = _Search(measure, signed, wanted, low, high)
    for _ in shown(range(steps), "steering", progress):
        if not search.step(tolerance):
            break
    shape = (len(signs), len(units), len(wanted))
    strength, found = (np.moveaxis(v.reshape(shape), 0, 1) for v in (search.strength, search.kl))
    dims = ("direction", "sign", "target")
    dataset = xr.Dataset(
        {
            "strength": (dims, strength * np.asarray(signs)[None, :, None]),
            "kl": (dims, found),
            "reached": (dims, np.abs(found - wanted) <= tolerance),
        },
        {"direction": np.arange(len(units)), "sign": list(signs), "target": wanted},
    )
    settings = {"directions": units, "site": site, "bounds": bounds, "steps": steps, "tolerance": tolerance}
    about = provenance(model, measure.tokens.ids, positions=positions, **settings)
    return Result(dataset, "steer_to_kl", "snmf-mlp", about)


def steered_logits(
    model: Model,
    directions: Any,
    site: str,
    prompts: Any,
    strengths: Any,
    *,
    positions: Positions | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Logits of the next token when each direction is added, many directions in one pass.

    Args:
        model: a language model.
        directions: (K, d) or (d,); they are used at unit length.
        site: as in `steer_to_kl`.
        prompts: texts or tokens.
        strengths: one number for each direction (K,); 0 gives the plain logits.
        positions: token positions that are steered; all by default.
        batch_size: rows in a pass.

    Returns:
        (K, prompt, d_vocab), at the last token of each prompt.

    Raises:
        InputError, SiteError: as in `steer_to_kl`, or another number of strengths.
    """
    units = _units(model, directions, site)
    alpha = torch.as_tensor(strengths).detach().double().cpu().reshape(-1)
    if len(alpha) != len(units) or not bool(torch.isfinite(alpha).all()):
        raise InputError(f"expected a finite strength for each of {len(units)} directions, got {len(alpha)}")
    return _Steered(model, site, prompts, positions, batch_size).logits(units * alpha[:, None])


class _Steered:
    """The prompts of a model, and its predictions after them when vectors are added at a site."""

    def __init__(self, model: Model, site: str, prompts: Any, positions: Positions | None, batch_size: int) -> None:
        tokens = model.prepare(prompts).tokens
        if tokens is None:
            raise InputError("steering needs texts or tokens")
        self.model, self.site, self.tokens, self.positions = model, site, tokens, positions
        self.last = (tokens.mask * torch.arange(tokens.mask.shape[1])).argmax(1)
        self.vectors = max(1, batch_size // len(tokens))

    def logits(self, vectors: Tensor) -> Tensor:
        """(item, prompt, d_vocab) with each of (item, d) added."""
        return torch.cat([self._chunk(chunk) for chunk in vectors.split(self.vectors)])

    @torch.no_grad()
    def _chunk(self, vectors: Tensor) -> Tensor:
        n, prompts = len(vectors), len(self.tokens)
        ids, mask = self.tokens.ids.repeat(n, 1), self.tokens.mask.repeat(n, 1)
        edit = Add(vectors.repeat_interleave(prompts, 0)[:, None])
        edit = edit if self.positions is None else edit.at(positions=self.positions)
        with self.model.edit({self.site: edit}):
            logits = self.model.logits(Tokens(ids, mask, torch.arange(len(ids))))
        places = self.last.repeat(n).to(logits.device)
        return logits[torch.arange(len(ids), device=logits.device), places].unflatten(0, (n, prompts))


class _Divergence(_Steered):
    """Mean divergence of the prompts' predictions when vectors are added."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        with torch.no_grad():
            logits = self.model.logits(self.tokens)
        self.plain = logits[torch.arange(len(logits), device=logits.device), self.last.to(logits.device)]

    def __call__(self, vectors: Tensor) -> np.ndarray:
        """(item,) nats; infinite where the prediction is no distribution any more."""
        steered = self.logits(vectors)
        n, prompts, _ = steered.shape
        none = torch.zeros(n * prompts, dtype=torch.long)
        each = kl(steered.flatten(0, 1), none, none, self.plain.repeat(n, 1)).unflatten(0, (n, prompts))
        return each.double().mean(1).nan_to_num(nan=np.inf).cpu().numpy()


class _Search:
    """Brackets of strengths (vector, target), halved until the divergence at their middle is the target."""

    def __init__(self, measure: _Divergence, vectors: Tensor, targets: np.ndarray, low: float, high: float) -> None:
        self.measure, self.vectors, self.targets = measure, vectors, targets
        grid = np.array(sorted({low, *(v for v in (high / 2**i for i in range(HALVINGS + 1)) if v > low)}))
        # From below, and no further than the largest target: what lies above it does not matter.
        kls = np.full((len(vectors), len(grid)), np.nan)
        waiting = np.arange(len(vectors))
        for i, strength in enumerate(grid):
            kls[waiting, i] = self._at(np.full(len(waiting), strength), waiting)
            waiting = waiting[kls[waiting, i] < targets.max()]
            if not len(waiting):
                break
        off = np.abs(kls[:, None, :] - targets[None, :, None])
        above = kls[:, None, :] >= targets[None, :, None]
        first = above.argmax(2)
        # A target that no strength reaches, or that the smallest exceeds, leaves no bracket.
        self.open = above.any(2) & (first > 0)
        self.high, self.low = grid[first], grid[np.maximum(first - 1, 0)]
        # An infinite divergence is as far from a target as one that was not measured.
        near = np.where(np.isfinite(off), off, np.inf).argmin(2)
        self.strength, self.kl = grid[near], np.take_along_axis(kls, near, 1)

    def _at(self, strengths: np.ndarray, which: np.ndarray) -> np.ndarray:
        return self.measure(self.vectors[torch.from_numpy(which)] * torch.from_numpy(strengths)[:, None])

    def step(self, tolerance: float) -> bool:
        """One bisection of every open bracket; whether there was one."""
        off = np.abs(self.kl - self.targets)
        vector, target = np.nonzero(self.open & (off > tolerance))
        if not len(vector):
            return False
        middle = (self.low[vector, target] + self.high[vector, target]) / 2
        found = self._at(middle, vector)
        up = found < self.targets[target]
        self.low[vector[up], target[up]] = middle[up]
        self.high[vector[~up], target[~up]] = middle[~up]
        nearer = np.abs(found - self.targets[target]) < off[vector, target]
        self.strength[vector[nearer], target[nearer]] = middle[nearer]
        self.kl[vector[nearer], target[nearer]] = found[nearer]
        return True


def _units(model: Model, directions: Any, site: str) -> Tensor:
    """Directions (K, d) at unit length, float64, that fit the site."""
    found = model.resolve(site)
    if len(found) != 1:
        raise InputError(f"{site!r} means {len(found)} sites; a direction belongs to one")
    ((known, _, _),) = found
    if len(known.dims) != 3 or known.dims[1] != "pos":
        raise InputError(f"{known.name} has dimensions {known.dims}; steering needs batch, pos and one more")
    given = torch.as_tensor(directions).detach()
    rows = as_rows(given[None] if given.ndim == 1 else given, "directions", known.sizes.get(known.dims[-1]))
    rows = rows.double().cpu()
    length = rows.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise InputError("a direction must not be zero")
    return rows / length
