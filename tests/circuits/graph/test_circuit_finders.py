"""Head importance and subnetwork probing."""

from __future__ import annotations

import math

import pytest
import torch
from toys import random_task

import actinium as ac
import architectures
from actinium.circuits import circuit_roc, evaluate_circuit, head_importance, subnetwork_probing
from actinium.circuits.graph.subnetwork_probing import hard_concrete, open_probability
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

TASK = random_task(rows=4, length=7, padding=(2, 1), changed=3)


def by_edits(model: Model) -> dict[str, torch.Tensor]:
    """(row,) importance of each part, from gradients with respect to what is added to its output."""
    sites = ["blocks.0.resid_pre", "blocks.*.attn.z", "blocks.*.mlp.out"]

    def tokens(ids):
        return Tokens(ids, TASK.mask, torch.arange(len(TASK)))

    with torch.no_grad():
        clean, corrupt = (model.record(tokens(ids), sites) for ids in (TASK.clean_ids, TASK.corrupt_ids))
    moves = {name: torch.zeros_like(clean[name]).requires_grad_() for name in clean.sites}
    with model.edit([(name, ac.edits.Add(move)) for name, move in moves.items()]):
        logits = model.logits(tokens(TASK.clean_ids))[:, -1]
    rows = torch.arange(len(TASK))
    total = (logits[rows, TASK.answer_ids] - logits[rows, TASK.wrong_ids]).sum()
    gradients = torch.autograd.grad(total, list(moves.values()))
    out = {}
    for name, gradient in zip(moves, gradients, strict=True):
        each = ((corrupt[name] - clean[name]) * gradient).sum(-1)
        layer = name.split(".")[1]
        if name.endswith("attn.z"):
            out |= {f"a{layer}.h{h}": each[:, :, h].sum(1).abs() for h in range(each.shape[2])}
        else:
            out["input" if name.endswith("resid_pre") else f"m{layer}"] = each.sum(1).abs()
    return out


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_importance_is_the_mean_size_of_gradient_times_difference(name):
    model = Model(architectures.build(name).double())
    found = head_importance(model, TASK, batch_size=3)
    importance = found["importance"].to_series()
    for part, values in by_edits(model).items():
        assert importance[part] == pytest.approx(float(values.mean()), rel=1e-6)


def test_an_edge_is_as_important_as_the_lesser_of_its_parts():
    found = head_importance(Model(architectures.build("gpt2").double()), TASK)
    importance = found["importance"].to_series()
    score = found.table(everything=True).set_index("edge")["score"]
    assert score["a0.h1->a1.h2<k>"] == min(importance["a0.h1"], importance["a1.h2"])
    assert score["input->m1"] == importance["m1"]
    assert score["input->logits"] == math.inf
    t = float(importance.median())
    kept = found.threshold(t)
    parts = {name for name, value in importance.items() if value >= t} | {"input", "logits"}
    assert all(e.split("->")[0] in parts and e.split("->")[1].split("<")[0] in parts for e in kept.edges)


def test_normalised_importance_has_length_one_in_each_block():
    found = head_importance(architectures.shared("llama"), TASK, normalise=True)["importance"].values
    blocks = torch.from_numpy(found[1:]).view(3, -1)
    assert torch.allclose(blocks.norm(dim=1), torch.ones(3, dtype=blocks.dtype), atol=1e-6)


@pytest.mark.parametrize(("metric", "why"), [("kl", "gradient 0"), ("rank", "no gradient")])
def test_metrics_without_a_gradient_at_the_clean_run_are_refused(metric, why):
    with pytest.raises(InputError, match=why):
        head_importance(architectures.shared("gpt2"), TASK, metric=metric)


def test_gates_are_those_of_the_hard_concrete_distribution():
    random = torch.Generator().manual_seed(0)
    for location in (-2.0, 0.0, 1.6):
        log_alpha = torch.full((200_000,), location, dtype=torch.float64)
        gates = hard_concrete(log_alpha, torch.rand(len(log_alpha), generator=random, dtype=torch.float64))
        assert float(gates.min()) == 0 and float(gates.max()) == 1
        share = float((gates > 0).double().mean())
        assert share == pytest.approx(float(open_probability(log_alpha[:1])), abs=0.005)


@pytest.mark.parametrize("program", ["either", "induction"])
def test_probing_keeps_the_hand_compiled_circuit_and_nothing_else(program):
    known = ac.world.compiled.build(program)
    task = known.task(n=24)
    found = subnetwork_probing(known.model, task, epochs=25)
    assert set(found.edges) == set(known.edges)
    assert float(circuit_roc(found, known.edges)["auc"]) == 1
    assert float(evaluate_circuit(known.model, task, found)["faithfulness"]) == pytest.approx(1, abs=1e-3)
    assert found["loss"].values[-1] < found["loss"].values[0]


def test_gates_of_parts_are_shared_by_the_edges_that_leave_them():
    known = ac.world.compiled.build("induction")
    found = subnetwork_probing(known.model, known.task(n=16), level="node", penalty=1.0, epochs=25)
    scores = found.table(everything=True).groupby("sender")["score"]
    assert (scores.nunique() == 1).all()
    assert set(found.nodes) == set(known.nodes)
    assert found.prune().edges == found.edges


def test_same_seed_gives_the_same_gates_and_a_penalty_fewer():
    model = architectures.shared("gpt2")
    options = {"epochs": 3, "batch_size": 2}
    first, again = (subnetwork_probing(model, TASK, seed=1, **options) for _ in range(2))
    assert first == again
    assert first != subnetwork_probing(model, TASK, seed=2, **options)
    free, dear = (subnetwork_probing(model, TASK, penalty=p, **options)["open_share"].values[-1] for p in (0.0, 100.0))
    assert dear < free


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"penalty": -1.0}, InputError),
        ({"lr": 0.0}, InputError),
        ({"epochs": 0}, InputError),
        ({"batch_size": 0}, InputError),
        ({"metric": "accuracy"}, InputError),
        ({"level": "head"}, UnknownNameError),
        ({"ablation": "mean"}, InputError),
    ],
)
def test_probing_refuses_settings_out_of_range(options, error):
    with pytest.raises(error):
        subnetwork_probing(architectures.shared("gpt2"), TASK, **options)
