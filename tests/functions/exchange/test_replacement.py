"""Activation functions are found by what they do, exchanged, fitted to what stood there, and put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.exchange.function_fit import fit_to_function
from actinium.functions.exchange.replacement import find_activations, replace


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)
    )


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def test_modules_are_known_by_their_values():
    net = mlp()
    assert set(find_activations(net)) == {"1", "4"}
    assert list(find_activations(net, "relu")) == ["1"] and list(find_activations(net, "gelu")) == ["4"]
    assert list(find_activations(net, nn.GELU)) == ["4"]
    assert list(find_activations(net, torch.relu)) == ["1"]
    for name in ("mish", "selu", "hardswish", "tanh"):
        assert list(find_activations(nn.Sequential(nn.Linear(2, 2), ac.functions.get(name)), name)) == ["1"]
    assert list(find_activations(nn.Sequential(nn.Mish()), "mish")) == ["0"]
    tanh = nn.Sequential(nn.GELU(approximate="tanh"))
    with pytest.raises(InputError, match="no module of Sequential is 'gelu'"):
        find_activations(tanh, "gelu")
    assert net.training and net[2].training


def test_an_exchange_acts_and_is_undone():
    net, x = mlp().eval(), torch.randn(5, 4)
    before = net(x)
    held = net[1]
    with replace(net, "relu", "tanh") as swap:
        assert swap.places == ["1"] and swap.fits == {}
        wanted = net[3](torch.tanh(net[0](x)))
        torch.testing.assert_close(net(x), net[6](net[5](net[4](wanted))))
    assert net[1] is held
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    swap = replace(net, None, lambda: nn.SiLU())
    assert swap.places == ["1", "4"] and net[1] is not net[4]
    swap.undo()
    swap.undo()
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


def test_an_exchange_is_undone_when_its_block_fails():
    net = mlp()
    with pytest.raises(ZeroDivisionError), replace(net, "relu", "tanh"):
        _ = 1 / 0
    assert isinstance(net[1], nn.ReLU)


def test_a_gated_mlp_keeps_its_gate(llama):
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    block = llama.model.layers[0].mlp
    with replace(llama, "silu", "gelu") as swap, torch.no_grad():
        assert swap.places == ["model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn"]
        x = torch.randn(3, 16)
        wanted = block.down_proj(nn.functional.gelu(block.gate_proj(x)) * block.up_proj(x))
        torch.testing.assert_close(block(x), wanted)
        changed = llama(ids).logits
    with torch.no_grad():
        assert not torch.allclose(changed, llama(ids).logits)


def test_a_fitted_function_does_what_the_old_one_did():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="relu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
        with replace(net, "relu", "prelu", a=0.7):
            far = (net(ids).logits - before).abs().max()
        with replace(net, "relu", "prelu", preserve=True, a=0.7) as swap:
            near = (net(ids).logits - before).abs().max()
    assert float(near) < 1e-5 < float(far)
    assert all(fit.max_error < 1e-5 < fit.before for fit in swap.fits.values())


def test_a_fit_finds_the_parameters():
    swish = ac.functions.get("swish", b=1.0)
    fit = fit_to_function(swish, lambda x: x * torch.sigmoid(1.7 * x))
    assert swish.b.item() == pytest.approx(1.7, abs=1e-4) and fit.rmse < 1e-5 < fit.before
    assert swish.b.dtype == torch.float32 and swish.b.grad is None
    units = ac.functions.get("swish", num_parameters=3, channel_dim=-1, b=1.0)
    fit_to_function(units, lambda x: x * torch.sigmoid(0.5 * x))
    torch.testing.assert_close(units.b.detach(), torch.full((3,), 0.5), atol=1e-4, rtol=0)


def test_what_cannot_be_exchanged_is_refused():
    with pytest.raises(InputError, match="no module of Sequential is an activation function"):
        replace(nn.Sequential(nn.Linear(3, 3)), None, "relu")
    with pytest.raises(UnknownNameError, match="did you mean"):
        replace(mlp(), "relu", "mesh")
    with pytest.raises(InputError, match="no parameters that could be fitted"):
        replace(mlp(), "relu", "tanh", preserve=True)
    with pytest.raises(InputError, match="given by its name"):
        replace(mlp(), "relu", nn.Tanh(), b=2.0)
    with pytest.raises(InputError, match="interval"):
        fit_to_function(ac.functions.get("swish"), torch.relu, 3, -3)
    net = mlp()
    with pytest.raises(InputError, match="no parameters"):
        replace(net, None, "tanh", preserve=True)
    assert isinstance(net[1], nn.ReLU)
