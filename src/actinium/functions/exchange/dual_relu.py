"""Gated MLPs turned into ones with exact zeros: dReLU, ReGLU or a shifted ReLU in the place of SiLU and GELU.

    with ac.functions.relufy(model, "drelu") as changed:
        changed.places                                     # names of the gated MLPs
        ac.functions.gated_sparsity(model, texts)["exact"]
    # as it was; without `with`, changed.undo() does the same. Quality comes back with training only.

Source: Song et al., 2024, arXiv 2406.05955.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import ActiniumWarning, InputError, unknown
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.exchange.graft_calls import run

__all__ = [
    "DReLU",
    "GatedMLP",
    "Relufied",
    "activated_parameters",
    "find_gated_mlps",
    "gated_sparsity",
    "mixture_sparsity",
    "relufy",
]

MODES = ("drelu", "reglu", "shifted")
# Names of the maps into the gate and beside it, of the map out, as libraries have them.
MAPS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
ENTRIES = 2**24
"""Contributions of units to outputs that are held at once."""
ACTIVATIONS = ("act_fn", "activation_fn", "act")


class DReLU(nn.Module):
    """max(0, g) max(0, u): 0 where either is not above 0."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """The product (...) of two tensors (...)."""
        return functional.relu(gate) * functional.relu(up)


class ShiftedReLU(nn.Module):
    """max(0, x - b)."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x - self.b)


class _Rectify:
    """Hook that rectifies what a map gives back."""

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return functional.relu(output)


class GatedMLP(nn.Module):
    """(f(x Wg) * x Wu) Wd without biases, with the module names of Llama.

    Args:
        d, h: widths outside and inside, 1 or more.
        activation: the f; SiLU if not given.

    Raises:
        InputError: a width is below 1.
    """

    def __init__(self, d: int, h: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        if min(d, h) < 1:
            raise InputError(f"widths are 1 or more, got {d} and {h}")
        self.gate_proj, self.up_proj = nn.Linear(d, h, bias=False), nn.Linear(d, h, bias=False)
        self.down_proj = nn.Linear(h, d, bias=False)
        self.act_fn = activation or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) of (..., d)."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


@dataclass(frozen=True, eq=False)
class Gated:
    """A gated MLP: the module, the names of its maps (gate, up, down), and that of its activation."""

    module: nn.Module
    maps: tuple[str, str, str]
    activation: str

    def part(self, i: int) -> nn.Module:
        """The i-th map."""
        return self.module.get_submodule(self.maps[i])

    @property
    def act(self) -> nn.Module:
        """The activation of the gate."""
        return self.module.get_submodule(self.activation)

    @property
    def dual(self) -> bool:
        """Whether `relufy` rectifies what stands beside the gate."""
        return any(isinstance(hook, _Rectify) for hook in self.part(1)._forward_hooks.values())


def find_gated_mlps(model: nn.Module | Model) -> dict[str, Gated]:
    """Gated MLPs by name: modules with three linear maps as in Llama, Mistral, Qwen, Gemma (gate_proj, up_proj,
    down_proj), Mixtral's first form (w1, w3, w2) and T5 (wi_0, wi_1, wo), and a module for the activation.

    Raises:
        InputError: there is none.
    """
    root = model.module if isinstance(model, Model) else model
    found, fused = {}, []
    for name, module in root.named_modules():
        children = dict(module.named_children())
        maps = next((m for m in MAPS if all(hasattr(children.get(part), "weight") for part in m)), None)
        activation = next((a for a in ACTIVATIONS if a in children), None)
        if maps is not None and activation is not None:
            found[name] = Gated(module, maps, activation)
        elif activation is not None and hasattr(module, "gate_up_proj"):
            fused.append(name)
    if not found:
        hint = f"; {fused[0]} keeps both maps in one tensor, which cannot be changed from outside" if fused else ""
        raise InputError(f"{type(root).__name__} has no gated MLP of three linear maps and an activation module{hint}")
    if fused:
        warnings.warn(f"left out: {', '.join(fused)} (both maps in one tensor)", ActiniumWarning, stacklevel=3)
    return found


class Relufied:
    """What `relufy` changed. As a context manager it puts everything back when its block ends.

    Args:
        changed: the gated MLPs by name.
    """

    def __init__(self, changed: dict[str, Gated], stack: ExitStack) -> None:
        self._changed, self._stack = changed, stack

    @property
    def places(self) -> list[str]:
        """Names of the changed MLPs."""
        return list(self._changed)

    def undo(self) -> None:
        """Put the old functions back; a second call does nothing."""
        self._stack.close()
        self._changed = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def relufy(model: nn.Module | Model, mode: str = "drelu", *, shift: float = 0.0) -> Relufied:
    """Give every gated MLP of a network exact zeros, in place; weights and their names stay.

    An MLP that is so already is left out with a warning.

    Args:
        model: the network.
        mode: "drelu" (ReLU of the gate and of what it multiplies), "reglu" (of the gate) or "shifted" (of the gate less
            `shift`).
        shift: of "shifted".

    Returns:
        Relufied, whose `undo` puts the old functions back.

    Raises:
        InputError: there is no such mode, no gated MLP, or a shift for another mode.

    Source: Song et al., 2024, equation of dReLU; the other modes are those of earlier ReLUfication.
    """
    if mode not in MODES:
        raise InputError(unknown("mode", str(mode), MODES))
    if shift and mode != "shifted":
        raise InputError(f"a shift is for mode 'shifted', not {mode!r}")
    changed: dict[str, Gated] = {}
    stack = ExitStack()
    mlps = find_gated_mlps(model)
    dual = [name for name, mlp in mlps.items() if mlp.dual]
    if dual and mode != "drelu":
        raise InputError(f"{dual[0] or 'the MLP'} has dReLU already; undo that first")
    for name, mlp in mlps.items():
        new = ShiftedReLU(shift) if mode == "shifted" else nn.ReLU()
        same = _computes(mlp.act, new)
        if same and mlp.dual == (mode == "drelu"):
            continue
        if not same:
            stack.callback(setattr, mlp.module, mlp.activation, mlp.act)
            setattr(mlp.module, mlp.activation, new.train(mlp.module.training))
        if mode == "drelu" and not mlp.dual:
            stack.callback(mlp.part(1).register_forward_hook(_Rectify()).remove)
        changed[name] = mlp
    if not changed:
        warnings.warn(f"every gated MLP has mode {mode!r} already; nothing is changed", ActiniumWarning, stacklevel=2)
    return Relufied(changed, stack)


@torch.no_grad()
def _computes(module: nn.Module, other: nn.Module) -> bool:
    if next(module.parameters(), None) is not None:
        return False
    at = torch.linspace(-4, 4, 65)
    return bool(torch.equal(module(at), other(at)))


class _Count:
    """Sums over the positions of one MLP."""

    def __init__(self, mlp: Gated, in_decoder: bool, tau: float, cett: float | None) -> None:
        self.mlp, self.in_decoder, self.tau, self.cett = mlp, in_decoder, tau, cett
        self.gate = self.up = torch.empty(0)
        self.mask: Tensor | None = None
        self.n, self.active, self.small, self.below, self.overlap, self.pairs = 0, torch.zeros(1), 0.0, 0.0, 0.0, 0

    def hooks(self) -> Iterator[Any]:
        yield self.mlp.part(0).register_forward_hook(lambda _, __, y: setattr(self, "gate", y))
        yield self.mlp.part(1).register_forward_hook(lambda _, __, y: setattr(self, "up", y))
        yield self.mlp.part(2).register_forward_pre_hook(lambda _, args: self.take(args[0]))

    def take(self, a: Tensor) -> None:
        """Count. Zeros are those of the two factors: in half precision a product may round to 0."""
        on = (self.mlp.act(self.gate) != 0) & (self.up != 0)
        if self.mask is not None and self.mask.numel() == on[..., 0].numel():
            # An expert gets tokens as rows, not as texts.
            there = self.mask.to(a.device).reshape(a.shape[:-1])
        else:
            there = torch.ones(a.shape[:-1], dtype=torch.bool, device=a.device)
        if a.ndim > 2:  # neighbours along a text
            both = there[..., 1:] & there[..., :-1]
            shared, either = (
                op(on[..., 1:, :], on[..., :-1, :]).sum(-1) for op in (torch.logical_and, torch.logical_or)
            )
            self.overlap += float((shared / either.clamp(min=1))[both].sum())
            self.pairs += int(both.sum())
        on, rows = on[there], a[there].float()
        self.n += len(rows)
        self.active = self.active + on.double().sum(0).cpu()
        self.small += float((rows.abs() < self.tau).double().sum())
        if self.cett is not None:
            weight = self.mlp.part(2).get_parameter("weight").float()
            few = max(1, ENTRIES // weight.numel())
            self.below += float(sum(_below_cett(part, weight, self.cett).sum() for part in torch.split(rows, few)))

    def mean(self, total: float) -> float:
        """Over tokens and units."""
        return total / self.n / len(self.active) if self.n else np.nan


def _below_cett(a: Tensor, weight: Tensor, p: float) -> Tensor:
    """How many units of each row (n, h) can be left out, smallest contribution first, for an error up to p: (n,)."""
    size = a.abs() * weight.norm(dim=0)
    order = size.argsort(-1)
    parts = a.gather(-1, order)[..., None] * weight.T[order]  # (n, h, d)
    lost = parts.cumsum(-2).norm(dim=-1)
    good = lost <= p * parts.sum(-2).norm(dim=-1, keepdim=True)
    places = torch.arange(1, a.shape[-1] + 1, device=a.device)
    return torch.where(good, places, 0).amax(-1)


@torch.no_grad()
def gated_sparsity(
    model: nn.Module | Model,
    batches: Iterable[Any],
    *,
    tau: float = 0.01,
    cett: float | None = None,
    progress: bool = False,
) -> Result:
    """Zeros in the gated MLPs of a network, per token, padding left out. Of an expert the tokens that reach it count.

    Args:
        model: the network.
        batches: inputs: tensors, tuples of arguments, mappings by name (whose "attention_mask" says what is padding; in
            the decoder of an encoder-decoder "decoder_attention_mask", or labels of -100); of a `Model` texts, or lists
            of them.
        tau: magnitude below which an activation counts as small.
        cett: an error from 0 to 1: also find how many units can be left out for it.
        progress: show a progress bar.

    Returns:
        by layer: "exact" (share of zeros), "thresholded" (share below tau), "never" (share of units that are 0 at every
        token, which inflate the first), "overlap" (Jaccard index of the units at work at neighbouring tokens), with
        `cett` "droppable" (share of units without which the output moves by that share of its length at most); by
        layer and unit "rate" (share of the tokens at which it is at work, NaN beyond a layer's width).

    Raises:
        InputError: no gated MLP, no batches, or tau or cett have no such value. A layer that none of the batches reach
            has NaN.

    Source: Song et al., 2024, section 3; "droppable" is the cumulative error of tail truncation of ProSparse.
    """
    if not tau >= 0 or (cett is not None and not 0 <= cett <= 1):
        raise InputError(f"tau is 0 or more and cett in 0..1, got {tau} and {cett}")
    mlps = find_gated_mlps(model)
    module = model.module if isinstance(model, Model) else model
    two = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    counts = {name: _Count(mlp, two and "decoder" in name.split("."), tau, cett) for name, mlp in mlps.items()}
    with ExitStack() as stack:
        for count in counts.values():
            for handle in count.hooks():
                stack.callback(handle.remove)
        for batch in shown([batches] if isinstance(batches, str) else list(batches), "sparsity", progress):
            given = _batch(model, batch)
            for count in counts.values():
                count.mask = _mask(given, count.in_decoder)
            run(model, given)
    if not any(c.n for c in counts.values()):
        raise InputError("there are no batches, or no gated MLP was reached by them")
    width = max(len(c.active) for c in counts.values())
    rate = np.full((len(counts), width), np.nan)
    for row, c in zip(rate, counts.values(), strict=True):
        if c.n:
            row[: len(c.active)] = c.active / c.n
    found = list(counts.values())
    data: dict[str, Any] = {
        "exact": ("layer", [1 - c.mean(float(c.active.sum())) for c in found]),
        "thresholded": ("layer", [c.mean(c.small) for c in found]),
        "never": ("layer", [float((c.active == 0).double().mean()) if c.n else np.nan for c in found]),
        "overlap": ("layer", [c.overlap / c.pairs if c.pairs else np.nan for c in found]),
        "rate": (("layer", "unit"), rate),
    }
    if cett is not None:
        data["droppable"] = ("layer", [c.mean(c.below) for c in found])
    hints = {"kind": "bar", "variables": ["exact"], "ylabel": "share of zeros"}
    about = provenance(model if isinstance(model, Model) else None, tau=tau, cett=cett)
    return Result(
        xr.Dataset(data, {"layer": list(counts)}, {"plot": hints}), "gated_sparsity", "turbo-sparse-drelu", about
    )


def _batch(model: nn.Module | Model, batch: Any) -> Any:
    """What the network is run on."""
    if isinstance(model, Model) and (isinstance(batch, str) or (isinstance(batch, list) and batch)):
        return dict(next(model.prepare(batch).batches(None, model.device))[2])
    return batch


def _mask(batch: Any, in_decoder: bool) -> Tensor | None:
    """(batch, pos), False on padding."""
    given = batch if isinstance(batch, Mapping) else {}
    mask = given.get("decoder_attention_mask" if in_decoder else "attention_mask")
    if mask is None and in_decoder and isinstance(given.get("labels"), Tensor):
        mask = given["labels"] != -100
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def activated_parameters(d: int, h: int, sparsity: float, attention: float = 0.0, router: float = 0.0) -> float:
    """Parameters of one layer that are at work at a token: attention + router + (1 - sparsity) 3 d h.

    Raises:
        InputError: a width is below 1, or the sparsity is outside of 0..1.
    """
    if min(d, h) < 1 or not 0 <= sparsity <= 1:
        raise InputError(f"widths are 1 or more and sparsity in 0..1, got {d}, {h} and {sparsity}")
    return attention + router + (1 - sparsity) * 3 * d * h


def mixture_sparsity(sparsity: float, chosen: int, experts: int) -> float:
    """Share of all experts' units that are 0 at a token, 1 - (chosen / experts) (1 - sparsity).

    Raises:
        InputError: no expert or more than there are is chosen, or the sparsity is outside of 0..1.
    """
    if not 1 <= chosen <= experts or not 0 <= sparsity <= 1:
        raise InputError(f"1 to {experts} experts are chosen, of a sparsity in 0..1; got {chosen} and {sparsity}")
    return 1 - chosen / experts * (1 - sparsity)
