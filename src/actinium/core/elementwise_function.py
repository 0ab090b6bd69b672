"""A function of one number, as integrals over Gaussians need it: checked, in float64, with its kinks known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["Elementwise", "ReLULike", "elementwise"]

Floats = NDArray[np.float64]
NODES = 16
"""Points in a piece: a piece is small enough when a polynomial of degree 15 is the function there."""
DEEPEST = 42
"""Bisections until the place of a kink counts as found."""
DEEP = 14
"""Bisections beyond which something sharp is taken for a kink."""
GRADED = 24
"""Bisections beside a known kink at which even a root or a logarithm has been followed far enough."""
NARROW = 1 / 32
"""A piece of such a share of the pieces beside it has something inside of it."""
MOST = 3000
"""Pieces of one function."""
NODE, WEIGHT = np.polynomial.legendre.leggauss(NODES)
INSIDE = np.concatenate([[-1 + 1e-7], NODE, [1 - 1e-7]])
AT_ENDS = np.polynomial.legendre.legvander(INSIDE[[0, -1]], NODES - 1).T
# Legendre coefficients from values at the nodes, and value and first two derivatives at both ends from coefficients.
COEFFICIENTS = np.polynomial.legendre.legvander(NODE, NODES - 1).T * WEIGHT * (np.arange(NODES)[:, None] + 0.5)


def _ends() -> Floats:
    out = np.empty((3, 2, NODES))
    for k in range(NODES):
        one = np.polynomial.legendre.Legendre.basis(k)
        for order in range(3):
            out[order, :, k] = one.deriv(order)(np.array([-1.0, 1.0])) if order else one(np.array([-1.0, 1.0]))
    return out


ENDS = _ends()


class ReLULike(nn.Module):
    """`positive * x` above zero and `negative * x` below: ReLU, leaky ReLU, the absolute value, linear functions.

    Args:
        positive: slope above zero.
        negative: slope below.
    """

    def __init__(self, positive: float = 1.0, negative: float = 0.0) -> None:
        super().__init__()
        self.positive, self.negative = float(positive), float(negative)

    def forward(self, x: Tensor) -> Tensor:
        """The function at each entry of a tensor."""
        return torch.where(x > 0, self.positive * x, self.negative * x)


class Elementwise:
    """A callable tensor -> tensor that acts on each entry by itself.

    Args:
        fn: the callable; a module is copied, in float64 and evaluation mode, and its parameters are frozen.
        kinks: places where it or a derivative jumps, where they are known; others are found.
        name: what messages call it.

    Raises:
        InputError: it is not callable, changes shape or type, is random, or an entry depends on another.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], kinks: Sequence[float] = (), name: str = "") -> None:
        if not callable(fn):
            raise InputError(f"an activation function is a callable of a tensor, got {type(fn).__name__}")
        self.original = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.given = tuple(float(k) for k in kinks)
        if isinstance(fn, nn.Module):
            fn = copy.deepcopy(fn).double().cpu().eval().requires_grad_(False)
            for part in fn.modules():
                if getattr(part, "inplace", False):
                    part.inplace = False  # type: ignore[assignment]
        self.fn = fn
        self._meshes: dict[tuple[float, float], tuple[Floats, Floats, NDArray[np.int64]]] = {}
        self._check()

    def __call__(self, x: Tensor) -> Tensor:
        """Values at float64 places of any shape.

        Raises:
            InputError: integers are given, or a value is not finite.
        """
        if not torch.is_floating_point(x):
            raise InputError(f"{self.name} is asked at real numbers, got a tensor of {x.dtype}")
        with torch.no_grad():
            # A copy, for a function may work in place.
            y = self.fn(x.detach().to(torch.float64, copy=True).reshape(-1)).detach().reshape(x.shape)
        if not bool(y.isfinite().all()):
            bad = x.reshape(-1)[~y.reshape(-1).isfinite()][0]
            raise InputError(f"{self.name} is not finite at {float(bad):.4g}, so its moments are not finite")
        return y

    def derivative(self) -> Elementwise:
        """The derivative by autograd; at a kink, where it is not defined, integrals do not ask for it."""

        def slope(x: Tensor) -> Tensor:
            with torch.enable_grad():
                # Of a second derivative the inner call needs its graph; of a first one it costs little.
                at = x if x.requires_grad else x.detach().requires_grad_(True)
                y = self.fn(at.clone())
                if not y.requires_grad:
                    return torch.zeros_like(x)
                found = torch.autograd.grad(y.sum(), at, create_graph=True, allow_unused=True)[0]
            return torch.zeros_like(x) if found is None else found

        return Elementwise(slope, self.given, f"derivative of {self.name}")

    def breaks(self, reach: float) -> Tensor:
        """Ends of the pieces of [-reach, reach], or more, on each of which it is a polynomial to eleven digits."""
        return torch.from_numpy(self._mesh(*_around(reach))[0])

    def kinks(self, reach: float) -> Tensor:
        """Places in [-reach, reach] where it, its slope or its curvature jumps, in order."""
        return self._places(reach, 2)

    def corners(self, reach: float) -> Tensor:
        """Those of the kinks at which it or its slope jumps."""
        return self._places(reach, 1)

    def jumps(self, lo: float, hi: float) -> tuple[Tensor, Tensor, Tensor]:
        """Places between two numbers where its value, where only its slope, and where only its curvature jumps.

        Raises:
            InputError: a value between them is not finite, or it turns too often.
        """
        _, at, order = self._mesh(float(lo), float(hi))
        value, slope, curvature = (torch.from_numpy(at[order == k]) for k in range(3))
        return value, slope, curvature

    def _places(self, reach: float, highest: int) -> Tensor:
        _, at, order = self._mesh(*_around(reach))
        return torch.from_numpy(at[(order <= highest) & (np.abs(at) <= reach)])

    def _mesh(self, lo: float, hi: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
        if (lo, hi) not in self._meshes:
            self._meshes[lo, hi] = _mesh(self, self.given, lo, hi)
        return self._meshes[lo, hi]

    def _check(self) -> None:
        x = torch.linspace(-2.9, 3.1, 36, dtype=torch.float64)
        # Every second entry changes, so that one that looks back or ahead is seen.
        kept = torch.arange(36) % 2 == 0
        other = torch.where(kept, x, 0.3 - 1.7 * x)
        try:
            with torch.no_grad():
                y, again, changed, alone = (self.fn(at) for at in (x.clone(), x.clone(), other, x[:18].clone()))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.name} cannot be applied to a tensor of one dimension: {error}") from error
        if not isinstance(y, Tensor) or y.shape != x.shape or alone.shape != x[:18].shape:
            raise InputError(f"{self.name} is not elementwise: the shape of its output is not that of its input")
        if y.dtype != torch.float64:
            raise InputError(f"{self.name} must keep float64, it returns {y.dtype}")
        if not torch.equal(y.nan_to_num(), again.nan_to_num()):
            raise InputError(f"{self.name} is random: two calls on the same input differ")
        for found, same in ((changed[kept], y[kept]), (alone, y[:18])):
            if not torch.allclose(found, same, rtol=1e-10, atol=1e-12, equal_nan=True):
                raise InputError(f"{self.name} is not elementwise: an output changes when other inputs do")


def elementwise(fn: Callable[[Tensor], Tensor] | Elementwise, kinks: Sequence[float] = ()) -> Elementwise:
    """The callable as an `Elementwise`; one that is so already is handed back."""
    return fn if isinstance(fn, Elementwise) else Elementwise(fn, kinks)


def _around(reach: float) -> tuple[float, float]:
    """The interval that is looked at for a reach: few of them, so that one serves for many."""
    far = 2.0 ** float(np.ceil(np.log2(max(reach, 1.0))))
    return -far, far


def _pieces(f: Elementwise, edges: Floats, deepest: int) -> tuple[Floats, Floats, Floats]:
    """Bisect until each piece is a polynomial: left ends, right ends (sorted), and bisections of each."""
    left, right = edges[:-1].copy(), edges[1:].copy()
    depth = np.zeros(len(left))
    usual = _usual(f, edges[0], edges[-1])
    done: list[tuple[Floats, Floats, Floats]] = []
    while len(left):
        half = 0.5 * (right - left)
        places = left[:, None] + half[:, None] * (INSIDE + 1)
        values = f(torch.from_numpy(places)).numpy()
        inner = values[:, 1:-1]
        fit = inner @ COEFFICIENTS.T
        size = np.abs(values).max(1)
        # A jump between an end and the first point beside it shows at the end alone.
        ends = np.abs(fit @ AT_ENDS - values[:, [0, -1]]).max(1)
        good = np.abs(fit[:, -3:]).max(1) <= 1e-11 * size + 1e-13 * usual
        good &= ends <= 1e-9 * size + 1e-12 * usual
        good |= depth >= deepest
        done.append((left[good], right[good], depth[good]))
        left, right, depth = left[~good], right[~good], depth[~good]
        if len(left) + sum(len(d[0]) for d in done) > MOST:
            raise InputError(f"{f.name} has too many kinks or turns within {edges[0]:g}..{edges[-1]:g}")
        middle = 0.5 * (left + right)
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        depth = np.concatenate([depth, depth]) + 1
    a, b, d = (np.concatenate(part) for part in zip(*done, strict=True))
    order = np.argsort(a)
    return a[order], b[order], d[order]


def _usual(f: Elementwise, lo: float, hi: float) -> float:
    """Mean absolute value where most of a Gaussian lies whose far ends these are."""
    middle, part = (lo + hi) / 2, (hi - lo) / 16
    return float(f(torch.linspace(middle - part, middle + part, 256, dtype=torch.float64)).abs().mean())


def _mesh(f: Elementwise, given: Sequence[float], lo: float, hi: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Ends of the pieces of lo..hi; places of kinks, and for each the lowest derivative that jumps there."""
    inside = [k for k in given if lo < k < hi]
    # A wide first piece could step over what happens near zero.
    powers = 2.0 ** np.arange(0, np.log2(max(-lo, hi, 1.0)) + 0.5)
    start = [lo, *(p for p in (*-powers, 0.0, *powers) if lo < p < hi), hi]
    left, right, depth = _pieces(f, np.unique([*start, *inside]), DEEPEST)
    found = list(inside)
    unsure: list[float] = []  # roots, and jumps of a curvature, whose place is known better from both sides
    deep = depth >= DEEP
    groups = np.flatnonzero(np.diff(np.concatenate([[False], deep, [False]]).astype(int)))
    for first, stop in groups.reshape(-1, 2):
        at = first + int(np.argmax(depth[first:stop]))
        middle, width = 0.5 * (left[at] + right[at]), right[at] - left[at]
        (found if depth[at] >= GRADED else unsure).append(_meant(middle, 2 * width, start))
    if found:
        left, right, _ = _pieces(f, np.unique([*start, *found]), GRADED)
    left, right = _merged(f, left, right, found)
    bent = _bends(f, left, right)
    bent += [place for place in unsure if all(abs(place - b) > 1e-3 for b in bent)]
    if bent:
        found += bent
        left, right, _ = _pieces(f, np.unique([*start, *found]), GRADED)
        left, right = _merged(f, left, right, found)
    inner = left[1:]
    jumps = _jumps(f, left, right)
    known = np.isin(inner, found)
    if found:
        # A root that was followed far enough seems to jump where that ends.
        beside = np.abs(inner[:, None] - np.array(found)).min(1) <= (hi - lo) * 0.5**GRADED
        jumps[:, beside & ~known] = False
    jumps[0] &= _stays(f, inner)
    jumps[1] |= known & ~jumps[0] & _steep(f, inner, 1)
    jumps[2] |= known & _steep(f, inner, 2)
    kinked = jumps.any(0)
    return np.append(left, right[-1]), inner[kinked], jumps.argmax(0)[kinked]


def _stays(f: Elementwise, at: Floats) -> NDArray[np.bool_]:
    """Whether the difference of values around a place is as large on a step that is a thousand times smaller."""
    far, near = (
        (f(torch.from_numpy(at + e)) - f(torch.from_numpy(at - e))).abs().numpy()
        for e in (1e-9 * (1 + np.abs(at)), 1e-12 * (1 + np.abs(at)))
    )
    return near > far / 3


def _steep(f: Elementwise, at: Floats, order: int) -> NDArray[np.bool_]:
    """Whether a derivative grows without bound towards a place, on one of its sides."""
    steep = np.zeros(len(at), dtype=bool)
    for side in (-1, 1):
        sizes = []
        for h in (1e-5, 1e-6):
            zero, one, two = (f(torch.from_numpy(at + side * k * h)).numpy() for k in range(3))
            change = np.abs(one - zero if order == 1 else two - 2 * one + zero)
            sizes.append(change / h**order)
        sure = change > 1e-12 * (np.abs(zero) + np.abs(two))
        steep |= sure & (sizes[1] > 2 * sizes[0])
    return steep


def _meant(place: float, error: float, marks: Sequence[float] = ()) -> float:
    """A mark, or a number of few digits, within an error of a place: it is what was meant."""
    return next((m for m in (*marks, float(np.round(place, 6))) if abs(m - place) <= error), place)


def _bends(f: Elementwise, left: Floats, right: Floats) -> list[float]:
    """Places inside of narrow pieces between wide ones where only the curvature jumps.

    Such a jump is lost in rounding long before a piece around it is as small as one around a corner. The polynomials on
    both sides differ by half the jump times the square of the distance: their slopes agree where it is.
    """
    width = right - left
    at = np.flatnonzero(width[1:-1] <= NARROW * np.minimum(width[:-2], width[2:])) + 1
    half = 0.5 * width
    values = f(torch.from_numpy(left[:, None] + half[:, None] * (NODE + 1))).numpy()
    found = []
    for i in at:
        middle = 0.5 * (left[i] + right[i])
        before, after = (
            np.polynomial.legendre.Legendre(COEFFICIENTS @ values[j], [left[j], right[j]]) for j in (i - 1, i + 1)
        )
        slope, curvature = (float(before.deriv(k)(middle) - after.deriv(k)(middle)) for k in (1, 2))
        place = middle - slope / curvature if curvature else middle
        if left[i] <= place <= right[i]:
            found.append(_meant(place, 1e-7))
    return found


def _merged(f: Elementwise, left: Floats, right: Floats, kinks: Sequence[float]) -> tuple[Floats, Floats]:
    """Neighbouring pieces made one where one polynomial is the function on both."""
    usual, start = _usual(f, left[0], right[-1]), 0
    idle = 0
    while idle < 2 and len(left) > 1:
        first = np.arange(start, len(left) - 1, 2)
        first = first[~np.isin(right[first], [0.0, *kinks])]
        a, b = left[first], right[first + 1]
        half = 0.5 * (b - a)[:, None]
        values = f(torch.from_numpy(a[:, None] + half * (NODE + 1))).numpy()
        fit = values @ COEFFICIENTS.T
        good = np.ones(len(first), dtype=bool)
        for part in (first, first + 1):
            x = left[part][:, None] + 0.5 * (right[part] - left[part])[:, None] * (NODE + 1)
            unit = (x - a[:, None]) / half - 1
            found = np.einsum("pnk,pk->pn", np.polynomial.legendre.legvander(unit, NODES - 1), fit)
            own = f(torch.from_numpy(x)).numpy()
            good &= np.abs(found - own).max(1) <= 1e-11 * np.abs(own).max(1) + 1e-13 * usual
        gone = first[good]
        right[gone] = right[gone + 1]
        keep = np.setdiff1d(np.arange(len(left)), gone + 1)
        left, right = left[keep], right[keep]
        idle = 0 if good.any() else idle + 1
        start = 1 - start
    return left, right


def _jumps(f: Elementwise, left: Floats, right: Floats) -> NDArray[np.bool_]:
    """Whether value, slope and curvature jump at each inner end of the pieces: (3, pieces - 1)."""
    half = 0.5 * (right - left)
    values = f(torch.from_numpy(left[:, None] + half[:, None] * (NODE + 1))).numpy()
    coefficients, usual = values @ COEFFICIENTS.T, _usual(f, left[0], right[-1])
    out = []
    for order, least in enumerate((1e-8, 1e-5, 1e-3)):
        ends = np.einsum("ek,pk->pe", ENDS[order], coefficients) / half[:, None] ** order
        gap = np.abs(ends[1:, 0] - ends[:-1, 1])
        size = np.abs(ends).max(1)
        # Rounding of the values grows with each derivative of the polynomial.
        noise = (1e-11 * np.abs(values).max(1) + 1e-12 * usual) * (NODES**2 / half) ** order
        out.append(gap > least * np.maximum(size[1:], size[:-1]) + noise[1:] + noise[:-1])
    return np.stack(out)
