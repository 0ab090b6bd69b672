"""How strongly a direction may be added before the next token's distribution moves by a given divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Add
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.metrics import kl
from actinium.core.model import Model
from actinium.steering.side_effects import check_finite

__all__ = ["BOUNDS", "kl_bounded_coefficient", "kl_bounded_strength", "measured_kl"]

BOUNDS = {
    "second_order": "sqrt(2 epsilon / mean Var_p(u)): exact to second order in the strength",
    "hoeffding": "sqrt(8 epsilon) / (max u - min u): never above epsilon where logits are linear in the strength",
    "spectral": "2 sqrt(epsilon) / |u|: never above epsilon where logits are linear in the strength",
}
"""Name -> formula. u is the change of the logits per unit of strength."""

HALVINGS = 30


def kl_bounded_coefficient(logits: Tensor, slopes: Tensor, epsilon: float, bound: str = "second_order") -> float:
    """The largest strength at which KL(p || p_strength) stays within a budget, from the slope of the logits.

    With logits z + strength u, the divergence is log E_p[exp(strength (u - E_p u))], to second order
    strength^2 Var_p(u) / 2.

    Args:
        logits: (n, d_vocab) of calibration contexts without steering.
        slopes: (n, d_vocab), u of each.
        epsilon: budget in nats, above 0.
        bound: a key of `BOUNDS`. The guaranteed ones take the strictest context.

    Raises:
        InputError: epsilon is not above 0, shapes differ, slopes are not finite, or the direction has no effect.
        UnknownNameError: there is no such bound.

    Source: Azizi, Potraghloo and Pedram, 2025 (a closed form for the strength); the three bounds follow from the
    cumulant generating function of u under p.
    """
    if bound not in BOUNDS:
        raise UnknownNameError(unknown("bound", str(bound), BOUNDS))
    if not epsilon > 0 or not math.isfinite(epsilon):
        raise InputError(f"epsilon must be a finite number above 0, not {epsilon}")
    z, u = logits.detach().double(), slopes.detach().double()
    if z.ndim != 2 or z.shape != u.shape or not len(z):
        raise InputError(f"logits and slopes are (n, d_vocab), got {tuple(z.shape)} and {tuple(u.shape)}")
    if not bool(torch.isfinite(u).all() and torch.isfinite(z).all()):
        raise InputError("logits or slopes are not finite")
    p = z.softmax(-1)
    variance = (p * (u - (p * u).sum(-1, keepdim=True)).square()).sum(-1)
    # Adding the same number to all logits changes nothing, so the spread is what counts.
    if not float(variance.max()) > 1e-12 * max(1e-12, float(u.square().max())):
        raise InputError("the direction does not change the distribution of the next token: any strength would do")
    if bound == "second_order":
        return math.sqrt(2 * epsilon / float(variance.mean()))
    if bound == "hoeffding":
        return math.sqrt(8 * epsilon) / float((u.amax(-1) - u.amin(-1)).max())
    return 2 * math.sqrt(epsilon) / float(u.norm(dim=-1).max())


def kl_bounded_strength(
    model: Model,
    site: str,
    direction: Tensor,
    contexts: Any,
    epsilon: float = 0.05,
    *,
    bound: str = "second_order",
    exact: bool = False,
    step: float = 1e-2,
) -> float:
    """The strength of a direction, added at the last token, that moves the next token by a given mean divergence.

    Args:
        model: a causal language model.
        site: one site, such as "blocks.3.resid_post".
        direction: (d,), at its own length.
        contexts: calibration texts or tokens.
        epsilon: budget in nats: mean KL(plain || steered) over the contexts.
        bound: a key of `BOUNDS`, for the closed form.
        exact: measure the divergence and bisect to the budget; the closed form is then where the search starts. It
            finds the smallest strength that reaches the budget between two that were tried.
        step: strength of the central difference that gives the slopes.

    Raises:
        InputError: as `kl_bounded_coefficient`; or, with `exact`, the divergence never reaches the budget.
        SiteError: the site does not exist.

    Source: as `kl_bounded_coefficient`.
    """
    if not step > 0:
        raise InputError(f"step must be above 0, not {step}")
    plain, up, down = _logits(model, site, direction, contexts, (0.0, step, -step))
    found = kl_bounded_coefficient(plain, (up - down) / (2 * step), epsilon, bound)
    if not exact:
        return found
    low, high = 0.0, found
    for _ in range(HALVINGS):
        if _mean_kl(plain, _logits(model, site, direction, contexts, [high])[0]) >= epsilon:
            break
        low, high = high, 2 * high
    else:
        raise InputError(f"the divergence stays below {epsilon} up to strength {high:.3g}")
    for _ in range(HALVINGS):
        if high - low <= 1e-3 * high:
            break
        middle = (low + high) / 2
        if _mean_kl(plain, _logits(model, site, direction, contexts, [middle])[0]) >= epsilon:
            high = middle
        else:
            low = middle
    return low


def measured_kl(model: Model, site: str, direction: Tensor, contexts: Any, strength: float) -> float:
    """Mean KL(plain || steered) of the next token in nats, with a direction added at each text's last token.

    Raises:
        InputError: the strength makes it NaN or infinite.
        SiteError: the site does not exist.
    """
    plain, steered = _logits(model, site, direction, contexts, (0.0, strength))
    return _mean_kl(plain, steered)


def _logits(model: Model, site: str, direction: Tensor, contexts: Any, strengths: Sequence[float]) -> Tensor:
    """Logits (strength, n, d_vocab) float64 at the last tokens."""
    return model.replay(contexts, [{site: Add(direction, s).at(positions=-1)} for s in strengths]).double()


def _mean_kl(plain: Tensor, steered: Tensor) -> float:
    ids = torch.zeros(len(plain), dtype=torch.long, device=plain.device)
    divergence = kl(steered, ids, ids, plain)
    check_finite(divergence, "the divergence")
    return float(divergence.mean())
