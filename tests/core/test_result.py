"""A Result keeps its numbers and labels, draws them and reads back equal."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from actinium.core.errors import InputError, LoadError
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result


@pytest.fixture
def result() -> Result:
    data = xr.Dataset(
        {
            "score": (("layer", "token"), np.arange(6.0).reshape(2, 3)),
            "depth": (("layer",), [0.5, 1.0]),
            "name": (("layer",), ["first", "second"]),
        },
        {"layer": [0, 1], "token": ["a", "b", "<s>"]},
    )
    return Result(data, "measure.example", "card", {"seed": 3, "settings": {"k": [1, 2]}})


def test_a_saved_result_reads_back_equal(result, tmp_path):
    result.data.attrs["plot"] = {"kind": "heatmap"}
    result.data["score"][0, 0] = np.nan
    result.save(tmp_path / "here.zarr")
    back = Result.load(tmp_path / "here.zarr")
    assert back == result
    assert (back.method, back.paper, back.provenance) == (result.method, result.paper, result.provenance)
    assert back.data.attrs["plot"] == {"kind": "heatmap"}
    assert list(back.data.data_vars) == list(result.data.data_vars)
    assert back.data["token"].values.tolist() == ["a", "b", "<s>"]


def test_saving_again_replaces_and_leaves_nothing_beside_it(result, tmp_path):
    result.save(tmp_path / "here.zarr")
    result.data["score"] += 1
    result.save(tmp_path / "here.zarr")
    assert Result.load(tmp_path / "here.zarr") == result
    assert [p.name for p in tmp_path.iterdir()] == ["here.zarr"]


def test_save_refuses_a_folder_that_is_not_a_result(result, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a saved result"):
        result.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_load_refuses_what_is_missing_or_damaged(result, tmp_path):
    with pytest.raises(LoadError, match="not a saved result"):
        Result.load(tmp_path / "nothing")
    path = result.save(tmp_path / "here.zarr")
    (path / "zarr.json").write_text("{")
    with pytest.raises(LoadError):
        Result.load(path)


def test_equality_sees_numbers_labels_and_method(result):
    same = Result(result.data.copy(deep=True), result.method)
    assert same == result
    same.data["score"][1, 1] += 1e-9
    assert same != result
    assert Result(result.data.assign_coords(layer=[0, 2]), result.method) != result
    assert Result(result.data, "other") != result


def test_table_has_one_row_per_entry_of_the_first_variable(result):
    table = result.table()
    assert list(table.columns) == ["layer", "token", "score", "depth", "name"]
    assert len(table) == 6
    row = table[(table.layer == 1) & (table.token == "b")].iloc[0]
    assert (row.score, row.depth, row["name"]) == (4.0, 1.0, "second")
    assert list(result.table("depth").columns) == ["layer", "depth", "name"]


def test_plot_draws_the_values_it_holds(result):
    ax = result.plot()
    np.testing.assert_array_equal(ax.images[0].get_array(), result["score"].values)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("token", "layer")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "<s>"]
    line = result.plot(variable="depth").lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 1.0])


def test_plot_draws_every_variable_of_one_dimension_and_follows_hints():
    data = xr.Dataset({n: (("layer",), [1.0, 10.0, 100.0]) for n in ("a", "b")}, attrs={"plot": {"yscale": "log"}})
    ax = Result(data, "m").plot()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    assert ax.get_yscale() == "log"
    data.attrs["plot"] = {"kind": "bar", "variables": ["b"]}
    assert [p.get_height() for p in Result(data, "m").plot().patches] == [1, 10, 100]


def test_plot_refuses_three_dimensions_and_unknown_names(result):
    data = xr.Dataset({"cube": (("x", "y", "z"), np.zeros((2, 2, 2)))})
    with pytest.raises(InputError, match="isel"):
        Result(data, "m").plot()
    with pytest.raises(InputError, match="did you mean 'score'"):
        result.plot(variable="scor")


def test_html_escapes_what_the_data_say(result):
    page = result._repr_html_()
    assert "&lt;s&gt;" in page and "<s>" not in page and "measure.example" in page


@dataclass
class Pair:
    ids: torch.Tensor
    mask: torch.Tensor


def test_equal_inputs_have_equal_fingerprints_and_others_do_not():
    ids = torch.tensor([[1, 2]])
    same = [["ab", "c"], ("ab", "c")]
    different = [
        ["ab", "c"],
        ["a", "bc"],
        "abc",
        ids,
        ids.int(),
        ids.T,
        ids.float().bfloat16(),
        {"ids": ids},
        Pair(ids, ids > 1),
        Pair(ids, ids > 0),
        None,
        1,
        "1",
    ]
    assert fingerprint(same[0]) == fingerprint(same[1])
    assert fingerprint(ids) == fingerprint(ids.clone()) == fingerprint(ids.T.contiguous().T)
    assert len({fingerprint(v) for v in different}) == len(different)
    with pytest.raises(TypeError, match="fingerprint"):
        fingerprint(object())


def test_provenance_is_plain_json_and_repeatable():
    settings = {"at": ("blocks.0",), "eps": np.float32(0.5), "limit": float("inf"), "vector": torch.ones(3)}
    first, second = (provenance(inputs=["text"], seed=1, **settings) for _ in range(2))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert first["settings"]["at"] == ["blocks.0"]
    assert first["settings"]["vector"].startswith("sha256:")
    assert first["versions"]["torch"] == torch.__version__
    assert first != provenance(inputs=["text"], seed=2, **settings)
