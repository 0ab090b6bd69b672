"""A concept activation vector is the direction of a linear classifier, whichever way it is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.cav import CAV, METHODS, relative_cav


def clouds(n=40, d=6, shift=2.0, seed=0):
    """Two normal clouds of which the first is moved along the first axis."""
    random = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, d, generator=random, dtype=torch.float64) for _ in range(2))
    first[:, 0] += shift
    return first, second


def training_rows(n, seed=0, share=0.33):
    """The rows of each set that are not held out."""
    return np.random.default_rng(seed).permutation(n)[min(n - 1, int(np.ceil(share * n))) :]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_points_towards_the_concept_with_unit_length(method):
    first, second = clouds(shift=5.0)
    cav = CAV(method).fit(first, second)
    assert float(cav.vector_.norm()) == pytest.approx(1)
    assert float(cav.vector_[0]) > 0.8
    assert cav.accuracy_["all"] > 0.9
    assert bool((cav.decision_function(first).mean() > 0) & (cav.decision_function(second).mean() < 0))


@pytest.mark.parametrize("method", METHODS)
def test_sets_of_two_points_apart_are_told_apart_without_error(method):
    points = torch.tensor([[3.0, 0.0], [3.1, 0.1]]), torch.tensor([[-3.0, 0.0], [-3.1, 0.1]])
    if method == "lda":
        # One training row in each class: no covariance.
        with pytest.raises(InputError, match="differ within a class"):
            CAV(method).fit(*points)
        return
    assert CAV(method).fit(*points).accuracy_ == {"all": 1.0, "concept": 1.0, "negative": 1.0}


def test_mean_difference_is_that_of_the_training_rows():
    first, second = clouds()
    rows = training_rows(40)
    want = first[rows].mean(0) - second[rows].mean(0)
    cav = CAV("mean_diff").fit(first, second)
    assert torch.allclose(cav.vector_ * cav.norm_, want)
    middle = (first[rows].mean(0) + second[rows].mean(0)) / 2
    assert float(cav.decision_function(middle[None])) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("method", "alpha"), [("sgd", None), ("sgd", 0.1), ("logistic", None), ("logistic", 3.0)])
def test_classifiers_are_those_of_scikit_learn(method, alpha):
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    first, second = clouds()
    rows = training_rows(40, seed=3)
    one = SGDClassifier(alpha=alpha or 0.01, max_iter=1000, tol=1e-3, random_state=3)
    if method == "logistic":
        one = LogisticRegression(C=1 / (alpha or 1.0), tol=1e-10, max_iter=10_000)
    labels = np.repeat([1, 0], len(rows))
    one.fit(np.concatenate([first[rows], second[rows]]), labels)
    cav = CAV(method, alpha=alpha, seed=3).fit(first, second)
    assert np.allclose(cav.vector_ * cav.norm_, one.coef_[0], rtol=1e-5, atol=1e-7)
    assert np.allclose(cav.decision_function(first), one.decision_function(first.numpy()), rtol=1e-4, atol=1e-5)
    held = np.setdiff1d(np.arange(40), rows)
    assert cav.accuracy_["concept"] == pytest.approx(float(one.predict(first[held].numpy()).mean()))
    assert cav.accuracy_["negative"] == pytest.approx(1 - float(one.predict(second[held].numpy()).mean()))


@pytest.mark.parametrize(("d", "alpha"), [(6, None), (90, None), (90, 0.3)])
def test_lda_divides_by_the_shrunk_covariance_within_the_classes(d, alpha):
    from sklearn.covariance import ledoit_wolf, shrunk_covariance

    first, second = clouds(d=d)
    rows = training_rows(40)
    a, b = first[rows].numpy(), second[rows].numpy()
    within = np.concatenate([a - a.mean(0), b - b.mean(0)])
    if alpha is None:
        covariance = ledoit_wolf(within, assume_centered=True)[0]
    else:
        covariance = shrunk_covariance(within.T @ within / len(within), alpha)
    want = np.linalg.solve(covariance, a.mean(0) - b.mean(0))
    cav = CAV("lda", alpha=alpha).fit(first, second)
    assert np.allclose(cav.vector_ * cav.norm_, want, rtol=1e-8)


def test_sets_are_cut_to_the_smaller_one_and_held_out_rows_teach_nothing():
    first, second = clouds()
    cav = CAV("logistic").fit(first[:30], second)
    assert cav.rows_ == 30
    assert torch.equal(CAV("logistic").fit(first[:30], second[:30]).vector_, cav.vector_)
    held = np.setdiff1d(np.arange(30), training_rows(30))
    changed = first[:30].clone()
    changed[held] -= 100
    again = CAV("logistic").fit(changed, second)
    assert torch.equal(again.vector_, cav.vector_)
    assert again.accuracy_["concept"] == 0


def test_with_pooling_the_vector_belongs_to_channels_and_gradients_are_summed():
    random = torch.Generator().manual_seed(0)
    first, second = torch.rand(20, 5, 3, 4, generator=random), torch.rand(20, 5, 3, 4, generator=random)
    first[:, 2] += 1
    cav = CAV("mean_diff", pool="mean").fit(first, second)
    flat = CAV("mean_diff").fit(first.mean((2, 3)), second.mean((2, 3)))
    assert torch.allclose(cav.vector_, flat.vector_) and cav.shape_ == (5, 3, 4)
    grads = torch.rand(7, 5, 3, 4, generator=random).double()
    assert torch.allclose(cav.sensitivity(grads), torch.einsum("nchw,c->n", grads, cav.vector_))
    moved = cav.perturb(first, 3.0)
    assert torch.allclose((moved - first).double(), (3 * cav.vector_)[:, None, None].expand(5, 3, 4), atol=1e-5)
    words = torch.rand(20, 6, 5, generator=random)
    assert CAV("mean_diff", pool="mean").fit(words + 1, words).perturb(words, 1.0).shape == words.shape
    assert CAV("mean_diff").fit(words + 1, words).vector_.shape == (30,)


def test_examples_are_sorted_by_cosine_and_move_along_the_vector():
    first, second = clouds()
    cav = CAV("mean_diff").fit(first, second)
    want = (first @ cav.vector_) / first.norm(dim=1)
    assert torch.allclose(cav.cosine(first), want)
    assert torch.allclose((cav.perturb(first, 2.0) - first) @ cav.vector_, torch.full((40,), 2.0, dtype=torch.float64))


def test_a_relative_vector_of_two_concepts_is_minus_that_of_the_other():
    first, second = clouds()
    found = relative_cav({"a": first, "b": second}, CAV("logistic"))
    assert torch.allclose(found["a"].vector_, -found["b"].vector_, atol=1e-6)


def test_relative_vectors_of_three_concepts_hold_the_others_in_equal_parts():
    random = torch.Generator().manual_seed(0)
    sets = {name: torch.randn(20, 3, generator=random) + 8 * torch.eye(3)[i] for i, name in enumerate("abc")}
    found = relative_cav(sets, CAV("mean_diff"))
    want = sets["a"][:].double()
    rows = training_rows(20)
    turn = torch.stack([s[i] for i in range(20) for s in (sets["b"], sets["c"])]).double()[:20]
    assert torch.allclose(found["a"].vector_ * found["a"].norm_, want[rows].mean(0) - turn[rows].mean(0))
    assert all(float(found[n].vector_[i]) > 0.6 for i, n in enumerate("abc"))


def test_a_vector_comes_back_from_disk(tmp_path):
    first, second = clouds()
    cav = CAV("lda", seed=2).fit(first, second)
    cav.save(tmp_path / "cav")
    again = CAV.load(tmp_path / "cav")
    assert again.get_params() == cav.get_params() and torch.equal(again.vector_, cav.vector_)
    assert torch.equal(again.decision_function(first), cav.decision_function(first))
    assert (again.accuracy_, again.rows_, again.shape_) == (cav.accuracy_, cav.rows_, cav.shape_)
    (tmp_path / "other").write_bytes(b"no tensors")
    for name in ("absent", "other"):
        with pytest.raises(LoadError, match="cannot read"):
            CAV.load(tmp_path / name)


A, B = clouds(n=5)


@pytest.mark.parametrize(
    ("settings", "first", "second", "error", "message"),
    [
        ({}, A[:1], B, InputError, "two examples or more"),
        ({}, A[:0], B, InputError, "one example or more"),
        ({}, A, B[:, :3], InputError, "have shape"),
        ({}, A.log(), B, InputError, "NaN"),
        ({}, A[0], B, InputError, "one example or more"),
        ({"method": "mean_diff"}, A, A, InputError, "both sets the same"),
        ({"method": "svm"}, A, B, UnknownNameError, "sgd"),
        ({"pool": "max"}, A, B, UnknownNameError, "mean"),
        ({"test_share": 1.0}, A, B, InputError, "test_share"),
        ({"alpha": 0.0}, A, B, InputError, "above 0"),
        ({"method": "lda", "alpha": 2.0}, A, B, InputError, "at most 1"),
        ({"method": "mean_diff", "alpha": 1.0}, A, B, InputError, "no penalty"),
        ({"method": "lda"}, torch.ones(5, 6), torch.zeros(5, 6), InputError, "differ within a class"),
        ({"pool": "mean"}, torch.ones(5, 2, 2, 2, 2), torch.zeros(5, 2, 2, 2, 2), InputError, "cannot pool"),
    ],
)
def test_what_cannot_be_learned_is_refused(settings, first, second, error, message):
    with pytest.raises(error, match=message):
        CAV(**settings).fit(first, second)


def test_other_shapes_and_unfitted_vectors_are_refused():
    with pytest.raises(InputError, match="call fit"):
        CAV().cosine(A)
    cav = CAV("mean_diff").fit(A, B)
    with pytest.raises(InputError, match="6 entries"):
        cav.sensitivity(torch.ones(2, 5))
    with pytest.raises(InputError, match="two concepts"):
        relative_cav({"a": A})
    with pytest.raises(InputError, match="differ in shape"):
        relative_cav({"a": A, "b": B[:, :2]})
