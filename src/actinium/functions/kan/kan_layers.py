"""Layers of Kolmogorov-Arnold networks in common bases: Chebyshev, Fourier, B-splines and radial functions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.kan.edge_layers import CoefficientLayer
from actinium.functions.units.b_splines import knot_basis, spline_basis

__all__ = ["ChebyshevKANLayer", "FastKANLayer", "FourierKANLayer", "SplineKANLayer"]


class ChebyshevKANLayer(CoefficientLayer):
    """phi(x) = sum_n c_n T_n(tanh x) for n up to the order.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        order: highest degree.

    Raises:
        InputError: a size or the order is below 1.

    Source: Eslamian et al., 2025, arXiv 2504.06559 (ChebyKAN).
    """

    constant = True

    def __init__(self, in_dim: int, out_dim: int, order: int = 3) -> None:
        super().__init__(in_dim, out_dim)
        if order < 1:
            raise InputError(f"the order is one or more, not {order}")
        self.order = order
        self.coefficients = nn.Parameter(torch.randn(in_dim, out_dim, order + 1) / (in_dim * (order + 1)))

    def terms(self, x: Tensor) -> Tensor:
        """T_0 .. T_order of tanh x, (..., in, order + 1)."""
        u = torch.tanh(x)
        found = [torch.ones_like(u), u]
        for _ in range(2, self.order + 1):
            found.append(2 * u * found[-1] - found[-2])
        return torch.stack(found, -1)

    def weights(self) -> Tensor:
        """The coefficients, (out, in, order + 1)."""
        return self.coefficients.transpose(0, 1)


class FourierKANLayer(CoefficientLayer):
    """phi(x) = sum_n a_n cos(n x) + b_n sin(n x) for n = 1..grid, and a bias for each output.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        grid: highest frequency.
        damped: draw the coefficients of frequency n smaller by n^2, so that the functions start smooth.

    Raises:
        InputError: a size or the grid is below 1.

    Source: Eslamian et al., 2025, arXiv 2504.06559 (Fourier KAN).
    """

    def __init__(self, in_dim: int, out_dim: int, grid: int = 3, damped: bool = False) -> None:
        super().__init__(in_dim, out_dim)
        if grid < 1:
            raise InputError(f"there is one frequency or more, not {grid}")
        self.grid = grid
        self.frequencies: Tensor
        self.register_buffer("frequencies", torch.arange(1.0, grid + 1), persistent=False)
        fall = self.frequencies.square() if damped else 1.0
        drawn = torch.randn(2, out_dim, in_dim, grid) / (math.sqrt(in_dim * grid) * fall)
        self.coefficients = nn.Parameter(drawn)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def terms(self, x: Tensor) -> Tensor:
        """Cosines and sines, (..., in, 2 grid)."""
        angle = x[..., None] * self.frequencies.to(x.dtype)
        return torch.cat([angle.cos(), angle.sin()], -1)

    def weights(self) -> Tensor:
        """The coefficients, (out, in, 2 grid)."""
        return torch.cat([*self.coefficients], -1)


class SplineKANLayer(CoefficientLayer):
    """phi(x) = w SiLU(x) + sum_j c_j B_j(x) with B-splines on a grid over each input's range.

    The grid is uniform unless `fit_range` makes another. The splines fade out over `order` intervals beyond the range
    and are 0 after that.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        grid: intervals of the range.
        order: degree of the pieces.
        reach: the range of every input is [-reach, reach] until `fit_range` sets it.
        noise: standard deviation of the first coefficients, times sqrt(in_dim).

    Raises:
        InputError: a size, the grid or the order is below 1, or reach is not positive.

    Source: Liu et al., 2024, arXiv 2404.19756, equations 2.10-2.12 and section 2.4.
    """

    def __init__(
        self, in_dim: int, out_dim: int, grid: int = 5, order: int = 3, reach: float = 1.0, noise: float = 0.1
    ) -> None:
        super().__init__(in_dim, out_dim)
        if grid < 1 or order < 1 or not 0 < reach < math.inf:
            raise InputError(f"a grid and an order of 1 or more and a positive reach, got {grid}, {order} and {reach}")
        self.grid, self.order = grid, order
        self.coefficients = nn.Parameter(torch.randn(out_dim, in_dim, grid + order) * noise / math.sqrt(in_dim))
        self.base = nn.Parameter((2 * torch.rand(out_dim, in_dim) - 1) / math.sqrt(in_dim))
        self.knots: Tensor
        self.register_buffer("knots", torch.linspace(-reach, reach, grid + 1).repeat(in_dim, 1))
        self.uniform = True

    def splines(self, x: Tensor) -> Tensor:
        """The B-splines, (..., in, grid + order)."""
        if not self.uniform:
            return knot_basis(x, self.knots, self.order)
        low, high = self.knots[:, 0], self.knots[:, -1]
        return spline_basis((x - low) * (self.grid / (high - low)), self.grid, self.order)

    def terms(self, x: Tensor) -> Tensor:
        """B-splines and SiLU, (..., in, grid + order + 1)."""
        return torch.cat([self.splines(x), functional.silu(x)[..., None]], -1)

    def weights(self) -> Tensor:
        """Coefficients and the weight of SiLU, (out, in, grid + order + 1)."""
        return torch.cat([self.coefficients, self.base[..., None]], -1)

    def refine(self, grid: int) -> None:
        """Take a finer grid; functions stay as they are, exactly where the new grid is a multiple of the old one.

        The new coefficients are the least squares ones on the range. The parameter is a new one: optimisers have to be
        made again.

        A grid that is not uniform keeps its density: its intervals are cut into equal parts.

        Raises:
            InputError: the grid is not finer.
        """
        if grid <= self.grid:
            raise InputError(f"a finer grid than {self.grid} intervals is wanted, got {grid}")
        old = self.knots.double()
        at = torch.linspace(0, self.grid, grid + 1, dtype=old.dtype, device=old.device)
        left = at.long().clamp(max=self.grid - 1)
        self._fit_again(old[:, left] + (at - left) * (old[:, left + 1] - old[:, left]))

    def fit_range(self, x: Tensor, grid_eps: float = 1.0) -> None:
        """Lay the grid over the range of data (..., in); functions stay as near as the new grid allows.

        Args:
            x: the data, (..., in).
            grid_eps: from 1, a uniform grid, to 0, one with as many data in each interval; between them the knots are
                weighted means of the two. pykan's own value is 0.02.

        Raises:
            InputError: x has another last dimension or holds NaN, some input is constant, grid_eps is not from 0 to 1,
                or an input has so many equal values that two knots coincide.

        Source: Liu et al., 2024, arXiv 2404.19756, section 2.4 and the authors' code (`grid_eps`).
        """
        if not 0 <= grid_eps <= 1:
            raise InputError(f"grid_eps lies between 0 and 1, got {grid_eps}")
        rows = self._checked(x).detach().flatten(0, -2).double()
        low, high = rows.amin(0), rows.amax(0)
        if not bool((high > low).all()):
            raise InputError(f"input {int((high <= low).nonzero()[0])} is constant: it has no range")
        share = torch.linspace(0, 1, self.grid + 1, dtype=rows.dtype, device=rows.device)
        knots = low[:, None] + share * (high - low)[:, None]
        if grid_eps < 1:
            # torch.quantile refuses more than 16 million numbers.
            quantiles = np.quantile(rows.cpu().numpy(), share.cpu().numpy(), axis=0)
            knots = grid_eps * knots + (1 - grid_eps) * torch.from_numpy(quantiles).T.to(knots)
        if not bool((knots.to(self.knots).diff() > 0).all()):
            raise InputError("an input has so many equal values that knots coincide; take a larger grid_eps")
        self._fit_again(knots)

    def _fit_again(self, knots: Tensor) -> None:
        """Least squares at places that fill every interval, input by input."""
        new = knots.to(self.knots)
        self.grid, old = new.shape[1] - 1, self.knots
        knots, each = new.double(), 20
        inner = torch.arange(each, dtype=torch.float64, device=new.device) / each
        x = (knots[:, :-1, None] + inner * knots.diff()[:, :, None]).flatten(1)
        x = torch.cat([x, knots[:, -1:]], 1).T
        wanted = torch.einsum("nik,oik->ino", knot_basis(x, old, self.order), self.coefficients.detach().double())
        found = torch.linalg.lstsq(knot_basis(x, knots, self.order).transpose(0, 1), wanted).solution
        self.coefficients = nn.Parameter(found.permute(2, 0, 1).to(self.coefficients).contiguous())
        self.knots = new
        self.uniform = _even(new)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: object) -> None:
        # A refined layer has more coefficients than a new one, and another grid.
        held, knots = state.get(f"{prefix}coefficients"), state.get(f"{prefix}knots")
        if held is not None and held.shape[:2] == self.coefficients.shape[:2] and held.shape[2] > self.order:
            if held.shape != self.coefficients.shape:
                self.coefficients = nn.Parameter(self.coefficients.new_empty(held.shape))
                self.knots = self.knots.new_empty(self.in_dim, held.shape[2] - self.order + 1)
            self.grid = held.shape[2] - self.order
        super()._load_from_state_dict(state, prefix, *others)
        if knots is not None and knots.shape == self.knots.shape:
            self.uniform = _even(self.knots)


def _even(knots: Tensor) -> bool:
    """Whether all intervals of an input are equally long, but for rounding."""
    length = knots.diff()
    return bool(((length - length.mean(1, keepdim=True)).abs() <= 1e-4 * length.mean(1, keepdim=True)).all())


class FastKANLayer(CoefficientLayer):
    """phi(x) = w SiLU(x) + sum_j c_j exp(-((x - m_j) / h)^2) with evenly spaced centres m_j at a distance of h.

    Inputs are normalised over the layer's inputs first (layer norm), so that the centres cover them; the edges are
    functions of the normalised inputs, SiLU as well, which the author's code takes of the inputs as they come.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        centres: how many.
        reach: they lie on [-reach, reach].
        norm: whether to normalise; if not given, where there are two inputs or more.
        noise: standard deviation of the first coefficients, times sqrt(in_dim).

    Raises:
        InputError: a size is below 1, there is no second centre, or a single input would be normalised to 0.

    Source: Li, 2024, arXiv 2405.06721.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        centres: int = 8,
        reach: float = 2.0,
        norm: bool | None = None,
        noise: float = 0.1,
    ) -> None:
        super().__init__(in_dim, out_dim)
        if centres < 2 or not 0 < reach < math.inf:
            raise InputError(f"two centres or more and a positive reach are wanted, got {centres} and {reach}")
        if norm and in_dim == 1:
            raise InputError("the norm of a single input is 0; use norm=False")
        self.normalises = in_dim > 1 if norm is None else norm
        self.norm = nn.LayerNorm(in_dim) if self.normalises else nn.Identity()
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(-reach, reach, centres), persistent=False)
        self.width = 2 * reach / (centres - 1)
        self.coefficients = nn.Parameter(torch.randn(out_dim, in_dim, centres) * noise / math.sqrt(in_dim))
        self.base = nn.Parameter((2 * torch.rand(out_dim, in_dim) - 1) / math.sqrt(in_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def prepare(self, x: Tensor) -> Tensor:
        """Normalised inputs."""
        return self.norm(x)

    def terms(self, x: Tensor) -> Tensor:
        """Radial functions and SiLU, (..., in, centres + 1)."""
        radial = torch.exp(-((x[..., None] - self.centres.to(x.dtype)) / self.width).square())
        return torch.cat([radial, functional.silu(x)[..., None]], -1)

    def weights(self) -> Tensor:
        """Coefficients and the weight of SiLU, (out, in, centres + 1)."""
        return torch.cat([self.coefficients, self.base[..., None]], -1)
