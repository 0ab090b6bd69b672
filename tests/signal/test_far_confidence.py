"""ReLU classifiers are affine far away, their scores have the limits that follow, and the audit says so."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError
from actinium.signal.far_confidence import _nearest, far_field_audit, feature_scaling_audit, relu_region
from actinium.signal.uncertainty_metrics import METRICS, UncertaintyMetrics
from actinium.signal.uncertainty_predictors import (
    BayesByBackpropPredictor,
    BayesLinear,
    EnsemblePredictor,
    LogitScaling,
    MCDropoutPredictor,
    anchor_penalty,
    anchors_of,
)


def mlp(seed: int = 0, d: int = 3, classes: int = 4, dropout: float = 0.0, activation=nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(2):
        layers += [nn.Linear(16 if i else d, 16), activation()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers, nn.Linear(16, classes)).double().eval()


def points(n: int = 40, d: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fixed(probabilities) -> UncertaintyMetrics:
    """Metrics of given probabilities (K, n, C)."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log().clamp(min=-800)
    return UncertaintyMetrics(lambda x: logits + 0 * x.sum())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh])
def test_region_of_a_network_gives_its_outputs(activation):
    net, x = mlp(activation=activation).requires_grad_(False), points()
    region = relu_region(net, x)
    again = torch.einsum("ncd,nd->nc", region.slope, x) + region.offset
    assert float((again - net(x)).abs().max()) < 1e-10
    assert region.pattern.shape == (40, 32)


def test_region_is_the_product_of_masked_weights():
    net, x = mlp(), points(5)
    region = relu_region(net, x)
    for i in range(5):
        h, slope, offset = x[i], torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for layer in net:
            if isinstance(layer, nn.Linear):
                h, slope, offset = layer(h), layer.weight @ slope, layer.weight @ offset + layer.bias
            else:
                on = (h > 0).double()
                h, slope, offset = h * on, on[:, None] * slope, on * offset
        assert torch.allclose(region.slope[i], slope, atol=1e-12)
        assert torch.allclose(region.offset[i], offset, atol=1e-12)


def test_region_holds_around_a_point_and_the_pattern_tells_regions_apart():
    net, x = mlp(), points(200)
    region = relu_region(net, x)
    near = x + 1e-7
    same = (relu_region(net, near).pattern == region.pattern).all(1)
    moved = torch.einsum("ncd,nd->nc", region.slope, near) + region.offset
    assert int(same.sum()) > 150
    assert float((moved - net(near)).detach()[same].abs().max()) < 1e-12
    other = relu_region(net, -x)
    differ = (other.pattern != region.pattern).any(1)
    slopes = (other.slope - region.slope).abs().flatten(1).max(1).values > 0
    assert bool((slopes <= differ).all()) and bool(differ.any())


def test_region_of_a_convolutional_network_with_pooling():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    net = net.double().eval()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    region = relu_region(net, x)
    again = torch.einsum("ncd,nd->nc", region.slope, x.flatten(1)) + region.offset
    assert torch.allclose(again, net(x), atol=1e-10)


def test_logits_along_a_ray_are_affine_beyond_the_last_kink():
    net, rays = mlp(), points(20)
    last = relu_region(net, 1e6 * rays).pattern
    assert bool((relu_region(net, 3e6 * rays).pattern == last).all())
    with torch.no_grad():
        a, b, c = (net(r * rays) for r in (1e6, 2e6, 3e6))
    assert float(((a - 2 * b + c).norm(dim=1) / b.norm(dim=1)).max()) < 1e-9
    slope = torch.einsum("ncd,nd->nc", relu_region(net, 1e6 * rays).slope, rays)
    assert torch.equal(slope.argmax(1), c.argmax(1))


def test_entropy_of_even_probabilities_is_the_logarithm_of_the_classes():
    even, x = [[[0.25] * 4] * 2], torch.zeros(2, 1)
    assert fixed(even).entropy(x).tolist() == pytest.approx([math.log(4)] * 2)
    in_bits = UncertaintyMetrics(lambda x: torch.zeros(2, 4), base=2)
    assert in_bits.entropy(x).tolist() == pytest.approx([2, 2])
    assert fixed(even).max_prob(x).tolist() == pytest.approx([0.75] * 2)


def test_members_that_agree_have_no_mutual_information_and_others_have_some():
    p = torch.rand(1, 30, 5, dtype=torch.float64) + 0.01
    p = p / p.sum(-1, keepdim=True)
    x = torch.zeros(30, 1)
    agree = fixed(p.expand(6, 30, 5).tolist())
    assert float(agree.mutual_information(x).max()) < 1e-15 and float(agree.variance(x).max()) < 1e-15
    q = torch.rand(6, 30, 5, dtype=torch.float64) + 0.01
    q = q / q.sum(-1, keepdim=True)
    several = fixed(q.tolist())
    mean = q.mean(0)
    wanted = -(mean * mean.log()).sum(-1) + (q * q.log()).sum(-1).mean(0)
    assert torch.allclose(several.mutual_information(x), wanted, atol=1e-12)
    assert bool((several.mutual_information(x) > 0).all())
    assert torch.allclose(several.variance(x), torch.tensor(q.numpy().var(0, ddof=1).mean(-1)), atol=1e-12)


def test_two_opposite_certain_members_have_a_variance_of_one_half():
    opposite = fixed([[[1.0, 0.0]], [[0.0, 1.0]]])
    x = torch.zeros(1, 1)
    assert float(opposite.variance(x)) == pytest.approx(0.5)
    assert float(opposite.mutual_information(x)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_limit_of_an_ensemble_is_the_entropy_of_its_votes(share):
    votes = round(10 * share)
    members = [[[0.0, 1.0]]] * votes + [[[1.0, 0.0]]] * (10 - votes)
    x = torch.zeros(1, 1)
    wanted = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert float(fixed(members).entropy(x)) == pytest.approx(wanted)


def test_scores_of_a_certain_classifier_go_to_zero_and_gradients_with_them():
    metrics, ray = UncertaintyMetrics(mlp()), points(30)
    for name in ("max_prob", "entropy"):
        near, far = metrics.score(name, ray), metrics.score(name, 1e5 * ray)
        assert float(far.median()) < 1e-12 < float(near.median())
        assert float(metrics.gradient_norm(name, 1e5 * ray).median()) < 1e-12


def test_small_scores_do_not_end_at_the_rounding_of_one():
    sure = UncertaintyMetrics(lambda x: x)
    logits = torch.tensor([[0.0, 100.0], [0.0, 200.0]], dtype=torch.float64)
    assert sure.max_prob(logits).tolist() == pytest.approx([math.exp(-100), math.exp(-200)], rel=1e-9)


@pytest.mark.parametrize("far", [5.0, 35.0, 60.0, 300.0])
def test_small_entropies_and_disagreements_keep_their_digits(far):
    one = UncertaintyMetrics(lambda x: x)
    p = math.exp(-far) / (1 + math.exp(-far))
    # -p ln p - (1 - p) ln(1 - p), of which the second part is of the size of p.
    wanted = p * (far + math.log1p(math.exp(-far))) - (1 - p) * math.log1p(-p)
    assert float(one.entropy(torch.tensor([[0.0, far]]).double())) == pytest.approx(wanted, rel=1e-12, abs=0)
    if far < 30:
        return
    several = UncertaintyMetrics(lambda x: torch.stack([x, x + torch.tensor([0.0, 2.0])]))
    both = [math.exp(-far), math.exp(-far - 2)]
    # Where all are small, the divergence of p from m is p ln(p / m) - p + m, and the last two cancel in the mean.
    wanted = sum(p * math.log(p / (sum(both) / 2)) for p in both) / 2
    got = float(several.mutual_information(torch.tensor([[0.0, far]]).double()))
    assert got == pytest.approx(wanted, rel=1e-12, abs=0)


def test_gradient_norm_equals_finite_differences():
    metrics = UncertaintyMetrics(EnsemblePredictor([mlp(s) for s in range(3)]))
    x = points(4)
    for name in METRICS:
        numeric = torch.zeros(4, 3, dtype=torch.float64)
        for j in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[j] = 1e-6
            with torch.no_grad():
                numeric[:, j] = (metrics.score(name, x + step) - metrics.score(name, x - step)) / 2e-6
        assert torch.allclose(metrics.gradient_norm(name, x), numeric.norm(dim=1), rtol=1e-5, atol=1e-9)


def test_one_logit_is_a_sigmoid():
    net = mlp(classes=1)
    x = points()
    p = torch.sigmoid(net(x)).detach()
    assert torch.allclose(UncertaintyMetrics(net).max_prob(x).detach(), torch.minimum(p, 1 - p).squeeze(1), atol=1e-12)


def test_temperature_does_not_change_the_limit():
    net, held = mlp(), points(300)
    labels = net(held).argmax(1)
    labels[::3] = (labels[::3] + 1) % 4
    scaling = LogitScaling().fit(net(held), labels)
    a = far_field_audit(net, points(), radii=(1e4,), directions=30)
    b = far_field_audit(scaling.predictor(net), points(), radii=(1e4,), directions=30)
    assert float(a["limit_agrees"][0]) == float(b["limit_agrees"][0]) == 1.0
    assert float(b["score"].sel(metric="entropy", radius=1e4)) < 1e-12


def test_fitted_temperature_is_the_minimum_over_a_grid():
    net, held = mlp(), points(400)
    logits = (5 * net(held)).detach()
    labels = torch.distributions.Categorical(logits=logits / 2.5).sample()
    scaling = LogitScaling().fit(logits, labels)
    grid = np.linspace(0.05, 2, 2000)
    losses = [float(nn.functional.cross_entropy(logits * g, labels)) for g in grid]
    assert scaling.scale_ == pytest.approx(grid[int(np.argmin(losses))], abs=2e-3)
    assert LogitScaling(bias=True).fit(logits, labels).bias_.shape == (4,)
    with pytest.raises(InputError, match="classes"):
        LogitScaling().fit(logits, labels + 4)
    with pytest.raises(InputError, match="not fitted"):
        LogitScaling().transform(logits)


def test_shared_dropout_masks_make_each_member_one_function():
    net = mlp(dropout=0.3)
    x = points(6)
    shared = MCDropoutPredictor(net, 5, seed=3)
    assert torch.allclose(shared(x)[:, :2], shared(x[:2]), atol=1e-12)
    rows = MCDropoutPredictor(net, 5, seed=3, shared=False)(x[:1].expand(6, 3))
    assert float(rows.std(1).max()) > 0 and float(shared(x[:1].expand(6, 3)).std(1).max()) < 1e-12
    assert float(shared(x).std(0).max()) > 0
    net.train()
    shared(x)
    assert net.training and net[2].training and not net[2]._forward_hooks
    assert UncertaintyMetrics(shared).entropy(x).shape == (6,)  # which it puts into evaluation mode itself
    many = MCDropoutPredictor(nn.Sequential(nn.Dropout(0.3)), 3000)(torch.ones(1, 4, dtype=torch.float64))
    assert float(many.mean()) == pytest.approx(1, abs=0.03)


def test_divergence_of_bayesian_layers_equals_torch_distributions():
    from torch.distributions import Categorical, MixtureSameFamily, Normal

    torch.manual_seed(0)
    layer = BayesLinear(3, 2, prior_mix=0.3, prior_sigmas=(0.8, 0.2))
    layer.redraw()
    w, sigma = layer.weights(), nn.functional.softplus(layer.rho)
    prior = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.zeros(2), torch.tensor([0.8, 0.2])))
    wanted = Normal(layer.mean, sigma).log_prob(w).sum() - prior.log_prob(w).sum()
    assert float(layer.divergence().detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    several = BayesByBackpropPredictor(nn.Sequential(layer), 4, seed=1)
    x = torch.randn(5, 3)
    assert several(x).shape == (4, 5, 2) and torch.equal(several(x), several(x))
    noise = layer.noise
    with pytest.raises(RuntimeError):
        several(torch.randn(5, 4))
    assert layer.noise is noise


def test_bayesian_layers_are_affine_and_a_bilinear_one_is_not():
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.product = nn.Bilinear(3, 3, 2, dtype=torch.float64)

        def forward(self, x):
            return self.product(x, x)

    torch.manual_seed(0)
    bayes = BayesByBackpropPredictor(nn.Sequential(BayesLinear(3, 8), nn.ReLU(), BayesLinear(8, 2)).double(), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = far_field_audit(bayes, points(), radii=(1, 1e5), directions=10)
    assert float(got["limit_agrees"][-1]) == 1
    with pytest.warns(ActiniumWarning, match="Bilinear"):
        far_field_audit(Squared(), points(), radii=(1,), directions=5)


def test_anchor_penalty_is_the_prior_s_squared_distance():
    net = nn.Sequential(nn.Linear(4, 2))
    anchors = anchors_of(net, 0)
    net.load_state_dict(anchors)
    assert float(anchor_penalty(net, anchors, 10).detach()) == 0
    with torch.no_grad():
        net[0].weight[0, 0] += 0.5
    # A weight's prior variance is 2 / 4.
    assert float(anchor_penalty(net, anchors, 10).detach()) == pytest.approx(0.5**2 / 0.5 / 20, rel=1e-5)
    with pytest.raises(InputError):
        anchor_penalty(net, {}, 10)


@pytest.fixture(scope="module")
def moons() -> tuple[EnsemblePredictor, torch.Tensor]:
    """Three small networks trained on two half circles."""
    random = torch.Generator().manual_seed(0)
    label = torch.arange(300) % 2
    angle = math.pi * torch.rand(300, generator=random, dtype=torch.float64)
    x = torch.stack([angle.cos() + label, (1 - 2 * label) * angle.sin() + 0.5 * label], 1)
    x = x + 0.12 * torch.randn(300, 2, generator=random, dtype=torch.float64)
    nets = [mlp(s, 2, 2) for s in range(3)]
    for net in nets:
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(100):
            loss = nn.functional.cross_entropy(net(x), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return EnsemblePredictor(nets), x


def test_audit_finds_that_scores_fail_where_a_distance_does_not(moons):
    predict, x = moons
    got = far_field_audit(predict, x, directions=60, radii=(2, 10, 1000))
    own = got.data.sel(metric=list(METRICS))
    assert float(own["auroc"].sel(radius=1000).max()) < 0.5
    assert float(got["auroc"].sel(metric="mahalanobis", radius=10)) == 1
    assert float(got["auroc"].sel(metric="nearest", radius=10)) == 1
    assert float(got["limit_agrees"].sel(radius=1000)) == 1 == float(got["affine_tail"].sel(radius=1000))
    assert float(got["confident"].sel(radius=1000)) > 0.7
    assert float(own["gradient"].sel(radius=1000).max()) < 1e-12
    verdict = got.data.attrs["verdict"]
    assert "entropy" in verdict.split("more certain")[0] and "mahalanobis" in verdict
    got.plot()


def test_audit_measures_at_the_radius_it_names(moons):
    predict, x = moons
    got = far_field_audit(predict, x, directions=1, radii=(4,), unit=2.0, seed=5)
    far = points(1, 2, 5)
    far = x.mean(0) + 8 * far / far.norm()
    wanted = UncertaintyMetrics(predict).entropy(far)
    assert float(got["score"].sel(metric="entropy", radius=4)) == pytest.approx(float(wanted), rel=1e-9)
    nearest = float((x - far).norm(dim=1).min())
    assert float(got["score"].sel(metric="nearest", radius=4)) == pytest.approx(nearest)


def test_nearest_neighbours_of_many_rows_are_those_of_a_search_tree():
    from scipy.spatial import cKDTree

    rows = points(3000)
    wanted = cKDTree(rows.numpy()).query(rows.numpy(), 2)[0][:, 1]
    assert np.allclose(_nearest(rows, rows).numpy(), wanted, atol=1e-12)


def test_a_bounded_network_is_audited_with_a_warning():
    with pytest.warns(ActiniumWarning, match="Tanh"):
        got = far_field_audit(mlp(activation=nn.Tanh), points(), radii=(1, 100), directions=20)
    assert np.isnan(got["affine_tail"]).all()
    assert "variance" not in got["metric"].values


def test_a_growing_feature_makes_a_classifier_certain(moons):
    predict, x = moons
    got = feature_scaling_audit(predict, x, factors=(1, 1e4))
    assert float(got["confident"].sel(factor=1e4).min()) > 0.9
    assert float(got["auroc"].sel(metric="mahalanobis", factor=1e4).min()) > 0.9
    assert float(got["auroc"].sel(metric="entropy", factor=1).mean()) == pytest.approx(0.5)
    got.plot()


def test_shipped_classifier_is_audited_on_its_digits():
    net = ac.load("world:digits-cnn").module
    images = ac.world.digits.load("test").images[:60].flatten(1)
    metrics = UncertaintyMetrics(lambda x: net(x.reshape(-1, 1, 8, 8)))
    got = far_field_audit(metrics.predict, images, radii=(1, 100), directions=20)
    assert float(got["limit_agrees"].sel(radius=100)) == 1
    assert float(got["confident"].sel(radius=100)) > 0.9


def test_bad_input_is_refused():
    x = points()
    one = UncertaintyMetrics(mlp())
    for name in ("variance", "mutual_information"):
        with pytest.raises(InputError, match="two or more"):
            one.score(name, x)
    with pytest.raises(UnknownNameError, match="entropy"):
        one.score("entropie", x)
    with pytest.raises(InputError, match="infinite"):
        UncertaintyMetrics(lambda x: x / 0).entropy(x)
    with pytest.raises(InputError, match="logits"):
        UncertaintyMetrics(lambda x: x[0]).entropy(x)
    with pytest.raises(InputError, match="training mode"):
        UncertaintyMetrics(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)))
    with pytest.raises(InputError, match="training mode"):
        UncertaintyMetrics(nn.Sequential(nn.Linear(3, 2), nn.AlphaDropout(0.2)))
    with pytest.raises(InputError, match="dropout"):
        MCDropoutPredictor(mlp())
    with pytest.raises(InputError, match="members"):
        EnsemblePredictor([mlp()])
    with pytest.raises(InputError, match="NaN"):
        far_field_audit(mlp(), torch.full((5, 3), torch.nan))
    with pytest.raises(InputError, match="spread"):
        far_field_audit(mlp(), torch.ones(5, 3, dtype=torch.float64))
    with pytest.raises(InputError, match="radii"):
        far_field_audit(mlp(), x, radii=(0, 1))
    with pytest.raises(InputError, match="activation"):
        relu_region(nn.Sequential(nn.Linear(3, 2)).double(), x)
    with pytest.raises(InputError, match="BayesLinear"):
        BayesByBackpropPredictor(mlp())
    with pytest.raises(InputError, match="prior_mix"):
        BayesLinear(2, 2, prior_mix=1.0)
    with pytest.raises(InputError, match="factors"):
        feature_scaling_audit(mlp(), x, factors=())
