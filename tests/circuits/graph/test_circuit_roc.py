"""Areas under curves of found against known edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from actinium.circuits import CircuitGraph, circuit_roc
from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, UnknownNameError

LAYOUT = Layout(3, 4)
TRUTH = torch.rand(LAYOUT.n_edges, generator=torch.Generator().manual_seed(1)) < 0.2
KNOWN = CircuitGraph(LAYOUT, torch.zeros(LAYOUT.n_edges), TRUTH, method="known")


def graph(scores) -> CircuitGraph:
    return CircuitGraph(LAYOUT, scores, method="found")


def test_perfect_scores_have_area_one_and_reversed_ones_zero():
    assert float(circuit_roc(graph(TRUTH.double()), KNOWN)["auc"]) == 1
    assert float(circuit_roc(graph(1.0 - TRUTH.double()), KNOWN.edges)["auc"]) == 0
    assert float(circuit_roc(graph(-TRUTH.double()), KNOWN)["auc"]) == 1


def test_random_scores_have_an_area_of_about_a_half():
    random = torch.Generator().manual_seed(0)
    areas = [float(circuit_roc(graph(torch.rand(LAYOUT.n_edges, generator=random)), KNOWN)["auc"]) for _ in range(20)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)


def test_areas_and_points_are_those_of_scikit_learn():
    scores = torch.randn(LAYOUT.n_edges, generator=torch.Generator().manual_seed(3)).round(decimals=1) + TRUTH
    found = circuit_roc(graph(scores), KNOWN)
    assert float(found["auc"]) == pytest.approx(roc_auc_score(TRUTH.numpy(), scores.abs().numpy()))
    fpr, tpr, _ = roc_curve(TRUTH.numpy(), scores.abs().numpy(), drop_intermediate=False)
    expected = sorted(set(zip(fpr.tolist(), tpr.tolist(), strict=True)))
    assert np.allclose(np.array([found["fpr"].values, found["tpr"].values]).T, expected)


def test_ignored_edges_count_on_neither_side():
    scores = TRUTH.double()
    wrong = [e for e, yes in zip(LAYOUT.edges, TRUTH.tolist(), strict=True) if not yes][:5]
    scores[[LAYOUT.index[e] for e in wrong]] = 2.0
    assert float(circuit_roc(graph(scores), KNOWN)["auc"]) < 1
    assert float(circuit_roc(graph(scores), KNOWN, ignore=wrong)["auc"]) == 1


def test_staircase_is_the_pessimistic_area_of_sets():
    true, false = TRUTH.nonzero().flatten().tolist(), (~TRUTH).nonzero().flatten().tolist()

    def circuit(hits: int, misses: int) -> CircuitGraph:
        kept = torch.zeros(LAYOUT.n_edges, dtype=torch.bool)
        kept[true[:hits]] = kept[false[:misses]] = True
        return KNOWN.with_kept(kept)

    p, n = len(true), len(false)
    # The third lies below the second although it keeps more: no step goes down to it.
    sets = [circuit(p // 2, n // 10), circuit(p - 2, n // 4), circuit(p // 4, n // 2)]
    found = circuit_roc(sets, KNOWN, staircase=True)
    expected = (n // 4 - n // 10) / n * (p // 2) / p + (n - n // 4) / n * (p - 2) / p
    assert float(found["auc"]) == pytest.approx(expected)
    assert float(circuit_roc(sets[:2], KNOWN)["auc"]) > float(circuit_roc(sets[:2], KNOWN, staircase=True)["auc"])
    assert (found["fpr"].values[[0, -1]].tolist(), found["tpr"].values[-1]) == ([0, 1], 1)
    assert "AUC" in found.plot().get_title()


def test_parts_are_compared_by_their_scores_without_input_and_logits():
    circuit = KNOWN.with_kept(["input->a0.h1<q>", "a0.h1->m1", "m1->logits", "input->m0"])
    scores = torch.where(circuit.kept, 2.0, 0.1)
    found = circuit_roc(graph(scores), {"a0.h1", "m1", "input", "logits"}, level="node")
    assert float(found["auc"]) == 1
    # m0 reads and is not read.
    assert float(circuit_roc(graph(scores), ["a0.h1", "m1", "m0"], level="node")["auc"]) < 1
    sets = circuit_roc([circuit.prune()], circuit.prune(), level="node")
    assert float(sets["auc"]) == 1


def test_curves_that_need_both_kinds_of_edges_are_refused():
    with pytest.raises(InputError, match="needs both"):
        circuit_roc(KNOWN, [])
    with pytest.raises(InputError, match="needs both"):
        circuit_roc(KNOWN, LAYOUT.edges)
    with pytest.raises(UnknownNameError, match="m0->m1"):
        circuit_roc(KNOWN, ["m0->n1"])
    with pytest.raises(UnknownNameError, match="edge"):
        circuit_roc(KNOWN, KNOWN, level="edges")
    other = CircuitGraph(Layout(2, 4), torch.zeros(110), method="x")
    with pytest.raises(InputError, match="one layout"):
        circuit_roc([KNOWN, other], KNOWN)
    with pytest.raises(InputError, match="2 blocks"):
        circuit_roc(KNOWN, other)
    with pytest.raises(InputError, match="one layout"):
        circuit_roc([], KNOWN)
