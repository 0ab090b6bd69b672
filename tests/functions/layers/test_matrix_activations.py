"""Matrix activations are A(y) y, start as ReLU, close their intervals on the right, and count their parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.layers.matrix_activations import (
    TMAF,
    BandedMatrixActivation,
    DiagonalMatrixActivation,
    TridiagonalMatrixActivation,
    quantile_breakpoints,
)

KINDS = [DiagonalMatrixActivation, TridiagonalMatrixActivation]


def rows(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(made, n=6, **settings):
    module = made(n, **({"breakpoints": 5, "lo": -2.0, "hi": 2.0} | settings)).double()
    with torch.no_grad():
        module.slopes.copy_(torch.randn(module.slopes.shape, generator=torch.Generator().manual_seed(3)))
    return module


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("breakpoints", [1, 2, 7, 20, torch.tensor([-0.5, 0.3])])
def test_the_start_is_relu_whether_or_not_zero_was_a_break_point(made, breakpoints):
    module = made(6, breakpoints).double()
    y = rows(30, 6)
    assert torch.equal(module(y), torch.relu(y))
    assert 0 in module.points
    same = made(6, breakpoints, init="identity").double()
    assert torch.equal(same(y), y)


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("share", ["neuron", "layer"])
def test_the_value_is_the_matrix_times_the_vector(made, share):
    module, y = filled(made, share=share), rows(20, 6)
    a = module.matrix(y)
    torch.testing.assert_close(module(y), torch.einsum("bij,bj->bi", a, y), rtol=1e-12, atol=1e-12)
    width = 0 if made is DiagonalMatrixActivation else 1
    assert not (a - a.triu(-width).tril(width)).any()
    assert torch.equal(a, a.triu(-width).tril(width)) and (a != 0).sum() >= 20 * (6 + 10 * width) - 1


def test_an_entry_depends_on_the_coordinate_that_it_multiplies():
    module, y = filled(TridiagonalMatrixActivation), rows(5, 6)
    j = torch.bucketize(y, module.points.double())
    for i in range(6):
        want = module.slopes[0, i][j[:, i]] * y[:, i]
        if i < 5:
            want = want + module.slopes[1, i][j[:, i + 1]] * y[:, i + 1]
        if i > 0:
            want = want + module.slopes[2, i][j[:, i - 1]] * y[:, i - 1]
        torch.testing.assert_close(module(y)[:, i], want)


@pytest.mark.parametrize("made", KINDS)
def test_it_is_homogeneous_within_the_intervals(made):
    module, y = filled(made), rows(40, 6)
    scaled = 1.001 * y
    kept = (torch.bucketize(y, module.points.double()) == torch.bucketize(scaled, module.points.double())).all(1)
    assert kept.sum() > 10
    torch.testing.assert_close(module(scaled)[kept], 1.001 * module(y)[kept])


def test_intervals_are_closed_on_the_right():
    module = DiagonalMatrixActivation(1, torch.tensor([0.0, 1.0])).double()
    with torch.no_grad():
        module.slopes.copy_(torch.tensor([[[0.0, 1.0, 0.0]]]))
    y = torch.tensor([[0.5], [1.5], [1.0], [-1.0]], dtype=torch.float64)
    assert module(y).flatten().tolist() == [0.5, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("made", KINDS)
def test_gradients_are_sums_over_the_bins_and_those_of_finite_differences(made):
    module, y = filled(made), rows(25, 6)
    module(y).sum().backward()
    bins = torch.bucketize(y, module.points.double())
    for i in range(6):
        sums = torch.zeros(6, dtype=torch.float64).index_add(0, bins[:, i], y[:, i])
        torch.testing.assert_close(module.slopes.grad[0, i], sums)
    away = y[((y[:, :, None] - module.points).abs() > 1e-3).all(-1).all(-1)].requires_grad_()
    f = lambda t, s: torch.func.functional_call(module, {"slopes": s}, (t,))  # noqa: E731
    assert len(away) > 5 and torch.autograd.gradcheck(f, (away, module.slopes.detach().clone().requires_grad_()))


def test_parameters_are_as_many_as_intervals_neurons_and_diagonals():
    for m in (1, 2, 9):
        points = torch.linspace(-1, 0, m) if m > 1 else torch.zeros(1)
        for made, factor in zip(KINDS, (1, 3), strict=True):
            assert sum(p.numel() for p in made(7, points).parameters()) == factor * 7 * (m + 1)
            assert sum(p.numel() for p in made(None, points, share="layer").parameters()) == factor * (m + 1)


def test_a_convolution_has_factors_for_its_channels():
    x = rows(2, 6, 3, 4)
    for made in KINDS:
        module = filled(made, dim=1)
        flat = filled(made)
        torch.testing.assert_close(module(x), flat(x.movedim(1, -1)).movedim(-1, 1))


def test_a_band_of_any_offsets_is_its_matrix():
    module = BandedMatrixActivation(5, 3, init="random", offsets=(0, 2, -9)).double()
    y = rows(7, 5)
    a = module.matrix(y)
    torch.testing.assert_close(module(y), torch.einsum("bij,bj->bi", a, y))
    assert (a.diagonal(2, 1, 2) != 0).any() and not a.diagonal(1, 1, 2).any()


def test_table_and_jumps_say_what_the_function_does():
    module = filled(DiagonalMatrixActivation, n=2)
    table = module.plot_table()
    assert len(table) == 2 * 6 and table["low"].min() == -math.inf and table["high"].max() == math.inf
    y = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    for i in range(2):
        (slope,) = table[(table.neuron == i) & (table.low < y[0, i].item()) & (y[0, i].item() <= table.high)]["slope"]
        assert module(y)[0, i].item() == pytest.approx(slope * y[0, i].item())
    for j, s in enumerate(module.points.tolist()):
        ends = torch.tensor([[s, s], [s + 1e-9, s + 1e-9]], dtype=torch.float64)
        torch.testing.assert_close(module(ends).diff(dim=0)[0], module.jumps()[0, :, j], rtol=0, atol=1e-7)


def test_quantile_points_leave_no_interval_empty():
    y = rows(4000, 1) ** 3
    points = quantile_breakpoints(y, 9)
    counts = torch.bincount(torch.bucketize(y.flatten(), points), minlength=len(points) + 1)
    assert len(points) == 10 and counts.sum() == 4000 and counts.min() > 0 and counts.max() <= 402
    assert torch.equal(DiagonalMatrixActivation(1, points)(y.float()), torch.relu(y.float()))


def test_half_precision_and_infinite_numbers():
    module = filled(TridiagonalMatrixActivation).float()
    y = rows(8, 6)
    for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        got = module(y.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), module(y.to(dtype).float()), rtol=tolerance, atol=tolerance)
        # bfloat16 has no 0.1: the break point lies below the nearest number that it has.
        near = DiagonalMatrixActivation(1, torch.tensor([0.1]), init="identity")
        with torch.no_grad():
            near.slopes[0, 0, 2] = 5.0
        value = torch.tensor([[0.1]], dtype=dtype)
        torch.testing.assert_close(near.matrix(value)[0] @ value[0].float(), near(value)[0].float(), rtol=1e-2, atol=0)
    assert module(torch.zeros(0, 6)).shape == (0, 6)
    assert DiagonalMatrixActivation(2, init="identity")(torch.tensor([[-math.inf, math.inf]])).isinf().all()


def test_in_a_transformer_a_fitted_unit_keeps_the_logits_near():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="gelu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
        with ac.functions.replace(net, "gelu", lambda: DiagonalMatrixActivation(64)):
            far = (net(ids).logits - before).abs().max()
        new = lambda: TridiagonalMatrixActivation(None, 200, -3.0, 3.0, share="layer")  # noqa: E731
        with ac.functions.replace(net, "gelu", new, preserve=True):
            near = (net(ids).logits - before).abs().max()
    assert near < 0.1 * far


def test_high_frequencies_are_fitted_better_than_by_relu():
    x = torch.linspace(-1, 1, 150)[:, None]
    y = torch.sin(12 * math.pi * x)
    loss = {}
    for name, act in (("relu", nn.ReLU), ("tmaf", lambda: TMAF(40, 20, -3.0, 3.0))):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 40), act(), nn.Linear(40, 1))
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(400):
            error = nn.functional.mse_loss(net(x), y)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        loss[name] = error.item()
    assert loss["tmaf"] <= 0.75 * loss["relu"]


def test_what_is_no_matrix_activation_is_refused():
    for points in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])):
        with pytest.raises(InputError, match="break points rise"):
            DiagonalMatrixActivation(3, points)
    for points in (torch.zeros(0), torch.tensor([math.nan]), torch.zeros(2, 2)):
        with pytest.raises(InputError, match="finite numbers"):
            DiagonalMatrixActivation(3, points)
    for count, lo, hi in ((0, -1, 1), (3, 1, 1)):
        with pytest.raises(InputError, match="from lo to hi"):
            DiagonalMatrixActivation(3, count, lo, hi)
    with pytest.raises(InputError, match="3 units are expected"):
        DiagonalMatrixActivation(3)(torch.zeros(2, 4))
    with pytest.raises(InputError, match="NaN"):
        DiagonalMatrixActivation(2)(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(InputError, match="floating-point"):
        DiagonalMatrixActivation(2)(torch.zeros(2, 2).int())
    with pytest.raises(InputError, match="num_features"):
        DiagonalMatrixActivation()
    with pytest.raises(InputError, match="1 or more"):
        DiagonalMatrixActivation(0)
    with pytest.raises(InputError, match="sharing"):
        DiagonalMatrixActivation(2, share="channel")
    with pytest.raises(InputError, match="start"):
        DiagonalMatrixActivation(2, init="zeros")
    with pytest.raises(InputError, match="offsets"):
        BandedMatrixActivation(2, offsets=(0, 0))
    with pytest.raises(InputError, match="vectors"):
        DiagonalMatrixActivation(2).matrix(torch.zeros(2, 2, 2))
    with pytest.raises(InputError, match="interval"):
        DiagonalMatrixActivation(2).fit_to(torch.relu, 1.0, 1.0)
    for y, count in ((torch.zeros(3), 0), (torch.zeros(0), 2), (torch.tensor([math.inf]), 1)):
        with pytest.raises(InputError, match="pre-activations"):
            quantile_breakpoints(y, count)


def test_the_catalogue_knows_both_with_the_keywords_of_every_function():
    y = rows(5, 6).float()
    assert torch.equal(ac.functions.get("TMAF")(y), torch.relu(y))
    wide = ac.functions.get("Tri-diagonal TMAF", num_parameters=6, channel_dim=-1, breakpoints=4)
    assert torch.equal(wide(y), torch.relu(y)) and wide.slopes.shape == (3, 6, 6)
