"""What every test may rely on: one thread per worker, no network, and the outside data where it exists."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# With Triton installed sparsify decodes through it, which needs a GPU.
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

# On a busy machine the first example pays for imports; hypothesis's own "ci" profile has no deadline either.
hypothesis.settings.register_profile("local", deadline=None)
if "CI" not in os.environ:
    hypothesis.settings.load_profile("local")


@pytest.fixture(scope="session")
def outside_data() -> Path:
    """Folder of test data that is not part of the repository; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ACTINIUM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("outside test data are absent (set ACTINIUM_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT
