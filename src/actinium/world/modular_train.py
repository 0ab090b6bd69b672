"""Training of `world:modular`: full batch, until it has gone over from remembering the pairs to adding."""

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
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from actinium.core.model import Model
from actinium.world import modular, shipped
from actinium.world.normless import NORM, normless_config

Progress = Callable[[int, float], None]
"""Called after every step with the number of finished steps and the loss."""


@dataclass(frozen=True)
class ModularRecipe:
    """Settings of the model and its training.

    Args:
        p: the prime.
        d_model, n_heads, d_mlp: sizes of the one block.
        train_share: share of the pairs that training reads.
        steps: optimiser steps, each on all training pairs.
        warmup: steps over which the learning rate rises.
        turn: step from which it falls, in a straight line to zero at the end.
        rate, weight_decay: of AdamW.
        threads: processor threads; sums are ordered by it, so it belongs to the seed.
        seed: of the initial weights and of the split.
    """

    p: int = modular.P
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    train_share: float = 0.5
    steps: int = 4000
    warmup: int = 10
    turn: int = 3000
    rate: float = 3e-3
    weight_decay: float = 1.0
    threads: int = 1
    seed: int = 0

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the training pairs."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        digest.update(modular.pairs("train", self.p, self.train_share, self.seed).numpy().tobytes())
        return digest.hexdigest()


def make_tokenizer(p: int) -> PreTrainedTokenizerFast:
    """Numbers and "=" between spaces."""
    inner = Tokenizer(models.WordLevel({str(n): n for n in range(p)} | {"=": p}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", model_max_length=3)


def make_model(recipe: ModularRecipe) -> GPT2LMHeadModel:
    """The untrained model, its weights drawn from the recipe's seed; its norms only subtract the mean."""
    config = normless_config(recipe.p + 1, 3, recipe.d_model, 1, recipe.n_heads, recipe.d_mlp)
    module = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".ln_" in name:
                parameter.requires_grad_(False).fill_(NORM if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, recipe.d_model**-0.5, generator=generator)
    return module


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def answers(module: GPT2LMHeadModel, pairs: Tensor) -> Tensor:
    """Logits (pair, p + 1) at "=", computed from what that position reads: the same as the model's own, in less time.

    Args:
        module: as `make_model` makes it.
        pairs: (pair, 2) numbers.
    """
    base = module.transformer
    block, heads, d = base.h[0], module.config.n_head, module.config.n_embd
    p, size = module.config.vocab_size - 1, d // heads
    numbers = base.wte.weight[:p] + base.wpe.weight[:2, None]
    end = base.wte.weight[p] + base.wpe.weight[2]
    own = _centred(end) @ block.attn.c_attn.weight + block.attn.c_attn.bias
    query, own_key, own_value = own.view(3, heads, size).unbind()
    # Keys and values of all numbers at both places, of which each pair takes two.
    table = _centred(numbers) @ block.attn.c_attn.weight[:, d:] + block.attn.c_attn.bias[d:]
    keys, values = table.view(2, p, 2, heads, size).unbind(2)
    places = torch.arange(2)[:, None]
    score = (keys * query).sum(-1)[places, pairs.T]
    last = (own_key * query).sum(-1).expand(1, len(pairs), heads)
    pattern = (torch.cat([score, last]) / size**0.5).softmax(0)[..., None]
    mixed = (pattern[:2] * values[places, pairs.T]).sum(0) + pattern[2] * own_value
    stream = end + mixed.flatten(1) @ block.attn.c_proj.weight + block.attn.c_proj.bias
    hidden = functional.relu(_centred(stream) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
    stream = stream + hidden @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    return _centred(stream) @ module.lm_head.weight.T


def rate_factor(recipe: ModularRecipe, step: int) -> float:
    """What the learning rate is multiplied with at a step."""
    fall = (recipe.steps - step) / max(1, recipe.steps - recipe.turn)
    return min(1.0, (step + 1) / recipe.warmup, fall)


def train(recipe: ModularRecipe, progress: Progress | None = None) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Train a model; the same recipe gives the same weights.

    Args:
        recipe: the settings; `threads` processor threads are used.
        progress: called after every step.

    Returns:
        The trained model (float32) and its tokenizer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        module = make_model(recipe)
        read = modular.pairs("train", recipe.p, recipe.train_share, recipe.seed)
        sums = read.sum(1) % recipe.p
        trained = [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
        for step in range(recipe.steps):
            optimiser.param_groups[0]["lr"] = recipe.rate * rate_factor(recipe, step)
            # In float32 the softmax of well-known answers has no digits left for the gradient, and training blows up.
            loss = functional.cross_entropy(answers(module, read).double(), sums)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if progress is not None:
                progress(step + 1, float(loss.detach()))
        return module.eval(), make_tokenizer(recipe.p)
    finally:
        torch.set_num_threads(before)


def export(module: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, recipe: ModularRecipe, folder: Path) -> Path:
    """Write a trained model as a Hugging Face folder: float32 weights, tokenizer, held-out sums and recipe.

    The recipe holds what was measured: accuracies, the key frequencies, and their share of the variance of the
    embedding and of the logits.

    Args:
        module: the trained model.
        tokenizer: its tokenizer.
        recipe: the recipe that it was trained by.
        folder: folder to write into.

    Returns:
        The folder.
    """
    shipped.write(module, tokenizer, folder, torch.float32)
    unseen = modular.pairs("heldout", recipe.p, recipe.train_share, recipe.seed).tolist()
    lines = [f"{a} {b} = {(a + b) % recipe.p}\n" for a, b in unseen]
    (folder / "heldout.txt").write_text("".join(lines), encoding="utf-8")
    model = Model(module, tokenizer)
    keys = modular.key_frequencies(model)
    places = [k - 1 for k in keys]
    shares = (modular.embedding_spectrum(model)[places].sum(), modular.logit_spectrum(model)[places].sum())
    split = (recipe.train_share, recipe.seed)
    content = {
        "fingerprint": recipe.fingerprint(),
        "settings": asdict(recipe),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "train_accuracy": round(modular.accuracy(model, "train", *split), 4),
        "held_out_accuracy": {"modular": round(modular.accuracy(model, "heldout", *split), 4)},
        "key_frequencies": keys,
        "embedding_share": round(float(shares[0]), 4),
        "logit_share": round(float(shares[1]), 4),
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
