"""Attribution maps, attacks on them, and the training that protects them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from actinium.core.errors import InputError, UnknownNameError
from actinium.guard import (
    AttributionProtection,
    IGRegularizer,
    attribution_map,
    attribution_robustness,
    ifia,
    integrated_gradients,
    kendall_from_cosine,
    pgd,
    state_agreement,
    topk_intersection,
)


def network(activation=nn.ReLU, seed=0, inputs=16, classes=3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 32), activation(), nn.Linear(32, classes)).eval()


def data(n=12, inputs=16, classes=3, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, inputs, generator=random), torch.randint(0, classes, (n,), generator=random)


def tau(a, b) -> float:
    """Kendall's tau-b by counting pairs."""
    i, j = np.triu_indices(len(a), 1)
    one, other = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    return float((one * other).sum() / math.sqrt((one != 0).sum() * (other != 0).sum()))


@pytest.mark.parametrize(("cosine", "expected"), [(0.5, 1 / 3), (0.9, 0.712867), (0.99, 0.909893), (1, 1), (-1, -1)])
def test_kendall_of_gaussian_pairs_is_greiners_relation(cosine, expected):
    assert kendall_from_cosine(cosine) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_relation_is_met_by_gaussian_maps(rho):
    random = np.random.default_rng(0)
    a, noise = random.standard_normal((2, 40, 500))
    b = rho * a + math.sqrt(1 - rho**2) * noise
    assert np.mean([tau(x, y) for x, y in zip(a, b, strict=True)]) == pytest.approx(
        float(kendall_from_cosine(rho)), abs=0.01
    )


@pytest.mark.parametrize(("activation", "steps", "tolerance"), [(nn.ReLU, 200, 1e-2), (nn.Softplus, 200, 1e-4)])
def test_integrated_gradients_add_up_to_the_change_of_the_score(activation, steps, tolerance):
    model, (x, y) = network(activation), data()
    found = integrated_gradients(model, x, y, steps=steps, baseline=0.2).sum(1)
    with torch.no_grad():
        change = (model(x) - model(torch.full_like(x, 0.2))).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(found, change, atol=tolerance, rtol=0)


def test_integrated_gradients_are_the_midpoint_rule_written_out():
    model, (x, y) = network(nn.Softplus), data(n=3)
    total = torch.zeros_like(x)
    for k in range(1, 6):
        point = ((k - 0.5) / 5 * x).requires_grad_()
        total += torch.autograd.grad(model(point).gather(1, y[:, None]).sum(), point)[0]
    torch.testing.assert_close(integrated_gradients(model, x, y, steps=5), x * total / 5)


def test_attribution_of_a_linear_model_is_input_times_weight_and_states_agree():
    model, (x, y) = nn.Linear(16, 3), data()
    torch.testing.assert_close(integrated_gradients(model, x, y, steps=3, baseline=0.1), (x - 0.1) * model.weight[y])
    torch.testing.assert_close(attribution_map(model, x, y, "gradxinput"), x * model.weight[y])
    torch.testing.assert_close(attribution_map(model, x, y, "saliency"), model.weight[y].abs())
    same = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    assert state_agreement(same, x, x).tolist() == [1.0] * len(x)


def test_state_agreement_counts_units_by_hand():
    model, (x, _) = network(), data()
    other = x.flip(0)
    on = [model[0](t) > 0 for t in (x, other)]
    torch.testing.assert_close(state_agreement(model, x, other), (on[0] == on[1]).double().mean(1))


def test_penalty_is_0_without_a_change_between_0_and_2_and_blind_to_the_scale_of_the_scores():
    model, (x, y) = network(), data()
    rule = IGRegularizer(steps=4)
    assert float(rule(model, x, x, y).detach()) == pytest.approx(0.0, abs=1e-6)
    other = pgd(model, x, y, 0.3)
    value = float(rule(model, x, other, y).detach())
    assert 0 < value <= 2
    scaled = lambda z: 7.0 * model(z)  # noqa: E731
    assert float(rule(scaled, x, other, y).detach()) == pytest.approx(value, rel=1e-4)


def test_penalty_has_a_gradient_to_the_weights_that_finite_differences_confirm():
    model, (x, y) = network(nn.Softplus).double(), data()
    x, other = x.double(), x.double() + 0.05
    rule = IGRegularizer(steps=3, lam=2.0)
    rule(model, x, other, y).backward()
    weight, step = model[0].weight, 1e-6
    with torch.no_grad():
        slopes = []
        for sign in (1, -1):
            weight[1, 2] += sign * step
            slopes.append(float(rule(model, x, other, y)))
            weight[1, 2] -= sign * step
    assert float(weight.grad[1, 2]) == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=1e-4)


def test_maps_that_are_zero_have_no_direction_and_are_counted():
    model, (x, y) = network(), data(n=4)
    x = x.clone()
    x[1] = 0.0
    rule = IGRegularizer(steps=2)
    assert torch.isfinite(rule(model, x, x + 0.1, y))
    assert rule.undefined_ == 1
    found = attribution_robustness(model, x, y, attack="noise", eps=0.01, bounds=None)
    assert int(found["undefined"]) == 1
    assert np.isnan(found["kendall"].values[1]) and not np.isnan(found["kendall"].values[0])


def test_pgd_finds_the_worst_corner_of_a_linear_model():
    model, (x, y) = nn.Linear(16, 2), data(n=40, classes=2)
    found = pgd(model, x, y, 0.1, bounds=None)
    towards = (model.weight[1 - y] - model.weight[y]).detach()
    torch.testing.assert_close(found, x + 0.1 * towards.sign())
    inside = pgd(model, x, y, 0.1)
    torch.testing.assert_close(inside, (x + 0.1 * towards.sign()).clamp(0, 1))


def test_pgd_repeats_itself_and_raises_the_loss_of_a_network():
    model, (x, y) = network(), data(n=40)
    found = pgd(model, x, y, 0.1)
    assert torch.equal(pgd(model, x, y, 0.1), found)
    assert torch.equal(pgd(model, x, y, 0.0), x)
    with torch.no_grad():
        losses = [F.cross_entropy(model(t), y, reduction="none") for t in (x, pgd(model, x, y, 0.1, steps=0), found)]
    assert bool((losses[2] > losses[0]).all()) and bool((losses[2] > losses[1]).all())


@pytest.mark.parametrize("objective", ["topk", "centre", "cosine"])
def test_attack_on_the_map_keeps_the_prediction_and_beats_noise(objective):
    model, (x, y) = network(nn.Softplus), data(n=20)
    y = model(x).argmax(1)
    found = ifia(model, x, y, 0.2, objective=objective, steps=15, restarts=2, k=4)
    with torch.no_grad():
        assert torch.equal(model(found.x).argmax(1), y)
    assert float((found.x - x).abs().max()) <= 0.2 + 1e-6
    before = attribution_robustness(model, x, y, attack="noise", eps=0.2)
    after = attribution_robustness(model, x, y, attack="ifia", eps=0.2, objective=objective, steps=15, restarts=2, k=4)
    assert bool(after["kept"].all())
    assert float(after["cosine"].mean()) < float(before["cosine"].mean())


def test_similarities_are_those_counted_by_hand():
    model, (x, y) = network(), data(n=5)
    found = attribution_robustness(model, x, y, attack="pgd", eps=0.2, k=4, steps=3)
    other = pgd(model, x, y, 0.2, steps=3)
    maps = [integrated_gradients(model, t, y, steps=50).numpy() for t in (x, other)]
    for row in range(5):
        a, b = maps[0][row], maps[1][row]
        assert float(found["kendall"][row]) == pytest.approx(tau(a, b), abs=1e-6)
        assert float(found["cosine"][row]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        top = [set(np.argsort(-np.abs(m))[:4]) for m in (a, b)]
        assert float(found["topk"][row]) == len(top[0] & top[1]) / 4


def test_kendall_is_blind_to_monotone_maps():
    model, (x, y) = network(), data(n=3)
    a = integrated_gradients(model, x, y).numpy()[0]
    assert tau(a, a**3) == pytest.approx(1.0)
    assert topk_intersection(torch.tensor(a)[None], torch.tensor(a**3)[None], 5).item() == 1.0


@pytest.mark.parametrize("base", ["natural", "adversarial", "trades"])
@pytest.mark.parametrize("penalty", ["cosine", "norm", "sum_norm", "none"])
def test_training_lowers_its_loss_and_repeats_itself(base, penalty):
    x, y = data(n=60)
    made = []
    for _ in range(2):
        model = network()
        rule = AttributionProtection(base, penalty, epochs=4, ig_steps=2, pgd_steps=2, batch_size=20, seed=3)
        rule.fit(model, x, y)
        made.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert rule.losses_[-1] < rule.losses_[0]
    assert torch.equal(*made)
    assert rule.get_params()["penalty"] == penalty


def test_what_cannot_be_attacked_or_trained_is_refused():
    model, (x, y) = network(), data()
    with pytest.raises(InputError, match="radius"):
        pgd(model, x, y, -0.1)
    with pytest.raises(InputError, match="bounds"):
        ifia(model, x, y, 0.1, bounds=(1.0, 0.0))
    with pytest.raises(UnknownNameError, match="cosine"):
        ifia(model, x, y, 0.1, objective="cosinus")
    with pytest.raises(InputError, match="k goes"):
        ifia(model, x, y, 0.1, k=17)
    with pytest.raises(UnknownNameError, match="ifia"):
        attribution_robustness(model, x, y, attack="ifi")
    with pytest.raises(UnknownNameError, match="saliency"):
        attribution_map(model, x, y, "salience")
    with pytest.raises(InputError, match="batch"):
        attribution_robustness(nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3)).train(), x, y)
    with pytest.raises(InputError, match="one class"):
        integrated_gradients(model, x, y[:3])
    with pytest.raises(InputError, match="differentiable"):
        integrated_gradients(lambda z: (z[:, :3] > 0.5).float(), x, y)
    with pytest.raises(InputError, match="scores"):
        integrated_gradients(nn.Flatten(0), x, y)
    with pytest.raises(UnknownNameError, match="natural"):
        AttributionProtection("neutral").fit(model, x, y)
    with pytest.raises(InputError, match="negative"):
        IGRegularizer(lam=-1.0)
    with pytest.raises(InputError, match="cosine lies"):
        kendall_from_cosine(1.1)
    with pytest.raises(InputError, match="no ReLU"):
        state_agreement(network(nn.Softplus), x, x)
    with pytest.raises(InputError, match="finite"):
        AttributionProtection().fit(model, x * torch.nan, y)
