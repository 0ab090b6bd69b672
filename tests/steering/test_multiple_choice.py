"""Answers of multiple-choice questions: where they stand, and scores in closed form."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from architectures import shared, token_ids

ITEMS = [
    {
        "question": f"Is the {thing} good?\nChoices:\n(A) yes\n(B) no\nAnswer:",
        "answer_matching_behavior": "(A)" if i % 2 else "(B)",
        "answer_not_matching_behavior": "(B)" if i % 2 else "(A)",
    }
    for i, thing in enumerate(["ball", "big red car", "dog", "little cat"])
]


def choices(model, n=3, length=5, seed=0):
    ids = token_ids(n, length, seed)
    answers = torch.tensor([5 + i for i in range(n)])
    return ac.Task.from_ids(ids, ids, answers, answers + 20, model=model, name="choices")


def vector(model, site, size=3.0):
    return ac.steering.SteeringVector({site: size * torch.linspace(-1, 1, model.d_model).sin()})


def test_the_score_of_two_logits_is_the_logistic_function_of_their_difference():
    logits = torch.tensor([[2.0, 0.5, 9.0], [0.5, 7.0, 2.0]])
    score = ac.steering.ab_probability(logits, [0, 2], [1, 0])
    assert score.tolist() == pytest.approx([0.817574, 0.817574], abs=1e-6)
    p = logits[0].softmax(-1)
    assert float(score[0]) == pytest.approx(float(p[0] / (p[0] + p[1])), abs=1e-6)


def test_a_linear_tail_moves_the_difference_linearly():
    model = shared("gpt2")
    task, v = choices(model), vector(model, "final_norm")
    strengths = [-2.0, -1.0, 0.0, 1.0, 2.0]
    found = ac.steering.choice_scores(model, task, v, strengths)["logit_diff"].values
    head = model.module.get_output_embeddings().weight.detach()
    slope = (head[task.answer_ids] - head[task.wrong_ids]) @ v["final_norm"]
    for m, row in zip(strengths, found, strict=True):
        assert row == pytest.approx((torch.tensor(found[2]) + m * slope).numpy(), abs=1e-4)
    assert abs(found[4] - found[0]).min() > 0.01


@pytest.mark.parametrize("batch_size", [256, 4])
def test_one_batched_pass_gives_what_each_strength_gives_alone(batch_size):
    model = shared("llama")
    task, v = choices(model), vector(model, "blocks.1.resid_post")
    found = ac.steering.choice_scores(model, task, v, [-1.0, 0.0, 2.0], batch_size=batch_size, positions="last")
    for strength in (-1.0, 0.0, 2.0):
        with ac.steering.steer(model, v, strength, positions="last"), torch.no_grad():
            logits = model.logits(task.prompts())[:, -1]
        gap = ac.metrics.logit_diff(logits, task.answer_ids, task.wrong_ids)
        assert found["logit_diff"].sel(strength=strength).values == pytest.approx(gap.numpy(), abs=1e-4)
        whole = logits.softmax(-1).gather(1, task.answer_ids[:, None])[:, 0]
        assert found["p_match"].sel(strength=strength).values == pytest.approx(whole.numpy(), abs=1e-5)
    assert found["mean_score"].values == pytest.approx(found["score"].values.mean(1))


def test_steering_new_tokens_leaves_the_prompts_logits_to_the_bit():
    model, ids = shared("llama"), token_ids(2, 6)
    v = vector(model, "blocks.1.resid_post")
    kept = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    with model.recording("logits") as plain:
        model.generate(ids, **kept)
    with model.recording("logits") as new, ac.steering.steer(model, v, positions="new"):
        model.generate(ids, **kept)
    prompt = plain["logits"].shape[1] - 2
    assert torch.equal(plain["logits"][:, :prompt], new["logits"][:, :prompt])
    assert not torch.equal(plain["logits"][:, prompt:], new["logits"][:, prompt:])


def test_the_letter_is_read_and_not_the_bracket_behind_it(lm, outside_data):
    model = ac.load(outside_data / "stories260K")
    pairs = ac.steering.ab_pairs(ITEMS)
    positions = pairs.positions(model)
    for texts, letters in ((pairs.positive, pairs.matching), (pairs.negative, pairs.other)):
        for text, letter, place in zip(texts, letters, positions.tolist(), strict=True):
            tokens = model.to_str_tokens(model.to_tokens(text).ids[0])
            assert tokens[place] == letter and place == len(tokens) - 2
    task = pairs.task(model)
    assert [t.strip() for t in task.answers] == ["B", "A", "B", "A"]
    assert task.clean[0].endswith("Answer: (")
    v = ac.steering.extract(model, pairs.positive, pairs.negative, "blocks.2.resid_post", position=positions)
    up, down = (model.record(side, "blocks.2.resid_post") for side in (pairs.positive, pairs.negative))
    rows = torch.arange(4)
    gap = [r["blocks.2.resid_post"][rows, positions] for r in (up, down)]
    assert torch.allclose(v["blocks.2.resid_post"], (gap[0] - gap[1]).mean(0), atol=1e-5)


def test_answers_are_found_in_words(lm):
    texts = ["Question: What is the job of Max? A: judge B: miner Answer: B", "I thought the film was good"]
    places = ac.steering.answer_positions(lm, texts, ["B", "good"])
    for text, place, answer in zip(texts, places.tolist(), ["B", "good"], strict=True):
        assert lm.to_str_tokens(lm.to_tokens(text).ids[0])[place].strip() == answer
    with pytest.raises(InputError, match="does not hold"):
        ac.steering.answer_positions(lm, ["I thought"], ["good"])
    with pytest.raises(InputError, match="no token ends"):
        ac.steering.answer_positions(lm, ["The film was good"], ["goo"])


def test_a_chat_template_goes_around_the_question():
    pairs = ac.steering.ab_pairs(ITEMS, template=lambda q: f"[INST] {q} [/INST]")
    assert pairs.positive[0] == f"[INST] {ITEMS[0]['question']} [/INST] (B)"
    assert pairs.prompts[0] == f"[INST] {ITEMS[0]['question']} [/INST] ("


def test_letters_that_say_the_behaviour_are_warned_of():
    with pytest.warns(ActiniumWarning, match="letter A is the matching answer of 100%"):
        ac.steering.ab_pairs([ITEMS[1], ITEMS[3]])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no questions"),
        ([{**ITEMS[0], "question": " "}], "has no question"),
        ([{**ITEMS[0], "answer_matching_behavior": "(A)"}], "expected two answers"),
        ([{**ITEMS[0], "answer_matching_behavior": "()"}], "expected two answers"),
    ],
)
def test_senseless_questions_are_refused(items, message):
    with pytest.raises(InputError, match=message):
        ac.steering.ab_pairs(items)


def test_senseless_strengths_are_refused():
    model = shared("gpt2")
    task, v = choices(model), vector(model, "blocks.1.resid_post")
    for strengths in ([], [float("nan")]):
        with pytest.raises(InputError, match="finite strength"):
            ac.steering.choice_scores(model, task, v, strengths)
    with pytest.raises(InputError, match="lower the strength"):
        ac.steering.choice_scores(model, task, v, [1e38])
