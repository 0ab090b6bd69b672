"""Training of `world:lm`: deterministic for its seed, and resumable after being killed at any moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actinium.core.errors import InputError
from actinium.world import corpus
from actinium.world.recipe import Recipe, fingerprint, rate_factor
from actinium.world.tokenizer import build

Progress = Callable[[int, float], None]
"""Called after every step with the number of finished steps and the loss."""


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The tokenizer of the world for a recipe's context."""
    return build(corpus.vocabulary(), recipe.context)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model of a recipe, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Training:
    """The state of one training: model, optimisers and the number of finished steps.

    Args:
        recipe: the settings.
        tokenizer: the tokenizer of the world.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe, self.tokenizer, self.step = recipe, tokenizer, 0
        self.fingerprint = fingerprint(recipe, tokenizer)
        self.model = make_model(recipe, tokenizer)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "embed" in name]
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                matrices,
                lr=recipe.block_rate,
                weight_decay=recipe.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                others, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), eps=1e-10
            ),
        }

    def advance(self) -> float:
        """Take one step and return its loss."""
        recipe = self.recipe
        ids, answers = corpus.batch(
            self.tokenizer,
            recipe.seed,
            self.step,
            recipe.batch_tokens,
            recipe.context,
            self.step >= recipe.turn,
        )
        self._set_rates()
        inputs = torch.from_numpy(ids)
        weights = torch.from_numpy(np.where(answers, 1.0, recipe.text_weight)).float()
        weights = (weights * (inputs != self.tokenizer.pad_token_id))[:, 1:]
        logits = self.model(inputs, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in self.optimisers.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def _set_rates(self) -> None:
        factor = rate_factor(self.recipe, self.step)
        for name, rate in (("muon", self.recipe.block_rate), ("adamw", self.recipe.rate)):
            for group in self.optimisers[name].param_groups:
                group["lr"] = rate * factor

    def save(self, folder: Path) -> None:
        """Write a checkpoint `step-N` into a folder; it appears under its name only when it is complete."""
        target = folder / f"step-{self.step:06d}"
        partial = folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        save_file(weights, partial / "model.safetensors")
        state: dict[str, torch.Tensor] = {}
        for name, optimiser in self.optimisers.items():
            for index, values in optimiser.state_dict()["state"].items():
                state |= {f"{name}/{index}/{key}": value.clone() for key, value in values.items()}
        save_file(state, partial / "optimiser.safetensors")
        # Text and weights are drawn from the seed and the step alone, so the step is the whole random state.
        described = {
            "step": self.step,
            "fingerprint": self.fingerprint,
            "settings": asdict(self.recipe),
        }
        (partial / "state.json").write_text(json.dumps(described, indent=1))
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for old in sorted(folder.glob("step-*"))[:-1]:
            shutil.rmtree(old)

    def restore(self, folder: Path) -> bool:
        """Continue from the latest checkpoint of a folder, if there is one.

        Returns:
            Whether a checkpoint was found.

        Raises:
            InputError: the checkpoint was made by another recipe.
        """
        found = sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")
        if not found:
            return False
        state: dict[str, Any] = json.loads((found[-1] / "state.json").read_text())
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{found[-1]} was made by another recipe (fingerprint {state['fingerprint'][:12]}, this one "
                f"has {self.fingerprint[:12]}); choose another folder or remove it"
            )
        weights = load_file(found[-1] / "model.safetensors")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        tensors = load_file(found[-1] / "optimiser.safetensors")
        for name, optimiser in self.optimisers.items():
            description = optimiser.state_dict()
            for key, value in tensors.items():
                owner, index, entry = key.split("/")
                if owner == name:
                    description["state"].setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict(description)
        self.step = int(state["step"])
        return True


def train(
    recipe: Recipe, checkpoints: Path, progress: Progress | None = None, every: int = 200
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a model of the world, continuing from the checkpoints of an earlier run of the same recipe.

    Args:
        recipe: the settings; `threads` processor threads are used.
        checkpoints: folder for checkpoints.
        progress: called after every step.
        every: steps between checkpoints.

    Returns:
        The trained model (float32) and its tokenizer.

    Raises:
        InputError: the folder holds checkpoints of another recipe.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        tokenizer = make_tokenizer(recipe)
        training = Training(recipe, tokenizer)
        training.restore(checkpoints)
        training.model.train()
        while training.step < recipe.steps:
            loss = training.advance()
            if training.step % every == 0 or training.step == recipe.steps:
                training.save(checkpoints)
            if progress is not None:
                progress(training.step, loss)
        return training.model.eval(), tokenizer
    finally:
        torch.set_num_threads(before)
