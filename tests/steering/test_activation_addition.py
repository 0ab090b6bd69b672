"""ActAdd against what it must equal: the run of another prompt, and itself with and without a cache."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from architectures import shared, token_ids

SITE = "blocks.3.resid_pre"
GLAD, SAD = "I loved the film", "I hated the film"
OTHER = "The old car was"


@pytest.fixture(scope="module")
def addition(lm):
    return ac.steering.ActivationAddition.from_prompts(lm, GLAD, SAD, site=SITE)


def random_addition(model, n, layer=1, **options):
    rows = torch.randn(n, model.d_model, generator=torch.Generator().manual_seed(n))
    return ac.steering.ActivationAddition(rows, f"blocks.{layer}.resid_pre", **options)


@pytest.mark.parametrize("layer", range(6))
def test_the_other_prompt_with_the_addition_is_the_prompt_itself(lm, layer):
    made = ac.steering.ActivationAddition.from_prompts(lm, GLAD, SAD, site=f"blocks.{layer}.resid_pre")
    assert float((made.logits(lm, SAD) - lm.logits(GLAD)).detach().abs().max()) < 1e-4
    assert float((lm.logits(SAD) - lm.logits(GLAD)).detach().abs().max()) > 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_replacement_identity_on_random_models(name):
    model, ids = shared(name), token_ids(2, 6)
    made = ac.steering.ActivationAddition.from_prompts(model, ids[0], ids[1], site="blocks.1.resid_pre")
    assert torch.allclose(made.logits(model, ids[1:]), model.logits(ids[:1]), atol=1e-5)


def test_it_is_zero_where_both_prompts_begin_alike(addition):
    assert len(addition) == 5
    assert float(addition.vectors[:2].abs().max()) < 1e-5
    assert float(addition.vectors[2:].norm(dim=1).min()) > 0.1


def test_strength_zero_changes_no_bit(lm, addition):
    assert torch.equal((addition * 0.0).logits(lm, OTHER), lm.logits(OTHER))


def test_additions_sum_and_swapping_the_prompts_is_the_other_sign(lm, addition):
    with (addition * 0.7).apply(lm), (addition * 0.4).apply(lm):
        twice = lm.logits(OTHER)
    assert torch.allclose(twice, (addition * 1.1).logits(lm, OTHER), atol=1e-4)
    swapped = ac.steering.ActivationAddition.from_prompts(lm, SAD, GLAD, site=SITE)
    assert torch.allclose((-swapped).logits(lm, OTHER), addition.logits(lm, OTHER), atol=1e-5)


def test_the_unpaired_form_adds_the_prompt_itself(lm):
    made = ac.steering.ActivationAddition.from_prompts(lm, GLAD, site=SITE)
    assert torch.allclose(made.vectors, lm.record(GLAD, SITE)[SITE][0], atol=1e-6)


@pytest.mark.parametrize(("placement", "first"), [("front", 0), ("mid", 2), ("back", 5)])
def test_only_the_placed_tokens_are_changed(placement, first):
    model, ids = shared("gpt2"), token_ids(1, 8)
    made = random_addition(model, 3, placement=placement)
    plain = model.record(ids, "blocks.1.resid_pre")["blocks.1.resid_pre"]
    with made.apply(model):
        new = model.record(ids, "blocks.1.resid_pre")["blocks.1.resid_pre"]
    expected = plain.clone()
    expected[0, first : first + 3] += made.vectors
    assert torch.allclose(new, expected, atol=1e-6)
    if first:
        assert torch.equal(made.logits(model, ids)[:, :first], model.logits(ids)[:, :first])


@pytest.mark.parametrize("placement", ["front", "mid", "back"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_places_count_real_tokens_under_padding(placement, side):
    model, ids = shared("llama"), token_ids(1, 5)
    made = random_addition(model, 3, placement=placement)
    pads = torch.ones(1, 4, dtype=torch.long)
    parts = [pads, ids] if side == "left" else [ids, pads]
    flags = [p.bool() if p is ids else torch.zeros_like(p, dtype=torch.bool) for p in parts]
    mask = torch.cat(
        [torch.ones_like(p, dtype=torch.bool) if p is ids else f for p, f in zip(parts, flags, strict=True)], 1
    )
    padded = made.logits(model, Tokens(torch.cat(parts, 1), mask, torch.arange(1)))
    real = padded[:, -5:] if side == "left" else padded[:, :5]
    assert torch.allclose(real, made.logits(model, ids), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("placement", ["front", "mid", "back"])
def test_generation_with_a_cache_and_without_is_the_same(name, placement):
    model, ids = shared(name), token_ids(2, 6)
    made = random_addition(model, 3, strength=3.0, placement=placement)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached, again = (made.generate(model, ids, **greedy, use_cache=use) for use in (True, False))
    assert torch.equal(cached, again)
    assert not torch.equal(cached, model.generate(ids, **greedy))
    # Of each new token the prediction is that of one pass in which the prompt alone was added to.
    grown = model.record(cached[:, :-1], "blocks.1.resid_pre")["blocks.1.resid_pre"]
    first = {"front": 0, "mid": 1, "back": 3}[placement]
    grown[:, first : first + 3] += 3.0 * made.vectors
    with model.edit({"blocks.1.resid_pre": ac.edits.Replace(grown)}):
        logits = model.logits(cached[:, :-1])
    assert torch.equal(logits[:, 5:].argmax(-1), cached[:, 6:])


def test_a_prompt_of_one_token_is_added_to_and_new_tokens_are_not():
    model, ids = shared("llama"), token_ids(1, 1)
    made = random_addition(model, 1, strength=2.0)
    site = "blocks.1.resid_pre"
    with made.apply(model), model.recording(site) as steered:
        written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    plain = model.record(written[:, :-1], "blocks.0.resid_post")["blocks.0.resid_post"]
    assert torch.allclose(steered[site][:, 0], plain[:, 0] + 2.0 * made.vectors[0], atol=1e-5)
    assert torch.allclose(steered[site][:, 1:], plain[:, 1:], atol=1e-5)


def test_beams_and_batches_write_what_each_prompt_writes_alone():
    model = shared("llama")
    ids = token_ids(2, 6)
    made = random_addition(model, 3, strength=torch.tensor([1.0, 4.0]))
    beams = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    both = made.generate(model, ids, **beams)
    for row, strength in enumerate((1.0, 4.0)):
        alone = random_addition(model, 3, strength=strength).generate(model, ids[row : row + 1], **beams)
        assert torch.equal(alone[0], both[row])


def test_replay_gives_the_same_logits(lm, addition):
    variants = [(addition * c).edits() for c in (0.5, 2.0)]
    for value, c in zip(lm.replay([OTHER, "Everyone said that the film was"], variants), (0.5, 2.0), strict=True):
        with (addition * c).apply(lm):
            assert torch.allclose(value[0], lm.logits(OTHER)[0, -1], atol=1e-4)


def test_texts_of_different_length_are_continued_as_alone(lm, addition):
    texts = [OTHER, "Everyone said that the film was"]
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert (addition * 2.0).generate(lm, texts, **greedy) == [
        (addition * 2.0).generate(lm, text, **greedy) for text in texts
    ]


def test_a_shorter_prompt_is_filled_up_with_real_tokens_on_the_right(lm):
    dot = lm.tokenizer.convert_tokens_to_ids(".")
    by_text = ac.steering.prompt_difference(lm, "Love", GLAD, site=SITE, pad=".")
    assert torch.equal(by_text, ac.steering.prompt_difference(lm, "Love", GLAD, site=SITE, pad=dot))
    short = torch.cat([lm.to_tokens("Love").ids[0], torch.full((3,), dot)])
    h = lm.record(short[None], SITE)[SITE][0] - lm.record(GLAD, SITE)[SITE][0]
    assert torch.allclose(by_text, h, atol=1e-5)
    with pytest.raises(InputError, match="not one token"):
        ac.steering.prompt_difference(lm, "Love", GLAD, site=SITE)


def test_spaces_fill_up_where_the_tokenizer_has_one(outside_data):
    model = ac.load(outside_data / "stories260K")
    site = "blocks.2.resid_pre"
    h = ac.steering.prompt_difference(model, "happy", "She was very sad", site=site)
    space = model.tokenizer.convert_tokens_to_ids("▁")
    short, long = (model.to_tokens(t).ids[0] for t in ("happy", "She was very sad"))
    short = torch.cat([short, torch.full((len(long) - len(short),), space)])
    assert torch.allclose(
        h, model.record(short[None], site)[site][0] - model.record(long[None], site)[site][0], atol=1e-5
    )


def test_padded_modes_leave_the_text_its_own_tokens(lm):
    made = {
        mode: ac.steering.ActivationAddition.from_prompts(lm, GLAD, SAD, site=SITE, mode=mode, pad=".")
        for mode in ("pad", "pad_remove")
    }
    text, dot = lm.to_tokens(OTHER).ids[0], lm.tokenizer.convert_tokens_to_ids(".")
    by_hand = torch.cat([text[:1], torch.full((4,), dot), text[1:]])[None]
    assert torch.equal(made["pad"].prepared(lm, OTHER).ids, by_hand)
    whole = made["pad"].logits(lm, OTHER)
    with lm.edit(made["pad"].edits()):
        assert torch.equal(whole, lm.logits(by_hand))
    kept = torch.cat([whole[:, :1], whole[:, 5:]], 1)
    assert torch.equal(made["pad_remove"].logits(lm, OTHER), kept)
    written = made["pad"].generate(lm, lm.to_tokens("Zoe"), max_new_tokens=1, do_sample=False)
    assert written.shape == (1, 2 + 4 + 1)


def test_relative_norms_are_ratios_at_the_places(lm, addition):
    texts = [OTHER, "Everyone said that the film was"]
    found = (addition * -2.0).relative_norm(lm, texts)
    for row, text in zip(found, texts, strict=True):
        h = lm.record(text, SITE)[SITE][0, :5]
        assert torch.allclose(row, 2 * addition.vectors.norm(dim=1) / h.norm(dim=1), atol=1e-4)
    with pytest.raises(InputError, match="3 strengths for 2 texts"):
        (addition * torch.ones(3)).relative_norm(lm, texts)


def test_the_control_has_the_same_lengths(addition):
    control = addition.random_like(3)
    assert torch.allclose(control.vectors.norm(dim=1), addition.vectors.norm(dim=1), atol=1e-5)
    assert torch.equal(control.vectors, addition.random_like(3).vectors)
    assert not torch.equal(control.vectors, addition.random_like(4).vectors)


def test_a_part_of_the_dimensions_leaves_the_others(lm, addition):
    part = addition.restricted_to(range(32))
    plain = lm.record(OTHER, SITE)[SITE]
    with part.apply(lm):
        new = lm.record(OTHER, SITE)[SITE]
    assert torch.equal(new[..., 32:], plain[..., 32:]) and not torch.equal(new[..., :32], plain[..., :32])
    rest = addition.restricted_to(slice(32, None))
    assert torch.allclose(part.vectors + rest.vectors, addition.vectors)
    with pytest.raises(InputError, match="127"):
        addition.restricted_to([128])


@pytest.mark.parametrize("strength", [2.5, torch.tensor([1.0, 2.0])])
def test_a_saved_addition_is_the_same(lm, addition, tmp_path, strength):
    from dataclasses import replace

    made = replace(addition, strength=strength, placement="back")
    again = ac.steering.ActivationAddition.load(made.save(tmp_path / "love.safetensors"))
    assert torch.equal(again.vectors, made.vectors) and again.made == made.made
    assert (again.site, again.placement, again.mode) == (SITE, "back", "overlay")
    texts = [OTHER, "Everyone said that the film was"]
    assert torch.equal(again.logits(lm, texts), made.logits(lm, texts))
    (tmp_path / "broken").write_bytes(b"no safetensors")
    with pytest.raises(LoadError):
        ac.steering.ActivationAddition.load(tmp_path / "broken")


def test_senseless_additions_are_refused(lm, addition):
    make = ac.steering.ActivationAddition.from_prompts
    with pytest.raises(InputError, match="the same"):
        make(lm, GLAD, GLAD, site=SITE)
    with pytest.raises(InputError, match="same once padded"):
        make(lm, "Love", "Love.", site=SITE, pad=".")
    with pytest.raises(SiteError):
        make(lm, GLAD, SAD, site="blocks.6.resid_pre")
    with pytest.raises(InputError, match="one of"):
        make(lm, GLAD, SAD, site="blocks.*.resid_pre")
    with pytest.raises(InputError, match="one of"):
        make(lm, GLAD, SAD, site="blocks.1.attn.z")
    with pytest.raises(InputError, match="empty"):
        make(lm, " ", SAD, site=SITE)
    with pytest.raises(InputError, match="has 2 tokens, the activation addition 5"):
        addition.logits(lm, "Zoe")
    with pytest.raises(InputError, match="has 2 tokens, the activation addition 5"), addition.apply(lm):
        lm.logits("Zoe")
    with pytest.raises(UnknownNameError, match="front"):
        make(lm, GLAD, SAD, site=SITE, placement="fronts")
    with pytest.raises(UnknownNameError, match="overlay"):
        make(lm, GLAD, SAD, site=SITE, mode="overlays")
    with pytest.raises(InputError, match="front"):
        make(lm, GLAD, SAD, site=SITE, mode="pad", placement="back", pad=".")
    with pytest.raises(InputError, match="finite"):
        ac.steering.ActivationAddition(torch.full((2, 4), torch.nan), SITE)
    with pytest.raises(InputError, match="zero"):
        ac.steering.ActivationAddition(torch.zeros(2, 4), SITE)
    with pytest.raises(InputError, match="finite"):
        ac.steering.ActivationAddition(torch.ones(2, 4), SITE, strength=float("inf"))
    with pytest.raises(InputError, match="size 4"):
        ac.steering.ActivationAddition(torch.ones(2, 4), SITE).logits(lm, OTHER)
    with (
        pytest.raises(InputError, match="positions"),
        shared("gpt2").edit({"blocks.0.attn.pattern": ac.steering.AddAtTokens(torch.ones(2, 4))}),
    ):
        pass


def test_a_strength_that_makes_nan_is_stopped():
    model = shared("gpt2")
    with random_addition(model, 3, strength=1e38).apply(model), pytest.raises(InputError, match="lower the strength"):
        model.logits(token_ids(1, 5))


def test_another_models_addition_is_refused_unless_asked_for(addition):
    model = shared("llama")
    made = random_addition(model, 2)
    made = ac.steering.ActivationAddition(made.vectors, made.site, made={"model": "another", "name": "another one"})
    with pytest.raises(InputError, match="transfer"):
        made.logits(model, token_ids(1, 4))
    assert made.logits(model, token_ids(1, 4), transfer=True).shape[:2] == (1, 4)
