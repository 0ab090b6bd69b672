"""Which sites a module has, and how each is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from actinium.core.families import Block, Family, Stack
from actinium.core.family_table import family_of
from actinium.core.recognise import recognise
from actinium.core.sites import Site
from actinium.core.taps import Tap

__all__ = ["Anatomy", "Tower", "anatomy_of"]


@dataclass(frozen=True, eq=False)
class Tower:
    """One tower of blocks in a concrete model.

    Attributes:
        stack: its row of the family table.
        base: the module that the row's paths start from.
        root: the module that receives its mask and cache.
        blocks: the blocks, in order.
        heads, kv_heads: numbers of query and of key/value heads.
        d_model, d_head, d_mlp: sizes, 0 where the tower has no such thing or it is not known.
    """

    stack: Stack
    base: nn.Module
    root: nn.Module
    blocks: tuple[nn.Module, ...]
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int

    def part(self, path: str | None) -> nn.Module | None:
        """The module at a path of the row, or None."""
        return _get(self.base, path)

    @property
    def prefix(self) -> str:
        """What stands before the names of its sites."""
        return f"{self.stack.name}." if self.stack.name else ""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The sites of a model and the taps behind them.

    Attributes:
        family: its row of the table, or None.
        towers: its towers; empty for a module that is no known transformer.
        sites: standard sites by name, in the order of computation.
        taps: the tap of each.
    """

    family: Family | None
    towers: tuple[Tower, ...]
    sites: dict[str, Site]
    taps: dict[str, Tap]

    def absent(self, name: str) -> str:
        """A sentence that says what this architecture has in place of a standard site it lacks, or nothing."""
        if not self.sites:
            return "This module has no standard sites; address its modules as 'module:<path>'."
        parts = list(dict.fromkeys(s.part for s in self.sites.values() if s.layer is not None))
        wanted = name.rpartition("blocks.")[2].partition(".")[2]
        if not parts or not wanted or wanted in parts:
            return ""
        kind = self.family.name if self.family else "this architecture"
        return f"Blocks of {kind} here have: {', '.join(parts)}."


def _get(module: nn.Module, path: str | None) -> nn.Module | None:
    if path is None:
        return None
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _first(config: Any, *names: str, default: int = 0) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default


def _width(module: nn.Module | None, out: bool = True) -> int:
    """Size of a linear map's output (or input); Conv1D of GPT-2 keeps them the other way round."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 2:
        return 0
    return int(weight.shape[1] if out == (type(module).__name__ == "Conv1D") else weight.shape[0])


def _tower(module: nn.Module, base: nn.Module, stack: Stack, config: Any) -> Tower | None:
    blocks = _get(base, stack.blocks)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        return None
    if stack.name in ("vision", "text"):
        config = getattr(config, f"{stack.name}_config", config)
    row, first = stack.block, blocks[0]
    d_model = _first(config, "hidden_size", "n_embd", "d_model", "embed_dim", "dim")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    attn = _get(first, row.attn)
    if attn is not None and not heads:
        heads = _first(attn, "num_heads", "n_heads", "num_attention_heads")
    width = _width(_get(first, row.attn_proj), out=False)
    d_head = _first(config, "head_dim", "d_kv", default=_first(attn, "head_dim")) or (width // heads if heads else 0)
    if width and heads and d_head * heads != width:
        d_head = width // heads
    kv_heads = _first(config, "num_key_value_heads", default=heads)
    if stack.calls == "operations":
        multi = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)
        kv_heads = 1 if multi else heads
    d_mlp = _width(_get(first, row.post), out=False)
    root = _get(base, stack.root) if stack.root else module
    return Tower(stack, base, root or module, tuple(blocks), heads, kv_heads, d_model, d_head, d_mlp)


def _block_sites(tower: Tower, i: int) -> Iterator[tuple[Site, Tap]]:
    stack, block = tower.stack, tower.blocks[i]
    row: Block = stack.block
    stream = {"d_model": tower.d_model} if tower.d_model else {}
    heads = {"head": tower.heads, "d_head": tower.d_head}
    mlp = {"d_mlp": tower.d_mlp} if tower.d_mlp else {}

    def site(part: str, dims: str, sizes: dict[str, int]) -> Site:
        name = f"{tower.prefix}blocks.{i}.{part}"
        return Site(name, tuple(dims.split()), sizes, i, part, stack.name)

    def tap(module: nn.Module, kind: Any, **more: Any) -> Tap:
        return Tap(module, kind, root=tower.root, copies=stack.copies, **more)

    def attention(prefix: str, path: str | None, projection: str | None) -> Iterator[tuple[Site, Tap]]:
        module, out = _get(block, path), _get(block, projection)
        if module is not None and tower.heads:
            kv = {"kv_head": tower.kv_heads, "d_head": tower.d_head}
            keys = "key_pos" if prefix == "cross_attn" else "pos"
            for part, dims, sizes in (
                ("q", "batch pos head d_head", heads),
                ("k", f"batch {keys} kv_head d_head", kv),
                ("v", f"batch {keys} kv_head d_head", kv),
                ("scores", "batch head query key", {"head": tower.heads}),
                ("pattern", "batch head query key", {"head": tower.heads}),
            ):
                yield site(f"{prefix}.{part}", dims, sizes), tap(module, "attention", part=part)
        if out is not None and tower.heads:
            yield site(f"{prefix}.z", "batch pos head d_head", heads), tap(out, "input", heads=tower.heads)

    plain = "batch pos d_model"
    yield site("resid_pre", plain, stream), tap(block, "input")
    yield from attention("attn", row.attn, row.attn_proj)
    attn_out = _get(block, row.attn_out)
    if attn_out is not None:
        yield site("attn.out", plain, stream), tap(attn_out, "output")
    mixer = _get(block, row.mixer)
    if mixer is not None:
        yield site("mixer.out", plain, stream), tap(mixer, "output")
    mid = _get(block, row.mid)
    if mid is not None:
        yield site("resid_mid", plain, stream), tap(mid, "output" if row.mid_after else "stream")
    cross = _get(block, row.cross)
    if cross is not None:
        yield from attention("cross_attn", row.cross, row.cross_proj)
        yield site("cross_attn.out", plain, stream), tap(cross, "output")
        after = _get(block, row.cross_after)
        if after is not None:
            yield site("resid_cross", plain, stream), tap(after, "output")
    gate, pre, post = _get(block, row.gate), _get(block, row.pre), _get(block, row.post)
    if pre is not None:
        half = 1 if row.fused else None
        yield site("mlp.pre", "batch pos d_mlp", mlp), tap(pre, "output", half=half)
    if gate is not None:
        yield site("mlp.gate", "batch pos d_mlp", mlp), tap(gate, "output", half=0 if row.fused else None)
    if post is not None:
        yield site("mlp.post", "batch pos d_mlp", mlp), tap(post, "input")
    mlp_out = _get(block, row.mlp_out)
    if mlp_out is not None:
        yield site("mlp.out", plain, stream), tap(mlp_out, "output")
    yield site("resid_post", plain, stream), tap(block, "output")


def _logits_dims(module: nn.Module) -> tuple[str, ...] | None:
    name = type(module).__name__
    if "ImageClassification" in name or "SequenceClassification" in name:
        return ("batch", "class")
    if "TokenClassification" in name:
        return ("batch", "pos", "class")
    if any(word in name for word in ("LMHead", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")):
        return ("batch", "pos", "d_vocab")
    head = getattr(module, "get_output_embeddings", lambda: None)()
    return ("batch", "pos", "d_vocab") if head is not None else None


def anatomy_of(module: nn.Module) -> Anatomy:
    """Work out the standard sites of a module; none for a module that is no transformer we can read."""
    config = getattr(module, "config", None)
    family = family_of(config)
    base = getattr(module, getattr(module, "base_model_prefix", "") or "", None)
    base = base if isinstance(base, nn.Module) else module
    if family is not None:
        stacks = family.stacks_for(config)
    else:
        found = recognise(base, module)
        stacks = (found,) if found else ()
    towers = tuple(t for t in (_tower(module, base, s, config) for s in stacks) if t is not None)
    sites: dict[str, Site] = {}
    taps: dict[str, Tap] = {}

    def add(site: Site, tap: Tap) -> None:
        sites[site.name], taps[site.name] = site, tap

    for tower in towers:
        stack, sizes = tower.stack, {"d_model": tower.d_model}
        embed, norm = tower.part(stack.embed), tower.part(stack.final_norm)
        if embed is not None:
            site = Site(f"{tower.prefix}embed", ("batch", "pos", "d_model"), {}, None, "embed", stack.name)
            add(site, Tap(embed, "output", root=tower.root, copies=stack.copies))
        for i in range(len(tower.blocks)):
            for site, tap in _block_sites(tower, i):
                add(site, tap)
        if norm is not None:
            pooled = stack.name == "vision"
            shape = ("batch", "d_model") if pooled else ("batch", "pos", "d_model")
            site = Site(f"{tower.prefix}final_norm", shape, sizes, None, "final_norm", stack.name)
            add(site, Tap(norm, "output", root=tower.root, sequence=not pooled, copies=stack.copies))
    dims = _logits_dims(module) if towers else None
    if dims:
        vocab = _first(config, "vocab_size") if "d_vocab" in dims else _first(config, "num_labels")
        name = dims[-1]
        root = towers[-1].root
        add(
            Site("logits", dims, {name: vocab} if vocab else {}, None, "logits"),
            Tap(module, "logits", root=root, sequence="pos" in dims),
        )
    return Anatomy(family, towers, sites, taps)
