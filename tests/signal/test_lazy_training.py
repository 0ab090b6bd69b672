"""What a monitor says of a network in training equals what its weights, kernels and gates say by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.signal.lazy_training import LAZY_MEASURES, LazyMonitor, kernel_alignment, lazy_training_report
from actinium.signal.ntk import empirical_ntk, ntk_mlp


def digits(n):
    data = ac.world.digits.load("train")
    x = data.images[:n].flatten(1)
    return x / x.norm(dim=1, keepdim=True), nn.functional.one_hot(data.labels[:n], 10).float() - 0.1


def descend(net, x, y, steps, rate):
    for _ in range(steps):
        loss = ((net(x) - y) ** 2).mean()
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= rate * g
    return float(loss.detach())


def test_alignment_is_one_for_kernels_that_differ_by_scale_and_offset():
    a = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = a @ a.T
    assert kernel_alignment(k, 3 * k + 7) == pytest.approx(1)
    centre = torch.eye(5, dtype=torch.float64) - 0.2
    b = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, y = centre @ k @ centre, centre @ (b @ b.T) @ centre
    assert kernel_alignment(k, b @ b.T) == pytest.approx(float((x * y).sum() / x.norm() / y.norm()))
    assert math.isnan(kernel_alignment(torch.ones(3, 3), k[:3, :3]))
    with pytest.raises(InputError, match="two kernels"):
        kernel_alignment(k, k[:3])


def test_nothing_has_moved_before_training():
    row = LazyMonitor(ntk_mlp(6, 16), torch.randn(5, 6)).step()
    assert all(row[name] == pytest.approx(0, abs=1e-12) for name in LAZY_MEASURES)


def test_a_step_equals_what_is_computed_by_hand():
    net, x = ntk_mlp(6, 16, outputs=2), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    monitor = LazyMonitor(net, x)
    old = {k: v.detach().double().clone() for k, v in net.named_parameters()}
    out0, kernel0, gates0 = net(x).detach().double(), empirical_ntk(net, x), net[0](x) > 0
    grads = [[torch.autograd.grad(o, list(net.parameters()), retain_graph=True) for o in row] for row in net(x)]
    descend(net, x, torch.ones(5, 2), 3, 0.5)
    row = monitor.step(label=30)
    move = [p.detach().double() - old[k] for k, p in net.named_parameters()]
    size = math.sqrt(sum(float(m.square().sum()) for m in move))
    assert row["weight_move"] == pytest.approx(size / math.sqrt(sum(float(v.square().sum()) for v in old.values())))
    kernel = empirical_ntk(net, x)
    assert row["kernel_move"] == pytest.approx(float((kernel - kernel0).norm() / kernel0.norm()), rel=1e-6)
    assert row["kernel_misalignment"] == pytest.approx(1 - kernel_alignment(kernel, kernel0), abs=1e-9)
    linear = torch.tensor(
        [[sum(float((g * m).sum()) for g, m in zip(gs, move, strict=True)) for gs in rows] for rows in grads]
    )
    change = net(x).detach().double() - out0
    error = float((change - linear).abs().mean() / change.abs().mean())
    assert row["linearisation_error"] == pytest.approx(error, rel=1e-4)
    assert row["gate_changes"] == pytest.approx(float(((net[0](x) > 0) != gates0).double().mean()))
    found = monitor.result()
    assert found["step"].values.tolist() == [30]
    assert found["parameter_move"].sel(parameter="0.weight", step=30) == pytest.approx(
        float(move[0].norm() / old["0.weight"].norm())
    )
    found.plot()


def test_a_model_that_is_linear_in_its_weights_never_leaves_its_linearisation():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 1), torch.randn(6, 4)
    monitor = LazyMonitor(net, x)
    descend(net, x, torch.ones(6, 1), 20, 0.3)
    row = monitor.step()
    assert row["weight_move"] > 0.1
    assert row["linearisation_error"] < 1e-6 and row["kernel_move"] < 1e-12
    assert math.isnan(row["gate_changes"])


def test_wider_networks_are_lazier_on_digits():
    x, y = digits(200)
    found = lazy_training_report(
        lambda width, seed: ntk_mlp(64, width, outputs=10, seed=seed),
        lambda net: descend(net, x, y, 60, 0.5),
        x[:12],
        [64, 256, 1024],
    )
    slopes = dict(zip(found["measure"].values, found["slope"].values, strict=True))
    assert -0.65 < slopes["weight_move"] < -0.35
    assert all(slopes[name] < -0.2 for name in LAZY_MEASURES)
    assert found["weight_move"].values.tolist() == found["weight_move_by_seed"][:, 0].values.tolist()
    found.plot()


def test_a_monitor_follows_a_shipped_classifier_under_fine_tuning():
    import copy

    net = copy.deepcopy(ac.load("world:digits-cnn").module).eval()
    data = ac.world.digits.load("train")
    head = [n for n, _ in net.named_parameters()][-2:]
    monitor = LazyMonitor(net, data.images[:6], params=head)
    for _ in range(2):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
        nn.functional.cross_entropy(net(data.images[:100]), data.labels[:100]).backward()
        optimiser.step()
        monitor.step()
    found = monitor.result()
    assert found["parameter"].values.tolist() == head
    assert (found["weight_move"].diff("step") > 0).all()


def test_bad_input_is_refused():
    net, x = ntk_mlp(6, 8), torch.randn(5, 6)
    with pytest.raises(InputError, match="two probe inputs"):
        LazyMonitor(net, x[:1])
    with pytest.raises(InputError, match="no submodule '7'"):
        LazyMonitor(net, x, gates=["7"])
    monitor = LazyMonitor(net, x)
    with pytest.raises(InputError, match="call step"):
        monitor.result()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="diverged"):
        monitor.step()
    late = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2)).eval()
    monitor = LazyMonitor(late, x)
    late.train()
    with pytest.raises(InputError, match="training mode"):
        monitor.step()
    with pytest.raises(InputError, match="two different widths"):
        lazy_training_report(lambda w, s: ntk_mlp(6, w), lambda net: 0.0, x, [8])
    with pytest.raises(InputError, match="ended with loss"):
        lazy_training_report(lambda w, s: ntk_mlp(6, w), lambda net: float("nan"), x, [8, 16])
