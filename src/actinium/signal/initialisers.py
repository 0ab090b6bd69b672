"""Random weights at a chosen variance: on the edge of chaos, and dense, orthogonal, low-rank or sparse alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.signal.mean_field import EdgeOfChaos, EdgePoint
from actinium.signal.nngp import check_scales

__all__ = ["PseudoIID", "eoc_init_", "pseudo_iid_init_", "pseudo_iid_weights"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
KINDS = ("iid", "orthogonal", "low_rank", "structured_sparse")
DISTRIBUTIONS = ("normal", "uniform", "student_t")


@dataclass(frozen=True, eq=False)
class PseudoIID:
    """A weight matrix and what it was made of.

    Attributes:
        weight: (m, n).
        mask: (m, n) bool, True where weights may be non-zero; of sparse ones.
        factors: C (m, r) and P (r, n) with weight C P; of low-rank ones.
    """

    weight: Tensor
    mask: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None


def eoc_init_(
    module: nn.Module, phi: Callable[[Tensor], Tensor], sb: float = 0.0, *, generator: torch.Generator | None = None
) -> EdgePoint:
    """Draw weights and biases of all linear and convolutional layers from the edge of chaos of an activation.

    Weights are N(0, sw^2 / fan_in), fan_in being the inputs of one output (k^2 C_in of a convolution), biases
    N(0, sb^2).

    Args:
        module: a layer or any module that holds some; changed in place.
        phi: the activation function between the layers.
        sb: standard deviation of the biases.
        generator: of the random numbers.

    Returns:
        the point of the edge, with sw.

    Raises:
        InputError: no such layer, a layer without bias where sb is above 0, or no edge of chaos at sb.

    Warns:
        ActiniumWarning: the variance of the point is unstable, so that signals leave it with depth.

    Source: Hayou, Doucet and Rousseau, 2019, algorithm 1.
    """
    layers = _layers(module, sb)
    point = EdgeOfChaos(phi).point(sb)
    if not point.stable:
        warnings.warn(
            f"at sb={sb:g} the edge of chaos of this activation has an unstable variance (deviations grow by"
            f" {point.growth:.3g} a layer): deep networks drift off it; a larger sb may have a stable one",
            ActiniumWarning,
            stacklevel=2,
        )
    for _, layer in layers:
        _write(layer, _drawn(layer, "iid", point.sw, generator, {}), _biases(layer, sb, generator))
    return point


def pseudo_iid_init_(
    module: nn.Module,
    kind: str,
    sw: float,
    sb: float,
    *,
    rank: int | float | None = None,
    blocks: int | None = None,
    kept: int = 1,
    permute: bool = True,
    distribution: str = "normal",
    df: float | None = None,
    generator: torch.Generator | None = None,
) -> PseudoIID | dict[str, PseudoIID]:
    """Draw weights of variance sw^2 / fan_in that are exchangeable and uncorrelated, but not independent.

    Args:
        module: `Linear`, `Conv1d`, `Conv2d` or `Conv3d`, or a module that holds some: its first layer is then drawn
            from independent normals, as the theorem needs it, and the others as told. Changed in place.
        kind: "iid", "orthogonal" (Haar), "low_rank" or "structured_sparse".
        sw: standard deviation of the weights times the root of fan_in.
        sb: standard deviation of the biases, which are normal and independent.
        rank: of low-rank weights; a float from 0 to 1 is a share of the smaller side of each matrix.
        blocks: of sparse weights: the matrix (of channels, in a convolution) is cut into blocks x blocks.
        kept: blocks that are not zero in each row of blocks; the density is kept / blocks.
        permute: put rows and columns of the mask in random order.
        distribution: of iid weights and of the non-zero ones: "normal", "uniform" or "student_t".
        df: degrees of freedom of "student_t", above 8.
        generator: of the random numbers.

    Returns:
        what the weights were made of; by name of the layer where `module` holds several. A matrix has a row for each
        output and a column for each weight of an output.

    Raises:
        UnknownNameError: no such kind or distribution.
        InputError: rank below 1 or above the smaller side, blocks that do not divide, an orthogonal convolution with
            fewer outputs than k^2 C_in, a distribution without an eighth moment, or as `eoc_init_`.

    Warns:
        ActiniumWarning: a mask in fixed order: its rows are not exchangeable.

    Source: Nait Saada, Naderi and Tanner, 2023, definition 2 and section 3.
    """
    check_scales(sw, sb)
    options = {"rank": rank, "blocks": blocks, "kept": kept, "permute": permute, "distribution": distribution, "df": df}
    layers = _layers(module, sb)
    _check_kind(kind, distribution)
    alone = len(layers) == 1 and layers[0][0] == ""
    # All are drawn before any is written: a layer that cannot be made leaves the module as it was.
    made: dict[str, PseudoIID] = {}
    biases: dict[str, Tensor | None] = {}
    for i, (name, layer) in enumerate(layers):
        told = i > 0 or alone
        made[name] = _drawn(layer, kind if told else "iid", sw, generator, options if told else {})
        biases[name] = _biases(layer, sb, generator)
    for name, layer in layers:
        _write(layer, made[name], biases[name])
    return made[""] if alone else made


def pseudo_iid_weights(
    m: int,
    n: int,
    kind: str,
    sw: float = 1.0,
    *,
    rank: int | float | None = None,
    blocks: int | None = None,
    kept: int = 1,
    permute: bool = True,
    distribution: str = "normal",
    df: float | None = None,
    generator: torch.Generator | None = None,
) -> PseudoIID:
    """One pseudo-iid matrix (m, n) in float64 with entries of variance sw^2 / n.

    Args, Raises: as `pseudo_iid_init_`; m outputs, n inputs.
    """
    _check_kind(kind, distribution)
    if min(m, n) < 1:
        raise InputError(f"a matrix has rows and columns, got ({m}, {n})")
    s = sw / math.sqrt(n)
    if kind == "iid":
        return PseudoIID(s * _entries((m, n), distribution, df, generator))
    if kind == "orthogonal":
        # Columns of unit length have entries of variance 1 / m, rows of unit length 1 / n.
        w = _haar(m, n, generator) if m >= n else _haar(n, m, generator).T
        return PseudoIID(sw * math.sqrt(max(m, n) / n) * w)
    if kind == "low_rank":
        r = _rank(rank, m, n)
        left = _haar(m, r, generator)
        right = sw * math.sqrt(m / (r * n)) * _entries((r, n), distribution, df, generator)
        return PseudoIID(left @ right, factors=(left, right))
    mask = _mask(m, n, blocks, kept, permute, generator)
    dense = s / math.sqrt(kept / blocks) * _entries((m, n), distribution, df, generator)  # type: ignore[operator]
    return PseudoIID(torch.where(mask, dense, torch.zeros_like(dense)), mask=mask)


def _check_kind(kind: str, distribution: str) -> None:
    if kind not in KINDS:
        raise UnknownNameError(unknown("kind of weights", kind, KINDS))
    if distribution not in DISTRIBUTIONS:
        raise UnknownNameError(unknown("distribution", distribution, DISTRIBUTIONS))


def _layers(module: nn.Module, sb: float) -> list[tuple[str, nn.Module]]:
    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, LAYERS)]
    if not layers:
        raise InputError(f"{type(module).__name__} holds no Linear, Conv1d, Conv2d or Conv3d layer")
    bare = [name or type(m).__name__ for name, m in layers if m.bias is None]
    if sb > 0 and bare:
        raise InputError(f"sb={sb:g} needs biases, and {bare[0]!r} has none")
    return layers


def _drawn(
    layer: nn.Module, kind: str, sw: float, generator: torch.Generator | None, options: dict[str, object]
) -> PseudoIID:
    """Weights for a layer, which stays as it is."""
    weight = layer.weight
    m, n = len(weight), weight[0].numel()
    if not isinstance(layer, nn.Linear) and kind == "structured_sparse":
        return _sparse_filters(m, weight.shape[1], n, sw, generator, options)
    if not isinstance(layer, nn.Linear) and kind == "orthogonal" and m < n:
        raise InputError(f"an orthogonal convolution needs {n} output channels (k^2 C_in) or more, it has {m}")
    return pseudo_iid_weights(m, n, kind, sw, generator=generator, **options)  # type: ignore[arg-type]


def _biases(layer: nn.Module, sb: float, generator: torch.Generator | None) -> Tensor | None:
    if layer.bias is None:
        return None
    return sb * torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64)


def _write(layer: nn.Module, made: PseudoIID, biases: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(made.weight.reshape(layer.weight.shape))
        if biases is not None:
            layer.bias.copy_(biases)


def _sparse_filters(
    m: int, channels: int, n: int, sw: float, generator: torch.Generator | None, options: dict[str, object]
) -> PseudoIID:
    """Filters that are zero between some pairs of channels; the mask is of channels, (m, n) with their positions."""
    blocks, kept, distribution, df = (options[k] for k in ("blocks", "kept", "distribution", "df"))
    mask = _mask(m, channels, blocks, kept, options["permute"], generator)  # type: ignore[arg-type]
    mask = mask.repeat_interleave(n // channels, dim=1)
    size = sw / math.sqrt(n * kept / blocks)  # type: ignore[operator]
    dense = size * _entries((m, n), distribution, df, generator)  # type: ignore[arg-type]
    return PseudoIID(torch.where(mask, dense, torch.zeros_like(dense)), mask=mask)


def _entries(shape: tuple[int, int], distribution: str, df: float | None, generator: torch.Generator | None) -> Tensor:
    """Independent numbers of mean 0 and variance 1."""
    if distribution == "uniform":
        return math.sqrt(12) * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if distribution == "normal":
        return normal
    if df is None or not df > 8:
        raise InputError(f"student_t has a finite eighth moment for df above 8, which the limit needs; got df={df}")
    # Torch's own sampler of chi-squared numbers takes no generator.
    chi = np.random.default_rng(int(torch.randint(2**62, (), generator=generator))).chisquare(df, shape)
    return normal * (df / torch.from_numpy(chi)).sqrt() * math.sqrt((df - 2) / df)


def _haar(m: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Uniform (m, n) matrix with orthonormal columns: the QR factor, with signs that make R's diagonal positive."""
    q, r = torch.linalg.qr(torch.randn(m, n, generator=generator, dtype=torch.float64))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _rank(rank: int | float | None, m: int, n: int) -> int:
    if rank is None:
        raise InputError("low_rank needs a rank")
    share = isinstance(rank, float) and 0 < rank <= 1
    r = round(rank * min(m, n)) if share else rank
    if not 1 <= r <= min(m, n) or r != int(r):
        raise InputError(f"the rank of a ({m}, {n}) matrix is from 1 to {min(m, n)}, or a share of it, not {rank}")
    return int(r)


def _mask(m: int, n: int, blocks: int | None, kept: int, permute: bool, generator: torch.Generator | None) -> Tensor:
    """Which entries may be non-zero, (m, n): `kept` blocks in each row and column of blocks, then permuted."""
    if blocks is None or blocks < 1 or m % blocks or n % blocks:
        raise InputError(f"structured_sparse needs a number of blocks that divides {m} and {n}, got {blocks}")
    if not 1 <= kept <= blocks:
        raise InputError(f"of {blocks} blocks in a row, 1 to {blocks} are kept, not {kept}")
    at = torch.arange(blocks)
    pattern = (at[None, :] - at[:, None]) % blocks < kept
    mask = pattern.repeat_interleave(m // blocks, 0).repeat_interleave(n // blocks, 1)
    if not permute:
        warnings.warn(
            "rows and columns of a mask without permutation are not exchangeable: the Gaussian limit is not assured",
            ActiniumWarning,
            stacklevel=3,
        )
        return mask
    return mask[torch.randperm(m, generator=generator)][:, torch.randperm(n, generator=generator)]
