"""Dead and saturated units, and the sparsity of activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from actinium import measure
from actinium.core.errors import InputError
from actinium.core.model import Model


def relu_mlp(units: int = 40) -> Model:
    """x -> ReLU(W x + b) with the first units dead, the next ones always on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, units), nn.ReLU(), nn.Linear(units, 3))
    with torch.no_grad():
        net[0].bias[:4] = -1e3
        net[0].bias[4:10] = 1e3
    return Model(net.eval())


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))


def test_dead_and_always_on_units_are_found(rows):
    model = relu_mlp()
    dead = measure.dead_units(model, rows, batch_size=300)
    assert np.flatnonzero(dead["frequency"][0] < 0.001).tolist() == [0, 1, 2, 3]
    assert float(dead["dead"][0]) == 4 / 40
    assert dead["site"].values.tolist() == ["module:1"]
    linear = measure.saturated_units(model, rows, batch_size=300)
    assert linear["site"].values.tolist() == ["module_in:1"]
    assert np.flatnonzero(linear["share"][0] >= 0.999).tolist() == [4, 5, 6, 7, 8, 9]
    assert float(linear["saturated"][0]) == 6 / 40


def test_quiet_units_are_those_with_small_peaks():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 20), nn.GELU())
    with torch.no_grad():
        net[0].weight[7] *= 1e-4
        net[0].bias[7] = 0
    got = measure.dead_units(Model(net.eval()), torch.randn(500, 8))
    assert float(got["dead"][0]) == 0
    assert float(got["quiet"][0]) == 1 / 20


def test_share_near_the_bounds_of_tanh_equals_counting(rows):
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(8, 12), nn.Tanh()).eval())
    with torch.no_grad():
        model.module[0].weight *= 4
        model.module[0].bias[0] = 50
    got = measure.saturated_units(model, rows, bounds=(-1, 1), tol=0.05)
    out = model(rows).detach()
    np.testing.assert_allclose(got["share"][0], (out.abs() >= 0.9).double().mean(0), atol=1e-12)
    torch.testing.assert_close(measure.saturated_share(out, -1, 1), (out.abs() >= 0.9).double().mean(0))
    assert float(got["saturated"][0]) == 1 / 12


def test_gates_of_gated_and_inputs_of_plain_mlps_are_read(llama, gpt2, ragged):
    assert measure.saturated_units(llama, ragged)["site"].values[0] == "blocks.0.mlp.gate"
    assert measure.saturated_units(gpt2, ragged)["site"].values[0] == "blocks.0.mlp.pre"
    gate = llama.record(ragged, "blocks.0.mlp.gate")["blocks.0.mlp.gate"][ragged.mask]
    expected = (gate > 0).double().mean(0)
    np.testing.assert_allclose(measure.saturated_units(llama, ragged)["share"].sel(layer=0), expected)


def test_a_model_without_non_linearity_modules_is_told_what_to_pass():
    with pytest.raises(InputError, match=r"at=.*module:"):
        measure.dead_units(Model(nn.Sequential(nn.Linear(3, 3)).eval()), torch.zeros(2, 3))


def test_bounds_must_be_in_order(gpt2, ragged):
    with pytest.raises(InputError, match="low < high"):
        measure.saturated_units(gpt2, ragged, bounds=(1, -1))


@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.7])
def test_ratio_of_rectified_normals_is_the_normal_distribution_function(mu):
    a = (torch.randn(200_000, generator=torch.Generator().manual_seed(0)) + mu).relu()
    assert measure.activation_ratio(a) == pytest.approx(norm.cdf(mu), abs=0.005)


def test_frequency_averaged_over_units_is_the_ratio(rows):
    got = measure.activation_sparsity(relu_mlp(), rows, batch_size=64)
    assert float(got["frequency"].mean()) == pytest.approx(float(got["ratio"][0]))
    assert float(got["ratio"][0]) + float(got["sparsity"][0]) == 1


def test_sparsity_leaves_padding_out_and_counts_the_union_of_each_row(language_model, ragged):
    got = measure.activation_sparsity(language_model, ragged, eps=0.3, batch_size=2)
    site = "blocks.1.mlp.post"
    on = language_model.record(ragged, site)[site].abs() > 0.3
    assert float(got["ratio"].sel(layer=1)) == pytest.approx(on[ragged.mask].double().mean().item())
    each = [on[i][ragged.mask[i]] for i in range(3)]
    assert float(got["union"].sel(layer=1)) == pytest.approx(np.mean([e.any(0).double().mean() for e in each]))
    assert float(got["ratio_max"].sel(layer=1)) == pytest.approx(max(e.double().mean(1).max().item() for e in each))


def test_top_k_keeps_the_largest_and_its_ties_go_to_the_lower_index():
    a = torch.tensor([[1.0, -3.0, 3.0, 0.5], [2.0, 2.0, 2.0, 2.0]])
    torch.testing.assert_close(
        measure.topk_sparsity(a, 0.5), torch.tensor([[0.0, -3.0, 3.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    )
    assert torch.equal(measure.topk_sparsity(a, 1.0), a)
    kept = measure.topk_sparsity(a, 0.5)
    assert torch.equal(measure.topk_sparsity(kept, 0.5), kept)
    with pytest.raises(InputError):
        measure.topk_sparsity(a, 1.5)


def test_fat_sparsity_keeps_what_reaches_the_threshold():
    a = torch.tensor([0.1, -0.2, 0.3])
    assert measure.fat_sparsity(a, 0.2).tolist() == pytest.approx([0.0, -0.2, 0.3])
    assert torch.equal(measure.fat_sparsity(a, 0.0), a)
    with pytest.raises(InputError):
        measure.fat_sparsity(a, -1)
