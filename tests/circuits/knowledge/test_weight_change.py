"""Changes of weights come and go bit for bit; covariances are those of the keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.circuits.knowledge.covariance import KeyCovariance, key_covariance
from actinium.circuits.knowledge.weights import WeightChange
from actinium.core.errors import InputError, LoadError

NAME = "model.layers.1.mlp.down_proj.weight"
TEXTS = ["The city of Ann is Hasp.", "Eva speaks Tovan.", "Bob keeps a frog and The pet of Carl is bee."]


def some_delta(lm, seed=0, scale=0.1):
    shape = lm.module.get_parameter(NAME).shape
    return {NAME: scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def test_a_change_of_zero_leaves_every_bit(lm, same_bits):
    before = lm.logits(TEXTS)
    with same_bits(lm), WeightChange(lm, {NAME: torch.zeros(128, 352)}):
        assert torch.equal(lm.logits(TEXTS), before)


def test_revert_restores_the_bits_that_adding_and_subtracting_would_lose(lm, same_bits):
    change = WeightChange(lm, some_delta(lm, scale=1e4))
    with same_bits(lm):
        change.apply()
        assert not torch.equal(lm.module.get_parameter(NAME) - change.deltas[NAME], change._before[NAME])
        change.revert()


def test_weights_come_back_when_the_block_fails(lm, same_bits):
    with same_bits(lm), pytest.raises(RuntimeError), WeightChange(lm, some_delta(lm)):
        raise RuntimeError


def test_half_precision_weights_come_back(same_bits):
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    from actinium.core.model import Model

    model, before = Model(module), module.weight.detach().clone()
    with WeightChange(model, {"weight": torch.full((2, 3), 1e-5)}):
        assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, before)


def test_changes_are_taken_back_in_reverse_order(lm, same_bits):
    one, two = WeightChange(lm, some_delta(lm, 1)), WeightChange(lm, some_delta(lm, 2))
    with same_bits(lm):
        one.apply()
        two.apply()
        with pytest.raises(InputError, match="later change first"):
            one.revert()
        two.revert()
        one.revert()


def test_a_change_is_applied_once_and_reverted_once(lm):
    change = WeightChange(lm, some_delta(lm))
    with pytest.raises(InputError, match="nothing to revert"):
        change.revert()
    with change, pytest.raises(InputError, match="in force already"):
        change.apply()


def test_saved_changes_are_read_back(lm, tmp_path):
    change = WeightChange(lm, some_delta(lm), {"method": "rome"})
    again = WeightChange.load(change.save(tmp_path / "change.safetensors"), lm)
    assert torch.equal(again.deltas[NAME], change.deltas[NAME])
    assert again.about == {"method": "rome"}


def test_other_files_and_other_parameters_are_refused(lm, tmp_path):
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="cannot read"):
        WeightChange.load(tmp_path / "broken", lm)
    with pytest.raises(LoadError, match="no change of weights"):
        WeightChange.load(lm_file(), lm)
    with pytest.raises(InputError, match=r"did you mean 'model\.layers\.1\.mlp\.down_proj"):
        WeightChange(lm, {"model.layers.1.mlp.downproj.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="its change"):
        WeightChange(lm, {NAME: torch.zeros(352, 128)})


def lm_file():
    from actinium.world import path

    return path("lm") / "model.safetensors"


def test_covariance_is_the_mean_outer_product_of_the_keys(lm):
    found = key_covariance(lm, TEXTS, [1, 4], batch_size=2)
    rec = lm.record(TEXTS, "blocks.{1,4}.mlp.post", dtype=torch.float64, batch_size=2)
    for layer in (1, 4):
        keys = rec[f"blocks.{layer}.mlp.post"][rec.mask]
        assert torch.allclose(found.matrices[layer], keys.T @ keys / len(keys), atol=1e-12)
        assert found.tokens[layer] == len(keys) == int(rec.mask.sum())


def test_solution_is_that_of_numpy(lm, covariance):
    keys = torch.randn(352, 2, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.solve(covariance.matrices[3].numpy(), keys.double().numpy())
    assert np.allclose(covariance.solve(3, keys).numpy(), expected, rtol=1e-6, atol=1e-6 * abs(expected).max())
    assert torch.equal(covariance.solve(3, keys[:, 0]), covariance.solve(3, keys[:, :1])[:, 0])


def test_singular_covariance_needs_a_ridge(lm):
    few = key_covariance(lm, TEXTS, [1])
    with pytest.raises(InputError, match=r"singular.*ridge"):
        few.solve(1, torch.ones(352))
    lifted = key_covariance(lm, TEXTS, [1], ridge=0.01)
    assert torch.allclose(lifted[1].diagonal() - few.matrices[1].diagonal(), 0.01 * few.matrices[1].diagonal().mean())
    assert bool(lifted.solve(1, torch.ones(352)).isfinite().all())


def test_saved_covariances_are_read_back(covariance, tmp_path):
    again = KeyCovariance.load(covariance.save(tmp_path / "keys.safetensors"))
    assert torch.equal(again[5], covariance[5])
    assert again.tokens == covariance.tokens
    with pytest.raises(LoadError, match="cannot read the key covariance"):
        KeyCovariance.load(tmp_path / "absent")


def test_covariances_that_are_no_matrices_are_refused():
    with pytest.raises(InputError, match="square"):
        KeyCovariance({0: torch.zeros(2, 3)}, {0: 1})
    with pytest.raises(InputError, match="finite"):
        KeyCovariance({0: torch.full((2, 2), torch.nan)}, {0: 1})
    with pytest.raises(InputError, match="ridge"):
        KeyCovariance({0: torch.eye(2)}, {0: 1}, ridge=-1.0)
