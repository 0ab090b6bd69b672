"""Functions from scores to probabilities and their like, along one dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.argument_bounds import LEAST, at_least
from actinium.functions.dimensions import place_of
from actinium.functions.layers.simplex_maps import entmax, sparsemax
from actinium.functions.registry import Parameter, fixed, row, trainable
from actinium.functions.stable import pos

__all__ = ["FAMILY", "ROWS"]

FAMILY = "softmax"


def _largest(z: Tensor, dim: int, least: float) -> Tensor:
    """The largest absolute value, at least `least`. Ratios do not change with it, so it takes no part in gradients."""
    return z.detach().abs().amax(place_of(dim, z), keepdim=True).clamp(min=least)


def _softmax(z: Tensor, T: Tensor | float, dim: int) -> Tensor:
    place = place_of(dim, z)
    # Moved to a maximum of 0, so that a small T gives -inf at most.
    return torch.softmax((z - z.detach().amax(place, keepdim=True)) / at_least(T), place)


def _sqmax(z: Tensor, c: Tensor | float, dim: int) -> Tensor:
    w = z + c
    w = (w / _largest(w, dim, 1e-30)).square()
    return w / w.sum(dim, keepdim=True).clamp(min=1e-30)


def _spherical(z: Tensor, eps: float, dim: int) -> Tensor:
    size = _largest(z, dim, 1.0)
    w = (z / size).square() + eps / size / size
    return w / w.sum(dim, keepdim=True)


def _taylor(z: Tensor, dim: int) -> Tensor:
    size = _largest(z, dim, 1.0)
    w = 1 / size / size + z / size / size + (z / size).square() / 2
    return w / w.sum(dim, keepdim=True)


def _sparsemax(z: Tensor, dim: int) -> Tensor:
    return sparsemax(z, place_of(dim, z))


def _entmax(z: Tensor, alpha: Tensor | float, dim: int) -> Tensor:
    return entmax(z, alpha, place_of(dim, z))


def _gumbel_softmax(z: Tensor, T: Tensor | float, hard: int, dim: int, training: bool = False) -> Tensor:
    place = place_of(dim, z)
    if training:
        z = z - torch.log(torch.empty_like(z).exponential_())
    p = _softmax(z, T, place)
    return _hardmax(p, place) + (p - p.detach()) if hard else p


def _sigsoftmax(z: Tensor, dim: int) -> Tensor:
    return torch.softmax(z + functional.logsigmoid(z), place_of(dim, z))


def _softmax_1(z: Tensor, dim: int) -> Tensor:
    total = torch.logsumexp(z, place_of(dim, z), keepdim=True)
    return torch.exp(z - torch.logaddexp(total, torch.zeros_like(total)))


def _lehmer(z: Tensor, a: Tensor | float, b: Tensor | float, dim: int) -> Tensor:
    a = at_least(a)
    grown = torch.logsumexp(a * (b + 1) * z, dim, keepdim=True)
    return (grown - torch.logsumexp(a * b * z, dim, keepdim=True)) / a


def _power_mean(z: Tensor, a: Tensor | float, b: Tensor | float, dim: int) -> Tensor:
    base = at_least(a) * at_least(b)
    return (torch.logsumexp(base * z, dim, keepdim=True) - math.log(z.shape[dim])) / base


def _tame(z: Tensor) -> Tensor:
    """z within an eighth of what its type holds, so that differences and doubles of it are finite."""
    top = torch.finfo(z.dtype).max / 8
    return z.clamp(-top, top)


def _lehmer_softmax(
    z: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float, dim: int
) -> Tensor:
    place, z = place_of(dim, z), _tame(z)
    away = z - _lehmer(z, a, b, place)
    return torch.softmax(away / (_lehmer(away.abs(), c, d, place) + LEAST), place)


def _power_softmax(
    z: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float, dim: int
) -> Tensor:
    place, z = place_of(dim, z), _tame(z)
    away = z - _power_mean(z, a, b, place)
    return torch.softmax(away / (_power_mean(away.abs(), c, d, place) + LEAST), place)


def _hardmax(z: Tensor, dim: int) -> Tensor:
    place = place_of(dim, z)
    return torch.zeros_like(z).scatter(place, z.argmax(place, keepdim=True), 1.0)


def _normalised_relu(z: Tensor, eps: float, dim: int) -> Tensor:
    size = _largest(z, dim, 1.0)
    w = pos(z) / size
    return w / (w.sum(dim, keepdim=True) + eps / size)


DIM = {"dim": fixed(-1, whole=True)}


def _with_dim(**parameters: Parameter) -> dict[str, Parameter]:
    return parameters | DIM


MEANS = {"a": trainable(1.0, LEAST), "b": trainable(1.0, LEAST), "c": trainable(1.0, LEAST), "d": trainable(1.0, LEAST)}
MEANS_NOTE = (
    "a and c are read as logarithms of the bases, and s as the mean of |z - m|: as printed, s is 0 where both means "
    "are alike"
)

ROWS = (
    row("Softmax", r"\frac{e^{z_j / T}}{\sum_k e^{z_k / T}}", _softmax, "Bridle 1990", None,
        _with_dim(T=fixed(1.0, LEAST)), arity="vector"),
    row("LogSoftmax", r"z_j - \ln \sum_k e^{z_k}", lambda z, dim: torch.log_softmax(z, place_of(dim, z)), "torch", None,
        DIM, arity="vector"),
    row("Softmin", r"\frac{e^{-z_j}}{\sum_k e^{-z_k}}", lambda z, dim: torch.softmax(-z, place_of(dim, z)), "torch",
        None, DIM, arity="vector"),
    row("SQMAX", r"\frac{(z_j + c)^2}{\sum_k (z_k + c)^2}", _sqmax, "survey", None, _with_dim(c=fixed(0.0)),
        arity="vector", confidence="b", note="0 where every z_k is -c"),
    row("Spherical softmax", r"\frac{z_j^2 + \varepsilon}{\sum_k (z_k^2 + \varepsilon)}", _spherical, "Vincent 2015",
        None, _with_dim(eps=fixed(1e-6, 1e-12)), arity="vector"),
    row("Taylor softmax", r"\frac{1 + z_j + z_j^2 / 2}{\sum_k (1 + z_k + z_k^2 / 2)}", _taylor, "Vincent 2015", None,
        DIM, arity="vector"),
    row("Sparsemax", r"\operatorname{argmin}_{p \in \Delta} \|p - z\|^2", _sparsemax, "Martins 2016", None, DIM,
        arity="vector"),
    row("alpha-entmax", r"\operatorname{argmax}_{p \in \Delta} p^\top z + H^T_\alpha(p)", _entmax, "Peters 2019", None,
        _with_dim(alpha=fixed(1.5, 1.0, 20.0)), arity="vector", aliases=("entmax",),
        note="softmax at 1, sparsemax at 2; first derivatives only"),
    row("Gumbel-softmax", r"\frac{e^{(z_j + g_j) / T}}{\sum_k e^{(z_k + g_k) / T}}, g \sim \operatorname{Gumbel}(0, 1)",
        _gumbel_softmax, "Jang 2016", None, _with_dim(T=fixed(1.0, LEAST), hard=fixed(0, 0, 1, whole=True)),
        arity="vector", kind="stochastic", note="hard=1 gives one-hot vectors with the gradient of the soft ones"),
    row("Sigsoftmax", r"\frac{e^{z_j} \sigma(z_j)}{\sum_k e^{z_k} \sigma(z_k)}", _sigsoftmax, "Kanai 2018", None, DIM,
        arity="vector"),
    row("Softmax1", r"\frac{e^{z_j}}{1 + \sum_k e^{z_k}}", _softmax_1, "Miller 2023", None, DIM, arity="vector",
        aliases=("off-by-one softmax",)),
    row("GLSoftmax",
        r"\operatorname{softmax}(\frac{z - m}{s})_j, m = \frac 1 a \ln \frac{\sum e^{a (b + 1) z_k}}{\sum e^{a b z_k}}",
        _lehmer_softmax, "Terziyan 2022", None, _with_dim(**MEANS), arity="vector", confidence="c", note=MEANS_NOTE,
        aliases=("generalised Lehmer softmax",)),
    row("GPSoftmax", r"\operatorname{softmax}(\frac{z - m}{s})_j, m = \frac{1}{a b} \ln \frac 1 n \sum e^{a b z_k}",
        _power_softmax, "Terziyan 2022", None, _with_dim(**MEANS), arity="vector", confidence="c", note=MEANS_NOTE,
        aliases=("generalised power softmax",)),
    row("Hardmax", r"\mathbf 1[j = \operatorname{argmax}_k z_k]", _hardmax, "-", None, DIM, arity="vector"),
    row("Normalised ReLU", r"\frac{\max(z_j, 0)}{\sum_k \max(z_k, 0) + \varepsilon}", _normalised_relu, "-", None,
        _with_dim(eps=fixed(1e-6, 1e-12)), arity="vector"),
)  # fmt: skip
