"""The world's image classifiers: a small convolutional network of named stages, and a vision transformer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown

__all__ = [
    "CNN_TYPE",
    "CNNConfig",
    "CNNSize",
    "SmallCNN",
    "ViTSize",
    "make_cnn",
    "make_vit",
    "read_cnn",
    "waves",
    "write",
]

CNN_TYPE = "actinium-cnn"
"""`model_type` in the config.json of a folder that holds a `SmallCNN`."""


@dataclass(frozen=True)
class CNNSize:
    """Sizes of a `SmallCNN`.

    Args:
        widths: channels of each stage.
        depth: convolutions in each stage.
    """

    widths: tuple[int, ...]
    depth: int


@dataclass(frozen=True)
class ViTSize:
    """Sizes of a vision transformer.

    Args:
        patch: height and width of a patch in pixels.
        d_model, n_layers, n_heads, d_mlp: of the blocks.
    """

    patch: int
    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int


@dataclass(frozen=True)
class CNNConfig:
    """What a `SmallCNN` is; the names are those of Hugging Face's configurations.

    Args:
        num_channels, image_size: of the images.
        widths, depth: channels and convolutions of each stage.
        classes: names of the classes.
    """

    num_channels: int
    image_size: int
    widths: tuple[int, ...]
    depth: int
    classes: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes by number."""
        return dict(enumerate(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"model_type": CNN_TYPE, "architectures": ["SmallCNN"], **asdict(self)}


class SmallCNN(nn.Module):
    """Stages of 3 x 3 convolutions, each followed by a ReLU; the mean over the last map; a linear head.

    Modules: `stage1`, `stage2`, ..., whose outputs (n, channel, height, width) are not negative; `pool`; `head`. Each
    stage but the first halves height and width before it convolves. There is no norm and no dropout, so the network is
    the same function in training and in evaluation.

    Args:
        config: sizes and classes.

    Raises:
        InputError: a size is not positive, or the images are too small for the stages.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        numbers = (config.num_channels, config.image_size, config.depth, *config.widths, config.num_labels)
        if not config.widths or min(numbers) < 1:
            raise InputError(f"sizes of a network are positive numbers: {config}")
        if config.image_size % 2 ** (len(config.widths) - 1):
            raise InputError(f"images of {config.image_size} pixels cannot be halved {len(config.widths) - 1} times")
        self.config = config
        self.stages = tuple(f"stage{i + 1}" for i in range(len(config.widths)))
        before = config.num_channels
        for i, (name, width) in enumerate(zip(self.stages, config.widths, strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if i else []
            for _ in range(config.depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.add_module(name, nn.Sequential(*layers))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(before, config.num_labels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (n, class) of images (n, channel, height, width) in 0..1.

        Raises:
            InputError: the images have another shape.
        """
        shape = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != shape:
            raise InputError(f"images are (n, {', '.join(map(str, shape))}), not {tuple(pixel_values.shape)}")
        for name in (*self.stages, "pool", "head"):
            pixel_values = self.get_submodule(name)(pixel_values)
        return pixel_values

    def split(self, stage: str) -> tuple[nn.Sequential, nn.Sequential]:
        """The network as g, up to and with a stage, and h, from there on: `h(g(x))` are the logits.

        Both share the weights of this module; g also takes smaller images, as far as the stages can halve them.

        Args:
            stage: for example "stage2".

        Returns:
            g: images to maps (n, channel, height, width), not negative; h: maps to logits (n, class).

        Raises:
            UnknownNameError: there is no such stage.
        """
        if stage not in self.stages:
            raise UnknownNameError(unknown("stage", str(stage), self.stages))
        parts = [self.get_submodule(name) for name in (*self.stages, "pool", "head")]
        cut = self.stages.index(stage) + 1
        return nn.Sequential(*parts[:cut]), nn.Sequential(*parts[cut:])


def make_cnn(size: CNNSize, channels: int, image_size: int, classes: Sequence[str], seed: int) -> SmallCNN:
    """An untrained network: weights by He's rule for ReLU, drawn from a seed; biases 0."""
    config = CNNConfig(channels, image_size, tuple(size.widths), size.depth, tuple(classes))
    with torch.random.fork_rng(devices=[]):
        module = SmallCNN(config)
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return module


def make_vit(
    size: ViTSize, channels: int, image_size: int, classes: Sequence[str], seed: int
) -> ViTForImageClassification:
    """An untrained transformers' `ViTForImageClassification`, its weights drawn from a seed.

    Its positions start as sines and cosines of row and column and are trained from there, as everything else.

    Raises:
        InputError: patches do not fill the image, heads do not fill the width, or the width is no multiple of 4.
    """
    if image_size % size.patch or size.d_model % size.n_heads or size.d_model % 4:
        raise InputError(f"patches must fill {image_size} pixels, heads the width, and 4 divide the width: {size}")
    config = ViTConfig(
        hidden_size=size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        intermediate_size=size.d_mlp,
        image_size=image_size,
        patch_size=size.patch,
        num_channels=channels,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        module = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                # What a block adds starts small beside the stream.
                share = 0.5 if name.endswith(("o_proj.weight", "fc2.weight")) else 1.0
                parameter.normal_(0, share * parameter.shape[1] ** -0.5, generator=generator)
        embeddings = module.vit.embeddings
        patches = embeddings.patch_embeddings.projection
        patches.weight.normal_(0, 5 * patches.weight[0].numel() ** -0.5, generator=generator)
        # Images lie around 0.4 with a deviation of about 0.2: patches become vectors around 0 with one of about 1.
        patches.bias.copy_(-0.4 * patches.weight.sum((1, 2, 3)))
        embeddings.cls_token.normal_(0, 0.02, generator=generator)
        embeddings.position_embeddings.zero_()
        embeddings.position_embeddings[0, 1:] = waves(image_size // size.patch, size.d_model)
    return module


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines (side^2, width) of the column and the row of each patch."""
    row, column = (axis.flatten().double() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    speeds = math.pi * (torch.arange(width // 4) + 1) / (width // 4)
    angles = [axis[:, None] * speeds for axis in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1).float()


def write(module: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Write a `SmallCNN` or a `ViTForImageClassification` as a folder with config.json and model.safetensors.

    Args:
        module: the model.
        folder: folder to write into.
        dtype: type of the weights in the file, which readers convert to float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to(dtype).contiguous() for name, value in module.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    if isinstance(module, SmallCNN):
        (folder / "config.json").write_text(json.dumps(module.config.to_dict(), indent=1) + "\n", encoding="utf-8")
        return
    config: Any = module.config
    config.architectures = [type(module).__name__]
    # A file may be float16 to be small; readers are told to compute in float32.
    config.dtype = "float32"
    config.save_pretrained(folder)


def read_cnn(folder: Path) -> SmallCNN:
    """The network in a folder, float32, in evaluation mode.

    Raises:
        LoadError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = (int(content["num_channels"]), int(content["image_size"]))
        config = CNNConfig(*sizes, tuple(content["widths"]), int(content["depth"]), tuple(content["classes"]))
        module = SmallCNN(config)
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise LoadError(f"{folder} holds no network that can be read: {reason[0]}") from error
    return module.eval()
