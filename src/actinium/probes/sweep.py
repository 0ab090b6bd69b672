"""What can be read where: one probe for each site and position, against control tasks and shuffled labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.intervals import wilson
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.result import Result
from actinium.core.sites import select
from actinium.probes.calibration import auroc
from actinium.probes.intervals import area_interval, effective_number, mean_interval
from actinium.probes.linear import LinearProbe
from actinium.probes.positions import activations_at, as_places, pick
from actinium.probes.rows import as_classes, as_rows, one_value_each
from actinium.probes.splits import Fold, group_folds
from actinium.store.store import Store

__all__ = ["probe_sweep"]

Floats = NDArray[np.float64]
ONE = "row"


def probe_sweep(
    source: Any,
    sites: str | Sequence[str],
    labels: Any,
    *,
    inputs: Any = None,
    positions: Any = -1,
    groups: Any = None,
    types: Any = None,
    probe: Estimator | None = None,
    folds: int = 5,
    control: bool = True,
    level: float = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Cross-validated accuracy and area under the ROC curve of a probe at every site and position.

    No group stands on both sides of a fold. `shuffled` is the accuracy on labels that were permuted (whole groups
    where each has one label): chance for this probe and these data. The control task gives every *type* a label of
    its own at random, in the shares of the real ones, and lets types stand on both sides: what a probe reaches there
    it has memorised. Selectivity is the difference.

    Args:
        source: a model (with `inputs`), a Recording, a Store, or {name: activations (n, d)}.
        sites: names and patterns of sites.
        labels: (n,) classes, one for each text or row of a store.
        inputs: texts or tokens for a model.
        positions: of models and recordings: a number (0 first token, -1 last), "mean", a tensor (n,), a list of
            numbers, or {label: one of these}.
        groups: (n,) what must not stand on both sides. By default the text of each row of a recording, and the
            document of each row of a store.
        types: (n,) what a control task gives a label to, such as the id of the token that is probed. Without types
            there is no control task.
        probe: an unfitted probe with `fit(x, labels)`, `predict` and `decision_function`; `LinearProbe()` by default.
        folds: of the cross-validation.
        control: measure shuffled labels and, with types, the control task.
        level: coverage of the intervals.
        batch_size: texts in a pass of a model.
        seed: of folds, shuffles, control labels and intervals.
        progress: show a progress bar.

    Returns:
        Result over site and position: `accuracy` with `accuracy_low` and `accuracy_high` (Wilson, with the effective
        number of independent rows), `auroc` (mean over folds, of several classes one against the rest) with its
        interval (bootstrap over groups); with `control` also `shuffled`, and with types `control`, `selectivity` and
        its interval (bootstrap over groups). `majority` is the share of the largest class. Intervals are those of
        one place: that of the best of many is too high.

    Raises:
        InputError: shapes do not fit, a fold lacks a class, positions are missing, or the probe is a regression.
        SiteError: a site does not exist.
        MissingExtraError: scikit-learn is not installed.

    Source: Hewitt and Liang, 2019, section 2 (control tasks and selectivity).
    """
    chosen = LinearProbe() if probe is None else probe
    if getattr(chosen, "regression", False):
        raise InputError("a sweep measures classes; for numbers fit the regression probe at each site")
    data, usual = _read(source, sites, inputs, positions, batch_size, progress)
    n = len(next(iter(data.values())))
    classes, y = as_classes(labels, n)
    if types is not None and not control:
        raise InputError("types are for the control task; with control=False there is none")
    given = usual if groups is None else groups
    of = np.arange(n) if given is None else np.unique(one_value_each(given, n, "groups"), return_inverse=True)[1]
    plan = _planned(y, of, types, folds, control, seed)
    values: dict[tuple[str, str], dict[str, float]] = {}
    for key in shown(list(data), "probing", progress):
        values[key] = _measured(chosen, as_rows(data[key], key[0]), y, of, plan, level, seed)
    names = [list(dict.fromkeys(key[i] for key in data)) for i in (0, 1)]
    tables = {
        what: (("site", "position"), np.array([[values[s, p][what] for p in names[1]] for s in names[0]]))
        for what in next(iter(values.values()))
    }
    tables["majority"] = ((), float(np.bincount(y).max() / n))  # type: ignore[assignment]
    return Result(
        xr.Dataset(
            tables, coords={"site": names[0], "position": names[1]}, attrs={"classes": [str(c) for c in classes]}
        ),
        "probe_sweep",
        provenance=provenance(
            source if isinstance(source, Model) else None,
            [y, of, [np.asarray(data[key]) for key in data]],
            seed,
            sites=names[0],
            positions=names[1],
            probe=repr(chosen),
            folds=folds,
            control=control,
            level=level,
        ),
    )


def _read(
    source: Any, sites: Any, inputs: Any, positions: Any, batch_size: int | None, progress: bool
) -> tuple[dict[tuple[str, str], Any], Any]:
    """Activations (n, d) by site and position, and the groups that the source itself knows."""
    if isinstance(source, Model):
        if inputs is None:
            raise InputError("a model needs inputs=, the texts that the labels belong to")
        places = as_places(positions)
        return activations_at(source, inputs, sites, places, batch_size=batch_size, progress=progress), None
    if inputs is not None:
        raise InputError("inputs belong to a model; recorded activations have theirs")
    if isinstance(source, Recording):
        places = as_places(positions)
        patterns = [sites] if isinstance(sites, str) else list(sites)
        found = [name for one in patterns for name in select(one, source.values, source.n_layers)]
        data = {}
        for name in dict.fromkeys(found):
            for label, place in places.items():
                value, dims = source[name], source.dims[name]
                if not isinstance(value, Tensor):
                    raise InputError(f"{name} holds a reducer's result, and a probe needs rows")
                mask = source.mask if source.mask is None or len(source.mask) == len(value) else None
                data[name, label] = pick(value, mask, place, name) if "pos" in dims else value.flatten(1)
        return data, source.rows
    if isinstance(source, Store):
        patterns = [sites] if isinstance(sites, str) else list(sites)
        found = [name for one in patterns for name in select(one, source.sites, 0)]
        return {(name, ONE): source[name][:].flatten(1) for name in dict.fromkeys(found)}, source.column("document")
    if isinstance(source, Mapping) and source:
        names = list(source) if sites == "**" else [sites] if isinstance(sites, str) else list(sites)
        missing = [name for name in names if name not in source]
        if missing:
            raise InputError(f"there are no activations named {missing[0]!r}; there are {', '.join(map(str, source))}")
        return {(str(name), ONE): as_rows(source[name], str(name)) for name in names}, None
    raise InputError(f"expected a model, a Recording, a Store or activations by name, not {type(source).__name__}")


@dataclass(frozen=True)
class _Plan:
    """Folds for the labels, and labels with folds for what they are compared with."""

    folds: list[Fold]
    shuffled: tuple[NDArray[np.int64], list[Fold]] | None
    control: tuple[NDArray[np.int64], list[Fold]] | None


def _planned(y: NDArray[np.int64], of: NDArray[np.int64], types: Any, folds: int, control: bool, seed: int) -> _Plan:
    real = group_folds(y, of, folds, seed=seed)
    if not control:
        return _Plan(real, None, None)
    random = np.random.default_rng(seed)
    mixed = _shuffled(y, of, random)
    shuffled = (mixed, group_folds(mixed, of, folds, seed=seed))
    if types is None:
        return _Plan(real, shuffled, None)
    kinds = np.unique(one_value_each(types, len(y), "types"), return_inverse=True)[1]
    count = int(kinds.max()) + 1
    if count < 2 * len(np.unique(y)):
        raise InputError(f"{count} types are too few for a control task of {len(np.unique(y))} classes")
    # Labels in the shares of the real ones, so that the control task is as unbalanced as the task.
    quantiles = np.sort(y)[((np.arange(count) + 0.5) / count * len(y)).astype(np.int64)]
    invented = random.permutation(quantiles)[kinds]
    return _Plan(real, shuffled, (invented, group_folds(invented, None, folds, seed=seed)))


def _shuffled(y: NDArray[np.int64], of: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Permuted labels; whole groups change places where each has one label, which keeps what makes them alike."""
    first = np.full(int(of.max()) + 1, -1)
    first[of] = y
    return random.permutation(first)[of] if (first[of] == y).all() else random.permutation(y)


def _measured(
    probe: Estimator, x: Floats, y: NDArray[np.int64], of: NDArray[np.int64], plan: _Plan, level: float, seed: int
) -> dict[str, float]:
    right, scores = _held_out(probe, x, y, of, plan.folds)
    share = float(right.mean())
    low, high = wilson(share, effective_number(right, of), level)
    out = {"accuracy": share, "accuracy_low": low, "accuracy_high": high}
    columns, positive, groups = [], [], []
    for (_, test), score in zip(plan.folds, scores, strict=True):
        table = score[:, None] if score.ndim == 1 else score
        for column in range(table.shape[1]):
            columns.append(table[:, column])
            positive.append(y[test] == (1 if score.ndim == 1 else column))
            groups.append(of[test])
    out["auroc"] = float(np.mean([auroc(c, p) for c, p in zip(columns, positive, strict=True)]))
    out["auroc_low"], out["auroc_high"] = area_interval(columns, positive, groups, level=level, seed=seed)
    if plan.shuffled is not None:
        out["shuffled"] = float(_held_out(probe, x, plan.shuffled[0], of, plan.shuffled[1])[0].mean())
    if plan.control is not None:
        memorised = _held_out(probe, x, plan.control[0], of, plan.control[1])[0]
        out["control"] = float(memorised.mean())
        out["selectivity"] = share - out["control"]
        interval = mean_interval(right - memorised, of, level=level, seed=seed)
        out["selectivity_low"], out["selectivity_high"] = interval
    return out


def _held_out(
    probe: Estimator, x: Floats, y: NDArray[np.int64], of: NDArray[np.int64], folds: list[Fold]
) -> tuple[Floats, list[Floats]]:
    """Whether each row was right (n,) when it was held out, and the scores of each fold's test rows."""
    right = np.zeros(len(y))
    scores = []
    for train, test in folds:
        fresh: Any = type(probe)(**probe.get_params())
        # A probe that chooses its penalty by cross-validation of its own keeps the groups apart there, too.
        more = {"groups": of[train]} if getattr(fresh, "cv", None) is not None else {}
        fresh.fit(x[train], y[train], **more)
        right[test] = fresh.predict(x[test]) == y[test]
        scores.append(fresh.decision_function(x[test]))
    return right, scores
