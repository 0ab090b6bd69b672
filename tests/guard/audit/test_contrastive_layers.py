"""Contrastive layer search: divergences with known values, and what decides the best layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from actinium.core.errors import InputError, UnknownNameError
from actinium.guard.audit.vectors.contrastive_layers import contrastive_layer_search, fisher_ratio, jensen_shannon

LN2 = math.log(2)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_is_scipys_squared_distance():
    p, q = draws(7, 9).softmax(-1), draws(7, 9, seed=1).softmax(-1)
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q), expected, rtol=1e-10)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))
    assert bool((jensen_shannon(p, p) == 0).all())
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert float(jensen_shannon(apart[0], apart[1])) == pytest.approx(LN2)


def test_the_example_of_the_card_and_the_released_formula():
    p, q = (torch.tensor(v, dtype=torch.float64).softmax(-1) for v in ([1.0, 0, -1], [-1.0, 0, 1]))
    assert float(jensen_shannon(p, q)) == pytest.approx(0.247588, abs=1e-6)
    m = (p + q) / 2
    released = sum(torch.nn.functional.kl_div(x, m, reduction="none").mean() for x in (p, q)) / 2
    assert float(jensen_shannon(p, q, legacy=True)) == pytest.approx(float(released))
    assert float(released) == pytest.approx(-0.475, abs=5e-4)


def test_softmax_ignores_constants_and_not_scale():
    pos, neg = draws(3, 6, 5), draws(3, 6, 5, seed=1)
    score = contrastive_layer_search(pos, neg)["score"].values
    np.testing.assert_allclose(contrastive_layer_search(pos + 3, neg - 2)["score"], score, rtol=1e-9)
    # With large norms the divergence only asks whether both answers have the same largest coordinate.
    grown = contrastive_layer_search(pos * 1e4, neg * 1e4)["score"].values
    np.testing.assert_allclose(grown, LN2 * (pos.argmax(-1) != neg.argmax(-1)).double().mean(-1), atol=1e-9)
    assert bool((grown > score).all())
    even = contrastive_layer_search(pos, neg, standardise=True)["score"].values
    np.testing.assert_allclose(contrastive_layer_search(pos * 50, neg * 50, standardise=True)["score"], even, rtol=1e-9)


def test_norm_growth_moves_the_residual_argmax_and_not_that_of_standardised_coordinates():
    gap = torch.tensor([0.3, 1.0, 0.3, 0.3])[:, None, None]
    pos, neg = draws(4, 40, 8) + gap, draws(4, 40, 8, seed=1)
    pos[..., 4:] -= gap  # a difference that is not a constant
    growth = torch.tensor([1.0, 1.0, 4.0, 16.0])[:, None, None]
    layers = range(4)
    assert contrastive_layer_search(pos * growth, neg * growth, layers=layers).data.attrs["best"] == 3
    for method in ("fisher", "auc"):
        assert contrastive_layer_search(pos * growth, neg * growth, method, layers).data.attrs["best"] == 1
    even = contrastive_layer_search(pos * growth, neg * growth, layers=layers, standardise=True)["score"].values
    np.testing.assert_allclose(even, contrastive_layer_search(pos, neg, standardise=True)["score"].values)


def test_fisher_ratio_of_a_known_shift():
    x = draws(200, 6)
    x = (x - x.mean(0)) / x.std(0, correction=0) * 1.5
    shifted = x.clone()
    shifted[:, 2] += 0.7
    assert float(fisher_ratio(shifted, x)) == pytest.approx(0.7**2 / (2 * 6 * 1.5**2))
    assert float(fisher_ratio(x, x)) == 0


def test_areas_are_of_pairs_that_were_not_seen():
    pos, neg = draws(2, 60, 4), draws(2, 60, 4, seed=1)
    pos[1] += 3
    score = contrastive_layer_search(pos, neg, "auc", [0, 1])["score"].values
    assert score[0] == pytest.approx(0.5, abs=0.2)
    assert score[1] > 0.98


def test_logit_lens_takes_the_norm_and_the_unembedding():
    pos, neg = draws(3, 5, 4), draws(3, 5, 4, seed=1)
    weight = draws(11, 4, seed=2).float()
    norm = torch.nn.RMSNorm(4)
    found = contrastive_layer_search(pos, neg, "js_logit", norm=norm, unembed=weight)["score"].values

    def lens(x):
        x = x.float() / (x.float().square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        return (x @ weight.T).softmax(-1).double()

    np.testing.assert_allclose(found, jensen_shannon(lens(pos), lens(neg)).mean(-1), rtol=1e-4)
    same = contrastive_layer_search(pos, neg, "js_logit", norm=norm, unembed=lambda h: h @ weight.T)
    np.testing.assert_allclose(same["score"].values, found, rtol=1e-6)


def test_the_first_half_is_searched_and_the_whole_curve_reported():
    pos, neg = draws(5, 6, 4), draws(5, 6, 4, seed=1)
    pos[4] += 50
    found = contrastive_layer_search(pos, neg, "fisher", names=list("abcde"))
    assert found["candidate"].values.tolist() == [True, True, True, False, False]
    assert found["layer"].values.tolist() == list("abcde")
    assert found.data.attrs["best"] < 3
    assert contrastive_layer_search(pos, neg, "fisher", layers=[0, 4]).data.attrs["best"] == 4


def test_what_cannot_be_contrasted_is_refused():
    x, y = draws(2, 3, 4), draws(2, 3, 4, seed=1)
    for call, message in (
        (lambda: contrastive_layer_search(x[:, :1], y[:, :1]), "two pairs"),
        (lambda: contrastive_layer_search(x, x), "equal"),
        (lambda: contrastive_layer_search(x, y[:1]), "one shape"),
        (lambda: contrastive_layer_search(x[0], y[0]), "layer, n, d"),
        (lambda: contrastive_layer_search(x * torch.nan, y), "NaN"),
        (lambda: contrastive_layer_search(x, y, "js_logit"), "norm and the unembedding"),
        (lambda: contrastive_layer_search(x, y, "js_logit", unembed=draws(5, 4)), "norm and the unembedding"),
        (lambda: contrastive_layer_search(x, y, layers=[2]), "0 to 1"),
        (lambda: contrastive_layer_search(x, y, "auc", legacy=True), "js_residual"),
        (lambda: contrastive_layer_search(x, y, names=["a"]), "1 names"),
        (lambda: jensen_shannon(torch.ones(2), torch.ones(3)), "same outcomes"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(UnknownNameError, match="js_logit"):
        contrastive_layer_search(x, y, "js_logits")
