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
        self.fn = fn
        self._meshes: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
        self._check()

    def __call__(self, x: Tensor) -> Tensor:
        """Values at float64 places of any shape.

        Raises:
            InputError: integers are given, or a value is not finite.
        """
        if not torch.is_floating_point(x):
            raise InputError(f"{self.name} is asked at real numbers, got a tensor of {x.dtype}")
        with torch.no_grad():
            y = self.fn(x.detach().double().reshape(-1)).detach().reshape(x.shape)
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
                y = self.fn(at)
                if not y.requires_grad:
                    return torch.zeros_like(x)
                found = torch.autograd.grad(y.sum(), at, create_graph=True, allow_unused=True)[0]
            return torch.zeros_like(x) if found is None else found

        return Elementwise(slope, self.given, f"derivative of {self.name}")

    def breaks(self, reach: float) -> Tensor:
        """Ends of the pieces of [-reach, reach] on each of which it is a polynomial to eleven digits, in order."""
        return self._mesh(reach)[0]

    def kinks(self, reach: float) -> Tensor:
        """Places in [-reach, reach] where it, its slope or its curvature jumps, in order."""
        return self._mesh(reach)[1]

    def corners(self, reach: float) -> Tensor:
        """Those of the kinks at which it or its slope jumps."""
        return self._mesh(reach)[2]

    def _mesh(self, reach: float) -> tuple[Tensor, Tensor, Tensor]:
        reach = 2.0 ** np.ceil(np.log2(max(reach, 1.0)))
        if reach not in self._meshes:
            breaks, kinks, corners = _mesh(self, self.given, reach)
            self._meshes[reach] = torch.from_numpy(breaks), torch.from_numpy(kinks), torch.from_numpy(corners)
        return self._meshes[reach]

    def _check(self) -> None:
        x = torch.linspace(-2.9, 3.1, 36, dtype=torch.float64)
        # Every second entry changes, so that one that looks back or ahead is seen.
        kept = torch.arange(36) % 2 == 0
        other = torch.where(kept, x, 0.3 - 1.7 * x)
        try:
            with torch.no_grad():
                y, again, changed, alone = (self.fn(at) for at in (x, x.clone(), other, x[:18].clone()))
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


def _pieces(f: Elementwise, edges: Floats, deepest: int) -> tuple[Floats, Floats, Floats]:
    """Bisect until each piece is a polynomial: left ends, right ends (sorted), and bisections of each."""
    left, right = edges[:-1].copy(), edges[1:].copy()
    depth = np.zeros(len(left))
    usual = _usual(f, edges[-1])
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
            raise InputError(f"{f.name} has too many kinks or turns within ±{edges[-1]:g} to be integrated")
        middle = 0.5 * (left + right)
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        depth = np.concatenate([depth, depth]) + 1
    a, b, d = (np.concatenate(part) for part in zip(*done, strict=True))
    order = np.argsort(a)
    return a[order], b[order], d[order]


def _usual(f: Elementwise, reach: float) -> float:
    """Mean absolute value where most of a Gaussian lies whose far end is `reach`."""
    return float(f(torch.linspace(-reach / 8, reach / 8, 256, dtype=torch.float64)).abs().mean())


def _mesh(f: Elementwise, given: Sequence[float], reach: float) -> tuple[Floats, Floats, Floats]:
    inside = [k for k in given if abs(k) < reach]
    # A wide first piece could step over what happens near zero.
    powers = 2.0 ** np.arange(0, np.log2(reach) + 0.5)
    start = [*-powers, 0.0, *powers]
    left, right, depth = _pieces(f, np.unique([*start, *inside]), DEEPEST)
    found = list(inside)
    deep = depth >= DEEP
    groups = np.flatnonzero(np.diff(np.concatenate([[False], deep, [False]]).astype(int)))
    for first, stop in groups.reshape(-1, 2):
        at = first + int(np.argmax(depth[first:stop]))
        middle, width = 0.5 * (left[at] + right[at]), right[at] - left[at]
        # A number of few digits within reach of the last bisection is what was meant.
        short = float(np.round(middle, 6))
        found.append(short if abs(short - middle) <= 2 * width else middle)
    if found:
        left, right, depth = _pieces(f, np.unique([*start, *found]), GRADED)
    left, right = _merged(f, left, right, found)
    jumps = _jumps(f, left, right)
    inner = left[1:]
    kinked = jumps.any(0)
    corner = jumps[:2].any(0)
    return np.append(left, right[-1]), inner[kinked], inner[corner]


def _merged(f: Elementwise, left: Floats, right: Floats, kinks: Sequence[float]) -> tuple[Floats, Floats]:
    """Neighbouring pieces made one where one polynomial is the function on both."""
    usual, start = _usual(f, right[-1]), 0
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
    coefficients, usual = values @ COEFFICIENTS.T, _usual(f, right[-1])
    out = []
    for order, least in enumerate((1e-8, 1e-5, 1e-3)):
        ends = np.einsum("ek,pk->pe", ENDS[order], coefficients) / half[:, None] ** order
        gap = np.abs(ends[1:, 0] - ends[:-1, 1])
        size = np.abs(ends).max(1)
        # Rounding of the values grows with each derivative of the polynomial.
        noise = (1e-11 * np.abs(values).max(1) + 1e-12 * usual) * (NODES**2 / half) ** order
        out.append(gap > least * np.maximum(size[1:], size[:-1]) + noise[1:] + noise[:-1])
    return np.stack(out)
