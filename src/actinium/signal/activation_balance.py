"""How evenly the loss of a model depends on its parameters, and two models of one shape side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.concentration import gini
from actinium.core.errors import InputError
from actinium.core.evaluation import evaluating
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.neuron_activation import PAPER, input_batches, neuron_activation_rate

__all__ = ["compare_balance", "parameter_sensitivity", "pruning_curve", "sensitivity_balance"]

MODES = ("dataset", "batchwise")
LossFn = Callable[[Any, Any], Tensor | tuple[Tensor, int]]
Floats = NDArray[np.float64]
# Matrix type by the names that architectures give; the first that fits counts.
TYPES: tuple[tuple[str, str], ...] = (
    ("norm", r"norm|ln_|\bln"),
    ("embedding", r"embed|wte|wpe|shared|word_emb|lm_head"),
    ("wi", r"up_proj|gate_proj|gate_up|fc1|fc_in|\bwi|c_fc|h_to_4h|intermediate\.dense|\bw1|\bw3|linear1"),
    ("wo", r"down_proj|fc2|fc_out|\bwo\b|mlp\.c_proj|4h_to_h|\bw2|linear2|(?<!attention\.)output\.dense"),
    ("qkv", r"c_attn|query_key_value|qkv|Wqkv|in_proj"),
    ("q", r"q_proj|query|Attention\.q\b"),
    ("k", r"k_proj|\bkey|Attention\.k\b"),
    ("v", r"v_proj|\bvalue|Attention\.v\b"),
    (
        "o",
        r"o_proj|out_proj|attn\.c_proj|attention\.output\.dense|attention\.dense|self_attention\.dense|Attention\.o\b",
    ),
)
LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h|block)\.(\d+)\.")


def parameter_sensitivity(
    model: Any,
    batches: Any,
    loss_fn: LossFn | None = None,
    mode: str = "dataset",
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Tensor]:
    """|theta dL/dtheta| of every parameter: to first order, by how much the loss changes when it is set to zero.

    The module is put in evaluation mode for the time. A parameter that is used at several places (a tied embedding)
    appears once, with the gradient of all of them.

    Args:
        model: a Model, or a module with `loss_fn`.
        batches: with `loss_fn`, batches that it takes; else texts, tokens or mappings with labels.
        loss_fn: from the model as it was given and a batch to the mean loss, or to the sum of the losses and their
            number, so that batches weigh by what they hold. By default the next-token loss of a causal model, or for
            mappings with labels the loss that the module itself returns.
        mode: "dataset": the gradient over all batches first, then the magnitude; "batchwise": the mean over batches of
            the magnitudes, which is larger, and evener where gradients are mostly noise.
        batch_size: rows per pass, without `loss_fn`.
        progress: show a progress bar.

    Returns:
        by parameter: its sensitivities, in its shape, in float64 on the CPU; zeros where the loss does not reach it.

    Raises:
        InputError: no batches, no parameters, a loss that is not finite or does not depend on the parameters, or a
            model without a known loss.

    Source: Gong et al., 2023, analysis of parameter sensitivity; |theta dL/dtheta| is the standard first-order score.
    """
    if mode not in MODES:
        raise InputError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    module = _module(model)
    parts, loss = _parts(model, batches, loss_fn, batch_size)
    parameters = dict(module.named_parameters())
    if not parameters:
        raise InputError("the model has no parameters")
    names, values = list(parameters), list(parameters.values())
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in values]
    weight = 0.0
    with _differentiable(module):
        for part in shown(parts, "sensitivity", progress):
            value, count = _summed(loss, model, part)
            if not value.requires_grad:
                raise InputError("the loss does not depend on the parameters")
            grads = torch.autograd.grad(value, values, allow_unused=True)
            # One batch's mean loss has the gradient of its sum over its count.
            for out, grad in zip(total, grads, strict=True):
                if grad is not None:
                    out += grad.double().cpu() if mode == "dataset" else (grad.double().cpu() / count).abs()
            weight += count if mode == "dataset" else 1
    return {
        name: (p.detach().double().cpu() * g / weight).abs() for name, p, g in zip(names, values, total, strict=True)
    }


def sensitivity_balance(sensitivity: Mapping[str, Tensor]) -> Result:
    """How evenly sensitivities are spread: over all parameters, by type of matrix, and by layer.

    Args:
        sensitivity: by parameter, from `parameter_sensitivity`.

    Returns:
        Result over group ("all"; "type q", "type wi", …; "layer 0", "encoder layer 0", …): `gini` (0 where all are
        equal), `cv` (standard deviation over mean), `top_1` and `top_10` (share of the total in the largest 1 % and 10
        %, of one parameter or more), `share` (of the total of all), `parameters`; over fraction: `lorenz`, the share of
        the total that the least sensitive such fraction holds. NaN where a group is all zeros.

    Raises:
        InputError: nothing given, negative or non-finite values, or nothing above zero.
    """
    values = {name: np.asarray(v.detach().double().cpu().numpy().ravel()) for name, v in sensitivity.items()}
    if not values or not sum(map(len, values.values())):
        raise InputError("no sensitivities given")
    for name, v in values.items():
        if not np.isfinite(v).all() or (v < 0).any():
            raise InputError(f"{name}: sensitivities are finite and not negative")
    groups: dict[str, list[str]] = {"all": list(values)}
    for name in values:
        groups.setdefault(f"type {_type_of(name)}", []).append(name)
        layer = _layer_of(name)
        if layer is not None:
            groups.setdefault(layer, []).append(name)
    joined = {group: np.sort(np.concatenate([values[n] for n in names])) for group, names in groups.items()}
    total = joined["all"].sum()
    if not total > 0:
        raise InputError("every sensitivity is zero")
    rows = [_spread(x) | {"share": float(x.sum() / total), "parameters": len(x)} for x in joined.values()]
    fractions = np.linspace(0, 1, 101)
    sums = np.concatenate([[0.0], joined["all"].cumsum()]) / total
    data: dict[str, Any] = {name: ("group", [r[name] for r in rows]) for name in rows[0]}
    data["lorenz"] = ("fraction", np.interp(fractions, np.linspace(0, 1, len(sums)), sums))
    hints = {"plot": {"kind": "bar", "variables": ["gini", "top_10"], "ylabel": "share"}}
    coords = {"group": list(joined), "fraction": fractions}
    record = provenance(inputs=dict(sensitivity))
    return Result(xr.Dataset(data, coords, hints), "sensitivity_balance", PAPER, record)


def pruning_curve(
    model: Any,
    sensitivity: Mapping[str, Tensor],
    batches: Any,
    loss_fn: LossFn | None = None,
    shares: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Result:
    """Loss after the least sensitive parameters are set to zero; the parameters are restored afterwards.

    Args:
        model, batches, loss_fn, batch_size: as in `parameter_sensitivity`.
        sensitivity: by parameter; those that it does not name stay.
        shares: of the named parameters that are set to zero.
        progress: show a progress bar.

    Returns:
        Result over share: `loss`, the mean over all batches.

    Raises:
        InputError: as `parameter_sensitivity`; a name or shape that the model does not have; a share outside 0 and 1.
    """
    module = _module(model)
    parameters = dict(module.named_parameters())
    for name, value in sensitivity.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise InputError(f"the model has no parameter {name!r} of shape {tuple(value.shape)}")
    if not sensitivity or not len(shares) or not all(0 <= s <= 1 for s in shares):
        raise InputError("give sensitivities, and shares from 0 to 1")
    parts, loss = _parts(model, batches, loss_fn, batch_size)
    order = torch.cat([v.flatten() for v in sensitivity.values()]).argsort(stable=True)
    kept = {name: parameters[name].detach().clone() for name in sensitivity}
    losses = []
    with _differentiable(module), torch.no_grad():
        try:
            for share in shown(list(shares), "pruning", progress):
                gone = torch.zeros(len(order), dtype=torch.bool)
                gone[order[: round(share * len(order))]] = True
                pieces = torch.split(gone, [v.numel() for v in kept.values()])
                for (name, value), cut in zip(kept.items(), pieces, strict=True):
                    parameters[name].copy_(value.masked_fill(cut.view(value.shape).to(value.device), 0.0))
                losses.append(_mean_loss(loss, model, parts))
        finally:
            for name, value in kept.items():
                parameters[name].copy_(value)
    hints = {"plot": {"variables": ["loss"], "ylabel": "loss"}}
    record = provenance(inputs=dict(sensitivity), shares=list(shares))
    return Result(
        xr.Dataset({"loss": ("share", losses)}, {"share": list(shares)}, hints), "pruning_curve", PAPER, record
    )


def compare_balance(
    models: Mapping[str, Model],
    batches: Any,
    loss_fn: LossFn | None = None,
    *,
    at: str | Sequence[str] | None = None,
    tau: float = 0.0,
    relative: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Result:
    """Loss, balance of the sensitivities and use of the neurons of models of one shape, on the same data.

    Args:
        models: by name, two or more.
        batches, loss_fn, batch_size: as in `parameter_sensitivity`; `batches` must be what the models record, too.
        at, tau, relative: as in `neuron_activation_rate`.
        progress: show a progress bar.

    Returns:
        Result over model: `gini`, `cv`, `top_1`, `top_10` (of all sensitivities), `loss`; `active`, `dead`, `rare`
        (means over sites); over model and site: `rate`, the mean of the neurons.

    Raises:
        InputError: fewer than two models, other parameters or shapes, or what the two functions refuse.
    """
    if len(models) < 2:
        raise InputError(f"give two models or more, got {len(models)}")
    shapes = {n: {k: tuple(p.shape) for k, p in _module(m).named_parameters()} for n, m in models.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            odd = next(k for k in {**shapes[first], **shape} if shapes[first].get(k) != shape.get(k))
            raise InputError(
                f"{first!r} and {name!r} differ in shape at {odd}: {shapes[first].get(odd)} and {shape.get(odd)}"
            )
    rows, sites = [], []
    for model in models.values():
        found = parameter_sensitivity(model, batches, loss_fn, batch_size=batch_size, progress=progress)
        spread = sensitivity_balance(found).data.sel(group="all")
        rate = neuron_activation_rate(
            model, batches, at, tau=tau, relative=relative, batch_size=batch_size, progress=progress
        ).data
        parts, loss = _parts(model, batches, loss_fn, batch_size)
        with _differentiable(_module(model)), torch.no_grad():
            row = {"loss": _mean_loss(loss, model, parts)}
        row |= {k: float(spread[k]) for k in ("gini", "cv", "top_1", "top_10")}
        rows.append(row | {k: float(rate[k].mean()) for k in ("active", "dead", "rare")})
        sites.append(rate["active"])
    data: dict[str, Any] = {k: ("model", [r[k] for r in rows]) for k in ("gini", *[k for k in rows[0] if k != "gini"])}
    data["rate"] = (("model", "site"), np.stack([s.values for s in sites]))
    hints = {"plot": {"kind": "bar", "variables": ["gini", "active", "dead"], "ylabel": "share"}}
    coords = {"model": list(models), "site": sites[0]["site"].values}
    record = provenance(inputs={n: m.fingerprint() for n, m in models.items()}, tau=tau, relative=relative)
    return Result(xr.Dataset(data, coords, hints), "compare_balance", PAPER, record)


def _module(model: Any) -> nn.Module:
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"expected a Model or a module, not {type(model).__name__}")
    return module


def _parts(model: Any, batches: Any, loss_fn: LossFn | None, batch_size: int) -> tuple[list[Any], LossFn]:
    if loss_fn is not None:
        parts = list(batches) if isinstance(batches, Iterable) and not isinstance(batches, Mapping) else [batches]
        if not parts:
            raise InputError("no batches given")
        return parts, loss_fn
    if not isinstance(model, Model):
        raise InputError("a module has no loss that we know; pass a Model, or loss_fn=...")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    return list(input_batches(model, batches, batch_size)), _own_loss


def _own_loss(model: Model, part: Inputs) -> tuple[Tensor, int]:
    labels = part.arguments.get("labels")
    if isinstance(labels, Tensor):
        shifted = labels[:, 1:] if model.kind == "causal-lm" else labels
        count = int((shifted != -100).sum())
        return model.module(**part.arguments).loss * count, count
    if model.kind != "causal-lm":
        raise InputError(f"{model.name} is a {model.kind}; give mappings with labels, or loss_fn=...")
    each = model.loss(part, reduction="token")
    return each.nansum(), int((~each.isnan()).sum())


def _summed(loss: LossFn, model: Any, part: Any) -> tuple[Tensor, int]:
    """The loss of one batch times its weight, and the weight."""
    found = loss(model, part)
    value, count = found if isinstance(found, tuple) else (found, 1)
    if not isinstance(value, Tensor) or value.ndim or not bool(value.isfinite()) or count < 1:
        raise InputError("the loss of a batch must be one finite number, over one target or more")
    return value, count


def _mean_loss(loss: LossFn, model: Any, parts: Sequence[Any]) -> float:
    sums = [_summed(loss, model, part) for part in parts]
    return sum(float(v) for v, _ in sums) / sum(n for _, n in sums)


@contextmanager
def _differentiable(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients in every parameter, for the time of the block."""
    wanted = {p: p.requires_grad for p in module.parameters()}
    try:
        for p in wanted:
            p.requires_grad_(p.is_floating_point())
        with evaluating(module):
            yield
    finally:
        for p, grad in wanted.items():
            p.requires_grad_(grad)


def _spread(x: Floats) -> dict[str, float]:
    """Of sorted values (n,)."""
    n, total = len(x), x.sum()
    if not total > 0:
        return dict.fromkeys(("gini", "cv", "top_1", "top_10"), float("nan"))
    top = {f"top_{p}": float(x[-max(1, round(n * p / 100)) :].sum() / total) for p in (1, 10)}
    return {"gini": gini(x), "cv": float(x.std() / x.mean()), **top}


def _type_of(name: str) -> str:
    return next((kind for kind, pattern in TYPES if re.search(pattern, name)), "other")


def _layer_of(name: str) -> str | None:
    found = LAYER.search(name)
    if found is None:
        return None
    stack = next((s for s in ("encoder", "decoder") if name.startswith((f"{s}.", f"model.{s}."))), None)
    return f"{stack} layer {found[1]}" if stack else f"layer {found[1]}"
