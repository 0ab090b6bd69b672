"""A steering vector put in force: `with steer(model, vector, strength): model.generate(...)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.edits import Add, ProjectOut
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.finite_output import finite_output
from actinium.core.model import Model
from actinium.core.passes import Positions
from actinium.steering.operators import Affine, Gate, PiecewiseAdd, PreserveNorm, Schedule, ScheduledAdd, as_strength
from actinium.steering.vector import SteeringVector

__all__ = ["OPERATORS", "relative_strength", "steer", "steering_edits"]

OPERATORS = {
    "add": "h + strength v",
    "preserve_norm": "h + strength v, brought back to the length of h",
    "piecewise": "h + strength sign(h . v) v",
    "ablate": "h - r r^T h, r = v / |v| (no strength)",
    "ablate_and_add": "h - r r^T h + strength r",
    "affine": "h - r r^T (h - reference) + strength r",
}
"""Name -> formula."""

NAMED: dict[str, Positions | None] = {"all": None, "prompt": "prompt", "new": "new", "last": slice(-1, None)}
"""Name -> positions: "last" is the prompt's last token and every new one, each of which is the last when it is read."""


def steering_edits(
    vector: SteeringVector,
    strength: float | Tensor = 1.0,
    *,
    operator: str = "add",
    positions: Positions | str | None = "all",
    sites: str | Sequence[str] | None = None,
    schedule: Schedule | None = None,
    reference: Mapping[str, Any] | None = None,
    when: Callable[[Where], Tensor] | None = None,
) -> dict[str, Edit]:
    """Edits for `model.edit` that steer with a vector.

    Args:
        vector: the vector.
        strength: a number, or (batch,) with one for each row.
        operator: a key of `OPERATORS`.
        positions: "all"; "prompt"; "new", the tokens generated after the prompt; "last", the prompt's last token and
            the new ones; or positions as in `Edit.at`, for example slice(5, None).
        sites: names and patterns among those of the vector; all of them by default.
        schedule: strength of each token by its distance from the prompt's end, times `strength` (operator "add").
        reference: {site: (d,)} for "affine": the mean activation that the coordinate is set to.
        when: condition by row, as `Gate` takes it.

    Raises:
        InputError: a strength that is not finite, or arguments that do not go together.
        UnknownNameError: there is no such operator.
        SiteError: a site that the vector does not have.
    """
    if operator not in OPERATORS:
        raise UnknownNameError(unknown("operator", str(operator), OPERATORS))
    given = as_strength(strength, "steering")
    if schedule is not None and (operator != "add" or isinstance(given, Tensor)):
        raise InputError("a schedule goes with operator 'add' and one strength for all rows")
    if (reference is not None) != (operator == "affine"):
        raise InputError("a reference {site: (d,)} belongs to operator 'affine', which needs one")
    where = NAMED[positions] if isinstance(positions, str) and positions in NAMED else positions
    chosen = vector if sites is None else vector.only(sites)
    out: dict[str, Edit] = {}
    for site, direction in chosen.directions.items():
        if not bool((direction != 0).any()):
            continue
        edit = _edit(direction, given, operator, schedule, None if reference is None else reference.get(site), site)
        edit = edit if when is None else Gate(edit, when)
        out[site] = edit if where is None else edit.at(positions=where)  # type: ignore[arg-type]
    if not out:
        raise InputError("the vector is zero at every chosen site")
    return out


@contextmanager
def steer(
    model: Model, vector: SteeringVector, strength: float | Tensor = 1.0, *, transfer: bool = False, **options: Any
) -> Iterator[Model]:
    """Steer a model while the block lasts: every call of it, `generate` with cache and beams included.

    Blocks may be nested; their edits apply in the order in which they were entered.

    Args:
        model: the model.
        vector: what to steer with.
        strength: a number, or (batch,) with one for each row of the batch.
        transfer: allow a vector that was made on another model.
        **options: those of `steering_edits`.

    Raises:
        InputError: the vector does not fit the model, arguments do not go together, or, while running, activations
            that the strength made NaN or infinite.
        SiteError, UnknownNameError: as `steering_edits`.
    """
    vector.check(model, transfer)
    edits: list[tuple[str, Edit]] = list(steering_edits(vector, strength, **options).items())
    with model.edit(edits + finite_output(model)):
        yield model


def relative_strength(model: Model, vector: SteeringVector, inputs: Any, strength: float = 1.0) -> dict[str, float]:
    """|strength v| over the mean length of the activations, by site: how large a vector is for the model.

    Args:
        model: the model.
        vector: the vector.
        inputs: texts or tokens; each text's first token, which is often unlike others, does not count.
        strength: of steering.
    """
    rec = model.record(inputs, vector.sites)
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        raise InputError("the relative strength is measured on texts or tokens")
    mask = tokens.after_first() if bool(tokens.after_first().any()) else tokens.mask
    return {
        site: abs(strength) * size / float(rec[site][mask.to(rec[site].device)].float().norm(dim=-1).mean())
        for site, size in vector.norms.items()
    }


def _edit(
    direction: Tensor, strength: float | Tensor, operator: str, schedule: Schedule | None, reference: Any, site: str
) -> Edit:
    if operator == "add" and schedule is not None:
        return ScheduledAdd(direction * float(strength), schedule)
    if operator == "add":
        return Add(direction, strength)
    if operator == "preserve_norm":
        return PreserveNorm(Add(direction, strength))
    if operator == "piecewise":
        return PiecewiseAdd(direction, strength)
    if operator == "ablate":
        return ProjectOut(direction)
    if operator == "affine" and reference is None:
        raise InputError(f"no reference for {site}")
    return Affine(direction, strength, reference)
