"""APA and AGLU: special cases, gradients, extreme numbers; their attention gates; families of pre-activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.units.adaptive_parametric import (
    AGLU,
    APA,
    CBAMWithAPA,
    CosineClassifier,
    SEWithAPA,
    calibrate_long_tail,
    fit_preactivation_family,
)

Z = torch.linspace(-8, 8, 1601, dtype=torch.float64)


def unit(made, lam=1.0, kap=1.0, **settings):
    module = made(lambda_init=1.0, kappa_init=1.0, **({"lambda_min": 1e-9} | settings)).double()
    with torch.no_grad():
        module.lam.fill_(lam)
        module.kap.fill_(kap)
    return module


def at(module, z):
    return module(torch.tensor(z, dtype=torch.float64)).item()


def test_special_cases_of_the_gate():
    assert at(unit(APA), 1.3) == pytest.approx(0.7858349830, abs=1e-10)
    assert at(unit(APA, 1e-7), 1.3) == pytest.approx(0.76144922, abs=1e-7)
    assert at(unit(APA, 1e-7), 1.3) == pytest.approx(math.exp(-math.exp(-1.3)), abs=1e-7)
    for lam, value in ((0.5, 0.4444444444), (1.0, 0.5), (2.0, 0.5773502692)):
        assert at(unit(APA, lam), 0.0) == pytest.approx(value, abs=1e-10)
        constant = unit(APA, lam, 0.0)(Z)
        torch.testing.assert_close(constant, torch.full_like(Z, (1 + lam) ** (-1 / lam)))


def test_special_cases_of_the_unit():
    torch.testing.assert_close(unit(AGLU)(Z), nn.functional.silu(Z), rtol=0, atol=1e-12)
    near = (unit(AGLU, 1.0, 1.702)(Z) - nn.functional.gelu(Z)).abs().max()
    assert near.item() == pytest.approx(0.02034, abs=1e-5)
    assert (unit(AGLU, 1.0, 1000.0)(Z) - torch.relu(Z)).abs().max().item() < 1e-3
    torch.testing.assert_close(unit(AGLU, 1e-7)(Z), ac.functions.get("golu")(Z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unit(APA, 0.5, 0.7)(Z), ac.functions.functional("APA")(Z, l=0.5, k=0.7))
    torch.testing.assert_close(unit(AGLU, 0.5, 0.7)(Z), ac.functions.functional("AGLU")(Z, l=0.5, k=0.7))


@pytest.mark.parametrize("lam", [1e-4, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("kap", [0.5, 2.0, -1.0])
def test_the_gate_is_the_power_lies_in_the_unit_interval_and_turns_with_kappa(lam, kap):
    y = unit(APA, lam, kap)(Z / 2).detach()
    torch.testing.assert_close(y, (lam * torch.exp(-kap * Z / 2) + 1) ** (-1 / lam), rtol=1e-9, atol=1e-300)
    assert bool(((y >= 0) & (y <= 1)).all())
    steps = y.diff() * math.copysign(1, kap)
    assert bool((steps >= 0).all()) and steps.max() > 0


@pytest.mark.parametrize("made", [APA, AGLU])
@pytest.mark.parametrize("lam", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_numbers_give_no_nan(made, lam, dtype):
    module = made(lambda_init=lam, kappa_init=1.0)
    x = torch.tensor([-3e38, -1e4, 0.0, 1e4, 3e38], dtype=dtype, requires_grad=True)
    y = module(x)
    y[1:-1].sum().backward()
    assert y.dtype == dtype and bool(y.isfinite().all() and x.grad.isfinite().all())
    assert bool(module.lam.grad.isfinite().all() and module.kap.grad.isfinite().all())
    wanted = [0, 0, None, 1, 1] if made is APA else [0, 0, 0, 1e4, 3e38]
    for got, value in zip(y.tolist(), wanted, strict=True):
        assert value is None or got == pytest.approx(value, rel=1e-2, abs=1e-2 if value == 0 and lam > 1 else 1e-30)


def test_gradients_are_the_closed_forms_and_those_of_the_release():
    for lam, kap in ((0.4, 0.9), (1.7, -0.6), (1.0, 1.0)):
        z = Z.clone().requires_grad_()
        module = unit(AGLU, lam, kap)
        module(z).sum().backward()
        p = (lam * torch.exp(-kap * Z) + 1) ** (-1 / lam)
        c = p / (lam + torch.exp(kap * Z))
        torch.testing.assert_close(z.grad, kap * Z * c + p, rtol=1e-8, atol=1e-8)
        assert module.kap.grad.item() == pytest.approx((Z**2 * c).sum().item(), rel=1e-8)
        soft = torch.log1p(lam * torch.exp(-kap * Z))
        full = Z * p * (soft / lam**2 - 1 / (lam * (lam + torch.exp(kap * Z))))
        assert module.lam.grad.item() == pytest.approx(full.sum().item(), rel=1e-8)
        released = unit(AGLU, lam, kap, exact_lambda_grad=False)
        torch.testing.assert_close(released(Z), module(Z), rtol=0, atol=0)
        released(Z).sum().backward()
        assert released.lam.grad.item() == pytest.approx((-(Z / lam) * c).sum().item(), rel=1e-8)
        assert released.kap.grad.item() == pytest.approx(module.kap.grad.item(), rel=1e-12)


def test_every_channel_has_its_shape_and_starts_are_drawn_where_they_should():
    torch.manual_seed(0)
    module = AGLU(200)
    assert module.lam.min() > 0 and module.lam.max() <= 1 and module.lam.std() > 0.2
    assert module.kap.min() >= 0.8 and module.kap.max() <= 1.2
    x = torch.randn(3, 200, 4)
    one = AGLU(lambda_init=module.lam[7].item(), kappa_init=module.kap[7].item())
    torch.testing.assert_close(module(x)[:, 7], one(x[:, 7]))
    falling = APA(50, kappa_init=(-1.0, 0.0))
    assert falling.kap.max() <= 0


def test_channel_attention_multiplies_by_the_gate_of_the_means():
    torch.manual_seed(0)
    block = SEWithAPA(32, gate=APA(32)).eval()
    x = torch.randn(2, 32, 5, 6)
    norm, first, _, second, _ = block.mlp
    inner = torch.relu(first(norm(x.mean((2, 3)))))
    assert inner.shape == (2, 2)
    torch.testing.assert_close(block(x), x * block.gate(second(inner))[..., None, None])
    plain = SEWithAPA(8, normalise=False, gate=nn.Sigmoid()).eval()
    y = torch.randn(3, 8, 4, 4)
    scores = plain.mlp[2](torch.relu(plain.mlp[0](y.mean((2, 3)))))
    torch.testing.assert_close(plain(y), y * torch.sigmoid(scores)[..., None, None])


def test_channel_and_spatial_attention_are_their_formulas():
    torch.manual_seed(0)
    block = CBAMWithAPA(16, reduction=4).eval()
    x = torch.randn(2, 16, 9, 8)
    gates = block.channel_gate(block.mlp(x.mean((2, 3))) + block.mlp(x.flatten(2).max(2).values))
    y = x * gates[..., None, None]
    pooled = torch.stack([y.max(1).values, y.mean(1)], 1)
    conv = nn.functional.conv2d(pooled, block.spatial[0].weight, padding=3) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(block(x), y * block.spatial_gate(conv), rtol=1e-4, atol=1e-5)
    block.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("gumbel", lambda g: g.gumbel(size=5000)),
        ("logistic", lambda g: g.logistic(size=5000)),
        ("normal", lambda g: g.normal(size=5000)),
        ("gumbel (left)", lambda g: -g.gumbel(size=5000)),
    ],
)
def test_the_family_of_values_is_found(name, draw):
    values = 2.0 * draw(np.random.default_rng(0)) + 0.5
    found = fit_preactivation_family(torch.from_numpy(values).view(50, 100))
    assert next(iter(found)) == name == min(found, key=lambda k: found[k].ks)
    assert found[name].params == pytest.approx((0.5, 2.0), abs=0.12)
    normal = stats.norm(values.mean(), values.std())
    assert found["normal"].loglik == pytest.approx(normal.logpdf(values).sum(), rel=1e-9)


def test_calibration_takes_the_classes_odds_out():
    counts = torch.tensor([90, 9, 1])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    wanted = logits + torch.tensor([math.log(10 / 90), math.log(91 / 9), math.log(99 / 1)])
    torch.testing.assert_close(calibrate_long_tail(logits, counts), wanted)
    torch.testing.assert_close(calibrate_long_tail(logits, [7, 7, 7]).softmax(-1), logits.softmax(-1))


def test_the_cosine_classifier_bounds_its_logits():
    torch.manual_seed(0)
    head = CosineClassifier(5, 3)
    x = torch.randn(10, 5)
    w = head.weight / head.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(x), 16 * (x / (1 + x.norm(dim=1, keepdim=True))) @ w.T)
    assert head(1000 * x).abs().max() <= 16


def test_in_a_transformer_a_fitted_unit_keeps_the_logits_near():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="gelu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
        with ac.functions.replace(net, "gelu", lambda: AGLU(lambda_init=1.0, kappa_init=0.3)):
            far = (net(ids).logits - before).abs().max()
        with ac.functions.replace(net, "gelu", lambda: AGLU(lambda_init=1.0, kappa_init=0.3), preserve=True) as swap:
            near = (net(ids).logits - before).abs().max()
            fitted = [net.transformer.h[i].mlp.act for i in range(2)]
    assert near < 0.25 * far and all(fit.max_error < 0.03 for fit in swap.fits.values())
    assert all(1.4 < unit.kap.item() < 2.0 for unit in fitted)


def test_lambda_and_kappa_are_learnt_on_digits():
    data = ac.world.digits.load("train")
    x = (data.images.flatten(1) - data.images.mean()) / data.images.std()
    torch.manual_seed(0)
    act = AGLU()
    start = [p.item() for p in act.parameters()]
    net = nn.Sequential(nn.Linear(64, 32), act, nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(200):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), data.labels[rows]).backward()
        optimiser.step()
    assert (net(x).argmax(1) == data.labels).float().mean() > 0.9
    assert all(abs(p.item() - q) > 0.01 for p, q in zip(act.parameters(), start, strict=True))


def test_what_makes_no_gate_is_refused():
    for lam in (0.0, -1.0, (-1.0, 1.0)):
        with pytest.raises(InputError, match="lambda starts above 0"):
            APA(lambda_init=lam)
    for start in ((1.0, 0.0), math.nan, (0.0, math.inf)):
        with pytest.raises(InputError, match="kappa starts"):
            AGLU(kappa_init=start)
    with pytest.raises(InputError, match="lambda_min"):
        APA(lambda_min=0.0)
    with pytest.raises(InputError, match="4 channels"):
        APA(4)(torch.zeros(2, 3))
    with pytest.raises(InputError, match="floating-point"):
        AGLU()(torch.arange(3))
    with pytest.raises(InputError, match="a gate has channels"):
        SEWithAPA(0)
    with pytest.raises(InputError, match="odd kernel"):
        CBAMWithAPA(8, kernel=4)
    for x in (torch.zeros(2, 7, 3, 3), torch.zeros(2, 8), torch.zeros(2, 8, 0, 3)):
        with pytest.raises(InputError, match="images"):
            SEWithAPA(8)(x)
        with pytest.raises(InputError, match="images"):
            CBAMWithAPA(8)(x)
    for z in (torch.zeros(100), torch.randn(5), torch.full((20,), math.nan)):
        with pytest.raises(InputError, match="ten finite values"):
            fit_preactivation_family(z)
    for counts in ([1, 2], [0, 1, 2], [1, 2, math.inf]):
        with pytest.raises(InputError, match="counts"):
            calibrate_long_tail(torch.zeros(4, 3), counts)
    with pytest.raises(InputError, match="positive scale"):
        CosineClassifier(3, 2, scale=0.0)
