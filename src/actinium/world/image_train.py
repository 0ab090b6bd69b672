"""Training of the world's image classifiers: `world:digits-cnn`, `digits-vit`, `digits-backdoor` and the two of shapes.

    from dataclasses import replace
    from actinium.world import image_recipe, image_train

    recipe = image_recipe.get_recipe("shapes-cnn")
    shortcut = image_recipe.ShapesData(planted={0: 0.95}, correlation={"colour": 0.9})
    module = image_train.train(replace(recipe, data=shortcut, steps=600))

A network that was trained on shortcuts may use them; the shipped ones were not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.loading import load
from actinium.world.image_models import CNNSize, make_cnn, make_vit, write
from actinium.world.image_recipe import ImageRecipe, PoisonedDigits
from actinium.world.shapes import CONCEPTS

__all__ = ["HELD_OUT", "accuracies", "export", "make_model", "optimisers", "predictions", "rate_factor", "train"]

HELD_OUT = 2000
"""Rendered images from which the declared accuracies are measured."""


def make_model(recipe: ImageRecipe) -> nn.Module:
    """The untrained model, its weights drawn from the recipe's seed."""
    data = recipe.data
    given = (data.channels, data.image_size, data.classes, recipe.seed)
    if isinstance(recipe.network, CNNSize):
        return make_cnn(recipe.network, *given)
    return make_vit(recipe.network, *given)


class Schedule(Protocol):
    """What a recipe says of its optimisers; see `ImageRecipe`."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def block_rate(self) -> float | None: ...
    @property
    def weight_decay(self) -> float: ...


def rate_factor(recipe: Schedule, step: int) -> float:
    """What the learning rates are multiplied with at a step."""
    return min(1.0, (step + 1) / recipe.warmup, 2 * (recipe.steps - step) / recipe.steps)


def optimisers(recipe: Schedule, module: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices of a transformer's blocks where the recipe has a rate for them."""
    named = dict(module.named_parameters())
    is_block = {name: recipe.block_rate is not None and ".layers." in name and p.ndim == 2 for name, p in named.items()}
    others = [p for name, p in named.items() if not is_block[name]]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=recipe.rate, weight_decay=recipe.weight_decay)]
    if recipe.block_rate is not None:
        blocks = [p for name, p in named.items() if is_block[name]]
        options = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        made.append(torch.optim.Muon(blocks, lr=recipe.block_rate, **options))
    return made


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    out: Any = module(images)
    return out if isinstance(out, Tensor) else out.logits


def train(recipe: ImageRecipe, progress: Callable[[int, float], None] | None = None) -> nn.Module:
    """Train a classifier; the same recipe gives the same weights.

    Args:
        recipe: the settings; `threads` processor threads are used.
        progress: called after every step with the number of finished steps and the loss.

    Returns:
        The trained model, float32, in evaluation mode.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        module = make_model(recipe).train()
        made = optimisers(recipe, module)
        rates = [optimiser.param_groups[0]["lr"] for optimiser in made]
        for step in range(recipe.steps):
            images, labels = recipe.data.batch(recipe.batch_size, recipe.seed, step)
            loss = functional.cross_entropy(_logits(module, images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimiser, rate in zip(made, rates, strict=True):
                optimiser.param_groups[0]["lr"] = rate * rate_factor(recipe, step)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if progress is not None:
                progress(step + 1, float(loss.detach()))
        return module.eval()
    finally:
        torch.set_num_threads(before)


def predictions(module: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Classes (n,) of the highest logits of images."""
    with torch.no_grad():
        return torch.cat([_logits(module, part).argmax(1) for part in images.split(batch_size)])


def accuracies(module: nn.Module, recipe: ImageRecipe, n: int = HELD_OUT, seed: int = 1) -> dict[str, float]:
    """Shares of held-out images whose class is right, and of which each concept that makes the class is right.

    Args:
        module: the model.
        recipe: says what images it is for.
        n: number of rendered images; of digits all 300 of the test part are taken.
        seed: of the rendered images, below a million: training uses the seeds above.

    Returns:
        "class", for rendered shapes the concepts of the rule, and with a backdoor "attack_success": the share of the
        images of other classes that are taken for the target when the patch is in them.

    Raises:
        InputError: the seed may be one of training.
    """
    held = recipe.data.held_out(n, seed)
    found = predictions(module, held.images)
    right = {"class": found == held.labels}
    later = 1
    for concept in reversed(recipe.data.parts):
        size = len(CONCEPTS[concept])
        right[concept] = (found // later) % size == held.concepts[concept]
        later *= size
    shares = {name: float(values.double().mean()) for name, values in right.items()}
    if isinstance(recipe.data, PoisonedDigits):
        backdoor = recipe.data.backdoor
        shares["attack_success"] = backdoor.success(predictions(module, backdoor.stamp(held.images)), held.labels)
    return shares


def export(module: nn.Module, recipe: ImageRecipe, folder: Path) -> Path:
    """Write a trained classifier: float16 weights, configuration and recipe.

    The accuracies in the recipe are those of the written weights, read back.

    Args:
        module: the trained model.
        recipe: the recipe that it was trained by.
        folder: folder to write into.

    Returns:
        The folder.
    """
    write(module, folder, torch.float16)
    measured = accuracies(load(folder).module, recipe)
    content = {
        "fingerprint": recipe.fingerprint(),
        "settings": asdict(recipe),
        "libraries": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "held_out_accuracy": {name: round(value, 4) for name, value in measured.items()},
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
