"""How easily gradient descent learns a convolutional filter, from the patches that the filter sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_examples

__all__ = [
    "FilterMoments",
    "angular_smoothness",
    "filter_moments",
    "image_patches",
    "patch_closeness",
    "suggest_lr_schedule",
]

PAPER = "conv-filter-learning"
ANGLES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.25, 1.5)
FEWEST = 10


def image_patches(images: Any, kernel: int | tuple[int, int] = 3, stride: int = 1, padding: int = 0) -> Tensor:
    """The patches (n, k, p) that a convolution sees in images (n, channel, height, width), p = channel x kernel.

    Raises:
        InputError: images of another shape, not finite, or smaller than the kernel.
    """
    given = as_examples(images, "images")
    sizes = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    if given.ndim != 4 or min(given.shape[2] + 2 * padding - sizes[0], given.shape[3] + 2 * padding - sizes[1]) < 0:
        raise InputError(f"expected images (n, channel, height, width) of {sizes} or more, got {tuple(given.shape)}")
    if min(sizes) < 1 or stride < 1 or padding < 0:
        raise InputError(f"expected kernel and stride of 1 or more and padding of 0 or more: {kernel, stride, padding}")
    unfolded = torch.nn.functional.unfold(given, sizes, stride=stride, padding=padding)
    return unfolded.transpose(1, 2).contiguous()


def as_patches(patches: Any, fewest: int = 0) -> Tensor:
    """Patches (n, k, p) in float64.

    Raises:
        InputError: another shape, values that are not finite, constant patches, or fewer than `fewest` x p inputs.
    """
    z = as_examples(patches, "patches", dtype=torch.float64)
    if z.ndim != 3:
        raise InputError(f"patches are (n, k, p); got shape {tuple(z.shape)} (see image_patches)")
    n, _, p = z.shape
    if n < fewest * p:
        raise InputError(f"{n} inputs are too few for filters of {p} entries: {fewest * p} or more are needed")
    if float((z - z[:1, :1]).abs().max()) == 0:
        raise InputError("all patches are the same: no filter can be told from another")
    return z


def as_filter(w: Any, p: int, what: str) -> Tensor:
    """A filter (p,) in float64; refuses zeros."""
    given = torch.as_tensor(w).detach().double().flatten()
    if len(given) != p or not bool(given.isfinite().all()) or float(given.norm()) == 0:
        raise InputError(f"{what}: expected {p} finite numbers, not all of them 0, got shape {tuple(given.shape)}")
    return given


@dataclass(frozen=True)
class FilterMoments:
    """Second moments of an input's patches, split by which of student and teacher are on.

    With S++ the mean over the k patches of Z_i where both are on (0 elsewhere), S+- where the student alone is and S-+
    where the teacher alone is:

    Attributes:
        both: A = E[S++ S++'] (p, p).
        student: B = E[S+- S+-'] (p, p).
        both_student: E[S++ S+-'] (p, p).
        both_teacher: E[S++ S-+'] (p, p).
        student_teacher: E[S+- S-+'] (p, p).
    """

    both: Tensor
    student: Tensor
    both_student: Tensor
    both_teacher: Tensor
    student_teacher: Tensor

    def gradient(self, w: Tensor, w_star: Tensor) -> Tensor:
        """Gradient (p,) in w of half the mean squared difference of the two outputs.

        With one patch the cross terms are 0 and it is A (w - w*) + B w.
        """
        on = self.both + self.both_student.T
        alone = self.both_student + self.student
        off = self.both_teacher + self.student_teacher
        return on @ (w - w_star) + alone @ w - off @ w_star

    def seen(self) -> Tensor:
        """Second moment (p, p) of all that the student sees: E[S S'] with S = S++ + S+-."""
        return self.both + self.both_student + self.both_student.T + self.student

    def cross(self) -> float:
        """Sum of the operator norms of the cross terms with A, which the smallest eigenvalue of A has to dominate."""
        return float(torch.linalg.matrix_norm(self.both_student, 2) + torch.linalg.matrix_norm(self.both_teacher, 2))


def filter_moments(patches: Any, w: Any, w_star: Any, weights: Tensor | None = None) -> FilterMoments:
    """Moments of patches for a student and a teacher filter.

    A patch on the edge (w'Z = 0) counts as on for both. Moments are means over inputs, not over patches: the patches of
    one input are averaged first, each with its own mask.

    Args:
        patches: (n, k, p).
        w, w_star: filters (p,).
        weights: of the inputs (n,), all 1 by default.

    Raises:
        InputError: patches or filters that do not fit, are not finite, or filters of zeros.

    Source: Du, Lee and Tian, 2017, section 4.
    """
    z = as_patches(patches)
    return _moments(z, as_filter(w, z.shape[2], "w"), as_filter(w_star, z.shape[2], "w_star"), weights)


def _moments(z: Tensor, w: Tensor, w_star: Tensor, weights: Tensor | None = None) -> FilterMoments:
    on, wanted = z @ w >= 0, z @ w_star >= 0
    k = z.shape[1]
    both, student, teacher = (
        torch.einsum("nkp,nk->np", z, mask.double()) / k for mask in (on & wanted, on & ~wanted, ~on & wanted)
    )
    weight = torch.ones(len(z), dtype=z.dtype) if weights is None else weights.double()
    weight = (weight / weight.sum())[:, None]
    return FilterMoments(
        (both * weight).T @ both,
        (student * weight).T @ student,
        (both * weight).T @ student,
        (both * weight).T @ teacher,
        (student * weight).T @ teacher,
    )


def at_angle(w_star: Tensor, phi: float, random: torch.Generator) -> Tensor:
    """A filter of the length of `w_star` at an angle from it, in a random direction."""
    unit = w_star / w_star.norm()
    other = torch.randn(len(w_star), generator=random, dtype=torch.float64)
    other = other - (other @ unit) * unit
    return w_star.norm() * (math.cos(phi) * unit + math.sin(phi) * other / other.norm())


def angular_smoothness(
    patches: Any,
    w_star: Any = None,
    angles: Sequence[float] = ANGLES,
    *,
    directions: int = 16,
    resamples: int = 0,
    normalise: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """How well conditioned the learning of a filter is, by the angle that is left between student and teacher.

    Args:
        patches: (n, k, p); see `image_patches`.
        w_star: the teacher (p,): a trained filter, or a random direction by default.
        angles: phi, above 0 and up to pi / 2.
        directions: students drawn at each angle.
        resamples: bootstrap resamples of the inputs for intervals; 0 for none.
        normalise: scale patches to a mean squared entry of 1, for all moments grow with it.
        seed: of directions and resamples.
        progress: show a progress bar.

    Returns:
        Result over phi: `gamma`, the smallest over students of the smallest eigenvalue of A; `L`, the largest over
        students of the largest eigenvalue of B; `cross`, the largest sum of norms of the cross terms; `dominated`,
        whether gamma is above `cross`; with resamples, 95 % intervals of the basic bootstrap, `gamma_low`,
        `gamma_high`, `L_low`, `L_high`. `beta`, the largest L / phi; `lambda_max`, the largest eigenvalue of the second
        moments of what a student sees, E[S S'] with S = S++ + S+-, over students and a filter that is on everywhere;
        `samples_per_entry`, n / p: smallest eigenvalues of few samples are too low and largest ones too high.

    Raises:
        InputError: fewer than 10 p inputs, constant patches, angles out of range, a filter of one entry.

    Source: Du, Lee and Tian, 2017, sections 3 and 4 (definitions 3.1 and 4.1).
    """
    z = as_patches(patches, FEWEST)
    n, _, p = z.shape
    phis = [float(a) for a in angles]
    if not phis or min(phis) <= 0 or max(phis) > math.pi / 2 + 1e-9 or p < 2 or directions < 1 or resamples < 0:
        raise InputError(
            f"expected angles above 0 up to pi / 2, filters of two entries or more, directions >= 1 and "
            f"resamples >= 0, got {phis}, {p}, {directions}, {resamples}"
        )
    z = z / z.square().mean().sqrt() if normalise else z
    random = torch.Generator().manual_seed(seed)
    teacher = (
        torch.randn(p, generator=random, dtype=torch.float64) if w_star is None else as_filter(w_star, p, "w_star")
    )
    students = [[at_angle(teacher, phi, random) for _ in range(directions)] for phi in phis]
    table = [_extremes(z, teacher, some) for some in shown(students, "angles", progress)]
    columns: dict[str, Any] = {
        name: ("phi", np.array([row[i] for row in table])) for i, name in enumerate(("gamma", "L", "cross"))
    }
    columns["dominated"] = ("phi", columns["gamma"][1] > columns["cross"][1])
    if resamples:
        drawn = []
        for _ in shown(range(resamples), "resamples", progress):
            weights = torch.bincount(torch.randint(n, (n,), generator=random), minlength=n).double()
            drawn.append([_extremes(z, teacher, some, weights)[:2] for some in students])
        low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
        for i, name in enumerate(("gamma", "L")):
            # Reflected about the estimate (the basic bootstrap): a resample repeats the bias of an extreme eigenvalue.
            twice = 2 * columns[name][1]
            columns |= {f"{name}_low": ("phi", twice - high[:, i]), f"{name}_high": ("phi", twice - low[:, i])}
    mean = z.mean(1)
    columns["beta"] = float((columns["L"][1] / np.array(phis)).max())
    # Where the patches of an input cancel, a filter that is on for some of them sees more than one that is on for all.
    columns["lambda_max"] = max(float(torch.linalg.eigvalsh(mean.T @ mean / n)[-1]), *(row[3] for row in table))
    columns["samples_per_entry"] = n / p
    hints = {"variables": ["gamma", "L", "cross"], "ylabel": "eigenvalue"}
    settings = {"angles": phis, "directions": directions, "resamples": resamples, "normalise": normalise}
    record = provenance(None, [z, teacher], seed, **settings)
    return Result(xr.Dataset(columns, {"phi": phis}, {"plot": hints}), "angular_smoothness", PAPER, record)


def _extremes(
    z: Tensor, teacher: Tensor, students: Sequence[Tensor], weights: Tensor | None = None
) -> tuple[float, float, float, float]:
    """gamma, L, the largest cross term and the largest eigenvalue of what one sees, over students."""
    found = [_moments(z, w, teacher, weights) for w in students]
    gamma = min(float(torch.linalg.eigvalsh(m.both)[0]) for m in found)
    largest = max(float(torch.linalg.eigvalsh(m.student)[-1]) for m in found)
    seen = max(float(torch.linalg.eigvalsh(m.seen())[-1]) for m in found)
    return gamma, largest, max(m.cross() for m in found), seen


def patch_closeness(patches: Any) -> dict[str, float]:
    """How alike the patches of one input are.

    Args:
        patches: (n, k, p).

    Returns:
        `cosine`, mean cosine of two patches of one input; `rho`, E |mean patch|^2 / E mean |patch|^2, from 1 / k for
        uncorrelated patches to 1 for equal ones; `same_side`, mean probability that two patches lie on the same side of
        a random hyperplane, 1 - angle / pi; `empty`, share of patches that are 0, which have no angle and are left out
        of both. With one patch all three are 1.

    Raises:
        InputError: no patches, patches that are not finite, constant, or inputs without two patches that are not 0.

    Source: Du, Lee and Tian, 2017, section 4.
    """
    z = as_patches(patches)
    k = z.shape[1]
    size = z.norm(dim=2)
    rho = float(z.mean(1).square().sum(1).mean() / z.square().sum(2).mean())
    empty = float((size == 0).double().mean())
    if k == 1:
        return {"cosine": 1.0, "rho": rho, "same_side": 1.0, "empty": empty}
    unit = z / size.clamp(min=1e-300)[..., None]
    pairs = torch.triu_indices(k, k, 1)
    cosine = angle = count = 0.0
    for some, there in zip(unit.split(256), (size > 0).split(256), strict=True):
        values = (some @ some.transpose(1, 2))[:, pairs[0], pairs[1]].clamp(-1, 1)
        real = there[:, pairs[0]] & there[:, pairs[1]]
        cosine += float(values[real].sum())
        angle += float(values[real].arccos().sum())
        count += float(real.sum())
    if not count:
        raise InputError("no input has two patches that are not 0")
    return {"cosine": cosine / count, "rho": rho, "same_side": 1 - angle / count / math.pi, "empty": empty}


def suggest_lr_schedule(smoothness: Result, first: float | None = None) -> Callable[[float], float]:
    """A learning rate by the angle that is left: small at first, larger as the filter is found.

    The rate is proportional to gamma(phi), as the bound on a safe step is; its constant is a guide and no guarantee.
    Between the angles measured it is interpolated, outside it stays.

    Args:
        smoothness: of `angular_smoothness`.
        first: rate at the largest angle; gamma / lambda_max^2 there by default.

    Returns:
        from an angle in radians to a rate.

    Raises:
        InputError: another result, or gamma is not above 0 at the largest angle.

    Source: Du, Lee and Tian, 2017, section 3 (two-stage rates).
    """
    if not isinstance(smoothness, Result) or smoothness.method != "angular_smoothness":
        raise InputError("expected the Result of angular_smoothness")
    found = smoothness.data.sortby("phi")
    phis, gamma = found["phi"].values, found["gamma"].values
    if not gamma[-1] > 0:
        raise InputError(f"gamma is {gamma[-1]:g} at {phis[-1]:g} rad: no rate is known to be safe")
    start = float(gamma[-1] / float(found["lambda_max"]) ** 2) if first is None else float(first)
    if not start > 0:
        raise InputError(f"a learning rate is above 0, not {first}")
    return lambda angle: float(np.interp(angle, phis, start * gamma / gamma[-1]))
