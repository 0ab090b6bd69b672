"""What to write into an activation.

Every edit can be restricted with ``.at(positions=…, heads=…, units=…, rows=…)``; what lies outside keeps its exact
value. Edits on one site apply in the order in which they were entered. Under autograd gradients flow to the vectors
of an edit and through it to what comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where, at_columns, placed, rows_of, spread
from actinium.core.errors import InputError
from actinium.core.sites import Site

__all__ = [
    "Add",
    "Clamp",
    "Edit",
    "Fn",
    "Mean",
    "ProjectOut",
    "Replace",
    "ReplaceWithin",
    "Resample",
    "Scale",
    "Where",
    "Zero",
    "as_edits",
]


def _tensor(value: Any, what: str) -> Tensor:
    out = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if not out.is_floating_point():
        out = out.to(torch.get_default_dtype())
    if not bool(torch.isfinite(out.detach()).all()):
        raise InputError(f"{what} holds NaN or infinite values")
    return out


class Add(Edit):
    """``x + scale * vector``.

    Args:
        vector: (d,) or any shape that broadcasts to the site; may require grad.
        scale: a number, or a tensor (batch,) with another strength for each row.
    """

    vectors = ("vector",)

    def __init__(self, vector: Any, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        self.vector, self.scale = _tensor(vector, "Add: the vector"), scale

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add the scaled vector."""
        scale = self.scale
        vector = at_columns(rows_of(self.vector.to(x), x, where), x, where, 0.0)
        if not isinstance(scale, Tensor):
            # One kernel: between two tokens of a small model the time of a call is the time of its kernels.
            return torch.add(x, vector, alpha=scale)
        scale = scale.to(x)
        if scale.ndim == 1:
            scale = rows_of(scale, x, where, strengths=True).view(-1, *[1] * (x.ndim - 1))
        return x + scale * vector


class Scale(Edit):
    """``factor * x``, with a number or a tensor that broadcasts to the site."""

    vectors = ("factor",)

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.factor = factor

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Multiply."""
        if not isinstance(self.factor, Tensor):
            return x * self.factor
        return x * at_columns(rows_of(self.factor.to(x), x, where), x, where, 1.0)


class Zero(Edit):
    """Zero."""

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Put zeros."""
        return torch.zeros_like(x)


class Clamp(Edit):
    """Limit every entry to [`min`, `max`]; either may be None."""

    def __init__(self, min: float | None = None, max: float | None = None) -> None:
        super().__init__()
        if min is None and max is None:
            raise InputError("Clamp needs min, max or both")
        if min is not None and max is not None and min > max:
            raise InputError(f"Clamp: min {min} is above max {max}")
        self.min, self.max = min, max

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Limit."""
        return x.clamp(self.min, self.max)


def _spanned(directions: Tensor, what: str) -> Tensor:
    """Orthonormal basis (d, k) in float64 of the span of directions (n, d).

    Raises:
        InputError: they are all zero.
    """
    left, size, _ = torch.linalg.svd(directions.detach().double().T, full_matrices=False)
    keep = size > size.max() * 1e-10
    if not bool(keep.any()) or float(size.max()) == 0.0:
        raise InputError(f"{what}: the directions are zero")
    basis: Tensor = left[:, keep]
    return basis


def _within(x: Tensor, directions: Tensor, basis: Tensor) -> Tensor:
    """The part of x (…, d) in the span of the directions, for which `basis` is one that was made before."""
    if directions.requires_grad:
        # Made anew, as the directions may have been changed since by an optimiser; the pseudo-inverse has a
        # gradient where singular vectors have none.
        wide = directions.double()
        projector: Tensor = (torch.linalg.pinv(wide) @ wide).to(x)
        return x @ projector
    basis = basis.to(x)
    return (x @ basis) @ basis.T


class ProjectOut(Edit):
    """Remove the part of the last dimension that lies in the span of `directions`.

    Args:
        directions: (d,) or (k, d), of any length, not all zero.
    """

    vectors = ("directions",)

    def __init__(self, directions: Any) -> None:
        super().__init__()
        given = _tensor(directions, "ProjectOut: the directions")
        self.directions = given.reshape(-1, given.shape[-1])
        self.basis = _spanned(self.directions, "ProjectOut")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Subtract the projection on the span."""
        return x - _within(x, self.directions, self.basis)


class Replace(Edit):
    """Put `value` in place of the activation.

    Args:
        value: broadcasts to the site. Along positions it may hold every column of the sequence (those of the pass
            are taken; columns beyond it are left alone), one, or exactly the positions named in ``.at``.
    """

    vectors: tuple[str, ...] = ("value",)

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = _tensor(value, "Replace: the value")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Put the value."""
        return placed(rows_of(self.value, x, where).to(x), x, where, self.positions)


class ReplaceWithin(Replace):
    """Put the part of `value` in the span of the directions in place of the activation's: x + (value - x) V V^T.

    Args:
        value: as in `Replace`.
        directions: (d,) or (k, d), of any length, not all zero; their span is what counts.
    """

    vectors = ("value", "directions")

    def __init__(self, value: Any, directions: Any) -> None:
        super().__init__(value)
        given = _tensor(directions, "ReplaceWithin: the directions")
        self.directions = given.reshape(-1, given.shape[-1])
        self.basis = _spanned(self.directions, "ReplaceWithin")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Exchange the part in the span."""
        return x + _within(super().change(x, where) - x, self.directions, self.basis)


class Mean(Edit):
    """Put the mean of a reference set in place of the activation (mean ablation).

    Args:
        reference: a Recording of the reference set (its mean over rows and real positions at the edited site), or
            the mean itself as a tensor that broadcasts to the site.
        per_position: keep a mean for each position (recordings only; texts of equal length).
    """

    vectors = ("mean",)

    def __init__(self, reference: Any, per_position: bool = False) -> None:
        super().__init__()
        self.reference, self.per_position = reference, per_position
        self.mean: Tensor | None = None
        if not hasattr(reference, "mask"):
            self.mean = _tensor(reference, "Mean: the reference")

    def check(self, site: Site) -> None:
        """Take the mean at this site, then check as any edit does."""
        if self.mean is None or hasattr(self.reference, "mask"):
            self.mean = self._of_recording(site)
        super().check(site)

    def _of_recording(self, site: Site) -> Tensor:
        values: Tensor = self.reference[site.name]
        mask: Tensor | None = self.reference.mask
        if "query" in site.dims:
            return values.float().mean(0, keepdim=True)
        if mask is None or "pos" not in site.dims:
            return values.float().mean(0)
        if self.per_position:
            if not bool(mask.all()):
                raise InputError("Mean(per_position=True): the reference texts differ in length")
            return values.float().mean(0)
        return values[mask].float().mean(0)

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Put the mean."""
        if self.mean is None:
            raise InputError("Mean: the reference recording was never bound to a site; use it in model.edit")
        mean = self.mean.to(x)
        if self.per_position and where.pos is not None:
            return placed(mean[None], x, where, self.positions)
        return spread(mean, x, where)


class Resample(Edit):
    """Put the activation of another, random row in place of each row's (resample ablation).

    Args:
        source: (rows, …) activations of the site. Where it has as many rows as the batch, no row gets its own.
        seed: of the choice; the same seed gives the same rows.
    """

    def __init__(self, source: Any, seed: int = 0) -> None:
        super().__init__()
        self.source, self.seed = _tensor(source, "Resample: the source"), seed
        if self.source.ndim < 2 or self.source.shape[0] < 2:
            raise InputError(f"Resample: the source needs two rows or more, not shape {tuple(self.source.shape)}")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Put the drawn rows."""
        n, rows = self.source.shape[0], where.now.row_start + x.shape[0]
        random = torch.Generator().manual_seed(self.seed)
        # Drawn in pieces of one size, so that a row's draw does not depend on how the rows are batched.
        shift = torch.cat([torch.randint(1, n, (n,), generator=random) for _ in range(-(-rows // n))])[:rows]
        chosen = (torch.arange(rows) + shift) % n
        picked = self.source.to(x)[chosen[where.now.row_start :].to(x.device)]
        return placed(picked, x, where, None)


class Fn(Edit):
    """Any function of the activation that keeps its shape.

    Args:
        function: called with the tensor in the site's layout.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise InputError(f"Fn needs a function, not {type(function).__name__}")
        self.function = function

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Call the function."""
        new = self.function(x)
        if not isinstance(new, Tensor) or new.shape != x.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise InputError(f"Fn at {where.site.name}: the function must return shape {tuple(x.shape)}, not {got}")
        return new


def as_edits(edits: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> list[tuple[str, Edit]]:
    """Normalise what a user gives to `model.edit`: pairs of a site and an edit, in order.

    Raises:
        InputError: if it is not a mapping or pairs, holds nothing, or a value is not an edit.
    """
    pairs = list(edits.items()) if isinstance(edits, Mapping) else list(edits)
    if not pairs:
        raise InputError("no edits given; pass {site: edit}, for example {'blocks.0.resid_post': Add(vector)}")
    out: list[tuple[str, Edit]] = []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError("edits must be a mapping {site: edit} or pairs (site, edit)")
        site, value = pair
        for one in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(one, Edit):
                raise InputError(f"at {site!r}: expected an edit such as Add(vector), not {type(one).__name__}")
            out.append((site, one))
    return out
