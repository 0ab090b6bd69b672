"""The kernels for a GPU beside dense float64 matrices: on a GPU, else in Triton's interpreter.

Run by `test_triton_sparse`, in a process of its own: Triton must be told to interpret before it is imported.
"""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.features.dictionaries import sparse, triton_sparse
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.sparse import decode, encode_entries, products, transposed_rows, weighted_rows

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDTHS = (1, 5, 300)
"""Below one block, and no multiple of one."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The kernels are chosen for a GPU as they are for anybody; for the interpreter they are put in place."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(sparse, "_kernels", lambda device: triton_sparse)
    assert sparse._kernels(DEVICE) is triton_sparse
    assert triton_sparse.runs_on(DEVICE)


def drawn(*shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(DEVICE, dtype)


def dense(n=9, m=21, dtype=torch.float32):
    """(n, m) whose first, third and last rows are empty, whose fifth has more entries than a program reads at a time,
    and of whose columns the second is empty."""
    f = drawn(n, m, dtype=dtype, seed=1)
    kept = drawn(n, m, seed=2) < -0.3
    kept[4] = True
    kept[[0, 2, -1]] = False
    kept[:, 1] = False
    return f * kept


def close(found, expected, dtype):
    """To the rounding of one number: sums are more exact than halves."""
    bound = {torch.float32: 2e-5, torch.float64: 1e-12}.get(dtype, 1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=max(torch.finfo(dtype).eps, bound), atol=bound)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_entries_are_rows_of_the_dense_product(dtype, d):
    f, weight = dense(), drawn(21, d, dtype=dtype)
    code = Code.from_dense(f)
    assert int(code.counts.max()) > triton_sparse.ENTRIES and int(code.counts.min()) == 0
    found = weighted_rows(weight, code.latents, code.places.offsets, code.values)
    assert found.dtype == dtype and found.is_contiguous()
    close(found, f.double() @ weight.double(), dtype)


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_at_entries_are_those_of_the_dense_product(dtype, d):
    code = Code.from_dense(dense())
    assert len(code.latents) % triton_sparse.ENTRIES
    a, b = drawn(9, d, dtype=dtype), drawn(21, d, dtype=dtype, seed=3)
    found = products(a, b, code.places)
    assert found.dtype == dtype
    close(found, (a.double() @ b.double().T)[code.rows, code.latents], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_for_latents_are_rows_of_the_transposed_product(dtype):
    f, x = dense(), drawn(9, 37, dtype=dtype)
    code = Code.from_dense(f)
    close(transposed_rows(x, code.values, code.places), f.double().T @ x.double(), dtype)


def test_products_of_two_precisions_are_as_exact_as_the_first():
    code = Code.from_dense(dense())
    a, b = drawn(9, 37), drawn(21, 37, dtype=torch.bfloat16)
    found = products(a, b, code.places)
    assert found.dtype == torch.float32
    close(found, (a.double() @ b.double().T)[code.rows, code.latents], torch.float32)


def test_halves_are_summed_in_float32():
    # A bfloat16 of 256 stays what it is when one is added to it; here each place of a block gets 260 ones.
    count, d = 260 * triton_sparse.ENTRIES, 260 * triton_sparse.COLUMNS
    one = torch.ones(1, d, dtype=torch.bfloat16, device=DEVICE)
    rows, offsets = torch.zeros(count, dtype=torch.long, device=DEVICE), torch.tensor([0, count], device=DEVICE)
    assert float(weighted_rows(one[:, :1], rows, offsets, one[0, 0].expand(count))) == count
    code = Code.from_dense(torch.ones(1, 1, device=DEVICE))
    assert float(products(one, one, code.places)) == d


def test_strides_are_followed():
    code = Code.from_dense(dense())
    places, weight, x, other = code.places, drawn(21, 300), drawn(9, 300, seed=3), drawn(21, 300, seed=4)
    for view in (
        weight.T.contiguous().T,
        weight.repeat_interleave(2, 1)[:, ::2],
        torch.cat([weight, weight], 1)[:, 300:],
        weight.repeat_interleave(3, 0)[::3],
    ):
        assert not view.is_contiguous() and torch.equal(view, weight)
        expected = weighted_rows(weight, places.latents, places.offsets, code.values)
        assert torch.equal(weighted_rows(view, places.latents, places.offsets, code.values), expected)
        assert torch.equal(products(x, view, places), products(x, weight, places))
        assert torch.equal(products(view[:9], other, places), products(weight[:9], other, places))
    same = weight[:1].expand(21, 300)
    close(products(x, same, places), (x.double() @ same.double().T)[code.rows, code.latents], torch.float32)


@pytest.mark.parametrize("equal", [False, True])
def test_entries_of_one_place_are_all_counted(equal):
    weight, values = drawn(4, 6), drawn(3)
    if equal:
        # As the gradient of a sum is: one number with a stride of zero.
        values = values[0].expand(3)
    rows, offsets = torch.tensor([2, 2, 0], device=DEVICE), torch.tensor([0, 3], device=DEVICE)
    expected = (values[0] + values[1]) * weight[2] + values[2] * weight[0]
    torch.testing.assert_close(weighted_rows(weight, rows, offsets, values)[0], expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_addresses_beyond_32_bits_are_reached(tmp_path, transposed):
    m = 2**30 + 8
    if DEVICE.type == "cuda":
        flat = torch.empty(3 * m, dtype=torch.bfloat16, device=DEVICE)
    else:
        # A file of holes: what is never written takes no room.
        flat = torch.from_file(str(tmp_path / "holes"), shared=True, size=3 * m, dtype=torch.bfloat16)
    weight = flat.view(3, m).T if transposed else flat.view(m, 3)
    weight[m - 1] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    last, offsets = torch.tensor([m - 1], device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    assert weighted_rows(weight, last, offsets, torch.full((1,), 2.0, device=DEVICE)).tolist() == [[2.0, 4.0, 6.0]]
    one = torch.ones(1, 3, device=DEVICE)
    assert triton_sparse.products(one, weight, torch.zeros_like(last), last).tolist() == [6.0]


def gradients(run, *inputs):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    out = run(*inputs)
    return out.detach(), torch.autograd.grad((out * drawn(*out.shape, dtype=out.dtype, seed=9)).sum(), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_has_the_values_and_gradients_of_a_matrix_product(dtype):
    f, weight = dense(dtype=dtype), drawn(21, 37, dtype=dtype)
    code = Code.from_dense(f)

    def in_full(values, weight):
        return code.with_values(values).dense() @ weight

    found, grads = gradients(lambda v, w: decode(code.with_values(v), w), code.values, weight)
    expected, dense_grads = gradients(in_full, code.values.double(), weight.double())
    # The gradient that comes in is rounded to the precision of the output.
    bound = max(40 * torch.finfo(dtype).eps, 1e-12)
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)
    for a, b in zip(grads, dense_grads, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=bound, atol=bound)


def test_values_more_exact_than_the_weight_keep_their_type_in_the_gradient():
    code, weight = Code.from_dense(dense()), drawn(21, 37, dtype=torch.bfloat16)
    out, (for_values, for_weight) = gradients(lambda v, w: decode(code.with_values(v), w), code.values, weight)
    assert (out.dtype, for_values.dtype, for_weight.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)


def test_entries_of_the_encoder_have_the_gradients_of_a_dense_one():
    code = Code.from_dense(dense())
    places, kept = (code.rows, code.latents), drawn(21, 37).T  # columns of the weight are contiguous

    def in_full(x, weight, bias):
        return (x @ weight + bias)[places]

    inputs = (drawn(9, 37, seed=3), kept, drawn(21, seed=4))
    known = code.with_values(in_full(*inputs))
    _, found = gradients(lambda x, w, b: encode_entries(x, w, b, known).values, *inputs)
    _, expected = gradients(in_full, *(t.double() for t in inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_a_loss_has_the_gradients_that_it_has_without_the_kernels(monkeypatch):
    x = drawn(16, 12)
    sae = ac.features.TopKSAE(40, 5, aux_k=4).build(12).to(DEVICE)
    dead = torch.arange(40, device=DEVICE) < 10
    found = []
    for _ in range(2):
        parts, _ = sae.loss(x, dead=dead)
        found.append(torch.autograd.grad(sum(parts.values()), list(sae.parameters())))
        monkeypatch.setattr(sparse, "_kernels", lambda device: None)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_compiled_sum_is_the_same():
    code, weight = Code.from_dense(dense()), drawn(21, 37)
    compiled = torch.compile(lambda v, w: decode(code.with_values(v), w), backend="eager")
    found, grads = gradients(compiled, code.values, weight)
    expected, plain = gradients(lambda v, w: decode(code.with_values(v), w), code.values, weight)
    for a, b in zip((found, *grads), (expected, *plain), strict=True):
        assert torch.equal(a, b)


def test_nothing_active_gives_zeros():
    weight = drawn(4, 3).requires_grad_()
    code = Code.from_dense(torch.zeros(2, 4, device=DEVICE))
    out = decode(code.with_values(code.values.requires_grad_()), weight)
    assert torch.equal(out, torch.zeros_like(out)) and out.shape == (2, 3)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
