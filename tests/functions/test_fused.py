"""Fused modules compute what the plain ones do, and keep their inputs alone for the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import actinium as ac

pytestmark = pytest.mark.xdist_group("fused")


def kept(f, x):
    """Bytes per number that autograd keeps."""
    held = {}

    def note(t):
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        f(x.clone().requires_grad_())
    return sum(held.values()) / x.numel()


# By default masks are kept for the first three; the fourth has a whole parameter, which is no symbol of a kernel.
@pytest.mark.parametrize("name", ["relu", "softshrink", "hardshrink", "PUAF", "golu"])
def test_values_and_gradients_are_those_of_the_plain_module_and_only_the_input_is_kept(name):
    torch.compiler.reset()
    fused, plain = (ac.functions.get(name, fused=f).eval() for f in (True, False))
    for n in (4096, 1000):
        x = torch.randn(n, generator=torch.Generator().manual_seed(n))
        one, two = (x.clone().requires_grad_() for _ in range(2))
        y, wanted = fused(one), plain(two)
        torch.testing.assert_close(y, wanted)
        y.sum().backward()
        wanted.sum().backward()
        torch.testing.assert_close(one.grad, two.grad)
    assert kept(fused, torch.randn(4096)) <= 4.1


def test_every_function_has_kernels_of_its_own():
    # Nothing is compiled after eight kernels of one piece of code.
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    names = ["celu", "gelu", "silu", "mish", "golu", "erf", "elu", "selu", "softplus", "softsign", "hardswish", "relu6"]
    for name in names:
        ac.functions.get(name, fused=True)(torch.randn(64, requires_grad=True))
    assert counts["unique_graphs"] - before == len(names)


def test_what_is_one_operation_is_not_compiled():
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for name in ("relu", "tanh", "sigmoid", "identity", "growing exponential"):
        fused, plain = (ac.functions.get(name, fused=f) for f in (True, False))
        assert torch.equal(fused(x), plain(x)) and kept(fused, x) <= 4
    assert counts["unique_graphs"] == before
    # Half precision is three operations, and the logarithm of the sigmoid keeps a second tensor.
    ac.functions.get("tanh", fused=True)(x.bfloat16())
    ac.functions.get("logsigmoid", fused=True)(x)
    assert counts["unique_graphs"] == before + 2


def test_learnt_parameters_get_their_gradients_and_a_model_around_is_compiled_whole():
    torch.compiler.reset()
    fused, plain = (ac.functions.get("prelu", fused=f, num_parameters=3) for f in (True, False))
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for module in (fused, plain):
        module(x).square().sum().backward()
    torch.testing.assert_close(next(fused.parameters()).grad, next(plain.parameters()).grad)
    net = nn.Sequential(nn.Linear(4, 4), fused)
    whole = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), net(x))
