"""Round-to-nearest, its noise, and that the user's weights are never touched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from actinium import measure
from actinium.core.errors import InputError


def test_rounding_lands_on_the_grid_within_half_a_step():
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    for bits in (2, 4, 8):
        got = measure.round_to_nearest(x, bits)
        step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((got - x).abs() <= step / 2 * (1 + 1e-5)).all()
        levels = got / step
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        torch.testing.assert_close(measure.round_to_nearest(got, bits), got)


def test_zero_rows_stay_zero_and_bits_are_checked():
    assert measure.round_to_nearest(torch.zeros(2, 3), 8).eq(0).all()
    with pytest.raises(InputError, match="2 to 16"):
        measure.round_to_nearest(torch.ones(2), 1)


def test_sqnr_of_a_uniform_signal_is_six_decibels_per_bit():
    x = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for bits in (4, 6, 8):
        # Signal power 1/3, noise step^2 / 12 with 2^(bits-1) - 1 steps on either side of zero.
        expected = 10 * np.log10(4 * (2 ** (bits - 1) - 1) ** 2)
        assert measure.sqnr(x, measure.round_to_nearest(x, bits)) == pytest.approx(expected, abs=0.1)
    assert measure.sqnr(x, x) == np.inf
    with pytest.raises(InputError, match="power"):
        measure.sqnr(torch.zeros(3), torch.ones(3))


def test_sensitivity_equals_rounding_the_weights_by_hand(language_model, ragged):
    model = language_model
    got = measure.quantisation_sensitivity(model, ragged, bits=[4], batch_size=2)
    module = copy.deepcopy(model.module)
    block = next(m for n, m in module.named_modules() if n.endswith((".h.1", "layers.1")))
    with torch.no_grad():
        for m in block.modules():
            if type(m).__name__ in ("Linear", "Conv1D"):
                along = 0 if type(m).__name__ == "Conv1D" else 1
                m.weight.copy_(measure.round_to_nearest(m.weight, 4, along))
    reference = model.logits(ragged)[ragged.mask].detach()
    rounded = type(model)(module).logits(ragged)[ragged.mask].detach()
    assert float(got["sqnr"].sel(bits=4, layer="blocks.1")) == pytest.approx(measure.sqnr(reference, rounded), rel=1e-4)


def test_fewer_bits_make_more_noise_and_all_layers_more_than_one(any_transformer):
    model, inputs = any_transformer
    got = measure.quantisation_sensitivity(model, inputs)
    assert (got["sqnr"].sel(bits=8) > got["sqnr"].sel(bits=4)).all()
    assert float(got["sqnr_all"].sel(bits=4)) < float(got["sqnr"].sel(bits=4).max())


def test_rounded_activations_add_noise(cnn, images):
    weights = measure.quantisation_sensitivity(cnn, images, bits=[8])
    both = measure.quantisation_sensitivity(cnn, images, bits=[8], activation_bits=4)
    assert weights["layer"].values.tolist() == ["0", "3", "7"]
    assert (both["sqnr"] < weights["sqnr"]).all()


def test_the_users_weights_are_untouched_even_when_the_pass_fails(gpt2, ragged):
    before = {k: v.clone() for k, v in gpt2.module.state_dict().items()}
    storage = {k: v.data_ptr() for k, v in gpt2.module.state_dict().items()}
    measure.quantisation_sensitivity(gpt2, ragged, bits=[4])
    calls = 0

    def fail(module, args):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("the machine is on fire")

    handle = gpt2.module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on fire"):
        measure.quantisation_sensitivity(gpt2, ragged)
    handle.remove()
    after = gpt2.module.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert {k: v.data_ptr() for k, v in after.items()} == storage


def test_a_quantised_model_shares_what_it_does_not_round(llama):
    path = "model.layers.0.mlp.down_proj"
    rounded = measure.quantised(llama, [path], 8)
    theirs, ours = dict(rounded.module.named_parameters()), dict(llama.module.named_parameters())
    changed = [name for name in ours if theirs[name] is not ours[name]]
    assert changed == [f"{path}.weight"]
    with pytest.raises(InputError, match="no weight matrix"):
        measure.quantised(llama, ["model.norm"], 8)
