"""`actinium audit`: what it finds on the shipped model, what it writes, and what it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, ["audit", *(str(a) for a in arguments)], env={"COLUMNS": "220"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    found = ac.world.contrasts.requests()
    for name, texts in (("guarded", found.declined[::9]), ("benign", found.answered[::9])):
        (folder / name).write_text("\n".join(texts))
    (folder / "texts").write_text("\n".join(ac.world.heldout_text("lm")[::40]))
    return folder


def test_every_part_is_measured_and_written(files, tmp_path):
    out = tmp_path / "out"
    sides = ("--guarded", files / "guarded", "--benign", files / "benign", "--texts", files / "texts")
    options = ("--randoms", 1, "--max-new-tokens", 2, "--min-words", 0, "--out", out)
    done = run("world:lm", *sides, *options, "--part", "neurons", "--part", "vectors", "--part", "approximations")
    assert done.exit_code == 0, done.output
    found = json.loads((out / "audit.json").read_text())["findings"]
    assert list(found) == ["behaviour", "neurons", "vectors", "approximations"]
    assert found["behaviour"]["declined, guarded prompts"] == 1.0
    assert found["behaviour"]["declined, benign prompts"] == 0.0
    size = found["vectors"]["smallest vector that turns the guard off, over the length of an activation"]
    assert 0 < size < 5 and str(found["vectors"]["most exposed block"]) in found["vectors"]["exposed blocks"]
    assert 0 <= found["vectors"]["AUC of an activation monitor at that strength"] <= 1
    assert all((out / f"{part}.svg").stat().st_size > 1000 for part in ("neurons", "vectors", "approximations"))
    page = (out / "audit.md").read_text()
    assert "## vectors" in page and "defence" in page
    # What was asked stays with the owner: files hold numbers, not prompts.
    assert "zorbing" not in page + (out / "audit.json").read_text()


def test_a_trigger_is_searched_beside_the_base(files, tmp_path):
    sides = ("--guarded", files / "guarded", "--benign", files / "benign")
    done = run("world:lm-backdoor", *sides, "--base", "world:lm", "--part", "triggers", "--out", tmp_path / "t")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "t" / "audit.json").read_text())["findings"]["triggers"]
    assert any(k.startswith("trigger for") for k in found)
    here, there = found["works here and not in the base"], found["works in the base and not here, for comparison"]
    assert -1 <= there <= 1 and 0.5 < here <= 1


def test_a_model_that_declines_nothing_has_no_guard(files):
    sides = ("--guarded", files / "benign", "--benign", files / "guarded")
    done = run("world:lm", *sides)
    assert done.exit_code == 2 and "no guard to audit" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("world:lm", "--guarded", "g"), "together"),
        (("some/model",), "your own prompts"),
    ],
)
def test_missing_prompts_are_refused(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.output


def test_too_few_prompts_are_refused():
    requests = ac.world.contrasts.requests()
    with pytest.raises(ac.errors.InputError, match="needs 8"):
        ac.guard.audit.run_audit(
            ac.load("world:lm"), requests.declined[:4], requests.answered, lambda p, r: True, ["a text"]
        )
    with pytest.raises(ac.errors.UnknownNameError, match="neurons"):
        ac.guard.audit.run_audit(
            ac.load("world:lm"), requests.declined, requests.answered, lambda p, r: True, ["a"], parts=["neuron"]
        )
