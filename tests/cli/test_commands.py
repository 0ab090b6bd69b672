"""The commands as a person types them: output, exit codes, and what an error looks like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from actinium.cli.app import app

CNN = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
"""


@pytest.fixture
def invoke():
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """Folder of a random GPT-2 with three layers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_help_names_every_command(invoke):
    done = invoke("--help")
    assert done.exit_code == 0
    for command in ("scan", "sites", "patch", "papers", "reproduce", "world"):
        assert command in done.output


@pytest.mark.parametrize("command", ["scan", "sites", "patch", "papers", "reproduce", "world"])
def test_every_command_has_help(invoke, command):
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_module_runs_as_the_command_line():
    done = subprocess.run([sys.executable, "-m", "actinium", "--version"], capture_output=True, text=True, check=True)
    from actinium import __version__

    assert done.stdout == f"actinium {__version__}\n"


def test_papers_json_has_119_rows(invoke):
    done = invoke("papers", "--json")
    rows = json.loads(done.stdout)
    assert [row["number"] for row in rows] == list(range(1, 120))
    assert all({"number", "slug", "title", "room", "state"} <= set(row) for row in rows)
    assert {row["state"] for row in rows} <= {"done", "planned"}


def test_papers_can_be_filtered_by_room_and_state(invoke):
    rows = json.loads(invoke("papers", "--json", "--room", "signal", "--state", "planned").stdout)
    everything = json.loads(invoke("papers", "--json").stdout)
    assert rows == [row for row in everything if row["room"] == "signal" and row["state"] == "planned"]


def test_papers_table_counts_what_it_shows(invoke):
    done = invoke("papers", "--room", "signal")
    shown = [line for line in done.stdout.splitlines() if " signal " in line]
    assert len(shown) >= 3
    assert f"{len(shown)} systems" in done.stdout


def test_unknown_room_exits_2_with_the_nearest_name(invoke):
    done = invoke("papers", "--room", "circuit")
    assert done.exit_code == 2
    assert "error: no room 'circuit'; did you mean 'circuits'" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(invoke):
    done = invoke("--debug", "papers", "--room", "circuit")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr


def test_unknown_paper_exits_2_with_the_nearest_slug(invoke):
    done = invoke("reproduce", "sparsing-laws")
    assert done.exit_code == 2
    assert "sparsing-law" in done.stderr


def test_unknown_option_exits_2(invoke):
    assert invoke("papers", "--jsn").exit_code == 2


def test_sites_are_folded_over_layers(invoke, tiny_gpt2):
    done = invoke("sites", tiny_gpt2, "blocks.*.attn.q")
    assert done.exit_code == 0, done.stderr
    assert "blocks.0-2.attn.q" in done.stdout
    assert "batch pos head d_head" in done.stdout
    assert "3 sites" in done.stdout


def test_sites_all_has_one_row_per_layer(invoke, tiny_gpt2):
    done = invoke("sites", tiny_gpt2, "blocks.*.attn.q", "--all")
    assert all(f"blocks.{layer}.attn.q" in done.stdout for layer in range(3))


def test_folded_name_is_a_pattern_for_the_same_sites(invoke, tiny_gpt2):
    folded = json.loads(invoke("sites", tiny_gpt2, "blocks.0-2.attn.q", "--json").stdout)
    starred = json.loads(invoke("sites", tiny_gpt2, "blocks.*.attn.q", "--json").stdout)
    assert folded == starred
    assert [row["layer"] for row in folded] == [0, 1, 2]
    assert folded[0]["sizes"]["d_head"] == 4


def test_unknown_site_exits_2_with_the_nearest_name(invoke, tiny_gpt2):
    done = invoke("sites", tiny_gpt2, "blocks.0.resid_pst")
    assert done.exit_code == 2
    assert "resid_post" in done.stderr


def test_unknown_model_exits_2(invoke):
    done = invoke("sites", "world:lmm")
    assert done.exit_code == 2
    assert "world:lm" in done.stderr


def test_sites_of_a_module_from_a_factory(invoke, tmp_path):
    (tmp_path / "net.py").write_text(CNN)
    done = invoke("sites", f"{tmp_path / 'net.py'}:build", "--json")
    assert done.exit_code == 0, done.stderr
    assert "module:0" in [row["name"] for row in json.loads(done.stdout)]


@pytest.mark.parametrize("formats", ["pdf", "html,jsn", ","])
def test_scan_refuses_unknown_formats_before_it_loads_anything(invoke, formats):
    done = invoke("scan", "no-such-model", "--format", formats)
    assert done.exit_code == 2
    assert "format" in done.stderr


def test_interrupt_exits_130_without_a_traceback(tmp_path):
    """A real SIGINT to a real process, while a factory is building its module."""
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
            import time

            def build():
                print("building", flush=True)
                time.sleep(60)
            """)
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "actinium", "sites", f"{tmp_path / 'slow.py'}:build"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith("interrupted")
    assert "Traceback" not in errors


def test_what_an_interrupt_kept_is_said(invoke, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt("3 of 5 layers are in out/partial.json")

    monkeypatch.setattr("actinium.papers.registry.row", interrupted)
    done = invoke("papers")
    assert done.exit_code == 130
    assert done.stderr == "interrupted: 3 of 5 layers are in out/partial.json\n"
