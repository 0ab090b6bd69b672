"""Rational functions: NumPy's polynomials, the published start, and no poles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac

X = torch.linspace(-6, 6, 481, dtype=torch.float64)


def test_the_cubic_over_the_square_is_numpys_on_both_sides_of_one():
    a, b = [0.3, -1.0, 0.7, 2.0], [1.5, 0.4, 0.9]
    given = {f"a{i}": v for i, v in enumerate(a)} | {f"b{i}": v for i, v in enumerate(b)}
    x = X.numpy()
    wanted = np.polynomial.polynomial.polyval(x, a) / np.polynomial.polynomial.polyval(x, b)
    np.testing.assert_allclose(ac.functions.functional("rational")(X, **given).numpy(), wanted, rtol=1e-12)


def test_it_starts_near_relu():
    inside = X[X.abs() <= 1]
    torch.testing.assert_close(
        ac.functions.functional("rational")(inside), torch.relu(inside), rtol=0, atol=0.025
    )  # the best such fraction has an error of about 0.02


def test_large_numbers_follow_the_quotient_of_the_leading_coefficients():
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        y = ac.functions.functional("rational")(torch.tensor([-top, top], dtype=dtype))
        assert (y / top).tolist() == pytest.approx([-0.5, 0.5], rel=1e-4)


def test_the_enhanced_rational_is_its_partial_fractions():
    torch.manual_seed(0)
    unit = ac.functions.get("ERA rational", n=3).double()
    for p in unit.parameters():
        torch.nn.init.normal_(p)
    v, w, c, d, a, b = (getattr(unit, k).detach().numpy()[0] for k in "vwcdab")
    x = X.numpy()
    wanted = v * x + w + sum((c[k] * x + d[k]) / ((x - a[k]) ** 2 + b[k] ** 2 + 1e-6) for k in range(3))
    np.testing.assert_allclose(unit(X).detach().numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("start", "error"), [("swish", 0.03), ("relu", 0.1), ("tanh", 0.05)])
def test_the_enhanced_rational_starts_near_its_function(start, error):
    inside = X[X.abs() <= 5]
    found = ac.functions.get("enhanced rational", start=start)(inside)
    assert float((found - ac.functions.functional(start)(inside)).detach().abs().max()) < error


def test_the_enhanced_rational_has_no_pole():
    unit = ac.functions.get("ERA rational")
    with torch.no_grad():
        unit.b.zero_()
        unit.a.copy_(torch.tensor([[-1.0, 1.0]]))
    x = torch.tensor([-1.0, 1.0, -3e38, 3e38], requires_grad=True)
    y = unit(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and slope.isfinite().all()


def test_channels_and_gradients():
    torch.manual_seed(0)
    unit = ac.functions.get("ERA rational", num_parameters=3, channel_dim=-1).double()
    for p in unit.parameters():
        torch.nn.init.uniform_(p, 0.3, 1.0)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))
    for c in range(3):
        single = ac.functions.get("ERA rational").double()
        for mine, theirs in zip(single.parameters(), unit.parameters(), strict=True):
            mine.data.copy_(theirs.data[c : c + 1])
        torch.testing.assert_close(single(x[:, c]), unit(x)[:, c])


def test_what_is_refused():
    with pytest.raises(ac.errors.InputError, match="one fraction or more"):
        ac.functions.EnhancedRational(n=0)
    with pytest.raises(ac.errors.InputError, match="positive eps"):
        ac.functions.EnhancedRational(eps=0.0)
