"""Steps and statements to probe with: gold chains, wrong steps one edit away, and quadruples for equivalence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.puzzle_clues import RELATIONS, Knowledge, PuzzleClue, Space
from actinium.probes.puzzle_elimination import Deduction, eliminate
from actinium.probes.puzzle_search import knowledge
from actinium.probes.puzzle_verifier import write_step

__all__ = [
    "EDITS",
    "LabelledStep",
    "Quadruple",
    "equivalence_quadruples",
    "gold_chain",
    "minimal_edits",
    "solution_text",
    "step_dataset",
]

EDITS = ("entity", "slot", "relation", "negate")
BALANCES = ("claim", "relation", "none")
# How the near statement of a quadruple differs: by another relation on the same entities, or by another order of them.
NEAR = {
    "left_of": "right_of",
    "right_of": "left_of",
    "between": "",
    "adjacent": "not_adjacent",
    "not_adjacent": "adjacent",
}
CONVERSE = {"left_of": "right_of", "right_of": "left_of"}


@dataclass(frozen=True)
class LabelledStep:
    """A step behind its puzzle and the gold steps before it.

    Args:
        group: number of the puzzle: rows of one group belong on one side of a split.
        prompt: the puzzle's text and the steps before, with the newline.
        text: the step's line.
        claim: what it claims.
        correct: whether the clues entail it.
        edit: "gold", or how it differs from the gold step in its place, see `minimal_edits`.
        index: number of steps before it.
    """

    group: int
    prompt: str
    text: str
    claim: PuzzleClue
    correct: bool
    edit: str
    index: int


@dataclass(frozen=True)
class Quadruple:
    """Four statements about one puzzle, whatever its clues say of them.

    Args:
        group: number of the puzzle.
        prompt: the puzzle's text, with the newline.
        texts: the statement; an equivalent one in other words; a near one that is not equivalent; an unrelated one.
        claims: the same as clues.
    """

    group: int
    prompt: str
    texts: tuple[str, str, str, str]
    claims: tuple[PuzzleClue, PuzzleClue, PuzzleClue, PuzzleClue]


def gold_chain(puzzle: ArrangementPuzzle, seed: int = 0, first: str = "at") -> list[Deduction]:
    """A correct solution by elimination, see `eliminate`.

    Raises:
        InputError: more than 8! arrangements.
        UnknownNameError: no such preference.
    """
    return eliminate(puzzle.space, puzzle.clues, seed, first)


def solution_text(
    puzzle: ArrangementPuzzle, chain: Sequence[Deduction], *, because: bool = True, seed: int | None = 0
) -> str:
    """The steps of a chain and the answer, one in a line.

    Args:
        puzzle: the puzzle.
        chain: its steps.
        because: write what each step follows from.
        seed: of the choice of paraphrases; None for the first of each.
    """
    return "\n".join([*_lines(puzzle, chain, because, seed), puzzle.answer])


def minimal_edits(space: Space, claim: PuzzleClue) -> dict[str, list[PuzzleClue]]:
    """Every claim that differs from a claim in one thing, by the name of the edit.

    "entity": one entity is another of the same attribute; "slot": another slot or distance; "relation": another
    relation with as many entities and the same kind of number; "negate": the relation's negation.
    """
    kind = RELATIONS[claim.relation]
    out: dict[str, list[PuzzleClue]] = {edit: [] for edit in EDITS}
    for i, old in enumerate(claim.entities):
        (attribute,) = (values for values in space.attributes if old in values)
        for new in attribute:
            if new not in claim.entities:
                entities = (*claim.entities[:i], new, *claim.entities[i + 1 :])
                out["entity"].append(PuzzleClue(claim.relation, entities, claim.number))
    most = {"": 0, "slot": space.n, "distance": space.n - 1}[kind.number]
    out["slot"] = [PuzzleClue(claim.relation, claim.entities, k) for k in range(1, most + 1) if k != claim.number]
    same = {name for name, other in RELATIONS.items() if (other.arity, other.number) == (kind.arity, kind.number)}
    for name in sorted(same - {claim.relation}):
        other = PuzzleClue(name, claim.entities, claim.number)
        if not RELATIONS[name].across or kind.across:
            out["negate" if name == kind.negation else "relation"].append(other)
    return out


def step_dataset(
    puzzles: Sequence[ArrangementPuzzle],
    *,
    edits: Sequence[str] = ("entity", "slot"),
    balance: str = "claim",
    because: bool = False,
    first: str = "at",
    seed: int = 0,
) -> list[LabelledStep]:
    """Correct steps of gold chains, and as many wrong ones, each one edit away from a gold step.

    A wrong step is false under the clues but possible after the steps before it, as a gold step is new after them: only
    the clues tell the two apart. It keeps the gold step's paraphrase and what it cites.

    Args:
        puzzles: puzzles; their places in the sequence are the groups.
        edits: which edits give wrong steps, see `minimal_edits`.
        balance: what is equally frequent among correct and wrong steps: the whole "claim" and the step's number (then
            the line's words say nothing, but for "because"), "relation" and number of the claim, or "none" of it
            (the classes are). Rows beyond that are left out.
        because: steps say what they follow from.
        first: which conclusions the chains prefer, see `eliminate`.
        seed: of chains, paraphrases and of what is left out.

    Raises:
        InputError: no puzzles, or no rows are left.
        UnknownNameError: no such edit, balance or preference.
    """
    for edit in edits:
        if edit not in EDITS:
            raise UnknownNameError(unknown("edit", str(edit), EDITS))
    if balance not in BALANCES:
        raise UnknownNameError(unknown("balance", str(balance), BALANCES))
    rows: list[LabelledStep] = []
    for group, puzzle in enumerate(puzzles):
        rows += _candidates(puzzle, group, gold_chain(puzzle, seed, first), edits, because, seed)
    random = Random(seed)
    keys = {
        "claim": lambda row: (row.index, row.claim),
        "relation": lambda row: (row.claim.relation, row.claim.number),
        "none": lambda row: None,
    }
    cells: dict[object, tuple[list[LabelledStep], list[LabelledStep]]] = defaultdict(lambda: ([], []))
    for row in rows:
        cells[keys[balance](row)][row.correct].append(row)
    kept: list[LabelledStep] = []
    for wrong, right in cells.values():
        size = min(len(wrong), len(right))
        kept += random.sample(wrong, size) + random.sample(right, size)
    if not kept:
        raise InputError(
            f"{len(rows)} steps of {len(puzzles)} puzzles leave none when balanced by {balance}; take more puzzles "
            "with the same entities, or a weaker balance"
        )
    return sorted(kept, key=lambda row: (row.group, row.index, row.text, row.edit))


def _lines(puzzle: ArrangementPuzzle, chain: Sequence[Deduction], because: bool, seed: int | None) -> list[str]:
    """The lines of a chain."""
    said = [puzzle.language.say(step.claim, template) for step, template in _phrased(puzzle, chain, seed)]
    cited = [(step.clues, step.steps) if because else ((), ()) for step in chain]
    return [write_step(i, text, *why) for i, (text, why) in enumerate(zip(said, cited, strict=True), 1)]


def _phrased(puzzle: ArrangementPuzzle, chain: Sequence[Deduction], seed: int | None) -> list[tuple[Deduction, int]]:
    """Each step with the number of its paraphrase."""
    random = Random(f"phrasing {seed} {puzzle.seed}")
    sizes = [len(puzzle.wording.templates[step.claim.relation]) for step in chain]
    return [(step, 0 if seed is None else random.randrange(size)) for step, size in zip(chain, sizes, strict=True)]


def _candidates(
    puzzle: ArrangementPuzzle, group: int, chain: Sequence[Deduction], edits: Sequence[str], because: bool, seed: int
) -> list[LabelledStep]:
    """Gold steps of a puzzle and everything wrong one edit away from them."""
    lines = _lines(puzzle, chain, because, seed)
    everything = Knowledge.of(puzzle.space, puzzle.clues)
    stated = Knowledge.of(puzzle.space)
    rows = []
    for i, (step, template) in enumerate(_phrased(puzzle, chain, seed)):
        prompt = "\n".join([puzzle.text, *lines[:i]]) + "\n"
        rows.append(LabelledStep(group, prompt, lines[i], step.claim, True, "gold", i))
        found: dict[PuzzleClue, str] = {}
        near = minimal_edits(puzzle.space, step.claim)
        for edit in edits:
            for claim in near[edit]:
                if claim.relation in puzzle.wording.templates:
                    found.setdefault(claim, edit)
        for claim, edit in found.items():
            if not everything.entails(claim) and not stated.contradicts(claim):
                why = (step.clues, step.steps) if because else ((), ())
                text = write_step(i + 1, puzzle.language.say(claim, template), *why)
                rows.append(LabelledStep(group, prompt, text, claim, False, edit, i))
        stated = stated.add(step.claim)
    return rows


def equivalence_quadruples(
    puzzles: Sequence[ArrangementPuzzle],
    per_puzzle: int = 2,
    *,
    relations: Sequence[str] = ("left_of", "right_of", "between"),
    seed: int = 0,
) -> list[Quadruple]:
    """Quadruples of statements: one, an equivalent one, a near one that is not, and an unrelated one.

    Of the default relations the equivalent and the near statement consist of the same words ("Bob is right of Ann",
    "Ann is right of Bob" for "Ann is left of Bob"), so neither words nor length tell which is equivalent. With
    "adjacent" and "not_adjacent" the near one has another relation; then look at the partial correlation. The
    equivalent and the near one are said with the same paraphrase, another one than the statement where there is one.
    The unrelated one neither follows from the statement nor is excluded by it, and shares as few entities with it as
    possible. Statements may be true or false in the
    puzzle; of left_of and right_of the near one has the other truth value.

    Args:
        puzzles: puzzles of three or more slots.
        per_puzzle: quadruples of each.
        relations: of the first statement.
        seed: of the choices.

    Raises:
        InputError: no puzzles, a puzzle with fewer than three slots, or per_puzzle below 1.
        UnknownNameError: a relation without an equivalent in other words.
    """
    for relation in relations:
        if relation not in NEAR:
            raise UnknownNameError(unknown("relation with an equivalent", str(relation), NEAR))
    if not puzzles or not relations or per_puzzle < 1:
        raise InputError("quadruples need puzzles, relations and per_puzzle >= 1")
    random = Random(f"quadruples {seed}")
    out = []
    for group, puzzle in enumerate(puzzles):
        if puzzle.space.n < 3:
            raise InputError(f"puzzle {group} has two slots; an unrelated statement needs a third entity")
        for _ in range(per_puzzle):
            out.append(_quadruple(puzzle, group, relations, random))
    return out


def _quadruple(puzzle: ArrangementPuzzle, group: int, relations: Sequence[str], random: Random) -> Quadruple:
    space, say = puzzle.space, puzzle.language.say
    relation = random.choice(relations)
    attribute = random.choice(space.attributes)
    entities = tuple(random.sample(attribute, RELATIONS[relation].arity))
    first = PuzzleClue(relation, entities)
    if relation == "between":
        x, y, z = entities
        same, near = PuzzleClue(relation, (x, z, y)), PuzzleClue(relation, (y, *random.sample((x, z), 2)))
    else:
        same = PuzzleClue(CONVERSE.get(relation, relation), (entities[1], entities[0]))
        near = PuzzleClue(NEAR[relation], entities)
    pool = [c for r in puzzle.wording.templates if not RELATIONS[r].across for c in space.clues(r)]
    random.shuffle(pool)
    pool.sort(key=lambda c: len(set(c.entities) & set(entities)))
    said = knowledge(space, [first])
    other = next(c for c in pool if not said.entails(c) and not said.contradicts(c))
    template = random.randrange(6)
    claims = (first, same, near, other)
    templates = (template, template + 1, template + 1, random.randrange(6))
    texts = [f"{say(claim, t)}." for claim, t in zip(claims, templates, strict=True)]
    return Quadruple(group, puzzle.text + "\n", (texts[0], texts[1], texts[2], texts[3]), claims)
