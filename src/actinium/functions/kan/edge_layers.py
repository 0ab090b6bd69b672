"""Layers of Kolmogorov-Arnold networks: sums of learnt functions of one variable, one for each input and output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.kan.symbolic_edges import SymbolicEdge

__all__ = ["CoefficientLayer", "KANLayer"]


class KANLayer(nn.Module, ABC):
    """y_o = sum_i phi_oi(x_i), and a bias where a layer has one.

    Subclasses define `functions`, and may put x on a common scale in `prepare`; what their edges are functions of is
    then the prepared input. Half precision is computed in the precision of the layer and given back as half. A state
    that is loaded brings its formulas along.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.

    Raises:
        InputError: a size is below 1.
    """

    bias: nn.Parameter | None
    normalises: bool = False
    """Whether `prepare` changes the inputs."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if in_dim < 1 or out_dim < 1:
            raise InputError(f"a layer has one input and one output or more, not {in_dim} and {out_dim}")
        self.in_dim, self.out_dim = in_dim, out_dim
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(out_dim, in_dim))
        self.symbolic = nn.ModuleDict()
        self.register_parameter("bias", None)

    @abstractmethod
    def functions(self, x: Tensor) -> Tensor:
        """Values (..., out, in) of all learnt functions at prepared inputs (..., in)."""

    def prepare(self, x: Tensor) -> Tensor:
        """What the edges are functions of, (..., in) as x."""
        return x

    def edge_outputs(self, x: Tensor) -> Tensor:
        """What each edge adds, (..., out, in); 0 for edges that were pruned.

        Raises:
            InputError: x (..., in) is no floating-point tensor, has another last dimension, or holds NaN.
        """
        return self._edges(self.prepare(self._checked(x)))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (..., out) at x (..., in).

        Raises:
            InputError: x is no floating-point tensor, has another last dimension, or holds NaN.
        """
        return self.total(self.prepare(self._checked(x))).to(x.dtype)

    def total(self, x: Tensor) -> Tensor:
        """Sum over the edges at prepared inputs."""
        y = self._edges(x).sum(-1)
        return y if self.bias is None else y + self.bias

    def curve(self, i: int, at: Tensor) -> Tensor:
        """The functions of one input at values (n,) of the prepared input, (n, out).

        Raises:
            InputError: there is no such input, or the values are no list of floating-point numbers.
        """
        if not -self.in_dim <= i < self.in_dim or at.ndim != 1:
            raise InputError(f"input {i} of {self.in_dim} at values of shape {tuple(at.shape)}; expected (n,)")
        x = torch.zeros(len(at), self.in_dim, dtype=at.dtype, device=at.device)
        x[:, i] = at
        return self._edges(self._checked(x))[..., i]

    def fix(self, output: int, i: int, edge: SymbolicEdge) -> None:
        """Put a formula in the place of the function of one edge.

        Raises:
            InputError: there is no such edge.
        """
        if not (0 <= output < self.out_dim and 0 <= i < self.in_dim):
            raise InputError(f"there is no edge from {i} to {output} in a layer {self.in_dim} -> {self.out_dim}")
        with torch.no_grad():
            self.mask[output, i] = 0.0
        self.symbolic[f"{output}_{i}"] = edge.to(self.mask)

    def drop(self, edges: Tensor) -> None:
        """Prune the edges that a boolean tensor (out, in) marks.

        Raises:
            InputError: it is no such tensor.
        """
        if edges.dtype != torch.bool or edges.shape != self.mask.shape:
            raise InputError(
                f"edges to prune are marked by a boolean tensor {tuple(self.mask.shape)}, not by one of {edges.dtype} "
                f"and shape {tuple(edges.shape)}"
            )
        with torch.no_grad():
            self.mask.masked_fill_(edges, 0.0)
        for name in [n for n in self.symbolic if bool(edges[_place(n)])]:
            del self.symbolic[name]

    def kept(self) -> Tensor:
        """Which edges are not pruned, bool (out, in)."""
        found = self.mask > 0
        for name in self.symbolic:
            found[_place(name)] = True
        return found

    def _edges(self, x: Tensor) -> Tensor:
        y = self.functions(x) * self.mask
        if not len(self.symbolic):
            return y
        formulas = torch.zeros_like(y)
        for name, edge in self.symbolic.items():
            output, i = _place(name)
            formulas[..., output, i] = edge(x[..., i])
        return y + formulas

    def _checked(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"a layer takes a floating-point tensor, not {what}")
        if x.ndim == 0 or x.shape[-1] != self.in_dim:
            raise InputError(f"expected inputs (..., {self.in_dim}), got {tuple(x.shape)}")
        if x.isnan().any():
            raise InputError("the inputs hold NaN")
        return x.to(self.mask.dtype) if x.dtype in (torch.float16, torch.bfloat16) else x

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        if f"{prefix}mask" in state:
            # Formulas are made as the state has them; their numbers are then loaded as those of any module.
            start, end = f"{prefix}symbolic.", "._extra_state"
            held = {k[len(start) : -len(end)]: v for k, v in state.items() if k.startswith(start) and k.endswith(end)}
            edges = {name: SymbolicEdge.from_name(code).to(self.mask) for name, code in held.items()}
            self.symbolic = nn.ModuleDict(edges)
        super()._load_from_state_dict(state, prefix, *others)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.in_dim} -> {self.out_dim}"


def _place(name: str) -> tuple[int, int]:
    output, i = name.split("_")
    return int(output), int(i)


class CoefficientLayer(KANLayer):
    """A layer whose functions are sums of fixed terms with learnt weights.

    Subclasses define `terms` and `weights`. `constant` says that the first term is constant.
    """

    constant: bool = False

    @abstractmethod
    def terms(self, x: Tensor) -> Tensor:
        """The terms (..., in, k) at prepared inputs (..., in)."""

    @abstractmethod
    def weights(self) -> Tensor:
        """The weight of each term, (out, in, k)."""

    def functions(self, x: Tensor) -> Tensor:
        """Values (..., out, in) at prepared inputs (..., in)."""
        return torch.einsum("...ik,oik->...oi", self.terms(x), self.weights())

    def total(self, x: Tensor) -> Tensor:
        """Sum over the edges at prepared inputs, without a value for each edge."""
        if len(self.symbolic):
            return super().total(x)
        weights = self.weights() * self.mask[..., None]
        return functional.linear(self.terms(x).flatten(-2), weights.flatten(1), self.bias)

    def coefficient_norms(self) -> Tensor:
        """Root of the sum of the squared weights of each input over outputs and terms, constants apart, (in,)."""
        weights = (self.weights() * self.mask[..., None])[..., int(self.constant) :]
        return weights.square().sum((0, 2)).sqrt()
