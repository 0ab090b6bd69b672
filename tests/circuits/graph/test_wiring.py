"""A run put together from its edges is the model's own, and an ablated edge is what its definition says."""

from __future__ import annotations

import pytest
import torch
from explicit_gpt2 import Explicit
from toys import random_task, task_of

import actinium as ac
import architectures
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import Wiring
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

SUPPORTED = (
    "gpt2",
    "gpt_neox",
    "gpt_neox-sequential",
    "gptj",
    "opt",
    "bloom",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "smollm3",
    "ministral",
    "phi3",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "phi",
    "falcon",
    "falcon-alibi",
    "mpt",
)
REFUSED = ("opt-350m", "gemma2", "gemma3_text", "falcon-new", "mamba", "bert", "t5")
PADDED = random_task(padding=(2, 1), changed=3)


def last(model: Model, task, ids) -> torch.Tensor:
    """The model's own logits after the last token."""
    with torch.no_grad():
        return model.logits(Tokens(ids, task.mask, torch.arange(len(task))))[:, -1]


def some(layout: Layout, n: int, share: float, seed: int = 0) -> torch.Tensor:
    """(n, edge) bool, each edge kept with a probability."""
    return torch.rand(n, layout.n_edges, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("name", SUPPORTED)
def test_full_graph_is_the_model_and_empty_graph_the_corrupt_run(name):
    model = architectures.shared(name)
    for task in (random_task(changed=3), PADDED):
        wiring = Wiring(model, task)
        ends = torch.stack([torch.ones(wiring.layout.n_edges), torch.zeros(wiring.layout.n_edges)])
        # What is held of the full run would hide a wrong layer: run it anew, from edges kept by half.
        wiring.hold(ends[0] / 2)
        full, empty = wiring.logits(ends)
        clean, corrupt = (last(model, task, ids) for ids in (task.clean_ids, task.corrupt_ids))
        torch.testing.assert_close(full, clean, atol=1e-5 * float(clean.abs().max()), rtol=0)
        torch.testing.assert_close(empty, corrupt, atol=1e-5 * float(corrupt.abs().max()), rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_models_whose_edges_are_not_known_are_refused(name):
    task = random_task()
    with pytest.raises(InputError):
        Wiring(architectures.shared(name), task)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_blocked_receiver_is_the_patched_input(name):
    """All edges of one receiver ablated: the same as putting the corrupt run's activation there."""
    model, task = architectures.shared(name), PADDED
    wiring = Wiring(model, task)
    tokens, corrupt = (Tokens(i, task.mask, torch.arange(len(task))) for i in (task.clean_ids, task.corrupt_ids))
    rec = model.record(corrupt, ["blocks.1.attn.q", "blocks.1.attn.k", "blocks.1.attn.v", "blocks.1.mlp.out"])
    group = wiring.layout.n_heads // wiring.layout.kv_heads
    receivers = [r.name for r in wiring.layout.receivers]
    for part, letters, head in (("q", "h", 3), ("k", "kv", 1), ("v", "kv", 0)):
        letters = "h" if group == 1 else letters
        column = receivers.index(f"a1.{letters}{head}<{part}>")
        kept = wiring.layout.vector(torch.ones(wiring.layout.allowed.shape).index_fill(1, torch.tensor(column), 0))
        site = f"blocks.1.attn.{part}"
        with model.edit({site: ac.edits.Replace(rec[site]).at(heads=head)}):
            expected = last(model, task, tokens.ids)
        torch.testing.assert_close(wiring.logits(kept)[0], expected, atol=2e-5, rtol=1e-5)
    sender = [s.name for s in wiring.layout.senders].index("m1")
    kept = wiring.layout.vector(torch.ones(wiring.layout.allowed.shape).index_fill(0, torch.tensor(sender), 0))
    with model.edit({"blocks.1.mlp.out": ac.edits.Replace(rec["blocks.1.mlp.out"])}):
        expected = last(model, task, tokens.ids)
    torch.testing.assert_close(wiring.logits(kept)[0], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("padding", [(), (2, 1)])
def test_any_edges_kept_in_part_agree_with_gpt2_written_out(ablation, padding):
    model = Model(architectures.build("gpt2").double())
    explicit, task = Explicit(model.module), random_task(padding=padding, changed=3)
    reference = random_task(rows=4, length=7, seed=5, padding=(1,)) if ablation == "mean" else None
    wiring = Wiring(model, task, ablation=ablation, reference=reference)
    layout, places = wiring.layout, (task.mask.long().cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        position = model.module.transformer.wpe(places)
        _, ablated, _ = explicit.run(task.corrupt_ids, task.mask)
        if reference is not None:
            _, sent, _ = explicit.run(reference.clean_ids, reference.mask)
            there = (reference.mask.long().cumsum(1) - 1).clamp_min(0)
            sent[0] += model.module.transformer.wpe(there)
            ablated = sent[:, reference.mask].mean(1)[:, None, None]
        kept = some(layout, 3, 0.7).double()
        kept[2] = torch.rand(layout.n_edges, generator=torch.Generator().manual_seed(9)).double()
        found = wiring.logits(kept)
        for one, logits in zip(kept, found, strict=True):
            expected = explicit_logits(explicit, task, layout.matrix(one), ablated, ablation, position)
            torch.testing.assert_close(logits, expected, atol=1e-11, rtol=0)


def explicit_logits(explicit, task, kept, ablated, ablation, position) -> torch.Tensor:
    """The definition: each input less the part of each sender's output that its edge does not carry."""
    layout, sent = explicit.layout, []

    def outputs(sender, value):
        sent.append(value)
        return value

    def inputs(receiver, value):
        for sender, own in enumerate(sent):
            if layout.allowed[sender, receiver]:
                # There, positions are a bias; of resampling that is the same, for both runs have them.
                own = own + position if sender == 0 and ablation != "resample" else own
                other = torch.zeros_like(own) if ablation == "zero" else ablated[sender]
                value = value - (1 - kept[sender, receiver]) * (own - other)
        return value

    return explicit.run(task.clean_ids, task.mask, inputs, outputs)[0]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gptj"])
def test_senders_and_biases_add_up_to_the_stream(name):
    model, task = architectures.shared(name), random_task()
    wiring = Wiring(model, task, ablation="zero")
    (rows,), (state,) = wiring._rows, wiring._held
    for layer in (1, 2):
        stream = model.record(task.clean_ids, f"blocks.{layer}.resid_pre")[f"blocks.{layer}.resid_pre"]
        total = state.below[: rows.below[layer]].sum(0) + rows.bases[layer][0]
        torch.testing.assert_close(total.view_as(stream), stream, atol=1e-5, rtol=1e-5)
    final = model.record(task.clean_ids, "blocks.2.resid_post")["blocks.2.resid_post"][:, -1]
    torch.testing.assert_close((state.last.sum(0) + rows.base_logits).view_as(final), final, atol=1e-5, rtol=1e-5)


def test_batches_of_variants_and_rows_and_what_is_held_change_nothing():
    model = Model(architectures.build("llama").double())
    kept = some(Layout.of(model), 9, 0.8)
    kept[3:] = True
    kept[3:, -20:] = some(Layout.of(model), 6, 0.5, 1)[:, -20:]
    whole = Wiring(model, PADDED)
    expected = torch.cat([whole.run(one) for one in kept])
    assert expected.shape == (9, 3)
    assert expected.dtype == torch.float64
    torch.testing.assert_close(whole.run(kept), expected, atol=1e-11, rtol=0)
    torch.testing.assert_close(Wiring(model, PADDED, batch_size=2).run(kept), expected, atol=1e-11, rtol=0)
    # So little memory that the variants run one after the other.
    narrow = Wiring(model, PADDED, memory=sum(whole._sizes) + 1, progress=True)
    assert narrow._beside(narrow._rows[0]) == 1
    torch.testing.assert_close(narrow.run(kept), expected, atol=1e-11, rtol=0)
    whole.hold(kept[0])
    assert torch.equal(whole.held.bool(), kept[0])
    torch.testing.assert_close(whole.run(kept), expected, atol=1e-11, rtol=0)


def test_gradient_of_the_edges_is_that_of_differences():
    model = Model(architectures.build("gpt2").double())
    # The named metrics are single precision, too coarse for differences; so are the norms of the Llama family.
    wiring = Wiring(model, PADDED, metric=lambda logits, answers, *_: logits.log_softmax(-1)[range(3), answers])
    at = (0.2 + 0.6 * torch.rand(wiring.layout.n_edges, generator=torch.Generator().manual_seed(0))).double()
    leaf = at.clone().requires_grad_()
    value = wiring.run(torch.stack([leaf, at]))
    (found,) = torch.autograd.grad(value[0].mean(), leaf)
    assert not any(p.grad is not None for p in model.module.parameters())
    for edge in range(0, wiring.layout.n_edges, 23):
        step = torch.zeros_like(at).index_fill(0, torch.tensor(edge), 1e-5)
        up, down = wiring.run(torch.stack([at + step, at - step])).mean(1)
        assert float(found[edge]) == pytest.approx(float(up - down) / 2e-5, abs=1e-8)


def test_metric_of_the_ends_is_that_of_the_two_runs(lm, ioi):
    wiring = Wiring(lm, ioi, metric="kl")
    assert wiring.n_rows == len(ioi)
    assert float(wiring.clean.abs().max()) < 1e-6
    empty = wiring.run(torch.zeros(wiring.layout.n_edges))[0]
    torch.testing.assert_close(empty, wiring.corrupt, atol=1e-4, rtol=0)


def test_half_precision_is_taken():
    model = Model(architectures.build("llama").to(torch.bfloat16))
    wiring = Wiring(model, random_task())
    assert wiring.dtype == torch.float32
    assert bool(torch.isfinite(wiring.run(some(wiring.layout, 2, 0.5))).all())


def test_model_and_hooks_are_left_as_they_were():
    module = architectures.build("gpt2")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = Model(module)
    wiring = Wiring(model, random_task())
    wiring.run(some(wiring.layout, 2, 0.5))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_model_of_another_residual_stream_is_refused():
    """Granite scales what it adds; the edges of it do not add up."""
    with pytest.raises(InputError):
        Wiring(architectures.shared("granite"), random_task())


def test_what_does_not_fit_is_refused(lm, ioi):
    task, model = random_task(), architectures.shared("gpt2")
    wiring = Wiring(model, task)
    with pytest.raises(InputError, match="edges"):
        wiring.run(torch.ones(3))
    with pytest.raises(InputError, match="from 0 to 1"):
        wiring.run(torch.full((wiring.layout.n_edges,), 1.5))
    with pytest.raises(InputError, match="no variant"):
        wiring.run(torch.ones(0, wiring.layout.n_edges))
    with pytest.raises(InputError, match="one run"):
        wiring.hold(torch.ones(2, wiring.layout.n_edges))
    with pytest.raises(UnknownNameError, match="resample"):
        Wiring(model, task, ablation="resampled")
    with pytest.raises(InputError, match="reference"):
        Wiring(model, task, ablation="mean")
    with pytest.raises(InputError, match="reference"):
        Wiring(model, task, reference=task)
    with pytest.raises(InputError, match="batch_size"):
        Wiring(model, task, batch_size=0)
    with pytest.raises(UnknownNameError):
        Wiring(model, task, metric="logitdiff")
    with pytest.raises(InputError, match="one value for each row"):
        Wiring(model, task, metric=lambda logits, *_: logits.mean())
    with pytest.raises(InputError, match="nan"):
        Wiring(model, task, metric=lambda logits, *_: logits[:, 0] * torch.nan)
    with pytest.raises(InputError, match="MiB"):
        Wiring(model, task, memory=10_000)
    with pytest.raises(InputError, match="same length"):
        Wiring(model, unequal())
    with model.edit({"blocks.0.mlp.out": ac.edits.Zero()}), pytest.raises(InputError, match="edit"):
        wiring.run(torch.ones(wiring.layout.n_edges))


def unequal():
    """A task whose corrupt prompts were cut."""
    from dataclasses import replace

    task = task_of([[5, 6, 7]], [[5, 8, 7]], [3], [4])
    return replace(task, corrupt_ids=task.corrupt_ids[:, 1:])


def test_module_in_training_is_refused():
    model = Model(architectures.build("gpt2").train())
    with pytest.raises(InputError, match="training"):
        Wiring(model, random_task())
