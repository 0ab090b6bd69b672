"""Massive activations: the definition, the report, and what happens without them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from actinium import measure
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

CHANNEL, VALUE = 5, 5000.0


def noise(median: float, shape=(64, 96)) -> torch.Tensor:
    """Normal entries whose median magnitude is `median`."""
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return h * (median / h.abs().median())


def planted(median: float, value: float) -> torch.Tensor:
    h = noise(median)
    h[3, 17] = -value
    return h


def test_an_entry_over_both_limits_is_found_with_its_place():
    found, median = measure.massive_entries(planted(0.05, 250))
    assert found.tolist() == [[3, 17]]
    assert median == pytest.approx(0.05, rel=1e-3)


def test_the_absolute_and_the_relative_rule_each_exclude():
    assert len(measure.massive_entries(planted(0.01, 99))[0]) == 0
    assert len(measure.massive_entries(planted(0.2, 150))[0]) == 0
    assert len(measure.massive_entries(planted(0.2, 150), rel_thr=700)[0]) == 1


def test_scaling_changes_only_the_absolute_rule():
    h = planted(0.01, 50)  # 5000 times the median
    assert len(measure.massive_entries(h)[0]) == 0
    assert measure.massive_entries(h * 10)[0].tolist() == [[3, 17]]
    small = planted(1.0, 500)  # 500 times the median
    assert len(measure.massive_entries(small)[0]) == len(measure.massive_entries(small * 10)[0]) == 0


def test_half_precision_is_measured_in_float32():
    h = planted(0.05, 250)
    found, median = measure.massive_entries(h.bfloat16())
    assert found.tolist() == [[3, 17]]
    assert median == float(h.bfloat16().float().abs().median())


def test_limits_are_strict_for_entries_and_the_relative_one_is_not_for_layers():
    h = torch.full((10, 10), 0.125)
    h[0, 0] = 125.0
    assert len(measure.massive_entries(h)[0]) == 0
    assert measure.is_massive(125.0, 0.125)
    assert not measure.is_massive(100.0, 0.001)
    assert measure.is_massive(np.array([150.0, 150.0]), np.array([0.1, 0.2])).tolist() == [True, False]


def test_entries_refuse_batches_and_nothing():
    with pytest.raises(InputError, match="one sequence"):
        measure.massive_entries(torch.zeros(2, 3, 4))
    with pytest.raises(InputError):
        measure.massive_entries(torch.zeros(0, 4))


@pytest.fixture
def sunk(gpt2) -> Model:
    """A model whose first position holds one huge entry from block 1 on."""
    module = copy.deepcopy(gpt2.module)

    def plant(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[:, 0, CHANNEL] = VALUE
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    module.transformer.h[1].register_forward_hook(plant)
    return Model(module)


@pytest.fixture
def even(ragged) -> Tokens:
    """Texts without padding on the left, where position 0 is column 0 of the module."""
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = mask[2, 5:] = False
    return Tokens(ragged.ids, mask, torch.arange(3))


def test_a_planted_sink_is_reported_where_it_is(sunk, even):
    report = measure.find_massive_activations(sunk, even, batch_size=2)
    assert report.variants == ["as given"]
    assert report.exists()
    assert (report.first_layer(), report.channels()) == (1, [CHANNEL])
    first = report.entries[report.entries["layer"] == 1]
    assert first["position"].tolist() == [0, 0, 0]
    assert first["row"].tolist() == [0, 1, 2]
    assert first["value"].tolist() == pytest.approx([VALUE] * 3)
    assert first["token"].tolist() == [str(int(i)) for i in even.ids[:, 0]]
    tokens = report.tokens()
    assert tokens["start"].all() and tokens["mean"].tolist() == pytest.approx([VALUE] * len(tokens))
    row = report.result.data.sel(bos="as given", layer=1)
    assert (int(row["channel"]), int(row["position"]), float(row["value"])) == (CHANNEL, 0, VALUE)
    assert report.result["massive"].sel(bos="as given").values.tolist() == [False, True, True]


def test_median_runs_over_each_sequence_without_its_padding(gpt2, even):
    report = measure.find_massive_activations(gpt2, even)
    site = "blocks.0.resid_post"
    rec = gpt2.record(even, site)
    medians = [rec[site][i][even.mask[i]].abs().median().item() for i in range(3)]
    tops = [rec[site][i][even.mask[i]].abs().max().item() for i in range(3)]
    row = report.result.data.sel(bos="as given", layer=0)
    assert float(row["median"]) == pytest.approx(np.mean(medians))
    assert float(row["top"]) == pytest.approx(np.mean(tops))
    assert report.first_layer() is None and not report.exists() and report.channels() == []


def test_setting_an_entry_to_its_own_mean_changes_nothing_and_zeroing_does(sunk, even):
    report = measure.find_massive_activations(sunk, even)
    mean = measure.massive_intervention(sunk, report, even, mode="mean", calibration=even.ids)
    assert mean.ppl_after == mean.ppl_before
    assert (mean.n_set, mean.verdict) == (3, "benign")
    zero = measure.massive_intervention(sunk, report, even)
    assert zero.n_set == 3 and zero.ppl_after != zero.ppl_before
    strict = measure.massive_intervention(sunk, report, even, limit=zero.ppl_after / zero.ppl_before * 0.999)
    assert strict.verdict == "detrimental"


def test_zeroing_equals_a_hand_written_edit(sunk, even):
    from actinium.core import edits

    report = measure.find_massive_activations(sunk, even)
    got = measure.massive_intervention(sunk, report, even, batch_size=1)
    with sunk.edit({"blocks.1.resid_post": edits.Zero().at(positions=[0], units=[CHANNEL])}):
        losses = sunk.loss(even, reduction="token").detach()
    assert got.ppl_after == pytest.approx(float(losses[~losses.isnan()].double().mean().exp()), rel=1e-5)


def test_zeroing_no_entries_leaves_the_perplexity(gpt2, even):
    report = measure.find_massive_activations(gpt2, even)
    got = measure.massive_intervention(gpt2, report, even)
    assert (got.n_set, got.verdict) == (0, "absent")
    assert got.ppl_after == got.ppl_before
    losses = gpt2.loss(even, reduction="token").detach()
    assert got.ppl_before == pytest.approx(float(losses[~losses.isnan()].double().mean().exp()), rel=1e-6)


def test_both_variants_are_reported_where_there_is_a_bos_token(stories, tales):
    report = measure.find_massive_activations(stories, tales, abs_thr=2, rel_thr=10)
    assert report.variants == ["with BOS", "without BOS"]
    bos = stories.tokenizer.bos_token_id
    with_bos, without = (report.inputs[name].tokens for name in report.variants)
    assert (with_bos.ids[:, 0] == bos).all() and not (without.ids[:, 0] == bos).any()
    assert with_bos.mask.sum() == without.mask.sum() + len(tales)
    assert "<s>" in report.tokens()["token"].tolist()
    assert "<s>" not in report.tokens("without BOS")["token"].tolist()


def test_bad_requests_are_refused(sunk, even, cnn, images):
    report = measure.find_massive_activations(sunk, even)
    with pytest.raises(InputError, match="calibration"):
        measure.massive_intervention(sunk, report, even, mode="mean")
    with pytest.raises(InputError, match="zero"):
        measure.massive_intervention(sunk, report, even, mode="median")
    with pytest.raises(InputError, match="variant"):
        measure.massive_intervention(sunk, report, even, bos="with BOS")
    with pytest.raises(InputError, match="pos, d"):
        measure.find_massive_activations(cnn, images)


def test_a_vision_transformer_is_searched_too(vit, images):
    report = measure.find_massive_activations(vit, images, abs_thr=0, rel_thr=0)
    assert report.first_layer() == 0
    assert set(report.entries["row"]) == {0, 1, 2}


def test_an_encoder_decoder_is_searched_by_its_own_positions():
    import architectures

    report = measure.find_massive_activations(
        architectures.shared("t5"), architectures.inputs_for("t5"), abs_thr=0, rel_thr=0
    )
    assert report.sites[0] == "decoder.blocks.0.resid_post"
    assert report.entries["position"].max() == 4
