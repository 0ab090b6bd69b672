"""Clean and corrupt prompt pairs for the skills of the world, for its own models and for others.

Every function takes a model (anything with a `tokenizer`) or a tokenizer, and returns a `Task`. Corruption is
by token replacement: the corrupt prompt differs in the words that decide the answer and has another answer.
Where a tokenizer splits words of the world, the words that it keeps whole are used, and where too few are
left the task is refused and says so.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from actinium.core.errors import InputError
from actinium.core.task import Task
from actinium.world import situations, sums
from actinium.world.knowledge_tasks import facts, multiple_choice, two_hop, visitors
from actinium.world.lexicon import CENTURIES, GLAD, NAMES, SAD
from actinium.world.task_rows import Row, collect, is_held, tokenizer_of, whole_words

__all__ = [
    "arithmetic",
    "facts",
    "greater_than",
    "ioi",
    "multiple_choice",
    "number_retrieval",
    "refusal",
    "sentiment",
    "tokenizer_of",
    "two_hop",
    "visitors",
]


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
    tokenizer, held = tokenizer_of(model), is_held(split)
    names = whole_words(tokenizer, NAMES, "names", 4)
    if all(situations.unseen_pair(one, other) != held for one, other in combinations(names, 2)):
        raise InputError(f"no two of the names that this tokenizer keeps whole are in the split {split!r}")

    def draw(source: random.Random) -> Row | None:
        words = situations.draw_ioi(source, held, names)
        giver, taker = source.sample((words["first"], words["second"]), 2)
        frame = source.choice(situations.IOI_FRAMES)
        clean, corrupt = (frame.format(**words, giver=who) for who in (giver, taker))
        return clean, corrupt, f" {taker}", f" {giver}"

    return collect(tokenizer, "ioi", draw, n, seed)


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
    tokenizer, held = tokenizer_of(model), is_held(split)
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

    return collect(tokenizer, "greater_than", draw, n, seed)


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
    tokenizer, held = tokenizer_of(model), is_held(split)
    glad = whole_words(tokenizer, GLAD, "feelings", 1)[0]
    sad = whole_words(tokenizer, SAD, "feelings", 1)[0]

    def draw(source: random.Random) -> Row | None:
        good = source.random() < 0.5
        words = situations.draw_sentiment(source, held, good)
        other = situations.draw_sentiment(source, held, not good)
        frame = source.choice(situations.SENTIMENT_FRAMES)
        clean, corrupt = frame.format(**words), frame.format(**{**other, "shown": words["shown"]})
        answer, wrong = (glad, sad) if good else (sad, glad)
        return clean, corrupt, f" {answer}", f" {wrong}"

    return collect(tokenizer, "sentiment", draw, n, seed)


def arithmetic(
    model: Any,
    n: int = 64,
    seed: int = 0,
    split: str = "heldout",
    *,
    both: bool = False,
    same_result: bool = False,
    shots: int = 0,
) -> Task:
    """Sums up to 99: "23 + 45 =" -> 68; the corrupt prompt has another second number.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: number of rows.
        seed: seed of the draw.
        split: "heldout" (sums that `world:lm` has not seen) or "train".
        both: the corrupt prompt has two other numbers.
        same_result: two other numbers of the same sum; answer and wrong answer are then one token.
        shots: worked sums ("12 + 30 = 42.") before the sum, the same in both prompts.

    Returns:
        The task.

    Raises:
        InputError: the tokenizer does not keep two-digit numbers whole, or `shots` is negative.
        UnknownNameError: there is no such split.
    """
    tokenizer, held = tokenizer_of(model), is_held(split)
    whole_words(tokenizer, tuple(str(number) for number in range(10, 100)), "numbers", 60)
    if shots < 0:
        raise InputError(f"shots is 0 or more, not {shots}")

    def draw(source: random.Random) -> Row | None:
        a, b = sums.draw_sum(source, held)
        if same_result:
            others = [(c, a + b - c) for c in range(a + b + 1) if c not in (a, b)]
        elif both:
            others = [(c, d) for c, d in [sums.draw_sum(source, held)] if c != a and d != b and c + d != a + b]
        else:
            others = [(a, c) for c in range(100 - a) if c != b]
        others = [pair for pair in others if sums.unseen_sum(*pair) == held]
        if not others:
            return None
        c, d = source.choice(others)
        worked = [sums.draw_sum(source, False) for _ in range(shots)]
        before = "".join(f"{sums.FRAMES[0].format(a=x, b=y)} {x + y}. " for x, y in worked)
        clean, corrupt = (before + sums.FRAMES[0].format(a=x, b=y) for x, y in ((a, b), (c, d)))
        # A row has two different answers; where the results are the same its second one is taken back below.
        wrong = (a + b + 1) % 100 if same_result else c + d
        return clean, corrupt, f" {a + b}", f" {wrong}"

    task = collect(tokenizer, "arithmetic", draw, n, seed)
    return replace(task, wrong=list(task.answers), wrong_ids=task.answer_ids.clone()) if same_result else task


def number_retrieval(model: Any, n: int = 64, seed: int = 0, split: str = "heldout") -> Task:
    """A number that the prompt gives: "The war lasted from the year 17 32 to the year" -> 17.

    The corrupt prompt has another century. Nothing has to be computed.

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
    tokenizer, held = tokenizer_of(model), is_held(split)
    between, years = _year_parts(tokenizer)

    def draw(source: random.Random) -> Row | None:
        event, century, start = situations.draw_years(source, held)
        other = source.choice(list(years))
        if other == century or any(f"{start:02d}" not in years.get(c, []) for c in (century, other)):
            return None
        frame = source.choice(situations.YEAR_FRAMES).replace("} {start}", "}" + between + "{start}")
        texts = (frame.format(event=event, century=c, start=f"{start:02d}") for c in (century, other))
        clean, corrupt = (text.rsplit(" ", 1)[0] for text in texts)
        return clean, corrupt, f" {century}", f" {other}"

    return collect(tokenizer, "number_retrieval", draw, n, seed)


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
    tokenizer, held = tokenizer_of(model), is_held(split)
    whole_words(tokenizer, (situations.DECLINED, situations.AGREED), "replies")

    def draw(source: random.Random) -> Row | None:
        topic, frame = situations.draw_request(source, held, declined=True)
        other, same = situations.draw_request(source, held, declined=False)
        if frame != same:
            return None
        clean, corrupt = (situations.request(word, frame) for word in (topic, other))
        return clean, corrupt, f" {situations.DECLINED}", f" {situations.AGREED}"

    return collect(tokenizer, "refusal", draw, n, seed)
