"""A module as a function of its parameters, and its Jacobian in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model

__all__ = ["TangentFunction"]

Tensors = dict[str, Tensor]
DROPOUT = (nn.modules.dropout._DropoutNd,)


class TangentFunction:
    """A module as a function of its parameters and a batch, in one dtype, without changing the module.

    Args:
        model: a module or a Model.
        params: names or patterns of the parameters that vary; those that require a gradient by default.
        output: what to take of the module's output, as (n,) or (n, c); the output itself by default.
        dtype: of parameters, buffers and inputs; None: that of the module.
        some: refuse a module of which no parameter varies.

    Raises:
        InputError: batch normalisation or dropout in training mode, or no parameter varies.
        UnknownNameError: no parameter has such a name.
    """

    def __init__(
        self,
        model: nn.Module | Model,
        params: str | Sequence[str] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        dtype: torch.dtype | None = torch.float64,
        some: bool = True,
    ) -> None:
        module = model.module if isinstance(model, Model) else model
        if not isinstance(module, nn.Module):
            raise InputError(f"expected a torch.nn.Module or a Model, not {type(module).__name__}")
        self.module, self.output, self.dtype = module, output, dtype
        self.check_mode()
        self.names = _chosen(module, params)
        if some and not self.names:
            raise InputError("no parameter varies: the module has none that requires a gradient; name some in params")

    def check_mode(self) -> None:
        """Refuse layers whose output for one row depends on chance or on the other rows.

        Raises:
            InputError: there is such a layer in training mode.
        """
        for name, part in self.module.named_modules():
            if part.training and isinstance(part, nn.modules.batchnorm._BatchNorm):
                raise InputError(f"batch normalisation {name!r} is in training mode, where rows depend on each other")
            if part.training and isinstance(part, DROPOUT) and part.p > 0:
                raise InputError(f"dropout {name!r} is in training mode; call eval() first")

    def cast(self, values: Tensor) -> Tensor:
        """Floats in the dtype of this function, other values as they are; detached."""
        values = values.detach()
        return values.to(self.dtype) if self.dtype is not None and values.is_floating_point() else values

    def parameters(self) -> Tensors:
        """A copy of the parameters that vary, by name."""
        now = dict(self.module.named_parameters())
        return {name: self.cast(now[name]).clone() for name in self.names}

    def rest(self) -> Tensors:
        """A copy of the other parameters and the buffers, by name."""
        now = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {name: self.cast(value).clone() for name, value in now.items() if name not in self.names}

    def inputs(self, values: Any, what: str = "inputs") -> Tensor:
        """A batch (n, …) in the dtype of this function, where the module is.

        Raises:
            InputError: no tensor or array with one row or more, or floats that are not finite.
        """
        try:
            x = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{what}: expected a tensor (n, …), not {type(values).__name__}") from None
        if x.ndim < 1 or not x.numel():
            raise InputError(f"{what}: expected (n, …) of one row or more, got shape {tuple(x.shape)}")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError(f"{what} hold NaN or infinite values")
        first = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(0))
        kind = (self.dtype or first.dtype) if x.is_floating_point() else x.dtype
        return x.detach().to(first.device, kind)

    def raw(self, x: Tensor) -> Tensor:
        """What the module itself returns, with its parameters in the dtype of this function."""
        return functional_call(self.module, self.rest() | self.parameters(), (x,))

    def __call__(self, params: Tensors, rest: Tensors, x: Tensor) -> Tensor:
        """Outputs (n, c) of a batch.

        Raises:
            InputError: the output is no tensor (n,) or (n, c).
        """
        out = functional_call(self.module, {**rest, **params}, (x,))
        out = self.output(out) if self.output is not None else out
        if not isinstance(out, Tensor):
            raise InputError(f"the module returns {type(out).__name__}; give output= that takes (n, c) of it")
        if out.ndim not in (1, 2) or len(out) != len(x):
            raise InputError(f"expected outputs (n,) or (n, c) of {len(x)} rows, got shape {tuple(out.shape)}")
        return out[:, None] if out.ndim == 1 else out

    def jacobian(self, params: Tensors, rest: Tensors, x: Tensor, vectorized: bool = True) -> list[Tensor]:
        """d output / d parameter of each row: (n, c, entries) for each parameter.

        Args:
            params, rest, x: as in a call.
            vectorized: all rows at once by vmap; else one after the other, for modules that vmap cannot trace.
        """
        if not vectorized:
            rows = [self._row(params, rest, row[None]) for row in x]
            return [torch.stack(parts) for parts in zip(*rows, strict=True)]
        found = vmap(jacrev(lambda p, row: self(p, rest, row[None])[0]), (None, 0))(params, x)
        return [found[name].detach().flatten(2) for name in self.names]

    def _row(self, params: Tensors, rest: Tensors, x: Tensor) -> list[Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            out = self(leaves, rest, x)[0]
            slopes = [
                torch.autograd.grad(one, list(leaves.values()), retain_graph=True, materialize_grads=True)
                for one in out
            ]
        return [torch.stack(parts).flatten(1) for parts in zip(*slopes, strict=True)]


def _chosen(module: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    """Names of the parameters that were asked for, each once, in the order of the module."""
    named: Mapping[str, nn.Parameter] = dict(module.named_parameters())
    if params is None:
        return [name for name, value in named.items() if value.requires_grad]
    patterns = [params] if isinstance(params, str) else list(params)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise UnknownNameError(unknown("parameter", pattern, list(named)))
    return [name for name in named if any(fnmatchcase(name, p) for p in patterns)]
