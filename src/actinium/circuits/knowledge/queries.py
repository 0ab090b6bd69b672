"""The value units whose activation is to be explained, and the linear maps that they read the stream with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from actinium.circuits.knowledge.traces import Trace

__all__ = ["ValueUnit", "key_of", "written_before"]

# A unit whose input along its key is a smaller share of |x||k| than this has no shares.
FLAT = 1e-3


@dataclass(frozen=True)
class ValueUnit:
    """A unit that writes the answer.

    Attributes:
        score: its value score, in nats.
        layer: its block.
        position: where it reads the stream.
        site: of its input: attn.v, or mlp.pre (the linear branch, where the MLP is gated).
        unit: its place in that site: (kv_head, entry), or (unit,).
        part: "attn" or "mlp".
    """

    score: float
    layer: int
    position: int
    site: str
    unit: tuple[int, ...]
    part: str


def key_of(trace: Trace, unit: ValueUnit) -> tuple[Tensor, float] | None:
    """The map k (d_model,) from the stream x to the unit's input, float64, and <x, k>.

    None where <x, k> is next to nothing, or biases turn the input's sign: shares would be of the wrong sign.
    """
    key, number = trace.key(unit.site, unit.position, unit.unit)
    k, x = key.double(), trace.before(unit.layer, unit.part, unit.position).double()
    along = float(x @ k)
    if abs(along) <= FLAT * float(x.norm() * k.norm()) or along * number <= 0:
        return None
    return k, along


def written_before(trace: Trace, unit: ValueUnit) -> list[Tensor]:
    """What was written into the stream that a unit reads, by part: embedding, attention 0, MLP 0, attention 1, ..."""
    parts = [trace.at(0, "resid_pre", unit.position)]
    for layer in range(unit.layer):
        parts += [trace.at(layer, out, unit.position) for out in ("attn.out", "mlp.out")]
    if unit.part == "mlp" and not trace.traces.parallel:
        parts.append(trace.at(unit.layer, "attn.out", unit.position))
    return parts
