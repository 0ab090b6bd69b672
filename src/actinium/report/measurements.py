"""What the check-up measures: one row for each measurement, with when it applies and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from actinium import measure, signal
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.streaming import NON_LINEARITIES, WEIGHTED
from actinium.report.finite import not_finite
from actinium.report.prediction import class_predictions, next_token_loss
from actinium.report.sample import OPERATIONS, Sample

__all__ = ["MEASUREMENTS", "SIGNAL", "STORED", "Measurement", "Plan"]

# Numbers of one pass that are held at a time (float32: a quarter of a gigabyte).
HELD = 1 << 26
# A measurement with many passes reads fewer rows, so that it costs about this many passes over the sample.
PASSES = 6
# Tokens, images or rows that it reads at least, and as long as they are affordable.
FEWEST = {"text": (256, 2048), "images": (32, 128), "arrays": (32, 128)}
RECTIFIERS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Softplus, nn.Hardswish),
)


@dataclass
class Plan:
    """What a measurement is run on.

    Attributes:
        model, sample: what is read, and with what.
        passes: how often the measurement runs the model over its rows.
        least: how many times the fewest rows it needs.
        results: what was measured before, by name.
    """

    model: Model
    sample: Sample
    passes: float = 1
    least: float = 1
    results: Mapping[str, Result] = field(default_factory=dict)
    inputs: Any = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = self.sample.some(self._rows())

    def _rows(self) -> int:
        """Rows that are read: all, or as many as keep a measurement of many passes near the cost of `PASSES`."""
        fewest, enough = FEWEST[self.sample.kind]
        per_row = max(1.0, (self.sample.tokens or self.sample.rows) / self.sample.rows)
        wanted = max(self.sample.rows * PASSES / self.passes, enough / per_row)
        kind = "cpu" if self.model.device.type == "cpu" else "accelerator"
        affordable = PASSES * OPERATIONS[kind] / max(1.0, self.sample.cost.operations * self.passes)
        return int(np.ceil(max(min(wanted, affordable), self.least * fewest / per_row)))

    @property
    def batch(self) -> int:
        """Rows per pass, so that what is held stays bounded."""
        width = self.inputs.ids.shape[1] if isinstance(self.inputs, Tokens) else 1
        grown = width / max(1, self.sample.width)
        patterns = self.model.n_layers * self.model.n_heads * width**2
        return int(min(max(HELD // (self.sample.cost.numbers * max(1.0, grown) + patterns), 1), 256))

    @property
    def tokens(self) -> int | None:
        """Tokens that are read, without padding."""
        return int(self.inputs.mask.sum()) if isinstance(self.inputs, Tokens) else None

    def at(self, part: str) -> list[str] | None:
        """Sites of a part of each block; None where the measure's own choice is right."""
        if self.model.kind == "encoder-decoder":
            return [f"encoder.blocks.*.{part}"]
        if self.model.n_layers:
            return None
        kinds = NON_LINEARITIES if part == "mlp.post" else WEIGHTED
        ran = self.sample.cost.modules
        return [f"module:{p}" for p in ran if isinstance(self.model.module.get_submodule(p), kinds)] or None


@dataclass(frozen=True)
class Measurement:
    """One measurement of the check-up.

    Attributes:
        name: its key in the report.
        title: what it is called there.
        about: one sentence on how to read it.
        run: measures.
        unfit: why a model or a sample cannot be measured, or None.
        passes: how often it runs the model, in forward passes.
        least: how many times the fewest rows it needs.
        omit: variables that the JSON leaves out (values per row and position).
    """

    name: str
    title: str
    about: str
    run: Callable[[Plan], Result]
    unfit: Callable[[Model, Sample], str | None] = lambda model, sample: None
    passes: Callable[[Model, Sample], float] = lambda model, sample: 1
    least: float = 1
    omit: tuple[str, ...] = ()


STORED = ("norms", "moments", "outliers", "massive", "similarity", "dead", "saturated", "zeros", "rank")
"""Measurements that only read activations, and so can be taken of a store."""


def _no_blocks(model: Model, sample: Sample) -> str | None:
    return None if model.n_layers else "the model has no transformer blocks that are known"


def _no_maps(model: Model, sample: Sample) -> str | None:
    if model.n_layers or any(isinstance(model.module.get_submodule(p), WEIGHTED) for p in sample.cost.modules):
        return None
    return "no linear or convolutional module runs in it"


def _no_attention(model: Model, sample: Sample) -> str | None:
    if model.kind == "encoder-decoder":
        return "patterns of encoders beside a decoder are not summarised"
    if not model.n_layers or not any(s.part == "attn.pattern" for s in model.sites()):
        return "the model has no attention whose pattern is known"
    return None


def _no_lens(model: Model, sample: Sample) -> str | None:
    if model.kind not in ("causal-lm", "masked-lm"):
        return "only a language model has an unembedding to read layers with"
    return None


def _no_next_token(model: Model, sample: Sample) -> str | None:
    return None if model.kind == "causal-lm" else "the model does not predict the next token"


def _no_classes(model: Model, sample: Sample) -> str | None:
    return "the model is no classifier of images or arrays" if sample.kind == "text" else None


def _no_units(model: Model, sample: Sample) -> str | None:
    if model.n_layers:
        has = any(s.part == "mlp.post" for s in model.sites())
        return None if has else "its blocks have no plain feed-forward units"
    if any(isinstance(model.module.get_submodule(p), NON_LINEARITIES) for p in sample.cost.modules):
        return None
    return "its non-linearities are function calls, not modules, so that their outputs cannot be read"


def _no_rectifiers(model: Model, sample: Sample) -> str | None:
    reason = _no_units(model, sample)
    if reason or model.n_layers:
        return reason
    modules = [model.module.get_submodule(p) for p in sample.cost.modules]
    odd = {type(m).__name__ for m in modules if isinstance(m, NON_LINEARITIES) and not isinstance(m, RECTIFIERS)}
    return f"{', '.join(sorted(odd))} has no half that is linear" if odd else None


def _no_sparsity(model: Model, sample: Sample) -> str | None:
    return _no_next_token(model, sample) or _no_units(model, sample)


def _no_logits(model: Model, sample: Sample) -> str | None:
    if model.kind == "encoder-decoder":
        return "the sample is text for the encoder, and the logits are the decoder's"
    return None


def _massive(plan: Plan) -> Result:
    found = measure.find_massive_activations(plan.model, plan.inputs, plan.at("resid_post"), batch_size=plan.batch)
    carriers = found.tokens().head(20)
    data = found.result.data.assign(
        massive_channel=("massive_channel", np.array(found.channels(), dtype=int)),
        carrier=("carrier_rank", carriers["token"].to_numpy(dtype=str)),
        carrier_first=("carrier_rank", carriers["start"].to_numpy(dtype=bool)),
        carrier_sequences=("carrier_rank", carriers["sequences"].to_numpy(dtype=int)),
        carrier_magnitude=("carrier_rank", carriers["mean"].to_numpy(dtype=float)),
    )
    return replace(found.result, data=data)


def _massive_effect(plan: Plan) -> Result:
    """Perplexity with the massive entries set to zero."""
    if "massive" in plan.results and not plan.results["massive"].data.sizes["massive_channel"]:
        raise InputError("there are no massive activations")
    found = measure.find_massive_activations(plan.model, plan.inputs, batch_size=plan.batch)
    return measure.massive_intervention(plan.model, found, plan.inputs, batch_size=plan.batch).result


def _saturated(plan: Plan) -> Result:
    at = plan.at("mlp.gate")
    if plan.model.kind == "encoder-decoder":
        at = at if plan.model.has(at or []) else plan.at("mlp.pre")
    elif at is None or not plan.model.n_layers:
        names = plan.at("mlp.post") if not plan.model.n_layers else None
        at = [name.replace("module:", "module_in:", 1) for name in names] if names else None
    return measure.saturated_units(plan.model, plan.inputs, at, batch_size=plan.batch)


def _similarity(plan: Plan) -> Result:
    """Between all blocks; without blocks between the sites that agree in their number of positions."""
    sites = plan.at("resid_post")
    if plan.model.n_layers or sites is None:
        return measure.layer_similarity(plan.model, plan.inputs, sites, batch_size=plan.batch)
    # A map that runs twice has two activations at each position; none of them is the one to compare.
    sites = [s for s in sites if plan.sample.cost.modules[s.removeprefix("module:")] == 1]
    rec = plan.model.record(plan.sample.some(1), sites)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in sites:
        groups.setdefault(tuple(rec[name].shape[2:]), []).append(name)
    found = [
        measure.layer_similarity(plan.model, plan.inputs, names, batch_size=plan.batch)
        for names in groups.values()
        if len(names) > 1
    ]
    if not found:
        return measure.layer_similarity(plan.model, plan.inputs, sites, batch_size=plan.batch)
    square = {name: np.full((len(sites), len(sites)), np.nan) for name in ("cka", "cosine")}
    for part in found:
        places = np.array([sites.index(s) for s in part["site"].values])
        for name, values in square.items():
            values[np.ix_(places, places)] = part[name].values
    coords = {"site": sites, "other_site": sites}
    data = xr.Dataset({name: (("site", "other_site"), v) for name, v in square.items()}, coords)
    return Result(data, found[0].method, found[0].paper, found[0].provenance | {"settings": {"at": sites}})


def _sparsity(plan: Plan) -> Result:
    """Thresholds from one half of the rows, and their price on the other half."""
    inputs = plan.inputs
    even = torch.arange(len(inputs)) % 2 == 0
    if len(inputs) < 2:
        even = torch.ones(1, dtype=torch.bool)
    fit, test = (Tokens(inputs.ids[c], inputs.mask[c], inputs.rows[c]) for c in (even, ~even))
    held_out = test if len(test) else None
    return measure.ppl_p_sparsity(plan.model, fit, 1.0, held_out=held_out, batch_size=plan.batch, tol=1e-3)


def _lens_passes(model: Model, sample: Sample) -> float:
    """The pass itself, and two unembeddings for each layer."""
    vocabulary = getattr(model.config, "vocab_size", 0)
    unembeddings = 2 * model.n_layers * 2.0 * vocabulary * model.d_model * sample.width
    return 1 + unembeddings / max(1.0, sample.cost.operations)


def _rounding_passes(model: Model, sample: Sample) -> float:
    """At each of two widths one pass for each layer, for what lies outside the blocks, and for all together."""
    maps = [p for p in sample.cost.modules if isinstance(model.module.get_submodule(p), WEIGHTED)]
    return 2 * ((model.n_layers + 1 if model.n_layers else len(maps)) + 1)


def _signal(plan: Plan) -> Result:
    return signal.signal_propagation_plot(plan.model, plan.inputs, batch_size=plan.batch)


def _one(function: Callable[..., Result], part: str | None = None) -> Callable[[Plan], Result]:
    """A measure that takes the model, the inputs, the sites of a part, and a batch size."""

    def run(plan: Plan) -> Result:
        more = (plan.at(part),) if part is not None else ()
        return function(plan.model, plan.inputs, *more, batch_size=plan.batch)

    return run


MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(
        "finite",
        "NaN and infinite values",
        "The first place that holds such values makes every number after it meaningless.",
        lambda plan: not_finite(plan.model, plan.inputs, plan.sample.cost.modules, plan.batch),
    ),
    Measurement(
        "prediction",
        "Prediction on this text",
        "Cross-entropy in nats per token, beside what word counts alone would give.",
        _one(next_token_loss),
        _no_next_token,
    ),
    Measurement(
        "classes",
        "Predicted classes",
        "Shares of the inputs that each class is predicted for.",
        _one(class_predictions),
        _no_classes,
    ),
    Measurement(
        "norms",
        "Norms along the depth",
        "Length of the activation vectors after each block, on a logarithmic scale.",
        _one(measure.norm_growth, "resid_post"),
        _no_maps,
    ),
    Measurement(
        "moments",
        "Moments and kurtosis",
        "Excess kurtosis is 0 for a normal distribution and large where few entries hold most of the size.",
        _one(measure.activation_moments, "resid_post"),
        _no_maps,
    ),
    Measurement(
        "outliers",
        "Outlier channels",
        "Root mean square of each channel over that of the median channel.",
        _one(measure.outlier_channels, "resid_post"),
        _no_maps,
    ),
    Measurement(
        "massive",
        "Massive activations",
        "Largest over median magnitude of a sequence; massive from 1000, if also above 100.",
        _massive,
        _no_blocks,
    ),
    Measurement(
        "massive_effect",
        "What massive activations do",
        "Perplexity as it is, and with the massive entries set to zero where they first appear.",
        _massive_effect,
        _no_next_token,
        lambda model, sample: 4,
    ),
    Measurement(
        "attention",
        "Attention: entropy, sinks, neighbours",
        "What each head looks at, averaged over queries.",
        _one(measure.attention_summary),
        _no_attention,
    ),
    Measurement(
        "similarity",
        "Similarity of layers",
        "Cosine of the same position in two layers, and linear CKA of the whole representation. Blank where two "
        "sites differ in their positions.",
        _similarity,
        _no_maps,
    ),
    Measurement(
        "lens",
        "Logit lens",
        "What the model would predict if it stopped after each block.",
        _one(measure.logit_lens),
        _no_lens,
        _lens_passes,
    ),
    Measurement(
        "dead",
        "Units that do not fire",
        "Share of the positions at which each unit is not zero, and its largest value.",
        _one(measure.dead_units, "mlp.post"),
        _no_units,
    ),
    Measurement(
        "saturated",
        "Units that are always on",
        "Share of the units whose rectifier or gate never closes.",
        _saturated,
        _no_rectifiers,
    ),
    Measurement(
        "zeros",
        "Exact zeros",
        "Share of the units at work at a position, and anywhere in a row.",
        _one(measure.activation_sparsity, "mlp.post"),
        _no_units,
    ),
    Measurement(
        "sparsity",
        "Sparsity at 1 % of perplexity (PPL-1%)",
        "Share of the units that can be left out at a cost of at most 1 % of perplexity.",
        _sparsity,
        _no_sparsity,
        lambda model, sample: 12,
        4,
        ("per_position",),
    ),
    Measurement(
        "rank",
        "Effective rank",
        "How many dimensions the activations use, of those they have.",
        _one(measure.effective_rank, "resid_post"),
        _no_maps,
    ),
    Measurement(
        "quantisation",
        "Rounding to int8 and int4",
        "Signal to noise of the output in dB when one layer's weights are rounded; higher is better.",
        _one(measure.quantisation_sensitivity),
        _no_logits,
        _rounding_passes,
    ),
)

SIGNAL = Measurement(
    "signal",
    "Signal propagation",
    "Mean and variance of the signal after each addition to the residual stream, block or layer, and at the end of "
    "each residual branch.",
    _signal,
)
"""Measured where it is asked for: what a network of this architecture does to its input's signal."""
