"""Contrast-consistent search finds what is opposite on both sides, without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError
from actinium.probes import CCS
from actinium.probes.ccs import ccs_loss


def pairs(n=300, d=12, seed=0):
    """Statements whose truth lies on one entry, and whose wording ("yes" or "no") on another, stronger one."""
    random = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    sign = truth * 2.0 - 1
    yes, no = random.normal(size=(2, n, d))
    yes[:, 0] += 4 * sign
    no[:, 0] -= 4 * sign
    yes[:, 1] += 10
    no[:, 1] -= 10
    return yes, no, truth


@pytest.fixture(scope="module")
def fitted():
    yes, no, truth = pairs()
    return CCS(restarts=5, epochs=400, lr=1e-2).fit(yes, no, truth)


def test_truth_is_found_on_unseen_pairs_and_wording_is_not(fitted):
    yes, no, truth = pairs(seed=1)
    assert fitted.score(yes, no, truth) > 0.97
    unit = fitted.direction_.numpy()
    assert unit[0] > 0.9
    assert abs(unit[1]) < 0.2


def test_without_labels_the_same_direction_is_found_up_to_its_sign(fitted):
    yes, no, truth = pairs()
    blind = CCS(restarts=5, epochs=400, lr=1e-2).fit(yes, no)
    assert abs(float(blind.direction_ @ fitted.direction_)) == pytest.approx(1.0)
    assert max(blind.score(yes, no, truth), 1 - blind.score(yes, no, truth)) > 0.97


def test_the_loss_is_consistency_plus_confidence(fitted):
    assert float(ccs_loss(torch.tensor([1.0]), torch.tensor([0.0]))) == 0.0
    # p = 0.5 everywhere is consistent and says nothing: 0 + 0.25.
    assert float(ccs_loss(torch.full((3,), 0.5), torch.full((3,), 0.5))) == pytest.approx(0.25)
    assert float(ccs_loss(torch.tensor([0.9]), torch.tensor([0.3]))) == pytest.approx(0.2**2 + 0.3**2)
    assert fitted.loss_ == fitted.losses_.min()
    assert fitted.loss_ < 0.1


def test_restarts_do_not_touch_each_other():
    yes, no, _ = pairs(n=40)
    many = CCS(restarts=3, epochs=50).fit(yes, no)
    assert CCS(restarts=1, epochs=50).fit(yes, no).losses_.shape == (1,)
    alone = CCS(restarts=3, epochs=50).fit(yes, no)
    assert (many.losses_ == alone.losses_).all()
    assert len(set(many.losses_.tolist())) == 3


def test_it_comes_back_from_disk(fitted, tmp_path):
    yes, no, _ = pairs(seed=2)
    fitted.save(tmp_path / "search")
    again = CCS.load(tmp_path / "search")
    assert (again.predict_proba(yes, no) == fitted.predict_proba(yes, no)).all()
    assert again.loss_ == fitted.loss_


def test_what_cannot_be_searched_is_refused():
    yes, no, truth = pairs(n=20)
    for sides, message in (
        ((yes, no[:10]), "one shape"),
        ((np.ones_like(yes), no), "the same activation"),
        ((yes * np.nan, no), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            CCS(epochs=1).fit(*sides)
    with pytest.raises(InputError, match="epochs are 1"):
        CCS(epochs=0).fit(yes, no)
    with pytest.raises(InputError, match="one class"):
        CCS(epochs=1).fit(yes, no, np.ones(20))
    with pytest.raises(InputError, match="call fit"):
        CCS().predict(yes, no)
    with pytest.raises(InputError, match="on the 'no' side"):
        CCS(epochs=1).fit(yes, no, truth).predict(yes, no[:3])
