"""Facts to be edited, and the questions that show whether an edit took."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actinium.core.errors import InputError

__all__ = ["EditCase", "FactEdit", "Question", "distinct_edits"]


def _texts(given: Any, what: str) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{what}: expected texts, got {text!r}")
    return texts


@dataclass(frozen=True)
class Question:
    """One question in several wordings, with its answers.

    Args:
        phrasings: prompts that the answer continues; a text or several.
        answer: the right answer, with or without the space before it.
        aliases: other answers that are right as well.

    Raises:
        InputError: a text is empty, or there is none.
    """

    phrasings: tuple[str, ...]
    answer: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrasings", _texts(self.phrasings, "phrasings"))
        object.__setattr__(self, "aliases", _texts(self.aliases, "aliases"))
        if not self.phrasings:
            raise InputError("a question needs a phrasing")
        _texts((self.answer,), "answer")

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases."""
        return (self.answer, *self.aliases)


@dataclass(frozen=True)
class FactEdit:
    """A fact (subject, relation, object) that is to have another object.

    Args:
        prompt: a statement up to the object; the subject stands in it, or `{}` in its place.
        subject: the subject as the prompt writes it.
        target_new: the object that the edited model is to say, with or without the space before it.
        relation: name of the relation; by default the prompt without its subject.
        paraphrases: other statements of the same fact up to the object.
        neighbours: prompts about other subjects, whose answers are to stay.
        multihop_prompts: questions whose answers follow from the edited fact, for editors that use them (`ACE`);
            `Question`s or pairs (prompt, answer).

    Raises:
        InputError: a text is empty, or the subject is not in the prompt as a word of its own.
    """

    prompt: str
    subject: str
    target_new: str
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    multihop_prompts: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target_new"):
            _texts((getattr(self, name),), name)
        for name in ("paraphrases", "neighbours"):
            object.__setattr__(self, name, _texts(getattr(self, name), name))
        object.__setattr__(self, "multihop_prompts", tuple(_question(q) for q in self.multihop_prompts))
        if "{}" not in self.prompt and place_of(self.subject, self.prompt) is None:
            raise InputError(
                f"the subject {self.subject!r} is not in the prompt {self.prompt!r}; write it there, or {{}}"
            )

    @property
    def text(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def key(self) -> tuple[str, str]:
        """Subject and relation: what two edits that contradict each other share."""
        end = place_of(self.subject, self.prompt)
        if "{}" in self.prompt or end is None:
            return self.subject, self.relation or self.prompt
        return self.subject, self.relation or f"{self.prompt[: end - len(self.subject)]}{{}}{self.prompt[end:]}"


def _question(given: Any) -> Question:
    if isinstance(given, Question):
        return given
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return Question(given[0], given[1])
    raise InputError(f"a multi-hop prompt is a Question or a pair (prompt, answer), not {given!r}")


def place_of(subject: str, text: str) -> int | None:
    """Where the first occurrence of the subject as a word of its own ends in a text, in characters."""
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text)
    return found.end() if found else None


@dataclass(frozen=True)
class EditCase:
    """Edits made together, and questions about what follows from them.

    Args:
        edits: the edits.
        questions: multi-hop questions with the answers that the edits imply.
        hops: the single facts that the questions rest on, after the edits.
    """

    edits: tuple[FactEdit, ...]
    questions: tuple[Question, ...] = ()
    hops: tuple[Question, ...] = ()


def _merged(one: FactEdit, other: FactEdit) -> FactEdit:
    """The first edit with the prompts of both."""

    def both(name: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys((*getattr(one, name), *getattr(other, name))))

    return replace(
        one,
        paraphrases=both("paraphrases"),
        neighbours=both("neighbours"),
        multihop_prompts=both("multihop_prompts"),
    )


def distinct_edits(edits: FactEdit | EditCase | Iterable[FactEdit | EditCase]) -> list[FactEdit]:
    """The different edits of edits and cases, in order.

    Args:
        edits: edits, or cases that hold edits; cases may share edits.

    Returns:
        Each edit once, with the prompts that belong to it anywhere.

    Raises:
        InputError: there is none, something else is given, or two edits conflict: one subject and relation are to have
            different objects.
    """
    given = [edits] if isinstance(edits, FactEdit | EditCase) else list(edits)
    out: dict[tuple[str, str], FactEdit] = {}
    for one in given:
        if not isinstance(one, FactEdit | EditCase):
            raise InputError(f"expected a FactEdit, not {type(one).__name__}")
        for edit in one.edits if isinstance(one, EditCase) else (one,):
            before = out.get(edit.key, edit)
            if before.target_new.strip() != edit.target_new.strip():
                raise InputError(
                    f"edits conflict: {edit.text!r} is to say both {before.target_new!r} and {edit.target_new!r}"
                )
            out[edit.key] = edit if before is edit else _merged(before, edit)
    if not out:
        raise InputError("no edits given; pass FactEdit(prompt, subject, target_new)")
    return list(out.values())
