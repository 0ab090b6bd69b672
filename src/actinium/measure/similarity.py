"""How alike the activations of two layers are: cosine and linear CKA."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.alignment import linear_cka, mean_cosine
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.streaming import Layers, as_result, choose, ready, real_rows, row_batches

__all__ = ["hsic", "layer_similarity", "linear_cka", "mean_cosine"]

# Bytes of cross-covariances above which CKA is estimated from minibatches instead.
MEMORY = 1 << 30
MINIBATCH = 256


def hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 - the paper's letters
    """Unbiased estimate of the Hilbert-Schmidt independence criterion.

    Args:
        k, l: kernel matrices of the same n >= 4 inputs, (n, n).

    Returns:
        a scalar; may be negative.

    Raises:
        InputError: fewer than four inputs, or shapes that do not fit.

    Source: Song et al., 2012, Feature selection via dependence maximization, eq. 5.
    """
    n = len(k)
    if n < 4 or k.shape != (n, n) or l.shape != k.shape:
        raise InputError(f"expected two (n, n) kernels with n >= 4, got {tuple(k.shape)} and {tuple(l.shape)}")
    k, l = (m.double() - torch.diag(m.double().diagonal()) for m in (k, l))  # noqa: E741
    trace = (k * l.T).sum()
    means = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (trace + means - 2 / (n - 2) * (k.sum(0) @ l.sum(1))) / (n * (n - 3))


class _ExactCKA:
    """Cross-covariances of every pair of layers, updated batch by batch."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 0
        self.mean: list[Tensor] = []
        self.cross: dict[tuple[int, int], Tensor] = {}

    def update(self, xs: list[Tensor]) -> None:
        b = len(xs[0])
        means = [x.mean(0) for x in xs]
        centred = [x - m for x, m in zip(xs, means, strict=True)]
        if not self.mean:
            self.mean = [torch.zeros_like(m) for m in means]
        total = self.count + b
        shift = [m - old for m, old in zip(means, self.mean, strict=True)]
        for i, j in combinations_with_replacement(range(self.n), 2):
            part = centred[i].T @ centred[j] + torch.outer(shift[i], shift[j]) * (self.count * b / total)
            self.cross[i, j] = self.cross[i, j] + part if (i, j) in self.cross else part
        self.mean = [old + s * (b / total) for old, s in zip(self.mean, shift, strict=True)]
        self.count = total

    def result(self) -> np.ndarray:
        return _aligned(self.n, {pair: float(c.norm() ** 2) for pair, c in self.cross.items()})


class _MinibatchCKA:
    """Unbiased HSIC of every pair of layers, averaged over minibatches of `MINIBATCH` positions."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 0
        self.waiting: list[Tensor] = []
        self.sums = dict.fromkeys(combinations_with_replacement(range(n), 2), 0.0)

    def update(self, xs: list[Tensor]) -> None:
        self.waiting = [torch.cat([w, x]) for w, x in zip(self.waiting, xs, strict=True)] if self.waiting else xs
        while len(self.waiting[0]) >= MINIBATCH:
            self._take(MINIBATCH)

    def _take(self, size: int) -> None:
        grams = [w[:size] @ w[:size].T for w in self.waiting]
        self.waiting = [w[size:] for w in self.waiting]
        for i, j in self.sums:
            self.sums[i, j] += float(hsic(grams[i], grams[j])) * size
        self.count += size

    def result(self) -> np.ndarray:
        if self.waiting and len(self.waiting[0]) >= 4:
            self._take(len(self.waiting[0]))
        if not self.count:
            raise InputError("minibatch CKA needs at least four positions")
        return _aligned(self.n, self.sums)


def _aligned(n: int, hsics: dict[tuple[int, int], float]) -> np.ndarray:
    """CKA matrix from the HSIC of each pair."""
    out = np.full((n, n), np.nan)
    for (i, j), value in hsics.items():
        scale = hsics[i, i] * hsics[j, j]
        out[i, j] = out[j, i] = value / scale**0.5 if scale > 0 else np.nan
    return out


def layer_similarity(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    cka: str | None = None,
    batch_size: int | None = 8,
) -> Result:
    """Cosine and linear CKA between the activations of every two sites.

    Args:
        model: the model.
        inputs: texts, tokens or images. Positions with NaN or infinite values at any site are left out.
        at: sites with as many positions each; the residual stream after each block by default.
        cka: "exact" (cross-covariances: layers^2 * d^2 numbers), "minibatch" (unbiased HSIC over minibatches
            of 256 positions), or None for exact below 1 GiB.
        batch_size: rows per pass.

    Returns:
        by layer and other layer: `cka`, `cosine` (mean over positions; NaN where the widths differ); by layer:
        `step_cosine`, that to the next layer.

    Raises:
        InputError, SiteError: nothing to read, sites with different numbers of positions, fewer than two
            positions.

    Source: Kornblith et al., 2019 (CKA); Nguyen et al., 2021 (minibatch CKA).
    """
    if cka not in (None, "exact", "minibatch"):
        raise InputError(f'cka is "exact", "minibatch" or None, got {cka!r}')
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    n = len(layers.names)
    cosine, count, dropped = np.zeros((n, n)), 0, 0
    state: _ExactCKA | _MinibatchCKA | None = None
    for part in row_batches(inputs, batch_size):
        rec = model.record(part, layers.names)
        xs = _even_rows([real_rows(rec, name) for name in layers.names], layers)
        finite = torch.stack([x.isfinite().all(1) for x in xs]).all(0)
        dropped += int((~finite).sum())
        xs = [x[finite].double() for x in xs]
        if not len(xs[0]):
            continue
        if state is None:
            size = 4 * n * (n + 1) * max(x.shape[1] for x in xs) ** 2
            cka = cka or ("exact" if size <= MEMORY else "minibatch")
            state = _ExactCKA(n) if cka == "exact" else _MinibatchCKA(n)
        state.update(xs)
        cosine += _cosines(xs)
        count += len(xs[0])
    if state is None or count < 2:
        raise InputError(f"the similarity of layers needs two finite positions or more, got {count}")
    cosine /= count
    two = (layers.dim, f"other_{layers.dim}")
    variables: dict[str, Any] = {
        "cka": (two, state.result()),
        "cosine": (two, cosine),
        "step_cosine": ((layers.dim,), np.append(np.diagonal(cosine, 1), np.nan)),
        "count": ((), count),
        "dropped": ((), dropped),
    }
    coords = layers.coords | {f"other_{layers.dim}": layers.labels}
    return as_result(model, inputs, "layer_similarity", variables, coords, at=layers.names, cka=cka)


def _even_rows(xs: list[Tensor], layers: Layers) -> list[Tensor]:
    sizes = {len(x) for x in xs}
    if len(sizes) > 1:
        shown = ", ".join(f"{name}: {len(x)}" for name, x in zip(layers.names, xs, strict=True))
        raise InputError(f"the sites differ in their number of positions ({shown}); compare those that agree")
    return xs


def _cosines(xs: list[Tensor]) -> np.ndarray:
    """Sum over positions of the cosine of every pair of layers; NaN where the widths differ."""
    out = np.full((len(xs), len(xs)), np.nan)
    units = [torch.nn.functional.normalize(x, dim=1) for x in xs]
    for i, j in combinations_with_replacement(range(len(xs)), 2):
        if units[i].shape == units[j].shape:
            out[i, j] = out[j, i] = float((units[i] * units[j]).sum())
    return out
