"""Directions of an activation space: differences of means, principal components, probes, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.patching.contrast import check_task
from actinium.core.edits import Add
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.recording import Recording
from actinium.core.rows import as_rows
from actinium.core.task import Task

__all__ = [
    "gradient_direction",
    "mean_difference",
    "orthonormal",
    "pca_directions",
    "probe_direction",
    "random_directions",
    "two_classes",
]

# Rows whose products differ from the identity by more than this are not taken to be orthonormal.
ORTHONORMAL = 1e-4
# Directions that add less than this to the span of the others do not count as directions of their own.
DEPENDENT = 1e-6


def orthonormal(directions: Any, width: int | None = None) -> Tensor:
    """Orthonormal rows with the span of the given directions; one direction only gets unit length.

    Args:
        directions: (d,) or (k, d), linearly independent.
        width: the d that is expected.

    Returns:
        (k, d), float64. Rows that were orthonormal stay as they were.

    Raises:
        InputError: no direction, a wrong width, values that are not finite, or directions that depend on each other.
    """
    given = torch.as_tensor(directions).detach().double().cpu()
    given = given[None] if given.ndim == 1 else given
    if given.ndim != 2 or not given.numel():
        raise InputError(f"expected directions (d,) or (k, d) with k >= 1, got shape {tuple(given.shape)}")
    if width is not None and given.shape[1] != width:
        raise InputError(f"directions have {given.shape[1]} entries, the activations {width}")
    size = given.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(given).all()) or not bool((size > 0).all()):
        raise InputError("directions must be finite and not zero")
    unit = given / size
    if len(unit) > unit.shape[1] or float(torch.linalg.svdvals(unit)[-1]) < DEPENDENT:
        raise InputError(f"{len(unit)} directions of {unit.shape[1]} entries depend on each other")
    if float((unit @ unit.T - torch.eye(len(unit), dtype=unit.dtype)).abs().max()) > ORTHONORMAL:
        warnings.warn("directions are not orthogonal; their span is used", ActiniumWarning, stacklevel=3)
    q, r = torch.linalg.qr(unit.T)
    basis: Tensor = (q * r.diagonal().sign()).T
    return basis


def two_classes(labels: Any, n: int) -> Tensor:
    """Labels of two values (n,) as bool, True for the larger one.

    Raises:
        InputError: another number of labels or of values; all labels equal.
    """
    given = torch.as_tensor(labels).cpu()
    values = given.unique()
    if given.shape != (n,):
        raise InputError(f"expected one label for each of {n} rows, got shape {tuple(given.shape)}")
    if len(values) != 2:
        raise InputError(
            f"labels must have two values, got {values.tolist()[:5]}: a feature that does not vary is lost"
        )
    chosen: Tensor = given == values[1]
    return chosen


def mean_difference(activations: Any, labels: Any) -> Tensor:
    """Unit direction from the mean of the class with the smaller label to that of the other.

    Args:
        activations: (n, d).
        labels: (n,), two values.

    Returns:
        (d,), float64.

    Raises:
        InputError: shapes do not fit, labels are all equal, or the means are.
    """
    rows = as_rows(activations, dtype=torch.float64).cpu()
    of = two_classes(labels, len(rows))
    return _unit(rows[of].mean(0) - rows[~of].mean(0), "the two means")


def pca_directions(activations: Any, k: int = 1) -> Tensor:
    """The k directions of largest variance.

    Args:
        activations: (n, d).
        k: how many, at most d and at most n - 1.

    Returns:
        (k, d), float64, largest variance first; the largest entry of each is positive.

    Raises:
        InputError: k is below 1 or too large.
    """
    rows = as_rows(activations, dtype=torch.float64).cpu()
    most = min(rows.shape[1], len(rows) - 1)
    if not 1 <= k <= most:
        raise InputError(f"k must be from 1 to {most} for activations {tuple(rows.shape)}, got {k}")
    found: Tensor = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:k]
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return found * largest.sign()


def probe_direction(activations: Any, labels: Any, penalty: float = 1.0) -> Tensor:
    """Unit weights of a logistic regression of the labels on the activations.

    Args:
        activations: (n, d).
        labels: (n,), two values.
        penalty: weight of |w|^2 / 2 beside the summed loss; above 0, so that separable classes have a solution.

    Returns:
        (d,), float64, towards the class with the larger label.

    Raises:
        InputError: shapes do not fit, labels are all equal, or the penalty is not above 0.
    """
    rows = as_rows(activations, dtype=torch.float64).cpu()
    sign = two_classes(labels, len(rows)).double() * 2 - 1
    if not penalty > 0:
        raise InputError(f"penalty must be above 0, got {penalty}")
    scale = rows.std() + 1e-12
    x = (rows - rows.mean(0)) / scale
    weights = torch.zeros(rows.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        steps.zero_grad()
        w, b = weights[:-1], weights[-1]
        # The penalty is that of weights on the activations as they were given.
        value: Tensor = (
            torch.nn.functional.softplus(-sign * (x @ w + b)).sum() + penalty / 2 * (w / scale).square().sum()
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    steps.step(loss)  # type: ignore[no-untyped-call]
    return _unit(weights.detach()[:-1], "the probe")


def random_directions(k: int, width: int, generator: torch.Generator) -> Tensor:
    """A subspace drawn uniformly: k orthonormal rows (k, width), float64."""
    drawn = torch.randn(width, k, dtype=torch.float64, generator=generator)
    basis: Tensor = torch.linalg.qr(drawn)[0].T
    return basis


def gradient_direction(
    model: Model,
    task: Task,
    site: str,
    score: Callable[[Recording], Tensor] | None = None,
    *,
    at: Any = (),
    position: int = -1,
    head: int | None = None,
) -> Tensor:
    """Unit mean gradient of a downstream score in the clean runs.

    Args:
        model: a causal language model.
        task: its clean prompts are run.
        site: where the gradient is taken.
        score: (row,) of the recording of `at`, such as a difference of two attention scores; the logit difference
            of answer and wrong answer by default.
        at: sites that the score reads.
        position: token position of the gradient (0 first, -1 last).
        head: of a site with heads.

    Returns:
        (d,), float64.

    Raises:
        InputError: the score gives another shape, does not depend on the site, or its mean gradient is zero.

    Source: Makelov, Lange and Nanda, 2023, section 5 (gradient of name movers' attention).
    """
    check_task(model, task)
    tokens = task.prompts()

    def values(rec: Recording, logits: Tensor) -> Tensor:
        if score is not None:
            return score(rec)
        last = logits[:, -1]
        answers, wrong = (last.gather(1, ids.to(last.device)[:, None]) for ids in (task.answer_ids, task.wrong_ids))
        return (answers - wrong)[:, 0]

    (gradient,) = gradients_at(model, tokens, site, list(at) if not isinstance(at, str) else [at], values)
    chosen = at_position(gradient, task.mask, position, head)
    return _unit(chosen.double().cpu().mean(0), "the mean gradient")


def gradients_at(
    model: Model,
    tokens: Tokens,
    site: str,
    at: list[str],
    values: Callable[[Recording, Tensor], Tensor],
) -> list[Tensor]:
    """Gradients (batch, pos, …) at a site of values (row,) or of each column of values (row, m).

    Raises:
        InputError: there are no values for each row, or they do not depend on the site.
    """
    shape = model.record(tokens, site)[site].shape
    # A change of zero has the gradient of the activation, also where the model's weights ask for none.
    change = torch.zeros(shape, dtype=model.dtype, device=model.device, requires_grad=True)
    with torch.enable_grad(), model.edit({site: Add(change)}), model.recording(at or [site], grad=True) as rec:
        logits = model.logits(tokens)
    found = values(rec, logits)
    if not isinstance(found, Tensor) or found.ndim not in (1, 2) or len(found) != shape[0]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"a score gives one value for each of {shape[0]} rows, not {got}")
    columns = [found] if found.ndim == 1 else list(found.T)
    out = []
    for i, column in enumerate(columns):
        gradient = None
        if column.requires_grad:
            (gradient,) = torch.autograd.grad(
                column.sum(), change, retain_graph=i + 1 < len(columns), allow_unused=True
            )
        if gradient is None:
            raise InputError(f"what is read does not depend on {site}")
        out.append(gradient)
    return out


def at_position(values: Tensor, mask: Tensor, position: int | Tensor, head: int | None) -> Tensor:
    """One position of each row, and one head: (row, pos, d) or (row, pos, head, d) -> (row, d).

    Args:
        values: activations of a task's prompts, padded on the left.
        mask: (row, pos) of the task.
        position: one, or one for each row (row,).
        head: number of the head where the site has heads.

    Raises:
        InputError: a position is outside a prompt, or the head is missing, not there, or given without heads.
    """
    length = mask.sum(1)
    wanted = torch.as_tensor(position).expand(len(mask)) if torch.as_tensor(position).ndim < 2 else None
    if wanted is None or wanted.is_floating_point():
        raise InputError("expected one position (an integer), or one for each row (row,)")
    token = torch.where(wanted < 0, wanted + length, wanted)
    if bool(((token < 0) | (token >= length)).any()):
        raise InputError(f"position {position} is outside a prompt (the shortest has {int(length.min())} tokens)")
    columns = (token + mask.shape[1] - length).to(values.device)
    rows = values[torch.arange(len(mask), device=values.device), columns]
    if (rows.ndim == 3) != (head is not None):
        raise InputError("a site with heads needs head=, a site without has none")
    if head is not None:
        if not 0 <= head < rows.shape[1]:
            raise InputError(f"heads go from 0 to {rows.shape[1] - 1}, not {head}")
        rows = rows[:, head]
    return rows


def _unit(vector: Tensor, what: str) -> Tensor:
    size = vector.norm()
    if not float(size) > 1e-12:
        raise InputError(f"{what} give no direction: the difference is zero")
    return vector / size
