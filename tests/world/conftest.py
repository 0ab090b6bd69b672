"""The shipped model of the world, and a tokenizer that knows nothing of it."""

from __future__ import annotations

import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actinium.world import shipped


@pytest.fixture(scope="session")
def lm():
    """Model and tokenizer of `world:lm`."""
    torch.set_num_threads(1)
    return shipped.load(shipped.path("lm"))


@pytest.fixture(scope="session")
def foreign():
    """A tokenizer in the manner of GPT-2: a word with its space is one token, years are two joined pieces."""
    text = re.findall(
        r"\S+",
        "When Then After While Once and went to the store , gave a book met in park left school "
        "handed were at office showed walked There sold lent ring drink ball Mary John Tom James Anna Paul "
        "Mark Sarah ? "
        "The war lasted from year until on siege reign . film was good bad fine nice great poor dull song "
        "I felt happy sad loved hated liked disliked it thought made me so Everyone said that story",
    )
    pairs = [f"{number:02d}" for number in range(100)]
    numbers = [str(number) for number in range(10)]
    tokens = ["<|end|>", "?!", *text, *(f" {word}" for word in text), " +", " =", ",", "."]
    tokens += [f"{space}{number}" for number in (*pairs, *numbers) for space in ("", " ")]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="?!"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[0-9]{1,2}| ?[A-Za-z]+| ?[^ A-Za-z0-9]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?!", eos_token="<|end|>")
