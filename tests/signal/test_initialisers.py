"""Weights have the variance, rank, density and orthogonality that were asked for."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError
from actinium.signal.initialisers import eoc_init_, pseudo_iid_init_, pseudo_iid_weights

KINDS = {
    "iid": {},
    "uniform": {"distribution": "uniform"},
    "student": {"distribution": "student_t", "df": 12.0},
    "orthogonal": {},
    "low_rank": {"rank": 0.25},
    "structured_sparse": {"blocks": 8, "kept": 2},
}
OF = {"uniform": "iid", "student": "iid"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (64, 64)])
def test_entries_have_variance_s2_over_n(name, shape):
    random = torch.Generator().manual_seed(0)
    draws = [pseudo_iid_weights(*shape, OF.get(name, name), 1.5, generator=random, **KINDS[name]) for _ in range(40)]
    w = torch.stack([d.weight for d in draws])
    assert float((w**2).mean()) * shape[1] == pytest.approx(1.5**2, rel=0.03)
    assert abs(float(w.mean())) < 4 * 1.5 / math.sqrt(w.numel() * shape[1]) * 2


def test_orthogonal_weights_are_orthogonal_and_haar():
    random = torch.Generator().manual_seed(0)
    w = pseudo_iid_weights(48, 48, "orthogonal", 1.3, generator=random).weight
    assert torch.allclose(w @ w.T, 1.69 * torch.eye(48, dtype=torch.float64), atol=1e-12)
    wide = pseudo_iid_weights(20, 48, "orthogonal", 1.3, generator=random).weight
    assert torch.allclose(wide @ wide.T, 1.69 * torch.eye(20, dtype=torch.float64), atol=1e-12)
    tall = pseudo_iid_weights(48, 20, "orthogonal", 1.3, generator=random).weight
    assert torch.allclose(tall.T @ tall, 1.69 * 48 / 20 * torch.eye(20, dtype=torch.float64), atol=1e-12)
    # LAPACK's own factor has a first entry of one sign; that of a Haar matrix has both alike.
    signs = torch.stack([pseudo_iid_weights(4, 4, "orthogonal", generator=random).weight[0, 0] for _ in range(400)])
    assert 150 < int((signs > 0).sum()) < 250


def test_low_rank_weights_are_their_factors_and_have_the_rank():
    made = pseudo_iid_weights(40, 60, "low_rank", rank=7, generator=torch.Generator().manual_seed(0))
    assert int(torch.linalg.matrix_rank(made.weight)) == 7
    left, right = made.factors
    assert torch.allclose(left @ right, made.weight)
    assert torch.allclose(left.T @ left, torch.eye(7, dtype=torch.float64), atol=1e-12)


def test_sparse_weights_have_exactly_the_density_in_every_row_and_column():
    made = pseudo_iid_weights(48, 96, "structured_sparse", blocks=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.weight != 0, made.mask)
    assert set(made.mask.sum(1).tolist()) == {24} and set(made.mask.sum(0).tolist()) == {12}
    # Rows of one block share their columns, wherever they were put.
    overlap = made.mask.double() @ made.mask.double().T
    assert set(overlap.unique().tolist()) == {0.0, 24.0}
    in_order = made.mask[0].int().diff().abs().sum()
    assert int(in_order) > 4


def test_layers_are_filled_in_place_in_their_own_type():
    for layer in (nn.Linear(32, 64), nn.Conv1d(8, 64, 3), nn.Conv2d(4, 64, 3, groups=2), nn.Conv3d(2, 64, 2)):
        for name, options in KINDS.items():
            if name == "structured_sparse":
                options = {"blocks": 2}
            random = torch.Generator().manual_seed(0)
            squares = []
            for _ in range(30):
                made = pseudo_iid_init_(layer, OF.get(name, name), 1.2, 0.5, generator=random, **options)
                squares.append(float((layer.weight.detach() ** 2).mean() * layer.weight[0].numel()))
            assert layer.weight.dtype == torch.float32
            assert torch.allclose(layer.weight.flatten(1).double(), made.weight, atol=1e-6)
            assert sum(squares) / 30 == pytest.approx(1.44, rel=0.05)
            assert 0.3 < float(layer.bias.detach().std()) < 0.7


def test_sparse_filters_are_zero_for_whole_pairs_of_channels():
    conv = nn.Conv2d(8, 16, 3)
    made = pseudo_iid_init_(conv, "structured_sparse", 1.0, 0.0, blocks=4, generator=torch.Generator().manual_seed(0))
    alive = (conv.weight != 0).flatten(2)
    assert torch.equal(alive.any(-1), alive.all(-1))
    assert float(alive.double().mean()) == 0.25
    assert torch.equal(made.mask, alive.flatten(1))


def test_the_first_layer_of_a_network_is_iid():
    net = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    made = pseudo_iid_init_(net, "low_rank", 1.0, 0.1, rank=4, generator=torch.Generator().manual_seed(0))
    ranks = [int(torch.linalg.matrix_rank(net[i].weight.detach(), rtol=1e-4)) for i in (0, 2, 4)]
    assert ranks == [32, 4, 4]
    assert made["0"].factors is None and made["2"].factors is not None


def test_the_first_layer_is_normal_whatever_the_others_are():
    """Its few inputs average nothing, so that its outputs are Gaussian only if its weights are."""
    net = nn.Sequential(nn.Linear(2, 4000), nn.Tanh(), nn.Linear(4000, 40))
    pseudo_iid_init_(net, "iid", 1.0, 0.0, distribution="uniform", generator=torch.Generator().manual_seed(0))
    first, second = (net[i].weight.detach().double().flatten() * net[i].in_features ** 0.5 for i in (0, 2))
    assert float((first**4).mean()) == pytest.approx(3, abs=0.3)
    assert float((second**4).mean()) == pytest.approx(1.8, abs=0.05)


def test_a_layer_that_cannot_be_made_leaves_the_network_as_it_was():
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    before = [p.clone() for p in net.parameters()]
    for options in ({"kind": "low_rank", "rank": 4}, {"kind": "structured_sparse", "blocks": 4}):
        with pytest.raises(InputError):
            pseudo_iid_init_(net, sw=1.0, sb=0.1, **options)
        assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_a_share_of_the_rank_reaches_to_the_whole():
    for share, rank in ((0.25, 5), (0.5, 10), (1.0, 20)):
        made = pseudo_iid_weights(20, 30, "low_rank", rank=share, generator=torch.Generator().manual_seed(0))
        assert int(torch.linalg.matrix_rank(made.weight)) == rank


def test_drawing_leaves_the_global_random_numbers_alone():
    state = torch.random.get_rng_state()
    for name, options in KINDS.items():
        pseudo_iid_weights(8, 8, OF.get(name, name), generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_generator_gives_the_same_weights():
    for name, options in KINDS.items():
        pairs = [
            pseudo_iid_weights(16, 16, OF.get(name, name), generator=torch.Generator().manual_seed(3), **options).weight
            for _ in range(2)
        ]
        assert torch.equal(*pairs)


def test_edge_of_chaos_weights_have_the_variance_of_the_edge():
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64 * 36, 500))
    point = eoc_init_(net, torch.tanh, 0.2, generator=torch.Generator().manual_seed(0))
    assert point.sw == pytest.approx(1.3041, rel=1e-3)
    assert float(net[0].weight.detach().var()) * 27 == pytest.approx(point.sw**2, rel=0.1)
    assert float(net[3].weight.detach().var()) * 64 * 36 == pytest.approx(point.sw**2, rel=0.01)
    assert float(net[3].bias.detach().std()) == pytest.approx(0.2, rel=0.1)
    without = nn.Linear(400, 400, bias=False)
    assert eoc_init_(without, nn.ReLU()).sw == pytest.approx(math.sqrt(2))
    assert float(without.weight.detach().var()) * 400 == pytest.approx(2, rel=0.02)


def test_an_unstable_edge_warns_and_a_stable_one_does_not():
    with pytest.warns(ActiniumWarning, match="unstable"):
        eoc_init_(nn.Linear(4, 4), F.gelu, 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eoc_init_(nn.Linear(4, 4), torch.tanh, 0.2)


def test_a_small_transformer_is_initialised():
    from transformers import LlamaConfig, LlamaModel

    small = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    model = LlamaModel(small)
    eoc_init_(model, F.relu, 0.0, generator=torch.Generator().manual_seed(0))
    down = model.layers[0].mlp.down_proj.weight
    assert float(down.detach().var()) * 64 == pytest.approx(2, rel=0.15)
    with pytest.raises(InputError, match="has none"):
        eoc_init_(model, torch.tanh, 0.2)


def test_what_cannot_be_made_is_refused():
    layer = nn.Linear(12, 10)
    for rank in (0, 11, -1, 2.5, None, float("nan"), float("inf")):
        with pytest.raises(InputError, match="rank"):
            pseudo_iid_init_(layer, "low_rank", 1.0, 0.0, rank=rank)
    for blocks in (None, 0, 3, 4):
        with pytest.raises(InputError, match="divides"):
            pseudo_iid_init_(layer, "structured_sparse", 1.0, 0.0, blocks=blocks)
    with pytest.raises(InputError, match="kept"):
        pseudo_iid_init_(layer, "structured_sparse", 1.0, 0.0, blocks=2, kept=3)
    with pytest.raises(InputError, match="36 output channels"):
        pseudo_iid_init_(nn.Conv2d(4, 32, 3), "orthogonal", 1.0, 0.0)
    with pytest.raises(InputError, match="eighth moment"):
        pseudo_iid_init_(layer, "iid", 1.0, 0.0, distribution="student_t", df=8.0)
    with pytest.raises(UnknownNameError, match="orthogonal"):
        pseudo_iid_init_(layer, "orthogonl", 1.0, 0.0)
    with pytest.raises(UnknownNameError, match="uniform"):
        pseudo_iid_init_(layer, "iid", 1.0, 0.0, distribution="unifrm")
    with pytest.raises(InputError, match="holds no"):
        pseudo_iid_init_(nn.Tanh(), "iid", 1.0, 0.0)
    with pytest.raises(InputError, match="has none"):
        pseudo_iid_init_(nn.Linear(4, 4, bias=False), "iid", 1.0, 0.1)
    with pytest.raises(InputError, match="sw"):
        pseudo_iid_init_(layer, "iid", float("nan"), 0.1)
    with pytest.warns(ActiniumWarning, match="exchangeable"):
        pseudo_iid_init_(layer, "structured_sparse", 1.0, 0.0, blocks=2, permute=False)
