"""Circuits of one simulated qubit into which a number is put again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from actinium.core.errors import InputError, unknown

__all__ = ["ANSAETZE", "MEASURES", "angle_shape", "reuploading_circuit"]

MEASURES = ("expectation", "fast")


class _Qubit(ABC):
    """A qubit that starts in (|0> + |1>) / sqrt 2."""

    @abstractmethod
    def rx(self, t: Tensor) -> None:
        """Rotation about x."""

    @abstractmethod
    def ry(self, t: Tensor) -> None:
        """Rotation about y."""

    @abstractmethod
    def rz(self, t: Tensor) -> None:
        """Rotation about z."""

    @abstractmethod
    def flip(self, axis: str) -> None:
        """The Pauli gate of "x" or "z"."""

    @abstractmethod
    def read(self) -> Tensor:
        """The outcome."""


def _turned(a: Tensor, b: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A point of a plane, turned by an angle."""
    c, s = t.cos(), t.sin()
    return c * a - s * b, s * a + c * b


class _Bloch(_Qubit):
    """The three coordinates of a pure state on the sphere, where gates are rotations; reads <Z>."""

    def __init__(self, like: Tensor) -> None:
        self.x, self.y, self.z = torch.ones_like(like), torch.zeros_like(like), torch.zeros_like(like)
        # Rotations about z that follow each other are one, and the last one before the read-out is none.
        self.turn: Tensor | None = None

    def rx(self, t: Tensor) -> None:
        self._turn()
        self.y, self.z = _turned(self.y, self.z, t)

    def ry(self, t: Tensor) -> None:
        self._turn()
        self.z, self.x = _turned(self.z, self.x, t)

    def rz(self, t: Tensor) -> None:
        self.turn = t if self.turn is None else self.turn + t

    def flip(self, axis: str) -> None:
        self._turn()
        self.y = -self.y
        if axis == "x":
            self.z = -self.z
        else:
            self.x = -self.x

    def read(self) -> Tensor:
        # Rounding may leave the sphere.
        return self.z.clamp(-1.0, 1.0)

    def _turn(self) -> None:
        if self.turn is not None:
            self.x, self.y = _turned(self.x, self.y, self.turn)
            self.turn = None


class _Amplitudes(_Qubit):
    """Real and imaginary parts of both amplitudes; reads |psi_0| - |psi_1|."""

    def __init__(self, like: Tensor) -> None:
        half = torch.full_like(like, 0.5**0.5)
        nought = torch.zeros_like(like)
        self.a, self.b = (half, nought), (half, nought)

    def rx(self, t: Tensor) -> None:
        c, s = (t / 2).cos(), (t / 2).sin()
        (ar, ai), (br, bi) = self.a, self.b
        self.a = (c * ar + s * bi, c * ai - s * br)
        self.b = (c * br + s * ai, c * bi - s * ar)

    def ry(self, t: Tensor) -> None:
        c, s = (t / 2).cos(), (t / 2).sin()
        (ar, ai), (br, bi) = self.a, self.b
        self.a = (c * ar - s * br, c * ai - s * bi)
        self.b = (s * ar + c * br, s * ai + c * bi)

    def rz(self, t: Tensor) -> None:
        c, s = (t / 2).cos(), (t / 2).sin()
        (ar, ai), (br, bi) = self.a, self.b
        self.a = (c * ar + s * ai, c * ai - s * ar)
        self.b = (c * br - s * bi, c * bi + s * br)

    def flip(self, axis: str) -> None:
        if axis == "x":
            self.a, self.b = self.b, self.a
        else:
            self.b = (-self.b[0], -self.b[1])

    def read(self) -> Tensor:
        return _size(*self.a) - _size(*self.b)


def _size(real: Tensor, imaginary: Tensor) -> Tensor:
    """|z|, whose slope is 0 where z is 0."""
    square = real * real + imaginary * imaginary
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _pz(q: _Qubit, theta: Tensor, data: list[Tensor]) -> None:
    for angles, value in zip(theta, data, strict=False):
        q.rz(angles[0])
        q.ry(angles[1])
        q.rz(value)
    q.rz(theta[-1, 0])
    q.ry(theta[-1, 1])


def _rpz(q: _Qubit, theta: Tensor, data: list[Tensor]) -> None:
    for angles, value in zip(theta, data, strict=False):
        q.ry(angles[0])
        q.rz(value)
    q.ry(theta[-1, 0])


def _px(q: _Qubit, theta: Tensor, data: list[Tensor]) -> None:
    for angles, value in zip(theta, data, strict=False):
        if bool((value.abs() > 1).any()):
            raise InputError('the ansatz "px" takes |w x + b| of 1 at most; scale the inputs, or use "pz"')
        q.rz(angles[0])
        # The slope of the arc cosine is infinite at 1 and -1; there it counts as 0, so that it does not become NaN.
        q.rx(torch.arccos(torch.where(value.abs() == 1, value.detach(), value)))
    q.rz(theta[-1, 0])


def _real(q: _Qubit, theta: Tensor, data: list[Tensor]) -> None:
    for angles, value in zip(theta, data, strict=True):
        q.flip("x")
        q.ry(angles[0])
        q.flip("z")
        q.ry(value)


def _mix(q: _Qubit, theta: Tensor, data: list[Tensor]) -> None:
    for angles, value in zip(theta, data, strict=False):
        q.rz(angles[0])
        q.rx(angles[1])
        q.ry(value)
    q.rz(theta[-1, 0])
    q.rx(theta[-1, 1])


Circuit = Callable[[_Qubit, Tensor, list[Tensor]], None]
ANSAETZE: Mapping[str, tuple[Circuit, int, int]] = MappingProxyType(
    {"pz": (_pz, 1, 2), "rpz": (_rpz, 1, 1), "px": (_px, 1, 1), "real": (_real, 0, 1), "mix": (_mix, 1, 2)}
)
"""By name the gates, how many steps of angles there are beyond the repetitions, and the angles of a step."""


def angle_shape(ansatz: str, reps: int) -> tuple[int, int]:
    """(steps, angles of a step) of the trained angles of a circuit.

    Raises:
        InputError: there is no such ansatz, or less than one repetition.
    """
    if ansatz not in ANSAETZE:
        raise InputError(unknown("ansatz", str(ansatz), list(ANSAETZE)))
    if reps < 1:
        raise InputError(f"there is one repetition or more, not {reps}")
    _, more, each = ANSAETZE[ansatz]
    return reps + more, each


def reuploading_circuit(
    x: Tensor, theta: Tensor, w: Tensor, b: Tensor, ansatz: str = "pz", measure: str = "expectation"
) -> Tensor:
    """The outcome of a circuit of one qubit, from -1 to 1.

    Args:
        x: numbers of any shape.
        theta: trained angles, (steps, angles of a step, ...), whose other dimensions broadcast with x.
        w, b: the number that goes in at repetition l is w_l x + b_l; (reps, ...).
        ansatz: "pz" (for each repetition RZ, RY, data RZ; then RZ, RY), "rpz" (RY, data RZ; RY), "px" (RZ, data RX of
            the arc cosine, whose slope counts as 0 at 1 and -1; RZ), "real" (X, RY, Z, data RY) or "mix" (RZ, RX, data
            RY; RZ, RX).
        measure: "expectation" for <Z> = |psi_0|^2 - |psi_1|^2, or "fast" for |psi_0| - |psi_1|, which is no expectation
            and not band-limited.

    Raises:
        InputError: an unknown ansatz or measure, or |w x + b| above 1 with "px".

    Source: Jiang et al., 2025, arXiv 2509.14026; their code.
    """
    if measure not in MEASURES:
        raise InputError(unknown("measure", str(measure), list(MEASURES)))
    angle_shape(ansatz, len(w))
    data = [w[step] * x + b[step] for step in range(len(w))]
    like = torch.zeros(torch.broadcast_shapes(data[0].shape, theta.shape[2:]), dtype=x.dtype, device=x.device)
    qubit = _Bloch(like) if measure == "expectation" else _Amplitudes(like)
    ANSAETZE[ansatz][0](qubit, theta, data)
    return qubit.read()
