"""Every benchmark runs on a tiny model without its peers and checks what it compares; the page is written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from benchmarks.paired import Disagreement, Ratio, Row
from benchmarks.settings import Settings, gpt2, tokens

from benchmarks import __main__ as everything
from benchmarks import edit_generate, heads, import_time, patching, peers, record, store

pytestmark = pytest.mark.usefixtures("no_peers")
TINY = Settings(tiny=True, rounds=1)


def measured(rows: list[Row]) -> list[Row]:
    return [row for row in rows if isinstance(row.ratio, Ratio)]


def test_recording_is_compared_without_peers():
    rows = record.rows(TINY)
    assert {row.peer for row in measured(rows)} == {record.PLAIN, record.HIDDEN}
    assert {row.peer for row in rows if row.ratio == "not installed"} == {
        "TransformerLens run_with_cache",
        "nnsight trace",
    }
    assert all(row.ratio.low > 0 for row in measured(rows))


def test_recordings_of_other_weights_are_refused():
    module, ids = gpt2(tiny=True), torch.arange(1, 9)[None]
    ours = record.ac.Model(module).record(ids, ["blocks.*.resid_pre", "blocks.2.resid_post", "logits"])
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.bias += 1
    with pytest.raises(Disagreement, match="stream 2"):
        record._check(module, ids, ours, {})


def test_patching_is_compared_without_peers():
    rows = patching.rows(TINY)
    assert [row.peer for row in rows if row.goal] == ["TransformerLens get_act_patch_resid_pre"] * 2
    assert {row.ratio for row in rows if row.goal} == {"not installed"}
    assert patching.PLAIN in {row.peer for row in measured(rows)}


def test_sweeps_over_heads_are_compared_without_peers():
    rows = heads.rows(TINY)
    assert [row.peer for row in rows if row.goal] == [heads.ABSENT] * 2
    assert {row.peer for row in measured(rows)} == {patching.PLAIN}


def test_sweeps_whose_values_differ_are_refused():
    module = gpt2(tiny=True)
    model = patching.ac.Model(module)
    task = patching.random_pairs(model, 2, 5)
    ours = patching._ours(model, task)
    with pytest.raises(Disagreement, match="of another task"):
        patching._check(model, task, [], {patching.OURS: lambda: ours, "of another task": lambda: ours.roll(1, dims=1)})


def test_every_position_of_the_prompts_differs():
    task = patching.random_pairs(patching.ac.Model(gpt2(tiny=True)), 3, 6)
    assert bool((task.clean_ids != task.corrupt_ids).all())


def test_the_goal_of_the_import_is_about_seconds(monkeypatch):
    monkeypatch.setattr(import_time, "_seconds", lambda module, clock: {"actinium": 0.5, "torch": 2.0}[module])
    (row,) = import_time.rows(TINY)
    assert (row.ratio.median, row.value, row.met) == (0.25, 0.5, "no")


def test_import_is_timed_in_fresh_interpreters():
    # Torch is loaded here already; an interpreter that inherited it would report next to nothing.
    assert 0 < import_time._seconds("json", "perf_counter") < import_time._seconds("torch", "perf_counter")


def test_generation_is_compared_with_plain_generation():
    rows = edit_generate.rows(TINY)
    assert [row.goal is not None for row in rows] == [True, False, False]
    assert {row.peer for row in rows} == {edit_generate.PLAIN}


def test_stores_are_compared_without_peers():
    rows = store.rows(TINY)
    assert [row.peer for row in rows if row.ratio == "not installed"] == [
        "SAELens, cached activations (Arrow), mixing buffer",
        "dictionary_learning ActivationBuffer, fed by a model of one block",
    ]
    reading = [row for row in rows if row.peer == "numpy.memmap, read in order"]
    assert len(reading) == 4
    memory = [row for row in rows if "memory of its own" in row.what]
    assert len(memory) == 2
    assert all(0 < row.value < 2000 for row in memory)


def test_absent_peers_are_named_as_not_installed():
    module = gpt2(tiny=True)
    assert peers.lenses(module) == []
    assert peers.nnsight_recorder(module) is None
    assert peers.version_of(peers.LENS) == "not installed"


def test_the_page_holds_the_ratios_and_what_they_were_measured_on(tmp_path, capsys, monkeypatch):
    row = Row("record", "plain forward", Ratio(1.234, 1.0, 2.0))
    room = type("One", (), {"rows": staticmethod(lambda settings: [row])})
    monkeypatch.setattr(everything, "PAGES", {"benchmarks.md": {"one": room}, "other.md": {"two": room}})
    page = tmp_path / "docs" / "benchmarks.md"
    everything.main(["--tiny", "--date", "2001-02-03", "--out", str(page.parent), "--page", "benchmarks.md"])
    assert not page.with_name("other.md").exists()
    text = page.read_text(encoding="utf-8")
    assert "| what | peer | ratio | goal | met? |" in text
    assert "| record | plain forward | 1.23 (1-2) |  |  |" in text
    assert "| date | 2001-02-03 |" in text
    assert f"| torch | {torch.__version__} |" in text
    assert "| nnsight | not installed |" in text
    assert str(page) in capsys.readouterr().out.replace("\n", "")


def test_each_script_runs_alone(root):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.import_time", "--tiny", "--rounds", "1"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "import actinium" in done.stdout.replace("\n", " ")


@pytest.mark.parametrize("option", [["--rounds", "0"], ["--clock", "moon"], ["--threads", "-1"]])
def test_options_that_cannot_be_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        everything.main(option)
    assert option[0] in capsys.readouterr().err


def test_prompts_are_the_same_each_time():
    module = gpt2(tiny=True)
    assert torch.equal(tokens(module, 2, 5), tokens(module, 2, 5))
    assert torch.equal(module.lm_head.weight, gpt2(tiny=True).lm_head.weight)
