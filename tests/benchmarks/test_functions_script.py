"""The benchmark of activation functions measures what it says on a few of them."""

from __future__ import annotations

from benchmarks.paired import Ratio
from benchmarks.settings import Settings

from benchmarks import functions


def test_each_function_has_a_row_beside_gelu_and_its_own_plain_form():
    rows = functions.rows(Settings(tiny=True, rounds=1))
    assert [row.peer for row in rows[:2]] == [functions.PEER, "its own uncompiled form"]
    named = {row.what.split(":")[0] for row in rows[2:]}
    assert named == {"GoLU", "PReLU"}
    assert all(isinstance(row.ratio, Ratio) and row.ratio.low > 0 for row in rows)
    # Compiled, a function of one input keeps that input alone: four bytes a number.
    assert "keeps 4 B a number" in next(row.what for row in rows if row.what.startswith("GoLU"))
