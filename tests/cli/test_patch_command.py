"""`actinium patch`: tables, files, and what it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app
from actinium.core.model import Model


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, ["patch", "world:lm", *(str(a) for a in arguments)])


def test_files_hold_what_the_function_gives(invoke, tmp_path):
    done = invoke("--task", "ioi", "--at", "blocks.*.attn.z", "--n", "4", "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    model = ac.load("world:lm")
    expected = ac.circuits.patch(model, ac.world.tasks.ioi(model, n=4), "blocks.*.attn.z", "head")
    assert ac.circuits.Effects.load(tmp_path / "new" / "effect.zarr").data["effect"].equals(expected["effect"])
    rows = json.loads((tmp_path / "new" / "effect.json").read_text())
    assert len(rows) == 48
    assert rows[0]["effect"] == pytest.approx(float(abs(expected["effect"]).max()), abs=1e-6)
    assert "<svg" in (tmp_path / "new" / "effect.svg").read_text()
    assert "m_clean" in done.output and f"{rows[0]['effect']:.3f}" in done.output


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "atp", "--mode", "noise"),
        ("--method", "ig", "--at", "blocks.5.mlp.out"),
        ("--method", "path", "--at", "blocks.3.attn.z", "--receivers", "blocks.5.mlp.{pre,gate}"),
        ("--method", "zero", "--at", "blocks.*.mlp.out", "--metric", "kl"),
        ("--method", "mean", "--over", "pos", "--at", "blocks.2.mlp.out"),
        ("--ablation", "gaussian", "--at", "blocks.1.resid_post", "--metric", "logprob"),
    ],
)
def test_every_way_gives_a_table(invoke, options):
    done = invoke("--task", "facts", "--n", "4", *options)
    assert done.exit_code == 0, done.output
    assert "effect" in done.output


def test_pairs_come_from_a_file(invoke, tmp_path):
    file = ac.world.tasks.facts(ac.load("world:lm"), n=4).save(tmp_path / "pairs.jsonl")
    named, read = (invoke("--task", task, "--n", "4", "--at", "blocks.5.resid_post") for task in ("facts", file))
    assert read.exit_code == 0, read.output
    assert read.output == named.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "iou"), "ioi"),
        (("--task", "ioi", "--at", "blocks.0.attn.zz"), "attn.z"),
        (("--task", "ioi", "--method", "zero", "--mode", "noise"), "--mode"),
        (("--task", "ioi", "--metric", "logit"), "logit_diff"),
        (("--task", "ioi", "--over", "heads"), "head"),
    ],
)
def test_bad_choices_are_one_line_and_exit_2(invoke, options, said):
    done = invoke(*options)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_stopped_sweep_shows_what_it_found_and_goes_on(invoke, tmp_path, monkeypatch):
    from actinium.circuits.patching import runs

    monkeypatch.setattr(runs, "PIECE", 1)
    original, seen = Model.replay, []

    def replay(self, *arguments, **options):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Model, "replay", replay)
    options = ("--task", "facts", "--n", "4", "--out", tmp_path)
    stopped = invoke(*options)
    assert stopped.exit_code == 130
    assert "goes on from" in stopped.output and "effect" in stopped.output
    assert (tmp_path / "sweep.safetensors").is_file()
    assert invoke(*options).exit_code == 0
    assert not (tmp_path / "sweep.safetensors").exists()
    assert (tmp_path / "effect.zarr").is_dir()
