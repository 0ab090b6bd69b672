"""Effective ranks equal their definitions on the singular values of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actinium import measure
from actinium.core.errors import InputError


@given(st.integers(1, 40), st.floats(1e-6, 1e6))
def test_every_rank_of_d_equal_variances_is_d(d, scale):
    variances = torch.full((d,), scale, dtype=torch.float64)
    for rank in (measure.entropy_rank, measure.participation_ratio, measure.stable_rank):
        assert rank(variances) == pytest.approx(d)
    assert measure.components_for(variances, 1.0) == d


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=20).filter(lambda v: max(v) > 1e-3))
def test_ranks_lie_between_one_and_the_number_of_nonzero_variances(values):
    variances = torch.tensor(values, dtype=torch.float64)
    for rank in (measure.entropy_rank, measure.participation_ratio, measure.stable_rank):
        assert 1 - 1e-9 <= rank(variances) <= sum(v > 0 for v in values) + 1e-9


def test_ranks_of_one_direction_are_one_and_of_none_zero():
    for rank in (measure.entropy_rank, measure.participation_ratio, measure.stable_rank):
        assert rank(torch.tensor([4.0, 0.0, 0.0])) == pytest.approx(1)
        assert rank(torch.zeros(3)) == 0
    assert measure.components_for(torch.zeros(3)) == 0
    with pytest.raises(InputError, match="negative"):
        measure.stable_rank(torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("centred", [True, False])
def test_ranks_of_a_model_equal_those_of_the_singular_values(language_model, ragged, centred):
    got = measure.effective_rank(language_model, ragged, centred=centred, batch_size=1)
    x = language_model.record(ragged, "blocks.2.resid_post")["blocks.2.resid_post"][ragged.mask].double().numpy()
    x = x - x.mean(0) if centred else x
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum()
    p = p[p > 0]
    row = got.data.sel(layer=2)
    # Singular values of rank-deficient data come out of the covariance as square roots of rounding errors.
    assert float(row["entropy_rank"]) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert float(row["stable_rank"]) == pytest.approx((sigma**2).sum() / sigma.max() ** 2, rel=1e-6)
    assert float(row["participation_ratio"]) == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-6)
    share = (sigma**2).cumsum() / (sigma**2).sum()
    assert int(row["components_90"]) == int((share < 0.9).sum()) + 1
    assert int(row["count"]) == 16


def test_ranks_of_a_cnn_and_a_vision_transformer(cnn, vit, images):
    got = measure.effective_rank(cnn, images)
    assert got["width"].values.tolist() == [6, 10, 4]
    assert (measure.effective_rank(vit, images)["entropy_rank"] > 1).all()
