"""CSR: similarities are cosines, boxes and rejections do what they say, and the stages fit what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.csr.boxes import box_masks, importance_map, overlapped_cells
from actinium.features.csr.concept_model import local_concept_vectors
from actinium.features.csr.head import fit_linear_head
from actinium.features.csr.pointing import pointing_game
from actinium.features.csr.prototypes import concept_similarity, softtriple_loss
from actinium.features.csr.reasoner import ConceptSimilarityReasoner
from actinium.world import shapes

WHOLE = [(0, 0, 32, 32)]


def backbone():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, 2, 1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
    )


def images(n, seed):
    """Red and blue objects, plain and textured ones: the four concepts; the class is the colour."""
    rule = {"blue": {"colour": "blue"}, "other": {}}
    data = shapes.render(4 * n, seed, rule=rule)
    colour, texture = data.concepts["colour"], data.concepts["texture"]
    keep = ((colour == 0) | (colour == 2)).nonzero().flatten()[:n]
    colour, texture = colour[keep], texture[keep]
    concepts = torch.stack([colour == 0, colour == 2, texture == 0, texture > 0], 1).long()
    return data.images[keep], concepts, (colour == 2).long(), data.masks[keep]


@pytest.fixture(scope="module")
def fitted():
    x, concepts, y, _ = images(240, 0)
    options = {"n_prototypes": 3, "width": 16, "lr": 3e-3, "concept_epochs": 8, "prototype_epochs": 15}
    return ConceptSimilarityReasoner(backbone(), 4, 2, **options).fit((x, concepts, y))


def test_scores_are_the_largest_cosines_of_patches(fitted):
    x = images(20, 1)[0]
    found = fitted.predict(x)
    with torch.no_grad():
        f = fitted.backbone_(x)
        u = nn.functional.conv2d(f, fitted.projector_[0].weight[:, :, None, None], fitted.projector_[0].bias).relu()
        u = nn.functional.conv2d(u, fitted.projector_[2].weight[:, :, None, None], fitted.projector_[2].bias)
        p = fitted.prototypes_.flatten(0, 1)
        want = nn.functional.cosine_similarity(u[:, None], p[None, :, :, None, None], dim=2)
    assert found.maps.shape == (20, 4, 3, 8, 8)
    assert torch.allclose(found.maps.flatten(1, 2), want, atol=1e-5)
    assert found.maps.abs().max() <= 1
    assert torch.equal(found.scores, found.maps.flatten(3).max(-1).values)
    logits = found.scores.flatten(1) @ fitted.head_.weight.T + fitted.head_.bias
    assert torch.allclose(found.logits, logits, atol=1e-5)


def test_contributions_add_up_to_the_logits(fitted):
    found = fitted.explain(images(8, 1)[0], rejected_concepts=[2])
    total = found["contribution"].sum(("concept", "prototype")) + found["bias"]
    np.testing.assert_allclose(total.transpose("image", "class"), found["logit"], atol=1e-4)
    assert (found["contribution"].sel(concept=2) == 0).all()


def test_boxes_around_everything_change_nothing_or_leave_the_bias(fitted):
    x = images(6, 1)[0]
    plain = fitted.predict(x)
    assert torch.equal(fitted.predict(x, pos_boxes=WHOLE).logits, plain.logits)
    assert torch.equal(fitted.predict(x, pos_boxes=WHOLE, mode="mask").logits, plain.logits)
    nothing = fitted.predict(x, neg_boxes=WHOLE)
    assert (nothing.scores == 0).all()
    assert torch.equal(nothing.logits, fitted.head_.bias.expand(6, 2))
    with pytest.raises(InputError, match="no cell of an image to look at"):
        fitted.predict(x, neg_boxes=[[], WHOLE, [], [], [], []], mode="mask")


def test_boxes_act_on_the_cells_that_they_overlap(fitted):
    x = images(3, 1)[0]
    maps = fitted.similarity_maps(x)
    box = [(5, 0, 12, 3)]  # cells of 4 pixels: columns 1 and 2 of row 0
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[0, 1:3] = True
    scaled = fitted.predict(x, neg_boxes=[[], box, []])
    assert torch.equal(scaled.maps[0], maps[0])
    assert torch.equal(scaled.maps[1], torch.where(inside, 0.0, maps[1]))
    masked = fitted.predict(x, neg_boxes=[[], box, []], mode="mask")
    assert torch.equal(masked.scores[1], maps[1].masked_fill(inside, -torch.inf).amax((-2, -1)))
    half = fitted.predict(x, pos_boxes=box, outside=0.5)
    assert torch.equal(half.maps, torch.where(inside, 1.0, 0.5) * maps)
    both = fitted.predict(x, pos_boxes=[*box, (0, 8, 4, 12)], neg_boxes=[(8, 0, 12, 4)])
    left = inside.clone()
    left[0, 2], left[2, 0] = False, True
    assert torch.equal(both.maps, torch.where(left, maps, 0.0))


def test_rejecting_a_concept_is_leaving_out_its_columns(fitted):
    x = images(6, 1)[0]
    plain = fitted.predict(x)
    weight = fitted.head_.weight.clone().view(2, 4, 3)
    weight[:, 1] = 0
    found = fitted.predict(x, rejected_concepts=[1])
    assert torch.allclose(found.logits, plain.scores.flatten(1) @ weight.flatten(1).T + fitted.head_.bias, atol=1e-5)
    one = fitted.predict(x, rejected_prototypes=[(1, 2)], replacement="mean").scores
    assert torch.equal(one[:, 1, 2], fitted.mean_scores_[1, 2].expand(6))
    assert torch.equal(one[:, 1, :2], plain.scores[:, 1, :2])
    assert (fitted.predict(x, rejected_concepts=[0], replacement="floor").scores[:, 0] == -1).all()


def test_mean_replacement_takes_the_training_mean(fitted):
    x, *_ = images(240, 0)
    assert torch.allclose(fitted.mean_scores_, fitted.similarity_maps(x).amax((-2, -1)).mean(0), atol=1e-5)


def test_a_head_without_rejected_prototypes_does_not_read_them(fitted, tmp_path):
    x, concepts, y, _ = images(240, 0)
    again = ConceptSimilarityReasoner.load(fitted.save(tmp_path / "csr"), backbone())
    assert torch.equal(again.predict(x).logits, fitted.predict(x).logits)
    again.fit_head((x, concepts, y), rejected_concepts=[2, 3], rejected_prototypes=[(0, 1)])
    weight = again.head_.weight.view(2, 4, 3)
    assert (weight[:, 2:] == 0).all()
    assert (weight[:, 0, 1] == 0).all()
    assert weight[:, 0, 0].abs().min() > 0
    with pytest.raises(InputError, match="all prototypes are rejected"):
        again.predict(x, rejected_concepts=[0, 1])
    with pytest.raises(LoadError, match="with this backbone"):
        ConceptSimilarityReasoner.load(tmp_path / "csr", nn.Conv2d(3, 24, 3))


def test_it_classifies_and_points_at_objects_it_has_not_seen(fitted):
    x, concepts, y, masks = images(200, 1)
    assert fitted.score(x, y) > 0.9
    assert fitted.concept_loss_[-1] < 0.7 * fitted.concept_loss_[0]
    regions = masks[:, None] & concepts[:, :, None, None].bool()
    game = pointing_game(fitted.concept_maps(x), regions, concepts=["red", "blue", "plain", "textured"], tolerance=2)
    assert float(game["hits"].sel(concept=["red", "blue"]).min()) > 0.7
    assert float(game["chance"].max()) < 0.2


def test_the_users_backbone_stays_as_it_was_and_seeds_repeat():
    x, concepts, y, _ = images(40, 0)
    net = backbone()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    options = {"n_prototypes": 2, "width": 8, "concept_epochs": 1, "prototype_epochs": 2}
    state = torch.random.get_rng_state()
    fits = [ConceptSimilarityReasoner(net, 4, 2, seed=s, **options).fit((x, concepts, y)) for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(fits[0].predict(x).logits, fits[1].predict(x).logits)
    assert not torch.equal(fits[0].prototypes_, fits[2].prototypes_)
    frozen = ConceptSimilarityReasoner(net, 4, 2, train_backbone=False, **options).fit((x, concepts, y))
    assert all(torch.equal(v, before[k]) for k, v in frozen.backbone_.state_dict().items())


def test_loaders_and_tensors_give_the_same_vectors(fitted):
    x, concepts, y, _ = images(30, 2)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, concepts, y), batch_size=7)
    one, many = fitted.concept_vectors((x, concepts, y)), fitted.concept_vectors(loader)
    assert torch.allclose(one[0], many[0], atol=1e-5)
    assert torch.equal(one[1], many[1])
    assert len(one[0]) == concepts.sum()


def test_local_concept_vectors_are_weighted_means_over_places():
    torch.manual_seed(0)
    features, maps = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 3, 4)
    v = local_concept_vectors(features, maps)
    weights = maps.exp() / maps.exp().sum((2, 3), keepdim=True)
    assert torch.allclose(v[1, 2], (features[1] * weights[1, 2]).sum((1, 2)), atol=1e-5)
    assert torch.allclose(
        local_concept_vectors(features, torch.ones_like(maps))[:, 0], features.mean((2, 3)), atol=1e-6
    )
    assert torch.allclose(local_concept_vectors(torch.ones_like(features), maps), torch.ones(2, 3, 5), atol=1e-6)


def test_softtriple_with_one_centre_is_a_normalised_softmax():
    u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    same = torch.tensor([[[0.6, 0.8]], [[0.6, 0.8]]], dtype=torch.float64)
    first = torch.tensor([0])
    assert float(softtriple_loss(u, first, apart, delta=0.0)) == pytest.approx(2.06e-9, rel=1e-3)
    assert float(softtriple_loss(u, first, same, delta=0.0)) == pytest.approx(math.log(2), abs=1e-12)
    assert float(softtriple_loss(u, first, same)) == pytest.approx(math.log(1 + math.exp(20 * 0.01)), abs=1e-12)


def test_similarity_to_a_concept_weighs_its_nearest_prototypes():
    torch.manual_seed(0)
    u, p = normalize(torch.randn(4, 6), dim=-1), normalize(torch.randn(3, 2, 6), dim=-1)
    cos = (u[1] * p[2]).sum(-1)
    weights = (10 * cos).exp() / (10 * cos).exp().sum()
    assert concept_similarity(u, p)[1, 2] == pytest.approx(float((weights * cos).sum()), abs=1e-6)
    assert torch.allclose(concept_similarity(u, p.repeat(1, 3, 1)), concept_similarity(u, p), atol=1e-6)
    loss, labels = softtriple_loss(u, torch.tensor([0, 1, 2, 0]), p, delta=0.1), [0, 1, 2, 0]
    sim = 20 * concept_similarity(u, p).double()
    by_hand = [
        -math.log(math.exp(sim[i, k] - 2) / (sim[i].exp().sum() - sim[i, k].exp() + math.exp(sim[i, k] - 2)))
        for i, k in enumerate(labels)
    ]
    assert float(loss) == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_one_sharp_prototype_per_concept_is_nearest_centre_classification():
    torch.manual_seed(0)
    u, p = normalize(torch.randn(50, 6).double(), dim=-1), normalize(torch.randn(4, 1, 6).double(), dim=-1)
    nearest = torch.cdist(u, p[:, 0]).argmin(1)
    assert torch.equal(concept_similarity(u, p).argmax(1), nearest)
    assert float(softtriple_loss(u, nearest, p, lam=1e6, delta=0.0)) < 1e-3
    assert float(softtriple_loss(u, (nearest + 1) % 4, p, lam=1e6, delta=0.0)) > 1e3


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_head_is_scikit_learns_optimum(multilabel):
    linear = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    x = torch.randn(120, 5).double()
    y = torch.randint(3, (120,)) if not multilabel else (x[:, :3] + torch.randn(120, 3) > 0).long()
    head = fit_linear_head(x, y, 3, multilabel=multilabel, l2=0.01)
    options = {"C": 1 / (0.01 * 120), "tol": 1e-10, "max_iter": 5000}
    if multilabel:
        peers = [linear.LogisticRegression(**options).fit(x, y[:, j]) for j in range(3)]
        want = np.stack([peer.decision_function(x) for peer in peers], 1)
        assert np.abs(head(x).detach().numpy() - want).max() < 1e-4
    else:
        want = linear.LogisticRegression(**options).fit(x, y).predict_proba(x)
        assert np.abs(head(x).softmax(1).detach().numpy() - want).max() < 1e-5


def test_the_atlas_shows_the_best_patch_of_images_with_the_concept(fitted):
    x, concepts, y, _ = images(60, 0)
    atlas = fitted.atlas((x, concepts, y), top=4)
    maps = fitted.similarity_maps(x)
    best = maps.amax((-2, -1))[:, 1, 2].masked_fill(concepts[:, 1] == 0, -2)
    assert atlas.image[1, 2].tolist() == best.topk(4).indices.tolist()
    assert torch.allclose(atlas.similarity[1, 2], best.topk(4).values)
    x0, y0, x1, y1 = atlas.box[1, 2, 0].tolist()
    where = maps[atlas.image[1, 2, 0], 1, 2]
    assert where[int(y0) // 4, int(x0) // 4] == where.max()
    assert (x1 - x0, y1 - y0) == (4, 4)
    patches = atlas.patches(x, 1, 2)
    assert [tuple(p.shape) for p in patches] == [(3, 4, 4)] * 4
    assert torch.equal(patches[0], x[atlas.image[1, 2, 0], :, int(y0) : int(y1), int(x0) : int(x1)])
    table = atlas.table(["red", "blue", "plain", "textured"])
    assert len(table) == 4 * 3 * 4
    assert table["similarity"].between(-1, 1).all()
    assert (atlas.share_inside(WHOLE, (32, 32)) == 1).all()
    left = atlas.share_inside([(0, 0, 16, 32)], (32, 32))
    assert left[1, 2] == (atlas.box[1, 2, :, 0] < 16).double().mean()
    few = fitted.atlas((x[:1], concepts[:1], y[:1]), top=2)
    assert ((few.image < 0) == (concepts[0] == 0)[:, None, None]).all()


def test_the_report_finds_dead_prototypes(fitted):
    report = fitted.prototype_report()
    owners = fitted.concept_vectors(images(240, 0)[:3])[1]
    assert report["assigned"].sum("prototype").values.tolist() == owners.bincount().tolist()
    p = fitted.prototypes_
    assert float(report["nearest_own"].sel(concept=0, prototype=0)) == pytest.approx(
        float((p[0, 1:] @ p[0, 0]).max()), abs=1e-5
    )
    assert float(report["nearest_other"].sel(concept=0, prototype=0)) == pytest.approx(
        float((p[1:] @ p[0, 0]).max()), abs=1e-5
    )


def test_pointing_counts_maps_that_are_largest_on_their_concept():
    maps = torch.zeros(3, 2, 4, 4)
    maps[0, 0, 1, 2] = maps[1, 0, 0, 0] = maps[2, 0, 3, 3] = 1.0
    # Cells of 2 pixels: the points are (5, 3), (1, 1) and (7, 7).
    rows = [(0, 0, 5, 3, 6, 4), (1, 0, 2, 0, 4, 4), (1, 1, 0, 0, 8, 8)]
    regions = box_masks(rows, (3, 2, 8, 8))
    assert regions[0, 0].nonzero().tolist() == [[3, 5]]
    game = pointing_game(maps, regions, concepts=["a", "b"])
    assert game["hits"].values.tolist() == [0.5, 1.0]
    assert game["images"].values.tolist() == [2, 1]
    assert game["chance"].values == pytest.approx([(1 + 8) / 128, 1.0])
    assert float(game["mean"]) == 0.75
    assert pointing_game(maps, regions, tolerance=1)["hits"].values.tolist() == [1.0, 1.0]


def test_cells_overlapped_by_boxes():
    cells = overlapped_cells([(3.5, 0, 8, 4), (0, 31, 1, 32)], (8, 8), (32, 32))
    assert cells.nonzero().tolist() == [[0, 0], [0, 1], [7, 0]]
    weights = importance_map([(0, 0, 16, 16)], [(0, 0, 8, 8)], (2, 4), (16, 32), outside=0.25)
    assert weights.tolist() == [[0, 1, 0.25, 0.25], [1, 1, 0.25, 0.25]]


def test_resnet20_of_cifar_learns_concepts_of_its_classes(outside_data):
    """On features of a network from outside: animal or vehicle, wings or none, as concepts; the class as the task."""
    from concept_nets import cifar

    net, x, y = cifar(outside_data)
    x, y = x[:600], y[:600]
    cut = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.layer1, net.layer2, net.layer3)
    animal, wings = (torch.isin(y, torch.tensor(c)) for c in ((2, 3, 4, 5, 6, 7), (0, 2)))
    concepts = torch.stack([animal, ~animal, wings], 1).long()
    options = {"n_prototypes": 4, "width": 32, "train_backbone": False, "lr": 1e-2, "concept_epochs": 3}
    data = x[:400], concepts[:400], y[:400]
    reasoner = ConceptSimilarityReasoner(cut, 3, 10, **options, prototype_epochs=10).fit(data)
    right = (reasoner.concept_maps(x[400:]).mean((2, 3)) > 0) == concepts[400:]
    assert right.double().mean() > 0.85
    # Of ten classes, three concepts tell four groups apart.
    assert reasoner.score(x[400:], y[400:]) > 0.25


def small(**options):
    return ConceptSimilarityReasoner(backbone(), 4, 2, **{"n_prototypes": 2, "width": 8, "concept_epochs": 1} | options)


X, C, Y, _ = images(12, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small().fit((X, C * 0, Y)), r"concepts \[0, 1, 2, 3\] are present in no image"),
        (lambda: small().fit((X, C.float() / 2, Y)), "concepts are 0 or 1"),
        (lambda: small().fit((X, C[:, :3], Y)), r"expected concepts \(12, 4\)"),
        (lambda: small().fit((X, C[:5], Y)), "of different number"),
        (lambda: small().fit((X * math.nan, C, Y)), "NaN"),
        (lambda: small().fit((X[:0], C[:0], Y[:0])), "no images"),
        (lambda: small().fit(iter([])), "no images"),
        (lambda: small().fit((X, C, Y * 0)), "the same label"),
        (lambda: small().fit((X, C, Y + 1)), "classes from 0 to 1"),
        (lambda: small(l2=0.0).fit((X, C, Y)), "above 0"),
        (lambda: small(n_prototypes=0).fit((X, C, Y)), "n_prototypes and width of 1 or more"),
        (lambda: small().fit_prototypes((X, C, Y)), "call fit_concepts first"),
        (lambda: small().fit_concepts((X, C)).fit_head((X, C, Y)), "call fit_prototypes first"),
        (lambda: small().fit_concepts((X, C)).fit_prototypes((X, C)).fit_head((X, C)), "needs classes"),
        (lambda: small().predict(X), "not fitted"),
        (lambda: pointing_game(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4, dtype=torch.bool)), "annotated region"),
        (lambda: pointing_game(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 4, 4, dtype=torch.bool)), "expected maps"),
        (lambda: box_masks([(0, 3, 0, 0, 1, 1)], (1, 2, 8, 8)), "no image 0 with concept 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_backbones_without_a_map_are_refused():
    flat = nn.Sequential(backbone(), nn.AdaptiveAvgPool2d(1))
    for net, message in ((flat, "1 x 1 cells"), (nn.Sequential(flat, nn.Flatten()), "must give a feature map")):
        with pytest.raises(InputError, match=message):
            ConceptSimilarityReasoner(net, 4, 2).fit((X, C, Y))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"neg_boxes": [(4, 4, 4, 8)]}, "expected x0 < x1"),
        ({"neg_boxes": [(0, 0, 33, 8)]}, "within the image of 32 x 32"),
        ({"pos_boxes": [(0, 0, 8)]}, r"boxes \(m, 4\)"),
        ({"pos_boxes": [[(0, 0, 8, 8)], []]}, "for all of 12 images"),
        ({"pos_boxes": WHOLE, "outside": 2.0}, "outside from 0 to 1"),
        ({"rejected_concepts": [0, 1, 2, 3]}, "all prototypes are rejected"),
        ({"rejected_prototypes": [(0, 3)]}, r"no prototype \(0, 3\)"),
        ({"rejected_concepts": [4]}, "no prototype"),
    ],
)
def test_senseless_interactions_are_refused(fitted, how, message):
    with pytest.raises(InputError, match=message):
        fitted.predict(X, **how)


def test_unknown_ways_are_refused(fitted):
    with pytest.raises(UnknownNameError, match="did you mean 'mask'"):
        fitted.predict(X, mode="masked")
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        fitted.predict(X, rejected_concepts=[0], replacement="means")
