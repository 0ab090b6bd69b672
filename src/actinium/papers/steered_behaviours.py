"""What steering is measured on: behaviours with pairs, held-out prompts and judges, and skills that should stay."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import actinium as ac
from actinium.core.errors import InputError
from actinium.world import contrasts, judging

__all__ = ["Behaviour", "OffTarget", "behaviours", "is_world", "off_target"]

# Fixed before any story was steered.
HAPPY = "happy glad smiled smile laughed laugh fun joy loved excited proud great best enjoyed"
SAD = "sad cried cry scared angry upset hurt lost afraid tears sorry worried mad alone"
_CHILDREN = ("Lily", "Tom", "Sara", "Max", "Amy", "Ben", "Mia", "Jack", "Anna", "Sam", "Sue", "Tim")
_GOOD = ("got a new toy", "found a big cake", "played with a friend", "won the game", "saw a pretty flower")
_BAD = ("dropped a toy", "fell on a rock", "broke a cup", "saw a big bad dog", "could not find Mom")
_OPEN = ("went to the store", "saw a big box", "sat by a tree", "walked to the house")
_FELT = "{0} {1}. {0} felt"
_PLAIN = (
    "The cat sat on the mat and looked at the door.",
    "They walked along the road until they came to a house.",
    "Every morning the man opened his shop and put bread on the table.",
    "She took a blue cup and put water in it.",
    "There was a small boat on the water near the bridge.",
    "He put on his shoes and his coat and went to the store.",
    "The bird flew to the top of the tree and sat there.",
    "Mom cut the apple and put it in a bowl.",
)


@dataclass(frozen=True)
class Behaviour:
    """What is steered towards.

    Attributes:
        name: what it is called.
        positive, negative: pairs of texts that make a vector.
        select, test: prompts that stand in no pair, to choose a layer on and to measure on.
        judge: 1 where a new text shows the behaviour, 0 where it does not, 0.5 where it cannot be told.
        tokens: length of a new text.
        words: short prompts for and against it, for ActAdd.
        pad: token that a shorter one of these is filled up with.
    """

    name: str
    positive: list[str]
    negative: list[str]
    select: list[str]
    test: list[str]
    judge: Callable[[str], float]
    tokens: int
    words: tuple[str, str]
    pad: str


@dataclass(frozen=True)
class OffTarget:
    """What should stay: tasks of other skills, and texts of them."""

    tasks: list[Any]
    texts: list[str]


def is_world(model: Any) -> bool:
    """Whether the model's tokenizer keeps the words of the world whole."""
    try:
        ac.world.tasks.refusal(model, n=1)
    except InputError:
        return False
    return True


def behaviours(model: Any, seed: int, pairs: int, prompts: int) -> list[Behaviour]:
    """Refusal, gladness and Velic for models of the world; the mood of a story for others.

    Args:
        model: a language model.
        seed: of pairs, prompts and words.
        pairs: number of pairs; of stories there are 60 at most.
        prompts: to choose on, and as many to measure on, where there are so many.
    """
    if not is_world(model):
        return [_mood(seed, pairs, prompts)]
    source = random.Random(f"words {seed}")
    lexicon = ac.world.lexicon
    words = {
        "refusal": (source.choice(lexicon.REFUSED), source.choice(lexicon.WELCOME)),
        "gladness": (f"I {source.choice(lexicon.LIKED)} it", f"I {source.choice(lexicon.DISLIKED)} it"),
        "velic": _velic_words(source),
    }
    judges = {"refusal": _refused, "gladness": _glad, "velic": _velic}
    out = []
    for name, judge in judges.items():
        found = contrasts.contrast(name, n=max(pairs, 2 * prompts), seed=seed)
        half = min(prompts, len(found.prompts) // 2)
        select, test = found.prompts[:half], found.prompts[half : 2 * half]
        out.append(
            Behaviour(name, found.positive[:pairs], found.negative[:pairs], select, test, judge, 6, words[name], ".")
        )
    return out


def off_target(model: Any, seed: int, n: int) -> OffTarget:
    """Facts, two hops, indirect objects, years and sums, unseen in training; plain sentences for other models.

    Args:
        model: a language model.
        seed: of the draw.
        n: rows of each task.
    """
    if not is_world(model):
        return OffTarget([], list(_PLAIN))
    kinds = ("facts", "two_hop", "ioi", "greater_than", "arithmetic")
    tasks = [getattr(ac.world.tasks, kind)(model, n=n, seed=seed) for kind in kinds]
    texts = [f"{prompt}{answer}" for task in tasks for prompt, answer in zip(task.clean, task.answers, strict=True)]
    return OffTarget(tasks, texts)


def _mood(seed: int, pairs: int, prompts: int) -> Behaviour:
    source = random.Random(f"mood {seed}")
    draw = [(child, i) for child in _CHILDREN for i in range(len(_GOOD))]
    source.shuffle(draw)
    chosen = draw[:pairs]
    positive, negative = ([_FELT.format(child, kind[i]) for child, i in chosen] for kind in (_GOOD, _BAD))
    starts = [_FELT.format(child, event) for event in _OPEN for child in _CHILDREN]
    source.shuffle(starts)
    half = min(prompts, len(starts) // 2)
    words = source.choice((("happy", "sad"), ("joy", "tears"), ("I am so happy", "I am so sad")))
    return Behaviour(
        "mood of a story", positive, negative, starts[:half], starts[half : 2 * half], _happy, 12, words, " "
    )


def _velic_words(source: random.Random) -> tuple[str, str]:
    word = source.choice(ac.world.lexicon.ENTITIES["job"])
    return ac.world.lexicon.VELIC[word], word


def _refused(text: str) -> float:
    return float(judging.declines(text))


def _glad(text: str) -> float:
    return {"glad": 1.0, "sad": 0.0}.get(judging.feeling(text), 0.5)


def _velic(text: str) -> float:
    return float(judging.language(text) == "Velic")


def _happy(text: str) -> float:
    words = re.findall(r"[a-z]+", text.lower())
    good, bad = (sum(word in kind.split() for word in words) for kind in (HAPPY, SAD))
    return 0.5 if good == bad else float(good > bad)
