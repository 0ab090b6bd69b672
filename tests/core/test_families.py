"""Every architecture's sites hold what its weights say, and reading or idle editing changes no output."""

from __future__ import annotations

import causal_references
import other_references
import pytest
import torch

import architectures as known
from actinium.core.edits import Add, Fn, Scale
from actinium.core.family_table import FAMILIES
from actinium.core.inputs import Tokens, pad
from actinium.core.taps import board
from architectures import BUILDERS, MASKED, SEQ2SEQ, VISION, inputs_for, shared, token_ids

ALL = list(BUILDERS)
REFERENCES = {**causal_references.CLASSES, **other_references.CLASSES}
WITH_HIDDEN_STATES = [n for n in ALL if n != "clip"]
GROUPS = ("embed", "**.resid_*", "**.attn.{q,k,v,z}", "**.attn.{scores,pattern}", "**.mlp.*", "**.out", "**")


def main_output(output):
    """The tensor that a caller of the model would look at."""
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise AssertionError(type(output))


def run(model, inputs):
    with torch.no_grad():
        return main_output(model(inputs))


def close(got, want, tolerance=2e-5):
    """Whether two tensors agree relative to the largest entry of the wanted one; NaN there means no claim."""
    known = ~torch.isnan(want)
    assert got.shape == want.shape
    return bool(((got - want)[known].abs() <= tolerance * want[known].abs().max().clamp(min=1)).all())


def test_every_model_type_of_the_table_is_in_the_matrix():
    built = {shared(n).config.model_type for n in ALL}
    assert {t for f in FAMILIES for t in f.types} == built


@pytest.mark.parametrize("name", ALL)
def test_every_site_follows_from_the_sites_before_it_and_the_weights(name):
    model, inputs = shared(name), inputs_for(name)
    sites = [s.name for s in model.sites()]
    rec = model.record(inputs, sites)
    with torch.no_grad():
        expected = dict(REFERENCES[name](model.module, inputs).expected(rec))
    assert set(expected) == set(sites)
    assert [s for s in sites if not close(rec[s], expected[s])] == []


@pytest.mark.parametrize("name", [n for n in ALL if "mamba" not in n])
def test_recorded_patterns_are_peaked_and_masked_scores_lose_everything(name):
    """The random weights must let a wrong mask or scale show; a hidden key gets exactly nothing."""
    model = shared(name)
    rec = model.record(inputs_for(name), "**.attn.{scores,pattern}")
    for site in rec.sites:
        if site.endswith("pattern"):
            pattern, scores = rec[site], rec[site.replace("pattern", "scores")]
            assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
            assert float(pattern.amax(-1).mean()) > 1.3 / pattern.shape[-1]
            hidden = scores < -1e9
            causal = model.tower.stack.causal and "encoder" not in site and "vision" not in site
            assert bool(hidden.any()) == causal
            assert not bool(pattern[hidden].any())


@pytest.mark.parametrize("name", ALL)
def test_sites_have_the_dimensions_and_sizes_that_they_state(name):
    model, inputs = shared(name), inputs_for(name)
    rec = model.record(inputs, "**")
    for site in model.sites():
        sizes = dict(zip(site.dims, rec[site].shape, strict=True))
        assert {d: sizes[d] for d in site.sizes} == dict(site.sizes)
        assert sizes["batch"] == 2
        if "pos" in sizes and name not in (*VISION, "clip"):
            assert sizes["pos"] == (5 if site.stack == "decoder" or (name in SEQ2SEQ and not site.stack) else 7)


@pytest.mark.parametrize("name", WITH_HIDDEN_STATES)
def test_streams_and_patterns_are_those_that_transformers_returns(name):
    """`output_hidden_states` and `output_attentions` of the eager model, against recordings of the default one."""
    model, own = shared(name), shared(name, "eager")
    inputs = inputs_for(name)
    ready = next(own.prepare(inputs).batches(None, own.device))[2]
    has_attention = "mamba" not in name
    with torch.no_grad():
        more = {"output_attentions": True} if has_attention else {}
        out = own.module(**ready, output_hidden_states=True, **more)
    # The library's eager Falcon adds its linear biases twice; there the eager model speaks for itself.
    rec = (own if name == "falcon-alibi" else model).record(inputs, "**")
    towers = {"encoder.": "encoder_", "decoder.": "decoder_"} if name in SEQ2SEQ else {"": ""}
    for prefix, attribute in towers.items():
        states = getattr(out, f"{attribute}hidden_states")
        if not has_attention:
            # Mamba's tuple starts after the first block.
            states = (rec["blocks.0.resid_pre"], *states[:2], states[-1])
        for i, state in enumerate(states[:-1]):
            assert close(rec[f"{prefix}blocks.{i}.resid_pre"], state)
        last = f"{prefix}final_norm"
        if name == "opt-350m":
            assert close(rec["blocks.2.resid_post"] @ model.module.model.decoder.project_out.weight.T, states[-1])
        elif last in rec and name not in VISION:
            assert close(rec[last], states[-1])
        else:
            assert close(rec[f"{prefix}blocks.{len(states) - 2}.resid_post"], states[-1])
        for i, pattern in enumerate(getattr(out, f"{attribute}attentions") if has_attention else ()):
            assert close(rec[f"{prefix}blocks.{i}.attn.pattern"], pattern)
    if name in SEQ2SEQ:
        for i, pattern in enumerate(out.cross_attentions):
            assert close(rec[f"decoder.blocks.{i}.cross_attn.pattern"], pattern)


@pytest.mark.parametrize("name", ALL)
def test_recording_any_group_of_sites_changes_no_bit_of_the_output(name):
    model, inputs = shared(name), inputs_for(name)
    plain = run(model, inputs)
    for group in filter(model.has, GROUPS):
        with model.recording(group) as rec:
            assert torch.equal(run(model, inputs), plain)
        early = model.record(inputs, group)
        assert set(early.sites) == set(rec.sites)
        assert all(torch.equal(early[s], rec[s]) for s in rec.sites)
    assert torch.equal(run(model, inputs), plain)
    assert board(model.module).hooks == 0


@pytest.mark.parametrize("name", ALL)
def test_edits_that_do_nothing_change_no_bit_of_the_output(name):
    model, inputs = shared(name), inputs_for(name)
    plain = run(model, inputs)
    for group in filter(model.has, GROUPS):
        with model.edit({group: Fn(lambda x: x.clone())}):
            assert torch.equal(run(model, inputs), plain)
    with model.edit({"**.resid_post": Add([0.0] * 32), "embed" if model.has("embed") else "**.embed": Scale(1.0)}):
        assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize("name", ALL)
def test_an_edit_at_each_site_reaches_what_comes_after_it(name):
    """A site that could not be written would leave the output as it is."""
    model, inputs = shared(name), inputs_for(name)
    plain = run(model, inputs)
    for site in model.sites():
        # A CLIP vision tower's output for a caller is its last hidden state, which every site reaches as well.
        dead = model.family.name == "CLIP vision" and site.name == "final_norm"
        with model.edit({site.name: Fn(lambda x: x * torch.linspace(0.3, 0.8, x.shape[-1]).to(x))}):
            changed = run(model, inputs)
        assert dead or not torch.allclose(changed, plain, rtol=1e-3, atol=1e-4), site.name


def padded(sequences, side):
    ids, mask = pad(sequences, 0, side)
    return Tokens(ids, mask, torch.arange(len(ids)))


def row(value, site, keep):
    """The real positions of one row's values (pos, …), or of both sides of a pattern."""
    dims = site.dims[1:]
    for dim, name in enumerate(dims):
        if name in ("pos", "query", "key"):
            value = value.index_select(dim, keep)
    return value


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [*known.CAUSAL, *MASKED])
def test_padding_on_either_side_gives_the_rows_without_padding(name, side):
    model = shared(name)
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in (7, 3, 5)]
    tokens = padded(texts, side)
    together = model.record(tokens, "**")
    for i, text in enumerate(texts):
        alone = model.record(torch.tensor([text]), "**")
        keep = tokens.mask[i].nonzero()[:, 0]
        for site in model.sites():
            got, want = row(together[site][i], site, keep), alone[site][0]
            if site.part.endswith("scores"):
                # What is added to hidden keys, and to whole rows, is the mask's business.
                if "bloom" in name or "mpt" in name or "alibi" in name:
                    continue
                want = want.masked_fill(want < -1e9, torch.nan)
            assert close(got, want, 5e-5), (site.name, len(text))
            if "pos" in site.dims:
                assert not bool(together[site][i][~tokens.mask[i]].any()), site.name


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_padding_of_encoder_and_decoder_texts_gives_the_rows_without_padding(name):
    model = shared(name)
    sources = [token_ids(1, n, seed=n)[0].tolist() for n in (7, 3)]
    targets = [token_ids(1, n, seed=9 + n)[0].tolist() for n in (3, 5)]
    ids, mask = pad(sources, 0)
    decoder_ids, decoder_mask = pad(targets, 0)
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    inputs |= {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask.long()}
    together = model.record(inputs, "**")
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        pair = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([target])}
        alone = model.record(pair, "**")
        for site in model.sites():
            want = alone[site][0]
            got = together[site][i][tuple(slice(0, n) for n in want.shape)]
            if site.part.endswith("scores"):
                want = want.masked_fill(want < -1e9, torch.nan)
            assert close(got, want, 5e-5), site.name


def test_padding_a_clip_text_gives_the_rows_without_padding():
    model = shared("clip")
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in (6, 4)]
    ids, mask = pad(texts, 0)
    pixels = known.images(2)
    together = model.record({"input_ids": ids, "attention_mask": mask.long(), "pixel_values": pixels}, "text.**")
    for i, text in enumerate(texts):
        alone = model.record({"input_ids": torch.tensor([text]), "pixel_values": pixels[:1]}, "text.**")
        for name in alone.sites:
            want = alone[name][0]
            got = together[name][i][tuple(slice(0, n) for n in want.shape)]
            want = want.masked_fill(want < -1e9, torch.nan) if name.endswith("scores") else want
            assert close(got, want, 5e-5), name


@pytest.mark.parametrize("name", [n for n in ALL if n != "falcon-alibi"])
def test_eager_and_sdpa_attention_give_the_same_sites(name):
    sites = "**"
    eager = shared(name, "eager").record(inputs_for(name), sites)
    default = shared(name).record(inputs_for(name), sites)
    assert eager.sites == default.sites
    for site in eager.sites:
        want = eager[site].masked_fill(eager[site] < -1e9, torch.nan)
        assert close(default[site], want), site


@pytest.mark.parametrize("name", [n for n in ALL if "mamba" not in n])
def test_the_attention_implementation_is_the_users_again_afterwards(name):
    for attention in (None, "eager"):
        model = shared(name, attention)
        configs = {id(m.config): m.config for m in model.module.modules() if hasattr(m, "config")}
        before = {key: c._attn_implementation for key, c in configs.items()}
        model.record(inputs_for(name), "**.{pattern,q}")
        with model.edit({"**.attn.z": Scale(1.0)}):
            run(model, inputs_for(name))
        assert {key: c._attn_implementation for key, c in configs.items()} == before
