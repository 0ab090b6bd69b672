"""A store in the place of its model: the same measurements, and the check-up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app
from actinium.store.stored import StoredModel

SITES = ["blocks.*.resid_post", "blocks.*.mlp.post"]


@pytest.fixture(scope="module")
def made(lm, tmp_path_factory):
    texts = ac.world.heldout_text("lm")[:60]
    path = tmp_path_factory.mktemp("stored") / "store"
    return ac.store.create(path, lm, texts, SITES, dtype="float32", context=64, packing="pad", progress=False)


@pytest.fixture(scope="module")
def stored(made):
    return StoredModel(made)


@pytest.mark.parametrize(
    "name",
    [
        "activation_moments",
        "norm_growth",
        "outlier_channels",
        "effective_rank",
        "dead_units",
        "layer_similarity",
        "activation_sparsity",
    ],
)
def test_measures_of_a_store_are_those_of_the_model(lm, stored, name):
    from actinium.core.inputs import Tokens

    measure, windows = getattr(ac.measure, name), stored.windows()
    direct = measure(lm, Tokens(windows.ids, windows.mask, torch.arange(len(windows)))).data
    played = measure(stored, windows).data
    assert set(direct.data_vars) == set(played.data_vars)
    for variable in direct.data_vars:
        np.testing.assert_allclose(
            played[variable].values, direct[variable].values, rtol=2e-3, atol=2e-4, err_msg=variable
        )


def test_windows_can_be_fewer(stored):
    whole, some = stored.windows(), stored.windows(300)
    assert len(some) < len(whole)
    assert abs(int(some.mask.sum()) - 300) < 100
    first = stored.record(some, "blocks.2.resid_post")["blocks.2.resid_post"]
    same = stored.record(whole, "blocks.2.resid_post")["blocks.2.resid_post"][some.rows]
    assert torch.equal(first, same[:, : first.shape[1]])


def test_what_needs_the_model_is_refused(stored):
    with pytest.raises(ac.errors.InputError, match="cannot record with grad"):
        stored.record(stored.windows(), "blocks.2.resid_post", grad=True)
    with pytest.raises(ac.errors.SiteError, match=r"blocks\.2\.attn\.z"):
        stored.record(stored.windows(), "blocks.2.attn.z")
    with pytest.raises(ac.errors.InputError, match="its own windows"):
        stored.record("Ann lives in", "blocks.2.resid_post")


def test_scan_reports_on_a_store(made, tmp_path):
    report = ac.report.scan(store=made, out=tmp_path, progress=False)
    states = {m.name: m.state for m in report.document.measurements}
    done = {name for name, state in states.items() if state == "done"}
    assert done == {"norms", "moments", "outliers", "massive", "similarity", "dead", "zeros", "rank"}
    assert "failed" not in states.values()
    assert json.loads((tmp_path / "report.json").read_text())["data"]["source"].startswith("store store of")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    # What the report says to run to look closer runs.
    scope = {}
    exec(report.document.setup, scope)
    assert scope["inputs"].ids.shape[0] == len(StoredModel(made).windows())
    for finding in report.findings:
        exec(finding.look, {})


def test_scan_wants_a_model_or_a_store(made):
    with pytest.raises(ac.errors.InputError, match="give a model, or a store"):
        ac.report.scan()
    with pytest.raises(ac.errors.InputError, match="give a model, or a store"):
        ac.report.scan("world:lm", store=made)
    with pytest.raises(ac.errors.InputError, match="holds its own data"):
        ac.report.scan(store=made, text="x.txt")


def test_the_commands_make_show_rank_check_and_scan(tmp_path):
    def run(*arguments, code=0):
        done = CliRunner().invoke(app, [str(a) for a in arguments])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    (tmp_path / "t.txt").write_text("\n".join(ac.world.heldout_text("lm")[:40]))
    out = tmp_path / "s"
    said = run(
        "record", "world:lm", "--data", tmp_path / "t.txt", "--at", "blocks.3.mlp.post", "--out", out, "--dtype", "int8"
    )
    assert "rows of 1 site:" in said
    shown = run("store", "show", out)
    assert "complete" in shown
    assert "blocks.3.mlp.post" in shown
    assert "%" in shown
    assert "2 of 2 files are as they were written" in run("store", "verify", out)
    assert "[" in run("store", "top", out, "blocks.3.mlp.post", "7")
    assert "report:" in run("scan", "--store", out, "--out", tmp_path / "report")
    file = next((out / "sites").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "1 of 2 files are as they were written" in run("store", "verify", out, code=1)
    assert "no site in this store: 'blocks.9'" in run("store", "top", out, "blocks.9", "7", code=2)
