"""How many feed-forward neurons a transformer uses, and how evenly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.concentration import gini
from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.reducers import Context, feature_rows
from actinium.core.result import Result

__all__ = ["input_batches", "neuron_activation_rate"]

PAPER = "metro-t0"
RARE = 1e-3


def neuron_activation_rate(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    tau: float = 0.0,
    relative: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> Result:
    """Share of the tokens at which each feed-forward neuron is active; padding does not count.

    A neuron is active where its value is above `tau`. In a gated feed-forward layer, whose product has any sign, that
    is judged at the gate: ReLU, SiLU and GELU keep its sign, so that a gate above 0 is an activation above 0. Other
    thresholds are relative: the magnitude is above `tau` times the standard deviation of all values of the layer.

    Args:
        model: a transformer, or any Model with `at`.
        inputs: what the model records, or a list of such batches. An encoder-decoder takes mappings with labels or
            decoder_input_ids; decoder positions count where decoder_attention_mask is not 0 or, without it, where the
            label is not -100.
        at: sites; by default the gate of gated feed-forward layers and `mlp.post` of the others, or `mlp.post` of all
            where the threshold is relative, in encoder and decoder.
        tau: the threshold.
        relative: compare magnitudes with `tau` standard deviations of the layer. It takes a second pass.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        Result over site and neuron (NaN beyond a narrower site's width): `rate`; over site: `active` (mean rate),
        `sparsity` (1 - active), `dead` (share of neurons never active), `rare` (share below 0.001), `gini` and
        `entropy` of the rates (entropy of their shares over its maximum, 1 for equal rates), `tokens`, `neurons`,
        `threshold`.

    Raises:
        InputError: no feed-forward site is known and none given, gated layers with an absolute `tau` that is not 0, or
            values that are not finite.
        SiteError: `at` matches nothing.

    Source: Gong et al., 2023, analysis of neural activation; the thresholds for other units than ReLU are ours.
    """
    if not isinstance(model, Model):
        raise InputError(f"expected a Model (see ac.load), not {type(model).__name__}")
    if not np.isfinite(tau) or (relative and tau < 0) or batch_size < 1:
        raise InputError(f"tau must be finite (not negative where relative) and batch_size positive, got {tau}")
    sites = _sites(model, at, tau, relative)
    batches = input_batches(model, inputs, batch_size)
    threshold = dict.fromkeys(sites, tau)
    if relative:
        threshold = {s: tau * sd for s, sd in _deviations(model, sites, batches, progress).items()}
    counts: dict[str, Tensor] = {}
    tokens = dict.fromkeys(sites, 0)
    for part in shown(batches, "activation rate", progress):
        for site, rows in _rows(model, sites, part):
            on = (rows.abs() if relative else rows) > threshold[site]
            counts[site] = counts.get(site, torch.zeros(rows.shape[1], dtype=torch.long)) + on.sum(0)
            tokens[site] += len(rows)
    rates = {site: counts[site].double().numpy() / tokens[site] for site in sites}
    width = max(map(len, rates.values()))
    per_site = [_summary(rate) for rate in rates.values()]
    data: dict[str, Any] = {
        "rate": (("site", "neuron"), [np.pad(r, (0, width - len(r)), constant_values=np.nan) for r in rates.values()]),
        **{name: ("site", [s[name] for s in per_site]) for name in per_site[0]},
        "tokens": ("site", [tokens[s] for s in sites]),
        "neurons": ("site", [len(r) for r in rates.values()]),
        "threshold": ("site", [threshold[s] for s in sites]),
    }
    hints = {"plot": {"variables": ["active", "dead"], "ylabel": "share"}}
    record = provenance(model, [p.arguments | {str(i): v for i, v in enumerate(p.positional)} for p in batches])
    record["settings"] = {"at": sites, "tau": tau, "relative": relative}
    return Result(xr.Dataset(data, {"site": sites}, hints), "neuron_activation_rate", PAPER, record)


def input_batches(model: Model, inputs: Any, batch_size: int) -> list[Inputs]:
    """Inputs, or a list of batches of them, prepared and cut into `batch_size` rows.

    Raises:
        InputError: there are none, or the model cannot read them.
    """
    many = isinstance(inputs, list | tuple) and len(inputs) and not isinstance(inputs[0], str | int)
    many = many and not all(isinstance(i, list) and all(isinstance(t, int) for t in i) for i in inputs)
    ready = [model.prepare(i) for i in inputs] if many else [model.prepare(inputs)]
    out: list[Inputs] = []
    for one in ready:
        for start, positional, arguments in one.batches(batch_size, model.device):
            tokens = one.tokens[slice(start, start + batch_size)] if one.tokens is not None else None
            out.append(Inputs(arguments, min(batch_size, one.size - start), positional, tokens, one.extra))
    return out


def _sites(model: Model, at: str | Sequence[str] | None, tau: float, relative: bool) -> list[str]:
    if at is not None:
        return [s.name for s in model.sites(at)]
    post = {(s.stack, s.layer): s.name for s in model.sites() if s.part == "mlp.post"}
    gate = {(s.stack, s.layer): s.name for s in model.sites() if s.part == "mlp.gate"}
    if not post:
        raise InputError(f"{model.name} has no feed-forward layers that we recognise; choose sites with at=...")
    if relative:
        return list(post.values())
    if tau != 0 and gate:
        raise InputError(
            f"an absolute tau of {tau} has no meaning at a gate; use tau=0, relative=True, or choose sites with at=..."
        )
    return [gate.get(block, name) for block, name in post.items()]


def _rows(model: Model, sites: list[str], part: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Values (n, features) of the real positions at each site."""
    recorded = model.record(part, sites, device="cpu")
    decoder = _decoder_mask(part)
    for site in sites:
        value = recorded[site]
        mask = decoder if site.startswith("decoder.") else recorded.mask
        context = Context(recorded.dims[site], mask, None, torch.arange(len(value)), site)
        rows = _plain(value) if not context.dims else feature_rows(value, context)[0]
        if not bool(rows.isfinite().all()):
            raise InputError(f"{site} holds NaN or infinite values")
        yield site, rows.double()


def _plain(value: Tensor) -> Tensor:
    """Rows of a module's output: units last, or channels of images."""
    if value.ndim < 2:
        raise InputError(f"expected values (n, …) at a site, got shape {tuple(value.shape)}")
    return value.movedim(1, -1).flatten(0, -2) if value.ndim == 4 else value.flatten(0, -2)


def _decoder_mask(part: Inputs) -> Tensor | None:
    given, labels = part.arguments.get("decoder_attention_mask"), part.arguments.get("labels")
    if isinstance(given, Tensor):
        return given.bool().cpu()
    return (labels != -100).cpu() if isinstance(labels, Tensor) and labels.ndim == 2 else None


def _deviations(model: Model, sites: list[str], batches: list[Inputs], progress: bool) -> dict[str, float]:
    """Standard deviation of all values of each site."""
    sums = {site: np.zeros(3) for site in sites}
    for part in shown(batches, "standard deviations", progress):
        for site, rows in _rows(model, sites, part):
            sums[site] += [rows.numel(), float(rows.sum()), float((rows**2).sum())]
    return {s: float(np.sqrt(max(q / n - (t / n) ** 2, 0.0))) for s, (n, t, q) in sums.items()}


def _summary(rate: NDArray[np.float64]) -> dict[str, float]:
    shares = rate / rate.sum() if rate.any() else rate
    positive = shares[shares > 0]
    entropy = -(positive * np.log(positive)).sum() / np.log(len(rate)) if len(rate) > 1 and rate.any() else np.nan
    return {
        "active": float(rate.mean()),
        "sparsity": float(1 - rate.mean()),
        "dead": float((rate == 0).mean()),
        "rare": float((rate < RARE).mean()),
        "gini": gini(rate),
        "entropy": float(entropy),
    }
