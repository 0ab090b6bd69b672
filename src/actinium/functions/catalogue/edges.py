"""Functions of the edges of Kolmogorov-Arnold networks that are no sums over a basis."""

from __future__ import annotations

from actinium.functions.kan.daruan import DARUAN
from actinium.functions.registry import row

__all__ = ["FAMILY", "ROWS"]

FAMILY = "edges of Kolmogorov-Arnold networks"

ROWS = (
    row(
        "DARUAN", r"s\,\langle\psi(x)|Z|\psi(x)\rangle+t", None, "Jiang 2025", module=DARUAN, kind="trainable",
        aliases=("quantum variational activation",),
        note="A simulated circuit of one qubit. Options: reps, ansatz, preact_trainable, postact_trainable, measure. "
        "Angles are drawn.",
    ),
)  # fmt: skip
