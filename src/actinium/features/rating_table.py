"""Ratings as crowd platforms hand them over: one row for an item, an explanation, a rater and an answer."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actinium.core.errors import InputError, LoadError, unknown

__all__ = ["ANSWERS", "RatingTable", "read_ratings"]

COLUMNS = ("item", "explanation", "worker", "rating")
ANSWERS: dict[str, int | None] = {"1": 1, "0": 0, "true": 1, "false": 0, "yes": 1, "no": 0, "": None}
"""What an answer in a file means, in lower case; None is an answer that was not given."""


@dataclass(frozen=True)
class RatingTable:
    """Binary ratings, one in each row.

    Args:
        item: what was rated.
        explanation: what it was rated for.
        worker: who rated it.
        rating: 0, 1, or None where no answer was given.

    Raises:
        InputError: columns of different length, a rating that is none of these, or a rater who rated the same item
            for the same explanation twice.
    """

    item: tuple[str, ...]
    explanation: tuple[str, ...]
    worker: tuple[str, ...]
    rating: tuple[int | None, ...]

    def __post_init__(self) -> None:
        for name in COLUMNS[:3]:
            object.__setattr__(self, name, tuple(str(v) for v in getattr(self, name)))
        for value in self.rating:
            if value is not None and value not in (0, 1):
                raise InputError(f"a rating is 0, 1 or None, got {value!r}")
        object.__setattr__(self, "rating", tuple(None if v is None else int(v) for v in self.rating))
        if len({len(getattr(self, name)) for name in COLUMNS}) > 1:
            raise InputError(f"the columns {', '.join(COLUMNS)} must be of one length")
        keys = list(zip(self.item, self.explanation, self.worker, strict=True))
        if len(set(keys)) < len(keys):
            twice = next(k for i, k in enumerate(keys) if k in keys[:i])
            raise InputError(f"rater {twice[2]!r} rated item {twice[0]!r} for {twice[1]!r} twice")

    def __len__(self) -> int:
        return len(self.rating)

    def lists(self, explanation: str, items: Sequence[Hashable]) -> tuple[list[list[int | None]], list[list[str]]]:
        """Ratings and raters of each item, for one explanation; empty lists where there are none.

        Raises:
            InputError: no rating is for this explanation.
        """
        if explanation not in self.explanation:
            raise InputError(unknown("explanation", explanation, dict.fromkeys(self.explanation)))
        ratings: dict[str, list[int | None]] = {str(i): [] for i in items}
        workers: dict[str, list[str]] = {str(i): [] for i in items}
        for item, what, worker, rating in zip(self.item, self.explanation, self.worker, self.rating, strict=True):
            if what == explanation and item in ratings:
                ratings[item].append(rating)
                workers[item].append(worker)
        return [ratings[str(i)] for i in items], [workers[str(i)] for i in items]

    def save(self, path: str | Path) -> Path:
        """Write a CSV file with the columns item, explanation, worker and rating.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            with Path(path).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for *what, rating in zip(*(getattr(self, name) for name in COLUMNS), strict=True):
                    writer.writerow([*what, "" if rating is None else rating])
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror}") from error
        return Path(path)


def read_ratings(
    path: str | Path, *, columns: Mapping[str, str] | None = None, answers: Mapping[str, int | None] | None = None
) -> RatingTable:
    """Read a CSV file of ratings, such as a batch file of Mechanical Turk.

    Rows whose `AssignmentStatus` is "Rejected" are left out.

    Args:
        path: the file; its first row names the columns.
        columns: names in the file of item, explanation, worker and rating where they differ, for example
            {"worker": "WorkerId", "item": "Input.image", "rating": "Answer.present"}.
        answers: meaning of an answer (in lower case); `ANSWERS` if not given.

    Raises:
        LoadError: the file cannot be read, or lacks a column.
        InputError: an answer without a meaning, no rows, or a rater who rated the same twice.
    """
    names = {name: (columns or {}).get(name, name) for name in COLUMNS}
    meaning = ANSWERS if answers is None else answers
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            for name in names.values():
                if name not in header:
                    raise LoadError(f"{path}: {unknown('column', name, header)}")
            rows = [row for row in reader if (row.get("AssignmentStatus") or "").lower() != "rejected"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"cannot read the ratings {path}: {error}") from None
    if not rows:
        raise InputError(f"{path} holds no ratings")
    ratings = []
    for number, row in enumerate(rows, 2):
        answer = (row[names["rating"]] or "").strip().lower()
        if answer not in meaning:
            raise InputError(f"{path}, row {number}: {unknown('answer', answer, meaning)}")
        ratings.append(meaning[answer])
    what = (tuple(row[names[name]] or "" for row in rows) for name in COLUMNS[:3])
    return RatingTable(*what, tuple(ratings))
