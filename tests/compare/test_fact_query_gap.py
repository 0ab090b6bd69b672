"""The gap between facts and queries: its parts by hand, its controls, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llamas import llama
from scipy import stats

from actinium import compare
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model
from architectures import shared

NAMES = ("Ann", "Bob", "Eva", "Adam", "Carol", "Dean", "Diana", "Emily")
FACTS = [f"The job of {name} is" for name in NAMES]
QUERIES = [f"<user> What is the job of {name}?<assistant>" for name in NAMES]
OTHERS = ["23 + 45 =", "I felt happy", "The film was wonderful"]


@pytest.fixture(scope="module")
def changed(lm):
    """`world:lm` with a weaker MLP in its third block."""
    import copy

    module = copy.deepcopy(lm.module)
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight *= 0.2
    return Model(module, lm.tokenizer, name="changed")


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_model_has_no_gap_to_itself(lm, pool):
    got = compare.fact_query_gap(lm, lm, FACTS, QUERIES, pool=pool, unrelated=OTHERS)
    for name in ("facts", "queries", "unrelated", "facts_centred", "queries_centred"):
        values = got[name].values
        np.testing.assert_allclose(values[np.isfinite(values)], 1, atol=1e-6)
    for kind in ("", "_centred"):
        assert float(got[f"area{kind}"]) == float(got[f"area_low{kind}"]) == float(got[f"area_high{kind}"]) == 0
        assert np.nanmin(got[f"p_value{kind}"]) == 1


def test_the_gap_is_the_difference_of_the_layerwise_similarities(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES)
    each = [compare.layerwise_similarity(lm, changed, texts) for texts in (FACTS, QUERIES)]
    for name, one in zip(("facts", "queries"), each, strict=True):
        np.testing.assert_allclose(got[f"{name}_each"], one["similarity"])
        np.testing.assert_allclose(got[name], one["mean"])
    np.testing.assert_allclose(got["gap"], each[0]["mean"] - each[1]["mean"], atol=1e-12)
    assert float(got["area"]) == pytest.approx(float(got["gap"].mean()))
    assert float(abs(got["gap"][:3]).max()) < 1e-6 < float(abs(got["gap"][3:]).min())


def test_centring_takes_the_mean_over_both_sets(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES)
    both = compare.layerwise_similarity(lm, changed, FACTS + QUERIES, center=True)["similarity"].values
    np.testing.assert_allclose(got["facts_each_centred"], both[:, :8])
    np.testing.assert_allclose(got["queries_each_centred"], both[:, 8:])


def test_intervals_and_tests_are_those_of_paired_items(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES, n=4000)
    pairs = got["facts_each"].values - got["queries_each"].values
    for layer in (4, 6):
        ends = stats.bootstrap(
            (pairs[layer],), np.mean, n_resamples=4000, method="percentile", rng=0
        ).confidence_interval
        near = 0.05 * (ends.high - ends.low)
        assert float(got["gap_low"][layer]) == pytest.approx(ends.low, abs=near)
        assert float(got["gap_high"][layer]) == pytest.approx(ends.high, abs=near)
        assert float(got["p_value"][layer]) == pytest.approx(stats.wilcoxon(pairs[layer]).pvalue)
    tested = got["p_value"].values
    np.testing.assert_allclose(got["q_value"], stats.false_discovery_control(tested))
    signs = compare.fact_query_gap(lm, changed, FACTS, QUERIES, test="sign")
    above = int((pairs[6] > 0).sum())
    assert float(signs["p_value"][6]) == pytest.approx(stats.binomtest(above, 8).pvalue)


def test_a_suffix_makes_all_texts_end_in_one_token(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES, suffix=" The", unrelated=OTHERS)
    np.testing.assert_allclose(got["facts"][0], 1)
    np.testing.assert_allclose(got["queries"][0], 1)
    assert got["facts_centred"][0].isnull() and got["gap_centred"][0].isnull() and got["q_value_centred"][0].isnull()
    assert np.isfinite(got["area_centred"])
    by_hand = compare.layerwise_similarity(lm, changed, [f"{text} The" for text in FACTS])
    np.testing.assert_allclose(got["facts"], by_hand["mean"])


def test_the_mean_leaves_the_suffix_out(lm, changed):
    plain, ended = (
        compare.fact_query_gap(lm, changed, FACTS, QUERIES, pool="mean", suffix=suffix) for suffix in (None, " The")
    )
    # What follows cannot change what came before in a causal model.
    np.testing.assert_allclose(plain["gap"], ended["gap"], atol=1e-6)


def test_cka_stands_beside_the_cosine(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES)
    one = compare.layerwise_similarity(lm, changed, QUERIES, measure="cka")
    np.testing.assert_allclose(got["cka_queries"], one["similarity"])


def test_procrustes_uses_one_map_for_both_sets(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES, measure="procrustes")
    both = compare.layerwise_similarity(lm, changed, FACTS + QUERIES, measure="procrustes")["similarity"].values
    np.testing.assert_allclose(got["queries_each"], both[:, 8:])


def test_pairs_of_one_length_are_found(lm):
    facts = ["Ann lives in", "The job of Bob is", "The river of the city of Eva is"]
    queries = ["Ann keeps a", "The job of the dog is", "Eva"]
    assert compare.same_length(lm, facts, queries) == [0]
    assert compare.same_length(lm, facts, queries, tolerance=1) == [0, 1]
    with pytest.raises(InputError, match="nearest differ by 1"):
        compare.same_length(lm, facts[1:2], queries[1:2])
    with pytest.raises(InputError, match="not paired"):
        compare.same_length(lm, facts, queries[:1])


def test_the_gap_is_measured_in_another_architecture():
    model, texts = shared("gpt2"), torch.randint(3, 90, (4, 5), generator=torch.Generator().manual_seed(0))

    class Words:
        """Token ids written as numbers."""

        pad_token_id, eos_token_id, bos_token_id = 0, 2, 1

        def __call__(self, given, **options):
            return {"input_ids": [[int(word) for word in text.split()] for text in given]}

        def get_vocab(self):
            return {str(i): i for i in range(99)}

    spoken = Model(model.module, Words())
    facts = [" ".join(map(str, row.tolist())) for row in texts]
    got = compare.fact_query_gap(spoken, spoken, facts, facts[::-1], suffix=" 7 8")
    assert got["gap"].shape == (4,) and float(abs(got["gap"]).max()) < 1e-6


def test_lists_that_are_not_paired_are_refused(lm):
    with pytest.raises(InputError, match="paired by place; got 8 texts and 2 texts"):
        compare.fact_query_gap(lm, lm, FACTS, QUERIES[:2])
    with pytest.raises(InputError, match="one text and 8 texts"):
        compare.fact_query_gap(lm, lm, FACTS[0], QUERIES)
    with pytest.raises(InputError, match="two pairs"):
        compare.fact_query_gap(lm, lm, FACTS[:1], QUERIES[:1])


def test_measures_tests_and_models_that_do_not_fit_are_refused(lm, small):
    with pytest.raises(InputError, match="no value for a pair"):
        compare.fact_query_gap(lm, lm, FACTS, QUERIES, measure="cka")
    with pytest.raises(UnknownNameError, match="wilcoxon"):
        compare.fact_query_gap(lm, lm, FACTS, QUERIES, test="wilcoxn")
    with pytest.raises(UnknownNameError, match="procrustes"):
        compare.fact_query_gap(lm, lm, FACTS, QUERIES, measure="procrust")
    with pytest.raises(InputError, match="equal depth"):
        compare.fact_query_gap(small, Model(llama(layers=3)), FACTS, QUERIES)
    with pytest.raises(InputError, match="equal widths"):
        compare.fact_query_gap(small, Model(llama(width=12)), FACTS, QUERIES)


def test_a_suffix_that_joins_the_last_word_is_refused(lm):
    with pytest.raises(InputError, match="does not end all texts in the same token"):
        compare.fact_query_gap(lm, lm, ["Ann", "Bob"], ["Eva", "Adam"], suffix="a")


def test_the_figure_shows_four_curves_and_the_provenance_the_seed(lm, changed):
    got = compare.fact_query_gap(lm, changed, FACTS, QUERIES, seed=3)
    assert len(got.plot().lines) == 4
    assert got.provenance["seed"] == 3 and got.paper == "fact-vs-query-similarity"


def test_the_reproduction_takes_no_other_model(lm):
    from actinium.papers import reproduce

    with pytest.raises(InputError, match="fact_query_gap"):
        reproduce(4, model=lm)
