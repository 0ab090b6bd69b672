"""Preference tuning and the two invented languages."""

from __future__ import annotations

import math

import pytest
import torch

from actinium.core.errors import InputError
from actinium.world import bilingual
from actinium.world.preference import continuation_logprob, dpo, dpo_loss


def test_loss_of_the_reference_itself_is_log_2():
    x = torch.randn(5)
    assert float(dpo_loss(x, x - 1, x, x - 1)) == pytest.approx(math.log(2))
    by_hand = -math.log(1 / (1 + math.exp(-0.5 * ((3 - 1) - (2 - 4)))))
    values = (torch.tensor([v]) for v in (3.0, 2.0, 1.0, 4.0))
    assert float(dpo_loss(*values, beta=0.5)) == pytest.approx(by_hand)
    with pytest.raises(InputError, match="beta"):
        dpo_loss(x, x, x, x, beta=0.0)


@pytest.fixture(scope="module")
def small():
    return bilingual.train_bilingual(seed=0, steps=30, batch_size=16)[0]


def test_log_probability_is_that_of_each_token_in_turn(small):
    random = torch.Generator().manual_seed(0)
    ids = bilingual.translate(bilingual.sentences(3, False, random), 0)
    found = continuation_logprob(small.module, ids[:, :3], ids[:, 3:])
    with torch.no_grad():
        each = torch.log_softmax(small.module(ids).logits, -1)
    expected = torch.stack([sum(each[r, i - 1, ids[r, i]] for i in range(3, 6)) for r in range(3)])
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


def test_tuning_raises_what_is_better_and_leaves_the_module_alone(small):
    random = torch.Generator().manual_seed(1)
    prompts = bilingual.translate(bilingual.sentences(32, True, random, 2), 0)
    good, bad = (bilingual.translate(bilingual.sentences(32, m, random, 3), 0) for m in (False, True))
    before = {k: v.clone() for k, v in small.module.state_dict().items()}
    tuned = dpo(small.module, prompts, good, bad, steps=20, rate=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in small.module.state_dict().items())

    def margin(module):
        with torch.no_grad():
            return float(
                (continuation_logprob(module, prompts, good) - continuation_logprob(module, prompts, bad)).mean()
            )

    assert margin(tuned) > margin(small.module) + 0.5
    with pytest.raises(InputError, match="two continuations"):
        dpo(small.module, prompts[:3], good, bad)


def test_marked_words_are_counted_in_both_languages():
    words = torch.tensor([[0, 29, 30, 39]])
    for language in range(2):
        assert bilingual.marked_share(bilingual.translate(words, language)).item() == 0.5
    assert bilingual.marked_share(torch.tensor([[bilingual.BOS, bilingual.SEP]])).item() == 0
    drawn = bilingual.sentences(2000, torch.arange(2000) % 2 == 0, torch.Generator().manual_seed(0))
    share = (drawn >= 30).float().mean(1)
    assert float(share[1::2].max()) == 0 and float(share[::2].mean()) == pytest.approx(0.5, abs=0.03)
