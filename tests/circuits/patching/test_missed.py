"""A bound on missed effects: Welch's interval as SciPy has it, and it holds where nodes do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from toys import Parallel, linear_task, random_task

import architectures
from actinium.circuits import attribution_patch, bound_missed, patch
from actinium.circuits.patching.missed import _drawn, upper_bounds
from actinium.core.errors import InputError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


def test_bound_is_where_welchs_test_rejects():
    random = np.random.default_rng(0)
    chosen = random.random((40, 5)) < 0.3
    effects = chosen @ np.array([0.5, -0.2, 0.0, 0.1, 0.0]) + 0.1 * random.standard_normal(40)
    bound, difference = upper_bounds(effects, chosen, 0.9)
    for node in range(5):
        inside, outside = effects[chosen[:, node]], effects[~chosen[:, node]]
        test = stats.ttest_ind(inside, outside, equal_var=False)
        assert difference[node] == pytest.approx(inside.mean() - outside.mean())
        interval = test.confidence_interval(0.8)
        assert bound[node] == pytest.approx(max(abs(interval.low), abs(interval.high)), rel=1e-9)


def test_every_node_is_in_as_many_sets_and_its_place_is_drawn():
    chosen = _drawn(7, 50, 0.2, 0)
    assert chosen.shape == (50, 7) and (chosen.sum(0) == 10).all()
    assert (_drawn(7, 4, 0.01, 0).sum(0) == 2).all() and (_drawn(7, 6, 0.99, 0).sum(0) == 4).all()
    assert (_drawn(7, 50, 0.2, 0) == chosen).all() and (_drawn(7, 50, 0.2, 1) != chosen).any()


def test_in_a_linear_model_the_bound_is_above_the_effects_and_falls_with_more_sets():
    model, task, parts = Model(Parallel(8)), linear_task(), [f"module:parts.{i}" for i in range(8)]
    exact = patch(model, task, parts, over="layer")["effect"].values
    estimate = attribution_patch(model, task, parts, over="layer")
    bounds = []
    for samples in (40, 400):
        found = bound_missed(
            model, task, estimate, parts, "layer", verified=3, samples=samples, share=0.3, confidence=0.99
        )
        first = np.isfinite(found["effect"].values)
        assert first.sum() == 3 and (np.isfinite(found["bound"].values) == ~first).all()
        np.testing.assert_allclose(found["effect"].values[first], exact[first], atol=1e-5)
        assert (found["bound"].values[~first] >= np.abs(exact[~first])).all()
        assert float(found["largest_bound"]) == found["bound"].values[~first].max()
        bounds.append(float(found["largest_bound"]))
    assert bounds[1] < bounds[0]


def test_an_estimate_that_misses_a_node_is_found_out():
    model, task = architectures.shared("llama"), random_task()
    exact = patch(model, task, "blocks.*.attn.z", "head")["effect"]
    blind = exact.copy(data=np.abs(exact.values).max() - np.abs(exact.values))
    options = {"verified": 2, "samples": 60, "share": 0.2}
    wrong = bound_missed(model, task, blind, "blocks.*.attn.z", "head", **options)
    right = bound_missed(model, task, exact, "blocks.*.attn.z", "head", **options)
    largest = float(np.abs(exact).max())
    assert float(wrong["largest_bound"]) > largest and float(right["largest_bound"]) < float(wrong["largest_bound"])
    assert float(np.nanmax(np.abs(right["effect"]))) == pytest.approx(largest, abs=1e-5)


def test_bound_on_the_shipped_model_draws(lm, ioi):
    estimate = attribution_patch(lm, ioi, "blocks.*.attn.z", "head")
    found = bound_missed(lm, ioi, estimate, "blocks.*.attn.z", "head", verified=5, samples=20)
    assert found.plot().get_title()
    again = bound_missed(lm, ioi, estimate, "blocks.*.attn.z", "head", verified=5, samples=20)
    np.testing.assert_array_equal(found["bound"], again["bound"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": "layer"}, "the estimate is over"),
        ({"verified": 11}, "from 0 to 10 of 12"),
        ({"verified": -1}, "from 0 to 10"),
        ({"share": 0.0}, "between 0 and 1"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"samples": 3}, "4 sets"),
    ],
)
def test_bounds_without_a_meaning_are_refused(options, message):
    model, task = architectures.shared("gpt2"), random_task()
    estimate = attribution_patch(model, task, "blocks.*.attn.z", "head")
    with pytest.raises(InputError, match=message):
        bound_missed(model, task, estimate, **{"at": "blocks.*.attn.z", "over": "head", "verified": 2, **options})


def test_a_node_in_every_set_has_no_bound():
    with pytest.raises(InputError, match="two sets or more"):
        upper_bounds([1.0, 2.0, 3.0, 4.0], [[True], [True], [True], [False]])
