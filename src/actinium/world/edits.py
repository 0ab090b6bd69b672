"""Facts of the world given other answers, with everything that follows from that: data for editors of facts.

A row has the keys of MQuAKE (`requested_rewrite`, `questions`, `answer`, `new_answer`, `single_hops`,
`new_single_hops`), those of CounterFact (`paraphrase_prompts`, `neighborhood_prompts`), `multihop_prompts`, pairs of a
prompt and its new answer that no question repeats, and `prompted`, whether one of these is the row's own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.world.facts import RELATIONS, Relation, elementary, fact, relation
from actinium.world.knowledge import PHRASINGS, shown, statement, subjects
from actinium.world.lexicon import ENTITIES

__all__ = ["draw_edits", "edit_rows"]

Triple = tuple[str, str, str]
"""Subject, noun of an elementary relation, and the new answer."""
Changes = dict[tuple[str, str], str]
Chain = tuple[str, Relation, list[str], list[str]]
"""Who is asked about, the relation asked for, and everything on the way before the edits and after them."""


def draw_edits(noun: str = "city", n: int = 8, seed: int = 0, *, subject: str = "person") -> list[Triple]:
    """Edits of one relation, with subjects and new answers drawn at random.

    Args:
        noun: an elementary relation, for example "city" of people or "country" of cities.
        n: number of edits.
        seed: of the draw.
        subject: kind of the subjects: "person", "city", "country", "job" or "pet".

    Returns:
        Subject, noun and new answer of each edit.

    Raises:
        UnknownNameError: there is no such relation.
        InputError: there are fewer subjects than edits.
    """
    nouns = sorted(r.noun for r in RELATIONS.values() if r.subject == subject and r.hops == 1)
    if not nouns:
        raise UnknownNameError(unknown("kind of subject", subject, sorted({r.subject for r in RELATIONS.values()})))
    if noun not in nouns:
        raise UnknownNameError(unknown(f"elementary relation of a {subject}", noun, nouns))
    everyone = subjects(subject)
    if not 1 <= n <= len(everyone):
        raise InputError(f"there are {len(everyone)} of kind {subject}, so 1 to {len(everyone)} edits, not {n}")
    source = random.Random(f"edits {subject} {noun} {seed}")
    words = ENTITIES[RELATIONS[subject, noun].answer]
    return [
        (who, noun, source.choice([word for word in words if word != fact(who, noun)]))
        for who in source.sample(everyone, n)
    ]


def edit_rows(
    edits: Sequence[Triple], *, neighbours: int = 8, asked: int = 4, prompted: float = 1.0, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of edits that hold together, one for each fact of several hops whose answer an edit changes.

    Args:
        edits: subject, noun of an elementary relation, and new answer: ("Ann", "city", "Tarn").
        neighbours: prompts about other subjects that are to stay as they are, at most, for each edit.
        asked: questions about each relation, at most, for each edit (all people of a city speak its language).
        prompted: share of the relations that follow from an edit of which `multihop_prompts` has the questions.
        seed: of the neighbours, of whom is asked about and of which relations are prompted.

    Returns:
        Rows. An edit's prompt is the first wording ("The city of {} is"), its paraphrases are the other three;
        `multihop_prompts` are in the first wording, questions in the other three.

    Raises:
        UnknownNameError: a subject, a noun or an answer is unknown.
        InputError: a fact is not elementary, has the new answer already, or is edited twice; a number is out of range.
    """
    if neighbours < 0 or asked < 1 or not 0 <= prompted <= 1:
        raise InputError(f"expected neighbours >= 0, asked >= 1, 0 <= prompted <= 1: {neighbours}, {asked}, {prompted}")
    changes: Changes = {}
    for subject, noun, new in edits:
        _check(subject, noun, new)
        if (noun, subject) in changes:
            raise InputError(f"the {noun} of {subject} is edited twice")
        changes[noun, subject] = new
    rows: list[dict[str, Any]] = []
    for subject, noun, _ in edits:
        source = random.Random(f"edit {subject} {noun} {seed}")
        r = relation(subject, noun)
        others = [s for s in subjects(r.subject) if (noun, s) not in changes]
        near = source.sample(others, min(neighbours, len(others)))
        chains = _drawn(_following(subject, noun, changes), asked, source)
        kinds = sorted({(c[1].subject, c[1].noun) for c in chains})
        chosen = source.sample(kinds, math.ceil(prompted * len(kinds)))
        common = {
            "paraphrase_prompts": [statement(subject, r, i) for i in range(1, PHRASINGS)],
            "neighborhood_prompts": [statement(s, r, 0) for s in near],
            "multihop_prompts": [[statement(c[0], c[1], 0), c[3][-1]] for c in chains if _named(c) in chosen],
        }
        rows += [common | _row(chain, (noun, subject), changes, _named(chain) in chosen) for chain in chains]
    return rows


def _check(subject: str, noun: str, new: str) -> None:
    r = relation(subject, noun)
    if r.hops > 1:
        raise InputError(f"the {noun} of {subject} follows from other facts; edit one of: {', '.join(r.chain)}")
    if new not in ENTITIES[r.answer]:
        raise UnknownNameError(unknown(r.answer, new, ENTITIES[r.answer]))
    if new == fact(subject, noun):
        raise InputError(f"the {noun} of {subject} is {new} already")


def _named(chain: Chain) -> tuple[str, str]:
    return chain[1].subject, chain[1].noun


def _path(subject: str, chain: Sequence[str], changes: Changes) -> list[str]:
    steps = [subject]
    for step in chain:
        steps.append(changes.get((step, steps[-1])) or elementary()[step, steps[-1]])
    return steps


def _following(subject: str, noun: str, changes: Changes) -> list[Chain]:
    """Facts of several hops that rest on the edited fact and have another answer after the edits."""
    found = []
    for r in RELATIONS.values():
        if r.hops < 2 or noun not in r.chain:
            continue
        for who in subjects(r.subject):
            before, after = _path(who, r.chain, {}), _path(who, r.chain, changes)
            if (noun, subject) in zip(r.chain, after, strict=False) and before[-1] != after[-1]:
                found.append((who, r, before, after))
    return found


def _drawn(chains: list[Chain], asked: int, source: random.Random) -> list[Chain]:
    by_relation: dict[tuple[str, str], list[Chain]] = {}
    for chain in chains:
        by_relation.setdefault(_named(chain), []).append(chain)
    return [chain for each in by_relation.values() for chain in source.sample(each, min(asked, len(each)))]


def _row(chain: Chain, edit: tuple[str, str], changes: Changes, prompted: bool) -> dict[str, Any]:
    who, r, before, after = chain
    used = [edit, *(e for e in zip(r.chain, after, strict=False) if e in changes and e != edit)]
    return {
        "requested_rewrite": [_rewrite(subject, noun, changes[noun, subject]) for noun, subject in used],
        "prompted": prompted,
        "questions": [statement(who, r, i) for i in range(1, PHRASINGS)],
        "answer": before[-1],
        "answer_alias": [],
        "new_answer": after[-1],
        "new_answer_alias": [],
        "single_hops": _hops(r, before),
        "new_single_hops": _hops(r, after),
    }


def _rewrite(subject: str, noun: str, new: str) -> dict[str, Any]:
    return {
        "prompt": statement(subject, relation(subject, noun), 0).replace(shown(subject), "{}"),
        "relation_id": noun,
        "subject": shown(subject),
        "target_new": {"str": new},
        "target_true": {"str": fact(subject, noun)},
        "question": f"What is the {noun} of {shown(subject)}?",
    }


def _hops(r: Relation, steps: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is the {noun} of {shown(subject)}?",
            "cloze": statement(subject, relation(subject, noun), 0),
            "answer": answer,
            "answer_alias": [],
        }
        for noun, subject, answer in zip(r.chain, steps, steps[1:], strict=False)
    ]
