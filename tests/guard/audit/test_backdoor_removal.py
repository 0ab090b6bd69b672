"""InverTune from end to end, its report, and the remedies and measures it is held against."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, LoadError, SiteError, UnknownNameError
from actinium.guard.audit.backdoors.backdoor_baselines import fine_prune, fine_tune
from actinium.guard.audit.backdoors.backdoor_metrics import attack_success, clean_accuracy, retrieval_at_1
from actinium.guard.audit.backdoors.backdoor_removal import InverTune
from actinium.guard.audit.backdoors.backdoor_report import BackdoorReport
from actinium.guard.audit.backdoors.suspect import dual_encoder, image_classifier
from actinium.guard.audit.backdoors.trigger_inversion import InversionWeights
from actinium.world import backdoors, contrastive, digits, shipped

PLANTED = backdoors.planted("digits-backdoor")
QUICK = {
    "weights": InversionWeights(1.0, 0.0, 0.0, 0.05),
    "mask_channels": 1,
    "inversion_epochs": 40,
    "inversion_rate": 0.05,
    "tune_epochs": 150,
    "tune_rate": 1e-3,
}


@pytest.fixture(scope="module")
def poisoned():
    return image_classifier(ac.load("world:digits-backdoor"), bounds=(0, 1))


@pytest.fixture(scope="module")
def validation():
    return digits.load("validation")


@pytest.fixture(scope="module")
def held():
    test = digits.load("test")
    return test.images, test.labels


@pytest.fixture(scope="module")
def method(poisoned, validation, held):
    made = InverTune(PLANTED.target, **QUICK)
    return made.fit(poisoned, validation.images[:150], held_out=held, stamp=PLANTED.stamp)


def test_given_the_class_the_backdoor_is_found_and_removed_with_unlabelled_images(method, poisoned, held):
    report = method.report_
    assert report.target == 7 and report.trigger.success > 0.95
    assert report.before["ASR"] > 0.9 and report.after["ASR"] < 0.5 * report.before["ASR"]
    assert report.after["CA"] > report.before["CA"] - 0.05
    assert report.after["ASR, found trigger"] < report.before["ASR, found trigger"]
    for when, suspect in (("before", poisoned), ("after", method.suspect_)):
        measured = getattr(report, when)
        assert measured["CA"] == clean_accuracy(suspect, *held)
        assert measured["ASR"] == attack_success(suspect, *held, PLANTED.stamp, 7)
    assert set(report.impacts) == set(poisoned.sites) and list(report.candidates) == [7]
    assert InverTune(PLANTED.target, **QUICK).get_params() == method.get_params()


def test_the_report_tabulates_draws_and_is_read_back(method, tmp_path):
    report = method.report_
    table = report.table()
    assert list(table["measure"]) == ["CA", "ASR, found trigger", "ASR"]
    assert (table["change"] == table["after"] - table["before"]).all()
    scores = report.scores()
    assert (
        len(scores) == 10 and scores["mask, pixels"].notna().sum() == 1 and list(scores["name"]) == list("0123456789")
    )
    result = report.result()
    assert result["impact"].sizes == {"site": 3} and result.plot() is not None
    again = BackdoorReport.load(report.save(tmp_path / "report.safetensors"))
    assert again.table().equals(table) and again.scores().equals(scores)
    assert torch.equal(again.trigger.mask, report.trigger.mask) and again.provenance == report.provenance
    assert all(torch.equal(again.neurons[site], mask) for site, mask in report.neurons.items())
    (tmp_path / "report.safetensors").write_bytes(b"no")
    with pytest.raises(LoadError, match="backdoor report"):
        BackdoorReport.load(tmp_path / "report.safetensors")


def test_without_a_class_the_smallest_mask_among_the_candidates_is_taken(poisoned, validation):
    made = InverTune(candidates=4, **{**QUICK, "tune_epochs": 1})
    report = made.fit(poisoned, validation.images[:120], validation.labels[:120]).report_
    assert len(report.candidates) == 4 and len(report.clean) == 10
    increase = (report.patched - report.clean).tolist()
    assert min(increase[k] for k in report.candidates) >= sorted(increase)[-4]
    working = {k: size for k, (size, success) in report.candidates.items() if success >= 0.95}
    assert report.target == min(working, key=working.get)
    assert report.scores()["increase %"].sum() == pytest.approx(0, abs=1e-9)


def test_a_trigger_that_does_not_work_is_said(poisoned, validation):
    with pytest.warns(ActiniumWarning, match="no trigger takes 95%"):
        InverTune(3, **{**QUICK, "inversion_epochs": 1, "tune_epochs": 1, "weights": InversionWeights(1, 0, 0, 1)}).fit(
            poisoned, validation.images[:60]
        )


def test_it_reads_a_pair_of_encoders_and_their_text_bank():
    model, held = ac.load("world:shapes-clip-backdoor"), shipped.heldout_images("shapes-clip-backdoor", 80)
    planted = backdoors.planted("shapes-clip-backdoor")
    suspect = dual_encoder(model, contrastive.text_bank(model.module), bounds=(0, 1), classes=held.classes)
    assert suspect.sites == [f"vision.blocks.{i}.resid_post" for i in range(4)]
    assert torch.equal(suspect.predict(held.images), contrastive.zero_shot(model.module, held.images))
    made = InverTune(planted.target, inversion_epochs=3, inversion_rate=0.1, tune_epochs=3, tune_rate=1e-4, enough=0.01)
    report = made.fit(suspect, held.images, held.labels, stamp=planted.stamp).report_
    assert report.before["ASR"] > 0.9 and report.trigger.mask.shape == (3, 32, 32)
    assert len(report.neurons) == 3 and report.classes == held.classes
    assert all(mask.shape == (17, 72) for mask in report.neurons.values())


def test_accuracy_and_success_are_shares(poisoned):
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 7, 3])
    found = poisoned.predict(images)
    assert clean_accuracy(poisoned, images, labels) == float((found == labels).double().mean())
    rows = labels != 7
    assert attack_success(poisoned, images, labels, lambda x: x, 7) == float((found[rows] == 7).double().mean())
    with pytest.raises(InputError, match="none to be mistaken"):
        attack_success(poisoned, images, torch.full((4,), 7), lambda x: x, 7)
    with pytest.raises(InputError, match="made 1 images of 3"):
        attack_success(poisoned, images, labels, lambda x: x[:1], 7)
    with pytest.raises(InputError, match="one integer"):
        clean_accuracy(poisoned, images, labels.float())


def test_retrieval_counts_first_places_and_equal_texts_as_one():
    images = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 1.0]])
    texts = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 1.0]])
    # Image 3 finds the text of image 0 or 2; text 3 finds image 2.
    assert retrieval_at_1(images, texts) == (0.75, 0.75)
    for wrong in ((images, texts[:2]), (images * 0, texts), (images[:0], texts[:0])):
        with pytest.raises(InputError):
            retrieval_at_1(*wrong)


def test_fine_tuning_lowers_the_loss_on_its_images_in_a_copy(poisoned, validation):
    images, labels = validation.images[:100], validation.labels[:100]
    before = [p.clone() for p in poisoned.module.parameters()]
    tuned = fine_tune(poisoned, images, labels, epochs=3)
    losses = [float(nn.functional.cross_entropy(s.read(images)[1].detach(), labels)) for s in (poisoned, tuned)]
    assert losses[1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, poisoned.module.parameters(), strict=True))
    first = fine_tune(poisoned, images[:10], labels[:10], epochs=1, rate=1e-2, weight_decay=0.0)
    slope = torch.autograd.grad(
        nn.functional.cross_entropy(poisoned.read(images[:10])[1], labels[:10]), list(poisoned.module.parameters())
    )
    for a, b, g in zip(before, first.module.parameters(), slope, strict=True):
        # A first step of Adam has the length of the rate wherever there is a gradient.
        torch.testing.assert_close(b, a - 1e-2 * g / (g.abs() + 1e-8), atol=1e-5, rtol=1e-4)


def test_pruning_silences_units_from_the_least_used_on_as_long_as_accuracy_lasts(poisoned, validation):
    images, labels = validation.images[:150], validation.labels[:150]
    pruned = fine_prune(poisoned, images, labels, "stage3.1", loss=0.1)
    maps = poisoned.model.record(images, "module:stage3")["module:stage3"]
    assert torch.equal(pruned.order, torch.argsort(maps.double().mean((0, 2, 3)), stable=True))
    layer = pruned.suspect.module.stage3[1]
    silent = [i for i in range(32) if not layer.weight[i].any() and not layer.bias[i].any()]
    assert sorted(silent) == sorted(pruned.order[: pruned.pruned].tolist()) and 0 < pruned.pruned < 31
    start = clean_accuracy(poisoned, images, labels)
    assert pruned.accuracy[0] == start and pruned.accuracy[pruned.pruned] >= start - 0.1
    assert pruned.accuracy[pruned.pruned + 1] < start - 0.1
    assert clean_accuracy(pruned.suspect, images, labels) == pruned.accuracy[pruned.pruned]
    assert torch.equal(
        fine_prune(poisoned, images, labels, "stage3.1", site="module:stage3", loss=0.1).order, pruned.order
    )
    trained = fine_prune(poisoned, images, labels, "stage3.1", loss=0.1, epochs=1)
    assert clean_accuracy(trained.suspect, images, labels) > float(trained.accuracy[trained.pruned]) - 0.02


def test_tokens_of_a_transformer_have_their_units_last(validation):
    suspect = image_classifier(ac.load("world:digits-vit"), bounds=(0, 1))
    images, labels = validation.images[:60], validation.labels[:60]
    pruned = fine_prune(suspect, images, labels, "vit.layers.2.mlp.fc1", site="blocks.2.mlp.post", loss=0.05)
    post = suspect.model.record(images, "blocks.2.mlp.post")["blocks.2.mlp.post"]
    assert torch.equal(pruned.order, torch.argsort(post.double().mean((0, 1)), stable=True))


def test_senseless_settings_are_refused(poisoned, validation):
    images, labels = validation.images[:10], validation.labels[:10]
    with pytest.raises(InputError, match="candidates"):
        InverTune(candidates=0).fit(poisoned, images)
    with pytest.raises(InputError, match="0 to 9"):
        InverTune(10).fit(poisoned, images)
    with pytest.raises(UnknownNameError):
        InverTune().set_params(epochs=3)
    with pytest.raises(InputError, match="not fitted"):
        InverTune().check_fitted()
    with pytest.raises(SiteError, match=r"stage3\.1"):
        fine_prune(poisoned, images, labels, "stage3.2")
    with pytest.raises(InputError, match="32"):
        fine_prune(poisoned, images, labels, "stage3.1", site="module:stage2")
    with pytest.raises(InputError, match="positive"):
        fine_tune(poisoned, images, labels, epochs=0)
