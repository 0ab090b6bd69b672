"""Replacing only the part of an activation that lies in a subspace."""

from __future__ import annotations

import pytest
import torch

from actinium.core.edits import Replace, ReplaceWithin
from actinium.core.errors import InputError
from architectures import shared, token_ids

SITE = "blocks.1.resid_post"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(edits, at=SITE):
    model = shared("llama")
    with model.edit(edits):
        return model.record(token_ids(), at)[at]


def test_the_part_in_the_span_is_the_values_and_the_rest_is_kept():
    plain, value, plane = shared("llama").record(token_ids(), SITE)[SITE], drawn(2, 7, 32), drawn(3, 32, seed=1)
    got = read({SITE: ReplaceWithin(value, plane)})
    basis = torch.linalg.qr(plane.double().T)[0]
    inside = basis @ basis.T
    assert torch.allclose(got.double() @ inside, value.double() @ inside, atol=1e-5)
    outside = torch.eye(32, dtype=torch.float64) - inside
    assert torch.allclose(got.double() @ outside, plain.double() @ outside, atol=1e-5)


def test_the_whole_space_is_a_replacement_and_so_are_a_subspace_and_its_complement_together():
    value, basis = drawn(2, 7, 32), torch.linalg.qr(drawn(32, 32, seed=2))[0].T
    want = read({SITE: Replace(value)})
    assert torch.allclose(read({SITE: ReplaceWithin(value, drawn(32, 32, seed=3))}), want, atol=1e-4)
    both = [ReplaceWithin(value, basis[:5]), ReplaceWithin(value, basis[5:])]
    assert torch.allclose(read({SITE: both}), want, atol=1e-5)


def test_sign_length_and_repetition_of_directions_do_not_count():
    value, v = drawn(2, 7, 32), drawn(32, seed=1)
    want = read({SITE: ReplaceWithin(value, v)})
    for other in (-v, 30 * v, torch.stack([v, 2 * v])):
        assert torch.allclose(read({SITE: ReplaceWithin(value, other)}), want, atol=1e-5)
    assert torch.allclose(read({SITE: [ReplaceWithin(value, v)] * 2}), want, atol=1e-5)


def test_one_head_takes_a_direction_of_its_own_width():
    site = "blocks.1.attn.z"
    plain = shared("llama").record(token_ids(), site)[site]
    value, v = drawn(*plain.shape), drawn(plain.shape[-1], seed=1)
    got = read({site: ReplaceWithin(value, v).at(heads=[2], positions=[3])}, site)
    unit = v / v.norm()
    want = plain.clone()
    want[:, 3, 2] += ((value - plain)[:, 3, 2] @ unit)[:, None] * unit
    assert torch.allclose(got, want, atol=1e-6)


def test_the_gradient_of_the_directions_is_that_of_finite_differences():
    x, value, v = drawn(4, 8).double(), drawn(4, 8, seed=1).double(), drawn(2, 8, seed=2).double()

    def result(directions):
        edit = ReplaceWithin(value, directions)
        return (edit.change(x, _Nowhere()) ** 3).sum()

    v.requires_grad_(True)
    assert torch.autograd.gradcheck(result, v)


class _Nowhere:
    """A place without positions, of a whole batch."""

    pos = None

    class now:
        rows, row_start, generation = 4, 0, None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplaceWithin(drawn(32), torch.zeros(32)), "directions are zero"),
        (lambda: ReplaceWithin(drawn(32), [float("nan")] * 32), "NaN"),
        (lambda: read({SITE: ReplaceWithin(drawn(32), drawn(8))}), "directions has size 8, but d_model is 32"),
        (lambda: read({SITE: ReplaceWithin(drawn(8), drawn(32))}), "value has size 8"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
