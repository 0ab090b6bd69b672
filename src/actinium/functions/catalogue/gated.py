"""Functions of several units: gates, maxima, sorted groups, winners, and concatenations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.dimensions import grouped, halves, place_of
from actinium.functions.gates import gelu, silu
from actinium.functions.layers.dynamic_units import DynamicReLU
from actinium.functions.layers.funnel_units import FunnelReLU, SpatialMax
from actinium.functions.layers.maxout_units import Maxout
from actinium.functions.registry import Parameter, fixed, row, trainable
from actinium.functions.stable import pos, sig
from actinium.functions.units.bipolar_units import ChannelBipolar, alternate

__all__ = ["FAMILY", "ROWS"]

FAMILY = "gated and multi-unit"
TINY = 1e-30


def _glu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * sig(b)


def _gtu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return torch.tanh(a) * sig(b)


def _bilinear(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * b


def _reglu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * pos(b)


def _geglu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * gelu(b)


def _swiglu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * silu(b)


def _seglu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return a * functional.selu(b)


def _drelu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return pos(a) * pos(b)


def _dual_relu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return pos(a) - pos(b)


def _dual_elu(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return functional.elu(a) - functional.elu(b)


def _group_sort(x: Tensor, g: int, dim: int) -> Tensor:
    groups, place = grouped(x, g, dim)
    return groups.sort(dim=place).values.flatten(place - 1, place)


def _oplu(x: Tensor, dim: int) -> Tensor:
    pairs, place = grouped(x, 2, dim)
    return torch.stack((pairs.amax(place), pairs.amin(place)), place).flatten(place - 1, place)


def _max_min(x: Tensor, dim: int) -> Tensor:
    a, b = halves(x, dim)
    return torch.cat((torch.maximum(a, b), torch.minimum(a, b)), dim)


def _crelu(x: Tensor, dim: int) -> Tensor:
    return torch.cat((pos(x), pos(-x)), place_of(dim, x))


def _ncrelu(x: Tensor, dim: int) -> Tensor:
    return torch.cat((pos(x), -pos(-x)), place_of(dim, x))


def _celu(x: Tensor, dim: int) -> Tensor:
    return torch.cat((functional.elu(x), functional.elu(-x)), place_of(dim, x))


def _paired_relu(
    x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float, dim: int
) -> Tensor:
    return torch.cat((pos(a * x - b), pos(c * x - d)), place_of(dim, x))


def _cone(x: Tensor, m: int, dim: int) -> Tensor:
    groups, place = grouped(x, m, dim)
    # A cone does not change with the scale, so that one is taken out whose squares are finite.
    scale = groups.detach().abs().amax(place, keepdim=True).clamp(min=1.0)
    t, v = (groups / scale).split([1, m - 1], place)
    size = torch.linalg.vector_norm(v, dim=place, keepdim=True)
    height = pos(t + size) / 2
    outside = torch.cat((height, height * (v / size.clamp(min=TINY))), place)
    return torch.where(size <= t, groups, scale * outside).flatten(place - 1, place)


def _kept(x: Tensor, places: Tensor, dim: int) -> Tensor:
    """x at some places of a dimension, 0 at the others."""
    some = torch.zeros_like(x, dtype=torch.bool).scatter(dim, places, True)
    return torch.where(some, x, 0.0)


def _winners(x: Tensor, k: int, dim: int) -> Tensor:
    place = place_of(dim, x)
    if k > x.shape[place]:
        raise InputError(f"dimension {dim} has {x.shape[place]} units, of which {k} cannot be kept")
    return _kept(x, x.topk(k, dim=place).indices, place)


def _kwta(x: Tensor, ratio: float, dim: int) -> Tensor:
    # A ratio such as 0.29 of 100 units is 28.999... in floating point.
    return _winners(x, max(1, math.floor(ratio * x.shape[place_of(dim, x)] + 1e-9)), dim)


def _batch_topk(x: Tensor, k: int, dim: int) -> Tensor:
    n = x.shape[place_of(dim, x)]
    if k > n:
        raise InputError(f"dimension {dim} has {n} units, of which {k} cannot be kept")
    return _winners(x.flatten(), k * (x.numel() // n), 0).view(x.shape)


def _lwta(x: Tensor, block: int, dim: int) -> Tensor:
    groups, place = grouped(x, block, dim)
    return _kept(groups, groups.argmax(place, keepdim=True), place).flatten(place - 1, place)


def _volatility(x: Tensor, dim: int) -> Tensor:
    place = place_of(dim, x)
    # The ratio does not change with the scale, so that one is taken out whose squares are finite.
    x = x / x.detach().abs().amax(place, keepdim=True).clamp(min=TINY)
    mean = x.mean(place, keepdim=True)
    spread = torch.linalg.vector_norm(x - mean, dim=place, keepdim=True) / math.sqrt(x.shape[place])
    return spread / mean.abs().clamp(min=1e-6)


DIM = {"dim": fixed(-1, whole=True)}


def _with_dim(**parameters: Parameter) -> dict[str, Parameter]:
    return parameters | DIM


ROWS = (
    row("GLU", r"a \sigma(b)", _glu, "Dauphin 2017", None, DIM, arity="gated"),
    row("GTU", r"\tanh(a) \sigma(b)", _gtu, "van den Oord 2016", None, DIM, arity="gated"),
    row("Bilinear", "a b", _bilinear, "Shazeer 2020", None, DIM, arity="gated"),
    row("ReGLU", r"a \max(b, 0)", _reglu, "Shazeer 2020", None, DIM, arity="gated"),
    row("GEGLU", r"a b \Phi(b)", _geglu, "Shazeer 2020", None, DIM, arity="gated"),
    row("SwiGLU", r"a b \sigma(b)", _swiglu, "Shazeer 2020", None, DIM, arity="gated"),
    row("SeGLU", r"a \operatorname{SELU}(b)", _seglu, "survey", None, DIM, arity="gated", confidence="b"),
    row("dReLU (gated)", r"\max(a, 0) \max(b, 0)", _drelu, "Song 2024", None, DIM, arity="gated"),
    row("Dual ReLU", r"\max(a, 0) - \max(b, 0)", _dual_relu, "Godin 2018", None, DIM, arity="gated"),
    row("Dual ELU", r"\operatorname{ELU}(a) - \operatorname{ELU}(b)", _dual_elu, "Godin 2018", None, DIM,
        arity="gated"),
    row("Maxout", r"\max_k (W_k x + b_k)", None, "Goodfellow 2013", kind="trainable", arity="channels", module=Maxout,
        note="get('maxout', in_features=..., out_features=...)"),
    row("OPLU", r"(x_{2 i}, x_{2 i + 1}) \mapsto (\max, \min)", _oplu, "Chernodub 2016", None, DIM, arity="vector",
        aliases=("GroupSort-2",), note="of neighbours"),
    row("GroupSort", r"\operatorname{sort}(x_{g i}, \dots, x_{g i + g - 1})", _group_sort, "Anil 2019", None,
        _with_dim(g=fixed(5, 1, whole=True)), arity="vector", aliases=("GroupSort-g",),
        note="of neighbours, ascending"),
    row("MaxMin", r"(\max(a, b), \min(a, b))", _max_min, "Anil 2019", None, DIM, arity="vector"),
    row("CReLU", r"(\max(x, 0), \max(-x, 0))", _crelu, "Shang 2016", None, DIM, arity="channels",
        aliases=("concatenated ReLU",)),
    row("Negative CReLU", r"(\max(x, 0), -\max(-x, 0))", _ncrelu, "Eidnes 2017", None, DIM, arity="channels",
        aliases=("NCReLU",)),
    row("Concatenated ELU", r"(\operatorname{ELU}(x), \operatorname{ELU}(-x))", _celu, "TensorFlow community", None,
        DIM, arity="channels"),
    row("Paired ReLU", r"(\max(a x - b, 0), \max(c x - d, 0))", _paired_relu, "Tang 2018", None,
        _with_dim(a=trainable(0.5), b=trainable(0.0), c=trainable(-0.5), d=trainable(0.0)), arity="channels"),
    row("Funnel ReLU", r"\max(x, \operatorname{BN}(w * x))", None, "Ma 2020", kind="trainable", arity="channels",
        module=FunnelReLU, note="get('funnel relu', channels=...)"),
    row("SCAA", r"\max(x, w * x)", None, "survey", kind="trainable", arity="channels", module=SpatialMax,
        note="get('scaa', channels=...)"),
    row("Dynamic ReLU", r"\max_k (a_k(\bar x) x + b_k(\bar x))", None, "Chen 2020", kind="trainable", arity="channels",
        module=DynamicReLU, aliases=("DY-ReLU",), note="get('dynamic relu', channels=...)"),
    row("MPU", r"\operatorname{argmin}_{\|w\| \le s} \|(s, w) - (t, v)\|", _cone, "Li 2024", None,
        _with_dim(m=fixed(3, 2, whole=True)), arity="vector", aliases=("SOC projection",),
        note="groups of m neighbours, of which the first is t"),
    row("kWTA", r"x_i \text{ if among the } k \text{ largest, else } 0", _kwta, "Xiao 2019", None,
        _with_dim(ratio=fixed(0.2, 0.0, 1.0)), arity="vector", note="k is the ratio of all units, at least one"),
    row("TopK", r"x_i \text{ if among the } k \text{ largest, else } 0", _winners, "Makhzani 2013", None,
        _with_dim(k=fixed(4, 1, whole=True)), arity="vector"),
    row("BatchTopK", r"x_{n i} \text{ if among the } N k \text{ largest of the batch, else } 0", _batch_topk,
        "Bussmann 2024", None, _with_dim(k=fixed(4, 1, whole=True)), arity="vector",
        note="k for each vector on average; what is kept depends on the others of the batch"),
    row("Lateral inhibition", r"x_i \text{ if largest of its block, else } 0", _lwta, "Srivastava 2013", None,
        _with_dim(block=fixed(2, 1, whole=True)), arity="vector", aliases=("LWTA",)),
    row("Channel-wise bipolar", r"f(x_{2 i}), -f(-x_{2 i + 1})", lambda x, dim: alternate(pos, x, dim), "Eidnes 2017",
        None, DIM, arity="channels", module=ChannelBipolar, note="of ReLU; get('channel-wise bipolar', base='elu')"),
    row("VBAF", r"\frac{1}{|\bar x|} \sqrt{\frac 1 n \sum_j (x_j - \bar x)^2}", _volatility, "survey", None, DIM,
        arity="vector", aliases=("volatility",), confidence="c",
        note="the source prints the sum of the deviations, which is 0; read as standard deviation over mean"),
)  # fmt: skip
