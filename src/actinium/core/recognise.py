"""Find the standard names in a transformer that has no row in the family table, from its structure.

It is done only where it is unambiguous: one list of alike blocks, each with one attention-like and one MLP-like child.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from actinium.core.families import Block, Stack

__all__ = ["recognise"]

ATTENTION = ("self_attn", "attn", "attention", "self_attention", "mixer")
PROJECTION = ("o_proj", "out_proj", "c_proj", "dense", "proj", "wo", "to_out")
MLP = ("mlp", "feed_forward", "ffn", "ff", "feedforward")
GATED = (("gate_proj", "up_proj"), ("w1", "w3"), ("wi_0", "wi_1"))
INTO = ("fc1", "c_fc", "up_proj", "dense_h_to_4h", "fc_in", "wi", "linear1", "lin1", "w1")
OUT_OF = ("fc2", "down_proj", "c_proj", "dense_4h_to_h", "fc_out", "wo", "linear2", "lin2", "w2")
# A block that normalises what it reads adds its halves' outputs as they are; one that normalises or scales what it
# writes does not, and then nothing is offered under those names.
FIRST_NORM = ("input_layernorm", "ln_1", "norm1", "norm", "attention_norm", "layernorm_before", "layer_norm1", "norm_1")
SECOND_NORM = ("post_attention_layernorm", "ln_2", "norm2", "layernorm_after", "layer_norm2", "norm_2", "ffn_norm")
EMBED = (
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "embeddings",
    "embed",
    "embedding",
)
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layernorm", "final_norm")


def _child(module: nn.Module, names: tuple[str, ...]) -> str | None:
    have = dict(module.named_children())
    return next((n for n in names if n in have), None)


def _adds_plainly(block: nn.Module, config: Any) -> bool:
    """Whether the block's norms and its configuration say that it adds its halves' outputs as they are."""
    norms = {n for n, _ in block.named_children() if "norm" in n.lower() or n.startswith("ln_")}
    plain = bool(norms & set(FIRST_NORM)) and norms <= {*FIRST_NORM, *SECOND_NORM} and len(norms) <= 2
    return plain and getattr(config, "residual_multiplier", 1.0) in (None, 1, 1.0)


def _block(block: nn.Module, config: Any) -> Block | None:
    attn, mlp = _child(block, ATTENTION), _child(block, MLP)
    if attn is None or mlp is None:
        return None
    inner = block.get_submodule(mlp)
    projection = _child(block.get_submodule(attn), PROJECTION)
    gated = next((pair for pair in GATED if all(hasattr(inner, n) for n in pair)), None)
    into = _child(inner, INTO)
    post = _child(inner, OUT_OF)
    plain = _adds_plainly(block, config)
    return Block(
        attn=attn,
        attn_proj=f"{attn}.{projection}" if projection else None,
        attn_out=attn if plain else None,
        # Where the second norm stands decides whether the stream can be read between the halves; a parallel block
        # also may own one, so it is offered only by the self-check of `Model`, not here.
        mid=None,
        gate=f"{mlp}.{gated[0]}" if gated else None,
        pre=f"{mlp}.{gated[1]}" if gated else (f"{mlp}.{into}" if into else None),
        post=f"{mlp}.{post}" if post else None,
        mlp_out=mlp if plain else None,
    )


def recognise(base: nn.Module, whole: nn.Module | None = None) -> Stack | None:
    """The tower of an unknown transformer, or None where it is not plain which it is.

    Args:
        base: the module to search.
        whole: the model it belongs to; its class says whether it predicts the next token if its attention does not.
    """
    found: list[tuple[str, Block]] = []
    for path, module in base.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        if len({type(b) for b in module}) != 1:
            continue
        block = _block(module[0], getattr(base, "config", None))
        if block is not None:
            found.append((path, block))
    if len(found) != 1:
        return None
    path, block = found[0]
    parent = path.rpartition(".")[0]
    holder = base.get_submodule(parent)
    prefix = f"{parent}." if parent else ""
    embed, norm = _child(holder, EMBED), _child(holder, FINAL_NORM)
    attention = base.get_submodule(path)[0].get_submodule(block.attn or "")  # type: ignore[index]
    name = type(whole if whole is not None else base).__name__
    causal = getattr(attention, "is_causal", None)
    return Stack(
        path,
        block,
        embed=prefix + embed if embed else None,
        final_norm=prefix + norm if norm else None,
        causal=bool(causal) if causal is not None else ("CausalLM" in name or "LMHead" in name),
        calls="interface" if hasattr(attention, "config") else "operations",
        copies=True,
    )
