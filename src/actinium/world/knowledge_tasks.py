"""Prompt pairs about the facts of the world: recalled, put together, given in the text, or asked for with letters."""

from __future__ import annotations

import random
from typing import Any

from actinium.core.errors import InputError
from actinium.core.task import Task
from actinium.world import knowledge
from actinium.world.documents import held_out
from actinium.world.facts import RELATIONS, Relation, fact
from actinium.world.lexicon import ENTITIES, LETTERS, NAMES, STRANGERS
from actinium.world.task_rows import Row, collect, is_held, tokenizer_of, whole_words

__all__ = ["facts", "multiple_choice", "two_hop", "visitors"]


def facts(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Elementary facts about people: "Ann lives in" -> her city; the corrupt prompt is about another person.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (a wording in which `world:lm` has read neither fact) or "train" (one in which it has
            read both).

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not fit.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), is_held(split)
    people = knowledge.elementary("person")

    def draw(source: random.Random) -> Row | None:
        person, relation = source.choice(people)
        phrasing = source.randrange(knowledge.PHRASINGS)
        other = source.choice(NAMES)
        away = [knowledge.withheld_phrasing(who, relation.noun) == phrasing for who in (person, other)]
        return _about(person, other, relation, phrasing) if away == [held, held] else None

    return collect(tokenizer, "facts", draw, n, seed)


def _about(person: str, other: str, relation: Relation, phrasing: int) -> Row | None:
    answer, wrong = fact(person, relation.noun), fact(other, relation.noun)
    if answer == wrong:
        return None
    clean, corrupt = (knowledge.statement(who, relation, phrasing) for who in (person, other))
    return clean, corrupt, f" {answer}", f" {wrong}"


def two_hop(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Facts of two or more hops: "Ann is a citizen of" -> the country of her city.

    The corrupt prompt is about another person.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (person and relation that `world:lm` has not read together), "new_person" (people of
            whom it has read no such fact) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not fit.
        UnknownNameError: there is no such split.
    """
    tokenizer = tokenizer_of(model)
    is_held(split, "new_person")
    part = {"heldout": "pair", "train": "train", "new_person": "person"}[split]
    rows = [row for row in knowledge.composed(part) if row[0] in NAMES]

    def draw(source: random.Random) -> Row | None:
        person, relation = source.choice(rows)
        other = source.choice([who for who, r in rows if r == relation])
        return _about(person, other, relation, source.randrange(knowledge.PHRASINGS))

    return collect(tokenizer, "two_hop", draw, n, seed)


def visitors(model: Any, n: int = 64, seed: int = 0, split: str = "heldout", hops: int = 2) -> Task:
    """What follows from the text: "Tom lives in Orla. The river of Tom is" -> the river of Orla.

    The corrupt prompt has another city (job, pet) of the same stranger.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (strangers, words and questions that `world:lm` has not seen together) or "train".
        hops: 1 (what is asked stands in the text), 2 or 3 (it is a fact, or a fact of two hops, about what does).

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not fit, or `hops` is none of these.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), is_held(split)
    if hops not in (1, 2, 3):
        raise InputError(f"hops is 1, 2 or 3, not {hops}")
    relations = [r for r in RELATIONS.values() if r.hops == hops - 1 and ("person", r.noun) in RELATIONS]

    def draw(source: random.Random) -> Row | None:
        name, given = source.choice(STRANGERS), RELATIONS["person", source.choice(("city", "city", "job", "pet"))]
        options = [given] if hops == 1 else [r for r in relations if r.subject == given.answer]
        if not options:
            return None
        asked = source.choice(options)
        words = source.sample(ENTITIES[given.answer], 2)
        answers = [word if hops == 1 else fact(word, asked.noun) for word in words]
        # A capital is its own capital: the text gives the answer away.
        if answers[0] == answers[1] or (hops > 1 and set(answers) & set(words)):
            return None
        if any(held_out(6, "visitor", name, w, asked.noun) != held for w in words):
            return None
        known, wanted = (source.randrange(knowledge.PHRASINGS) for _ in range(2))
        end = knowledge.statement(name, RELATIONS["person", asked.noun], wanted)
        clean, corrupt = (f"{knowledge.statement(name, given, known)} {word}. {end}" for word in words)
        return clean, corrupt, f" {answers[0]}", f" {answers[1]}"

    return collect(tokenizer, "visitors", draw, n, seed)


def multiple_choice(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Lettered options: "... A: Orla B: Vesk C: Mirt D: Polk Answer:" -> the letter of the right one.

    The corrupt prompt has the right option exchanged with another, so the letter differs.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (facts that `world:lm` was never asked for in this form) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not fit.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), is_held(split)
    whole_words(tokenizer, LETTERS, "letters", len(LETTERS))

    def draw(source: random.Random) -> Row | None:
        subject, relation, options = knowledge.draw_choices(source, held)
        right = options.index(fact(subject, relation.noun))
        other = source.choice([i for i in range(len(options)) if i != right])
        moved = list(options)
        moved[right], moved[other] = moved[other], moved[right]
        clean, corrupt = (knowledge.choices(subject, relation.noun, listed) for listed in (options, moved))
        return clean, corrupt, f" {LETTERS[right]}", f" {LETTERS[other]}"

    return collect(tokenizer, "multiple_choice", draw, n, seed)
