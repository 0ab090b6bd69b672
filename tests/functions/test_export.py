"""Functions are compiled whole, exported and run by ONNX Runtime: all functions of a family as one module."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from actinium.functions import stable
from actinium.functions.registry import evaluate, every

FAMILIES: dict[str, list] = {}
for found in every():
    if found.function is not None and found.arity == "elementwise" and found.kind != "stochastic":
        FAMILIES.setdefault(found.family, []).append(found)
each_family = pytest.mark.parametrize("specs", FAMILIES.values(), ids=list(FAMILIES))


class Family(nn.Module):
    """All functions of a family, one behind the other in a new first dimension."""

    def __init__(self, specs):
        super().__init__()
        self.specs = specs

    def forward(self, x):
        return torch.stack([evaluate(s, x, {k: p.default for k, p in s.parameters.items()}) for s in self.specs])


def inputs():
    return torch.linspace(-3.1, 3.2, 42).view(6, 7)


@each_family
def test_a_family_is_compiled_without_a_break(specs):
    torch.compiler.reset()
    family = Family(specs)
    compiled = torch.compile(family, backend="aot_eager", fullgraph=True)
    slopes = []
    for run in (family, compiled):
        x = inputs().requires_grad_()
        y = run(x)
        y.nan_to_num().sum().backward()
        slopes.append((y.detach(), x.grad))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-5, equal_nan=True)


@each_family
def test_a_family_is_exported_and_runs_in_onnx_runtime(specs, tmp_path):
    family, x = Family(specs).eval(), inputs()
    expected = family(x)
    exported = torch.export.export(family, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.onnx.export(exported, (x,), tmp_path / "family.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "family.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for spec, here, there in zip(specs, got, expected.numpy(), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4, err_msg=spec.name)


def test_what_is_exported_in_place_of_an_operator_equals_it(monkeypatch):
    a, b = torch.randn(2, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    a[0] = b[0] = 0
    plain = [stable.hypot(a, b), stable.cdf(a), stable.gamma(a.abs() / 5 + 0.1)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    other = [stable.hypot(a, b), stable.cdf(a), stable.gamma(a.abs() / 5 + 0.1)]
    for one, two in zip(plain, other, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-15)
    assert other[0][0] == 0
    far = torch.tensor([3e200, 4e200], dtype=torch.float64)
    torch.testing.assert_close(stable.hypot(far[0], far[1]), torch.tensor(5e200, dtype=torch.float64))
