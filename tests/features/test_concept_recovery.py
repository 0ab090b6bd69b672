"""Known concepts in latents: found, split, absorbed, and taken away one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef, roc_auc_score

import actinium as ac
from actinium.core.errors import InputError

F = ac.features


def drawn(n=400, m=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    f = torch.rand(n, m, generator=g) * (torch.rand(n, m, generator=g) < 0.3)
    y = (torch.rand(n, 3, generator=g) < 0.4).int()
    return f, y


def orthogonal(d=8, m=8):
    """A dictionary whose latents are the coordinates."""
    sae = F.ReLUSAE(m, apply_b_dec=False).build(d).eval()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d, m))
        sae.W_dec.copy_(torch.eye(m, d))
    return sae


def test_numbers_are_those_of_scikit_learn():
    f, y = drawn()
    found = F.concept_recovery(f, y)
    for c in range(3):
        each = [matthews_corrcoef(y[:, c], f[:, i] > 0) for i in range(12)]
        area = [roc_auc_score(y[:, c], f[:, i]) for i in range(12)]
        assert float(found["mcc"][c]) == pytest.approx(max(each), abs=1e-12)
        assert int(found["latent"][c]) == int(np.argmax(each))
        assert float(found["auroc"][c]) == pytest.approx(max(area), abs=1e-12)
    assert float(found["mean_mcc"]) == pytest.approx(float(found["mcc"].mean()))


def test_a_latent_that_is_the_concept_has_a_correlation_of_1():
    f, y = drawn()
    f[:, 5] = y[:, 1] * 2.0
    found = F.concept_recovery(f, y, ["a", "b", "c"])
    row = found.data.sel(concept="b")
    assert float(row["mcc"]) == 1 and int(row["latent"]) == 5
    assert float(row["precision"]) == float(row["recall"]) == float(row["auroc"]) == 1


def test_a_concept_in_two_latents_is_split():
    sae = orthogonal()
    g = torch.Generator().manual_seed(0)
    x = torch.rand(600, 8, generator=g) * (torch.rand(600, 8, generator=g) < 0.2)
    half = torch.rand(600, generator=g) < 0.5
    y = torch.rand(600, generator=g) < 0.5
    x[:, 0], x[:, 1] = (y & half).float(), (y & ~half).float()
    found = F.absorption(sae, sae.encode(x).detach(), x, y.int(), k=3)
    assert found["f1"].values[0, 0] < 0.85 and found["f1"].values[0, 1] == pytest.approx(1.0)
    assert int(found["split"][0]) == 2 and float(found["absorbed"][0]) == 0


def test_a_special_latent_that_takes_the_concept_over_absorbs_it():
    """In a fifth of the concept's rows another latent, along the same direction, is active alone."""
    sae = orthogonal()
    g = torch.Generator().manual_seed(0)
    y = torch.rand(800, generator=g) < 0.5
    special = y & (torch.rand(800, generator=g) < 0.2)
    x = 0.01 * torch.rand(800, 8, generator=g)
    x[:, 0] = y.float()
    f = torch.zeros(800, 8)
    f[:, 0] = (y & ~special).float()
    f[:, 3] = special.float()
    with torch.no_grad():
        sae.W_dec[3] = torch.nn.functional.normalize(sae.W_dec[0] + sae.W_dec[3], dim=0)
    found = F.absorption(sae, f, x, y.int(), k=1)
    assert float(found["absorbed"][0]) == pytest.approx(float(special.sum() / y.sum()), abs=0.02)
    with torch.no_grad():
        sae.W_dec[3] = torch.eye(8)[3]
    assert float(F.absorption(sae, f, x, y.int(), k=1)["absorbed"][0]) == 0


def test_latents_of_one_concept_taken_away_hurt_its_probe_alone():
    sae = orthogonal()
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(500, 3, generator=g) < 0.5).int()
    x = torch.cat([y.float() * 2, 0.1 * torch.rand(500, 5, generator=g)], 1)
    found = F.targeted_perturbation(sae, x, y, ["a", "b", "c"], n=1)
    drop = found["drop"].values
    assert np.diag(drop).min() > 0.3 and np.abs(drop[~np.eye(3, dtype=bool)]).max() < 0.02
    assert float(found["score"]) > 0.3
    random = F.ReLUSAE(64, seed=3).build(8).eval()
    assert float(F.targeted_perturbation(random, x, y, n=8)["score"]) < float(found["score"])


@pytest.mark.parametrize(
    ("latents", "labels", "match"),
    [
        (torch.rand(4, 2), torch.ones(4), "always"),
        (torch.rand(4, 2), torch.zeros(4), "never"),
        (torch.rand(4, 2), torch.tensor([0, 1, 2, 1]), "0 or 1"),
        (torch.rand(4, 2), torch.ones(5), "expected latents"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 1, 0, 1]), "NaN"),
    ],
)
def test_labels_that_say_nothing_are_refused(latents, labels, match):
    with pytest.raises(InputError, match=match):
        F.concept_recovery(latents, labels)


def test_one_concept_is_not_targeted_and_k_is_checked():
    sae, (_, y) = orthogonal(), drawn()
    x = torch.rand(400, 8)
    with pytest.raises(InputError, match="two or more"):
        F.targeted_perturbation(sae, x, y[:, :1])
    with pytest.raises(InputError, match="between 1 and 8"):
        F.absorption(sae, sae.encode(x).detach(), x, y, k=9)
    with pytest.raises(InputError, match="names"):
        F.concept_recovery(x, y, ["a"])
