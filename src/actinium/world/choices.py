"""`world:choices`: a small transformer that answers multiple choice, and its prompts with known label positions.

A prompt gives a value, then four labelled values, and asks for the label of the one that is the same:
"? v7 A v3 B v7 C v1 D v9 =" -> B. Labels are A to D in most of the training prompts; in one in five they are four of
sixteen letters in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task
from actinium.world import shipped

__all__ = ["KINDS", "LABEL_POSITIONS", "ChoicesRecipe", "accuracy", "label_ids", "prompts", "task", "train"]

LETTERS, OPTIONS, VALUES = 16, 4, 40
ASK, ANSWER = LETTERS, LETTERS + 1
FIRST = LETTERS + 2
VOCAB = FIRST + VALUES
LENGTH = 2 + 2 * OPTIONS + 1
LABEL_POSITIONS = tuple(2 + 2 * j for j in range(OPTIONS))
"""Positions of the labels in every prompt."""
KINDS = ("usual", "shuffled", "random")
"""Labels: A B C D; the same four in another order; any four of the sixteen letters."""


def label_ids(n: int, kind: str, generator: torch.Generator) -> Tensor:
    """(n, 4) label tokens of one kind.

    Raises:
        UnknownNameError: there is no such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError(unknown("kind of labels", kind, KINDS))
    if kind == "usual":
        return torch.arange(OPTIONS).expand(n, -1)
    size = OPTIONS if kind == "shuffled" else LETTERS
    return torch.rand(n, size, generator=generator).argsort(1)[:, :OPTIONS]


def prompts(n: int, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Prompts (n, pos) with given labels (n, 4), and the option (n,) that is right."""
    values = torch.rand(n, VALUES, generator=generator).argsort(1)[:, :OPTIONS] + FIRST
    right = torch.randint(0, OPTIONS, (n,), generator=generator)
    asked = values[torch.arange(n), right]
    ids = torch.empty(n, LENGTH, dtype=torch.int64)
    ids[:, 0], ids[:, 1], ids[:, -1] = ASK, asked, ANSWER
    ids[:, 2:-1:2], ids[:, 3:-1:2] = labels, values
    return ids, right


def task(n: int = 64, seed: int = 0, labels: str = "usual", model: Model | None = None) -> Task:
    """Prompts with their right label; the corrupt prompt asks for another of the four values.

    The options come in turn, so that each is right as often; positions are the same in all prompts
    (`LABEL_POSITIONS`).

    Args:
        n: number of rows.
        seed: of the draw.
        labels: "usual", "shuffled" or "random".
        model: gives the tokens their text.

    Raises:
        InputError: there are no rows.
        UnknownNameError: there is no such kind of labels.
    """
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    random = torch.Generator().manual_seed(seed)
    shown = label_ids(n, labels, random)
    clean, _ = prompts(n, shown, random)
    right = torch.arange(n) % OPTIONS
    other = (right + 1 + torch.randint(0, OPTIONS - 1, (n,), generator=random)) % OPTIONS
    rows = torch.arange(n)
    corrupt = clean.clone()
    clean[:, 1], corrupt[:, 1] = clean[rows, 3 + 2 * right], clean[rows, 3 + 2 * other]
    return Task.from_ids(clean, corrupt, shown[rows, right], shown[rows, other], model=model, name=f"choices_{labels}")


def accuracy(model: Model, labels: str = "usual", n: int = 1000, seed: int = 1) -> float:
    """Share of prompts at whose end the right label has the highest logit of all tokens."""
    made = task(n, seed, labels)
    with torch.no_grad():
        best = model.logits(made.clean_ids)[:, -1].argmax(-1)
    return float((best.cpu() == made.answer_ids).double().mean())


@dataclass(frozen=True)
class ChoicesRecipe:
    """Settings of the model and its training.

    Args:
        d_model, n_layers, n_heads, d_mlp: sizes.
        steps, batch_size: of AdamW; prompts are drawn anew for each step.
        rate, weight_decay: of AdamW; the rate rises over a twentieth of the steps and falls to zero.
        random_labels: share of prompts with random labels.
        threads: processor threads; sums are ordered by it.
        seed: of the weights and prompts.
    """

    d_model: int = 64
    n_layers: int = 3
    n_heads: int = 4
    d_mlp: int = 128
    steps: int = 3000
    batch_size: int = 128
    rate: float = 3e-3
    weight_decay: float = 0.1
    random_labels: float = 0.2
    threads: int = 1
    seed: int = 0

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the first prompts."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        digest.update(_batch(self, torch.Generator().manual_seed(self.seed))[0].numpy().tobytes())
        return digest.hexdigest()


def _batch(recipe: ChoicesRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    n = recipe.batch_size
    loose = torch.rand(n, 1, generator=generator) < recipe.random_labels
    shown = torch.where(loose, label_ids(n, "random", generator), label_ids(n, "usual", generator))
    ids, right = prompts(n, shown, generator)
    return ids, shown[torch.arange(n), right]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, values v0 to v39, "?" and "=" between spaces."""
    words = [*(chr(ord("A") + i) for i in range(LETTERS)), "?", "=", *(f"v{i}" for i in range(VALUES))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", model_max_length=LENGTH + 1)


def train(
    recipe: ChoicesRecipe, progress: Callable[[int, float], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train the model; the same recipe gives the same weights.

    Args:
        recipe: the settings.
        progress: called after every step with the number of finished steps and the loss.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_heads,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            module = LlamaForCausalLM(config).train()
        optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.05, anneal_strategy="linear"
        )
        random = torch.Generator().manual_seed(recipe.seed)
        for step in range(recipe.steps):
            ids, answers = _batch(recipe, random)
            loss = F.cross_entropy(module(ids, logits_to_keep=1).logits[:, -1], answers)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, float(loss.detach()))
        return module.eval(), make_tokenizer()
    finally:
        torch.set_num_threads(before)


def export(module: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: ChoicesRecipe, folder: Path) -> Path:
    """Write a trained model as a Hugging Face folder: float16 weights, tokenizer, held-out prompts and recipe.

    Args:
        module: the trained model.
        tokenizer: its tokenizer.
        recipe: the recipe that it was trained by.
        folder: folder to write into.
    """
    shipped.write(module, tokenizer, folder, torch.float16)
    ids, right = prompts(40, label_ids(40, "usual", random := torch.Generator().manual_seed(10**6)), random)
    lines = [f"{tokenizer.decode(row)} {chr(ord('A') + int(r))}\n" for row, r in zip(ids, right, strict=True)]
    (folder / "heldout.txt").write_text("".join(lines), encoding="utf-8")
    read = Model(shipped.load(folder)[0])
    content = {
        "fingerprint": recipe.fingerprint(),
        "settings": asdict(recipe),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "held_out_accuracy": {kind: round(accuracy(read, kind), 4) for kind in KINDS},
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
