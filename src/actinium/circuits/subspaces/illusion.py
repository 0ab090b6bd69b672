"""Does a subspace patch work through what the model uses, or does it wake a dormant pathway?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import Contrast, check_task, contrasts, last_logits
from actinium.circuits.subspaces.directions import at_position, orthonormal, two_classes
from actinium.circuits.subspaces.readout import readout_weight
from actinium.circuits.subspaces.subspace_patch import (
    ENDS,
    answers_of,
    fractional_decrease,
    interchange_scores,
    task_record,
)
from actinium.core.edits import Replace
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows
from actinium.core.task import Task

__all__ = ["FAITHFUL", "FEW", "SILENT", "WORKS", "Split", "illusion_diagnostics", "illusion_test", "split_directions"]

WORKS = 0.5
"""Fractional logit-difference decrease from which a patch counts as working (2 is a full flip)."""
FAITHFUL = 0.8
"""Share of the patch's success that the row part alone keeps if the subspace is faithful."""
FEW = 0.5
"""Share of the patch's success below which the row part alone does not explain it."""
SILENT = 0.1
"""Share of the patch's success that the null part alone may have if it is disconnected."""
SEPARATES = 1.0
"""Distance of the class means, in standard deviations, from which a part counts as separating the classes."""
TOLERANCE = 1e-6
"""Singular values of a read-out below this share of the largest one count as zero."""

PATCHES = ("full", "subspace", "null", "row", "row, same shift")
PARTS = ("subspace", "null", "row")
Outcome = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Directions and their parts in the kernel of a read-out and in its orthogonal complement.

    Attributes:
        directions: (k, d) orthonormal.
        null, row: (k, d), which sum to the directions.
        share: of the squared length of the directions that the null part has, 0 to 1.
    """

    directions: Tensor
    null: Tensor
    row: Tensor
    share: float


def split_directions(directions: Any, readout: Any, tolerance: float = TOLERANCE) -> Split:
    """Split directions into what a read-out does not see and what it sees.

    Args:
        directions: (d,) or (k, d).
        readout: (m, d), its rows read the activations.
        tolerance: singular values below this share of the largest count as zero.

    Raises:
        InputError: the read-out has another width, is zero, or is not finite.

    Source: Makelov, Lange and Nanda, 2023, section 4.
    """
    basis = orthonormal(directions)
    read = torch.as_tensor(readout).detach().cpu().double()
    read = read[None] if read.ndim == 1 else read
    if read.ndim != 2 or read.shape[1] != basis.shape[1]:
        raise InputError(f"a read-out of {basis.shape[1]} entries a row is needed, got shape {tuple(read.shape)}")
    if not bool(torch.isfinite(read).all()) or not bool(read.any()):
        raise InputError("the read-out is zero or not finite")
    _, size, rows = torch.linalg.svd(read, full_matrices=False)
    rows = rows[size > tolerance * size[0]]
    row = basis @ rows.T @ rows
    null = basis - row
    return Split(basis, null, row, min(float(null.square().sum()) / len(basis), 1.0))


def illusion_diagnostics(
    directions: Any,
    base: Any,
    source: Any,
    readout: Any,
    labels: Any,
    outcome: Outcome | None = None,
    *,
    source_labels: Any = None,
) -> Result:
    """Split a subspace by what reads it, and see what each part knows and does: on plain activations.

    Args:
        directions: (d,) or (k, d).
        base, source: activations (row, d) of the two runs of each pair.
        readout: (m, d), whose rows read the activations.
        labels: the feature in the base runs (row,).
        outcome: (row, d) -> (row,), the logit difference between the base's answer and the source's where these
            activations stand in place of the base's; without it only the geometry is described.
        source_labels: the feature in the source runs (row,); by default the other one of the two values of `labels`.

    Returns:
        Result as `illusion_test`; without an outcome it has no patches and no verdict.

    Raises:
        InputError: shapes do not fit, the read-out has another width, or base and source of a pair have the same label.

    Source: Makelov, Lange and Nanda, 2023, sections 3 and 4.
    """
    given = {"base": base, "source": source}
    u, w = (as_rows(rows, what, dtype=torch.float64).cpu() for what, rows in given.items())
    if u.shape != w.shape:
        raise InputError(f"base {tuple(u.shape)} and source {tuple(w.shape)} differ in shape")
    split = split_directions(orthonormal(directions, u.shape[1]), readout)
    of = _of_pairs(labels, source_labels, len(u))
    scores = None
    if outcome is not None:
        scores = {name: _of_outcome(outcome, value, len(u)) for name, value in _patched(split, u, w).items()}
    inputs = {"base": u, "source": w, "readout": torch.as_tensor(readout), "labels": of}
    record = provenance(None, inputs, directions=split.directions)
    return _result(split, u, w, of, scores, "illusion_diagnostics", record)


def _of_pairs(labels: Any, source_labels: Any, n: int) -> Tensor:
    """(row,) bool, the feature in the base runs; in the sources it is the other way round."""
    if source_labels is None:
        return two_classes(labels, n)
    of = two_classes(torch.cat([torch.as_tensor(labels), torch.as_tensor(source_labels)]), 2 * n)
    same = int((of[:n] == of[n:]).sum())
    if same:
        raise InputError(f"base and source have the same label in {same} of {n} pairs; patch between different ones")
    return of[:n]


def _of_outcome(outcome: Outcome, activations: Tensor, rows: int) -> Tensor:
    """(row, 2): the logit difference, and whether the source's answer is ahead."""
    found = outcome(activations)
    if not isinstance(found, Tensor) or found.shape != (rows,):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"an outcome gives one logit difference for each of {rows} rows, not {got}")
    found = found.detach().double()
    return torch.stack([found, (found < 0).double()], 1)


def illusion_test(
    model: Model,
    task: Task,
    site: str,
    directions: Any,
    readout: Any = None,
    *,
    labels: Any = None,
    position: int | Tensor = -1,
    head: int | None = None,
    mode: str = "both",
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """Split a subspace by what reads it, and patch along each part.

    A patch can work because part of the subspace carries the feature though nothing reads it, and another part,
    silent in all natural runs, drives the answer once it is given the first part's shift.

    Args:
        model: a causal language model.
        task: pairs that differ in the feature.
        site: name of the site.
        directions: (d,) or (k, d).
        readout: (m, d), whose rows read the site; by default the weight of the linear map that the site enters
            (mlp.post, attn.z). In the residual stream give `reading_directions(...)`.
        labels: the feature in the clean prompts (row,), two values, the corrupt prompts having the other one; by
            default the answer, where the task has two.
        position: token position that is patched (0 first, -1 last), or one for each row (row,).
        head: of a site with heads.
        mode: "noise", "denoise" or "both", as in `subspace_patch`.
        batch_size: rows run at a time, by default all.
        progress: show a progress bar.

    Returns:
        Result. Over "patch" (full component, subspace, null part, row part, and the row part with the shift of the
        subspace): `fldd` and `interchange_accuracy`. Over "part" (subspace, null, row): `share` of the squared
        length, `correlation` of its coordinates with the feature, `d_prime`, the distance of the class means in
        standard deviations. `variance_ratio`: variance of the row part's coordinates in patched runs over that in
        natural ones. `illusory` and `faithful` (0 or 1), by `WORKS`, `FEW`, `FAITHFUL` and `SILENT`; neither where
        the patch does not work or the case is mixed. `exceeds_full`: 1 where the patch works and has more than
        twice the effect of the full component.

    Raises:
        InputError: as `subspace_patch`; the read-out has another width or is not known; labels are all equal or
            missing.
        SiteError, UnknownNameError: a site or mode does not exist.

    Source: Makelov, Lange and Nanda, 2023, sections 3 to 5; the thresholds are ours.
    """
    check_task(model, task)
    if mode not in ENDS:
        raise UnknownNameError(unknown("mode", str(mode), ENDS))
    ((known, _, _), *more) = model.resolve(site)
    if more:
        raise InputError(f"{site!r} means {len(more) + 1} sites; a subspace belongs to one")
    read = readout_weight(model, site, head) if readout is None else torch.as_tensor(readout).detach().cpu()
    width = known.sizes.get(known.dims[-1]) if known.dims else None
    split = split_directions(orthonormal(directions, width), read)
    of = _labels(task, labels)
    runs = _Runs(model, task, site, position, head, mode, batch_size)
    base, source = runs.base.double().cpu(), runs.source.double().cpu()
    patched = _patched(split, base, source)
    scores = runs.score(patched, progress)
    # Which label a base has depends on which run of the pair it is.
    ends = torch.cat([of if end == "noise" else ~of for end in ENDS[mode]])
    record = provenance(
        model, task_record(task), site=site, directions=split.directions, readout=read, labels=of, position=position,
        head=head, mode=mode,
    )  # fmt: skip
    return _result(split, base, source, ends, scores, "illusion_test", record)


def _labels(task: Task, labels: Any) -> Tensor:
    """(row,) bool: the feature in the clean prompts."""
    if labels is not None:
        return two_classes(labels, len(task))
    if len({*task.answer_ids.tolist(), *task.wrong_ids.tolist()}) != 2:
        raise InputError(
            f"the task {task.name!r} has more than two answers, so they do not say which value the feature has: give "
            "labels= of the clean prompts"
        )
    return task.answer_ids > task.wrong_ids


class _Runs:
    """Base and source activations at one position, and the runs in which others stand in the base's place."""

    def __init__(
        self, model: Model, task: Task, site: str, position: int | Tensor, head: int | None, mode: str, size: int | None
    ) -> None:
        self.model, self.site, self.head = model, site, head
        self.parts: list[tuple[Contrast, str, Any]] = []
        base: list[Tensor] = []
        source: list[Tensor] = []
        for end in ENDS[mode]:
            for contrast in contrasts(model, task, None, 0, size)[0]:
                where = position[contrast.rows] if isinstance(position, Tensor) and position.ndim else position
                for inputs, kept in zip(contrast.ends(end), (base, source), strict=True):
                    _, rec = last_logits(model, inputs, [site])
                    assert rec is not None
                    kept.append(at_position(rec[site], contrast.tokens.mask, where, head))
                self.parts.append((contrast, end, where))
        self.base, self.source = torch.cat(base), torch.cat(source)

    def score(self, patched: Mapping[str, Tensor], progress: bool) -> dict[str, Tensor]:
        """(row, 2) of each patch: logit difference of base's and source's answer, and whether the latter is on top."""
        found: dict[str, list[Tensor]] = {name: [] for name in patched}
        first = 0
        for contrast, end, where in self.parts:
            ids = answers_of(contrast, end)
            rows = slice(first, first + len(ids[0]))
            first = rows.stop
            positions = where[:, None] if isinstance(where, Tensor) and where.ndim else where
            shape = (len(ids[0]), 1, -1) if self.head is None else (len(ids[0]), 1, 1, -1)
            variants = [
                {self.site: Replace(value[rows].to(self.base).view(shape)).at(positions=positions, heads=self.head)}
                for value in patched.values()
            ]

            def metric(logits: Tensor, ids: tuple[Tensor, Tensor] = ids) -> Tensor:
                return interchange_scores(logits, *ids)[..., :2]

            inputs, _ = contrast.ends(end)
            values = self.model.replay(inputs, variants, metric=metric, progress=progress).cpu()
            for name, value in zip(patched, values, strict=True):
                found[name].append(value)
        return {name: torch.cat(values) for name, values in found.items()}


def _span(rows: Tensor) -> Tensor:
    """Orthonormal basis of the span of parts of orthonormal directions; none where they are rounding."""
    _, size, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[size > TOLERANCE]


def _patched(split: Split, base: Tensor, source: Tensor) -> dict[str, Tensor]:
    """Activations (row, d) of every patch, and of the base itself."""
    shift = (source - base) @ split.directions.T
    null, row = _span(split.null), _span(split.row)
    return {
        "base": base,
        "full": source,
        "subspace": base + shift @ split.directions,
        "null": base + (source - base) @ null.T @ null,
        "row": base + (source - base) @ row.T @ row,
        "row, same shift": base + shift @ split.row,
    }


def _knows(rows: Tensor, basis: Tensor, of: Tensor) -> tuple[float, float]:
    """Multiple correlation with the label of the coordinates in a basis (k, d), and the distance of the classes."""
    if not len(basis):
        return 0.0, 0.0
    x = (rows - rows.mean(0)) @ basis.T
    scale = float((rows - rows.mean(0)).square().sum())
    if not float(x.square().sum()) > 1e-20 * scale:
        return 0.0, 0.0
    y = of.double() - of.double().mean()
    fit = x @ torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
    correlation = float((fit.square().sum() / y.square().sum()).clamp(0, 1).sqrt())
    means = [x[of].mean(0), x[~of].mean(0)]
    left = torch.cat([x[of] - means[0], x[~of] - means[1]])
    pooled = left.T @ left / max(len(x) - 2, 1)
    # A class without any spread is as far away as rounding can tell.
    pooled = pooled + torch.eye(len(pooled), dtype=pooled.dtype) * 1e-12 * float(x.square().sum()) / len(x)
    gap = means[0] - means[1]
    return correlation, float(gap @ torch.linalg.solve(pooled, gap)) ** 0.5


def _result(
    split: Split,
    base: Tensor,
    source: Tensor,
    of: Tensor,
    scores: dict[str, Tensor] | None,
    made_by: str,
    record: dict[str, Any],
) -> Result:
    natural, labels = torch.cat([base, source]), torch.cat([of, ~of])
    row = _span(split.row)
    known = [_knows(natural, b, labels) for b in (split.directions, _span(split.null), row)]
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {"part": np.array(PARTS)}
    if scores is not None:
        before = scores["base"][:, 0].cpu()
        fldd = [float(fractional_decrease(before, scores[name][:, 0].cpu())) for name in PATCHES]
        data["fldd"] = (("patch",), fldd)
        data["interchange_accuracy"] = (("patch",), [float(scores[name][:, 1].mean()) for name in PATCHES])
        coords["patch"] = np.array(PATCHES)
    data["share"] = (("part",), [1.0, split.share, 1.0 - split.share])
    data["correlation"] = (("part",), [c for c, _ in known])
    data["d_prime"] = (("part",), [d for _, d in known])
    data["variance_ratio"] = ((), _variance_ratio(split, base, source, natural, row))
    if scores is not None:
        data |= {
            name: ((), int(value)) for name, value in _verdict(dict(zip(PATCHES, fldd, strict=True)), known).items()
        }
    hints = {"kind": "bar", "variables": ["fldd", "interchange_accuracy"] if scores is not None else ["correlation"]}
    found = xr.Dataset(data, coords=coords, attrs={"plot": hints})
    return Result(found, made_by, "subspace-illusion", record)


def _variance_ratio(split: Split, base: Tensor, source: Tensor, natural: Tensor, row: Tensor) -> float:
    """Variance of the row part's coordinates in patched runs over that in natural ones; 1 without a row part."""
    patched = _patched(split, base, source)["subspace"] @ row.T
    before = natural @ row.T
    own = float((before - before.mean(0)).square().sum()) / len(before)
    new = float((patched - patched.mean(0)).square().sum()) / len(patched)
    floor = 1e-20 * float(natural.square().sum()) / len(natural)
    return new / own if own > floor else (1.0 if new <= floor else float("inf"))


def _verdict(fldd: dict[str, float], known: list[tuple[float, float]]) -> dict[str, bool]:
    success, row, null = fldd["subspace"], fldd["row"], fldd["null"]
    works = success >= WORKS
    (_, (null_correlation, _), (row_correlation, row_distance)) = known
    silent = abs(null) <= SILENT * success
    return {
        "illusory": works and row < FEW * success and silent and null_correlation > row_correlation,
        "faithful": works and row >= FAITHFUL * success and row_distance >= SEPARATES,
        "exceeds_full": works and success > 2 * fldd["full"],
    }
