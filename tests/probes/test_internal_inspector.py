"""InternalInspector learns from all layers, says how sure it is, and where it looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.probes.calibration import auroc, calibration_error
from actinium.probes.internal_inspector import InternalInspector
from actinium.probes.internal_states import StackedStates
from actinium.probes.linear import LinearProbe
from actinium.probes.supervised_contrast import supervised_contrastive_loss

pytestmark = pytest.mark.filterwarnings("ignore:the temperature stays 1:actinium.core.errors.ActiniumWarning")
LAYERS, D = 4, 16
FAST = {"width": 32, "lr": 2e-3, "epochs": 10, "batch_size": 32}
STATES = ("resid_post", "attn.out", "mlp.out")


def planted(n, seed=0, strength=1.2, share=0.5):
    """Noise in which the label shows in what one MLP in the middle adds, and nowhere else."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, LAYERS, D, generator=random)
    y = (torch.rand(n, generator=random) < share).long()
    x[:, 2, 2] += strength * (2 * y[:, None] - 1)
    return StackedStates(x, STATES, tuple(range(LAYERS))), y


def test_the_contrastive_loss_has_its_closed_forms():
    basis = torch.eye(2)
    apart, labels = basis[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    assert float(supervised_contrastive_loss(apart, labels)) == pytest.approx(math.log(1 + 2 * math.exp(-10)), abs=1e-6)
    double = supervised_contrastive_loss(apart.double(), labels)
    assert float(double) == pytest.approx(9.0796e-5, rel=1e-4)
    assert float(supervised_contrastive_loss(basis[[0, 0, 0, 0]], labels)) == pytest.approx(math.log(3))


def test_the_contrastive_loss_is_its_double_sum():
    random = torch.Generator().manual_seed(0)
    u = functional.normalize(torch.randn(9, 5, dtype=torch.float64, generator=random), dim=1)
    labels = torch.tensor([0, 1, 1, 0, 2, 1, 0, 0, 1])  # 2 stands alone and is no anchor
    total = []
    for i in range(9):
        friends = [p for p in range(9) if p != i and labels[p] == labels[i]]
        below = sum(math.exp(float(u[i] @ u[b]) / 0.2) for b in range(9) if b != i)
        if friends:
            total.append(-np.mean([math.log(math.exp(float(u[i] @ u[p]) / 0.2) / below) for p in friends]))
    assert float(supervised_contrastive_loss(u, labels, 0.2)) == pytest.approx(np.mean(total))
    u.requires_grad_(True)
    supervised_contrastive_loss(u, labels).backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("encoder", ["cnn", "transformer", "mlp"])
def test_a_label_in_the_middle_is_found_by_all_layers_and_not_in_the_last(encoder):
    (x, y), (x_test, y_test) = planted(160), planted(160, seed=1)
    found = InternalInspector(encoder, **FAST).fit(x, y)
    assert auroc(found.decision_function(x_test), y_test) > 0.95
    assert found.score(x_test, y_test) > 0.85
    last = LinearProbe().fit(x.values[:, 0, -1], y)
    assert abs(auroc(last.decision_function(x_test.values[:, 0, -1]), y_test) - 0.5) < 0.15
    drop = found.layer_importance(x_test, y_test)["drop"]
    assert drop.dims == ("state", "layer")
    assert float(drop.sel(state="mlp.out", layer=2)) > 0.2
    assert float(np.abs(drop.where((drop.state != "mlp.out") | (drop.layer != 2))).max()) < 0.1


def test_single_states_and_layers_are_ablations_of_the_same_method():
    (x, y), (x_test, y_test) = planted(160), planted(160, seed=1)
    area = {}
    for name, chosen in {"mlp": (("mlp.out",), None), "attention": (("attn.out",), None), "last": (None, [-1])}.items():
        found = InternalInspector("mlp", **FAST).fit(x.select(*chosen), y)
        area[name] = auroc(found.decision_function(x_test.select(*chosen)), y_test)
    assert area["mlp"] > 0.95
    assert abs(area["attention"] - 0.5) < 0.15 and abs(area["last"] - 0.5) < 0.15


def test_confidence_is_about_data_like_those_of_the_training():
    """Batches are balanced, and nine answers of ten are right: the mean confidence must say so."""
    (x, y), (x_test, y_test) = planted(400, strength=0.3, share=0.9), planted(600, seed=1, strength=0.3, share=0.9)
    found = InternalInspector("mlp", **FAST).fit(x, y)
    p, share = found.predict_proba(x_test)[:, 1], float(y_test.float().mean())
    assert abs(p.mean() - share) < 0.1
    assert calibration_error(p, y_test, bins=10) < 0.1
    rights = float(y.float().mean())
    assert found.shift_ == pytest.approx(math.log(rights / (1 - rights)), abs=0.1)
    found.shift_ = 0.0
    assert found.predict_proba(x_test)[:, 1].mean() < share - 0.2


def test_temperature_moves_confidence_and_neither_accuracy_nor_ranking():
    (x, y), (x_test, y_test) = planted(160, strength=0.3), planted(200, seed=1, strength=0.3)
    options = {**FAST, "patience": 10}
    plain, scaled = (InternalInspector("mlp", calibrate=c, **options).fit(x, y) for c in (False, True))
    assert plain.temperature_ == 1.0 != scaled.temperature_
    np.testing.assert_allclose(scaled.decision_function(x_test) * scaled.temperature_, plain.decision_function(x_test))
    assert plain.score(x_test, y_test) == scaled.score(x_test, y_test)
    assert auroc(plain.predict_proba(x_test)[:, 1], y_test) == auroc(scaled.predict_proba(x_test)[:, 1], y_test)


def test_two_stages_train_the_encoder_by_contrast_alone():
    (x, y), (x_test, y_test) = planted(160), planted(160, seed=1)
    found = InternalInspector("mlp", two_stage=True, **{**FAST, "epochs": 40}).fit(x, y)
    assert len(found.validation_nll_) <= 20 < len(found.loss_)
    assert auroc(found.decision_function(x_test), y_test) > 0.9
    short = {**FAST, "epochs": 2, "weight_decay": 0.0}
    one, two = (InternalInspector("mlp", two_stage=True, **{**short, "epochs": e}).fit(x, y) for e in (2, 3))
    same = [
        torch.equal(a, b)
        for a, b in zip(one.network_.encoder.parameters(), two.network_.encoder.parameters(), strict=True)
    ]
    assert all(same)  # the first stage of both is one epoch, and the encoder rests in the second
    assert all(p.requires_grad for p in two.network_.parameters())


def test_normalisation_is_that_of_the_training_data():
    x, y = planted(60)
    x.values[:, 0] = 1e4 + 300 * x.values[:, 0]  # massive activations, whose squares leave half precision
    x.values[:, 1, 0] = 7.0
    x.values[:, 2, 1] *= 1e-3  # small ones beside them count as well
    options = {**FAST, "epochs": 1, "validation_share": 0, "calibrate": False}
    unit = InternalInspector("mlp", **options).fit(StackedStates(x.values.half(), STATES, x.layers), y)
    layer = InternalInspector("mlp", normalise="layer", **options).fit(x, y)
    kept = x.values.half().float()
    assert torch.allclose(unit.mean_, kept.mean(0))
    assert torch.allclose(unit.scale_[:, 1:], kept.std(0, correction=0)[:, 1:], rtol=1e-4)
    assert torch.isinf(unit.scale_[1, 0]).all()
    assert layer.mean_.shape == (3, LAYERS, 1)
    assert torch.allclose(layer.mean_[..., 0], x.values.mean((0, 3)), rtol=1e-5)
    assert np.isfinite(unit.decision_function(x)).all()


def test_it_comes_back_from_disk_and_the_seed_decides(tmp_path):
    x, y = planted(60)
    few = {**FAST, "epochs": 2}
    state = torch.random.get_rng_state()
    for encoder in ("cnn", "transformer", "mlp"):
        found, same, other = (
            InternalInspector(encoder, seed=s, **few).fit(x.values.numpy(), y, progress=not s) for s in (0, 0, 1)
        )
        logits = found.decision_function(x)
        again = InternalInspector.load(found.save(tmp_path / encoder))
        assert again.get_params() == found.get_params()
        np.testing.assert_array_equal(again.decision_function(x), logits)
        np.testing.assert_array_equal(same.decision_function(x), logits)
        assert (other.decision_function(x) != logits).any()
        p = found.predict_proba(x)
        np.testing.assert_allclose(p.sum(1), 1)
        assert (found.predict(x) == (p[:, 1] > 0.5)).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(LoadError, match="cannot read"):
        InternalInspector.load(tmp_path / "absent")


def test_answers_that_are_all_told_apart_leave_the_temperature_alone():
    x, y = planted(80, strength=9.0)
    with pytest.warns(ActiniumWarning, match="temperature stays 1"):
        found = InternalInspector("mlp", **FAST).fit(x, y)
    assert found.temperature_ == 1.0


def test_what_cannot_be_learned_is_refused():
    x, y = planted(40)
    lone = torch.zeros(40)
    lone[3] = 1
    broken = x.values.clone()
    broken[2, 1, 0, 3] = torch.nan
    fit = InternalInspector("mlp", **{**FAST, "epochs": 1}).fit
    fitted = InternalInspector("mlp", **{**FAST, "epochs": 1}).fit(x, y)
    for call, error, message in (
        (lambda: fit(x, y * 0), InputError, "both classes"),
        (lambda: InternalInspector("mlp", validation_share=0, **FAST).fit(x, lone), InputError, "two right and two"),
        (lambda: fit(broken, y), InputError, "NaN"),
        (lambda: fit(x.values[:, 0], y), InputError, "n, state, layer, d"),
        (lambda: fit(torch.ones(40, 3, 2, 4), y), InputError, "same for every answer"),
        (lambda: fit(x, y, validation=(x.select(layers=[0]), y)), InputError, "do not fit"),
        (lambda: fitted.predict(x.select(layers=[0])), InputError, "do not fit"),
        (lambda: fitted.layer_importance(x, y * 0), InputError, "both classes"),
        (lambda: InternalInspector("mlp").predict(x), InputError, "call fit"),
        (lambda: InternalInspector("resnet").fit(x, y), UnknownNameError, "encoder"),
        (lambda: InternalInspector(normalise="units").fit(x, y), UnknownNameError, "unit"),
        (lambda: InternalInspector(batch_size=2).fit(x, y), InputError, "batch_size"),
        (lambda: InternalInspector(contrast=-1).fit(x, y), InputError, "contrast"),
        (lambda: InternalInspector(width=30).fit(x, y), InputError, "width"),
        (lambda: InternalInspector(two_stage=True, epochs=1).fit(x, y), InputError, "epochs >= 2"),
        (lambda: InternalInspector(validation_share=0.7).fit(x, y), InputError, "validation_share"),
        (lambda: supervised_contrastive_loss(torch.eye(2), torch.arange(2)), InputError, "no vector"),
        (lambda: supervised_contrastive_loss(torch.eye(2), torch.arange(3)), InputError, "n labels"),
    ):
        with pytest.raises(error, match=message):
            call()
