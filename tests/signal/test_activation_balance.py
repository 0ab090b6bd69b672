"""Activation rates are counts over real tokens; sensitivities are those of autograd and, for linear losses, exact."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.concentration import gini
from actinium.core.errors import InputError, SiteError
from actinium.signal.activation_balance import (
    compare_balance,
    parameter_sensitivity,
    pruning_curve,
    sensitivity_balance,
)
from actinium.signal.neuron_activation import neuron_activation_rate

sys.path.insert(0, str(Path(__file__).parents[1]))

import architectures


def own_loss(function):
    """A loss of the module alone: the batch is not looked at."""
    return lambda module, batch: function(module)


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))


@pytest.fixture
def lm():
    return ac.load("world:lm")


@pytest.fixture
def texts():
    return ac.world.heldout_text("lm")[:24]


def t5_inputs(labels=True):
    given = {
        "input_ids": architectures.token_ids(3, 7),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3]),
    }
    if labels:
        given["labels"] = torch.tensor([[5, 6, 7, -100], [3, 4, -100, -100], [9, 9, 9, 9]])
    return given


# Balance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_gini_of_equal_values_is_zero_and_of_one_among_n_is_that_share(n):
    assert gini(np.full(n, 0.3)) == pytest.approx(0, abs=1e-12)
    one = np.zeros(n)
    one[0] = 5.0
    assert gini(one) == pytest.approx((n - 1) / n)
    assert np.isnan(gini(np.zeros(n)))


def test_gini_is_half_the_relative_mean_difference():
    x = np.random.default_rng(0).exponential(size=50)
    expected = np.abs(x[:, None] - x[None]).mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(expected)
    assert float(sensitivity_balance({"w": torch.tensor(x)})["gini"][0]) == pytest.approx(expected)


def test_groups_and_shares_of_the_top_are_those_of_the_names():
    values = {
        "model.layers.0.self_attn.q_proj.weight": torch.full((10, 10), 1.0),
        "model.layers.1.mlp.up_proj.weight": torch.arange(100.0).view(10, 10),
        "model.layers.1.mlp.down_proj.weight": torch.zeros(5),
        "model.norm.weight": torch.ones(2),
        "encoder.block.2.layer.0.SelfAttention.k.weight": torch.ones(4),
        "shared.weight": torch.ones(3),
        "adapter": torch.ones(3),
    }
    found = sensitivity_balance(values)
    of = found.data.sel
    assert float(of(group="type q")["gini"]) == pytest.approx(0)
    assert float(of(group="type wi")["top_1"]) == pytest.approx(99 / 4950)
    assert float(of(group="type wi")["top_10"]) == pytest.approx(sum(range(90, 100)) / 4950)
    assert np.isnan(float(of(group="type wo")["gini"]))
    assert int(of(group="layer 1")["parameters"]) == 105
    assert int(of(group="encoder layer 2")["parameters"]) == 4
    kinds = {"q", "wi", "wo", "norm", "k", "embedding", "other"}
    assert {g.removeprefix("type ") for g in found["group"].values if g.startswith("type")} == kinds
    assert float(sum(of(group=f"type {k}")["share"] for k in kinds)) == pytest.approx(1)
    assert found["lorenz"].values[[0, -1]].tolist() == [0, 1]
    assert (np.diff(found["lorenz"]) >= 0).all()
    found.plot()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "bert", "t5", "t5-gated", "opt"])
def test_matrices_of_an_architecture_have_a_type(name):
    matrices = [n for n, p in architectures.shared(name).module.named_parameters() if p.ndim == 2]
    plain = [n for n in matrices if not re.search("relative_attention_bias|predictions", n)]
    found = sensitivity_balance({n: torch.ones(1) for n in plain})
    assert "type other" not in found["group"].values
    of = {str(g): int(k) for g, k in zip(found["group"].values, found["parameters"].values, strict=True)}
    # T5: four encoder layers, and three decoder layers with two attentions each.
    attentions, layers = (10, 7) if name.startswith("t5") else (3, 3)
    fused = name in ("gpt2", "gpt_neox")
    for kind in ("qkv",) if fused else ("q", "k", "v"):
        assert of[f"type {kind}"] == attentions
    assert of["type o"] == attentions
    assert of["type wo"] == layers
    assert of["type wi"] == layers * (2 if name in ("llama", "t5-gated") else 1)


# Sensitivity ----------------------------------------------------------------------------------------------------


def test_parameters_times_gradients_sum_to_the_degree_times_a_homogeneous_loss():
    module = Quadratic()
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        module.weight.abs_()
        x.abs_()  # so that every product is positive and magnitudes do not hide a sign
    found = parameter_sensitivity(module, [None], own_loss(lambda m: ((m.weight @ x) ** 2).sum()))
    assert float(found["weight"].sum()) == pytest.approx(2 * float(((module.weight @ x) ** 2).sum().detach()))


def test_layers_of_a_bias_free_relu_network_have_equal_sums():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 2, bias=False)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    x = torch.rand(9, 5, dtype=torch.float64)
    found = parameter_sensitivity(net, [x], lambda m, batch: (m(batch) ** 2).sum())
    loss = float((net(x) ** 2).sum().detach())
    assert float(found["0.weight"].sum()) == pytest.approx(float(found["2.weight"].sum())) == pytest.approx(2 * loss)


def test_first_order_is_exact_for_a_linear_loss():
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    found = parameter_sensitivity(net, [x], lambda m, batch: m(batch).sum())
    before = float(net(x).sum().detach())
    for index in [(0, 0), (2, 3)]:
        kept = float(net.weight[index])
        with torch.no_grad():
            net.weight[index] = 0
        exact = abs(before - float(net(x).sum().detach()))
        with torch.no_grad():
            net.weight[index] = kept
        assert float(found["weight"][index]) == pytest.approx(exact)


def test_a_dataset_gradient_is_below_the_mean_of_the_magnitudes(lm, texts):
    whole = parameter_sensitivity(lm, texts, batch_size=6)
    batches = parameter_sensitivity(lm, texts, mode="batchwise", batch_size=6)
    one = parameter_sensitivity(lm, texts, batch_size=24)
    again = parameter_sensitivity(lm, texts, mode="batchwise", batch_size=24)
    total = {k: float(sum(v.sum() for v in d.values())) for k, d in {"whole": whole, "batches": batches}.items()}
    assert total["batches"] > 1.05 * total["whole"]
    for name, value in one.items():
        assert torch.allclose(value, whole[name], rtol=1e-3, atol=1e-6)
        assert torch.allclose(value, again[name])


def test_sensitivities_of_the_shipped_model_are_those_of_autograd_and_leave_it_alone(lm, texts):
    before = lm.fingerprint()
    found = parameter_sensitivity(lm, texts)
    loss = lm.loss(texts)
    names, values = zip(*lm.module.named_parameters(), strict=True)
    for name, p, g in zip(names, values, torch.autograd.grad(loss, values), strict=True):
        assert torch.allclose(found[name], (p * g).abs().double(), rtol=1e-3, atol=1e-7)
    assert lm.fingerprint() == before
    assert all(p.grad is None for p in values)
    assert not lm.module.training
    balance = sensitivity_balance(found)
    assert 0.4 < float(balance["gini"].sel(group="all")) < 1
    assert {"type q", "type wo", "type embedding", "layer 5"} <= set(balance["group"].values)


def test_an_encoder_decoder_weighs_batches_by_their_labels():
    model = architectures.shared("t5")
    whole = parameter_sensitivity(model, t5_inputs())
    parts = parameter_sensitivity(model, t5_inputs(), batch_size=1)
    assert all(torch.allclose(v, parts[k], rtol=1e-3, atol=1e-6) for k, v in whole.items())
    assert "encoder layer 0" in sensitivity_balance(whole)["group"].values


def test_pruning_the_least_sensitive_ends_at_zero_weights_and_is_undone(lm, texts):
    before = lm.fingerprint()
    found = parameter_sensitivity(lm, texts)
    curve = pruning_curve(lm, found, texts, shares=(0.0, 0.2, 1.0))
    assert float(curve["loss"][0]) == pytest.approx(float(lm.loss(texts)), rel=1e-4)
    assert float(curve["loss"][1]) < float(curve["loss"][2])
    assert float(curve["loss"][2]) == pytest.approx(np.log(848), rel=1e-5)  # every logit is zero
    assert lm.fingerprint() == before
    curve.plot()


# Activation rate ------------------------------------------------------------------------------------------------


def test_relu_of_symmetric_pre_activations_is_on_half_of_the_time():
    torch.manual_seed(0)
    model = ac.Model(nn.Sequential(nn.Linear(10, 50, bias=False), nn.ReLU(), nn.Linear(50, 2)))
    found = neuron_activation_rate(model, torch.randn(4000, 10), at="module:1", batch_size=1000)
    assert found["rate"].shape == (1, 50)
    assert (abs(found["rate"] - 0.5) < 0.04).all()
    assert float(found["active"][0]) == pytest.approx(0.5, abs=0.02)
    assert int(found["tokens"][0]) == 4000


def test_dead_and_rare_neurons_are_counted():
    layer = nn.Linear(1, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
        layer.bias.copy_(torch.tensor([-1.0, 1.0, 0.0, -0.9997]))
    model = ac.Model(nn.Sequential(layer, nn.ReLU()))
    found = neuron_activation_rate(model, torch.arange(1, 5001)[:, None] / 5000, at="module:1", batch_size=5000)
    assert found["rate"][0].values.tolist() == pytest.approx([0, 1, 1, 2 / 5000])
    assert float(found["dead"][0]) == 0.25
    assert float(found["rare"][0]) == 0.5
    assert float(found["sparsity"][0]) == pytest.approx(1 - float(found["rate"].mean()))


def test_padding_does_not_count(lm):
    short, long = "Ron has a frog.", "Andrew keeps a frog and Lucy works as a doctor in the town."
    both = neuron_activation_rate(lm, [short, long])
    each = [neuron_activation_rate(lm, [t]) for t in (short, long)]
    n = [int(e["tokens"][0]) for e in each]
    assert int(both["tokens"][0]) == sum(n)
    expected = sum(k * e["rate"] for k, e in zip(n, each, strict=True)) / sum(n)
    assert np.allclose(both["rate"], expected)


def test_rates_of_the_shipped_model_are_those_of_its_activation_branch(lm, texts):
    found = neuron_activation_rate(lm, texts, batch_size=16)
    assert found["site"].values.tolist() == [f"blocks.{i}.mlp.gate" for i in range(6)]
    record = lm.record(texts, "blocks.2.mlp.gate")
    active = nn.functional.silu(record["blocks.2.mlp.gate"])[record.mask] > 0
    assert np.allclose(found["rate"].sel(site="blocks.2.mlp.gate"), active.double().mean(0))
    assert ((found["active"] > 0.05) & (found["active"] < 0.95)).all()
    relative = neuron_activation_rate(lm, texts, tau=0.1, relative=True)
    post = lm.record(texts, "blocks.2.mlp.post")
    values = post["blocks.2.mlp.post"][post.mask].double()
    expected = (values.abs() > 0.1 * values.std(correction=0)).double().mean(0)
    assert np.allclose(relative["rate"].sel(site="blocks.2.mlp.post"), expected, atol=0.01)
    found.plot()


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_transformers_of_every_kind_have_rates(name):
    model = architectures.shared(name)
    found = neuron_activation_rate(model, architectures.inputs_for(name, batch=3))
    part = "gate" if name == "llama" else "post"
    assert found["site"].values.tolist() == [f"blocks.{i}.mlp.{part}" for i in range(3)]
    assert found["neurons"].values.tolist() == [48] * 3
    assert (found["tokens"] == 21).all()


def test_an_encoder_decoder_counts_real_tokens_on_both_sides():
    found = neuron_activation_rate(architectures.shared("t5"), t5_inputs())
    tokens = dict(zip(found["site"].values, found["tokens"].values, strict=True))
    assert {tokens[f"encoder.blocks.{i}.mlp.post"] for i in range(4)} == {16}
    assert {tokens[f"decoder.blocks.{i}.mlp.post"] for i in range(3)} == {9}
    batched = neuron_activation_rate(architectures.shared("t5"), [t5_inputs()], batch_size=1)
    assert np.allclose(found["rate"], batched["rate"])
    gated = neuron_activation_rate(architectures.shared("t5-gated"), t5_inputs())
    assert gated["site"].values[0] == "encoder.blocks.0.mlp.gate"


def test_models_of_one_shape_are_compared_and_others_refused(texts):
    models = {"base": ac.load("world:lm"), "noisy": ac.load("world:lm")}
    with torch.no_grad():
        for p in models["noisy"].module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    found = compare_balance(models, texts)
    assert float(found["loss"][0]) < float(found["loss"][1])
    rate = neuron_activation_rate(models["base"], texts)
    assert float(found["active"][0]) == pytest.approx(float(rate["active"].mean()))
    spread = sensitivity_balance(parameter_sensitivity(models["base"], texts))
    assert float(found["gini"][0]) == pytest.approx(float(spread["gini"].sel(group="all")), rel=1e-6)
    found.plot()
    with pytest.raises(InputError, match="differ in shape at"):
        compare_balance({"a": models["base"], "b": architectures.shared("llama")}, texts)
    with pytest.raises(InputError, match="two models"):
        compare_balance({"a": models["base"]}, texts)


def test_what_has_no_rate_is_refused():
    plain = ac.Model(nn.Linear(3, 2))
    with pytest.raises(InputError, match="no feed-forward layers"):
        neuron_activation_rate(plain, torch.randn(4, 3))
    with pytest.raises(InputError, match="no feed-forward layers"):
        neuron_activation_rate(architectures.shared("mixtral"), architectures.token_ids())
    with pytest.raises(InputError, match="expected a Model"):
        neuron_activation_rate(nn.Linear(3, 2), torch.randn(4, 3))
    with pytest.raises(InputError, match="no meaning at a gate"):
        neuron_activation_rate(architectures.shared("llama"), architectures.token_ids(), tau=0.5)
    with pytest.raises(SiteError):
        neuron_activation_rate(architectures.shared("gpt2"), architectures.token_ids(), at="blocks.9.mlp.post")
    broken = ac.Model(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    with torch.no_grad():
        broken.module[0].bias.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        neuron_activation_rate(broken, torch.randn(4, 3), at="module:1")


def test_what_has_no_sensitivity_is_refused():
    net = nn.Linear(2, 1)
    with pytest.raises(InputError, match="mode is one of"):
        parameter_sensitivity(net, [1], own_loss(lambda m: m.weight.sum()), mode="epoch")
    with pytest.raises(InputError, match="no batches"):
        parameter_sensitivity(net, [], own_loss(lambda m: m.weight.sum()))
    with pytest.raises(InputError, match="no parameters"):
        parameter_sensitivity(nn.ReLU(), [1], own_loss(lambda m: torch.ones(())))
    with pytest.raises(InputError, match="does not depend"):
        parameter_sensitivity(net, [1], own_loss(lambda m: torch.ones(())))
    with pytest.raises(InputError, match="one finite number"):
        parameter_sensitivity(net, [1], own_loss(lambda m: m.weight.sum() * torch.nan))
    with pytest.raises(InputError, match="pass a Model"):
        parameter_sensitivity(net, [1])
    with pytest.raises(InputError, match="mappings with labels"):
        parameter_sensitivity(architectures.shared("bert"), architectures.token_ids())
    with pytest.raises(InputError, match="every sensitivity is zero"):
        sensitivity_balance({"w": torch.zeros(3)})
    with pytest.raises(InputError, match="not negative"):
        sensitivity_balance({"w": torch.tensor([-1.0])})
    with pytest.raises(InputError, match="no sensitivities"):
        sensitivity_balance({})
    with pytest.raises(InputError, match="no parameter 'w'"):
        pruning_curve(net, {"w": torch.ones(2)}, [1], own_loss(lambda m: m.weight.sum()))


def test_training_mode_and_frozen_parameters_come_back():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
    net[0].weight.requires_grad_(False)
    net[1].eval()
    x = torch.randn(5, 3)
    found = parameter_sensitivity(net, [x], lambda m, b: m(b).pow(2).mean())
    again = parameter_sensitivity(net, [x], lambda m, b: m(b).pow(2).mean())
    assert all(torch.equal(v, again[k]) for k, v in found.items())
    assert float(found["0.weight"].sum()) > 0
    assert net.training and not net[1].training and not net[0].weight.requires_grad
