"""Faithfulness of an order of concepts: the logit as concepts are removed or added; and gradient-based importances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.features.craft import CRAFT
from actinium.features.sensitivity import logit_of

__all__ = ["concept_curves", "gradient_importance"]

MODES = ("deletion", "insertion")


def concept_curves(
    craft: CRAFT,
    images: Tensor,
    class_id: int,
    orders: Mapping[str, Any],
    mode: str = "deletion",
    *,
    random_orders: int = 20,
    seed: int = 0,
) -> Result:
    """C-Deletion or C-Insertion: the class's logit as concepts go, or come, in order of importance.

    Args:
        craft: a fitted one.
        images: (n, channel, size, size) of the class.
        class_id: the class.
        orders: {name: importance (r,) of each concept, or of each image and concept (n, r)}; the largest comes first.
        mode: "deletion" (from all concepts to none) or "insertion" (from none to all).
        random_orders: random orders that are averaged under the name "random"; 0 for none.
        seed: of these orders.

    Returns:
        `logit` (order, step), the mean over images; `auc` (order), area under it over the share of concepts;
        `auc_normalised`, the same with 0 for no concept and 1 for all, NaN where all concepts together do not raise
        the logit.

    Raises:
        InputError: an importance does not fit or is not finite, or the class does not exist.
        UnknownNameError: there is no such mode.

    Source: Fel et al., 2023, section 4.2; the normalised area is ours.
    """
    if mode not in MODES:
        raise UnknownNameError(unknown("mode", str(mode), MODES))
    codes = craft.transform(images)
    n, r = len(codes), codes.shape[-1]
    if "random" in orders or random_orders < 0:
        raise InputError('the name "random" is that of the random orders, of which there are 0 or more')
    ranked = {name: [_order(values, n, r, name)] for name, values in orders.items()}
    if random_orders:
        draw = np.random.default_rng(seed)
        ranked["random"] = [np.tile(draw.permutation(r), (n, 1)) for _ in range(random_orders)]
    if not ranked:
        raise InputError("no order of concepts given")
    curves = np.stack(
        [np.mean([_curve(craft, codes, class_id, one, mode) for one in all_], axis=0) for all_ in ranked.values()]
    )
    ends = (curves[:, -1:], curves[:, :1]) if mode == "deletion" else (curves[:, :1], curves[:, -1:])
    span = ends[1] - ends[0]
    data = xr.Dataset(
        {
            "logit": (("order", "step"), curves),
            "auc": ("order", np.trapezoid(curves, dx=1 / r)),
            "auc_normalised": ("order", np.trapezoid((curves - ends[0]) / np.where(span > 0, span, np.nan), dx=1 / r)),
        },
        coords={"order": list(ranked), "step": np.arange(r + 1)},
    )
    given = {name: fingerprint(np.asarray(values).tolist()) for name, values in orders.items()}
    record = provenance(
        None, images, seed, bank=fingerprint(craft.bank_.bank_), class_id=class_id, mode=mode, orders=given
    )
    return Result(data, "concept_curves", "craft", record)


def _order(values: Any, n: int, r: int, name: str) -> NDArray[np.int64]:
    """(n, r) concepts of each image, most important first."""
    given = np.asarray(values, dtype=np.float64)
    if given.shape not in ((r,), (n, r)) or not np.isfinite(given).all():
        raise InputError(f"importance {name!r}: expected finite numbers ({r},) or ({n}, {r}), got shape {given.shape}")
    return np.argsort(-np.broadcast_to(given, (n, r)), axis=1, kind="stable")


def _curve(craft: CRAFT, codes: Tensor, class_id: int, order: NDArray[np.int64], mode: str) -> NDArray[np.float64]:
    """(r + 1,) mean logit after each step."""
    n, r = order.shape
    rank = torch.from_numpy(order.argsort(axis=1)).to(codes.device).view(n, *[1] * (codes.ndim - 2), r)
    steps = []
    for step in range(r + 1):
        kept = rank >= step if mode == "deletion" else rank < step
        steps.append(float(craft.logit(codes * kept, class_id).mean()))
    return np.array(steps)


def gradient_importance(craft: CRAFT, images: Tensor, class_id: int) -> Result:
    """Importances of concepts by the gradient of the logit, to hold against Sobol indices.

    Args:
        craft: a fitted one.
        images: (n, channel, size, size) of the class.
        class_id: the class.

    Returns:
        By `concept`: `tcav` (share of images whose logit grows along the concept), `magnitude` (mean derivative along
        it, a unit vector), `gradient_x_concept` (mean over images of the derivative along each coefficient times the
        coefficient, summed over positions); `sensitivity` (image, concept).

    Raises:
        InputError: the class does not exist, or the logit has no gradient to the activations.

    Source: Kim et al., 2018, equation 2; Zhang et al., 2021 (TCAV importance of found concepts).
    """
    bank = craft.transform(images[:1]).new_tensor(craft.bank_.bank_.numpy())
    sensitivity, products = [], []
    for part in craft._images(images).split(craft.batch_size):
        with torch.no_grad():
            found = craft.g(part)
        leaf = found.detach().requires_grad_()
        with torch.enable_grad():
            value = logit_of(craft.h(leaf), class_id).sum()
            if not value.requires_grad:
                raise InputError("the logit has no gradient to the activations")
            (grad,) = torch.autograd.grad(value, leaf)
        along = grad.movedim(1, -1) @ bank.T
        codes = craft.bank_.transform(found.movedim(1, -1))
        over = tuple(range(1, along.ndim - 1))
        sensitivity.append(along.sum(over) if over else along)
        products.append((along * codes).sum(over) if over else along * codes)
    each = torch.cat(sensitivity).double().cpu().numpy()
    length = np.linalg.norm(craft.bank_.bank_.numpy(), axis=1)
    data = xr.Dataset(
        {
            "tcav": ("concept", (each > 0).mean(0)),
            "magnitude": ("concept", each.mean(0) / np.where(length > 0, length, 1.0)),
            "gradient_x_concept": ("concept", torch.cat(products).double().mean(0).cpu().numpy()),
            "sensitivity": (("image", "concept"), each),
        }
    )
    record = provenance(None, images, None, bank=fingerprint(craft.bank_.bank_), class_id=class_id)
    return Result(data, "gradient_importance", "craft", record)
