"""Whether fine-tunes that misbehave share one direction (Soligo et al., 2025): find it, compare it, take it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.site_vectors import site_activations
from actinium.steering.vector import SteeringVector

__all__ = ["behaviour_direction", "direction_convergence", "direction_stability"]

PAPER = "convergent-misalignment"
SPANS = ("response", "prompt")
BLOCKS = "blocks.*.resid_post"
Floats = NDArray[np.float64]


def behaviour_direction(
    model: Model,
    prompts: Sequence[str],
    responses: Sequence[str],
    misaligned: Sequence[bool],
    coherent: Sequence[bool] | None = None,
    sites: str | Sequence[str] = BLOCKS,
    *,
    span: str = "response",
    batch_size: int = 32,
    progress: bool = False,
) -> SteeringVector:
    """Mean activation of misaligned responses minus that of aligned ones, of one model.

    The mean is taken over the tokens of each response first, so that long ones do not weigh more. Incoherent responses
    are left out. A site where the two do not differ (below the first adapter of a fine-tune, where both classes read
    the same) keeps its direction; one that is zero stays zero.

    Args:
        model: the fine-tuned model that wrote the responses.
        prompts: open questions.
        responses: one to each, as text that follows the prompt.
        misaligned: a judge's verdict on each.
        coherent: which responses count; all by default.
        sites: names and patterns.
        span: "response": the tokens of the responses; "prompt": those of the prompts.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        SteeringVector at its own length; `made` has the number of texts of each class.

    Raises:
        InputError: numbers differ, a class has fewer than two coherent responses, a response is empty or shares a
            token with its prompt, or the classes do not differ at any site.

    Source: Soligo et al., 2025, section 3 (mean difference within one model).
    """
    rows, labels = _activations(model, prompts, responses, misaligned, coherent, sites, span, batch_size, progress)
    found = {site: torch.from_numpy(x[labels].mean(0) - x[~labels].mean(0)) for site, x in rows.items()}
    if not any(bool((v != 0).any()) for v in found.values()):
        raise InputError("misaligned and aligned responses do not differ at any site")
    made = {
        "model": model.fingerprint(),
        "name": model.name,
        "misaligned": int(labels.sum()),
        "aligned": int((~labels).sum()),
        "span": span,
    }
    return SteeringVector(found, "behaviour difference", made)


def direction_stability(
    model: Model,
    prompts: Sequence[str],
    responses: Sequence[str],
    misaligned: Sequence[bool],
    coherent: Sequence[bool] | None = None,
    sites: str | Sequence[str] = BLOCKS,
    *,
    span: str = "response",
    splits: int = 20,
    permutations: int = 100,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> Result:
    """How far a behaviour direction depends on the responses drawn, and how long it is by chance.

    Args:
        model, prompts, responses, misaligned, coherent, sites, span, batch_size, progress: as `behaviour_direction`.
        splits: random halvings; each class is halved.
        permutations: of the labels.
        seed: of both.

    Returns:
        Result over site: `norm`; `split_half`, mean cosine between the directions of two halves (NaN where a direction
        is zero); `p_norm`, share of permutations (and the labels themselves) whose direction is as long.

    Raises:
        InputError: as `behaviour_direction`, or a class has fewer than four responses.
    """
    rows, labels = _activations(model, prompts, responses, misaligned, coherent, sites, span, batch_size, progress)
    if min(int(labels.sum()), int((~labels).sum())) < 4:
        raise InputError("to be halved, each class needs four coherent responses or more")
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(labels)) for _ in range(permutations)]
    halves = []
    for _ in range(splits):
        half = np.zeros(len(labels), dtype=bool)
        for side in (labels, ~labels):
            members = random.permutation(np.flatnonzero(side))
            half[members[: len(members) // 2]] = True
        halves.append(half)
    table: dict[str, list[float]] = {"norm": [], "split_half": [], "p_norm": []}
    for x in shown(list(rows.values()), "halving", progress):
        size = float(np.linalg.norm(_gap(x, labels)))
        cosines = [_cosine(_gap(x[h], labels[h]), _gap(x[~h], labels[~h])) for h in halves]
        longer = sum(float(np.linalg.norm(_gap(x, labels[o]))) >= size for o in orders)
        table["norm"].append(size)
        table["split_half"].append(float(np.mean(cosines)))
        table["p_norm"].append((1 + longer) / (1 + permutations))
    data = {name: ("site", values) for name, values in table.items()}
    settings = {"splits": splits, "permutations": permutations, "span": span}
    record = provenance(model, [list(prompts), list(responses), labels], seed=seed, **settings)
    hints = {"plot": {"variables": ["split_half"]}}
    return Result(xr.Dataset(data, {"site": list(rows)}, hints), "direction_stability", PAPER, record)


def direction_convergence(directions: Mapping[str, SteeringVector]) -> Result:
    """Cosines between the directions of several fine-tunes, at every site that all have.

    Args:
        directions: by name, two or more.

    Returns:
        Result over name, other and site: `cosine`, NaN where a direction is zero; `random_sd`, the standard deviation
        of the cosine of two random directions, 1 / sqrt(d), by site.

    Raises:
        InputError: there are fewer than two, they share no site, or widths differ.

    Source: Soligo et al., 2025, section 4.
    """
    names = list(directions)
    if len(names) < 2:
        raise InputError(f"give two directions or more, got {len(names)}")
    sites = [s for s in directions[names[0]].sites if all(s in v for v in directions.values())]
    if not sites:
        raise InputError("the directions share no site")
    values = np.full((len(names), len(names), len(sites)), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            found = directions[one].cosine(directions[other])
            values[i, j] = [found[site] for site in sites]
    data = {
        "cosine": (("name", "other", "site"), values),
        "random_sd": ("site", [1 / len(directions[names[0]][s]) ** 0.5 for s in sites]),
    }
    coords = {"name": names, "other": names, "site": sites}
    record = provenance(inputs={n: dict(v.directions) for n, v in directions.items()})
    hints = {"plot": {"variables": ["cosine"]}}
    return Result(xr.Dataset(data, coords, hints), "direction_convergence", PAPER, record)


def _gap(x: Floats, labels: NDArray[np.bool_]) -> Floats:
    return np.asarray(x[labels].mean(0) - x[~labels].mean(0))


def _cosine(a: Floats, b: Floats) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else float("nan")


def _activations(
    model: Model,
    prompts: Sequence[str],
    responses: Sequence[str],
    misaligned: Sequence[bool],
    coherent: Sequence[bool] | None,
    sites: str | Sequence[str],
    span: str,
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, Floats], NDArray[np.bool_]]:
    """Mean activation (n, d) of each coherent response by site, and which of them are misaligned."""
    if span not in SPANS:
        raise InputError(f"span is one of {', '.join(SPANS)}, not {span!r}")
    count = [True] * len(prompts) if coherent is None else [bool(c) for c in coherent]
    sizes = {len(prompts), len(responses), len(misaligned), len(count)}
    if len(sizes) != 1:
        raise InputError(f"prompts, responses and verdicts differ in number: {sorted(sizes)}")
    kept = [i for i, c in enumerate(count) if c]
    labels = np.array([bool(misaligned[i]) for i in kept], dtype=bool)
    if min(int(labels.sum()), int((~labels).sum())) < 2:
        raise InputError(
            f"each class needs two coherent responses or more; {int(labels.sum())} are misaligned and"
            f" {int((~labels).sum())} aligned"
        )
    texts = [prompts[i] + responses[i] for i in kept]
    masks = _spans(model, [prompts[i] for i in kept], texts, span)
    options = {"batch_size": batch_size, "progress": progress}
    return site_activations(model, texts, sites, masks, **options), labels


def _spans(model: Model, prompts: list[str], texts: list[str], span: str) -> Tensor:
    """(n, pos): tokens of the prompt, or those behind it."""
    tokens = model.to_tokens(texts)
    mask = tokens.mask
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, and responses are texts")
    starts = model.tokenizer(prompts)["input_ids"]
    for i, start in enumerate(starts):
        if tokens.ids[i][mask[i]][: len(start)].tolist() != list(start):
            raise InputError(f"prompt and response {i} share a token: {texts[i]!r}; begin the response with a space")
    lengths = torch.tensor([len(ids) for ids in starts])
    number = mask.cumsum(1)
    chosen = mask & ((number > lengths[:, None]) == (span == "response"))
    empty = ~chosen.any(1)
    if bool(empty.any()):
        raise InputError(f"response {int(empty.nonzero()[0])} is empty")
    return chosen
