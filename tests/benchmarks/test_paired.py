"""The ratios are medians of paired runs that take turns, and only of runs that computed the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.paired import Disagreement, Goal, Ratio, Row, agree, interleave

from benchmarks import paired


def test_ratio_is_the_median_of_the_rounds_not_of_the_times():
    above, below = [2.0, 30.0, 4.0], [1.0, 10.0, 8.0]
    ratio = Ratio.of(above, below)
    assert ratio.median == 2.0
    assert (ratio.low, ratio.high) == tuple(np.quantile([0.5, 2.0, 3.0], [0.1, 0.9]))


def test_runs_take_turns_and_none_is_always_the_first():
    order = []
    times = interleave({name: lambda name=name: order.append(name) for name in "abc"}, rounds=6)
    rounds = [order[i : i + 3] for i in range(3, len(order), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {each[0] for each in rounds} == {"a", "b", "c"}
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 6, "b": 6, "c": 6}


def test_each_run_is_timed_alone(monkeypatch):
    clock = [0.0]

    def spend(seconds):
        clock[0] += seconds

    monkeypatch.setitem(paired.CLOCKS, "wall", lambda: clock[0])
    times = interleave({"short": lambda: spend(1.0), "long": lambda: spend(3.0)}, rounds=4)
    assert times == {"short": [1.0] * 4, "long": [3.0] * 4}


@pytest.mark.parametrize(("sign", "met"), [("<=", "yes"), ("<", "no"), (">=", "yes")])
def test_a_bound_itself_is_met_unless_the_goal_is_strict(sign, met):
    assert Row("a", "b", Ratio(1.5, 1.0, 2.0), Goal(sign, 1.5)).met == met


def test_a_goal_about_a_value_is_judged_by_it():
    assert Row("import", "torch", Ratio(0.01, 0.01, 0.02), Goal("<", 0.3, " s"), 0.5).met == "no"


def test_what_was_not_measured_neither_meets_a_goal_nor_misses_it():
    assert Row("a", "b", "not installed", Goal("<=", 1.0)).met == ""


def test_numbers_that_differ_are_refused():
    a = torch.tensor([1.0, 100.0])
    agree("same", a, a + 1e-3, 1e-4)
    with pytest.raises(Disagreement, match="numbers"):
        agree("other", a, a + 0.1, 1e-4)
    with pytest.raises(Disagreement, match="shapes"):
        agree("shape", a, a[:1], 1e-4)
    with pytest.raises(Disagreement, match="numbers"):
        agree("missing", a, torch.tensor([1.0, float("nan")]), 1e-4)
