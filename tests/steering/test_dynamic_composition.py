"""Dynamic activation composition: deltas by step, schedules, and strengths from the divergence."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf

import actinium as ac
from actinium.core.errors import InputError
from actinium.steering.dynamic_composition import (
    ConstantSchedule,
    DiminishingSchedule,
    DynamicActivationComposition,
    DynamicKLSchedule,
    StartSchedule,
    composition_strength,
)
from actinium.steering.property_deltas import PropertyDeltas, end_tokens, fit_property

PLUS = ["<user> Tell me about zorbing.<assistant>", "<user> Tell me about fishing.<assistant>"]
MINUS = ["<user> What is the job of Ann?<assistant>", "<user> What is the pet of Ann?<assistant>"]
ASKED = ["<user> Tell me about cooking.<assistant>", "<user> What is the pet of Bob?<assistant>", "Ann"]


@pytest.fixture(scope="module")
def deltas(lm):
    return fit_property(lm, PLUS, MINUS, steps=3, sites="blocks.{1,2}.attn.z")


def small(deltas, factor):
    return PropertyDeltas({k: v * factor for k, v in deltas.deltas.items()}, deltas.counts, deltas.fingerprint)


def test_strengths_on_known_logits():
    plain, steered = torch.tensor([[2.0, 1.0, 0.0, -3.0]]), torch.tensor([[0.0, 1.0, 3.0, -3.0]])
    for top_p, forward, backward, size in (
        (0.5, 2.3256, 1.8412, 2),
        (0.9, 1.8226, 1.6851, 3),
        (1.0, 1.8155, 1.6824, 4),
    ):
        found, strength = composition_strength(plain, steered, DynamicKLSchedule(top_p))
        assert float(found) == pytest.approx(forward, abs=1e-4)
        assert float(strength) == pytest.approx(min(2.0, forward), abs=1e-4)
        other, _ = composition_strength(plain, steered, DynamicKLSchedule(top_p, direction="steered_plain"))
        assert float(other) == pytest.approx(backward, abs=1e-4)
        mean, _ = composition_strength(plain, steered, DynamicKLSchedule(top_p, reduction="mean_q"))
        assert float(mean) == pytest.approx(forward / size, abs=1e-4)
    assert float(composition_strength(plain, plain, DynamicKLSchedule())[0]) == 0
    never = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    assert math.isfinite(float(composition_strength(plain, never, DynamicKLSchedule(direction="steered_plain"))[0]))


def test_schedules():
    steps = torch.arange(12)
    assert DiminishingSchedule(2.0, 10)(steps).tolist() == pytest.approx([*(2 - 0.2 * i for i in range(10)), 0, 0])
    assert StartSchedule(1.5)(steps).tolist() == [1.5, *[0.0] * 11]
    assert ConstantSchedule(0.5)(steps).tolist() == [0.5] * 12


def test_deltas_are_mean_differences_of_the_last_position_at_each_step(lm, deltas):
    site, sides = "blocks.1.attn.z", []
    for prompts in (PLUS, MINUS):
        rows = []
        for prompt in prompts:
            ids = lm.to_tokens(prompt).ids
            whole = lm.generate(ids, max_new_tokens=3, do_sample=False)
            rows.append(lm.record(whole, site)[site][0, ids.shape[1] - 1 : ids.shape[1] + 2])
        sides.append(rows)
    for step in range(3):
        alive = [[r[step] for r in side if len(r) > step] for side in sides]
        if all(len(a) == int(c) for a, c in zip(alive, deltas.counts[:, step], strict=True)):
            want = torch.stack(alive[0]).mean(0) - torch.stack(alive[1]).mean(0)
            assert torch.allclose(deltas.deltas[site][step], want, atol=1e-4)
    assert deltas.counts[:, 0].tolist() == [2, 2]
    swapped = fit_property(lm, MINUS, PLUS, steps=3, sites="blocks.{1,2}.attn.z")
    assert all(torch.allclose(swapped.deltas[s], (-deltas).deltas[s], atol=1e-6) for s in deltas.deltas)


def test_answers_that_end_do_not_count_any_more(lm):
    with pytest.raises(InputError, match="give steps="):
        fit_property(lm, PLUS, ["<user> What is the pet of Ann?<assistant>"], steps=40)


def test_no_difference_means_no_strength_and_the_plain_text(lm, deltas):
    none = small(deltas, 0.0)
    found = DynamicActivationComposition({"a": none}).generate(lm, ASKED, 6)
    assert float(torch.nan_to_num(found.strengths["a"]).abs().max()) == 0
    plain = lm.generate(ASKED, max_new_tokens=6, do_sample=False)
    assert found.texts == plain


def test_strengths_stay_within_their_limits(lm, deltas):
    found = DynamicActivationComposition({"a": small(deltas, 3.0)}, DynamicKLSchedule(0.9, most=1.5)).generate(
        lm, ASKED, 5
    )
    strengths = found.strengths["a"]
    known = ~strengths.isnan()
    assert bool(((strengths[known] >= 0) & (strengths[known] <= 1.5)).all()) and float(strengths[known].max()) > 0
    assert bool((found.divergences["a"][known] >= strengths[known] - 1e-6).all())


def test_replaying_the_strengths_gives_the_same_text(lm, deltas):
    a, b = small(deltas, 2.0), -small(deltas, 1.0)
    both = DynamicActivationComposition({"a": a, "b": b}, DynamicKLSchedule(0.9))
    found = both.generate(lm, ASKED, 5)
    tables = {k: torch.nan_to_num(v) for k, v in found.strengths.items()}

    def replayed(name):
        table = tables[name]
        return lambda steps: table.gather(1, steps.clamp(0, table.shape[1] - 1).expand(len(table), -1))

    static = DynamicActivationComposition({"a": a, "b": b}, {n: replayed(n) for n in tables})
    for use_cache in (True, False):
        with lm.edit(static.edits()):
            assert lm.generate(ASKED, max_new_tokens=5, do_sample=False, use_cache=use_cache) == found.texts


def test_a_model_without_a_key_value_cache_keeps_the_strengths_of_earlier_tokens(lm):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(lm.tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
    model = ac.load(hf.MambaForCausalLM(hf.MambaConfig(**sizes, eos_token_id=None)).eval(), tokenizer=lm.tokenizer)
    site, random = "blocks.1.resid_post", torch.Generator().manual_seed(1)
    steps = PropertyDeltas({site: 3 * torch.randn(4, 32, generator=random)}, torch.ones(2, 4))
    found = DynamicActivationComposition({"a": steps}, DynamicKLSchedule(0.9)).generate(model, ASKED, 6)
    table = torch.nan_to_num(found.strengths["a"])
    assert float(table.std()) > 0
    static = DynamicActivationComposition(
        {"a": steps}, lambda s: table.gather(1, s.clamp(0, table.shape[1] - 1).expand(len(table), -1))
    )
    with model.edit(static.edits()):
        assert model.generate(ASKED, max_new_tokens=6, do_sample=False) == found.texts


def test_a_trial_that_makes_nan_is_stopped(lm, deltas):
    with pytest.raises(InputError, match="lower the strengths"):
        DynamicActivationComposition({"a": small(deltas, 1e30)}, DynamicKLSchedule(strong=1e30)).generate(lm, ASKED, 2)


def test_every_token_that_ends_the_models_generation_ends_an_answer():
    model = ac.load("world:lm")
    point = int(model.to_tokens("The film was good.").ids[0, -1])
    model.module.generation_config.eos_token_id = [model.tokenizer.eos_token_id, point]
    assert end_tokens(model, ()) == {model.tokenizer.eos_token_id, point}


def test_a_stop_word_ends_the_answer(lm, deltas):
    one = DynamicActivationComposition({"a": small(deltas, 0.0)})
    whole = one.generate(lm, ASKED[0], 6)
    word = lm.tokenizer.decode(whole.ids[0, 1])
    cut = one.generate(lm, ASKED[0], 6, stop=[f" {word.strip()}"])
    assert cut.ids.shape[1] == 2 and torch.equal(cut.ids[0], whole.ids[0, :2])
    with pytest.raises(InputError, match="one token"):
        one.generate(lm, ASKED[0], 6, stop=["the film was"])


def test_rows_of_a_batch_are_those_of_single_prompts(lm, deltas):
    one = DynamicActivationComposition({"a": small(deltas, 2.0)})
    together = one.generate(lm, ASKED, 5)
    for row, prompt in enumerate(ASKED):
        alone = one.generate(lm, prompt, 5)
        assert alone.texts[0] == together.texts[row]
        n = alone.strengths["a"].shape[1]
        assert torch.allclose(alone.strengths["a"][0], together.strengths["a"][row, :n], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("schedule", [ConstantSchedule(1.5), StartSchedule(2.0), DiminishingSchedule(2.0, 4)])
def test_static_schedules_decode_as_their_edits_do(lm, deltas, schedule):
    one = DynamicActivationComposition({"a": deltas}, schedule)
    with lm.edit(one.edits()):
        want = lm.generate(ASKED, max_new_tokens=5, do_sample=False)
    assert one.generate(lm, ASKED, 5).texts == want


def test_the_start_schedule_edits_the_last_token_of_the_prompt_alone(lm, deltas):
    one, site = DynamicActivationComposition({"a": deltas}, StartSchedule(1.0)), "blocks.1.attn.z"
    tokens = lm.to_tokens(ASKED[0])
    n = tokens.ids.shape[1]
    edits = [(s, e) for s, e in one.edits() if s == site]
    with lm.edit(edits), lm.recording(site) as rec:
        ids = lm.generate(tokens.ids, max_new_tokens=4, do_sample=False)
    # The first edited site of the same sequence without edits: only the prompt's last token may differ.
    plain = lm.record(ids[:, :-1], site)[site]
    step = deltas.deltas[site][0]
    assert torch.allclose(rec[site][0, n - 1], plain[0, n - 1] + step, atol=1e-4)
    assert torch.allclose(rec[site][0, : n - 1], plain[0, : n - 1], atol=1e-4)
    later = lm.record(ids[:, :-1], "blocks.0.resid_post")["blocks.0.resid_post"]
    with lm.edit(edits), lm.recording("blocks.0.resid_post") as below:
        lm.generate(tokens.ids, max_new_tokens=4, do_sample=False)
    assert torch.allclose(below["blocks.0.resid_post"], later, atol=1e-4)


def test_files_come_back_the_same(deltas, tmp_path):
    back = PropertyDeltas.load(deltas.save(tmp_path / "p.safetensors"))
    assert all(torch.equal(back.deltas[s], deltas.deltas[s]) for s in deltas.deltas)
    assert torch.equal(back.counts, deltas.counts) and back.fingerprint == deltas.fingerprint


def test_what_does_not_fit_is_refused(lm, deltas):
    other = PropertyDeltas({"blocks.1.attn.z": torch.zeros(3, 8, 16)}, deltas.counts)
    with pytest.raises(InputError, match="other sites"):
        DynamicActivationComposition({"a": deltas, "b": other})
    alien = PropertyDeltas(deltas.deltas, deltas.counts, "f" * 64)
    with pytest.raises(InputError, match="another model"):
        DynamicActivationComposition({"a": deltas, "b": alien})
    with pytest.raises(InputError, match="transfer=True"):
        DynamicActivationComposition({"b": alien}).generate(lm, ASKED, 2)
    with pytest.raises(InputError, match="dynamic"):
        DynamicActivationComposition({"a": deltas}).edits()
    with pytest.raises(InputError, match="schedules are given"):
        DynamicActivationComposition({"a": deltas}, {"b": ConstantSchedule()})
    for bad in (
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"direction": "both"},
        {"reduction": "mean"},
        {"most": -1.0},
        {"strong": math.nan},
    ):
        with pytest.raises(InputError):
            DynamicKLSchedule(**bad)
    with pytest.raises(InputError, match="exceeds the context"):
        DynamicActivationComposition({"a": deltas}).generate(lm, ASKED, 500)
    with pytest.raises(InputError, match="NaN"):
        PropertyDeltas({"x": torch.full((2, 3), math.nan)}, deltas.counts)
    with pytest.raises(InputError, match="one text or more"):
        fit_property(lm, [], MINUS)
    assert ac.steering.PropertyDeltas is PropertyDeltas


def test_surprisal_is_that_of_the_steered_model(lm, deltas):
    replies = [" Sure", " frog. The", " keeps a cat"]
    none = DynamicActivationComposition({"a": small(deltas, 0.0)}).surprisal(lm, ASKED, replies)
    constant = DynamicActivationComposition({"a": deltas}, ConstantSchedule(1.5), beyond="zero")
    steered = constant.surprisal(lm, ASKED, replies)
    for row, (prompt, reply) in enumerate(zip(ASKED, replies, strict=True)):
        ids, start = lm.to_tokens(prompt + reply).ids, lm.to_tokens(prompt).ids.shape[1]
        new = ids[0, start:]
        plain = -lm.logits(ids)[0, start - 1 : -1].log_softmax(-1).gather(1, new[:, None])[:, 0]
        assert torch.allclose(none[row, : len(new)].float(), plain, atol=1e-4)
        assert bool(none[row, len(new) :].isnan().all())
        # The same strengths written out as one vector for each position of a pass over the whole text.
        edits = {}
        for site, delta in deltas.deltas.items():
            value = torch.zeros(1, ids.shape[1], *delta.shape[1:])
            n = min(len(delta), ids.shape[1] - start + 1)
            value[0, start - 1 : start - 1 + n] = 1.5 * delta[:n]
            edits[site] = ac.edits.Add(value)
        with lm.edit(edits):
            want = -lm.logits(ids)[0, start - 1 : -1].log_softmax(-1).gather(1, new[:, None])[:, 0]
        assert torch.allclose(steered[row, : len(new)].float(), want, atol=1e-4)
    with pytest.raises(InputError, match="as many replies"):
        constant.surprisal(lm, ASKED, replies[:1])
    with pytest.raises(InputError, match="empty"):
        constant.surprisal(lm, ASKED[:1], [""])
