"""Kitouni et al., 2024: what a network that learns nuclear binding energies makes of the numbers it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    107,
    claim=(
        "A network trained on binding energies from the numbers of protons and neutrons needs few principal "
        "components: of the activations before its read-out a handful gives the full accuracy and the first stands for "
        "the volume term of the liquid drop; the number embeddings are ordered along their first component and form a "
        "helix in the first three. With shuffled energies nothing of this appears."
    ),
)
CLAIMED = (
    "Models trained on nuclear data learn low-dimensional representations that reflect domain knowledge: embeddings of "
    "Z and N form a helix in their first three components, for measured and for theoretical energies, and components "
    "of the last layer match terms of the semi-empirical mass formula (width 2048, 50 000 epochs or more)."
)
COMPONENTS = 6


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train a small network on the semi-empirical mass formula from several seeds and look at its components.

    The claim holds if, in every seed, (1) three components before the read-out give at most 1.1 times the full root
    mean square error, (2) what the first of them adds correlates with the volume term above 0.95 in size, (3) the first
    component of both embeddings correlates with the number above 0.9 in size, (4) a helix through the first three
    components of both, each scaled to unit variance, makes a full turn or more over the range and explains more than
    half of their variance and 0.2 more than a helix through the same points with their numbers shuffled, and (5) with
    energies shuffled (2) and (3) both fail.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own network.
        quick: two seeds of 1200 steps instead of three of 6000.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own network; see ac.applications.number_geometry for other models")
    z, n = ac.applications.nuclei_near_stability()
    ids, energy = np.stack([z, n], 1), ac.applications.semf(z, n) * (z + n) / 1000
    steps, seeds = (1200, 2) if quick else (6000, 3)
    runs = [_run(ids, energy, s, steps) for s in range(seed, seed + seeds)]
    shuffled = _run(ids, np.random.default_rng(seed).permutation(energy), seed, steps)[0]
    numbers = [run[0] for run in runs]
    measured: dict[str, Any] = {name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]}
    measured |= {f"shuffled energies: {name}": shuffled[name] for name in (VOLUME, *ORDER)}
    parts = {
        "three components suffice": all(one["RMS of 3 components / RMS of all"] <= 1.1 for one in numbers),
        "the first stands for the volume": all(one[VOLUME] > 0.95 for one in numbers),
        "embeddings are ordered": all(one[name] > 0.9 for one in numbers for name in ORDER),
        "embeddings form a helix": all(_is_helix(one, name) for one in numbers for name in ("Z", "N")),
        "not so with shuffled energies": shuffled[VOLUME] <= 0.95 and all(shuffled[name] <= 0.9 for name in ORDER),
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            f"Means over seeds; {len(z)} nuclei with 8 to 160 protons and neutrons near stability, energies of the "
            "formula in MeV, width 64 and two blocks: far smaller and shorter than the paper's models, whose structure "
            "depends on long training. Measured energies are not shipped; ac.applications.read_nuclei reads them."
        ),
        result=runs[0][1],
        settings={"first seed": seed, "seeds": seeds, "steps": steps, "width": 64, "nuclei": len(z)},
    )


VOLUME = "|correlation| of component 1 with volume"
ORDER = ("|correlation| of embedding component 1 with Z", "|correlation| of embedding component 1 with N")


def _run(ids: NDArray[np.int64], energy: NDArray[np.float64], seed: int, steps: int) -> tuple[dict[str, float], Any]:
    """Train once; numbers by name, and the alignment of components with terms."""
    net = ac.applications.EmbeddingRegressor((161, 161), steps=steps, seed=seed).fit(ids, energy)
    inner = net.penultimate(ids).numpy()
    curve = ac.applications.pc_ablation_curve(inner, net.read, energy, ks=[0, 1, 2, 3, inner.shape[1]])
    terms = ac.applications.liquid_drop_terms(ids[:, 0], ids[:, 1])
    aligned = ac.applications.concept_alignment(inner, net.read, terms, k=COMPONENTS)
    rms = curve["rms"].values
    found = {
        "RMS [MeV]": float(rms[-1]),
        "range of energies [MeV]": float(np.ptp(energy)),
        "RMS of 3 components / RMS of all": float(rms[3] / rms[-1]),
        "variance of component 1": float(curve["share"][0]),
        VOLUME: abs(float(aligned["correlation"].sel(component=1, term="volume"))),
    }
    for i, name in enumerate(("Z", "N")):
        numbers = net.seen_[i].numpy()
        laid = ac.applications.components(net.embedding(i), 3)
        scores = laid.scores / laid.scores.std(0)
        helix = ac.applications.fit_helix(scores, numbers)
        mixed = np.random.default_rng(seed).permutation(numbers)
        found |= {
            ORDER[i]: abs(float(np.corrcoef(laid.scores[:, 0], numbers)[0, 1])),
            f"variance of embedding component 1, {name}": float(laid.share[0]),
            f"helix R2, {name}": helix.r2,
            f"helix turns, {name}": abs(helix.w) * float(np.ptp(numbers)) / (2 * np.pi),
            f"helix R2 of shuffled numbers, {name}": ac.applications.fit_helix(scores, mixed).r2,
        }
    aligned.data.attrs["plot"] = {"x": "term"}
    return found, aligned


def _is_helix(one: dict[str, float], name: str) -> bool:
    r2 = one[f"helix R2, {name}"]
    return r2 > 0.5 and r2 > one[f"helix R2 of shuffled numbers, {name}"] + 0.2 and one[f"helix turns, {name}"] >= 1
