"""LSTM variants are PyTorch's LSTM where they should be, and differ in the one thing that they are named for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.layers.lstm_variants import LSTM_VARIANTS, LSTMVariant

M, N = 3, 5


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def spread(variant, scale=1.0):
    """A cell with weights that reach into the curved part of its functions."""
    net = LSTMVariant(M, N, variant).double()
    for weight in net.parameters():
        nn.init.normal_(weight, std=scale)
    return net


def sequences(batch=2, time=7):
    return torch.randn(batch, time, M, dtype=torch.float64)


def reference(net, x):
    """All steps of a cell, gate by gate, from the paper's equations."""
    rows = {g: slice(k * N, (k + 1) * N) for k, g in enumerate(net.names)}
    kind = net.variant
    p = {g: net.peephole[net.names.index(g) - 1] if net.peephole is not None else 0 for g in net.names if g != "z"}
    y = c = torch.zeros(N, dtype=x.dtype)
    gates = {g: torch.zeros(N, dtype=x.dtype) for g in "ifo"}
    out = []
    for t in range(len(x)):
        pre = {g: net.weight[r] @ x[t] + net.recurrent[r] @ y + net.bias[r] for g, r in rows.items()}
        if kind == "FGR":
            old = torch.cat([gates[g] for g in "ifo"])
            for k, g in enumerate("ifo"):
                pre[g] = pre[g] + net.gate_recurrent[k * N : (k + 1) * N] @ old
        one = torch.ones(N, dtype=x.dtype)
        z = pre["z"] if kind == "NIAF" else torch.tanh(pre["z"])
        i = one if kind == "NIG" else torch.sigmoid(pre["i"] + p["i"] * c)
        f = one if kind == "NFG" else 1 - i if kind == "CIFG" else torch.sigmoid(pre["f"] + p["f"] * c)
        c = z * i + c * f
        o = one if kind == "NOG" else torch.sigmoid(pre["o"] + p["o"] * c)
        y = (c if kind == "NOAF" else torch.tanh(c)) * o
        gates = {"i": i, "f": f, "o": o}
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("variant", LSTM_VARIANTS)
def test_every_variant_is_its_equations(variant):
    net, x = spread(variant, 0.7), sequences()
    y, _ = net(x)
    for row, one in zip(y, x, strict=True):
        torch.testing.assert_close(row, reference(net, one))


@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("V", 1264), ("NIG", 944), ("NFG", 944), ("NOG", 944), ("CIFG", 944),
        ("NIAF", 1264), ("NOAF", 1264), ("NP", 1216), ("FGR", 3568),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_the_paper_counts(variant, count):
    assert sum(p.numel() for p in LSTMVariant(2, 16, variant).parameters()) == count


def test_without_peepholes_the_cell_is_that_of_torch():
    ours, peeping = spread("NP"), spread("V")
    peeping.load_state_dict(ours.state_dict() | {"peephole": torch.zeros(3, N).double()})
    theirs = nn.LSTM(M, N, batch_first=True).double()
    order = [1, 2, 0, 3]  # PyTorch's i, f, g, o from z, i, f, o
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.weight.view(4, N, M)[order].reshape(4 * N, M))
        theirs.weight_hh_l0.copy_(ours.recurrent.view(4, N, N)[order].reshape(4 * N, N))
        theirs.bias_ih_l0.copy_(ours.bias.view(4, N)[order].flatten())
        theirs.bias_hh_l0.zero_()
    x = sequences()
    y, (last, cell) = ours(x)
    expected, (h, c) = theirs(x)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(last, h[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(cell, c[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(peeping(x)[0], y, atol=1e-6, rtol=0)


def test_without_a_forget_gate_the_cell_adds_up():
    net, x = spread("NFG"), sequences()
    net(x)
    torch.testing.assert_close(net.gates["c"], (net.gates["z"] * net.gates["i"]).cumsum(1))
    # An input gate that is open: the cell is the sum of z.
    with torch.no_grad():
        net.bias[N : 2 * N] = 1e3
    net(x)
    assert torch.equal(net.gates["i"], torch.ones_like(net.gates["i"]))
    torch.testing.assert_close(net.gates["c"], net.gates["z"].cumsum(1))


def test_without_output_gate_and_activation_the_output_is_the_cell():
    net = spread("NOAF")
    with torch.no_grad():
        net.bias[3 * N :] = 1e4
    y, (_, c) = net(sequences())
    assert torch.equal(y, net.gates["c"]) and torch.equal(y[:, -1], c)


def test_coupled_gates_sum_to_one():
    net = spread("CIFG")
    net(sequences())
    assert torch.equal(net.gates["i"] + net.gates["f"], torch.ones_like(net.gates["i"]))
    assert float(net.gates["i"].std()) > 0.1


def test_the_output_gate_peeps_at_the_new_cell():
    net, x = spread("V"), sequences(time=1)
    net(x)
    c, rows = net.gates["c"], slice(3 * N, 4 * N)
    o = torch.sigmoid(x @ net.weight[rows].mT + net.bias[rows] + net.peephole[2] * c)
    torch.testing.assert_close(net.gates["o"], o)
    assert float(c.abs().min()) > 0


@pytest.mark.parametrize("variant", ["V", "FGR"])
def test_a_sequence_in_two_parts_is_the_sequence(variant):
    net, x = spread(variant), sequences()
    whole, state = net(x)
    first, between = net(x[:, :3])
    second, end = net(x[:, 3:], between)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert all(torch.equal(a, b) for a, b in zip(end, state, strict=True))


def test_time_may_come_first():
    net, x = spread("V"), sequences()
    turned = LSTMVariant(M, N, batch_first=False).double()
    turned.load_state_dict(net.state_dict())
    torch.testing.assert_close(turned(x.transpose(0, 1))[0], net(x)[0].transpose(0, 1))
    assert turned.gates["f"].shape == (7, 2, N)


def test_gradients_are_those_of_finite_differences():
    for variant in ("V", "FGR", "CIFG"):
        net, x = spread(variant, 0.5), sequences(1, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, net=net: net(x)[0], (x,))


def test_gates_are_sites_that_a_model_records():
    net, x = LSTMVariant(M, N), torch.randn(2, 7, M)
    found = ac.Model(net).record({"x": x}, at=[f"module:sites.{g}" for g in "ifozc"])
    for g in "ifozc":
        assert found[f"module:sites.{g}"].shape == (2, 7, N)
        assert torch.equal(found[f"module:sites.{g}"], net.gates[g]) and not net.gates[g].requires_grad


def test_weights_start_small_and_biases_at_zero():
    net = LSTMVariant(20, 50, "FGR")
    for name, weight in net.named_parameters():
        assert float(weight.detach().std()) == pytest.approx(0 if name == "bias" else 0.1, abs=0.02)


def test_what_is_no_sequence_is_refused():
    with pytest.raises(UnknownNameError, match="CIFG"):
        LSTMVariant(2, 3, "CIFGG")
    with pytest.raises(InputError, match="above 0"):
        LSTMVariant(0, 3)
    net = LSTMVariant(M, N, "FGR")
    for x, words in [
        (torch.zeros(2, 7, M + 1), "sequences are"),
        (torch.zeros(2, 0, M), "sequences are"),
        (torch.full((1, 2, M), torch.nan), "finite"),
        (torch.zeros(1, 2, M, dtype=torch.int64), "floating"),
    ]:
        with pytest.raises(InputError, match=words):
            net(x)
    with pytest.raises(InputError, match="state of FGR"):
        net(torch.zeros(2, 7, M), (torch.zeros(2, N), torch.zeros(2, N)))
