"""Checking solutions of arrangement puzzles step by step: is each claim entailed, and by what it cites?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.puzzle_clues import PuzzleClue
from actinium.probes.puzzle_search import knowledge

__all__ = ["LABELS", "PuzzleVerifier", "StepLine", "Verdict", "read_step", "write_step"]

LABELS = ("correct", "unsupported", "contradicted", "not derivable", "repeated", "unparsable")
AFTER_ERROR = ("clues", "own")

_CITED = r"(?:clue|step)s? \d+(?:(?:, and |, | and )(?:(?:clue|step)s? )?\d+)*"
_STEP = re.compile(rf"(?:step (?P<number>\d+) ?: )?(?P<claim>.+?)(?: because (?P<cited>{_CITED}))? ?\.?", re.IGNORECASE)
_PART = re.compile(r"(?:(clue|step)s? )?(\d+)", re.IGNORECASE)
_ANSWER = re.compile(r"answer ?: (?P<orders>.+?) ?\.?", re.IGNORECASE)


@dataclass(frozen=True)
class StepLine:
    """A line of a solution, taken apart.

    Args:
        claim: the sentence of the claim.
        number: of the step; None for a bare claim.
        clues: numbers of the clues that it cites.
        steps: numbers of the earlier steps that it cites.
    """

    claim: str
    number: int | None = None
    clues: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def cites(self) -> bool:
        """Whether it names any premise."""
        return bool(self.clues or self.steps)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a step.

    Args:
        label: "correct"; "unsupported" (it follows from what is known, but not from what it cites); "contradicted"
            (false in all possible arrangements); "not derivable" (neither follows nor is excluded, or, when strict,
            not in one step); "repeated" (strict only: a step before it says the same); "unparsable".
        entailed: whether the claim is true in all possible arrangements; None if unparsable.
        true: whether it is true of the solution; None if unparsable.
        reason: the same in a sentence.
        claim: what was claimed; None if unparsable and for an answer.
    """

    label: str
    entailed: bool | None
    true: bool | None
    reason: str
    claim: PuzzleClue | None = None

    @property
    def correct(self) -> bool:
        """Whether the label is "correct"."""
        return self.label == "correct"


def read_step(line: str) -> StepLine | None:
    """Take a line apart: "Step 2: Ann is in seat 1 because clue 3 and step 1.", or a bare claim; None if it is neither.

    The claim's sentence is not read; `Language.read` does that. Capitals and spaces do not matter, so that the output
    of a tokenizer that sets full stops apart is read as well.
    """
    if "\n" in line.strip():
        return None
    match = _STEP.fullmatch(_tidy(line))
    if match is None or " because" in match["claim"].lower():
        return None
    cited: dict[str, list[int]] = {"clue": [], "step": []}
    kind = "clue"
    for named, number in _PART.findall(match["cited"] or ""):
        kind = named.lower() or kind
        cited[kind].append(int(number))
    number = int(match["number"]) if match["number"] else None
    return StepLine(match["claim"], number, tuple(cited["clue"]), tuple(cited["step"]))


def _tidy(line: str) -> str:
    """Single spaces, and none before punctuation."""
    return re.sub(r" ([,.:;])", r"\1", " ".join(line.split()))


def write_step(number: int, claim: str, clues: Sequence[int] = (), steps: Sequence[int] = ()) -> str:
    """The line of a step; without premises the part from "because" on is left out."""
    cited = [*(f"clue {i}" for i in clues), *(f"step {i}" for i in steps)]
    because = f" because {' and '.join(cited)}" if cited else ""
    return f"Step {number}: {claim}{because}."


class PuzzleVerifier:
    """Says of each step of a solution whether it is right.

    Args:
        puzzle: the puzzle.
        strict: "correct" also asks that no correct step before it says the same, and that it follows from these steps
            and at most one clue.
        method: "bitmask", "search" or "auto", see `knowledge`.

    Raises:
        InputError: the clues leave no arrangement, several, or another one than the solution; or there are more than
            8! arrangements and method is "bitmask".
        UnknownNameError: no such method.

    Source: Atanas and Liu, 2025 (steps labelled automatically); grammar and labels are ours.
    """

    def __init__(self, puzzle: ArrangementPuzzle, strict: bool = False, method: str = "auto") -> None:
        puzzle.check(method)
        self.puzzle, self.strict, self.method = puzzle, strict, method

    def check(
        self,
        step: str,
        before: Iterable[PuzzleClue | None] = (),
        *,
        given: Sequence[int] | None = None,
        own: bool = False,
    ) -> Verdict:
        """Label one step.

        Args:
            step: a line, "Step i: <claim> because <clues and steps>." or a bare claim.
            before: claims of the steps before it (None for one that could not be read), which "step 1", "step 2" and
                so on cite.
            given: numbers of the clues that are known so far; None for all of them. With all of them every claim
                follows or is excluded.
            own: judge by what the step cites, right or wrong, in place of the clues: does it follow from that?

        Raises:
            InputError: a number in `given` is no clue, or `own` is asked with `given`.
        """
        before = list(before)
        known = self._known(given)
        if own and given is not None:
            raise InputError("own judges by what a step cites; given= has no meaning with it")
        line = read_step(step)
        claim = self.puzzle.language.read(line.claim) if line is not None else None
        if line is None or claim is None:
            return Verdict("unparsable", None, None, f"not a step or claim of this puzzle: {' '.join(step.split())!r}")
        true = self.puzzle.space.holds(claim, self.puzzle.slots)
        if own and line.cites:
            return self._by_citations(line, claim, before, true)
        state = knowledge(self.puzzle.space, known, self.method)
        entailed = state.entails(claim)
        if state.contradicts(claim):
            return Verdict("contradicted", False, true, "the claim is false in every possible arrangement", claim)
        if not entailed:
            return Verdict("not derivable", False, true, "the claim is true in some possible arrangements only", claim)
        if line.cites and (reason := self._unsupported(line, claim, known, before)):
            return Verdict("unsupported", True, true, reason, claim)
        if self.strict:
            stated = [c for c in before if c is not None and state.entails(c)]
            label, reason = self._in_one_step(claim, known, stated)
            return Verdict(label, True, true, reason, claim)
        return Verdict("correct", True, true, "the claim follows from the clues", claim)

    def check_solution(self, text: str, after_error: str = "clues") -> list[Verdict]:
        """Label every line of a solution; the last may be the answer.

        Args:
            text: lines "Step i: ..." in order, and at the end "Answer: ..."; empty lines are skipped. A line whose
                number is not the next one is unparsable.
            after_error: by what steps after the first wrong one are judged: "clues", or "own", what they themselves
                cite, wrong steps included (a step that cites nothing is judged by the clues).

        Raises:
            UnknownNameError: no such way of judging.
        """
        if after_error not in AFTER_ERROR:
            raise UnknownNameError(unknown("way of judging", str(after_error), AFTER_ERROR))
        verdicts: list[Verdict] = []
        before: list[PuzzleClue | None] = []
        wrong = False
        for line in filter(None, (raw.strip() for raw in text.splitlines())):
            if line.lower().startswith("answer"):
                verdicts.append(self.check_answer(line))
                continue
            parts = read_step(line)
            if parts is not None and parts.number not in (None, len(before) + 1):
                found = Verdict("unparsable", None, None, f"step {parts.number} where {len(before) + 1} was due")
            else:
                found = self.check(line, before, own=wrong and after_error == "own")
            verdicts.append(found)
            before.append(found.claim)
            wrong = wrong or not found.correct
        return verdicts

    def check_answer(self, line: str) -> Verdict:
        """Label a line "Answer: ..." (the entities in the order of the slots, attributes apart by semicolons)."""
        match = _ANSWER.fullmatch(_tidy(line))
        orders = [re.split(r", ?", part.strip()) for part in match["orders"].split(";")] if match else []
        known = [{v.lower() for v in a.values} for a in self.puzzle.attributes]
        said = [[name.lower() for name in order] for order in orders]
        if [set(order) for order in said] != known or any(len(set(order)) != len(order) for order in said):
            return Verdict("unparsable", None, None, "not an answer that names every entity once")
        right = said == [[name.lower() for name in order] for order in self.puzzle.solution]
        label = "correct" if right else "contradicted"
        return Verdict(label, right, right, "the answer is " + ("right" if right else "wrong"))

    def _known(self, given: Sequence[int] | None) -> list[PuzzleClue]:
        clues = self.puzzle.clues
        if given is None:
            return list(clues)
        for number in given:
            if not 1 <= number <= len(clues):
                raise InputError(f"there is no clue {number}; the puzzle has clues 1 to {len(clues)}")
        return [clues[number - 1] for number in given]

    def _cited(self, line: StepLine, before: Sequence[PuzzleClue | None]) -> list[PuzzleClue] | str:
        """The premises that a step cites, or why there are none such."""
        premises: list[PuzzleClue] = []
        for kind, numbers, those in (("clue", line.clues, self.puzzle.clues), ("step", line.steps, before)):
            for number in numbers:
                found = those[number - 1] if 1 <= number <= len(those) else None
                if found is None:
                    return f"it cites {kind} {number}, which is not there"
                premises.append(found)
        return premises

    def _unsupported(
        self, line: StepLine, claim: PuzzleClue, known: Sequence[PuzzleClue], before: Sequence[PuzzleClue | None]
    ) -> str:
        """Why the premises do not carry the claim; empty if they do. A wrong earlier step carries nothing."""
        premises = self._cited(line, before)
        if isinstance(premises, str):
            return premises
        state = knowledge(self.puzzle.space, known, self.method)
        right = [premise for premise in premises if state.entails(premise)]
        if knowledge(self.puzzle.space, right, self.method).entails(claim):
            return ""
        wrong = "" if len(right) == len(premises) else ", of which some are not so,"
        return f"the claim is true, but what it cites{wrong} does not entail it"

    def _by_citations(
        self, line: StepLine, claim: PuzzleClue, before: Sequence[PuzzleClue | None], true: bool
    ) -> Verdict:
        """Label by what the step cites alone."""
        premises = self._cited(line, before)
        if isinstance(premises, str):
            return Verdict("unsupported", False, true, premises, claim)
        state = knowledge(self.puzzle.space, premises, self.method)
        if not state.count(1):
            return Verdict("unsupported", False, true, "what it cites cannot all be true", claim)
        if state.entails(claim):
            return Verdict("correct", True, true, "the claim follows from what it cites", claim)
        if state.contradicts(claim):
            return Verdict("contradicted", False, true, "what it cites excludes the claim", claim)
        return Verdict("not derivable", False, true, "what it cites leaves the claim open", claim)

    def _in_one_step(
        self, claim: PuzzleClue, known: Sequence[PuzzleClue], stated: Sequence[PuzzleClue]
    ) -> tuple[str, str]:
        """Label and reason of an entailed claim when one clue at most may be used."""

        def follows(from_: Sequence[PuzzleClue], what: PuzzleClue) -> bool:
            return knowledge(self.puzzle.space, from_, self.method).entails(what)

        if any(follows([one], claim) and follows([claim], one) for one in stated):
            return "repeated", "a step before it says the same"
        if any(follows([*stated, clue], claim) for clue in known):
            return "correct", "the claim follows from the steps before it and at most one clue"
        return "not derivable", "the claim follows from the clues, but not from one of them and the steps before it"
