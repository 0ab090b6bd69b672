"""Strengths are found at which a direction changes the prediction by the divergence that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

import actinium as ac
import architectures
from actinium.core.errors import InputError, SiteError
from actinium.features.kl_steering import steer_to_kl, steered_logits

SITE = "blocks.3.mlp.post"
PROMPTS = ["The city of Ann", "I think that the"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def divergence(model, prompts, site, vector, positions=None):
    """KL(plain || steered) of the next token, prompt by prompt, with one edit of the model."""
    found = []
    for prompt in prompts:
        edit = ac.edits.Add(vector)
        with torch.no_grad():
            plain = model.logits(prompt)[0, -1].double().log_softmax(-1)
            with model.edit({site: edit if positions is None else edit.at(positions=positions)}):
                new = model.logits(prompt)[0, -1].double().log_softmax(-1)
        found.append(float(kl_div(new, plain, log_target=True, reduction="sum")))
    return np.mean(found)


@pytest.mark.parametrize(("site", "width", "positions"), [(SITE, 352, None), ("blocks.2.resid_post", 128, -1)])
def test_the_strength_gives_the_divergence_that_was_asked_for(lm, site, width, positions):
    directions = drawn(3, width)
    found = steer_to_kl(lm, directions, site, PROMPTS, (0.05, 0.25), tolerance=1e-3, positions=positions)
    assert found["strength"].dims == ("direction", "sign", "target")
    assert found["strength"].shape == (3, 2, 2)
    assert bool(found["reached"].all())
    assert np.abs(found["kl"] - found["target"]).max() <= 1e-3
    assert (found["strength"].sel(sign=1) > 0).all()
    assert (found["strength"].sel(sign=-1) < 0).all()
    for sign in (1, -1):
        for target in (0.05, 0.25):
            one = found.data.sel(direction=1, sign=sign, target=target)
            vector = directions[1] / directions[1].norm() * float(one["strength"])
            got = divergence(lm, PROMPTS, site, vector, positions)
            assert got == pytest.approx(float(one["kl"]), abs=1e-4)


def test_many_directions_in_one_pass_have_the_logits_of_each_alone(lm):
    directions, strengths = drawn(5, 352), torch.tensor([0.0, 3, -3, 10, 40])
    found = steered_logits(lm, directions, SITE, PROMPTS, strengths, batch_size=4)
    assert found.shape == (5, 2, lm.config.vocab_size)
    for i, strength in enumerate(strengths):
        for j, prompt in enumerate(PROMPTS):
            vector = directions[i] / directions[i].norm() * strength
            with torch.no_grad(), lm.edit({SITE: ac.edits.Add(vector)}):
                want = lm.logits(prompt)[0, -1]
            assert torch.allclose(found[i, j], want, atol=1e-3)


def test_lengths_of_directions_do_not_count(lm):
    one = steer_to_kl(lm, drawn(1, 352), SITE, PROMPTS)
    other = steer_to_kl(lm, 100 * drawn(352), SITE, PROMPTS)
    assert one["strength"].values == pytest.approx(other["strength"].values)


def test_a_target_out_of_reach_is_flagged_with_what_came_nearest(lm):
    found = steer_to_kl(lm, drawn(2, 352), SITE, PROMPTS, (0.05, 1e3), signs=[1])
    assert found["reached"].sel(target=0.05).all()
    assert not found["reached"].sel(target=1e3).any()
    # The largest divergence of the strengths that were tried.
    assert (found["kl"].sel(target=1e3) > 1).all()
    weak = steer_to_kl(lm, drawn(1, 352), SITE, PROMPTS, 0.25, bounds=(0, 2), signs=[1])
    assert not bool(weak["reached"].any())
    assert float(weak["strength"][0, 0, 0]) == 2
    strong = steer_to_kl(lm, drawn(1, 352), SITE, PROMPTS, 0.01, bounds=(500, 2000), signs=[1])
    assert not bool(strong["reached"].any())
    assert float(strong["kl"][0, 0, 0]) > 0.02
    assert float(strong["strength"][0, 0, 0]) >= 500


def test_a_direction_that_the_model_does_not_read_never_reaches_a_divergence():
    """Without a final norm's help: a direction in the null space of the down projection changes nothing."""
    model = architectures.shared("gpt2")
    weight = model.module.transformer.h[1].mlp.c_proj.weight.detach()
    null = torch.linalg.svd(weight.T.double())[2][-1]
    assert float((null @ weight.double()).norm()) < 1e-6
    found = steer_to_kl(model, null, "blocks.1.mlp.post", torch.tensor([[5, 6, 7]]), 0.25)
    assert not bool(found["reached"].any())
    assert float(found["kl"].max()) < 0.01


def test_the_smallest_of_several_strengths_is_found_where_divergence_does_not_grow(lm):
    """Between the strength found and the plain run no tried strength reaches the target."""
    directions = drawn(4, 352, seed=3)
    found = steer_to_kl(lm, directions, SITE, PROMPTS[:1], 0.3, signs=[1], tolerance=1e-3)
    for i, strength in enumerate(found["strength"].values[:, 0, 0]):
        below = torch.linspace(0, 0.98 * float(strength), 12)
        logits = steered_logits(lm, directions[i].expand(12, -1), SITE, PROMPTS[:1], below)[:, 0]
        plain = logits[0].double().log_softmax(-1)
        kls = [float(kl_div(row.double().log_softmax(-1), plain, log_target=True, reduction="sum")) for row in logits]
        assert max(kls) < 0.3


def test_other_models_are_steered(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    found = steer_to_kl(model, drawn(3, 172), "blocks.2.mlp.post", ["Once upon a time, there was a", "The dog"], 0.15)
    assert bool(found["reached"].all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": 0.0}, "divergences above 0"),
        ({"targets": ()}, "divergences above 0"),
        ({"bounds": (3, 2)}, "0 <= low < high"),
        ({"bounds": (-1, 2)}, "0 <= low < high"),
        ({"signs": (1, 2)}, "signs are 1, -1"),
        ({"signs": ()}, "signs are 1, -1"),
        ({"tolerance": 0.0}, "tolerance > 0"),
        ({"steps": -1}, "steps >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        steer_to_kl(architectures.shared("llama"), drawn(48), "blocks.1.mlp.post", torch.tensor([[5, 6]]), **options)


def test_directions_that_do_not_fit_are_refused():
    model, ids = architectures.shared("llama"), torch.tensor([[5, 6]])
    for directions, site, message in (
        (drawn(47), "blocks.1.mlp.post", "47 entries, expected 48"),
        (torch.zeros(48), "blocks.1.mlp.post", "must not be zero"),
        (drawn(48) * torch.nan, "blocks.1.mlp.post", "NaN"),
        (drawn(48), "blocks.*.mlp.post", "means 3 sites"),
        (drawn(6), "blocks.1.attn.z", "batch, pos and one more"),
    ):
        with pytest.raises(InputError, match=message):
            steer_to_kl(model, directions, site, ids)
    with pytest.raises(SiteError, match=r"mlp\.post"):
        steer_to_kl(model, drawn(48), "blocks.1.mlp.pots", ids)
    with pytest.raises(InputError, match="a finite strength for each of 2"):
        steered_logits(model, drawn(2, 48), "blocks.1.mlp.post", ids, [1.0])
