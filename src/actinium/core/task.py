"""Prompt pairs with answers: what a causal method runs a model on, and how it scores the outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import get_metric
from actinium.core.task_file import COLUMNS, Row, read_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["Pair", "Task"]


@dataclass(frozen=True)
class Pair:
    """One row of a task, as token ids.

    Args:
        clean: ids of the clean prompt.
        corrupt: ids of the corrupt prompt, as many.
        answer: id of the right answer to the clean prompt.
        wrong: id of the wrong answer.
    """

    clean: list[int]
    corrupt: list[int]
    answer: int
    wrong: int


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, what: str) -> list[int]:
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the {what} prompt is empty")
    ids: list[int] = tokenizer(text)["input_ids"]
    # Some tokenizers close a text; a prompt that is to be continued stays open.
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    if ids and ids[-1] in closing and tokenizer(text, add_special_tokens=False)["input_ids"][-1:] != ids[-1:]:
        ids = ids[:-1]
    return ids


def _answer_id(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], answer: str) -> int:
    if not isinstance(answer, str) or not answer.strip():
        raise InputError("an answer is empty")
    continued = _prompt_ids(tokenizer, prompt + answer, "continued")
    new = continued[len(ids) :]
    if continued[: len(ids)] != ids or len(new) != 1:
        pieces = tokenizer.convert_ids_to_tokens(new) if continued[: len(ids)] == ids else "other tokens"
        raise InputError(f"the answer {answer!r} is not one token after the prompt {prompt!r}: it gives {pieces}")
    if new[0] == tokenizer.unk_token_id:
        raise InputError(f"the answer {answer!r} is not in the tokenizer's vocabulary")
    return new[0]


def encode_pair(tokenizer: PreTrainedTokenizerBase, clean: str, corrupt: str, answer: str, wrong: str) -> Pair:
    """Encode one row and check it; answers are written as they continue the prompt, with their space.

    Raises:
        InputError: a prompt is empty, the prompts differ in length, or an answer is not one token.
    """
    clean_ids = _prompt_ids(tokenizer, clean, "clean")
    corrupt_ids = _prompt_ids(tokenizer, corrupt, "corrupt")
    if len(clean_ids) != len(corrupt_ids):
        raise InputError(
            f"the prompts differ in length: clean has {len(clean_ids)} tokens, corrupt {len(corrupt_ids)} "
            f"({clean!r} and {corrupt!r})"
        )
    right = _answer_id(tokenizer, clean, clean_ids, answer)
    other = _answer_id(tokenizer, clean, clean_ids, wrong)
    if right == other:
        raise InputError(f"the answer and the wrong answer are the same token ({answer!r})")
    return Pair(clean_ids, corrupt_ids, right, other)


def _strings(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    return [str(tokenizer.decode([i])) for i in ids]


def _text(model: Any, token: int) -> str:
    return str(model.to_str_tokens([token])[0]) if model is not None and model.tokenizer is not None else f" {token}"


def _padded(rows: Sequence[list[int]], pad: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[pad] * (longest - len(row)) + row for row in rows], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Task:
    """Clean and corrupt prompts of equal length, with a right and a wrong answer of one token each.

    Rows of different length are padded on the left, so the last position is -1 in every row. Take rows with
    `task[2:5]`, `task[3]` (a task of one row) or a list of row numbers.

    Args:
        name: what the task is called.
        clean: clean prompts.
        corrupt: corrupt prompts.
        answers: right answers to the clean prompts, as they continue them.
        wrong: wrong answers, as they continue them.
        clean_ids: token ids of the clean prompts (n, pos), int64.
        corrupt_ids: token ids of the corrupt prompts (n, pos), int64.
        mask: True where a token stands, False on padding (n, pos).
        answer_ids: ids of the right answers (n,), int64.
        wrong_ids: ids of the wrong answers (n,), int64.
        clean_tokens: the clean tokens as strings, without padding, one list per row.
        corrupt_tokens: the corrupt tokens as strings, without padding, one list per row.
        metric: name of the metric in `actinium.metrics` that the task is usually scored with.
    """

    name: str
    clean: list[str]
    corrupt: list[str]
    answers: list[str]
    wrong: list[str]
    clean_ids: Tensor
    corrupt_ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    wrong_ids: Tensor
    clean_tokens: list[list[str]]
    corrupt_tokens: list[list[str]]
    metric: str = "logit_diff"

    @classmethod
    def from_prompts(
        cls,
        tokenizer: PreTrainedTokenizerBase | None,
        clean: Sequence[str],
        corrupt: Sequence[str],
        answers: Sequence[str],
        wrong: Sequence[str],
        *,
        name: str = "task",
        metric: str = "logit_diff",
        joined: bool | Sequence[bool] = False,
    ) -> Task:
        """Make a task from texts.

        Args:
            tokenizer: tokenizer of the model that the task is for.
            clean: clean prompts.
            corrupt: corrupt prompts, row by row as long as the clean ones in tokens.
            answers: right answers to the clean prompts, one token each.
            wrong: wrong answers, one token each.
            name: what the task is called.
            metric: name of a metric in `actinium.metrics`.
            joined: whether answers continue the last word of the prompt ("17" + "45"); otherwise an answer
                that is given without a leading space gets one. One value, or one per row.

        Returns:
            The task.

        Raises:
            InputError: nothing is given, the lists differ in length, or a row, which the message names,
                does not fit.
            UnknownNameError: there is no such metric.
        """
        flags = [joined] * len(clean) if isinstance(joined, bool) else list(joined)
        columns = (clean, corrupt, answers, wrong, flags)
        if any(isinstance(column, str) for column in columns):
            raise InputError("prompts and answers are given as lists of texts, not as one text")
        if len({len(column) for column in columns}) != 1:
            raise InputError(
                "clean, corrupt, answers and wrong must have the same length, got "
                + ", ".join(str(len(column)) for column in columns[:4])
            )
        rows = list(zip(*columns, strict=True))
        return cls._from_rows(tokenizer, rows, [f"row {i}" for i in range(len(rows))], name, metric)

    @classmethod
    def _from_rows(
        cls,
        tokenizer: PreTrainedTokenizerBase | None,
        rows: Sequence[Row],
        places: Sequence[str],
        name: str,
        metric: str,
    ) -> Task:
        get_metric(metric)
        if tokenizer is None:
            raise InputError("this model has no tokenizer, and a task is made of texts; give one that fits the model")
        if not rows:
            raise InputError("a task needs at least one row")
        texts: list[tuple[str, str, str, str]] = []
        pairs: list[Pair] = []
        for place, (clean, corrupt, answer, wrong, joined) in zip(places, rows, strict=True):
            if not joined:
                answer, wrong = (f" {w}" if w and not w[0].isspace() else w for w in (answer, wrong))
            try:
                pairs.append(encode_pair(tokenizer, clean, corrupt, answer, wrong))
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
            texts.append((clean, corrupt, answer, wrong))
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        ids = [_padded([p.clean for p in pairs], pad), _padded([p.corrupt for p in pairs], pad)]
        lengths = torch.tensor([len(p.clean) for p in pairs])
        width = ids[0].shape[1]
        return cls(
            name,
            clean=[text[0] for text in texts],
            corrupt=[text[1] for text in texts],
            answers=[text[2] for text in texts],
            wrong=[text[3] for text in texts],
            clean_ids=ids[0],
            corrupt_ids=ids[1],
            mask=torch.arange(width) >= width - lengths[:, None],
            answer_ids=torch.tensor([p.answer for p in pairs], dtype=torch.int64),
            wrong_ids=torch.tensor([p.wrong for p in pairs], dtype=torch.int64),
            clean_tokens=[_strings(tokenizer, p.clean) for p in pairs],
            corrupt_tokens=[_strings(tokenizer, p.corrupt) for p in pairs],
            metric=metric,
        )

    @classmethod
    def from_ids(
        cls,
        clean_ids: Any,
        corrupt_ids: Any,
        answer_ids: Any,
        wrong_ids: Any,
        *,
        mask: Any = None,
        model: Any = None,
        name: str = "pairs",
        metric: str = "logit_diff",
    ) -> Task:
        """Make a task from token ids, for models without a tokenizer.

        Args:
            clean_ids, corrupt_ids: (row, pos) int64, of the same shape; shorter prompts are padded on the left.
            answer_ids, wrong_ids: (row,) int64.
            mask: (row, pos) bool, False on padding; without it there is none.
            model: gives the tokens their text, where it has a tokenizer.
            name: what the task is called.
            metric: name of a metric in `actinium.metrics`.

        Returns:
            The task.

        Raises:
            InputError: the shapes do not fit.
            UnknownNameError: there is no such metric.
        """
        get_metric(metric)
        ids = [torch.as_tensor(given).long() for given in (clean_ids, corrupt_ids)]
        ends = [torch.as_tensor(given).long() for given in (answer_ids, wrong_ids)]
        real = torch.ones_like(ids[0], dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool()
        if ids[0].ndim != 2 or any(t.shape != ids[0].shape for t in (ids[1], real)):
            raise InputError(
                f"clean, corrupt and mask must be of one shape (row, pos), got {[tuple(t.shape) for t in (*ids, real)]}"
            )
        if any(t.shape != ids[0].shape[:1] for t in ends):
            raise InputError(f"one answer and one wrong answer are needed for each of the {len(ids[0])} rows")
        tokens = [[[_text(model, int(i)) for i in row[m]] for row, m in zip(rows, real, strict=True)] for rows in ids]
        return cls(
            name,
            clean=["".join(row) for row in tokens[0]],
            corrupt=["".join(row) for row in tokens[1]],
            answers=[_text(model, int(i)) for i in ends[0]],
            wrong=[_text(model, int(i)) for i in ends[1]],
            clean_ids=ids[0],
            corrupt_ids=ids[1],
            mask=real,
            answer_ids=ends[0],
            wrong_ids=ends[1],
            clean_tokens=tokens[0],
            corrupt_tokens=tokens[1],
            metric=metric,
        )

    @classmethod
    def from_file(
        cls,
        tokenizer: PreTrainedTokenizerBase | None,
        path: str | Path,
        *,
        name: str | None = None,
        metric: str = "logit_diff",
    ) -> Task:
        """Read a task from a JSONL or CSV file: columns clean, corrupt, answer, wrong, and optionally joined.

        Args:
            tokenizer: tokenizer of the model that the task is for.
            path: the file; `.csv` is read as CSV with a header line, others as one JSON object per line.
            name: what the task is called; the file's name by default.
            metric: name of a metric in `actinium.metrics`.

        Returns:
            The task.

        Raises:
            InputError: the file is missing, empty or malformed, or a row does not fit; the message names
                the line.
        """
        places, rows = read_rows(Path(path))
        return cls._from_rows(tokenizer, rows, places, name or Path(path).stem, metric)

    def save(self, path: str | Path) -> Path:
        """Write the prompts and answers as JSONL, which `from_file` reads.

        Args:
            path: the file to write.

        Returns:
            The path.
        """
        path = Path(path)
        with path.open("w", encoding="utf-8") as file:
            for clean, corrupt, answer, wrong in zip(self.clean, self.corrupt, self.answers, self.wrong, strict=True):
                row: dict[str, Any] = dict(zip(COLUMNS, (clean, corrupt, answer, wrong), strict=True))
                if not (answer[0].isspace() and wrong[0].isspace()):
                    row["joined"] = True
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return path

    @property
    def subject(self) -> Tensor:
        """Where clean and corrupt tokens differ (n, pos), bool: the tokens that the task is about."""
        return (self.clean_ids != self.corrupt_ids) & self.mask

    def prompts(self, corrupt: bool = False) -> Tokens:
        """The clean (or corrupt) prompts as inputs of a model."""
        return Tokens(self.corrupt_ids if corrupt else self.clean_ids, self.mask, torch.arange(len(self)))

    def tokens(self, row: int, corrupt: bool = False) -> list[str]:
        """The tokens of one prompt as strings, without padding."""
        return list((self.corrupt_tokens if corrupt else self.clean_tokens)[row])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.clean)

    def __iter__(self) -> Iterator[Task]:
        """The rows, each as a task of one row."""
        return (self[row] for row in range(len(self)))

    def __getitem__(self, rows: int | slice | Iterable[int]) -> Task:
        """A task of the chosen rows; padding that they do not need is cut off.

        Raises:
            IndexError: a row does not exist.
            InputError: no row is chosen.
        """
        if isinstance(rows, int):
            chosen = [range(len(self))[rows]]
        elif isinstance(rows, slice):
            chosen = list(range(len(self))[rows])
        else:
            chosen = [range(len(self))[int(row)] for row in rows]
        if not chosen:
            raise InputError(f"no row is chosen; the task has {len(self)}")
        index = torch.tensor(chosen)
        start = int(self.mask[index].any(0).int().argmax())
        return Task(
            self.name,
            clean=[self.clean[i] for i in chosen],
            corrupt=[self.corrupt[i] for i in chosen],
            answers=[self.answers[i] for i in chosen],
            wrong=[self.wrong[i] for i in chosen],
            clean_ids=self.clean_ids[index, start:],
            corrupt_ids=self.corrupt_ids[index, start:],
            mask=self.mask[index, start:],
            answer_ids=self.answer_ids[index],
            wrong_ids=self.wrong_ids[index],
            clean_tokens=[self.clean_tokens[i] for i in chosen],
            corrupt_tokens=[self.corrupt_tokens[i] for i in chosen],
            metric=self.metric,
        )

    def __repr__(self) -> str:
        """Name, number of rows, longest row and the first pair."""
        return (
            f"Task({self.name!r}, {len(self)} rows of up to {self.clean_ids.shape[1]} tokens, "
            f"metric={self.metric!r}, first: {self.clean[0]!r} ->{self.answers[0]}, not{self.wrong[0]})"
        )
