"""A control vector's accuracy and divergence, against the model's own logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError

SITE = "blocks.2.resid_post"
PROMPTS = [f"<user> Tell me about {topic}.<assistant>" for topic in ("fishing", "zorbing", "cooking")]
RIGHT, ANSWERS = [" Sure", " Sorry", " Sure"], [" Sure", " Sorry"]


@pytest.fixture(scope="module")
def vector():
    return ac.steering.SteeringVector({SITE: torch.randn(128, generator=torch.Generator().manual_seed(0))})


def test_measures_are_those_of_the_steered_logits(lm, vector):
    found = ac.steering.evaluate_control(lm, vector, PROMPTS, RIGHT, ANSWERS, [-1.0, 2.0]).data
    assert list(found["strength"].values) == [-1.0, 0.0, 2.0]
    ids = [lm.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in ANSWERS]
    right = torch.tensor([ids[0], ids[1], ids[0]])
    plain = lm.logits(PROMPTS)[:, -1].double().log_softmax(-1)
    for i, strength in enumerate((-1.0, 0.0, 2.0)):
        with ac.steering.steer(lm, vector, strength):
            q = lm.logits(PROMPTS)[:, -1].double().log_softmax(-1)
        want = {
            "accuracy": (q.argmax(1) == right).double().mean(),
            "kl": (plain.exp() * (plain - q)).sum(1).mean(),
            "kl_var": (plain.exp() * (plain - q)).sum(1).var(correction=0),
            "entropy": -(q.exp() * q).sum(1).mean() / math.log(2),
            "correct": q.exp().gather(1, right[:, None]).mean(),
            "incorrect": (q.exp()[:, ids].sum(1) - q.exp().gather(1, right[:, None])[:, 0]).mean(),
        }
        for name, value in want.items():
            assert float(found[name][i]) == pytest.approx(float(value.detach()), rel=1e-3, abs=1e-6), name
    assert float(found["kl"][1]) < 1e-7


def test_batches_give_the_same_numbers(lm, vector):
    for mode in ("vocabulary", "answers"):
        whole, parts = (
            ac.steering.evaluate_control(lm, vector, PROMPTS, RIGHT, ANSWERS, [1.0], mode=mode, batch_size=size).data
            for size in (64, 2)
        )
        for name in whole.data_vars:
            assert np.allclose(whole[name], parts[name], atol=1e-5), name


def test_restricted_masses_add_up_to_one(lm, vector):
    found = ac.steering.evaluate_control(lm, vector, PROMPTS, RIGHT, [ANSWERS] * 3, [1.0], mode="answers").data
    assert np.allclose(found["correct"] + found["incorrect"], 1)
    assert float(found["accuracy"].sel(strength=0.0)) == 1.0
    assert (found["low"] <= found["accuracy"]).all() and (found["accuracy"] <= found["high"] + 1e-12).all()


def test_entropy_of_the_uniform_distribution_is_the_logarithm_of_its_size():
    from actinium.steering.side_effects import entropy_bits

    assert float(entropy_bits(torch.zeros(22))) == pytest.approx(4.4594, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": [" Sure"]}, "one right answer"),
        ({"strengths": []}, "finite strength"),
        ({"strengths": [math.nan]}, "finite strength"),
        ({"right": [" Sure", " maybe", " Sure"]}, "not among"),
        ({"answers": [" Sure"]}, "two different"),
        ({"answers": [" Sure", " Sure of it"]}, "begin with one token"),
        ({"answers": [ANSWERS]}, "lists of answers"),
        ({"mode": "all"}, "mode must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"strengths": [3e38]}, "lower the strength"),
    ],
)
def test_bad_questions_are_refused(lm, vector, change, message):
    given = {"prompts": PROMPTS, "right": RIGHT, "answers": ANSWERS, "strengths": [1.0], **change}
    with pytest.raises(InputError, match=message):
        ac.steering.evaluate_control(lm, vector, **given)
