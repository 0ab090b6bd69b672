"""Every elementwise function of the catalogue is its printed formula, at its defaults and at other parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from printed_formulas import PRINTED

from actinium.functions.registry import evaluate, every, spec

ROWS = [s.name for s in every() if s.arity == "elementwise" and s.function is not None]
X = np.array(
    [-9.3, -5.7, -3.1, -2.2, -1.37, -0.81, -0.43, -0.12, 0.07, 0.22, 0.48, 0.73, 1.23, 1.9, 2.7, 4.1, 6.3, 11.2]
)
EXTRA = {
    "SPOCU": [{"a": 2.0, "b": 0.5, "g": 3.0, "c": 0.9}],
    "Soft exponential": [{"a": 0.7}, {"a": -0.08}],
    "FALU": [{"a": 1.4, "b": 0.8}, {"a": 2.0, "b": 0.8}],
    "EIS": [{"a": 0.5, "b": 2.0, "g": 0.5, "d": 0.3, "t": 0.7}],
    "Scaled tanh": [{"a": -1.5, "b": 0.4}],
}
THROUGH = ("RSign", "JumpReLU", "PTaLU")
"""Parameters have no gradient, or one that is not that of the values."""


def inside(row):
    lo, hi = row.properties.domain
    return X[(lo < X) & (hi > X)]


def moved(row, factor, shift):
    """The parameters, each away from its default and inside of its domain."""
    found = {k: p.default + 1 if p.whole else p.default * factor + shift for k, p in row.parameters.items()}
    for k, p in row.parameters.items():
        if not p.low <= found[k] <= p.high:
            found[k] = (p.default + (p.low if found[k] < p.low else p.high)) / 2
    return found


def settings(row):
    found = [{k: p.default for k, p in row.parameters.items()}]
    return [*found, moved(row, 1.25, 0.15), moved(row, 0.7, -0.05), *EXTRA.get(row.name, [])]


def as_tensors(parameters, row):
    return {
        k: v if row.parameters[k].whole else torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for k, v in parameters.items()
    }


def test_every_elementwise_row_has_its_formula_here():
    assert sorted(ROWS) == sorted(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_a_row_is_its_printed_formula_with_numbers_and_with_tensors(name):
    row = spec(name)
    x = inside(row)
    for parameters in settings(row):
        with np.errstate(all="ignore"):  # in the branch that is not taken
            expected = np.broadcast_to(np.asarray(PRINTED[name](x, **parameters), dtype=np.float64), x.shape)
        assert np.isfinite(expected).all()
        for given in (parameters, as_tensors(parameters, row)):
            got = row(torch.tensor(x), **given).detach().numpy()
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9, err_msg=str(parameters))


@pytest.mark.parametrize("name", [n for n in PRINTED if spec(n).parameters and n not in THROUGH])
def test_gradients_of_all_parameters_are_those_of_finite_differences(name):
    row = spec(name)
    x = torch.tensor(inside(row))
    given = moved(row, 1.2, 0.14)
    learnt = {k: v for k, v in as_tensors(given, row).items() if isinstance(v, torch.Tensor)}

    def f(*values):
        return evaluate(row, x, given | dict(zip(learnt, values, strict=True)))

    if f(*learnt.values()).requires_grad:
        assert torch.autograd.gradcheck(f, tuple(learnt.values()), atol=1e-5, rtol=1e-4)
    else:
        assert not row.is_trainable or row.kind == "stochastic"


@pytest.mark.parametrize("name", [n for n in PRINTED if spec(n).parameters])
def test_the_largest_numbers_give_no_nan_away_from_the_defaults(name):
    row = spec(name)
    if math.isfinite(row.properties.domain[1]):
        return
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        x = torch.tensor([-top, -top / 3, -1e20, 1e20, top / 3, top], dtype=dtype, requires_grad=True)
        for parameters in settings(row)[1:]:
            y = evaluate(row, x, parameters)
            assert not y.isnan().any()
            for i in (0, 5):
                if y[i].isfinite() and y.requires_grad:
                    (slope,) = torch.autograd.grad(y[i], x, retain_graph=True)
                    assert not slope[i].isnan()


@pytest.mark.parametrize("name", PRINTED)
def test_no_row_hides_nan(name):
    assert spec(name)(torch.tensor([math.nan])).isnan().all()
