"""Makes the tiny architectures importable, and shares the loaded `world:lm` and a small Llama in two bases."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(scope="session")
def lm():
    """The shipped language model."""
    from actinium.core.loading import load

    return load("world:lm")


@pytest.fixture(scope="session")
def small():
    """The small Llama as a model."""
    from llamas import llama

    from actinium.core.model import Model

    return Model(llama(), name="small")


@pytest.fixture
def ids():
    """24 rows of seven tokens, the first of them the beginning of a sequence."""
    rows = torch.randint(2, 50, (24, 7), generator=torch.Generator().manual_seed(1))
    rows[:, 0] = 1
    return rows
