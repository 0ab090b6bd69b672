"""Reading vectors are the means, differences and components they say, and can be added to a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.loading import load
from actinium.probes import (
    ContrastReadingVector,
    PCAContrastVector,
    PCAReadingVector,
    ReadingVector,
    RepEReader,
    pair_accuracy,
)
from actinium.world.tasks import sentiment

SITES = "blocks.{1,4}.resid_post"


@pytest.fixture(scope="module")
def lm():
    return load("world:lm")


@pytest.fixture(scope="module")
def pairs(lm):
    """Texts with the right last word and with the wrong one: to learn from, and others."""
    tasks = [sentiment(lm, n=24, split=s) for s in ("train", "heldout")]
    return [
        [[t + end for t, end in zip(task.clean, ends, strict=True)] for ends in (task.answers, task.wrong)]
        for task in tasks
    ]


def given(n=60, d=12, seed=0):
    """Pairs that differ along one direction by an amount of its own in each pair."""
    random = np.random.default_rng(seed)
    unit = np.zeros(d)
    unit[2] = 1.0
    base = random.normal(size=(n, d)) + 5
    amount = 3 + random.normal(size=(n, 1))
    up = base + amount * unit + 0.2 * random.normal(size=(n, d))
    return {"x": up}, {"x": base}, unit


def test_contrast_is_the_difference_of_readings(lm, pairs):
    up, down = pairs[0]
    readings = [ReadingVector(SITES).fit(lm, texts) for texts in (up, down)]
    contrast = ContrastReadingVector(SITES).fit(lm, up, down)
    for site in ("blocks.1.resid_post", "blocks.4.resid_post"):
        assert torch.allclose(contrast[site], readings[0][site] - readings[1][site], atol=1e-5)
    site = "blocks.1.resid_post"
    by_hand = torch.stack([lm.record(t, site)[site][0, -1] for t in up]).double().mean(0)
    assert torch.allclose(readings[0][site], by_hand, atol=1e-4)
    general = ReadingVector(SITES).fit(lm, up, general=down)
    assert torch.allclose(general[site], contrast[site], atol=1e-5)


def test_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA, TruncatedSVD

    up, down, unit = given()
    difference = up["x"] - down["x"]
    centred = PCAContrastVector("x").fit(None, up, down)["x"].numpy()
    assert abs(centred @ PCA(1).fit(difference).components_[0]) == pytest.approx(1)
    whole = PCAContrastVector("x", centred=False).fit(None, up, down)["x"].numpy()
    peer = TruncatedSVD(1, algorithm="arpack", random_state=0).fit(difference).components_[0]
    assert abs(whole @ peer) == pytest.approx(1)
    assert whole @ unit > 0.99
    for vector in (centred, whole):
        assert np.linalg.norm(vector) == pytest.approx(1)
        assert difference.mean(0) @ vector > 0
    scaled = PCAContrastVector("x", standardise=True).fit(None, up, down)["x"].numpy()
    assert scaled == pytest.approx(centred * np.linalg.norm(difference.mean(0)))
    reading = PCAReadingVector("x").fit(None, up)["x"].numpy()
    assert abs(reading @ PCA(1).fit(up["x"]).components_[0]) == pytest.approx(1)


def test_without_its_mean_a_fixed_order_loses_the_contrast():
    random = np.random.default_rng(0)
    base = random.normal(size=(80, 10))
    up = {"x": base + 4 * np.eye(10)[0] + 0.5 * random.normal(size=(80, 10)) * np.where(np.arange(10) == 7, 6, 1)}
    centred = PCAContrastVector("x").fit(None, up, {"x": base})["x"]
    whole = PCAContrastVector("x", centred=False).fit(None, up, {"x": base})["x"]
    assert abs(float(centred[0])) < 0.3
    assert float(whole[0]) > 0.7
    shuffled = RepEReader("x").fit(None, up, {"x": base})["x"]
    assert float(shuffled[0]) > 0.7


@pytest.mark.parametrize("method", ["pca", "cluster_mean", "random"])
def test_a_reader_turns_its_direction_by_the_pairs(method):
    up, down, unit = given()
    reader = RepEReader("x", method=method).fit(None, up, down)
    other = RepEReader("x", method=method).fit(None, down, up)
    assert torch.allclose(reader["x"], -other["x"])
    assert float(reader["x"].norm()) == pytest.approx(1)
    found = pair_accuracy(reader, None, *given(seed=1)[:2])
    if method == "random":
        assert float(found["accuracy"].squeeze()) >= 0.5
    else:
        assert float(reader["x"] @ torch.from_numpy(unit)) > 0.99
        assert float(found["accuracy"].squeeze()) == 1.0
    seeds = [RepEReader("x", method="random", seed=s).fit(None, up, down)["x"] for s in (3, 3, 4)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.allclose(seeds[0], seeds[2])


def test_scores_lie_along_the_vector_from_the_mean_of_all_texts():
    up, down, _ = given()
    vector = ContrastReadingVector("x").fit(None, up, down)
    rows = np.concatenate([up["x"], down["x"]])
    r = vector["x"].numpy()
    assert vector.score_samples(rows, "x") == pytest.approx((rows - rows.mean(0)) @ r / np.linalg.norm(r))
    assert vector.score_samples(rows, "x").mean() == pytest.approx(0, abs=1e-12)


def test_pairs_are_told_apart_on_unseen_texts_and_several_vectors_are_compared(lm, pairs):
    vectors = {
        "contrast": ContrastReadingVector(SITES).fit(lm, *pairs[0]),
        "random": RepEReader(SITES, method="random").fit(lm, *pairs[0]),
    }
    found = pair_accuracy(vectors, lm, *pairs[1])
    assert found["accuracy"].dims == ("site", "vector")
    accuracy = found["accuracy"].sel(site="blocks.4.resid_post", vector="contrast")
    gaps = []
    for texts in pairs[1]:
        acts = torch.stack([lm.record(t, "blocks.4.resid_post")["blocks.4.resid_post"][0, -1] for t in texts])
        gaps.append(vectors["contrast"].score_samples(acts, "blocks.4.resid_post"))
    assert float(accuracy) == pytest.approx(np.mean(gaps[0] > gaps[1]))
    assert (found["low"] <= found["accuracy"]).all()
    assert (found["high"] >= found["accuracy"]).all()
    one = pair_accuracy(vectors["contrast"], lm, *pairs[1])
    assert one["accuracy"].dims == ("site",)
    assert one.plot() is not None


def test_vectors_are_added_by_edits(lm, pairs):
    site = "blocks.1.resid_post"
    vector = ContrastReadingVector(SITES).fit(lm, *pairs[0])
    text = "The film was"
    clean = lm.record(text, site)[site]
    with lm.edit(vector.edits(0.5, site)):
        moved = lm.record(text, site)[site]
    assert torch.allclose(moved - clean, 0.5 * vector[site].float(), atol=1e-4)
    assert list(vector.edits()) == ["blocks.1.resid_post", "blocks.4.resid_post"]
    with torch.no_grad():
        base = lm.logits(text)
        with lm.edit(vector.edits(0.0)):
            assert torch.allclose(lm.logits(text), base)


def test_a_recording_does_as_well_as_its_texts(lm, pairs):
    up, down = pairs[0]
    recs = [lm.record(texts, SITES) for texts in (up, down)]
    live = ContrastReadingVector(SITES).fit(lm, up, down, batch_size=5)
    kept = ContrastReadingVector(SITES).fit(None, *recs)
    assert torch.allclose(live["blocks.4.resid_post"], kept["blocks.4.resid_post"], atol=1e-4)


@pytest.mark.parametrize("cls", [ContrastReadingVector, PCAContrastVector, RepEReader, ReadingVector, PCAReadingVector])
def test_vectors_come_back_from_disk(cls, tmp_path):
    up, down, _ = given()
    vector = cls("x").fit(None, up, down) if cls.pairs else cls("x").fit(None, up)
    vector.save(tmp_path / "vector")
    again = cls.load(tmp_path / "vector")
    assert torch.equal(again["x"], vector["x"])
    assert again.score_samples(up["x"], "x") == pytest.approx(vector.score_samples(up["x"], "x"))
    assert again.get_params() == vector.get_params()
    other = ReadingVector if cls is not ReadingVector else RepEReader
    with pytest.raises(LoadError):
        other.load(tmp_path / "vector")


def test_what_cannot_be_read_is_refused(lm, pairs):
    up, down, _ = given()
    for fit, message in (
        (lambda: ContrastReadingVector("x").fit(None, up), "give negative ones"),
        (lambda: ReadingVector("x").fit(None, up, down), "reads one kind"),
        (lambda: ContrastReadingVector("x").fit(None, up, {"x": down["x"][:5]}), "pairs need one shape"),
        (lambda: ContrastReadingVector("x").fit(None, up, up), "the vector is zero"),
        (lambda: PCAContrastVector("x").fit(None, {"x": up["x"][:1]}, {"x": down["x"][:1]}), "need two"),
        (lambda: PCAContrastVector("x").fit(None, up, {"x": up["x"] - 1}), "alike"),
        (lambda: ContrastReadingVector("x").fit(None, [1], [2]), "give activations"),
        (lambda: ContrastReadingVector("x", "last").fit(None, up, down), "position"),
        (lambda: ContrastReadingVector(SITES).fit(lm, [], []), "no texts"),
        (lambda: ContrastReadingVector("x")["x"], "call fit"),
        (lambda: pair_accuracy({}, None, up, down), "no vectors"),
    ):
        with pytest.raises(InputError, match=message):
            fit()
    with pytest.raises(UnknownNameError, match="cluster_mean"):
        RepEReader("x", method="cluster").fit(None, up, down)
    fitted = ContrastReadingVector("x").fit(None, up, down)
    with pytest.raises(UnknownNameError, match="vector for the site"):
        fitted["y"]
    with pytest.raises(InputError, match="expected 12"):
        fitted.score_samples(up["x"][:, :3], "x")
    with pytest.raises(SiteError):
        ContrastReadingVector("blocks.9.resid_post").fit(lm, *pairs[0])
    centred = PCAContrastVector("x").fit(None, up, down)
    moved = {"a": fitted, "b": PCAContrastVector("x", position=0).fit(None, up, down), "c": centred}
    with pytest.raises(InputError, match="same sites and position"):
        pair_accuracy(moved, None, up, down)
