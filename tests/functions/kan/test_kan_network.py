"""Kolmogorov-Arnold networks: scores of edges, pruning, the penalty, finer grids and formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.kan import kan_diagram
from actinium.functions.kan.edge_layers import KANLayer
from actinium.functions.kan.kan_network import KANNetwork
from actinium.functions.kan.symbolic_edges import SymbolicEdge, SymbolicFit, fit_symbolic


def drawn(sizes=(3, 4, 2), layer="chebyshev", **options):
    torch.manual_seed(0)
    network = KANNetwork(sizes, layer, **options).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.5 * torch.randn_like(p))
    return network


def rows(n=200, d=3, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(network, x, y, steps=400, lr=1e-2, penalty=0.0):
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (network(x) - y).square().mean()
        if penalty:
            loss = loss + penalty * network.regulariser(x)
        loss.backward()
        optimiser.step()
    return float((network(x) - y).square().mean().detach())


@pytest.mark.parametrize("head", [None, 5])
@pytest.mark.parametrize("layer", ["chebyshev", "fourier", "spline", "daruan"])
def test_edges_add_up_to_the_network(layer, head):
    network = drawn(layer=layer, head=head)
    x = rows()
    inputs, outputs = network.edges(x)
    assert [tuple(o.shape) for o in outputs] == [(200, 4, 3), (200, 2, 4)]
    torch.testing.assert_close(network(x), inputs[-1] if head is None else network.head(inputs[-1]))


def test_scores_are_those_of_a_written_out_sum():
    network, x = drawn(), rows()
    inputs, outputs = ([t.detach().numpy() for t in part] for part in network.edges(x))
    node = np.full(2, 0.5)
    wanted = []
    for number in (1, 0):
        out, into = outputs[number], inputs[number + 1]
        edge = np.zeros(out.shape[1:])
        for o in range(out.shape[1]):
            for i in range(out.shape[2]):
                edge[o, i] = node[o] * out[:, o, i].std(ddof=1) / (into[:, o].std(ddof=1) + 1e-4)
        node = edge.sum(0)
        wanted.insert(0, edge)
    for found, by_hand in zip(network.edge_scores(x), wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), by_hand, rtol=1e-10)
    np.testing.assert_allclose(network.scores(x)[0][0].numpy(), node, rtol=1e-10)


def test_a_head_is_one_more_layer():
    """A linear map as a head scores as the same map as a layer of edges."""
    network = drawn((3, 4), head=2)
    x = rows()
    y = network(x).detach()
    inputs, _ = network.edges(x)
    share = (network.head.weight.abs() * inputs[-1].std(0)) / (y.std(0)[:, None] + 1e-4)
    torch.testing.assert_close(network.scores(x)[0][-1], share.mean(0).detach())


def test_the_penalty_is_that_of_the_paper():
    network, x = drawn(), rows()
    total = 0.0
    inputs, outputs = network.edges(x)
    for entering, out in zip(inputs[:-1], outputs, strict=True):
        size = out.detach().numpy().std(0, ddof=1) / (entering.detach().numpy().std(0, ddof=1) + 0.1)
        spread = 0.0
        for axis in (0, 1):
            p = size / (size.sum(axis, keepdims=True) + 1)
            spread += -(p * np.log2(p + 1e-4)).sum(axis).mean()
        total += 0.7 * size.sum() + 1.5 * spread
    assert float(network.regulariser(x, 0.7, 1.5).detach()) == pytest.approx(total, rel=1e-9)
    network.layers[0].drop(torch.ones(4, 3, dtype=torch.bool))  # constant edges have a slope too
    network.regulariser(x).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_the_penalty_makes_edges_few():
    x = rows(150).clamp(-1, 1)
    y = torch.sin(3 * x[:, :1])
    plain, sparse = (KANNetwork([3, 3, 1], "chebyshev", 5).double() for _ in range(2))
    sparse.load_state_dict(plain.state_dict())
    trained(plain, x, y)
    assert trained(sparse, x, y, penalty=3e-3) < 0.05
    kept = [m.prune(x).n_edges() for m in (plain, sparse)]
    assert kept[1] <= kept[0]
    scores = sparse.scores(x)[0][0]
    assert float(scores[1:].max()) < 0.05 * float(scores[0])


def test_pruning_removes_edges_that_do_not_matter():
    network = drawn((3, 4, 1))
    with torch.no_grad():
        network.layers[0].coefficients[2] *= 1e-4  # input 2 matters little
        network.layers[1].coefficients[1] *= 1e-6  # and node 1 not at all
        network.layers[1].coefficients[1, :, 0] = 0.0
    x = rows()
    pruned = network.prune(x)
    assert network.n_edges() == 16 and pruned.n_edges() == 16 - 4 - 3
    assert not pruned.layers[0].kept()[1].any() and not pruned.layers[0].kept()[:, 2].any()
    assert not pruned.layers[1].kept()[0, 1]
    # What a pruned edge's mean was is gone; the rest is as before.
    gap = (network(x) - pruned(x)).detach()
    assert float(gap.std()) < 0.01 * float(network(x).detach().std())
    assert network.prune(x, 0.0, 0.0).n_edges() == 16


def test_inputs_that_do_not_matter_are_cut_off():
    network = drawn((3, 4, 1))
    with torch.no_grad():
        network.layers[0].coefficients[2] *= 1e-3
    x = rows()
    scores = network.scores(x)[0][0]
    assert float(scores[2]) < 1e-2 < float(scores[:2].min())
    pruned = network.prune(x, 0.0, 0.0, input_th=1e-2)
    assert pruned.layers[0].kept().any(0).tolist() == [True, True, False]
    moved = x.clone()
    moved[:, 2] = 7.0
    torch.testing.assert_close(pruned(moved), pruned(x), rtol=0, atol=0)


def test_edges_left_alone_go_too():
    network = drawn((2, 3, 1))
    cut = torch.zeros(1, 3, dtype=torch.bool)
    cut[0, 1] = True
    network.layers[1].drop(cut)
    assert not network.prune(rows(d=2), 0.0, 0.0).layers[0].kept()[1].any()


def test_a_finer_grid_fits_better():
    torch.manual_seed(0)
    x = 2 * torch.rand(400, 1, dtype=torch.float64) - 1
    y = torch.sin(12 * x)
    network = KANNetwork([1, 1], "spline", 3).double()
    network.fit_ranges(x)
    coarse = trained(network, x, y, 200, 5e-2)
    before = network(x).detach()
    network.refine_grid(12)
    torch.testing.assert_close(network(x).detach(), before, rtol=0, atol=1e-6)
    assert trained(network, x, y, 200, 5e-2) < 0.1 * coarse
    with pytest.raises(InputError, match="only spline layers"):
        drawn().refine_grid(9)


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("sin", lambda x: 1.3 * torch.sin(3 * x + 0.4) - 2),
        ("exp", lambda x: 0.5 * torch.exp(1.2 * x - 0.3) + 1),
        ("x^2", lambda x: 2 * (x - 0.3) ** 2),
        ("log", lambda x: torch.log(2 * x + 3)),
        ("abs", lambda x: -(0.5 * x + 0.1).abs()),
    ],
)
def test_a_formula_is_found_again(name, f):
    x = torch.linspace(-1, 1, 300, dtype=torch.float64)
    best = fit_symbolic(x, f(x))
    near = [fit.name for fit in best if fit.r2 > 1 - 1e-4]
    assert name in near
    found = next(fit for fit in best if fit.name == name)
    edge = SymbolicEdge(found)
    assert float((edge(x) - f(x)).detach().abs().max()) < 2e-2
    off = f(x) - f(x).mean()
    r2 = 1 - float((edge(x) - f(x)).detach().square().sum() / off.square().sum())
    assert r2 == pytest.approx(found.r2, abs=1e-5)


def test_functions_of_the_catalogue_can_be_tried():
    x = torch.linspace(-3, 3, 200, dtype=torch.float64)
    best = fit_symbolic(x, torch.nn.functional.gelu(2 * x), ("ReLU", "GELU", "sine"))
    assert best[0].name == "GELU" and best[0].r2 > 1 - 1e-4
    with pytest.raises(UnknownNameError):
        fit_symbolic(x, x, ("nonsense function",))


def test_a_trained_network_becomes_its_formula():
    torch.manual_seed(0)
    x = 2 * torch.rand(400, 2, dtype=torch.float64) - 1
    y = torch.sin(3 * x[:, :1]) + x[:, 1:].square()
    network = KANNetwork([2, 1], "spline", 8).double()
    trained(network, x, y, 500, 3e-2)
    names = ("x", "x^2", "exp", "sin")
    placed = network.auto_symbolic(x, functions=names)
    assert {place: fit.name for place, fit in placed.items()} == {(0, 0, 0): "sin", (0, 0, 1): "x^2"}
    assert trained(network, x, y, 200, 1e-2) < 1e-4  # its numbers are learnt
    a, _, c, _ = network.layers[0].symbolic["0_0"].numbers.tolist()
    assert abs(a) == pytest.approx(3, abs=0.05) and abs(c) == pytest.approx(1, abs=0.05)
    assert "sin" in network.layers[0].symbolic["0_0"].formula
    assert int(network.layers[0].kept().sum()) == 2
    network.layers[0].drop(torch.tensor([[True, False]]))
    assert int(network.layers[0].kept().sum()) == 1


def test_the_diagram_shows_each_edge_as_its_curve():
    network, x = drawn((2, 3, 1)), rows(60, 2)
    network.layers[0].drop(torch.tensor([[True, False], [False, False], [False, False]]))
    network.fix_symbolic(1, 0, 2, SymbolicFit("sin", 1.0, 2.0, 0.0, 1.0, 0.0))
    ax = network.plot(x, names=["left", "right"])
    curves = [line for line in ax.lines if len(line.get_xdata()) == 60]
    assert len(curves) == 8 and len(ax.lines) == 3 * 8
    assert [t.get_text() for t in ax.texts] == ["left", "right"] and "8 chebyshev edges" in ax.get_title()
    red = [line for line in curves if line.get_color() == kan_diagram.FORMULA]
    # The formula's curve is the formula, but for place and scale.
    inputs, _ = network.edges(x)
    order = inputs[1][:, 2].argsort()
    wanted = torch.sin(2 * inputs[1][order, 2]).detach().numpy()
    assert len(red) == 1 and np.corrcoef(red[0].get_ydata(), wanted)[0, 1] == pytest.approx(1, abs=1e-9)
    assert (np.diff(red[0].get_xdata()) >= 0).all()
    # The darkest edge is the one of the highest score.
    darkest = max(curves, key=lambda line: line.get_alpha())
    scores = network.edge_scores(x)
    best = max(float(s.max()) for s in scores)
    assert darkest.get_alpha() == pytest.approx(0.1 + 0.9 * math.tanh(3 * best))
    fewer = network.plot(x, limit=3)
    assert "strongest 3 of 8" in fewer.get_title()
    with_head = drawn((2, 2), layer="fast", head=3).plot(x)
    assert len(with_head.lines) == 3 * 4 + 6
    for wrong in ({"names": ["one"]}, {"beta": 0.0}, {"limit": 0}):
        with pytest.raises(InputError):
            network.plot(x, **wrong)


def test_formulas_are_put_into_each_other():
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    rows2 = torch.stack([x, x.flip(0) / 2], 1)
    network = KANNetwork([2, 1, 1], "fourier", 1, head=2).double()
    with pytest.raises(InputError, match="from 0 to 0 of layer 0 has no formula"):
        network.formulas()
    network.fix_symbolic(0, 0, 0, SymbolicFit("sin", 1.0, 3.0, 0.5, -2.0, 1.0))
    network.layers[0].drop(torch.tensor([[False, True]]))
    network.fix_symbolic(1, 0, 0, SymbolicFit("x^2", 1.0, 1.0, 0.25, 2.0, 0.0))
    with torch.no_grad():
        network.layers[0].bias.fill_(0.5)
        network.head.weight.copy_(torch.tensor([[4.0], [-1.0]]))
        network.head.bias.copy_(torch.tensor([0.0, 3.0]))
    inner = "(-2 sin(3 a +0.5) +1 + 0.5)"
    wanted = f"2 (1 {inner} +0.25)^2 +0 + 0"
    assert network.formulas(["a", "b"]) == [f"4 ({wanted}) + 0", f"-1 ({wanted}) + 3"]
    value = 2 * ((-2 * torch.sin(3 * x + 0.5) + 1 + 0.5) + 0.25) ** 2
    torch.testing.assert_close(network(rows2), torch.stack([4 * value, 3 - value], 1))
    with pytest.raises(InputError, match="1 names"):
        network.formulas(["a"])
    with pytest.raises(InputError, match="normalises"):
        KANNetwork([2, 1], "fast").formulas()


def test_a_state_brings_formulas_and_pruned_edges_along():
    network, x = drawn((2, 2, 1)), rows(40, 2)
    network.fix_symbolic(0, 1, 0, SymbolicFit("x^3", 1.0, 1.0, 0.5, 2.0, 0.25))
    network.fix_symbolic(1, 0, 1, SymbolicFit("GELU", 1.0, 2.0, 0.0, 1.0, 0.0))
    network.layers[0].drop(torch.tensor([[True, False], [False, False]]))
    twin = KANNetwork((2, 2, 1), "chebyshev").double()
    twin.fix_symbolic(0, 0, 0, SymbolicFit("sin", 1.0, 1.0, 0.0, 1.0, 0.0))
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)
    assert [p.dtype for p in twin.parameters()] == [torch.float64] * len(list(network.parameters()))
    twin.load_state_dict({"layers.0.coefficients": network.layers[0].coefficients}, strict=False)
    assert "1_0" in twin.layers[0].symbolic
    twin.load_state_dict(drawn((2, 2, 1)).state_dict())
    assert twin.n_edges() == 6 and not len(twin.layers[0].symbolic)


def test_a_constant_edge_becomes_its_constant():
    x = rows(60, 2)
    x[:, 1] = 0.3
    network = drawn((2, 1))
    before = network(x).detach()
    placed = network.auto_symbolic(x, least=0.0)
    assert set(placed) == {(0, 0, 0), (0, 0, 1)} and placed[0, 0, 1].c == 0
    wanted = network.layers[0].edge_outputs(x)[:, 0, 1]
    torch.testing.assert_close(wanted, torch.full_like(wanted, placed[0, 0, 1].d), rtol=1e-6, atol=1e-6)
    assert float((network(x) - before).detach().std()) < float(before.std())


def test_looking_at_a_network_that_trains_changes_nothing():
    network = KANNetwork([3, 4, 1], "daruan", 2, batch_norm=True)
    network.layers[1].eval()
    x = rows().float()
    network(x)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = network.scores(x)[1]
    network.prune(x)
    network.suggest(x, 0, 0, 0, ("x", "sin"))
    assert [network.training, network.layers[0].training, network.layers[1].training] == [True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for one, other in zip(found, network.eval().scores(x)[1], strict=True):
        torch.testing.assert_close(one, other)


def test_a_formula_reads_as_it_is_computed():
    assert SymbolicFit("sin", 1.0, 3.0, 0.5, -2.0, 1.0).formula == "-2 sin(3 x +0.5) +1"
    assert SymbolicFit("x^2", 1.0, 1.0, 0.0, 2.0, 0.0).formula == "2 (1 x +0)^2 +0"
    assert SymbolicFit("1/x", 1.0, 1.0, 1.0, 2.0, 0.0).formula == "2 /(1 x +1) +0"


def test_it_reads_handwritten_digits():
    """Half of scikit-learn's digits, which nothing here was developed on."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.data / 16, dtype=torch.float32)
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    network = KANNetwork([64, 16], "fast", head=10)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x[::2]), y[::2]).backward()
        optimiser.step()
    assert float((network(x[1::2]).argmax(1) == y[1::2]).float().mean()) > 0.9


@pytest.mark.parametrize(
    "call",
    [
        lambda: KANNetwork([3]),
        lambda: KANNetwork([3, 0]),
        lambda: KANNetwork([3, 2], head=0),
        lambda: drawn().prune(rows(), -1.0),
        lambda: drawn().prune(rows(), input_th=-1.0),
        lambda: drawn().scores(rows(1)),
        lambda: drawn().scores(rows(d=4)),
        lambda: drawn().regulariser(rows(), -1.0),
        lambda: drawn().suggest(rows(), 2, 0, 0),
        lambda: drawn().suggest(rows(), 0, 4, 0),
        lambda: drawn().fix_symbolic(0, 9, 0, SymbolicFit("x", 1.0, 1.0, 0.0, 1.0, 0.0)),
        lambda: fit_symbolic(torch.ones(5), torch.arange(5.0)),
        lambda: fit_symbolic(torch.arange(5.0), torch.full((5,), math.nan)),
        lambda: fit_symbolic(torch.arange(5.0), torch.arange(4.0)),
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(InputError):
        call()


def test_layers_have_no_functions_of_their_own():
    with pytest.raises(TypeError):
        KANLayer(2, 2)
