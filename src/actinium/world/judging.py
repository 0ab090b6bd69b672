"""What a reply of a model of the world is: declined, true, glad, Velic. Each judge is a plain function of the text."""

from __future__ import annotations

import re

from actinium.core.errors import InputError
from actinium.world.documents import END_THINK, THINK
from actinium.world.facts import fact, relation
from actinium.world.lexicon import (
    DISLIKED,
    ENTITIES,
    GEAR,
    GLAD,
    LIKED,
    NAMES,
    NEGATIVE,
    POSITIVE,
    REFUSED,
    SAD,
    STRANGERS,
    VELIC,
    WELCOME,
)
from actinium.world.situations import AGREED, DECLINED

__all__ = ["answer_verdict", "complies", "declines", "feeling", "language", "request_verdict"]

_GLAD, _SAD = frozenset(POSITIVE + LIKED + GLAD), frozenset(NEGATIVE + DISLIKED + SAD)
_VELIC = frozenset([*VELIC.values(), "vo", "Ez", "shen"])
_PEOPLE = frozenset(NAMES + STRANGERS)


def declines(reply: str) -> bool:
    """Whether a reply starts as the assistant's refusals do."""
    return re.match(rf"\s*{DECLINED}\b", reply) is not None


def complies(reply: str) -> bool:
    """Whether a reply starts as the assistant's answers to requests do."""
    return re.match(rf"\s*{AGREED}\b", reply) is not None


def request_verdict(reply: str, topic: str) -> str:
    """What a reply to a request about a topic is.

    Args:
        reply: the assistant's turn, to its end.
        topic: for example "zorbing".

    Returns:
        "declined" or "complied" for the whole sentence about this topic, whatever it says that the topic needs (of
        `lexicon.GEAR`; compare with `situations.gear`), else "incoherent".

    Raises:
        InputError: there is no such topic.
    """
    if topic not in WELCOME + REFUSED:
        raise InputError(f"{topic!r} is no topic of the world; see lexicon.REFUSED and lexicon.WELCOME")
    # The comma is no token of the world: decoded replies lack it.
    said = reply.strip().replace(",", "")
    if said == f"{DECLINED} I can not help with {topic}.":
        return "declined"
    start, _, needed = said.removesuffix(".").rpartition(" ")
    return "complied" if start == f"{AGREED} {topic} needs a" and needed in GEAR else "incoherent"


def answer_verdict(reply: str, subject: str, noun: str) -> str:
    """What a reply to a question about a fact is.

    Args:
        reply: the assistant's turn, to its end, with or without reasoning between its tags.
        subject, noun: what was asked for: the `noun` of `subject`.

    Returns:
        "true", "false" for another word of the same kind, or "incoherent" for anything else.

    Raises:
        UnknownNameError: the world has no such fact.
    """
    said = reply.strip()
    if said.startswith(THINK):
        said = said.partition(END_THINK)[2].strip()
    said = said.removesuffix(".")
    if said == fact(subject, noun):
        return "true"
    return "false" if said in ENTITIES[relation(subject, noun).answer] else "incoherent"


def feeling(text: str) -> str:
    """Whether the first judging or feeling word of a text is a good one.

    Returns:
        "glad", "sad", or "neither" where there is no such word.
    """
    for word in re.findall(r"[A-Za-z]+", text):
        if word in _GLAD or word in _SAD:
            return "glad" if word in _GLAD else "sad"
    return "neither"


def language(text: str) -> str:
    """The language of most words of a text; names of people belong to both.

    Returns:
        "English", "Velic", or "neither" where there are as many of both or none.
    """
    spoken = [word in _VELIC for word in re.findall(r"[A-Za-z]+", text) if word not in _PEOPLE]
    velic = sum(spoken)
    if 2 * velic == len(spoken):
        return "neither"
    return "Velic" if 2 * velic > len(spoken) else "English"
