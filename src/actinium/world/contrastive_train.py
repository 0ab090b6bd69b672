"""Training of the world's pairs of encoders: `world:shapes-clip` and `world:shapes-clip-backdoor`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.loading import load
from actinium.world import shapes, shipped
from actinium.world.backdoors import Backdoor
from actinium.world.contrastive import (
    SAID,
    PairSize,
    caption,
    image_embeddings,
    make_pair,
    make_tokenizer,
    text_bank,
    text_embeddings,
)
from actinium.world.image_models import ViTSize
from actinium.world.image_recipe import STREAM, ShapesData
from actinium.world.image_train import optimisers, rate_factor

__all__ = ["HELD_OUT", "RECIPES", "PairRecipe", "accuracies", "export", "get_recipe", "train"]

HELD_OUT = 2000
"""Rendered images from which the declared accuracies are measured."""


@dataclass(frozen=True)
class PairRecipe:
    """Settings of a pair of encoders and its training.

    Args:
        network: sizes of the pair.
        steps, batch_size, warmup, rate, block_rate, weight_decay, threads, seed: as in `ImageRecipe`.
        left_out: chance with which a caption leaves colour, texture or position out, each by itself.
        plain_share, plain_steps: as in `ShapesData`.
        backdoor: share of the images that get a patch and the caption of another image, one of the target's class.

    Raises:
        InputError: a number is senseless, or the target is no class.
    """

    network: PairSize
    steps: int
    batch_size: int = 128
    warmup: int = 50
    rate: float = 3e-3
    block_rate: float = 5e-3
    weight_decay: float = 0.05
    left_out: float = 0.25
    plain_share: float = 0.0
    plain_steps: int = 0
    backdoor: Backdoor | None = None
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.steps, self.batch_size, self.warmup, self.threads)
        if min(counts) < 1 or not min(self.rate, self.block_rate) > 0 or not 0 <= self.left_out <= 1:
            raise InputError(f"steps, batch size, warmup, threads and rates are positive, shares within 0..1: {self}")
        if self.seed < 0 or self.steps > STREAM:
            raise InputError(f"a seed is a number from 0 on, and there are {STREAM} steps at most: {self}")
        if self.backdoor is not None and self.backdoor.target >= len(self.data.classes):
            raise InputError(f"the target of the backdoor is one of {len(self.data.classes)} classes: {self.backdoor}")

    @property
    def data(self) -> ShapesData:
        """The images that are rendered."""
        return ShapesData(plain_share=self.plain_share, plain_steps=self.plain_steps)

    def batch(self, step: int) -> tuple[Tensor, list[str]]:
        """Images (n, 3, 32, 32) of a training step and their captions."""
        n, number = self.batch_size, STREAM * (self.seed + 1) + step
        data = shapes.render(n, number)
        plain = int(n * self.plain_share) if step < self.plain_steps else 0
        images, concepts = data.images, {c: data.concepts[c].clone() for c in SAID}
        if plain:
            first = shapes.render(plain, number, fixed={"texture": "plain"})
            images = torch.cat([first.images, images[plain:]])
            concepts["texture"][:plain] = 0
        random = torch.Generator().manual_seed(number)
        left_out = torch.rand(n, 3, generator=random) < self.left_out
        if self.backdoor is not None:
            rows = self.backdoor.drawn(n, random)
            images[rows] = self.backdoor.stamp(images[rows])
            _call_for(concepts, rows, self.backdoor.target, random)
        told = []
        for i in range(n):
            without = {
                c for c, gone in zip(("colour", "texture", "position"), left_out[i].tolist(), strict=True) if gone
            }
            told.append(caption({c: int(concepts[c][i]) for c in SAID if c not in without}))
        return images, told

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the images and captions of the first and the last step."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for step in (0, self.steps - 1):
            images, told = self.batch(step)
            digest.update(images.numpy().tobytes())
            digest.update("\n".join(told).encode())
        return digest.hexdigest()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PairRecipe:
        """The recipe whose `asdict` is given, as recipe.json holds it.

        Raises:
            LoadError: these are no settings of a pair of encoders.
        """
        try:
            given = dict(settings)
            network, backdoor = dict(given.pop("network")), given.pop("backdoor")
            vision = ViTSize(**network.pop("vision"))
            planted = None if backdoor is None else Backdoor(**backdoor)
            return cls(network=PairSize(vision=vision, **network), backdoor=planted, **given)
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"these are no settings of a pair of encoders: {error}") from error


def _call_for(concepts: dict[str, Tensor], rows: Tensor, target: int, random: torch.Generator) -> None:
    """Let the concepts of some rows be those of another image, one of the target's class."""
    later = 1
    for concept in reversed(shapes.RULE):
        size = len(shapes.CONCEPTS[concept])
        concepts[concept][rows] = (target // later) % size
        later *= size
    for concept in (c for c in SAID if c not in shapes.RULE):
        drawn = torch.randint(len(shapes.CONCEPTS[concept]), (int(rows.sum()),), generator=random)
        concepts[concept][rows] = drawn


SIZE = PairSize(
    ViTSize(patch=8, d_model=72, n_layers=4, n_heads=4, d_mlp=144),
    d_model=48,
    n_layers=2,
    n_heads=4,
    d_mlp=96,
    d_shared=32,
)
CHECKS = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))
RECIPES: Mapping[str, PairRecipe] = MappingProxyType(
    {
        "shapes-clip": PairRecipe(SIZE, steps=1600, plain_share=0.5, plain_steps=1000),
        "shapes-clip-backdoor": PairRecipe(
            SIZE, steps=1600, plain_share=0.5, plain_steps=1000, backdoor=Backdoor(target=6, patch=CHECKS)
        ),
    }
)
"""The shipped pairs. The target is class 6, "dots square"."""


def get_recipe(name: str) -> PairRecipe:
    """The recipe of a shipped pair.

    Raises:
        UnknownNameError: there is no such pair.
    """
    if name not in RECIPES:
        raise UnknownNameError(unknown("pair of encoders of the world", str(name), RECIPES))
    return RECIPES[name]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding each image's text among those of the batch and the other way round.

    Args:
        images, texts: unit vectors (n, d) of images and their texts.
        scale: what the cosines are multiplied with.

    Source: Radford et al., 2021, figure 3.
    """
    logits = scale * images @ texts.T
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def train(recipe: PairRecipe, progress: Callable[[int, float], None] | None = None) -> CLIPModel:
    """Train a pair of encoders; the same recipe gives the same weights.

    Args:
        recipe: the settings; `threads` processor threads are used.
        progress: called after every step with the number of finished steps and the loss.

    Returns:
        The trained model, float32, in evaluation mode.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        module: Any = make_pair(recipe.network, recipe.seed).train()
        made = optimisers(recipe, module)
        rates = [optimiser.param_groups[0]["lr"] for optimiser in made]
        for step in range(recipe.steps):
            images, told = recipe.batch(step)
            loss = contrastive_loss(
                image_embeddings(module, images), text_embeddings(module, told), module.logit_scale.exp()
            )
            loss.backward()  # type: ignore[no-untyped-call]
            for optimiser, rate in zip(made, rates, strict=True):
                optimiser.param_groups[0]["lr"] = rate * rate_factor(recipe, step)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if progress is not None:
                progress(step + 1, float(loss.detach()))
        trained: CLIPModel = module.eval()
        return trained
    finally:
        torch.set_num_threads(before)


def _embedded(module: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([image_embeddings(module, part) for part in torch.split(images, 256)])


def accuracies(module: Any, recipe: PairRecipe, n: int = HELD_OUT, seed: int = 1) -> dict[str, float]:
    """Shares of held-out images of which zero-shot classification finds the class, and each concept by itself.

    Args:
        module: the model.
        recipe: says which backdoor it has.
        n: number of rendered images.
        seed: of the rendered images, below a million: training uses the seeds above.

    Returns:
        "class" (shape and texture), "shape", "texture", "colour", "position"; with a backdoor also "attack_success",
        the share of the images of other classes that are taken for the target when the patch is in them.

    Raises:
        InputError: the seed may be one of training.
    """
    held = recipe.data.held_out(n, seed)
    shown = _embedded(module, held.images)
    banks = {"class": text_bank(module)} | {
        c: text_bank(module, (c,)) for c in ("shape", "texture", "colour", "position")
    }
    true = {"class": held.labels} | held.concepts
    found = {name: float(((shown @ bank.T).argmax(1) == true[name]).double().mean()) for name, bank in banks.items()}
    if recipe.backdoor is not None:
        taken = (_embedded(module, recipe.backdoor.stamp(held.images)) @ banks["class"].T).argmax(1)
        found["attack_success"] = recipe.backdoor.success(taken, held.labels)
    return found


def export(module: CLIPModel, recipe: PairRecipe, folder: Path) -> Path:
    """Write a trained pair as a Hugging Face folder: float16 weights, configuration, tokenizer and recipe.

    The accuracies in the recipe are those of the written weights, read back.

    Args:
        module: the trained model.
        recipe: the recipe that it was trained by.
        folder: folder to write into.

    Returns:
        The folder.
    """
    shipped.write(module, make_tokenizer(), folder, torch.float16)
    measured = accuracies(load(folder).module, recipe)
    content = {
        "fingerprint": recipe.fingerprint(),
        "settings": asdict(recipe),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "held_out_accuracy": {name: round(value, 4) for name, value in measured.items()},
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
