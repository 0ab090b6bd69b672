"""`actinium circuit`: the table, the files, and what it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.circuits import CircuitGraph
from actinium.cli.app import app


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, ["circuit", "world:lm", *(str(a) for a in arguments)])


def test_files_hold_what_the_functions_give(invoke, tmp_path):
    out = tmp_path / "new"
    done = invoke("--task", "ioi", "--n", "4", "--top", "50", "--greedy", "--steps", "2", "--out", out)
    assert done.exit_code == 0, done.output
    model = ac.load("world:lm")
    task = ac.world.tasks.ioi(model, n=4)
    expected = ac.circuits.edge_attribution(model, task, method="eap-ig-inputs", steps=2).greedy(50).prune()
    found = CircuitGraph.load(out / "circuit.zarr")
    assert found == expected
    faithful = float(ac.circuits.evaluate_circuit(model, task, expected)["faithfulness"])
    page = json.loads((out / "circuit.json").read_text())
    assert page["faithfulness"] == pytest.approx(faithful, abs=1e-5)
    assert {e["id"] for e in page["edges"]} == set(expected.edges)
    assert "<svg" in (out / "circuit.svg").read_text()
    strongest = expected.table()["edge"][0]
    assert strongest in done.output and f"faithfulness {faithful:.3g}" in done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "eap", "--threshold", "0.5"),
        ("--method", "clean-corrupted", "--metric", "kl"),
        ("--method", "mask-gradient", "--steps", "1", "--ablation", "mean"),
        ("--method", "hisp", "--top", "20"),
        ("--method", "eap", "--ablation", "zero"),
    ],
)
def test_every_way_gives_a_table(invoke, options):
    done = invoke("--task", "ioi", "--n", "2", *options)
    assert done.exit_code == 0, done.output
    assert "faithfulness" in done.output


@pytest.mark.parametrize(("method", "options"), [("acdc", ("--tau", "0.1")), ("sp", ()), ("exact", ())])
def test_finders_run_on_a_model_of_a_folder(method, options, tmp_path):
    known = ac.world.compiled.build("induction")
    known.model.module.save_pretrained(tmp_path / "model")
    known.model.tokenizer.save_pretrained(tmp_path / "model")
    pairs = known.task(n=8).save(tmp_path / "pairs.jsonl")
    arguments = ["circuit", str(tmp_path / "model"), "--task", str(pairs), "--method", method, *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "a1.h1->logits" in done.output


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--method", "acdc", "--top", "5"), "says itself"),
        (("--method", "sp", "--greedy"), "says itself"),
        (("--top", "5", "--threshold", "1"), "different ways"),
        (("--tau", "1"), "--tau belongs to acdc"),
        (("--method", "eap", "--steps", "3"), "--steps belongs to"),
        (("--method", "hisp", "--ablation", "zero"), "hisp compares"),
        (("--metric", "rank"), "no gradient"),
        (("--top", "5000"), "3,628 edges"),
        (("--out", "/dev/null/x"), "cannot write"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(invoke, options, why):
    done = invoke("--task", "ioi", "--n", "2", *options)
    assert done.exit_code == 2
    assert why in done.output
    assert "Traceback" not in done.output


def test_a_stopped_search_goes_on_where_it_was(tmp_path, monkeypatch):
    from actinium.circuits.graph.wiring import Wiring

    known = ac.world.compiled.build("induction")
    known.model.module.save_pretrained(tmp_path / "model")
    known.model.tokenizer.save_pretrained(tmp_path / "model")
    pairs = known.task(n=8).save(tmp_path / "pairs.jsonl")
    out = tmp_path / "out"
    options = [str(tmp_path / "model"), "--task", str(pairs), "--method", "acdc", "--tau", "0.1"]
    run, calls = Wiring.run, []

    def counted(self, kept):
        calls.append(len(kept))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return run(self, kept)

    monkeypatch.setattr(Wiring, "run", counted)
    stop = 0
    whole = CliRunner().invoke(app, ["circuit", *options])
    needed, stop = len(calls), 10
    calls.clear()
    stopped = CliRunner().invoke(app, ["circuit", *options, "--out", str(out)])
    assert stopped.exit_code == 130
    assert "not taken away so far" in stopped.output and "goes on from" in stopped.output
    assert (out / "acdc.safetensors").is_file()
    stop = 0
    calls.clear()
    done = CliRunner().invoke(app, ["circuit", *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert len(calls) < needed
    assert done.output.startswith(whole.output)
    assert not (out / "acdc.safetensors").exists()
