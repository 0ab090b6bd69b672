"""`actinium functions`: the list, one function, a comparison with its files, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, ["functions", *(str(a) for a in arguments)], env={"COLUMNS": "250"})


def test_the_list_is_cut_down_as_asked():
    everything = run("list", "--experimental")
    assert everything.exit_code == 0 and "GoLU" in everything.output
    assert (
        everything.output.strip().splitlines()[-1].startswith(f"{len(ac.functions.list(min_confidence='c'))} functions")
    )
    some = run("list", "gumbel", "--trainable")
    assert some.exit_code == 0 and "GoLU general" not in some.output
    assert run("list", "--bounded", "--smooth", "--fixed").output.count("Tanh") >= 1
    none = run("list", "no such text")
    assert none.exit_code == 0 and "0 functions" in none.output
    wrong = run("list", "--family", "polynomials of love")
    assert wrong.exit_code == 2 and "no family" in wrong.output


def test_a_function_is_shown_with_its_edge_of_chaos(tmp_path):
    done = run("show", "tanh", "--out", tmp_path / "tanh.svg")
    assert done.exit_code == 0, done.output
    assert "weights 1.304 / sqrt(n) with biases 0.2; variance 0.512" in done.output
    assert "odd" in done.output and (tmp_path / "tanh.svg").stat().st_size > 1000
    assert "did you mean 'GoLU'" in run("show", "golo").output


def test_functions_are_compared_and_written(tmp_path):
    done = run("compare", "relu", "golu", "--task", "digits", "--seeds", 2, "--epochs", 1, "--out", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output and "of 1 differ from relu" in done.output
    table = pd.read_csv(tmp_path / "c" / "table.csv", index_col="activation")
    assert list(table.index) == ["relu", "golu"] and table["mean"].between(0.2, 1).all()
    assert (tmp_path / "c" / "comparison.svg").exists()
    assert ac.Result.load(tmp_path / "c" / "comparison.zarr")["score"].shape == (2, 2)
    assert len((tmp_path / "c" / "runs.jsonl").read_text().splitlines()) == 5
    again = run("compare", "relu", "golu", "--task", "digits", "--seeds", 2, "--epochs", 2, "--out", tmp_path / "c")
    assert again.exit_code == 2 and "different epochs" in again.output


def test_functions_take_the_place_of_a_models_own(tmp_path):
    (tmp_path / "texts").write_text("\n".join(ac.world.heldout_text("lm")[:40]))
    done = run("compare", "silu", "heaviside", "--task", "world:lm", "--text", tmp_path / "texts", "--seeds", 1)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if line.startswith(("silu", "heaviside"))]
    assert [line[0] for line in lines] == ["silu", "heaviside"] and float(lines[0][1]) < float(lines[1][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relu", "golu", "--task", "cats"), "pass its texts"),
        (("relu",), "two activation functions"),
        (("relu", "golu", "--old", "relu"), "are for a model"),
        (("relu", "mosh"), "Mish"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message):
    done = run("compare", *arguments)
    assert done.exit_code == 2 and message in done.output
