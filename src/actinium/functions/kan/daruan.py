"""Activation functions and network layers that are simulated circuits of one qubit: DARUAN and its KAN layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.base_functions import base_function
from actinium.functions.kan.edge_layers import KANLayer
from actinium.functions.kan.reuploading_circuits import MEASURES, angle_shape, reuploading_circuit
from actinium.functions.units.array_units import ArrayUnit

__all__ = ["DARUAN", "QKANLayer", "QubitCircuits", "frequencies_of"]

CONTINUOUS = ("pz", "rpz")
"""Ansaetze whose added gates, at angles of 0, are diagonal: the outcome stays."""
MOST = 12


def frequencies_of(w: Tensor) -> Tensor:
    """The frequencies that a circuit with input weights w (..., reps) can have: |sum_l s_l w_l| for s_l in -1, 0, 1.

    Returns:
        (..., (3^reps + 1) / 2), rising; equal ones stand there several times.

    Raises:
        InputError: there are more than 12 repetitions.
    """
    reps = w.shape[-1]
    if reps > MOST:
        raise InputError(f"{reps} repetitions have too many frequencies to list; {MOST} at most")
    # Of s and -s, which have the same frequency, the one that comes first.
    signs = list(itertools.islice(itertools.product((-1.0, 0.0, 1.0), repeat=reps), (3**reps + 1) // 2))
    return (w.detach() @ torch.tensor(signs, dtype=w.dtype, device=w.device).T).abs().sort(-1).values


def _longer(value: nn.Parameter, dim: int, steps: int, fill: float) -> nn.Parameter:
    """A parameter with one number added along a dimension up to a size."""
    shape = list(value.shape)
    shape[dim] = steps - shape[dim]
    more = torch.full(shape, fill, dtype=value.dtype, device=value.device)
    return nn.Parameter(torch.cat([value.detach(), more], dim), value.requires_grad)


class QubitCircuits(nn.Module):
    """What modules of circuits of one qubit have in common: angles theta (..., steps, each), w and b (..., reps)."""

    def _make(
        self, circuits: tuple[int, ...], reps: int, ansatz: str, measure: str, trainable: bool, spread: float | None
    ) -> None:
        """Parameters of that many circuits, whose angles have a standard deviation, or Xavier's."""
        steps, each = angle_shape(ansatz, reps)
        if measure not in MEASURES:
            raise InputError(f"measure is {' or '.join(MEASURES)}, not {measure!r}")
        if spread is not None and not 0 <= spread < math.inf:
            raise InputError(f"the spread of the angles is not negative, got {spread}")
        if spread is None:
            # A unit has one input and one output, whatever the number of its channels.
            spread = math.sqrt(2 / (steps * each * (sum(circuits) if len(circuits) > 1 else 2)))
        self.reps, self.ansatz, self.measure = reps, ansatz, measure
        self.theta = nn.Parameter(spread * torch.randn(*circuits, steps, each))
        self.w = nn.Parameter(torch.ones(*circuits, reps), trainable)
        self.b = nn.Parameter(torch.zeros(*circuits, reps), trainable or ansatz == "rpz")

    def frequencies(self) -> Tensor:
        """The frequencies that each circuit can have, (circuits.., (3^reps + 1) / 2), rising.

        Raises:
            InputError: the ansatz is "px", which is no trigonometric polynomial of x, or the read-out is fast.
        """
        if self.ansatz == "px" or self.measure == "fast":
            raise InputError("only expectations of pz, rpz, real and mix are trigonometric polynomials of x")
        return frequencies_of(self.w)

    def extend(self, reps: int) -> Self:
        """Add repetitions that leave all functions as they are, in place; optimisers have to be made again.

        Raises:
            InputError: there are not more repetitions, or the ansatz is not pz or rpz.
        """
        if self.ansatz not in CONTINUOUS:
            raise InputError(
                f"more repetitions change the function of the ansatz {self.ansatz!r}; only pz and rpz can be extended"
            )
        if reps <= self.reps:
            raise InputError(f"an extension has more repetitions than {self.reps}, got {reps}")
        self.theta = _longer(self.theta, -2, reps + 1, 0.0)
        self.w, self.b = _longer(self.w, -1, reps, 1.0), _longer(self.b, -1, reps, 0.0)
        self.reps = reps
        return self


class DARUAN(QubitCircuits, ArrayUnit):
    """scale <Z> + shift of a circuit of one qubit into which w_l x + b_l goes at every repetition.

    The function is a trigonometric polynomial, whose frequencies are sums and differences of the w_l.

    Args:
        reps: repetitions.
        ansatz: "pz", "rpz", "px", "real" or "mix"; see `reuploading_circuit`.
        preact_trainable: whether w, which starts at 1, and b, which starts at 0, are learnt; b of "rpz" always is.
        postact_trainable: whether scale, which starts at 1, and shift, which starts at 0, are learnt.
        measure: "expectation" or "fast".
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there is no repetition, ansatz or measure of this kind.

    Source: Jiang et al., 2025, arXiv 2509.14026.
    """

    def __init__(
        self,
        reps: int = 3,
        ansatz: str = "pz",
        preact_trainable: bool = True,
        postact_trainable: bool = True,
        measure: str = "expectation",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        self._make((num_parameters,), reps, ansatz, measure, preact_trainable, None)
        self.learn("scale", torch.ones(()))
        self.learn("shift", torch.zeros(()))
        self.scale.requires_grad_(postact_trainable)
        self.shift.requires_grad_(postact_trainable)

    def response(self, x: Tensor, theta: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The function at x with weights whose first dimensions are the steps."""
        return scale * reuploading_circuit(x, theta, w, b, self.ansatz, self.measure) + shift


class QKANLayer(QubitCircuits, KANLayer):
    """y_o = sum_i p_oi (phi_oi(x_i) + q_oi) + w_oi base(x_i), each phi the outcome of a circuit of one qubit.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        reps: repetitions of the circuits.
        ansatz: "pz", "rpz", "px", "real" or "mix"; see `reuploading_circuit`.
        preact_trainable: whether the weights and biases of what goes into the circuits are learnt; biases of "rpz"
            always are.
        postact_weight_trainable: whether p is learnt.
        postact_bias_trainable: whether q is learnt.
        base: a name of the catalogue or a callable.
        base_trainable: whether w is learnt, from 0.5; it is 0 otherwise.
        measure: "expectation" or "fast", which the authors' code takes by default.
        group: number of circuits that all outputs share, input i taking number i modulo group; -1 for one on each edge.
        batch_norm: normalise the inputs over the batch first.
        spread: standard deviation of the first angles; Xavier's if not given. The authors suggest 1 / reps for 8
            repetitions or more.

    Raises:
        InputError: a size, an ansatz, a measure or a group that there is not.

    Source: Jiang et al., 2025, arXiv 2509.14026; their code.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        reps: int = 3,
        ansatz: str = "pz",
        preact_trainable: bool = False,
        postact_weight_trainable: bool = False,
        postact_bias_trainable: bool = False,
        base: str | Callable[[Tensor], Tensor] = "silu",
        base_trainable: bool = True,
        measure: str = "expectation",
        group: int = -1,
        batch_norm: bool = False,
        spread: float | None = None,
    ) -> None:
        super().__init__(in_dim, out_dim)
        if group != -1 and not 1 <= group <= in_dim:
            raise InputError(f"group is -1, or from 1 to the number of inputs, {in_dim}, not {group}")
        self.group = group
        circuits = (out_dim, in_dim) if group == -1 else (1, group)
        self._make(circuits, reps, ansatz, measure, preact_trainable, spread)
        self.postact_weight = nn.Parameter(torch.ones(out_dim, in_dim), postact_weight_trainable)
        self.postact_bias = nn.Parameter(torch.zeros(out_dim, in_dim), postact_bias_trainable)
        start = 0.5 if base_trainable else 0.0
        self.base_weight = nn.Parameter(torch.full((out_dim, in_dim), start), base_trainable)
        self.base = base_function(base)
        self.norm = nn.BatchNorm1d(in_dim) if batch_norm else None
        self.normalises = batch_norm

    def prepare(self, x: Tensor) -> Tensor:
        """Inputs, normalised over the batch where asked for."""
        if self.norm is None:
            return x
        return self.norm(x.reshape(-1, self.in_dim)).view(x.shape)

    def functions(self, x: Tensor) -> Tensor:
        """Values (..., out, in) at prepared inputs (..., in)."""
        phi = self.circuits(x)
        return self.postact_weight * (phi + self.postact_bias) + self.base_weight * self.base(x)[..., None, :]

    def circuits(self, x: Tensor) -> Tensor:
        """Outcomes of the circuits at prepared inputs (..., in), (..., out or 1, in)."""
        theta, w, b = (self._spread(value) for value in (self.theta, self.w, self.b))
        return reuploading_circuit(x[..., None, :], theta, w, b, self.ansatz, self.measure)

    def _spread(self, value: Tensor) -> Tensor:
        """A parameter (outputs, inputs, steps, ..) of the circuits as (steps, .., outputs, in)."""
        if self.group != -1:
            value = value[:, torch.arange(self.in_dim, device=value.device) % self.group]
        return value.movedim((0, 1), (-2, -1))

    def extra_repr(self) -> str:
        """Sizes and circuit."""
        return f"{super().extra_repr()}, reps={self.reps}, ansatz={self.ansatz}, measure={self.measure}"
