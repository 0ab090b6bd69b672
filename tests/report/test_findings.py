"""Rules over numbers made up for them: each fires where its condition holds, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from actinium.core.result import Result
from actinium.report.rules.rule import SEVERITIES, Evidence, at_layers, spans
from actinium.report.rules.table import RULES

LAYERS = {"layer": [0, 1, 2, 3], "site": ("layer", [f"blocks.{i}.resid_post" for i in range(4)])}


def result(variables, coords=LAYERS, **settings):
    return Result(xr.Dataset(variables, coords), "made up", None, {"settings": settings})


def found(name, made, **others):
    rule = next(r for r in RULES if r.name == name)
    evidence = Evidence({rule.measurement: made, **others}, 4, True, 5000)
    return list(rule.find(made, rule.limits, evidence))


def per_layer(**values):
    return {name: (("layer",), np.array(v)) for name, v in values.items()}


def test_every_rule_reads_a_measurement_and_says_why():
    from actinium.report.measurements import MEASUREMENTS

    names = {m.name for m in MEASUREMENTS}
    assert len({r.name for r in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.measurement in names
        assert rule.severity in SEVERITIES
        assert rule.why.endswith(".")
        assert rule.source
        assert "{" not in rule.threshold


@pytest.mark.parametrize(
    ("numbers", "words"), [([3], "3"), ([0, 1, 2], "0-2"), ([5, 1, 2, 7], "1-2, 5, 7"), ([2, 2], "2")]
)
def test_layer_numbers_in_words(numbers, words):
    assert spans(numbers) == words


def test_sites_in_words():
    made = result({}, {"site": ["module:a", "module:b", "module:c", "module:d", "module:e"]})
    assert at_layers(made, [1]) == "module:b"
    assert at_layers(made, range(5)) == "module:a, module:b, module:c and 2 more"
    assert at_layers(result({}), [1, 2]) == "layers 1-2"


def losses(loss):
    return result({"loss": ((), loss), "uniform_loss": ((), 5.0), "unigram_loss": ((), 4.0)}, {})


@pytest.mark.parametrize(
    ("loss", "uniform", "counts"), [(5.1, 1, 0), (4.5, 0, 1), (3.9, 0, 0), (4.0, 0, 0), (np.nan, 0, 0)]
)
def test_loss_is_judged_against_two_guesses(loss, uniform, counts):
    assert len(found("worse-than-uniform", losses(loss))) == uniform
    assert len(found("no-better-than-counts", losses(loss))) == counts


def massive(top, median):
    four = {"bos": ["with BOS"], **LAYERS}
    two = ("bos", "layer")
    variables = {
        "top": (two, [top]),
        "median": (two, [median]),
        "ratio": (two, [np.divide(top, median)]),
        "value": (two, [top]),
        "massive_channel": (("massive_channel",), [7]),
        "carrier": (("carrier_rank",), ["<s>"]),
        "carrier_first": (("carrier_rank",), [True]),
    }
    return result(variables, four)


def test_massive_needs_both_limits():
    (one,) = found("massive-activations", massive([99.0, 150, 3000, 150], [0.01, 0.2, 1.0, 0.15]))
    assert one.where == "layers 2-3, channel 7"
    assert one.value == 3000
    assert "'<s>' at the start" in one.what
    assert not found("massive-activations", massive([99.0, 150, 900, 1], [0.01, 0.2, 1.0, 1.0]))


def test_massive_is_a_note_where_the_model_does_without():
    made = massive([1.0, 2000, 1, 1], [1.0, 1, 1, 1])
    effect = lambda after: result({"ppl": (("state",), [10.0, after])}, {})  # noqa: E731
    (harmless,) = found("massive-activations", made, massive_effect=effect(15.0))
    (harmful,) = found("massive-activations", made, massive_effect=effect(15.1))
    assert (harmless.severity, harmful.severity) == ("note", "warning")
    assert "from 10 to 15" in harmless.what


def test_outlier_channels_are_named_with_their_layers():
    ratio = np.ones((4, 16))
    ratio[1:3, 5], ratio[2, 9] = 6.0, 8.5
    variables = {"ratio": (("layer", "channel"), ratio), "systematic": (("channel",), np.arange(16) == 5)}
    (one,) = found("outlier-channels", result(variables))
    assert one.where == "layers 1-2, channels 5, 9"
    assert one.value == 8.5
    assert one.what.startswith("2 channels of 16 stand out, channel 9 most; 1 of them by")
    assert not found("outlier-channels", result({**variables, "ratio": (("layer", "channel"), np.minimum(ratio, 5.9))}))


def test_norm_growth_counts_both_ways():
    grow = lambda mean: found("norm-growth", result(per_layer(mean=mean) | {"rate": ((), 2.0)}))  # noqa: E731
    assert grow([1.0, 2, 5, 10])[0].value == 10
    assert "shrinks" in grow([10.0, 2, 1, 0.9])[0].what
    assert not grow([1.0, 20, 5, 9])
    assert not grow([0.0, 2, 5, 10])


def test_redundant_blocks_are_those_that_keep_the_direction():
    made = result(per_layer(step_cosine=[0.95, 0.995, 0.999, np.nan]))
    (one,) = found("redundant-blocks", made)
    assert one.where == "layers 2-3"
    assert one.unit == "cosine of input and output of layer 3"
    assert not found("redundant-blocks", result(per_layer(step_cosine=[0.95, 0.99, 0.5, np.nan])))


def test_lens_settles_where_agreement_stays_high():
    (one,) = found("lens-settles", result(per_layer(agreement=[0.95, 0.2, 0.92, 1.0])))
    assert "after layer 2" in one.what
    assert not found("lens-settles", result(per_layer(agreement=[0.95, 0.99, 0.8, 1.0])))
    (early,) = found("lens-settles", result(per_layer(agreement=[0.95, 0.99, 0.98, 1.0])))
    assert "after layer 0: the 3 blocks" in early.what


def test_prediction_forms_at_the_block_that_reaches_half():
    (one,) = found("prediction-forms", result(per_layer(agreement=[0.6, 0.1, 0.55, 1.0])))
    assert one.where == "layer 2"
    assert "10 % one block before" in one.what


def ranks(stable, components, count=1000, width=32):
    return result(per_layer(stable_rank=stable, components_90=components, count=[count] * 4, width=[width] * 4))


def test_one_direction_means_more_than_half_of_the_variance():
    (one,) = found("one-direction", ranks([5.0, 1.6, 1.25, 2.0], [9] * 4))
    assert one.what == "one direction holds 80 % of the variance"
    assert one.where == "layers 1-2"
    assert not found("one-direction", ranks([1.6] * 4, [9] * 4, count=20))


def test_few_dimensions_are_judged_with_enough_positions():
    (one,) = found("few-dimensions", ranks([5.0] * 4, [10, 3, 2, 10]))
    assert (one.where, one.value) == ("layers 1-2", 100 * 2 / 32)
    assert not found("few-dimensions", ranks([5.0] * 4, [10, 3, 2, 10], count=127))


def heads(**values):
    variables = {name: (("layer", "head"), np.zeros((4, 3))) for name in ("sink", "relative_entropy", "previous")}
    variables |= {name: (("layer", "head"), np.array(v)) for name, v in values.items()}
    variables |= {"sink_token": (("sink_rank",), ["<s>"]), "sink_position": (("sink_rank",), [0])}
    return result(variables)


@pytest.mark.parametrize(
    ("rule", "variable", "limit"),
    [
        ("attention-sinks", "sink", 0.3),
        ("even-heads", "relative_entropy", 0.95),
        ("previous-token-heads", "previous", 0.5),
    ],
)
def test_heads_count_from_the_limit_on(rule, variable, limit):
    values = np.full((4, 3), limit - 0.01)
    assert not found(rule, heads(**{variable: values}))
    values[1, 2], values[3, 0] = limit, limit + 0.01
    (one,) = found(rule, heads(**{variable: values}))
    assert one.where == "heads (layer.head) 3.0, 1.2"
    assert "2 heads of 12" in one.what


def units(frequency, peak=None):
    peak = np.ones_like(frequency) if peak is None else peak
    return result({"frequency": (("layer", "unit"), frequency), "peak": (("layer", "unit"), peak)})


def test_dead_units_are_counted_over_layers_of_different_width():
    frequency = np.full((4, 50), 0.5)
    frequency[3, 40:] = np.nan
    frequency[1, :2], frequency[2, 7] = 0.0, 0.0005
    (one,) = found("dead-units", units(frequency))
    assert one.what == "3 units of 190 are dead on 5,000 tokens (2 never fire)"
    assert one.where == "layers 1-2, most in layer 1"
    assert one.severity is None
    frequency[1, :2] = 0.5
    assert found("dead-units", units(frequency))[0].severity == "note"
    frequency[2, 7] = 0.001
    assert not found("dead-units", units(frequency))


def test_quiet_units_are_measured_against_their_own_layer():
    peak = np.ones((4, 10))
    peak[0] *= 100
    peak[1, 3] = 0.009
    (one,) = found("quiet-units", units(np.ones((4, 10)), peak))
    assert one.where == "layer 1"
    assert not found("quiet-units", units(np.where(peak < 0.01, 0.0, 1.0), peak))


def test_always_on_units():
    share = np.full((4, 10), 0.9)
    share[2, :3] = 1.0
    (one,) = found("always-on-units", result({"share": (("layer", "unit"), share)}))
    assert (one.where, one.value) == ("layer 2", 7.5)


def test_sparsity_names_its_price_on_held_out_text():
    variables = per_layer(sparsity=[0.2, 0.4, 0.6, 0.4]) | {
        "total_ratio": ((), 0.6),
        "ppl_dense_held_out": ((), 10.0),
        "ppl_sparse_held_out": ((), 10.2),
    }
    (one,) = found("sparse-at-1-percent", result(variables))
    assert one.value == pytest.approx(40)
    assert "+2.0 % on texts" in one.what
    assert not found("sparse-at-1-percent", result(variables | {"total_ratio": ((), 0.71)}))


def rounding(four, together, agreement):
    names = ["blocks.0", "blocks.1", "blocks.2", "lm_head"]
    variables = {
        "sqnr": (("bits", "layer"), [[50.0] * 4, four]),
        "sqnr_all": (("bits",), [45.0, together]),
        "agreement_all": (("bits",), agreement),
    }
    return result(variables, {"bits": [8, 4], "layer": names})


def test_rounding_is_judged_by_predictions_and_by_bits():
    made = rounding([30.0, 23.9, 30.0, 30.0], 20.0, [0.995, 0.85])
    (weak,) = found("weak-layers", made)
    assert weak.where == "layer 1"
    assert weak.value == pytest.approx(6.1)
    (broken,) = found("int4-breaks", made)
    assert "15.0 % of the top predictions" in broken.what
    assert "layer 1 does most harm" in broken.where
    assert found("int8-is-safe", made)
    fine = rounding([30.0, 24.1, 30.0, 30.0], 20.0, [0.98, 0.95])
    assert not found("weak-layers", fine)
    assert not found("int4-breaks", fine)
    assert not found("int8-is-safe", fine)


def test_one_class_needs_enough_inputs():
    shares = result({"predicted": (("class",), [0.02, 0.98])}, {"class": ["cat", "dog"]})
    assert found("one-class", shares)[0].what.startswith("class dog")
    rule = next(r for r in RULES if r.name == "one-class")
    assert not list(rule.find(shares, rule.limits, Evidence({}, 0, False, 10)))
    even = result({"predicted": (("class",), [0.3, 0.7])}, {"class": [0, 1]})
    assert not found("one-class", even)


def test_not_finite_names_the_first_site():
    coords = {"site": ["embed", "blocks.0.attn.z", "logits"], "weight": np.array([], dtype=str)}
    variables = {
        "nan": (("site",), [0, 2, 9]),
        "inf": (("site",), [0, 0, 0]),
        "count": (("site",), [8, 8, 9]),
        "weight_nan": (("weight",), np.array([], dtype=int)),
        "weight_inf": (("weight",), np.array([], dtype=int)),
    }
    (one,) = found("not-finite", result(variables, coords))
    assert (one.where, one.value) == ("blocks.0.attn.z", 25)
    assert not found("broken-weights", result(variables, coords))


def test_first_position_is_compared_with_the_median():
    (one,) = found("first-position", result(per_layer(first=[1.0, 9, 30, 2], median=[1.0, 2, 10, 2])))
    assert (one.where, one.value) == ("layers 1-2", 4.5)
