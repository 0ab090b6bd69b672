"""Internal states of all layers at one token: the residual stream, what attention adds and what the MLP adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import opened, write_fitted
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["StackedStates", "residual_identity"]

KIND = "stack of internal states"
STATES = ("resid_post", "attn.out", "mlp.out")
BRANCHES = ("attn.out", "cross_attn.out", "mixer.out", "mlp.out")


@dataclass(frozen=True, eq=False)
class StackedStates:
    """States of n texts at one token, of several kinds and all layers.

    Attributes:
        values: (n, state, layer, d_model).
        states: names of the states, as sites name them.
        layers: numbers of the layers.
    """

    values: Tensor
    states: tuple[str, ...]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 4 or shape[1:3] != (len(self.states), len(self.layers)) or not self.values.numel():
            raise InputError(
                f"expected (n, {len(self.states)} states, {len(self.layers)} layers, d_model), got {shape}"
            )

    @classmethod
    def capture(
        cls,
        model: Model,
        inputs: Any,
        *,
        states: Sequence[str] = STATES,
        position: int = -1,
        dtype: torch.dtype = torch.float16,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> StackedStates:
        """Run the model once and read the states at one token of each text.

        What attention and MLP add is read where it is added: behind the norm that sandwich blocks (Gemma 2) put there.

        Args:
            model: a transformer; of an encoder-decoder the decoder is read.
            inputs: texts (question and answer), tokens with their mask, or images. Token ids without a mask have no
                padding: every one of them counts.
            states: parts of a block whose width is the stream's.
            position: token of each text, 0 first, -1 last; padding is not counted.
            dtype: of the kept values.
            batch_size: texts in a pass, all at once by default.
            progress: show a progress bar.

        Raises:
            InputError: a text is longer than the context, or a value is too large for the dtype.
            SiteError: the blocks of this architecture have no such part.
        """
        names = [[f"{model.tower.prefix}blocks.{i}.{part}" for i in range(model.n_layers)] for part in states]
        every = [name for part in names for name in part]
        if not every:
            raise InputError("no states were asked for")
        for name in every:
            ((site, _, _),) = model.resolve(name)
            if site.dims != ("batch", "pos", "d_model"):
                raise InputError(f"{name} has dimensions {' '.join(site.dims)}; states are as wide as the stream")
        ready = model.prepare(inputs)
        if ready.tokens is not None and len(ready.tokens.rows.unique()) != len(ready.tokens):
            raise InputError(f"a text is longer than the model's context of {model.context} tokens; cut it first")
        found = model.record(ready, every, positions=position, batch_size=batch_size, device="cpu", progress=progress)
        values = torch.stack([torch.stack([found[name][:, 0] for name in part], 1) for part in names], 1)
        kept = values.to(dtype)
        if not bool(torch.isfinite(values).all()):
            raise InputError("the model's states hold NaN or infinite values")
        if not bool(torch.isfinite(kept).all()):
            raise InputError(
                f"a state of size {float(values.abs().max()):.3g} does not fit {dtype}; use dtype=torch.float32"
            )
        return cls(kept, tuple(states), tuple(range(model.n_layers)))

    def select(self, states: Sequence[str] | None = None, layers: Sequence[int] | None = None) -> StackedStates:
        """Some states or layers only (negative numbers count from the end), for ablations.

        Raises:
            UnknownNameError: there is no such state.
            InputError: there is no such layer, or none is chosen.
        """
        kinds = list(self.states if states is None else states)
        for name in kinds:
            if name not in self.states:
                raise UnknownNameError(unknown("state", name, self.states))
        rows = list(range(len(self.layers))) if layers is None else list(layers)
        if any(not -len(self.layers) <= row < len(self.layers) for row in rows):
            raise InputError(f"there are {len(self.layers)} layers, got {rows}")
        if not kinds or not rows:
            raise InputError("no states or no layers are chosen")
        chosen = self.values[:, [self.states.index(name) for name in kinds]][:, :, rows]
        return StackedStates(chosen, tuple(kinds), tuple(self.layers[row] for row in rows))

    def __getitem__(self, rows: Any) -> StackedStates:
        """Some texts: a slice, or their numbers."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return StackedStates(self.values[index], self.states, self.layers)

    def __len__(self) -> int:
        return len(self.values)

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file, which `load` maps into memory.

        Raises:
            InputError: the file cannot be written.
        """
        return write_fitted(path, KIND, {"values": self.values}, {"states": self.states, "layers": self.layers})

    @classmethod
    def load(cls, path: str | Path) -> StackedStates:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        with opened(path, KIND) as (about, tensors):
            names = about["settings"]
            return cls(tensors["values"], tuple(names["states"]), tuple(names["layers"]))

    def __repr__(self) -> str:
        n, _, _, d = self.values.shape
        return f"StackedStates({n} texts, {', '.join(self.states)}, {len(self.layers)} layers, d_model {d})"


def residual_identity(model: Model, inputs: Any, *, batch_size: int | None = None) -> Result:
    """How well the stream behind each block is the stream before it plus what the block's parts add.

    It is to rounding in every block that norms before its parts (pre-norm, sandwich, sequential or parallel): there
    the states are read at the right places. Blocks that norm the stream itself (BERT, OPT-350m) miss it by far.

    Args:
        model: a transformer.
        inputs: texts, tokens or images.
        batch_size: texts in a pass.

    Returns:
        Result with `error` over `layer`: the largest deviation, as a share of the largest entry of the stream.

    Raises:
        SiteError: the blocks do not show what they add.
    """
    names = [f"{model.tower.prefix}blocks.{i}" for i in range(model.n_layers)]
    branches = [part for part in BRANCHES if f"{names[0]}.{part}" in model.anatomy.sites] if names else []
    if "mixer.out" not in branches and not {"attn.out", "mlp.out"} <= set(branches):
        # Refused with a message that names what the blocks of this architecture have.
        model.resolve([f"{name}.{part}" for name in names for part in ("attn.out", "mlp.out")])
    parts = ("resid_pre", *branches, "resid_post")
    ready = model.prepare(inputs)
    found = model.record(ready, [f"{n}.{p}" for n in names for p in parts], batch_size=batch_size, dtype=torch.float64)
    errors = []
    for name in names:
        after = found[f"{name}.resid_post"]
        total = sum(found[f"{name}.{part}"] for part in parts[:-1])
        errors.append(float((total - after).abs().max() / after.abs().max()))
    data = xr.Dataset(
        {"error": ("layer", errors)}, coords={"layer": range(len(names))}, attrs={"plot": {"kind": "bar"}}
    )
    about = provenance(model, ready.tokens, parts=parts)
    return Result(data, "residual_identity", "internal-inspector", about)
