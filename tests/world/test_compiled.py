"""Compiled programs: they do what they say, and their circuit is the set of edges that matter.

The edges are tried one by one on a recomputation of the network in float64, which shares no code with the package.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.world import compiled

NAMES = ("both", "either", "fraction_so_far", "induction", "reverse")
ROWS = 10


class Network:
    """A GPT-2 with ReLU in float64, whose receivers can be given other senders' outputs."""

    def __init__(self, module):
        self.state = {name: value.double().numpy() for name, value in module.state_dict().items()}
        config = module.config
        self.layers, self.heads, self.width = config.n_layer, config.n_head, config.n_embd
        self.size, self.epsilon = config.n_embd // config.n_head, config.layer_norm_epsilon

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + self.epsilon)
        return centred / scale * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def run(self, ids, swap=None, other=None):
        """Logits at the end and every sender's output.

        `swap` is (sender, receiver); the receiver gets the sender's output from `other`, or zero without it.
        """
        state, length = self.state, ids.shape[1]
        out = {"input": state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:length]}
        bias = np.zeros(self.width)

        def stream(receiver):
            total = bias + sum(out.values())
            if swap is not None and swap[1] == receiver and swap[0] in out:
                total = total - out[swap[0]] + (0 if other is None else other[swap[0]])
            return total

        causal = np.where(np.tril(np.ones((length, length))), 0, -np.inf)
        for layer in range(self.layers):
            block, written = f"transformer.h.{layer}", {}
            weight, shift = state[f"{block}.attn.c_attn.weight"], state[f"{block}.attn.c_attn.bias"]
            shared = self.norm(stream(None), f"{block}.ln_1") @ weight + shift
            for head in range(self.heads):
                parts = []
                for i, part in enumerate("qkv"):
                    name, start = f"a{layer}.h{head}<{part}>", i * self.width + head * self.size
                    place = slice(start, start + self.size)
                    own = swap is not None and swap[1] == name
                    read = self.norm(stream(name), f"{block}.ln_1") @ weight[:, place] + shift[place] if own else None
                    parts.append(read if own else shared[..., place])
                q, k, v = parts
                scores = q @ k.transpose(0, 2, 1) / np.sqrt(self.size) + causal
                pattern = np.exp(scores - scores.max(-1, keepdims=True))
                pattern /= pattern.sum(-1, keepdims=True)
                rows = slice(head * self.size, (head + 1) * self.size)
                written[f"a{layer}.h{head}"] = pattern @ v @ state[f"{block}.attn.c_proj.weight"][rows]
            out |= written
            bias = bias + state[f"{block}.attn.c_proj.bias"]
            read = self.norm(stream(f"m{layer}"), f"{block}.ln_2") @ state[f"{block}.mlp.c_fc.weight"]
            hidden = np.maximum(read + state[f"{block}.mlp.c_fc.bias"], 0)
            out[f"m{layer}"] = hidden @ state[f"{block}.mlp.c_proj.weight"]
            bias = bias + state[f"{block}.mlp.c_proj.bias"]
        logits = self.norm(stream("logits"), "transformer.ln_f") @ state["lm_head.weight"].T
        return logits[:, -1], out

    def edges(self):
        """(sender, receiver) of every edge."""
        pairs, before = [], ["input"]
        for layer in range(self.layers):
            heads = [f"a{layer}.h{head}" for head in range(self.heads)]
            pairs += product(before, [f"{head}<{part}>" for head in heads for part in "qkv"])
            before += heads
            pairs += product(before, [f"m{layer}"])
            before.append(f"m{layer}")
        return [*pairs, *product(before, ["logits"])]


@pytest.fixture(scope="module", params=NAMES)
def known(request):
    return compiled.build(request.param)


def effects(known, zero=False, swaps=None):
    """Edge -> mean absolute change of the logit difference over rows, in units of the largest."""
    network, task = Network(known.model.module), known.task(ROWS)
    clean, corrupt = task.clean_ids.numpy(), task.corrupt_ids.numpy()
    rows, answer, wrong = np.arange(ROWS), task.answer_ids.numpy(), task.wrong_ids.numpy()
    other = None if zero else network.run(corrupt)[1]

    def score(swap=None):
        logits = network.run(clean, swap, other)[0]
        return logits[rows, answer] - logits[rows, wrong]

    base = score()
    found = {f"{s}->{r}": np.abs(score((s, r)) - base).mean() for s, r in swaps or network.edges()}
    largest = max(found.values())
    return {edge: value / largest for edge, value in found.items()}


def test_the_programs_are_listed():
    assert tuple(compiled.names()) == NAMES


def test_the_model_gives_the_answer_of_the_program_to_every_prompt(known):
    assert known.accuracy(2000) == 1.0


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("induction", "c a b e a", "b"),
        ("induction", "a b a c d a", "c"),
        ("induction", "a b c", "<bos>"),
        ("induction", "a a", "a"),
        ("reverse", "a b c |", "c"),
        ("reverse", "a b c | c b", "a"),
        ("reverse", "a b | b a", "<bos>"),
        ("fraction_so_far", "a b a c a", "50%"),
        ("fraction_so_far", "a b b b", "0%"),
        ("fraction_so_far", "b b b a", "75%"),
        ("both", "a p b q c", "yes"),
        ("both", "a p b", "no"),
        ("either", "a p b", "yes"),
        ("either", "q", "yes"),
        ("either", "a b", "no"),
    ],
)
def test_examples(name, prompt, answer):
    model = ac.load(f"world:{name}")
    with torch.no_grad():
        said = model.module(**model.tokenizer(prompt, return_tensors="pt")).logits[0, -1].argmax()
    assert model.tokenizer.decode(said) == answer


def test_the_recomputation_is_the_model(known):
    task = known.task(ROWS)
    with torch.no_grad():
        logits = known.model.module(task.clean_ids).logits[:, -1].numpy()
    np.testing.assert_allclose(Network(known.model.module).run(task.clean_ids.numpy())[0], logits, atol=2e-5)


def test_the_edges_are_those_that_matter_when_resampled(known):
    found = effects(known)
    lonely = known.edges.difference(*known.redundant)
    assert lonely <= set(found) and min(found[edge] for edge in lonely) > 0.02
    assert max(value for edge, value in found.items() if edge not in lonely) < 1e-6


def test_constants_matter_too_when_an_edge_is_set_to_zero(known):
    found = effects(known, zero=True)
    needed = (known.edges | known.constants).difference(*known.redundant)
    assert not known.edges & known.constants
    assert min(found[edge] for edge in needed) > 0.02
    assert max(value for edge, value in found.items() if edge not in needed) < 1e-6


def test_of_redundant_paths_one_is_enough_and_one_is_needed():
    known = compiled.build("either")
    assert len(known.redundant) == 2 and not frozenset.intersection(*known.redundant)
    network, task = Network(known.model.module), known.task(ROWS)
    other = network.run(task.corrupt_ids.numpy())[1]
    # Clean prompts without p (which the first path carries): the other path's edges matter one by one.
    for path, letter in zip(known.redundant, "pq", strict=True):
        ids = task.clean_ids.numpy().copy()
        gone = "q" if letter == "p" else "p"
        ids[ids == known.model.tokenizer.convert_tokens_to_ids(gone)] = known.model.tokenizer.convert_tokens_to_ids("a")
        rows, answer, wrong = np.arange(ROWS), task.answer_ids.numpy(), task.wrong_ids.numpy()
        for edge in path:
            logits = network.run(ids, tuple(edge.split("->")), other)[0]
            assert (logits[rows, answer] < logits[rows, wrong]).all(), edge


def test_idle_parts_write_as_much_as_those_of_the_circuit(known):
    out = Network(known.model.module).run(known.task(ROWS).clean_ids.numpy())[1]
    sizes = {name: np.linalg.norm(value[:, -1], axis=-1).mean() for name, value in out.items()}
    assert min(value for name, value in sizes.items() if name not in known.nodes) > 0.2


def test_the_seed_draws_the_idle_parts_only():
    first, same, other = (compiled.build("induction", seed=seed) for seed in (0, 0, 1))
    assert first.model.fingerprint() == same.model.fingerprint() != other.model.fingerprint()
    assert first.edges == other.edges and other.accuracy(500) == 1.0
    ids = first.task(8).clean_ids
    with torch.no_grad():
        logits = [known.model.module(ids).logits for known in (first, other)]
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


def test_norms_leave_the_stream_as_it_is(known):
    recorded = known.model.record(known.task(4).clean_ids, "blocks.*.resid_pre")
    for name in recorded:
        x = torch.as_tensor(recorded[name]).float()
        block = known.model.module.transformer.h[int(name.split(".")[1])]
        with torch.no_grad():
            torch.testing.assert_close(block.ln_1(x), x, atol=2e-6, rtol=0)


def test_tasks_have_different_answers_and_the_model_gives_them(known):
    task = known.task(40, seed=3)
    assert len(task) == 40 and bool(task.mask.all()) and bool((task.answer_ids != task.wrong_ids).all())
    assert known.task(5, seed=3).clean == task.clean[:5] != known.task(5, seed=4).clean
    with torch.no_grad():
        for ids, wanted in ((task.clean_ids, task.answer_ids), (task.corrupt_ids, task.wrong_ids)):
            assert bool((known.model.module(ids).logits[:, -1].argmax(-1) == wanted).all())


def test_edges_have_the_names_of_the_room_circuits(known):
    layout = Layout.of(known.model)
    assert int(layout.mask(known.edges | known.constants).sum()) == len(known.edges | known.constants)
    assert set(layout.edges) == {f"{s}->{r}" for s, r in Network(known.model.module).edges()}


def test_nodes_are_the_ends_of_edges():
    assert compiled.build("induction").nodes == {"input", "a0.h2", "a1.h1", "logits"}
    assert compiled.build("both").nodes == {"input", "a0.h1", "a0.h3", "m0", "m1", "m2", "logits"}


def test_load_gives_the_compiled_model_in_the_type_asked_for():
    model = ac.load("world:induction", dtype="float64")
    assert model.name == "world:induction" and model.dtype == torch.float64 and model.kind == "causal-lm"
    assert ac.load("world:induction").fingerprint() == compiled.build("induction").model.fingerprint()


def test_what_is_not_there_is_refused():
    with pytest.raises(UnknownNameError, match="induction"):
        compiled.build("inductoin")
    with pytest.raises(LoadError, match="world:induction"):
        ac.load("world:inductoin")
    known = compiled.build("both")
    with pytest.raises(InputError, match="row"):
        known.task(0)
    with pytest.raises(InputError, match="prompt"):
        known.accuracy(0)
