"""The general module of an activation function: its parameters, one for all, for each channel, or for each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from actinium.core.errors import InputError
from actinium.functions.registry import ActivationSpec, check_input, checked, evaluate

__all__ = ["Activation"]


def _recomputing(graph: Any, inputs: Any) -> Any:
    """Inductor, keeping nothing but the inputs for the backward pass.

    By default it keeps masks of a byte, and kernels on CPUs that read those are not vectorised: ReLU is twelve times as
    slow.
    """
    # Here, since to import the compiler takes as long as to import torch.
    from torch._dynamo import lookup_backend
    from torch._functorch import config

    with config.patch(activation_memory_budget=0.0):
        return lookup_backend("inductor")(graph, inputs)


@cache
def _compiled(spec: ActivationSpec, whole: tuple[tuple[str, int], ...]) -> Callable[..., Tensor]:
    """`evaluate` as one compiled kernel forward and one backward, shared by all modules of a function.

    Whole parameters are constants of the kernel: as arguments they could become symbols, of which not every power
    compiles.
    """
    fixed = dict(whole)

    def fused(x: Tensor, parameters: dict[str, Any]) -> Tensor:
        return evaluate(spec, x, {**parameters, **fixed})

    # Kernels are counted by code object, and nothing is compiled after eight of one: each function has its own.
    fused.__code__ = fused.__code__.replace(co_name=f"fused_{spec.key}")
    return torch.compile(fused, backend=_recomputing)


class _Kernels(TorchDispatchMode):
    """Notes what each operation gives while a function is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.detach.default:
            self.given.append(given)
        return given


@cache
def _is_one_kernel(spec: ActivationSpec, dtype: torch.dtype) -> bool:
    """Whether a function and its derivative are one operation of PyTorch each: compiled they would be slower."""
    if spec.parameters:
        return False
    x, slope = torch.zeros(2, dtype=dtype, requires_grad=True), torch.ones(2, dtype=dtype)
    with torch.enable_grad(), _Kernels() as forward:
        y = evaluate(spec, x, {})
    if len(forward.given) != 1 or not isinstance(forward.given[0], Tensor) or not y.requires_grad:
        return False
    with _Kernels() as backward:
        torch.autograd.grad(y, x, slope)
    return len(backward.given) <= 1


def _fused(spec: ActivationSpec, x: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    if torch.compiler.is_compiling() or _is_one_kernel(spec, x.dtype):
        return evaluate(spec, x, parameters)  # the kernel around it, or its own, is the fused one
    whole = tuple((name, value) for name, value in parameters.items() if type(value) is int)
    others = {name: value for name, value in parameters.items() if type(value) is not int}
    return _compiled(spec, whole)(x, others)


class Activation(nn.Module):
    """A function of the catalogue as a module.

    Trainable parameters are `nn.Parameter`s of shape (num_parameters,); they belong into an optimiser's group without
    weight decay, where `ac.signal.decay_groups` puts them. Others are plain numbers. Functions that draw while training
    use the mean in evaluation.

    Args:
        spec: the function.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.
        trainable: make every parameter trainable (True) or none (False); as published if not given.
        fused: compile forward and backward, unless both are one operation of PyTorch.
        parameters: (initial) values: numbers, or tensors (num_parameters,).

    Raises:
        InputError: a parameter is unknown or outside of its domain, or there is none that could be trained.
    """

    def __init__(
        self,
        spec: ActivationSpec,
        *,
        num_parameters: int = 1,
        channel_dim: int = 1,
        trainable: bool | None = None,
        fused: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if num_parameters < 1:
            raise InputError(f"num_parameters is one or more, not {num_parameters}")
        self.spec, self.num_parameters, self.channel_dim, self.fused = spec, num_parameters, channel_dim, fused
        given = checked(spec, parameters)
        learnt = {
            name: (p.trainable if trainable is None else trainable) and not p.whole
            for name, p in spec.parameters.items()
        }
        if num_parameters > 1 and not any(learnt.values()):
            raise InputError(f"nothing of {spec.name} is trainable, so it has no parameters for each channel")
        self.settings: dict[str, float | int] = {}
        for name, p in spec.parameters.items():
            value = given.get(name, p.default)
            if learnt[name]:
                self.register_parameter(name, nn.Parameter(self._start(name, value, p.drawn, name in given)))
            else:
                self.settings[name] = float(value) if not p.whole else int(value)

    def _start(self, name: str, value: Any, drawn: tuple[float, float] | None, given: bool) -> Tensor:
        if drawn is not None and not given:
            return torch.empty(self.num_parameters).uniform_(*drawn)
        value = torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
        if value.numel() not in (1, self.num_parameters):
            raise InputError(f"{name} of {self.spec.name} has {self.num_parameters} values here, not {value.numel()}")
        return value.flatten().expand(self.num_parameters).clone()

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor of any shape."""
        check_input(x, self.spec)
        held: dict[str, Any] = dict(self.settings)
        for name, value in self.named_parameters(recurse=False):
            held[name] = self._spread(value, x)
        if self.spec.kind == "stochastic":
            held["training"] = self.training
        return (_fused if self.fused else evaluate)(self.spec, x, held)

    def _spread(self, value: Tensor, x: Tensor) -> Tensor:
        """A parameter (num_parameters,) as it broadcasts with x."""
        if self.num_parameters == 1:
            return value.view(())
        if x.ndim == 0 or not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.num_parameters:
            raise InputError(
                f"{self.spec.name} has parameters for {self.num_parameters} channels in dimension {self.channel_dim}, "
                f"which a tensor of shape {tuple(x.shape)} does not have"
            )
        shape = [1] * x.ndim
        shape[self.channel_dim] = self.num_parameters
        return value.view(shape).to(x.dtype) if x.dtype == torch.float64 else value.view(shape)  # never narrower

    def extra_repr(self) -> str:
        """Name and parameters."""
        parts = [f"{k}={v:g}" for k, v in self.settings.items()]
        parts += [f"{k}=({self.num_parameters},)" for k, _ in self.named_parameters(recurse=False)]
        return ", ".join([self.spec.name, *parts])
