"""Changes of a model's weights that can be put in force, taken back bit for bit, and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, unknown
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.maps import weight_after
from actinium.core.model import Model

__all__ = ["Down", "WeightChange", "check_writes", "down_projections"]

TOLERANCE = 1e-3
KIND = "change of weights"


class WeightChange:
    """Differences of weights, which `apply` adds and `revert` takes back; also usable in a `with` statement.

    `revert` puts the very bits back that `apply` found. Changes on one model are taken back in the reverse order.

    Args:
        model: the model whose weights change.
        deltas: by the name of a parameter, what is added to it, in its own layout.
        about: how they were made, as plain values.

    Attributes:
        deltas: as given.
        about: as given.

    Raises:
        InputError: there is no such parameter, or a shape is not the parameter's.
    """

    def __init__(self, model: Model, deltas: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
        self.model, self.deltas, self.about = model, dict(deltas), dict(about or {})
        self._before: dict[str, Tensor] | None = None
        parameters = dict(model.module.named_parameters())
        for name, delta in self.deltas.items():
            if name not in parameters:
                raise InputError(unknown("parameter", name, parameters))
            if delta.shape != parameters[name].shape:
                raise InputError(f"{name} is {tuple(parameters[name].shape)}, its change {tuple(delta.shape)}")
        self._parameters = {name: parameters[name] for name in self.deltas}

    @property
    def applied(self) -> bool:
        """Whether the change is in force."""
        return self._before is not None

    def apply(self) -> Self:
        """Add the differences.

        Raises:
            InputError: they are in force already.
        """
        if self.applied:
            raise InputError("this change is in force already; revert it first")
        self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._put({name: self._sum(name) for name in self.deltas})
        return self

    def revert(self) -> Self:
        """Put the weights back as `apply` found them, bit for bit.

        Raises:
            InputError: they are not in force, or the weights were changed again since.
        """
        if self._before is None:
            raise InputError("this change is not in force, so there is nothing to revert")
        for name, parameter in self._parameters.items():
            if not torch.equal(parameter.detach(), self._sum(name)):
                raise InputError(f"{name} was changed again since; revert the later change first")
        self._put(self._before)
        self._before = None
        return self

    def _sum(self, name: str) -> Tensor:
        assert self._before is not None
        old = self._before[name]
        # An entry without a change keeps its bits, the sign of a zero included.
        delta = self.deltas[name].to(old.device)
        return torch.where(delta == 0, old, (old.to(delta.dtype) + delta).to(old.dtype))

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)

    def __enter__(self) -> Self:
        return self.apply()

    def __exit__(self, *exc: object) -> None:
        self.revert()

    def __repr__(self) -> str:
        state = "in force" if self.applied else "not in force"
        return f"WeightChange({', '.join(self.deltas)}; {state})"

    def save(self, path: str | Path) -> Path:
        """Write the differences to one safetensors file."""
        return write_fitted(path, KIND, self.deltas, {}, about=self.about)

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
        """Read what `save` wrote, for a model with the same parameters.

        Raises:
            LoadError: the file is missing, damaged or something else.
            InputError: the model has other parameters.
        """
        note, deltas = read_fitted(path, KIND)
        return cls(model, deltas, note["about"])


class Down:
    """The down projection of one MLP, whose weight holds a value vector for each key.

    Args:
        model: a model with MLPs.
        layer: the block.

    Attributes:
        layer: the block.
        site: the site of its keys, `mlp.post`.
        name: of the weight among the module's parameters.
        module: the projection.

    Raises:
        InputError: the block does not exist, or has no single down projection.
    """

    def __init__(self, model: Model, layer: int) -> None:
        tower = model.tower
        if not 0 <= layer < len(tower.blocks):
            raise InputError(f"layers go from 0 to {len(tower.blocks) - 1}, not {layer}")
        self.layer, self.site = layer, f"{tower.prefix}blocks.{layer}.mlp.post"
        if not model.has(self.site):
            raise InputError(f"block {layer} of {model.name} has no MLP with one down projection (mlp.post)")
        weight_after(model, self.site)
        ((_, tap, _),) = model.resolve(self.site)
        self.model, self.module = model, tap.module
        weight = self.module.weight
        self.name = next((n for n, p in model.module.named_parameters() if p is weight), "")
        if not self.name:
            raise InputError(f"the down projection of block {layer} keeps its weight outside the module's parameters")

    @property
    def weight(self) -> Tensor:
        """(unit, d_model) view: the row of a unit is its value vector."""
        return weight_after(self.model, self.site).T

    def delta(self, change: Tensor) -> Tensor:
        """A change (d_model, unit) in the layout of the weight."""
        return change.T if type(self.module).__name__ == "Conv1D" else change


def down_projections(model: Model, layers: Sequence[int]) -> list[Down]:
    """The down projections of some layers, from the lowest to the highest.

    Raises:
        InputError: no layer is given, one is given twice, or one does not exist.
    """
    wanted = [layers] if isinstance(layers, int) else sorted(int(layer) for layer in layers)
    if not wanted or len(set(wanted)) != len(wanted):
        raise InputError(f"expected different layers, got {list(wanted)}")
    return [Down(model, layer) for layer in wanted]


def check_writes(model: Model, downs: Sequence[Down], inputs: Any) -> None:
    """Refuse a model in which what a down projection gives is not what is added to the residual stream.

    Raises:
        InputError: it is normed, scaled or mixed in between.
    """
    prefix = model.tower.prefix
    parts = ("resid_pre", "attn.out", "mlp.post", "mlp.out", "resid_post")
    at = [f"{prefix}blocks.{d.layer}.{part}" for d in downs for part in parts]
    rec = model.record(inputs, at)
    for down in downs:
        pre, attn, post, out, after = (rec[f"{prefix}blocks.{down.layer}.{part}"].double() for part in parts)
        real = rec.mask.to(pre.device)[..., None] if rec.mask is not None else 1.0
        bias = getattr(down.module, "bias", None)
        given = post @ down.weight.double() + (0.0 if bias is None else bias.detach().double())
        wrong = max(
            float(((given - out) * real).norm() / out.norm()),
            float(((pre + attn + out - after) * real).norm() / after.norm()),
        )
        if wrong > max(TOLERANCE, 4 * torch.finfo(rec[at[0]].dtype).eps):
            raise InputError(
                f"block {down.layer} of {model.name} does not add its down projection to the residual stream as it is "
                f"(off by {wrong:.1%}): a norm or a factor stands in between, and edits do not reach through it"
            )
