"""Features of features: weights stay non-negative, fine-tuning lowers the error, and a planted tree is found."""

from __future__ import annotations

import pytest
import torch

from actinium.core.errors import InputError, LoadError
from actinium.features.hierarchical_semi_nmf import HierarchicalSemiNMF
from actinium.features.semi_nmf import SemiNMF


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tree():
    """Six features: three share the neurons 0-4 and three the neurons 20-24, each with two neurons of its own."""
    features = torch.zeros(6, 40, dtype=torch.float64)
    for i in range(6):
        shared = 0 if i < 3 else 20
        features[i, shared : shared + 5] = 1.0
        features[i, 5 + 2 * i + (9 if i >= 3 else 0)] = 2.0
        features[i, 6 + 2 * i + (9 if i >= 3 else 0)] = -2.0
    codes = torch.rand(400, 6, generator=random(), dtype=torch.float64)
    codes = codes * (torch.rand(400, 6, generator=random(1)) < 0.3)
    return codes @ features + 0.01 * torch.randn(400, 40, generator=random(2), dtype=torch.float64), features


@pytest.fixture(scope="module")
def found(tree):
    return HierarchicalSemiNMF([6, 2], sparsity=7 / 40, init="knn", max_iter=400).fit(tree[0])


def groups_of(found, features):
    """For each true feature the group of the finest feature that is nearest to it: its heaviest parent."""
    unit = [torch.nn.functional.normalize(m, dim=1) for m in (features, found.components_[0])]
    cosines = unit[0] @ unit[1].T
    assert cosines.amax(1).min() > 0.95
    return [found.parents(0, int(k), 1)[0][0] for k in cosines.argmax(1)]


def test_features_that_share_neurons_have_one_parent(tree, found):
    groups = groups_of(found, tree[1])
    assert groups[:3] == [groups[0]] * 3
    assert groups[3:] == [groups[3]] * 3
    assert groups[0] != groups[3]
    core = {i for i, _ in SemiNMF.top_neurons(_as_level(found.components_[1]), groups[0], 5)}
    assert core == set(range(5))


def _as_level(features):
    level = SemiNMF(len(features))
    level.components_ = features
    return level


def test_each_level_is_a_semi_nmf_of_the_features_below(tree, found):
    first = SemiNMF(6, sparsity=7 / 40, init="knn", max_iter=400).fit(tree[0])
    second = SemiNMF(2, sparsity=7 / 40, init="knn", max_iter=400).fit(first.components_)
    assert torch.equal(found.components_[0], first.components_)
    assert torch.equal(found.components_[1], second.components_)
    assert torch.equal(found.weights_[0], second.activations_)
    assert torch.equal(found.activations_, first.activations_)
    assert found.loss_curve_.size == 0


def test_parents_and_children_are_two_views_of_the_weights(found):
    weights = found.weights_[0]
    for k in range(6):
        assert dict(found.parents(0, k)) == {i: float(v) for i, v in enumerate(weights[k]) if float(v) > 0}
    top = found.children(1, 0, 6)
    assert [v for _, v in top] == sorted((v for _, v in top), reverse=True)
    assert found.children(-1, 0, 1)[0][1] == float(weights[:, 0].max())


def test_fine_tuning_lowers_the_error_and_keeps_weights_non_negative(tree):
    options = {"sparsity": 7 / 40, "init": "svd", "max_iter": 50}
    tuned = HierarchicalSemiNMF([6, 3, 2], fine_tune=300, lr=1e-2, **options).fit(tree[0])
    assert tuned.loss_curve_.shape == (300,)
    assert tuned.loss_curve_[-1] < 0.9 * tuned.loss_curve_[0]
    for weights in (tuned.activations_, *tuned.weights_):
        assert bool((weights >= 0).all())
    # Steps that went below zero were put back.
    assert bool((tuned.activations_ == 0).any())
    # Every level stands for the same product.
    whole = tuned.activations_ @ tuned.components_[0]
    assert torch.allclose(tuned.weights_[0] @ tuned.components_[1], tuned.components_[0])
    assert torch.allclose(tuned.weights_[1] @ tuned.components_[2], tuned.components_[1])
    after = float((tree[0] - whole).square().mean())
    assert after < tuned.loss_curve_[0]
    plain = HierarchicalSemiNMF([6, 3, 2], **options).fit(tree[0])
    start = plain.activations_ @ plain.weights_[0] @ plain.weights_[1] @ plain.components_[2]
    assert tuned.loss_curve_[0] == pytest.approx(float((tree[0] - start).square().mean()))


def test_rows_are_read_by_the_features_of_a_level(tree, found):
    for level, size in ((0, 6), (-1, 2)):
        codes = found.transform(tree[0][:20], level)
        assert codes.shape == (20, size)
        assert bool((codes >= 0).all())
        assert torch.equal(found.inverse_transform(codes, level), codes @ found.components_[level])
    fine, coarse = (float((tree[0] - found.inverse_transform(found.transform(tree[0], i), i)).norm()) for i in (0, 1))
    assert fine < coarse


def test_hierarchies_come_back_from_disk(tree, tmp_path):
    made = HierarchicalSemiNMF((5, 2), max_iter=3, fine_tune=2).fit(tree[0])
    again = HierarchicalSemiNMF.load(made.save(tmp_path / "tree"))
    assert again.sizes == [5, 2]
    for one, other in zip(made.components_ + made.weights_, again.components_ + again.weights_, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(made.activations_, again.activations_)
    assert (made.loss_curve_ == again.loss_curve_).all()
    SemiNMF(2, max_iter=2).fit(tree[0]).save(tmp_path / "flat")
    with pytest.raises(LoadError, match="is no hierarchy"):
        HierarchicalSemiNMF.load(tmp_path / "flat")


def test_what_makes_no_hierarchy_is_refused(tree, found):
    rows = tree[0]
    for sizes in ([4], [4, 4], [2, 4], []):
        with pytest.raises(InputError, match="two levels or more, falling"):
            HierarchicalSemiNMF(sizes).fit(rows)
    with pytest.raises(InputError, match="from 1 to 40"):
        HierarchicalSemiNMF([50, 2]).fit(rows)
    with pytest.raises(InputError, match="fine_tune >= 0"):
        HierarchicalSemiNMF([4, 2], fine_tune=-1).fit(rows)
    with pytest.raises(InputError, match="call fit"):
        HierarchicalSemiNMF([4, 2]).parents(0, 0)
    with pytest.raises(InputError, match="coarsest"):
        found.parents(1, 0)
    with pytest.raises(InputError, match="finest"):
        found.children(0, 0)
    with pytest.raises(InputError, match="levels go from 0 to 1"):
        found.transform(rows, 2)
    with pytest.raises(InputError, match="go from 0 to 5"):
        found.parents(0, 6)
    with pytest.raises(InputError, match="39 entries"):
        found.transform(rows[:, 1:])
