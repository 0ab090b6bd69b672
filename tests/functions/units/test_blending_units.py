"""Blends of a pool: closed forms of their weights, channels, gradients, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

import actinium as ac

X = torch.linspace(-3, 3, 60, dtype=torch.float64).view(4, 3, 5)
POOL = ["tanh", "elu", "relu", "identity", "swish"]
LEARNT = ["ABU", "LinComb", "NormLinComb", "APAF", "GABU", "DKNN", "Rowdy", "MoGU", "Fourier series", "TCA", "TCAv2"]


def members(x, pool=POOL):
    nn = torch.nn.functional
    known = {
        "tanh": torch.tanh, "elu": nn.elu, "relu": torch.relu, "identity": lambda t: t, "swish": nn.silu,
        "sigmoid": torch.sigmoid, "softsign": nn.softsign,
    }  # fmt: skip
    return torch.stack([known[name](x) for name in pool])


def set_weights(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.as_tensor(value))
    return module


def test_units_start_where_their_papers_do():
    get = ac.functions.get
    torch.testing.assert_close(get("ABU")(X), members(X).mean(0))
    combined = members(X, ["relu", "sigmoid", "tanh", "softsign"])
    torch.testing.assert_close(get("LinComb")(X), combined.sum(0))
    torch.testing.assert_close(get("NormLinComb")(X), combined.sum(0) / 2)
    torch.testing.assert_close(get("APAF")(X), members(X).mean(0))
    torch.testing.assert_close(get("GABU")(X), members(X).sum(0) / 2)
    torch.testing.assert_close(get("DKNN")(X), members(X).sum(0))
    torch.testing.assert_close(get("TCA")(X), members(X).mean(0))
    torch.testing.assert_close(get("TCAv2")(X), members(X).mean(0))
    waves = sum(0.1 * torch.sin(j * X) for j in range(1, 6))
    torch.testing.assert_close(get("Rowdy")(X), torch.tanh(X) + waves, rtol=0, atol=1e-7)


WEIGHTS = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize(("constraint", "wanted"), [
    ("none", WEIGHTS), ("sum1", WEIGHTS / 1.5), ("abs", WEIGHTS / 3.5), ("clip", torch.tensor([0.2, 0.0, 0.8])),
    ("softmax", WEIGHTS.exp() / WEIGHTS.exp().sum()), ("sigmoid", 1 / (1 + (-WEIGHTS).exp())),
    ("norm", WEIGHTS / math.sqrt(5.25)),
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_constraints_on_the_weights(constraint, wanted, channels):
    pool = ["tanh", "relu", "identity"]
    unit = ac.functions.get("ABU", pool=pool, constraint=constraint, num_parameters=channels)
    set_weights(unit, a=WEIGHTS, b=0.25)
    found = (wanted.double()[:, None, None, None] * members(X, pool)).sum(0) + 0.25
    torch.testing.assert_close(unit(X), found, rtol=0, atol=1e-6)


def test_compound_units_scale_and_shift_their_members():
    pool = ["tanh", "relu"]
    a, b, w = torch.tensor([0.3, -0.2]), torch.tensor([1.0, -0.5]), torch.tensor([0.1, 0.9])
    parts = torch.stack([torch.tanh(math.exp(0.3) * X + 1), torch.relu(math.exp(-0.2) * X - 0.5)])
    unit = set_weights(ac.functions.get("TCA", pool=pool), a=a, b=b)
    torch.testing.assert_close(unit(X), parts.mean(0), rtol=0, atol=1e-6)
    unit = set_weights(ac.functions.get("TCAv2", pool=pool), a=a, b=b, w=w)
    share = (w.exp() / w.exp().sum()).double()[:, None, None, None]
    torch.testing.assert_close(unit(X), (share * parts).sum(0), rtol=0, atol=1e-6)


def test_compound_units_of_increasing_functions_increase():
    torch.manual_seed(0)
    unit = ac.functions.get("TCAv2", pool=["tanh", "relu", "softplus"])
    for p in unit.parameters():
        torch.nn.init.normal_(p)
    assert bool((unit(torch.linspace(-9, 9, 400)).diff() >= 0).all())


def test_kronecker_units_scale_inside_and_outside():
    unit = set_weights(ac.functions.get("DKNN", pool=["tanh", "relu"]), a=[2.0, -1.0], b=[0.5, 3.0])
    torch.testing.assert_close(unit(X), 2 * torch.tanh(X / 2) - torch.relu(3 * X), rtol=0, atol=1e-6)


def test_rowdy_units_have_waves_of_either_kind():
    unit = ac.functions.get("Rowdy", base="relu", n=2, c=3.0, a=0.5, wave="cos")
    torch.testing.assert_close(unit(X), torch.relu(X) + 1.5 * (torch.cos(3 * X) + torch.cos(6 * X)))
    assert unit(torch.tensor([3e38])).isfinite().all()


@pytest.mark.parametrize("name", LEARNT)
def test_one_set_of_weights_per_channel(name):
    torch.manual_seed(0)
    unit = ac.functions.get(name, num_parameters=3)
    for p in unit.parameters():
        torch.nn.init.uniform_(p, 0.1, 0.9)
    whole = unit(X)
    for c in range(3):
        single = ac.functions.get(name)
        for mine, theirs in zip(single.parameters(), unit.parameters(), strict=True):
            mine.data.copy_(theirs.data[c : c + 1])
        torch.testing.assert_close(single(X[:, c]), whole[:, c])
    assert {len(p) for p in unit.parameters()} == {3}
    with pytest.raises(ac.errors.InputError, match="3 channels"):
        unit(torch.zeros(4, 5, 3))
    last = ac.functions.get(name, num_parameters=5, channel_dim=-1)
    assert last(X).shape == X.shape and last(torch.zeros(5)).shape == (5,)


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_reach_inputs_and_every_weight(name):
    torch.manual_seed(0)
    unit = ac.functions.get(name, num_parameters=2, channel_dim=-1).double()
    x = (torch.rand(3, 2, dtype=torch.float64) + 0.3).requires_grad_()
    names = [n for n, _ in unit.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in unit.parameters())

    def f(t, *weights):
        return torch.func.functional_call(unit, dict(zip(names, weights, strict=True)), (t,))

    assert torch.autograd.gradcheck(f, (x, *values), atol=1e-5)


@pytest.mark.parametrize("name", LEARNT)
def test_half_precision_is_computed_in_single(name):
    unit = ac.functions.get(name)
    for dtype in (torch.float16, torch.bfloat16):
        x = X.to(dtype)
        assert torch.equal(unit(x), unit(x.float()).to(dtype))
    assert unit(X).dtype == torch.float64


def test_what_is_refused():
    get = ac.functions.get
    with pytest.raises(ac.errors.InputError, match="one function or more"):
        get("LinComb", pool=[])
    with pytest.raises(ac.errors.UnknownNameError, match="ReLU"):
        get("ABU", pool=["rellu"])
    with pytest.raises(ac.errors.InputError, match="a name or a callable"):
        get("ABU", pool=[3])
    with pytest.raises(ac.errors.InputError, match="softmax"):
        get("ABU", constraint="softmaxx")
    with pytest.raises(ac.errors.InputError, match="one wave or more"):
        get("Rowdy", n=0)
    with pytest.raises(ac.errors.InputError, match="cos"):
        get("Rowdy", wave="cosine")
    with pytest.raises(ac.errors.InputError, match="floating-point"):
        get("ABU")(torch.arange(3))
    with pytest.raises(ac.errors.InputError, match="num_parameters"):
        get("ABU", num_parameters=0)


def test_a_blend_learns_the_function_that_makes_its_target():
    torch.manual_seed(0)
    x = torch.randn(512)
    unit = ac.functions.get("ABU", constraint="softmax")
    optimiser = torch.optim.Adam(unit.parameters(), lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        (unit(x) - torch.tanh(x)).square().mean().backward()
        optimiser.step()
    assert float(torch.softmax(unit.a.detach()[0], 0)[0]) > 0.9
