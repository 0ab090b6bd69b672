"""Makes the tiny architectures importable, and shares one loaded `world:lm`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(scope="session")
def lm():
    """The shipped language model."""
    from actinium.core.loading import load

    return load("world:lm")
