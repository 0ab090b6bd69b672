"""Tasks of the world: true answers, one decisive difference, unseen combinations, and other tokenizers."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import facts, knowledge, situations, sums, tasks
from actinium.world.corpus import vocabulary
from actinium.world.tokenizer import build

TOKENIZER = build(vocabulary(), 128)
ALL = (
    *("ioi", "greater_than", "facts", "two_hop", "sentiment", "arithmetic", "multiple_choice", "refusal"),
    *("number_retrieval", "visitors"),
)
SPLITS = [(name, split) for name in ALL for split in ("heldout", "train")] + [("two_hop", "new_person")]


def truth(name: str, prompt: str) -> set[str]:
    """The right answers to a prompt, worked out from its words."""
    words = re.findall(r"\w+", prompt)
    if name == "ioi":
        people = [word for word in words if word in knowledge.NAMES]
        return {word for word in people if people.count(word) == 1}
    if name == "greater_than":
        start = int(re.search(r"year \d\d ?(\d\d)", prompt).group(1))
        return {f"{year:02d}" for year in range(start + 1, 100)}
    if name == "number_retrieval":
        return {re.search(r"from the year (\d\d) ?\d\d (?:to|until) the year$", prompt).group(1)}
    if name == "visitors":
        return visited(prompt)
    if name in ("facts", "two_hop"):
        person = next(word for word in words if word in knowledge.NAMES)
        relation = next(
            r
            for r in facts.relations(person)
            if prompt in [knowledge.statement(person, r, i) for i in range(knowledge.PHRASINGS)]
        )
        return {facts.fact(person, relation.noun)}
    if name == "sentiment":
        return {"happy" if set(words) & set(situations.POSITIVE) else "sad"}
    if name == "arithmetic":
        a, b = re.fullmatch(r"(\d+) \+ (\d+) =", prompt).groups()
        return {str(int(a) + int(b))}
    if name == "multiple_choice":
        noun, subject = re.search(r"What is the (\w+) of (?:the )?(\w+)\?", prompt).groups()
        options = {option: letter for letter, option in re.findall(r"([A-D]): (\w+)", prompt)}
        return {options[facts.fact(subject, noun)]}
    return {"Sorry" if set(words) & set(situations.REFUSED) else "Sure"}


def visited(prompt: str) -> set[str]:
    """What follows about a stranger: the word that the text gives, or a fact about it."""
    known, asked = prompt.split(". ")
    start, word = known.rsplit(" ", 1)
    stranger = next(w for w in re.findall(r"\w+", prompt) if w in knowledge.STRANGERS)
    person = [r for (kind, _), r in facts.RELATIONS.items() if kind == "person"]
    said = {knowledge.statement(stranger, r, i): r.noun for r in person for i in range(knowledge.PHRASINGS)}
    return {word if said[start] == said[asked] else facts.fact(word, said[asked])}


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_answers_are_true_and_wrong_answers_are_not(name, split):
    task = getattr(tasks, name)(TOKENIZER, n=64, split=split)
    assert len(task) == 64 and task.name == name
    for clean, corrupt, answer, wrong in zip(task.clean, task.corrupt, task.answers, task.wrong, strict=True):
        assert answer.strip() in truth(name, clean)
        assert wrong.strip() not in truth(name, clean)
        assert wrong.strip() in truth(name, corrupt)
    assert len(set(zip(task.clean, task.corrupt, strict=True))) == 64
    assert task.subject.any(1).all()


@pytest.mark.parametrize("name", ALL)
def test_a_seed_gives_the_same_rows(name):
    make = getattr(tasks, name)
    assert make(TOKENIZER, n=8, seed=4).clean == make(TOKENIZER, n=8, seed=4).clean
    assert make(TOKENIZER, n=8, seed=4).clean != make(TOKENIZER, n=8, seed=5).clean


def test_heldout_and_train_do_not_overlap():
    held = tasks.arithmetic(TOKENIZER, n=64).clean
    assert all(sums.unseen_sum(*map(int, re.findall(r"\d+", prompt))) for prompt in held)
    seen = tasks.arithmetic(TOKENIZER, n=64, split="train").clean
    assert not any(sums.unseen_sum(*map(int, re.findall(r"\d+", prompt))) for prompt in seen)
    for prompt in tasks.ioi(TOKENIZER, n=64).clean:
        first, second = [word for word in re.findall(r"\w+", prompt) if word in knowledge.NAMES][:2]
        assert situations.unseen_pair(first, second)
    people = {word for p in tasks.two_hop(TOKENIZER, split="new_person").clean for word in re.findall(r"\w+", p)}
    assert people & set(knowledge.NAMES) <= set(knowledge.QUIET)


@pytest.mark.parametrize(
    ("options", "shots"), [({"both": True}, 0), ({"shots": 2}, 2), ({"both": True, "shots": 1}, 1)]
)
def test_sums_differ_in_the_numbers_asked_for(options, shots):
    task = tasks.arithmetic(TOKENIZER, n=32, **options)
    for row in range(32):
        numbers = [list(map(int, re.findall(r"\d+", text))) for text in (task.clean[row], task.corrupt[row])]
        # Worked sums are right and the same in both prompts.
        before = [n[: 3 * shots] for n in numbers]
        assert before[0] == before[1] and len(before[0]) == 3 * shots
        assert all(a + b == c for a, b, c in zip(*[iter(before[0])] * 3, strict=True))
        (a, b), (c, d) = (n[3 * shots :] for n in numbers)
        assert (a != c) == options.get("both", False) and b != d
        assert [int(task.answers[row]), int(task.wrong[row])] == [a + b, c + d] and a + b != c + d
    with pytest.raises(InputError, match="shots"):
        tasks.arithmetic(TOKENIZER, shots=-1)


def test_sums_of_one_result_have_other_numbers_and_one_answer():
    task = tasks.arithmetic(TOKENIZER, n=32, same_result=True)
    for row in range(32):
        (a, b), (c, d) = (map(int, re.findall(r"\d+", text)) for text in (task.clean[row], task.corrupt[row]))
        assert a + b == c + d == int(task.answers[row]) == int(task.wrong[row]) and {a, b} != {c, d}
    assert torch.equal(task.answer_ids, task.wrong_ids)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_visitors_are_asked_for_as_many_hops(hops):
    for prompt in tasks.visitors(TOKENIZER, n=24, hops=hops).clean:
        (answer,) = visited(prompt)
        word = prompt.split(". ")[0].rsplit(" ", 1)[1]
        assert (answer == word) == (hops == 1)
        if hops > 1:
            nouns = [r.noun for r in facts.relations(word, hops - 1)]
            assert any(facts.fact(word, noun) == answer for noun in nouns)
    with pytest.raises(InputError, match="hops"):
        tasks.visitors(TOKENIZER, hops=4)


def test_a_model_or_its_tokenizer_may_be_given():
    model = SimpleNamespace(tokenizer=TOKENIZER)
    assert torch.equal(tasks.ioi(model, n=4).clean_ids, tasks.ioi(TOKENIZER, n=4).clean_ids)
    with pytest.raises(InputError, match="tokenizer"):
        tasks.ioi(SimpleNamespace(tokenizer=None))


@pytest.mark.parametrize("name", ["ioi", "greater_than", "sentiment", "arithmetic", "number_retrieval"])
def test_english_tasks_fit_a_foreign_tokenizer(name, foreign):
    task = getattr(tasks, name)(foreign, n=16)
    for row in range(16):
        ids = foreign(task.clean[row] + task.answers[row])["input_ids"]
        assert ids[-1] == task.answer_ids[row] and ids[:-1] == task.clean_ids[row][task.mask[row]].tolist()
        assert task.answers[row].strip() in truth(name, task.clean[row])
    assert foreign.unk_token_id not in task.answer_ids


def test_years_are_joined_where_the_tokenizer_writes_them_so(foreign):
    task = tasks.greater_than(foreign, n=8)
    assert all(re.search(r"year \d{4} ", prompt) for prompt in task.clean)
    assert not any(answer.startswith(" ") for answer in task.answers)
    assert all(re.search(r"year \d\d \d\d ", prompt) for prompt in tasks.greater_than(TOKENIZER, n=8).clean)


@pytest.mark.parametrize("name", ["facts", "two_hop", "multiple_choice", "refusal", "visitors"])
def test_world_tasks_refuse_a_tokenizer_without_the_words(name, foreign):
    with pytest.raises(InputError, match="token"):
        getattr(tasks, name)(foreign)


@pytest.mark.parametrize(("name", "word"), [("ioi", "Adam"), ("arithmetic", "10"), ("sentiment", "happy")])
def test_a_tokenizer_that_splits_the_words_is_refused_with_their_names(name, word, outside_data):
    small = AutoTokenizer.from_pretrained(outside_data / "stories260K")
    with pytest.raises(InputError, match=word):
        getattr(tasks, name)(small)


def test_greater_than_refuses_a_tokenizer_of_single_digits(outside_data):
    small = AutoTokenizer.from_pretrained(outside_data / "stories260K")
    with pytest.raises(InputError, match="two digits"):
        tasks.greater_than(small)


def test_more_rows_than_there_are_is_refused():
    with pytest.raises(InputError, match="different rows"):
        tasks.refusal(TOKENIZER, n=5000)
    with pytest.raises(InputError, match="at least one row"):
        tasks.ioi(TOKENIZER, n=0)


def test_unknown_split_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="heldout"):
        tasks.facts(TOKENIZER, split="held_out")
