"""A control vector judged at the answer: accuracy together with what it does to the distribution of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.intervals import wilson
from actinium.core.metrics import kl
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.steering.application import steering_edits
from actinium.steering.held_out import check_held_out
from actinium.steering.side_effects import check_finite, entropy_bits
from actinium.steering.vector import SteeringVector

__all__ = ["evaluate_control"]

PAPER = "repe-reasoning"
MEASURES = ("hit", "kl", "entropy", "correct", "incorrect")
MODES = ("vocabulary", "answers")


def evaluate_control(
    model: Model,
    vector: SteeringVector,
    prompts: Sequence[str],
    right: Sequence[str],
    answers: Sequence[str] | Sequence[Sequence[str]],
    strengths: Sequence[float],
    *,
    mode: str = "vocabulary",
    operator: str = "add",
    level: float = 0.95,
    batch_size: int = 64,
    transfer: bool = False,
    progress: bool = False,
) -> Result:
    """Accuracy, divergence, entropy and probability masses of the next token at each strength of a vector.

    Every site of the vector is steered, at every token of the prompts; only what changes is computed (replay).

    Args:
        model: a causal language model with a tokenizer.
        vector: the vector.
        prompts: texts whose next token begins the answer.
        right: the right answer to each, as it stands behind the prompt (most begin with a space).
        answers: the list of possible answers of all prompts, or one for each.
        strengths: one or more; 0 is added where it is missing.
        mode: "vocabulary": masses of the whole distribution, and an answer is right if its first token is the
            likeliest of all; "answers": everything but KL and entropy is restricted to the first tokens of the list.
        operator: as in `steer`; "preserve_norm" keeps the length of each activation.
        level: coverage of the intervals.
        batch_size: prompts in a pass.
        transfer: allow a vector that was made on another model.
        progress: show a progress bar.

    Returns:
        Result over strength: `accuracy` with its Wilson interval `low` and `high`; mean `kl` (KL(plain || steered),
        nats) and `entropy` (bits), the mass of the right answer `correct` and of the other ones `incorrect`, and the
        variance over prompts of each (`kl_var`, …). The best strength of several is picked by chance, too: choose on
        other prompts than those that are reported.

    Raises:
        InputError: numbers differ, no strengths, a right answer that is not in the list, answers that begin with one
            token, an empty answer, a vector that does not fit the model, a prompt that also made it, or a strength
            that makes NaN.

    Source: Højer, Jarvis and Heinrich, 2025, section 3 (their measures).
    """
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if isinstance(prompts, str) or not len(prompts) or len(right) != len(prompts):
        raise InputError(f"give one right answer for each of one prompt or more, got {len(right)} for {len(prompts)}")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    given = sorted({0.0, *map(float, strengths)})
    if not len(strengths) or not np.isfinite(given).all():
        raise InputError(f"expected one finite strength or more, got {list(strengths)}")
    lists = [list(answers)] * len(prompts) if all(isinstance(a, str) for a in answers) else [list(a) for a in answers]
    if len(lists) != len(prompts):
        raise InputError(f"{len(lists)} lists of answers for {len(prompts)} prompts")
    vector.check(model, transfer)
    held = check_held_out(prompts, vector.made)
    tables = [_first_tokens(model, one) for one in lists]
    for i, (answer, table) in enumerate(zip(right, tables, strict=True)):
        if answer not in table:
            raise InputError(f"prompt {i}: the right answer {answer!r} is not among {list(table)}")
    correct = torch.tensor([table[a] for a, table in zip(right, tables, strict=True)])
    others = [torch.tensor([t for a, t in table.items() if a != r]) for r, table in zip(right, tables, strict=True)]
    # Strength 0 is the plain run, whatever the operator.
    none = steering_edits(vector, 0.0)
    variants = [steering_edits(vector, s, operator=operator) if s else none for s in given]
    parts = []
    for start in shown(range(0, len(prompts), batch_size), "prompts", progress):
        rows = slice(start, start + batch_size)
        plain = model.replay(list(prompts[rows]), [none])[0].double()

        def read(z: Tensor, rows: slice = rows, plain: Tensor = plain) -> Tensor:
            return torch.stack([_measures(one.double(), plain, correct[rows], others[rows], mode) for one in z])

        parts.append(model.replay(list(prompts[rows]), variants, metric=read))
    values = torch.cat(parts, 1)
    check_finite(values, "the answers")
    columns = {name: list(value.numpy()) for name, value in zip(MEASURES, values.unbind(-1), strict=True)}
    data: dict[str, Any] = {}
    hits = np.stack(columns.pop("hit")).mean(1)
    data["accuracy"] = ("strength", hits)
    limits = np.array([wilson(float(h), len(prompts), level) for h in hits])
    data["low"], data["high"] = ("strength", limits[:, 0]), ("strength", limits[:, 1])
    for name, values in columns.items():
        data[name] = ("strength", np.stack(values).mean(1))
        data[f"{name}_var"] = ("strength", np.stack(values).var(1))
    settings = {
        "strengths": given,
        "mode": mode,
        "operator": operator,
        "level": level,
        "sites": vector.sites,
        "held_out": held,
    }
    record = provenance(model, [list(prompts), list(right), lists, list(vector.directions.values())], **settings)
    hints = {"plot": {"variables": ["accuracy", "kl", "entropy"]}}
    return Result(xr.Dataset(data, coords={"strength": given}, attrs=hints), "evaluate_control", PAPER, record)


def _first_tokens(model: Model, answers: Sequence[str]) -> dict[str, int]:
    """First token of each answer."""
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, and answers are texts")
    if len(set(answers)) < 2:
        raise InputError(f"a list of answers needs two different ones, got {list(answers)}")
    found: dict[str, int] = {}
    for answer in dict.fromkeys(answers):
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"the answer {answer!r} has no token")
        if ids[0] in found.values():
            same = next(a for a, t in found.items() if t == ids[0])
            raise InputError(f"the answers {same!r} and {answer!r} begin with one token, which cannot tell them apart")
        found[answer] = ids[0]
    return found


def _measures(logits: Tensor, plain: Tensor, correct: Tensor, others: list[Tensor], mode: str) -> Tensor:
    """`MEASURES` (n, 5) on the CPU, in float64."""
    logits, plain = logits.cpu(), plain.cpu()
    ids = torch.zeros(len(logits), dtype=torch.long)
    p = logits.softmax(-1)
    mass = p.gather(1, correct[:, None])[:, 0]
    rest = torch.stack([row[wrong].sum() for row, wrong in zip(p, others, strict=True)])
    hit = logits.argmax(1) == correct
    if mode == "answers":
        best = torch.stack([row[wrong].max() for row, wrong in zip(logits, others, strict=True)])
        hit = logits.gather(1, correct[:, None])[:, 0] > best
        mass, rest = mass / (mass + rest), rest / (mass + rest)
    return torch.stack(
        [hit.double(), kl(logits, ids, ids, plain).double(), entropy_bits(logits).double(), mass, rest], 1
    )
