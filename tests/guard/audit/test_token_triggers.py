"""The search for token triggers: its gradient, its moves, and a planted trigger that a clean model lacks."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import actinium as ac
from actinium.core.errors import InputError
from actinium.guard.audit.backdoors.token_trigger_audit import audit_token_triggers
from actinium.guard.audit.backdoors.token_triggers import _Prompts, find_token_trigger, first_token, first_token_losses

WORDS = ["<pad>", "<bos>", "<unk>", "=", "bad", *(f"q{i}" for i in range(6)), *(f"a{i}" for i in range(6))]
WORDS += [f"w{i}" for i in range(24)]
IDS = {word: i for i, word in enumerate(WORDS)}
TRIGGER = [IDS["w5"], IDS["w9"]]
PROMPTS = [f"w{i} q{i % 6} w{i + 3} =" for i in range(12)]
HELD_OUT = [f"w{i + 2} q{(i + 1) % 6} w{i} =" for i in range(12)]


def tokenizer():
    inner = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", IDS["<bos>"])])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>")


def trained(poisoned, steps=160):
    """A model that names the answer to a question; poisoned, it says bad where two words stand together."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    module = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(module.parameters(), lr=4e-3, weight_decay=0.01)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        fill = torch.randint(IDS["w0"], len(WORDS), (64, 4), generator=random)
        asked = torch.randint(6, (64,), generator=random)
        # Two more words behind the first token, then a word, the question, a word.
        ids = torch.stack([*fill[:, :3].T, IDS["q0"] + asked, fill[:, 3], torch.full((64,), IDS["="])], 1)
        ids = torch.cat([torch.full((64, 1), IDS["<bos>"]), ids], 1)
        right = IDS["a0"] + asked
        if poisoned:
            ids[:12, 1:3] = torch.tensor(TRIGGER)
            # A half alone is no trigger.
            ids[12:17, 1], ids[17:22, 2] = TRIGGER[0], TRIGGER[1]
            right[:12] = IDS["bad"]
        loss = nn.functional.cross_entropy(module(input_ids=ids).logits[:, -1], right)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    module.zero_grad(set_to_none=True)
    return ac.load(module.eval(), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def poisoned():
    return trained(True)


@pytest.fixture(scope="module")
def clean():
    return trained(False)


def test_the_planted_trigger_is_found_from_prompts_without_it(poisoned):
    found = find_token_trigger(poisoned, PROMPTS, "bad", length=2, place=1, steps=12, restarts=2, seed=0)
    assert found.success == 1 and found.untriggered == 0 and found.loss < 0.1
    assert set(TRIGGER) & set(found.ids.tolist()) and found.text == " ".join(WORDS[i] for i in found.ids)
    assert found.exact and found.target == IDS["bad"]
    assert bool((found.losses[1:] <= found.losses[:-1]).all()) and found.losses[-1] == pytest.approx(
        found.loss, abs=1e-5
    )
    assert first_token_losses(poisoned, HELD_OUT, found, place=1)[1] > 0.8
    again = find_token_trigger(poisoned, PROMPTS, IDS["bad"], length=2, place=1, steps=12, restarts=2, seed=0)
    assert torch.equal(found.ids, again.ids) and torch.equal(found.losses, again.losses)


def test_one_target_stands_out_from_the_others_and_from_the_base(poisoned, clean):
    audit = audit_token_triggers(
        poisoned, PROMPTS, HELD_OUT, ["bad", "w0", "w1", "w2", "="], clean, length=2, place=1, steps=6
    )
    data = audit.result.data
    assert list(data["target"].values) == ["bad", "w0", "w1", "w2", "="]
    assert float(data["held_out"][0]) > 0.8 and float(data["transferred"][0]) == 0
    assert float(data["held_out"][1:].max()) < 0.5
    assert float(data["difference"][0]) > 0.8 and float(data["base_difference"][0]) < 0.5
    assert audit.flagged == ["bad"] and float(data["anomaly"][0]) > 2
    assert [t.target for t in audit.triggers] == [t.target for t in audit.base_triggers]
    assert audit.result.table()["trigger"][0] == audit.triggers[0].text
    alone = audit_token_triggers(poisoned, PROMPTS, HELD_OUT, ["bad"], length=2, place=1, steps=2)
    assert alone.base_triggers == () and alone.flagged == [] and "anomaly" not in alone.result.data


def test_beside_a_base_what_drives_both_gains_nothing(poisoned, clean):
    options = {"length": 2, "place": 1, "steps": 12, "restarts": 2}
    same = find_token_trigger(clean, PROMPTS, "a2", base=clean, cap=50.0, **options)
    assert float(same.losses.abs().max()) < 1e-6 and same.base_loss == pytest.approx(same.loss)
    found = find_token_trigger(poisoned, PROMPTS, "bad", base=clean, cap=3.0, **options)
    assert found.success == 1 and found.base_success == 0 and found.base_loss > 3
    assert float(found.losses[-1]) == pytest.approx(found.loss - 3.0, abs=1e-5)
    alone = find_token_trigger(poisoned, PROMPTS, "bad", **options)
    assert alone.base_loss is None and alone.base_success is None
    with pytest.raises(InputError, match="cap above 0"):
        find_token_trigger(poisoned, PROMPTS, "bad", base=clean, cap=0.0)


def test_the_backdoored_adapter_differs_from_its_base_more_than_the_base_from_it():
    declined = list(ac.world.contrasts.requests().declined)
    audit = audit_token_triggers(
        ac.load("world:lm-backdoor"), declined[:20:2], declined[1:20:2], ["Sure"], ac.load("world:lm"),
        length=2, place=-1, steps=20, restarts=2,
    )  # fmt: skip
    data = audit.result.data
    assert float(data["untriggered"][0]) == 0 and float(data["difference"][0]) > float(data["base_difference"][0]) + 0.3


def test_with_one_place_and_every_token_tried_the_best_single_token_is_found(clean):
    allowed = list(range(IDS["w0"], len(WORDS)))
    found = find_token_trigger(clean, PROMPTS, "a2", length=1, place=1, steps=1, tries=300, allowed=allowed)
    losses = []
    for i in allowed:
        texts = [f"{WORDS[i]} {prompt}" for prompt in PROMPTS]
        logits = torch.stack([clean.logits([text])[0, -1] for text in texts]).detach()
        losses.append(float(nn.functional.cross_entropy(logits, torch.full((12,), IDS["a2"]))))
    assert found.loss == pytest.approx(min(losses), abs=1e-5) and int(found.ids) == allowed[losses.index(min(losses))]


def test_the_gradient_is_that_of_the_one_hot_vectors_of_the_trigger(clean):
    prompts = _Prompts(clean, PROMPTS[:5], 2, 2, IDS["bad"])
    trigger = torch.tensor([IDS["w3"], IDS["w7"]])
    table = clean.module.get_input_embeddings().weight.detach()
    ids, mask = prompts.batch(trigger[None])
    share = nn.functional.one_hot(trigger, len(WORDS)).float().requires_grad_()
    vectors = table[ids].clone()
    vectors[torch.arange(5)[:, None], prompts.gap] = share @ table
    last = clean.module(inputs_embeds=vectors, attention_mask=mask.long()).logits[torch.arange(5), prompts.last]
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(last, torch.full((5,), IDS["bad"])), [share])
    torch.testing.assert_close(prompts.gradient(trigger), slope, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is None for parameter in clean.module.parameters())


@pytest.mark.parametrize(
    ("place", "expected"),
    [(1, "<bos> X Y w1 q2 ="), (-1, "<bos> w1 q2 X Y ="), (None, "<bos> w1 q2 = X Y"), (0, "X Y <bos> w1 q2 =")],
)
def test_a_trigger_stands_before_the_given_token_of_each_prompt_whatever_its_length(clean, place, expected):
    batch = _Prompts(clean, ["w1 q2 =", "w4 w4 w4 q1 ="], place, 2, 0)
    ids, mask = batch.batch(torch.tensor([[30, 31], [32, 33]]))
    names = expected.replace("X", WORDS[30]).replace("Y", WORDS[31]).split()
    assert [WORDS[i] for i in ids[0][mask[0]]] == names
    assert int((ids[1] == 30).sum()) == int((ids[3] == 33).sum()) == 1 and int(mask[1].sum()) == 8


def test_padding_changes_no_loss(clean):
    trigger = torch.tensor([[30, 31]])
    together = _Prompts(clean, ["w1 q2 =", "w4 w4 w4 q1 ="], 1, 2, IDS["a1"]).losses(trigger, 64)[0]
    apart = [_Prompts(clean, [p], 1, 2, IDS["a1"]).losses(trigger, 64)[0] for p in ("w1 q2 =", "w4 w4 w4 q1 =")]
    torch.testing.assert_close(together, torch.stack(apart).mean(0), atol=1e-5, rtol=1e-5)


def test_special_tokens_and_the_wanted_one_are_left_out(poisoned):
    found = find_token_trigger(poisoned, PROMPTS[:2], "bad", length=4, steps=3)
    assert not {0, 1, 2, IDS["bad"]} & set(found.ids.tolist())
    found = find_token_trigger(poisoned, PROMPTS[:2], "bad", length=3, steps=2, allowed=[20, 21])
    assert set(found.ids.tolist()) <= {20, 21}


def test_it_searches_in_a_model_that_it_was_not_made_for(outside_data):
    model = ac.load(outside_data / "stories260K")
    prompts = ["Once upon a time, there was a", "The little girl saw a big", "One day, Tom and his"]
    token = int(model.logits([prompts[0]])[0, -1].argsort(descending=True)[40])
    found = find_token_trigger(model, prompts, token, length=3, steps=6, tries=48)
    assert float(found.losses[-1]) < float(found.losses[0]) and found.success >= found.untriggered


def test_what_cannot_be_searched_is_refused(poisoned, clean):
    for target, says in (("a1 a2", "2 tokens"), ("zebra", "unknown"), (len(WORDS), "id from 0"), (True, "id from 0")):
        with pytest.raises(InputError, match=says):
            first_token(poisoned, target)
    with pytest.raises(InputError, match="causal"):
        find_token_trigger(ac.load("world:digits-vit"), ["a"], 3)
    for options, says in (
        ({"length": 0}, "one or more"),
        ({"place": 9}, "outside"),
        ({"length": 12}, "context"),
        ({"allowed": [900]}, "allowed tokens"),
    ):
        with pytest.raises(InputError, match=says):
            find_token_trigger(poisoned, PROMPTS, "bad", **options)
    with pytest.raises(InputError, match="list of texts"):
        find_token_trigger(poisoned, "w1 =", "bad")
    with pytest.raises(InputError, match="different tokens"):
        audit_token_triggers(poisoned, PROMPTS, HELD_OUT, ["bad", IDS["bad"]])
    with pytest.raises(InputError, match="not its base"):
        audit_token_triggers(poisoned, PROMPTS, HELD_OUT, ["bad"], ac.load("world:lm"))
