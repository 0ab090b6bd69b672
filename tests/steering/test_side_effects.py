"""Side effects recomputed from the model's own logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError

SITE = "blocks.2.resid_post"
TEXTS = ["Ron has the job tailor.", "For Alice, the pet is frog.", "Everyone said that the film was wonderful."]


@pytest.fixture(scope="module")
def edits():
    return {SITE: ac.edits.Add(torch.linspace(-1, 1, 128).sin(), 2.0)}


def nll(model, text, skip):
    with torch.no_grad():
        return model.loss(text, reduction="token")[0, skip - 1 :].double()


@pytest.mark.parametrize("skip", [1, 4])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_perplexity_ratio_is_that_of_each_text_alone(lm, edits, skip, batch_size):
    found = ac.steering.perplexity_ratio(lm, TEXTS, edits, skip=skip, batch_size=batch_size)
    changes = []
    for text, ratio, tokens in zip(TEXTS, found["ratio"].values, found["tokens"].values, strict=True):
        with lm.edit(edits):
            new = nll(lm, text, skip)
        old = nll(lm, text, skip)
        assert ratio == pytest.approx(math.exp(new.mean() - old.mean()), rel=1e-4)
        assert tokens == len(old)
        changes += (old - new).tolist()
    assert float(found["change"]) == pytest.approx(np.mean(changes), abs=1e-5)
    half = 1.96 * np.std(changes, ddof=1) / math.sqrt(len(changes))
    assert float(found["change_high"] - found["change_low"]) == pytest.approx(2 * half, rel=1e-3)


def test_an_edit_of_nothing_has_no_side_effect(lm, edits):
    nothing = {SITE: ac.edits.Add(torch.zeros(128))}
    assert ac.steering.perplexity_ratio(lm, TEXTS, nothing)["ratio"].values == pytest.approx(1.0)
    assert float(abs(ac.steering.next_token_effects(lm, TEXTS, nothing)["kl"]).max()) < 1e-6
    task = ac.world.tasks.facts(lm, n=8)
    assert float(ac.steering.task_effects(lm, task, nothing)["accuracy_lost"][0]) == 0


def test_next_token_effects_are_kl_and_entropy(lm, edits):
    found = ac.steering.next_token_effects(lm, TEXTS, edits, batch_size=2)
    for i, text in enumerate(TEXTS):
        with torch.no_grad(), lm.edit(edits):
            q = lm.logits(text)[0, -1].double().softmax(-1)
        with torch.no_grad():
            p = lm.logits(text)[0, -1].double().softmax(-1)
        assert float(found["kl"][i]) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-6)
        assert float(found["entropy"][i]) == pytest.approx(float(-(q * q.log2()).sum()), rel=1e-3, abs=1e-5)
        assert float(found["unsteered_entropy"][i]) == pytest.approx(float(-(p * p.log2()).sum()), rel=1e-3, abs=1e-5)


def test_entropy_of_a_fair_choice_is_in_bits():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf]])
    assert ac.steering.entropy_bits(logits).tolist() == pytest.approx([2.0, 1.0])


def test_task_effects_count_answers(lm, edits):
    tasks = [ac.world.tasks.facts(lm, n=16), ac.world.tasks.arithmetic(lm, n=16)]
    found = ac.steering.task_effects(lm, tasks, edits, k=2, batch_size=5)
    for task in tasks:
        row = found.data.sel(task=task.name)
        with torch.no_grad(), lm.edit(edits):
            logits = lm.logits(task.prompts())[:, -1]
        gap = ac.metrics.logit_diff(logits, task.answer_ids, task.wrong_ids)
        assert float(row["accuracy"]) == float((gap > 0).double().mean())
        assert float(row["logit_diff"]) == pytest.approx(float(gap.mean()), abs=1e-4)
        rank = ac.metrics.rank(logits, task.answer_ids, task.wrong_ids)
        assert float(row["top_k"]) == float((rank < 2).double().mean())
        assert float(row["accuracy_lost"]) == float(row["unsteered_accuracy"]) - float(row["accuracy"])


def test_senseless_questions_are_refused(lm, edits):
    with pytest.raises(InputError, match="none behind the first 9"):
        ac.steering.perplexity_ratio(lm, TEXTS, edits, skip=9)
    with pytest.raises(InputError, match="skip"):
        ac.steering.perplexity_ratio(lm, TEXTS, edits, skip=0)
    with pytest.raises(InputError, match="no inputs"):
        ac.steering.next_token_effects(lm, [], edits)
    task = ac.world.tasks.facts(lm, n=4)
    with pytest.raises(InputError, match="different names"):
        ac.steering.task_effects(lm, [task, task], edits)
    with pytest.raises(InputError, match="one Task or more"):
        ac.steering.task_effects(lm, [], edits)
    with pytest.raises(InputError, match="k must"):
        ac.steering.task_effects(lm, task, edits, k=0)
    with pytest.raises(InputError, match="NaN or infinite"):
        ac.steering.perplexity_ratio(lm, TEXTS, {SITE: ac.edits.Add(torch.full((128,), 3e38), 2.0)})
