"""First to third derivatives of the loss in each input variable, weight or hidden unit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from actinium.core import edits
from actinium.core.errors import ActiniumWarning, InputError, unknown
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_examples

__all__ = ["loss_profile", "loss_sensitivity", "second_order_terms", "signed_score"]

PAPER = "loss-landscape-sensitivity"
REDUCTIONS = ("mean", "abs", "std", "none")
WEIGHT = "weight:"
Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    if f.ndim != 2 or y.ndim != 1 or int(y.min()) < 0 or int(y.max()) >= f.shape[1]:
        raise InputError(
            f"cross_entropy takes outputs (n, c) and classes (n,) from 0 to c - 1, got {tuple(f.shape)} and "
            f"{tuple(y.shape)} from {int(y.min())} to {int(y.max())}"
        )
    return functional.cross_entropy(f, y, reduction="none")


LOSSES: dict[str, Loss] = {
    "mse": lambda f, y: (f - y) ** 2,
    "cross_entropy": _cross_entropy,
    "logistic": lambda f, y: functional.binary_cross_entropy_with_logits(f, y, reduction="none"),
    "output": lambda f, y: f,
}
# Nodes of the autograd graph whose second derivative is zero wherever it exists.
KINKS = (
    *("Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Abs", "L1Loss", "SmoothL1Loss", "HuberLoss", "Sgn"),
    *("Sign", "Clamp", "ClampMin", "ClampMax", "Hardtanh", "Hardsigmoid", "Threshold", "Maximum", "Minimum", "Max"),
)


def loss_sensitivity(
    model: Any,
    X: Any,
    y: Any,
    loss_fn: str | Loss = "mse",
    orders: Sequence[int] = (1, 2, 3),
    site: str | None = None,
    reduce: str = "mean",
    *,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Derivatives d^k l / d v_j^k of the loss of each example in each single variable, in float64.

    A module is copied and computes in float64; another callable is given float64 and must work with it.

    Args:
        model: a Model, a module, or a function from X to (n,), (n, 1) or, for classes, (n, c).
        X: examples (n, …) of real numbers, best standardised: the derivatives are in units of the loss per unit of
            the variable to the power of the order.
        y: targets (n,); classes as integers for "cross_entropy", from 0 to 1 for "logistic".
        loss_fn: "mse" (squared error), "cross_entropy", "logistic", "output" (the output itself in place of a loss),
            or a function from outputs and targets to the losses (n,).
        orders: some of 1, 2, 3.
        site: None for the input variables; a site such as "module:0" for its units; "weight:NAME" for the weights of
            the linear module NAME, averaged over its outputs.
        reduce: over examples: "mean", "abs" (mean of magnitudes), "std", or "none".

    Returns:
        by order: (…) in the shape of one example, one site's row or the inputs of the linear module; (n, …) for "none".

    Raises:
        InputError: fewer than two examples, integers as inputs, values that are not finite, a batch-norm or dropout
            module in training mode, a loss whose second derivative is zero wherever it exists (absolute error and
            such) for orders above one, or a model that cannot be differentiated so often.
        SiteError: there is no such site.

    Source: Faroz, 2024 (derivatives by nested automatic differentiation); input derivatives are primary here.
    """
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce is one of {', '.join(REDUCTIONS)}, not {reduce!r}")
    orders = sorted(set(orders))
    if not orders or not set(orders) <= {1, 2, 3}:
        raise InputError(f"orders are some of 1, 2 and 3, not {orders}")
    forward = _double(model)
    x, target = _examples(X), _targets(y, loss_fn)
    if len(target) != len(x):
        raise InputError(f"{len(x)} examples and {len(target)} targets")
    loss = _loss(loss_fn)
    try:
        shift, inputs, losses = _losses(forward, x, target, loss, site, orders[-1] > 1)
        found = _derivatives(losses, shift, orders, progress)
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the loss of this model cannot be differentiated {orders[-1]} times: {error}; choose lower orders, or "
            "operations without in-place changes and with derivatives of that order"
        ) from None
    if inputs is not None:
        # A weight acts through its unit alone: d^k l / d w_hj^k = x_j^k d^k l / d z_h^k.
        found = {k: torch.einsum("nj,nh->nj", inputs**k, d) / d.shape[1] for k, d in found.items()}
    return {k: _reduced(d, reduce) for k, d in found.items()}


def second_order_terms(model: Any, X: Any, y: Any, *, progress: bool = False) -> dict[str, Tensor]:
    """Both parts of the second derivative of the squared error: D2 = 2 f_j^2 + 2 (f - y) f_jj.

    Args:
        model, X, y: as in `loss_sensitivity`, with one output.
        progress: show a progress bar.

    Returns:
        `slope` 2 f_j^2 and `curvature` 2 (f - y) f_jj, each (n, …).

    Raises:
        InputError: as `loss_sensitivity`.
    """
    options: dict[str, Any] = {"reduce": "none", "progress": progress}
    output = loss_sensitivity(model, X, y, "output", orders=(1,), **options)[1]
    second = loss_sensitivity(model, X, y, "mse", orders=(2,), **options)[2]
    return {"slope": 2 * output**2, "curvature": second - 2 * output**2}


def signed_score(model: Any, X: Any, y: Any) -> Tensor:
    """sign(mean f_j) sqrt(max(mean D2_j, 0) / 2): of the scale of a correlation where X and y are standardised.

    Args:
        model, X, y: as in `loss_sensitivity`, with one output.

    Returns:
        (…) in the shape of one example: standardised y per standardised x.

    Raises:
        InputError: as `loss_sensitivity`.
    """
    slope = loss_sensitivity(model, X, y, "output", orders=(1,))[1]
    second = loss_sensitivity(model, X, y, "mse", orders=(2,))[2]
    return slope.sign() * (second.clamp(min=0) / 2).sqrt()


def loss_profile(
    model: Any, X: Any, y: Any, variable: int, at: Any = None, loss_fn: str | Loss = "mse", *, progress: bool = False
) -> Result:
    """Mean loss when one input variable moves by t in every example, beside its Taylor polynomial of third order.

    Args:
        model, X, y, loss_fn: as in `loss_sensitivity`; X is (n, d).
        variable: column of X.
        at: values of t; 41 from -1 to 1 by default.
        progress: show a progress bar.

    Returns:
        Result over t: `loss` and `taylor`.

    Raises:
        InputError: as `loss_sensitivity`, or no such column.
    """
    x, target, loss, forward = _examples(X), _targets(y, loss_fn), _loss(loss_fn), _double(model)
    if x.ndim != 2 or not -x.shape[1] <= variable < x.shape[1]:
        raise InputError(f"variable {variable} is no column of X with shape {tuple(x.shape)}")
    steps = np.linspace(-1, 1, 41) if at is None else np.asarray(at, dtype=np.float64)
    if steps.ndim != 1 or not len(steps) or not np.isfinite(steps).all():
        raise InputError("at holds one value of t or more, all finite")
    column = torch.zeros_like(x)
    column[:, variable] = 1.0
    derivatives = loss_sensitivity(model, X, y, loss_fn)
    terms = [float(derivatives[k][variable]) for k in (1, 2, 3)]
    values = []
    with torch.no_grad():
        for t in shown(list(steps), "profile", progress):
            values.append(float(_checked(loss(_squeezed(forward(x + t * column)), target), len(x)).mean()))
        middle = float(_checked(loss(_squeezed(forward(x)), target), len(x)).mean())
    taylor = middle + terms[0] * steps + terms[1] * steps**2 / 2 + terms[2] * steps**3 / 6
    data = {"loss": ("t", values), "taylor": ("t", taylor)}
    hints = {"plot": {"variables": ["loss", "taylor"], "ylabel": "mean loss"}}
    record = provenance(inputs=[x, target], variable=variable, loss_fn=loss_fn)
    return Result(xr.Dataset(data, {"t": steps}, hints), "loss_profile", PAPER, record)


def _loss(loss_fn: str | Loss) -> Loss:
    if isinstance(loss_fn, str):
        if loss_fn not in LOSSES:
            raise InputError(unknown("loss", loss_fn, LOSSES))
        return LOSSES[loss_fn]
    return loss_fn


def _double(model: Any) -> Callable[[Tensor], Any]:
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        if not callable(module):
            raise InputError(f"expected a Model, a module or a function, not {type(model).__name__}")
        return module  # type: ignore[no-any-return]
    for name, part in module.named_modules():
        mixes = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if part.training and (mixes or (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)):
            what = "mixes the examples of a batch" if mixes else "is random"
            raise InputError(f"{name or 'the module'} ({type(part).__name__}) {what} in training mode; call .eval()")
    return copy.deepcopy(module).double().requires_grad_(False)


def _examples(X: Any) -> Tensor:
    kind = str(X.dtype) if isinstance(X, Tensor) else np.asarray(X).dtype.kind
    if kind in ("b", "i", "u", "O", "U", "S", "M") or kind.startswith(("torch.int", "torch.uint", "torch.bool")):
        raise InputError("X holds integers or categories; encode them as real numbers first")
    x = as_examples(X if isinstance(X, Tensor) else np.asarray(X), "X", dtype=torch.float64)
    if len(x) < 2:
        raise InputError(f"X holds {len(x)} example, expected two or more")
    return x


def _targets(y: Any, loss_fn: str | Loss) -> Tensor:
    target = y.detach() if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y))
    if loss_fn == "cross_entropy":
        if target.is_floating_point():
            raise InputError("cross_entropy needs classes (n,) as integers")
        return target.long()
    target = target.double()
    if not bool(target.isfinite().all()):
        raise InputError("y holds NaN or infinite values")
    if loss_fn == "logistic" and not bool(((target >= 0) & (target <= 1)).all()):
        raise InputError(f"logistic takes targets from 0 to 1, got {float(target.min()):g} to {float(target.max()):g}")
    return target.squeeze(-1) if target.ndim == 2 and target.shape[1] == 1 else target


def _squeezed(output: Any) -> Tensor:
    value = getattr(output, "logits", output)
    if not isinstance(value, Tensor):
        raise InputError(f"the model returns {type(output).__name__}, expected a tensor")
    return value.squeeze(-1) if value.ndim == 2 and value.shape[1] == 1 else value


def _checked(losses: Tensor, n: int) -> Tensor:
    if losses.shape != (n,):
        raise InputError(f"expected one loss per example ({n},), got {tuple(losses.shape)}; do not average over them")
    return losses


def _losses(
    forward: Any, x: Tensor, y: Tensor, loss: Loss, site: str | None, twice: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The zeros that are added to what is varied, the inputs of a linear module, and the losses (n,)."""
    held: dict[str, Tensor] = {}

    def shifted(z: Tensor) -> Tensor:
        if "shift" in held:
            raise InputError(f"{site} runs more than once; choose one call with {site}#0")
        held["shift"] = torch.zeros_like(z, requires_grad=True)
        return z + held["shift"]

    def seen(z: Tensor) -> Tensor:
        held["input"] = z.detach()
        return z

    change: dict[str, Any] = {}
    if site is not None:
        if not isinstance(forward, nn.Module):
            raise InputError("a site needs a Model or a module, not a function")
        name = site.removeprefix(WEIGHT)
        if site.startswith(WEIGHT):
            if not isinstance(dict(forward.named_modules()).get(name), nn.Linear):
                raise InputError(f"{name!r} is no linear module of this model")
            change = {f"module_in:{name}": edits.Fn(seen), f"module:{name}": edits.Fn(shifted)}
        else:
            change = {site: edits.Fn(shifted)}
    with Model(forward).edit(change) if change else nullcontext():
        output = _squeezed(forward(x if site is not None else shifted(x)))
    if "shift" not in held:
        raise InputError(f"{site} did not run")
    if "input" in held and held["input"].ndim != 2:
        raise InputError(f"{site}: expected inputs (n, d), got {tuple(held['input'].shape)}")
    if output.dtype != torch.float64 or not output.requires_grad:
        raise InputError("the output does not depend differentiably on what is varied, in float64")
    losses = _checked(loss(output, y), len(x))
    if twice:
        _check_kinks(losses, output)
    return held["shift"], held.get("input"), losses


def _check_kinks(losses: Tensor, output: Tensor) -> None:
    in_model = _nodes(output.grad_fn, set())
    kinks = {n.name() for n in _nodes(losses.grad_fn, in_model)} & {f"{k}Backward{i}" for k in KINKS for i in (0, 1)}
    if kinks:
        raise InputError(
            f"this loss has a kink ({', '.join(sorted(kinks))}), so that its second derivative is no curvature; use "
            "orders=(1,), or a loss that can be differentiated twice"
        )
    kinks = {n.name() for n in in_model} & {f"{k}Backward{i}" for k in KINKS for i in (0, 1)}
    if kinks:
        warnings.warn(
            f"the model has kinks ({', '.join(sorted(kinks))}): orders 2 and 3 hold the curvature of the loss alone",
            ActiniumWarning,
            stacklevel=4,
        )


def _nodes(start: Any, stop: set[Any]) -> set[Any]:
    """Nodes of the autograd graph above `start`, without those in `stop`."""
    seen: set[Any] = set()
    queue = [start]
    while queue:
        node = queue.pop()
        if node is not None and node not in seen and node not in stop:
            seen.add(node)
            queue += [above for above, _ in node.next_functions]
    return seen


def _derivatives(losses: Tensor, shift: Tensor, orders: Sequence[int], progress: bool) -> dict[int, Tensor]:
    """By order, (n, …): the sum over examples has the derivatives of each, because examples do not interact."""
    last = orders[-1]
    (first,) = torch.autograd.grad(losses.sum(), shift, create_graph=last > 1)
    columns: dict[int, list[Tensor]] = {2: [], 3: []}
    for j in shown(range(shift[0].numel()) if last > 1 else [], "derivatives", progress):
        value = first.flatten(1)[:, j]
        for order in range(2, last + 1):
            value = _along(value, shift, j, order < last)
            columns[order].append(value.detach())
    found = {1: first.detach()} | {
        k: torch.stack(c, 1).view(shift.shape) if c else torch.zeros_like(shift)
        for k, c in columns.items()
        if k <= last
    }
    return {k: found[k] for k in orders}


def _along(value: Tensor, shift: Tensor, j: int, more: bool) -> Tensor:
    """Derivative of each example's value in its own variable j."""
    if not value.requires_grad:
        return torch.zeros_like(value)
    (grad,) = torch.autograd.grad(
        value.sum(), shift, create_graph=more, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return grad.flatten(1)[:, j]


def _reduced(values: Tensor, reduce: str) -> Tensor:
    if reduce == "none":
        return values
    if reduce == "abs":
        return values.abs().mean(0)
    return values.mean(0) if reduce == "mean" else values.std(0)
