"""Makes the toy models and the tiny architectures importable, and shares one loaded `world:lm`."""

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


@pytest.fixture(scope="session")
def ioi(lm):
    """Eight pairs of prompts whose lengths differ between rows."""
    from actinium.world.tasks import ioi

    return ioi(lm, n=8)
