"""Where the standard names live in each architecture: one row per family.

To add a family, add a row; a test builds every row from a tiny random configuration and checks each site against an
independent recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from actinium.core.families import Block, Family, Stack

__all__ = ["FAMILIES", "family_of"]


def _parallel(flag: Callable[[Any], bool]) -> Callable[[Any, Stack], Stack]:
    """Drops `resid_mid` where attention and MLP read the same stream."""
    return lambda config, stack: replace(stack, block=replace(stack.block, mid=None)) if flag(config) else stack


def _opt(config: Any, stack: Stack) -> Stack:
    """OPT-350m normalises after the addition: the stream between the halves is the first norm's output."""
    if config.do_layer_norm_before:
        return stack
    return replace(stack, block=replace(stack.block, mid="self_attn_layer_norm", mid_after=True))


LLAMA_BLOCK = Block(
    attn="self_attn",
    attn_proj="self_attn.o_proj",
    attn_out="self_attn",
    mid="post_attention_layernorm",
    gate="mlp.gate_proj",
    pre="mlp.up_proj",
    post="mlp.down_proj",
    mlp_out="mlp",
)
LLAMA = Stack("layers", LLAMA_BLOCK, embed="embed_tokens", final_norm="norm")
SANDWICH = replace(
    LLAMA,
    block=replace(
        LLAMA_BLOCK,
        attn_out="post_attention_layernorm",
        mid="pre_feedforward_layernorm",
        mlp_out="post_feedforward_layernorm",
    ),
)
EXPERTS = replace(LLAMA, block=replace(LLAMA_BLOCK, gate=None, pre=None, post=None))
BERT_BLOCK = Block(
    attn="attention.self",
    attn_proj="attention.output.dense",
    attn_out="attention.output.dense",
    mid="attention",
    mid_after=True,
    pre="intermediate.dense",
    post="output.dense",
    mlp_out="output.dense",
)
CLIP_BLOCK = Block(
    attn="self_attn",
    attn_proj="self_attn.out_proj",
    attn_out="self_attn",
    mid="layer_norm2",
    pre="mlp.fc1",
    post="mlp.fc2",
    mlp_out="mlp",
)


def _t5(name: str, feed_forward: int, **cross: str) -> Stack:
    block = Block(
        attn="layer.0.SelfAttention",
        attn_proj="layer.0.SelfAttention.o",
        attn_out="layer.0.SelfAttention",
        mid="layer.0",
        mid_after=True,
        gate=f"layer.{feed_forward}.DenseReluDense.wi_0",
        pre=f"layer.{feed_forward}.DenseReluDense.wi_1",
        post=f"layer.{feed_forward}.DenseReluDense.wo",
        mlp_out=f"layer.{feed_forward}.DenseReluDense",
        **cross,  # type: ignore[arg-type]
    )
    return Stack(
        f"{name}.block",
        block,
        embed=f"{name}.embed_tokens",
        final_norm=f"{name}.final_layer_norm",
        name=name,
        root=name,
        causal=name == "decoder",
    )


def _t5_plain(config: Any, stack: Stack) -> Stack:
    """The first T5 has a plain MLP whose only input map is `wi`."""
    if getattr(config, "is_gated_act", False):
        return stack
    pre = (stack.block.pre or "").replace("wi_1", "wi")
    return replace(stack, block=replace(stack.block, gate=None, pre=pre))


FAMILIES: tuple[Family, ...] = (
    Family(
        "GPT-2",
        ("gpt2",),
        (
            Stack(
                "h",
                Block(
                    attn="attn",
                    attn_proj="attn.c_proj",
                    attn_out="attn",
                    mid="ln_2",
                    pre="mlp.c_fc",
                    post="mlp.c_proj",
                    mlp_out="mlp",
                ),
                embed="wte",
                final_norm="ln_f",
            ),
        ),
    ),
    Family(
        "GPT-NeoX",
        ("gpt_neox",),
        (
            Stack(
                "layers",
                Block(
                    attn="attention",
                    attn_proj="attention.dense",
                    attn_out="attention",
                    mid="post_attention_layernorm",
                    pre="mlp.dense_h_to_4h",
                    post="mlp.dense_4h_to_h",
                    mlp_out="mlp",
                ),
                embed="embed_in",
                final_norm="final_layer_norm",
            ),
        ),
        _parallel(lambda config: config.use_parallel_residual),
    ),
    Family(
        "GPT-J",
        ("gptj",),
        (
            Stack(
                "h",
                Block(
                    attn="attn",
                    attn_proj="attn.out_proj",
                    attn_out="attn",
                    pre="mlp.fc_in",
                    post="mlp.fc_out",
                    mlp_out="mlp",
                ),
                embed="wte",
                final_norm="ln_f",
                calls="operations",
            ),
        ),
    ),
    Family(
        "OPT",
        ("opt",),
        (
            Stack(
                "decoder.layers",
                Block(
                    attn="self_attn",
                    attn_proj="self_attn.out_proj",
                    attn_out="self_attn",
                    mid="final_layer_norm",
                    pre="fc1",
                    post="fc2",
                    mlp_out="fc2",
                ),
                embed="decoder.embed_tokens",
                final_norm="decoder.final_layer_norm",
            ),
        ),
        _opt,
    ),
    Family(
        "BLOOM",
        ("bloom",),
        (
            Stack(
                "h",
                Block(
                    attn="self_attention",
                    attn_proj="self_attention.dense",
                    attn_out="self_attention.dense",
                    mid="post_attention_layernorm",
                    pre="mlp.dense_h_to_4h",
                    post="mlp.dense_4h_to_h",
                    mlp_out="mlp.dense_4h_to_h",
                ),
                embed="word_embeddings",
                final_norm="ln_f",
                calls="operations",
            ),
        ),
    ),
    Family("Llama", ("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "ministral"), (LLAMA,)),
    Family("Gemma 2/3", ("gemma2", "gemma3_text"), (SANDWICH,)),
    Family(
        "Phi-3",
        ("phi3",),
        (
            replace(
                LLAMA,
                block=replace(LLAMA_BLOCK, gate="mlp.gate_up_proj", pre="mlp.gate_up_proj", fused=True),
            ),
        ),
    ),
    Family("mixture of experts", ("mixtral", "qwen2_moe", "qwen3_moe"), (EXPERTS,)),
    Family(
        "Phi",
        ("phi",),
        (
            Stack(
                "layers",
                Block(
                    attn="self_attn",
                    attn_proj="self_attn.dense",
                    attn_out="self_attn",
                    pre="mlp.fc1",
                    post="mlp.fc2",
                    mlp_out="mlp",
                ),
                embed="embed_tokens",
                final_norm="final_layernorm",
            ),
        ),
    ),
    Family(
        "Falcon",
        ("falcon",),
        (
            Stack(
                "h",
                Block(
                    attn="self_attention",
                    attn_proj="self_attention.dense",
                    attn_out="self_attention",
                    mid="post_attention_layernorm",
                    pre="mlp.dense_h_to_4h",
                    post="mlp.dense_4h_to_h",
                    mlp_out="mlp",
                ),
                embed="word_embeddings",
                final_norm="ln_f",
                calls="operations",
                copies=True,
            ),
        ),
        _parallel(lambda config: config.parallel_attn or config.new_decoder_architecture),
    ),
    Family(
        "MPT",
        ("mpt",),
        (
            Stack(
                "blocks",
                Block(
                    attn="attn",
                    attn_proj="attn.out_proj",
                    attn_out="attn",
                    mid="norm_2",
                    pre="ffn.up_proj",
                    post="ffn.down_proj",
                    mlp_out="ffn.down_proj",
                ),
                embed="wte",
                final_norm="norm_f",
                calls="operations",
                untiled=("position_bias",),
            ),
        ),
    ),
    Family(
        "Mamba",
        ("mamba", "falcon_mamba"),
        (Stack("layers", Block(mixer="mixer"), embed="embeddings", final_norm="norm_f", calls="operations"),),
    ),
    Family(
        "BERT",
        ("bert", "roberta", "xlm-roberta", "electra"),
        (Stack("encoder.layer", BERT_BLOCK, embed="embeddings", causal=False),),
    ),
    Family(
        "T5",
        ("t5", "mt5", "umt5"),
        (
            _t5("encoder", 1),
            _t5(
                "decoder",
                2,
                cross="layer.1.EncDecAttention",
                cross_proj="layer.1.EncDecAttention.o",
                cross_after="layer.1",
            ),
        ),
        _t5_plain,
    ),
    Family(
        "ViT",
        ("vit", "deit"),
        (
            Stack(
                "layers",
                Block(
                    attn="attention",
                    attn_proj="attention.o_proj",
                    attn_out="attention",
                    mid="layernorm_after",
                    pre="mlp.fc1",
                    post="mlp.fc2",
                    mlp_out="mlp",
                ),
                embed="embeddings",
                final_norm="layernorm",
                causal=False,
            ),
        ),
    ),
    Family(
        "DINOv2",
        ("dinov2", "dinov2_with_registers"),
        (
            Stack(
                "encoder.layer",
                Block(
                    attn="attention",
                    attn_proj="attention.o_proj",
                    attn_out="layer_scale1",
                    mid="norm2",
                    pre="mlp.fc1",
                    post="mlp.fc2",
                    mlp_out="layer_scale2",
                ),
                embed="embeddings",
                final_norm="layernorm",
                causal=False,
            ),
        ),
    ),
    Family(
        "CLIP vision",
        ("clip_vision_model",),
        (Stack("encoder.layers", CLIP_BLOCK, embed="embeddings", causal=False),),
    ),
    Family(
        "CLIP",
        ("clip",),
        (
            Stack(
                "vision_model.encoder.layers",
                CLIP_BLOCK,
                embed="vision_model.embeddings",
                name="vision",
                root="vision_model",
                causal=False,
            ),
            Stack(
                "text_model.encoder.layers",
                CLIP_BLOCK,
                embed="text_model.embeddings",
                final_norm="text_model.final_layer_norm",
                name="text",
                root="text_model",
            ),
        ),
    ),
)


def family_of(config: Any) -> Family | None:
    """The row of a configuration's `model_type`, or None."""
    kind = getattr(config, "model_type", None)
    return next((f for f in FAMILIES if kind in f.types), None)
