"""Entropies above their targets, against closed forms, scipy and networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.layers.entropy_constraint import (
    ERAGaussian,
    ERASoftmax,
    ERATokenScaling,
    inverse_entropy_term,
    policy_entropy,
)


def normal(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def test_entropies_are_those_of_scipy():
    z, log_std, mu = normal(5, 7), normal(4, 3), normal(4, 3, seed=1)
    expected = stats.entropy(torch.softmax(z, -1).numpy(), axis=-1)
    np.testing.assert_allclose(policy_entropy(logits=z), expected, rtol=1e-12)
    np.testing.assert_allclose(
        policy_entropy(log_std=log_std), stats.norm(scale=log_std.exp()).entropy().sum(-1), rtol=1e-12
    )
    loc, scale = torch.tanh(mu).numpy(), log_std.exp().numpy()
    cut = stats.truncnorm((-1 - loc) / scale, (1 - loc) / scale, loc, scale)
    np.testing.assert_allclose(policy_entropy(log_std=log_std, mu=mu), cut.entropy().sum(-1), rtol=1e-8)
    assert float(policy_entropy(logits=torch.tensor([0.0, -math.inf, 0.0]))) == pytest.approx(math.log(2))


def test_the_cut_policy_is_scipys():
    mu, log_std = normal(4, 3), normal(4, 3, seed=1) - 0.5
    policy = ac.functions.TruncatedNormalPolicy(mu, log_std)
    loc, scale = torch.tanh(mu).numpy(), log_std.exp().numpy()
    cut = stats.truncnorm((-1 - loc) / scale, (1 - loc) / scale, loc, scale)
    torch.manual_seed(0)
    drawn = policy.sample((4000,))
    assert drawn.shape == (4000, 4, 3) and policy.batch_shape == (4,) and policy.event_shape == (3,)
    np.testing.assert_allclose(policy.log_prob(drawn), cut.logpdf(drawn.numpy()).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(policy.entropy(), cut.entropy().sum(-1), rtol=1e-8)
    for i in range(4):
        for j in range(3):
            one = stats.truncnorm((-1 - loc[i, j]) / scale[i, j], (1 - loc[i, j]) / scale[i, j], loc[i, j], scale[i, j])
            assert stats.kstest(drawn[:, i, j].numpy(), one.cdf).pvalue > 1e-4
    assert torch.equal(policy.mode, torch.tanh(mu))
    np.testing.assert_allclose(policy.mean, cut.mean(), rtol=1e-8)
    np.testing.assert_allclose(policy.variance, cut.var(), rtol=1e-8)
    # Gradients are those of the mean.
    mu, log_std = mu.requires_grad_(), log_std.requires_grad_()
    policy = ac.functions.TruncatedNormalPolicy(mu, log_std)
    found = torch.autograd.grad(policy.rsample((200_000,)).mean(0).sum(), (mu, log_std), retain_graph=True)
    for one, wanted in zip(found, torch.autograd.grad(policy.mean.sum(), (mu, log_std)), strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-2, rtol=1e-2)


def test_the_cut_policy_keeps_within_its_limits():
    narrow = ac.functions.TruncatedNormalPolicy(torch.tensor([[8.0, -8.0]]), torch.tensor([[-8.0, -8.0]]))
    drawn = narrow.rsample((1000,))
    assert float(drawn.abs().max()) <= 1 - 9e-7 and drawn.isfinite().all()
    assert float(narrow.log_prob(torch.zeros(1, 2))) == -40.0
    half = ac.functions.TruncatedNormalPolicy(torch.tensor([[0.3]]).bfloat16(), torch.tensor([[-1.0]]).bfloat16())
    full = ac.functions.TruncatedNormalPolicy(torch.tensor([[0.3]]).bfloat16().float(), torch.tensor([[-1.0]]))
    action = torch.tensor([[0.25]])
    assert half.rsample().dtype == torch.float32
    torch.testing.assert_close(half.log_prob(action), full.log_prob(action))
    with pytest.raises(InputError, match="one shape"):
        ac.functions.TruncatedNormalPolicy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InputError, match="NaN"):
        ac.functions.TruncatedNormalPolicy(torch.tensor([math.nan]), torch.zeros(1))


def test_a_gaussian_has_its_target_entropy_exactly_without_a_floor():
    head = ERAGaussian(6 * 0.25)
    for scale in (0.0, 1.0, 3.0):
        mu, log_std = head(normal(100, 6), normal(100, 6, scale=scale) / 2)
        if scale < 3:
            assert float((policy_entropy(log_std=log_std) - 1.5).abs().max()) < 1e-12
        assert torch.equal(mu, normal(100, 6)) and float(log_std.max()) <= 0


def test_where_a_floor_is_hit_the_entropy_is_above_the_target():
    head = ERAGaussian(6 * -0.5)
    s = normal(5000, 6, scale=5)
    log_std = head(s, s)[1]
    entropy = policy_entropy(log_std=log_std)
    floored = (log_std == -8).any(-1)
    assert float(entropy.min()) >= -3 - 1e-12
    assert bool((entropy[floored] > -3 + 1e-9).all()) and bool(floored.any())
    assert float((entropy[~floored] + 3).abs().max()) < 1e-12


def test_a_constant_delta_is_added_to_the_target():
    s = normal(50, 4)
    entropy = policy_entropy(log_std=ERAGaussian(-2.0, delta=0.7)(s, s)[1])
    torch.testing.assert_close(entropy, torch.full((50,), -1.3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_learned_delta_brings_the_entropy_of_bounded_actions_to_the_target():
    head = ERAGaussian(0.0, delta="learned")
    mu, s = normal(200, 2, scale=0.5), normal(200, 2, scale=0.5)
    before = float(policy_entropy(log_std=head(mu, s)[1], mu=mu).mean())
    assert before < -0.05  # what cutting to -1..1 takes
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(300):
        loss = head.delta_loss(policy_entropy(log_std=head(mu, s)[1], mu=mu))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(policy_entropy(log_std=head(mu, s)[1], mu=mu).mean()) == pytest.approx(0, abs=0.02)
    assert float(head.delta.detach()) > 0
    s.requires_grad_()
    head.delta.grad = None
    head(mu, s)[1].sum().backward()
    assert head.delta.grad is None and s.grad is not None  # an actor's loss does not reach delta


@pytest.mark.parametrize("bound", [0.6, 1.2])
def test_the_terms_add_up_to_the_bound(bound):
    h = ERASoftmax(bound).terms(normal(1000, 10, scale=5))
    expected = {0.6: 0.6703200460, 1.2: 1.2214027582}[bound]
    np.testing.assert_allclose(h.sum(-1), expected, atol=1e-10)


def test_the_terms_are_the_affine_form_of_the_published_code():
    z, m, total, d = normal(100, 10, scale=3), math.log(4) / 4, math.exp(0.2), 10
    slope = (m - total / d) / (1 - 1 / d)
    torch.testing.assert_close(
        ERASoftmax(1.2).terms(z), slope * z.softmax(-1) + (total - slope) / d, rtol=1e-12, atol=0
    )


def test_the_inverse_is_lamberts_function():
    u = torch.linspace(1e-3, 8, 4001, dtype=torch.float64)
    h = torch.exp(-1 - u)
    true = special.lambertw(-h.numpy(), -1).real
    np.testing.assert_allclose(inverse_entropy_term(h, exact=True), true, rtol=1e-10)
    off = np.abs(inverse_entropy_term(h).numpy() - true)
    assert off.max() == pytest.approx(0.437, abs=1e-3) and (off / np.abs(true)).max() < 0.04
    t = torch.tensor([-1.2, -2.0, -9.0], dtype=torch.float64)
    torch.testing.assert_close(inverse_entropy_term(-t * t.exp(), exact=True), t, rtol=1e-9, atol=0)


def test_gradients_of_both_inverses_are_those_of_finite_differences():
    z = normal(3, 6, scale=2).requires_grad_()
    for inverse in ("approx", "lambert"):
        # The smallest logit is subtracted without gradient, so that differences of logits are what is compared.
        era = ERASoftmax(0.8, inverse=inverse)
        assert torch.autograd.gradcheck(lambda t, era=era: torch.log_softmax(era(t), -1), z, atol=1e-6)


@pytest.mark.parametrize(("inverse", "bound", "least"), [
    ("approx", 0.6, 0.9825), ("approx", 1.2, 1.7683), ("lambert", 0.6, 0.9699), ("lambert", 1.2, 1.7735),
])  # fmt: skip
def test_the_surest_logits_keep_the_measured_entropy(inverse, bound, least):
    z = normal(20_000, 10, scale=100)
    out = ERASoftmax(bound, inverse=inverse)(z)
    assert float(policy_entropy(logits=out).min()) == pytest.approx(least, abs=1e-4)
    if inverse == "approx":
        assert float(out.softmax(-1).max()) == pytest.approx({0.6: 0.788, 1.2: 0.511}[bound], abs=1e-3)
    assert torch.equal(out.argmax(-1), z.argmax(-1))


def test_a_thousand_classes_keep_the_measured_entropy():
    out = ERASoftmax(1.2)(normal(2000, 1000, scale=100))
    assert float(policy_entropy(logits=out).min()) == pytest.approx(2.91, abs=0.01)


@pytest.mark.parametrize("tau", [math.e, 4.0, 20.0])
@pytest.mark.parametrize("d", [2, 3, 10, 300])
@pytest.mark.parametrize("inverse", ["approx", "lambert"])
def test_the_bound_holds_over_its_whole_range(tau, d, inverse):
    m = math.log(tau) / tau
    low, high = 1 + math.log(m), min(math.log(d), 1 + math.log(d * m))
    z = torch.cat([normal(300, d, scale=s) for s in (0.1, 1, 5, 100)])
    for share in (0.01, 0.5, 0.99):
        bound = low + share * (high - low)
        out = ERASoftmax(bound, tau, inverse)(z)
        assert float(policy_entropy(logits=out).min()) >= bound - 1e-9
        assert torch.equal(out.argmax(-1), z.argmax(-1))


def test_equal_logits_stay_equal():
    out = ERASoftmax()(torch.zeros(3, 10, dtype=torch.float64))
    assert float(policy_entropy(logits=out).max()) == pytest.approx(math.log(10), abs=1e-14)


def test_logits_of_a_language_model_get_their_entropy():
    lm = ac.load("world:lm")
    z = lm.logits(["The cat sat on the mat. The owl lives in the"]).detach()
    for dtype in (torch.float32, torch.bfloat16):
        out = ERASoftmax(1.2)(z.to(dtype))
        assert out.dtype == dtype
        assert float(policy_entropy(logits=out).min()) >= 1.2
    assert torch.equal(ERASoftmax(1.2)(z).argmax(-1), z.argmax(-1))
    assert float(policy_entropy(logits=z).min()) < 0.6


def test_a_trained_classifier_is_never_surer_than_the_bound_and_as_accurate():
    train, test = (ac.world.digits.load(s) for s in ("train", "test"))
    found = {}
    for name, last in (("plain", nn.Identity()), ("era", ERASoftmax(0.6))):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), last
        )
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(10):
            for rows in torch.randperm(len(train.images)).split(64):
                loss = nn.functional.cross_entropy(net(train.images[rows]), train.labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            out = net(test.images)
        found[name] = (float(policy_entropy(logits=out).min()), float((out.argmax(1) == test.labels).float().mean()))
    assert found["plain"][0] < 0.1 and found["era"][0] >= 0.6
    assert found["era"][1] >= found["plain"][1] - 0.015


def responses(b=4, t=10, v=12):
    logits = normal(b, t, v) * torch.tensor([20.0, 3.0, 1.0, 0.01]).view(b, 1, 1)
    mask = torch.ones(b, t)
    mask[1, 6:] = 0
    return logits, torch.tensor([[1.0, -1.0] * 5] * b), mask


def test_the_entropy_of_a_response_is_the_mean_of_its_largest_ones():
    logits, _, mask = responses()
    got = ERATokenScaling(top_frac=0.3).response_entropy(logits, mask)
    entropy = policy_entropy(logits=logits)
    for row, k, n in ((0, 3, 10), (1, 1, 6)):
        assert float(got[row]) == pytest.approx(
            float(entropy[row, :n].sort(descending=True).values[:k].mean()), abs=1e-12
        )


def test_the_entropy_of_a_response_longer_than_one_part_is_that_of_all_its_tokens():
    logits, mask = normal(2, 2500, 5), torch.ones(2, 2500)
    whole = policy_entropy(logits=logits).topk(500).values.mean(1)
    torch.testing.assert_close(ERATokenScaling().response_entropy(logits, mask), whole)


def test_sure_responses_are_sharpened_and_unsure_ones_flattened_where_the_advantage_is_positive():
    logits, advantages, mask = responses()
    scaling = ERATokenScaling(0.5, 2.4, 2.0, scale_advantage=True)
    h = scaling.response_entropy(logits, mask)
    assert h[0] < 0.5 and h[3] > 2.4 and bool(((h[1:3] >= 0.5) & (h[1:3] <= 2.4)).all())
    z, a = scaling(logits, advantages, mask)
    good = advantages[0] > 0
    torch.testing.assert_close(z[0, good], 2 * logits[0, good])
    torch.testing.assert_close(z[3, good], logits[3, good] / 2)
    torch.testing.assert_close(z[:, ~good], logits[:, ~good], rtol=0, atol=0)
    torch.testing.assert_close(z[1:3], logits[1:3], rtol=0, atol=0)
    assert (
        a[0].unique().tolist() == [-1, 0.5] and a[3].unique().tolist() == [-1, 2] and a[1].unique().tolist() == [-1, 1]
    )
    whole, b = scaling(logits, torch.tensor([1.0, 1, 1, -1]), mask)
    torch.testing.assert_close(whole[0], 2 * logits[0])
    assert b.tolist() == [0.5, 1, 1, -1] and torch.equal(whole[3], logits[3])


def test_a_factor_of_one_changes_nothing_and_padding_stays():
    logits, advantages, mask = responses()
    z, a = ERATokenScaling(k=1.0, scale_advantage=True)(logits, advantages, mask)
    assert torch.equal(z, logits) and torch.equal(a, advantages)
    padded = logits.clone()
    padded[1, 6:] = math.nan
    z, _ = ERATokenScaling(0.0, 1e-9)(padded, advantages, mask)
    torch.testing.assert_close(z[1, :6:2], logits[1, :6:2] / 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: ERASoftmax(-0.06), "-0.05966"),
        (lambda: ERASoftmax(0.6, 2.7), "from e"),
        (lambda: ERASoftmax(0.6, inverse="exact"), "inverse"),
        (lambda: ERASoftmax(2.31)(torch.zeros(10)), "10 classes"),
        (lambda: ERASoftmax(2.28)(torch.zeros(10)), "bound is below 2.243"),
        (lambda: ERASoftmax()(torch.zeros(3, 1)), "classes"),
        (lambda: ERASoftmax()(torch.tensor([math.nan, 0.0])), "NaN"),
        (lambda: ERAGaussian(math.nan), "finite"),
        (lambda: ERAGaussian(0.0, 1.0, 1.0), "below log_std_max"),
        (lambda: ERAGaussian(0.0, delta=-1.0), "delta"),
        (lambda: ERAGaussian(9.0)(torch.zeros(6), torch.zeros(6)), "below the target"),
        (lambda: ERAGaussian(0.0)(torch.zeros(6), torch.zeros(5)), "one shape"),
        (lambda: ERAGaussian(0.0).delta_loss(torch.zeros(2)), "constant"),
        (lambda: ERATokenScaling(3.0, 0.45), "low is below"),
        (lambda: ERATokenScaling(k=0.5), "k is 1"),
        (lambda: ERATokenScaling()(torch.zeros(2, 3, 4), torch.zeros(2), torch.zeros(2, 3)), "without tokens"),
        (lambda: ERATokenScaling()(torch.zeros(2, 3, 4), torch.zeros(3), torch.ones(2, 3)), "expected logits"),
        (lambda: policy_entropy(), "needed"),
        (lambda: policy_entropy(mu=torch.zeros(2), logits=torch.zeros(2)), "needed"),
    ],
)  # fmt: skip
def test_what_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()
