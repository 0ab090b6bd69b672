"""Roles of heads, on patterns that are put there and on a head worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
import architectures
from actinium.circuits import head_roles
from actinium.circuits.reading.head_roles import _sequences
from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model

LENGTH = 8


@pytest.mark.parametrize(
    ("role", "back"), [("previous_token", 1), ("duplicate_token", LENGTH), ("induction", LENGTH - 1)]
)
def test_a_head_that_does_only_its_role_scores_1_for_it_and_0_for_the_others(lm, role, back):
    width = 1 + 2 * LENGTH
    query = torch.arange(width)
    pattern = torch.zeros(width, width)
    pattern[query, (query - back).clamp_min(0)] = 1.0
    with lm.edit({"blocks.2.attn.pattern": ac.edits.Replace(pattern[None, None]).at(heads=5)}):
        found = head_roles(lm, n=3, length=LENGTH)
    for name in ("previous_token", "duplicate_token", "induction"):
        assert float(found[name].sel(layer=2, head=5)) == (1.0 if name == role else 0.0)


def test_copying_is_worked_out_for_one_head(lm):
    layer, head, top, n = 4, 3, 5, 4
    found = head_roles(lm, n=n, length=LENGTH, top=top, seed=2)
    ids, start = _sequences(lm, n, LENGTH, 2)
    sites = [f"blocks.{layer}.attn.pattern", f"blocks.{layer}.attn.z", "blocks.5.resid_post"]
    rec = lm.record(ids, sites)
    pattern, z, final = (rec[s].double() for s in sites)
    weight = lm.module.model.layers[layer].self_attn.o_proj.weight.double()[:, head * 16 : head * 16 + 16]
    gain, unembed = lm.module.model.norm.weight.double(), lm.module.lm_head.weight.double()
    hits = []
    for row in range(n):
        for pos in range(start + LENGTH, start + 2 * LENGTH):
            scale = (final[row, pos].pow(2).mean() + lm.config.rms_norm_eps).rsqrt()
            logits = unembed @ (gain * scale * (weight @ z[row, pos, head]))
            attended = ids[row, pattern[row, head, pos].argmax()]
            hits.append(bool((logits.topk(top).indices == attended).any()))
    assert float(found["copying"].sel(layer=layer, head=head)) == pytest.approx(np.mean(hits))


def test_name_movers_of_the_shipped_model_attend_to_the_answer_and_write_it(lm, ioi):
    found = head_roles(lm, ioi, n=4, length=LENGTH)
    scores = found["name_mover"]
    assert float(scores.min()) >= 0 and float(scores.max()) <= 1
    best = {k: int(v) for k, v in zip(scores.dims, np.unravel_index(scores.values.argmax(), scores.shape), strict=True)}
    site = f"blocks.{best['layer']}.attn.pattern"
    pattern = lm.record(ioi.clean, site)[site][:, best["head"], -1]
    at = [(ioi.clean_ids == ids[:, None]) for ids in (ioi.answer_ids, ioi.wrong_ids)]
    more = (pattern * at[0]).amax(1) > (pattern * at[1]).amax(1)
    assert float(more.double().mean()) >= float(scores.max())


def test_a_prompt_without_its_answer_has_no_name_mover(lm):
    found = head_roles(lm, ac.world.tasks.facts(lm, n=6), n=2, length=LENGTH)
    assert float(found["name_mover"].max()) == 0


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gemma", "bloom"])
def test_scores_of_other_architectures_are_shares(name):
    model = architectures.build(name)
    model = model if isinstance(model, Model) else Model(model.eval())
    found = head_roles(model, n=2, length=4)
    for value in found.data.data_vars.values():
        assert value.shape == (model.n_layers, model.n_heads)
        assert float(value.min()) >= 0 and float(value.max()) <= 1 + 1e-6


def test_what_has_no_roles_is_refused(lm):
    mamba = architectures.build("mamba")
    with pytest.raises(SiteError, match="attention"):
        head_roles(mamba if isinstance(mamba, Model) else Model(mamba))
    with pytest.raises(InputError, match="context"):
        head_roles(lm, length=80)
    with pytest.raises(InputError, match="at least"):
        head_roles(lm, length=2)
