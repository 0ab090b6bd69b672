"""Faithfulness, completeness and minimality of circuits are what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_task

import actinium as ac
import architectures
from actinium.circuits import (
    CircuitGraph,
    Wiring,
    circuit_curve,
    completeness,
    edge_attribution,
    evaluate_circuit,
    minimality,
)
from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, UnknownNameError

TASK = random_task(rows=4, length=7, padding=(2, 1), changed=3)


@pytest.fixture(scope="module")
def gpt2():
    return architectures.shared("gpt2")


@pytest.fixture(scope="module")
def graph(gpt2) -> CircuitGraph:
    return edge_attribution(gpt2, TASK)


@pytest.fixture(scope="module")
def wiring(gpt2) -> Wiring:
    return Wiring(gpt2, TASK)


def mean(wiring: Wiring, kept: torch.Tensor) -> float:
    return float(wiring.run(kept).mean())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_everything_is_faithful_and_nothing_is_not(name):
    model = architectures.shared(name)
    found = edge_attribution(model, TASK)
    assert float(evaluate_circuit(model, TASK, found)["faithfulness"]) == pytest.approx(1, abs=1e-4)
    assert float(evaluate_circuit(model, TASK, found.top(0))["faithfulness"]) == pytest.approx(0, abs=1e-4)


def test_faithfulness_is_a_ratio_of_means(gpt2, graph, wiring):
    circuit = graph.top(60)
    found = evaluate_circuit(gpt2, TASK, circuit)
    full, none, value = (mean(wiring, k) for k in (graph.kept, ~graph.kept, circuit.kept))
    assert float(found["faithfulness"]) == pytest.approx((value - none) / (full - none), abs=1e-4)
    assert float(found["gap"]) == pytest.approx(abs(full - value), abs=1e-4)
    assert found["circuit_by_row"].shape == (4,)
    assert (int(found["n_edges"]), float(found["edge_share"])) == (60, 60 / graph.layout.n_edges)


def test_other_ablations_reach_the_wiring(gpt2, graph):
    circuit = graph.top(60)
    values = {
        float(evaluate_circuit(gpt2, TASK, circuit, ablation=a, reference=r)["m_empty"])
        for a, r in (("resample", None), ("zero", None), ("mean", TASK))
    }
    assert len(values) == 3


def test_curve_has_the_points_and_the_areas_of_the_benchmark(gpt2, graph, wiring):
    found = circuit_curve(gpt2, TASK, graph)
    shares = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert found["fraction"].values.tolist() == shares
    f = []
    full, none = mean(wiring, graph.kept), mean(wiring, ~graph.kept)
    for share in shares:
        f.append((mean(wiring, graph.top(int(share * graph.layout.n_edges)).prune().kept) - none) / (full - none))
    assert np.allclose(found["faithfulness"].values, f, atol=1e-4)
    assert f[-1] == pytest.approx(1, abs=1e-5)
    assert float(found["cpr"]) == pytest.approx(np.trapezoid(f, shares), abs=1e-4)
    assert float(found["cmd"]) == pytest.approx(np.trapezoid(np.abs(1 - np.array(f)), shares), abs=1e-4)
    assert "CPR" in found.plot().get_title()


def test_helpful_ranks_edges_whose_loss_lowers_the_metric_first(gpt2, graph, wiring):
    n = int(0.2 * graph.layout.n_edges)
    kept = torch.zeros(graph.layout.n_edges, dtype=torch.bool)
    kept[graph.scores.argsort()[:n]] = True
    found = circuit_curve(gpt2, TASK, graph, fractions=[0.2, 1], helpful=True, prune=False)
    assert found["m_circuit"].values[0] == pytest.approx(mean(wiring, kept), abs=1e-6)
    divergence = edge_attribution(gpt2, TASK, metric="kl", method="eap-ig-inputs")
    harm = circuit_curve(gpt2, TASK, divergence, fractions=[0.2, 1], helpful=True, prune=False, metric="kl")
    kept[:] = False
    kept[divergence.scores.argsort(descending=True)[:n]] = True
    assert harm["m_circuit"].values[0] == pytest.approx(mean(Wiring(gpt2, TASK, metric="kl"), kept), abs=1e-6)


def test_greedy_curve_keeps_greedy_circuits(gpt2, graph):
    found = circuit_curve(gpt2, TASK, graph, fractions=[0.1, 0.3], select="greedy")
    expected = [graph.greedy(int(s * graph.layout.n_edges)).prune().n_kept for s in (0.1, 0.3)]
    assert found["n_edges"].values.tolist() == expected


@pytest.mark.parametrize("fractions", [[0.5], [0.5, 0.1], [0.0, 1.0], [0.5, 1.5], [0.2, 0.2]])
def test_fractions_that_do_not_rise_are_refused(gpt2, graph, fractions):
    with pytest.raises(InputError, match="rising"):
        circuit_curve(gpt2, TASK, graph, fractions=fractions)


def without(layout: Layout, parts) -> torch.Tensor:
    return torch.tensor([name.split("->")[0] not in parts for name in layout.edges])


def test_completeness_compares_circuit_and_model_without_the_same_parts(gpt2, graph, wiring):
    circuit = graph.greedy(60).prune()
    parts = [p for p in circuit.nodes if p not in ("input", "logits")]
    sets = {"first": parts[:2], "last": parts[-1:]}
    found = completeness(gpt2, TASK, circuit, sets=sets)
    assert found["set"].values.tolist() == ["nothing", "first", "last"]
    for name, names in {"nothing": [], **sets}.items():
        left = without(graph.layout, names)
        row = found.data.sel(set=name)
        assert float(row["m_circuit"]) == pytest.approx(mean(wiring, circuit.kept & left), abs=1e-5)
        assert float(row["m_model"]) == pytest.approx(mean(wiring, left), abs=1e-5)
        assert float(row["difference"]) == pytest.approx(abs(float(row["m_circuit"] - row["m_model"])))
        assert int(row["size"]) == len(names)
    assert float(found["worst"]) == float(found["difference"].max())
    assert len(found.plot().collections) == 1


def test_whole_model_is_complete(gpt2, graph):
    found = completeness(gpt2, TASK, graph, n=6)
    assert float(found["worst"]) < 1e-5
    assert len(found["set"]) == 7


def test_greedy_search_takes_the_part_that_moves_them_furthest_apart(gpt2, graph):
    circuit = graph.greedy(60).prune()
    found = completeness(gpt2, TASK, circuit, sets="greedy", n=3)
    assert found["difference"].values.tolist() == sorted(found["difference"].values.tolist())
    single = completeness(gpt2, TASK, circuit, sets=[[p] for p in circuit.nodes if p not in ("input", "logits")])
    assert float(found["difference"][1]) == pytest.approx(float(single["difference"][1:].max()), abs=1e-6)


def test_minimality_is_the_largest_change_over_the_sets(gpt2, graph, wiring):
    circuit = graph.greedy(40).prune()
    parts = [p for p in circuit.nodes if p not in ("input", "logits")]
    given = [parts[:1], parts[1:3]]
    found = minimality(gpt2, TASK, circuit, sets=given)
    full = abs(mean(wiring, graph.kept))
    for v in parts:
        changes = []
        for k in ([], *given):
            rest = [p for p in k if p != v]
            pair = [mean(wiring, circuit.kept & without(graph.layout, names)) for names in (rest, [*rest, v])]
            changes.append(abs(pair[0] - pair[1]) / full)
        row = found.data.sel(node=v)
        assert float(row["score"]) == pytest.approx(max(changes), abs=1e-5)
        assert float(row["alone"]) == pytest.approx(changes[0], abs=1e-5)


def test_hand_compiled_circuits_are_faithful_complete_and_minimal():
    known = ac.world.compiled.build("induction")
    task = known.task(n=16)
    circuit = edge_attribution(known.model, task).with_kept(known.edges)
    assert float(evaluate_circuit(known.model, task, circuit)["faithfulness"]) == pytest.approx(1, abs=1e-4)
    assert float(completeness(known.model, task, circuit, n=4)["worst"]) < 1e-3
    assert float(minimality(known.model, task, circuit, n=2)["score"].min()) > 0.5
    idle = circuit.with_kept({*known.edges, "input->a0.h0<v>", "a0.h0->logits"})
    scores = minimality(known.model, task, idle, n=2)["score"].to_series()
    assert scores["a0.h0"] < 0.01


def test_circuits_of_an_outside_model_with_shared_keys_are_found_and_judged(outside_data):
    model = ac.load(outside_data / "stories260K")
    task = ac.circuits.repeated_names(model, n=16)
    found = edge_attribution(model, task[:8], method="eap-ig-inputs")
    curve = circuit_curve(model, task[8:], found, fractions=[0.05, 0.2, 1.0])
    assert "a0.kv1<k>" in {e.split("->")[1] for e in found.edges}
    assert float(curve["faithfulness"][1]) > 0.5
    assert float(curve["faithfulness"][2]) == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_judged_is_refused(gpt2, graph):
    other = CircuitGraph(Layout(2, 4), torch.zeros(110), method="x")
    with pytest.raises(InputError, match="2 blocks"):
        evaluate_circuit(gpt2, TASK, other)
    with pytest.raises(InputError, match="CircuitGraph"):
        evaluate_circuit(gpt2, TASK, graph.kept)
    same = random_task(rows=4, length=7, changed=3)
    same.corrupt_ids.copy_(same.clean_ids)
    with pytest.raises(InputError, match="nothing to be faithful to"):
        evaluate_circuit(gpt2, same, graph)
    with pytest.raises(UnknownNameError, match="top"):
        circuit_curve(gpt2, TASK, graph, select="tops")
    with pytest.raises(InputError, match="no head"):
        completeness(gpt2, TASK, graph.with_kept(["input->logits"]))
    with pytest.raises(UnknownNameError, match="part of the circuit"):
        completeness(gpt2, TASK, graph, sets=[["a0.h9"]])
    with pytest.raises(UnknownNameError, match="random"):
        completeness(gpt2, TASK, graph, sets="randomly")
    with pytest.raises(UnknownNameError, match="random"):
        minimality(gpt2, TASK, graph, sets="greedy")
    for call in (completeness, minimality):
        with pytest.raises(InputError, match="n must"):
            call(gpt2, TASK, graph, n=0)
        with pytest.raises(InputError, match="probability"):
            call(gpt2, TASK, graph, probability=1.0)
        with pytest.raises(InputError, match="no set"):
            call(gpt2, TASK, graph, sets=[])
