"""Training with the loss of QuadA, and its ablations."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.guard.audit.approximations.activation_perturbation import ActivationPerturbation
from actinium.guard.audit.approximations.quada_loss import Preference, QuadALoss

__all__ = ["Hardened", "quada_ablations", "quada_train"]


@dataclass(frozen=True, eq=False)
class Hardened:
    """What `quada_train` made.

    Args:
        model: around the trained copy.
        losses: (step,).
        margins: (2,) distance of the centres of guarded and benign prompts after the first block, over their mean
            length, before and after; NaN without benign prompts. A cosine term that collapses states shows here.
    """

    model: Model
    losses: Tensor
    margins: tuple[float, float]


def quada_train(
    model: Model,
    preferences: Sequence[Preference],
    guarded: Sequence[str] = (),
    *,
    perturbation: ActivationPerturbation | None = None,
    beta: float = 0.1,
    lambda_: float = 0.1,
    benign: Sequence[str] = (),
    epochs: int = 2,
    batch_size: int = 16,
    rate: float = 1e-6,
    warmup: float = 0.03,
    weight_decay: float = 0.05,
    legacy_span: bool = False,
    pool: str = "mean",
    seed: int = 0,
    progress: bool = False,
) -> Hardened:
    """Train a copy of a model on preferences under noise; the model itself stays as it is, and is the reference.

    AdamW with a rate that rises in a straight line over the share `warmup` of the steps and falls as a cosine to zero.

    Args:
        model: an aligned model.
        preferences: (prompt, wanted reply, unwanted reply); for guarded prompts the wanted reply refuses, for benign
            ones it answers, else the model comes to refuse everything.
        guarded: guarded prompts for the cosine term, drawn a batch at a time.
        perturbation: noise in the first blocks, of the most vulnerable approximation; None for plain preferences.
        beta, lambda_, legacy_span, pool: as of `QuadALoss`.
        benign: benign prompts, for the margin alone.
        epochs, batch_size, rate, warmup, weight_decay: of the training. The published rate is for models of 10^9
            parameters and more: small ones need larger ones.
        seed: of the order and the noise.
        progress: show a progress bar.

    Returns:
        Hardened.

    Raises:
        InputError: preferences or settings cannot be used, or the loss is not finite.

    Source: Zhang et al., 2025, QuadA, training objective and released settings.
    """
    if min(epochs, batch_size) < 1 or not rate > 0 or not 0 <= warmup < 1 or not weight_decay >= 0:
        raise InputError("epochs, batch_size and rate are positive, warmup is a share, weight_decay from 0")
    if lambda_ > 0 and (isinstance(guarded, str) or len(guarded) < 2):
        raise InputError("the cosine term needs two guarded prompts or more; lambda_=0 leaves it out")
    module = copy.deepcopy(model.module).eval()
    policy = Model(module.requires_grad_(True), model.tokenizer, model.processor, model.name)
    reference = Model(copy.deepcopy(model.module).eval().requires_grad_(False), model.tokenizer, name=model.name)
    options: dict[str, Any] = {"legacy_span": legacy_span, "pool": pool, "seed": seed}
    loss = QuadALoss(policy, reference, beta, lambda_, perturbation, **options)
    loss.tokens(preferences)
    before = _margin(loss, guarded, benign)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay)
    random = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(preferences), generator=random).split(batch_size) for _ in range(epochs)]
    batches = [rows.tolist() for order in orders for rows in order]
    losses = []
    for step, rows in enumerate(shown(batches, "QuadA", progress)):
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule(step, len(batches), warmup)
        chosen = torch.randperm(len(guarded), generator=random)[:batch_size].tolist() if lambda_ > 0 else []
        value = loss([preferences[i] for i in rows], [guarded[i] for i in chosen])
        if not bool(torch.isfinite(value)):
            raise InputError("the loss is NaN or infinite: lower the rate")
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        losses.append(float(value.detach()))
    for p, old in zip(module.parameters(), model.module.parameters(), strict=True):
        p.grad = None
        p.requires_grad_(old.requires_grad)
    return Hardened(policy, torch.tensor(losses), (before, _margin(loss, guarded, benign)))


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = max(1, math.ceil(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _margin(loss: QuadALoss, guarded: Sequence[str], benign: Sequence[str]) -> float:
    """Distance of the centres over the mean length of states, without noise."""
    if not len(guarded) or not len(benign):
        return float("nan")
    clean = QuadALoss(loss.policy, loss.reference, pool=loss.pool)
    with torch.no_grad():
        one, other = clean.states(guarded), clean.states(benign)
    return float((one.mean(0) - other.mean(0)).norm() / torch.cat([one, other]).norm(dim=-1).mean())


def quada_ablations(perturbation: ActivationPerturbation, lambda_: float = 0.1) -> Mapping[str, dict[str, Any]]:
    """Settings for `quada_train` of the method and of what it is compared with.

    Args:
        perturbation: noise in the first blocks, or with a strength for each of them.
        lambda_: weight of the cosine.

    Returns:
        {"QuadA", "no noise", "noise in all layers", "no cosine", "plain preferences": settings}. Noise in all layers
        has the largest strength of the blocks.
    """
    strength = perturbation.strength
    largest = max(strength.values()) if isinstance(strength, Mapping) else strength
    everywhere = perturbation.but(layers=None, strength=largest)
    return {
        "QuadA": {"perturbation": perturbation, "lambda_": lambda_},
        "no noise": {"perturbation": None, "lambda_": lambda_},
        "noise in all layers": {"perturbation": everywhere, "lambda_": lambda_},
        "no cosine": {"perturbation": perturbation, "lambda_": 0.0},
        "plain preferences": {"perturbation": None, "lambda_": 0.0},
    }
