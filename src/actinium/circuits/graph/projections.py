"""How each block reads the residual stream and writes into it: norms, projections and the units of each head.

Shared by the wiring and by edge attribution. `projections(model)` finds the facts in one small pass over the unmodified
module and checks them in numbers: what is not a sum of parts read through one norm each is refused.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.circuits.graph.layout import Layout
from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.maps import is_linear
from actinium.core.model import Model

__all__ = ["BlockProjections", "HeadMap", "projections"]

KINDS = ("q", "k", "v")
TOKENS = 5


@dataclass(frozen=True, eq=False)
class HeadMap:
    """A linear map between the stream and heads.

    Attributes:
        module: an `nn.Linear`, or GPT-2's `Conv1D`.
        units: (head, d_head) the module's outputs of each head; of the output projection its inputs.
        out: whether heads are its outputs (queries, keys, values) or its inputs.
    """

    module: nn.Module
    units: Tensor
    out: bool = True

    @property
    def weight(self) -> Tensor:
        """(head, d_head, d_model); a view where the units lie side by side."""
        whole: Any = self.module.weight
        # Conv1D keeps (in, out), Linear (out, in).
        rows = whole.T if (type(self.module).__name__ == "Conv1D") == self.out else whole
        flat = self.units.flatten()
        first, n = int(flat[0]), flat.numel()
        if torch.equal(flat, torch.arange(first, first + n)):
            return rows[first : first + n].unflatten(0, self.units.shape)
        return rows[flat.to(rows.device)].unflatten(0, self.units.shape)

    @property
    def bias(self) -> Tensor | None:
        """(head, d_head) of queries, keys and values, (d_model,) of the output projection, None where there is none."""
        bias: Any = getattr(self.module, "bias", None)
        return bias if bias is None or not self.out else bias[self.units.to(bias.device)]


@dataclass(frozen=True, eq=False)
class BlockProjections:
    """What one block reads with and writes with.

    Attributes:
        norm: between the stream and the projections of attention, None where there is none.
        q, k, v: the projections; several may be parts of one module.
        out: the output projection; `weight` is (head, d_head, d_model).
        mlp_norm: between the stream and the MLP, None where there is none.
        mlp: the modules that read the MLP's normed input: the MLP, or the first maps of one that is no module.
    """

    norm: nn.Module | None
    q: HeadMap
    k: HeadMap
    v: HeadMap
    out: HeadMap
    mlp_norm: nn.Module | None
    mlp: tuple[nn.Module, ...]

    def __getitem__(self, kind: str) -> HeadMap:
        """The projection of "q", "k" or "v"."""
        return {"q": self.q, "k": self.k, "v": self.v}[kind]


_known: weakref.WeakKeyDictionary[nn.Module, tuple[BlockProjections, ...]] = weakref.WeakKeyDictionary()


def projections(model: Model) -> tuple[BlockProjections, ...]:
    """The projections of every block.

    Raises:
        InputError: the model is no decoder of one stack, or its stream is no sum of parts each of which reads it
            through one norm: post-norm blocks, norms or factors on what a part writes, queries or keys normed over all
            heads.
    """
    found = _known.get(model.module)
    if found is None:
        layout = Layout.of(model)
        found = _known[model.module] = _Probe(model, layout).blocks()
    return found


class _Probe:
    """One pass over a few tokens that keeps what every module of the blocks is given and gives."""

    def __init__(self, model: Model, layout: Layout) -> None:
        self.model, self.layout, self.tower = model, layout, model.tower
        ids = torch.arange(1, 1 + min(TOKENS, model.context or TOKENS))[None] % int(model.config.vocab_size)
        self.given: dict[nn.Module, Tensor] = {}
        self.gave: dict[nn.Module, Tensor] = {}
        row = self.tower.stack.block
        self.linear = [_linear(b, row.attn or "", row.attn_proj or "") for b in self.tower.blocks]
        self.leaves = {m for each in self.linear for m in each}
        parts = (*SITES, *(f"attn.{kind}" for kind in KINDS))
        sites = [name for name, site in model.anatomy.sites.items() if site.part in parts and site.layer is not None]
        with ExitStack() as stack:
            for block in self.tower.blocks:
                for module in block.modules():
                    stack.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(self._after).remove)
            self.rec = model.record(ids, sites, grad=True)

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        value = taps.first_tensor(args)
        value = value if value is not None else kwargs.get("hidden_states")
        if isinstance(value, Tensor):
            # A copy: some models change the stream in place afterwards.
            self.given.setdefault(module, value.detach().clone())

    def _after(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        value = taps.first_tensor(output)
        if value is None:
            return None
        if module in self.leaves:
            # A leaf of its own, so that a head's dependence on its units can be read off by autograd.
            output = value.detach().requires_grad_()
            self.gave.setdefault(module, output)
            return output
        self.gave.setdefault(module, value.detach().clone())
        return None

    def blocks(self) -> tuple[BlockProjections, ...]:
        """Find and check every block."""
        return tuple(self._block(i) for i in range(self.layout.n_layers))

    def _block(self, i: int) -> BlockProjections:
        block, row = self.tower.blocks[i], self.tower.stack.block
        attn, proj = block.get_submodule(row.attn or ""), block.get_submodule(row.attn_proj or "")
        stream = self.rec[f"blocks.{i}.resid_pre"]
        middle = stream if self.layout.parallel else self.rec[f"blocks.{i}.resid_mid"]
        if not _is_linear(proj):
            raise self._refusal(i, f"its output projection is a {type(proj).__name__}, not a plain linear map")
        linear = [m for m in self.linear[i] if m in self.gave]
        maps = {kind: self._map(i, kind, linear) for kind in KINDS}
        heads = self.rec[f"blocks.{i}.attn.z"]
        units = torch.arange(heads.shape[-2] * heads.shape[-1]).view(heads.shape[-2:])
        norm = self._norm(i, [m.module for m in maps.values()], stream, "attention")
        mlp_norm, mlp = self._mlp(i, block, attn, middle)
        found = BlockProjections(norm, *maps.values(), HeadMap(proj, units, out=False), mlp_norm, mlp)
        self._check_sums(i, found)
        return found

    def _map(self, i: int, kind: str, linear: list[nn.Module]) -> HeadMap:
        """The module and the units that each head of a kind depends on."""
        site = self.rec[f"blocks.{i}.attn.{kind}"]
        inputs = [self.gave[m] for m in linear]
        units: list[Tensor] = []
        chosen: list[int] = []
        for head in range(site.shape[-2]):
            value = (
                site[:, :, head].float() * torch.randn(site.shape[-1], generator=_fixed(head)).to(site.device)
            ).sum()
            found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
            hit = [n for n, g in enumerate(found) if g is not None and bool(g.any())]
            if len(hit) != 1:
                raise self._refusal(i, f"head {head}'s {kind} comes from {len(hit)} linear maps")
            chosen.append(hit[0])
            gradient = found[hit[0]]
            assert gradient is not None
            units.append(gradient.flatten(0, -2).abs().amax(0).nonzero().flatten().cpu())
        sizes = {len(u) for u in units}
        if len(set(chosen)) != 1 or len(sizes) != 1 or len(torch.cat(units).unique()) != sum(map(len, units)):
            raise self._refusal(i, f"heads share the units behind their {kind} (a norm over all heads?)")
        return HeadMap(linear[chosen[0]], torch.stack(units))

    def _norm(self, i: int, readers: list[nn.Module], stream: Tensor, what: str) -> nn.Module | None:
        """The module between the stream and its readers; None if they read the stream itself."""
        seen = [self.given[m] for m in readers]
        if any(not _same(s, seen[0]) for s in seen):
            raise self._refusal(i, f"the parts of {what} read different inputs")
        if _same(seen[0], stream):
            return None
        for module in self.tower.blocks[i].modules():
            if module in self.gave and _same(self.gave[module], seen[0]) and module in self.given:
                if _same(self.given[module], stream):
                    return module
                break
        raise self._refusal(i, f"{what} does not read the stream through one norm")

    def _mlp(
        self, i: int, block: nn.Module, attn: nn.Module, stream: Tensor
    ) -> tuple[nn.Module | None, tuple[nn.Module, ...]]:
        """The MLP's norm, and the outermost modules beside attention that read what it gives."""
        row, inside = self.tower.stack.block, set(attn.modules())
        first = [block.get_submodule(p) for p in (row.pre, row.gate) if p]
        if not first:
            # Experts: their own container reads the normed stream.
            first = [block.get_submodule(row.mlp_out or "")]
        norm = self._norm(i, list(dict.fromkeys(first)), stream, "the MLP")
        seen = self.given[first[0]]
        readers = [m for m in block.modules() if m in self.given and _same(self.given[m], seen)]
        readers = [m for m in readers if m is not block and m is not norm and m not in inside]
        outer = [m for m in readers if not any(m is not o and m in set(o.modules()) for o in readers)]
        return norm, tuple(outer)

    def _check_sums(self, i: int, found: BlockProjections) -> None:
        """The stream is what enters the block plus what attention and the MLP add, and attention adds its heads."""
        at = {part: self.rec[f"blocks.{i}.{part}"].detach() for part in SITES if self.model.has(f"blocks.{i}.{part}")}
        # The copy: Falcon adds to the MLP's output in place.
        at["mlp.out"] = self.gave[self.tower.blocks[i].get_submodule(self.tower.stack.block.mlp_out or "")]
        heads = torch.einsum("bshd,hdm->bsm", at["attn.z"], found.out.weight.detach().to(at["attn.z"]))
        bias = found.out.bias
        added = heads if bias is None else heads + bias.detach()
        if not _close(added, at["attn.out"]):
            raise self._refusal(i, "what attention adds to the stream is not the sum of its heads")
        if "resid_mid" in at and not _close(at["resid_pre"] + at["attn.out"], at["resid_mid"]):
            raise self._refusal(i, "the stream after attention is not the sum of what was added")
        if not _close(at["resid_pre"] + at["attn.out"] + at["mlp.out"], at["resid_post"]):
            raise self._refusal(i, "the stream after the block is not the sum of what was added")
        for kind in KINDS:
            part, source = found[kind], self.given[found[kind].module].detach()
            value = torch.einsum("bsm,hdm->bshd", source, part.weight.detach())
            value = value if part.bias is None else value + part.bias.detach()
            gave = self.gave[part.module].detach()[..., part.units.to(value.device)]
            if not _close(value, gave):
                raise self._refusal(i, f"its {kind} projection does more than a linear map")

    def _refusal(self, i: int, why: str) -> InputError:
        return InputError(
            f"block {i} of {self.model.name}: {why}; edges need a pre-norm transformer whose stream is a sum of parts"
        )


SITES = ("resid_pre", "attn.z", "attn.out", "resid_mid", "mlp.out", "resid_post")


def _fixed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _linear(block: nn.Module, attn: str, proj: str) -> list[nn.Module]:
    """The linear maps of a block's attention but the output projection."""
    return [m for m in block.get_submodule(attn).modules() if _is_linear(m) and m is not block.get_submodule(proj)]


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear map whose weight is at hand as numbers: not quantised."""
    return is_linear(module) and isinstance(module.weight, Tensor) and module.weight.is_floating_point()


def _same(a: Tensor, b: Tensor) -> bool:
    """The same numbers, whatever their shape."""
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-4 if torch.finfo(b.dtype).bits >= 32 else 5e-2
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= tolerance * (1 + b.abs().max()))
