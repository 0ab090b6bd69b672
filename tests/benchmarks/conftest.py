"""Makes the benchmarks importable, and their peers absent: what is shown here holds without them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def no_peers(monkeypatch):
    """As if no peer were installed."""
    for name in ("transformer_lens", "nnsight", "sae_lens", "dictionary_learning", "sparsify"):
        monkeypatch.setitem(sys.modules, name, None)
