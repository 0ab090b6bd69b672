"""The neural tangent kernel: of any module by its Jacobian, and of an infinitely wide ReLU network in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.rows import as_rows
from actinium.signal.tangent import TangentFunction

__all__ = ["NTKLinear", "analytic_ntk_relu", "arc_cosine", "empirical_ntk", "ntk_mlp"]

MEMORY = 1 << 30
OUTPUTS = ("sum", "block")
UNIT = 1e-6


class NTKLinear(nn.Module):
    """x -> scale * x W^T with W of N(0, 1): the scale is in the forward pass and not in the weights.

    Args:
        n_in, n_out: widths.
        scale: factor of the output; sqrt(2 / n_in) behind a ReLU.
        generator: draws the weights.
    """

    def __init__(self, n_in: int, n_out: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(n_out, n_in, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(…, n_in) -> (…, n_out)."""
        return nn.functional.linear(x, self.weight) * self.scale

    def extra_repr(self) -> str:
        """Widths and scale."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, scale={self.scale:.4g}"


def ntk_mlp(n_in: int, width: int, depth: int = 1, outputs: int = 1, seed: int = 0) -> nn.Sequential:
    """A ReLU network without biases in NTK scaling: for unit inputs its kernel tends to `analytic_ntk_relu`.

    Args:
        n_in: entries of an input.
        width: units of each hidden layer.
        depth: hidden layers.
        outputs: entries of an output.
        seed: of the weights.

    Raises:
        InputError: a size is below 1.

    Source: Jacot et al., 2018, section 3, with weights of variance 2 / width (He et al., 2015).
    """
    if min(n_in, width, depth, outputs) < 1:
        raise InputError(f"sizes are 1 or more, got n_in={n_in}, width={width}, depth={depth}, outputs={outputs}")
    random = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [NTKLinear(n_in, width, 1.0, random), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [NTKLinear(width, width, math.sqrt(2 / width), random), nn.ReLU()]
    return nn.Sequential(*layers, NTKLinear(width, outputs, math.sqrt(2 / width), random))


def empirical_ntk(
    model: nn.Module | Model,
    X1: Any,
    X2: Any = None,
    params: str | Sequence[str] | None = None,
    *,
    outputs: str = "sum",
    output: Callable[[Any], Tensor] | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = torch.float64,
    vectorized: bool = True,
    progress: bool = False,
) -> Tensor:
    """K(x, x') = <d f(x) / d W, d f(x') / d W> of a module as it is.

    Args:
        model: a module or a Model, with batch normalisation and dropout in eval mode.
        X1: inputs (n1, …) of the module.
        X2: inputs (n2, …); X1 by default.
        params: names or patterns of the parameters W; those that require a gradient by default.
        outputs: "sum": kernel (n1, n2), summed over the outputs; "block": (n1, n2, c, c), one for each pair of them.
        output: takes (n,) or (n, c) of what the module returns, such as `lambda out: out.logits`.
        chunk: rows whose Jacobian is held at a time; by default all. Jacobians that `memory` cannot keep are
            computed again for each pair of chunks.
        memory: bytes that Jacobians may take.
        dtype: of the computation; float32 makes the small eigenvalues of a kernel noise. None: that of the module.
        vectorized: rows at once by vmap; False for modules that it cannot trace.
        progress: show a progress bar over chunks.

    Returns:
        float64 kernel; symmetric and positive semi-definite where X2 is not given.

    Raises:
        InputError: a layer in training mode, inputs that are empty or not finite, or Jacobians beyond `memory`.
        UnknownNameError: no such parameter.

    Source: Jacot et al., 2018, eq. 2.
    """
    if outputs not in OUTPUTS:
        raise InputError(f"outputs is one of {', '.join(OUTPUTS)}, not {outputs!r}")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk is 1 or more, got {chunk}")
    f = TangentFunction(model, params, output, dtype)
    x1, same = f.inputs(X1, "X1"), X2 is None
    x2 = x1 if same else f.inputs(X2, "X2")
    weights, rest = f.parameters(), f.rest()
    with torch.no_grad():
        c = f(weights, rest, x1[:1]).shape[1]
    row = c * sum(w.numel() * w.element_size() for w in weights.values())
    _fits(len(x1) + (0 if same else len(x2)), row, chunk, memory)
    step = chunk or max(len(x1), len(x2))
    keep = (len(x2) + step) * row <= memory

    def jacobian(x: Tensor) -> list[Tensor]:
        return f.jacobian(weights, rest, x, vectorized)

    kept: dict[int, list[Tensor]] = {}
    shape = (len(x1), len(x2)) if outputs == "sum" else (len(x1), len(x2), c, c)
    kernel = torch.empty(shape, dtype=torch.float64, device=x1.device)
    for i in shown(range(0, len(x1), step), "tangent kernel", progress):
        one = kept[i] if same and i in kept else jacobian(x1[i : i + step])
        for j in range(i if same else 0, len(x2), step):
            two = one if same and i == j else kept[j] if j in kept else jacobian(x2[j : j + step])
            if keep:
                kept[j] = two
            block = _product(one, two, outputs)
            kernel[i : i + step, j : j + step] = block
            if same and i != j:
                kernel[j : j + step, i : i + step] = block.T if block.ndim == 2 else block.permute(1, 0, 3, 2)
    if same:
        # Rounding makes the product of a matrix with itself differ between its halves.
        kernel = (kernel + (kernel.T if outputs == "sum" else kernel.permute(1, 0, 3, 2))) / 2
    return kernel


def _product(a: list[Tensor], b: list[Tensor], outputs: str) -> Tensor:
    """Kernel (n, m) or (n, m, c, c) of two Jacobians, given by parameter as (n, c, p) and (m, c, p)."""
    n, c = a[0].shape[:2]
    if outputs == "sum":
        return torch.stack([x.double().flatten(1) @ y.double().flatten(1).T for x, y in zip(a, b, strict=True)]).sum(0)
    flat = [x.double().flatten(0, 1) @ y.double().flatten(0, 1).T for x, y in zip(a, b, strict=True)]
    return torch.stack(flat).sum(0).reshape(n, c, len(b[0]), c).transpose(1, 2)


def _fits(rows: int, size: int, chunk: int | None, memory: int) -> None:
    """Refuse Jacobians that take more than `memory` bytes: `rows` of `size` bytes, or two chunks."""
    needed = size * (rows if chunk is None else min(rows, 2 * chunk))
    if needed <= memory:
        return
    best = memory // (2 * size)
    hint = f"give chunk={best} or less" if best else f"one row takes {size / 2**20:.0f} MiB; give fewer params"
    raise InputError(
        f"Jacobians of {rows if chunk is None else 2 * chunk} rows take {needed / 2**20:.0f} MiB,"
        f" more than memory={memory / 2**20:.0f} MiB; {hint}, or a larger memory"
    )


def arc_cosine(r: Tensor) -> tuple[Tensor, Tensor]:
    """k0(r) = (pi - arccos r) / pi and k1(r) = (r (pi - arccos r) + sqrt(1 - r^2)) / pi.

    These are 2 E[relu'(u) relu'(v)] and 2 E[relu(u) relu(v)] of standard normal u, v with correlation r. At -1 and 1
    and beyond, the gradient is zero, as that of r itself is at equal unit vectors.

    Args:
        r: correlations, of any shape.

    Source: Cho and Saul, 2009, eqs. 4 and 6.
    """
    inside = r.abs() < 1
    # Where the slope of arccos is infinite the gradient must not see it.
    safe = torch.where(inside, r, torch.zeros_like(r))
    angle = math.pi - torch.arccos(safe)
    ends = (r > 0).to(r.dtype)
    k0 = torch.where(inside, angle / math.pi, ends)
    k1 = torch.where(inside, (safe * angle + torch.sqrt(1 - safe**2)) / math.pi, ends)
    return k0, k1


def analytic_ntk_relu(X1: Any, X2: Any = None, depth: int = 1, normalize: bool = True) -> Tensor:
    """Tangent kernel of an infinitely wide ReLU network without biases on inputs of unit length.

    S_0 = Theta_0 = x.x'; S_{l+1} = k1(S_l); Theta_{l+1} = S_{l+1} + Theta_l k0(S_l), with k0 and k1 of `arc_cosine`.

    Args:
        X1: inputs (n1, d).
        X2: inputs (n2, d); X1 by default.
        depth: hidden layers, from 0 (a linear function).
        normalize: bring the inputs to unit length; if not, they must have it.

    Returns:
        float64 (n1, n2); depth + 1 on the diagonal. Gradients go back to inputs that require them.

    Raises:
        InputError: inputs of zero length, not of unit length where `normalize` is off, or of different widths.

    Source: Jacot et al., 2018, theorem 1; Bietti and Mairal, 2019, section 2.
    """
    if depth < 0:
        raise InputError(f"depth is 0 or more, got {depth}")
    a, same = _unit(X1, "X1", normalize), X2 is None or X2 is X1
    b = a if same else _unit(X2, "X2", normalize)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"X1 has {a.shape[1]} features and X2 has {b.shape[1]}")
    s = a @ b.T
    if same:
        # arccos turns a rounding of 1e-16 on the diagonal into 1e-8.
        s = torch.where(torch.eye(len(a), dtype=torch.bool, device=s.device), torch.ones_like(s), s)
    theta = s
    for _ in range(depth):
        k0, k1 = arc_cosine(s)
        s, theta = k1, k1 + theta * k0
    return theta


def _unit(values: Any, what: str, normalize: bool) -> Tensor:
    as_rows(values, what, flat=False)
    x = values.double() if isinstance(values, Tensor) else as_rows(values, what, dtype=torch.float64)
    length = x.detach().norm(dim=1)
    if bool((length == 0).any()):
        raise InputError(f"{what}: row {int((length == 0).nonzero()[0])} is zero and has no direction")
    if normalize:
        return x / x.norm(dim=1, keepdim=True)
    if bool(((length - 1).abs() > UNIT).any()):
        raise InputError(
            f"{what}: rows are not of unit length, from {float(length.min()):.4g} to {float(length.max()):.4g};"
            " set normalize=True"
        )
    return x
