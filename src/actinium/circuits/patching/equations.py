"""Where the parts of an equation stand in the prompts of a task."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.task import Task

__all__ = ["equation_positions"]


def equation_positions(task: Task, prefix: int = 0) -> dict[str, Tensor]:
    """Classes of positions of a sum: "before", "operand 1", "between" (the operator), "operand 2", "after", "last".

    The operands are the last two numbers of a prompt; of a number of several tokens the last one counts, the others
    belong to the class in front of it. Classes without any token are left out.

    Args:
        task: prompts with two numbers each, at the same places in clean and corrupt ones.
        prefix: number of tokens at the start (worked examples, say) that belong to no class.

    Returns:
        {name: (row, k) positions from each prompt's first token}, for `positions` of a sweep. Rows with fewer than k
        tokens in a class are filled up with a position that no prompt has.

    Raises:
        InputError: a prompt has fewer than two numbers after the prefix, its numbers stand elsewhere in the corrupt
            prompt, or it ends with a number.

    Source: Stolfo et al., 2023, section 4 (positions).
    """
    absent = task.mask.shape[1]
    rows: list[dict[str, list[int]]] = []
    for i in range(len(task)):
        clean, corrupt = (_numbers(tokens, prefix) for tokens in (task.clean_tokens[i], task.corrupt_tokens[i]))
        length = len(task.clean_tokens[i])
        if len(clean) < 2 or clean[-1] == length - 1:
            raise InputError(f"row {i}, {task.clean[i]!r}: expected two numbers and words after them")
        if clean[-2:] != corrupt[-2:]:
            raise InputError(
                f"row {i}: the numbers end at tokens {clean[-2:]} in the clean prompt and at {corrupt[-2:]} in the "
                "corrupt one; positions have to mean the same"
            )
        first, second = clean[-2:]
        parts = {"before": range(prefix, first), "operand 1": [first], "between": range(first + 1, second)}
        parts |= {"operand 2": [second], "after": range(second + 1, length - 1), "last": [length - 1]}
        rows.append({name: list(places) for name, places in parts.items()})
    out = {}
    for name in rows[0]:
        width = max(len(row[name]) for row in rows)
        if width:
            out[name] = torch.tensor([row[name] + [absent] * (width - len(row[name])) for row in rows])
    return out


def _numbers(tokens: list[str], prefix: int) -> list[int]:
    """Index of the last token of each number."""
    digits = [token.strip().isdigit() for token in tokens]
    # A number goes on where digits follow digits; the end of the prompt closes it.
    ends = [i for i, (now, then) in enumerate(pairwise([*digits, False])) if now and not then]
    return [i for i in ends if i >= prefix]
