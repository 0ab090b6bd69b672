"""The edit-fact command: a plain checkpoint with another fact, and its refusals."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from actinium.cli.app import app
from actinium.core.loading import load

FACT = ("--prompt", "The city of Ann is", "--subject", "Ann", "--target", "Tarn")


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, ["edit-fact", *(str(a) for a in arguments)])


@pytest.mark.parametrize(("method", "layers"), [("rome", [1]), ("memit", [0, 1]), ("ace", [0, 1])])
def test_written_folder_says_the_new_object(invoke, tmp_path, method, layers):
    out = tmp_path / "edited"
    options = [word for layer in layers for word in ("--layer", layer)]
    options += ["--multihop", "The country of Ann is=Drum"] if method == "ace" else []
    result = invoke("world:lm", *FACT, "--out", out, "--method", method, *options)
    assert result.exit_code == 0, result.output
    assert "model.layers.1.mlp.down_proj.weight" in result.output
    edited = load(out)
    said = edited.logits("The city of Ann is")[0, -1].argmax()
    assert edited.to_str_tokens([said])[0].strip() == "Tarn"


def test_layers_are_chosen_where_none_are_given(invoke, tmp_path):
    result = invoke("world:lm", *FACT, "--out", tmp_path / "edited", "--method", "memit")
    assert result.exit_code == 0, result.output
    assert "layers.0.mlp" in result.output


def test_an_edit_that_does_not_take_is_said(invoke, tmp_path):
    result = invoke("world:lm", *FACT, "--out", tmp_path / "edited", "--layer", 4)
    assert result.exit_code == 0, result.output
    assert "does not say the new object" in result.output


def test_what_does_not_fit_is_refused(invoke, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    for arguments, message in (
        (("world:lm", *FACT[:3], "Bob", *FACT[4:], "--out", tmp_path / "new"), "'Bob' is not in the prompt"),
        (("world:lm", *FACT, "--out", tmp_path / "taken"), "exists already"),
        (("world:lm", *FACT, "--out", tmp_path / "new", "--method", "rome", "--layer", 1, "--layer", 2), "one block"),
        (("world:lm", *FACT, "--out", tmp_path / "new", "--multihop", "The country of Ann is=Drum"), "only ace"),
        (("world:lm", *FACT, "--out", tmp_path / "new", "--texts", tmp_path / "absent"), "cannot read"),
        (("world:lm", *FACT, "--out", tmp_path / "new", "--method", "ace", "--multihop", "=Drum"), "phrasings"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.output
        assert not (tmp_path / "new").exists()


def test_other_models_need_texts(invoke, tmp_path):
    from actinium.world import path

    result = invoke(path("lm"), *FACT, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "--texts" in result.output
