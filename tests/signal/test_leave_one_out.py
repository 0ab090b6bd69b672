"""Closed forms of leave-one-out distances equal refits, matrix formulas and the values that can be had by hand."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.signal.gp_kernels import RBF, ReLUKernel, UnitDiagonal
from actinium.signal.leave_one_out import LOOD, loo_leakage, loo_memorization, optimize_query
from actinium.signal.nngp import NNGPKernel
from actinium.signal.ntk import analytic_ntk_relu


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(kernel, x, y, q, noise):
    """Mean (q, c) and latent covariance (q, q) of a fit to x, y, by inversion."""
    if not len(x):
        return torch.zeros(len(q), y.shape[1], dtype=torch.float64), kernel(q, q)
    inverse = torch.linalg.inv(kernel(x, x) + noise * torch.eye(len(x), dtype=torch.float64))
    cross = kernel(q, x)
    return cross @ inverse @ y, kernel(q, q) - cross @ inverse @ cross.T


def divergence(kernel, x, y, s_x, s_y, q, noise):
    """M and KL of the matrix formulas, from two fits."""
    m0, c0 = posterior(kernel, x, y, q, noise)
    m1, c1 = posterior(kernel, torch.cat([x, s_x]), torch.cat([y, s_y]), q, noise)
    kl = sum(
        float(kl_divergence(MultivariateNormal(a, c0), MultivariateNormal(b, c1)))
        for a, b in zip(m0.T, m1.T, strict=True)
    )
    return float(((m0 - m1) ** 2).sum() / 2), kl


@pytest.fixture
def points():
    return draw(12, 2), torch.sign(draw(12, seed=1))


def test_a_record_alone_has_the_memorisation_that_arithmetic_gives():
    lone = LOOD(RBF(1.0), noise=0.1).fit([[0.3, -1.0]], [1.0])
    assert float(lone.memorization()) == pytest.approx(0.413223, abs=1e-6)
    after = 0.1 / 1.1
    assert float(lone.leakage()) == pytest.approx(
        (math.log(after) + 1 / after - 1 + (1 / 1.1) ** 2 / after) / 2, abs=1e-9
    )
    assert float(lone.influence(0, [[0.3, -1.0]])) == pytest.approx(0.413223, abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kernel", [RBF(0.8), ReLUKernel(3, 1.4, 0.3), NNGPKernel(torch.tanh, 3, 1.3, 0.2)])
def test_all_scores_at_once_equal_n_refits(kernel, outputs):
    x, y = draw(10, 3), draw(10, outputs, seed=1)
    lood = LOOD(kernel, 0.05).fit(x, y)
    for i in range(10):
        rest = torch.arange(10) != i
        m, kl = divergence(kernel, x[rest], y[rest], x[i : i + 1], y[i : i + 1], x[i : i + 1], 0.05)
        assert float(lood.memorization()[i]) == pytest.approx(m, abs=1e-6)
        assert float(lood.leakage()[i]) == pytest.approx(kl, rel=1e-6)
    assert torch.equal(loo_memorization(kernel, x, y, 0.05), lood.memorization())
    assert torch.equal(loo_leakage(kernel, x, y, 0.05), lood.leakage())


def test_matrix_formula_equals_the_scalar_formulas(points):
    x, y = points
    kernel, noise = RBF(1.0), 0.1
    mean, cov = posterior(kernel, x[:-1], y[:-1, None], x[-1:], noise)
    v, a = float(cov), float(y[-1] - mean)
    v1, change = v * noise / (v + noise), v * a / (v + noise)
    lood = LOOD(kernel, noise).fit(x[:-1], y[:-1])
    assert lood.lood(x[-1:], x[-1:], y[-1:], "mean") == pytest.approx(change**2 / 2, abs=1e-9)
    expected = (math.log(v1 / v) + v / v1 - 1 + change**2 / v1) / 2
    assert lood.lood(x[-1:], x[-1:], y[-1:], "kl") == pytest.approx(expected, abs=1e-9)


def test_distances_at_several_queries_and_records_equal_two_refits(points):
    x, y = points
    q = draw(3, 2, seed=5)
    lood = LOOD(RBF(1.0), 0.1).fit(x[:8], y[:8])
    m, kl = divergence(RBF(1.0), x[:8], y[:8, None], x[8:], y[8:, None], q, 0.1)
    assert lood.lood(q, x[8:], y[8:], "mean") == pytest.approx(m, abs=1e-9)
    assert lood.lood(q, x[8:], y[8:]) == pytest.approx(kl, abs=1e-9)
    one = LOOD(RBF(1.0), 0.1).fit(x, y)
    for k in range(3):
        rest = torch.arange(12) != 4
        m, _ = divergence(RBF(1.0), x[rest], y[rest, None], x[4:5], y[4:5, None], q[k : k + 1], 0.1)
        assert float(one.influence(4, q)[k]) == pytest.approx(m, abs=1e-9)
    assert float(one.influence(4, x[4:5])) == pytest.approx(float(one.memorization()[4]), abs=1e-12)


def test_the_variance_is_that_of_scikit_learns_process(points):
    gaussian = pytest.importorskip("sklearn.gaussian_process")
    x, y = points
    peer = gaussian.GaussianProcessRegressor(gaussian.kernels.RBF(0.7), alpha=0.1, optimizer=None)
    latent = [peer.fit(part, y[: len(part)]).predict(x[-1:], return_std=True) for part in (x[:-1], x)]
    (m0, s0), (m1, s1) = [(float(m[0]), float(s[0])) for m, s in latent]
    expected = math.log(s1 / s0) + (s0**2 + (m1 - m0) ** 2) / (2 * s1**2) - 0.5
    assert float(LOOD(RBF(0.7), 0.1).fit(x, y).leakage()[-1]) == pytest.approx(expected, abs=1e-6)


def test_the_divergence_is_stationary_at_the_record_and_the_mean_distance_is_not(points):
    x, y = points
    joined = LOOD(RBF(1.0), 0.1).fit(x, y)._joined([3])
    slopes = {}
    for kind in ("kl", "mean"):
        q = x[3].clone()[None, None].requires_grad_()
        joined.distance(q, kind)[0].sum().backward()
        slopes[kind] = float(q.grad.norm())
    assert slopes["kl"] < 1e-6
    assert slopes["mean"] > 1e-3
    # Without other data and with a kernel that is flat along the diagonal, it is.
    lone = LOOD(RBF(1.0), 0.1).fit(x[3:4], y[3:4])._joined([0])
    q = x[3].clone()[None, None].requires_grad_()
    lone.distance(q, "mean")[0].sum().backward()
    assert float(q.grad.norm()) < 1e-9


def test_divergence_is_never_negative_and_vanishes_far_away_or_for_pure_noise(points):
    x, y = points
    lood = LOOD(RBF(1.0), 0.1).fit(x[:-1], y[:-1])
    values = [lood.lood(q[None], x[-1:], y[-1:]) for q in draw(50, 2, seed=3)]
    assert min(values) >= 0
    assert max(values) <= lood.lood(x[-1:], x[-1:], y[-1:]) + 1e-12
    far = torch.full((1, 2), 50.0, dtype=torch.float64)
    assert lood.lood(far, x[-1:], y[-1:]) == lood.lood(far, x[-1:], y[-1:], "mean") == 0
    deaf = LOOD(RBF(1.0), 1e9).fit(x, y)
    assert float(deaf.leakage().max()) < 1e-8 and float(deaf.memorization().max()) < 1e-12


def test_a_record_of_which_the_process_knows_nothing_beforehand_and_learns_nothing_changes_nothing():
    x, y = draw(6, 3), draw(6, seed=1)
    x[2] = 0  # without biases the function is 0 there
    for noise in (0.01, 1e17):
        lood = LOOD(NNGPKernel(torch.relu, 2, 1.4, 0.0), noise).fit(x, y)
        for scores in (lood.memorization(), lood.leakage()):
            assert float(scores[2]) == pytest.approx(0, abs=1e-12) and bool((scores >= 0).all())


def test_small_leakages_keep_their_digits(points):
    x, y = points
    # Of a variance v far below the noise s the divergence is v^2 / (4 s^2) + v a^2 / (2 s^2).
    leakage, (a, v) = (f(LOOD(RBF(1.0), 1e6).fit(x, y)) for f in (LOOD.leakage, LOOD._left_out))
    assert torch.allclose(leakage, (v**2 / 4 + v * a[:, 0] ** 2 / 2) / 1e12, rtol=1e-5, atol=0)


def test_records_may_be_named_by_any_integer(points):
    lood = LOOD(RBF(1.0), 0.1).fit(*points)
    most = lood.memorization().argmax()
    wanted = lood.optimize_query(int(most), steps=3)
    for index in (most, np.int64(most), [int(most)]):
        assert lood.optimize_query(index, steps=3) == wanted
    assert torch.equal(lood.influence(most, points[0]), lood.influence(int(most), points[0]))
    for wrong in (1.5, "a", [0, 0.5]):
        with pytest.raises(InputError, match="integers"):
            lood.optimize_query(wrong)


def test_labels_change_the_mean_part_alone(points):
    x, y = points
    one, other = LOOD(RBF(1.0), 0.1).fit(x, 0 * y), LOOD(RBF(1.0), 0.1).fit(x, y)
    _, v = other._left_out()
    after = v * 0.1 / (v + 0.1)
    assert float(one.memorization().max()) == 0
    assert torch.allclose(other.leakage() - one.leakage(), other.memorization() / after)


def test_ascent_ends_at_the_record_that_differs(points):
    x, y = points
    starts = x[5] + 0.7 * torch.nn.functional.normalize(draw(3, 2, seed=7), dim=1)
    found = LOOD(RBF(1.0), 0.1).fit(x, y).optimize_query(5, starts[:, None], steps=400)
    assert float(found["distance"].sel(record=5).min()) < 1e-4
    assert float(found["similarity"].max()) == pytest.approx(1)
    assert found["history"].values[-1] == pytest.approx(float(LOOD(RBF(1.0), 0.1).fit(x, y).leakage()[5]), rel=1e-6)
    assert (found["value"].values <= found["history"].values[-1] + 1e-9).all()
    found.plot()


def test_ascent_finds_two_records_together():
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([1.0, -1, 1, -1])
    starts = x[[1, 2]][None] + 0.4 * draw(2, 2, 2)
    found = optimize_query(RBF(1.0), x, y, [1, 2], 0.1, init=starts, steps=300, lr=0.02)
    best = int(found["best"])
    assert found["distance"].values[best].max() < 1e-3
    assert found["record"].values.tolist() == [1, 2]


def test_the_query_for_a_digit_shows_the_digit():
    data = ac.world.digits.load("train").where(label=["0", "1"])
    x = data.images[:40].flatten(1).double()
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.where(data.labels[:40] == 1, 1.0, -1.0)
    found = LOOD(ReLUKernel(3), 0.01).fit(x, y).optimize_query(2, steps=200, starts=2)
    # The kernel knows directions only, so the length of the query says nothing.
    assert float(found["similarity"].max()) > 0.99


def test_deep_relu_kernels_remember_less_once_they_have_collapsed():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    chosen = np.flatnonzero(data.target < 2)[:200]
    x = torch.nn.functional.normalize(torch.from_numpy(data.data[chosen]), dim=1)
    y = torch.from_numpy(2.0 * data.target[chosen] - 1)
    # Hidden layers: mean leakage, and mean memorisation x 1000, from a computation of their own.
    expected = {2: (0.449, 1.23), 50: (0.632, 2.41), 100: (None, 2.23), 300: (None, 0.73)}
    for depth, (leakage, memorisation) in expected.items():
        lood = LOOD(UnitDiagonal(ReLUKernel(depth + 1)), 0.01).fit(x, y)
        assert 1000 * float(lood.memorization().mean()) == pytest.approx(memorisation, abs=0.01)
        if leakage is not None:
            assert float(lood.leakage().mean()) == pytest.approx(leakage, abs=0.001)
    share = torch.linalg.eigvalsh(lood.kernel_)[-1] / 200
    assert float(share) > 0.999


@pytest.mark.parametrize(
    ("phi", "sb", "expected"),
    [
        (torch.nn.functional.gelu, 0.05, {2: (0.275, 0.87), 10: (0.393, None), 50: (0.730, 1.53)}),
        (torch.tanh, 0.2, {2: (0.295, 0.96), 10: (0.480, None), 50: (0.853, 1.93)}),
    ],
)
def test_deeper_kernels_of_smooth_functions_leak_and_remember_more(phi, sb, expected):
    """The numbers are those of correlations that start as the digits' cosines, without biases in the first layer."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    chosen = np.flatnonzero(data.target < 2)[:200]
    x = torch.nn.functional.normalize(torch.from_numpy(data.data[chosen]), dim=1)
    y = torch.from_numpy(2.0 * data.target[chosen] - 1)
    point = ac.signal.EdgeOfChaos(phi).point(sb)
    layer, q = NNGPKernel(phi, 2, point.sw, sb), torch.full((200,), point.q, dtype=torch.float64)
    cosines, names = x @ x.T, torch.arange(200)[:, None].double()
    for depth in range(1, 51):
        cosines = layer._next(q[:, None], q[None, :], point.q * cosines) / point.q
        if depth in expected:
            k = (cosines + cosines.T) / 2
            lood = LOOD(lambda a, b, k=k: k[a[:, 0].long()][:, b[:, 0].long()], 0.01).fit(names, y)
            leakage, memorisation = expected[depth]
            assert float(lood.leakage().mean()) == pytest.approx(leakage, abs=0.001)
            if memorisation is not None:
                assert 1000 * float(lood.memorization().mean()) == pytest.approx(memorisation, abs=0.01)


def test_the_relu_kernel_is_that_of_nngp_and_its_gradient_is_right():
    x, z = draw(6, 4), draw(5, 4, seed=1)
    for depth, sw, sb in ((1, 1.0, 0.3), (3, 1.4, 0.2), (5, 2**0.5, 0.0)):
        assert torch.allclose(ReLUKernel(depth, sw, sb)(x, z), NNGPKernel(torch.relu, depth, sw, sb)(x, z), atol=1e-7)
    for kernel in (ReLUKernel(3, 1.4, 0.2), UnitDiagonal(ReLUKernel(3, 1.4, 0.2)), RBF(1.3)):
        assert torch.autograd.gradcheck(lambda a, k=kernel: k(a, z), x.clone().requires_grad_())
    q = x.clone().requires_grad_()
    ReLUKernel(4)(q, q).sum().backward()
    assert bool(torch.isfinite(q.grad).all())
    unit = UnitDiagonal(ReLUKernel(3, 1.4, 0.2))
    assert torch.allclose(unit(x, x).diagonal(), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(unit(x, x), unit(x, x.clone()), atol=1e-7)
    assert RBF(2.0)(x, z).numpy() == pytest.approx(np.exp(-(torch.cdist(x, z) ** 2).numpy() / 8), rel=1e-9)


def test_the_tangent_kernel_can_be_used_too():
    x = torch.nn.functional.normalize(draw(10, 4), dim=1)
    lood = LOOD(partial(analytic_ntk_relu, depth=2), 0.05).fit(x, torch.sign(draw(10, seed=1)))
    assert (lood.memorization() > 0).all() and (lood.leakage() > 0).all()
    found = lood.optimize_query(1, x[1][None] + 0.2 * draw(1, 4, seed=3), steps=200, lr=0.01)
    assert float(found["similarity"].max()) > 0.99


def test_queries_of_low_rank_are_reported_or_refused(points):
    x, y = points
    lood = LOOD(RBF(1.0), 0.1).fit(x[:-1], y[:-1])
    twice = x[[0, 0]] + torch.tensor([[0.0, 0.0], [1e-7, 0.0]], dtype=torch.float64)
    with pytest.warns(ActiniumWarning, match="jitter"):
        value = lood.lood(twice, x[-1:], y[-1:])
    assert value == pytest.approx(lood.lood(x[:1], x[-1:], y[-1:]), rel=1e-3)
    tiny = LOOD(RBF(1.0), 1e-9).fit(x[:-1], y[:-1])
    with pytest.raises(InputError, match="lower rank"):
        tiny.lood(10 + 0.01 * draw(40, 2), x[-1:], y[-1:])


def test_bad_input_is_refused(points):
    x, y = points
    lood = LOOD(RBF(1.0), 0.1).fit(x, y)
    for noise in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0"):
            LOOD(RBF(1.0), noise).fit(x, y)
    with pytest.raises(InputError, match="for 12 records"):
        LOOD(RBF(1.0)).fit(x, y[:5])
    with pytest.raises(InputError, match="NaN"):
        LOOD(RBF(1.0)).fit(x, y * float("nan"))
    with pytest.raises(InputError, match="call fit"):
        LOOD(RBF(1.0)).memorization()
    with pytest.raises(InputError, match="semi-definite"):
        LOOD(lambda a, b: -RBF(1.0)(a, b)).fit(x, y)
    with pytest.raises(InputError, match="expected 2"):
        lood.influence(0, torch.zeros(1, 3))
    with pytest.raises(InputError, match="different records"):
        lood.optimize_query([1, 1])
    with pytest.raises(InputError, match="different records"):
        lood.influence(12, x)
    with pytest.raises(InputError, match="kl, mean"):
        lood.lood(x[:1], x[:1], y[:1], "js")
    with pytest.raises(InputError, match=r"\(starts, 1, 2\)"):
        lood.optimize_query(0, torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match="outputs"):
        lood.lood(x[:1], x[:1], torch.zeros(1, 2))
    with pytest.warns(ActiniumWarning, match="already"):
        lood.lood(draw(1, 2), x[:1], y[:1])
    with pytest.raises(InputError, match="no gradient"):
        LOOD(NNGPKernel(torch.tanh, 2, 1.3, 0.2), 0.1).fit(x, y).optimize_query(0)
    with pytest.raises(InputError, match="length"):
        RBF(0.0)
    with pytest.raises(InputError, match="depth"):
        ReLUKernel(0)
    with pytest.raises(InputError, match="zero"):
        ReLUKernel(2)(torch.zeros(1, 2), x)
    with pytest.raises(InputError, match="features"):
        RBF(1.0)(x, torch.zeros(1, 3))
