"""Findings that say whether the other numbers can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from actinium.core.result import Result
from actinium.report.rules.rule import Evidence, Found, count_of

__all__ = ["broken_weights", "no_better_than_counts", "not_finite", "one_class", "worse_than_uniform"]

LOSSES = (
    "first = inputs.ids[:1, :40]\n"
    "losses = model.loss(first, reduction='token')[0].tolist()\n"
    "print(*zip(model.to_str_tokens(first[0, 1:]), losses), sep='\\n')"
)


def broken_weights(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Weights that are NaN or infinite."""
    names = [str(n) for n in result["weight"].values]
    if not names:
        return
    bad = int((result["weight_nan"] + result["weight_inf"]).sum())
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    yield Found(
        f"{count_of(len(names), 'weight tensor')} hold NaN or infinite values",
        f"{names[0]}{more}",
        bad,
        "values",
        f"name = {names[0]!r}\nweight = model.module.get_parameter(name)\nprint((~weight.isfinite()).nonzero()[:10])",
    )


def not_finite(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """The first site of the forward pass with NaN or infinite values."""
    bad = (result["nan"] + result["inf"]).values
    places = bad.nonzero()[0]
    if not len(places):
        return
    first = int(places[0])
    site, count = str(result["site"].values[first]), int(result["count"].values[first])
    kind = "NaN" if result["nan"].values[first] else "infinite values"
    yield Found(
        f"activations hold {kind}, first at {site}",
        site,
        100 * bad[first] / count,
        "% of its values",
        f"site = {site!r}\n"
        "found = ac.measure.activation_moments(model, inputs, site)\n"
        "print(found.data[['nan', 'inf', 'count']])",
    )


def worse_than_uniform(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """A loss above that of an even guess over the vocabulary."""
    loss, even = float(result["loss"]), float(result["uniform_loss"])
    if not loss > even:
        return
    yield Found(
        f"the model predicts this text worse than an even guess over its vocabulary ({even:.2f} nats)",
        "logits",
        loss,
        "nats per token",
        LOSSES,
    )


def no_better_than_counts(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """A loss between that of word counts and that of an even guess."""
    loss, even, counts = (float(result[n]) for n in ("loss", "uniform_loss", "unigram_loss"))
    if loss > even or loss <= counts or math.isnan(loss):
        return
    yield Found(
        f"the model predicts this text no better than the counts of its tokens would ({counts:.2f} nats)",
        "logits",
        loss,
        "nats per token",
        LOSSES,
    )


def one_class(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Almost every input gets the same class."""
    shares = result["predicted"].values
    best = int(shares.argmax())
    if shares[best] < limits["share"] or evidence.n < limits["rows"]:
        return
    yield Found(
        f"class {result['class'].values[best]} is predicted for nearly all inputs",
        "output",
        100 * float(shares[best]),
        "% of the inputs",
        "print(model.logits(inputs[:32]).argmax(-1))",
    )
