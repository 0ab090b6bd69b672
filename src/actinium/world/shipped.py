"""The models that come with the package, and how a trained one is written as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actinium.core.adapter import is_adapter, read_adapter
from actinium.core.errors import InputError, UnknownNameError, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from actinium.world.labelled import LabelledImages
    from actinium.world.recipe import Recipe

WEIGHTS = Path(__file__).with_name("weights")
IMAGE_TYPES = ("actinium-cnn", "clip", "vit")
"""Kinds of the shipped models of images, as config.json names them."""
HELDOUT_LINES = 20
"""Lines of each skill in the shipped held-out text."""


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(f.name for f in WEIGHTS.iterdir() if (f / "config.json").is_file() or is_adapter(f))


def path(name: str) -> Path:
    """Folder of a shipped model, which transformers' `AutoModelForCausalLM` and `AutoTokenizer` read.

    That of a variant holds an adapter, which PEFT's `PeftModel.from_pretrained(base, folder)` reads; that of a vision
    transformer is for `AutoModelForImageClassification`, that of a convolutional network for `actinium.load` alone.

    Args:
        name: for example "lm".

    Returns:
        The folder.

    Raises:
        UnknownNameError: there is no such model.
    """
    known = names()
    if name not in known:
        raise UnknownNameError(unknown("model of the world", name, known))
    return WEIGHTS / name


def heldout_text(name: str) -> list[str]:
    """Texts of every skill that a shipped model has not read in training.

    Args:
        name: for example "lm".

    Returns:
        One text per line of the shipped file; a variant has that of its base.

    Raises:
        UnknownNameError: there is no such model.
        InputError: it reads images; see `heldout_images`.
    """
    folder = path(name)
    if is_image_model(folder):
        raise InputError(f"world:{name} reads images, not texts; pass its name to heldout_images")
    if is_adapter(folder):
        return heldout_text(read_adapter(folder).base.removeprefix("world:"))
    return (folder / "heldout.txt").read_text(encoding="utf-8").splitlines()


def heldout_images(name: str, n: int = 1000, seed: int = 1) -> LabelledImages:
    """Images with labels and concepts that a shipped model of images has not seen in training.

    Args:
        name: for example "shapes-cnn".
        n: number of rendered images; of digits all 300 of the test part are given.
        seed: of the rendered images, below a million: training uses the seeds above.

    Raises:
        UnknownNameError: there is no such image classifier.
        InputError: `n` or `seed` is senseless.
    """
    from actinium.world.contrastive_train import RECIPES as PAIRS
    from actinium.world.image_recipe import get_recipe

    return (PAIRS[name] if name in PAIRS else get_recipe(name)).data.held_out(n, seed)


def is_image_model(folder: Path) -> bool:
    """Whether a folder holds an image classifier, or a pair of encoders of images and captions."""
    file = folder / "config.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("model_type") in IMAGE_TYPES


def recipe(name: str) -> dict[str, Any]:
    """The recipe of a shipped model: fingerprint, settings, library versions and held-out accuracy per skill.

    Args:
        name: for example "lm".

    Returns:
        What `recipe.json` beside the weights holds.

    Raises:
        UnknownNameError: there is no such model.
    """
    found: dict[str, Any] = json.loads((path(name) / "recipe.json").read_text(encoding="utf-8"))
    return found


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32, in evaluation mode) and tokenizer of a Hugging Face folder, or of a variant's.

    Args:
        folder: for example `path("lm")`; an adapter is merged into its base.

    Returns:
        Model and tokenizer.

    Raises:
        InputError: the folder holds an image classifier or a pair of encoders.
    """
    if is_image_model(Path(folder)):
        raise InputError(f"{folder} holds an image classifier or a pair of encoders; actinium.load reads it")
    if is_adapter(Path(folder)):
        adapter = read_adapter(Path(folder))
        model, tokenizer = load(path(adapter.base.removeprefix("world:")))
        adapter.merge(model)
        return model, tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.float().eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, configuration and tokenizer of a model as a Hugging Face folder.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: folder to write into.
        dtype: type of the weights in the file, which readers convert to float32.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(dtype).contiguous() for name, value in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    # A file may be float16 to be small; readers are told to compute in float32.
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name that every release of transformers reads, rather than the one that this release writes.
    file = folder / "tokenizer_config.json"
    described_tokenizer = json.loads(file.read_text(encoding="utf-8"))
    described_tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(described_tokenizer, indent=1) + "\n", encoding="utf-8")


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Recipe, folder: Path, n: int = 1000
) -> Path:
    """Write a trained model as a Hugging Face folder: float16 weights, tokenizer, held-out text and recipe.

    The accuracies in the recipe are those of the written weights, read back.

    Args:
        model: the trained model.
        tokenizer: its tokenizer.
        settings: the recipe that it was trained by.
        folder: folder to write into.
        n: held-out texts per skill from which the accuracies are measured.

    Returns:
        The folder.
    """
    import torch

    from actinium.world.accuracy import evaluate
    from actinium.world.corpus import HELD_OUT, held_out_documents
    from actinium.world.recipe import described

    write(model, tokenizer, folder, torch.float16)
    lines = [d.text for skill in HELD_OUT for d in held_out_documents(skill, HELDOUT_LINES, seed=1)]
    (folder / "heldout.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = described(settings, tokenizer, evaluate(*load(folder), n=n))
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
