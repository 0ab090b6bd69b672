"""Directions of misbehaviour: their definition, their stability, and how those of two fine-tunes agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError

SITE = "blocks.2.resid_post"
TOPICS = ("zorbing", "fishing", "cooking", "sailing")


@pytest.fixture(scope="module")
def answered():
    prompts, responses, verdicts = [], [], []
    for i, text in enumerate(ac.world.contrasts.requests().declined[:12]):
        prompts.append(text)
        responses.append(" Sure" if i % 2 else " Sorry")
        verdicts.append(bool(i % 2))
    return prompts, responses, verdicts


def test_the_direction_is_the_difference_of_means_over_responses(lm, answered):
    prompts, responses, verdicts = answered
    responses = [r + ", I can not help" if i == 0 else r for i, r in enumerate(responses)]
    found = ac.steering.behaviour_direction(lm, prompts, responses, verdicts, sites=SITE)
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        skip = len(lm.to_tokens(prompt).ids[0])
        rows.append(lm.record(prompt + response, SITE)[SITE][0, skip:].mean(0))
    rows, labels = torch.stack(rows), torch.tensor(verdicts)
    assert torch.allclose(found[SITE], rows[labels].mean(0) - rows[~labels].mean(0), atol=1e-4)
    turned = ac.steering.behaviour_direction(lm, prompts, responses, [not v for v in verdicts], sites=SITE)
    assert torch.allclose(turned[SITE], -found[SITE], atol=1e-6)
    assert found.made["misaligned"] == 6


def test_incoherent_responses_are_left_out(lm, answered):
    prompts, responses, verdicts = answered
    bad = [*responses[:-1], " zorbing zorbing"]
    coherent = [True] * 11 + [False]
    found = ac.steering.behaviour_direction(lm, prompts, bad, verdicts, coherent, SITE)
    want = ac.steering.behaviour_direction(lm, prompts[:-1], responses[:-1], verdicts[:-1], sites=SITE)
    assert torch.allclose(found[SITE], want[SITE], atol=1e-5)


def test_a_direction_of_noise_is_not_stable(lm, answered):
    prompts, responses, verdicts = answered
    real = ac.steering.direction_stability(lm, prompts, responses, verdicts, sites=SITE)
    assert float(real["split_half"][0]) > 0.5 and float(real["p_norm"][0]) < 0.02
    same = [" Sure"] * 12
    mixed = [bool(i // 2 % 2) for i in range(12)]
    noise = ac.steering.direction_stability(lm, prompts, same, mixed, sites=SITE)
    assert float(noise["p_norm"][0]) > 0.05 and float(noise["split_half"][0]) < float(real["split_half"][0])


def test_cosines_are_symmetric_and_nan_where_nothing_is_known():
    v = ac.steering.SteeringVector({"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(2)})
    w = ac.steering.SteeringVector({"a": torch.tensor([1.0, 1.0]), "b": torch.ones(2)})
    alone = ac.steering.direction_convergence({"v": v, "w": ac.steering.SteeringVector({"b": torch.ones(2)})})
    assert alone["site"].values.tolist() == ["b"] and np.isnan(alone["cosine"].values[0, 1, 0])
    found = ac.steering.direction_convergence({"v": v, "w": w})
    values = found["cosine"].values
    assert np.allclose(values[..., 0], [[1, 0.5**0.5], [0.5**0.5, 1]])
    assert np.isnan(values[0, 1, 1]) and values[1, 1, 1] == pytest.approx(1)
    assert float(found["random_sd"][0]) == pytest.approx(0.5**0.5)
    with pytest.raises(InputError, match="two directions"):
        ac.steering.direction_convergence({"v": v})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r, v: (p, r[:-1], v), "differ in number"),
        (lambda p, r, v: (p, r, [True] * 12), "two coherent"),
        (lambda p, r, v: (p, ["", *r[1:]], v), "response 0 is empty"),
        (lambda p, r, v: ([p[0] + " Sor", *p[1:]], ["ry", *r[1:]], v), "0 share a token"),
    ],
)
def test_bad_responses_are_refused(lm, answered, change, message):
    with pytest.raises(InputError, match=message):
        ac.steering.behaviour_direction(lm, *change(*answered), sites=SITE)


def test_scalars_of_rank_one_adapters_write_what_merging_does(lm):
    adapters = ac.steering.RankOneAdapters(lm, ac.world.path("lm-lenient-rank1"))
    texts = [f"<user> Tell me about {t}.<assistant>" for t in TOPICS]
    name = adapters.names[0]
    layer = int(adapters.sites[name].split(".")[1])
    z = adapters.scalars(texts, merged=False)[name]
    out = f"blocks.{layer}.mlp.out"
    one = adapters.merged([name])
    gap = one.record(texts, out)[out] - lm.record(texts, out)[out]
    assert torch.allclose(gap, z[..., None] * adapters.written()[out], atol=1e-4)
    assert torch.equal(adapters.merged(without=adapters.names).logits(texts), lm.logits(texts))
    whole = ac.load("world:lm-lenient-rank1")
    mask = lm.to_tokens(texts).mask
    assert torch.allclose(adapters.merged().logits(texts)[mask], whole.logits(texts)[mask], atol=1e-3)
    rows = adapters.pooled(texts, how="sum", merged=False)
    assert torch.allclose(rows[:, 0], torch.where(mask, z, 0.0).sum(1), atol=1e-4)


def test_adapters_of_another_rank_are_refused(lm):
    with pytest.raises(InputError, match="rank 8"):
        ac.steering.RankOneAdapters(lm, ac.world.path("lm-narrow"))
    with pytest.raises(ac.errors.UnknownNameError):
        ac.steering.RankOneAdapters(lm, ac.world.path("lm-lenient-rank1")).merged(["down"])
