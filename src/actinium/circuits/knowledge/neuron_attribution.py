"""Neuron attribution: which units write the answer, and which earlier ones make them active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.knowledge.drafting import check_editable
from actinium.circuits.knowledge.encoding import prompt_of
from actinium.circuits.knowledge.queries import ValueUnit, key_of, written_before
from actinium.circuits.knowledge.traces import Trace, Traces
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["best_window", "neuron_attribution"]

LEVELS = {"value": ("neuron", "layer", "head", "attention-neuron"), "query": ("neuron", "layer")}
OF = ("attention", "mlp")
COLUMNS = ("prompt", "layer_of", "head", "unit", "position")


def neuron_attribution(
    model: Model,
    prompts: str | Sequence[str],
    targets: str | int | Sequence[str | int] | None = None,
    *,
    kind: str = "value",
    level: str = "neuron",
    of: str = "attention",
    top: int = 300,
    units: int = 30,
) -> Result:
    """Units that write an answer (value), or that activate those that do (query).

    A unit's value score is log p(w | x + m v) - log p(w | x): x is the residual stream at the last token before its
    MLP or attention, m v what it writes, p the softmax of the unembedding with the scale of the final norm held at
    that of the run. Scores of this kind do not add up. A query score shares the value scores of the `units` best units
    among all that was written before them: I <y, k> / <x, k>, where x is the stream that a unit reads, y a part of it
    and k the linear map from it to the unit's input, with the scale of the norm held (and the gate, where the MLP has
    one). Attention units are read at the position that they bring something from.

    Args:
        model: a causal language model.
        prompts: prompts that the answers continue.
        targets: the answers, one for each prompt (of several tokens the first counts), or token ids; by default what
            the model says.
        kind: "value" or "query".
        level: "neuron" (units of MLPs), "layer", "head", or "attention-neuron" (an entry of a head's value at a
            position); query scores have the first two.
        of: whose query scores: "attention" units or "mlp" units. MLP units that activate others ("neuron") act before
            attention units.
        top: units that count as the best of a prompt.
        units: value units whose queries are looked for.

    Returns:
        Result. "neuron": the `top` units by `score` over `rank` with `layer_of` and `unit`; over `layer`
        the mean number `layer_count` and summed score `layer_score` of each prompt's `top` units with positive scores;
        `scores` (layer, unit), means over prompts. "attention-neuron": the same without `scores`, with `prompt`,
        `head`, `unit`, `position` and `token`. "head": `score` (layer, head). "layer": `attention` and `mlp` over
        `layer`, for queries also `embedding`; their sum is `total`, the value scores shared. Queries have `dropped`,
        the value units without shares: their input has another sign than <x, k> or hardly depends on it.

    Raises:
        InputError: prompts and targets do not fit; a number is below 1; blocks, MLPs or logits are not sums that are
            known.
        UnknownNameError: no such kind or level.

    Source: Yu and Ananiadou, 2024 (neuron-level knowledge attribution); Yang et al., 2025 (ACE). The former's code
        leaves out of k that a layer norm removes the mean, and uses a gated unit's output weights for its key.
    """
    check_editable(model)
    _check(kind, level, of, top, units)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    ids = _target_ids(model, texts, targets)
    rows = [prompt_of(model, text) for text in texts]
    heads = level in ("head", "attention-neuron") or (kind == "query" and of == "attention")
    if heads and not model.has(f"{model.tower.prefix}blocks.*.attn.v"):
        raise SiteError(f"{model.name} has no attention values that can be read")
    if kind == "query" and of == "mlp" and not model.has(f"{model.tower.prefix}blocks.*.mlp.pre"):
        raise SiteError(f"{model.name} has no mlp.pre, the input of a unit of its MLPs")
    traces = Traces(model, rows, ids, heads)
    if kind == "query":
        data = _query(traces, level, of, top, units)
    else:
        data = {
            "neuron": lambda: _ranked(torch.stack([_mlp_scores(t) for t in traces.rows]), top),
            "attention-neuron": lambda: _attention_neurons(traces, top),
            "head": lambda: _by_head(traces),
            "layer": lambda: _by_layer(traces),
        }[level]()
    settings = {"kind": kind, "level": level, "of": of, "top": top, "units": units, "targets": traces.targets}
    return Result(data, "neuron_attribution", "ace", provenance(model, texts, **settings))


def _check(kind: str, level: str, of: str, top: int, units: int) -> None:
    if kind not in LEVELS:
        raise UnknownNameError(unknown("kind", kind, LEVELS))
    if level not in LEVELS[kind]:
        raise UnknownNameError(unknown(f"level of {kind} scores", level, LEVELS[kind]))
    if of not in OF:
        raise UnknownNameError(unknown("value units", of, OF))
    if kind == "query" and level == "neuron" and of == "mlp":
        raise InputError('MLP units are scored as queries of attention units: of="attention"')
    if top < 1 or units < 1:
        raise InputError(f"top and units must be at least 1, not {top} and {units}")


def _target_ids(model: Model, texts: list[str], targets: Any) -> list[int] | None:
    if not texts:
        raise InputError("no prompts given")
    if targets is None:
        return None
    given = [targets] if isinstance(targets, str | int) else list(targets)
    if len(given) != len(texts):
        raise InputError(f"{len(given)} targets for {len(texts)} prompts")
    return [
        t if isinstance(t, int) else prompt_of(model, text, t).target[0] for t, text in zip(given, texts, strict=True)
    ]


def _mlp_scores(trace: Trace) -> Tensor:
    """(layer, unit) value scores."""
    out = []
    for layer in range(trace.traces.n_layers):
        writes = trace.at(layer, "mlp.post")[:, None] * trace.traces.values(layer)
        out.append(trace.increase(trace.before(layer, "mlp"), writes))
    return torch.stack(out)


def _attention_scores(trace: Trace) -> Tensor:
    """(layer, pos, head, d_head) value scores."""
    out = []
    for layer in range(trace.traces.n_layers):
        writes = trace.attention_units(layer)[..., None] * trace.traces.head_values(layer)
        out.append(trace.increase(trace.before(layer, "attn"), writes))
    return torch.stack(out)


def _best(scores: Tensor, top: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The highest scores, and where they are."""
    values, at = scores.flatten().sort(descending=True, stable=True)
    return values[:top], torch.unravel_index(at[:top], scores.shape)


def _layers(each: Sequence[Tensor], n: int, top: int) -> dict[str, Any]:
    """Over layers: number and sum of the positive ones of each prompt's best scores, means over prompts."""
    count, total = torch.zeros(n), torch.zeros(n)
    for scores in each:
        values, (layer, *_) = _best(scores, top)
        kept = (values > 0).float().cpu()
        count.index_add_(0, layer.cpu(), kept)
        total.index_add_(0, layer.cpu(), kept * values.float().cpu())
    return {
        "layer_count": ("layer", (count / len(each)).numpy()),
        "layer_score": ("layer", (total / len(each)).numpy()),
    }


def _ranked(scores: Tensor, top: int, **more: Any) -> xr.Dataset:
    """Units of MLPs by their mean score; scores (prompt, layer, unit)."""
    mean = scores.mean(0)
    values, (layer, unit) = _best(mean, top)
    return xr.Dataset(
        {
            "score": ("rank", values.cpu().numpy()),
            "layer_of": ("rank", layer.cpu().numpy()),
            "unit": ("rank", unit.cpu().numpy()),
            **_layers(scores.unbind(0), mean.shape[0], top),
            "scores": (("layer", "neuron"), mean.cpu().numpy()),
            **more,
        },
        coords={"rank": np.arange(len(values)), "layer": np.arange(mean.shape[0])},
        attrs={"plot": {"kind": "bar", "variables": ["layer_score"], "ylabel": f"score of the {top} best units"}},
    )


def _attention_neurons(traces: Traces, top: int) -> xr.Dataset:
    each = [_attention_scores(t) for t in traces.rows]
    found = []
    for trace, scores in zip(traces.rows, each, strict=True):
        values, (layer, position, head, unit) = _best(scores, top)
        found += [
            (-float(v), trace.row, int(a), int(h), int(u), int(p))
            for v, a, h, u, p in zip(values, layer, head, unit, position, strict=True)
        ]
    found = sorted(found)[:top]
    ids = [traces.batch.prompts[f[1]].ids[f[5]] for f in found]
    columns = {name: ("rank", np.array([f[i + 1] for f in found])) for i, name in enumerate(COLUMNS)}
    return xr.Dataset(
        {
            "score": ("rank", np.array([-f[0] for f in found])),
            **columns,
            "token": ("rank", np.array(traces.model.to_str_tokens(ids), dtype=object)),
            **_layers(each, traces.n_layers, top),
        },
        coords={"rank": np.arange(len(found)), "layer": np.arange(traces.n_layers)},
        attrs={"plot": {"kind": "bar", "variables": ["layer_score"], "ylabel": f"score of the {top} best units"}},
    )


def _by_head(traces: Traces) -> xr.Dataset:
    rows = []
    for trace in traces.rows:
        writes = [
            torch.einsum("he,hed->hd", trace.at(i, "attn.z"), traces.head_values(i)) for i in range(traces.n_layers)
        ]
        rows.append(torch.stack([trace.increase(trace.before(i, "attn"), w) for i, w in enumerate(writes)]))
    return xr.Dataset({"score": (("layer", "head"), torch.stack(rows).mean(0).cpu().numpy())})


def _by_layer(traces: Traces) -> xr.Dataset:
    names = {"attention": ("attn", "attn.out"), "mlp": ("mlp", "mlp.out")}
    data: dict[str, Any] = {}
    for name, (part, out) in names.items():
        rows = [
            torch.stack([t.increase(t.before(i, part), t.at(i, out)) for i in range(traces.n_layers)])
            for t in traces.rows
        ]
        data[name] = ("layer", torch.stack(rows).mean(0).cpu().numpy())
    plot = {"kind": "bar", "variables": list(names), "ylabel": "increase of log p"}
    return xr.Dataset(data, coords={"layer": np.arange(traces.n_layers)}, attrs={"plot": plot})


def _value_units(trace: Trace, of: str, units: int) -> list[ValueUnit]:
    """The units with the highest value scores, of those with a positive one."""
    traces = trace.traces
    if of == "mlp":
        values, (layer, unit) = _best(_mlp_scores(trace), units)
        found = [
            ValueUnit(float(v), int(i), trace.last, traces.site(int(i), "mlp.pre"), (int(u),), "mlp")
            for v, i, u in zip(values, layer, unit, strict=True)
        ]
    else:
        values, (layer, position, head, unit) = _best(_attention_scores(trace), units)
        shared = traces.model.tower.heads // traces.model.tower.kv_heads
        found = [
            ValueUnit(float(v), int(i), int(p), traces.site(int(i), "attn.v"), (int(h) // shared, int(u)), "attn")
            for v, i, p, h, u in zip(values, layer, position, head, unit, strict=True)
        ]
    return [f for f in found if f.score > 0]


def _query(traces: Traces, level: str, of: str, top: int, units: int) -> xr.Dataset:
    """Query scores of all that was written before the best value units."""
    n = traces.n_layers
    parts = torch.zeros(1 + 2 * n, dtype=torch.float64)
    shares, total, dropped = [], 0.0, 0
    for trace in traces.rows:
        share = torch.zeros(n, traces.values(0).shape[0], dtype=torch.float64) if level == "neuron" else None
        for unit in _value_units(trace, of, units):
            found = key_of(trace, unit)
            if found is None:
                dropped += 1
                continue
            key, along = found
            total += unit.score
            for name, part in enumerate(written_before(trace, unit)):
                parts[name] += unit.score * float(part.double() @ key) / along
            if share is not None:
                for j in range(unit.layer):
                    size = trace.at(j, "mlp.post", unit.position).double()
                    share[j] += (unit.score / along * size * (traces.values(j).double() @ key)).cpu()
        if share is not None:
            shares.append(share)
    if level == "neuron":
        return _ranked(torch.stack(shares), top, dropped=dropped)
    parts, rows = parts / len(traces.rows), np.arange(n)
    data = {
        "attention": ("layer", parts[1::2].numpy()),
        "mlp": ("layer", parts[2::2].numpy()),
        "embedding": float(parts[0]),
        "total": total / len(traces.rows),
        "dropped": dropped,
    }
    plot = {"kind": "bar", "variables": ["attention", "mlp"], "ylabel": "share of the value scores"}
    return xr.Dataset(data, coords={"layer": rows}, attrs={"plot": plot})


def best_window(scores: Sequence[float], size: int) -> list[int]:
    """The neighbouring layers with the highest sum of scores; of equal ones the lowest.

    Args:
        scores: of each layer.
        size: number of layers; at most as many as there are.

    Raises:
        InputError: `size` is below 1.
    """
    if size < 1:
        raise InputError(f"a window needs a layer or more, not {size}")
    size = min(size, len(scores))
    sums = [sum(scores[i : i + size]) for i in range(len(scores) - size + 1)]
    start = sums.index(max(sums))
    return list(range(start, start + size))
