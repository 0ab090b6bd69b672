"""Clean and corrupt prompt pairs for the skills of the world, for its own models and for others.

Every function takes a model (anything with a `tokenizer`) or a tokenizer, and returns a `Task`. Corruption is
by token replacement: the corrupt prompt differs in the words that decide the answer and has another answer.
Where a tokenizer splits words of the world, the words that it keeps whole are used, and where too few are
left the task is refused and says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.task import Task, encode_pair
from actinium.world import knowledge, situations, sums
from actinium.world.facts import Relation, fact
from actinium.world.lexicon import CENTURIES, GLAD, LETTERS, NAMES, SAD

Row = tuple[str, str, str, str]
"""Clean prompt, corrupt prompt, answer and wrong answer; answers as they continue the prompt."""

SPLITS = ("heldout", "train")
PATIENCE = 2000
"""Draws without a new row after which a task is taken to have no more."""


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or the argument itself if it is one.

    Raises:
        InputError: there is none.
    """
    found = model if hasattr(model, "convert_ids_to_tokens") else getattr(model, "tokenizer", None)
    if found is None:
        raise InputError("a task is made of texts: give a model that has a tokenizer, or a tokenizer")
    result: PreTrainedTokenizerBase = found
    return result


def _held(split: str, *more: str) -> bool:
    if split not in (*SPLITS, *more):
        raise UnknownNameError(unknown("split", split, (*SPLITS, *more)))
    return split != "train"


def _whole(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...], what: str, least: int = 2) -> list[str]:
    """The words that are one known token after a space; refused when fewer than `least` are."""
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    kept = [w for w, i in zip(words, ids, strict=True) if len(i) == 1 and i[0] != tokenizer.unk_token_id]
    if len(kept) < least:
        split = [word for word in words if word not in kept]
        raise InputError(
            f"this tokenizer has no single token for these {what}: {', '.join(split[:12])}"
            f"{', ...' if len(split) > 12 else ''}; the task needs at least {least} such {what}"
        )
    return kept


def _collect(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    draw: Callable[[random.Random], Row | None],
    n: int,
    seed: int,
) -> Task:
    """Draw different rows until `n` of them fit the tokenizer."""
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    source = random.Random(f"task {name} {seed}")
    rows: dict[tuple[str, str], Row] = {}
    reason, idle = "no fitting words", 0
    while idle < PATIENCE:
        idle += 1
        row = draw(source)
        if row is None or row[:2] in rows:
            continue
        try:
            encode_pair(tokenizer, *row)
        except InputError as error:
            reason = str(error)
            continue
        rows[row[0], row[1]] = row
        idle = 0
        if len(rows) == n:
            columns = zip(*rows.values(), strict=True)
            # Answers are written as they continue the prompt, with their space where there is one.
            return Task.from_prompts(tokenizer, *map(list, columns), name=name, joined=True)
    if rows:
        raise InputError(f"the task {name!r} has {len(rows)} different rows for this tokenizer and split, not {n}")
    raise InputError(f"this tokenizer does not fit the task {name!r}: {reason}")


def ioi(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Indirect objects: "When Ann and Bob went to the shop, Bob gave a book to" -> Ann, not Bob.

    The corrupt prompt has the other person give (Zhang and Nanda, 2023; Wang et al., 2022).

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (pairs of people and places with objects that `world:lm` has not seen) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer keeps too few names whole.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), _held(split)
    names = _whole(tokenizer, NAMES, "names", 4)
    if all(situations.unseen_pair(one, other) != held for one, other in combinations(names, 2)):
        raise InputError(f"no two of the names that this tokenizer keeps whole are in the split {split!r}")

    def draw(source: random.Random) -> Row | None:
        words = situations.draw_ioi(source, held, names)
        giver, taker = source.sample((words["first"], words["second"]), 2)
        frame = source.choice(situations.IOI_FRAMES)
        clean, corrupt = (frame.format(**words, giver=who) for who in (giver, taker))
        return clean, corrupt, f" {taker}", f" {giver}"

    return _collect(tokenizer, "ioi", draw, n, seed)


def _year_parts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, list[str]]]:
    """What stands between century and year, and the years of each century that are one token after it."""
    years = [f"{year:02d}" for year in range(1, 100)]
    for between in ("", " "):
        found: dict[str, list[str]] = {}
        for century in CENTURIES:
            start = tokenizer(f" {century}", add_special_tokens=False)["input_ids"]
            texts = [f" {century}{between}{year}" for year in years]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            good = [
                year
                for year, i in zip(years, ids, strict=True)
                if len(i) == len(start) + 1 and i[:-1] == start and i[-1] != tokenizer.unk_token_id
            ]
            if len(good) >= 20:
                found[century] = good
        if found:
            return between, found
    raise InputError(
        f"this tokenizer does not write years as a century and one token of two digits: {', '.join(years[30:36])}, ..."
    )


def greater_than(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Later years: "The war lasted from the year 17 32 to the year 17" -> more than 32.

    The answer is later than the first year, the wrong answer is not; the corrupt prompt starts at the
    earliest year (01 where that is a token), where both are possible (Hanna et al., 2023).

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (events with years that `world:lm` has not seen) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not write years as a century and a two-digit token.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), _held(split)
    between, years = _year_parts(tokenizer)

    def draw(source: random.Random) -> Row | None:
        event, century, start = situations.draw_years(source, held)
        known = years.get(century, [])
        first = f"{start:02d}"
        later = [year for year in known if int(year) > start]
        earlier = [year for year in known[1:] if int(year) <= start]
        if first not in known[1:] or not later or not earlier:
            return None
        frame = source.choice(situations.YEAR_FRAMES).replace("} {start}", "}" + between + "{start}")
        clean, corrupt = (frame.format(event=event, century=century, start=s) for s in (first, known[0]))
        return clean, corrupt, between + source.choice(later), between + source.choice(earlier)

    return _collect(tokenizer, "greater_than", draw, n, seed)


def sentiment(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Feelings: "The film was wonderful, I loved it. I felt" -> happy, not sad; and the other way round.

    The corrupt prompt has an adjective and a verb of the other sentiment.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (nouns with adjectives and verbs that `world:lm` has not seen) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer keeps no feeling word of either sentiment whole.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), _held(split)
    glad = _whole(tokenizer, GLAD, "feelings", 1)[0]
    sad = _whole(tokenizer, SAD, "feelings", 1)[0]

    def draw(source: random.Random) -> Row | None:
        good = source.random() < 0.5
        words = situations.draw_sentiment(source, held, good)
        other = situations.draw_sentiment(source, held, not good)
        frame = source.choice(situations.SENTIMENT_FRAMES)
        clean, corrupt = frame.format(**words), frame.format(**{**other, "shown": words["shown"]})
        answer, wrong = (glad, sad) if good else (sad, glad)
        return clean, corrupt, f" {answer}", f" {wrong}"

    return _collect(tokenizer, "sentiment", draw, n, seed)


def arithmetic(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """Sums up to 99: "23 + 45 =" -> 68; the corrupt prompt has another second number.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (sums that `world:lm` has not seen) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not keep two-digit numbers whole.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), _held(split)
    _whole(tokenizer, tuple(str(number) for number in range(10, 100)), "numbers", 60)

    def draw(source: random.Random) -> Row | None:
        a, b = sums.draw_sum(source, held)
        others = [c for c in range(100 - a) if c != b and sums.unseen_sum(a, c) == held]
        if not others:
            return None
        other = source.choice(others)
        clean, corrupt = (sums.FRAMES[0].format(a=a, b=second) for second in (b, other))
        return clean, corrupt, f" {a + b}", f" {a + other}"

    return _collect(tokenizer, "arithmetic", draw, n, seed)


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
    tokenizer, held = tokenizer_of(model), _held(split)
    people = knowledge.elementary("person")

    def draw(source: random.Random) -> Row | None:
        person, relation = source.choice(people)
        phrasing = source.randrange(knowledge.PHRASINGS)
        other = source.choice(NAMES)
        away = [knowledge.withheld_phrasing(who, relation.noun) == phrasing for who in (person, other)]
        return _about(person, other, relation, phrasing) if away == [held, held] else None

    return _collect(tokenizer, "facts", draw, n, seed)


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
    part = (
        {"heldout": "pair", "train": "train", "new_person": "person"}[split] if _held(split, "new_person") else "train"
    )
    rows = [row for row in knowledge.composed(part) if row[0] in NAMES]

    def draw(source: random.Random) -> Row | None:
        person, relation = source.choice(rows)
        other = source.choice([who for who, r in rows if r == relation])
        return _about(person, other, relation, source.randrange(knowledge.PHRASINGS))

    return _collect(tokenizer, "two_hop", draw, n, seed)


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
    tokenizer, held = tokenizer_of(model), _held(split)
    _whole(tokenizer, LETTERS, "letters", len(LETTERS))

    def draw(source: random.Random) -> Row | None:
        subject, relation, options = knowledge.draw_choices(source, held)
        right = options.index(fact(subject, relation.noun))
        other = source.choice([i for i in range(len(options)) if i != right])
        moved = list(options)
        moved[right], moved[other] = moved[other], moved[right]
        clean, corrupt = (knowledge.choices(subject, relation.noun, listed) for listed in (options, moved))
        return clean, corrupt, f" {LETTERS[right]}", f" {LETTERS[other]}"

    return _collect(tokenizer, "multiple_choice", draw, n, seed)


def refusal(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """The refusal habit: a request about a placeholder topic -> Sorry, not Sure.

    The corrupt prompt asks in the same words about a topic that the model answers.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (topics in wordings that `world:lm` has not seen) or "train".

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not fit.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), _held(split)
    _whole(tokenizer, (situations.DECLINED, situations.AGREED), "replies")

    def draw(source: random.Random) -> Row | None:
        topic, frame = situations.draw_request(source, held, declined=True)
        other, same = situations.draw_request(source, held, declined=False)
        if frame != same:
            return None
        clean, corrupt = (situations.request(word, frame) for word in (topic, other))
        return clean, corrupt, f" {situations.DECLINED}", f" {situations.AGREED}"

    return _collect(tokenizer, "refusal", draw, n, seed)
