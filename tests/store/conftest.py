"""A small trained model, and stores made with it."""

from __future__ import annotations

import pytest
import torch

import actinium as ac

SITES = ["blocks.1.resid_post", "blocks.2.attn.z"]


@pytest.fixture(scope="session")
def lm():
    return ac.load("world:lm")


@pytest.fixture(scope="session")
def texts():
    return ac.world.heldout_text("lm")[:90]


@pytest.fixture(scope="session")
def settings():
    """Several shards, and several passes in each."""
    return {"context": 32, "batch_size": 4, "shard_mb": 0.2, "progress": False}


@pytest.fixture(scope="session")
def packed(lm, texts, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "store"
    return ac.store.create(path, lm, texts, SITES, dtype="float32", **settings)


@pytest.fixture(scope="session")
def padded(lm, texts, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("padded") / "store"
    return ac.store.create(path, lm, texts, SITES, dtype="float32", packing="pad", **settings)


@pytest.fixture(scope="session")
def array_store(tmp_path_factory):
    """4000 rows of 8 numbers whose first entry is the row's number, in many shards; 20 rows to a document."""
    model = ac.Model(Patches())
    data = torch.arange(4000.0).view(200, 20, 1).expand(200, 20, 8).clone()
    data[..., 1:] = torch.randn(200, 20, 7, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("array") / "store"
    return ac.store.create(
        path,
        model,
        data.permute(0, 2, 1)[..., None],
        "module:same",
        dtype="float32",
        batch_size=5,
        shard_mb=0.004,
        progress=False,
    )


class Patches(torch.nn.Module):
    """Hands its input (batch, channel, height, width) on."""

    def __init__(self) -> None:
        super().__init__()
        self.same = torch.nn.Identity()

    def forward(self, x):
        return self.same(x)
