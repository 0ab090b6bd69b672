"""ROME against its closed form, on several weight layouts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from actinium.circuits.knowledge.drafting import edit_groups, essence_prompts, mean_keys
from actinium.circuits.knowledge.facts import FactEdit
from actinium.circuits.knowledge.rome import rank_one, rome
from actinium.circuits.knowledge.target_vector import TargetOptimisation, target_vectors
from actinium.circuits.knowledge.weights import Down
from actinium.core.errors import InputError

ANN = FactEdit("The city of {} is", "Ann", "Tarn")


@pytest.fixture
def parts():
    random = torch.Generator().manual_seed(0)
    w, k, v = (torch.randn(s, generator=random, dtype=torch.float64) for s in ((6, 9), (9,), (6,)))
    keys = torch.randn(50, 9, generator=random, dtype=torch.float64)
    return w, k, v, keys.T @ keys / 50


def test_edited_weight_gives_the_value_for_the_key(parts):
    w, k, v, c = parts
    new = w + rank_one(w, k, v, torch.linalg.solve(c, k))
    assert torch.allclose(new @ k, v, atol=1e-12)


def test_keys_orthogonal_under_the_inverse_covariance_keep_their_values(parts):
    w, k, v, c = parts
    u = torch.linalg.solve(c, k)
    q = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = q - u * (q @ u) / (u @ u)
    new = w + rank_one(w, k, v, u)
    assert torch.allclose(new @ q, w @ q, atol=1e-12)
    assert (new @ k - w @ k).norm() > 1


def test_change_of_no_covariance_has_the_smallest_norm_of_all_that_meet_the_constraint(parts):
    w, k, v, _ = parts
    smallest = rank_one(w, k, v, k)
    expected = torch.outer(v - w @ k, torch.linalg.pinv(k[:, None])[0])
    assert torch.allclose(smallest, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gptj", "gpt_neox-sequential", "phi3"])
def test_constraint_holds_in_every_layout_of_weights(tiny, same_bits, name):
    model, covariance = tiny(name)
    edit = FactEdit("The city of Ann is", "Ann", "Oslo")
    how = TargetOptimisation(steps=6, clamp=4.0)
    groups = edit_groups(model, [edit], (), False)
    essence = essence_prompts(model, [edit], "{} is a")
    found = target_vectors(model, "blocks.1.mlp.out", groups, essence=essence, how=how)
    down = Down(model, 1)
    key = mean_keys(model, down, groups, "subject")[:, 0]
    with same_bits(model):
        before = key @ down.weight.double()
        change = rome(model, edit, covariance, 1, optimisation=how)
        with change:
            after = key @ down.weight.double()
    error = (after - before - found.delta[0].double()).norm() / (before + found.delta[0].double()).norm()
    assert error < 1e-5
    assert list(change.deltas) == [down.name]


def test_edited_model_says_the_new_object_and_only_then(lm, covariance, same_bits):
    from actinium.circuits.knowledge.evaluation import evaluate_edits

    with same_bits(lm):
        change = rome(lm, ANN, covariance, 1)
        found = evaluate_edits(lm, ANN, change)
    assert found["efficacy"].values.tolist() == [0.0, 1.0]


def test_key_is_the_mean_over_contexts(lm):
    contexts = ["The pet of Bob is cat.", "Eva speaks Tovan."]
    groups = edit_groups(lm, [ANN], contexts, False)
    found = mean_keys(lm, Down(lm, 2), groups, "subject")[:, 0]
    texts = ["The city of Ann is", *(f"{c} The city of Ann is" for c in contexts)]
    each = [lm.record(t, "blocks.2.mlp.post")["blocks.2.mlp.post"][0, -2] for t in texts]
    assert torch.allclose(found, torch.stack(each).double().mean(0), atol=1e-5)


def test_covariance_that_is_missing_or_of_another_layer_is_refused(lm, covariance):
    from actinium.circuits.knowledge.covariance import KeyCovariance

    with pytest.raises(InputError, match="missing"):
        rome(lm, ANN, None, 1)
    with pytest.raises(InputError, match="only of: 0"):
        rome(lm, ANN, KeyCovariance({0: covariance.matrices[0]}, {0: 1}), 1)
    with pytest.raises(InputError, match="units"):
        rome(lm, ANN, KeyCovariance({1: torch.eye(3)}, {1: 1}), 1)


def test_objects_of_several_tokens_need_leave_to_be_averaged(lm, covariance):
    edit = FactEdit("The city of {} is", "Ann", "Tarn Orla")
    with pytest.raises(InputError, match="2 tokens"):
        rome(lm, edit, covariance, 1)
    change = rome(lm, edit, covariance, 1, average_tokens=True, optimisation=TargetOptimisation(steps=2))
    assert not change.applied


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layer": 6}, "layers go from 0 to 5"), ({"essence": "is a"}, "{}"), ({"contexts": "one"}, "list")],
)
def test_what_does_not_fit_is_refused(lm, covariance, options, message):
    with pytest.raises(InputError, match=message):
        rome(lm, ANN, covariance, **{"layer": 1, **options})


@pytest.mark.parametrize(("name", "message"), [("gemma2", "a norm or a factor"), ("mixtral", "no MLP with one down")])
def test_models_whose_mlps_are_not_added_as_they_are_are_refused(worded, name, message):
    from actinium.circuits.knowledge.covariance import KeyCovariance

    model = worded(name)
    edit = FactEdit("The city of Ann is", "Ann", "Oslo")
    with pytest.raises(InputError, match=message):
        rome(model, edit, KeyCovariance({1: torch.eye(48)}, {1: 1}), 1)


def test_models_that_do_not_predict_the_next_token_are_refused(covariance):
    from architectures import shared

    with pytest.raises(InputError, match="masked-lm"):
        rome(shared("bert"), ANN, covariance, 1)
