"""Metrics of logits against closed forms and scipy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from actinium.core import metrics
from actinium.core.errors import InputError, UnknownNameError

LOGITS = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 11)) * 3)
REFERENCE = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 11)) * 3)
ANSWERS = torch.tensor([0, 3, 10, 7, 7])
WRONG = torch.tensor([1, 2, 0, 6, 8])
ROWS = np.arange(5)


def expected(name):
    logits, reference = LOGITS.numpy(), REFERENCE.numpy()
    answers, wrong = ANSWERS.numpy(), WRONG.numpy()
    order = np.argsort(-logits, axis=1)
    ranks = np.array([list(order[row]).index(answers[row]) for row in ROWS])
    return {
        "logit_diff": logits[ROWS, answers] - logits[ROWS, wrong],
        "prob": softmax(logits, axis=1)[ROWS, answers],
        "logprob": log_softmax(logits, axis=1)[ROWS, answers],
        "kl": entropy(softmax(reference, axis=1), softmax(logits, axis=1), axis=1),
        "rank": ranks,
        "accuracy": (ranks == 0).astype(float),
    }[name]


@pytest.mark.parametrize("name", list(metrics.METRICS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metric_agrees_with_scipy(name, dtype):
    value = metrics.get_metric(name)(LOGITS.to(dtype), ANSWERS, WRONG, REFERENCE.to(dtype))
    assert value.shape == (5,) and value.dtype == torch.float32
    np.testing.assert_allclose(value.numpy(), expected(name), rtol=2e-5, atol=2e-6)


def test_kl_of_a_distribution_with_itself_is_zero():
    assert metrics.kl(LOGITS, ANSWERS, WRONG, LOGITS).abs().max() == 0


def test_kl_counts_impossible_reference_tokens_as_zero():
    reference = REFERENCE.clone()
    reference[:, 4] = -torch.inf
    value = metrics.kl(LOGITS, ANSWERS, WRONG, reference).numpy()
    want = entropy(softmax(reference.numpy(), axis=1), softmax(LOGITS.numpy(), axis=1), axis=1)
    np.testing.assert_allclose(value, want, rtol=2e-5)


def test_logit_diff_is_differentiable():
    logits = LOGITS.clone().requires_grad_()
    metrics.logit_diff(logits, ANSWERS, WRONG).sum().backward()
    assert logits.grad[0, 0] == 1 and logits.grad[0, 1] == -1 and logits.grad[0, 2] == 0


def test_a_callable_is_its_own_metric():
    assert metrics.get_metric(metrics.prob) is metrics.prob


def test_unknown_metric_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="logit_diff"):
        metrics.get_metric("logit_dif")


def test_wrong_shapes_and_missing_reference_are_refused():
    with pytest.raises(InputError, match="batch, d_vocab"):
        metrics.prob(LOGITS[0], ANSWERS, WRONG)
    with pytest.raises(InputError, match="5 rows"):
        metrics.logit_diff(LOGITS, ANSWERS[:3], WRONG)
    with pytest.raises(InputError, match="reference_logits"):
        metrics.kl(LOGITS, ANSWERS, WRONG)
    with pytest.raises(InputError, match="reference logits"):
        metrics.kl(LOGITS, ANSWERS, WRONG, REFERENCE[:, :4])
