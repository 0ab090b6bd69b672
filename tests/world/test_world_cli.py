"""`actinium world`: list, evaluate and train from the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from actinium.cli.world import app
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.loading import shipped_names
from actinium.world import compiled, shipped

RUNNER = CliRunner()


def test_list_names_every_shipped_and_every_compiled_model():
    result = RUNNER.invoke(app, ["list"])
    assert result.exit_code == 0
    known = [*shipped.names(), *compiled.names()]
    assert [line.split()[0] for line in result.stdout.splitlines()] == [f"world:{name}" for name in known]
    assert sorted(known) == shipped_names()


def test_evaluate_prints_every_skill_beside_the_declared_accuracy():
    result = RUNNER.invoke(app, ["evaluate", "lm", "--n", "20"])
    assert result.exit_code == 0, result.output
    for skill, declared in shipped.recipe("lm")["held_out_accuracy"].items():
        assert any(skill in line and f"{declared:.3f}" in line for line in result.stdout.splitlines()), skill


def test_train_writes_a_folder_that_evaluate_reads(tmp_path):
    out = tmp_path / "model"
    result = RUNNER.invoke(app, ["train", "lm", "--out", str(out), "--steps", "1", "--seed", "3", "--n", "4"])
    assert result.exit_code == 0, result.output
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["settings"]["seed"] == 3 and recipe["settings"]["steps"] == 1
    assert not (out / "checkpoints").exists()
    assert RUNNER.invoke(app, ["evaluate", str(out), "--n", "2"]).exit_code == 0


def test_a_compiled_and_the_adding_model_are_evaluated():
    for name in ("induction", "world:modular"):
        result = RUNNER.invoke(app, ["evaluate", name, "--n", "50"])
        assert result.exit_code == 0, result.output
        assert "1.000" in result.stdout


def test_train_modular_writes_a_folder_that_evaluate_reads(tmp_path):
    out = tmp_path / "adding"
    result = RUNNER.invoke(app, ["train", "modular", "--out", str(out), "--steps", "20", "--seed", "3"])
    assert result.exit_code == 0, result.output
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["settings"]["seed"] == 3 and recipe["settings"]["steps"] == 20
    result = RUNNER.invoke(app, ["evaluate", str(out)])
    assert result.exit_code == 0, result.output
    assert f"{recipe['held_out_accuracy']['modular']:.3f}" in result.stdout


def test_unknown_names_are_refused_with_the_nearest():
    for command in ("train", "evaluate"):
        result = RUNNER.invoke(app, [command, "lmm"])
        assert isinstance(result.exception, UnknownNameError)
        assert "lm" in str(result.exception)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = RUNNER.invoke(app, ["train", "lm", "--out", str(blocked), "--steps", "1"])
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize("arguments", [["train", "lm", "--steps", "0"], ["evaluate", "lm", "--n", "0"]])
def test_senseless_numbers_are_refused(arguments):
    assert RUNNER.invoke(app, arguments).exit_code == 2
