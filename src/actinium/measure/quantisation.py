"""What rounding each layer's weights to int8 or int4 does to the output."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.core.rounding import round_to_nearest
from actinium.measure.streaming import as_result, ready, row_batches

__all__ = ["quantisation_sensitivity", "quantised", "round_to_nearest", "sqnr"]

MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def sqnr(signal: Tensor, approximation: Tensor) -> float:
    """Signal to quantisation noise ratio in dB: 10 log10(sum signal^2 / sum (signal - approximation)^2).

    Args:
        signal, approximation: same shape.

    Returns:
        decibels; infinite where nothing differs.

    Raises:
        InputError: shapes differ, or the signal is zero or not finite.
    """
    if signal.shape != approximation.shape:
        raise InputError(f"shapes differ: {tuple(signal.shape)} and {tuple(approximation.shape)}")
    power = float((signal.double() ** 2).sum())
    return _decibels(power, float(((signal.double() - approximation.double()) ** 2).sum()))


def _decibels(power: float, noise: float) -> float:
    if not 0 < power < math.inf:
        raise InputError(f"the signal has no finite power ({power})")
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if math.isfinite(noise) else -math.inf


def _is_transposed(module: nn.Module) -> bool:
    """Whether a linear map keeps its weight as (in, out), as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def _weights(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names of a module's own weight matrices, each with the dimensions that one output channel spans."""
    if isinstance(module, nn.Embedding):
        return []
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, p in module.named_parameters(recurse=False):
        if p.ndim < 2 or not p.is_floating_point():
            continue
        if isinstance(module, MAPS):
            found.append((name, tuple(range(1, p.ndim))))
        elif _is_transposed(module):
            found.append((name, (0,)))
        elif p.ndim == 3 and "expert" in type(module).__name__.lower():
            found.append((name, (2,)))
    return found


def _groups(model: Model) -> dict[str, list[str]]:
    """Modules with weight matrices by layer: blocks, the rest of a transformer, or each module alone."""
    paths = [path for path, module in model.module.named_modules() if _weights(module)]
    blocks: dict[nn.Module, str] = {}
    for tower in model.anatomy.towers:
        blocks |= {b: f"{tower.prefix}blocks.{i}" for i, b in enumerate(tower.blocks)}
    homes = {path: blocks[m] for path, m in model.module.named_modules() if m in blocks}
    groups: dict[str, list[str]] = {}
    for path in paths:
        home = next((name for prefix, name in homes.items() if path.startswith(prefix + ".")), path)
        groups.setdefault(home, []).append(path)
    return groups


def quantised(model: Model, paths: Iterable[str], bits: int) -> Model:
    """A model whose weight matrices at these module paths are rounded, one scale per output channel.

    It shares every other parameter with `model`, which is not changed; a tied weight is rounded only where it
    is named.

    Args:
        model: the model.
        paths: module paths.
        bits: from 2 to 16.

    Raises:
        InputError: a path has no weight matrix, or bits are out of range.
    """
    shared = {id(t): t for t in (*model.module.parameters(), *model.module.buffers())}
    module = copy.deepcopy(model.module, shared)
    for path in paths:
        part = module.get_submodule(path)
        if not _weights(part):
            raise InputError(f"{path} has no weight matrix to quantise")
        for name, dims in _weights(part):
            weight = getattr(part, name)
            with torch.no_grad():
                rounded = round_to_nearest(weight, bits, dims)
            setattr(part, name, nn.Parameter(rounded, requires_grad=weight.requires_grad))
    return Model(module, model.tokenizer, model.processor, model.name)


@contextmanager
def _rounded_inputs(model: Model, paths: Iterable[str], bits: int | None) -> Any:
    """Round what goes into these modules, one scale per position, while the block lasts."""
    with ExitStack() as stack:
        for path in paths if bits is not None else ():
            module = model.module.get_submodule(path)
            hook = module.register_forward_pre_hook(_rounding(bits, isinstance(module, nn.Conv2d)))
            stack.callback(hook.remove)
        yield


def _rounding(bits: int | None, image: bool) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        dims = tuple(range(1, x.ndim)) if image else -1
        return (round_to_nearest(x, bits or 16, dims), *rest)

    return hook


def quantisation_sensitivity(
    model: Model,
    inputs: Any,
    *,
    bits: Sequence[int] = (8, 4),
    activation_bits: int | None = None,
    batch_size: int | None = 8,
) -> Result:
    """Noise in the output when one layer at a time, and when all layers, are rounded to few bits.

    Weights of linear and convolutional maps are rounded to nearest with one scale per output channel, without
    calibration; embeddings are left alone. The user's module is not touched: the rounded weights live in a
    copy that shares the rest.

    Args:
        model: a model whose output has logits (or is a tensor).
        inputs: texts, tokens or images.
        bits: weight widths, each from 2 to 16.
        activation_bits: also round what goes into these maps, one scale per position (per image for
            convolutions).
        batch_size: rows per pass.

    Returns:
        by bits and layer: `sqnr` of the logits in dB (higher is better, infinite where nothing changes),
        `agreement` (share of positions whose top class stays); by bits: `sqnr_all`, `agreement_all` with every
        layer rounded. Layers are the blocks, then what lies outside them by module path.

    Raises:
        InputError: no bits, no weight matrices, or an output without logits.

    Source: SQNR as in Lin et al., 2016; round-to-nearest as in Dettmers et al., 2022.
    """
    if not bits or not all(2 <= b <= 16 for b in (*bits, activation_bits or 8)):
        raise InputError(f"bits must be from 2 to 16, got {list(bits)} and {activation_bits}")
    inputs, groups = ready(model, inputs), _groups(model)
    if not groups:
        raise InputError(f"{model.name} has no linear or convolutional maps")
    everything = [path for paths in groups.values() for path in paths]
    noise = {(b, i): _Noise() for b in bits for i in range(len(groups) + 1)}
    for part in row_batches(inputs, batch_size):
        reference = _logits(model, part)
        for (b, i), tally in noise.items():
            paths = [*groups.values(), everything][i]
            rounded = quantised(model, paths, b)
            with _rounded_inputs(rounded, paths, activation_bits):
                tally.update(reference, _logits(rounded, part))
    found = [[noise[b, i].result() for i in range(len(groups))] for b in bits]
    every = [noise[b, len(groups)].result() for b in bits]
    two = ("bits", "layer")
    variables: dict[str, Any] = {
        "sqnr": (two, [[ratio for ratio, _ in row] for row in found]),
        "agreement": (two, [[same for _, same in row] for row in found]),
        "sqnr_all": (("bits",), [ratio for ratio, _ in every]),
        "agreement_all": (("bits",), [same for _, same in every]),
    }
    coords = {"bits": list(bits), "layer": list(groups)}
    return as_result(
        model,
        inputs,
        "quantisation_sensitivity",
        variables,
        coords,
        bits=list(bits),
        activation_bits=activation_bits,
    )


def _logits(model: Model, part: Inputs) -> Tensor:
    """Logits at real positions, (n, classes)."""
    with torch.no_grad():
        logits = model.logits(part).float()
    # The tokens of an encoder-decoder are the encoder's, its logits the decoder's.
    if part.tokens is not None and logits.shape[:-1] == part.tokens.mask.shape:
        return logits[part.tokens.mask.to(logits.device)]
    return logits.flatten(0, -2)


class _Noise:
    """Power of the signal and of the noise, and how often the top class stays."""

    def __init__(self) -> None:
        self.power = self.noise = self.same = 0.0
        self.n = 0

    def update(self, signal: Tensor, approximation: Tensor) -> None:
        x, y = signal.double(), approximation.double()
        self.power += float((x**2).sum())
        self.noise += float(((x - y) ** 2).sum())
        self.same += float((x.argmax(-1) == y.argmax(-1)).sum())
        self.n += len(x)

    def result(self) -> tuple[float, float]:
        return _decibels(self.power, self.noise), self.same / self.n
