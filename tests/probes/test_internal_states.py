"""Stacked states are what the blocks add to the stream and the stream behind them, at one token of each text."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
import architectures
from actinium.core.errors import ActiniumWarning, InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.probes.internal_states import StackedStates, residual_identity

PRE_NORM = ("gpt2", "gpt_neox", "gptj", "bloom", "llama", "qwen3_moe", "gemma2", "phi", "falcon", "mpt", "t5", "vit")


@pytest.mark.parametrize("name", PRE_NORM)
def test_the_stream_is_the_sum_of_what_the_blocks_add(name):
    found = residual_identity(architectures.shared(name), architectures.inputs_for(name))
    assert found["error"].sizes == {"layer": architectures.LAYERS}
    assert float(found["error"].max()) < 1e-5


@pytest.mark.parametrize("name", ["bert", "opt-350m"])
def test_blocks_that_norm_the_stream_show_in_the_identity(name):
    found = residual_identity(architectures.shared(name), architectures.inputs_for(name))
    assert float(found["error"].min()) > 0.1


def test_mixers_count_and_blocks_that_hide_their_parts_are_refused():
    model = architectures.shared("mamba")
    assert float(residual_identity(model, architectures.token_ids())["error"].max()) < 1e-5
    stacked = StackedStates.capture(model, architectures.token_ids(), states=("resid_post", "mixer.out"))
    assert stacked.values.shape == (2, 2, architectures.LAYERS, architectures.D_MODEL)
    with pytest.raises(SiteError, match="mixer"):
        StackedStates.capture(model, architectures.token_ids())
    with pytest.raises(SiteError, match=r"attn\.out"):
        residual_identity(architectures.shared("granite"), architectures.token_ids())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "t5", "vit"])
def test_states_are_those_of_a_recording_at_the_last_token(name):
    model, inputs = architectures.shared(name), architectures.inputs_for(name)
    stacked = StackedStates.capture(model, inputs, dtype=torch.float32)
    assert stacked.values.shape == (2, 3, architectures.LAYERS, architectures.D_MODEL)
    for c, part in enumerate(stacked.states):
        for layer in range(architectures.LAYERS):
            site = f"{model.tower.prefix}blocks.{layer}.{part}"
            assert torch.equal(stacked.values[:, c, layer], model.record(inputs, site)[site][:, -1])
    assert torch.equal(StackedStates.capture(model, inputs).values, stacked.values.half())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_the_last_token(side):
    model, ids = architectures.shared("llama"), architectures.token_ids(2, 7)
    where = torch.arange(7) >= 3 if side == "left" else torch.arange(7) < 4
    padded = torch.zeros_like(ids)
    padded[0], padded[1, where] = ids[0], ids[1, :4]
    mask = torch.stack([torch.ones(7, dtype=torch.bool), where])
    found = StackedStates.capture(model, Tokens(padded, mask, torch.arange(2)), dtype=torch.float32, batch_size=1)
    alone = StackedStates.capture(model, ids[1:, :4], dtype=torch.float32)
    assert torch.allclose(found.values[1:], alone.values, atol=1e-5)


def test_a_selection_a_file_and_a_slice_hold_the_same_numbers(tmp_path):
    stacked = StackedStates.capture(architectures.shared("gpt2"), architectures.token_ids(4), position=0)
    some = stacked.select(("mlp.out",), [-1, 0])
    assert (some.states, some.layers) == (("mlp.out",), (architectures.LAYERS - 1, 0))
    assert torch.equal(some.values[:, 0, 0], stacked.values[:, 2, -1])
    assert len(stacked[1:]) == 3
    assert torch.equal(stacked[[2, 0]].values, stacked.values[[2, 0]])
    again = StackedStates.load(stacked.save(tmp_path / "states"))
    assert torch.equal(again.values, stacked.values) and again.states == stacked.states
    assert repr(again) == "StackedStates(4 texts, resid_post, attn.out, mlp.out, 3 layers, d_model 32)"
    with pytest.raises(LoadError, match="cannot read"):
        StackedStates.load(tmp_path / "absent")


def test_states_of_a_model_that_no_one_here_trained(outside_data):
    if not (outside_data / "stories260K").is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(outside_data / "stories260K")
    texts = ["Once upon a time", "Lily and Tom went to the park. They saw a big dog"]
    stacked = StackedStates.capture(model, texts, dtype=torch.float32)
    assert stacked.values.shape == (2, 3, 5, 64)
    total = stacked.values[:, 0, :-1] + stacked.values[:, 1, 1:] + stacked.values[:, 2, 1:]
    assert torch.allclose(total, stacked.values[:, 0, 1:], atol=1e-4)
    assert float(residual_identity(model, texts)["error"].max()) < 1e-6


def test_what_cannot_be_stacked_is_refused():
    model, ids = architectures.shared("llama"), architectures.token_ids()
    stacked = StackedStates.capture(model, ids)
    for call, error, message in (
        (lambda: StackedStates.capture(model, ids, states=("mlp.post",)), InputError, "as wide as the stream"),
        (lambda: StackedStates.capture(model, ids, states=()), InputError, "no states"),
        (lambda: StackedStates.capture(model, ids, states=("mlp.outt",)), SiteError, "mlp.out"),
        (lambda: stacked.select(("mlp",)), UnknownNameError, "mlp.out"),
        (lambda: stacked.select(layers=[3]), InputError, "3 layers"),
        (lambda: stacked.select(layers=[]), InputError, "no states or no layers"),
        (lambda: stacked[5:], InputError, "expected"),
        (lambda: StackedStates(torch.zeros(2, 3, 4), ("a",), (0,)), InputError, "expected"),
    ):
        with pytest.raises(error, match=message):
            call()
    massive = ac.core.edits.Scale(1e6)
    with model.edit({"blocks.1.resid_post": massive}), pytest.raises(InputError, match=r"dtype=torch\.float32"):
        StackedStates.capture(model, ids)
    world = ac.load("world:lm")
    with pytest.warns(ActiniumWarning, match="windows"), pytest.raises(InputError, match="longer than"):
        StackedStates.capture(world, "Ann lives in Orla. " * 60)
