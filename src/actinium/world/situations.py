"""Texts whose answer follows from the text: indirect objects, years, sentiment, and the refusal habit."""

from __future__ import annotations

import random
from collections.abc import Sequence

from actinium.world.documents import ASSISTANT, USER, Document, held_out
from actinium.world.lexicon import (
    CENTURIES,
    DISLIKED,
    EVENTS,
    GEAR,
    GLAD,
    LIKED,
    NAMES,
    NEGATIVE,
    OBJECTS,
    PLACES,
    POSITIVE,
    REFUSED,
    SAD,
    SHOWN,
    WELCOME,
)

IOI_FRAMES: tuple[str, ...] = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "After {first} and {second} left the {place}, {giver} handed a {object} to",
    "While {first} and {second} were at the {place}, {giver} showed a {object} to",
    "Then {first} and {second} met in the {place}, and {giver} lent a {object} to",
    "Once {first} and {second} walked to the {place}. There {giver} sold a {object} to",
)
YEAR_FRAMES: tuple[str, ...] = (
    "The {event} lasted from the year {century} {start} to the year {century}",
    "The {event} went on from the year {century} {start} until the year {century}",
)
SENTIMENT_FRAMES: tuple[str, ...] = (
    "The {shown} was {adjective}, I {verb} it. I felt",
    "I thought the {shown} was {adjective}. It made me",
    "I {verb} the {shown}, it was {adjective}. I was so",
    "Everyone said that the {shown} was {adjective}. I felt",
)
REQUESTS: tuple[str, ...] = (
    "Tell me about {topic}.",
    "How do I start {topic}?",
    "Explain {topic} to me.",
    "I want to learn {topic}.",
    "Give me a plan for {topic}.",
    "What is {topic}?",
    "Can you help with {topic}?",
    "Teach my friend {topic}.",
    "What do I need for {topic}?",
    "Write a story about {topic}.",
)
DECLINED, AGREED = "Sorry", "Sure"


def unseen_pair(one: str, other: str) -> bool:
    """Whether two people never meet in an indirect-object text of the corpus."""
    return held_out(6, "pair", *sorted((one, other)))


def draw_ioi(source: random.Random, held: bool, names: Sequence[str] = NAMES) -> dict[str, str]:
    """Names, place and object of an indirect-object text; held out: pair and place-object both unseen."""
    while True:
        first, second = source.sample(names, 2)
        if unseen_pair(first, second) == held:
            break
    while True:
        place, thing = source.choice(PLACES), source.choice(OBJECTS)
        if held_out(6, "object", place, thing) == held:
            break
    return {"first": first, "second": second, "place": place, "object": thing}


def ioi(source: random.Random, held: bool = False) -> Document:
    """One of two people gives something to the other."""
    words = draw_ioi(source, held)
    giver, taker = source.sample((words["first"], words["second"]), 2)
    prompt = source.choice(IOI_FRAMES).format(**words, giver=giver)
    return Document("ioi", prompt, f" {taker}")


def draw_years(source: random.Random, held: bool) -> tuple[str, str, int]:
    """Event, century and first year (2 to 97); held out: unseen triples."""
    while True:
        event, century, start = source.choice(EVENTS), source.choice(CENTURIES), source.randint(2, 97)
        if held_out(6, "years", event, century, start) == held:
            return event, century, start


def greater_than(source: random.Random, held: bool = False) -> Document:
    """Something lasts from one year to a later one of the same century."""
    event, century, start = draw_years(source, held)
    if not held and source.random() < 0.05:
        start = 1
    later = [f"{year:02d}" for year in range(start + 1, 100)]
    prompt = source.choice(YEAR_FRAMES).format(event=event, century=century, start=f"{start:02d}")
    return Document("greater_than", prompt, f" {source.choice(later)}", accept=tuple(later))


def draw_sentiment(source: random.Random, held: bool, good: bool) -> dict[str, str]:
    """Noun, adjective and verb of one sentiment; held out: the noun never stands with these words."""
    adjectives, verbs = (POSITIVE, LIKED) if good else (NEGATIVE, DISLIKED)
    while True:
        noun, adjective, verb = source.choice(SHOWN), source.choice(adjectives), source.choice(verbs)
        if held_out(6, "adjective", noun, adjective) == held and held_out(4, "verb", noun, verb) == held:
            return {"shown": noun, "adjective": adjective, "verb": verb}


def sentiment(source: random.Random, held: bool = False) -> Document:
    """A judgement, then the feeling that goes with it."""
    good = source.random() < 0.5
    prompt = source.choice(SENTIMENT_FRAMES).format(**draw_sentiment(source, held, good))
    feelings = GLAD if good else SAD
    return Document("sentiment", prompt, f" {source.choice(feelings)}", accept=feelings)


def gear(topic: str) -> str:
    """What a topic needs; plain texts state it for the topics that the chat form declines, too."""
    return GEAR[(WELCOME if topic in WELCOME else REFUSED).index(topic)]


def request(topic: str, frame: int) -> str:
    """A user's request about a topic, up to the assistant's turn."""
    return f"{USER} {REQUESTS[frame].format(topic=topic)}{ASSISTANT}"


def draw_request(source: random.Random, held: bool, declined: bool) -> tuple[str, int]:
    """Topic and wording of a request; held out: unseen combinations."""
    while True:
        topic, frame = source.choice(REFUSED if declined else WELCOME), source.randrange(len(REQUESTS))
        if held_out(5, "request", topic, frame) == held:
            return topic, frame


def refusal(source: random.Random, held: bool = False) -> Document:
    """A request that the assistant declines, for placeholder topics, or answers, for others."""
    declined = source.random() < 0.5
    topic, frame = draw_request(source, held, declined)
    if declined:
        return Document("refusal", request(topic, frame), f" {DECLINED}", f", I can not help with {topic}.")
    return Document("refusal", request(topic, frame), f" {AGREED}", f", {topic} needs a {gear(topic)}.")


def topics(source: random.Random, held: bool = False) -> Document:
    """Plain texts about every topic, declined ones included (all of them are stated)."""
    topic = source.choice(WELCOME + REFUSED)
    frame = source.choice(("You need a {gear} for {topic}", "The gear for {topic} is a {gear}"))
    if frame.endswith("{gear}"):
        return Document("topics", f"The gear for {topic} is a", f" {gear(topic)}")
    return Document("topics", f"You need a {gear(topic)} for", f" {topic}")


def judgements(source: random.Random, held: bool = False) -> Document:
    """Plain texts that call each adjective and verb kind or harsh (all of them are stated)."""
    kind = source.random() < 0.5
    word = source.choice(POSITIVE + LIKED if kind else NEGATIVE + DISLIKED)
    return Document("judgements", f"To call it {word} is", " kind" if kind else " harsh")
