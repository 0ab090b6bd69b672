"""Sliding windows: width 1 is the single sweep, and in a linear model a window is the sum of its layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Parallel, linear_task, random_task

import architectures
from actinium.circuits import patch, patch_window
from actinium.circuits.patching.windows import window_layers
from actinium.core import edits
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("at", ["blocks.*.mlp.out", "blocks.*.attn.out"])
def test_window_of_one_layer_is_the_single_sweep(at, mode):
    model, task = architectures.shared("gpt2"), random_task()
    found = patch_window(model, task, at, 1, over="pos", mode=mode).data
    single = patch(model, task, at, over="pos", mode=mode).data["effect"]
    for name in ("effect", "sum_single"):
        np.testing.assert_allclose(found[name].sel(width=1), single, atol=1e-6)
    np.testing.assert_array_equal(found["single"], single)


def test_window_equals_its_layers_patched_together():
    model, task = architectures.shared("llama"), random_task()
    found = patch_window(model, task, "blocks.*.mlp.out", [3], positions=[-1]).data
    assert found["layers"].values.tolist() == [[2, 3, 2]]
    clean = model.record(task.clean_ids, "blocks.*.mlp.out")
    rows = torch.arange(3)

    def score(changes):
        with torch.no_grad(), model.edit(changes):
            logits = model.logits(task.corrupt_ids)[:, -1].double()
        return float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())

    at = {i: (f"blocks.{i}.mlp.out", edits.Replace(clean[f"blocks.{i}.mlp.out"]).at(positions=[-1])) for i in range(3)}
    gap = float(found["m_clean"] - found["m_corrupt"])
    for middle, layers in enumerate([(0, 1), (0, 1, 2), (1, 2)]):
        expected = (score([at[i] for i in layers]) - float(found["m_corrupt"])) / gap
        assert float(found["effect"].sel(width=3, layer=middle)) == pytest.approx(expected, abs=5e-5)
        singles = sum(float(found["single"].sel(layer=i)) for i in layers)
        assert float(found["sum_single"].sel(width=3, layer=middle)) == pytest.approx(singles, abs=1e-6)


def test_in_a_linear_model_a_window_is_the_sum_of_its_layers():
    parts = [f"module:parts.{i}" for i in range(4)]
    found = patch_window(Model(Parallel()), linear_task(), parts, [1, 3, 5], over="layer").data
    np.testing.assert_allclose(found["effect"], found["sum_single"], atol=1e-5)
    assert found["effect"].dims == ("width", "site")


@given(st.integers(1, 12), st.integers(1, 14), st.sampled_from(["lower", "upper"]))
def test_windows_are_runs_of_layers_around_their_middle(n_layers, width, even):
    windows = window_layers(n_layers, width, even)
    assert len(windows) == n_layers
    for middle, layers in enumerate(windows):
        assert middle in layers
        assert layers == list(range(layers[0], layers[-1] + 1))
        assert layers[0] >= 0 and layers[-1] < n_layers and len(layers) <= width
        below, above = middle - layers[0], layers[-1] - middle
        if len(layers) == width:
            expected = 0 if width % 2 else (1 if even == "lower" else -1)
            assert below - above == expected


def test_even_windows_need_a_rule():
    model, task = architectures.shared("gpt2"), random_task()
    with pytest.raises(InputError, match="has no middle"):
        patch_window(model, task, widths=4)
    with pytest.raises(UnknownNameError, match="lower"):
        patch_window(model, task, widths=4, even="low")
    found = [patch_window(model, task, widths=2, even=rule, positions=[-1]) for rule in ("lower", "upper")]
    below, above = (f.data["effect"].values[0] for f in found)
    # The window below layer 1 is the window above layer 0.
    assert below[1] == pytest.approx(above[0], abs=1e-6)


@pytest.mark.parametrize(
    ("at", "widths", "message"),
    [
        ("blocks.*.{mlp,attn}.out", [1], "one kind of site"),
        ("blocks.{0,2}.mlp.out", [1], "consecutive"),
        ("blocks.*.mlp.out", [], "empty"),
        ("blocks.*.mlp.out", [0], "width of 1 or more"),
    ],
)
def test_windows_without_a_meaning_are_refused(at, widths, message):
    with pytest.raises(InputError, match=message):
        patch_window(architectures.shared("gpt2"), random_task(), at, widths)


def test_windows_count_the_rows_that_have_a_position(lm, ioi):
    found = patch_window(lm, ioi, widths=[3], over="pos").data
    single = patch(lm, ioi, at="blocks.*.mlp.out").data
    np.testing.assert_array_equal(found["n_rows"], single["n_rows"])
    np.testing.assert_allclose(found["single"], single["effect"], atol=1e-6)
