"""The benchmark of steering runs without its peers and checks what it compares."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from benchmarks.paired import Disagreement, Ratio
from benchmarks.settings import Settings, gpt2

from benchmarks import steering

TINY = Settings(tiny=True, rounds=1)


@pytest.fixture
def alone(monkeypatch):
    for name in ("repeng", "steering_vectors"):
        monkeypatch.setitem(sys.modules, name, None)


def test_rows_name_the_peers_that_are_absent(alone):
    table = steering.rows(TINY)
    absent = [row for row in table if row.ratio == "not installed"]
    assert {row.peer for row in absent} == {
        steering.PLAIN,
        steering.REPENG,
        steering.VECTORS,
        f"{steering.VECTORS}, batches of 32",
    }
    timed = [row for row in table if isinstance(row.ratio, Ratio)]
    assert len(timed) == 4 and {row.goal.bound for row in timed} == {1.02}
    assert all(row.ratio.low > 0 for row in timed)
    assert {row.goal.bound for row in table if row.what.startswith("extract")} == {2.0}


def test_texts_are_the_tokens_that_they_name():
    positive, negative = steering._pairs(5, 100, 4, 8)
    tokenizer = steering._tokenizer(100)
    for up, down in zip(positive, negative, strict=True):
        ids = tokenizer(up)["input_ids"]
        assert [f"w{i}" for i in ids] == up.split() and len(ids) == len(down.split())
        half = len(ids) // 2
        assert up.split()[:half] == down.split()[:half] and up != down


def test_vectors_that_differ_are_refused():
    model = steering.ac.Model(gpt2(tiny=True))
    ours = steering.ac.steering.SteeringVector({"blocks.0.resid_post": torch.ones(model.d_model)})
    theirs = SimpleNamespace(layer_activations={0: -torch.ones(model.d_model)})
    with pytest.raises(Disagreement, match="block 0"):
        steering._check(model, {"mean": ours, steering.VECTORS: theirs}, "mean", "component", (["w1"], ["w2"]))
