"""Path scores, distances in trees and the share of a gap that a prompt closes, against their definitions."""

from __future__ import annotations

import math

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actinium.compare import gap_recovered, hierarchy_path_score, lca_distance
from actinium.core.errors import InputError

# Parents of twelve nodes: node i hangs under one with a smaller number.
TREES = st.lists(st.integers(0, 10**6), min_size=11, max_size=11).map(
    lambda draws: {i + 1: draw % (i + 1) for i, draw in enumerate(draws)}
)


def line(node, parents):
    found = [node]
    while found[-1] in parents:
        found.append(parents[found[-1]])
    return found[::-1]


def test_the_true_path_gets_full_marks():
    got = hierarchy_path_score([["Ann", "Orla", "Tova"]], [["Ann", "Orla", "Tova"]])
    assert [float(got[name][0]) for name in ("exact", "prefix", "edge_f1", "lca_distance")] == [1, 1, 1, 0]
    assert int(got["depth"][0]) == 2


def test_scores_of_a_path_that_goes_astray():
    true = ["Ann", "Orla", "Tova", "Kelm"]
    predicted = [["Bob", "Orla", "Tova", "Kelm"], ["Ann", "Orla", "Brill", "Kelm"], ["Ann", "Orla"], []]
    got = hierarchy_path_score(predicted, [true] * 4)
    np.testing.assert_allclose(got["exact"], 0)
    np.testing.assert_allclose(got["prefix"], [0, 2 / 4, 2 / 4, 0])
    # Edges in common over the mean number of edges: 2 of 3 and 3, 1 of 3 and 3, 1 of 1 and 3, none.
    np.testing.assert_allclose(got["edge_f1"], [2 / 3, 1 / 3, 1 / 2, 0])
    np.testing.assert_allclose(got["lca_distance"], [8, 4, 2, 4])


def test_a_path_of_one_node_has_no_edges():
    got = hierarchy_path_score([["Ann"], ["Bob"]], [["Ann"], ["Ann"]])
    np.testing.assert_allclose(got["edge_f1"], [1, 0])


@given(parents=TREES, node=st.integers(0, 11), other=st.integers(0, 11))
def test_the_distance_is_the_shortest_way_through_the_tree(parents, node, other):
    graph = networkx.Graph(parents.items())
    expected = networkx.shortest_path_length(graph, node, other)
    assert lca_distance(node, other, parents) == expected == lca_distance(other, node, parents)
    got = hierarchy_path_score([line(node, parents)], [line(other, parents)])
    assert float(got["lca_distance"][0]) == expected
    assert float(got["exact"][0]) == (node == other)


def test_with_a_tree_the_end_counts_and_not_the_way_that_was_said():
    parents = {"Orla": "Tova", "Vesk": "Tova", "Mirt": "Brill", "Tova": "world", "Brill": "world"}
    said = [["world", "Brill", "Vesk"], ["world", "Tova", "Orla"], []]
    got = hierarchy_path_score(said, [["world", "Tova", "Orla"]] * 3, parents)
    np.testing.assert_array_equal(got["lca_distance"], [2, 0, np.nan])
    assert float(got["prefix"][0]) == pytest.approx(1 / 3)


def test_the_recovered_share_is_that_of_the_means():
    plain, structured, reference = [0, 0, 1, 0] * 10, [1, 0, 1, 1] * 10, [1, 1, 1, 1] * 10
    got = gap_recovered(plain, structured, reference)
    assert float(got["recovered"]) == pytest.approx((0.75 - 0.25) / (1 - 0.25))
    assert float(got["low"]) < 2 / 3 < float(got["high"])
    assert (float(got["plain"]), float(got["structured"]), float(got["reference"])) == (0.25, 0.75, 1)


def test_a_resample_without_a_gap_leaves_the_interval_open():
    got = gap_recovered([0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1])
    assert float(got["recovered"]) == 1 and math.isinf(float(got["high"]))


@pytest.mark.parametrize(
    ("predicted", "true", "said"),
    [
        ([["a"]], [["a"], ["b"]], "paired"),
        ([], [], "paired"),
        ([["a"]], [[]], "empty"),
        (["a b"], [["a", "b"]], "is a text"),
    ],
)
def test_paths_that_cannot_be_scored_are_refused(predicted, true, said):
    with pytest.raises(InputError, match=said):
        hierarchy_path_score(predicted, true)


def test_trees_that_are_none_are_refused():
    with pytest.raises(InputError, match="not in the tree"):
        lca_distance("x", "a", {"a": "b"})
    with pytest.raises(InputError, match="no common ancestor"):
        lca_distance("a", "c", {"a": "b", "c": "d"})
    with pytest.raises(InputError, match="in a circle"):
        lca_distance("a", "b", {"a": "b", "b": "a"})


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (([0, 1], [1, 1], [1]), "same two items"),
        (([0], [1], [1]), "same two items"),
        (([0, np.nan], [1, 1], [1, 1]), "NaN"),
        (([1, 1], [1, 1], [1, 1]), "no gap"),
        (([1, 1], [1, 1], [0, 1]), "no gap"),
    ],
)
def test_gaps_that_cannot_be_closed_are_refused(scores, said):
    with pytest.raises(InputError, match=said):
        gap_recovered(*scores)
