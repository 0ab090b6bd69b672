"""`actinium functions search`: the best expressions, a file from which it goes on, and what it refuses."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, ["functions", "search", *map(str, arguments)], env={"COLUMNS": "160"})


@pytest.mark.parametrize("method", ["exhaustive", "rl", "evolution"])
def test_a_search_prints_the_best_and_goes_on_from_its_file(method, tmp_path):
    out = tmp_path / "search.jsonl"
    options = ("--method", method, "--task", "regression", "--epochs", "1", "--out", out)
    first = run(*options, "--budget", "2")
    assert first.exit_code == 0, first.output
    kept = out.read_text()
    done = run(*options, "--budget", "4", "--show", "2")
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith(kept) and len(out.read_text().splitlines()) == 5
    child = ac.functions.TaskChild("regression", epochs=1)
    if method == "exhaustive":
        best = str(ac.functions.exhaustive_search(child, budget=4, file=out).best()[0])
        assert best in done.output
    assert (
        "-mean squared error" in done.output
        and "4 networks" in done.output
        and str(out) in done.output.replace("\n", "")
    )


def test_what_cannot_be_searched_is_refused(tmp_path):
    wrong = run("--method", "rll")
    assert wrong.exit_code == 2 and "no method 'rll'; did you mean 'rl'" in wrong.output
    out = tmp_path / "search.jsonl"
    options = ("--task", "regression", "--epochs", "1", "--budget", "1", "--out", out)
    assert run(*options).exit_code == 0
    other = run(*options, "--seed", "1")
    assert other.exit_code != 0 and "different seed" in other.output
