"""Corruptions: noise of the stated size on the key tokens alone, and replacements that keep the length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Parallel, linear_task, random_task

import architectures
from actinium.circuits import GaussianNoise, corrupt_gaussian, corrupt_tokens, patch
from actinium.circuits.patching.corruption import embedded, with_embeddings
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


def test_noise_has_k_times_the_spread_of_all_embedding_entries():
    embeds = torch.randn(50, 8, 64, generator=torch.Generator().manual_seed(0)) * 0.2 + 1.0
    embeds[:, 0] = 100.0  # padding, which the spread must not see
    real = torch.ones(50, 8, dtype=torch.bool)
    real[:, 0] = False
    key = torch.zeros(50, 8, dtype=torch.bool)
    key[:, 3:5] = True
    noisy = corrupt_gaussian(embeds, key, k=3.0, generator=1, real=real)
    sigma = float(np.std(embeds[:, 1:].double().numpy()))
    noise = (noisy - embeds)[key]
    assert float(noise.std()) == pytest.approx(3 * sigma, rel=0.03)
    assert abs(float(noise.mean())) < 0.05 * sigma
    assert torch.equal(noisy[~key], embeds[~key])


def test_noise_of_a_given_sigma_follows_its_seed():
    embeds, key = torch.zeros(4, 3, 1000), torch.ones(4, 3, dtype=torch.bool)
    one, same, other = (corrupt_gaussian(embeds, key, sigma=0.5, k=2, generator=s) for s in (7, 7, 8))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert float(one.std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("k", [0.0, -1.0, float("nan")])
def test_noise_that_changes_nothing_is_refused(k):
    with pytest.raises(InputError, match="k must be above 0"):
        corrupt_gaussian(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), k=k, generator=0)
    with pytest.raises(InputError, match="k must be above 0"):
        GaussianNoise(k=k)


def test_noise_without_a_key_token_or_a_spread_is_refused():
    embeds, key = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [False, False, False]])
    with pytest.raises(InputError, match="row 1 has no key token"):
        corrupt_gaussian(embeds, key, generator=0)
    with pytest.raises(InputError, match="sigma is 0"):
        corrupt_gaussian(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), generator=0)
    with pytest.raises(InputError, match="bool mask"):
        corrupt_gaussian(embeds, key.long(), generator=0)
    with pytest.raises(InputError, match="sigma must be"):
        GaussianNoise(sigma=-1.0)
    with pytest.raises(InputError, match="draws"):
        GaussianNoise(draws=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "gemma3_text", "bloom", "opt", "gpt_neox", "mpt", "mamba"])
def test_embeddings_in_place_of_tokens_give_the_same_logits(name):
    model, task = architectures.shared(name), random_task(padding=(2,) if name != "mamba" else ())
    tokens = Tokens(task.clean_ids, task.mask, torch.arange(3))
    with torch.no_grad():
        plain = model.logits(tokens)[task.mask]
        through = model.logits(with_embeddings(model, tokens, embedded(model, tokens.ids)))[task.mask]
    torch.testing.assert_close(through, plain, atol=1e-5, rtol=0)


def test_the_same_noise_is_in_the_corrupt_and_in_the_patched_run():
    """With one draw the last stream restores the clean metric exactly, and a stream below the noise nothing at all."""
    model, task = architectures.shared("llama"), random_task(changed=3)
    for draws in (1, 3):
        options = {"ablation": GaussianNoise(draws=draws), "seed": 5}
        end = patch(model, task, at="blocks.-1.resid_post", over="layer", **options)
        assert float(end.data["patched"][0]) == pytest.approx(float(end.data["m_clean"]), abs=1e-5)
        before = patch(model, task, at="blocks.*.resid_post", positions=[0, 1, 2], **options)
        assert np.abs(before.data["effect"].values).max() == 0.0
        noised = patch(model, task, at="blocks.-1.resid_post", over="layer", mode="noise", **options)
        assert float(noised.data["patched"][0]) == pytest.approx(float(noised.data["m_corrupt"]), abs=1e-5)
        assert float(noised.data["m_corrupt"]) == float(end.data["m_corrupt"])


def test_noised_run_equals_the_run_written_out():
    model, task = architectures.shared("gpt2"), random_task()
    found = patch(model, task, at="blocks.1.resid_post", ablation=GaussianNoise(sigma=0.4, k=2, draws=2), seed=3)
    random = torch.Generator().manual_seed(3)
    rows = torch.arange(3)
    embeds = model.module.transformer.wte(task.clean_ids).detach()
    clean = model.record(task.clean_ids, "blocks.1.resid_post")["blocks.1.resid_post"]
    ends, patched = [], []
    for _ in range(2):
        noise = torch.randn(embeds.shape, generator=random) * 0.8
        noisy = torch.where(task.subject[..., None], embeds + noise, embeds)
        logits = []
        for restore in (False, True):

            def put(module, args, output, restore=restore):
                if restore:
                    output = output[0] if isinstance(output, tuple) else output
                    output[:, 6] = clean[:, 6]
                return output

            hook = model.module.transformer.h[1].register_forward_hook(put)
            with torch.no_grad():
                logits.append(model.module(inputs_embeds=noisy).logits[:, -1])
            hook.remove()
        values = [(v[rows, task.answer_ids] - v[rows, task.wrong_ids]).mean() for v in logits]
        ends.append(values[0])
        patched.append(values[1])
    top = model.logits(task.clean_ids)[:, -1].detach()
    top = (top[rows, task.answer_ids] - top[rows, task.wrong_ids]).mean()
    low = sum(ends) / 2
    assert float(found.data["m_corrupt"]) == pytest.approx(float(low), abs=1e-5)
    expected = float((sum(patched) / 2 - low) / (top - low))
    assert float(found.data["effect"].sel(pos=6)[0]) == pytest.approx(expected, abs=1e-4)


def test_noise_is_the_same_whatever_the_batches():
    model, task = architectures.shared("llama"), random_task(rows=4)
    runs = [patch(model, task, ablation=GaussianNoise(draws=2), batch_size=b) for b in (None, 3)]
    np.testing.assert_allclose(runs[0].data["effect"], runs[1].data["effect"], atol=1e-5)
    other = patch(model, task, ablation=GaussianNoise(draws=2), seed=1)
    assert np.abs(runs[0].data["effect"] - other.data["effect"]).max() > 1e-4


def test_a_module_that_takes_no_embeddings_cannot_be_given_noise():
    with pytest.raises(InputError, match="takes no embeddings"):
        patch(Model(Parallel()), linear_task(), at="module:parts.0", over="layer", ablation="gaussian")


IDS = st.integers(0, 5)


@given(st.lists(st.lists(IDS, min_size=6, max_size=6), min_size=1, max_size=4))
def test_exchanging_two_tokens_twice_gives_the_prompts_back(rows):
    tokens = torch.tensor([[0, *row] for row in rows])
    once = corrupt_tokens(tokens, {0: 1, 1: 0})
    assert once.shape == tokens.shape
    assert torch.equal(once, torch.where(tokens == 0, 1, torch.where(tokens == 1, 0, tokens)))
    assert torch.equal(corrupt_tokens(once, {0: 1, 1: 0}), tokens)


def test_longer_runs_of_tokens_are_replaced_first():
    tokens = torch.tensor([1, 2, 3, 2, 2, 3])
    assert corrupt_tokens(tokens, {2: 9, (2, 3): (7, 8)}).tolist() == [1, 7, 8, 9, 7, 8]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [({}, "empty"), ({1: (2, 3)}, "keep the length"), ({(): ()}, "keep the length"), ({4: 5}, "row 0 holds none")],
)
def test_replacements_that_do_not_fit_are_refused(mapping, message):
    with pytest.raises(InputError, match=message):
        corrupt_tokens(torch.tensor([[1, 2, 3]]), mapping)
