"""Softmax and its kin: probabilities, their closed forms, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.layers.simplex_maps import entmax, sparsemax
from actinium.functions.registry import evaluate, spec

FAMILY = "softmax"
ROWS = [s for s in ac.functions.every() if s.family == FAMILY]
SUM_LESS = ("LogSoftmax", "Softmax1", "Normalised ReLU")
each = pytest.mark.parametrize("row", ROWS, ids=lambda s: s.key)


def square(w):
    return w**2 / (w**2).sum(-1, keepdims=True)


def unit(w):
    return w / w.sum(-1, keepdims=True)


def lehmer(z, a, b):
    return np.log(np.exp(a * (b + 1) * z).sum(-1, keepdims=True) / np.exp(a * b * z).sum(-1, keepdims=True)) / a


def power(z, a, b):
    return np.log(np.exp(a * b * z).mean(-1, keepdims=True)) / (a * b)


def by_means(z, mean, a=1.0, b=1.0, c=1.0, d=1.0):
    away = z - mean(z, a, b)
    return special.softmax(away / (mean(np.abs(away), c, d) + 1e-6), -1)


PRINTED = {
    "softmax": lambda z: special.softmax(z, -1),
    "logsoftmax": lambda z: special.log_softmax(z, -1),
    "softmin": lambda z: special.softmax(-z, -1),
    "sqmax": square,
    "spherical softmax": lambda z: unit(z**2 + 1e-6),
    "taylor softmax": lambda z: unit(1 + z + z**2 / 2),
    "gumbel-softmax": lambda z: special.softmax(z, -1),
    "sigsoftmax": lambda z: unit(np.exp(z) * special.expit(z)),
    "softmax1": lambda z: np.exp(z) / (1 + np.exp(z).sum(-1, keepdims=True)),
    "glsoftmax": lambda z: by_means(z, lehmer),
    "gpsoftmax": lambda z: by_means(z, power),
    "hardmax": lambda z: 1.0 * (z == z.max(-1, keepdims=True)),
    "normalised relu": lambda z: np.maximum(z, 0) / (np.maximum(z, 0).sum(-1, keepdims=True) + 1e-6),
}
CHANGED = {
    "softmax": ({"T": 0.3}, lambda z: special.softmax(z / 0.3, -1)),
    "gumbel-softmax": ({"T": 2.0}, lambda z: special.softmax(z / 2, -1)),
    "sqmax": ({"c": 0.7}, lambda z: square(z + 0.7)),
    "spherical softmax": ({"eps": 0.1}, lambda z: unit(z**2 + 0.1)),
    "glsoftmax": ({"a": 0.5, "b": 2.0, "c": 1.5, "d": 0.3}, lambda z: by_means(z, lehmer, 0.5, 2.0, 1.5, 0.3)),
    "gpsoftmax": ({"a": 0.5, "b": 2.0, "c": 1.5, "d": 0.3}, lambda z: by_means(z, power, 0.5, 2.0, 1.5, 0.3)),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def scores():
    return torch.randn(4, 3, 9, dtype=torch.float64) * 2


@pytest.mark.parametrize("name", PRINTED)
def test_a_softmax_is_the_printed_formula(name, scores):
    np.testing.assert_allclose(spec(name)(scores), PRINTED[name](scores.numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CHANGED)
def test_its_parameters_stand_where_they_are_printed(name, scores):
    parameters, formula = CHANGED[name]
    np.testing.assert_allclose(spec(name)(scores, **parameters), formula(scores.numpy()), rtol=1e-9, atol=1e-12)


def test_every_softmax_is_compared_or_has_its_own_test():
    assert {s.key for s in ROWS} == {spec(n).key for n in (*PRINTED, "sparsemax", "alpha-entmax")}


@each
def test_probabilities_sum_to_one_along_any_dimension(row, scores):
    for dim in (-1, 0, 1):
        p = row(scores, dim=dim)
        assert p.shape == scores.shape and p.dtype == scores.dtype
        torch.testing.assert_close(p.movedim(dim, -1), row(scores.movedim(dim, -1)))
        if row.name not in SUM_LESS:
            assert (p >= 0).all()
            torch.testing.assert_close(p.sum(dim), torch.ones_like(p.sum(dim)), rtol=1e-9, atol=1e-9)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_large_scores_give_no_nan(row, dtype):
    top = torch.finfo(dtype).max
    z = torch.tensor([[0.0, top, -top, 1.0], [top, top, 1e4, -1e4], [0.0] * 4, [-100.0, -90, -80, -70]], dtype=dtype)
    z.requires_grad_()
    p = row(z)
    assert p.dtype == dtype and not p.isnan().any()
    if p.requires_grad:
        (slope,) = torch.autograd.grad(p[2:].sum(), z)
        assert not slope.isnan().any()


@each
def test_gradients_of_probabilities_are_those_of_finite_differences(row, scores):
    names = [k for k, p in row.parameters.items() if p.trainable]
    values = [torch.tensor(row.parameters[k].default, dtype=torch.float64, requires_grad=True) for k in names]
    held = {k: p.default for k, p in row.parameters.items() if not p.trainable}
    z = scores[0].clone().requires_grad_()
    f = lambda t, *given: evaluate(row, t, held | dict(zip(names, given, strict=True)))  # noqa: E731
    if row.name == "Hardmax":
        assert not f(z).requires_grad
        return
    assert torch.autograd.gradcheck(f, (z, *values), eps=1e-7, atol=1e-5)


@each
def test_probabilities_in_vmap_are_those_of_the_loop(row):
    z = torch.randn(3, 4, 9)
    torch.testing.assert_close(torch.vmap(row)(z), torch.stack([row(t) for t in z]), rtol=1e-5, atol=1e-6)


def test_pytorch_has_the_same_softmaxes(scores):
    z = scores.float()
    torch.testing.assert_close(ac.functions.get("softmax")(z), functional.softmax(z, -1))
    torch.testing.assert_close(ac.functions.get("logsoftmax", dim=1)(z), functional.log_softmax(z, 1))
    torch.testing.assert_close(ac.functions.get("softmin", dim=0)(z), functional.softmin(z, 0))


def test_sparsemax_is_the_nearest_point_of_the_simplex(scores):
    p = sparsemax(scores)
    # Optimality: p = max(z - t, 0) with one t for each vector.
    for z, q in zip(scores.view(-1, 9), p.view(-1, 9), strict=True):
        shifts = (z - q)[q > 0]
        assert float(shifts.max() - shifts.min()) < 1e-12
        assert (z[q == 0] <= shifts[0] + 1e-12).all()
    assert (p == 0).any()
    assert sparsemax(torch.tensor([0.1, 1.2, 0.3])).tolist() == pytest.approx([0, 0.95, 0.05])
    torch.testing.assert_close(sparsemax(scores + 7.0), p)


@pytest.mark.parametrize("alpha", [1.05, 1.5, 1.9, 2.0, 3.0, 6.0])
def test_entmax_maximises_the_regularised_score(alpha, scores):
    def value(p, z):
        tsallis = (p - p**alpha).sum(-1) / (alpha * (alpha - 1))
        return (p * z).sum(-1) + tsallis

    z = scores.view(-1, 9)
    p = entmax(z, alpha)
    torch.testing.assert_close(p.sum(-1), torch.ones(12, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    best = value(p, z)
    for step in (1.0, 0.1, 1e-3):
        others = torch.softmax(torch.randn(200, 1, 9, dtype=torch.float64) * 3, -1)
        assert (value((1 - step) * p + step * others, z) <= best + 1e-12).all()


def test_entmax_joins_softmax_and_sparsemax(scores):
    torch.testing.assert_close(entmax(scores, 1.0), torch.softmax(scores, -1))
    torch.testing.assert_close(entmax(scores, 1.0001), torch.softmax(scores, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(entmax(scores, 2.0), sparsemax(scores))
    torch.testing.assert_close(entmax(scores, torch.tensor(2.0, dtype=torch.float64)), sparsemax(scores))
    # At 1.5: p = max(z / 2 - t, 0)^2, a quadratic equation for t.
    p = entmax(scores.view(-1, 9), 1.5)
    for z, q in zip(scores.view(-1, 9) / 2, p, strict=True):
        top = z.sort(descending=True).values[: int((q > 0).sum())]
        t = top.mean() - torch.sqrt((1 - ((top - top.mean()) ** 2).sum()) / len(top))
        torch.testing.assert_close(q, torch.relu(z - t) ** 2, rtol=1e-9, atol=1e-12)


def test_entmax_learns_its_alpha():
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    for start in (1.2, 1.5, 2.5):
        alpha = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(entmax, (z, alpha), eps=1e-7, atol=1e-5)
    module = ac.functions.get("alpha-entmax", trainable=True)
    module(z.float().detach()).amax().backward()
    assert module.alpha.grad.abs() > 0


def test_gumbel_samples_choose_as_often_as_softmax_says():
    z = torch.tensor([1.0, 0.0, -1.0, 2.0])
    module = ac.functions.get("gumbel-softmax", hard=1, T=0.7)
    choices = module.train()(z.expand(20000, 4))
    assert set(choices.unique().tolist()) <= {0.0, 1.0} and (choices.sum(1) == 1).all()
    np.testing.assert_allclose(choices.mean(0), special.softmax(z.numpy()), atol=0.015)
    soft = ac.functions.get("gumbel-softmax", T=0.1).train()(z.expand(1000, 4))
    assert soft.amax(1).mean() > 0.9
    torch.testing.assert_close(module.eval()(z), functional.one_hot(z.argmax(), 4).float())


def test_hard_samples_have_the_gradient_of_the_soft_ones():
    weights = torch.tensor([1.0, 2.0, 3.0])
    slopes = []
    for hard in (0, 1):
        z = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
        (spec("gumbel-softmax")(z, hard=hard) * weights).sum().backward()
        slopes.append(z.grad)
    torch.testing.assert_close(slopes[1], slopes[0])


def test_a_minus_infinite_score_has_no_probability():
    z = torch.tensor([[0.5, float("-inf"), 1.0]])
    for name in ("softmax", "sparsemax", "alpha-entmax", "sigsoftmax", "softmax1"):
        p = spec(name)(z)
        assert p[0, 1] == 0 and not p.isnan().any()
        kept = spec(name)(z[:, [0, 2]])
        torch.testing.assert_close(p[:, [0, 2]], kept)


def test_softmax1_may_attend_to_nothing():
    p = spec("softmax1")(torch.full((4,), -30.0))
    assert p.sum() < 1e-10
    z = torch.randn(5)
    torch.testing.assert_close(spec("softmax1")(z), torch.softmax(torch.cat((z, torch.zeros(1))), 0)[:-1])


def test_wrong_dimensions_and_parameters_are_refused():
    for row in ROWS:
        with pytest.raises(InputError, match="no dimension 1"):
            row(torch.zeros(3), dim=1)
        with pytest.raises(InputError, match="is empty"):
            row(torch.zeros(2, 0))
    with pytest.raises(InputError, match="lies between"):
        ac.functions.get("softmax", T=-1.0)
    with pytest.raises(InputError, match="lies between 1 and"):
        spec("alpha-entmax")(torch.zeros(3), alpha=0.5)
    with pytest.raises(InputError, match="uncertain"):
        ac.functions.get("glsoftmax")


def test_masked_attention_of_a_language_model():
    at = ("blocks.0.attn.scores", "blocks.0.attn.pattern")
    found = ac.load("world:lm").record(torch.randint(0, 50, (2, 12)), list(at))
    scores, pattern = found[at[0]], found[at[1]]
    torch.testing.assert_close(ac.functions.get("softmax")(scores), pattern)
    unseen = torch.ones(12, 12).triu(1).bool()
    assert scores[..., unseen].max() < -1e38
    for name in ("sparsemax", "alpha-entmax"):
        p = ac.functions.get(name)(scores)
        assert (p[..., unseen] == 0).all() and ((p == 0) & ~unseen).any()
        torch.testing.assert_close(p.sum(-1), torch.ones(2, 8, 12))
        torch.testing.assert_close(p.argmax(-1), pattern.argmax(-1))
