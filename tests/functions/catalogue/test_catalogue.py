"""Every function of the catalogue: its declared shape is the measured one, and no input gives NaN."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.registry import evaluate, every
from actinium.functions.shape_analysis import find_breaks, measure_properties

SPECS = list(every())
ELEMENTWISE = [s for s in SPECS if s.arity == "elementwise" and s.function is not None]
OTHERS = [s for s in SPECS if s not in ELEMENTWISE]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
each_elementwise = pytest.mark.parametrize("spec", ELEMENTWISE, ids=lambda s: s.key)


def defaults(spec):
    return {k: p.default for k, p in spec.parameters.items()}


def grid(spec, dtype, n=401):
    lo, hi = spec.properties.domain
    return torch.linspace(max(lo, -20.0), min(hi, 20.0), n, dtype=torch.float64).to(dtype)


def extreme(spec, dtype):
    """The largest finite numbers and their neighbours, where the function is defined there."""
    lo, hi = spec.properties.domain
    top = torch.finfo(dtype).max
    values = [sign * size for sign in (-1, 1) for size in (top, top / 2, math.sqrt(top), 1e4, 100.0)]
    return torch.tensor([v for v in values if lo <= v <= hi], dtype=torch.float64).to(dtype)


def smooth_points(spec):
    """Points away from where a derivative jumps."""
    lo, hi = spec.properties.domain
    x = torch.linspace(max(lo, -4.0) + 0.013, min(hi, 4.0) - 0.017, 23, dtype=torch.float64)
    f = lambda t: evaluate(spec, t, defaults(spec))  # noqa: E731
    ends = max(lo, -5.0), min(hi, 5.0)
    breaks = find_breaks(f, 0, *ends) + find_breaks(f, 1, *ends)
    return torch.stack([v for v in x if all(abs(float(v) - b) > 1e-2 for b in breaks)])


@each_elementwise
def test_the_declared_shape_is_the_measured_one(spec):
    declared = spec.properties
    assert declared is not None
    found = measure_properties(lambda x: evaluate(spec, x, defaults(spec)), declared.domain)
    tolerance = {"rel": 1e-3, "abs": 1e-3}
    assert found.range == pytest.approx(declared.range, **tolerance)
    if not any(map(math.isfinite, declared.domain)):
        assert found.limits == pytest.approx(declared.limits, nan_ok=True, **tolerance)
    assert found.monotone == declared.monotone
    if "straight-through" in spec.note:
        return  # what follows is measured by the gradient, which is another function's
    assert found.smooth == min(declared.smooth, 2)
    assert found.lipschitz == pytest.approx(declared.lipschitz, **tolerance)
    assert found.slope == pytest.approx(declared.slope, nan_ok=True, **tolerance)
    if declared.smooth == math.inf:
        # An analytic function is nowhere constant, though its slope may be too small for a float.
        assert declared.dead is None or declared.lipschitz == 0
    else:
        assert (found.dead is None) == (declared.dead is None)
        assert declared.dead is None or found.dead == pytest.approx(declared.dead, abs=2e-3)


@each_elementwise
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_finite_input_gives_nan_forward_or_backward(spec, dtype):
    x = torch.cat([grid(spec, dtype), extreme(spec, dtype), torch.zeros(1, dtype=dtype)]).requires_grad_()
    y = evaluate(spec, x, defaults(spec))
    assert y.shape == x.shape and y.dtype == dtype
    assert not y.isnan().any()
    near = x.detach().abs() <= 20
    if not any(map(math.isfinite, spec.properties.domain)):
        # What overflows there is a power or an exponential, whose value is beyond the type.
        wide = evaluate(spec, x.detach().double(), defaults(spec))
        assert y[near & (wide.abs() < torch.finfo(dtype).max / 2)].isfinite().all()
        bounded = all(map(math.isfinite, spec.properties.range))
        assert not bounded or y.isfinite().all()
    if y.requires_grad:
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert not slope.isnan().any()
    exact = evaluate(spec, x.detach().double(), defaults(spec))[near]
    error = (y.detach()[near].double() - exact).abs() / (1 + exact.abs())
    assert float(error[exact.abs() < 1e4].max()) < {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-4)


@each_elementwise
def test_gradients_are_those_of_finite_differences(spec):
    if "straight-through" in spec.note or spec.kind == "stochastic":
        pytest.skip("its gradient is not that of its values, on purpose")
    x = smooth_points(spec).requires_grad_()
    learnt = {
        k: torch.tensor(p.default, dtype=torch.float64, requires_grad=True)
        for k, p in spec.parameters.items()
        if p.trainable
    }
    held = {k: p.default for k, p in spec.parameters.items() if not p.trainable}
    names = list(learnt)

    def f(t, *values):
        return evaluate(spec, t, held | dict(zip(names, values, strict=True)))

    if not f(x, *learnt.values()).requires_grad:
        assert spec.properties.lipschitz in (0, math.inf)
        return
    assert torch.autograd.gradcheck(f, (x, *learnt.values()), eps=1e-6, atol=1e-4, rtol=1e-3)
    (slope,) = torch.autograd.grad(f(x, *learnt.values()).sum(), x, create_graph=True)
    if slope.requires_grad:  # not of straight lines
        (bend,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
        assert bend is None or bend.isfinite().all()


@each_elementwise
def test_the_module_is_the_function(spec):
    module = ac.functions.get(spec.name, experimental=True).eval()
    x = grid(spec, torch.float32, 101)
    if not any(p.drawn for p in spec.parameters.values()):
        torch.testing.assert_close(module(x), spec(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module(x), module(x), rtol=0, atol=0)
    twin, sent = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    other = ac.functions.get(spec.name, experimental=True).eval()
    other.load_state_dict(module.state_dict())
    assert getattr(sent, "spec", spec) is spec
    for m in (twin, sent, other):
        torch.testing.assert_close(m(x), module(x), rtol=0, atol=0)
    learnt = {k for k, p in spec.parameters.items() if p.trainable}
    assert {k for k, _ in module.named_parameters()} == learnt
    if learnt:
        per_unit = ac.functions.get(spec.name, experimental=True, num_parameters=5, channel_dim=-1).eval()
        rows = x[:100].view(20, 5)
        per_unit.load_state_dict({k: v.expand(5) for k, v in module.state_dict().items()})
        torch.testing.assert_close(per_unit(rows), module(rows), rtol=1e-5, atol=1e-6)


@each_elementwise
def test_vmap_is_the_loop(spec):
    x = grid(spec, torch.float32, 40).view(4, 10)
    f = lambda t: evaluate(spec, t, defaults(spec))  # noqa: E731
    torch.testing.assert_close(torch.vmap(f)(x), f(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.key)
def test_an_unknown_setting_is_refused(spec):
    with pytest.raises(InputError, match="no_such"):
        ac.functions.get(spec.name, experimental=True, no_such=1)


@pytest.mark.parametrize("spec", OTHERS, ids=lambda s: s.key)
def test_what_has_a_state_keeps_it_and_gives_finite_numbers(spec):
    try:
        module = ac.functions.get(spec.name, experimental=True).eval()
    except InputError as error:
        assert "needs" in str(error)  # sizes, which the tests of its own file give
        return
    assert spec.is_trainable == any(p.requires_grad for p in module.parameters())
    x = torch.randn(2, 8, 6, 30, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    y = module(x)
    assert y.isfinite().all()
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        ac.functions.get(spec.name, experimental=True).eval(),
    ):
        twin.load_state_dict(module.state_dict())
        torch.manual_seed(1)
        torch.testing.assert_close(twin(x), y, rtol=0, atol=0)
    with pytest.raises(InputError):
        module(torch.ones(2, 8, 6, 30, dtype=torch.int64))
