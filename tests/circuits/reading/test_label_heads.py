"""Heads that attend to labels, put there by hand, and their compression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_task, task_of

import actinium as ac
import architectures
from actinium.circuits import HeadCompression, classify_heads
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
PLACES = (1, 3, 5)


def labelled(rows=9, length=8, padding=()):
    """Prompts whose answers stand at one of three places, each equally often."""
    ids = torch.stack(
        [torch.randperm(30, generator=torch.Generator().manual_seed(i))[:length] + 3 for i in range(rows)]
    )
    right = torch.arange(rows) % 3
    answers = ids[torch.arange(rows), torch.tensor(PLACES)[right]]
    wrong = ids[torch.arange(rows), torch.tensor(PLACES)[(right + 1) % 3]]
    other = ids.clone()
    other[:, 0] = 2
    return task_of(ids, other, answers, wrong), right


def built(name: str) -> Model:
    torch.manual_seed(0)
    model = architectures.build(name)
    return model if isinstance(model, Model) else Model(model.eval())


def test_each_class_is_recognised_by_the_pattern_that_defines_it():
    model, (task, right) = built("gpt2"), labelled()
    width = task.clean_ids.shape[1]
    rows = torch.zeros(4, len(task), width)
    rows[0, torch.arange(9), torch.tensor(PLACES)[right]] = 1.0  # to the right label
    rows[1, :, 3] = 1.0  # always to the second
    rows[2, :, list(PLACES)] = 1 / 3  # to all of them
    rows[3, :, -1] = 1.0  # to itself
    pattern = torch.eye(width).expand(len(task), 1, -1, -1).clone()
    edits = []
    heads = model.n_heads
    for i in range(4):
        value = pattern.clone()
        value[:, 0, -1] = rows[i]
        edits.append((f"blocks.{i // heads}.attn.pattern", ac.edits.Replace(value).at(heads=i % heads)))
    with model.edit(edits):
        found = classify_heads(model, task, PLACES, last=1)
    kinds = found["kind"].values.flatten()[:4].tolist()
    assert kinds == ["correct letter", "single letter", "uniform", "amplification"]
    assert float(found["contrast"].values.flatten()[0]) == pytest.approx(1.0)
    assert int(found["label"].values.flatten()[1]) == 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_full_rank_is_the_model_itself_and_rank_0_the_means(name):
    model, (task, _) = built(name), labelled(12)
    made = HeadCompression(1, 1).fit(model, task, PLACES)
    size = len(made.axes_["q"])
    found = made.evaluate(model, task, PLACES, ranks=[0, size])
    assert float(found["loss"].sel(rank=size)) == pytest.approx(float(found["full_loss"]), abs=1e-5)
    q, k, v, group = made._sites(model)
    rec = model.record(task.clean_ids, [q, k, v])
    new = {s: rec[s].clone() for s in (q, k, v)}
    new[q][:, -1, 1] = rec[q][:, -1, 1].mean(0)
    for site in (k, v):
        new[site][:, list(PLACES), group] = rec[site][:, list(PLACES), group].mean(1, keepdim=True)
    with torch.no_grad(), model.edit({s: ac.edits.Replace(x) for s, x in new.items()}):
        logits = model.logits(task.clean_ids)[:, -1].double()
    expected = -torch.log_softmax(logits, -1)[torch.arange(12), task.answer_ids].mean()
    assert float(found["loss"].sel(rank=0)) == pytest.approx(float(expected), abs=1e-5)


def test_deviations_of_the_keys_of_m_labels_have_rank_m_minus_1():
    model, (task, _) = built("llama"), labelled(3)
    made = HeadCompression(0, 0).fit(model, task[[0, 0, 0]], PLACES)
    assert int((made.sizes_["k"] > 1e-5 * made.sizes_["k"].max()).sum()) == 2


def test_terms_add_up_to_the_scores_and_those_with_the_mean_key_do_not_tell_labels_apart():
    model, (task, _) = built("gpt2"), labelled()
    made = HeadCompression(0, 1).fit(model, task, PLACES)
    terms = made.score_terms(model, task, PLACES)
    rec = model.record(task.clean_ids, ["blocks.0.attn.q", "blocks.0.attn.k"])
    q, k = rec["blocks.0.attn.q"][:, -1, 1].double(), rec["blocks.0.attn.k"][:, list(PLACES), 1].double()
    total = sum(terms[name] for name in ("mean_mean", "mean_delta", "delta_mean", "delta_delta"))
    np.testing.assert_allclose(total, torch.einsum("rd,rmd->rm", q, k), atol=1e-5)
    for name in ("mean_mean", "delta_mean"):
        np.testing.assert_allclose(terms[name].std("label"), 0, atol=1e-6)


def test_padding_on_the_left_moves_the_labels_along(lm):
    clean = ["Ann met Bob . Then", "In the end Ann met Bob . Then"]
    task = ac.Task.from_prompts(lm.tokenizer, clean, clean, ["Ann", "Bob"], ["Bob", "Ann"])
    ann = [row.index(next(t for t in row if "Ann" in t)) for row in task.clean_tokens]
    places = torch.tensor([[i, i + 2] for i in ann])
    found = classify_heads(lm, task, places)
    alone = [lm.record(text, "blocks.2.attn.pattern")["blocks.2.attn.pattern"][0, :, -1].double() for text in clean]
    right = torch.stack([alone[0][:, ann[0]] - alone[0][:, ann[0] + 2], alone[1][:, ann[1] + 2] - alone[1][:, ann[1]]])
    np.testing.assert_allclose(found["contrast"].sel(layer=2), right.mean(0), atol=1e-5)
    with pytest.raises(InputError, match="prompts for"):
        classify_heads(lm, task[[0]], places[:1])


def test_what_has_no_labels_there_is_refused():
    model, (task, _) = built("gpt2"), labelled()
    with pytest.raises(InputError, match="none of the labels"):
        classify_heads(model, task, (0, 2, 4))
    with pytest.raises(InputError, match="two labels"):
        classify_heads(model, task, (1,))
    with pytest.raises(InputError, match="outside"):
        classify_heads(model, task, (1, 99))
    with pytest.raises(InputError, match="heads go"):
        HeadCompression(0, 99).fit(model, task, PLACES)
    with pytest.raises(UnknownNameError, match="part"):
        HeadCompression(0, 0, parts=("o",)).fit(model, task, PLACES)
    with pytest.raises(InputError, match="not fitted"):
        HeadCompression(0, 0).evaluate(model, task, PLACES)
    made = HeadCompression(0, 0).fit(model, task, PLACES)
    with pytest.raises(InputError, match="ranks go"):
        made.evaluate(model, task, PLACES, ranks=[10**4])
    with pytest.raises(InputError):
        classify_heads(model, random_task(), PLACES)
