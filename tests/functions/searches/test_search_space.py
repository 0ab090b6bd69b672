"""Expressions of Swish's search space: their values, text, formulas, keys and domains, and how many there are."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.special
import torch
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.searches.activation_expression import PRESETS, ActivationExpression, ExpressionUnit
from actinium.functions.searches.expression_operations import BINARY, EPS, OPERATIONS, UNARY
from actinium.functions.searches.search_space import CoreUnit, SearchSpace

X = np.linspace(-4.0, 4.0, 33)
LOGISTIC = scipy.special.expit
read = ActivationExpression.from_string

CLOSED = {
    "x sigmoid(beta x)": X * LOGISTIC(X),
    "max(x, sigmoid(x))": np.maximum(X, LOGISTIC(X)),
    "cos(x) - x": np.cos(X) - X,
    "min(x, sin(x))": np.minimum(X, np.sin(X)),
    "atan(x)^2 - x": np.arctan(X) ** 2 - X,
    "max(x, tanh(x))": np.maximum(X, np.tanh(X)),
    "sinc(x) + x": np.sinc(X / np.pi) + X,
    "x asinh(x)^2": X * np.arcsinh(X) ** 2,
}
UNARIES = {
    "x": X, "neg": -X, "abs": np.abs(X), "square": X**2, "cube": X**3, "sqrt": np.sqrt(np.where(X < 0, np.nan, X)),
    "scale": 0.7 * X, "shift": X + 0.7, "log": np.log(np.abs(X) + EPS), "exp": np.exp(X), "sin": np.sin(X),
    "cos": np.cos(X), "sinh": np.sinh(X), "cosh": np.cosh(X), "tanh": np.tanh(X), "asinh": np.arcsinh(X),
    "atan": np.arctan(X), "sinc": np.sinc(X / np.pi), "relu": np.maximum(X, 0), "neg_part": np.minimum(X, 0),
    "sigmoid": LOGISTIC(X), "softplus": np.logaddexp(0, X), "gauss": np.exp(-(X**2)), "erf": scipy.special.erf(X),
    "beta": np.full_like(X, 0.7),
}  # fmt: skip
A, B = np.sin(3 * X), np.cos(X) + 1.5
BINARIES = {
    "add": A + B, "mul": A * B, "sub": A - B, "div": A / (B + EPS), "max": np.maximum(A, B), "min": np.minimum(A, B),
    "gate": LOGISTIC(A) * B, "rbf": np.exp(-0.7 * (A - B) ** 2), "laplace": np.exp(-0.7 * np.abs(A - B)),
    "mix": 0.7 * A + 0.3 * B,
}  # fmt: skip


def test_swish_is_silu_with_its_minimum_slope_and_scaling():
    swish = read("mul(x, sigmoid(beta*x))")
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(swish(x), functional.silu(x), rtol=0, atol=1e-14)
    for beta in (1.0, 2.0):
        least = ac.functions.analyze_activation(lambda t, b=beta: swish(t, [b]))
        (low,) = least.stationary
        assert low.value == pytest.approx(-0.2784645428 / beta, abs=1e-10)
        assert low.x == pytest.approx(-1.2784645428 / beta, abs=1e-7)
    report = ac.functions.analyze_activation(lambda t: swish(t))
    assert report.lipschitz == pytest.approx(1.0998393201, abs=1e-9) and report.slope_at_zero == 0.5
    assert report.mean == pytest.approx(0.2066209642, abs=1e-9)
    assert report.variance == pytest.approx(0.3130832970, abs=1e-9)
    ends = swish(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.7310585786, -0.2689414214], abs=1e-10)
    top = torch.tensor(2.39936, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(swish(top), top)
    assert float(slope) == pytest.approx(1.0998393201, abs=1e-9)


def test_swish_is_a_scaled_silu_and_near_gelu_at_1_702():
    swish = read("mul(x, sigmoid(beta*x))")
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    torch.testing.assert_close(swish(x, [1.7]), swish(1.7 * x) / 1.7, rtol=1e-13, atol=1e-14)
    assert float((swish(x, [1.702]) - functional.gelu(x)).abs().max()) == pytest.approx(0.020335, abs=1e-6)
    torch.testing.assert_close(swish(x, [0.0]), x / 2)
    torch.testing.assert_close(swish(x, [1e4]), torch.relu(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(swish(x, [1.3]), ac.functions.functional("swish")(x, b=1.3), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_closed_form_and_can_be_used(name):
    expression = read(PRESETS[name])
    np.testing.assert_allclose(expression(torch.from_numpy(X)).numpy(), CLOSED[name], rtol=0, atol=1e-12)
    assert expression.domain_ok() and expression.trivial() is None
    assert str(expression) == PRESETS[name]


@pytest.mark.parametrize("name", UNARY)
def test_a_unary_function_is_its_closed_form(name):
    op = OPERATIONS[name]
    found = op.function(torch.from_numpy(X), *([torch.tensor(0.7, dtype=torch.float64)] if op.beta else []))
    np.testing.assert_allclose(found.numpy(), UNARIES[name], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_function_is_its_closed_form(name):
    op = OPERATIONS[name]
    found = op.function(torch.from_numpy(A), torch.from_numpy(B), *([0.7] if op.beta else []))
    np.testing.assert_allclose(found.numpy(), BINARIES[name], rtol=1e-13, atol=1e-14)


def test_there_are_25_unary_and_10_binary_functions_and_6250_expressions():
    assert (len(UNARY), len(BINARY)) == (25, 10)
    space = SearchSpace()
    assert space.size == 6250
    texts = {str(space.decode(tokens)) for tokens in space.members()}
    assert len(texts) == 6250
    assert SearchSpace(("x", "exp"), ("add", "mul"), 2).size == 8 * 4 * 8


def test_members_are_each_read_once_in_a_random_order_that_a_longer_search_keeps():
    space = SearchSpace(("x", "exp", "sin"), ("add", "mul"), 2)
    assert sorted(space.members(3)) == sorted(space.members()) and len(set(space.members(3))) == space.size
    assert list(space.members(3)) != list(space.members())
    first = list(itertools.islice(SearchSpace(n_units=3).members(1), 5))
    assert first == list(itertools.islice(SearchSpace(n_units=3).members(1), 9))[:5]


def test_a_member_of_two_units_reads_the_first_ones_output():
    space = SearchSpace(("x", "sin"), ("add", "mul"), 2)
    assert str(space.decode((0, 1, 1, 1, 0, 1, 0, 0))) == "add(sin(mul(x, sin(x))), x)"
    assert str(CoreUnit("sin", "x", "sub").of(None, read("exp(x)"))) == "sub(sin(x), exp(x))"
    source = random.Random(0)
    for _ in range(50):
        one = space.random(source)
        other = space.neighbour(one, source)
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
        space.decode(other)


def test_equal_functions_share_a_key_and_others_do_not():
    def key(text):
        return read(text).canonical_key()

    assert key("mul(x, sigmoid(x))") == key("gate(x, x)")
    assert key("add(sin(x), cos(x))") == key("add(cos(x), sin(x))")
    assert key("mul(x, sigmoid(beta*x))") == key("gate(beta*x, x)")
    assert key("mul(beta*x, sigmoid(x + beta))") == key("mul(sigmoid(x + beta), beta*x)")
    # Equal where the betas start, but not for all betas.
    assert key("mul(x, sigmoid(beta*x))") != key("mul(x, sigmoid(x))")
    assert key("sub(beta*x, beta*x)") != key("sub(x, x)")


def test_random_expressions_are_read_back_from_their_text_and_agree_with_sympy():
    import sympy

    source = random.Random(5)
    for space in (SearchSpace(), SearchSpace(n_units=2)):
        for _ in range(25):
            expression = space.decode(space.random(source))
            assert read(str(expression)) == expression
            formal = expression.sympy()
            values = [0.7, 1.3, 0.4, 0.9, 1.1, 0.6, 0.8, 1.2][: expression.num_betas]
            names = ["beta"] if len(values) == 1 else [f"beta_{i + 1}" for i in range(len(values))]
            at = {sympy.Symbol(n, real=True): v for n, v in zip(names, values, strict=True)}
            got = float(expression(torch.tensor(0.83, dtype=torch.float64), values))
            wanted = formal.subs(at | {sympy.Symbol("x", real=True): sympy.Float(0.83, 30)})
            wanted = complex(sympy.N(wanted))
            if math.isfinite(got):
                assert got == pytest.approx(wanted.real, rel=1e-9, abs=1e-12), str(expression)
            else:
                assert wanted.imag != 0 or not math.isfinite(wanted.real) or abs(wanted) > 1e300


def test_formulas_have_parentheses_where_they_are_needed():
    assert read("mul(x, sigmoid(beta*x))").latex() == r"x\,\sigma(\beta x)"
    assert read("sub(x, add(x, sin(x)))").latex() == r"x-\left(x+\sin x\right)"
    assert read("square(neg(x))").latex() == r"\left(-x\right)^2"
    assert read("rbf(beta*x, x)").latex() == r"e^{-\beta_1(\beta_2 x-x)^2}"


def test_infix_text_is_the_same_expression():
    assert read("x * sigmoid(beta * x)") == read("mul(x, sigmoid(beta*x))")
    assert read("atan(x)**2 - x") == read(PRESETS["atan(x)^2 - x"])
    assert read("max(0, x) + min(x, 0)") == read("add(relu(x), neg_part(x))")


def test_what_is_not_finite_is_refused_unless_it_is_made_safe():
    assert "not finite at x = -5" in read("sqrt(x)").problem()
    assert "denominator" in read("div(x, sin(x))").problem()
    assert read("div(x, square(x))").problem() is None
    assert read("exp(exp(x))").problem(-5, 5) is not None
    assert not read("exp(exp(x))").domain_ok() and read("exp(x)").domain_ok()
    for text in ("sqrt(x)", "div(x, sin(x))"):
        safe = read(text, safe=True)
        assert safe.problem() is None and read(str(safe)) == safe
    x = torch.tensor([-4.0, 0.0, 9.0], requires_grad=True)
    y = read("sqrt(x)", safe=True)(x)
    assert y.tolist() == [2.0, 0.0, 3.0]
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    assert read("sqrt(relu(x))").problem() is None  # its slope at 0 is infinite times 0


def test_identities_and_constants_are_known():
    assert read("max(x, x)").trivial() == "identity"
    assert read("sub(x, x)").trivial() == "constant" and read("mul(beta, sin(beta))").trivial() == "constant"
    assert read("mul(beta, x)").trivial() is None and read("neg(x)").trivial() is None


def test_a_module_trains_a_beta_for_each_channel_and_keeps_widths_positive():
    unit = read("rbf(beta*x, tanh(x))").to_module(5)
    assert [tuple(p.shape) for p in unit.parameters()] == [(5,), (5,)]
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit(x), read("rbf(beta*x, tanh(x))")(x))
    optimiser = torch.optim.SGD(unit.parameters(), lr=50.0)
    for _ in range(5):
        optimiser.zero_grad()
        unit(x).sum().neg().backward()
        optimiser.step()
    assert bool((unit.betas[0] > 0).all()) and bool((unit.betas[0] < 1).all())
    other = ExpressionUnit("rbf(beta*x, tanh(x))", 5)
    other.load_state_dict(unit.state_dict())
    assert torch.equal(other(x), unit(x))
    with pytest.raises(InputError, match="5 channels"):
        unit(torch.zeros(2, 4))


def test_it_replaces_the_activations_of_a_model_that_it_was_not_made_for():
    model = ac.load("world:lm").module
    ids = torch.arange(12)[None] % 50
    before = model(ids).logits
    with ac.functions.replace(model, None, read("gate(beta*x, x)").to_module()):
        changed = model(ids).logits
        assert changed.isfinite().all() and not torch.equal(changed, before)
    torch.testing.assert_close(model(ids).logits, before)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("mul(x", InputError, "no expression"),
        ("mul(x)", InputError, "2 arguments"),
        ("siin(x)", UnknownNameError, "sin"),
        ("y + x", UnknownNameError, "variable"),
        ("x + 3", InputError, "no part of an expression"),
        ("__import__('os')", UnknownNameError, "function"),
        ("(lambda: x)()", InputError, "no part of an expression"),
    ],
)
def test_other_text_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        read(text)


def test_other_spaces_and_values_are_refused():
    with pytest.raises(UnknownNameError, match="sigmoid"):
        SearchSpace(unary=("sigmod",))
    with pytest.raises(InputError, match="different names"):
        SearchSpace(binary=())
    with pytest.raises(InputError, match="n_units"):
        SearchSpace(n_units=0)
    with pytest.raises(UnknownNameError, match="binary"):
        CoreUnit("x", "x", "plus")
    with pytest.raises(InputError, match="tokens"):
        SearchSpace().decode((0, 0))
    with pytest.raises(InputError, match="1 betas, not 2"):
        read("beta*x")(torch.zeros(1), [1.0, 2.0])
    with pytest.raises(InputError, match="interval"):
        read("x*x").problem(1, -1)
    with pytest.raises(InputError, match="no neighbours"):
        SearchSpace(("x",), ("mul",)).neighbour((0, 0, 0), random.Random(0))
