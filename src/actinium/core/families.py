"""The shape of a row of the family table: where the standard names live in an architecture.

Paths are relative to the base model (`gpt2.transformer`), those of a block to the block. A path that a model does
not have is simply not offered, so a row may name what only some members of its family own. The rows themselves are in
`family_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Block", "Family", "Stack"]


@dataclass(frozen=True)
class Block:
    """Paths within one block.

    Attributes:
        attn: the module whose forward computes the attention.
        attn_proj: the output projection; its input is `attn.z`.
        attn_out: the module whose output is added to the residual stream.
        mid: the module at which `resid_mid` is read; its input, or its output if `mid_after`.
        pre, gate: the linear maps into the MLP; of a gated MLP `gate` goes through the non-linearity.
        post: the linear map out of the MLP; its input is `mlp.post`.
        mlp_out: the module whose output is added to the residual stream.
        cross, cross_proj, cross_after: the same for attention to an encoder, and where the stream is read after it.
        mixer: a token mixer that is not attention.
        fused: `pre` and `gate` are the halves of one map's output (gate first).
    """

    attn: str | None = None
    attn_proj: str | None = None
    attn_out: str | None = None
    mid: str | None = None
    mid_after: bool = False
    pre: str | None = None
    gate: str | None = None
    post: str | None = None
    mlp_out: str | None = None
    cross: str | None = None
    cross_proj: str | None = None
    cross_after: str | None = None
    mixer: str | None = None
    fused: bool = False


@dataclass(frozen=True)
class Stack:
    """One tower of blocks.

    Attributes:
        blocks: path of the list of blocks.
        block: what is in a block.
        embed, final_norm: paths of the modules whose outputs carry these names.
        name: prefix of its sites, empty for the only tower.
        root: path of the module that receives the tower's mask and cache, relative to the whole model.
        causal: whether a position sees only those before it.
        calls: how attention is computed: "interface" for transformers' attention interface, "operations" for code
            of its own, whose products and softmax are watched.
        copies: whether recorded tensors must be copied because the model changes them in place later.
        untiled: block arguments without a batch dimension.
    """

    blocks: str
    block: Block
    embed: str | None = None
    final_norm: str | None = None
    name: str = ""
    root: str = ""
    causal: bool = True
    calls: str = "interface"
    copies: bool = False
    untiled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of architectures that share their module names.

    Attributes:
        name: the family's name.
        types: `config.model_type` of its members.
        stacks: its towers.
        adapt: changes a stack for one configuration (parallel blocks, post-norm).
    """

    name: str
    types: tuple[str, ...]
    stacks: tuple[Stack, ...]
    adapt: Callable[[Any, Stack], Stack] | None = None

    def stacks_for(self, config: Any) -> tuple[Stack, ...]:
        """The towers of one configuration."""
        return tuple(self.adapt(config, s) for s in self.stacks) if self.adapt else self.stacks
