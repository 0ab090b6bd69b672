"""Images for the check-up: from a folder, an array file or scikit-learn's digits, brought to what the model takes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, MissingExtraError
from actinium.core.model import Model

__all__ = ["digits", "draw", "fit", "folder_images", "image_files", "images_of"]

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
# Sides tried on a module that does not say which it takes, after the images' own.
SIDES = (224, 32, 28, 64, 96, 128, 256, 16, 8, 299, 384)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, in order of their names.

    Raises:
        InputError: there are none, or the folder cannot be read.
    """
    try:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        other = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from None
    if not found:
        shown = ", ".join(other[:4]) or "nothing"
        raise InputError(f"no images in {str(folder)!r} ({', '.join(SUFFIXES)}); it holds {shown}")
    return found


def draw(available: int, most: int, seed: int) -> list[int]:
    """At most `most` of `available` numbers, drawn at random, in order."""
    return sorted(random.Random(seed).sample(range(available), min(most, available)))


def folder_images(files: Sequence[Path]) -> list[Tensor]:
    """Images as (3, height, width) float32 from 0 to 1.

    Raises:
        MissingExtraError: Pillow is not installed.
        InputError: a file cannot be read as an image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "vision") from error
    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"cannot read the image {str(file)!r}: {error}") from None
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
    return images


def images_of(array: np.ndarray) -> list[Tensor] | None:
    """Pixels as (channel, height, width) from 0 to 1; None if the array is not of 8-bit images."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        return None
    pixels = torch.from_numpy(np.array(array)).float() / 255
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[1] not in (1, 3):
        raise InputError(f"images have 1 or 3 channels; the array has shape {tuple(array.shape)}")
    return list(pixels)


def digits() -> list[Tensor]:
    """scikit-learn's 1797 handwritten digits, (1, 8, 8) from 0 to 1.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "learn") from error
    return list(torch.from_numpy(load_digits().images).float()[:, None] / 16)


def fit(model: Model, images: Sequence[Tensor]) -> tuple[Tensor, list[str]]:
    """Bring images to what the model takes.

    Args:
        model: the model. Its image processor is used if it has one; else the size and the channels that its
            configuration names; else those that its first layer and a trial say.
        images: (channel, height, width) each, from 0 to 1.

    Returns:
        (batch, channel, height, width), or (batch, features) for a model that takes flat vectors; notes for
        the report.

    Raises:
        InputError: no size that was tried works.
    """
    if model.processor is not None:
        return _processed(model, images), ["images were prepared by the model's own image processor"]
    config = model.config
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if side is not None and channels:
        height, width = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        note = f"the model has no image processor: pixels were scaled to 0..1 and resized to {height} x {width}"
        return _stack(images, channels, height, width).to(model.dtype), [note]
    return _by_trial(model, images)


def _processed(model: Model, images: Sequence[Tensor]) -> Tensor:
    channels = getattr(model.config, "num_channels", None) or 3
    arrays = []
    for image in images:
        pixels = (_channels(image, channels) * 255).round().to(torch.uint8)
        arrays.append(pixels.permute(1, 2, 0).numpy())
    try:
        found = model.processor(images=arrays, return_tensors="pt", input_data_format="channels_last")
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the image processor of {model.name} refused the images: {error}") from error
    return found["pixel_values"].to(model.dtype)


def _by_trial(model: Model, images: Sequence[Tensor]) -> tuple[Tensor, list[str]]:
    common = Counter(tuple(image.shape[1:]) for image in images).most_common(1)[0][0]
    first = next((m for m in model.module.modules() if _is_map(m)), None)
    given = int(images[0].shape[0])
    channels = [first.in_channels] if isinstance(first, nn.Conv2d) else [given, 3, 1]
    shapes = [(c, *common) for c in channels]
    if isinstance(first, nn.Linear):
        shapes = [s for c in channels if (s := _square(first.in_features, c))]
    elif isinstance(first, nn.Conv2d):
        shapes += [(c, side, side) for c in channels for side in SIDES]
    tried: Exception | None = None
    for shape in dict.fromkeys(shapes):
        for flat in (False, True):
            blank = torch.zeros(2, *shape, dtype=model.dtype, device=model.device)
            try:
                with torch.no_grad():
                    model.module(blank.flatten(1) if flat else blank)
            except Exception as error:  # whatever a stranger's module raises, it does not take this shape
                tried = error
                continue
            ready = _stack(images, *shape).to(model.dtype)
            how = f"{shape[1]} x {shape[2]}, {shape[0]} channel{'s' * (shape[0] > 1)}"
            note = f"pixels were scaled to 0..1 and brought to {how}, which the model takes; it is given no other "
            note += "normalisation (put one into the module if it was trained with one)"
            return (ready.flatten(1) if flat else ready), [note]
    sizes = ", ".join("x".join(map(str, s)) for s in dict.fromkeys(shapes)) or "no shape"
    raise InputError(
        f"{model.name} does not take these images; tried {sizes}. Pass arrays of the right shape with "
        f"data=<file.npy>. The model said: {tried or 'its first layer is neither linear nor a 2-d convolution'}"
    )


def _is_map(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _square(features: int, channels: int) -> tuple[int, int, int] | None:
    side = math.isqrt(features // channels)
    return (channels, side, side) if channels * side * side == features else None


def _channels(image: Tensor, channels: int) -> Tensor:
    have = image.shape[0]
    if have == channels:
        return image
    if channels == 1:
        weights = image.new_tensor([0.299, 0.587, 0.114])  # luma of ITU-R BT.601, as Pillow converts to grey
        return (image * weights[:, None, None]).sum(0, keepdim=True)
    if have == 1:
        return image.expand(channels, -1, -1)
    raise InputError(f"an image with {have} channels cannot be turned into {channels}")


def _stack(images: Sequence[Tensor], channels: int, height: int, width: int) -> Tensor:
    return torch.stack([_resized(_channels(image, channels), height, width) for image in images])


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """The image scaled so that it covers (height, width), and the middle of it."""
    h, w = image.shape[1:]
    if (h, w) == (height, width):
        return image
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    bigger = nn.functional.interpolate(image[None], size, **options)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return bigger[:, top : top + height, left : left + width].clamp(0, 1)
