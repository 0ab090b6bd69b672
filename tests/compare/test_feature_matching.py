"""Features of two models are matched by the correlation of their activations, in batches or at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.compare import FeatureCorrelation, filter_matches, match_features_by_correlation, top_tokens
from actinium.core.errors import InputError, UnknownNameError

N, M = 600, 12


@pytest.fixture
def sparse():
    random = torch.Generator().manual_seed(0)
    return torch.rand(N, M, generator=random) * (torch.rand(N, M, generator=random) < 0.2)


def test_correlations_are_those_of_numpy_whatever_the_batches(sparse):
    other = torch.rand(N, 5, generator=torch.Generator().manual_seed(1)) + 1e4
    want = np.corrcoef(sparse.double().T, other.double().T)[:M, M:]
    sums = FeatureCorrelation()
    for start, stop in ((0, 1), (1, 250), (250, N)):
        sums.update(sparse[start:stop], other[start:stop])
    got, both, active = sums.result()
    assert np.allclose(got, want, atol=1e-9)
    assert torch.equal(both, (sparse != 0).double().T @ (other != 0).double())
    assert torch.equal(active[0], (sparse != 0).sum(0).double())


def test_a_permuted_copy_is_matched_with_itself(sparse):
    order = torch.randperm(M, generator=torch.Generator().manual_seed(2))
    found = match_features_by_correlation(sparse, 2 * sparse[:, order])
    assert found["b"].values.tolist() == list(range(M))
    assert found["a"].values.tolist() == order.tolist()
    assert found["correlation"].values == pytest.approx(1, abs=1e-9)
    assert found["mutual"].values.all()
    assert found["coactivations"].values.tolist() == (sparse != 0).sum(0)[order].tolist()
    batches = match_features_by_correlation((part, 2 * part[:, order]) for part in sparse.split(100))
    assert batches["a"].values.tolist() == order.tolist()
    assert float(found["unmatched"]) == 0


def test_features_that_fire_together_once_are_no_pair(sparse):
    a, b = sparse.clone(), sparse.clone()
    a[:, 0] = b[:, 0] = 0.0
    a[5, 0] = b[5, 0] = 1.0
    found = match_features_by_correlation(a, b)
    assert found["b"].values.tolist() == list(range(1, M))
    assert float(found["unmatched"]) == 1
    loose = match_features_by_correlation(a, b, min_coactivations=1)
    assert loose["b"].values.tolist() == list(range(M))


def test_constant_features_are_left_out_and_counted(sparse):
    a, b = sparse.clone(), sparse.clone()
    a[:, 3], b[:, 4], b[:, 5] = 0.0, 1.0, 0.0
    found = match_features_by_correlation(a, b)
    assert (float(found["constant_a"]), float(found["constant_b"])) == (1, 2)
    assert found["b"].values.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert float(found["unmatched"]) == 1


def test_of_several_pairs_with_one_partner_the_strongest_is_kept(sparse):
    noise = torch.rand(N, 1, generator=torch.Generator().manual_seed(3))
    b = torch.cat([sparse[:, :1] + 0.2 * noise, sparse[:, :1], sparse[:, 1:2]], 1)
    every = match_features_by_correlation(sparse, b)
    assert every["a"].values.tolist() == [0, 0, 1]
    assert every["mutual"].values.tolist() == [False, True, True]
    for options in ({"one_to_one": True}, {"mutual": True}):
        kept = match_features_by_correlation(sparse, b, **options)
        assert list(zip(kept["a"].values, kept["b"].values, strict=True)) == [(0, 1), (1, 2)]
    other_way = match_features_by_correlation(sparse, b, direction="A->B")
    assert other_way["a"].values.tolist() == [0, 1]
    assert other_way["b"].values.tolist() == [1, 2]


def test_weak_correlations_are_dropped(sparse):
    with pytest.raises(InputError, match="no pair"):
        match_features_by_correlation(sparse[:, :3], sparse[:, 6:9].roll(1, 0), min_correlation=0.5)


def test_junk_unshared_and_other_pairs_are_dropped_and_counted(sparse):
    found = match_features_by_correlation(sparse[:, :5], sparse[:, :5])
    tokens_a = [["cat", "dog"], ["cat", "."], ["one", "two"], ["red"], ["cat", "red"]]
    tokens_b = [["dog", "frog"], ["cat"], ["three"], ["red", "blue"], ["cat", "blue"]]
    kept = filter_matches(found, tokens_a, tokens_b)
    assert kept["b"].values.tolist() == [0, 3, 4]
    assert [int(kept[f"dropped_{n}"]) for n in ("junk", "unshared", "other")] == [1, 1, 0]
    colours = filter_matches(found, tokens_a, tokens_b, keywords=["red", "blue"])
    assert colours["b"].values.tolist() == [3, 4]
    assert int(colours["dropped_other"]) == 1
    assert filter_matches(found, tokens_a, tokens_b, junk=(), shared=False)["b"].size == 5
    assert filter_matches(found, tokens_a, tokens_b, keywords=["seven"])["b"].size == 0
    with pytest.raises(InputError, match="top tokens of every feature"):
        filter_matches(found, tokens_a[:2], tokens_b)


def test_top_tokens_are_different_active_ones():
    values = torch.tensor([[3.0, 0], [2.0, 0], [0.0, 1], [1.0, 0], [0.5, 0]])
    words = [" cat", "cat ", " dog", " frog", " hen"]
    assert top_tokens(values, words, 2) == [["cat", "frog"], ["dog"]]
    assert top_tokens(values * 0, words) == [[], []]
    with pytest.raises(InputError, match="a token for each of 5 rows"):
        top_tokens(values, words[:3])


def test_matches_of_neurons_of_a_model_with_itself(outside_data):
    """On weights that nobody here trained: each neuron of a layer is its own best partner."""
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    texts = ["Once upon a time there was a little girl named Lily.", "The dog ran home."]
    rec = model.record(texts, "blocks.2.mlp.post")
    rows = rec["blocks.2.mlp.post"][rec.mask]
    found = match_features_by_correlation(rows[:, :50], rows.flip(1)[:, -50:], min_coactivations=5)
    assert found["a"].values.tolist() == list(range(49, -1, -1))


def test_what_cannot_be_matched_is_refused(sparse):
    with pytest.raises(UnknownNameError, match="B->A"):
        match_features_by_correlation(sparse, sparse, direction="B-A")
    with pytest.raises(InputError, match="same tokens"):
        match_features_by_correlation(sparse, sparse[1:])
    with pytest.raises(InputError, match="NaN"):
        match_features_by_correlation(sparse, sparse * torch.nan)
    with pytest.raises(InputError, match="activations of both"):
        match_features_by_correlation(sparse)
    with pytest.raises(InputError, match="a batch is a pair"):
        match_features_by_correlation([sparse])
    with pytest.raises(InputError, match=r"expected \[12, 12\]"):
        match_features_by_correlation([(sparse, sparse), (sparse[:, :3], sparse)])
    with pytest.raises(InputError, match="two rows or more"):
        match_features_by_correlation(sparse[:1], sparse[:1])
    with pytest.raises(InputError, match="min_coactivations >= 0"):
        match_features_by_correlation(sparse, sparse, min_coactivations=-1)
