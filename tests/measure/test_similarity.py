"""Cosine and CKA equal their definitions; the streaming forms equal the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium import measure
from actinium.core.errors import InputError
from actinium.measure import similarity


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(300, 9, dtype=torch.float64)
    return x, x @ torch.randn(9, 5, dtype=torch.float64) + torch.randn(300, 5)


def kernel_cka(x, y) -> float:
    """The definition with centred kernel matrices."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    return np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))


def test_linear_cka_equals_the_kernel_form(pair):
    x, y = pair
    assert measure.linear_cka(x, y) == pytest.approx(kernel_cka(x.numpy(), y.numpy()))


def test_linear_cka_does_not_see_rotation_shift_and_scale(pair):
    x, _ = pair
    q, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    assert measure.linear_cka(x, 3 * x @ q + 7) == pytest.approx(1)


def unbiased_hsic_by_loops(k, l) -> float:  # noqa: E741
    """Song et al.'s U-statistic over quadruples of different indices, written out."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
                        count += 1
    return total / count


def test_unbiased_hsic_equals_the_sum_over_quadruples():
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert float(measure.hsic(k, l)) == pytest.approx(unbiased_hsic_by_loops(k.numpy(), l.numpy()))
    with pytest.raises(InputError, match="n >= 4"):
        measure.hsic(k[:3, :3], l[:3, :3])


def test_layer_similarity_equals_the_pairwise_functions(any_transformer):
    model, inputs = any_transformer
    got = measure.layer_similarity(model, inputs, batch_size=2)
    sites = [f"blocks.{i}.resid_post" for i in range(model.n_layers)]
    rec = model.record(inputs, sites)
    xs = [rec[s].flatten(0, 1) for s in sites]
    for i, x in enumerate(xs):
        for j, y in enumerate(xs):
            assert float(got["cka"][i, j]) == pytest.approx(measure.linear_cka(x, y), abs=1e-9)
            assert float(got["cosine"][i, j]) == pytest.approx(measure.mean_cosine(x, y), abs=1e-9)
    assert float(got["step_cosine"][0]) == pytest.approx(measure.mean_cosine(xs[0], xs[1]))


def test_padding_is_no_position(gpt2, ragged):
    got = measure.layer_similarity(gpt2, ragged)
    rec = gpt2.record(ragged, ["blocks.0.resid_post", "blocks.1.resid_post"])
    x, y = (rec[s][ragged.mask] for s in rec)
    assert float(got["cka"][0, 1]) == pytest.approx(measure.linear_cka(x, y))
    assert int(got["count"]) == 16


def test_minibatch_cka_comes_close_to_the_exact_one_and_does_not_depend_on_the_batches(monkeypatch, pair):
    x, y = (t.repeat(10, 1) + 0.1 * torch.randn(3000, t.shape[1]) for t in pair)
    results = []
    for step in (37, 3000):
        state = similarity._MinibatchCKA(2)
        for rows in torch.arange(3000).split(step):
            state.update([x[rows], y[rows]])
        results.append(state.result())
    np.testing.assert_allclose(results[0], results[1])
    assert results[0][0, 1] == pytest.approx(measure.linear_cka(x, y), abs=0.02)


def test_minibatch_cka_of_independent_data_is_near_zero_where_the_exact_one_is_biased():
    torch.manual_seed(0)
    x, y = torch.randn(512, 300, dtype=torch.float64), torch.randn(512, 300, dtype=torch.float64)
    state = similarity._MinibatchCKA(2)
    state.update([x, y])
    assert abs(state.result()[0, 1]) < 0.02
    assert measure.linear_cka(x, y) > 0.2


def test_layers_of_different_widths_have_a_cka_and_no_cosine(cnn, images):
    got = measure.layer_similarity(cnn, images[..., :7, :7], at=["module:1", "module:2"])
    assert float(got["cosine"][0, 1]) == pytest.approx(float(got["step_cosine"][0]))
    with pytest.raises(InputError, match="number of positions"):
        measure.layer_similarity(cnn, images)


def test_unknown_cka_is_refused(gpt2, ragged):
    with pytest.raises(InputError, match="minibatch"):
        measure.layer_similarity(gpt2, ragged, cka="debiased")
