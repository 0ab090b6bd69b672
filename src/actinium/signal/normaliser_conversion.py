"""A residual network with batch norms turned into one without: `convert_to_nf`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.signal.normaliser_free import NFBlock
from actinium.signal.scaled_weights import GainedActivation, ScaledWSConv2d

__all__ = ["convert_to_nf"]

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
STEMS = (("convolution", "normalization", "activation"), ("conv1", "bn1", "relu"))
"""Names of a stem's convolution, norm and activation."""


@dataclass
class _Block:
    """What a known residual block is made of: convolutions of its branch and of its shortcut, and its activation."""

    convolutions: list[nn.Conv2d]
    shortcut: nn.Conv2d | None
    activation: nn.Module


def convert_to_nf(
    model: nn.Module | Model, *, alpha: float = 0.2, scale: str = "post", skip_init: bool = False
) -> nn.Module:
    """A copy of a residual network without its batch norms, to be trained from the same weights.

    Every residual block relu(x + f(x)) becomes the pre-activation block x + alpha f(gamma g(x) / beta) with its
    convolutions' weights, standardised; betas are calculated along the network, an activation follows the last block,
    and the stem loses norm and activation, which the first block brings. Weights are a start: the copy does not compute
    what the model did.

    Known blocks are those of transformers' ResNets (`layer`, `shortcut`, `activation`) and those named as in
    torchvision (`conv1`, `bn1`, ..., `downsample`, `relu`).

    Args:
        model: the network; it is left as it is.
        alpha, scale, skip_init: of `NFBlock`.

    Raises:
        InputError: there is no residual block that is known, or a norm outside of blocks and stem, which are left to
            their owner.

    Source: Brock, De and Smith, 2021, sections 3 and 4.
    """
    module = copy.deepcopy(model.module if isinstance(model, Model) else model)
    blocks = {name: found for name, part in module.named_modules() if name and (found := _read(name, part)) is not None}
    if not blocks:
        raise InputError("no residual block is known here: only those of transformers, or named as torchvision's")
    variance, last = 1.0, list(blocks)[-1]
    for name, found in blocks.items():
        entry = GainedActivation(found.activation)
        branch = nn.Sequential()
        for i, conv in enumerate(found.convolutions):
            if i:
                branch.append(GainedActivation(found.activation, entry.gain))
            branch.append(_standardised(conv))
        shortcut = None if found.shortcut is None else _standardised(found.shortcut)
        block: nn.Module = NFBlock(
            branch, shortcut, entry, beta=variance**0.5, alpha=alpha, scale=scale, skip_init=skip_init
        )
        variance = (1.0 if shortcut is not None else variance) + alpha * alpha
        if name == last:
            block = nn.Sequential(block, GainedActivation(found.activation, entry.gain))
        module.set_submodule(name, block.train(module.training))
    _convert_stem(module, next(iter(blocks)))
    left = [name for name, part in module.named_modules() if isinstance(part, NORMS)]
    if left:
        raise InputError(f"norms stand outside of residual blocks and stem, and it is not known what they hold: {left}")
    return module


def _read(name: str, block: nn.Module) -> _Block | None:
    children = dict(block.named_children())
    if {"layer", "shortcut", "activation"} == set(children):
        inner = [dict(part.named_children()) for part in children["layer"].children()]
        if not inner or any(set(part) != {"convolution", "normalization", "activation"} for part in inner):
            return None
        convolutions = [part["convolution"] for part in inner]
        around, activation = children["shortcut"], children["activation"]
        projection = getattr(around, "convolution", None)
        plain = isinstance(around, nn.Identity)
    elif {"conv1", "bn1", "conv2", "bn2", "relu"} <= set(children):
        number = 3 if "conv3" in children else 2
        names = {f"{kind}{i + 1}" for i in range(number) for kind in ("conv", "bn")}
        if set(children) - names - {"relu", "downsample"}:
            extra = sorted(set(children) - names - {"relu", "downsample"})
            raise InputError(f"the residual block {name!r} has parts that are not known: {extra}")
        convolutions = [children[f"conv{i + 1}"] for i in range(number)]
        around, activation = getattr(block, "downsample", None), children["relu"]
        plain = around is None
        projection = None if plain else next((m for m in around.children() if isinstance(m, nn.Conv2d)), None)
    else:
        return None
    if any(not isinstance(conv, nn.Conv2d) for conv in convolutions) or (projection is None and not plain):
        raise InputError(f"the residual block {name!r} is not made of convolutions of images, or its shortcut is not")
    return _Block(convolutions, projection, _out_of_place(activation))


def _out_of_place(activation: nn.Module) -> nn.Module:
    found = copy.deepcopy(activation)
    if hasattr(found, "inplace"):
        found.inplace = False
    return found


def _standardised(conv: nn.Conv2d) -> ScaledWSConv2d:
    options: dict[str, Any] = {k: getattr(conv, k) for k in ("stride", "padding", "dilation", "groups", "padding_mode")}
    size = (conv.kernel_size[0], conv.kernel_size[1])
    made = ScaledWSConv2d(conv.in_channels, conv.out_channels, size, **options).to(conv.weight)
    made.weight.data.copy_(conv.weight.data)
    if conv.bias is not None and made.bias is not None:
        made.bias.data.copy_(conv.bias.data)
    return made


def _convert_stem(module: nn.Module, first: str) -> None:
    """Before the first block, convolutions followed by a norm and an activation lose the norm, and the last one of them
    its activation, which that block brings."""
    stems: list[tuple[str, ...]] = []
    for name, part in module.named_modules():
        if name == first:
            break
        children = dict(part.named_children())
        prefix = f"{name}." if name else ""
        stems += [tuple(prefix + each for each in names) for names in STEMS if set(names) <= set(children)]
    for index, (of, norm, activation) in enumerate(stems):
        conv = module.get_submodule(of)
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"{of!r} is not known as the stem's convolution: it is {type(conv).__name__}")
        module.set_submodule(of, _standardised(conv))
        module.set_submodule(norm, nn.Identity())
        between = index + 1 < len(stems)
        old = _out_of_place(module.get_submodule(activation))
        module.set_submodule(activation, GainedActivation(old) if between else nn.Identity())
