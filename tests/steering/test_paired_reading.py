"""Pairs that begin alike are read with one pass over what they share, to the same activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.inputs import Tokens, pad
from actinium.probes.site_vectors import site_activations
from actinium.steering.paired_reading import paired_activations
from actinium.steering.text_places import suffix_masks
from architectures import shared, token_ids

SITES = ["blocks.*.resid_post", "blocks.1.attn.z"]


def pairs(side="right"):
    """Six pairs with beginnings and ends of other lengths."""
    rows = ([], [])
    for i in range(6):
        start = token_ids(1, 4 + i, seed=i)[0].tolist()
        for k in range(2):
            rows[k].append(start + token_ids(1, 1 + (i + k) % 3, seed=10 * k + i + 50)[0].tolist())
    found = []
    for texts in rows:
        ids, mask = pad(texts, 0, side)
        found.append(Tokens(ids, mask, torch.arange(len(ids))))
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "opt", "gptj", "falcon", "gemma3_text"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_activations_are_those_of_whole_texts(name, side):
    model = shared(name)
    up, down = pairs(side)
    options = {"batch_size": 4, "progress": False}
    found = paired_activations(model, up, down, SITES, (-1, -1), **options)
    if found is None:
        # A window that is shorter than the texts has a cache of its own: read the plain way.
        assert name in ("mistral", "gemma3_text")
        return
    for got, tokens in zip(found, (up, down), strict=True):
        want = site_activations(model, tokens, SITES, -1, **options)
        assert got.keys() == want.keys()
        for site in want:
            assert np.abs(got[site] - want[site]).max() < 1e-4 * max(1.0, np.abs(want[site]).max())


def test_blocks_behind_the_last_site_and_the_logits_are_not_computed():
    model, calls = shared("gpt2"), []
    up, down = pairs()
    parts = {"block": model.module.transformer.h[1], "logits": model.module.lm_head}
    handles = [m.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, m in parts.items()]
    try:
        assert paired_activations(model, up, down, ["blocks.0.resid_post"], (-1, -1), batch_size=4, progress=False), (
            "is shared"
        )
        assert calls == []
    finally:
        for handle in handles:
            handle.remove()


def test_vectors_are_the_same_with_and_without_sharing(lm, monkeypatch):
    found = ac.world.contrasts.contrast("refusal-reply", 12)
    for position in (-1, "suffix"):
        mine = ac.steering.extract(lm, found.positive, found.negative, position=position, batch_size=6)
        with monkeypatch.context() as patch:
            patch.setattr("actinium.steering.extraction.paired_activations", lambda *a, **k: None)
            plain = ac.steering.extract(lm, found.positive, found.negative, position=position, batch_size=6)
        for site in plain.sites:
            assert torch.allclose(mine[site], plain[site], atol=1e-4)


def test_shared_tokens_run_through_the_model_once(lm, monkeypatch):
    found = ac.world.contrasts.contrast("refusal-reply", 8)
    seen = []
    handle = lm.module.get_input_embeddings().register_forward_hook(
        lambda m, a, out: seen.append(out.shape[:2].numel())
    )
    try:
        masks = suffix_masks(lm, found.positive, found.negative)
        assert paired_activations(
            lm, found.positive, found.negative, "blocks.1.resid_post", masks, batch_size=64, progress=False
        )
        shared_cost, seen[:] = sum(seen), []
        site_activations(lm, found.positive + found.negative, "blocks.1.resid_post", -1, batch_size=64, progress=False)
        assert shared_cost < 0.8 * sum(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("model", "texts", "place"),
    [
        ("lm", (["Ann has a dog."], ["The film was dull."]), -1),
        ("lm", (["Ann has a dog."], ["Ann has a cat."]), "mean"),
        ("lm", (["Ann has a dog."], ["Ann has a cat."]), 0),
        ("bert", pairs(), -1),
    ],
)
def test_other_readings_are_left_to_the_plain_way(lm, model, texts, place):
    chosen = lm if model == "lm" else shared(model)
    assert (
        paired_activations(chosen, *texts, "blocks.1.resid_post", (place, place), batch_size=4, progress=False) is None
    )
