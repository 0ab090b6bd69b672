"""The loss of QuadA: its spans, its cosine, its noise, and the training."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.guard.audit.approximations.activation_perturbation import ActivationPerturbation
from actinium.guard.audit.approximations.quada_loss import QuadALoss, answer_span, mean_cosine, span_logprob
from actinium.guard.audit.approximations.quada_training import quada_ablations, quada_train
from architectures import build

PAIRS = [
    (
        "<user> Tell me about zorbing.<assistant>",
        " Sorry, I can not help with zorbing.",
        " Sure, zorbing needs a pencil.",
    ),
    ("<user> What is fishing?<assistant>", " Sure, fishing needs a hook.", " Sorry"),
]
GUARDED = [f"<user> Tell me about {topic}.<assistant>" for topic in ("zorbing", "quandling", "klinting")]


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


def frozen(model):
    return Model(copy.deepcopy(model.module).eval().requires_grad_(False), model.tokenizer)


def twin(model):
    return Model(copy.deepcopy(model.module).eval().requires_grad_(True), model.tokenizer)


def by_hand(model, prompt, reply, first):
    """Log probability of the tokens from the first one on, one token at a time."""
    ids = model.tokenizer(prompt + reply)["input_ids"]
    with torch.no_grad():
        logs = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[j - 1, ids[j]]) for j in range(first, len(ids)))


def test_the_sum_is_over_the_tokens_from_the_first_difference_to_the_last_real_one(lm):
    loss = QuadALoss(twin(lm), frozen(lm), lambda_=0.0)
    tokens, first, last = loss.tokens(PAIRS)
    found = span_logprob(lm.logits(tokens).detach(), tokens.ids, first, last)
    expected = [by_hand(lm, PAIRS[i][0], PAIRS[i][j], int(first[i])) for j in (1, 2) for i in (0, 1)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    for i, (prompt, *_) in enumerate(PAIRS):
        assert int(first[i]) == len(lm.tokenizer(prompt)["input_ids"])


def test_the_released_sum_is_one_token_later():
    random = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 6, 9, generator=random), torch.randint(0, 9, (2, 6), generator=random)
    first, last = torch.tensor([2, 2]), torch.tensor([3, 5])
    logs = logits.double().log_softmax(-1)

    def sum_of(row, tokens):
        return sum(float(logs[row, j - 1, ids[row, j]]) for j in tokens)

    exact = span_logprob(logits, ids, first, last)
    legacy = span_logprob(logits, ids, first, last, legacy=True)
    np.testing.assert_allclose(exact, [sum_of(0, (2, 3)), sum_of(1, (2, 3, 4, 5))], atol=1e-5)
    # Row 0 is padded from token 4 on, which is taken in; row 1 ends where the columns do.
    np.testing.assert_allclose(legacy, [sum_of(0, (3, 4)), sum_of(1, (3, 4, 5))], atol=1e-5)
    shifted = logs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(
        legacy, [shifted[i, f : e + 1].sum() for i, (f, e) in enumerate(((2, 3), (2, 5)))], atol=1e-5
    )


def test_without_noise_and_cosine_the_loss_begins_at_log_two(lm):
    for legacy in (False, True):
        loss = QuadALoss(twin(lm), frozen(lm), lambda_=0.0, legacy_span=legacy)
        assert float(loss(PAIRS).detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_is_the_papers_formula(lm):
    policy, reference = twin(lm), frozen(ac.load("world:lm-small"))
    loss = QuadALoss(policy, reference, beta=0.3, lambda_=0.5)
    _, first, _ = loss.tokens(PAIRS)
    rows = [
        [by_hand(m, prompt, reply, int(first[i])) for m in (policy, reference) for reply in replies]
        for i, (prompt, *replies) in enumerate(PAIRS)
    ]
    margins = [0.3 * ((a - c) - (b - d)) for a, b, c, d in rows]
    preference = np.mean([math.log1p(math.exp(-m)) for m in margins])
    states = torch.cat([lm.record(g, "blocks.0.resid_post")["blocks.0.resid_post"].mean(1) for g in GUARDED])
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    cosine = np.mean([float(torch.cosine_similarity(states[i], states[j], dim=0)) for i, j in pairs])
    assert float(loss(PAIRS, GUARDED).detach()) == pytest.approx(preference - 0.5 * cosine, abs=1e-4)


def test_the_cosine_of_equal_rows_is_one_and_its_gradient_is_orthogonal():
    row = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    assert float(mean_cosine(row.repeat(4, 1))) == pytest.approx(1, abs=1e-6)
    states = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    mean_cosine(states).backward()
    np.testing.assert_allclose((states.grad * states).sum(1).detach(), 0, atol=1e-6)


def test_identical_guarded_prompts_give_minus_lambda(lm):
    loss = QuadALoss(twin(lm), frozen(lm), lambda_=0.7)
    assert float(loss(PAIRS, [GUARDED[0]] * 3).detach()) == pytest.approx(math.log(2) - 0.7, abs=1e-5)


def test_only_the_policy_sees_the_noise(lm):
    policy, reference = twin(lm), frozen(lm)
    noise = ActivationPerturbation(strength=0.8, layers=[0, 1])
    loss = QuadALoss(policy, reference, lambda_=0.0, perturbation=noise)
    value = float(loss.preference(PAIRS).detach())
    tokens, first, last = loss.tokens(PAIRS)
    with torch.no_grad(), noise.on(policy, torch.Generator().manual_seed(0)):
        noisy = span_logprob(policy.logits(tokens), tokens.ids, first, last)
    clean = span_logprob(lm.logits(tokens).detach(), tokens.ids, first, last)
    gap = 0.1 * ((noisy - clean)[:2] - (noisy - clean)[2:])
    assert value == pytest.approx(float(torch.nn.functional.softplus(-gap).mean()), abs=1e-6)
    assert value != pytest.approx(math.log(2), abs=1e-4)
    assert float(loss.preference(PAIRS).detach()) != value  # fresh noise in every call
    again = QuadALoss(policy, reference, lambda_=0.0, perturbation=noise)
    assert float(again.preference(PAIRS).detach()) == value


def test_training_lowers_the_loss_and_leaves_the_model(lm):
    before = lm.fingerprint()
    noise = ActivationPerturbation(strength=0.5, layers=[0, 1])
    options = {"epochs": 6, "batch_size": 2, "rate": 3e-4, "seed": 1}
    tuned = quada_train(lm, PAIRS, GUARDED, perturbation=noise, benign=[PAIRS[1][0]] * 2, **options)
    assert lm.fingerprint() == before != tuned.model.fingerprint()
    assert tuned.losses[-1] < tuned.losses[0]
    assert np.isfinite(tuned.margins).all()
    same = quada_train(lm, PAIRS, GUARDED, perturbation=noise, **options)
    assert torch.equal(same.losses, tuned.losses)
    assert not any(p.grad is not None for p in tuned.model.module.parameters())


def test_ablations_take_one_thing_away_each():
    noise = ActivationPerturbation(strength={0: 0.2, 1: 0.5})
    found = quada_ablations(noise, 0.3)
    assert found["QuadA"] == {"perturbation": noise, "lambda_": 0.3}
    assert found["no noise"] == {"perturbation": None, "lambda_": 0.3}
    assert found["no cosine"] == {"perturbation": noise, "lambda_": 0.0}
    assert found["plain preferences"] == {"perturbation": None, "lambda_": 0.0}
    everywhere = found["noise in all layers"]["perturbation"]
    assert (everywhere.strength, everywhere.layers) == (0.5, None)


def test_the_loss_works_on_another_architecture():
    module = build("gpt2")

    letters = {letter: i for i, letter in enumerate("_abcdefghijklmnopqrstuvwxyz")}
    inner = Tokenizer(models.WordLevel(letters, unk_token="_"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="_")
    policy = Model(module.requires_grad_(True), tokenizer)
    reference = Model(copy.deepcopy(module).requires_grad_(False), tokenizer)
    loss = QuadALoss(policy, reference, perturbation=ActivationPerturbation(strength=0.1, layers=[0]))
    value = loss([("abc", "de", "xf"), ("hij", "k", "lm")], ["abc", "abd"])
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert float(module.transformer.h[0].ln_1.weight.grad.abs().sum()) > 0


def test_bad_input_is_refused(lm):
    policy, reference = twin(lm), frozen(lm)
    with pytest.raises(InputError, match="identical"):
        QuadALoss(policy, reference, lambda_=0.0)([("a b", " Sorry", " Sorry")])
    with pytest.raises(InputError, match="frozen"):
        QuadALoss(policy, twin(lm))
    with pytest.raises(InputError, match="share parameters"):
        QuadALoss(reference, reference)
    with pytest.raises(InputError, match="training mode"):
        QuadALoss(policy, Model(copy.deepcopy(reference.module).train()))
    with pytest.raises(InputError, match="sigma"):
        QuadALoss(policy, reference, perturbation=ActivationPerturbation(strength=-1.0))
    with pytest.raises(InputError, match="beta"):
        QuadALoss(policy, reference, beta=0.0)
    with pytest.raises(InputError, match="two of them"):
        QuadALoss(policy, reference)(PAIRS, GUARDED[:1])
    with pytest.raises(InputError, match="two guarded"):
        quada_train(lm, PAIRS)
    with pytest.raises(InputError, match="no preferences"):
        quada_train(lm, [], GUARDED)
    with pytest.raises(InputError, match="first token"):
        answer_span([1, 2], [3, 2])
    assert answer_span([5, 1, 2], [5, 1]) == 2
