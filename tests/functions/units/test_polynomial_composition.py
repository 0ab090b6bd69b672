"""Polynomial compositions: their values, what they contain, how PolyNorm scales, and their place in a transformer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.units.polynomial_composition import PolyCom, PolyNorm, PolyReLU

X = torch.linspace(-4, 4, 801, dtype=torch.float64)


def unit(made, *coefficients, **settings):
    module = made(order=len(coefficients) - 1, **settings).double()
    with torch.no_grad():
        module.coefficients.copy_(torch.tensor(coefficients, dtype=torch.float64))
    return module


def start(made, **settings):
    order = settings.pop("order", 3)
    return unit(made, 0.0, *[1 / order] * order, **settings)


def rows(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_polyrelu_starts_with_its_known_values():
    y = start(PolyReLU)(torch.tensor([0.5, 1, 2, 0, -3], dtype=torch.float64))
    assert y.tolist() == pytest.approx([0.2916666667, 1, 4.6666666667, 0, 0], abs=1e-10)
    torch.testing.assert_close(PolyReLU()(X), ac.functions.get("PolyReLU")(X.float()).double(), rtol=1e-5, atol=1e-6)


def test_polynorm_starts_with_its_known_values():
    y = start(PolyNorm)(torch.tensor([1.0, -1, 2, 0], dtype=torch.float64))
    assert y.tolist() == pytest.approx([0.5114, -0.1971, 1.8294, 0.0], abs=5e-5)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 1e6])
def test_polynorm_is_its_formula_at_every_scale(scale):
    x = scale * rows(3, 5, 7)
    a = [0.3, -0.7, 1.1, 0.4]
    wanted = a[0] + sum(a[i] * x**i / ((x**i).square().mean(-1, keepdim=True) + 1e-6).sqrt() for i in (1, 2, 3))
    torch.testing.assert_close(unit(PolyNorm, *a)(x), wanted, rtol=1e-10, atol=1e-12)


def test_polynorm_does_not_see_the_scale_and_sees_the_sign_in_odd_powers():
    x = rows(4, 9)
    module = unit(PolyNorm, 0.2, 0.5, -0.4, 0.9)
    for scale in (3.0, 100.0, 1e20):
        torch.testing.assert_close(module(scale * x), module(x), rtol=1e-4, atol=1e-4)
    odd, even = unit(PolyNorm, 0.0, 0.5, 0.0, 0.9), unit(PolyNorm, 0.2, 0.0, -0.4, 0.0)
    torch.testing.assert_close(odd(-2 * x), -odd(2 * x))
    torch.testing.assert_close(even(-2 * x), even(2 * x))


def test_every_normalised_term_has_a_root_mean_square_of_one():
    x = 5 * rows(6, 50)
    for i in range(1, 4):
        term = unit(PolyNorm, *[float(k == i) for k in range(4)])(x)
        torch.testing.assert_close(term.square().mean(-1), torch.ones(6, dtype=torch.float64), rtol=1e-5, atol=0)
    a = (0.7, 0.5, -0.4, 0.9)
    size = (unit(PolyNorm, *a)(x) - a[0]).square().mean(-1).sqrt()
    assert float(size.max().detach()) <= sum(map(abs, a[1:])) + 1e-12


def test_polyrelu_contains_relu_and_its_square_and_with_it_every_square():
    torch.testing.assert_close(unit(PolyReLU, 0.0, 1.0)(X), torch.relu(X), rtol=0, atol=0)
    square = unit(PolyReLU, 0.0, 0.0, 1.0)
    torch.testing.assert_close(square(X), torch.relu(X) ** 2, rtol=0, atol=0)
    line = unit(PolyReLU, 0.0, 1.0)
    torch.testing.assert_close(square(X) + square(-X), X**2)
    torch.testing.assert_close(line(X) - line(-X), X)


def test_both_types_are_their_sums():
    a = [0.3, -0.7, 1.1, 0.4]
    first = sum(c * torch.tanh(X) ** i for i, c in enumerate(a))
    torch.testing.assert_close(unit(PolyCom, *a, rho="tanh")(X), first)
    second = a[0] + sum(c * torch.relu(X**i) for i, c in enumerate(a) if i)
    torch.testing.assert_close(unit(PolyCom, *a, rho=nn.ReLU(), kind="II")(X), second)


@pytest.mark.parametrize(
    "module",
    [
        unit(PolyReLU, 0.1, 0.5, -0.3, 0.2),
        unit(PolyNorm, 0.1, 0.5, -0.3, 0.2),
        unit(PolyNorm, 0.1, 0.5, -0.3, 0.2, recompute=True),
        unit(PolyCom, 0.1, 0.5, -0.3, rho="sigmoid", kind="II"),
    ],
    ids=["PolyReLU", "PolyNorm", "recomputed", "PolyCom"],
)
@pytest.mark.parametrize("scale", [0.5, 20.0])
def test_gradients_are_those_of_finite_differences(module, scale):
    x = (scale * rows(3, 6)).requires_grad_()

    def f(x, a):
        return torch.func.functional_call(module, {"coefficients": a}, (x,))

    assert torch.autograd.gradcheck(f, (x, module.coefficients.detach().clone().requires_grad_()), rtol=1e-4)


def test_recomputing_changes_nothing_but_what_is_kept():
    x = rows(4, 8)
    plain, frugal = start(PolyNorm), start(PolyNorm, recompute=True)
    kept = {}
    for name, module in (("plain", plain), ("frugal", frugal)):
        sizes = []
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            module(leaf).square().sum().backward()
        kept[name] = (leaf.grad, module.coefficients.grad, sum(sizes))
    for mine, theirs in zip(kept["plain"][:2], kept["frugal"][:2], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert kept["frugal"][2] < kept["plain"][2]


def test_official_coefficients_come_in_their_own_order():
    module = PolyNorm.from_official([3.0, 2.0, 1.0], 0.5)
    assert module.coefficients.tolist() == [0.5, 1.0, 2.0, 3.0]
    x = rows(5, 8).float()
    norm = lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6)  # noqa: E731
    torch.testing.assert_close(module(x), 3 * norm(x**3) + 2 * norm(x**2) + norm(x) + 0.5)
    assert PolyReLU.from_official(torch.tensor([2.0, 1.0])).order == 2


def test_half_precision_takes_numbers_whose_cubes_it_does_not_hold():
    x = 200 * rows(4, 16)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        y = PolyNorm()(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), PolyNorm()(x.to(dtype).float()), rtol=tolerance, atol=tolerance)
    huge = torch.full((2, 4), 1e30) * torch.tensor([1.0, -1.0, 0.5, 0.0])
    leaf = huge.requires_grad_()
    y = PolyNorm()(leaf)
    y.sum().backward()
    assert bool(y.isfinite().all() and leaf.grad.isfinite().all())


def test_a_copy_is_a_unit_of_its_own():
    first = PolyNorm()
    twin = copy.deepcopy(first)
    with torch.no_grad():
        twin.coefficients.zero_()
    assert first(torch.ones(1, 4)).abs().sum() > 1 and not twin(torch.ones(1, 4)).any()


def test_a_fit_is_the_least_squares_polynomial_of_rho():
    module = PolyReLU(order=4)
    module.fit_to(lambda x: torch.relu(x) ** 3 - 2 * torch.relu(x) + 1)
    assert module.coefficients.tolist() == pytest.approx([1, -2, 0, 1, 0], abs=1e-5)
    for kind in ("I", "II"):
        leaky = PolyCom(nn.PReLU(), 2, kind)
        leaky.fit_to(lambda x: 3 * nn.functional.leaky_relu(x, 0.25) - 1)
        assert leaky.coefficients.tolist() == pytest.approx([-1, 3, 0], abs=1e-4)


def test_in_a_transformer_polynorm_takes_gelus_place_and_trains():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="gelu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
    swap = ac.functions.replace(net, "gelu", lambda: ac.functions.get("PolyNorm"))
    block = net.transformer.h[0].mlp
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    inner = nn.functional.linear(x, block.c_fc.weight.T, block.c_fc.bias)
    torch.testing.assert_close(block(x), block.c_proj(PolyNorm()(inner)))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = net(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    moved = [m.coefficients for m in net.modules() if isinstance(m, PolyNorm)]
    assert len(moved) == 2 and all(float((a - PolyNorm().coefficients).abs().max().detach()) > 0.01 for a in moved)
    swap.undo()
    assert net(ids).logits.shape == before.shape and isinstance(block.act, nn.Module)


def test_products_of_inputs_are_regressed_better_than_by_relu():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=source)
    y = torch.stack([x[:, i] * x[:, j] for i in range(6) for j in range(i)]).sum(0)
    y = ((y - y.mean()) / y.std())[:, None]
    loss = {}
    for name, act in (("relu", nn.ReLU), ("poly", PolyReLU)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 32), act(), nn.Linear(32, 1))
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(600):
            error = nn.functional.mse_loss(net(x), y)
            optimiser.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        loss[name] = float(error.detach())
    assert loss["poly"] <= loss["relu"] / 5


def test_what_is_no_composition_is_refused():
    for order in (0, 2.0, True):
        with pytest.raises(InputError, match="whole number, 1 or more"):
            PolyReLU(order)
    with pytest.raises(InputError, match="type of composition"):
        PolyCom("relu", 3, "III")
    with pytest.raises(InputError, match="eps"):
        PolyNorm(eps=0.0)
    for x in (torch.ones(3, 1), torch.ones(()), torch.ones(3, 0)):
        with pytest.raises(InputError, match="two features or more"):
            PolyNorm()(x)
    with pytest.raises(InputError, match="two features or more"):
        PolyNorm().fit_to(torch.relu)
    with pytest.raises(InputError, match="floating-point"):
        PolyReLU()(torch.arange(4))
    with pytest.raises(InputError, match="interval"):
        PolyReLU().fit_to(torch.relu, 1, 1)
    for weight, bias in (([], 0.0), ([math.nan], 0.0), ([1.0], [1.0, 2.0])):
        with pytest.raises(InputError, match="official"):
            PolyReLU.from_official(weight, bias)
