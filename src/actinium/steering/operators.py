"""What steering does to an activation: edits that take a direction, and a strength that may differ from row to row.

`actinium.edits.Add` adds a vector, `ProjectOut` removes a direction. Here is what steering needs beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where, rows_of
from actinium.core.errors import InputError

__all__ = ["Affine", "ClampCoordinate", "Gate", "PiecewiseAdd", "PreserveNorm", "Rotate", "ScheduledAdd"]

Strength = float | Tensor
BEYOND = ("hold_last", "zero")
Schedule = Callable[[Tensor], Tensor]
"""Called with the number of each token after the prompt's last one (batch or 1, n): 0 is that last token, 1 the first
new one, below 0 what stands before; gives the strength at each."""


def as_direction(value: Any, what: str) -> Tensor:
    """A finite direction (d,) that is not zero.

    Raises:
        InputError: it is something else.
    """
    out = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.get_default_dtype())
    if out.ndim != 1 or not out.is_floating_point() or not bool(torch.isfinite(out.detach()).all()):
        raise InputError(f"{what}: a direction is a finite vector (d,), not {out.dtype} of shape {tuple(out.shape)}")
    if not bool((out != 0).any()):
        raise InputError(f"{what}: the direction is zero")
    return out


def as_strength(value: Any, what: str) -> Strength:
    """A finite number, or a tensor (batch,) of them.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, Tensor):
        if value.ndim > 1 or not bool(torch.isfinite(value.detach()).all()):
            raise InputError(f"{what}: a strength is a finite number or (batch,), not of shape {tuple(value.shape)}")
        return value
    if not math.isfinite(value):
        raise InputError(f"{what}: the strength must be finite, not {value}")
    return float(value)


def by_row(strength: Strength, x: Tensor, where: Where) -> Tensor | float:
    """A strength as it multiplies x (batch, …): with one of its own for each row where it is a tensor."""
    if not isinstance(strength, Tensor):
        return strength
    if strength.ndim == 0:
        return strength.to(x)
    return rows_of(strength.to(x), x, where, strengths=True).view(-1, *[1] * (x.ndim - 1))


class PreserveNorm(Edit):
    """Another edit, whose result is brought back to the length that each activation had.

    Args:
        edit: for example `Add(vector)`; restrict this edit with `.at`, not the one inside.

    Source: h' = (h + alpha v) |h| / |h + alpha v|, as in Vogel, 2024, repeng (`normalize`).
    """

    def __init__(self, edit: Edit) -> None:
        super().__init__()
        self.edit = edit

    def bound(self, site: Any) -> Edit:
        """The edit to use at one site, with the inner one bound to it, too."""
        out: PreserveNorm = super().bound(site)  # type: ignore[assignment]
        out.edit = self.edit.bound(site)
        return out

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Edit, then scale each activation to its former length; one that became zero stays zero."""
        new = self.edit(x, where)
        size = new.norm(dim=-1, keepdim=True)
        return torch.where(size > 0, new * (x.norm(dim=-1, keepdim=True) / size.clamp_min(1e-30)), new)


class PiecewiseAdd(Edit):
    """x + strength * sign(x . v) v: away from the plane across the direction.

    Args:
        vector: (d,).
        strength: a number, or (batch,).

    Source: Zou et al., 2023, Representation Engineering (piece-wise operator).
    """

    vectors = ("vector",)

    def __init__(self, vector: Any, strength: Strength = 1.0) -> None:
        super().__init__()
        self.vector = as_direction(vector, "PiecewiseAdd")
        self.strength = as_strength(strength, "PiecewiseAdd")

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add the vector on one side and subtract it on the other."""
        v = self.vector.to(x)
        return x + by_row(self.strength, x, where) * (x @ v).sign()[..., None] * v


class Affine(Edit):
    """x - r r^T (x - reference) + value r: the coordinate along a direction is set to the reference's plus a value.

    Without a reference the coordinate is set to `value` itself; with value 0 and no reference this is the directional
    ablation.

    Args:
        direction: (d,), of any length; r is its unit vector.
        value: the coordinate along r, in units of the activation, a number or (batch,).
        reference: (d,), for example the mean activation of texts without the property.

    Source: Marshall, Scherlis and Belrose, 2024, Refusal in LLMs is an Affine Function; Arditi et al., 2024
    (ablation).
    """

    vectors = ("direction", "reference")

    def __init__(self, direction: Any, value: Strength = 0.0, reference: Any = None) -> None:
        super().__init__()
        self.direction = as_direction(direction, "Affine")
        self.value = as_strength(value, "Affine")
        self.reference = None if reference is None else torch.as_tensor(reference)
        if self.reference is not None and self.reference.shape != self.direction.shape:
            raise InputError(
                f"Affine: the reference has shape {tuple(self.reference.shape)}, not ({len(self.direction)},)"
            )

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Set the coordinate."""
        wide = self.direction.double()
        unit = (wide / wide.norm()).to(x)
        away = x if self.reference is None else x - self.reference.to(x)
        return x + (by_row(self.value, x, where) - (away @ unit)[..., None]) * unit


class ClampCoordinate(Edit):
    """The coordinate along a direction, limited to [`min`, `max`].

    Args:
        direction: (d,), of any length; the coordinate is that along its unit vector.
        min, max: in units of the activation; either may be None.

    Raises:
        InputError: no limit, or they are the wrong way round.
    """

    vectors = ("direction",)

    def __init__(self, direction: Any, min: float | None = None, max: float | None = None) -> None:
        super().__init__()
        self.direction = as_direction(direction, "ClampCoordinate")
        if min is None and max is None:
            raise InputError("ClampCoordinate needs min, max or both")
        if min is not None and max is not None and min > max:
            raise InputError(f"ClampCoordinate: min {min} is above max {max}")
        self.min, self.max = min, max

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Limit the coordinate and leave the rest."""
        wide = self.direction.double()
        unit = (wide / wide.norm()).to(x)
        now = (x @ unit)[..., None]
        return x + (now.clamp(self.min, self.max) - now) * unit


class Rotate(Edit):
    """Turn the part of the activation in a plane to an angle; its length stays.

    With p the part of x in the plane of two directions: x - p + |p| (cos(angle) b1 + sin(angle) b2).

    Args:
        first: (d,), b1 once it has unit length: angle 0.
        second: (d,), of which the part across the first is b2: angle pi / 2.
        angle: radians, a number or (batch,).
        adaptive: only where x . b1 > 0.

    Raises:
        InputError: the directions are parallel.

    Source: Vu and Nguyen, 2025, Angular Steering.
    """

    vectors = ("first", "second")

    def __init__(self, first: Any, second: Any, angle: Strength, adaptive: bool = False) -> None:
        super().__init__()
        self.first, self.second = as_direction(first, "Rotate"), as_direction(second, "Rotate")
        self.angle, self.adaptive = as_strength(angle, "Rotate"), adaptive
        if self.first.shape != self.second.shape:
            raise InputError(f"Rotate: directions of {len(self.first)} and {len(self.second)} entries span no plane")
        b1 = self.first.detach().double() / self.first.detach().double().norm()
        other = self.second.detach().double()
        across = other - (other @ b1) * b1
        if not across.norm() > 1e-6 * other.norm():
            raise InputError("Rotate: the two directions are parallel and span no plane")
        self.plane = torch.stack([b1, across / across.norm()])

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Turn the part in the plane."""
        b1, b2 = self.plane.to(x)
        one, two = (x @ b1)[..., None], (x @ b2)[..., None]
        angle = by_row(self.angle, x, where)
        angle = angle if isinstance(angle, Tensor) else torch.as_tensor(angle, dtype=x.dtype, device=x.device)
        size = (one.square() + two.square()).sqrt()
        new = x + (size * angle.cos() - one) * b1 + (size * angle.sin() - two) * b2
        return torch.where(one > 0, new, x) if self.adaptive else new


class ScheduledAdd(Edit):
    """x + strength(token) * vector, with a strength that depends on how far the token is from the prompt's end.

    A token keeps the strength it was given, with a key-value cache or without.

    Args:
        vector: of the shape of the site without batch and positions, such as (d,) or (head, d_head); or with a
            leading dimension (T, …), another vector for each step: row 0 is for the prompt's last token, row 1 for the
            first new one; later tokens get the last row, or nothing.
        schedule: called with the tokens' numbers (0 the prompt's last token, 1 the first new one); gives strengths of
            the same shape. Tokens before the prompt's last one are left alone.
        beyond: what tokens after the last step get: "hold_last" or "zero".
    """

    vectors = ("vector",)

    def __init__(self, vector: Any, schedule: Schedule, beyond: str = "hold_last") -> None:
        super().__init__()
        given = vector if isinstance(vector, Tensor) else torch.as_tensor(vector, dtype=torch.get_default_dtype())
        if not 1 <= given.ndim <= 3 or not bool(torch.isfinite(given.detach()).all()):
            raise InputError(f"ScheduledAdd: expected a finite vector or one per step, not shape {tuple(given.shape)}")
        if beyond not in BEYOND:
            raise InputError(f"ScheduledAdd: beyond is one of {', '.join(BEYOND)}, not {beyond!r}")
        self.beyond = beyond
        if not callable(schedule):
            raise InputError(f"ScheduledAdd: the schedule must be a function, not {type(schedule).__name__}")
        self.vector, self.schedule = given, schedule

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add at each token with its own strength."""
        if where.pos is None:
            raise InputError(f"ScheduledAdd at {where.site.name}: this site has no positions")
        n = x.shape[where.pos]
        tokens = where.now.tokens(n, where.start, x.device)
        prompt = where.now.prompt
        last = where.start + n - 1 if prompt is None else prompt.to(x.device)[:, None] - 1
        steps = tokens - last
        strength = torch.as_tensor(self.schedule(steps), device=x.device).to(x.dtype)
        vector, last = self.vector.to(x), x.ndim - 1
        used = steps >= 0
        if vector.ndim == last:
            if self.beyond == "zero":
                used = used & (steps < len(vector))
            vector = vector[steps.clamp(0, len(vector) - 1)]
        elif vector.ndim != last - 1:
            raise InputError(
                f"ScheduledAdd at {where.site.name}: a vector of shape {tuple(self.vector.shape)} does not fit"
                f" {where.site.dims}"
            )
        strength = torch.where(used, strength, torch.zeros_like(strength)).expand(steps.shape)
        return x + strength.view(*strength.shape, *[1] * (x.ndim - 2)) * vector


class Gate(Edit):
    """Another edit, in force only in the rows where a condition holds.

    Args:
        edit: what to do there.
        condition: called with the place of the activation (`Where`) when the edit's turn comes; gives bool (batch,).

    A row where the condition does not hold keeps its exact values.
    """

    def __init__(self, edit: Edit, condition: Callable[[Where], Tensor]) -> None:
        super().__init__()
        if not callable(condition):
            raise InputError(f"Gate: the condition must be a function, not {type(condition).__name__}")
        self.edit, self.condition = edit, condition

    def bound(self, site: Any) -> Edit:
        """The edit to use at one site, with the inner one bound to it, too."""
        out: Gate = super().bound(site)  # type: ignore[assignment]
        out.edit = self.edit.bound(site)
        return out

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Edit the rows where the condition holds."""
        holds = self.condition(where)
        if holds.shape != x.shape[:1] or holds.dtype != torch.bool:
            raise InputError(
                f"Gate: the condition gave {holds.dtype} of shape {tuple(holds.shape)}, not bool ({len(x)},)"
            )
        if not bool(holds.any()):
            return x
        new = self.edit(x, where)
        return new if bool(holds.all()) else torch.where(holds.to(x.device).view(-1, *[1] * (x.ndim - 1)), new, x)
