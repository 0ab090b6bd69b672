"""The benchmark of edge attribution runs on a tiny model without its peer and names it as absent."""

from __future__ import annotations

import pytest
from benchmarks.paired import Ratio
from benchmarks.settings import Settings

from benchmarks import edge_attribution

pytestmark = pytest.mark.usefixtures("no_peers")


def test_edge_attribution_is_compared_with_its_passes():
    rows = edge_attribution.rows(Settings(tiny=True, rounds=1))
    assert [row.peer for row in rows] == [edge_attribution.PEER, edge_attribution.PASSES] * 2
    assert {row.ratio for row in rows if row.peer == edge_attribution.PEER} == {"not installed"}
    assert all(row.ratio.low > 0 for row in rows if isinstance(row.ratio, Ratio))
