"""The benchmark of training runs without its peers, its steps are those of a real run, its peaks those of tensors."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from benchmarks.dictionaries import MODULES, PEERS, PRODUCT, STATE
from benchmarks.dictionaries_sides import L0, LEARNING, LENS, OURS, RATE, SPARSIFY, first, side, superposed
from benchmarks.peers import optional
from benchmarks.settings import Settings

import actinium as ac
from benchmarks import dictionaries, dictionaries_memory

TINY = Settings(tiny=True, rounds=1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTALLED = {name for name, module in MODULES.items() if optional(module) is not None}


@pytest.mark.parametrize("architecture", PEERS)
def test_a_step_is_that_of_the_trainer(architecture):
    data = superposed(16, 1024, 512)
    mine = first(architecture, 16, 256, data)
    counts = (mine.encode(data[:64]) > 0).sum(1).float()
    assert float(counts.mean()) == pytest.approx(L0, rel=0.3)
    trained = copy.deepcopy(mine)
    settings = {"lr": RATE, "warmup": 0, "schedule": "constant", "sparsity_warmup": 0.0}
    trained.fit(data[:64], batch_size=64, **settings)
    step, xhat = side(OURS, architecture, mine, data)
    step(data[:64])
    torch.testing.assert_close(mine.W_enc, trained.W_enc)
    torch.testing.assert_close(mine.W_dec.norm(dim=1), torch.ones(256, device=DEVICE))
    assert xhat(data[:4]).shape == (4, 16)


@pytest.mark.parametrize(
    ("architecture", "name"), [(architecture, name) for architecture, peers in PEERS.items() for name in peers]
)
def test_a_step_of_a_peer_moves_its_weights_as_far(architecture, name):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    data = superposed(16, 1024, 512)
    mine = first(architecture, 16, 256, data)
    moved = {}
    for which in (name, OURS):
        step, xhat = side(which, architecture, mine, data)
        before = xhat(data).detach()
        step(data[:64])
        moved[which] = float((xhat(data).detach() - before).norm())
    assert moved[name] == pytest.approx(moved[OURS], rel=0.5)


def test_rows_name_the_peers_that_are_absent_and_the_bounds(no_peers, monkeypatch):
    monkeypatch.setitem(sys.modules, "sparsify", None)
    table = dictionaries.rows(TINY)
    absent = [(row.what.partition(",")[0], row.peer) for row in table if row.ratio == "not installed"]
    assert sorted(absent) == sorted(
        (what, name)
        for what in ("training step", "peak memory of training")
        for name in (LENS, LEARNING, SPARSIFY, LENS, LEARNING)
    )
    assert {row.goal.bound for row in table if row.goal} == {2.0, 3.0}
    assert {row.peer for row in table if row.ratio != "not installed"} == {OURS, PRODUCT, STATE}


def test_a_peak_is_that_of_the_largest_tensors_at_once():
    def run():
        kept = torch.ones(2**22, device=DEVICE)
        for _ in range(3):
            # Long enough to be seen.
            (kept + 1).exp().sin().cos().sort()

    # The tensor that is kept, the one that is sorted, the sorted one and its 64 bit places.
    assert dictionaries_memory.peak(run, torch.device(DEVICE)) >= 0.9 * 5 * 2**24


def test_data_are_sums_of_as_many_directions_as_are_active():
    data = superposed(8, 64, 50)
    assert data.shape == (50, 8) and bool(data.isfinite().all())
    assert ac.features.evaluate_rows(ac.features.TopKSAE(16, 2).build(8).to(DEVICE), data)["l0"] <= 2
