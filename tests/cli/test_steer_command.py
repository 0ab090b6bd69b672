"""`actinium steer`: a vector is made, applied, swept and baked from the command line."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app

SITE = "blocks.3.resid_post"


def run(*arguments):
    return CliRunner().invoke(app, ["steer", *(str(a) for a in arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def vector(tmp_path_factory):
    path = tmp_path_factory.mktemp("steer") / "refusal.safetensors"
    done = run("make", "world:lm", "--contrast", "refusal", "--n", "24", "--at", SITE, "--out", path)
    assert done.exit_code == 0, done.output
    return path


def test_the_vector_is_the_one_that_the_function_makes(vector, tmp_path):
    model, pairs = ac.load("world:lm"), ac.world.contrasts.contrast("refusal", 24)
    want = ac.steering.extract(model, pairs.positive, pairs.negative, SITE)
    found = ac.steering.SteeringVector.load(vector)
    assert torch.equal(found[SITE], want[SITE]) and found.method == "mean_difference"
    for name, texts in (("p", pairs.positive), ("n", pairs.negative)):
        (tmp_path / name).write_text("\n".join(texts))
    out = tmp_path / "v.safetensors"
    sides = ("--positive", tmp_path / "p", "--negative", tmp_path / "n")
    done = run("make", "world:lm", *sides, "--at", SITE, "--method", "pca_pairwise", "--position", "mean", "--out", out)
    assert done.exit_code == 0, done.output
    want = ac.steering.extract(model, pairs.positive, pairs.negative, SITE, method="pca_pairwise", position="mean")
    assert torch.allclose(ac.steering.SteeringVector.load(out)[SITE], want[SITE])


def test_applying_shows_the_plain_and_the_steered_text(vector):
    prompt = ac.world.contrasts.requests("heldout").answered[0]
    done = run("apply", "world:lm", vector, prompt, "--strength", "2", "--max-new-tokens", "1")
    assert done.exit_code == 0, done.output
    plain, steered = (line.split() for line in done.output.strip().splitlines()[-2:])
    assert plain == ["plain", "Sure"] and steered == ["2", "Sorry"]


@pytest.mark.parametrize("suffix", ["gguf", "svec", "pt"])
def test_files_of_other_libraries_are_written_and_read(vector, tmp_path, suffix):
    path = tmp_path / f"refusal.{suffix}"
    done = run("make", "world:lm", "--contrast", "refusal", "--n", "24", "--at", SITE, "--out", path)
    assert done.exit_code == 0, done.output
    want, (direction,) = (
        ac.steering.SteeringVector.load(vector)[SITE],
        ac.steering.load_vector(path).directions.values(),
    )
    assert torch.allclose(direction, want, atol=1e-6)
    prompt = ac.world.contrasts.requests("heldout").answered[0]
    done = run("apply", "world:lm", path, prompt, "--strength", "2", "--max-new-tokens", "1")
    assert done.exit_code == 0, done.output
    assert done.output.split()[-2:] == ["2", "Sorry"]


def test_the_sweep_finds_the_strength_that_works(vector, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(ac.world.contrasts.requests("heldout").answered[:8]))
    out = tmp_path / "out"
    options = (
        "--prompts",
        prompts,
        "--match",
        "^ ?Sorry",
        "--strengths",
        "-1,2",
        "--max-new-tokens",
        "2",
        "--out",
        out,
    )
    done = run("sweep", "world:lm", vector, *options)
    assert done.exit_code == 0, done.output
    assert f"best: {SITE}, strength 2, success 100%" in done.output
    assert (out / "sweep.svg").stat().st_size > 1000
    table = ac.Result.load(out / "sweep.zarr").table()
    assert list(table["strength"]) == [-1.0, 0.0, 2.0]


def test_a_baked_checkpoint_is_read_by_plain_transformers(vector, tmp_path):
    out = tmp_path / "baked"
    done = run("bake", "world:lm", vector, "--strength", "2", "--out", out)
    assert done.exit_code == 0, done.output
    model, prompt = ac.load("world:lm"), ac.world.contrasts.requests().answered[0]
    with ac.steering.steer(model, ac.steering.SteeringVector.load(vector), 2.0):
        want = model.logits(prompt)
    plain = hf.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = hf.AutoTokenizer.from_pretrained(out)(prompt, return_tensors="pt")
    assert torch.allclose(plain(tokens["input_ids"]).logits, want, atol=1e-3)
    again = run("bake", "world:lm", vector, "--out", out)
    assert again.exit_code == 2 and "not empty" in again.output
    gone = run("bake", "world:lm", vector, "--ablate", "--out", tmp_path / "ablated")
    assert gone.exit_code == 0, gone.output
    direction = ac.steering.SteeringVector.load(vector)[SITE]
    streams = ac.load(str(tmp_path / "ablated")).record(prompt, "blocks.5.resid_post")["blocks.5.resid_post"]
    assert float((streams @ (direction / direction.norm())).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "world:lm", "--out", "v"), "--positive and --negative, or --contrast"),
        (("make", "world:lm", "--positive", "p", "--out", "v"), "both --positive"),
        (("make", "world:lm", "--contrast", "refusals", "--out", "v"), "refusal"),
        (("apply", "world:lm", "absent.safetensors", "a"), "cannot read"),
        (("sweep", "world:lm", "v", "--prompts", "p", "--match", "("), "regular expression"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.output


def test_a_vector_of_another_model_is_refused(vector):
    done = run("apply", "world:lm-reward", vector, "a")
    assert done.exit_code == 2 and "made on world:lm" in done.output
    allowed = run("apply", "world:lm-reward", vector, "Ann", "--transfer", "--max-new-tokens", "1")
    assert allowed.exit_code == 0, allowed.output
