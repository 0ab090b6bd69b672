"""Models that the measures are tried on: tiny random ones, a CNN, and a trained one from outside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import architectures
from actinium.core.inputs import Tokens
from actinium.core.model import Model


@pytest.fixture(params=["llama", "gpt2", "vit"])
def any_transformer(request) -> tuple[Model, torch.Tensor]:
    """A tiny transformer with an input."""
    return architectures.shared(request.param), architectures.inputs_for(request.param, batch=3)


@pytest.fixture(params=["llama", "gpt2"])
def language_model(request) -> Model:
    """A tiny random causal language model."""
    return architectures.shared(request.param)


@pytest.fixture
def gpt2() -> Model:
    return architectures.shared("gpt2")


@pytest.fixture
def llama() -> Model:
    return architectures.shared("llama")


@pytest.fixture
def bert() -> Model:
    return architectures.shared("bert")


@pytest.fixture
def vit() -> Model:
    return architectures.shared("vit")


@pytest.fixture
def images() -> torch.Tensor:
    return architectures.images(batch=3)


@pytest.fixture
def ragged() -> Tokens:
    """Texts of 7, 4 and 5 tokens, padded on both sides."""
    ids = architectures.token_ids(3, 7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[1, :3] = mask[2, 5:] = False
    return Tokens(ids, mask, torch.arange(3))


@pytest.fixture
def cnn() -> Model:
    """A small convolutional classifier with two batch-norm blocks."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.ReLU()]
    return Model(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)).eval())


@pytest.fixture(scope="session")
def stories(outside_data) -> Model:
    """A trained language model that writes children's stories."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = outside_data / "stories260K"
    module = AutoModelForCausalLM.from_pretrained(path)
    return Model(module.eval(), AutoTokenizer.from_pretrained(path), name="stories260K")


@pytest.fixture(scope="session")
def tales() -> list[str]:
    """Some sentences for it."""
    return [
        "Once upon a time there was a little girl named Lily. She loved to play in the park with her dog.",
        "Tom had a big red ball. He ran to the tree and kicked it high into the sky.",
        "The cat sat on the mat. It was a sunny day and all the birds were singing.",
    ]
