"""Prototypes of concepts: unit vectors that attract the projected vectors of their own concept."""

from __future__ import annotations

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import normalize

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["concept_similarity", "fit_prototypes", "prototype_report", "softtriple_loss"]

LLOYD = 20


def concept_similarity(u: Tensor, prototypes: Tensor, gamma: float = 10.0) -> Tensor:
    """Similarity of vectors to concepts: mean cosine to a concept's prototypes, the nearest ones weighing most.

    sim(u, k) = sum_m softmax_m(gamma p_km.u) p_km.u

    Args:
        u: unit vectors (n, d).
        prototypes: unit vectors (K, M, d).
        gamma: sharpness of the weights.

    Returns:
        (n, K), from -1 to 1.

    Source: Qian et al., 2019, SoftTriple loss, eq. 5 (their 1 / gamma is our gamma).
    """
    if u.ndim != 2 or prototypes.ndim != 3 or u.shape[1] != prototypes.shape[2]:
        raise InputError(f"expected vectors (n, d) and prototypes (K, M, d), got {tuple(u.shape)}, {prototypes.shape}")
    cosines = torch.einsum("nd,kmd->nkm", u, prototypes)
    return ((gamma * cosines).softmax(-1) * cosines).sum(-1)


def softtriple_loss(
    u: Tensor, concept: Tensor, prototypes: Tensor, *, lam: float = 20.0, gamma: float = 10.0, delta: float = 0.01
) -> Tensor:
    """Mean of -log exp(lam (sim_y - delta)) / (exp(lam (sim_y - delta)) + sum_{k != y} exp(lam sim_k)).

    Args:
        u: unit vectors (n, d).
        concept: number (n,) of the concept that each belongs to.
        prototypes: unit vectors (K, M, d).
        lam: inverse temperature.
        gamma: see `concept_similarity`.
        delta: margin by which a vector should be nearer to its own concept.

    Returns:
        a scalar.

    Raises:
        InputError: shapes that do not fit, or a concept that does not exist.

    Source: Qian et al., 2019, eq. 7; Huy et al., 2025, contrastive learning of prototypes.
    """
    sim = concept_similarity(u, prototypes, gamma)
    if concept.shape != (len(u),) or not bool(((concept >= 0) & (concept < len(prototypes))).all()):
        raise InputError(f"expected ({len(u)},) concepts from 0 to {len(prototypes) - 1}")
    margin = delta * nn.functional.one_hot(concept, len(prototypes)).to(sim)
    return nn.functional.cross_entropy(lam * (sim - margin), concept)


def fit_prototypes(
    vectors: Tensor,
    concept: Tensor,
    n_concepts: int,
    n_prototypes: int,
    *,
    width: int = 128,
    lam: float = 20.0,
    gamma: float = 10.0,
    delta: float = 0.01,
    lr: float = 1e-3,
    epochs: int = 30,
    batch_size: int = 128,
    generator: torch.Generator,
    progress: bool = False,
) -> tuple[nn.Sequential, Tensor, list[float]]:
    """Learn a projector (d -> width) and unit prototypes (K, M, width) from local concept vectors.

    Prototypes begin at the means of clusters (k-means) of the projected vectors of their concept.

    Args:
        vectors: (n, d) of present concepts.
        concept: (n,) the concept of each.

    Returns:
        projector, prototypes and the mean loss of each epoch.

    Raises:
        InputError: a concept without vectors.
    """
    d = vectors.shape[1]
    projector = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, width)).to(vectors)
    start = torch.empty(n_concepts, n_prototypes, width, dtype=vectors.dtype, device=vectors.device)
    with torch.no_grad():
        u = normalize(projector(vectors), dim=-1)
        for k in range(n_concepts):
            own = u[concept == k]
            if not len(own):
                raise InputError(f"concept {k} is present in no image, so it has no vector to make a prototype of")
            start[k] = _clusters(own, n_prototypes, generator)
    centres = nn.Parameter(start)
    optimiser = torch.optim.Adam([*projector.parameters(), centres], lr=lr)
    losses = []
    for _ in shown(range(epochs), "prototypes", progress):
        total = 0.0
        for rows in torch.randperm(len(vectors), generator=generator).to(vectors.device).split(batch_size):
            optimiser.zero_grad()
            u = normalize(projector(vectors[rows]), dim=-1)
            p = normalize(centres, dim=-1)
            loss = softtriple_loss(u, concept[rows], p, lam=lam, gamma=gamma, delta=delta)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(vectors))
    return projector.requires_grad_(False), normalize(centres.detach(), dim=-1), losses


def prototype_report(prototypes: Tensor, assigned: Tensor) -> Result:
    """Whether prototypes are used and apart.

    Args:
        prototypes: unit vectors (K, M, d).
        assigned: (K, M) vectors for which a prototype is the nearest of its concept.

    Returns:
        by concept and prototype: `assigned` (0: a dead prototype), and the largest cosine with another prototype of the
        concept (`nearest_own`) and of another concept (`nearest_other`), NaN where there is none.
    """
    k, m, _ = prototypes.shape
    p = prototypes.flatten(0, 1).double().cpu()
    owner = torch.arange(k).repeat_interleave(m)
    own = owner[:, None] == owner
    parts = {"nearest_own": own & ~torch.eye(k * m, dtype=torch.bool), "nearest_other": ~own}
    dims = ("concept", "prototype")
    data = xr.Dataset({"assigned": (dims, assigned.numpy())})
    for name, among in parts.items():
        best = torch.where(among, p @ p.T, -torch.inf).amax(1)
        data[name] = (dims, torch.where(best.isinf(), torch.nan, best).view(k, m).numpy())
    return Result(data, "prototype_report", "csr-concept-prototypes", provenance(inputs=[prototypes, assigned]))


def _clusters(u: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Means of clusters of unit vectors, as unit vectors (count, d); vectors repeat where there are fewer."""
    order = torch.randperm(len(u), generator=generator).to(u.device)
    centres = u[order.repeat(-(-count // len(u)))[:count]]
    # The same vector twice would stay one prototype for ever.
    noise = torch.randn(centres.shape, generator=generator).to(centres)
    centres = normalize(centres + 0.01 * centres.norm(dim=-1, keepdim=True) * noise / centres.shape[1] ** 0.5, dim=-1)
    for _ in range(LLOYD):
        nearest = nn.functional.one_hot((u @ centres.T).argmax(1), count).to(u)
        sums = nearest.T @ u
        centres = torch.where(nearest.sum(0)[:, None] > 0, normalize(sums, dim=-1), centres)
    return centres
