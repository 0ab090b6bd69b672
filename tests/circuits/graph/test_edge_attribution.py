"""Edge scores from gradients are those of the definition, in which every receiver has an input of its own."""

from __future__ import annotations

import pytest
import torch
from explicit_gpt2 import Explicit
from toys import random_task

import actinium as ac
import architectures
from actinium.circuits import edge_attribution
from actinium.circuits.graph import edge_attribution as code
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

TASK = random_task(rows=4, length=7, padding=(2, 1), changed=3)
STEPS = 3


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return Model(architectures.build("gpt2").double())


@pytest.fixture(scope="module")
def explicit(gpt2) -> Explicit:
    return Explicit(gpt2.module)


def difference(logits):
    rows = torch.arange(len(TASK))
    return logits[rows, TASK.answer_ids] - logits[rows, TASK.wrong_ids]


def outputs(explicit, ids):
    with torch.no_grad():
        return explicit.run(ids, TASK.mask)[1]


def reference(explicit: Explicit, method: str) -> torch.Tensor:
    """Scores by the loops of the papers, on the written-out model."""
    clean, corrupt = outputs(explicit, TASK.clean_ids), outputs(explicit, TASK.corrupt_ids)
    at = explicit.gradients
    if method == "eap":
        gradient = at(TASK.clean_ids, TASK.mask, difference)
    elif method == "clean-corrupted":
        ends = [at(ids, TASK.mask, difference) for ids in (TASK.clean_ids, TASK.corrupt_ids)]
        gradient = sum(ends) / 2
    elif method == "eap-ig-inputs":
        points = [corrupt[0] + k / STEPS * (clean[0] - corrupt[0]) for k in range(STEPS)]
        gradient = sum(at(TASK.clean_ids, TASK.mask, difference, start=p) for p in points) / STEPS
    else:
        heads = explicit.layout.n_heads
        groups = [{0}]
        for first in range(1, len(explicit.layout.senders), heads + 1):
            groups += [set(range(first, first + heads)), {first + heads}]
        total = 0.0
        for group in groups:
            for k in range(1, STEPS + 1):

                def mixed(s, x, group=group, a=k / STEPS):
                    return a * clean[s] + (1 - a) * corrupt[s] if s in group else x

                total = total + at(TASK.clean_ids, TASK.mask, difference, outputs=mixed)
        gradient = total / (STEPS * len(groups))
    return explicit.scores(corrupt - clean, gradient, TASK.mask)


@pytest.mark.parametrize("method", ["eap", "clean-corrupted", "eap-ig-inputs", "eap-ig-activations"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_scores_are_those_of_the_definition(gpt2, explicit, method, batch_size):
    found = edge_attribution(gpt2, TASK, method=method, steps=STEPS, batch_size=batch_size)
    expected = reference(explicit, method)
    assert (found.scores - expected).abs().max() < 1e-12
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neox", "opt", "bloom", "llama", "qwen3", "gemma", "phi3", "mixtral", "mpt"]
)
def test_eap_is_minus_the_slope_of_the_metric_along_the_mask_of_each_edge(name):
    model = architectures.shared(name)
    task = random_task(rows=3, length=6, changed=2, padding=() if name == "bloom" else (1,))
    found = edge_attribution(model, task).scores
    slope = edge_attribution(model, task, method="mask-gradient", steps=0).scores
    assert found.abs().max() > 0.05
    assert (found - slope).abs().max() < 1e-4 * found.abs().max()


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations_agree_with_the_mask_too(gpt2, ablation):
    options = {"ablation": ablation, "reference": random_task(rows=5, seed=4) if ablation == "mean" else None}
    found = edge_attribution(gpt2, TASK, **options).scores
    slope = edge_attribution(gpt2, TASK, method="mask-gradient", steps=0, **options).scores
    assert (found - slope).abs().max() < 1e-12
    assert torch.isfinite(edge_attribution(gpt2, TASK, method="eap-ig-activations", steps=2, **options).scores).all()


def linear() -> Model:
    """A GPT-2 whose logits are linear in its embeddings."""
    module = architectures.build("gpt2").double()
    with torch.no_grad():
        for block in module.transformer.h:
            # Uniform attention, no MLP, no norm.
            block.attn.c_attn.weight[:, : 2 * module.config.n_embd] = 0
            block.attn.c_attn.bias[: 2 * module.config.n_embd] = 0
            block.mlp.c_proj.weight.zero_()
            block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
        module.transformer.ln_f = torch.nn.Identity()
    return Model(module)


def test_on_a_linear_model_the_estimate_is_the_effect():
    model = linear()
    found = edge_attribution(model, TASK)
    for method in ("exact", "eap-ig-inputs", "clean-corrupted"):
        assert (found.scores - edge_attribution(model, TASK, method=method).scores).abs().max() < 1e-5
    assert found.scores.abs().max() > 0.1


def test_exact_scores_are_those_of_ablating_each_edge(gpt2, explicit):
    found = edge_attribution(gpt2, TASK, method="exact")
    clean, corrupt = outputs(explicit, TASK.clean_ids), outputs(explicit, TASK.corrupt_ids)
    with torch.no_grad():
        full = difference(explicit.run(TASK.clean_ids, TASK.mask)[0])
        for edge in (3, 57, 200, explicit.layout.n_edges - 2):
            s, r = explicit.layout.pairs[edge].tolist()

            def without(at, x, s=s, r=r):
                return x + corrupt[s] - clean[s] if at == r else x

            value = difference(explicit.run(TASK.clean_ids, TASK.mask, without)[0])
            assert float(found.scores[edge]) == pytest.approx(float((value - full).mean()), abs=1e-6)


def test_integrated_scores_converge(gpt2):
    coarse, fine = (edge_attribution(gpt2, TASK, method="eap-ig-inputs", steps=m).scores for m in (50, 100))
    assert (coarse - fine).norm() < 1e-2 * fine.norm()


def test_five_steps_rank_the_edges_of_the_shipped_model_as_more_do(lm, ioi):
    few, more, many = (edge_attribution(lm, ioi[:4], method="eap-ig-inputs", steps=m) for m in (5, 10, 40))
    assert len(set(few.top(30).edges) & set(many.top(30).edges)) >= 25
    assert (more.scores - many.scores).norm() < 1e-2 * many.scores.norm()


def test_few_rows_and_points_at_a_time_give_the_same(gpt2, monkeypatch):
    whole = edge_attribution(gpt2, TASK, method="eap-ig-inputs", steps=STEPS).scores
    monkeypatch.setattr(code, "IN_FLIGHT", 1)
    assert (edge_attribution(gpt2, TASK, method="eap-ig-inputs", steps=STEPS).scores - whole).abs().max() < 1e-12


def test_padding_counts_for_nothing(gpt2):
    longer = random_task(rows=2, length=6, changed=4, padding=(2, 2))
    shorter = longer[[0, 1]]
    assert shorter.clean_ids.shape[1] == 4
    a, b = (edge_attribution(gpt2, task, method="eap-ig-activations", steps=2).scores for task in (longer, shorter))
    assert (a - b).abs().max() < 1e-12


def test_module_and_hooks_are_as_before(gpt2):
    before = {name: p.clone() for name, p in gpt2.module.named_parameters()}
    for method in ("eap", "eap-ig-inputs"):
        edge_attribution(gpt2, TASK, method=method)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in gpt2.module.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in gpt2.module.modules())


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
@pytest.mark.parametrize("program", ["both", "fraction_so_far", "induction", "reverse"])
def test_hand_compiled_circuits_are_found(program, metric):
    known = ac.world.compiled.build(program)
    task = known.task(n=24)
    found = edge_attribution(known.model, task, method="eap-ig-inputs", metric=metric)
    assert float(ac.circuits.circuit_roc(found, known.edges, ignore=known.constants)["auc"]) == 1
    assert float(ac.circuits.circuit_roc(found, known.nodes, level="node")["auc"]) == 1


def test_one_of_two_redundant_ways_hides_from_the_clean_gradient_and_not_from_the_mask():
    known = ac.world.compiled.build("either")
    task = known.task(n=24)
    auc = {
        method: float(ac.circuits.circuit_roc(edge_attribution(known.model, task, method=method), known.edges)["auc"])
        for method in ("eap", "exact", "mask-gradient")
    }
    assert auc["eap"] < 1 and auc["exact"] < 1
    assert auc["mask-gradient"] == 1


def test_graph_carries_its_origin(gpt2):
    found = edge_attribution(gpt2, TASK, method="eap-ig-inputs", steps=2)
    assert found.n_kept == found.layout.n_edges
    assert found.provenance["settings"] == {
        "method": "eap-ig-inputs", "metric": "logit_diff", "ablation": "resample", "reference": None, "steps": 2,
    }  # fmt: skip
    own, other = (ac.circuits.edge_attribution(gpt2, TASK, method=m) for m in ("clean-corrupted", "mask-gradient"))
    for name in ("m_clean", "m_corrupt"):
        assert float(found[name]) == pytest.approx(float(own[name])) == pytest.approx(float(other[name]))


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"method": "eap-ig"}, UnknownNameError, "eap-ig-inputs"),
        ({"ablation": "noise"}, UnknownNameError, "zero|mean|resample"),
        ({"metric": "logitdiff"}, UnknownNameError, "logit_diff"),
        ({"metric": "accuracy"}, InputError, "no gradient"),
        ({"metric": "kl"}, InputError, "gradient 0"),
        ({"metric": "kl", "method": "mask-gradient", "steps": 0}, InputError, "gradient 0"),
        ({"method": "eap-ig-inputs", "steps": 0}, InputError, "at least 1"),
        ({"method": "mask-gradient", "steps": -1}, InputError, "at least 0"),
        ({"method": "eap-ig-inputs", "ablation": "zero"}, InputError, "corrupt run"),
        ({"method": "clean-corrupted", "ablation": "zero"}, InputError, "corrupt run"),
        ({"ablation": "mean"}, InputError, "reference"),
        ({"reference": TASK}, InputError, "reference"),
        ({"batch_size": 0}, InputError, "batch_size"),
    ],
)
def test_what_cannot_be_scored_is_refused(gpt2, options, error, why):
    with pytest.raises(error, match=why):
        edge_attribution(gpt2, TASK, **options)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("opt-350m", "not the sum"),
        ("gemma2", "not the sum of its heads"),
        ("bert", "masked-lm"),
        ("mamba", "no attention"),
        ("t5", "encoder-decoder"),
        ("starcoder2", "one norm"),
    ],
)
def test_models_whose_stream_is_no_sum_of_parts_are_refused(name, why):
    with pytest.raises(InputError, match=why):
        edge_attribution(architectures.shared(name), TASK)


def test_gradients_that_are_not_finite_are_refused_with_advice():
    module = architectures.build("gpt2")
    model = Model(module)

    def broken(logits, answer_ids, wrong_ids, reference_logits=None):
        return (logits[:, 0] - logits[:, 0].detach()).sqrt()

    with pytest.raises(InputError, match="float32"):
        edge_attribution(model, TASK, metric=broken)


def test_training_mode_and_edits_in_force_are_refused():
    module = architectures.build("gpt2")
    model = Model(module)
    with model.edit({"blocks.0.mlp.out": ac.edits.Zero()}), pytest.raises(InputError, match="edit"):
        edge_attribution(model, TASK)
    module.train()
    with pytest.raises(InputError, match="training"):
        edge_attribution(model, TASK)
