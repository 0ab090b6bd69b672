"""CRAFT: crops, exact codes and their derivative, importances, deletion curves, sub-concepts, and what is refused."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from concept_nets import cifar, drawn, random_cnn
from torch import nn
from torch.nn import functional as F

from actinium.core.errors import ActiniumWarning, InputError, LoadError, SiteError, UnknownNameError
from actinium.core.model import Model
from actinium.features.concept_bank import FACTORISATIONS, ConceptBank, nonnegative_codes
from actinium.features.concept_faithfulness import concept_curves, gradient_importance
from actinium.features.craft import CRAFT
from actinium.features.crops import crops_of
from actinium.features.cut import cut
from actinium.features.sobol import sobol_importance

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def positive(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halves(net):
    """g and h of the random network behind its second stage."""
    return net[:2], net[2:]


@pytest.fixture(scope="module")
def craft():
    return CRAFT(*halves(random_cnn()), n_concepts=4, patch_size=6).fit(positive(20, 3, 12, 12).float())


def test_crops_are_those_of_unfold_and_know_where_they_are_from():
    images = positive(3, 2, 10, 10)
    crops, where = crops_of(images, 4)
    want = F.unfold(images, 4, stride=3).transpose(1, 2).reshape(-1, 2, 4, 4)
    assert torch.equal(crops, want)
    n, top, left = where[7].tolist()
    assert torch.equal(crops[7], images[n, :, top : top + 4, left : left + 4])
    assert crops_of(images, 4, stride=6)[0].shape == (12, 2, 4, 4)


def test_crops_are_enlarged_and_their_activations_averaged(craft):
    images = positive(20, 3, 12, 12).float()
    crops, where = crops_of(images, 6)
    big = F.interpolate(crops, size=12, mode="bilinear", align_corners=False)
    with torch.no_grad():
        rows = craft.g(big).mean((2, 3))
    assert torch.equal(craft.origins_, where) and torch.equal(craft.crops_, crops)
    assert torch.allclose(craft.codes_, craft.bank_.transform(rows.double()), atol=1e-6)
    error = (rows.double() - craft.codes_ @ craft.bank_.bank_).norm() / rows.double().norm()
    assert craft.bank_.error_ == pytest.approx(float(error), rel=1e-4)


def test_the_bank_is_scikit_learns():
    from sklearn.decomposition import NMF

    a = positive(40, 3) @ positive(3, 9, seed=1)
    bank = ConceptBank("nmf", 3, max_iter=2000).fit(a)
    want = NMF(3, init="nndsvda", max_iter=2000, random_state=0).fit(a.numpy())
    assert np.allclose(bank.bank_, want.components_)
    assert float(bank.bank_.min()) >= 0 and float(bank.transform(a).min()) >= 0
    # Codes are exact given the bank, so the error is at most that of scikit-learn's own ones.
    assert bank.error_ * np.linalg.norm(a) <= want.reconstruction_err_ + 1e-12


def test_the_error_does_not_rise_with_more_concepts():
    a = positive(60, 12)
    errors = [ConceptBank("nmf", r, max_iter=1000).fit(a).error_ for r in range(1, 9)]
    assert all(later <= 1.01 * earlier for earlier, later in itertools.pairwise(errors))


def test_codes_are_recovered_and_optimal():
    from scipy.optimize import nnls

    bank, codes = positive(5, 9), positive(30, 5, seed=1) * (positive(30, 5, seed=2) > 0.4)
    assert torch.allclose(nonnegative_codes(codes @ bank, bank), codes, atol=1e-9)
    rows = positive(30, 9, seed=3)
    found = nonnegative_codes(rows, bank)
    want = np.stack([nnls(bank.T.numpy(), row)[0] for row in rows.numpy()])
    assert np.allclose(found, want, atol=1e-10)
    slope = (found @ bank - rows) @ bank.T
    assert bool((slope > -1e-9).all()) and float((slope * found).abs().max()) < 1e-9


@pytest.mark.parametrize("signed", [False, True])
def test_the_derivative_of_codes_is_that_of_finite_differences_and_of_the_closed_form(signed):
    bank = drawn(4, 7).double() if signed else positive(4, 7)
    checked = 0
    for seed in range(8):
        a = drawn(7, seed=seed).double() if signed else positive(7, seed=seed + 10)
        jacobian = torch.autograd.functional.jacobian(lambda x: nonnegative_codes(x, bank), a)
        step = 1e-5 * torch.eye(7, dtype=torch.float64)
        up, down = nonnegative_codes(a + step, bank), nonnegative_codes(a - step, bank)
        active = nonnegative_codes(a, bank) > 0
        if not bool(((up > 0) == active).all() & ((down > 0) == active).all()):
            continue
        checked += 1
        assert torch.allclose(jacobian, ((up - down) / 2e-5).T, atol=1e-6)
        w = bank[active]
        want = torch.zeros(4, 7, dtype=torch.float64)
        want[active] = torch.linalg.solve(w @ w.T, w)
        assert torch.allclose(jacobian, want, atol=1e-10)
    assert checked >= 5


def test_signed_activations_need_an_explicit_choice():
    a = drawn(50, 8).double()
    with pytest.raises(InputError, match="semi-nmf"):
        ConceptBank("nmf", 3).fit(a)
    bank = ConceptBank("semi-nmf", 3).fit(a)
    assert float(bank.bank_.min()) < 0 <= float(bank.transform(a).min())
    assert bank.error_ < 1
    g = nn.Sequential(random_cnn()[:2], nn.BatchNorm2d(8, affine=False)).eval()
    images = drawn(12, 3, 12, 12)
    g[1].running_mean += 0.5
    with pytest.raises(InputError, match="nothing is clipped"):
        CRAFT(g, nn.Identity(), 3, 6).fit(images)
    assert CRAFT(g, nn.Identity(), 3, 6, method="semi-nmf").fit(images).transform(images).shape == (12, 6, 6, 3)


@pytest.mark.parametrize("method", FACTORISATIONS)
def test_every_factorisation_codes_and_gives_back_and_comes_back_from_disk(method, tmp_path):
    a = positive(40, 3) @ positive(3, 9, seed=1)
    bank = ConceptBank(method, 3, max_iter=1000).fit(a)
    codes = bank.transform(a)
    assert codes.shape == (40, 3)
    assert float((bank.inverse_transform(codes) - a).norm() / a.norm()) == pytest.approx(bank.error_)
    assert bank.error_ < (0.5 if method == "kmeans" else 0.05)
    if method == "kmeans":
        assert bool((codes.sum(1) == 1).all())
    if method == "pca":
        assert torch.allclose(bank.bank_ @ bank.bank_.T, torch.eye(3, dtype=torch.float64))
        assert torch.allclose(codes.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12)
    bank.save(tmp_path / "bank")
    again = ConceptBank.load(tmp_path / "bank")
    assert torch.equal(again.transform(a), codes) and again.get_params() == bank.get_params()
    with pytest.raises(LoadError, match="cannot read"):
        ConceptBank.load(tmp_path / "absent")


@pytest.mark.parametrize("estimator", ["jansen", "janon"])
def test_importance_is_the_mean_sobol_index_of_the_dimmed_codes(craft, estimator):
    images = positive(3, 3, 12, 12, seed=4).float()
    found = craft.estimate_importance(images, 2, nb_design=16, estimator=estimator)
    bank = craft.bank_.bank_.float()
    for i, codes in enumerate(craft.transform(images)):

        def logit(masks, codes=codes):
            with torch.no_grad():
                return craft.h(((torch.from_numpy(masks).float()[:, None, None] * codes) @ bank).movedim(-1, 1))[:, 2]

        want = sobol_importance(logit, 4, 16, estimator=estimator)
        assert found["by_image"].values[i] == pytest.approx(want, rel=1e-3, abs=1e-5)
    assert found["importance"].values == pytest.approx(found["by_image"].values.mean(0))
    with torch.no_grad():
        assert found["logit"].values == pytest.approx(random_cnn()(images)[:, 2].numpy(), abs=1e-5)
    assert found["rebuilt_logit"].values == pytest.approx(craft.logit(craft.transform(images), 2).numpy())
    assert craft.estimate_importance(images, 2, nb_design=16, estimator=estimator) == found


def test_concepts_that_do_not_give_back_the_images_are_warned_about():
    """Crops see the left half of images, where one channel is active; the other is active in the right half."""
    images = torch.zeros(6, 2, 8, 8)
    images[:, 0, :, :4], images[:, 1, :, 4:] = 1 + positive(6, 8, 4).float(), 3 + positive(6, 8, 4, seed=1).float()
    craft = CRAFT(nn.Identity(), lambda a: a.mean((2, 3)), 1, 4, stride=5).fit(images)
    with pytest.warns(ActiniumWarning, match='on="positions"'):
        craft.estimate_importance(images, 0, 8)


def test_a_concept_that_the_head_ignores_has_importance_zero_and_a_constant_head_all_zeros():
    g = nn.Identity()
    images = torch.zeros(12, 3, 4, 4)
    images[:, 0], images[:, 1] = positive(12, 4, 4).float(), positive(12, 4, 4, seed=1).float()
    images[:, 2] = positive(12, 4, 4, seed=2).float()

    def h(a):
        m = a.mean((2, 3))
        return torch.stack([m[:, 0] + 2 * m[:, 1], torch.ones(len(a))], 1)

    craft = CRAFT(g, h, 3, 2)
    craft.fit(images)
    # The bank of axes: the coefficients are the channels.
    craft.bank_.bank_ = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(craft.transform(images), images.movedim(1, -1))
    found = craft.estimate_importance(images, 0, nb_design=256)
    assert float(found["importance"][2]) == 0 < float(found["importance"][0]) < float(found["importance"][1])
    size = images.mean((2, 3)).double().numpy() * [1, 2, 0]
    want = (size**2 / (size**2).sum(1, keepdims=True)).mean(0)
    assert found["importance"].values == pytest.approx(want, abs=0.02)
    with pytest.warns(ActiniumWarning, match="12 of 12 rows"):
        assert (craft.estimate_importance(images, 1)["importance"] == 0).all()


def linear_craft():
    """Concepts that are the channels, and a logit 1 m0 - 2 m1 + 3 m2 of their means."""
    weight = torch.tensor([1.0, -2.0, 3.0])
    craft = CRAFT(nn.Identity(), lambda a: (a.mean((2, 3)) * weight).sum(1, keepdim=True), 3, 2)
    images = positive(5, 3, 4, 4).float()
    craft.fit(images)
    craft.bank_.bank_ = torch.eye(3, dtype=torch.float64)
    return craft, images, weight


def test_deletion_and_insertion_curves_are_the_sums_of_what_is_left():
    craft, images, weight = linear_craft()
    share = (images.mean((2, 3)) * weight).mean(0).double().numpy()
    orders = {"up": [3, 2, 1], "each": np.tile([1, 3, 2], (5, 1))}
    gone = concept_curves(craft, images, 0, orders)
    assert gone["logit"].sel(order="up").values == pytest.approx(
        [share.sum(), share[1] + share[2], share[2], 0], abs=1e-6
    )
    assert gone["logit"].sel(order="each").values == pytest.approx(
        [share.sum(), share[0] + share[2], share[0], 0], abs=1e-6
    )
    come = concept_curves(craft, images, 0, orders, "insertion")
    assert come["logit"].sel(order="up").values == pytest.approx(
        [0, share[0], share[0] + share[1], share.sum()], abs=1e-6
    )
    curve = gone["logit"].sel(order="up").values
    assert float(gone["auc"].sel(order="up")) == pytest.approx(np.trapezoid(curve) / 3)
    assert float(gone["auc_normalised"].sel(order="up")) == pytest.approx(
        np.trapezoid(curve / share.sum()) / 3, rel=1e-4
    )
    # With the sign of the weights turned, all concepts together lower the logit, and no share of the way is defined.
    turned = CRAFT(craft.g, lambda a: -craft.h(a), 3, 2).fit(images)
    turned.bank_.bank_ = torch.eye(3, dtype=torch.float64)
    below = concept_curves(turned, images, 0, orders)
    assert np.isnan(below["auc_normalised"]).all()
    assert below["auc"].values == pytest.approx(-gone["auc"].values, abs=0.05)
    # All orders together lie on the line between the ends.
    many = concept_curves(craft, images, 0, {}, random_orders=400)
    assert many["logit"].sel(order="random").values == pytest.approx(share.sum() * np.array([3, 2, 1, 0]) / 3, abs=0.06)


def test_gradient_importances_of_a_linear_head_are_its_weights():
    craft, images, weight = linear_craft()
    found = gradient_importance(craft, images, 0)
    assert found["tcav"].values.tolist() == [1, 0, 1]
    assert found["magnitude"].values == pytest.approx(weight.numpy(), rel=1e-5)
    assert found["gradient_x_concept"].values == pytest.approx((images.mean((2, 3)) * weight).mean(0), rel=1e-4)


@pytest.mark.parametrize("site", ["module:1", "module:1.2", "module_in:2", "module:0"])
def test_both_halves_of_a_model_joined_are_the_model(site):
    net = random_cnn(in_place=True)
    model, x = Model(net), drawn(5, 3, 12, 12)
    g, h = cut(model, site)
    with torch.no_grad():
        assert torch.allclose(h(g(x)), net(x), atol=1e-6)
        assert h(torch.cat([g(x)] * 3)).shape == (15, 4)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(h(g(leaf))[:, 0].sum(), leaf)
    (want,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(grad, want, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_model_is_cut_as_its_own_halves_are(craft):
    images = positive(20, 3, 12, 12).float()
    other = CRAFT.at(Model(random_cnn()), "module:1", 4, 6).fit(images)
    assert torch.allclose(other.bank_.bank_, craft.bank_.bank_, atol=1e-6)
    first, second = (c.estimate_importance(images[:2], 1, 8)["importance"].values for c in (craft, other))
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.head = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()), nn.Linear(3, 2)

    def forward(self, x):
        return self.head((x + self.branch(x)).mean((2, 3)))


def test_sites_past_which_something_flows_are_no_cuts():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(Residual())
    images = positive(6, 3, 8, 8).float()
    with pytest.raises(InputError, match="is no cut of the model"):
        CRAFT.at(model, "module:branch", 2, 4).fit(images)
    with pytest.raises(SiteError, match="branch"):
        CRAFT.at(model, "module:brunch")
    with pytest.raises(InputError, match="means"):
        CRAFT.at(model, "module:*")
    with pytest.raises(SiteError, match="cut at a module"):
        CRAFT.at(model, "module:branch#0")
    with pytest.raises(InputError, match="run the lower half first"):
        cut(model, "module:branch")[1](images)
    with pytest.raises(InputError, match="is in training mode"):
        CRAFT.at(Model(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))), "module:0")


def test_sub_concepts_are_found_in_the_crops_of_a_concept_at_an_earlier_layer(craft):
    net = random_cnn()
    sub = craft.recurse(1, net[:1], net[1:], n_concepts=3, share=0.2)
    codes = craft.codes_[:, 1]
    kept = codes.argsort(descending=True, stable=True)[: round(0.2 * len(codes))]
    assert torch.equal(sub.crops_, craft.crops_[kept]) and torch.equal(sub.origins_, craft.origins_[kept])
    assert sub.bank_.bank_.shape == (3, 6)
    images = positive(4, 3, 12, 12).float()
    assert sub.transform(images).shape == (4, 12, 12, 3)
    assert sub.estimate_importance(images, 0, 8)["importance"].shape == (3,)
    made = CRAFT.at(Model(net), "module:1", 4, 6).fit(positive(20, 3, 12, 12).float())
    again = made.recurse(1, "module:0", n_concepts=3, share=0.2)
    assert torch.allclose(again.bank_.bank_, sub.bank_.bank_, atol=1e-5)
    assert len(craft.recurse(1, net[:1], net[1:], most=5).crops_) == 5
    with pytest.raises(InputError, match="h_prev"):
        craft.recurse(1, net[:1])
    with pytest.raises(InputError, match=r"CRAFT\.at"):
        craft.recurse(1, "module:0")
    with pytest.raises(InputError, match="n_concepts"):
        craft.recurse(1, net[:1], net[1:], n_concepts=6, most=5)
    with pytest.raises(InputError, match="concepts are numbered from 0 to 3"):
        craft.recurse(4, net[:1], net[1:])
    with pytest.raises(InputError, match="share"):
        craft.recurse(1, net[:1], net[1:], share=0.0)


def test_the_best_crops_have_the_largest_coefficients(craft):
    best = craft.best_crops(2, 3)
    assert torch.equal(best[0], craft.crops_[craft.codes_[:, 2].argmax()]) and best.shape == (3, 3, 6, 6)


def test_concepts_of_positions_are_those_of_ice():
    images = positive(10, 3, 12, 12).float()
    ice = CRAFT(*halves(random_cnn()), 4, 6, on="positions").fit(images, progress=True)
    with torch.no_grad():
        rows = ice.g(images).movedim(1, -1).flatten(0, 2)
    want = ConceptBank("nmf", 4).fit(rows)
    assert torch.equal(ice.bank_.bank_, want.bank_)
    assert torch.equal(ice.crops_, images) and ice.codes_.shape == (10, 4)


def test_flat_activations_need_no_positions():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10), nn.ReLU())
    with torch.no_grad():
        net[1].weight.copy_(drawn(10, 192))
    images = positive(20, 3, 8, 8).float()
    craft = CRAFT(net, lambda a: a[:, :3], 3, 4).fit(images)
    assert craft.transform(images).shape == (20, 3)
    assert craft.estimate_importance(images, 1)["by_image"].shape == (20, 3)
    assert concept_curves(craft, images, 1, {"first": [1, 0, 0]})["logit"].shape == (2, 4)
    assert gradient_importance(craft, images, 1)["sensitivity"].shape == (20, 3)


def test_it_comes_back_from_disk(craft, tmp_path):
    craft.save(tmp_path / "craft")
    again = CRAFT.load(tmp_path / "craft", craft.g, craft.h)
    images = positive(2, 3, 12, 12).float()
    assert torch.equal(again.transform(images), craft.transform(images))
    assert torch.equal(again.best_crops(0), craft.best_crops(0)) and again.get_params() == craft.get_params()
    craft.bank_.save(tmp_path / "bank")
    with pytest.raises(LoadError, match="is no CRAFT"):
        CRAFT.load(tmp_path / "bank", craft.g, craft.h)


IMAGES = positive(4, 3, 12, 12).float()


@pytest.mark.parametrize(
    ("change", "images", "error", "message"),
    [
        ({}, IMAGES[..., :10], InputError, "square"),
        ({}, IMAGES[0], InputError, "expected images"),
        ({}, IMAGES[:0], InputError, "expected images"),
        ({}, (255 * IMAGES).byte(), InputError, "floating-point"),
        ({}, IMAGES.log() * 0 + float("nan"), InputError, "NaN"),
        ({"patch_size": 13}, IMAGES, InputError, "do not fit"),
        ({"patch_size": 0}, IMAGES, InputError, "do not fit"),
        ({"n_concepts": 9}, IMAGES, InputError, "between 1 and 8"),
        ({"n_concepts": 0}, IMAGES, InputError, "between 1 and 8"),
        ({"method": "nfm"}, IMAGES, UnknownNameError, "nmf"),
        ({"on": "crop"}, IMAGES, UnknownNameError, "crops"),
        ({"batch_size": 0}, IMAGES, InputError, "batch_size"),
        ({"g": lambda x: x.flatten(2)}, IMAGES, InputError, "g gives activations"),
        ({"g": lambda x: 0 * x}, IMAGES, InputError, "all activations are 0"),
        ({"g": nn.Sequential(nn.BatchNorm2d(3))}, IMAGES, InputError, "training mode"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, images, error, message):
    g, h = halves(random_cnn())
    with pytest.raises(error, match=message):
        CRAFT(**{"g": g, "h": h, "n_concepts": 3, "patch_size": 6, **change}).fit(images)


def test_what_cannot_be_explained_is_refused(craft):
    with pytest.raises(InputError, match="class from 0 to 3"):
        craft.estimate_importance(IMAGES, 4)
    with pytest.raises(InputError, match="images of 12 pixels"):
        craft.transform(positive(2, 3, 14, 14).float())
    with pytest.raises(InputError, match="call fit"):
        CRAFT(craft.g, craft.h).transform(IMAGES)
    with pytest.raises(UnknownNameError, match="deletion"):
        concept_curves(craft, IMAGES, 0, {}, "delete")
    with pytest.raises(InputError, match="expected finite numbers"):
        concept_curves(craft, IMAGES, 0, {"short": [1.0, 2.0]})
    with pytest.raises(InputError, match="random orders"):
        concept_curves(craft, IMAGES, 0, {"random": [1.0] * 4})
    with pytest.raises(InputError, match="no order"):
        concept_curves(craft, IMAGES, 0, {}, random_orders=0)
    with pytest.raises(InputError, match="no gradient"):
        gradient_importance(CRAFT(craft.g, lambda a: torch.ones(len(a), 2), 3, 6).fit(IMAGES), IMAGES, 0)


@pytest.mark.filterwarnings("ignore:the concepts give back:actinium.core.errors.ActiniumWarning")
def test_on_a_trained_resnet_the_sobol_order_removes_the_class_faster_than_chance(outside_data):
    net, x, y = cifar(outside_data)
    horses = x[y == 7][:30]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        craft = CRAFT.at(Model(net), "module:layer3", 6, 16).fit(horses)
    assert craft.bank_.error_ < 0.6
    found = craft.estimate_importance(horses[:12], 7, nb_design=16)
    curves = concept_curves(craft, horses[:12], 7, {"sobol": found["importance"].values}, random_orders=10)
    area = curves["auc_normalised"]
    assert float(area.sel(order="sobol")) < 0.8 * float(area.sel(order="random"))
    sub = craft.recurse(int(found["importance"].values.argmax()), "module:layer2", n_concepts=3)
    assert sub.bank_.bank_.shape == (3, 32)
