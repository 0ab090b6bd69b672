"""Every operator and every restriction against plain tensor arithmetic."""

from __future__ import annotations

import pytest
import torch

from actinium.core.edits import Add, Clamp, Fn, Mean, ProjectOut, Replace, ReplaceWithin, Resample, Scale, Zero
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from architectures import ATTENTION, CAUSAL, build, inputs_for, shared, token_ids

SITE = "blocks.1.resid_post"
LENGTHS = (7, 3, 5, 4)


def ragged(side="left"):
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in LENGTHS]
    ids, mask = pad(texts, 0, side)
    return Tokens(ids, mask, torch.arange(len(ids)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(model, inputs, edits, at=SITE):
    with model.edit(edits):
        return model.record(inputs, at)[at]


VECTOR, PLANE, STRENGTHS = drawn(32), drawn(3, 32, seed=1), torch.tensor([1.0, -3.0])


def without(x, directions):
    """x minus its least-squares fit by the directions."""
    fit = torch.linalg.lstsq(directions.double().T, x.double().flatten(0, -2).T).solution
    return (x.double() - (directions.double().T @ fit).T.view(x.shape)).float()


OPERATORS = {
    "add": (Add(VECTOR), lambda x: x + VECTOR),
    "add scaled": (Add(VECTOR, scale=-2.5), lambda x: x - 2.5 * VECTOR),
    "add by row": (Add(VECTOR, scale=STRENGTHS), lambda x: x + STRENGTHS[:, None, None] * VECTOR),
    "add by position": (Add(drawn(7, 32)), lambda x: x + drawn(7, 32)),
    "add list": (Add([1.0] * 32), lambda x: x + 1),
    "scale": (Scale(0.25), lambda x: x * 0.25),
    "scale each unit": (Scale(VECTOR), lambda x: x * VECTOR),
    "zero": (Zero(), torch.zeros_like),
    "clamp": (Clamp(-0.5, 0.75), lambda x: x.clip(-0.5, 0.75)),
    "clamp above": (Clamp(max=0.1), lambda x: torch.where(x > 0.1, 0.1, x)),
    "clamp below": (Clamp(min=0.1), lambda x: torch.where(x < 0.1, 0.1, x)),
    "project one": (ProjectOut(7 * VECTOR), lambda x: x - (x @ VECTOR)[..., None] * VECTOR / VECTOR.square().sum()),
    "project a plane": (ProjectOut(PLANE), lambda x: without(x, PLANE)),
    "project repeated": (ProjectOut(torch.cat([PLANE, PLANE[:1]])), lambda x: without(x, PLANE)),
    "replace by a vector": (Replace(VECTOR), lambda x: VECTOR.expand_as(x)),
    "replace whole": (Replace(drawn(2, 7, 32)), lambda x: drawn(2, 7, 32)),
    "replace by a number": (Replace(3.0), lambda x: torch.full_like(x, 3.0)),
    "replace along a direction": (
        ReplaceWithin(PLANE[0], 7 * VECTOR),
        lambda x: x + ((PLANE[0] - x) @ VECTOR)[..., None] * VECTOR / VECTOR.square().sum(),
    ),
    "replace in a plane": (
        ReplaceWithin(VECTOR, PLANE),
        lambda x: without(x, PLANE) + VECTOR - without(VECTOR[None], PLANE),
    ),
    "mean given": (Mean(VECTOR), lambda x: VECTOR.expand_as(x)),
    "function": (Fn(torch.sin), torch.sin),
}  # fmt: skip


@pytest.mark.parametrize("kind", OPERATORS)
def test_each_operator_is_its_formula(kind):
    model, inputs = shared("llama"), token_ids()
    edit, formula = OPERATORS[kind]
    plain = model.record(inputs, SITE)[SITE]
    assert torch.allclose(read(model, inputs, {SITE: edit}), formula(plain), atol=1e-5)


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_restricted_operator_leaves_the_rest_bit_for_bit(kind):
    model, inputs = shared("llama"), token_ids()
    edit, formula = OPERATORS[kind]
    plain = model.record(inputs, SITE)[SITE]
    got = read(model, inputs, {SITE: edit.at(positions=[1, -2], units=[3, 4, 30], rows=[1])})
    inside = torch.zeros_like(plain, dtype=torch.bool)
    for position in (1, 5):
        inside[1, position, [3, 4, 30]] = True
    if kind == "replace whole":
        formula = lambda x: drawn(2, 7, 32)  # noqa: E731
    assert torch.allclose(got[inside], formula(plain)[inside], atol=1e-5)
    assert torch.equal(got[~inside], plain[~inside])


def test_mean_of_a_recording_is_the_mean_over_its_real_positions():
    model, tokens = shared("llama"), ragged()
    rec = model.record(tokens, ["blocks.*.resid_post", "blocks.1.attn.z", "blocks.1.attn.pattern"])
    mean = rec[SITE][tokens.mask].mean(0)
    got = read(model, token_ids(), {SITE: Mean(rec)})
    assert torch.allclose(got, mean.expand_as(got), atol=1e-6)
    z = read(model, token_ids(), {"blocks.1.attn.z": Mean(rec).at(heads=[2])}, "blocks.1.attn.z")
    assert torch.allclose(z[:, :, 2], rec["blocks.1.attn.z"][tokens.mask].mean(0)[2].expand_as(z[:, :, 2]), atol=1e-6)


def test_mean_of_a_recording_over_a_pattern_is_each_sites_own():
    model, tokens = shared("llama"), ragged()
    rec = model.record(tokens, "blocks.*.mlp.out")
    with model.edit({"blocks.*.mlp.out": Mean(rec)}):
        got = model.record(token_ids(), "blocks.*.mlp.out")
    for site in rec.sites:
        mean = rec[site][tokens.mask].mean(0)
        assert torch.allclose(got[site], mean.expand_as(got[site]), atol=1e-6), site


def test_mean_by_position_keeps_positions_apart():
    model = shared("llama")
    rec = model.record(token_ids(5, 7, seed=4), SITE)
    got = read(model, token_ids(), {SITE: Mean(rec, per_position=True)})
    assert torch.allclose(got, rec[SITE].mean(0).expand_as(got), atol=1e-6)
    with pytest.raises(InputError, match="differ in length"):
        read(model, token_ids(), {SITE: Mean(model.record(ragged(), SITE), per_position=True)})


def test_mean_of_patterns_needs_texts_of_one_length_and_then_is_their_mean():
    model, site = shared("llama"), "blocks.1.attn.pattern"
    rec = model.record(token_ids(5, 7, seed=4), site)
    got = read(model, token_ids(), {site: Mean(rec)}, site)
    assert torch.allclose(got, rec[site].mean(0).expand_as(got), atol=1e-6)


def test_resample_gives_each_row_another_rows_activation():
    model, inputs = shared("llama"), token_ids(5, 7)
    source = model.record(inputs, SITE)[SITE]
    for seed in range(5):
        got = read(model, inputs, {SITE: Resample(source, seed=seed)})
        chosen = [next(j for j in range(5) if torch.allclose(got[i], source[j], atol=1e-6)) for i in range(5)]
        assert all(i != j for i, j in enumerate(chosen))
        again = read(model, inputs, {SITE: Resample(source, seed=seed)})
        assert torch.equal(got, again)
    other = read(model, inputs, {SITE: Resample(drawn(9, 7, 32), seed=0)})
    assert all(any(torch.allclose(row, d, atol=1e-6) for d in drawn(9, 7, 32)) for row in other)


@pytest.mark.parametrize(
    "edit",
    [
        Resample(drawn(4, 7, 32), seed=1),
        Resample(drawn(9, 7, 32), seed=1),
        Replace(drawn(4, 7, 32)),
        Add(VECTOR, scale=torch.arange(4.0)),
        Add(VECTOR).at(rows=[1, 2]),
        Scale(2.0).at(positions=torch.tensor([[1], [0], [2], [-1]])),
    ],
    ids=["resample as many", "resample more", "replace", "strength by row", "rows", "positions by row"],
)
def test_rows_of_an_edit_are_those_of_the_whole_call_whatever_the_batches(edit):
    model, tokens = shared("llama"), ragged("right")
    with model.edit({SITE: edit}):
        whole = model.record(tokens, "blocks.2.resid_post")["blocks.2.resid_post"]
        for batch_size in (1, 2, 3):
            parts = model.record(tokens, "blocks.2.resid_post", batch_size=batch_size)["blocks.2.resid_post"]
            assert torch.allclose(parts, whole, atol=1e-4), batch_size


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "positions",
    [0, 2, -1, [0, -1], [2, 5], slice(1, 3), slice(-2, None), slice(None, -1), slice(0, None, 2), range(1, 3),
     torch.tensor([0, 2]), torch.tensor([[1, 6], [0, 2], [-1, -2], [3, 0]])],
    ids=str,
)  # fmt: skip
def test_positions_are_tokens_of_each_text_under_padding(positions, side):
    model, tokens = shared("llama"), ragged(side)
    plain = model.record(tokens, SITE)[SITE]
    got = read(model, tokens, {SITE: Add(VECTOR).at(positions=positions)})
    for i, n in enumerate(LENGTHS):
        if isinstance(positions, slice):
            wanted = list(range(n))[positions]
        else:
            given = positions[i].tolist() if getattr(positions, "ndim", 1) == 2 else positions
            given = [given] if isinstance(given, int) else list(map(int, given))
            wanted = [p % n for p in given if -n <= p < n]
        expected = plain[i][tokens.mask[i]].clone()
        expected[wanted] += VECTOR
        assert torch.allclose(got[i][tokens.mask[i]], expected, atol=1e-6), i


@pytest.mark.parametrize("heads", [0, [1, 3], range(2, 4)], ids=str)
@pytest.mark.parametrize("part", ["q", "z", "pattern", "scores"])
@pytest.mark.parametrize("name", ["llama", "gptj", "bloom", "falcon", "mpt"])
def test_heads_restrict_an_edit_to_themselves(name, part, heads):
    model, site = shared(name), f"blocks.1.attn.{part}"
    plain = model.record(token_ids(), site)[site]
    got = read(model, token_ids(), {site: Scale(0.5).at(heads=heads)}, site)
    dim = 2 if part in ("q", "z") else 1
    chosen = [heads] if isinstance(heads, int) else list(heads)
    rest = [h for h in range(4) if h not in chosen]
    assert torch.equal(got.index_select(dim, torch.tensor(rest)), plain.index_select(dim, torch.tensor(rest)))
    want = plain.index_select(dim, torch.tensor(chosen)) * 0.5
    assert torch.allclose(got.index_select(dim, torch.tensor(chosen)), want, atol=1e-6)


def test_heads_and_units_of_a_key_are_those_of_its_own_heads():
    model, site = shared("llama"), "blocks.1.attn.k"
    plain = model.record(token_ids(), site)[site]
    got = read(model, token_ids(), {site: Zero().at(heads=1, units=[0, 5])}, site)
    want = plain.clone()
    want[:, :, 1, [0, 5]] = 0
    assert torch.equal(got, want)


def test_edits_of_one_site_apply_in_the_order_of_entry():
    model, inputs = shared("llama"), token_ids()
    plain = model.record(inputs, SITE)[SITE]
    add, scale = Add(VECTOR), Scale(2.0)
    assert torch.allclose(read(model, inputs, {SITE: [add, scale]}), 2 * (plain + VECTOR), atol=1e-5)
    assert torch.allclose(read(model, inputs, {SITE: [scale, add]}), 2 * plain + VECTOR, atol=1e-5)
    pairs = [(SITE, add), ("blocks.*.resid_post", scale)]
    with model.edit({"blocks.0.resid_post": scale}):
        doubled = model.record(inputs, SITE)[SITE]
    assert torch.allclose(read(model, inputs, pairs), 2 * (doubled + VECTOR), atol=1e-4)
    with model.edit({SITE: add}), model.edit({SITE: scale}):
        assert torch.allclose(model.record(inputs, SITE)[SITE], 2 * (plain + VECTOR), atol=1e-5)


def by_hand(module, path, change, kind):
    """Edit with a hook of one's own: the reference for what an edit must do to the rest of the pass."""
    part = module.get_submodule(path)
    if kind == "output":
        return part.register_forward_hook(
            lambda m, a, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
        )
    return part.register_forward_pre_hook(lambda m, a: (change(a[0]), *a[1:]))


HANDS = {
    "embed": ("model.embed_tokens", "output"),
    "blocks.1.resid_pre": ("model.layers.0", "output"),
    "blocks.1.attn.z": ("model.layers.1.self_attn.o_proj", "input"),
    "blocks.1.attn.out": ("model.layers.1.self_attn.o_proj", "output"),
    "blocks.1.mlp.gate": ("model.layers.1.mlp.gate_proj", "output"),
    "blocks.1.mlp.pre": ("model.layers.1.mlp.up_proj", "output"),
    "blocks.1.mlp.post": ("model.layers.1.mlp.down_proj", "input"),
    "blocks.1.mlp.out": ("model.layers.1.mlp", "output"),
    "blocks.1.resid_post": ("model.layers.1", "output"),
    "final_norm": ("model.norm", "output"),
}


@pytest.mark.parametrize("site", HANDS)
def test_the_rest_of_the_pass_sees_the_edited_value(site):
    module, inputs = build("llama"), token_ids()
    model = Model(module)
    change = torch.tanh
    handle = by_hand(module, HANDS[site][0], change, HANDS[site][1])
    with torch.no_grad():
        want = module(inputs).logits
    handle.remove()
    with torch.no_grad(), model.edit({site: Fn(change)}):
        assert torch.allclose(module(inputs).logits, want, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in CAUSAL if n not in ("mamba", "falcon_mamba")])
def test_editing_the_middle_of_a_block_changes_the_stream_beside_the_mlp(name):
    """resid_post - mlp.out is the edited stream itself, not the one before the edit."""
    model, inputs = shared(name), token_ids()
    if not model.has("blocks.1.resid_mid"):
        with pytest.raises(SiteError, match="Blocks of"):
            model.sites("blocks.1.resid_mid")
        return
    with model.edit({"blocks.1.resid_mid": Add(VECTOR)}):
        rec = model.record(inputs, "blocks.1.{resid_mid,resid_post,mlp.out}")
    plain = model.record(inputs, "blocks.1.resid_mid")["blocks.1.resid_mid"]
    assert torch.allclose(rec["blocks.1.resid_mid"], plain + VECTOR, atol=1e-5)
    total = rec["blocks.1.resid_mid"] + rec["blocks.1.mlp.out"]
    if name == "opt-350m":
        total = model.module.model.decoder.layers[1].final_layer_norm(total)
    assert torch.allclose(rec["blocks.1.resid_post"], total, atol=1e-4)


@pytest.mark.parametrize("name", ATTENTION)
def test_edited_patterns_scores_and_values_are_what_z_is_made_of(name):
    model, inputs = shared(name), token_ids()
    edits = {
        "blocks.1.attn.scores": Fn(lambda s: s * 0.5),
        "blocks.1.attn.pattern": Scale(0.8).at(heads=[1], positions=[2, -1]),
        "blocks.1.attn.v": Fn(lambda v: v + 1),
    }
    with model.edit(edits):
        rec = model.record(inputs, "blocks.1.attn.{q,k,scores,pattern,v,z}")
    plain = model.record(inputs, "blocks.1.attn.{scores,v}")
    assert torch.allclose(rec["blocks.1.attn.scores"], plain["blocks.1.attn.scores"] * 0.5, atol=1e-5)
    pattern = rec["blocks.1.attn.scores"].softmax(-1)
    pattern[:, 1, [2, 6]] *= 0.8
    assert torch.allclose(rec["blocks.1.attn.pattern"], pattern, atol=1e-5)
    v = plain["blocks.1.attn.v"] + 1
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v.repeat_interleave(4 // v.shape[2], 2))
    assert torch.allclose(rec["blocks.1.attn.z"], z, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "falcon", "gptj"])
def test_an_edited_query_and_key_make_the_scores(name):
    model, inputs = shared(name), token_ids()
    d_head = model.tower.d_head
    plain = model.record(inputs, "blocks.1.attn.{q,k,scores}")
    with model.edit({"blocks.1.attn.q": Add(drawn(d_head)), "blocks.1.attn.k": Scale(2.0)}):
        rec = model.record(inputs, "blocks.1.attn.{q,k,scores}")
    k = plain["blocks.1.attn.k"].repeat_interleave(4 // plain["blocks.1.attn.k"].shape[2], 2)
    q = plain["blocks.1.attn.q"]
    old, new = torch.einsum("bqhd,bkhd->bhqk", q, k), torch.einsum("bqhd,bkhd->bhqk", q + drawn(d_head), 2 * k)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    got = (rec["blocks.1.attn.scores"] - plain["blocks.1.attn.scores"])[..., seen]
    assert torch.allclose(got, ((new - old) * d_head**-0.5)[..., seen], atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "dinov2", "bert", "t5-gated", "clip_vision_model"])
def test_other_kinds_of_models_are_edited_at_their_positions_and_heads(name):
    model, inputs = shared(name), inputs_for(name)
    prefix = "decoder." if name.startswith("t5") else ""
    for part, edit in (("resid_post", Zero().at(positions=[1], units=[3])), ("attn.z", Scale(3.0).at(heads=2))):
        site = f"{prefix}blocks.1.{part}"
        plain = model.record(inputs, site)[site]
        want = plain.clone()
        if part == "resid_post":
            want[:, 1, 3] = 0
        else:
            want[:, :, 2] *= 3
        assert torch.allclose(read(model, inputs, {site: edit}, site), want, atol=1e-6)


WRONG = {
    "vector of another size": lambda: {SITE: Add([1.0, 2.0])},
    "head beyond the last": lambda: {"blocks.1.attn.z": Zero().at(heads=[4])},
    "unit beyond the last": lambda: {SITE: Zero().at(units=[32])},
    "heads of a stream": lambda: {SITE: Zero().at(heads=[0])},
    "units of a pattern": lambda: {"blocks.1.attn.pattern": Zero().at(units=[0])},
    "negative head": lambda: {"blocks.1.attn.z": Zero().at(heads=[-1])},
    "no positions": lambda: {SITE: Zero().at(positions=[])},
    "positions as floats": lambda: {SITE: Zero().at(positions=torch.tensor([0.5]))},
    "positions as flags": lambda: {SITE: Zero().at(positions=torch.tensor([True, False]))},
    "positions as text": lambda: {SITE: Zero().at(positions="last")},
    "backward slice": lambda: {SITE: Zero().at(positions=slice(5, 1, -1))},
    "not an edit": lambda: {SITE: VECTOR},
    "no edits": lambda: {},
    "NaN in the vector": lambda: {SITE: Add([float("nan")] * 32)},
    "no directions": lambda: {SITE: ProjectOut(torch.zeros(32))},
    "empty clamp": lambda: {SITE: Clamp()},
    "crossed clamp": lambda: {SITE: Clamp(2, 1)},
    "one row to draw from": lambda: {SITE: Resample(drawn(1, 7, 32))},
    "not a function": lambda: {SITE: Fn(3)},
    "unlike pair": lambda: [(SITE, Zero(), 3)],
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_edit_that_cannot_fit_is_refused_before_anything_runs(kind):
    model = shared("llama")
    ran = []
    handle = model.module.register_forward_pre_hook(lambda m, a: ran.append(1))
    with pytest.raises(InputError), model.edit(WRONG[kind]()):
        model(token_ids())
    handle.remove()
    assert not ran


def test_an_edit_at_an_unknown_site_is_refused_with_the_nearest_name():
    with (
        pytest.raises(SiteError, match=r"blocks\.1\.resid_post"),
        shared("llama").edit({"blocks.1.resid_pots": Zero()}),
    ):
        pass


def test_a_replacement_of_another_length_than_the_text_is_refused():
    model = shared("llama")
    with pytest.raises(InputError), model.edit({SITE: Replace(drawn(3, 7, 32))}):
        model(token_ids(2, 7))


def test_at_makes_a_new_edit_and_leaves_the_old_one_whole():
    edit = Add(VECTOR)
    part = edit.at(positions=[0])
    assert edit.positions is None
    assert part.vector is edit.vector
    both = part.at(units=[1])
    assert both.positions == [0]
    assert "positions=[0]" in repr(both)
