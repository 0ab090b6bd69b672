"""What may stand in a text instead: synonyms from lists, words of a vocabulary, and how similar a text remains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError, MissingExtraError
from actinium.core.model import Model

__all__ = ["Propose", "Similarity", "TfidfSimilarity", "checked_similarity", "synonym_lists", "vocabulary_words"]

Propose: TypeAlias = Callable[[str], Sequence[str]]
"""From a word to words of like meaning."""
Similarity: TypeAlias = Callable[[str, Sequence[str]], Any]
"""From a text and others to the similarity of each to it, from -1 to 1."""


def synonym_lists(lists: Iterable[Iterable[str]]) -> Propose:
    """Synonyms from word lists: every other word of the lists that a word is in; case is ignored.

    Raises:
        InputError: a list has fewer than two words.
    """
    table: dict[str, dict[str, None]] = {}
    for words in lists:
        known = list(words)
        if isinstance(words, str) or len(known) < 2:
            raise InputError("a list of synonyms has two words or more")
        for word in known:
            table.setdefault(word.lower(), {}).update(dict.fromkeys(known))

    def propose(word: str) -> list[str]:
        return [other for other in table.get(word.lower(), ()) if other.lower() != word.lower()]

    return propose


def vocabulary_words(model: Model) -> list[str]:
    """Alphabetic tokens of two letters or more that begin a word, in the order of the vocabulary.

    Raises:
        InputError: the model has no tokenizer, or none of its tokens is a word.
    """
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer; give the words that may be inserted")
    special = set(getattr(model.tokenizer, "all_special_tokens", ()))
    ordered = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in ordered if token not in special]
    marks = ("▁", "Ġ")
    marked = any(token.startswith(marks) for token in tokens)
    words = [token.lstrip("▁Ġ") for token in tokens if token.startswith(marks) or not marked]
    found = [word for word in dict.fromkeys(words) if len(word) > 1 and word.isalpha()]
    if not found:
        raise InputError("no token of the vocabulary is a word; give the words that may be inserted")
    return found


class TfidfSimilarity:
    """Cosine of TF-IDF vectors of words, from scikit-learn.

    Args:
        corpus: texts whose document frequencies weigh the words; words that they lack weigh most. Without any, all
            words weigh the same.
        same: lists of words that count as one, such as the lists of synonyms; otherwise an exchange by a synonym looks
            like one by any other word.
    """

    def __init__(self, corpus: Sequence[str] = (), same: Iterable[Iterable[str]] = ()) -> None:
        self.corpus = list(corpus)
        self.same: dict[str, str] = {}
        for words in same:
            known = [word.lower() for word in words]
            self.same |= dict.fromkeys(known, known[0])

    def _words(self, text: str) -> list[str]:
        return [self.same.get(word, word) for word in re.findall(r"\w+", text.lower())]

    def __call__(self, text: str, others: Sequence[str]) -> NDArray[np.float64]:
        """Similarity (n,) of each of the others to the text.

        Raises:
            MissingExtraError: scikit-learn is not installed.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        given = [text, *others]
        terms = TfidfVectorizer(analyzer=self._words).fit(given).vocabulary_
        vectorizer = TfidfVectorizer(vocabulary=terms, use_idf=bool(self.corpus), analyzer=self._words)
        vectorizer.fit(self.corpus or given)
        rows = vectorizer.transform(given)
        return np.asarray((rows[1:] @ rows[0].T).todense(), np.float64)[:, 0]


def checked_similarity(similarity: Similarity, text: str, others: Sequence[str]) -> NDArray[np.float64]:
    """What a similarity gives, checked.

    Raises:
        InputError: another number of values, or one outside [-1, 1].
    """
    values = np.asarray(similarity(text, list(others)), np.float64)
    if values.shape != (len(others),):
        raise InputError(f"a similarity gives one number for each of {len(others)} texts, not {values.shape}")
    if not (np.abs(values) <= 1 + 1e-6).all():  # NaN is refused as well
        raise InputError("a similarity is a number from -1 to 1")
    return values.clip(-1, 1)
