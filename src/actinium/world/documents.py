"""What the corpus is made of: short texts that know which part of them is the answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

USER, ASSISTANT, THINK, END_THINK = "<user>", "<assistant>", "<think>", "</think>"


@dataclass(frozen=True)
class Document:
    """One text of a skill.

    Args:
        skill: the skill that the text exercises.
        prompt: everything before the answer.
        answer: what the model is asked for; starts with a space or a tag.
        rest: what follows the answer.
        accept: other answers of one word that are right as well, without the leading space.
    """

    skill: str
    prompt: str
    answer: str
    rest: str = "."
    accept: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.answer + self.rest


def held_out(share: int, *key: object) -> bool:
    """Whether a combination belongs to the held-out part: about one in `share`, fixed for all time."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % share == 0


def choice_of(count: int, *key: object) -> int:
    """A number below `count` that is fixed by the key."""
    digest = hashlib.blake2b("|".join(map(str, ("choice", *key))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count
