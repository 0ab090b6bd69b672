"""A sweep says what can be read where, and how much of that a probe memorised or could not but get."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, SiteError
from actinium.core.loading import load
from actinium.core.model import Model
from actinium.probes import LinearProbe, MLPProbe, probe_sweep
from actinium.probes.positions import activations_at, as_places, pick
from actinium.world.tasks import sentiment


@pytest.fixture(scope="module")
def lm():
    return load("world:lm")


@pytest.fixture(scope="module")
def feelings(lm):
    """Texts that call something good or bad, without their last word, and which it was."""
    task = sentiment(lm, n=80)
    return task, [answer in (" happy",) for answer in task.answers]


def test_sentiment_is_read_at_the_end_and_not_at_the_beginning(lm, feelings, tmp_path):
    task, labels = feelings
    found = probe_sweep(lm, "blocks.{0,5}.resid_post", labels, inputs=task.prompts(), positions=[1, -1], folds=4)
    assert found["accuracy"].dims == ("site", "position")
    assert list(found["position"].values) == ["1", "-1"]
    last = found.data.sel(position="-1", site="blocks.5.resid_post")
    assert float(last["accuracy"]) == 1.0
    assert float(last["auroc"]) == 1.0
    assert float(last["accuracy_low"]) > 0.9
    first = found.data.sel(position="1")
    assert (first["accuracy"] < 0.75).all()
    assert (found["accuracy_low"] <= found["accuracy"]).all()
    assert (found["auroc_low"] <= found["auroc"] + 1e-9).all()
    assert float(found["shuffled"].max()) < 0.75
    assert float(found["majority"]) == max(np.mean(labels), 1 - np.mean(labels))
    found.save(tmp_path / "sweep")
    assert type(found).load(tmp_path / "sweep") == found
    assert found.plot() is not None


def test_model_recording_and_arrays_give_the_same(lm, feelings):
    task, labels = feelings
    site = "blocks.2.resid_post"
    rec = lm.record(task.prompts(), site)
    ours = probe_sweep(lm, site, labels, inputs=task.prompts(), folds=3, batch_size=7)
    recorded = probe_sweep(rec, site, labels, folds=3)
    plain = probe_sweep({site: rec[site][:, -1]}, site, labels, folds=3)
    for what in ("accuracy", "auroc", "shuffled"):
        assert float(ours[what].squeeze()) == pytest.approx(float(recorded[what].squeeze()))
        assert float(plain[what].squeeze()) == pytest.approx(float(recorded[what].squeeze()))


def test_a_store_keeps_its_documents_apart(lm, feelings, tmp_path):
    from actinium.store import create

    task, _ = feelings
    store = create(tmp_path / "store", lm, task.clean[:40], at="blocks.1.resid_post")
    tokens = store.column("token")
    felt = lm.tokenizer(" I", add_special_tokens=False)["input_ids"][-1]
    assert (tokens == felt).any()
    found = probe_sweep(store, "blocks.1.resid_post", tokens == felt, folds=3)
    assert float(found["accuracy"].squeeze()) > 0.99
    assert list(found["position"].values) == ["row"]


def test_groups_that_share_their_label_are_not_remembered():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    labels = (np.arange(40) % 2)[groups]
    x = random.normal(size=(40, 30))[groups] + 0.1 * random.normal(size=(240, 30))
    apart = probe_sweep({"x": x}, "x", labels, groups=groups, folds=4)
    mixed = probe_sweep({"x": x}, "x", labels, folds=4)
    assert float(mixed["accuracy"].squeeze()) > 0.95
    assert float(apart["accuracy"].squeeze()) < 0.75
    # Intervals know that 240 rows are 40 groups.
    width = [float((r["accuracy_high"] - r["accuracy_low"]).squeeze()) for r in (apart, mixed)]
    assert width[0] > 0.2 > width[1]


def test_a_control_task_shows_what_a_large_probe_memorises():
    random = np.random.default_rng(0)
    types = random.integers(0, 30, size=900)
    identity = random.normal(size=(30, 12))
    labels = np.arange(30) % 2
    identity[:, 0] = 4 * labels - 2.0
    x = identity[types] + 0.05 * random.normal(size=(900, 12))
    common = {"groups": None, "types": types, "folds": 3}
    linear = probe_sweep({"x": x}, "x", labels[types], **common)
    large = probe_sweep({"x": x}, "x", labels[types], probe=MLPProbe((64,), epochs=15, lr=1e-2), **common)
    for found in (linear, large):
        assert float(found["accuracy"].squeeze()) > 0.99
        assert float(found["selectivity"].squeeze()) == pytest.approx(
            float((found["accuracy"] - found["control"]).squeeze())
        )
        assert float(found["selectivity_low"].squeeze()) <= float(found["selectivity"].squeeze())
    assert float(large["control"].squeeze()) > 0.97
    assert float(linear["control"].squeeze()) < 0.85


def test_several_classes_have_areas_one_against_the_rest():
    random = np.random.default_rng(0)
    y = np.arange(150) % 3
    x = random.normal(size=(150, 4)) + 2 * np.eye(4)[y]
    found = probe_sweep({"x": x}, "x", y, folds=3, control=False)
    assert 0.85 < float(found["auroc"].squeeze()) < 1
    assert "shuffled" not in found.data
    noise = probe_sweep({"x": random.normal(size=(150, 4))}, "x", y, folds=3)
    assert float(noise["accuracy_low"].squeeze()) < 1 / 3 < float(noise["accuracy_high"].squeeze())


def test_positions_count_tokens_whatever_the_padding():
    values = torch.arange(2 * 4 * 3).reshape(2, 4, 3).float()
    left = torch.tensor([[False, False, True, True], [True, True, True, True]])
    assert torch.equal(pick(values, left, 0), torch.stack([values[0, 2], values[1, 0]]))
    right = torch.tensor([[True, True, False, False], [True, True, True, True]])
    assert torch.equal(pick(values, right, -1), torch.stack([values[0, 1], values[1, 3]]))
    assert torch.equal(pick(values, right, torch.tensor([0, 2])), torch.stack([values[0, 0], values[1, 2]]))
    assert torch.allclose(pick(values, right, "mean"), torch.stack([values[0, :2].mean(0), values[1].mean(0)]))
    with pytest.raises(InputError, match="text 0 has 2 tokens, and no position 2"):
        pick(values, right, 2)
    with pytest.raises(InputError, match="no positions"):
        pick(values[:, 0], None, 0)
    for wrong in (1.5, "last", [], True, torch.ones(2)):
        with pytest.raises(InputError, match="position"):
            as_places(wrong)


def test_an_image_model_is_read_whole():
    model = Model(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval())
    found = activations_at(model, torch.randn(5, 1, 6, 6), "module:0", as_places(-1))
    assert found["module:0", "-1"].shape == (5, 2 * 4 * 4)


def test_sweeps_that_cannot_be_run_are_refused(lm, feelings):
    task, labels = feelings
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    for source, options, message in (
        (lm, {}, "needs inputs="),
        ({"x": x}, {"inputs": ["text"]}, "inputs belong to a model"),
        ({"x": x}, {"types": np.zeros(20)}, "too few for a control task"),
        ({"x": x}, {"types": np.zeros(20), "control": False}, "control=False"),
        ({"x": x}, {"probe": LinearProbe("ridge_regression")}, "measures classes"),
        ({"y": x}, {}, "no activations named 'x'"),
        ([1, 2], {}, "expected a model"),
    ):
        with pytest.raises(InputError, match=message):
            probe_sweep(source, "x", y, **options)
    with pytest.raises(SiteError):
        probe_sweep(lm, "blocks.9.resid_post", labels, inputs=task.prompts())
    with pytest.raises(InputError, match="one for each of 80"):
        probe_sweep(lm, "blocks.1.resid_post", labels[:5], inputs=task.prompts())


def test_a_trained_story_writer_knows_the_sentiment_of_reviews(outside_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = outside_data / "stories260K"
    model = Model(AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path))
    lines = (outside_data / "sst2_train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if 40 < len(line) < 160][:1000]
    labels = np.array([int(label) for label, _ in rows])
    found = probe_sweep(
        model, "blocks.1.resid_post", labels, inputs=[text for _, text in rows], positions="mean",
        probe=LinearProbe(C=0.01), folds=3,
    )  # fmt: skip
    # A model of 260 thousand weights that never saw a review: little, but more than chance.
    assert float(found["accuracy_low"].squeeze()) > float(found["majority"])
    assert float(found["auroc_low"].squeeze()) > 0.55
    assert float(found["shuffled"].squeeze()) < float(found["accuracy_low"].squeeze())
