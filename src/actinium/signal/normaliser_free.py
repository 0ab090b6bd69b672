"""Residual networks without normalisation layers: NF-ResNet blocks and networks of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.signal.scaled_weights import GainedActivation, ScaledWSConv2d

__all__ = ["NFBlock", "NFResNet", "NFResNetBlock", "SqueezeExcite", "expected_variance", "nf_resnet", "shortcut_of"]

Activation = str | Callable[[Tensor], Tensor]
DEPTHS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "small": (2, 2, 2),
        "resnet50": (3, 4, 6, 3),
        "resnet101": (3, 4, 23, 3),
        "resnet152": (3, 8, 36, 3),
        "resnet200": (3, 24, 36, 3),
        "resnet288": (24, 24, 24, 24),
        "resnet600": (50, 50, 50, 50),
    }
)


def expected_variance(depths: Sequence[int], alpha: float = 0.2, at: str = "input") -> list[float]:
    """Variance of the signal at each block of a network at its start, by calculation.

    It starts at 1, grows by alpha squared in each block, and starts again at 1 in the first block of each stage, whose
    shortcut reads the scaled activation.

    Args:
        depths: blocks in each stage.
        alpha: scale of the residual branches.
        at: "input" of each block (the square of its beta), or "output".

    Raises:
        InputError: no blocks, or an alpha that is negative or not finite.
        UnknownNameError: `at` is neither.

    Source: Brock, De and Smith, 2021, section 3.
    """
    if not depths or min(depths) < 1 or not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"expected one block or more in each stage and alpha >= 0, got {list(depths)}, {alpha}")
    if at not in ("input", "output"):
        raise UnknownNameError(unknown("place", at, ("input", "output")))
    before, after, now = [], [], 1.0
    for depth in depths:
        for block in range(depth):
            before.append(now)
            now = (1.0 if block == 0 else now) + alpha * alpha
            after.append(now)
    return before if at == "input" else after


class SqueezeExcite(nn.Module):
    """Each channel times twice a sigmoid of the channels' means; the two keeps the variance at the start.

    Args:
        channels: of input and output.
        ratio: hidden channels by channels.
    """

    def __init__(self, channels: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = max(1, int(channels * ratio))
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(n, channel, height, width), in the same shape."""
        return 2 * self.gate(x.mean((2, 3)))[:, :, None, None] * x


class NFBlock(nn.Module):
    """Pre-activation residual block of any branch: x + alpha f(gamma g(x) / beta), or a shortcut in the place of x.

    Args:
        branch: f, which reads the scaled activation.
        shortcut: what reads it too and stands for x; None: x itself.
        entry: gamma g.
        beta: expected standard deviation of the block's input; see `expected_variance`.
        alpha: scale of the residual branch.
        scale: "post": gamma g(x) / beta as in the release; "pre": gamma g(x / beta) as in the paper's text. The same
            for ReLU.
        skip_init: multiply the branch by a learned scalar that starts at 0.
        drop: probability that a row of a batch skips the branch in training (stochastic depth, without rescaling).

    Raises:
        InputError: a scale or probability is out of range.
        UnknownNameError: no such scale.

    Source: Brock, De and Smith, 2021, section 3.
    """

    residual_branch = "branch"
    """Name of the submodule that ends the residual branch, read by `signal_propagation_plot`."""

    def __init__(
        self,
        branch: nn.Sequential,
        shortcut: nn.Module | None,
        entry: GainedActivation,
        *,
        beta: float = 1.0,
        alpha: float = 0.2,
        scale: str = "post",
        skip_init: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if scale not in ("post", "pre"):
            raise UnknownNameError(unknown("scale", scale, ("post", "pre")))
        if not beta > 0 or not alpha >= 0 or not 0 <= drop < 1:
            raise InputError(f"expected beta > 0, alpha >= 0 and 0 <= drop < 1, got {beta}, {alpha}, {drop}")
        self.alpha, self.beta, self.scale, self.drop = alpha, beta, scale, drop
        self.entry, self.branch, self.shortcut = entry, branch, shortcut
        self.skip_gain = nn.Parameter(torch.zeros(())) if skip_init else None

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, height, width) to (n, out_channels, height / stride, width / stride)."""
        scaled = self.entry(x) / self.beta if self.scale == "post" else self.entry(x / self.beta)
        kept = x if self.shortcut is None else self.shortcut(scaled)
        out = self.branch(scaled)
        if self.training and self.drop:
            out = out * (torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop).to(out.dtype)
        out = out if self.skip_gain is None else out * self.skip_gain
        return kept + self.alpha * out

    def extra_repr(self) -> str:
        """Scales of the branch and of its input."""
        return f"alpha={self.alpha}, beta={self.beta:.4f}, scale={self.scale!r}"


class NFResNetBlock(NFBlock):
    """The block of an NF-ResNet: two 3 x 3 convolutions or a bottleneck, their weights standardised.

    Where the shape changes, or `transition` asks for it, the shortcut is a standardised 1 x 1 convolution of the
    scaled activation, and the variance starts again at 1.

    Args:
        in_channels, out_channels: of the block.
        stride: of the branch's spatial convolution and of the shortcut.
        bottleneck: width of the inner convolutions by `out_channels` (1 x 1, 3 x 3, 1 x 1); None for two 3 x 3.
        groups: of the spatial convolution of a bottleneck.
        activation: g, a name or an elementwise function.
        gain: gamma; `nonlinearity_gain` of the activation by default.
        shortcut: "conv": strided; "pool": 2 x 2 mean first, as in NF-RegNets.
        transition: shortcut by a convolution; None: only where the shape changes.
        squeeze_excite: end the branch with `SqueezeExcite`.
        padding_mode: of the 3 x 3 convolutions, "zeros" or "circular".
        scales: beta, alpha, scale, skip_init and drop of `NFBlock`.

    Raises:
        InputError: a size, scale or probability is out of range, or a pooled shortcut with a stride other than 1 or 2.
        UnknownNameError: no such activation, scale or shortcut.

    Source: Brock, De and Smith, 2021, sections 3 and 4, and the released NFResBlock.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        bottleneck: float | None = 0.25,
        groups: int = 1,
        activation: Activation = "relu",
        gain: float | None = None,
        shortcut: str = "conv",
        transition: bool | None = None,
        squeeze_excite: bool = False,
        padding_mode: str = "zeros",
        **scales: Any,
    ) -> None:
        if shortcut not in ("conv", "pool"):
            raise UnknownNameError(unknown("shortcut", shortcut, ("conv", "pool")))
        if min(in_channels, out_channels, stride) < 1:
            raise InputError(f"channels and stride are 1 or more, got {in_channels}, {out_channels}, {stride}")
        if shortcut == "pool" and stride > 2:
            raise InputError(f"a pooled shortcut halves the image; the stride is 1 or 2, not {stride}")
        entry = GainedActivation(activation, gain)
        between = partial(GainedActivation, activation, entry.gain)
        branch = nn.Sequential(
            *_convolutions(in_channels, out_channels, stride, bottleneck, groups, between, padding_mode)
        )
        if squeeze_excite:
            branch.append(SqueezeExcite(out_channels))
        changes = stride > 1 or in_channels != out_channels
        if transition is False and changes:
            raise InputError("a block that changes its shape needs a transition")
        around = shortcut_of(in_channels, out_channels, stride, shortcut) if changes or transition else None
        super().__init__(branch, around, entry, **scales)


def shortcut_of(before: int, after: int, stride: int, kind: str) -> nn.Module:
    """A standardised 1 x 1 convolution, strided ("conv") or behind a 2 x 2 mean ("pool")."""
    pooled = kind == "pool" and stride > 1
    conv = ScaledWSConv2d(before, after, 1, stride=1 if pooled else stride)
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, conv) if pooled else conv


def _convolutions(
    before: int,
    after: int,
    stride: int,
    bottleneck: float | None,
    groups: int,
    between: Callable[[], nn.Module],
    padding_mode: str,
) -> list[nn.Module]:
    """The branch after its first activation."""
    spatial: dict[str, Any] = {"padding": 1, "padding_mode": padding_mode}
    if bottleneck is None:
        return [
            ScaledWSConv2d(before, after, 3, stride=stride, **spatial),
            between(),
            ScaledWSConv2d(after, after, 3, **spatial),
        ]
    width = int(after * bottleneck)
    if width < 1 or width % groups:
        raise InputError(f"a bottleneck of {bottleneck} x {after} channels cannot be split in {groups} groups")
    return [
        ScaledWSConv2d(before, width, 1),
        between(),
        ScaledWSConv2d(width, width, 3, stride=stride, groups=groups, **spatial),
        between(),
        ScaledWSConv2d(width, after, 1),
    ]


class NFResNet(nn.Module):
    """A stem, stages of `NFResNetBlock`, an activation, the mean over the map, and a linear head.

    Args:
        classes: outputs.
        depths, widths: blocks and channels of each stage; every stage but the first halves the image.
        in_channels: of the images.
        stem: "imagenet": 7 x 7 of stride 2 and 3 x 3 max pooling; "small": 3 x 3 of stride 1, for small images.
        stem_width: channels after the stem; a quarter of the first stage's width in a bottleneck network and the same
            width otherwise by default.
        alpha, activation, gain, scale, bottleneck, groups, shortcut, squeeze_excite, skip_init, padding_mode: of the
            blocks.
        stochastic_depth: probability of skipping the branch at the end of the network; it grows linearly from 0.
        dropout: before the head.

    Raises:
        InputError, UnknownNameError: sizes that do not fit, or names that do not exist.

    Source: Brock, De and Smith, 2021, sections 3 to 5.
    """

    def __init__(
        self,
        classes: int,
        depths: Sequence[int] = (2, 2, 2),
        widths: Sequence[int] = (16, 32, 64),
        *,
        in_channels: int = 3,
        stem: str = "small",
        stem_width: int | None = None,
        alpha: float = 0.2,
        activation: Activation = "relu",
        gain: float | None = None,
        bottleneck: float | None = None,
        stochastic_depth: float = 0.0,
        dropout: float = 0.0,
        **block: Any,
    ) -> None:
        super().__init__()
        if stem not in ("small", "imagenet"):
            raise UnknownNameError(unknown("stem", stem, ("small", "imagenet")))
        if len(depths) != len(widths) or classes < 1 or not 0 <= dropout < 1:
            raise InputError(f"expected a width for each of {len(depths)} stages, classes >= 1 and 0 <= dropout < 1")
        variances = expected_variance(depths, alpha)
        width = stem_width or (widths[0] if bottleneck is None else max(1, widths[0] // 4))
        first = ScaledWSConv2d(in_channels, width, 3, padding=1)
        if stem == "imagenet":
            first = ScaledWSConv2d(in_channels, width, 7, stride=2, padding=3)
        self.stem = nn.Sequential(first, nn.MaxPool2d(3, 2, 1)) if stem == "imagenet" else first
        last = GainedActivation(activation, gain)
        blocks: list[nn.Module] = []
        for stage, (depth, after) in enumerate(zip(depths, widths, strict=True)):
            for index in range(depth):
                made = NFResNetBlock(
                    width,
                    after,
                    beta=variances[len(blocks)] ** 0.5,
                    alpha=alpha,
                    stride=2 if index == 0 and stage else 1,
                    bottleneck=bottleneck,
                    activation=activation,
                    gain=last.gain,
                    transition=index == 0 or None,
                    drop=stochastic_depth * len(blocks) / sum(depths),
                    **block,
                )
                blocks.append(made)
                width = after
        self.blocks = nn.Sequential(*blocks)
        self.last = last
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, class) of images (n, channel, height, width)."""
        return self.head(self.dropout(self.last(self.blocks(self.stem(x))).mean((2, 3))))


def nf_resnet(name: str = "small", classes: int = 10, **options: Any) -> NFResNet:
    """An NF-ResNet by name, untrained.

    Args:
        name: "small" (three stages of two blocks of 3 x 3 convolutions, widths 16, 32, 64, for images of 8 to 64
            pixels), or "resnet50", "resnet101", "resnet152", "resnet200", "resnet288", "resnet600" (bottleneck blocks,
            widths 256 to 2048, stem for large images).
        classes: outputs.
        options: those of `NFResNet`, in place of the named network's own.

    Raises:
        UnknownNameError: there is no such network.

    Source: Brock, De and Smith, 2021; depths as released.
    """
    if name not in DEPTHS:
        raise UnknownNameError(unknown("NF-ResNet", name, DEPTHS))
    settings: dict[str, Any] = {"depths": DEPTHS[name]}
    if name != "small":
        settings |= {"widths": (256, 512, 1024, 2048), "bottleneck": 0.25, "stem": "imagenet"}
    return NFResNet(classes, **{**settings, **options})
