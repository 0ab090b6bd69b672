"""MEMIT's least squares, how it is spread over layers, and constrained fine-tuning."""

from __future__ import annotations

import pytest
import torch

from actinium.circuits.knowledge.drafting import Draft, edit_groups
from actinium.circuits.knowledge.evaluation import evaluate_edits
from actinium.circuits.knowledge.facts import FactEdit
from actinium.circuits.knowledge.finetune import finetune
from actinium.circuits.knowledge.memit import least_squares, memit, write_layers
from actinium.circuits.knowledge.rome import rank_one
from actinium.circuits.knowledge.target_vector import TargetOptimisation
from actinium.circuits.knowledge.weights import down_projections
from actinium.core.errors import InputError, UnknownNameError

ANN = FactEdit("The city of {} is", "Ann", "Tarn")
EVA = FactEdit("The city of {} is", "Eva", "Orla")


@pytest.fixture
def parts():
    random = torch.Generator().manual_seed(0)
    r, k, old = (torch.randn(s, generator=random, dtype=torch.float64) for s in ((5, 3), (8, 3), (8, 40)))
    return r, k, old


def test_change_is_the_minimiser_of_the_objective(parts):
    r, k, old = parts
    preserve = 7.0
    delta = least_squares(r, k, old @ old.T / 40, preserve).requires_grad_()

    def objective(d):
        return preserve * (d @ old).pow(2).sum() / 40 + (d @ k - r).pow(2).sum()

    (gradient,) = torch.autograd.grad(objective(delta), delta)
    assert gradient.abs().max() < 1e-10
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = delta + 1e-3 * torch.randn(5, 8, generator=random, dtype=torch.float64)
        assert objective(other) > objective(delta)


def test_one_edit_with_little_to_preserve_is_that_of_rome(parts):
    r, k, old = parts
    c, key, w = old @ old.T / 40, k[:, 0], torch.zeros(5, 8, dtype=torch.float64)
    expected = rank_one(w, key, r[:, 0], torch.linalg.solve(c, key))
    assert torch.allclose(least_squares(r[:, :1], k[:, :1], c, 1e-9), expected, atol=1e-7)


def test_by_default_a_key_like_any_other_is_written_by_half(lm, covariance):
    # E[k^T C^-1 k] is the number of units, and a key with exactly that gets q / (F + q) = 1 / 2 of what is missing.
    c = covariance[1]
    key = torch.linalg.cholesky(c) @ torch.ones(len(c), dtype=torch.float64)
    written = least_squares(torch.ones(1, 1), key[:, None], c, float(len(c))) @ key
    assert written.item() == pytest.approx(0.5)


def test_little_to_preserve_brings_the_stream_to_the_wanted_vector(lm, covariance, same_bits):
    groups = edit_groups(lm, [ANN, EVA], (), False)
    site, texts = "blocks.2.resid_post", [ANN.text, EVA.text]
    wanted = lm.record(texts, site)[site][:, 4] + torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    with same_bits(lm), Draft(lm) as draft:
        write_layers(draft, down_projections(lm, [1, 2]), covariance, groups, "subject", wanted, "linear", 1e-6)
        now = lm.record(texts, site)[site][:, 4]
    assert torch.allclose(now, wanted, atol=1e-3)


def test_spreads_differ_in_the_first_layer_by_the_root_of_the_number_of_layers(lm, covariance):
    how = TargetOptimisation(steps=3)
    linear, root = (memit(lm, ANN, covariance, [0, 1, 2], spread=s, optimisation=how) for s in ("linear", "sqrt"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.allclose(root.deltas[name], linear.deltas[name] * 3**0.5, rtol=1e-4, atol=1e-7)


def test_edits_are_said_and_neighbours_stay(lm, covariance, cases, same_bits):
    with same_bits(lm):
        found = evaluate_edits(lm, cases, memit(lm, cases, covariance, [0, 1], spread="sqrt"))
    assert found["efficacy"].values.tolist() == [0.0, 1.0]
    assert found["specificity"].values[1] > 0.8
    assert found["multihop"].values[1] > found["multihop"].values[0] + 0.3


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "opt"])
def test_probability_of_the_new_object_rises_in_other_architectures(tiny, same_bits, name):
    model, covariance = tiny(name)
    edits = [FactEdit(f"The city of {who} is", who, where) for who, where in (("Ann", "Oslo"), ("Bob", "Lima"))]
    ids = [model.tokenizer.convert_tokens_to_ids(e.target_new) for e in edits]

    def chances():
        with torch.no_grad():
            return model.logits([e.text for e in edits])[:, -1].softmax(-1)[torch.arange(2), ids]

    with same_bits(model):
        before = chances()
        with memit(model, edits, covariance, [0, 1], preserve=1.0):
            after = chances()
        with finetune(model, edits, [0, 1], limit=0.05, lr=0.01):
            tuned = chances()
    assert bool((after > 2 * before).all())
    assert bool((tuned > 2 * before).all())


def test_fine_tuning_moves_no_entry_further_than_its_limit(lm):
    change = finetune(lm, ANN, [3], limit=1e-3, lr=1e-2, steps=5)
    (delta,) = change.deltas.values()
    assert delta.abs().max().item() == pytest.approx(1e-3, rel=1e-5)
    assert all(p.grad is None for p in lm.module.parameters())


def test_fine_tuning_ends_when_the_loss_is_low_enough(lm):
    known = FactEdit("The city of Ann is", "Ann", "Hasp")
    (delta,) = finetune(lm, known, [3], enough=5.0).deltas.values()
    assert not bool(delta.any())


def test_what_does_not_fit_is_refused(lm, covariance):
    with pytest.raises(UnknownNameError, match="linear"):
        memit(lm, ANN, covariance, [0], spread="liner")
    with pytest.raises(InputError, match="different layers"):
        memit(lm, ANN, covariance, [0, 0])
    with pytest.raises(InputError, match="different layers"):
        memit(lm, ANN, covariance, [])
    with pytest.raises(InputError, match="preserve"):
        memit(lm, ANN, covariance, [0], preserve=0.0)
    with pytest.raises(InputError, match="conflict"):
        memit(lm, [ANN, FactEdit("The city of {} is", "Ann", "Orla")], covariance, [0])
    with pytest.raises(InputError, match="missing"):
        memit(lm, ANN, {}, [0])
    with pytest.raises(InputError, match="above 0"):
        finetune(lm, ANN, [0], limit=0.0)
    with pytest.raises(InputError, match="2 tokens"):
        finetune(lm, FactEdit("The city of {} is", "Ann", "Tarn Orla"), [0])


def test_outside_model_says_the_new_object_more_often(outside_data):
    from actinium.circuits.knowledge.covariance import key_covariance
    from actinium.circuits.knowledge.rome import rome
    from actinium.core.loading import load

    model = load(outside_data / "stories260K")
    texts = [f"Once upon a time, {who} {what}." for who in ("Lily", "Tom", "a cat") for what in ("ran", "was sad")]
    covariance = key_covariance(model, texts, ridge=1e-3)
    edit = FactEdit("Lily's favorite toy is a", "Lily", "cat")
    how = TargetOptimisation(steps=10, clamp=4.0)
    for change in (
        memit(model, edit, covariance, [1, 2], preserve=10.0, average_tokens=True, optimisation=how),
        rome(model, edit, covariance, 2, average_tokens=True, optimisation=how),
    ):
        before = _chance(model, edit)
        with change:
            assert _chance(model, edit) > before + 0.5


def _chance(model, edit):
    from actinium.circuits.knowledge.encoding import PromptBatch, edit_prompt

    batch = PromptBatch(model, [edit_prompt(model, edit)])
    with torch.no_grad():
        return batch.answer_logprob(model.logits(batch.inputs)).item()
