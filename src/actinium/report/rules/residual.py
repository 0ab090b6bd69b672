"""Findings about the stream from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from actinium.core.result import Result
from actinium.report.rules.rule import Evidence, Found, at_layers, count_of, spans

__all__ = [
    "few_dimensions",
    "first_position",
    "lens_forms",
    "lens_settles",
    "massive",
    "norm_growth",
    "one_direction",
    "outlier_channels",
    "redundant_layers",
]

LENS = "found = ac.measure.logit_lens(model, inputs).table()\nprint(found[['layer', 'agreement', 'kl', 'median_rank']])"


def _site(result: Result, place: int) -> str:
    """Name of the site at one place of a result."""
    return str(result["site"].values[place])


def massive(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Layers with massive activations, and the tokens that carry them."""
    given = result.data.isel(bos=0)
    places = np.flatnonzero((given["top"] > limits["magnitude"]) & (given["ratio"] >= limits["ratio"]))
    if not len(places):
        return
    top = places[np.abs(given["value"].values[places]).argmax()]
    channels = [int(c) for c in given["massive_channel"].values]
    carriers = ""
    if given.sizes["carrier_rank"]:
        token, first = str(given["carrier"].values[0]), bool(given["carrier_first"].values[0])
        carriers = f", carried by {f'token {token!r}' if token else 'one position'}" + " at the start" * first
    effect, severity, why = _massive_effect(evidence, limits)
    yield Found(
        f"massive activations of up to {abs(float(given['value'].values[top])):.0f}{carriers}{effect}",
        f"{at_layers(result, places)}, channel{'s' * (len(channels) > 1)} {spans(channels)}",
        float(given["ratio"].values[top]),
        "x the median magnitude",
        f"site = {_site(result, int(places[0]))!r}\n"
        "found = ac.measure.find_massive_activations(model, inputs, site)\n"
        "print(found.tokens())",
        severity,
        why,
    )


def _massive_effect(evidence: Evidence, limits: Mapping[str, float]) -> tuple[str, str | None, str | None]:
    effect = evidence.results.get("massive_effect")
    if effect is None:
        return "", None, None
    before, after = (float(v) for v in effect["ppl"].values)
    said = f"; set to zero, perplexity goes from {before:.3g} to {after:.3g}"
    if after > limits["perplexity"] * before:
        return said, "warning", None
    return said, "note", "The model hardly uses them, but they still set the scale of a quantised activation."


def outlier_channels(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Channels far larger than the median channel."""
    ratio = np.nan_to_num(result["ratio"].values, nan=0.0, posinf=np.inf)
    finite = np.where(np.isfinite(ratio), ratio, 0.0)
    hit = finite >= limits["ratio"]
    if not hit.any():
        return
    channels, places = np.flatnonzero(hit.any(0)), np.flatnonzero(hit.any(1))
    place, channel = np.unravel_index(finite.argmax(), finite.shape)
    systematic = int(result["systematic"].values.sum())
    more = f"; {systematic} of them by the LLM.int8() rule" if systematic else ""
    shown = spans(channels) if len(channels) <= 8 else f"{spans(channels[:8])} and {len(channels) - 8} more"
    where = f"{at_layers(result, places)}, channel{'s' * (len(channels) > 1)} {shown}"
    if "site" in result.data.dims:
        where = at_layers(result, places)
    yield Found(
        f"{count_of(len(channels), 'channel')} of {hit.shape[1]} stand out, channel {channel} most{more}",
        where,
        float(finite[place, channel]),
        "x the median channel's RMS",
        f"site = {_site(result, int(place))!r}\n"
        "found = ac.measure.outlier_channels(model, inputs, site)\n"
        "print(found.table().nlargest(10, 'ratio'))",
    )


def norm_growth(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """A residual stream that grows or shrinks tenfold from the first block to the last."""
    mean = result["mean"].values
    if "site" in result.data.dims or len(mean) < 2 or not (np.isfinite(mean).all() and (mean > 0).all()):
        return
    factor = float(mean[-1] / mean[0])
    if 1 / limits["factor"] < factor < limits["factor"]:
        return
    verb = "grows" if factor > 1 else "shrinks"
    yield Found(
        f"the residual stream {verb} from a norm of {mean[0]:.3g} to {mean[-1]:.3g}, {float(result['rate']):.2f} x "
        "per block",
        at_layers(result, [0, len(mean) - 1]).replace(", ", " to "),
        factor,
        "x from first to last block",
        "print(ac.measure.norm_growth(model, inputs).table())",
    )


def redundant_layers(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Blocks that leave the direction of the stream almost as it was."""
    if "step_cosine" not in result.data or "layer" not in result.data.dims:
        return
    cosine = result["step_cosine"].values[:-1]
    places = np.flatnonzero(cosine > limits["cosine"])
    if not len(places):
        return
    numbers = [int(result["layer"].values[i + 1]) for i in places]
    least = numbers[int(cosine[places].argmax())]
    yield Found(
        f"{count_of(len(numbers), 'block')} of {len(cosine) + 1} hardly turn the stream: their output is nearly "
        "their input",
        f"layer{'s' * (len(numbers) > 1)} {spans(numbers)}",
        float(cosine[places].max()),
        f"cosine of input and output of layer {least}",
        _without(least, evidence),
    )


def _without(layer: int, evidence: Evidence) -> str:
    """Python that shows what the model loses without the attention and the MLP of one block."""
    if "prediction" not in evidence.results:
        return (
            "found = ac.measure.layer_similarity(model, inputs)\n"
            f"print(found.data['step_cosine'].sel(layer={layer - 1}))"
        )
    return (
        "parts = ('attn.out', 'mixer.out', 'mlp.out')\n"
        f"sites = [s for s in model.sites('blocks.{layer}.**') if s.part in parts]\n"
        "print('perplexity with it', ac.measure.perplexity(model, inputs))\n"
        "with model.edit({s.name: ac.edits.Zero() for s in sites}):\n"
        "    print('without it', ac.measure.perplexity(model, inputs))"
    )


def lens_settles(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Blocks at the end that hardly change the top prediction."""
    agreement = result["agreement"].values
    if "layer" not in result.data.dims or len(agreement) < 3:
        return
    below = np.flatnonzero(~(agreement >= limits["agreement"]))
    first = int(below[-1]) + 1 if len(below) else 0
    after = len(agreement) - 1 - first
    if after < max(1, limits["share"] * len(agreement)):
        return
    layer = int(result["layer"].values[first])
    yield Found(
        f"the top prediction is settled after layer {layer}: the {count_of(after, 'block')} after it change few",
        f"layers {layer}-{int(result['layer'].values[-1])}",
        100 * float(agreement[first]),
        f"% of top predictions already final after layer {layer}",
        LENS,
    )


def lens_forms(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """The block by which half of the top predictions are what they stay."""
    agreement = result["agreement"].values
    if "layer" not in result.data.dims or len(agreement) < 3 or not np.isfinite(agreement).all():
        return
    below = np.flatnonzero(agreement < limits["agreement"])
    first = int(below[-1]) + 1 if len(below) else 0
    layer, last = int(result["layer"].values[first]), int(result["layer"].values[-1])
    before = f", {100 * agreement[first - 1]:.0f} % one block before" if first else ""
    yield Found(
        f"half of the top predictions are settled by layer {layer} of {last}{before}",
        f"layer {layer}",
        100 * float(agreement[first]),
        "% of top predictions are final there",
        LENS,
    )


def first_position(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Blocks after which the first position is much longer than the others."""
    if not evidence.text or "layer" not in result.data.dims:
        return
    ratio = result["first"].values / result["median"].values
    places = np.flatnonzero(np.nan_to_num(ratio, posinf=0.0) >= limits["ratio"])
    if not len(places):
        return
    worst = int(places[ratio[places].argmax()])
    yield Found(
        "the first position of a text is far longer than the others",
        at_layers(result, places),
        float(ratio[worst]),
        f"x the median norm, in {at_layers(result, [worst])}",
        f"site = {_site(result, worst)!r}\n"
        f"stream = model.record({evidence.first}, site)[site][0]\n"
        "print(stream.norm(dim=-1).round(decimals=1))",
    )


def one_direction(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Layers in which one direction holds most of the variance."""
    rank, count, width = (result[n].values for n in ("stable_rank", "count", "width"))
    places = np.flatnonzero((rank < limits["rank"]) & (rank > 0) & (width >= limits["width"]) & (count >= width))
    if not len(places):
        return
    worst = int(places[rank[places].argmin()])
    yield Found(
        f"one direction holds {100 / rank[worst]:.0f} % of the variance",
        at_layers(result, places),
        float(rank[worst]),
        f"stable rank, of {int(width[worst])} dimensions",
        f"site = {_site(result, worst)!r}\n"
        "rank = ac.measure.effective_rank(model, inputs, site)\n"
        "print(rank.data['spectrum'][0, :10])",
    )


def few_dimensions(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Layers whose variance lies in few dimensions."""
    used, count, width = (result[n].values for n in ("components_90", "count", "width"))
    enough = (count >= limits["positions"] * width) & (width >= limits["width"])
    places = np.flatnonzero((used <= limits["share"] * width) & enough & (used > 0))
    if not len(places):
        return
    worst = int(places[(used[places] / width[places]).argmin()])
    yield Found(
        f"{int(used[worst])} of {int(width[worst])} dimensions hold 90 % of the variance",
        at_layers(result, places),
        100 * float(used[worst] / width[worst]),
        "% of the dimensions",
        f"site = {_site(result, worst)!r}\n"
        "rank = ac.measure.effective_rank(model, inputs, site)\n"
        "print(rank.data['spectrum'][0].cumsum('component')[:20])",
    )
