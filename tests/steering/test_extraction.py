"""Directions from pairs, against closed forms and scikit-learn; which tokens are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.steering.extraction import METHODS, direction_of
from actinium.steering.text_places import suffix_masks
from architectures import shared, token_ids

SITES = "blocks.*.resid_post"


def cosine(a, b):
    return abs(float(np.dot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b))


def spread(n=200, d=16, seed=0):
    """Pairs with d_i = mu + noise: |mu| 3, noise of sd 2 on one other axis, 0.5 elsewhere."""
    random = np.random.default_rng(seed)
    mu = np.zeros(d)
    mu[0] = 3.0
    scale = np.full(d, 0.5)
    scale[1] = 2.0
    base = random.normal(size=(n, d)) * 3
    difference = mu + random.normal(size=(n, d)) * scale
    return base + difference / 2, base - difference / 2, mu


def test_mean_difference_is_the_difference_of_the_means():
    up, down, _ = spread()
    assert np.allclose(direction_of(up, down), up.mean(0) - down.mean(0), atol=1e-12)
    assert np.allclose(direction_of(up, down), -direction_of(down, up), atol=1e-12)


def test_pairwise_pca_is_the_top_singular_vector_of_both_orders():
    up, down, _ = spread(n=9)
    stacked = np.concatenate([up - down, down - up])
    want = np.linalg.svd(stacked)[2][0]
    found = direction_of(up, down, "pca_pairwise")
    assert 1 - cosine(found, want) < 1e-10 and np.linalg.norm(found) == pytest.approx(1)
    assert float((up - down).mean(0) @ found) > 0


def test_centred_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    up, down, _ = spread()
    difference = PCA(1, svd_solver="full").fit(up - down).components_[0]
    assert 1 - cosine(direction_of(up, down, "pca_difference"), difference) < 1e-10
    every = PCA(1, svd_solver="full").fit(np.concatenate([up, down])).components_[0]
    assert 1 - cosine(direction_of(up, down, "pca_centred"), every) < 1e-10


def test_centring_ordered_differences_removes_the_signal():
    up, down, mu = spread()
    near = {m: cosine(direction_of(up, down, m), mu) for m in ("pca_pairwise", "mean_difference", "pca_difference")}
    assert near["pca_pairwise"] > 0.99 and near["mean_difference"] > 0.99 and near["pca_difference"] < 0.2
    assert cosine(direction_of(up, down, "repe"), mu) > 0.97


def test_components_say_how_much_they_explain():
    from sklearn.decomposition import PCA

    site, (up, down, _) = "blocks.1.resid_post", spread(n=30)
    rows = {
        "pca_pairwise": np.concatenate([up - down, down - up]) / 2,
        "pca_centred": np.concatenate([up, down]),
        "pca_difference": up - down,
    }
    for method, given in rows.items():
        found = ac.steering.extract(None, {site: up}, {site: down}, method=method)
        want = PCA(1, svd_solver="full").fit(given).explained_variance_ratio_[0]
        assert found.made["explained_variances"][site] == pytest.approx(want, rel=1e-6)
        assert found.normalize(found.made["explained_variances"]).norms[site] == pytest.approx(want, rel=1e-5)
    assert "explained_variances" not in ac.steering.extract(None, {site: up}, {site: down}).made


def test_lda_whitens_the_difference():
    random = np.random.default_rng(0)
    scale = np.array([3.0, 1.0, 0.5])
    up, down = random.normal(size=(4000, 3)) * scale + [1, 1, 1], random.normal(size=(4000, 3)) * scale
    gap = up.mean(0) - down.mean(0)
    within = (np.cov(up.T) + np.cov(down.T)) / 2
    shrunk = 0.9 * within + 0.1 * np.trace(within) / 3 * np.eye(3)
    assert 1 - cosine(direction_of(up, down, "lda"), np.linalg.solve(shrunk, gap)) < 1e-6


def test_logistic_weights_are_those_of_centred_pairs():
    from sklearn.linear_model import LogisticRegression

    up, down, mu = spread()
    rows = np.concatenate([(up - down) / 2, (down - up) / 2])
    want = LogisticRegression(fit_intercept=False, max_iter=5000).fit(rows, [1] * 200 + [0] * 200).coef_[0]
    assert 1 - cosine(direction_of(up, down, "logistic"), want) < 1e-6
    assert float(direction_of(up, down, "logistic") @ mu) > 0


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("reading", "random", "repe")])
def test_exchanging_the_sides_turns_the_vector_round(method):
    up, down, _ = spread(n=40)
    if method == "pca_centred":
        up, down = up + 5, down - 5
    assert np.allclose(direction_of(up, down, method), -direction_of(down, up, method), atol=1e-8)


def test_the_last_token_is_read_under_either_padding():
    model = shared("gpt2")
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in (6, 3, 5)]
    others = [token_ids(1, n, seed=n + 9)[0].tolist() for n in (4, 6, 2)]
    from actinium.core.inputs import pad

    def tokens(rows, side):
        ids, mask = pad(rows, 0, side)
        return Tokens(ids, mask, torch.arange(len(ids)))

    want = [
        torch.stack([model.record(torch.tensor([row]), SITES)["blocks.1.resid_post"][0, -1] for row in rows]).mean(0)
        for rows in (texts, others)
    ]
    for side in ("left", "right"):
        found = ac.steering.extract(model, tokens(texts, side), tokens(others, side), batch_size=2)
        assert torch.allclose(found["blocks.1.resid_post"], want[0] - want[1], atol=1e-5)
    assert found.made["model"] == model.fingerprint() and found.made["pairs"] == 3


def test_suffix_reads_the_tokens_that_the_pair_does_not_share():
    model = ac.load("world:lm")
    up = ["The film was wonderful, I loved it.", "Tell me about zorbing."]
    down = ["The film was awful, I hated it.", "Tell me about fishing."]
    masks = suffix_masks(model, up, down)
    for texts, mask in zip((up, down), masks, strict=True):
        tokens = model.to_tokens(texts)
        words = [model.to_str_tokens(tokens.ids[i][mask[i]]) for i in range(2)]
        assert words[0][0].strip() in ("wonderful", "awful") and words[1][0].strip() in ("zorbing", "fishing")
    found = ac.steering.extract(model, up, down, "blocks.2.resid_post", position="suffix")
    rec = [model.record(t, "blocks.2.resid_post")["blocks.2.resid_post"] for t in (up, down)]
    means = [torch.stack([r[i][m[i]].mean(0) for i in range(2)]).mean(0) for r, m in zip(rec, masks, strict=True)]
    assert torch.allclose(found["blocks.2.resid_post"], means[0] - means[1], atol=1e-5)


def test_activations_may_be_given():
    up, down, _ = spread()
    found = ac.steering.extract(None, {"x": up}, {"x": down}, "x", unit=True)
    assert found.norms["x"] == pytest.approx(1) and "model" not in found.made


def test_a_latents_decoder_row_is_a_vector():
    model = ac.load("world:lm")
    rows = model.record(ac.world.heldout_text("lm")[:20], "blocks.3.resid_post")
    rows = rows["blocks.3.resid_post"][rows.mask]
    sae = ac.features.TopKSAE(64, 4).fit(rows, rows=320, batch_size=64)
    found = ac.steering.from_latents(model, "blocks.3.resid_post", sae, [3, 5], [1.0, -2.0])
    want = sae.W_dec[3] - 2 * sae.W_dec[5]
    assert torch.allclose(found["blocks.3.resid_post"], want.detach(), atol=1e-6)
    with pytest.raises(InputError, match="out of range"):
        ac.steering.from_latents(model, "blocks.3.resid_post", sae, 64)
    with pytest.raises(InputError, match="weights"):
        ac.steering.from_latents(model, "blocks.3.resid_post", sae, [1, 2], [1.0])


def test_an_optimised_vector_makes_the_continuation_likely():
    model = ac.load("world:lm")
    asked = [f"<user> Tell me about {topic}.<assistant>" for topic in ("fishing", "cooking")]
    before = [p.requires_grad for p in model.module.parameters()]
    found = ac.steering.optimise(
        model, asked, [" Sorry"] * 2, [" Sure"] * 2, "blocks.2.resid_post", norm=8.0, steps=30, rate=0.3
    )
    assert [p.requires_grad for p in model.module.parameters()] == before
    assert found.norms["blocks.2.resid_post"] <= 8.0 + 1e-4

    def likely():
        ids = model.tokenizer(" Sorry", add_special_tokens=False)["input_ids"]
        return model.logits(asked)[:, -1].softmax(-1)[:, ids[0]]

    plain = likely()
    with ac.steering.steer(model, found):
        assert bool((likely() > 0.9).all()) and bool((plain < 0.1).all())


@pytest.mark.parametrize(
    ("positive", "negative", "options", "message"),
    [
        ([], [], {}, "no positive"),
        (["a"], [], {}, "no negative"),
        (["a", "b"], ["a"], {}, "pairs need one shape"),
        ("a", ["a"], {}, "list"),
        (["a"], None, {}, "negative ones"),
        (["a"], ["b"], {"method": "reading"}, "positive texts only"),
        (["the film"], ["the film"], {}, "do not differ"),
        (["a"], ["b"], {"method": "pca_pairwise"}, "two pairs"),
        (["a"], ["b"], {"position": 7}, "no position 7"),
        (["the film"], ["the film"], {"position": "suffix"}, "no tokens"),
        (["the film " * 100], ["the play " * 100], {}, "longer than the model's context"),
        (["a"], ["b"], {"position": "end"}, "position 'end'"),
    ],
)
def test_bad_pairs_are_refused(positive, negative, options, message):
    with pytest.raises(InputError, match=message):
        ac.steering.extract(ac.load("world:lm"), positive, negative, **options)


def test_unknown_methods_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="mean_difference"):
        ac.steering.extract(ac.load("world:lm"), ["a"], ["b"], method="mean_diff")
