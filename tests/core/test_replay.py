"""Replay gives the numbers of the plain sweep, on every causal family and for every kind of change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actinium.core import replay as replaying
from actinium.core.edits import Add, Clamp, Fn, Mean, ProjectOut, Replace, ReplaceWithin, Resample, Scale, Zero
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from actinium.core.replay import plain, replay
from architectures import ATTENTION, CAUSAL, WINDOW, build, inputs_for, shared, token_ids

LENGTHS = (9, 4, 6)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(side, lengths=LENGTHS):
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in lengths]
    if side == "even":
        texts = [token_ids(1, 9, seed=n)[0].tolist() for n in lengths]
    ids, mask = pad(texts, 0, "right" if side == "even" else side)
    return Tokens(ids, mask, torch.arange(len(ids)))


def agree(model, inputs, variants, read=-1):
    """Both sweeps, compared to 1e-5 of the logits' size; and the variants must differ from one another."""
    got, want = replay(model, inputs, variants, read=read), plain(model, inputs, variants, read=read)
    assert got.shape == want.shape
    error = (got - want).abs().flatten(1).amax(1) / want.abs().max().clamp(min=1)
    wrong = {str(variants[i]): float(e) for i, e in enumerate(error) if not e <= 1e-5}
    assert wrong == {}
    return got


def part(model, name):
    """The site's name in each of three blocks, if this architecture has it."""
    return [f"blocks.{i}.{name}" for i in range(3) if model.has(f"blocks.{i}.{name}")]


def streams(model):
    """Single positions, spans and whole layers of every stream site."""
    vector = drawn(32)
    out = []
    for name in ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out", "mixer.out"):
        for i, site in enumerate(part(model, name)):
            out += [
                {site: Add(vector).at(positions=[i + 1])},
                {site: Replace(drawn(32, seed=i)).at(positions=-1)},
                {site: ReplaceWithin(drawn(32, seed=i), drawn(2, 32, seed=9)).at(positions=[i, -1])},
                {site: Scale(0.5).at(positions=slice(1, 3))},
                {site: Zero().at(positions=slice(-2, None))},
                {site: Add(vector)},
            ]
    return out


def heads(model):
    """Heads at one position, in a span, and everywhere; a head's pattern and scores."""
    out = []
    for name in ("q", "k", "v", "z"):
        for i, site in enumerate(part(model, f"attn.{name}")):
            last = (model.n_heads if name in "qz" else model.tower.kv_heads) - 1
            out += [
                {site: Zero().at(heads=[min(i, last)], positions=[2])},
                {site: Scale(-1.0).at(heads=[last], positions=slice(1, None))},
                {site: Add(drawn(model.tower.d_head)).at(heads=[0])},
            ]
    for i, site in enumerate(part(model, "attn.pattern")):
        out += [{site: Zero().at(heads=[i])}, {site: Scale(0.5).at(heads=[3], positions=[-1, 2])}]
        out += [{site.replace("pattern", "scores"): Scale(0.5).at(heads=[i], positions=slice(2, None))}]
    return out


def units(model):
    """Units of the MLP's hidden layer."""
    out = []
    for name in ("pre", "gate", "post"):
        for i, site in enumerate(part(model, f"mlp.{name}")):
            out += [
                {site: Zero().at(units=[i, 7], positions=[1])},
                {site: Scale(3.0).at(units=range(5, 20))},
                {site: Clamp(-0.1, 0.1).at(positions=slice(-3, None))},
            ]
    return out


def several(model):
    """Variants that change several sites, in one block, across blocks, and out of order."""
    first, second, third = (f"blocks.{i}" for i in range(3))
    inner = "mixer.out" if model.has("blocks.0.mixer.out") else "mlp.out"
    out = [
        {f"{first}.resid_post": Add(drawn(32)).at(positions=[1]), f"{third}.{inner}": Zero().at(positions=[3])},
        {f"{third}.{inner}": Scale(0.1).at(positions=[-1]), f"{first}.resid_pre": Add(drawn(32)).at(positions=[2])},
        {f"{second}.resid_pre": [Add(drawn(32)), Scale(0.5)]},
        {f"{second}.resid_pre": [Scale(0.5), Add(drawn(32))]},
        {f"{second}.{inner}": Zero(), f"{second}.resid_post": Add(drawn(32, seed=1))},
        {f"{second}.resid_post": Add(drawn(32, seed=1)), f"{second}.{inner}": Zero()},
        {f"{first}.resid_post": Scale(0.3), f"{second}.resid_pre": Add(drawn(32, seed=2))},
        {f"{second}.resid_pre": Add(drawn(32, seed=2)), f"{first}.resid_post": Scale(0.3)},
        {f"{third}.resid_post": Scale(0.3).at(positions=[-1]), f"{third}.{inner}": Zero()},
        {"blocks.*.resid_post": Scale(0.9)},
        {f"blocks.*.{inner}": Scale(0.5).at(positions=slice(2, None))},
    ]
    if model.has("blocks.1.attn.z"):
        out += [
            {
                f"{second}.attn.z": Zero().at(heads=[1], positions=[-1]),
                f"{second}.attn.pattern": Scale(0.5).at(heads=[2]),
            },
            {f"{third}.attn.k": Zero().at(positions=[1]), f"{first}.attn.v": Scale(2.0).at(positions=[-2])},
            {f"{second}.attn.q": Scale(2.0), f"{second}.resid_pre": Add(drawn(32, seed=3)).at(positions=[0, 3])},
        ]
    return out


CHANGES = {"streams": streams, "heads": heads, "units": units, "several": several}


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        ("streams", "left"),
        ("streams", "right"),
        ("heads", "even"),
        ("heads", "left"),
        ("units", "right"),
        ("several", "even"),
        ("several", "left"),
    ],
)
@pytest.mark.parametrize("name", CAUSAL)
def test_replay_equals_the_plain_sweep(name, kind, side):
    model = shared(name)
    variants = CHANGES[kind](model)
    if not variants:
        assert "mamba" in name or kind == "units"
        return
    got = agree(model, batch(side), variants)
    assert got.shape == (len(variants), 3, model.config.vocab_size)
    # Hardly any change leaves every text's last logits alone; if all did, the comparison would say nothing.
    with torch.no_grad():
        base = plain(model, batch(side), [{"blocks.0.resid_pre": Scale(1.0)}])[0]
    assert float(((got - base).abs().amax((1, 2)) > 1e-4).float().mean()) > 0.5


@pytest.mark.parametrize("read", [-1, 0, 3, [-1], [0, -1], [3, 1, -2]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "gptj", "falcon", "mpt", "mamba", "phi"])
def test_several_read_positions(name, side, read):
    """Also positions before the change, where nothing may change."""
    model = shared(name)
    variants = [
        {"blocks.1.resid_pre": Add(drawn(32)).at(positions=[2])},
        {"blocks.0.resid_post": Add(drawn(32)).at(positions=slice(-2, None))},
        {"blocks.2.resid_post": Scale(0.5).at(positions=[-1])},
        {"blocks.2.resid_pre": Scale(2.0)},
    ]
    got = agree(model, batch(side), variants, read)
    assert got.shape[2:] == ((99,) if isinstance(read, int) else (len(read), 99))


OPERATORS = {
    "each column": lambda m: Replace(drawn(3, 9, 32)),
    "each column, some positions": lambda m: Replace(drawn(3, 9, 32)).at(positions=[2, 3]),
    "as many values as positions": lambda m: Replace(drawn(3, 2, 32)).at(positions=[2, -1]),
    "vector by column": lambda m: Add(drawn(9, 32)).at(positions=[3]),
    "factor by column": lambda m: Scale(drawn(9, 1)).at(positions=[2, 3]),
    "vector by row": lambda m: Add(drawn(3, 1, 32)).at(positions=[2]),
    "strength by row": lambda m: Add(drawn(32), scale=torch.tensor([1.0, 2.0, -1.0])).at(positions=[2]),
    "rows": lambda m: Add(drawn(32)).at(rows=[1], positions=[1]),
    "units": lambda m: Zero().at(units=[3, 5], positions=slice(1, 3)),
    "positions by row": lambda m: Add(drawn(32)).at(positions=torch.tensor([[5], [1], [-1]])),
    "resample": lambda m: Resample(drawn(3, 9, 32), seed=3),
    "resample, some positions": lambda m: Resample(drawn(7, 9, 32), seed=3).at(positions=[3]),
    "mean given": lambda m: Mean(drawn(32)).at(positions=[3]),
    "mean of a recording": lambda m: Mean(m.record(token_ids(4, 9), "blocks.1.**")).at(positions=[3]),
    "mean by position": lambda m: Mean(m.record(token_ids(4, 9), "blocks.1.**"), per_position=True).at(positions=[3]),
    "function": lambda m: Fn(torch.sin).at(positions=[3]),
    "function over positions": lambda m: Fn(lambda x: x.cumsum(1)).at(positions=[3]),
    "projection": lambda m: ProjectOut(drawn(2, 32)).at(positions=[3]),
    "nothing": lambda m: Scale(1.0),
    "nothing at a position": lambda m: Add(torch.zeros(32)).at(positions=[3]),
}  # fmt: skip


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp.out", "attn.out", "resid_mid"])
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_every_operator_replays(name, kind, site):
    model = shared(name)
    for side in ("even", "left"):
        agree(model, batch(side), [{f"blocks.1.{site}": OPERATORS[kind](model)}])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_values_for_each_column_of_heads_and_patterns_replay(name):
    model, inputs = shared(name), batch("even")
    rec = model.record(token_ids(3, 9, seed=5), "blocks.1.**")
    variants = []
    for name in ("attn.q", "attn.k", "attn.v", "attn.z", "attn.pattern", "attn.scores", "mlp.post", "mlp.pre"):
        site = f"blocks.1.{name}"
        value = rec[site] if name != "attn.scores" else rec[site].clamp(min=-50)
        variants += [{site: Replace(value)}, {site: Replace(value).at(positions=[3])}]
        variants += [{site: Replace(value).at(positions=slice(-3, None), heads=[1])}] if "attn" in name else []
    agree(model, inputs, variants)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "ministral"])
def test_changes_further_back_than_a_sliding_window_replay(name):
    """A position beyond the window reaches the last one through the blocks between."""
    model, inputs = shared(name), token_ids(2, 3 * WINDOW)
    variants = [
        {f"blocks.{i}.{p}": Add(5 * drawn(32)).at(positions=[c])}
        for i in range(3)
        for p in ("resid_pre", "mlp.out")
        for c in (0, WINDOW - 1, WINDOW, 2 * WINDOW, 3 * WINDOW - 1)
    ]
    agree(model, inputs, variants, read=[0, WINDOW, -1])


@pytest.mark.parametrize("name", ATTENTION)
def test_the_eager_implementation_replays(name):
    agree(shared(name, "eager"), batch("left"), [*streams(shared(name))[::4], *heads(shared(name))[::3]])


def test_an_engine_found_on_even_texts_is_right_for_padded_ones():
    model = Model(build("llama"))
    variants = streams(model)[::3]
    for side in ("even", "left", "even", "right"):
        agree(model, batch(side), variants)
    agree(model, batch("left", (9, 1, 2)), [{"blocks.1.resid_pre": Add(drawn(32)).at(positions=[0])}])
    agree(model, token_ids(1, 1), [{"blocks.1.resid_pre": Add(drawn(32))}])


def test_sweeps_larger_than_memory_are_run_in_pieces(monkeypatch):
    model, inputs = shared("llama"), batch("left")
    variants = [*streams(model), *heads(model)]
    want = replay(model, inputs, variants)
    for most in (1, 3000, 20000):
        monkeypatch.setattr(replaying, "IN_FLIGHT", most)
        assert torch.allclose(replay(model, inputs, variants), want, atol=1e-4)


def test_a_metric_is_applied_piece_by_piece():
    model, inputs = shared("llama"), batch("left")
    variants = streams(model)
    whole = replay(model, inputs, variants)
    got = replay(model, inputs, variants, metric=lambda logits: logits[..., 5] - logits[..., 6])
    assert torch.allclose(got, whole[..., 5] - whole[..., 6], atol=1e-5)


@settings(max_examples=40)
@given(st.data())
def test_any_set_of_changes_replays(data):
    """Random sites, positions, heads and order; random lengths and padding."""
    model = shared(data.draw(st.sampled_from(["llama", "gpt2", "gpt_neox", "bloom", "gemma2", "mixtral"])))
    lengths = data.draw(st.lists(st.integers(2, 8), min_size=1, max_size=3))
    inputs = batch(data.draw(st.sampled_from(["left", "right"])), lengths)
    names = [s for s in model.sites() if s.layer is not None]
    variants = []
    for _ in range(data.draw(st.integers(1, 4))):
        changes = []
        for site in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
            edit = Scale(data.draw(st.sampled_from([0.0, 0.5, -1.0])))
            limit = {}
            if data.draw(st.booleans()):
                limit["positions"] = data.draw(st.lists(st.integers(-2, 1), min_size=1, max_size=2))
            if "head" in site.dims and data.draw(st.booleans()):
                limit["heads"] = [data.draw(st.integers(0, 3))]
            changes.append((site.name, edit.at(**limit)))
        variants.append(changes)
    agree(model, inputs, variants, data.draw(st.sampled_from([-1, [0, -1], [-2]])))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3"])
def test_the_work_below_and_before_a_change_is_not_done_again(name):
    """Blocks count the rows x positions that pass; those under the changes see the base run alone."""
    model, inputs = Model(build(name)), token_ids(2, 9)
    variants = [{"blocks.2.resid_pre": Add(drawn(32)).at(positions=[p])} for p in range(9)]
    replay(model, inputs, variants)
    seen = [0, 0, 0]

    def count(i):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            seen[i] += x.shape[0] * x.shape[1]

        return hook

    handles = [b.register_forward_pre_hook(count(i), with_kwargs=True) for i, b in enumerate(model.tower.blocks)]
    replay(model, inputs, variants)
    for handle in handles:
        handle.remove()
    assert seen[:2] == [18, 18]
    assert seen[2] <= 18 + 9 * 18


def test_replay_within_an_edit_block_has_that_edit_in_force():
    model, inputs = shared("llama"), batch("left")
    variants = streams(model)[:4]
    with model.edit({"blocks.0.mlp.out": Zero()}):
        agree(model, inputs, variants)
        got = replay(model, inputs, variants)
    assert not torch.allclose(got, replay(model, inputs, variants), atol=1e-3)


@pytest.mark.parametrize("site", ["embed", "final_norm", "logits", "module:model.layers.1.mlp"])
def test_changes_outside_the_blocks_run_the_plain_way(site):
    model, inputs = shared("llama"), batch("left")
    agree(model, inputs, [{site: Scale(0.5)}, {site: Scale(-1.0), "blocks.1.resid_post": Add(drawn(32))}])


def test_a_masked_language_model_runs_the_plain_way():
    model = shared("bert")
    agree(model, batch("right"), [{"blocks.1.resid_post": Add(drawn(32)).at(positions=[1])}], read=[0, 2])


def test_bfloat16_replays_within_its_precision():
    model = Model(build("llama").to(torch.bfloat16))
    variants = [{"blocks.1.resid_pre": Add(drawn(32)).at(positions=[p])} for p in range(4)]
    got, want = replay(model, batch("left"), variants), plain(model, batch("left"), variants)
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), want.float(), atol=0.05 * float(want.abs().max()))


def test_replay_leaves_the_model_as_it_was():
    model, inputs = shared("llama"), batch("left")
    with torch.no_grad():
        before = model.logits(inputs)
        replay(model, inputs, [*streams(model)[:5], *heads(model)[:5]])
        assert torch.equal(model.logits(inputs), before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.module.modules())
    assert not model.config._attn_implementation.startswith("actinium")


def test_what_replay_cannot_do_is_refused():
    model, inputs = shared("llama"), batch("left")
    with pytest.raises(InputError, match="no variants"):
        replay(model, inputs, [])
    with pytest.raises(InputError, match="no edits"):
        replay(model, inputs, [{}])
    with pytest.raises(InputError, match="read"):
        replay(model, inputs, [{"embed": Zero()}], read=4)
    with pytest.raises(SiteError):
        replay(model, inputs, [{"blocks.9.resid_pre": Zero()}])
    with pytest.raises(InputError, match="size"):
        replay(model, inputs, [{"blocks.1.resid_pre": Add([1.0, 2.0])}])
    with pytest.raises(InputError, match=r"tokens|each position"):
        replay(shared("vit"), inputs_for("vit"), [{"blocks.1.resid_pre": Zero()}])
