"""Was this text in the training data? Scores from output distributions alone, and how well scores separate."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.calibration import auroc
from actinium.probes.output_signature import FLAT, OutputSignature, one_kind
from actinium.probes.rows import as_vector, one_value_each

__all__ = [
    "binary_labels",
    "membership_inference",
    "membership_scores",
    "min_k",
    "min_k_plus_plus",
    "perplexity_of",
    "reference_ratio",
    "step_entropy",
    "tpr_at_fpr",
    "zlib_ratio",
]


def perplexity_of(signature: OutputSignature) -> float:
    """exp of the mean negative log-probability of the tokens that occurred."""
    return math.exp(-float(signature.atp.double().mean()))


def min_k(signature: OutputSignature, k: float = 0.2) -> float:
    """Min-K%: mean of the k lowest log-probabilities of tokens that occurred; higher for known texts.

    Args:
        signature: of the text.
        k: share of the tokens, above 0 and at most 1; at least one token is taken.

    Raises:
        InputError: k is out of range.

    Source: Shi et al., 2024, equation 1.
    """
    return _lowest(signature.atp, k)


def min_k_plus_plus(signature: OutputSignature, k: float = 0.2) -> float:
    """Min-K%++: mean of the k lowest z-scores of log p, under the model's own distribution of each step.

    A step whose distribution is flat says nothing and counts as 0.

    Args:
        signature: of the text, not a partial one.
        k: share of the tokens.

    Raises:
        InputError: k is out of range, or the signature is partial.

    Source: Zhang et al., 2024, equation 3.
    """
    expected, spread = _whole(signature, "Min-K%++")
    flat = spread <= FLAT * expected.abs().clamp_min(1.0)
    return _lowest((signature.atp - expected) / torch.where(flat, torch.inf, spread), k)


def step_entropy(signature: OutputSignature) -> Tensor:
    """(N,) entropy of each step's distribution, in nats.

    Raises:
        InputError: the signature is partial.
    """
    return -_whole(signature, "the entropy")[0]


def zlib_ratio(signature: OutputSignature, text: str) -> float:
    """Mean negative log-probability over the size of the compressed text in bytes; lower for known texts.

    Raises:
        InputError: the text is empty.

    Source: Carlini et al., 2021, section 5.2.
    """
    if not text:
        raise InputError("the text is empty")
    return -float(signature.atp.double().mean()) / len(zlib.compress(text.encode("utf-8")))


def reference_ratio(signature: OutputSignature, reference: OutputSignature) -> float:
    """Logarithm of perplexity over the perplexity of a reference model on the same text; lower for known texts.

    Source: Carlini et al., 2021, section 5.2 (a second model), in the logarithm of Shi et al., 2024.
    """
    return -float(signature.atp.double().mean()) + float(reference.atp.double().mean())


def _lowest(values: Tensor, k: float) -> float:
    if not 0 < k <= 1:
        raise InputError(f"k is a share of the tokens, above 0 and at most 1, not {k}")
    # 0.29 * 100 is 28.999...: a share that gives a whole number of tokens is not to lose one.
    n = max(1, math.floor(k * len(values) + 1e-9))
    return float(values.double().sort().values[:n].mean())


def _whole(signature: OutputSignature, what: str) -> tuple[Tensor, Tensor]:
    if signature.expected is None or signature.spread is None:
        raise InputError(f"{what} needs the whole distribution, and this signature holds the most likely tokens only")
    return signature.expected, signature.spread


def membership_scores(
    signatures: Sequence[OutputSignature],
    *,
    k: float = 0.2,
    texts: Sequence[str] | None = None,
    reference: Sequence[OutputSignature] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """All scores by name, each (text,) and so signed that higher means more likely a member.

    Args:
        signatures: of the texts.
        k: share of tokens of Min-K% and Min-K%++.
        texts: the texts, for the zlib ratio.
        reference: signatures of the same texts from another model, for the reference ratio.

    Returns:
        mean, min and max log-probability, minus the perplexity, Min-K%; of whole signatures also Min-K%++ and minus the
        mean entropy; the ratios where their data are given.

    Raises:
        InputError: numbers of texts differ, or k is out of range.
    """
    one_kind(signatures)
    for name, given in (("texts", texts), ("reference", reference)):
        if given is not None and len(given) != len(signatures):
            raise InputError(f"{len(given)} {name} were given for {len(signatures)} signatures")
    found: dict[str, list[float]] = {
        "mean log-probability": [float(s.atp.double().mean()) for s in signatures],
        "min log-probability": [float(s.atp.min()) for s in signatures],
        "max log-probability": [float(s.atp.max()) for s in signatures],
        "perplexity": [-perplexity_of(s) for s in signatures],
        "Min-K%": [min_k(s, k) for s in signatures],
    }
    if not signatures[0].partial:
        found["Min-K%++"] = [min_k_plus_plus(s, k) for s in signatures]
        found["entropy"] = [-float(step_entropy(s).double().mean()) for s in signatures]
    if texts is not None:
        found["zlib ratio"] = [-zlib_ratio(s, t) for s, t in zip(signatures, texts, strict=True)]
    if reference is not None:
        found["reference ratio"] = [-reference_ratio(s, r) for s, r in zip(signatures, reference, strict=True)]
    return {name: np.array(values) for name, values in found.items()}


def membership_inference(signatures: Sequence[OutputSignature], labels: Any, **options: Any) -> Result:
    """How well each score tells members from others.

    Args:
        signatures: of the texts.
        labels: (text,) 1 for members, 0 for others.
        **options: those of `membership_scores`.

    Returns:
        Result with `auroc` and `tpr` at 5 % false positives over `score`.

    Raises:
        InputError: the labels do not fit or are all the same.
    """
    y = binary_labels(labels, len(signatures))
    scores = membership_scores(signatures, **options)
    data = xr.Dataset(
        {
            "auroc": ("score", [auroc(s, y) for s in scores.values()]),
            "tpr": ("score", [tpr_at_fpr(s, y) for s in scores.values()], {"long_name": "TPR at 5 % FPR"}),
        },
        coords={"score": list(scores)},
        attrs={"plot": {"kind": "bar", "variables": ["auroc"]}},
    )
    about = provenance(inputs=[s.atp for s in signatures], labels=y, k=options.get("k", 0.2))
    return Result(data, "membership_inference", "los-net", about)


def binary_labels(labels: Any, n: int) -> NDArray[np.int64]:
    """Labels as (n,) zeros and ones.

    Raises:
        InputError: they are not n zeros and ones with both in it.
    """
    y = one_value_each(labels, n, "labels")
    if not np.isin(y, (0, 1)).all():
        raise InputError(f"labels are 0 or 1, got {', '.join(map(str, np.unique(y)[:5]))}")
    if len(np.unique(y)) < 2:
        raise InputError(f"all labels are {int(y[0])}; both classes are needed")
    return y.astype(np.int64)


def tpr_at_fpr(scores: Any, labels: Any, fpr: float = 0.05) -> float:
    """True-positive rate at the last point of the ROC curve whose false-positive rate is below `fpr`.

    Args:
        scores: (n,) real numbers.
        labels: (n,) 0 or 1, both present.
        fpr: bound of the false-positive rate, above 0 and at most 1.

    Raises:
        InputError: shapes differ, a score is NaN, there is one class only, or the bound is out of range.
    """
    if not 0 < fpr <= 1:
        raise InputError(f"fpr must be above 0 and at most 1, got {fpr}")
    values = as_vector(scores, "scores")
    y = binary_labels(labels, len(values))
    order = np.argsort(-values, kind="stable")
    values, y = values[order], y[order]
    # Points of the curve lie where the score changes: equal scores cannot be told apart.
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits, alarms = np.cumsum(y)[ends], np.cumsum(1 - y)[ends]
    allowed = alarms < fpr * (1 - y).sum()
    return float(hits[allowed].max() / y.sum()) if allowed.any() else 0.0
