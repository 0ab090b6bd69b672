"""ACDC decides as the plain algorithm does, edge by edge, and finds circuits that were written down."""

from __future__ import annotations

import math
import random
import warnings

import pytest
import torch
from explicit_gpt2 import Explicit
from toys import random_task, task_of

import actinium as ac
import architectures
from actinium.circuits.graph.acdc import acdc
from actinium.circuits.graph.circuit import CircuitGraph, belongs
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import Wiring
from actinium.circuits.patching.contrast import sign_of
from actinium.circuits.patching.partial import Interrupted
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.core.metrics import kl
from actinium.core.model import Model


def heard(layout, kept, receiver) -> bool:
    """Whether a path of kept edges leads from the receiver's part to the logits, by walking it."""
    matrix, own = layout.matrix(kept, False), belongs(layout)
    if layout.receivers[receiver].kind == "logits":
        return True
    readers = (own[:, receiver][:, None] & matrix).any(0).nonzero().flatten().tolist()
    return any(heard(layout, kept, r) for r in readers)


def plain(layout, measure, tau, order, absolute=False):
    """The algorithm as it is written: one edge after the other, each measured by itself."""
    kept = torch.ones(layout.n_edges, dtype=torch.bool)
    current, effects = measure(kept), {}
    for name in order:
        edge = layout.index[name]
        if not heard(layout, kept, int(layout.pairs[edge, 1])):
            kept[edge] = False
            continue
        tried = kept.clone()
        tried[edge] = False
        value = measure(tried)
        effects[name] = value - current
        if (abs(value - current) if absolute else value - current) < tau:
            kept, current = tried, value
    return kept, effects


def backwards(layout) -> list[str]:
    """From the last receiver to the first, and for each from the last sender."""
    pairs = sorted(layout.pairs.tolist(), key=lambda p: (-p[1], -p[0]))
    return [f"{layout.senders[s].name}->{layout.receivers[r].name}" for s, r in pairs]


def measure_of(wiring):
    return lambda kept: -sign_of(wiring.metric) * float(wiring.run(kept).mean())


@pytest.fixture(scope="module")
def small():
    """A GPT-2 of two blocks and two heads in double precision."""
    import transformers as hf

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": architectures.VOCAB}
    module = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    architectures._randomise(module, 3)
    return Model(module.double().eval())


@pytest.fixture(scope="module")
def circuit(lm, ioi):
    """The circuit of the shipped model."""
    return acdc(lm, ioi, 0.1)


def differing(padding=()):
    """Prompts that differ in every token but the first, so that many edges matter."""
    return random_task(padding=padding, changed=slice(1, 7))


@pytest.mark.parametrize("tau", [0.003, 0.03, 0.3])
def test_kept_edges_are_those_of_the_plain_algorithm_on_gpt2_written_out(small, tau):
    task, explicit = differing(padding=(2, 1)), Explicit(small.module)
    layout = explicit.layout
    with torch.no_grad():
        clean, _, _ = explicit.run(task.clean_ids, task.mask)
        _, ablated, _ = explicit.run(task.corrupt_ids, task.mask)

        def measure(kept):
            matrix, sent = layout.matrix(kept, True), []

            def inputs(receiver, value):
                for sender, own in enumerate(sent):
                    if not matrix[sender, receiver]:
                        value = value - own + ablated[sender]
                return value

            def outputs(sender, value):
                sent.append(value)
                return value

            logits = explicit.run(task.clean_ids, task.mask, inputs, outputs)[0]
            return float(kl(logits, task.answer_ids, task.wrong_ids, clean).mean())

        kept, effects = plain(layout, measure, tau, backwards(layout))
    found = acdc(small, task, tau)
    assert torch.equal(found.kept, kept)
    for name, effect in effects.items():
        assert float(found["effect"].sel(edge=name)) == pytest.approx(effect, abs=1e-6)
    assert int(found["effect"].notnull().sum()) == len(effects)
    assert 0 < found.n_kept < layout.n_edges


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "logit_diff"},
        {"metric": "logprob", "absolute": True},
        {"ablation": "zero"},
        {"order": "forwards"},
        {"order": "random"},
    ],
)
def test_trying_ahead_changes_no_decision(small, options):
    order, options = backwards(Layout.of(small)), dict(options)
    if options.get("order") == "forwards":
        options["order"] = order = order[::-1]
    elif options.get("order") == "random":
        random.Random(0).shuffle(order)
        options["order"] = order
    compare(small, differing(padding=(1,)), (0.01, 0.1), order, options)


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_decisions_are_the_same_on_other_architectures(name):
    model = architectures.shared(name)
    compare(model, random_task(padding=(1,), changed=3), (0.01,), backwards(Layout.of(model)), {})


def compare(model, task, taus, order, options):
    """The plain algorithm beside ours, for each tau."""
    shared = {"ablation": options.get("ablation", "resample"), "metric": options.get("metric", "kl")}
    measure, sizes = measure_of(Wiring(model, task, **shared)), []
    with warnings.catch_warnings():
        # Of random weights the metric need not fall.
        warnings.simplefilter("ignore", ActiniumWarning)
        for tau in taus:
            kept, _ = plain(Layout.of(model), measure, tau, order, options.get("absolute", False))
            assert torch.equal(acdc(model, task, tau, **options).kept, kept)
            sizes.append(int(kept.sum()))
    assert max(sizes) > 0


def test_several_taus_are_runs_of_their_own(small):
    task, taus = differing(), [0.3, 0.01]
    swept = acdc(small, task, taus)
    alone = [acdc(small, task, tau) for tau in sorted(taus)]
    for tau, one in zip(sorted(taus), alone, strict=True):
        assert torch.equal(torch.from_numpy(swept["kept_at"].sel(tau=tau).values.copy()), one.kept)
        assert float(swept["metric_kept"].sel(tau=tau)) == pytest.approx(float(one["metric_kept"][0]), abs=1e-6)
    low, high = (one.kept.tolist() for one in alone)
    assert swept.scores.tolist() == [
        0.01 if not a else 0.3 if not b else math.inf for a, b in zip(low, high, strict=True)
    ]
    assert torch.equal(swept.kept, alone[1].kept)


def test_kept_edges_leave_the_metric_that_is_reported(lm, ioi, circuit):
    value = float(Wiring(lm, ioi, metric="kl").run(circuit.kept).mean())
    assert value == pytest.approx(float(circuit["metric_kept"][0]), abs=1e-5)
    assert circuit.n_kept < 0.05 * circuit.layout.n_edges
    # What nothing reads is not measured: fewer runs than edges.
    assert int(circuit["evaluations"][0]) < circuit.layout.n_edges


def test_tau_of_nothing_keeps_the_divergence_and_infinite_tau_keeps_no_edge(small):
    task = differing()
    near = acdc(small, task, 1e-6)
    assert float(near["metric_kept"][0]) < 1e-4
    # Every edge from which the two runs differ is needed by that much.
    assert near.n_kept > 0
    everything = acdc(small, task, math.inf)
    assert everything.n_kept == 0
    assert bool((everything.scores == math.inf).all())


def test_edges_into_parts_that_nothing_reads_go_unmeasured(circuit):
    layout, kept = circuit.layout, circuit.kept
    unmeasured = torch.from_numpy(circuit["effect"].isnull().values.copy())
    assert bool(unmeasured.any())
    for edge in unmeasured.nonzero().flatten()[::97].tolist():
        assert not kept[edge]
        assert not heard(layout, kept, int(layout.pairs[edge, 1]))


@pytest.mark.parametrize("name", ["both", "fraction_so_far", "induction", "reverse"])
@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
def test_circuits_that_were_written_down_are_found(name, metric):
    known = ac.world.compiled.build(name)
    found = acdc(known.model, known.task(n=16, seed=0), 0.01, metric=metric)
    assert set(found.edges) == set(known.edges)
    zeroed = acdc(known.model, known.task(n=16, seed=0), 0.01, metric=metric, ablation="zero")
    assert set(zeroed.edges) - set(known.constants) == set(known.edges)


def test_of_an_or_one_input_is_kept_and_the_order_says_which():
    known = ac.world.compiled.build("either")
    task = known.task(n=16, seed=0)
    layout = Layout.of(known.model)
    kept = []
    for order in (backwards(layout), _swapped(backwards(layout))):
        edges = set(acdc(known.model, task, 0.01, order=order).edges)
        into = {"a0.h0->m0", "a0.h2->m0"} & edges
        assert len(into) == 1
        assert edges in [{*path, "m0->logits"} for path in known.redundant]
        kept.append(into)
    assert kept[0] != kept[1]


def _swapped(order: list[str]) -> list[str]:
    """The two inputs of the gate in the other order."""
    first, second = order.index("a0.h0->m0"), order.index("a0.h2->m0")
    order = list(order)
    order[first], order[second] = order[second], order[first]
    return order


def test_whole_inputs_are_tried_before_their_edges(small):
    model, task = small, differing()
    layout = Layout.of(model)
    wiring, receiver = Wiring(model, task, metric="kl"), layout.pairs[:, 1]
    for tau in (0.01, 0.1):
        kept = torch.ones(layout.n_edges, dtype=torch.bool)
        current, measure = 0.0, measure_of(wiring)
        names, at = backwards(layout), 0
        steps = []
        for r in reversed(range(len(layout.receivers))):
            edges = [layout.index[n] for n in names if receiver[layout.index[n]] == r]
            steps.append((layout.receivers[r], edges))
        while at < len(steps):
            same = [
                s
                for s in steps[at:]
                if (s[0].layer, s[0].kind == "mlp") == (steps[at][0].layer, steps[at][0].kind == "mlp")
            ]
            at += len(same)
            wholes = [e for r, e in same if r.kind in "qkv"]
            for edges in [*wholes, *([e] for _, each in same for e in each)]:
                present = [e for e in edges if kept[e]]
                if not present:
                    continue
                tried = kept.clone()
                tried[present] = False
                value = measure(tried) if heard(layout, kept, int(receiver[edges[0]])) else current
                if value - current < tau or value == current:
                    kept, current = tried, value
        assert torch.equal(acdc(model, task, tau, whole_inputs=True).kept, kept)


def test_what_was_decided_is_kept_and_gone_on_with(small, tmp_path, monkeypatch):
    path, task, taus = tmp_path / "run.safetensors", differing(), [0.01, 0.3]
    expected = acdc(small, task, taus)
    calls, run = [0], Wiring.run

    def stopped(self, kept):
        calls[0] += 1
        if calls[0] == 10:
            raise KeyboardInterrupt
        return run(self, kept)

    monkeypatch.setattr(Wiring, "run", stopped)
    with pytest.raises(Interrupted, match=r"run\.safetensors") as error:
        acdc(small, task, taus, resume=path)
    partial = error.value.partial
    assert isinstance(partial, CircuitGraph)
    assert 0 < partial.n_kept < partial.layout.n_edges
    undecided = partial["step"].values == -1
    assert undecided.any()
    assert partial.kept.numpy()[undecided].all()
    calls[0] = 1000
    resumed = acdc(small, task, taus, resume=path)
    assert torch.equal(resumed.scores, expected.scores)
    assert torch.equal(resumed.kept, expected.kept)
    assert 0 < int(resumed["evaluations"].sum()) < int(expected["evaluations"].sum())
    again = acdc(small, task, taus, resume=path)
    assert int(again["evaluations"].sum()) == 0
    assert torch.equal(again.scores, expected.scores)
    with pytest.raises(InputError, match="another"):
        acdc(small, task, [0.1, 2.0], resume=path)
    path.write_bytes(b"nothing")
    with pytest.raises(LoadError):
        acdc(small, task, taus, resume=path)


def test_result_can_be_saved(small, tmp_path):
    found = acdc(small, differing(), [0.1, 0.3])
    again = CircuitGraph.load(found.save(tmp_path / "graph.zarr"))
    assert again == found
    assert found.provenance["settings"]["tau"] == [0.1, 0.3]


def test_a_metric_of_the_wrong_direction_warns():
    known = ac.world.compiled.build("induction")

    def loss(logits, answers, *_):
        return -logits.log_softmax(-1)[range(len(answers)), answers]

    with pytest.warns(ActiniumWarning, match="better where it is higher"):
        acdc(known.model, known.task(n=4, seed=0), 0.01, metric=loss)


def test_what_cannot_be_is_refused(small):
    task = random_task()
    layout = Layout.of(small)
    for tau in (-0.1, [0.1, -1], math.nan, []):
        with pytest.raises(InputError, match="tau"):
            acdc(small, task, tau)
    with pytest.raises(InputError, match="number"):
        acdc(small, task, "little")
    with pytest.raises(InputError, match="one value for each row"):
        acdc(small, task, 0.1, metric=lambda logits, *_: logits)
    with pytest.raises(UnknownNameError, match="logits"):
        acdc(small, task, 0.1, order=["logit", *(r.name for r in layout.receivers[1:])])
    with pytest.raises(InputError, match="each of the"):
        acdc(small, task, 0.1, order=backwards(layout)[1:])
    with pytest.raises(InputError, match="pre-norm"):
        acdc(architectures.shared("opt-350m"), task, 0.1)
    with pytest.raises(InputError):
        acdc(small, task_of([[5, 6]], [[5, 8]], [3], [4], mask=torch.tensor([[True, False]])), 0.1)
    with pytest.raises(InputError, match="MiB"):
        acdc(small, task, 0.1, memory=1000)


def test_a_metric_that_becomes_nan_is_refused(small):
    calls = [0]

    def metric(logits, answers, *_):
        calls[0] += 1
        return logits[:, 0] * (torch.nan if calls[0] > 3 else 1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ActiniumWarning)
        with pytest.raises(InputError, match="must be a number"):
            acdc(small, random_task(), 0.1, metric=metric)


def test_receivers_in_an_order_of_their_own(small):
    task = differing()
    layout = Layout.of(small)
    names = [r.name for r in layout.receivers]
    default = acdc(small, task, 0.05)
    assert torch.equal(acdc(small, task, 0.05, order=names[::-1]).kept, default.kept)
    shown = acdc(small, task, 0.05, order=backwards(layout), progress=True)
    assert torch.equal(shown.kept, default.kept)


def test_a_model_from_outside_keeps_a_part_of_its_edges(outside_data):
    model = ac.load(outside_data / "stories260K")
    task = ac.circuits.repeated_names(model, n=4)
    found = acdc(model, task, 0.5)
    assert 0 < found.n_kept < found.layout.n_edges
