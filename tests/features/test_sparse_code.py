"""Products over active latents alone are those of dense matrices, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actinium.core.errors import InputError
from actinium.features.dictionaries.code import Code, top_k
from actinium.features.dictionaries.sparse import decode, encode_entries, products


def random_code(n=7, m=12, d=5, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(n, m, generator=g, dtype=dtype) * (torch.rand(n, m, generator=g) < 0.3)
    f[2] = 0
    return f, torch.randn(m, d, generator=g, dtype=dtype), torch.randn(n, d, generator=g, dtype=dtype)


def test_dense_and_back():
    f, _, _ = random_code()
    code = Code.from_dense(f)
    assert torch.equal(code.dense(), f)
    assert torch.equal(code.counts, (f != 0).sum(1))
    assert torch.equal(code.active().dense(), f.relu())
    torch.testing.assert_close(code.sums(), f.sum(0))


def test_decoding_has_the_values_and_gradients_of_a_matrix_product():
    f, weight, _ = random_code()
    code = Code.from_dense(f)
    values, weight = code.values.clone().requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: decode(code.with_values(v), w), (values, weight))
    torch.testing.assert_close(decode(code, weight), f @ weight)


@pytest.mark.parametrize("shifted", [False, True])
def test_entries_of_the_encoder_have_the_gradients_of_a_dense_one(shifted):
    f, weight, x = random_code()
    code = Code.from_dense(f)
    weight = weight.T.detach().clone().requires_grad_()  # (d, m)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(5, dtype=torch.float64, requires_grad=True)
    out = torch.randn(len(code.values), dtype=torch.float64)
    places = (code.rows, code.latents)
    dense = (x - shift) @ weight + bias
    expected = torch.autograd.grad((dense[places] * out).sum(), (weight, bias, shift))
    known = code.with_values(dense.detach()[places])
    if shifted:
        found = encode_entries(x - shift.detach(), weight, bias, known, shift)
    else:
        found = encode_entries(x - shift, weight, bias, known)
    torch.testing.assert_close(found.values, dense[places])
    for a, b in zip(torch.autograd.grad((found.values * out).sum(), (weight, bias, shift)), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_at_places_are_entries_of_the_dense_product(dtype):
    f, weight, x = random_code(dtype=dtype)
    code = Code.from_dense(f)
    dense = (x.double() @ weight.double().T)[code.rows, code.latents]
    tolerance = {torch.bfloat16: 5e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
    torch.testing.assert_close(products(x, weight, code.places).double(), dense, atol=tolerance, rtol=tolerance)


def test_no_active_latent_gives_zero_and_no_gradient():
    weight = torch.ones(4, 3, requires_grad=True)
    code = Code.from_dense(torch.zeros(2, 4))
    out = decode(code.with_values(code.values.requires_grad_()), weight)
    assert torch.equal(out, torch.zeros(2, 3))
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(4, 3))


@given(st.integers(1, 40), st.sampled_from([1, 32, 64, 320, 1024, 100]), st.integers(1, 33), st.integers(0, 2**31))
def test_largest_by_groups_are_the_largest(n, m, k, seed):
    pre = torch.randn(n, m, generator=torch.Generator().manual_seed(seed))
    if k > m:
        with pytest.raises(InputError, match="between 1"):
            top_k(pre, k)
        return
    values, latents = top_k(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(k).values.sort(1).values)
    assert torch.equal(pre.gather(1, latents), values)
    assert all(len(set(row)) == k for row in latents.tolist())


def test_largest_of_rows_of_equal_numbers_are_k_different_places():
    values, latents = top_k(torch.zeros(3, 1024), 4)
    assert torch.equal(values, torch.zeros(3, 4))
    assert all(len(set(row)) == 4 for row in latents.tolist())
