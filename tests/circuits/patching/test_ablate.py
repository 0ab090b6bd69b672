"""Ablations against edited forward passes written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import Parallel, linear_task, random_task

import actinium as ac
import architectures
from actinium.circuits import ActivationNoise, Directional, GaussianNoise, Node, ablate, patch
from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


def difference(model, task):
    """Logit difference (row,) of the clean prompts, as the model stands."""
    inputs = Tokens(task.clean_ids, task.mask, torch.arange(len(task)))
    with torch.no_grad():
        logits = model.logits(inputs)[:, -1].double()
    rows = torch.arange(len(task))
    return logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]


def test_loss_of_a_zeroed_head_is_that_of_an_edited_pass(lm, ioi):
    found = ablate(lm, ioi, "blocks.3.attn.z", "head")["effect"].values[0]
    for head in (0, 5):
        with lm.edit({"blocks.3.attn.z": ac.edits.Zero().at(heads=head)}):
            without = difference(lm, ioi)
        assert found[head] == pytest.approx(float((difference(lm, ioi) - without).mean()), abs=1e-4)


def test_mean_is_over_clean_and_corrupt_prompts_together(lm, ioi):
    site = "blocks.2.mlp.out"
    rows = [
        lm.record(Tokens(ids, ioi.mask, torch.arange(8)), site)[site][ioi.mask]
        for ids in (ioi.clean_ids, ioi.corrupt_ids)
    ]
    mean = torch.cat(rows).double().mean(0).float()
    with lm.edit({site: ac.edits.Replace(mean)}):
        without = difference(lm, ioi)
    found = float(ablate(lm, ioi, site, method="mean")["effect"][0])
    assert found == pytest.approx(float((difference(lm, ioi) - without).mean()), abs=1e-4)


def test_resampling_without_reference_is_noising():
    model, task = architectures.build("llama"), random_task()
    model = model if isinstance(model, Model) else Model(model)
    found = ablate(model, task, "blocks.*.mlp.out", method="resample", normalise=True)
    noised = patch(model, task, "blocks.*.mlp.out", "layer", mode="noise")
    np.testing.assert_array_equal(found["effect"], noised["effect"])


def test_directional_ablation_leaves_no_component_and_keeps_the_rest(lm, ioi):
    site = "blocks.3.resid_post"
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    with lm.edit({site: ac.edits.ProjectOut(direction)}):
        rec = lm.record(ioi.clean, site)[site]
        without = difference(lm, ioi)
    assert float((rec @ direction).abs().max()) < 1e-4 * float(rec.abs().max() * direction.norm())
    found = ablate(lm, ioi, site, method=Directional(direction))
    assert float(found["effect"][0]) == pytest.approx(float((difference(lm, ioi) - without).mean()), abs=1e-4)
    by_site = ablate(lm, ioi, site, method=Directional({site: 3.0 * direction}))
    assert float(by_site["effect"][0]) == pytest.approx(float(found["effect"][0]), abs=1e-4)


def test_ablating_every_unit_by_its_own_direction_is_zeroing_it():
    model, task = Model(Parallel()), linear_task()
    zero = ablate(model, task, "module:parts.1", method="zero")["effect"].values
    span = ablate(model, task, "module:parts.1", method=Directional(torch.eye(20)))["effect"].values
    np.testing.assert_allclose(zero, span, atol=1e-5)


def test_noise_does_not_depend_on_the_batches_and_vanishes_with_its_size(lm, ioi):
    noise = ActivationNoise(k=1.0, sigma=0.5, draws=2)
    whole = ablate(lm, ioi, "blocks.1.mlp.out", method=noise, seed=3)
    parts = ablate(lm, ioi, "blocks.1.mlp.out", method=noise, seed=3, batch_size=3)
    np.testing.assert_allclose(whole["effect"], parts["effect"], atol=1e-4)
    other = ablate(lm, ioi, "blocks.1.mlp.out", method=noise, seed=4)
    assert abs(float(other["effect"][0]) - float(whole["effect"][0])) > 1e-4
    small = ablate(lm, ioi, "blocks.1.mlp.out", method=ActivationNoise(k=1e-5, draws=1))
    assert abs(float(small["effect"][0])) < 1e-2


def test_noise_has_the_standard_deviation_that_was_asked_for():
    own = torch.randn(2000, 1, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 3.0, 0.0])
    added = ActivationNoise(k=2.0).edit("site", own, None, (slice(0, 2000), 2000), 0).vector.flatten(0, 1)
    np.testing.assert_allclose(added.std(0), [0.2, 2.0, 6.0, 0.0], rtol=0.1)


def test_a_named_set_is_ablated_jointly(lm, ioi):
    nodes = [Node("blocks.2.attn.z", heads=[0, 1]), "blocks.4.mlp.out"]
    found = float(ablate(lm, ioi, {"both": nodes}, None)["effect"][0])
    with lm.edit([("blocks.2.attn.z", ac.edits.Zero().at(heads=[0, 1])), ("blocks.4.mlp.out", ac.edits.Zero())]):
        without = difference(lm, ioi)
    assert found == pytest.approx(float((difference(lm, ioi) - without).mean()), abs=1e-4)


def test_what_cannot_be_ablated_is_refused(lm, ioi):
    with pytest.raises(UnknownNameError, match="zero"):
        ablate(lm, ioi, method="zeros")
    with pytest.raises(InputError, match="ActivationNoise"):
        ablate(lm, ioi, method=GaussianNoise())
    with pytest.raises(InputError, match="above 0"):
        ActivationNoise(k=0)
    with pytest.raises(InputError, match="sigma"):
        ActivationNoise(sigma="own")
    with pytest.raises(InputError, match="draws"):
        ActivationNoise(draws=0)
    with pytest.raises(SiteError, match=r"blocks\.1"):
        ablate(lm, ioi, "blocks.2.mlp.out", method=Directional({"blocks.1.mlp.out": torch.ones(128)}))
    with pytest.raises(InputError, match="zero"):
        ablate(lm, ioi, "blocks.2.mlp.out", method=Directional(torch.zeros(128)))
    with pytest.raises(InputError):
        ablate(lm, ioi, "blocks.2.mlp.out", method=Directional(torch.ones(7)))
    with pytest.raises(InputError, match="restore"):
        patch(lm, ioi, "blocks.2.mlp.out", mode="denoise", ablation=ActivationNoise())
