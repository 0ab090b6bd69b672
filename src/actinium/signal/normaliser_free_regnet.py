"""NF-RegNets: the smaller family of networks without normalisation layers, B0 to B8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.signal.normaliser_free import Activation, NFBlock, SqueezeExcite, expected_variance, shortcut_of
from actinium.signal.scaled_weights import GainedActivation, ScaledWSConv2d

__all__ = ["NF_REGNETS", "NFRegNet", "nf_regnet"]

NF_REGNETS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], float, int, int]] = MappingProxyType(
    {
        "B0": ((48, 104, 208, 440), (1, 3, 6, 6), 0.2, 192, 224),
        "B1": ((48, 104, 208, 440), (2, 4, 7, 7), 0.2, 224, 256),
        "B2": ((56, 112, 232, 488), (2, 4, 8, 8), 0.3, 240, 272),
        "B3": ((56, 128, 248, 528), (2, 5, 9, 9), 0.3, 288, 320),
        "B4": ((64, 144, 288, 616), (2, 6, 11, 11), 0.4, 320, 384),
        "B5": ((80, 168, 336, 704), (3, 7, 14, 14), 0.4, 384, 456),
        "B6": ((88, 184, 376, 792), (3, 8, 16, 16), 0.5, 448, 528),
        "B7": ((96, 208, 416, 880), (4, 10, 19, 19), 0.5, 512, 600),
        "B8": ((104, 232, 456, 968), (4, 11, 22, 22), 0.5, 600, 672),
    }
)
"""By name: widths and depths of the stages, dropout before the head, pixels of an image in training and in testing."""


class NFRegNet(nn.Module):
    """A strided stem, stages of inverted bottlenecks with grouped convolutions, a wide 1 x 1 convolution, and a head.

    Args:
        classes: outputs.
        widths, depths: channels (before `width`) and blocks of each stage; every stage halves the image.
        in_channels: of the images.
        width: factor on all widths.
        expansion: inner channels of a block by its input's; 1 in the first block.
        group_size: channels in each group of the 3 x 3 convolutions; inner channels are a multiple of it.
        squeeze: hidden channels of the squeeze-excite layers by those that they see.
        alpha, activation, gain: of the blocks.
        skip_init: multiply each branch by a learned scalar that starts at 0, as in the release.
        stochastic_depth: probability of skipping the branch at the end of the network; it grows linearly from 0.
        dropout: before the head.

    Raises:
        InputError, UnknownNameError: sizes that do not fit, or no such activation.

    Source: Brock, De and Smith, 2021, section 5, and the released NF_RegNet.
    """

    def __init__(
        self,
        classes: int,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        in_channels: int = 3,
        width: float = 0.75,
        expansion: float = 2.25,
        group_size: int = 8,
        squeeze: float = 0.5,
        alpha: float = 0.2,
        activation: Activation = "silu",
        gain: float | None = None,
        skip_init: bool = True,
        stochastic_depth: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = [int(w * width) for w in widths]
        if len(depths) != len(widths) or not widths or classes < 1 or not 0 <= dropout < 1:
            raise InputError(f"expected a width for each of {len(depths)} stages, classes >= 1 and 0 <= dropout < 1")
        if group_size < 1 or min(channels) < group_size:
            raise InputError(f"stages of {channels} channels cannot be split in groups of {group_size}")
        variances = expected_variance(depths, alpha)
        last = GainedActivation(activation, gain)
        before = channels[0]
        self.stem = ScaledWSConv2d(in_channels, before, 3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        for after, depth in zip(channels, depths, strict=True):
            for index in range(depth):
                inner = int(before * (expansion if blocks else 1)) // group_size * group_size
                stride = 2 if index == 0 else 1
                between = [GainedActivation(activation, last.gain) for _ in range(3)]
                branch = nn.Sequential(
                    ScaledWSConv2d(before, inner, 1),
                    between[0],
                    ScaledWSConv2d(inner, inner, 3, stride=stride, padding=1, groups=inner // group_size),
                    SqueezeExcite(inner, squeeze),
                    between[1],
                    ScaledWSConv2d(inner, after, 1),
                )
                around = shortcut_of(before, after, stride, "pool") if index == 0 else None
                made = NFBlock(
                    branch,
                    around,
                    between[2],
                    beta=variances[len(blocks)] ** 0.5,
                    alpha=alpha,
                    skip_init=skip_init,
                    drop=stochastic_depth * len(blocks) / sum(depths),
                )
                blocks.append(made)
                before = after
        self.blocks = nn.Sequential(*blocks)
        final = 1280 * before // 440
        self.last = nn.Sequential(ScaledWSConv2d(before, final, 1), last)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(final, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, class) of images (n, channel, height, width)."""
        return self.head(self.dropout(self.last(self.blocks(self.stem(x))).mean((2, 3))))


def nf_regnet(name: str = "B0", classes: int = 1000, **options: Any) -> NFRegNet:
    """An NF-RegNet by name, untrained.

    Args:
        name: a key of `NF_REGNETS`.
        classes: outputs.
        options: those of `NFRegNet`, in place of the named network's own.

    Raises:
        UnknownNameError: there is no such network.

    Source: Brock, De and Smith, 2021; sizes as released.
    """
    if name not in NF_REGNETS:
        raise UnknownNameError(unknown("NF-RegNet", name, NF_REGNETS))
    widths, depths, dropout, _, _ = NF_REGNETS[name]
    return NFRegNet(classes, **{"widths": widths, "depths": depths, "dropout": dropout, **options})
