"""Functions that each neuron chooses from a pool."""

from __future__ import annotations

from actinium.functions.registry import row
from actinium.functions.units.smart_mixed import MIXED_POOL, GumbelActivationSelector, Pool

__all__ = ["FAMILY", "ROWS"]

FAMILY = "choices from a pool"


def _smart_mixed(
    pool: Pool = MIXED_POOL,
    tau: float = 0.5,
    hard: bool = True,
    clamp: float = 10.0,
    noise_in_evaluation: bool = True,
    num_parameters: int = 1,
    channel_dim: int = 1,
) -> GumbelActivationSelector:
    return GumbelActivationSelector(num_parameters, pool, tau, hard, clamp, channel_dim, noise_in_evaluation)


ROWS = (
    row(
        "SmartMixed", r"\sum_k w_k f_k(x),\ w=\mathrm{onehot}(\arg\max_k(g_k+G_k))", None, "Omidvar 2025",
        module=_smart_mixed, kind="trainable", arity="channels",
        note="Draws while training; `freeze_selectors` keeps the choices. Options: pool, tau, hard, clamp, "
        "noise_in_evaluation.",
    ),
)  # fmt: skip
