"""The logit lens ends at the model's own prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium import measure
from actinium.core.errors import InputError


def test_comparison_equals_torchs_kl_divergence_and_ranks():
    torch.manual_seed(0)
    lens, final = torch.randn(6, 11), torch.randn(6, 11)
    target = torch.tensor([3, 0, -1, 10, 5, 5])
    got = measure.compare_logits(lens, final, target)
    p = final.softmax(-1)
    expected = torch.nn.functional.kl_div(lens.log_softmax(-1), p, reduction="none").sum(-1)
    torch.testing.assert_close(got["kl"], expected)
    q = lens.softmax(-1)
    torch.testing.assert_close(got["target_probability"][0], q[0, 3])
    assert got["target_rank"][1] == (q[1] > q[1, 0]).sum()
    assert got["target_rank"][2].isnan() and got["target_probability"][2].isnan()
    torch.testing.assert_close(got["entropy"], -(q * q.log()).sum(-1))


def test_excluded_tokens_add_nothing_to_the_divergence():
    final = torch.tensor([[0.0, 1.0, -torch.inf]])
    got = measure.compare_logits(final, final)
    assert got["kl"].tolist() == pytest.approx([0])


def test_the_last_layer_is_the_model_itself(language_model, ragged):
    got = measure.logit_lens(language_model, ragged, batch_size=2)
    last = got.data.isel(layer=-1)
    assert float(last["kl"]) == pytest.approx(0, abs=1e-5)
    assert float(last["agreement"]) == 1
    logits = language_model.logits(ragged).detach()
    real = ragged.mask[:, 1:] & ragged.mask[:, :-1]
    p = logits[:, :-1].softmax(-1).gather(-1, ragged.ids[:, 1:, None])[..., 0][real]
    assert float(last["target_probability"]) == pytest.approx(p.mean().item(), rel=1e-4)
    assert (got["kl"].values[:-1] > 1e-3).all()


def test_an_earlier_layer_equals_unembedding_its_stream(language_model, ragged):
    got = measure.logit_lens(language_model, ragged, at="blocks.0.resid_post")
    resid = language_model.record(ragged, "blocks.0.resid_post")["blocks.0.resid_post"][ragged.mask]
    q = language_model.unembed(resid).detach().double().log_softmax(-1)
    p = language_model.logits(ragged)[ragged.mask].detach().double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean().item()
    assert float(got["kl"][0]) == pytest.approx(expected, rel=1e-4)


def test_a_trained_model_comes_closer_to_its_prediction_layer_by_layer(stories, tales):
    kl = measure.logit_lens(stories, tales)["kl"].values
    assert (np.diff(kl) < 0).all()


def test_models_without_unembedding_and_other_sites_are_refused(vit, gpt2, images, ragged):
    with pytest.raises(InputError, match="language model"):
        measure.logit_lens(vit, images)
    with pytest.raises(InputError, match="residual stream"):
        measure.logit_lens(gpt2, ragged, at="blocks.0.mlp.post")
