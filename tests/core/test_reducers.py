"""Streaming statistics equal the statistics of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actinium.core import reducers
from actinium.core.errors import InputError


def batches(values: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    return list(values.split(sizes))


def stream(reducer, parts):
    for part in parts:
        reducer.update(part)
    return reducer.result()


@pytest.fixture
def heavy() -> torch.Tensor:
    """Skewed, heavy-tailed values far from zero, (1000, 7)."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.standard_t(5, (1000, 7)) ** 2 * 3 + 1e4)


def test_moments_equal_scipys_for_values_far_from_zero(heavy):
    got = stream(reducers.Moments(), batches(heavy, [1, 2, 497, 500]))
    x = heavy.numpy()
    np.testing.assert_allclose(got.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(got.var, x.var(0), rtol=1e-10)
    np.testing.assert_allclose(got.skewness, scipy.stats.skew(x, axis=0), rtol=1e-8)
    np.testing.assert_allclose(got.kurtosis, scipy.stats.kurtosis(x, axis=0), rtol=1e-8)
    np.testing.assert_array_equal(got.min, x.min(0))
    np.testing.assert_array_equal(got.max, x.max(0))


def test_pooled_moments_are_those_of_all_features_together():
    x = torch.randn(300, 5, dtype=torch.float64) * torch.arange(1, 6) + torch.arange(5) * 10
    got = stream(reducers.Moments(), batches(x, [100, 200])).pooled
    flat = x.flatten().numpy()
    assert got.count == 1500
    assert got.mean == pytest.approx(flat.mean())
    assert got.var == pytest.approx(flat.var())
    assert got.skewness == pytest.approx(scipy.stats.skew(flat))
    assert got.kurtosis == pytest.approx(scipy.stats.kurtosis(flat))


@settings(max_examples=30)
@given(st.integers(1, 59), st.integers(0, 10**6))
def test_merging_two_moments_equals_one_pass(cut, seed):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 5
    left, right = reducers.Moments(), reducers.Moments()
    left.update(x[:cut])
    right.update(x[cut:])
    got, whole = left.merge(right).result(), stream(reducers.Moments(), [x])
    for name in ("mean", "var", "skewness", "kurtosis", "min", "max"):
        torch.testing.assert_close(getattr(got, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_nan_and_infinite_values_are_counted_and_kept_out():
    x = torch.randn(50, 3, dtype=torch.float64)
    x[3, 0], x[4, 0], x[9, 2] = torch.nan, torch.inf, -torch.inf
    got = stream(reducers.Moments(), batches(x, [5, 45]))
    assert got.nan.tolist() == [1, 0, 0]
    assert got.inf.tolist() == [1, 0, 1]
    for feature in range(3):
        kept = x[:, feature][x[:, feature].isfinite()]
        assert got.count[feature] == len(kept)
        assert got.mean[feature] == pytest.approx(kept.mean().item())
        assert got.kurtosis[feature] == pytest.approx(scipy.stats.kurtosis(kept.numpy()))
    mean = stream(reducers.Mean(), batches(x, [5, 45]))
    torch.testing.assert_close(mean, got.mean)


def test_a_feature_without_finite_values_has_nan_moments():
    got = stream(reducers.Moments(), [torch.tensor([[1.0, torch.nan], [3.0, torch.nan]])])
    assert got.mean[0] == 2 and got.mean[1].isnan() and got.max[1].isnan()
    assert got.pooled.mean == 2


def test_covariance_equals_numpys_and_drops_rows_that_are_not_finite():
    x = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1e5
    x[7, 2] = torch.nan
    got = stream(reducers.Covariance(), batches(x, [3, 197, 200]))
    kept = x[x.isfinite().all(1)].numpy()
    assert (got.count, got.dropped) == (399, 1)
    np.testing.assert_allclose(got.mean, kept.mean(0), rtol=1e-13)
    np.testing.assert_allclose(got.cov, np.cov(kept.T, bias=True), rtol=1e-7, atol=1e-7)


def test_merged_covariances_equal_one_pass():
    x = torch.randn(90, 4, dtype=torch.float64) + 3
    left, right = reducers.Covariance(), reducers.Covariance()
    left.update(x[:10])
    right.update(x[10:])
    torch.testing.assert_close(left.merge(right).result().cov, stream(reducers.Covariance(), [x]).cov)


@settings(max_examples=60)
@given(
    arrays(np.float64, st.integers(1, 80), elements=st.floats(-1e6, 1e6, allow_subnormal=False)),
    st.integers(1, 79),
    st.sampled_from([2, 3, 8, 64]),
)
def test_growing_histogram_counts_every_value_in_its_bin(values, cut, bins):
    x = torch.from_numpy(values)[:, None]
    parts = [part for part in (x[:cut], x[cut:]) if len(part)]
    got = stream(reducers.Histogram(bins=bins), parts)
    expected, _ = np.histogram(values, bins=got.edges.numpy())
    last_edge = int((values == got.edges[-1].item()).sum())  # numpy's last bin is closed, ours is not
    assert last_edge == 0
    np.testing.assert_array_equal(got.counts, expected)
    assert got.counts.sum() == len(values)


@settings(max_examples=60)
@given(
    arrays(np.float64, st.integers(2, 60), elements=st.floats(-1e4, 1e4, allow_subnormal=False)),
    st.integers(1, 59),
    st.floats(1e-3, 1e3),
)
def test_merged_histograms_equal_one_pass_on_the_same_edges(values, cut, scale):
    x = torch.from_numpy(values)[:, None]
    left, right = reducers.Histogram(bins=16), reducers.Histogram(bins=16)
    left.update(x[:cut])
    right.update(x[cut:] * scale)
    got = left.merge(right).result()
    both = np.concatenate([values[:cut], values[cut:] * scale])
    np.testing.assert_array_equal(got.counts, np.histogram(both, bins=got.edges.numpy())[0])


def test_growing_histogram_uses_at_least_half_of_its_bins():
    x = torch.linspace(-3, 5, 2000)[:, None]
    got = stream(reducers.Histogram(bins=64), batches(x, [10, 1990]))
    used = got.counts.nonzero().flatten()
    assert used[-1] - used[0] + 1 >= 32


def test_fixed_histogram_per_feature_equals_numpys_and_counts_what_is_outside():
    x = torch.randn(500, 3, dtype=torch.float64)
    x[0, 0], x[1, 1] = torch.nan, torch.inf
    got = stream(reducers.Histogram(bins=10, range=(-1, 1), per_feature=True), batches(x, [250, 250]))
    for feature in range(3):
        kept = x[:, feature][x[:, feature].isfinite()].numpy()
        np.testing.assert_array_equal(got.counts[feature], np.histogram(kept, bins=10, range=(-1, 1))[0])
        assert got.below[feature] == (kept < -1).sum()
        assert got.above[feature] == (kept > 1).sum()
    assert (got.nan, got.inf) == (1, 1)


QUANTILES = (0.0, 0.1, 0.5, 0.99, 1.0)


@settings(max_examples=50)
@given(arrays(np.float32, st.integers(1, 90), elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.integers(1, 89))
def test_refined_quantiles_are_exact(values, cut):
    x = torch.from_numpy(values)[:, None]
    first = reducers.Quantile(QUANTILES)
    rough = stream(first, [x[:cut], x[cut:]])
    exact = stream(first.refine(), [x[:cut], x[cut:]])
    assert exact.exact and not rough.exact and exact.count == len(values)
    np.testing.assert_allclose(exact.values, np.quantile(values.astype(np.float64), QUANTILES), rtol=1e-9)


def test_one_pass_quantiles_are_within_the_stated_error_of_the_order_statistics():
    x = torch.distributions.Cauchy(0.0, 1.0).sample((5001, 2))
    x[0, 0], x[1, 0] = torch.nan, torch.inf
    x = torch.cat([x, torch.zeros(1, 2)])
    got = stream(reducers.Quantile((0.01, 0.5, 0.9)), batches(x, [2, 5000]))
    kept = np.sort(x[x.isfinite()].numpy())
    for value, p in zip(got.values, got.q, strict=True):
        near = kept[int(p * (len(kept) - 1)) :][:2]
        assert (abs(value - near[0]) <= 2**-7 * abs(near[0])) or (near[0] <= value <= near[1] * (1 + 2**-7))
    assert (got.nan, got.inf) == (1, 1)


def context(dims, mask=None, tokens=None, rows=None) -> reducers.Context:
    return reducers.Context(dims=dims, mask=mask, tokens=tokens, rows=rows, site="here")


def test_top_k_values_carry_their_row_position_token_and_neighbours():
    torch.manual_seed(0)
    values = torch.randn(4, 6, 3)
    tokens = torch.arange(24).view(4, 6)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, :2] = False  # left padding
    values[1, :2] = 0
    reducer = reducers.TopK(k=3, context=1)
    for part in (slice(0, 2), slice(2, 4)):
        rows = torch.arange(10, 14)[part]
        reducer.update(values[part], context(("batch", "pos", "d_model"), mask[part], tokens[part], rows))
    got = reducer.result()
    real = torch.where(mask[..., None], values, -torch.inf)
    for feature in range(3):
        best = real[..., feature].flatten().topk(3)
        torch.testing.assert_close(got.per_feature.values[feature], best.values)
        row, column = best.indices // 6, best.indices % 6
        assert got.per_feature.rows[feature].tolist() == (row + 10).tolist()
        padding = torch.where(row == 1, 2, 0)
        assert got.per_feature.positions[feature].tolist() == (column - padding).tolist()
        assert got.per_feature.tokens[feature].tolist() == best.indices.tolist()
        for around, r, c in zip(got.per_feature.contexts[feature], row, column, strict=True):
            left = tokens[r, c - 1] if c > 0 and mask[r, c - 1] else -1
            right = tokens[r, c + 1] if c < 5 else -1
            assert around.tolist() == [left, tokens[r, c], right]
    overall = real.flatten(0, 1).flatten().topk(3)
    torch.testing.assert_close(got.overall.values, overall.values)
    assert got.overall.features.tolist() == (overall.indices % 3).tolist()


def test_top_k_by_magnitude_keeps_signs_and_leaves_out_what_is_not_finite():
    values = torch.tensor([[1.0, -5.0], [torch.nan, 2.0], [-3.0, torch.inf]])
    reducer = reducers.TopK(k=3, by="abs")
    reducer.update(values, context(("batch", "d_model"), rows=torch.arange(3)))
    got = reducer.result()
    assert got.per_feature.values[0, :2].tolist() == [-3, 1]
    assert got.per_feature.values[1, :2].tolist() == [-5, 2]
    assert got.per_feature.values[:, 2].isnan().all() and (got.per_feature.rows[:, 2] == -1).all()
    assert got.overall.values.tolist() == [-5, -3, 2]
    assert (got.nan, got.inf) == (1, 1)


def test_merged_top_k_equals_one_pass():
    values = torch.randn(8, 5, 4)
    dims = ("batch", "pos", "d_model")
    parts = [reducers.TopK(k=4), reducers.TopK(k=4)]
    whole = reducers.TopK(k=4)
    whole.update(values, context(dims, rows=torch.arange(8)))
    for i, part in enumerate(parts):
        part.update(values[4 * i : 4 * i + 4], context(dims, rows=torch.arange(4 * i, 4 * i + 4)))
    got, expected = parts[0].merge(parts[1]).result(), whole.result()
    torch.testing.assert_close(got.per_feature.values, expected.per_feature.values)
    torch.testing.assert_close(got.per_feature.rows, expected.per_feature.rows)


def test_channels_are_the_features_of_images_and_heads_are_merged():
    images = torch.randn(2, 3, 4, 5)
    rows, which, at = reducers.feature_rows(
        images, context(("batch", "channel", "height", "width"), rows=torch.arange(2))
    )
    assert rows.shape == (40, 3)
    torch.testing.assert_close(rows[which == 1][at[which == 1] == 7], images[1, :, 1, 2][None])
    heads = torch.randn(2, 6, 4, 5)
    rows, _, _ = reducers.feature_rows(heads, context(("batch", "pos", "head", "d_head"), rows=torch.arange(2)))
    torch.testing.assert_close(rows, heads.reshape(12, 20))


@pytest.mark.parametrize("make", [reducers.Mean, reducers.Moments, reducers.Covariance, reducers.Histogram])
def test_a_reducer_refuses_another_width_and_an_empty_stream(make):
    with pytest.raises(InputError, match=r"no .*recorded"):
        make().result()
    reducer = make(per_feature=True) if make is reducers.Histogram else make()
    reducer.update(torch.zeros(3, 4))
    with pytest.raises(InputError, match="expected 4 features"):
        reducer.update(torch.zeros(3, 5))


def test_a_reducer_takes_an_empty_batch():
    reducer = reducers.Moments()
    reducer.update(torch.zeros(0, 2))
    reducer.update(torch.ones(3, 2))
    assert reducer.result().mean.tolist() == [1, 1]
