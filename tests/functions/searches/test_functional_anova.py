"""Functional ANOVA gives the known shares of known functions, and random search goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.functions.searches import functional_anova
from actinium.functions.searches.functional_anova import fANOVA, interaction_importance, marginal_importance
from actinium.functions.searches.hyperparameter_space import ODYSSEY_SPACE, Choice, Interval, as_space
from actinium.functions.searches.random_trials import compare_best, random_search

SQUARE = {"a": (0.0, 1.0), "b": (0.0, 1.0)}
TERMS = ["a", "b", ("a", "b")]


def uniform(n, d=2, seed=0):
    return np.random.default_rng(seed).random((n, d))


@pytest.mark.parametrize(
    ("function", "shares", "near"),
    [
        (lambda x: 2 * x[:, 0] + x[:, 1], (0.80, 0.20, 0.0), 0.03),
        (lambda x: (x[:, 0] - 0.5) * (x[:, 1] - 0.5), (0.0, 0.0, 1.0), 0.06),
        (lambda x: x[:, 0], (1.0, 0.0, 0.0), 0.03),
    ],
)
def test_shares_of_known_functions_are_found(function, shares, near):
    x = uniform(2000)
    fitted = fANOVA(SQUARE).fit(x, function(x))
    found = [fitted.importance(term).individual for term in TERMS]
    assert found == pytest.approx(shares, abs=near)
    per_tree = np.sum([fitted.importance(term, clip=False).trees for term in TERMS], 0)
    np.testing.assert_allclose(per_tree, 1, atol=1e-9)
    assert fitted.importance(("b", "a")).total == pytest.approx(1)
    assert fitted.importance("a").total == fitted.importance("a").individual


def marginal_of(tree, places, inputs):
    """The tree at some places of some settings, averaged over a grid of its own cells in the others."""
    edges = [np.unique(np.r_[tree.low[:, j], tree.high[:, j]]) for j in range(tree.low.shape[1])]
    free = [j for j in range(len(edges)) if j not in places]
    total = 0.0
    for cell in itertools.product(*(range(len(edges[j]) - 1) for j in free)):
        point = dict(places) | {j: edges[j][k : k + 2].mean() for j, k in zip(free, cell, strict=True)}
        size = np.prod([np.diff(edges[j])[k] for j, k in zip(free, cell, strict=True)])
        total += size * inputs(np.array([[point[j] for j in range(len(edges))]]))[0]
    return total


def test_variances_are_those_of_algorithm_2_cell_by_cell():
    from sklearn.ensemble import RandomForestRegressor

    x = uniform(12, 3)
    y = np.sin(5 * x[:, 0]) * x[:, 1] + x[:, 2] ** 2
    fitted = fANOVA(dict.fromkeys("abc", (0.0, 1.0)), n_trees=3).fit(x, y)
    forest = RandomForestRegressor(3, max_features=2, max_depth=64, random_state=0).fit(x, y)
    for tree, theirs in zip(fitted.trees_, forest.estimators_, strict=True):
        for chosen in [(0,), (2,), (0, 1), (1, 2)]:
            edges = [np.unique(np.r_[tree.low[:, j], tree.high[:, j]]) for j in chosen]
            values, sizes = [], []
            for cell in itertools.product(*(range(len(e) - 1) for e in edges)):
                places = {j: e[k : k + 2].mean() for j, e, k in zip(chosen, edges, cell, strict=True)}
                values.append(marginal_of(tree, places, theirs.predict))
                sizes.append(np.prod([np.diff(e)[k] for e, k in zip(edges, cell, strict=True)]))
            mean = np.average(values, weights=sizes)
            variance = np.average((np.array(values) - mean) ** 2, weights=sizes)
            assert functional_anova._marginal_variance(tree, chosen) == pytest.approx(variance, abs=1e-9)
            assert functional_anova._variance_of_overlaps(tree, chosen) == pytest.approx(variance, abs=1e-9)


def test_all_terms_of_three_settings_sum_to_one():
    x = uniform(150, 3)
    fitted = fANOVA(dict.fromkeys("abc", (0.0, 1.0))).fit(x, x[:, 0] * x[:, 1] + x[:, 2])
    terms = [c for size in (1, 2, 3) for c in itertools.combinations("abc", size)]
    assert sum(fitted.importance(t, clip=False).individual for t in terms) == pytest.approx(1)
    alone, pairs = marginal_importance(fitted), interaction_importance(fitted)
    assert alone["importance"].values == pytest.approx(np.diag(pairs["importance"].values))
    assert float(pairs.data["importance"].sel(setting="b", other="a")) == fitted.importance(("a", "b")).individual
    assert pairs.plot() is not None and alone.plot() is not None


def test_a_marginal_is_the_mean_of_the_forest_over_the_other_setting():
    from sklearn.ensemble import RandomForestRegressor

    x = uniform(300)
    y = np.sin(6 * x[:, 0]) + x[:, 1]
    fitted = fANOVA(SQUARE).fit(x, y)
    forest = RandomForestRegressor(16, max_features=1, max_depth=64, random_state=0).fit(x, y)
    grid = np.array([0.0, 0.1, 0.35, 0.8, 1.0])
    other = (np.arange(4000) + 0.5) / 4000
    points = np.column_stack([np.repeat(grid, 4000), np.tile(other, 5)])
    trees = np.stack([t.predict(points).reshape(5, -1).mean(1) for t in forest.estimators_])
    found = fitted.marginal("a", grid)
    np.testing.assert_allclose(found["mean"], trees.mean(0), atol=2e-3)
    np.testing.assert_allclose(found["std"], trees.std(0), atol=2e-3)
    both = fitted.marginal(("b", "a"), [other[::400], grid])  # in the order that was asked for
    at = np.column_stack([np.repeat(grid, 10), np.tile(other[::400], 5)])
    np.testing.assert_allclose(both["mean"].values, forest.predict(at).reshape(5, 10), atol=1e-9)


def test_logarithms_are_what_counts_on_a_log_scale():
    u = uniform(800)
    lr = 10 ** (-6 + 4 * u[:, 0])
    y = np.abs(np.log10(lr) + 4)
    logs = fANOVA({"lr": Interval(1e-6, 1e-2, "log"), "n": (0.0, 1.0)}).fit(np.column_stack([lr, u[:, 1]]), y)
    places = fANOVA(SQUARE).fit(u, y)
    assert logs.importance("lr").individual == pytest.approx(places.importance("a").individual, abs=1e-4)
    assert logs.marginal("lr", [1e-4])["mean"].item() == pytest.approx(places.marginal("a", [0.5])["mean"].item())


def test_categories_have_equal_weights():
    # Values 0, 0 and 3 of three categories that are drawn unevenly: variance 2; b adds 1/12 in b: 0.12 of 2.12.
    rng = np.random.default_rng(1)
    kind = rng.choice(["relu", "gelu", "tanh"], 600, p=[0.7, 0.2, 0.1])
    b = rng.random(600)
    y = np.where(kind == "tanh", 3.0, 0.0) + math.sqrt(12 * 0.12) * b
    runs = [{"kind": k, "b": float(v)} for k, v in zip(kind, b, strict=True)]
    space = {"kind": Choice(("relu", "gelu", "tanh")), "b": (0.0, 1.0)}
    fitted = fANOVA(space, max_features=1.0).fit(runs, y)
    assert fitted.importance("kind").individual == pytest.approx(2 / 2.12, abs=0.02)
    shown = fitted.marginal("kind")
    assert shown["kind"].values.tolist() == ["relu", "gelu", "tanh"]
    assert float(shown["mean"][2] - shown["mean"][0]) == pytest.approx(3, abs=0.15)


def test_a_split_between_categories_that_are_not_neighbours_cuts_no_category():
    # The node knows the first and the last of three: the threshold stands in the middle of the second.
    fitted = fANOVA({"kind": Choice("xyz")}, n_trees=4).fit([{"kind": k} for k in "xz" * 20], [0.0, 1.0] * 20)
    for tree in fitted.trees_:
        assert sorted((tree.high - tree.low)[:, 0]) == pytest.approx([1 / 3, 2 / 3])
    assert fitted.marginal("kind")["mean"].values == pytest.approx([0, 0, 1])


def test_whole_numbers_have_equal_shares():
    kind = Interval(1, 3, integer=True)
    drawn = kind.value((np.arange(3000) + 0.5) / 3000)
    assert np.unique(drawn, return_counts=True)[1].tolist() == [1000, 1000, 1000]
    np.testing.assert_allclose(kind.place([1, 2, 3]), [1 / 6, 1 / 2, 5 / 6])
    wide = Interval(1, 100, "log", integer=True)
    assert wide.value(wide.place(np.arange(1, 101))).tolist() == list(range(1, 101))
    # Outcomes 0, 3 and 0 of three numbers: mean 1 and variance 2; b adds 1/12.
    n, b = np.tile([1, 2, 3], 200), np.random.default_rng(0).random(600)
    fitted = fANOVA({"n": kind, "b": (0.0, 1.0)}, max_features=1.0).fit({"n": n, "b": b}, np.where(n == 2, 3.0, 0) + b)
    assert fitted.importance("n").individual == pytest.approx(2 / (2 + 1 / 12), abs=0.01)


def test_choices_of_numbers_and_text_stay_what_they_are():
    space = {"k": [1, "auto", 2.5], "a": (0.0, 1.0)}
    runs = random_search(space, lambda settings, seed: float(settings["k"] == "auto"), 40)
    assert set(runs["k"].values.tolist()) == {1, "auto", 2.5}
    fitted = fANOVA(space, max_features=1.0).fit({name: runs[name].values for name in space}, runs["outcome"].values)
    listed = {name: runs[name].values.tolist() for name in space}
    again = fANOVA(space, max_features=1.0).fit(listed, runs["outcome"].values)
    assert fitted.importance("k") == again.importance("k") and fitted.importance("k").individual > 0.8
    shown = fitted.marginal("k", ["auto", 1])
    assert float(shown["mean"][0]) > 0.8 > 0.2 > float(shown["mean"][1])
    for wrong in ([1], [1, 1], [[64], [64, 64]]):
        with pytest.raises(InputError, match="a choice is of"):
            Choice(tuple(wrong))


def test_a_data_frame_is_read_by_its_columns():
    import pandas as pd

    x = uniform(60)
    frame = pd.DataFrame(x[:, ::-1], columns=["b", "a"])
    assert fANOVA(SQUARE).fit(frame, x[:, 0]).importance("a") == fANOVA(SQUARE).fit(x, x[:, 0]).importance("a")
    with pytest.raises(UnknownNameError, match="setting"):
        fANOVA(SQUARE).fit(frame.rename(columns={"b": "c"}), x[:, 0])


def test_cutoffs_clip_what_is_beyond():
    x = uniform(500)
    y = np.where(x[:, 0] < 0.2, 100.0, x[:, 1])
    assert fANOVA(SQUARE).fit(x, y).importance("a").individual > 0.95
    clipped = fANOVA(SQUARE, cutoffs=(0.0, 1.0)).fit(x, y)
    assert clipped.importance("b").individual > 0.3
    assert float(clipped.marginal("a", [0.1])["mean"][0]) == pytest.approx(1, abs=0.02)


def test_a_saved_analysis_is_the_same(tmp_path):
    x = uniform(100)
    fitted = fANOVA({"a": (0.0, 1.0), "b": Interval(0.0, 1.0)}, n_trees=4, cutoffs=(0.1, 0.9)).fit(x, x.prod(1))
    again = fANOVA.load(fitted.save(tmp_path / "anova.safetensors"))
    assert again.importance(("a", "b")) == fitted.importance(("a", "b"))
    assert again.marginal("a") == fitted.marginal("a")
    same = fANOVA(SQUARE, n_trees=4, cutoffs=(0.1, 0.9)).fit({"b": x[:, 1], "a": x[:, 0]}, x.prod(1))
    assert same.importance("a") == fitted.importance("a")


@pytest.mark.parametrize(
    ("space", "x", "y", "words"),
    [
        (SQUARE, [[0.1, 1.5], [0.2, 0.3]], [0, 1], "b: 1.5 is not in 0 to 1"),
        (SQUARE, [[0.1, np.nan], [0.2, 0.3]], [0, 1], "NaN"),
        (SQUARE, [[0.1, 0.5], [0.2, 0.3]], [0, np.nan], "finite"),
        (SQUARE, [[0.1, 0.5], [0.2, 0.3]], [1, 1], "no tree has any variance"),
        (SQUARE, [[0.1, 0.5], [0.2, 0.3]], [0, 1, 2], "2 runs and 3 outcomes"),
        (SQUARE, [[0.1], [0.2]], [0, 1], "settings are"),
        (SQUARE, {"a": [0.1, 0.2]}, [0, 1], "missing"),
        ({}, [[], []], [0, 1], "one or more"),
        ({"a": ["x", "y"]}, [["x"], ["q"]], [0, 1], "'q' is none of"),
        ({"a": (1.0, 0.0)}, [[0.1], [0.2]], [0, 1], "low < high"),
        ({"a": (0.0, 1.0, "log")}, [[0.1], [0.2]], [0, 1], "no log scale"),
        ({"a": "wide"}, [[0.1], [0.2]], [0, 1], "expected an Interval"),
    ],
)
def test_bad_runs_and_spaces_are_refused(space, x, y, words):
    with pytest.raises(InputError, match=words):
        fANOVA(space).fit(x, y)


def test_unknown_names_and_settings_out_of_range_are_refused():
    x = uniform(50)
    fitted = fANOVA(SQUARE).fit(x, x.sum(1))
    with pytest.raises(UnknownNameError, match="setting"):
        fitted.importance("lr")
    with pytest.raises(UnknownNameError, match="setting"):
        fANOVA(SQUARE).fit({"a": [0, 1], "b": [0, 1], "c": [0, 1]}, [0, 1])
    for names in ([], ["a", "a"]):
        with pytest.raises(InputError, match="different settings"):
            fitted.importance(names)
    with pytest.raises(InputError, match="not fitted"):
        fANOVA(SQUARE).importance("a")
    for wrong in ({"n_trees": 0}, {"max_features": 2.0}, {"cutoffs": (1.0, 0.0)}):
        with pytest.raises(InputError, match="expected"):
            fANOVA(SQUARE, **wrong).fit(x, x.sum(1))


# The space and the search ---------------------------------------------------------------------------------------------


def test_places_and_values_are_inverse():
    u = np.linspace(0, 1, 11)
    for kind in ODYSSEY_SPACE.values():
        if not kind.integer:
            np.testing.assert_allclose(kind.place(kind.value(u)), u, atol=1e-9)
    momentum = ODYSSEY_SPACE["momentum"]
    np.testing.assert_allclose(1 - momentum.value([0, 0.5, 1]), [1, 0.1, 0.01])
    assert ODYSSEY_SPACE["hidden"].value([0, 1]).tolist() == [20, 200]
    assert as_space({"k": [True, False]})["k"].value([0.2, 0.7]).tolist() == [True, False]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    space = {"lr": Interval(1e-4, 1.0, "log"), "n": Interval(2, 9, integer=True), "act": ["relu", "gelu"]}
    seen = []

    def objective(settings, seed):
        seen.append(seed)
        assert isinstance(settings["n"], int) and isinstance(settings["lr"], float) and settings["act"][-2:] == "lu"
        return math.log(settings["lr"]) * settings["n"] if settings["act"] == "relu" else math.inf

    whole = random_search(space, objective, 12, seed=3)
    assert len(set(seen)) == 12 and np.isnan(whole["outcome"].values[whole["act"].values == "gelu"]).all()

    def stops(settings, seed):
        if len(seen) == 12 + 5:
            raise KeyboardInterrupt
        return objective(settings, seed)

    file = tmp_path / "trials.jsonl"
    with pytest.raises(KeyboardInterrupt):
        random_search(space, stops, 12, seed=3, path=file)
    with file.open("a") as out:
        out.write('{"trial": 5, "outc')  # killed while it wrote
    del seen[:]
    again = random_search(space, objective, 12, seed=3, path=file)
    assert again == whole and len(seen) == 7
    longer = random_search(space, objective, 15, seed=3, path=file)
    assert longer["outcome"].values[:12] == pytest.approx(whole["outcome"].values, nan_ok=True)
    assert len(file.read_text().splitlines()) == 16 and len(seen) == 10
    assert whole.plot() is not None and len(whole.table()) == 12


def test_a_search_is_drawn_from_the_ranges():
    found = random_search(ODYSSEY_SPACE, lambda settings, seed: 0.0, 400)
    for name, kind in ODYSSEY_SPACE.items():
        places = kind.place(found[name].values)
        assert abs(places.mean() - 0.5) < 0.06 and abs(places.std() - 12**-0.5) < 0.03


def test_files_of_other_searches_and_bad_settings_are_refused(tmp_path):
    file = tmp_path / "trials.jsonl"
    random_search(SQUARE, lambda settings, seed: 0.0, 2, path=file)
    with pytest.raises(LoadError, match=r"different .*seed"):
        random_search(SQUARE, lambda settings, seed: 0.0, 2, seed=1, path=file)
    with pytest.raises(LoadError, match=r"different .*space"):
        random_search({"a": (0.0, 2.0)}, lambda settings, seed: 0.0, 2, path=file)
    file.write_text(json.dumps({"search": 1}) + "\nno trial\n")
    with pytest.raises(LoadError, match="damaged"):
        random_search(SQUARE, lambda settings, seed: 0.0, 2, path=file)
    with pytest.raises(InputError, match="above 0"):
        random_search(SQUARE, lambda settings, seed: 0.0, 0)
    with pytest.raises(InputError, match="called outcome"):
        random_search({"outcome": (0.0, 1.0)}, lambda settings, seed: 0.0, 1)


def test_the_best_tenth_is_compared_by_welchs_test():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0, 1, 100), rng.normal(3, 2, 100)
    bad[:5] = np.nan
    found = compare_best({"V": good, "NFG": bad, "NP": good + 0.01}, "V")
    a, b = np.sort(good)[:10], np.sort(bad[5:])[:10]
    expected = ttest_ind(b, a, equal_var=False).pvalue
    row = found.data.sel(search="NFG")
    assert float(row["p_value"]) == pytest.approx(expected) and bool(row["significant"])
    assert float(row["mean"]) == pytest.approx(b.mean()) and int(row["count"]) == 10
    assert not bool(found.data.sel(search="NP")["significant"]) and np.isnan(found.data.sel(search="V")["p_value"])
    with pytest.raises(UnknownNameError, match="search"):
        compare_best({"V": good}, "W")
    with pytest.raises(InputError, match="finite"):
        compare_best({"V": np.full(20, np.nan)}, "V")
    with pytest.raises(InputError, match="share"):
        compare_best({"V": good}, "V", share=0)
