"""Search for small edits that lower a probe's loss: words exchanged where attention lies, inserted where it is low."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.guard.audit.edits.edit_candidates import Propose, Similarity, checked_similarity
from actinium.guard.audit.edits.editable_text import (
    FUNCTION_WORDS,
    Frame,
    insert_word,
    replace_word,
    word_salience,
    word_spans,
)
from actinium.guard.audit.edits.guard_probe import HiddenStateGuardProbe

__all__ = ["EditSearch", "Trace", "text_hash"]

ARMS = ("guided", "random", "salience")
GROWN = 1e-9


def text_hash(text: str) -> str:
    """SHA-256 of a text, which stands for it in records."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Trace:
    """A text and what became of it, edit by edit.

    Attributes:
        texts: the text after 0, 1, ... edits.
        kinds: "substitute" or "insert", of each edit.
        similarities: of each edited text to the original.
        losses: by pass, the loss of its probe before the pass and after each of its edits.
    """

    texts: list[str]
    kinds: list[str] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class EditSearch:
    """One search: the model, the probes, and what edits are allowed.

    Attributes:
        model, frame: the model, and the frame around an edited text.
        probe_ref, probe_mal: lead the exchange of words and the insertions.
        propose, similarity: synonyms of a word, and similarity of texts.
        vocabulary: words that may be inserted.
        positions: most words that a pass edits.
        candidates: words that are tried at an insertion.
        similarity_start, similarity_floor: least similarity of an insertion, lowered by 0.01 until a candidate is left.
        stop: a pass ends when its loss is at most this.
        passes: "substitute", "insert", in their order.
        ignored: words that are not edited, in lower case.
        seed: of candidates and of random edits.
        batch_size: texts in a pass of the model.
    """

    model: Model
    frame: Frame
    probe_ref: HiddenStateGuardProbe
    probe_mal: HiddenStateGuardProbe
    propose: Propose
    similarity: Similarity
    vocabulary: Sequence[str]
    positions: int = 5
    candidates: int = 100
    similarity_start: float = 0.9
    similarity_floor: float = 0.85
    stop: float = 0.1
    passes: Sequence[str] = ("substitute", "insert")
    ignored: frozenset[str] = FUNCTION_WORDS
    seed: int = 0
    batch_size: int | None = None

    def losses(self, probe: HiddenStateGuardProbe, texts: Sequence[str]) -> Tensor:
        """The probe's loss (n,) of texts within their frames."""
        prompts = [self.frame(text) for text in texts]
        return probe.loss(probe.states(self.model, prompts, self.batch_size))

    def editable(self, text: str) -> list[int]:
        """Indices of the words that may be edited.

        Raises:
            InputError: there is none.
        """
        spans = word_spans(text)
        found = [i for i, (a, b) in enumerate(spans) if text[a:b].lower() not in self.ignored]
        if not found:
            raise InputError(f"a text has no words that can be edited (SHA-256 {text_hash(text)[:12]})")
        return found

    def run(self, text: str, budget: int, arm: str = "guided") -> Trace:
        """Edit a text.

        Args:
            text: what is edited.
            budget: most edits.
            arm: "guided" by salience and loss; "salience": places by salience, words at random; "random": both at
                random. The last two take every edit, up to the budget and the number of places.
        """
        trace = Trace([text])
        random = np.random.default_rng([self.seed, ARMS.index(arm), int(text_hash(text)[:12], 16)])
        for name in self.passes:
            left = budget - len(trace.kinds)
            if left > 0:
                (self._substitute if name == "substitute" else self._insert)(trace, left, arm, random)
        return trace

    def _order(self, text: str, arm: str, random: np.random.Generator, lowest: bool) -> tuple[list[int], list[float]]:
        """Words in the order in which they are edited, and the salience of every word (infinite where ignored)."""
        editable = self.editable(text)
        salience = word_salience(self.model, text, self.frame)
        masked = [s if i in set(editable) else np.inf for i, s in enumerate(salience)]
        if arm == "random":
            return random.permutation(editable).tolist(), masked
        return sorted(editable, key=lambda i: salience[i] if lowest else -salience[i]), masked

    def _accept(self, trace: Trace, text: str, kind: str, similarity: float) -> None:
        trace.texts.append(text)
        trace.kinds.append(kind)
        trace.similarities.append(similarity)

    def _substitute(self, trace: Trace, budget: int, arm: str, random: np.random.Generator) -> None:
        text = trace.texts[-1]
        order, _ = self._order(text, arm, random, lowest=False)
        guided = arm == "guided"
        best = float(self.losses(self.probe_ref, [text])[0]) if guided else np.nan
        if guided:
            trace.losses["substitute"] = [best]
        # Only places with a synonym count: a word without one cannot be exchanged by any arm.
        places = [i for i in order if self.synonyms(text, i)][: self.positions]
        for place in places:
            if budget == 0 or (guided and best <= self.stop):
                return
            span = word_spans(text)[place]
            options = [replace_word(text, span, word) for word in self.synonyms(text, place)]
            pick, value = self._picked(self.probe_ref, options, random, guided)
            if guided and not value < best - GROWN:
                continue
            text, best, budget = options[pick], value, budget - 1
            self._accept(trace, text, "substitute", self._similar(trace.texts[0], [text])[0])
            if guided:
                trace.losses["substitute"].append(best)

    def synonyms(self, text: str, place: int) -> list[str]:
        """Other alphabetic words that may stand for a word of the text."""
        start, end = word_spans(text)[place]
        words = dict.fromkeys(self.propose(text[start:end]))
        return [word for word in words if word.isalpha() and word.lower() != text[start:end].lower()]

    def _insert(self, trace: Trace, budget: int, arm: str, random: np.random.Generator) -> None:
        text = trace.texts[-1]
        order, salience = self._order(text, arm, random, lowest=True)
        guided = arm == "guided"
        best = float(self.losses(self.probe_mal, [text])[0]) if guided else np.nan
        if guided:
            trace.losses["insert"] = [best]
        inserted: list[int] = []
        for place in order[: self.positions]:
            if budget == 0 or (guided and best <= self.stop):
                return
            before = self._before(salience, place) if arm != "random" else bool(random.integers(2))
            # Words that were inserted in front of this one have moved it on.
            now = place + sum(i <= place for i in inserted)
            span = word_spans(text)[now]
            words = random.choice(self.vocabulary, min(self.candidates, len(self.vocabulary)), replace=False)
            options = [insert_word(text, span, str(word), before) for word in words]
            options, similar = self._similar_enough(trace.texts[0], options)
            if not options:
                continue
            pick, value = self._picked(self.probe_mal, options, random, guided)
            if guided and not value < best - GROWN:
                continue
            text, best, budget = options[pick], value, budget - 1
            inserted.append(place if before else place + 1)
            self._accept(trace, text, "insert", similar[pick])
            if guided:
                trace.losses["insert"].append(best)

    def _before(self, salience: Sequence[float], place: int) -> bool:
        """The side whose neighbour has the lower salience; after the word where both are alike."""
        left = salience[place - 1] if place > 0 else np.inf
        right = salience[place + 1] if place + 1 < len(salience) else np.inf
        return left < right

    def _picked(
        self, probe: HiddenStateGuardProbe, options: Sequence[str], random: np.random.Generator, guided: bool
    ) -> tuple[int, float]:
        if not guided:
            return int(random.integers(len(options))), float("nan")
        losses = self.losses(probe, options)
        best = int(losses.argmin())
        return best, float(losses[best])

    def _similar(self, text: str, others: Sequence[str]) -> list[float]:
        return [float(s) for s in checked_similarity(self.similarity, text, others)]

    def _similar_enough(self, text: str, options: list[str]) -> tuple[list[str], list[float]]:
        similar = self._similar(text, options)
        steps = round((self.similarity_start - self.similarity_floor) * 100)
        for step in range(steps + 1):
            least = self.similarity_start - step / 100
            kept = [i for i, s in enumerate(similar) if s >= least - GROWN]
            if kept:
                return [options[i] for i in kept], [similar[i] for i in kept]
        return [], []
