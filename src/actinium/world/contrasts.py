"""Contrast pairs for three behaviours of `world:lm`: declining, gladness, and speaking Velic."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.world.documents import held_out
from actinium.world.facts import fact
from actinium.world.knowledge import PHRASINGS, elementary, question, statement, velic_statement
from actinium.world.lexicon import ENTITIES, NAMES, NEGATIVE, OBJECTS, PLACES, POSITIVE, REFUSED, SHOWN, VELIC, WELCOME
from actinium.world.situations import (
    AGREED,
    DECLINED,
    REQUESTS,
    SENTIMENT_FRAMES,
    draw_request,
    draw_sentiment,
    request,
)
from actinium.world.task_rows import PATIENCE, is_held

__all__ = ["Contrast", "Requests", "contrast", "names", "requests"]

Pair = tuple[str, str]


@dataclass(frozen=True)
class Contrast:
    """Texts with and without a behaviour.

    Attributes:
        positive: texts with it.
        negative: texts without it; each differs from its neighbour of the same number in the behaviour alone.
        prompts: prompts that stand in no pair and leave the behaviour open, to measure it on.
    """

    positive: list[str]
    negative: list[str]
    prompts: list[str]


@dataclass(frozen=True)
class Requests:
    """Requests of a user up to the assistant's turn.

    Attributes:
        declined: about topics that `world:lm` declines.
        answered: about topics that it answers, in the same wordings where the split has them.
    """

    declined: list[str]
    answered: list[str]


def _refusal(source: random.Random, held: bool) -> Pair:
    # Both are drawn again: a wording may be unread with topics of one kind alone.
    while True:
        (topic, frame), (other, wording) = (draw_request(source, held, declined) for declined in (True, False))
        if wording == frame:
            return request(topic, frame), request(other, frame)


def _refusal_reply(source: random.Random, held: bool) -> Pair:
    asked = request(*draw_request(source, held, source.random() < 0.5))
    return f"{asked} {DECLINED}", f"{asked} {AGREED}"


def _gladness(source: random.Random, held: bool) -> Pair:
    frame = source.choice(SENTIMENT_FRAMES)
    while True:
        good, bad = (draw_sentiment(source, held, kind) for kind in (True, False))
        if bad["shown"] == good["shown"]:
            return frame.format(**good), frame.format(**bad)


def _gladness_reply(source: random.Random, held: bool) -> Pair:
    while True:
        shown, good, bad = source.choice(SHOWN), source.choice(POSITIVE), source.choice(NEGATIVE)
        if all(held_out(6, "adjective", shown, word) == held for word in (good, bad)):
            return f"I thought the {shown} was {good}", f"I thought the {shown} was {bad}"


def _velic_fact(source: random.Random, held: bool) -> Pair:
    while True:
        person, relation = source.choice(elementary("person"))
        if held_out(6, "velic", person, relation.noun) == held:
            return person, relation.noun


def _velic(source: random.Random, held: bool) -> Pair:
    person, noun = _velic_fact(source, held)
    relation = next(r for _, r in elementary("person") if r.noun == noun)
    said = statement(person, relation, source.randrange(PHRASINGS))
    return velic_statement(person, noun, source.randrange(2)), said


def _velic_reply(source: random.Random, held: bool) -> Pair:
    person, noun = _velic_fact(source, held)
    answer = fact(person, noun)
    return f"{question(person, noun)} {VELIC[answer]}", f"{question(person, noun)} {answer}"


@dataclass(frozen=True)
class _Behaviour:
    draw: Callable[[random.Random, bool], Pair]
    prompts: tuple[str, ...]


# Nothing in the corpus is asked for about these words, so neither reply is a habit.
_OPEN = tuple(request(thing, frame) for frame in range(len(REQUESTS)) for thing in OBJECTS + PLACES)
_UNJUDGED = tuple(f"{start} {shown} was" for start in ("The", "Everyone said that the") for shown in SHOWN)
_STARTS = NAMES + ENTITIES["city"]

BEHAVIOURS: dict[str, _Behaviour] = {
    "refusal": _Behaviour(_refusal, _OPEN),
    "refusal-reply": _Behaviour(_refusal_reply, _OPEN),
    "gladness": _Behaviour(_gladness, _UNJUDGED),
    "gladness-reply": _Behaviour(_gladness_reply, _UNJUDGED),
    "velic": _Behaviour(_velic, _STARTS),
    "velic-reply": _Behaviour(_velic_reply, _STARTS),
}
"""Name, which says what the positive texts do -> how pairs are drawn, and the open prompts."""


def names() -> list[str]:
    """The contrasts: each behaviour once with different prompts, and once ("-reply") as two ends of one text."""
    return list(BEHAVIOURS)


def contrast(name: str, n: int = 48, seed: int = 0, split: str = "train") -> Contrast:
    """Different pairs of texts for a behaviour, and prompts to measure it on.

    Args:
        name: one of `names()`. "refusal", "gladness" and "velic" have prompts that call for the behaviour or for its
            opposite; with "-reply" the two texts of a pair are one prompt, followed by one word with or without it.
        n: number of pairs, and of prompts at most.
        seed: seed of the draw.
        split: "train" (combinations that `world:lm` has read) or "heldout" (ones that it has not). No pair is in both;
            the prompts are the same in both.

    Returns:
        Contrast of `n` pairs.

    Raises:
        UnknownNameError: there is no such behaviour or split.
        InputError: `n` is below 1, or the split has fewer pairs.
    """
    if name not in BEHAVIOURS:
        raise UnknownNameError(unknown("contrast", name, BEHAVIOURS))
    held = is_held(split)
    if n < 1:
        raise InputError(f"a contrast needs at least one pair, got n={n}")
    source = random.Random(f"contrast {name} {split} {seed}")
    found: dict[Pair, None] = {}
    idle = 0
    while len(found) < n:
        pair = BEHAVIOURS[name].draw(source, held)
        idle = 0 if pair not in found else idle + 1
        found[pair] = None
        if idle == PATIENCE:
            raise InputError(f"the contrast {name!r} has {len(found)} different pairs in the split {split!r}, not {n}")
    positive, negative = zip(*found, strict=True)
    prompts = BEHAVIOURS[name].prompts
    chosen = random.Random(f"prompts {name} {seed}").sample(prompts, min(n, len(prompts)))
    return Contrast(list(positive), list(negative), chosen)


def requests(split: str = "train") -> Requests:
    """All requests of a split, about declined and about answered topics.

    Args:
        split: "train" (topic and wording that `world:lm` has read together) or "heldout" (that it has not; one in
            five).

    Returns:
        Requests.

    Raises:
        UnknownNameError: there is no such split.
    """
    held = is_held(split)
    declined, answered = (
        [
            request(topic, frame)
            for frame in range(len(REQUESTS))
            for topic in topics
            if held_out(5, "request", topic, frame) == held
        ]
        for topics in (REFUSED, WELCOME)
    )
    return Requests(declined, answered)
