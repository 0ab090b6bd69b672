"""The benchmark of a training step runs without its peers, and its steps are those of a real run."""

from __future__ import annotations

import pytest
import torch
from benchmarks.settings import Settings

import actinium as ac
from benchmarks import dictionaries


@pytest.mark.parametrize("architecture", ["TopK", "JumpReLU"])
def test_a_step_is_that_of_the_trainer(architecture):
    data = dictionaries._superposed(16, 1024, 512)
    mine, sides = dictionaries._sides(architecture, 16, 256, data, 2)
    step, xhat = sides[dictionaries.OURS]
    before = mine.W_enc.detach().clone()
    counts = (mine.encode(data[:64]) > 0).sum(1).float()
    assert float(counts.mean()) == pytest.approx(dictionaries.L0, rel=0.3)
    step(data[:64])
    assert not torch.equal(mine.W_enc, before)
    torch.testing.assert_close(mine.W_dec.norm(dim=1), torch.ones(256))
    assert xhat(data[:4]).shape == (4, 16)


def test_rows_name_the_peers_that_are_absent_and_the_bound():
    table = dictionaries.rows(Settings(tiny=True, rounds=1))
    peers = [row.peer for row in table]
    assert {dictionaries.LENS, dictionaries.LEARNING, dictionaries.PRODUCT, dictionaries.OURS} <= set(peers)
    absent = [row for row in table if row.ratio == "not installed"]
    installed = {name: dictionaries.optional(name) is not None for name in ("sae_lens", "dictionary_learning")}
    assert len(absent) == 2 * sum(not there for there in installed.values())
    assert {row.goal.bound for row in absent} <= {2.0, 3.0}


def test_data_are_sums_of_as_many_directions_as_are_active():
    data = dictionaries._superposed(8, 64, 50)
    assert data.shape == (50, 8) and bool(data.isfinite().all())
    assert ac.features.evaluate_rows(ac.features.TopKSAE(16, 2).build(8), data)["l0"] <= 2
