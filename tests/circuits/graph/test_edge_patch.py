"""The effect of one edge is that of ablating it by hand, and effects add up where what reads them is linear."""

from __future__ import annotations

import pytest
import torch
from explicit_gpt2 import Explicit
from toys import random_task

import actinium as ac
import architectures
from actinium.circuits.graph.edge_patch import edge_patch
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.metrics import logit_diff
from actinium.core.model import Model

EDGES = ["input->a0.h1<q>", "a0.h3->m0", "a0.h2->a2.h0<v>", "m1->a2.h1<k>", "m0->logits", "a2.h3->logits"]


def test_effect_is_that_of_one_edge_ablated_in_gpt2_written_out():
    model = Model(architectures.build("gpt2").double())
    explicit, task = Explicit(model.module), random_task(padding=(2, 1), changed=3)
    found = edge_patch(model, task, EDGES)
    layout = found.layout
    assert found.edges == tuple(sorted(EDGES, key=layout.index.get))
    with torch.no_grad():
        clean, _, _ = explicit.run(task.clean_ids, task.mask)
        _, ablated, _ = explicit.run(task.corrupt_ids, task.mask)
        for name in EDGES:
            sender, receiver = layout.pairs[layout.index[name]].tolist()
            sent = []

            def outputs(number, value, sent=sent):
                sent.append(value)
                return value

            def inputs(number, value, sent=sent, sender=sender, receiver=receiver):
                return value - sent[sender] + ablated[sender] if number == receiver else value

            logits, _, _ = explicit.run(task.clean_ids, task.mask, inputs, outputs)
            pair = (logit_diff(each, task.answer_ids, task.wrong_ids).double() for each in (logits, clean))
            new, old = pair
            assert float(found["score"].sel(edge=name)) == pytest.approx(float((new - old).mean()), abs=1e-6)
    assert float(found.scores[~found.kept].abs().max()) == 0


def test_all_edges_in_batches_are_the_edges_one_by_one():
    model, task = architectures.shared("llama"), random_task(changed=3)
    everything = edge_patch(model, task)
    assert everything.n_kept == everything.layout.n_edges
    some = list(everything.layout.edges[::31])
    alone = [float(edge_patch(model, task, [name])["score"].sel(edge=name)) for name in some]
    torch.testing.assert_close(
        torch.tensor(alone), torch.from_numpy(everything["score"].sel(edge=some).values).float(), atol=1e-5, rtol=1e-4
    )
    assert float(everything["m_clean"]) != float(everything["m_corrupt"])


def test_edges_of_a_known_circuit_are_those_with_an_effect():
    known = ac.world.compiled.build("induction")
    found = edge_patch(known.model, known.task(n=8, seed=0), metric="kl")
    assert {e for e, s in zip(found.layout.edges, found.scores.tolist(), strict=True) if s > 1e-3} == set(known.edges)


def test_effects_on_linear_logits_add_up():
    """The norms of compiled models do nothing, so the logit difference is linear in what the logits read."""
    known = ac.world.compiled.build("both")
    task = known.task(n=8, seed=0)
    layout = ac.circuits.Wiring(known.model, task).layout
    edges = [e for e in layout.edges if e.endswith("->logits")]
    alone = edge_patch(known.model, task, edges, metric="logit_diff")
    wiring = ac.circuits.Wiring(known.model, task, metric="logit_diff")
    together = float((wiring.run(~layout.mask(edges)) - wiring.clean).mean())
    assert together < -1
    assert float(alone.scores.sum()) == pytest.approx(together, abs=1e-4)


def test_what_cannot_be_is_refused():
    model, task = architectures.shared("gpt2"), random_task()
    with pytest.raises(UnknownNameError, match=r"a0\.h3->m0"):
        edge_patch(model, task, ["a0.h3->n0"])
    with pytest.raises(InputError, match="no edge"):
        edge_patch(model, task, [])
    with pytest.raises(InputError):
        edge_patch(architectures.shared("gemma2"), task)
