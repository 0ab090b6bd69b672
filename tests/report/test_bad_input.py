"""What cannot work is refused before anything is measured, with a message that says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app
from actinium.core.errors import InputError, LoadError, MissingExtraError


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def refused(monkeypatch):
    """A call of `scan` that has to be refused without a single measurement."""

    def check(error, match, model, **options):
        monkeypatch.setattr("actinium.report.checkup._measure", lambda *_: pytest.fail("it measured"))
        with pytest.raises(error, match=match):
            ac.report.scan(model, **{"out": None, "progress": False} | options)

    return check


def test_missing_text_file(refused, tiny_llama, tmp_path):
    refused(InputError, "cannot read the text file .*none.txt", tiny_llama, text=tmp_path / "none.txt")


@pytest.mark.parametrize("content", [b"", b" \n\t\n \n"])
def test_empty_text(refused, tiny_llama, tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    refused(InputError, "is empty", tiny_llama, text=tmp_path / "a.txt")


def test_text_that_is_not_utf8(refused, tiny_llama, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a cat\n\xff\xfe\x00")
    refused(InputError, "not UTF-8 text .byte 6", tiny_llama, text=tmp_path / "a.txt")


def test_folder_as_text(refused, tiny_llama, tmp_path):
    refused(InputError, "is a folder; for a folder of images pass data", tiny_llama, text=tmp_path)


def test_text_without_a_tokenizer(refused, tiny_gpt2):
    refused(InputError, "no tokenizer", ac.load(tiny_gpt2).module, text=["a cat"])


def test_texts_without_two_tokens(refused, tiny_llama):
    model = ac.load(tiny_llama)
    model.tokenizer.backend_tokenizer.post_processor = None  # no <bos>
    refused(InputError, "fewer than two tokens of each", model, text=["cat", "dog"])


@pytest.mark.parametrize("texts", [[], ["", " "], [3]])
def test_lists_without_text(refused, tiny_llama, texts):
    refused(InputError, "text", tiny_llama, text=texts)


def test_two_sources(refused, tiny_llama, text_file, pictures):
    refused(InputError, "one of text, data and dataset", tiny_llama, text=text_file, data=pictures)


def test_text_for_a_vision_model(refused, tiny_vit, text_file):
    refused(InputError, "reads no text", tiny_vit, text=text_file)


def test_images_for_a_language_model(refused, tiny_llama, pictures):
    refused(InputError, "reads text, not images", tiny_llama, data=pictures)


def test_nothing_for_a_vision_model(refused, tiny_vit):
    refused(InputError, "reads images: pass a folder", tiny_vit)


def test_folder_without_images(refused, tiny_vit, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    refused(InputError, "no images .* it holds notes.txt", tiny_vit, data=tmp_path)


def test_damaged_image_is_named(refused, tiny_vit, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    refused(InputError, "cannot read the image .*broken.png", tiny_vit, data=tmp_path)


def test_missing_data(refused, tiny_vit, tmp_path):
    refused(InputError, "no file or folder", tiny_vit, data=tmp_path / "none")


def test_pickled_array_is_not_loaded(refused, tiny_gpt2, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(InputError, "cannot read the array file", tiny_gpt2, data=tmp_path / "a.npy")


def test_damaged_array_file(refused, tiny_gpt2, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not a zip")
    refused(InputError, "cannot read the array file", tiny_gpt2, data=tmp_path / "a.npz")


def test_other_file_as_data(refused, tiny_vit, text_file):
    refused(InputError, "folder of images or a .npy or .npz file", tiny_vit, data=text_file)


def test_token_ids_beyond_the_vocabulary(refused, tiny_gpt2):
    ids = np.full((4, 8), 30)
    refused(InputError, "knows 0 to 29", tiny_gpt2, data=ids)


def test_array_with_nan(refused, factory):
    array = np.full((4, 64), np.nan, dtype=np.float32)
    refused(InputError, "NaN", f"{factory}:flat", data=array)


def test_images_that_do_not_fit_a_module(refused, factory, pictures):
    refused(InputError, "does not take these images; tried 3x20x", f"{factory}:recurrent", data=pictures)


def test_array_that_does_not_fit_a_module(refused, factory):
    refused(InputError, "does not take this input", f"{factory}:flat", data=np.zeros((4, 63), dtype=np.float32))


def test_unknown_dataset_names_the_nearest(refused, tiny_vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    refused(MissingExtraError, "did you mean 'digits'.*pip install", tiny_vit, dataset="digit")


def test_limit_below_one(refused, tiny_llama):
    refused(InputError, "limit must be at least 1", tiny_llama, limit=0)


@pytest.mark.parametrize("formats", ["html", [], ["html", "pdf"]])
def test_formats_that_do_not_exist(refused, tiny_llama, formats):
    refused(InputError, "format", tiny_llama, formats=formats)


def test_unknown_model(refused):
    refused(LoadError, "world:lm", "world:lmm")


def test_damaged_weights(refused, tiny_llama, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    refused(LoadError, "cannot load the weights", folder)


def test_weights_drawn_at_random_are_said_in_the_report(tiny_llama, text_file, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="drawn at random"):
        report = ac.report.scan(folder, text=text_file, out=None, limit=60, progress=False)
    assert "model.layers.0.mlp.up_proj.weight" in report.document.model.notes[0]
    assert "drawn at random" in report.to_markdown()


def test_file_where_the_folder_has_to_go(refused, tiny_llama, tmp_path):
    (tmp_path / "report").write_text("taken")
    refused(InputError, "cannot write to the folder", tiny_llama, out=tmp_path / "report")
    refused(InputError, "cannot write to the folder", tiny_llama, out=tmp_path / "report" / "inside")


def test_folder_where_a_file_has_to_go(refused, tiny_llama, tmp_path):
    (tmp_path / "report.json").mkdir()
    refused(InputError, "report.json.*is a folder", tiny_llama, out=tmp_path)


def test_read_only_folder(refused, tiny_llama, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # the superuser writes everywhere but to what the kernel keeps
        folder = "/proc/actinium-report"
        if not os.path.isdir("/proc"):
            pytest.skip("no folder here that the superuser cannot write")
    refused(InputError, "cannot write to the folder", tiny_llama, out=folder)


def test_refused_input_leaves_no_folder_behind(refused, tiny_vit, tmp_path):
    refused(InputError, "pass a folder", tiny_vit, out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_exits_2_without_a_traceback(invoke, tiny_llama, tmp_path):
    done = invoke("scan", tiny_llama, "--text", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "none.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_long_texts_are_windowed_and_it_is_said(tiny_llama, tmp_path):
    (tmp_path / "long.txt").write_text("the cat sat on the mat . " * 40 + "\nthe dog ran .\n")
    report = ac.report.scan(tiny_llama, text=tmp_path / "long.txt", out=None, progress=False)
    note = report.document.data.notes[0]
    assert note.startswith("1 document was longer than 32 tokens")
    assert report.document.data.rows == 10  # 281 tokens with <bos> in windows of 32, and the short line


def test_nan_activations_are_a_finding_that_names_the_first_site(tiny_llama, text_file):
    model = ac.load(tiny_llama)
    with torch.no_grad():
        model.module.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    report = ac.report.scan(model, text=text_file, out=None, progress=False)
    rules = [f.rule for f in report.findings]
    assert rules[:2] == ["broken-weights", "not-finite"]
    assert report.findings[0].where == "model.layers.1.mlp.up_proj.weight"
    assert report.findings[1].where == "blocks.1.mlp.pre"
    assert report.findings[1].value == pytest.approx(100 / 24)  # one of 24 units, everywhere
    assert not [m for m in report.document.measurements if m.state == "failed"]
    report.to_html()


def test_overflow_in_half_precision_is_a_finding():
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight.fill_(200)
        module[0].bias.zero_()
        module[2].weight.fill_(300)
    report = ac.report.scan(module.half(), data=np.ones((40, 4), dtype=np.float32), out=None, progress=False)
    finding = next(f for f in report.findings if f.rule == "not-finite")
    assert finding.where == "module:2"
    assert "infinite" in finding.what


def test_ctrl_c_keeps_a_report_and_exits_130(tiny_llama, text_file, tmp_path):
    """A real SIGINT to a real process, in the middle of a slow module's second measurement."""
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
            import time
            import torch

            class Slow(torch.nn.Sequential):
                passes = 0

                def forward(self, x):
                    self.passes += 1
                    if self.passes > 5:
                        print("slow", flush=True)
                        time.sleep(60)
                    return super().forward(x)

            def build():
                torch.manual_seed(0)
                return Slow(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
            """)
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 4)).astype("float32"))
    command = [sys.executable, "-m", "actinium", "scan", "slow.py:build", "--data", "x.npy", "--out", "report"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "slow\n"
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "measurements are kept in report/report.html" in errors
    assert "interrupted before" in printed
    assert (tmp_path / "report" / "report.json").is_file()
    assert "Traceback" not in errors
