"""Functions that each neuron chooses from a pool."""

from __future__ import annotations

from typing import Any

from actinium.functions.registry import row
from actinium.functions.smart_mixed import GumbelActivationSelector

__all__ = ["FAMILY", "ROWS"]

FAMILY = "choices from a pool"


def _smart_mixed(num_parameters: int = 1, channel_dim: int = 1, **settings: Any) -> GumbelActivationSelector:
    return GumbelActivationSelector(num_parameters, dim=channel_dim, **settings)


ROWS = (
    row(
        "SmartMixed", r"\sum_k w_k f_k(x),\ w=\mathrm{onehot}(\arg\max_k(g_k+G_k))", None, "Omidvar 2025",
        module=_smart_mixed, kind="stochastic", arity="channels",
        note="Options: pool, tau, hard, clamp, noise_in_evaluation. `freeze_selectors` keeps the choices.",
    ),
)  # fmt: skip
