"""A trainable function fitted to another one on an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["FunctionFit", "fit_to_function"]


@dataclass(frozen=True)
class FunctionFit:
    """How near a fitted function is to its target.

    Args:
        rmse: root mean square difference on the grid.
        max_error: largest difference on the grid.
        before: root mean square difference before the fit.
    """

    rmse: float
    max_error: float
    before: float


def fit_to_function(
    module: nn.Module,
    target: Callable[[Tensor], Tensor],
    lo: float = -3.0,
    hi: float = 3.0,
    n: int = 601,
    steps: int = 200,
) -> FunctionFit:
    """Fit the parameters of an elementwise module to a function by least squares (L-BFGS, in float64).

    A module with a method `fit_to(target, lo, hi)`, such as a spline, whose coefficients are a linear problem, fits
    itself.

    Args:
        module: with trainable parameters, changed in place.
        target: elementwise function or module.
        lo, hi, n: the grid.
        steps: of L-BFGS at most.

    Raises:
        InputError: the interval is empty, or the module has nothing to fit.
    """
    if not lo < hi or n < 3:
        raise InputError(f"a fit needs an interval and three points or more, not {n} points on {lo:g}..{hi:g}")
    learnt = [p for p in module.parameters() if p.requires_grad]
    if not learnt:
        raise InputError(f"{module} has no parameters that could be fitted")
    x = torch.linspace(lo, hi, n, dtype=torch.float64)
    with torch.no_grad():
        got = _at(module, x)
        wanted = _at(target, x)[:, :1].expand_as(got)
        before = (got - wanted).square().mean().sqrt()
    own = getattr(module, "fit_to", None)
    if own is not None:
        own(target, lo, hi)
    else:
        _lbfgs(module, x, wanted, learnt, steps)
    with torch.no_grad():
        off = _at(module, x) - wanted
    return FunctionFit(float(off.square().mean().sqrt()), float(off.abs().max()), float(before))


def _at(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Values (n, unit) at x (n,): one column, or one for each unit that has parameters of its own."""
    first = next(f.parameters(), None) if isinstance(f, nn.Module) else None
    rows = x[:, None].expand(-1, getattr(f, "num_parameters", 1))
    if first is not None:
        rows = rows.to(first.device, first.dtype)
    return f(rows).double().cpu()


def _lbfgs(module: nn.Module, x: Tensor, wanted: Tensor, learnt: list[nn.Parameter], steps: int) -> None:
    kept = {p: p.dtype for p in learnt}
    for p in learnt:
        p.data = p.data.double()
    optimiser = torch.optim.LBFGS(learnt, lr=1.0, max_iter=steps, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    best = [float("inf"), [p.detach().clone() for p in learnt]]

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (_at(module, x) - wanted).square().mean()
        value.backward()
        if float(value.detach()) < best[0]:
            best[:] = [float(value.detach()), [p.detach().clone() for p in learnt]]
        return value

    with torch.enable_grad():
        optimiser.step(loss)
        loss()
    for p, value in zip(learnt, best[1], strict=True):
        p.data = value.to(kept[p])
        p.grad = None
