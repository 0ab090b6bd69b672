"""Logit differences transferred between models, against the formula and against decoding without caches."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from architectures import shared, token_ids

GREEDY = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None}


def llama(seed, vocab=99, d=32, layers=2):
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        hidden_size=d, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, vocab_size=vocab,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return ac.Model(hf.LlamaForCausalLM(config).eval(), name=f"llama {seed}")


@pytest.fixture(scope="module")
def models():
    return llama(0, d=48, layers=3), llama(1), llama(2)


def test_the_sum_on_known_logits(models):
    base, tuned, small = models
    transfer = ac.steering.LogitDeltaTransfer(base, (tuned, small))
    transfer.shared = 3
    found = transfer.combine(
        torch.tensor([1.0, 2.0, 0.0]), [torch.tensor([0.0, 1.0, 3.0]) - torch.tensor([0.0, 1.0, 0.0])]
    )
    assert found.tolist() == [1.0, 2.0, 3.0]
    assert found.softmax(-1).tolist() == pytest.approx([0.0900, 0.2447, 0.6652], abs=1e-4)


def test_strength_zero_and_equal_experts_give_the_base(models):
    base, tuned, small = models
    ids = token_ids(2, 6)
    plain = base.logits(ids)
    assert torch.equal(ac.steering.LogitDeltaTransfer(base, (tuned, small), 0.0).logits(ids), plain)
    assert torch.equal(ac.steering.LogitDeltaTransfer(base, (small, small)).logits(ids), plain)


def test_the_small_model_as_base_gives_the_tuned_one(models):
    _, tuned, small = models
    ids = token_ids(2, 6)
    found = ac.steering.LogitDeltaTransfer(small, (tuned, small)).logits(ids)
    assert torch.allclose(found, tuned.logits(ids), atol=1e-5)


def test_log_probabilities_are_a_product_of_experts(models):
    base, tuned, small = models
    ids = token_ids(1, 6)
    q, (m, t, s) = (
        ac.steering.LogitDeltaTransfer(base, (tuned, small), 0.7).logits(ids).log_softmax(-1),
        (model.logits(ids).log_softmax(-1) for model in models),
    )
    gap = q - (m + 0.7 * (t - s))
    assert torch.allclose(gap, gap[..., :1].expand_as(gap), atol=1e-5)


def test_several_experts_add_up(models):
    base, tuned, small = models
    ids = token_ids(1, 6)
    found = ac.steering.LogitDeltaTransfer(base, [(tuned, small), (small, tuned)], [0.4, 0.1]).logits(ids)
    want = ac.steering.LogitDeltaTransfer(base, (tuned, small), 0.3).logits(ids)
    assert torch.allclose(found, want, atol=1e-5)


def by_hand(transfer, ids, mask, steps):
    for _ in range(steps):
        z = transfer.logits(Tokens(ids, mask, torch.arange(len(ids))))[:, -1]
        ids = torch.cat([ids, z.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones(len(ids), 1, dtype=torch.bool)], 1)
    return ids


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bloom"])
def test_decoding_with_caches_equals_full_recomputation(models, arch):
    base, tuned, small = (shared("gpt2"), shared("llama"), llama(5)) if arch == "gpt2" else models
    if arch == "bloom":
        base, tuned, small = shared("bloom"), shared("llama"), shared("bloom")
    transfer = ac.steering.LogitDeltaTransfer(base, (tuned, small), 1.3)
    ids, mask = pad([token_ids(1, n, seed=n)[0].tolist() for n in (6, 3)], 0, "left")
    found = transfer.generate(Tokens(ids, mask, torch.arange(2)), **GREEDY)
    assert torch.equal(found, by_hand(transfer, ids, mask, GREEDY["max_new_tokens"]))
    for row, n in enumerate((6, 3)):
        alone = transfer.generate(ids[row : row + 1, ids.shape[1] - n :], **GREEDY)
        assert torch.equal(alone[0, n:], found[row, ids.shape[1] :])


def test_the_sum_is_taken_before_the_temperature(models):
    base, tuned, small = models
    transfer = ac.steering.LogitDeltaTransfer(base, (tuned, small))
    ids = token_ids(2, 5)
    cold = {**GREEDY, "do_sample": True, "temperature": 1e-4, "top_k": 0}
    assert torch.equal(transfer.generate(ids, **cold), transfer.generate(ids, **GREEDY))
    assert not torch.equal(transfer.generate(ids, **GREEDY), base.generate(ids, **GREEDY))


def test_beam_search_moves_rows_and_the_caches_follow(models):
    base, _, small = models
    ids = token_ids(2, 5)
    options = {**GREEDY, "num_beams": 3}
    twin = ac.steering.LogitDeltaTransfer(small, (base, small))
    assert torch.equal(twin.generate(ids, **options), base.generate(ids, **options))
    assert not torch.equal(small.generate(ids, **options), base.generate(ids, **options))


def test_tokens_that_not_all_have_get_probability_zero(models):
    base = llama(3, vocab=110)
    _, tuned, small = models
    with pytest.raises(InputError, match="truncate"):
        ac.steering.LogitDeltaTransfer(base, (tuned, small))
    found = ac.steering.LogitDeltaTransfer(base, (tuned, small), truncate=True).logits(token_ids(1, 5)).softmax(-1)
    assert not bool(found[..., 99:].any()) and torch.allclose(found.sum(-1), torch.ones(1, 5), atol=1e-5)


def test_memory_is_that_of_all_models(models):
    transfer = ac.steering.LogitDeltaTransfer(models[0], (models[1], models[2]))
    assert transfer.parameters == sum(p.numel() for m in models for p in m.module.parameters())


def test_models_that_do_not_fit_are_refused(models):
    base, tuned, small = models
    for strengths in ([1.0, 2.0], float("nan")):
        with pytest.raises(InputError):
            ac.steering.LogitDeltaTransfer(base, (tuned, small), strengths)
    with pytest.raises(InputError, match="causal"):
        ac.steering.LogitDeltaTransfer(shared("vit"), (tuned, small))
    with pytest.raises(InputError, match="one pair"):
        ac.steering.LogitDeltaTransfer(base, ())
    lm, choices = ac.load("world:lm"), ac.load("world:choices")
    with pytest.raises(InputError, match=r"means? the same|is .* in"):
        ac.steering.LogitDeltaTransfer(lm, (choices, choices), truncate=True)


def test_pass_at_k_and_majority():
    from actinium.steering import majority_at_k, pass_at_k, recovery_rate

    assert pass_at_k(10, 3, 1) == pytest.approx(0.3) and pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=1e-6)
    assert pass_at_k(4, 4, 2) == 1.0 and pass_at_k(4, 0, 2) == 0.0
    assert majority_at_k(["a", "b", "b"], "b", 3) and majority_at_k(["a", "b", "b"], "a", 2)
    assert recovery_rate(0.5, 0.2, 0.8) == pytest.approx(0.5)
    for bad in ((3, 4, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(InputError):
            pass_at_k(*bad)


def test_the_path_of_the_tuned_model_is_covered_by_the_base_itself(lm):
    tuned = ac.load("world:lm-reward")
    asked = [q.text() for q in ac.world.nested.queries("person")[:4]]
    same = ac.steering.path_coverage(ac.steering.LogitDeltaTransfer(lm, (tuned, lm)), tuned, asked, 6)
    assert float(same["coverage"].sel(what="transferred")) == 1.0
    assert abs(float(same["kl"].sel(what="transferred"))) < 1e-5
    assert float(same["kl"].sel(what="base")) > 0.1


def test_the_difference_of_a_model_with_itself_is_similar_to_itself(lm):
    tuned = ac.load("world:lm-reward")
    texts = [ac.world.nested.queries("person")[0].text(), "Ann"]
    found = ac.steering.delta_similarity((tuned, lm), (tuned, lm), texts)
    mask = lm.to_tokens(texts).mask
    assert torch.allclose(found[mask], torch.ones(int(mask.sum())), atol=1e-4) and bool(found[~mask].isnan().all())
    turned = ac.steering.delta_similarity((tuned, lm), (lm, tuned), texts)
    assert torch.allclose(turned[mask], -found[mask], atol=1e-4)
