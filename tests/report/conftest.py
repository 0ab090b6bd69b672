"""Small models with random weights, and folders of images."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import torch

NOUNS, OTHERS = ["cat", "dog", "mat", "hill", "sea", "boat"], ["the", "a", "on", "under", "and", "then", ",", "."]
WORDS = [*OTHERS, *NOUNS, "sat", "ran", "slept", "old", "new", "red"]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Forty lines of fifteen words that the tiny tokenizer knows."""
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, 15)) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<bos>", "<pad>", *WORDS]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a random Llama of three blocks with a context of 32 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=40,
        max_position_embeddings=32,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """Folder of a random GPT-2 of two blocks, without a tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=24)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory):
    """Folder of a random ViT for 16 x 16 images, without an image processor."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def factory(tmp_path_factory):
    """A file with factories of modules that nothing is known of."""
    path = tmp_path_factory.mktemp("factory") / "my_module.py"
    path.write_text(
        textwrap.dedent("""
            import torch
            from torch import nn

            class Residual(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.first, self.second = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
                    self.relu = nn.ReLU()
                    self.never_run = nn.Linear(2, 2)

                def forward(self, x):
                    return self.relu(x + self.second(self.relu(self.first(x))))

            def build():
                torch.manual_seed(0)
                stem, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
                return nn.Sequential(stem, Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

            def fixed():
                torch.manual_seed(0)
                return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 10))

            def flat():
                torch.manual_seed(0)
                return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))

            class Recurrent(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

                def forward(self, x):
                    return {"out": self.head(self.lstm(x)[0])}

            def recurrent():
                torch.manual_seed(0)
                return Recurrent()
            """)
    )
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Twenty-four images of two sizes in two folders, one of them grey."""
    from PIL import Image

    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
    for i in range(24):
        shape = (20, 24 + 4 * (i % 2), 3) if i else (20, 24)
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("cats", "dogs")[i % 2] / f"{i}.png")
    return folder
