"""Tangent kernels equal their closed forms and the products of gradients that autograd gives one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.signal.ntk import analytic_ntk_relu, arc_cosine, empirical_ntk, ntk_mlp


def unit(n, d, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))


def one_by_one(net, x):
    """Jacobian (n, c, p) from one backward pass for each row and output."""
    net = net.double()
    rows = []
    for row in x.double():
        out = net(row[None])[0]
        rows.append(
            torch.stack(
                [
                    torch.cat([g.flatten() for g in torch.autograd.grad(o, list(net.parameters()), retain_graph=True)])
                    for o in out
                ]
            )
        )
    return torch.stack(rows)


def test_arc_cosine_kernels_have_their_known_values():
    k0, k1 = arc_cosine(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    assert k0.tolist() == pytest.approx([1, 0.5, 0], abs=1e-15)
    assert k1.tolist() == pytest.approx([1, 0.318310, 0], abs=1e-6)
    beyond = torch.tensor([1 + 1e-12, -1 - 1e-12], dtype=torch.float64, requires_grad=True)
    k0, k1 = arc_cosine(beyond)
    assert k0.tolist() == k1.tolist() == [1, 0]
    (k0.sum() + k1.sum()).backward()
    assert bool(torch.isfinite(beyond.grad).all())


def test_arc_cosine_kernels_are_expectations_over_gaussian_pairs():
    draws = np.random.default_rng(0).standard_normal((2, 1_000_000))
    for r in (-0.6, 0.3, 0.9):
        u, v = draws[0], r * draws[0] + math.sqrt(1 - r * r) * draws[1]
        k0, k1 = arc_cosine(torch.tensor(r, dtype=torch.float64))
        assert float(k0) == pytest.approx(2 * ((u > 0) & (v > 0)).mean(), abs=4e-3)
        assert float(k1) == pytest.approx(2 * (u.clip(0) * v.clip(0)).mean(), abs=6e-3)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_diagonal_is_depth_plus_one(depth):
    kernel = analytic_ntk_relu(unit(30, 8), depth=depth)
    assert (kernel.diagonal() == depth + 1).all()
    # Without the knowledge that the rows are the same, arccos leaves half of the digits.
    assert torch.allclose(analytic_ntk_relu(unit(30, 8), unit(30, 8), depth), kernel, atol=1e-7)


def test_the_analytic_kernel_does_not_change_under_rotation():
    x, y = unit(20, 6), unit(11, 6, 1)
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    assert torch.allclose(analytic_ntk_relu(x @ q, y @ q, 3), analytic_ntk_relu(x, y, 3), atol=1e-12)


@pytest.mark.parametrize(("d", "expected"), [(5, 0.16), (20, 0.74), (100, 1.29), (400, 1.61)])
def test_the_smallest_eigenvalue_grows_with_the_input_dimension(d, expected):
    found = [float(torch.linalg.eigvalsh(analytic_ntk_relu(unit(100, d, seed), depth=2))[0]) for seed in range(3)]
    assert np.mean(found) == pytest.approx(expected, abs=0.06)


def test_a_wide_network_has_the_analytic_kernel():
    x = unit(20, 6)
    limit = analytic_ntk_relu(x, depth=1)
    off = [
        float((empirical_ntk(ntk_mlp(6, 20_000, 1, seed=seed), x, dtype=None, chunk=20) - limit).norm() / limit.norm())
        for seed in range(2)
    ]
    assert max(off) < 0.03
    deep = analytic_ntk_relu(x, depth=3)
    assert float((empirical_ntk(ntk_mlp(6, 512, 3), x) - deep).norm() / deep.norm()) < 0.15


def test_the_kernel_of_a_linear_model_is_the_gram_matrix():
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(empirical_ntk(nn.Linear(4, 1, bias=False), x), x @ x.T, atol=1e-12)
    assert torch.allclose(empirical_ntk(nn.Linear(4, 1), x), x @ x.T + 1, atol=1e-12)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_kernels_equal_products_of_gradients(net, chunk, vectorized):
    x, y = torch.randn(7, 4), torch.randn(5, 4)
    options = {"chunk": chunk, "vectorized": vectorized}
    summed, cross = empirical_ntk(net, x, **options), empirical_ntk(net, x, y, **options)
    block = empirical_ntk(net, x, outputs="block", **options)
    a, b = one_by_one(net, x), one_by_one(net, y)
    assert torch.allclose(summed, torch.einsum("ncp,mcp->nm", a, a), atol=1e-12)
    assert torch.allclose(cross, torch.einsum("ncp,mcp->nm", a, b), atol=1e-12)
    assert torch.allclose(block, torch.einsum("ncp,mdp->nmcd", a, a), atol=1e-12)
    assert torch.equal(summed, summed.T)
    assert float(torch.linalg.eigvalsh(summed)[0]) > -1e-10
    flat = block.permute(0, 2, 1, 3).reshape(21, 21)
    assert torch.equal(flat, flat.T) and float(torch.linalg.eigvalsh(flat)[0]) > -1e-10


def test_jacobians_that_memory_cannot_keep_are_computed_again(net):
    x = torch.randn(10, 4)
    row = 3 * sum(p.numel() for p in net.parameters()) * 8
    assert torch.allclose(empirical_ntk(net, x, chunk=2, memory=4 * row), empirical_ntk(net, x), atol=1e-12)
    with pytest.raises(InputError, match="chunk=2 or less"):
        empirical_ntk(net, x, memory=4 * row)
    with pytest.raises(InputError, match="fewer params"):
        empirical_ntk(net, x, chunk=1, memory=row)


def test_kernels_of_parts_of_the_parameters_add_up(net):
    x = torch.randn(6, 4)
    parts = empirical_ntk(net, x, params="0.*") + empirical_ntk(net, x, params=["2.weight", "2.bias"])
    assert torch.allclose(parts, empirical_ntk(net, x), atol=1e-12)
    net[0].requires_grad_(False)
    assert torch.allclose(empirical_ntk(net, x), empirical_ntk(net, x, params="2.*"), atol=1e-12)
    with pytest.raises(UnknownNameError, match=r"2\.weight"):
        empirical_ntk(net, x, params="2.wieght")


def test_the_module_is_left_as_it_was(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    empirical_ntk(net, torch.randn(3, 4))
    assert all(torch.equal(before[k], v) and v.dtype == before[k].dtype for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["world:digits-cnn", "world:digits-vit"])
def test_the_kernel_of_a_shipped_classifier_is_that_of_its_gradients(name):
    model = ac.load(name)
    images = ac.world.digits.load("test").images[:6]
    head = [n for n, _ in model.module.named_parameters()][-2:]
    options = {"params": head, "output": lambda out: getattr(out, "logits", out), "dtype": torch.float64}
    got = empirical_ntk(model, images, outputs="block", chunk=4, **options)
    again = empirical_ntk(model, images, outputs="block", vectorized=False, **options)
    assert got.shape == (6, 6, 10, 10)
    assert torch.allclose(got, again, atol=1e-9)
    # A linear head: every output has the kernel of the features that enter it, and none with another.
    features = got[:, :, 0, 0]
    assert torch.allclose(got, features[:, :, None, None] * torch.eye(10, dtype=torch.float64), atol=1e-8)


def test_gradients_go_through_the_analytic_kernel():
    x, y = unit(4, 5).requires_grad_(), unit(3, 5, 1)
    assert torch.autograd.gradcheck(lambda a: analytic_ntk_relu(a, y, 2), x)
    same = unit(4, 5).requires_grad_()
    analytic_ntk_relu(same, same.detach(), 2).sum().backward()
    assert bool(torch.isfinite(same.grad).all())


def test_bad_input_is_refused(net):
    x = torch.randn(3, 4)
    with pytest.raises(InputError, match="training mode"):
        empirical_ntk(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), x)
    with pytest.raises(InputError, match="dropout"):
        empirical_ntk(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), x)
    empirical_ntk(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval(), x)
    with pytest.raises(InputError, match="NaN"):
        empirical_ntk(net, x * float("nan"))
    with pytest.raises(InputError, match="one row or more"):
        empirical_ntk(net, x[:0])
    with pytest.raises(InputError, match="sum, block"):
        empirical_ntk(net, x, outputs="mean")
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        empirical_ntk(lambda z: z, x)
    with pytest.raises(InputError, match="no parameter varies"):
        empirical_ntk(nn.ReLU(), x)
    with pytest.raises(InputError, match=r"\(n, c\)"):
        empirical_ntk(net, torch.randn(3, 2, 4))
    with pytest.raises(InputError, match="unit length"):
        analytic_ntk_relu(2 * unit(3, 4), normalize=False)
    with pytest.raises(InputError, match="row 1 is zero"):
        analytic_ntk_relu(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(InputError, match="features"):
        analytic_ntk_relu(unit(3, 4), unit(3, 5))
    with pytest.raises(InputError, match="depth"):
        analytic_ntk_relu(unit(3, 4), depth=-1)
