"""A rank-1 edit of a weight and the intervention on what the weight reads give the same outputs."""

from __future__ import annotations

import pytest
import torch

from actinium.circuits import interchange, rank1_equivalent
from actinium.core.errors import InputError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


W, K, V = drawn(5, 12), drawn(12, seed=1), drawn(5, seed=2)
A = drawn(40, 12, seed=3)
C = A.T @ A / 40


def test_the_edit_is_the_published_formula_and_maps_the_key_to_the_value():
    edit = rank1_equivalent(W, K, V, C)
    asked = torch.linalg.inv(C) @ K
    want = W + torch.outer(V - W @ K, asked) / (K @ asked)
    assert torch.allclose(edit.weight, want)
    assert torch.allclose(edit.weight @ K, V)


def test_the_intervention_has_the_outputs_of_the_edit_on_every_input():
    edit = rank1_equivalent(W, K, V, C)
    assert torch.allclose(edit.intervene(A) @ W.T, A @ edit.weight.T, atol=1e-10)
    assert edit.error < 1e-12
    # It moves activations along one direction, in which nothing is invisible to W.
    moved = edit.intervene(A) - A
    assert int(torch.linalg.matrix_rank(moved)) == 1
    assert torch.allclose(torch.linalg.pinv(W) @ (W @ edit.direction), edit.direction)


def test_a_subspace_patch_is_the_edit_that_maps_the_key_to_the_patched_value():
    source, v = drawn(12, seed=4), drawn(12, seed=5)
    patched = interchange(K, source, v)
    edit = rank1_equivalent(W, K, W @ patched)
    assert torch.allclose(edit.weight @ K, W @ patched)
    # Only the part of the patch that W sees comes back.
    seen = torch.linalg.pinv(W) @ W
    assert torch.allclose(edit.direction, seen @ (patched - K))


def test_a_value_that_cannot_be_reached_leaves_an_error():
    tall = drawn(12, 5)
    assert rank1_equivalent(tall, drawn(5), drawn(12, seed=1)).error > 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((W, K[:5], V), "expected a weight"),
        ((W, K, V, C[:3]), "second_moment must be"),
        ((W, 0 * K, V), "key is zero"),
        ((W, torch.eye(12)[0], V, torch.diag(torch.tensor([0.0] + [1.0] * 11))), "no input"),
    ],
)
def test_what_has_no_edit_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        rank1_equivalent(*given)
