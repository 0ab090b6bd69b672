"""Whether a network trains as its linearisation does: how far weights, kernel and gates move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.ntk import MEMORY, empirical_ntk
from actinium.signal.tangent import TangentFunction, Tensors

__all__ = ["LAZY_MEASURES", "LazyMonitor", "kernel_alignment", "lazy_training_report"]

PAPER = "lazy-benign-overfitting"
LAZY_MEASURES = ("weight_move", "kernel_move", "kernel_misalignment", "linearisation_error", "gate_changes")
"""Measures of one step; all are 0 at the start and fall with the width of a network in NTK scaling."""


def kernel_alignment(a: Tensor, b: Tensor) -> float:
    """Cosine of two kernels (n, n) after centring; NaN where one is constant.

    Raises:
        InputError: no square matrices of one shape.

    Source: Cortes et al., 2012, definition 4.
    """
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise InputError(f"expected two kernels (n, n), got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = ((k - k.mean(0) - k.mean(1)[:, None] + k.mean()) for k in (a.double(), b.double()))
    size = float(x.norm() * y.norm())
    return float((x * y).sum()) / size if size > 0 else float("nan")


class LazyMonitor:
    """Measures how far a network in training is from its linearisation at the start.

    Build it before training, call `step` whenever a row is wanted, read `result` at the end.

        monitor = LazyMonitor(net, probe)
        for batch in batches:
            train(net, batch)
            monitor.step()
        monitor.result().plot()

    Args:
        model: a module or a Model, at its start; batch normalisation and dropout in eval mode whenever it is measured.
        X_probe: inputs (n, …) on which kernel, outputs and gates are compared.
        params: names or patterns of the parameters that count; those that require a gradient by default.
        output: takes (n,) or (n, c) of what the module returns.
        gates: names of the submodules whose input's sign is compared; every nn.ReLU by default.
        chunk, memory, dtype, vectorized: as in `empirical_ntk`.

    Attributes:
        start: parameters at the start, by name.

    Raises:
        InputError: as `empirical_ntk`; fewer than two probe inputs; no submodule has the name of a gate.

    Source: Chizat, Oyallon and Bach, 2019, section 1; Zhu et al., 2023.
    """

    def __init__(
        self,
        model: nn.Module | Model,
        X_probe: Any,
        params: str | Sequence[str] | None = None,
        *,
        output: Callable[[Any], Tensor] | None = None,
        gates: Sequence[str] | None = None,
        chunk: int | None = None,
        memory: int = MEMORY,
        dtype: torch.dtype | None = torch.float64,
        vectorized: bool = True,
    ) -> None:
        self._f = TangentFunction(model, params, output, dtype)
        self._x = self._f.inputs(X_probe, "X_probe")
        if len(self._x) < 2:
            raise InputError("give two probe inputs or more: a kernel of one input has no direction")
        parts = dict(self._f.module.named_modules())
        missing = [name for name in gates or () if name not in parts]
        if missing:
            raise InputError(f"the module has no submodule {missing[0]!r} to be a gate")
        self._gates = list(gates) if gates is not None else [k for k, m in parts.items() if isinstance(m, nn.ReLU)]
        self._how = {"chunk": chunk, "memory": memory, "dtype": dtype, "vectorized": vectorized}
        self.start: Tensors = self._f.parameters()
        self._rest = self._f.rest()
        self._kernel = self._ntk()
        self._out, self._open = self._outputs()
        self._rows: list[dict[str, float]] = []
        self._moves: list[list[float]] = []

    def step(self, label: float | None = None) -> dict[str, float]:
        """Measure the network as it is now.

        Args:
            label: place of this row, such as the number of gradient steps; by default the number of the row.

        Returns:
            weight_move: ||W - W_0|| / ||W_0|| over all parameters (NaN where all were zero).
            kernel_move: ||K - K_0|| / ||K_0||, Frobenius norms on the probe inputs.
            kernel_misalignment: 1 - centred alignment of K with K_0.
            linearisation_error: mean |f - f_0 - <d f_0 / d W, W - W_0>| / mean |f - f_0|, 0 while nothing has moved.
            gate_changes: share of ReLU inputs that have another sign; NaN without gates.

        Raises:
            InputError: a layer is in training mode, or weights are not finite.
        """
        self._f.check_mode()
        now = self._f.parameters()
        if not all(bool(torch.isfinite(w).all()) for w in now.values()):
            raise InputError("the weights hold NaN or infinite values: training has diverged")
        moved = {name: now[name] - self.start[name] for name in now}
        out, gates = self._outputs()
        kernel = self._ntk()
        linear = self._linear(moved).double()
        change = out - self._out
        size = float(change.abs().mean())
        changed = [float((a != b).double().mean()) for a, b in zip(gates, self._open, strict=True)]
        counts = [g.numel() for g in gates]
        row = {
            "step": float(len(self._rows)) if label is None else float(label),
            "weight_move": _ratio(_norm(moved), _norm(self.start)),
            "kernel_move": _ratio(float((kernel - self._kernel).norm()), float(self._kernel.norm())),
            "kernel_misalignment": 1 - kernel_alignment(kernel, self._kernel),
            "linearisation_error": float((change - linear).abs().mean()) / size if size > 0 else 0.0,
            "gate_changes": float(np.average(changed, weights=counts)) if gates else float("nan"),
        }
        self._rows.append(row)
        self._moves.append([_ratio(float(moved[n].norm()), float(self.start[n].norm())) for n in self.start])
        return dict(row)

    def result(self) -> Result:
        """All rows: the measures of `step` over step; over step and parameter: `parameter_move`, ||W - W_0|| / ||W_0||.

        Raises:
            InputError: no step was measured.
        """
        if not self._rows:
            raise InputError("nothing was measured yet; call step() during training")
        data: dict[str, Any] = {name: ("step", [row[name] for row in self._rows]) for name in LAZY_MEASURES}
        data["parameter_move"] = (("step", "parameter"), np.array(self._moves))
        coords = {"step": [row["step"] for row in self._rows], "parameter": list(self.start)}
        record = provenance(inputs=[self._x, dict(self.start)], gates=self._gates)
        hints = {"plot": {"variables": list(LAZY_MEASURES), "yscale": "symlog", "ylabel": "distance from the start"}}
        return Result(xr.Dataset(data, coords, hints), "lazy_training", PAPER, record)

    def _linear(self, moved: Tensors) -> Tensor:
        """<d f_0 / d W, moved>, (n, c): the derivative, in v, of moved times the gradient of v f_0."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.start.items()}
        with torch.enable_grad():
            out = self._f(leaves, self._rest, self._x)
            v = torch.ones_like(out, requires_grad=True)
            grads = torch.autograd.grad(out, list(leaves.values()), v, create_graph=True, materialize_grads=True)
            along = sum((g * m).sum() for g, m in zip(grads, moved.values(), strict=True))
        return torch.autograd.grad(along, v)[0]

    def _ntk(self) -> Tensor:
        return empirical_ntk(self._f.module, self._x, params=self._f.names, output=self._f.output, **self._how)

    def _outputs(self) -> tuple[Tensor, list[Tensor]]:
        """Outputs (n, c) on the probe inputs, and which inputs of each gate are positive."""
        with _signs(self._f.module, self._gates) as seen, torch.no_grad():
            out = self._f(self._f.parameters(), self._f.rest(), self._x)
        return out.double(), seen


@contextmanager
def _signs(module: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Where the inputs of submodules are positive, call by call."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach() > 0)

    hooks = [module.get_submodule(name).register_forward_pre_hook(look) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _norm(tensors: Tensors) -> float:
    return float(torch.stack([t.double().norm() for t in tensors.values()]).norm())


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


def lazy_training_report(
    make: Callable[[int, int], nn.Module],
    train: Callable[[nn.Module], float],
    X_probe: Any,
    widths: Sequence[int],
    seeds: Sequence[int] = (0,),
    *,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Train networks of several widths and measure how far each ends from its start.

    Args:
        make: gives the network of a width and a seed.
        train: trains it in place and returns its final loss.
        X_probe: inputs (n, …) on which kernels and outputs are compared.
        widths: two or more, all different.
        seeds: one network of each width for each.
        progress: show a progress bar.
        **options: of `LazyMonitor`.

    Returns:
        over width, as means over the seeds: the measures of `LazyMonitor.step` and `loss`; over measure: `slope`, of
        log measure against log width by least squares (about -1/2 where training gets lazier, 0 where it does not; NaN
        where a measure is zero or missing); over width and seed: `<measure>_by_seed`.

    Raises:
        InputError: fewer than two widths, no seed, a loss that is no finite number, or as `LazyMonitor`.

    Source: Chizat, Oyallon and Bach, 2019, section 2; Zhu et al., 2023.
    """
    sizes = list(widths)
    if len(set(sizes)) != len(sizes) or len(sizes) < 2 or not len(seeds):
        raise InputError(f"give two different widths or more and one seed or more, got {sizes} and {list(seeds)}")
    names = [*LAZY_MEASURES, "loss"]
    found = {name: np.zeros((len(sizes), len(seeds))) for name in names}
    runs = [(i, j) for i in range(len(sizes)) for j in range(len(seeds))]
    for i, j in shown(runs, "widths", progress):
        net = make(sizes[i], seeds[j])
        monitor = LazyMonitor(net, X_probe, **options)
        loss = float(train(net))
        if not np.isfinite(loss):
            raise InputError(f"training of width {sizes[i]} ended with loss {loss}")
        row = monitor.step() | {"loss": loss}
        for name in names:
            found[name][i, j] = row[name]
    means = {name: values.mean(1) for name, values in found.items()}
    data: dict[str, Any] = {name: ("width", means[name]) for name in names}
    data["slope"] = ("measure", [_slope(sizes, means[name]) for name in LAZY_MEASURES])
    data |= {f"{name}_by_seed": (("width", "seed"), values) for name, values in found.items()}
    coords = {"width": sizes, "measure": list(LAZY_MEASURES), "seed": list(seeds)}
    hints = {"plot": {"variables": list(LAZY_MEASURES), "yscale": "log", "ylabel": "distance from the start"}}
    record = provenance(inputs=X_probe, widths=sizes, seeds=list(seeds), make=make, train=train)
    return Result(xr.Dataset(data, coords, hints), "lazy_training_report", PAPER, record)


def _slope(widths: Sequence[int], values: np.ndarray) -> float:
    if not (np.isfinite(values).all() and (values > 0).all()):
        return float("nan")
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])
