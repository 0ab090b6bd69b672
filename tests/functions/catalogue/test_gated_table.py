"""Functions of several units: halves, pairs, groups, winners and concatenations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.layers.funnel_units import FunnelReLU, SpatialMax
from actinium.functions.layers.maxout_units import Maxout
from actinium.functions.registry import evaluate, spec
from actinium.functions.units.bipolar_units import ChannelBipolar

FAMILY = "gated and multi-unit"
ROWS = [s for s in ac.functions.every() if s.family == FAMILY]
PLAIN = [s for s in ROWS if s.function is not None]
GATED = [s for s in ROWS if s.arity == "gated"]
DOUBLING = ("CReLU", "Negative CReLU", "Concatenated ELU", "Paired ReLU")
each = pytest.mark.parametrize("row", PLAIN, ids=lambda s: s.key)

GATES = {
    "glu": lambda a, b: a * torch.sigmoid(b),
    "gtu": lambda a, b: torch.tanh(a) * torch.sigmoid(b),
    "bilinear": lambda a, b: a * b,
    "reglu": lambda a, b: a * functional.relu(b),
    "geglu": lambda a, b: a * functional.gelu(b),
    "swiglu": lambda a, b: a * functional.silu(b),
    "seglu": lambda a, b: a * functional.selu(b),
    "drelu (gated)": lambda a, b: functional.relu(a) * functional.relu(b),
    "dual relu": lambda a, b: functional.relu(a) - functional.relu(b),
    "dual elu": lambda a, b: functional.elu(a) - functional.elu(b),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def defaults(row):
    return {k: p.default for k, p in row.parameters.items()}


def size_of(row, n):
    return {"gated": n // 2}.get(row.arity, 2 * n if row.name in DOUBLING else 1 if row.name == "VBAF" else n)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_its_formula_on_halves_of_any_dimension(name):
    x = torch.randn(6, 8, 4, dtype=torch.float64)
    for dim in (-1, 0, 1, 2):
        a, b = x.chunk(2, dim)
        torch.testing.assert_close(spec(name)(x, dim=dim), GATES[name](a, b))
        torch.testing.assert_close(ac.functions.get(name, dim=dim)(x), GATES[name](a, b))


def test_every_gated_row_is_compared():
    assert {s.key for s in GATED} == {spec(name).key for name in GATES}


def test_glu_is_that_of_pytorch():
    x = torch.randn(5, 8)
    torch.testing.assert_close(ac.functions.get("glu")(x), functional.glu(x))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_shape_and_dtype_are_as_stated(row, dtype):
    x = (torch.randn(4, 3, 30) + 0.5).to(dtype)
    y = row(x)
    assert y.shape == (4, 3, size_of(row, 30)) and y.dtype == dtype
    assert y.isfinite().all()
    if row.name != "BatchTopK":
        # Along another dimension it is the same on the transposed tensor.
        other = row(x.transpose(1, 2).contiguous(), dim=1)
        torch.testing.assert_close(other.transpose(1, 2), y)


@each
def test_gradients_of_units_are_those_of_finite_differences(row):
    x = torch.randn(2, 30, dtype=torch.float64, requires_grad=True)
    learnt = {
        k: torch.tensor(p.default, dtype=torch.float64, requires_grad=True)
        for k, p in row.parameters.items()
        if p.trainable
    }
    held = {k: v for k, v in defaults(row).items() if k not in learnt}
    f = lambda t, *values: evaluate(row, t, held | dict(zip(learnt, values, strict=True)))  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, *learnt.values()), eps=1e-7, atol=1e-5)


@each
def test_large_numbers_and_zeros_give_no_nan(row):
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        values = [0.0, top, -top, 0.0, top / 2, 1e4, -1e4, -100.0, 100.0, 1.0] * 3
        assert not row(torch.tensor([values, [0.0] * 30], dtype=dtype)).isnan().any()
        x = torch.zeros(2, 30, dtype=dtype, requires_grad=True)
        (slope,) = torch.autograd.grad(row(x).sum(), x)
        assert not slope.isnan().any()


@each
def test_a_batch_in_vmap_is_its_loop(row):
    x = torch.randn(3, 2, 30)
    torch.testing.assert_close(torch.vmap(row)(x), torch.stack([row(t) for t in x]), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_divided_is_refused():
    for row in [*GATED, spec("maxmin")]:
        with pytest.raises(InputError, match="even number of units, dimension -1 has 5"):
            row(torch.zeros(2, 5))
    for name in ("oplu", "groupsort", "mpu", "lwta"):
        with pytest.raises(InputError, match="no multiple of"):
            spec(name)(torch.zeros(2, 7))
    for name in ("topk", "batchtopk"):
        with pytest.raises(InputError, match="of which 9 cannot be kept"):
            spec(name)(torch.zeros(2, 7), k=9)
    for row in PLAIN:
        with pytest.raises(InputError, match="no dimension 2"):
            row(torch.zeros(2, 30), dim=2)
        with pytest.raises(InputError, match="is empty"):
            row(torch.zeros(2, 0))
        with pytest.raises(InputError, match="floating-point"):
            row(torch.zeros(2, 30, dtype=torch.int64))


def test_sorting_units_keep_the_numbers_and_the_length_of_gradients():
    x = torch.randn(7, 30, requires_grad=True)
    for name in ("oplu", "groupsort", "maxmin"):
        y = spec(name)(x)
        torch.testing.assert_close(y.sort().values, x.sort().values)
        out = torch.randn(7, 30)
        (slope,) = torch.autograd.grad(y, x, out)
        torch.testing.assert_close(slope.norm(dim=1), out.norm(dim=1))


def test_order_inside_of_groups():
    x = torch.tensor([1.0, 2.0, 5.0, 4.0, 0.0, 3.0])
    assert spec("oplu")(x).tolist() == [2, 1, 5, 4, 3, 0]
    assert spec("groupsort")(x, g=3).tolist() == [1, 2, 5, 0, 3, 4]
    assert spec("maxmin")(x).tolist() == [4, 2, 5, 1, 0, 3]
    assert spec("groupsort")(x, g=1).tolist() == x.tolist()


def test_doubling_functions_hold_both_signs():
    x = torch.randn(4, 6, 5)
    a, b = ac.functions.get("crelu", dim=1)(x).chunk(2, 1)
    torch.testing.assert_close(a - b, x)
    a, b = ac.functions.get("negative crelu", dim=1)(x).chunk(2, 1)
    torch.testing.assert_close(a + b, x)
    a, b = spec("concatenated elu")(x).chunk(2, -1)
    torch.testing.assert_close(a, functional.elu(x))
    torch.testing.assert_close(b, functional.elu(-x))
    a, b = spec("paired relu")(x, a=1.0, b=0.5, c=-2.0, d=0.25).chunk(2, -1)
    torch.testing.assert_close(a, functional.relu(x - 0.5))
    torch.testing.assert_close(b, functional.relu(-2 * x - 0.25))
    assert {k for k, _ in ac.functions.get("paired relu").named_parameters()} == {"a", "b", "c", "d"}


@pytest.mark.parametrize("m", [2, 3, 5])
def test_cone_units_are_the_nearest_points_of_the_cone(m):
    x = torch.randn(400, m, dtype=torch.float64)
    y = spec("mpu")(x, m=m)
    t, size = y[:, 0], y[:, 1:].norm(dim=1)
    assert (size <= t + 1e-12).all()
    # Moreau: what is left lies in the polar cone and is orthogonal to the projection.
    left = x - y
    torch.testing.assert_close((left * y).sum(1), torch.zeros(400, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (left[:, 1:].norm(dim=1) <= -left[:, 0] + 1e-12).all()
    torch.testing.assert_close(spec("mpu")(y, m=m), y)
    # The two neighbours of a pair are a vector in the plane, |w| <= s its quarter.
    assert spec("mpu")(torch.tensor([1.0, 3.0]), m=2).tolist() == [2, 2]
    assert spec("mpu")(torch.tensor([-3.0, 2.0]), m=2).tolist() == [0, 0]


def test_winners_are_as_many_as_stated_and_keep_their_value():
    x = torch.randn(6, 100)
    for name, given, count in (("kwta", {"ratio": 0.29}, 29), ("kwta", {"ratio": 0.0}, 1), ("topk", {"k": 7}, 7)):
        y = spec(name)(x, **given)
        assert (y != 0).sum(1).tolist() == [count] * 6
        np.testing.assert_array_equal(y.numpy(), np.where(x >= x.sort(1).values[:, [-count]], x, 0))
    y = spec("batchtopk")(x, k=7)
    assert (y != 0).sum() == 42 and len(set((y != 0).sum(1).tolist())) > 1
    assert x[y != 0].min() > x[y == 0].max()
    y = spec("lateral inhibition")(x, block=4).view(6, 25, 4)
    np.testing.assert_array_equal((y != 0).sum(2), 1)
    torch.testing.assert_close(y.sum(2), x.view(6, 25, 4).amax(2))


def test_ties_keep_no_more_than_were_asked_for():
    x = torch.ones(3, 10)
    assert (spec("topk")(x, k=4).sum(1) == 4).all()
    assert (spec("lwta")(x, block=5).sum(1) == 2).all()


def test_bipolar_units_turn_every_second_one():
    x = torch.randn(3, 7, 4)
    for base, f in (("relu", functional.relu), ("elu", functional.elu), (torch.exp, torch.exp)):
        y = ChannelBipolar(base, dim=1)(x)
        torch.testing.assert_close(y[:, ::2], f(x[:, ::2]))
        torch.testing.assert_close(y[:, 1::2], -f(-x[:, 1::2]))
    torch.testing.assert_close(spec("channel-wise bipolar")(x, dim=1), ChannelBipolar(dim=1)(x))
    torch.testing.assert_close(ac.functions.get("channel-wise bipolar", base="elu")(x), ChannelBipolar("elu")(x))
    with pytest.raises(UnknownNameError):
        ChannelBipolar("no such function")
    with pytest.raises(InputError, match="floating-point"):
        ChannelBipolar()(torch.zeros(3, dtype=torch.int64))


def test_volatility_is_the_coefficient_of_variation():
    x = torch.rand(5, 9, dtype=torch.float64) + 1
    wanted = x.numpy().std(1, keepdims=True) / x.numpy().mean(1, keepdims=True)
    np.testing.assert_allclose(spec("vbaf")(x), wanted)
    with pytest.raises(InputError, match="uncertain"):
        ac.functions.get("vbaf")


def test_maxout_is_the_largest_of_its_maps():
    module = ac.functions.get("maxout", in_features=4, out_features=3, pieces=5)
    x = torch.randn(2, 6, 4)
    weight, bias = module.linear.weight.view(3, 5, 4), module.linear.bias.view(3, 5)
    values = torch.stack([x @ weight[:, k].T + bias[:, k] for k in range(5)])
    torch.testing.assert_close(module(x), values.amax(0))
    with pytest.raises(InputError, match=r"\(\.\.\., 4\)"):
        module(torch.zeros(2, 5))
    with pytest.raises(InputError, match="sizes of one or more"):
        Maxout(4, 0)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_funnels_are_the_larger_of_a_pixel_and_the_sum_around_it(size):
    x = torch.randn(2, 3, 6, 7)
    for module in (SpatialMax(3, size), FunnelReLU(3, size)):
        patches = functional.unfold(x, size, padding=size // 2).view(2, 3, size * size, 6, 7)
        weight = module.around.weight.view(1, 3, size * size, 1, 1)
        around = (patches * weight).sum(2) + module.around.bias.view(1, 3, 1, 1)
        if isinstance(module, FunnelReLU):
            mean, var = around.mean((0, 2, 3), keepdim=True), around.var((0, 2, 3), keepdim=True, unbiased=False)
            around = (around - mean) / (var + 1e-5).sqrt()
        torch.testing.assert_close(module(x), torch.maximum(x, around), rtol=1e-4, atol=1e-5)


def test_funnels_refuse_what_is_no_batch_of_their_images():
    for kind in (SpatialMax, FunnelReLU):
        for bad in (torch.zeros(2, 4, 5, 5), torch.zeros(3, 5, 5), torch.zeros(2, 3, 5, 5, dtype=torch.int64)):
            with pytest.raises(InputError, match=r"\(batch, 3, height, width\)"):
                kind(3)(bad)
        with pytest.raises(InputError, match="odd kernel size"):
            kind(3, 4)


def test_modules_of_gates_belong_into_a_network():
    net = nn.Sequential(nn.Linear(4, 16), ac.functions.get("swiglu"), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    target = (x[:, :1] * x[:, 1:2]).detach()
    losses = []
    for _ in range(200):
        loss = (net(x) - target).square().mean()
        slopes = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, slope in zip(net.parameters(), slopes, strict=True):
                p -= 0.2 * slope
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_swiglu_of_a_language_model_is_its_own():
    at = {part: f"blocks.1.mlp.{part}" for part in ("pre", "gate", "post")}
    found = ac.load("world:lm").record(torch.randint(0, 50, (2, 12)), list(at.values()))
    joined = torch.cat((found[at["pre"]], found[at["gate"]]), -1)
    torch.testing.assert_close(ac.functions.get("swiglu")(joined), found[at["post"]])
