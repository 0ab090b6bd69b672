"""What heads look at, on patterns whose answer is known and on models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium import measure
from actinium.core.errors import InputError, SiteError
from actinium.core.reducers import Context
from actinium.measure.attention import _Heads


def summarise(pattern: torch.Tensor, mask=None, tokens=None, causal=True):
    """Means of one batch (batch, head, query, key)."""
    heads = _Heads(causal, threshold=0.3, min_queries=8)
    heads.update(pattern, Context(("batch", "head", "query", "key"), mask, tokens, torch.arange(len(pattern)), "x"))
    return heads.result()


def causal_even(n: int) -> torch.Tensor:
    return torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]


def test_entropy_of_even_attention_is_the_logarithm_of_the_number_of_keys():
    torch.testing.assert_close(
        measure.attention_entropy(causal_even(6)), torch.arange(1, 7).double().log(), atol=1e-7, rtol=0
    )


def test_known_heads_get_known_numbers():
    n = 12
    first = torch.zeros(n, n)
    first[:, 0] = 1
    previous = torch.diag(torch.ones(n - 1), -1)
    previous[0, 0] = 1
    means, sinks, sequences, _ = summarise(torch.stack([first, previous, torch.eye(n), causal_even(n)])[None])
    assert means["first"][:3].tolist() == pytest.approx([1, 1 / 11, 0])
    assert means["previous"][:3].tolist() == pytest.approx([1 / 11, 1, 0])
    assert means["diagonal"][:3].tolist() == pytest.approx([0, 0, 1])
    assert means["sink"].tolist() == pytest.approx([1, 0, 0, 0])
    assert means["relative_entropy"].tolist() == pytest.approx([0, 0, 0, 1])
    assert (sinks, sequences) == ({(-1, 0): 1}, 1)


def test_received_attention_averages_over_the_queries_that_see_the_key():
    pattern = causal_even(4)
    received, seen = measure.received_attention(pattern)
    assert seen.tolist() == [3, 3, 2, 1]
    assert received.tolist() == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4) / 3, (1 / 2 + 1 / 3 + 1 / 4) / 3, 7 / 24, 1 / 4])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    torch.manual_seed(0)
    pattern = torch.randn(1, 2, 9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf).softmax(-1)
    pad = torch.zeros(1, 2, 12, 12)
    real = slice(3, None) if side == "left" else slice(0, 9)
    pad[:, :, real, real] = pattern
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[:, real] = True
    expected, got = summarise(pattern)[0], summarise(pad, mask)[0]
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_summary_of_a_model_equals_the_recorded_pattern(language_model, ragged):
    got = measure.attention_summary(language_model, ragged, batch_size=2)
    pattern = language_model.record(ragged, "blocks.1.attn.pattern")["blocks.1.attn.pattern"].double()
    first, entropy, n = 0.0, 0.0, 0
    for row in range(3):
        real = ragged.mask[row]
        p = pattern[row][:, real][:, :, real][:, 1:]
        first = first + p[..., 0].sum(1)
        entropy = entropy - torch.where(p > 0, p * p.log(), 0).sum((1, 2))
        n += p.shape[1]
    np.testing.assert_allclose(got["first"].sel(layer=1), first / n, rtol=1e-5)
    np.testing.assert_allclose(got["entropy"].sel(layer=1), entropy / n, rtol=1e-5)


def test_a_vision_transformer_attends_in_both_directions(vit, images):
    got = measure.attention_summary(vit, images)
    pattern = vit.record(images, "blocks.0.attn.pattern")["blocks.0.attn.pattern"]
    np.testing.assert_allclose(got["diagonal"].sel(layer=0), pattern.diagonal(0, -2, -1).mean((0, 2)), rtol=1e-5)
    n = pattern.shape[-1]
    expected = measure.attention_entropy(pattern).mean((0, 2)) / np.log(n)
    np.testing.assert_allclose(got["relative_entropy"].sel(layer=0), expected, rtol=1e-5)


def test_sinks_name_the_token_that_carries_them(stories, tales):
    got = measure.attention_summary(stories, tales)
    assert len(got["sink_token"]) and set(got["sink_token"].values.tolist()) - {""}
    order = got["sink_heads"].values
    assert (np.diff(order) <= 0).all()


def test_other_sites_and_models_without_attention_are_refused(gpt2, cnn, ragged, images):
    with pytest.raises(InputError, match=r"attn\.pattern"):
        measure.attention_summary(gpt2, ragged, at="blocks.0.attn.scores")
    with pytest.raises((InputError, SiteError)):
        measure.attention_summary(cnn, images)
    with pytest.raises(InputError, match="two positions"):
        measure.attention_summary(gpt2, ragged.ids[:1, :1])
