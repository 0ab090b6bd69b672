"""Training: deterministic for its seed, and exactly resumed after being killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from actinium.core.errors import InputError
from actinium.world.recipe import Recipe, rate_factor
from actinium.world.train import train

TINY = Recipe(
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_mlp=24,
    context=96,
    batch_tokens=480,
    steps=7,
    turn=4,
    warmup=2,
    horizon=9,
    threads=1,
)

KILLED = """
import os, signal, sys
from pathlib import Path
from actinium.world.recipe import Recipe, rate_factor
from actinium.world.train import train

def progress(step, loss):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)

train(Recipe(**eval(sys.argv[1])), Path(sys.argv[2]), progress, every=2)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    model, _ = train(TINY, tmp_path_factory.mktemp("whole"), every=2)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_killed_and_resumed_weights_are_bit_identical(uninterrupted, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, repr(asdict(TINY)), str(tmp_path)],
        env=dict(os.environ),
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000004"]
    steps = []
    model, _ = train(TINY, tmp_path, lambda step, loss: steps.append(step), every=2)
    assert steps == [5, 6, 7]
    for name, value in model.named_parameters():
        assert torch.equal(value, uninterrupted[name]), name


def test_an_unfinished_checkpoint_is_ignored(uninterrupted, tmp_path):
    (tmp_path / "step-000004.partial").mkdir()
    model, _ = train(TINY, tmp_path, every=2)
    assert all(torch.equal(value, uninterrupted[name]) for name, value in model.named_parameters())


def test_another_seed_gives_other_weights(uninterrupted, tmp_path):
    model, _ = train(replace(TINY, seed=1), tmp_path)
    assert not torch.equal(dict(model.named_parameters())["model.norm.weight"], uninterrupted["model.norm.weight"])


def test_the_learning_rate_rises_falls_along_a_cosine_and_ends_near_zero():
    recipe = Recipe(steps=100, turn=60, warmup=10, horizon=200)
    factors = [rate_factor(recipe, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 40 / 190)))
    assert factors[80] == pytest.approx(0.5 * (1 + math.cos(math.pi * 70 / 190)) * 20 / 40)
    assert factors[99] < 0.03 and all(a > b for a, b in pairwise(factors[10:]))


def test_training_restores_the_number_of_threads(tmp_path):
    before = torch.get_num_threads()
    train(replace(TINY, steps=1, threads=before + 1), tmp_path)
    assert torch.get_num_threads() == before


def test_checkpoints_of_another_recipe_are_refused(tmp_path):
    train(replace(TINY, steps=2), tmp_path)
    with pytest.raises(InputError, match="another recipe"):
        train(replace(TINY, steps=3), tmp_path)


def test_every_checkpoint_is_safetensors_and_json(tmp_path):
    train(replace(TINY, steps=2), tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".safetensors", ".json"}
