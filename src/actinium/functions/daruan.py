"""Activation functions and network layers that are simulated circuits of one qubit: DARUAN and its KAN layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.array_units import ArrayUnit
from actinium.functions.base_functions import base_function
from actinium.functions.edge_layers import KANLayer
from actinium.functions.reuploading_circuits import MEASURES, angle_shape, reuploading_circuit

__all__ = ["DARUAN", "QKANLayer", "frequencies_of"]

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


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise InputError(f"measure is {' or '.join(MEASURES)}, not {measure!r}")


def _longer(value: Tensor, steps: int, fill: float) -> Tensor:
    """A tensor (n, ...) with rows of one number added up to n = steps."""
    more = torch.full((steps - len(value), *value.shape[1:]), fill, dtype=value.dtype, device=value.device)
    return torch.cat([value.detach(), more])


def _check_extension(ansatz: str, reps: int, longer: int) -> None:
    if ansatz not in CONTINUOUS:
        raise InputError(
            f"more repetitions change the function of the ansatz {ansatz!r}; only pz and rpz can be extended"
        )
    if longer <= reps:
        raise InputError(f"an extension has more repetitions than {reps}, got {longer}")


class DARUAN(ArrayUnit):
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
        steps, each = angle_shape(ansatz, reps)
        _check_measure(measure)
        self.reps, self.ansatz, self.measure = reps, ansatz, measure
        self.learn("theta", torch.zeros(steps, each))
        nn.init.normal_(self.theta, 0.0, 1 / math.sqrt(steps * each))
        self.learn("w", torch.ones(reps))
        self.learn("b", torch.zeros(reps))
        self.learn("scale", torch.ones(()))
        self.learn("shift", torch.zeros(()))
        self.w.requires_grad_(preact_trainable)
        self.b.requires_grad_(preact_trainable or ansatz == "rpz")
        self.scale.requires_grad_(postact_trainable)
        self.shift.requires_grad_(postact_trainable)

    def response(self, x: Tensor, theta: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The function at x with weights whose first dimensions are the steps."""
        return scale * reuploading_circuit(x, theta, w, b, self.ansatz, self.measure) + shift

    def frequencies(self) -> Tensor:
        """The frequencies that the function can have, (num_parameters, (3^reps + 1) / 2), rising.

        Raises:
            InputError: the ansatz is "px", which is no trigonometric polynomial of x, or the read-out is fast.
        """
        _check_spectrum(self.ansatz, self.measure)
        return frequencies_of(self.w)

    def extend(self, reps: int) -> Self:
        """Add repetitions that leave the function as it is, in place; optimisers have to be made again.

        Raises:
            InputError: there are not more repetitions, or the ansatz is not pz or rpz.
        """
        _check_extension(self.ansatz, self.reps, reps)
        for name, steps, fill in (("theta", reps + 1, 0.0), ("w", reps, 1.0), ("b", reps, 0.0)):
            old = getattr(self, name)
            new = _longer(old.transpose(0, 1), steps, fill).transpose(0, 1).contiguous()
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))
        self.reps = reps
        return self


def _check_spectrum(ansatz: str, measure: str) -> None:
    if ansatz == "px" or measure == "fast":
        raise InputError("only expectations of pz, rpz, real and mix are trigonometric polynomials of x")


class QKANLayer(KANLayer):
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
        steps, each = angle_shape(ansatz, reps)
        _check_measure(measure)
        if group != -1 and not 1 <= group <= in_dim:
            raise InputError(f"group is -1, or from 1 to the number of inputs, {in_dim}, not {group}")
        if spread is not None and not 0 <= spread < math.inf:
            raise InputError(f"the spread of the angles is not negative, got {spread}")
        self.reps, self.ansatz, self.measure, self.group = reps, ansatz, measure, group
        outputs, inputs = (out_dim, in_dim) if group == -1 else (1, group)
        if spread is None:
            spread = math.sqrt(2 / (steps * each * (inputs + outputs)))
        self.theta = nn.Parameter(spread * torch.randn(outputs, inputs, steps, each))
        self.w = nn.Parameter(torch.ones(outputs, inputs, reps), preact_trainable)
        self.b = nn.Parameter(torch.zeros(outputs, inputs, reps), preact_trainable or ansatz == "rpz")
        self.postact_weight = nn.Parameter(torch.ones(out_dim, in_dim), postact_weight_trainable)
        self.postact_bias = nn.Parameter(torch.zeros(out_dim, in_dim), postact_bias_trainable)
        start = 0.5 if base_trainable else 0.0
        self.base_weight = nn.Parameter(torch.full((out_dim, in_dim), start), base_trainable)
        self.base = base_function(base)
        self.norm = nn.BatchNorm1d(in_dim) if batch_norm else None

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

    def frequencies(self) -> Tensor:
        """The frequencies that each circuit can have, (outputs, inputs, (3^reps + 1) / 2), rising.

        Raises:
            InputError: the ansatz is "px", which is no trigonometric polynomial of x, or the read-out is fast.
        """
        _check_spectrum(self.ansatz, self.measure)
        return frequencies_of(self.w)

    def extend(self, reps: int) -> Self:
        """Add repetitions that leave all functions as they are, in place; optimisers have to be made again.

        Raises:
            InputError: there are not more repetitions, or the ansatz is not pz or rpz.
        """
        _check_extension(self.ansatz, self.reps, reps)
        for name, steps, fill in (("theta", reps + 1, 0.0), ("w", reps, 1.0), ("b", reps, 0.0)):
            old = getattr(self, name)
            new = _longer(old.movedim(2, 0), steps, fill).movedim(0, 2).contiguous()
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))
        self.reps = reps
        return self

    def extra_repr(self) -> str:
        """Sizes and circuit."""
        return f"{super().extra_repr()}, reps={self.reps}, ansatz={self.ansatz}, measure={self.measure}"
