"""Edits compose, restrict and undo themselves, whatever happens in the forward pass and whoever else is running."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actinium.core import taps
from actinium.core.edits import Add, Clamp, Fn, Scale, Zero
from actinium.core.model import Model
from architectures import build, inputs_for, shared, token_ids

SITE = "blocks.1.resid_post"
KINDS = ("gpt2", "llama", "gptj", "falcon", "t5-gated", "mamba")


def output(model, inputs):
    with torch.no_grad():
        return model(inputs).logits


def untouched(module):
    """No hook of ours, no function mode, no program; the attention implementation is a library name."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    assert hooks == 0
    assert taps.board(module).hooks == 0
    assert torch._C._len_torch_function_stack() == 0
    assert taps.state.programs == []
    for part in module.modules():
        name = getattr(getattr(part, "config", None), "_attn_implementation", None)
        assert name is None or not name.startswith("actinium")


OPERATORS = {
    "add": (lambda a: Add(torch.linspace(-a, a, 32)), lambda x, a: x + torch.linspace(-a, a, 32)),
    "scale": (lambda a: Scale(a), lambda x, a: x * a),
    "zero": (lambda a: Zero(), lambda x, a: x * 0),
    "clamp": (lambda a: Clamp(-abs(a), abs(a)), lambda x, a: x.clamp(-abs(a), abs(a))),
    "bend": (lambda a: Fn(lambda x: x.sin() * a), lambda x, a: x.sin() * a),
}
edit = st.tuples(
    st.sampled_from(sorted(OPERATORS)),
    st.floats(-2, 2, width=32),
    st.none() | st.lists(st.integers(-7, 6), min_size=1, max_size=3) | st.slices(7).filter(lambda s: (s.step or 1) > 0),
    st.none() | st.lists(st.integers(0, 31), min_size=1, max_size=4),
    st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=2),
)


@settings(max_examples=120)
@given(st.lists(edit, min_size=1, max_size=4))
def test_edits_at_a_site_are_the_composition_of_restricted_operators(chosen):
    """In the order of entry; whatever no restriction covers keeps every bit."""
    model, inputs = shared("gpt2"), token_ids()
    plain = model.record(inputs, SITE)[SITE]
    want, ever = plain.clone(), torch.zeros_like(plain, dtype=torch.bool)
    entered = []
    for kind, amount, positions, units, rows in chosen:
        make, formula = OPERATORS[kind]
        entered.append(make(amount).at(positions=positions, units=units, rows=rows))
        inside = torch.zeros(plain.shape, dtype=torch.bool)
        columns = range(7)[positions] if isinstance(positions, slice) else positions
        columns = range(7) if positions is None else [p % 7 for p in columns]
        for row in (0, 1) if rows is None else rows:
            for column in columns:
                inside[row, column, slice(None) if units is None else units] = True
        want = torch.where(inside, formula(want, amount), want)
        ever |= inside
    with model.edit([(SITE, one) for one in entered]):
        got = model.record(inputs, SITE)[SITE]
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.equal(got[~ever], plain[~ever])
    # The same edits as nested blocks.
    with ExitStack() as stack:
        for one in entered:
            stack.enter_context(model.edit({SITE: one}))
        assert torch.equal(model.record(inputs, SITE)[SITE], got)
    untouched(model.module)


class Stop(Exception):
    """Raised by a test inside a forward pass."""


PROBES = {
    name: [n for n, _ in build(name).named_modules() if n and not n.endswith(("act", "act_fn", "dropout"))]
    for name in KINDS
}


def prefix(name):
    return "decoder." if name.startswith("t5") else ""


def sites_of(name):
    p = prefix(name)
    return ["**"] if name == "mamba" else [f"{p}blocks.1.attn.{{q,pattern,z}}", f"{p}blocks.2.resid_post", "logits"]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_an_exception_anywhere_in_the_forward_pass_undoes_everything(name, error, data):
    module, inputs = shared(name).module, inputs_for(name)
    model = shared(name)
    plain = output(model, inputs)
    where = data.draw(st.sampled_from(PROBES[name]))
    late = data.draw(st.booleans())
    how = data.draw(st.sampled_from(["edit", "record", "recording", "record in edit"]))

    def fail(*args):
        raise error

    part = module.get_submodule(where)
    handle = part.register_forward_hook(fail) if late else part.register_forward_pre_hook(fail)
    edits = {f"{prefix(name)}blocks.1.resid_post": Scale(2.0)}
    if name != "mamba":
        edits[f"{prefix(name)}blocks.0.attn.pattern"] = Scale(0.5)
    try:
        with ExitStack() as stack:
            if "edit" in how:
                stack.enter_context(model.edit(edits))
            if how == "recording":
                stack.enter_context(model.recording(sites_of(name)))
            try:
                if how.startswith("record") and how != "recording":
                    model.record(inputs, sites_of(name))
                else:
                    model(inputs)
            except error:
                # Within the block the next pass is as good as any.
                handle.remove()
                again = output(model, inputs)
                assert torch.equal(again, plain) != ("edit" in how)
            raise Stop
    except Stop:
        pass
    finally:
        handle.remove()
    untouched(module)
    assert torch.equal(output(model, inputs), plain)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_an_exception_inside_an_edit_or_a_reducer_undoes_everything(name):
    model, inputs = shared(name), token_ids()
    plain = output(model, inputs)

    def fail(x):
        raise Stop

    for site in (SITE, "blocks.1.attn.pattern", "blocks.1.attn.k"):
        with pytest.raises(Stop), model.edit({site: Fn(fail)}):
            model(inputs)
        untouched(model.module)

    class Broken:
        def update(self, values):
            raise Stop

        def result(self):
            return None

    with pytest.raises(Stop):
        model.record(inputs, SITE, reduce=Broken())
    untouched(model.module)
    assert torch.equal(output(model, inputs), plain)


@pytest.mark.parametrize("name", ["gptj", "bloom", "falcon", "falcon-alibi", "mpt", "llama", "gemma2"])
def test_no_function_mode_survives_a_recording_that_ends_inside_attention(name):
    """Each site within attention is where an early stop leaves the forward pass half way."""
    model, inputs = shared(name), token_ids()
    whole = model.record(inputs, "**")
    for i in range(3):
        for part in ("q", "k", "v", "scores", "pattern"):
            site = f"blocks.{i}.attn.{part}"
            assert torch.equal(model.record(inputs, site)[site], whole[site]), site
            untouched(model.module)
    again = model.record(inputs, "**")
    assert all(torch.equal(again[s], whole[s]) for s in whole.sites)


@settings(max_examples=40)
@given(st.permutations(range(4)), st.permutations(range(4)))
def test_blocks_may_end_in_any_order(opening, closing):
    """Each edit holds from its entry to its own exit."""
    model, inputs = shared("llama"), token_ids(1, 4)
    sites = ["blocks.0.resid_post", SITE, "blocks.1.attn.pattern", "blocks.2.mlp.out"]
    blocks = {i: model.edit({sites[i]: Scale(1.0 + (i + 1) / 10)}) for i in range(4)}
    for i in opening:
        blocks[i].__enter__()
    for n, i in enumerate(closing):
        blocks[i].__exit__(None, None, None)
        got = output(model, inputs)
        left = {sites[j]: Scale(1.0 + (j + 1) / 10) for j in opening if j not in closing[: n + 1]}
        with twin().edit(left) if left else nullcontext():
            assert torch.allclose(got, output(twin(), inputs), atol=1e-6)
    untouched(model.module)


@cache
def twin():
    """The same weights in another module, which the blocks under test cannot reach."""
    return Model(build("llama"))


def test_an_edit_block_can_be_entered_again_inside_itself():
    """The same edit object in two blocks applies twice."""
    model, inputs = shared("llama"), token_ids()
    plain = model.record(inputs, SITE)[SITE]
    double = Scale(2.0)
    with model.edit({SITE: double}):
        with model.edit({SITE: double}):
            assert torch.equal(model.record(inputs, SITE)[SITE], 4 * plain)
        assert torch.equal(model.record(inputs, SITE)[SITE], 2 * plain)
    assert torch.equal(model.record(inputs, SITE)[SITE], plain)


def test_an_edit_may_run_another_model():
    """A function that calls a second model inside the first one's pass sees that model unedited, and recorded."""
    one, two, inputs = shared("llama"), shared("gpt2"), token_ids()
    other = two.record(inputs, SITE)[SITE]
    plain = one.record(inputs, SITE)[SITE]
    with one.edit({SITE: Fn(lambda x: x + two.record(inputs, SITE)[SITE])}):
        rec = one.record(inputs, [SITE, "blocks.2.attn.pattern"])
    assert torch.allclose(rec[SITE], plain + other, atol=1e-6)
    assert rec["blocks.2.attn.pattern"].shape == (2, 4, 7, 7)
    untouched(one.module)
    untouched(two.module)


def test_two_models_at_once_never_see_each_others_edits():
    """Also of one class, and with the same sites."""
    one, two, inputs = Model(build("llama", seed=1)), Model(build("llama", seed=2)), token_ids()
    plain = output(one, inputs), output(two, inputs)
    with one.edit({SITE: Scale(2.0), "blocks.0.attn.pattern": Scale(0.5)}):
        edited = output(one, inputs)
        assert torch.equal(output(two, inputs), plain[1])
        with two.edit({SITE: Zero()}), two.recording("**.pattern") as rec:
            assert torch.equal(output(one, inputs), edited)
            zeroed = output(two, inputs)
        assert torch.equal(output(two, inputs), plain[1])
    assert not torch.equal(edited, plain[0])
    assert not torch.equal(zeroed, plain[1])
    assert rec["blocks.0.attn.pattern"].shape[0] == 2
    assert torch.equal(output(one, inputs), plain[0])


def test_two_wrappers_of_one_module_share_its_edits():
    module, inputs = build("llama"), token_ids()
    one, two = Model(module), Model(module)
    plain = output(one, inputs)
    with one.edit({SITE: Scale(2.0)}):
        assert torch.equal(output(two, inputs), output(one, inputs))
        assert not torch.equal(output(two, inputs), plain)
    untouched(module)


def in_threads(jobs, rounds=6):
    """Run every job `rounds` times in a thread of its own, all at once."""
    gate = threading.Barrier(len(jobs))

    def loop(job):
        out = []
        for _ in range(rounds):
            gate.wait()
            out.append(job())
        return out

    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(loop, job) for job in jobs]
        return [f.result() for f in futures]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "falcon", "bloom"])
def test_threads_with_different_edits_on_one_model_each_get_their_own_result(name):
    model, inputs = shared(name), token_ids()
    programs = [
        {SITE: Scale(0.5)},
        {SITE: Add(torch.ones(32)), "blocks.2.attn.pattern": Scale(0.3)},
        {"blocks.0.attn.z": Zero()},
        {},
    ]

    def job(edits):
        def run():
            with ExitStack() as stack:
                if edits:
                    stack.enter_context(model.edit(edits))
                rec = model.record(inputs, ["blocks.1.attn.pattern", "blocks.2.resid_post"])
                return rec["blocks.1.attn.pattern"], rec["blocks.2.resid_post"], output(model, inputs)

        return run

    jobs = [job(p) for p in programs]
    alone = [j() for j in jobs]
    for want, got in zip(alone, in_threads(jobs), strict=True):
        for one in got:
            assert all(torch.equal(a, b) for a, b in zip(one, want, strict=True))
    untouched(model.module)


def test_threads_may_generate_with_edits_of_their_own():
    model, prompt = shared("llama"), token_ids(2, 4)

    def job(scale):
        def run():
            with model.edit({SITE: Scale(scale)}), model.recording("blocks.2.resid_post") as rec:
                ids = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
            return ids, rec["blocks.2.resid_post"]

        return run

    jobs = [job(s) for s in (0.2, 1.0, 3.0)]
    alone = [j() for j in jobs]
    for want, got in zip(alone, in_threads(jobs, 3), strict=True):
        assert all(torch.equal(one[0], want[0]) and torch.equal(one[1], want[1]) for one in got)
    untouched(model.module)


def test_an_edit_holds_in_its_own_thread_only():
    model, inputs = shared("llama"), token_ids()
    plain = output(model, inputs)
    with model.edit({SITE: Zero()}), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(output, model, inputs).result(), plain)
        assert not torch.equal(output(model, inputs), plain)


def test_a_thread_that_fails_leaves_the_others_their_edits():
    model, inputs = shared("llama"), token_ids()
    with model.edit({SITE: Scale(2.0)}):
        want = output(model, inputs)

        def fail():
            with model.edit({SITE: Zero(), "blocks.1.attn.pattern": Zero()}):
                raise Stop

        with ThreadPoolExecutor(1) as pool, pytest.raises(Stop):
            pool.submit(fail).result()
        assert torch.equal(output(model, inputs), want)
    untouched(model.module)
