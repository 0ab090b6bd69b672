"""Whether latents are known concepts: recall by correlation, splitting and absorption, and targeted perturbation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.splicing import changed_reconstruction

__all__ = ["absorption", "concept_recovery", "targeted_perturbation"]

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]


def concept_recovery(latents: Any, labels: Any, names: Any = None, threshold: float = 0.0) -> Result:
    """For each concept the latent whose activity agrees with it best.

    Args:
        latents: (n, d_sae) activations of latents, or of other directions.
        labels: (n, concept) 0 or 1.
        names: of the concepts.
        threshold: a latent counts as active above it.

    Returns:
        Result over `concept`: `mcc`, the largest Matthews correlation of being active with the concept; `latent`, the
        one; its `precision` and `recall`; `auroc`, the largest of a latent's activation, and `auroc_latent`;
        `frequency` of the concept; `shared`, with how many other concepts the latent is shared. `mean_mcc`.

    Raises:
        InputError: shapes do not fit, values are not finite, a label is not 0 or 1, or a concept is never or always
            there.

    Source: of the correlation Matthews, 1975.
    """
    f, y, words = _checked(latents, labels, names)
    active = f > threshold
    n, count = float(len(y)), active.sum(0, dtype=np.float64)
    positive = y.sum(0, dtype=np.float64)
    both = y.astype(np.float64).T @ active
    # (concept, latent): of the four cells of each table, from its margins.
    top = both * n - np.outer(positive, count)
    bottom = np.sqrt(np.outer(positive * (n - positive), count * (n - count)))
    mcc = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    best = mcc.argmax(1)
    rows = np.arange(len(best))
    area = _auroc(f, y)
    data = {
        "mcc": mcc[rows, best],
        "latent": best,
        "precision": both[rows, best] / np.maximum(count[best], 1),
        "recall": both[rows, best] / positive,
        "auroc": area.max(1),
        "auroc_latent": area.argmax(1),
        "frequency": positive / n,
        "shared": np.array([int((best == b).sum()) - 1 for b in best]),
    }
    found = xr.Dataset({k: ("concept", v) for k, v in data.items()}, {"concept": words})
    found["mean_mcc"] = float(data["mcc"].mean())
    found.attrs["plot"] = {"kind": "bar", "variables": ["mcc"]}
    return Result(found, "concept_recovery", provenance=provenance(None, [f, y], threshold=threshold))


def absorption(
    dictionary: Dictionary,
    latents: Any,
    activations: Any,
    labels: Any,
    names: Any = None,
    k: int = 5,
    similar: float = 0.1,
) -> Result:
    """How a concept is split over latents, and how often a more special latent keeps its own from being active.

    A concept's main latent is the one that predicts it best alone. It is split if more latents together predict it much
    better. It is absorbed at a row that has the concept and that a linear probe of the activations finds, if none of
    the k best latents is active there, while some other latent is whose decoder row points along the probe.

    Args:
        dictionary: the latents' dictionary.
        latents: (n, d_sae).
        activations: (n, d_in), of which they are the latents.
        labels: (n, concept) 0 or 1.
        names: of the concepts.
        k: most latents that count as the concept's own.
        similar: least cosine of a decoder row and the probe.

    Returns:
        Result over `concept`: `f1` over `size` 1 to k, of logistic regressions on so many latents, chosen by the size
            of
        their difference in means; `split`, the smallest number of latents that no further one improves by 0.03;
        `absorbed`, the share of the rows with the concept that the probe finds; `probe_f1` of the probe.

    Raises:
        InputError: as `concept_recovery`; k is not between 1 and the number of latents.
        MissingExtraError: scikit-learn is not installed.

    Source: Chanin et al., 2024; Karvonen et al., 2025 (SAEBench), section 3, simplified: absorbing latents are told by
    their direction, not by an ablation.
    """
    linear, score = _learn()
    f, y, words = _checked(latents, labels, names)
    x = np.asarray(torch.as_tensor(activations).detach().cpu(), dtype=np.float64)
    if x.shape != (len(f), dictionary.d_in) or f.shape[1] != dictionary.d_sae:
        raise InputError(f"expected activations {(len(f), dictionary.d_in)} and {dictionary.d_sae} latents")
    if not 1 <= k <= f.shape[1]:
        raise InputError(f"k must be between 1 and {f.shape[1]}, not {k}")
    decoder = dictionary.W_dec.detach().double().cpu().numpy()
    decoder = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    rows: dict[str, list[Any]] = {"f1": [], "split": [], "absorbed": [], "probe_f1": []}
    for c in range(y.shape[1]):
        own = y[:, c]
        gap = f[own].mean(0) - f[~own].mean(0)
        order = np.argsort(-np.abs(gap))[:k]
        curve = []
        for size in range(1, k + 1):
            part = f[:, order[:size]]
            curve.append(float(score(own, linear.fit(part, own).predict(part))))
        rows["f1"].append(curve)
        rows["split"].append(next(i + 1 for i in range(k) if max(curve) - curve[i] < 0.03))
        probe = linear.fit(x, own)
        found = probe.predict(x) & own
        rows["probe_f1"].append(float(score(own, probe.predict(x))))
        way = probe.coef_[0] / max(float(np.linalg.norm(probe.coef_[0])), 1e-12)
        along = decoder @ way > similar
        along[order] = False
        missed = found & ~(f[:, order] > 0).any(1)
        taken = missed & (f[:, along] > 0).any(1)
        rows["absorbed"].append(float(taken.sum() / max(1, found.sum())))
    data = {name: ("concept", np.array(value)) for name, value in rows.items() if name != "f1"}
    data["f1"] = (("concept", "size"), np.array(rows["f1"]))  # type: ignore[assignment]
    coords = {"concept": words, "size": np.arange(1, k + 1)}
    about = provenance(None, [f, y, x], dictionary=repr(dictionary), k=k, similar=similar)
    return Result(xr.Dataset(dict(sorted(data.items())), coords), "absorption", provenance=about)


def targeted_perturbation(
    dictionary: Dictionary, activations: Any, labels: Any, names: Any = None, n: int = 10
) -> Result:
    """Whether taking away a concept's latents hurts the probe of that concept and no other.

    Args:
        dictionary: an autoencoder.
        activations: (rows, d_in).
        labels: (rows, concept) 0 or 1; two concepts or more.
        names: of the concepts.
        n: latents taken away for each concept: those whose difference in means, seen by its probe, is largest.

    Returns:
        Result: `drop` of the accuracy over `ablated` and `probed` concept, in which errors of the reconstruction are
            held;
        `accuracy` of each probe; `score`, the mean drop of a concept's own probe less that of the others.

    Raises:
        InputError: as `concept_recovery`; there is one concept only.
        MissingExtraError: scikit-learn is not installed.

    Source: Karvonen et al., 2025 (SAEBench), targeted probe perturbation.
    """
    linear, _ = _learn()
    x = torch.as_tensor(activations).detach().float().cpu()
    with torch.no_grad():
        out = dictionary(x)
        f, missed = out.f, x - out.xhat
    _, y, words = _checked(f, labels, names)
    if y.shape[1] < 2:
        raise InputError("a perturbation is targeted if other concepts stay: give two or more")
    from sklearn.base import clone

    probes = [clone(linear).fit(x.numpy(), y[:, c]) for c in range(y.shape[1])]
    accuracy = np.array([probe.score(x.numpy(), y[:, c]) for c, probe in enumerate(probes)])
    decoder = dictionary.W_dec.detach().double().numpy()
    drop = np.zeros((y.shape[1], y.shape[1]))
    for c, probe in enumerate(probes):
        own = torch.from_numpy(y[:, c])
        gap = (f[own].mean(0) - f[~own].mean(0)).double().numpy()
        chosen = np.argsort(-np.abs(gap * (decoder @ probe.coef_[0])))[:n]
        changed = f.clone()
        changed[:, torch.from_numpy(chosen.copy())] = 0
        with torch.no_grad():
            new = changed_reconstruction(dictionary, x, out, lambda _, changed=changed: changed) + missed
        for other, judge in enumerate(probes):
            drop[c, other] = accuracy[other] - judge.score(new.numpy(), y[:, other])
    off = ~np.eye(len(words), dtype=bool)
    data = {
        "drop": (("ablated", "probed"), drop),
        "accuracy": ("probed", accuracy),
        "score": ((), float(np.diag(drop).mean() - drop[off].mean())),
    }
    about = provenance(None, [x, y], dictionary=repr(dictionary), n=n)
    coords = {"ablated": words, "probed": words}
    return Result(xr.Dataset(data, coords), "targeted_perturbation", provenance=about)


def _checked(latents: Any, labels: Any, names: Any) -> tuple[Floats, Labels, list[str]]:
    f = latents if isinstance(latents, Tensor) else torch.as_tensor(np.asarray(latents))
    y = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    y = y[:, None] if y.ndim == 1 else y
    if f.ndim != 2 or y.ndim != 2 or len(f) != len(y) or not len(f):
        raise InputError(f"expected latents (n, d_sae) and labels (n, concept), not {tuple(f.shape)}, {tuple(y.shape)}")
    if not bool(f.isfinite().all()):
        raise InputError("latents hold NaN or infinity")
    if not bool(((y == 0) | (y == 1)).all()):
        raise InputError("labels are 0 or 1")
    words = [str(i) for i in range(y.shape[1])] if names is None else [str(n) for n in names]
    if len(words) != y.shape[1]:
        raise InputError(f"{len(words)} names for {y.shape[1]} concepts")
    own = y.bool().cpu().numpy()
    for name, share in zip(words, own.mean(0), strict=True):
        if not 0 < share < 1:
            raise InputError(
                f"concept {name!r} is {'never' if share == 0 else 'always'} there, so nothing agrees with it"
            )
    return f.detach().double().cpu().numpy(), own, words


def _auroc(f: Floats, y: Labels) -> Floats:
    """(concept, latent) area under the curve of each latent's activation, ties halved."""
    from scipy.stats import rankdata

    ranks = rankdata(f, axis=0)
    positive = y.sum(0).astype(np.float64)
    sums = y.astype(np.float64).T @ ranks
    area: Floats = (sums - (positive * (positive + 1) / 2)[:, None]) / (positive * (len(y) - positive))[:, None]
    return area


def _learn() -> tuple[Any, Any]:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    return LogisticRegression(max_iter=1000), f1_score
