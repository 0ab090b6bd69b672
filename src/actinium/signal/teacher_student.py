"""A student ReLU filter that learns a teacher filter by gradient descent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.filter_learnability import as_filter, as_patches

__all__ = ["TeacherStudentFilter", "relu_filter"]

PAPER = "conv-filter-learning"


def relu_filter(w: Tensor, patches: Tensor) -> Tensor:
    """Mean over patches of relu(w'Z): outputs (n,) for patches (n, k, p)."""
    return torch.relu(patches @ w).mean(1)


class TeacherStudentFilter:
    """A teacher filter, and students that start in a small ball around 0 and learn it.

    Args:
        width: p, entries of a filter.
        teacher: w* (p,); a random direction of length 1 by default.
        radius: of the ball from which students start, by the length of the teacher. For small radii a start is nearer
            to the teacher than 0 is with a probability of about one half; else its sign-flip is.
        seed: of teacher and start.

    Raises:
        InputError: a width below 2, a teacher of another width or of zeros, or a radius that is not above 0.

    Source: Du, Lee and Tian, 2017, sections 3 to 5.
    """

    def __init__(self, width: int, teacher: Any = None, radius: float = 0.3, seed: int = 0) -> None:
        if width < 2 or not radius > 0:
            raise InputError(f"expected a width of 2 or more and a radius above 0, got {width}, {radius}")
        self.width, self.radius, self.seed = width, radius, seed
        self._random = torch.Generator().manual_seed(seed)
        drawn = torch.randn(width, generator=self._random, dtype=torch.float64)
        self.teacher = drawn / drawn.norm() if teacher is None else as_filter(teacher, width, "teacher")

    def start(self, sphere: bool = False) -> Tensor:
        """A student drawn evenly from the ball, or from its surface, (p,); each call draws another."""
        drawn = torch.randn(self.width, generator=self._random, dtype=torch.float64)
        reach = 1.0 if sphere else float(torch.rand((), generator=self._random)) ** (1 / self.width)
        return drawn / drawn.norm() * self.radius * self.teacher.norm() * reach

    def run(
        self,
        patches: Any,
        *,
        lr: float = 0.3,
        steps: int = 1000,
        start: Any = None,
        schedule: Callable[[float], float] | None = None,
        batch_size: int | None = None,
        tolerance: float = 1e-2,
        progress: bool = False,
    ) -> Result:
        """Gradient descent on half the mean squared difference of the outputs.

        Args:
            patches: (n, k, p), not scaled.
            lr: learning rate.
            steps: at most so many.
            start: w_0 (p,); `start()` by default.
            schedule: learning rate by the angle from the teacher in radians (see `suggest_lr_schedule`) in place of
                `lr`.
            batch_size: inputs drawn with replacement for each step; all of them by default.
            tolerance: stop at this distance from the teacher.
            progress: show a progress bar.

        Returns:
            Result over step, from 0: `distance` |w - w*|, `angle` in radians, `loss` over all inputs; `rate`,
            |w_{t+1} - w*|^2 / |w_t - w*|^2 (NaN at the last step). `reached`, the first step within the tolerance, or
            -1; `student` (p,), the last filter.

        Raises:
            InputError: patches or a start that do not fit, a rate or a tolerance that is not above 0, no steps, or
                a run that left the finite numbers.
        """
        z = as_patches(patches)
        if z.shape[2] != self.width:
            raise InputError(f"patches have {z.shape[2]} entries, filters {self.width}")
        if steps < 1 or not (math.isfinite(lr) and lr > 0) or not tolerance > 0 or (batch_size or 1) < 1:
            raise InputError(
                f"expected steps >= 1, lr > 0, tolerance > 0 and batch_size >= 1: {steps, lr, tolerance, batch_size}"
            )
        w = self.start() if start is None else as_filter(start, self.width, "start")
        first, target = w.clone(), relu_filter(self.teacher, z)
        history: list[tuple[float, float, float]] = []
        for step in shown(range(steps + 1), "steps", progress):
            history.append(self._state(w, z, target))
            if not math.isfinite(history[-1][2]):
                raise InputError(f"the run diverged at step {step}: take a smaller learning rate")
            if history[-1][0] < tolerance or step == steps:
                break
            rate = lr if schedule is None else schedule(history[-1][1])
            w = w - rate * self._gradient(w, z, target, batch_size)
        record = provenance(
            None, [z, self.teacher, first], self.seed, lr=lr, steps=steps, batch_size=batch_size, tolerance=tolerance
        )
        return self._result(w, history, tolerance, record)

    def _state(self, w: Tensor, z: Tensor, target: Tensor) -> tuple[float, float, float]:
        """Distance, angle and loss."""
        away = float((w - self.teacher).norm())
        unit, other = w / w.norm(), self.teacher / self.teacher.norm()
        # The arc cosine loses small angles; the chord does not.
        angle = 2 * math.atan2(float((unit - other).norm()), float((unit + other).norm()))
        return away, angle, float((relu_filter(w, z) - target).square().mean() / 2)

    def _gradient(self, w: Tensor, z: Tensor, target: Tensor, batch_size: int | None) -> Tensor:
        if batch_size is not None:
            rows = torch.randint(len(z), (batch_size,), generator=self._random)
            z, target = z[rows], target[rows]
        before = z @ w
        error = before.clamp(min=0).mean(1) - target
        mask = (before >= 0).double() / z.shape[1]
        return torch.einsum("n,nk,nkp->p", error, mask, z) / len(z)

    def _result(self, w: Tensor, history: list[tuple[float, float, float]], tolerance: float, record: Any) -> Result:
        distance, angle, loss = (np.array(column) for column in zip(*history, strict=True))
        rate = np.full(len(distance), np.nan)
        rate[:-1] = (distance[1:] / distance[:-1]) ** 2
        values = {"distance": distance, "angle": angle, "loss": loss, "rate": rate}
        data = xr.Dataset(
            {name: ("step", column) for name, column in values.items()}
            | {"reached": len(distance) - 1 if distance[-1] < tolerance else -1, "student": ("entry", w.numpy())},
            {"step": np.arange(len(distance))},
            {"plot": {"variables": ["distance", "loss"], "yscale": "log"}},
        )
        return Result(data, "teacher_student_filter", PAPER, record)
