"""Semi-NMF keeps its constraints, falls as its updates promise, and finds the features that made the data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.core.rows import as_rows
from actinium.features.rows import token_rows
from actinium.features.semi_nmf import SemiNMF


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def signed():
    """300 rows of 40 signed entries, of rank 40."""
    return torch.randn(300, 40, generator=random(), dtype=torch.float64)


@pytest.fixture(scope="module")
def sparse_groups():
    """1500 rows of 256 neurons: eight groups of eight, active at a fifth of the rows, and noise of 0.02."""
    features = torch.zeros(8, 256)
    source = random(3)
    for row in features:
        row[torch.randperm(256, generator=source)[:8]] = torch.randn(8, generator=source)
    codes = torch.rand(1500, 8, generator=source) * (torch.rand(1500, 8, generator=source) < 0.2)
    return codes @ features + 0.02 * torch.randn(1500, 256, generator=source), features


def mean_max_cosine(found, truth):
    unit = [torch.nn.functional.normalize(m, dim=1) for m in (truth, found)]
    return float((unit[0] @ unit[1].T).amax(1).mean())


def test_sparsity_is_what_identifies_the_features(sparse_groups):
    """Card 053: 0.997 with winner-take-all and 0.645 without, though the error is lower without."""
    rows, truth = sparse_groups
    with_it, without = (SemiNMF(8, sparsity=s, seed=3).fit(rows) for s in (8 / 256, None))
    errors = [float((rows - m.inverse_transform(m.activations_)).norm() / rows.norm()) for m in (with_it, without)]
    assert mean_max_cosine(with_it.components_, truth) > 0.99
    assert mean_max_cosine(without.components_, truth) < 0.75
    assert max(errors) < 0.17
    assert float(with_it.components_.ne(0).sum(1).double().max()) == 8


@pytest.mark.parametrize("init", ["random", "knn", "svd"])
def test_without_sparsity_the_error_never_rises_and_activations_stay_positive(signed, init):
    found = SemiNMF(6, sparsity=None, init=init, max_iter=200, patience=200).fit(signed.float())
    steps = np.diff(found.loss_curve_) / found.loss_curve_[:-1]
    assert steps.max() < 1e-5
    assert found.n_iter_ == len(found.loss_curve_) == 200
    assert bool((found.activations_ >= 0).all())
    assert found.loss_curve_[-1] < 0.95 * found.loss_curve_[0]


def test_the_features_step_is_ridge_regression_and_rescaling_leaves_the_product(signed):
    found = SemiNMF(5, sparsity=None, max_iter=1).fit(signed)
    start = torch.rand(300, 5, generator=random(), dtype=torch.float64).clamp_min(1e-6)
    least = torch.linalg.solve(start.T @ start + 1e-6 * torch.eye(5, dtype=torch.float64), start.T @ signed)
    # Zero gradient: (F G^T - A) G = -lambda F, in the card's orientation.
    assert torch.allclose((least.T @ start.T - signed.T) @ start, -1e-6 * least.T, atol=1e-9)
    size = start.norm(dim=0)
    assert torch.allclose((start / size) @ (least * size[:, None]), start @ least)
    assert torch.allclose(found.components_, least * size[:, None])
    # The activations follow from it by eq. 11 of Ding, Li and Jordan.
    p, q, g = signed @ found.components_.T, found.components_ @ found.components_.T, start / size
    plus, minus = (lambda m: (m.abs() + m) / 2), (lambda m: (m.abs() - m) / 2)
    want = g * ((plus(p) + g @ minus(q)) / (minus(p) + g @ plus(q) + 1e-6)).sqrt()
    assert torch.allclose(found.activations_, want)
    assert found.loss_curve_[0] == pytest.approx(float((signed - want @ found.components_).square().sum()))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.33, 1.0])
def test_each_feature_keeps_a_share_of_the_neurons_rounded_up(signed, share):
    found = SemiNMF(5, sparsity=share, max_iter=20).fit(signed)
    assert found.components_.ne(0).sum(1).tolist() == [math.ceil(share * 40)] * 5


def test_the_best_iteration_is_kept_and_patience_ends_the_fit(signed):
    found = SemiNMF(10, sparsity=0.05, patience=5, max_iter=400).fit(signed)
    assert found.n_iter_ < 400
    assert np.diff(found.loss_curve_).max() > 0
    product = found.inverse_transform(found.activations_)
    assert float((signed - product).square().sum()) == pytest.approx(found.loss_curve_.min())
    assert found.loss_curve_[-5:].min() >= found.loss_curve_[:-5].min() - 1e-4


def test_one_feature_without_noise_is_recovered():
    feature = torch.randn(1, 30, generator=random(1), dtype=torch.float64)
    codes = torch.rand(100, 1, generator=random(2), dtype=torch.float64)
    found = SemiNMF(1, sparsity=None).fit(codes @ feature)
    scale = float(found.components_[0, 0] / feature[0, 0])
    assert scale > 0
    assert torch.allclose(found.components_ / scale, feature, rtol=1e-4)
    assert torch.allclose(found.activations_ * scale, codes, rtol=1e-4, atol=1e-6)


def test_the_opposite_activations_have_the_opposite_features_with_the_same_activity(signed):
    one, other = (SemiNMF(5, sparsity=0.1, max_iter=50).fit(sign * signed) for sign in (1, -1))
    assert torch.equal(one.components_, -other.components_)
    assert torch.equal(one.activations_, other.activations_)


def test_new_rows_get_the_activations_of_non_negative_least_squares(signed):
    found = SemiNMF(6, sparsity=0.3, max_iter=100).fit(signed)
    new = torch.randn(20, 40, generator=random(5), dtype=torch.float64)
    codes = found.transform(new, max_iter=2000)
    assert bool((codes >= 0).all())
    features = found.components_.T.numpy()
    best = np.array([nnls(features, row)[1] for row in new.numpy()])
    got = (new - found.inverse_transform(codes)).norm(dim=1).numpy()
    assert got == pytest.approx(best, rel=1e-3)
    assert (found.transform(new) - codes).abs().max() < 0.05 * codes.max()


def test_top_tokens_and_neurons_name_a_feature():
    rows = torch.zeros(6, 20)
    rows[[0, 2], 3] = torch.tensor([2.0, 1.0])
    rows[[1, 4], 7] = torch.tensor([-3.0, -1.0])
    found = SemiNMF(2, sparsity=0.05, init="knn").fit(rows + 1e-3 * torch.rand(6, 20, generator=random()))
    by_neuron = {found.top_neurons(k)[0][0]: k for k in range(2)}
    assert set(by_neuron) == {3, 7}
    words = ["red", "cat", "blue", "the", "dog", "of"]
    assert [w for w, _ in found.top_tokens(by_neuron[3], words, 2)] == ["red", "blue"]
    assert [w for w, _ in found.top_tokens(by_neuron[7], words, 2)] == ["cat", "dog"]
    assert found.top_neurons(by_neuron[7])[0][1] < 0
    assert len(found.top_neurons(0, 20)) == 1
    with pytest.raises(InputError, match="a text for each of 6 rows"):
        found.top_tokens(0, words[:2])
    with pytest.raises(InputError, match="0 to 1"):
        found.top_neurons(2)


def test_a_feature_that_died_is_reported():
    # Two different rows make two clusters; the other two features have nothing to stand for.
    rows = torch.eye(2, 10).repeat(25, 1)
    with pytest.warns(ActiniumWarning, match="2 of 4 features died"):
        SemiNMF(4, sparsity=0.1, init="knn").fit(rows)


def test_activations_that_are_alike_do_not_stop_the_fit():
    # In single precision their products are singular, whatever ridge is added.
    rows = torch.rand(50, 1, generator=random()) @ torch.eye(1, 10)
    found = SemiNMF(3, sparsity=0.1, init="svd").fit(rows)
    assert found.loss_curve_.min() < 1e-9


def test_fits_come_back_from_disk(signed, tmp_path):
    found = SemiNMF(4, sparsity=0.1, max_iter=5).fit(signed)
    again = SemiNMF.load(found.save(tmp_path / "fit"))
    assert again.get_params() == found.get_params()
    assert torch.equal(again.components_, found.components_)
    assert torch.equal(again.transform(signed), found.transform(signed))
    assert (again.loss_curve_ == found.loss_curve_).all()
    assert again.n_iter_ == 5
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="cannot read"):
        SemiNMF.load(tmp_path / "broken")


def test_the_same_seed_gives_the_same_and_arrays_and_half_precision_are_read(signed):
    one, other = (SemiNMF(4, max_iter=5, seed=s).fit(signed) for s in (0, 1))
    assert torch.equal(one.components_, SemiNMF(4, max_iter=5).fit(signed.numpy()).components_)
    assert not torch.allclose(one.components_, other.components_)
    half = SemiNMF(4, max_iter=5).fit(signed.bfloat16().reshape(3, 100, 40))
    assert half.components_.dtype == torch.float32
    assert half.activations_.shape == (300, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": 41}, InputError, "from 1 to 40"),
        ({"n_components": 0}, InputError, "from 1 to 40"),
        ({"sparsity": 0.0}, InputError, "sparsity is a share"),
        ({"sparsity": 1.1}, InputError, "sparsity is a share"),
        ({"init": "kmeans"}, UnknownNameError, "knn"),
        ({"max_iter": 0}, InputError, "max_iter >= 1"),
        ({"patience": 0}, InputError, "patience >= 1"),
        ({"tol": -1.0}, InputError, "tol >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(signed, options, error, message):
    with pytest.raises(error, match=message):
        SemiNMF(**{"n_components": 4, **options}).fit(signed)


def test_data_that_cannot_be_factorised_are_refused(signed):
    bad = signed.clone()
    bad[3, 3] = torch.nan
    for rows, message in (
        (bad, "NaN"),
        (torch.zeros(50, 40), "all zero"),
        (signed[0], "expected rows"),
        (torch.zeros(0, 40), "expected rows"),
        (signed[:3], "from 1 to 3"),
    ):
        with pytest.raises(InputError, match=message):
            SemiNMF(4).fit(rows)
    with pytest.raises(InputError, match="call fit"):
        SemiNMF(4).transform(signed)
    found = SemiNMF(4, max_iter=2).fit(signed)
    with pytest.raises(InputError, match="39 entries, expected 40"):
        found.transform(signed[:, 1:])
    with pytest.raises(InputError, match="expected 4"):
        found.inverse_transform(signed)


def test_rows_of_tokens_leave_out_padding_and_special_tokens(lm):
    model = lm
    texts = ["The city of Ann is Orla.", "Bob has the job cook."]
    rows = token_rows(model, texts, "blocks.1.mlp.post")
    ids = model.to_tokens(texts)
    rec = model.record(texts, "blocks.1.mlp.post")
    special = set(model.tokenizer.all_special_ids)
    want = [
        (i, j)
        for i in range(2)
        for j in range(ids.ids.shape[1])
        if ids.mask[i, j] and int(ids.ids[i, j]) not in special
    ]
    assert list(zip(rows.text.tolist(), rows.position.tolist(), strict=True)) == want
    assert all(torch.equal(rows.values[r], rec["blocks.1.mlp.post"][i, j]) for r, (i, j) in enumerate(want))
    assert rows.words[0] == "The"
    assert [len(part) for part in rows.by_text()] == [sum(i == k for i, _ in want) for k in range(2)]
    whole = token_rows(model, texts, "blocks.1.mlp.post", skip_special=False)
    assert len(whole) == int(ids.mask.sum())
    with pytest.raises(InputError, match="means 6 sites"):
        token_rows(model, texts, "blocks.*.mlp.post")
    assert as_rows([[1, 2], [3, 4]]).dtype == torch.float32


def test_features_of_a_model_that_nobody_here_trained_name_tokens(outside_data):
    """stories260K: the ten rows where a feature is most active hold fewer different tokens than those of a neuron."""
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    torch.manual_seed(0)
    stories = [
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
        "One day, Tom saw a big red ball. He wanted to play with it. His mom said no.",
        "The dog and the cat were friends. They liked to run and jump in the sun.",
        "Sam had a toy car. He was very happy. Then the car broke and he was sad.",
    ]
    more = model.generate([s[:40] for s in stories] * 8, max_new_tokens=60, do_sample=True)
    rows = token_rows(model, stories + [text for text in more if text.strip()], "blocks.1.mlp.post")
    found = SemiNMF(20, sparsity=0.1, max_iter=150).fit(rows.values)
    explained = 1 - found.loss_curve_.min() / float(rows.values.square().sum())
    assert explained > 0.2
    kinds = np.array([len({w for w, _ in found.top_tokens(k, rows.words, 10)}) for k in range(20)])
    neurons = rows.values.topk(10, dim=0).indices.T.tolist()
    plain = np.array([len({rows.words[i] for i in column}) for column in neurons])
    assert kinds.mean() < 0.8 * plain.mean()
