"""`actinium train sae`: a dictionary from a store or a model, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app
from actinium.cli.train import settings_of

SITE = "blocks.2.resid_post"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "store"
    ac.store.create(folder, "world:lm", ac.world.heldout_text("lm")[:60], at=[SITE, "blocks.2.mlp.out"], context=64)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["train", "sae", *(str(a) for a in arguments)])


def test_a_store_makes_the_dictionary_that_the_function_makes(store, tmp_path):
    out = tmp_path / "out"
    options = ("--batch-size", "64", "--rows", "640", "--lr", "0.002", "--log-every", "5")
    done = run(store, "--at", SITE, "--out", out, "--d-sae", "256", "--set", "k=8", *options)
    assert done.exit_code == 0, done.output
    found = ac.features.Dictionary.load(out / "sae.safetensors")
    expected = ac.features.TopKSAE(256, 8).fit(
        ac.Store(store), sites=SITE, batch_size=64, rows=640, lr=0.002, log_every=5
    )
    assert all((a == b).all() for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True))
    assert found.about["site"] == SITE
    assert (out / "metrics.jsonl").is_file() and "256 latents" in done.output
    again = run(store, "--at", SITE, "--out", out, "--d-sae", "256", "--set", "k=8", *options)
    assert again.exit_code == 0, again.output


def test_a_model_reads_a_file_and_makes_a_transcoder(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(ac.world.heldout_text("lm")[:30]))
    out = tmp_path / "out"
    done = run(
        *("world:lm", "--data", tmp_path / "texts.txt", "--at", "blocks.1.resid_mid", "--at", "blocks.1.mlp.out"),
        *("--architecture", "skip_transcoder", "--set", "activation=jumprelu", "--set", "l0=0.01"),
        *("--d-sae", "64", "--batch-size", "32", "--rows", "128", "--out", out),
    )
    assert done.exit_code == 0, done.output
    found = ac.features.Dictionary.load(out / "sae.safetensors")
    assert type(found).__name__ == "SkipTranscoder" and found.settings == {"l0": 0.01}


def test_every_setting_of_training_is_an_option():
    shown = CliRunner().invoke(app, ["train", "sae", "--help"], env={"COLUMNS": "200"}).output
    for field in dataclasses.fields(ac.features.TrainConfig):
        if field.name != "folder":
            assert "--" + field.name.replace("_", "-") in shown, field.name
    assert "learning rate" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--architecture", "topkk"), "topk"),
        (("--set", "kk=8"), "'k'"),
        (("--set", "k"), "NAME=VALUE"),
        (("--set", "k=999"), "only 64 latents"),
        (("--optimizer", "adma"), "adam"),
        (("--batch-size", "0"), "batch_size"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(store, tmp_path, options, said):
    done = run(store, "--at", SITE, "--out", tmp_path, "--d-sae", "64", *options)
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_a_source_that_is_not_there_is_refused(tmp_path):
    assert run(tmp_path / "none", "--at", SITE, "--out", tmp_path).exit_code == 2
    assert run("world:lm", "--data", tmp_path / "none.txt", "--at", SITE, "--out", tmp_path).exit_code == 2


def test_settings_are_read_as_what_they_are():
    assert settings_of(["k=32", "l1=0.5", "normalize=layer_norm", "skip=True", "aux_k=none", "widths=[1, 2]"]) == {
        "k": 32,
        "l1": 0.5,
        "normalize": "layer_norm",
        "skip": True,
        "aux_k": None,
        "widths": [1, 2],
    }
