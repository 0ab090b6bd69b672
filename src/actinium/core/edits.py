"""What to write into an activation.

Every edit can be restricted with ``.at(positions=…, heads=…, units=…, rows=…)``; what lies outside keeps its exact
value. Edits on one site apply in the order in which they were entered. Under autograd gradients flow to the vectors
of an edit and through it to what comes before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.passes import Pass, Positions, check_positions
from actinium.core.sites import Site

__all__ = [
    "Add",
    "Clamp",
    "Edit",
    "Fn",
    "Mean",
    "ProjectOut",
    "Replace",
    "Resample",
    "Scale",
    "Where",
    "Zero",
    "as_edits",
]


class Where:
    """Where a tensor stands in the pass: its site, its dimensions, and its first column.

    Args:
        site: the address.
        now: the pass in flight.
        start: column of the first position of the tensor.
    """

    def __init__(self, site: Site, now: Pass, start: int | None = None) -> None:
        self.site, self.now = site, now
        self.start = now.start if start is None else start
        self.pos = next((i for i, d in enumerate(site.dims) if d in ("pos", "query")), None)


class Edit:
    """Base of all edits. A subclass defines `change`; `vectors` names the tensors that broadcast to the site."""

    vectors: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.positions: Positions | None = None
        self.heads: list[int] | None = None
        self.units: list[int] | None = None
        self.rows: list[int] | None = None

    def at(
        self,
        *,
        positions: Positions | None = None,
        heads: int | Iterable[int] | None = None,
        units: int | Iterable[int] | None = None,
        rows: int | Iterable[int] | None = None,
    ) -> Edit:
        """The same edit, restricted.

        Args:
            positions: token positions: a number, several, a slice, or a tensor (k,) or (batch, k). 0 is the first
                token of each text, -1 the last token of the prompt, also under padding and while generating.
            heads: attention heads.
            units: entries of the last dimension (channels of an image).
            rows: rows of the batch.
        Raises:
            InputError: if a choice is empty or not made of integers.
        """
        out = copy.copy(self)
        if positions is not None:
            check_positions(positions)
            out.positions = positions
        for name, value in (("heads", heads), ("units", units), ("rows", rows)):
            if value is not None:
                setattr(out, name, _integers(name, value))
        return out

    def change(self, x: Tensor, where: Where) -> Tensor:
        """The new value of the whole tensor."""
        raise TypeError(f"{type(self).__name__} must define change()")

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """Apply within the restriction; same shape and dtype as `x`."""
        new = self.change(x, where)
        if new.dtype != x.dtype:
            new = new.to(x.dtype)
        if self.positions is None and self.heads is None and self.units is None and self.rows is None:
            return new.expand_as(x) if new.shape != x.shape else new
        return torch.where(self.mask(x, where), new, x)

    def mask(self, x: Tensor, where: Where) -> Tensor:
        """The restriction as a bool tensor that broadcasts to `x`."""
        chosen = torch.ones((1,) * x.ndim, dtype=torch.bool, device=x.device)
        if self.positions is not None and where.pos is not None:
            columns = where.now.selected(self.positions, x.shape[where.pos], where.start, x.device)
            shape = [1] * x.ndim
            shape[0], shape[where.pos] = columns.shape
            chosen = chosen & columns.view(shape)
        dims = where.site.dims
        for dim, wanted in ((_head_dim(dims), self.heads), (_unit_dim(dims, x.ndim), self.units)):
            if wanted is not None and dim is not None:
                chosen = chosen & _among(wanted, x.shape[dim], dim, x)
        if self.rows is not None:
            rows = [r - where.now.row_start for r in self.rows]
            chosen = chosen & _among([r for r in rows if 0 <= r < x.shape[0]], x.shape[0], 0, x)
        return chosen

    def check(self, site: Site) -> None:
        """Refuse, before any work, what cannot fit the site.

        Raises:
            InputError: if a restriction names a dimension that the site lacks or an index beyond its size, or a
                vector's size differs from the site's.
        """
        if not site.dims:
            return  # of a module's output nothing is known before it runs; then it is checked
        what = f"{type(self).__name__} at {site.name}"
        head, unit = _head_dim(site.dims), _unit_dim(site.dims, len(site.dims))
        if self.positions is not None and not {"pos", "query"} & set(site.dims):
            raise InputError(f"{what}: this site has no positions; its dimensions are {site.dims}")
        for name, dim, wanted in (("heads", head, self.heads), ("units", unit, self.units)):
            if wanted is None:
                continue
            if dim is None:
                raise InputError(f"{what}: this site has no {name}; its dimensions are {site.dims}")
            size = site.sizes.get(site.dims[dim])
            if size is not None and max(wanted) >= size:
                raise InputError(f"{what}: {name} go from 0 to {size - 1}, not {max(wanted)}")
        size = site.sizes.get(site.dims[-1]) if site.dims else None
        for name in self.vectors:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.ndim and size is not None and value.shape[-1] not in (1, size):
                raise InputError(f"{what}: {name} has size {value.shape[-1]}, but {site.dims[-1]} is {size}")

    def bound(self, site: Site) -> Edit:
        """The edit to use at one site, checked: itself, or a copy where it differs from site to site.

        Raises:
            InputError: as `check`.
        """
        out = copy.copy(self)
        out.check(site)
        return out

    def __repr__(self) -> str:
        limits = {k: getattr(self, k) for k in ("positions", "heads", "units", "rows")}
        shown = ", ".join(f"{k}={v}" for k, v in limits.items() if v is not None)
        return f"{type(self).__name__}()" + (f".at({shown})" if shown else "")


def _integers(name: str, value: int | Iterable[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    if not values:
        raise InputError(f"{name}: the choice is empty")
    if any(isinstance(v, bool) or int(v) != v or v < 0 for v in values):
        raise InputError(f"{name}: expected integers from 0 up, not {values}")
    return [int(v) for v in values]


def _head_dim(dims: Sequence[str]) -> int | None:
    return next((i for i, d in enumerate(dims) if d in ("head", "kv_head")), None)


def _unit_dim(dims: Sequence[str], ndim: int) -> int | None:
    if "channel" in dims:
        return dims.index("channel")
    return None if dims and dims[-1] == "key" else ndim - 1


def _among(wanted: list[int], size: int, dim: int, x: Tensor) -> Tensor:
    flags = torch.zeros(size, dtype=torch.bool, device=x.device)
    flags[wanted] = True
    shape = [1] * x.ndim
    shape[dim] = size
    return flags.view(shape)


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
        if isinstance(scale, Tensor):
            scale = scale.to(x)
            if scale.ndim == 1:
                scale = _rows(scale, x, where).view(-1, *[1] * (x.ndim - 1))
        return x + scale * self.vector.to(x)


class Scale(Edit):
    """``factor * x``, with a number or a tensor that broadcasts to the site."""

    vectors = ("factor",)

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.factor = factor

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Multiply."""
        return x * (self.factor.to(x) if isinstance(self.factor, Tensor) else self.factor)


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
        left, size, _ = torch.linalg.svd(self.directions.detach().double().T, full_matrices=False)
        keep = size > size.max() * 1e-10
        if not bool(keep.any()) or float(size.max()) == 0.0:
            raise InputError("ProjectOut: the directions are zero")
        self.basis = left[:, keep]

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Subtract the projection on the span."""
        if self.directions.requires_grad:
            # Made anew, as the directions may have been changed since by an optimiser; the pseudo-inverse has a
            # gradient where singular vectors have none.
            wide = self.directions.double()
            projector: Tensor = (torch.linalg.pinv(wide) @ wide).to(x)
            return x - x @ projector
        basis: Tensor = self.basis.to(x)
        return x - (x @ basis) @ basis.T


class Replace(Edit):
    """Put `value` in place of the activation.

    Args:
        value: broadcasts to the site. Along positions it may hold every column of the sequence (those of the pass
            are taken; columns beyond it are left alone), one, or exactly the positions named in ``.at``.
    """

    vectors = ("value",)

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = _tensor(value, "Replace: the value")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Put the value."""
        return _placed(_rows(self.value, x, where).to(x), x, where, self.positions)


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
            return _placed(mean[None], x, where, self.positions)
        return _spread(mean, x, where)


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
        return _placed(picked, x, where, None)


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


def _rows(value: Tensor, x: Tensor, where: Where) -> Tensor:
    """Of a value with a row for each row of the whole call, those of this batch."""
    total, first = where.now.rows, where.now.row_start
    whole = value.ndim in (1, x.ndim) and value.shape[:1] == (total,) and total != x.shape[0]
    return value[first : first + x.shape[0]] if whole and value.shape != x.shape[-1:] else value


def _spread(value: Tensor, x: Tensor, where: Where) -> Tensor:
    try:
        return value.expand_as(x)
    except RuntimeError:
        raise InputError(
            f"at {where.site.name}: a value of shape {tuple(value.shape)} does not fit {tuple(x.shape)}"
        ) from None


def _placed(value: Tensor, x: Tensor, where: Where, positions: Any) -> Tensor:
    """Bring a value with positions of its own to the columns of `x`; columns it does not have keep `x`."""
    dim = where.pos
    if dim is None or value.ndim != x.ndim or value.shape[dim] == 1:
        return _spread(value, x, where)
    n, have, start = x.shape[dim], value.shape[dim], where.start
    if have == n and start == 0:
        return _spread(value, x, where)
    if positions is not None and not isinstance(positions, slice | Tensor):
        wanted = [positions] if isinstance(positions, int) else list(positions)
        if len(wanted) == have:
            out = x
            for i, p in enumerate(wanted):
                columns = where.now.selected(p, n, start, x.device)
                shape = [1] * x.ndim
                shape[0], shape[dim] = columns.shape
                out = torch.where(columns.view(shape), value.narrow(dim, i, 1), out)
            return out
    if start >= have:
        return x
    part = value.narrow(dim, start, min(n, have - start))
    if part.shape[dim] < n:
        part = torch.cat(
            [
                part.expand(*x.shape[:dim], -1, *x.shape[dim + 1 :]),
                x.narrow(dim, part.shape[dim], n - part.shape[dim]),
            ],
            dim,
        )
    return _spread(part, x, where)


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
