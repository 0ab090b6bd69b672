"""Selectors draw as softmax says, frozen neurons compute their function exactly, and two phases train on digits."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.functions.units.smart_mixed import (
    MIXED_POOL,
    GumbelActivationSelector,
    PerNeuronActivation,
    activation_preference_report,
    apply_choices,
    export_choices,
    freeze_selectors,
    mean_reciprocal_rank,
)
from actinium.functions.units.smart_mixed_training import SmartMixedTrainer


def rows(n=32, width=7, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 3


def digits():
    parts = [ac.world.digits.load(split) for split in ("train", "validation", "test")]
    mean, sd = parts[0].images.flatten(1).mean(0), parts[0].images.flatten(1).std(0).clamp(min=1e-3)
    return [((p.images.flatten(1) - mean) / sd, p.labels) for p in parts]


def test_hard_weights_are_one_hot_with_the_gradient_of_soft_ones():
    torch.manual_seed(0)
    hard, soft = GumbelActivationSelector(7), GumbelActivationSelector(7, hard=False)
    soft.load_state_dict(hard.state_dict())
    torch.manual_seed(1)
    w = hard.weights()
    torch.manual_seed(1)
    v = soft.weights()
    assert ((w == 0) | (w == 1)).all() and (w.sum(-1) == 1).all()
    assert torch.equal(w.argmax(-1), v.argmax(-1))
    torch.testing.assert_close(v.sum(-1), torch.ones(7))
    to = torch.randn(7, 6)
    for selector, weights in ((hard, w), (soft, v)):
        (weights * to).sum().backward()
        assert selector.logits.grad is not None
    assert torch.equal(hard.logits.grad, soft.logits.grad) and hard.logits.grad.abs().max() > 0


def test_functions_are_drawn_with_the_softmax_of_their_logits():
    torch.manual_seed(3)
    one = GumbelActivationSelector(1)
    with torch.no_grad():
        one.logits.copy_(torch.tensor([[0.5, -1.0, 0.0, 1.2, -0.3, 0.1]]))
    many = GumbelActivationSelector(100_000)
    with torch.no_grad():
        many.logits.copy_(one.logits.expand(100_000, -1))
    counts = many.weights().argmax(-1).bincount(minlength=6).numpy()
    expected = 100_000 * torch.softmax(torch.tensor([0.5, -1.0, 0.0, 1.2, -0.3, 0.1]).double(), 0).numpy()
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    torch.testing.assert_close(one.probabilities()[0].double().numpy() * 1e5, expected, rtol=1e-5, atol=0)


def test_functions_are_drawn_evenly_in_half_precision():
    torch.manual_seed(0)
    unit = GumbelActivationSelector(300_000)
    with torch.no_grad():
        unit.logits.zero_()
    counts = unit.to(torch.bfloat16).weights().argmax(-1).bincount(minlength=6).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_at_a_low_temperature_soft_weights_are_hard():
    torch.manual_seed(0)
    soft = GumbelActivationSelector(50, tau=1e-3, hard=False)
    w = soft.weights()
    near = (w - nn.functional.one_hot(w.argmax(-1), 6)).abs().amax(-1)
    assert float(near.detach().median()) < 1e-6 and float((near < 1e-6).double().mean()) > 0.9


def test_a_certain_choice_is_the_clamped_function():
    torch.manual_seed(0)
    x = rows() * 8
    for k, f in enumerate(MIXED_POOL.values()):
        unit = GumbelActivationSelector(7)
        with torch.no_grad():
            unit.logits.zero_()[:, k] = 50.0
        assert torch.equal(unit(x), f(x).clamp(-10, 10))
        assert torch.equal(unit.freeze()(x), f(x))


def test_logits_begin_with_one_random_entry_and_noise_is_the_batch_s():
    torch.manual_seed(0)
    unit = GumbelActivationSelector(600)
    assert torch.equal(unit.logits.detach().sort(-1).values, torch.tensor([0.0] * 5 + [0.001]).expand(600, 6))
    assert stats.chisquare(unit.choices().bincount(minlength=6).numpy()).pvalue > 1e-3
    x = torch.full((5, 600), 0.7)
    y = unit(x)
    assert torch.equal(y, y[:1].expand(5, -1))
    unit.eval()
    assert not torch.equal(unit(x), unit(x))  # drawn in evaluation too
    unit.noise_in_evaluation = False
    torch.testing.assert_close(unit(x), unit.freeze()(x))


@pytest.mark.parametrize("dim", [1, -1])
def test_frozen_neurons_are_their_function_by_mask_forward_and_backward(dim):
    choices = torch.tensor([3, 0, 5, 5, 1, 4, 0])
    unit = PerNeuronActivation(choices, dim=dim)
    x = (rows(4 * 3).view(4, 3, 7) if dim == -1 else rows(4 * 3).view(4, 7, 3)).requires_grad_()
    y = unit(x)
    z = x.detach().clone().requires_grad_()
    neurons = z.movedim(dim, -1)
    by_mask = torch.zeros_like(y).movedim(dim, -1)
    for k, f in enumerate(MIXED_POOL.values()):
        # Laid out as the module has it: vectorised exponentials differ by a unit in the last place with their position.
        picked = neurons[..., choices == k].movedim(-1, dim).contiguous()
        places = (choices == k).nonzero()[:, 0]
        by_mask = by_mask.index_copy(-1, places, f(picked).movedim(dim, -1))
    by_mask = by_mask.movedim(-1, dim)
    assert torch.equal(y, by_mask)
    to = torch.randn_like(y)
    (y * to).sum().backward()
    (by_mask * to).sum().backward()
    assert torch.equal(x.grad, z.grad)
    assert list(unit.parameters()) == [] and list(unit.state_dict()) == ["chosen"]


def test_a_frozen_module_is_copied_and_loaded():
    unit = PerNeuronActivation(["relu", "selu", "relu", "tanh", "elu", "sigmoid", "relu"])
    other = PerNeuronActivation([0] * 7)
    other.load_state_dict(unit.state_dict())
    x = rows()
    assert torch.equal(other(x), unit(x)) and other.names() == unit.names()
    assert torch.equal(copy.deepcopy(unit).double()(x.double()), unit(x.double()))
    assert torch.equal(PerNeuronActivation(["tanh"])(x), x.tanh())


def test_the_pool_takes_names_of_the_catalogue_and_functions_of_one_s_own():
    unit = PerNeuronActivation(["gelu", "mine"], {"gelu": ac.functions.functional("gelu"), "mine": lambda x: 2 * x})
    assert unit(torch.ones(1, 2))[0, 1] == 2
    x = rows()
    torch.testing.assert_close(PerNeuronActivation([1] * 7, ["relu", "mish"])(x), nn.functional.mish(x))
    unit = ac.functions.get("SmartMixed", num_parameters=3, pool=["gelu", "mish"])
    assert unit(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4) and unit.logits.shape == (3, 2)
    found = ac.functions.compare_activations(["relu", "SmartMixed"], "shapes", (0,), epochs=1, n=60)
    assert np.isfinite(found["score"].values).all()


def test_selectors_of_a_network_are_frozen_exported_and_applied(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), GumbelActivationSelector(9), nn.Sequential(GumbelActivationSelector(9)))
    blank = copy.deepcopy(net)
    wanted = [m.choices() for m in net.modules() if isinstance(m, GumbelActivationSelector)]
    chosen = export_choices(net)
    made = freeze_selectors(net)
    assert list(made) == ["1", "2.0"] and all(
        torch.equal(m.choices(), w) for m, w in zip(made.values(), wanted, strict=True)
    )
    assert (
        export_choices(net, tmp_path / "choices.json") == chosen == json.loads((tmp_path / "choices.json").read_text())
    )
    apply_choices(blank, tmp_path / "choices.json")
    assert torch.equal(blank(rows()), net(rows()))
    with pytest.raises(InputError, match="no activation"):
        freeze_selectors(net)
    with pytest.raises(InputError, match="no module"):
        apply_choices(net, {"7": ["relu"]})
    with pytest.raises(InputError, match="'selu'"):
        apply_choices(net, {"1": ["sellu"]})
    with pytest.raises(LoadError):
        apply_choices(net, tmp_path / "none.json")


def test_a_report_counts_choices_and_tests_them():
    even = torch.arange(6).repeat(20)
    net = nn.Sequential(PerNeuronActivation(even), PerNeuronActivation(torch.full((60,), 4)))
    found = activation_preference_report(net)
    assert found["count"].values.tolist() == [[20] * 6, [0, 0, 0, 0, 60, 0]]
    assert found["p"].values[0] == 1 and found["p"].values[1] < 1e-30
    assert found["chi_square"].values[1] == pytest.approx(60**2 / 10 - 60)
    table = np.array([[20] * 6, [0, 0, 0, 0, 60, 0]])
    assert found["p_same"].values[0, 1] == pytest.approx(stats.chi2_contingency(table)[1])
    found.plot()
    with pytest.raises(InputError, match="one pool"):
        activation_preference_report(nn.Sequential(PerNeuronActivation([0]), PerNeuronActivation([0], ["relu"])))


def test_methods_are_ranked_by_the_mean_of_reciprocal_ranks():
    found = mean_reciprocal_rank({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.9, 0.7], "c": [0.1, 0.2, 0.3]})
    tie = 1 / 1.5
    assert found == pytest.approx({"a": (1 + 0.5 + tie) / 3, "b": (0.5 + 1 + tie) / 3, "c": 1 / 3})
    with pytest.raises(InputError, match="every experiment"):
        mean_reciprocal_rank({"a": [1.0], "b": [1.0, 2.0]})


@pytest.fixture(scope="module")
def trained():
    train, validation, test = digits()
    trainer = SmartMixedTrainer((64, 64), transition=30, epochs=40, lr=2e-3)
    return trainer.fit(train, validation), train, validation, test


def test_neurons_choose_on_digits_and_freezing_costs_no_accuracy(trained):
    trainer, _, _, (x, y) = trained
    with torch.no_grad():
        accuracy = {
            name: float((getattr(trainer, name).eval()(x).argmax(-1) == y).double().mean())
            for name in ("selector_", "frozen_", "network_")
        }
    assert accuracy["frozen_"] >= accuracy["selector_"] - 0.01
    assert accuracy["network_"] > 0.94
    assert (activation_preference_report(trainer.frozen_)["p"].values < 1e-3).all()


def test_the_trajectory_begins_with_the_draw_and_losses_are_of_both_phases(trained):
    trainer, *_ = trained
    assert [t.shape for t in trainer.trajectory_] == [(31, 64), (31, 64)] and trainer.losses_.shape == (40,)
    moved = np.mean([float((t[0] != t[-1]).double().mean()) for t in trainer.trajectory_])
    assert moved > 0.5
    counts = trainer.result_["count"].values
    assert (counts.sum(-1) == 64).all() and counts[0, 0].tolist() == trainer.trajectory_[0][0].bincount(
        minlength=6
    ).tolist()
    assert trainer.result_["phase"].values.tolist() == [1] * 30 + [2] * 10
    trainer.result_.plot()


def test_weights_are_handed_on_and_kept_at_the_lowest_loss(trained):
    _, train, validation, _ = trained
    few = (train[0][:200], train[1][:200])
    trainer = SmartMixedTrainer((16,), transition=2, epochs=2, lr=2e-3).fit(few, validation)
    assert torch.equal(trainer.network_[0].weight, trainer.frozen_[0].weight)
    fresh = SmartMixedTrainer((16,), transition=2, epochs=2, lr=2e-3, transfer_weights=False).fit(few, validation)
    assert not torch.equal(fresh.network_[0].weight, fresh.frozen_[0].weight)
    assert torch.equal(fresh.network_[1].choices(), fresh.frozen_[1].choices())
    same = SmartMixedTrainer((16,), transition=2, epochs=2, lr=2e-3).fit(few, validation)
    assert torch.equal(same.network_[0].weight, trainer.network_[0].weight)
    long = SmartMixedTrainer((16,), transition=1, epochs=30, lr=0.05, double_softmax=True).fit(few, validation)
    with torch.no_grad():
        outputs = long.network_(validation[0])
    last = float(nn.functional.cross_entropy(outputs.softmax(-1), validation[1]))
    assert last == pytest.approx(long.losses_[1:].min(), rel=1e-5)
    assert torch.equal(long.predict(validation[0]), outputs.argmax(-1))


def test_what_cannot_be_chosen_is_refused():
    for make, error, message in (
        (lambda: GumbelActivationSelector(0), InputError, "num_parameters"),
        (lambda: GumbelActivationSelector(3, {}), InputError, "one function"),
        (lambda: GumbelActivationSelector(3, "relu"), InputError, "list of names"),
        (lambda: GumbelActivationSelector(3, ["rellu"]), UnknownNameError, "ReLU"),
        (lambda: GumbelActivationSelector(3, tau=0.0), InputError, "tau"),
        (lambda: GumbelActivationSelector(3, tau=math.nan), InputError, "tau"),
        (lambda: GumbelActivationSelector(3, {"sum": lambda x: x.sum(-1)}), InputError, "shape"),
        (lambda: GumbelActivationSelector(3)(torch.zeros(2, 4)), InputError, "3 channels"),
        (lambda: GumbelActivationSelector(3)(torch.zeros(2, 3).long()), InputError, "floating"),
        (lambda: PerNeuronActivation([0, 6]), InputError, "from 0 to 5"),
        (lambda: PerNeuronActivation([]), InputError, "choices"),
        (lambda: PerNeuronActivation([0, 1])(torch.zeros(2, 3)), InputError, "2 channels"),
        (lambda: freeze_selectors(GumbelActivationSelector(3)), InputError, "freeze()"),
        (lambda: SmartMixedTrainer().predict(torch.zeros(1, 2)), InputError, "not fitted"),
    ):
        with pytest.raises(error, match=message):
            make()
    good = (torch.zeros(4, 2), torch.zeros(4).long())
    for settings, train, message in (
        ({"transition": 500}, good, "transition"),
        ({"lr": 0.0}, good, "lr"),
        ({}, (torch.full((4, 2), math.nan), good[1]), "finite"),
        ({}, (good[0], good[1][:3]), "labels"),
    ):
        with pytest.raises(InputError, match=message):
            SmartMixedTrainer(**settings).fit(train, good)
