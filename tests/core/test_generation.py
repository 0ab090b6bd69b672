"""What is recorded while a model generates is what one pass over the final sequence gives, edits included."""

from __future__ import annotations

import pytest
import torch

from actinium.core.edits import Add, Clamp, Fn, ProjectOut, Replace, Scale, Zero
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from architectures import ATTENTION, CAUSAL, SEQ2SEQ, WINDOW, build, shared, token_ids

NEW = 2 * WINDOW
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
# One of each way to attend: plain, grouped heads, sliding window, biases, parallel, own attention code.
SOME = ("gpt2", "llama", "mistral", "gemma2", "gemma3_text", "bloom", "gptj", "falcon", "falcon-alibi", "mpt", "opt")


def left_padded(lengths=(6, 3)):
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in lengths]
    ids, mask = pad(texts, 0, "left")
    return Tokens(ids, mask, torch.arange(len(ids)))


def extended(tokens, ids):
    """The final sequences without their last token, which no pass ever read."""
    more = ids.shape[1] - 1 - tokens.ids.shape[1]
    mask = torch.cat([tokens.mask, torch.ones(len(ids), more, dtype=torch.bool)], 1)
    return Tokens(ids[:, :-1], mask, torch.arange(len(ids)))


def same(got, want, scores=False, tolerance=1e-4):
    """Whether two recordings of one site agree; hidden keys' scores are whatever the mask adds."""
    assert got.shape == want.shape
    known = torch.isfinite(got) & (got > -1e9) & (want > -1e9) if scores else torch.ones_like(got, dtype=torch.bool)
    if scores:
        assert bool(((want <= -1e9) | known).all())
    return bool(((got - want)[known].abs() <= tolerance * want[known].abs().max().clamp(min=1)).all())


def compare(model, rec, want):
    assert set(rec.sites) == set(want.sites)
    wrong = []
    for site in want.sites:
        if not same(rec[site], want[site], site.endswith("scores")):
            wrong.append(site)
    assert wrong == []


@pytest.mark.parametrize("name", CAUSAL)
def test_recording_a_generation_equals_one_pass_over_the_final_sequence(name):
    model, prompt = shared(name), token_ids(2, 5)
    with model.recording("**") as rec:
        ids = model.generate(prompt, **GREEDY)
    assert ids.shape == (2, 5 + NEW)
    assert torch.equal(rec.tokens, ids[:, :-1])
    compare(model, rec, model.record(ids[:, :-1], "**"))


@pytest.mark.parametrize("name", CAUSAL)
def test_recording_a_left_padded_generation_equals_one_padded_pass(name):
    model, tokens = shared(name), left_padded()
    with model.recording("**") as rec:
        ids = model.generate(tokens, **GREEDY)
    want = extended(tokens, ids)
    assert torch.equal(rec.mask, want.mask)
    whole = model.record(want, "**")
    if name == "mpt":
        # Its biases count columns from the last possible key; a row's constant means nothing.
        whole.values = {s: v for s, v in whole.values.items() if not s.endswith("scores")}
        rec.values = {s: v for s, v in rec.values.items() if not s.endswith("scores")}
    compare(model, rec, whole)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_recording_a_translation_equals_one_pass_over_both_texts(name):
    model, tokens = shared(name), left_padded()
    source = tokens.ids
    with model.recording("**") as rec:
        ids = model.generate(source, **GREEDY)
    want = model.record({"input_ids": source, "decoder_input_ids": ids[:, :-1]}, "**")
    compare(model, rec, want)


@pytest.mark.parametrize("name", SOME)
def test_recording_changes_no_token_and_generation_without_cache_gives_the_same(name):
    model, prompt = shared(name), token_ids(2, 5)
    plain = model.generate(prompt, **GREEDY)
    with model.recording("**.{resid_post,pattern,k}") as rec:
        assert torch.equal(model.generate(prompt, **GREEDY), plain)
    with model.recording("**.resid_post") as slow:
        assert torch.equal(model.generate(prompt, use_cache=False, **GREEDY), plain)
    # Without a cache every step is a pass of its own: the last ones hold the whole sequence.
    last = slow["blocks.1.resid_post"][-2:]
    assert torch.allclose(last, rec["blocks.1.resid_post"], atol=1e-4)


def everywhere(d_head):
    """Edits of every kind that hold at all positions."""
    torch.manual_seed(0)
    return {
        "blocks.0.resid_post": Add(torch.randn(32)),
        "blocks.1.attn.q": Scale(1.2),
        "blocks.1.attn.k": Add(torch.randn(d_head)),
        "blocks.1.attn.v": Zero().at(heads=[0]),
        "blocks.1.attn.z": Scale(0.5).at(heads=[1]),
        "blocks.1.attn.out": ProjectOut(torch.randn(2, 32)),
        "blocks.2.resid_pre": Clamp(-1.5, 1.5),
        "blocks.2.resid_post": Fn(lambda x: 0.9 * x + 0.1),
    }


@pytest.mark.parametrize("name", ATTENTION)
def test_recording_an_edited_generation_equals_one_edited_pass(name):
    """Also with patterns, keys and values edited: what the cache holds must not be edited twice, or never."""
    model, tokens = shared(name), left_padded()
    d_head = model.tower.d_head
    edits = {**everywhere(d_head), "blocks.0.attn.pattern": Scale(0.7).at(heads=[1, 2])}
    with model.edit(edits), model.recording("**") as rec:
        ids = model.generate(tokens, **GREEDY)
    want = extended(tokens, ids)
    with model.edit(edits):
        whole = model.record(want, "**")
    drop = [s for s in whole.sites if s.endswith("scores") and name == "mpt"]
    for one in (rec, whole):
        one.values = {s: v for s, v in one.values.items() if s not in drop}
    compare(model, rec, whole)
    assert not torch.equal(model.generate(tokens, **GREEDY), ids)


@pytest.mark.parametrize("name", SOME)
def test_an_edited_generation_equals_the_edited_generation_without_a_cache(name):
    model, tokens = shared(name), left_padded()
    edits = {**everywhere(model.tower.d_head), "blocks.2.attn.out": Add(torch.ones(32)).at(positions=[2, 7, 9])}
    with model.edit(edits):
        cached = model.generate(tokens, **GREEDY)
        slow = model.generate(tokens, use_cache=False, **GREEDY)
    assert torch.equal(cached, slow)
    assert not torch.equal(cached, model.generate(tokens, **GREEDY))


ABSOLUTE = [0, [1, 2], 7, slice(2, 9), slice(4, None), slice(1, None, 3), torch.tensor([[1, 8], [2, 3]])]


@pytest.mark.parametrize("positions", ABSOLUTE, ids=str)
@pytest.mark.parametrize("site", ["resid_post", "attn.q", "attn.k", "attn.v", "attn.z", "attn.pattern"])
@pytest.mark.parametrize("name", ["llama", "mistral", "bloom"])
def test_positions_are_absolute_while_generating(name, site, positions):
    """Positions count the tokens of each text, prompt and new ones alike, whatever the cache holds."""
    model, tokens = shared(name), left_padded()
    edits = {f"blocks.1.{site}": Scale(-0.8).at(positions=positions)}
    with model.edit(edits), model.recording("blocks.{1,2}.resid_post") as rec:
        ids = model.generate(tokens, **GREEDY)
    with model.edit(edits):
        whole = model.record(extended(tokens, ids), rec.sites)
    assert all(same(rec[s], whole[s]) for s in rec.sites)


NEGATIVE = [-1, [-1, -2], slice(-2, None), slice(None, -1), slice(-3, -1)]


@pytest.mark.parametrize("positions", NEGATIVE, ids=str)
@pytest.mark.parametrize("site", ["resid_post", "attn.k", "attn.z"])
def test_negative_positions_count_from_the_end_of_the_prompt_while_generating(site, positions):
    """The plain pass over the final sequence is told the same columns by their absolute numbers."""
    model, tokens = shared("llama"), left_padded((6, 4))
    with (
        model.edit({f"blocks.1.{site}": Scale(-0.8).at(positions=positions)}),
        model.recording("blocks.{1,2}.resid_post") as rec,
    ):
        ids = model.generate(tokens, **GREEDY)
    want = extended(tokens, ids)
    rows = []
    for n in (6, 4):
        total = n + NEW - 1
        if isinstance(positions, slice):
            start = 0 if positions.start is None else n + positions.start
            stop = total if positions.stop is None else n + positions.stop
            rows.append(list(range(start, stop)))
        else:
            rows.append([n + p for p in ([positions] if isinstance(positions, int) else positions)])
    for i, wanted in enumerate(rows):
        alone = Tokens(want.ids[i : i + 1], want.mask[i : i + 1], torch.zeros(1, dtype=torch.long))
        with model.edit({f"blocks.1.{site}": Scale(-0.8).at(positions=wanted)}):
            whole = model.record(alone, rec.sites)
        for s in rec.sites:
            assert same(rec[s][i : i + 1], whole[s]), s


@pytest.mark.parametrize("positions", NEGATIVE, ids=str)
def test_negative_positions_mean_the_same_with_and_without_a_cache(positions):
    model, tokens = shared("llama"), left_padded((6, 4))
    with model.edit({"blocks.1.resid_post": Add(torch.linspace(-3, 3, 32)).at(positions=positions)}):
        cached = model.generate(tokens, **GREEDY)
        slow = model.generate(tokens, use_cache=False, **GREEDY)
    assert torch.equal(cached, slow)


def test_a_value_for_each_prompt_position_leaves_the_new_tokens_alone():
    """Replace holds columns of the prompt only; what generation adds beyond them keeps its own value."""
    model, prompt = shared("llama"), token_ids(2, 5)
    other = model.record(token_ids(2, 5, seed=3), "blocks.1.resid_post")["blocks.1.resid_post"]
    with model.edit({"blocks.1.resid_post": Replace(other)}), model.recording("blocks.1.resid_post") as rec:
        ids = model.generate(prompt, **GREEDY)
    got = rec["blocks.1.resid_post"]
    assert torch.allclose(got[:, :5], other, atol=1e-5)
    # The new columns are those of a pass in which the first five are replaced.
    with model.edit({"blocks.1.resid_post": Replace(other).at(positions=slice(0, 5))}):
        whole = model.record(ids[:, :-1], "blocks.1.resid_post")["blocks.1.resid_post"]
    assert torch.allclose(got, whole, atol=1e-4)


def test_a_vector_for_each_prompt_position_leaves_the_new_tokens_alone():
    """Add and Scale hold columns of the prompt only, as Replace may."""
    model, prompt = shared("llama"), token_ids(2, 5)
    more = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    edits = [("blocks.0.resid_post", Scale(1 + more / 5)), ("blocks.1.resid_post", Add(more))]
    with model.edit(edits), model.recording("blocks.*.resid_post") as rec:
        ids = model.generate(prompt, **GREEDY)
    longer = torch.cat([more, torch.zeros(NEW - 1, 32)])
    with model.edit({"blocks.0.resid_post": Scale(1 + longer / 5), "blocks.1.resid_post": Add(longer)}):
        whole = model.record(ids[:, :-1], rec.sites)
    assert all(same(rec[s], whole[s]) for s in rec.sites)


@pytest.mark.parametrize("options", [
    {"prompt_lookup_num_tokens": 2},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 2},
], ids=lambda o: next(iter(o)))  # fmt: skip
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_other_ways_to_generate_record_the_same(name, options):
    """Rolled-back guesses, a cache of fixed length, a prompt read in pieces."""
    model = Model(build(name))
    prompt = token_ids(1, 6).repeat(1, 2)  # repeats itself, so that looking up guesses right at times
    with model.recording("**") as rec:
        ids = model.generate(prompt, **GREEDY, **options)
    want = model.record(ids[:, :-1], "**")
    for site in want.sites:
        got = rec[site]
        if got.shape != want[site].shape and site.endswith(("scores", "pattern")):
            got = got[..., : want[site].shape[-1]]  # a static cache has columns that nothing has filled
        if site == "logits":
            continue  # only the rows that choose the next token are computed
        assert same(got, want[site], site.endswith("scores")), site


def test_sampled_sequences_of_one_prompt_are_rows_of_their_own():
    model, prompt = shared("llama"), token_ids(1, 5)
    torch.manual_seed(0)
    with model.recording("blocks.*.resid_post") as rec:
        ids = model.generate(
            prompt, max_new_tokens=4, do_sample=True, num_return_sequences=3, eos_token_id=None, temperature=2.0
        )
    assert len({tuple(r) for r in ids.tolist()}) == 3
    want = model.record(ids[:, :-1], rec.sites)
    assert all(same(rec[s], want[s]) for s in rec.sites)


def test_two_generations_in_one_recording_are_more_rows():
    model = shared("gpt2")
    with model.recording("blocks.1.resid_post") as rec:
        one = model.generate(token_ids(1, 5, seed=1), **GREEDY)
        two = model.generate(token_ids(2, 4, seed=2), **GREEDY)
    assert rec["blocks.1.resid_post"].shape == (3, 4 + NEW, 32)
    want = model.record(two[:, :-1], rec.sites)
    assert same(rec["blocks.1.resid_post"][1:, : 3 + NEW], want["blocks.1.resid_post"])
    assert torch.equal(rec.tokens[0], one[0, :-1])
    assert rec.mask.sum(1).tolist() == [4 + NEW, 3 + NEW, 3 + NEW]


def test_recording_a_beam_search_is_refused():
    with shared("gpt2").recording("blocks.1.resid_post"), pytest.raises(InputError, match="beam"):
        shared("gpt2").generate(token_ids(1, 5), max_new_tokens=3, num_beams=2)


def test_beam_search_without_a_recording_runs_and_may_be_edited():
    model = shared("gpt2")
    plain = model.generate(token_ids(1, 5), max_new_tokens=5, num_beams=3, eos_token_id=None)
    with model.edit({"blocks.1.resid_post": Add(torch.linspace(-9, 9, 32))}):
        edited = model.generate(token_ids(1, 5), max_new_tokens=5, num_beams=3, eos_token_id=None)
    assert not torch.equal(plain, edited)


def test_a_module_that_cannot_generate_is_refused():
    with pytest.raises(InputError, match="cannot generate"):
        shared("vit").generate(token_ids())


@pytest.mark.parametrize("use_cache", [True, False])
def test_new_positions_are_those_after_the_prompt(use_cache):
    model, tokens, vector = shared("gpt2"), left_padded(), torch.linspace(-9, 9, 32)
    with (
        model.recording("blocks.0.resid_post") as plain,
        model.edit({"blocks.0.resid_post": Add(vector).at(positions="prompt")}),
        model.edit({"blocks.0.resid_post": Add(-vector).at(positions="prompt")}),
    ):
        model.generate(tokens, **GREEDY, use_cache=use_cache)
    with model.recording("blocks.0.resid_post") as rec, model.edit({"blocks.0.resid_post": Zero().at(positions="new")}):
        model.generate(tokens, **GREEDY, use_cache=use_cache)
    kept = rec["blocks.0.resid_post"][:, : tokens.ids.shape[1]]
    assert torch.allclose(kept, plain["blocks.0.resid_post"][:, : tokens.ids.shape[1]], atol=1e-4)
    assert float(rec["blocks.0.resid_post"][:, tokens.ids.shape[1] :].abs().max()) == 0
    with (
        model.recording("blocks.0.resid_post") as rec,
        model.edit({"blocks.0.resid_post": Zero().at(positions="prompt")}),
    ):
        model.generate(tokens, **GREEDY, use_cache=use_cache)
    assert float(rec["blocks.0.resid_post"][:, : tokens.ids.shape[1]].abs().max()) == 0
    assert bool((rec["blocks.0.resid_post"][:, tokens.ids.shape[1] :].abs().amax(-1) > 0).all())


def test_each_prompt_keeps_its_strength_in_a_beam_search():
    model, vector = shared("gpt2"), torch.linspace(-9, 9, 32)
    ids, strengths = token_ids(2, 5), torch.tensor([0.0, 1.0])
    options = {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": None}
    with model.edit({"blocks.1.resid_post": Add(vector, scale=strengths)}):
        both = model.generate(ids, **options)
    for row, strength in enumerate(strengths.tolist()):
        with model.edit({"blocks.1.resid_post": Add(vector, scale=strength)}):
            assert torch.equal(model.generate(ids[row : row + 1], **options)[0], both[row])
    with model.edit({"blocks.1.resid_post": Add(vector).at(rows=1)}):
        assert torch.equal(model.generate(ids, **options), both)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_pass_over_a_filled_cache_is_recorded_under_its_own_padding(name):
    model, ids = shared(name), token_ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :2], mask[1, -1] = 0, 0  # padding before the first text and behind the second
    places = (mask.cumsum(1) - 1).clamp(min=0)
    begun = model.module(ids[:, :4], attention_mask=mask[:, :4], position_ids=places[:, :4], use_cache=True)
    with model.recording("blocks.1.resid_post") as rec:
        model.module(ids[:, 4:], attention_mask=mask, position_ids=places[:, 4:], past_key_values=begun.past_key_values)
    want = model.record(Tokens(ids, mask.bool(), torch.arange(2)), "blocks.1.resid_post")["blocks.1.resid_post"]
    assert same(rec["blocks.1.resid_post"], want[:, 4:])
    assert torch.equal(rec.mask, mask[:, 4:].bool()) and torch.equal(rec.tokens, ids[:, 4:])
