"""Fresh tiny models with words, keys of the shipped model, and edits of its world."""

from __future__ import annotations

import random

import pytest
import torch

from actinium.circuits.knowledge.covariance import key_covariance
from actinium.core.model import Model

NAMES = ["Ann", "Bob", "Carl", "Dora", "Eva", "Finn"]
PLACES = ["Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito"]
WORDS = ["<pad>", "<bos>", "<eos>", "The", "city", "of", "is", "a", "lives", "in", *NAMES, *PLACES]


def with_words(module: torch.nn.Module) -> Model:
    """A tiny model of 99 tokens with a tokenizer of one token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = WORDS + [f"w{i}" for i in range(99 - len(WORDS))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    marks = {"bos_token": "<bos>", "pad_token": "<pad>", "eos_token": "<eos>"}
    return Model(module, PreTrainedTokenizerFast(tokenizer_object=inner, **marks))


@pytest.fixture(scope="session")
def worded():
    """A fresh tiny model of an architecture, with words."""
    from architectures import build

    return lambda name: with_words(build(name))


@pytest.fixture(scope="session")
def tiny(worded):
    """Tiny models of other architectures by name, each with the covariance of its keys."""
    made = {}

    def of(name: str):
        if name not in made:
            model = worded(name)
            source = random.Random(0)
            texts = [" ".join(source.choice(WORDS[3:]) for _ in range(8)) for _ in range(80)]
            # Keys of a first block that reads words alone are as many as there are words.
            made[name] = model, key_covariance(model, texts, ridge=1e-5)
        return made[name]

    return of


@pytest.fixture(scope="session")
def covariance(lm):
    """Of the keys of every layer of the shipped model."""
    from actinium.world import heldout_text

    return key_covariance(lm, heldout_text("lm"))


@pytest.fixture
def rows():
    """Two people who move, half of whose relations are prompted."""
    from actinium.world.edits import draw_edits, edit_rows

    return edit_rows(draw_edits("city", 2, seed=7), prompted=0.5, asked=1, neighbours=4)


@pytest.fixture
def cases(rows):
    """The same as cases."""
    from actinium.circuits.knowledge.mquake import edit_cases

    return edit_cases(rows)


@pytest.fixture
def same_bits():
    """Asserts that a block leaves every weight as it was, bit for bit."""
    from contextlib import contextmanager

    @contextmanager
    def watch(model: Model):
        before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        yield
        for name, p in model.module.named_parameters():
            assert torch.equal(p.detach().view(torch.int32), before[name].view(torch.int32)), name

    return watch
