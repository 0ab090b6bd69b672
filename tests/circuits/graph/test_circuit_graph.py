"""A circuit chooses, prunes, shows and exchanges its edges."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import actinium as ac
from actinium.circuits.graph.circuit import CircuitGraph
from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, LoadError, UnknownNameError

LAYOUT = Layout(3, 4)
GROUPED = Layout(2, 4, 2)


def random_graph(layout: Layout = LAYOUT, seed: int = 0, **more) -> CircuitGraph:
    scores = torch.randn(layout.n_edges, generator=torch.Generator().manual_seed(seed))
    return CircuitGraph(layout, scores, method="random", **more)


@pytest.mark.parametrize("n", [0, 1, 17, LAYOUT.n_edges])
def test_top_keeps_the_largest_scores_before_pruning(n):
    graph = random_graph()
    kept = graph.top(n)
    assert kept.n_kept == n
    if 0 < n < LAYOUT.n_edges:
        assert graph.scores[kept.kept].abs().min() >= graph.scores[~kept.kept].abs().max()
        signed = graph.top(n, absolute=False)
        assert graph.scores[signed.kept].min() >= graph.scores[~signed.kept].max()


def test_equal_scores_are_chosen_in_the_order_of_computation():
    graph = CircuitGraph(LAYOUT, torch.ones(LAYOUT.n_edges), method="flat")
    assert graph.top(5).edges == LAYOUT.edges[:5]


def test_threshold_keeps_scores_that_reach_it():
    graph = random_graph()
    assert torch.equal(graph.threshold(1.0).kept, graph.scores.abs() >= 1.0)
    assert torch.equal(graph.threshold(1.0, absolute=False).kept, graph.scores >= 1.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.02, 0.4), grouped=st.booleans())
def test_pruning_leaves_what_lies_on_a_path_from_the_input_to_the_logits(seed, share, grouped):
    layout = GROUPED if grouped else LAYOUT
    random = torch.Generator().manual_seed(seed)
    kept = torch.rand(layout.n_edges, generator=random) < share
    graph = CircuitGraph(layout, torch.ones(layout.n_edges), kept, method="random")
    # Written out with networkx: inputs of parts are nodes, and a part can be reached through any of them.
    whole = nx.DiGraph()
    whole.add_nodes_from(["input out", "logits in"])
    names = [(f"{layout.senders[s].name} out", layout.receivers[r].name + " in") for s, r in layout.pairs.tolist()]
    whole.add_edges_from(name for name, yes in zip(names, kept.tolist(), strict=True) if yes)
    for receiver in layout.receivers:
        for sender in layout.senders:
            if sender.kind == "input" or sender.layer != receiver.layer:
                continue
            group = sender.head // (layout.n_heads // layout.kv_heads) if sender.head is not None else None
            head = sender.head if receiver.kind == "q" else group
            if (sender.kind == "head" and receiver.kind in "qkv" and head == receiver.head) or (
                sender.kind == receiver.kind == "mlp"
            ):
                whole.add_edge(receiver.name + " in", f"{sender.name} out")
    forward = nx.descendants(whole, "input out") | {"input out"}
    backward = nx.ancestors(whole, "logits in") | {"logits in"}
    expected = [yes and s in forward and r in backward for yes, (s, r) in zip(kept.tolist(), names, strict=True)]
    assert graph.prune().kept.tolist() == expected


def test_pruned_circuit_of_the_whole_graph_is_whole():
    assert random_graph().prune().n_kept == LAYOUT.n_edges


def test_greedy_takes_the_best_edge_into_what_is_in_already():
    graph = random_graph()
    found, inside = set(), {"logits"}
    score = dict(zip(LAYOUT.edges, graph.scores.abs().tolist(), strict=True))
    for n in range(1, 40):
        candidates = [e for e in LAYOUT.edges if e not in found and e.split("->")[1].split("<")[0] in inside]
        best = max(candidates, key=score.get)
        found.add(best)
        inside.add(best.split("->")[0])
        assert set(graph.greedy(n).edges) == found


def test_greedy_and_top_agree_on_everything():
    assert random_graph(GROUPED).greedy(GROUPED.n_edges).n_kept == GROUPED.n_edges


@pytest.mark.parametrize("n", [-1, LAYOUT.n_edges + 1])
@pytest.mark.parametrize("way", ["top", "greedy"])
def test_numbers_of_edges_that_are_not_there_are_refused(n, way):
    with pytest.raises(InputError, match="edges"):
        getattr(random_graph(), way)(n)


def test_nodes_are_the_parts_that_kept_edges_touch():
    graph = random_graph().with_kept(["input->a0.h1<q>", "m0->a1.h2<v>", "a1.h2->logits"])
    assert graph.nodes == ("input", "a0.h1", "m0", "a1.h2", "logits")
    shared = random_graph(GROUPED).with_kept(["input->a0.kv1<k>", "a0.h3->logits"])
    assert shared.nodes == ("input", "a0.h3", "logits")


def test_score_of_a_part_is_the_threshold_below_which_it_has_edges_in_and_out():
    graph = random_graph()
    found = graph.nodes_only().data.to_dataframe()
    for name in ("a1.h2", "m1"):
        t = found.loc[name, "score"]
        for factor, there in ((0.999, True), (1.001, False)):
            kept = graph.threshold(t * factor).edges
            into = any(e.split("->")[1].split("<")[0] == name for e in kept)
            assert (into and any(e.startswith(f"{name}->") for e in kept)) == there


def test_unknown_edges_scores_of_another_size_and_nan_are_refused():
    with pytest.raises(UnknownNameError, match="m0->m1"):
        random_graph().with_kept(["m0->m2", "m0->m7"])
    with pytest.raises(InputError, match="not \\(3,\\)"):
        CircuitGraph(LAYOUT, torch.zeros(3), method="x")
    scores = torch.zeros(LAYOUT.n_edges)
    scores[4] = torch.nan
    with pytest.raises(InputError, match=LAYOUT.edges[4].replace("<", "\\<")):
        CircuitGraph(LAYOUT, scores, method="x")


def test_scores_may_be_given_by_sender_and_receiver():
    graph = random_graph()
    full = LAYOUT.matrix(graph.scores)
    assert torch.equal(CircuitGraph(LAYOUT, full, method="x").scores, graph.scores)
    assert np.array_equal(np.nan_to_num(graph.matrix().values), full.numpy())


def test_saved_graph_comes_back_with_what_a_method_added(tmp_path):
    more = {"order": torch.arange(GROUPED.n_edges), "loss": xr.DataArray([3.0, 1.0], dims=("step",))}
    graph = random_graph(GROUPED, more=more, paper="acdc", provenance={"seed": 3}).greedy(20)
    graph.save(tmp_path / "graph.zarr")
    again = CircuitGraph.load(tmp_path / "graph.zarr")
    assert again == graph
    assert (again.layout, again.paper, again.provenance) == (GROUPED, "acdc", {"seed": 3})
    assert again.top(7).data["order"].equals(graph.data["order"])
    ac.Result(xr.Dataset({"x": ("a", [1.0])}), "other").save(tmp_path / "other.zarr")
    with pytest.raises(LoadError, match="not a graph"):
        CircuitGraph.load(tmp_path / "other.zarr")


def test_table_shows_kept_edges_strongest_first():
    rows = random_graph().top(9).table()
    assert len(rows) == 9
    assert rows["score"].abs().is_monotonic_decreasing
    assert len(random_graph().top(9).table(everything=True)) == LAYOUT.n_edges


def test_networkx_graphs_hold_the_kept_edges():
    graph = random_graph().greedy(30).prune()
    parts = graph.to_networkx()
    assert {d["name"] for *_, d in parts.edges(data=True)} == set(graph.edges)
    assert all(parts.edges[u, v, k]["name"].startswith(f"{u}->{v}") for u, v, k in parts.edges(keys=True))
    assert set(parts) == set(graph.nodes)
    inputs = graph.to_networkx("input")
    assert nx.is_directed_acyclic_graph(inputs)
    assert all(nx.has_path(inputs, "input", r) for e in graph.edges if (r := e.split("->")[1]) in inputs)
    nodes = graph.to_networkx("node")
    assert sum(d["score"] for *_, d in nodes.edges(data=True)) == pytest.approx(float(graph.scores[graph.kept].sum()))
    with pytest.raises(UnknownNameError, match="part"):
        graph.to_networkx("parts")


def test_shared_keys_lead_to_each_head_of_the_group():
    graph = random_graph(GROUPED).with_kept(["input->a0.kv1<k>", "a0.h2->logits", "a0.h3->m0", "m0->logits"])
    edges = set(graph.to_networkx().edges(keys=True))
    assert {("input", "a0.h2", "k"), ("input", "a0.h3", "k")} <= edges
    assert [e["target"] for e in graph.json()["edges"] if e["id"] == "input->a0.kv1<k>"] == ["a0.h2", "a0.h3"]


def test_page_data_are_plain_json_and_complete():
    graph = random_graph().with_kept(["input->a0.h1<q>", "a0.h1->logits"])
    infinite = CircuitGraph(LAYOUT, torch.full((LAYOUT.n_edges,), torch.inf), graph.kept, method="acdc")
    page = json.loads(json.dumps(infinite.json(), allow_nan=False))
    assert page["format"] == "actinium-circuit/1"
    assert page["layout"] == {"n_layers": 3, "n_heads": 4, "kv_heads": 4, "parallel": False}
    assert [n["id"] for n in page["nodes"] if n["kept"]] == ["input", "a0.h1", "logits"]
    assert {(e["source"], e["target"], e["input"], e["score"]) for e in page["edges"]} == {
        ("input", "a0.h1", "q", None),
        ("a0.h1", "logits", "logits", None),
    }
    assert len(graph.json(everything=True)["edges"]) == LAYOUT.n_edges
    assert all(0 <= n["x"] <= 1 and 0 <= n["y"] <= 1 for n in page["nodes"])


def test_benchmark_file_comes_back_and_has_the_keys_of_its_authors(tmp_path):
    graph = random_graph().greedy(25)
    path = graph.to_benchmark(tmp_path / "graph.json", d_model=32)
    written = json.loads(path.read_text())
    assert written["cfg"] == {"n_layers": 3, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert set(written["edges"]) == set(LAYOUT.edges)
    assert set(written["nodes"]) == {s.name for s in LAYOUT.senders} | {"logits"}
    again = CircuitGraph.from_benchmark(path)
    assert again.edges == graph.edges
    assert torch.allclose(again.scores, graph.scores, atol=1e-6)


def test_benchmark_file_names_every_head_of_shared_keys(tmp_path):
    graph = random_graph(GROUPED).with_kept(["input->a0.kv1<k>"])
    again = CircuitGraph.from_benchmark(graph.to_benchmark(tmp_path / "graph.json", d_model=32))
    assert again.layout == Layout(2, 4)
    assert again.edges == ("input->a0.h2<k>", "input->a0.h3<k>")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["edges"].pop("m0->m1"), "m0->m1"),
        (lambda d: d["edges"].update({"m0->m9": {"score": 0, "in_graph": True}}), "m0->m9"),
        (lambda d: d.pop("cfg"), "cfg"),
        (lambda d: d["cfg"].update(n_heads="many"), "no graph"),
    ],
)
def test_damaged_benchmark_files_are_refused(tmp_path, change, why):
    path = random_graph().to_benchmark(tmp_path / "graph.json", d_model=32)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(LoadError, match=why):
        CircuitGraph.from_benchmark(path)


def test_drawing_has_every_part_and_says_how_many_edges_it_shows(tmp_path):
    graph = random_graph().greedy(40).prune()
    ax = graph.plot()
    assert {t.get_text() for t in ax.texts} == set(graph.nodes)
    assert len(ax.patches) == graph.n_kept
    fewer = random_graph().plot(limit=12)
    assert len(fewer.patches) == 12
    assert "strongest 12" in fewer.get_title()
    text = graph.svg(tmp_path / "graph.svg").read_text()
    assert "<svg" in text
    assert len(graph.plot(variable="score").images) == 1


def test_drawing_nothing_and_writing_nowhere_are_refused(tmp_path):
    with pytest.raises(InputError, match="no edge"):
        random_graph().top(0).plot()
    with pytest.raises(InputError, match="cannot write"):
        random_graph().top(5).svg(tmp_path / "absent" / "graph.svg")
    with pytest.raises(InputError, match="cannot write"):
        random_graph().to_benchmark(tmp_path / "absent" / "graph.json", 32)
