"""The equations of the causal language models, one class for each way in which a family differs."""

from __future__ import annotations

import math
from typing import Any

import torch
from references import Reference, rotated
from torch import Tensor, nn
from torch.nn import functional as F


def fused(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a joint projection in which each head keeps its q, k and v side by side."""
    return x.unflatten(-1, (heads, 3, -1)).unbind(-2)


class Plain(Reference):
    """A plain MLP between two linear maps."""

    into, out_of = "mlp.fc1", "mlp.fc2"

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        pre = self.blocks[i].get_submodule(self.into)(h)
        post = self.activation(pre)
        return {"pre": pre, "post": post, "out": self.blocks[i].get_submodule(self.out_of)(post)}


class Unrotated(Plain):
    def rotate(self, i: int, x: Tensor) -> Tensor:
        return x


class GPT2(Unrotated):
    final, attn_norm, mlp_norm, into, out_of = "ln_f", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"
    attn_module, projection = "attn", "c_proj"

    @property
    def blocks(self) -> Any:
        return self.base.h

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.base.wte.weight)

    def stream(self, embed: Tensor) -> Tensor:
        return embed + self.base.wpe.weight[: embed.shape[1]]

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = self.blocks[i].attn.c_attn
        return tuple(p.unflatten(-1, (self.heads, -1)) for p in (h @ joint.weight + joint.bias).chunk(3, -1))


class NeoX(Plain):
    final, into, out_of = "final_layer_norm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    attn_module, projection = "attention", "dense"

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__(module, inputs)
        self.style = "parallel" if self.config.use_parallel_residual else "sequential"

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.base.embed_in.weight)

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fused(self.blocks[i].attention.query_key_value(h), self.heads)


class GPTJ(Plain):
    style, final, attn_norm, mlp_norm, into, out_of = "parallel", "ln_f", "ln_1", "ln_1", "mlp.fc_in", "mlp.fc_out"
    attn_module, projection = "attn", "out_proj"
    blocks, embed = GPT2.blocks, GPT2.embed

    def rotate(self, i: int, x: Tensor) -> Tensor:
        return rotated(x, 10000.0, self.config.rotary_dim, interleaved=True)


class OPT(Unrotated):
    attn_norm, mlp_norm, into, out_of, projection = "self_attn_layer_norm", "final_layer_norm", "fc1", "fc2", "out_proj"

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__(module, inputs)
        self.base = module.model.decoder
        after = not self.config.do_layer_norm_before
        self.style, self.final = ("post-norm", None) if after else ("sequential", "final_layer_norm")

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(i, h)
        return q * q.shape[-1] ** -0.5, k, v

    def scale(self, i: int, d_head: int) -> float:
        return 1.0  # the query carries it

    def stream(self, embed: Tensor) -> Tensor:
        wide = embed if self.base.project_in is None else F.linear(embed, self.base.project_in.weight)
        return wide + self.base.embed_positions.weight[2 : 2 + embed.shape[1]]

    def logits(self, final: Tensor) -> Tensor:
        narrow = final if self.base.project_out is None else F.linear(final, self.base.project_out.weight)
        return F.linear(narrow, self.module.lm_head.weight)


def alibi(heads: int, keys: int) -> Tensor:
    """The linear biases of Press et al. 2022 for a power of two heads: (head, 1, key)."""
    return (2.0 ** (-8.0 / heads * torch.arange(1, heads + 1)))[:, None, None] * torch.arange(keys)


class Bloom(Unrotated):
    final, into, out_of = "ln_f", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    attn_module, projection = "self_attention", "dense"
    blocks = GPT2.blocks

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.base.word_embeddings.weight)

    def stream(self, embed: Tensor) -> Tensor:
        return self.base.word_embeddings_layernorm(embed)

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fused(self.blocks[i].self_attention.query_key_value(h), self.heads)

    def biased(self, i: int, scores: Tensor) -> Tensor:
        return scores + alibi(self.heads, scores.shape[-1])

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class Falcon(Bloom):
    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__(module, inputs)
        new = self.config.new_decoder_architecture
        self.style = "parallel" if new or self.config.parallel_attn else "sequential"
        self.attn_norm = "ln_attn" if new else "input_layernorm"
        self.mlp_norm = "ln_mlp" if new else "input_layernorm"
        if self.style == "sequential":
            self.mlp_norm = "post_attention_layernorm"

    def stream(self, embed: Tensor) -> Tensor:
        return embed

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joint = self.blocks[i].self_attention.query_key_value(h)
        if self.config.new_decoder_architecture:
            # Each group holds its queries, then its key, then its value; the model hands every head its own copy.
            groups = joint.unflatten(-1, (self.config.num_kv_heads, self.heads // self.config.num_kv_heads + 2, -1))
            q, k, v = groups[..., :-2, :], groups[..., -2:-1, :], groups[..., -1:, :]
            return q.flatten(2, 3), k.expand_as(q).flatten(2, 3), v.expand_as(q).flatten(2, 3)
        if self.config.multi_query:
            each = joint.unflatten(-1, (self.heads + 2, -1))
            return each[..., :-2, :], each[..., -2:-1, :], each[..., -1:, :]
        return fused(joint, self.heads)

    def rotate(self, i: int, x: Tensor) -> Tensor:
        return x if self.config.alibi else rotated(x, 10000.0, x.shape[-1])

    def biased(self, i: int, scores: Tensor) -> Tensor:
        if not self.config.alibi:
            return scores
        return scores + alibi(self.heads, scores.shape[-1]) * (self.config.hidden_size // self.heads) ** -0.5

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class MPT(Unrotated):
    final, attn_norm, mlp_norm, into, out_of = "norm_f", "norm_1", "norm_2", "ffn.up_proj", "ffn.down_proj"
    attn_module, projection = "attn", "out_proj"
    embed = GPT2.embed

    @property
    def blocks(self) -> Any:
        return self.base.blocks

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(p.unflatten(-1, (self.heads, -1)) for p in self.blocks[i].attn.Wqkv(h).chunk(3, -1))

    def biased(self, i: int, scores: Tensor) -> Tensor:
        # MPT counts its biases from the last key it could ever have.
        return scores + alibi(self.heads, scores.shape[-1]) - alibi(self.heads, scores.shape[-1])[..., -1:]

    def activation(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class Phi(Plain):
    style, final, mlp_norm, projection = "parallel", "final_layernorm", "input_layernorm", "dense"


class Phi3(Reference):
    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, pairs = self.config.hidden_size // self.heads, self.config.num_key_value_heads
        parts = self.blocks[i].self_attn.qkv_proj(h).unflatten(-1, (-1, size))
        return parts.split([self.heads, pairs, pairs], 2)

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        gate, pre = F.linear(h, self.blocks[i].mlp.gate_up_proj.weight).chunk(2, -1)
        post = F.silu(gate) * pre
        return {"gate": gate, "pre": pre, "post": post, "out": self.blocks[i].mlp.down_proj(post)}


class SmolLM3(Reference):
    def rotate(self, i: int, x: Tensor) -> Tensor:
        return super().rotate(i, x) if self.config.no_rope_layers[i] else x


class QKNorm(Reference):
    """Qwen 3 and Gemma 3 normalise each head's query and key before turning them."""

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(i, h)
        attn = self.blocks[i].self_attn
        return attn.q_norm(q), attn.k_norm(k), v


class Gemma(Reference):
    def embed(self) -> Tensor:
        return super().embed() * math.sqrt(self.config.hidden_size)


class Gemma2(Gemma):
    """Norms on both sides of each half; capped scores and logits."""

    mlp_norm = "pre_feedforward_layernorm"

    def scale(self, i: int, d_head: int) -> float:
        return self.config.query_pre_attn_scalar**-0.5

    def biased(self, i: int, scores: Tensor) -> Tensor:
        cap = self.config.attn_logit_softcapping
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def attn_out(self, i: int, z: Tensor) -> Tensor:
        return self.blocks[i].post_attention_layernorm(super().attn_out(i, z))

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        parts = super().mlp(i, h)
        return {**parts, "out": self.blocks[i].post_feedforward_layernorm(parts["out"])}

    def logits(self, final: Tensor) -> Tensor:
        raw, cap = super().logits(final), self.config.final_logit_softcapping
        return raw if cap is None else torch.tanh(raw / cap) * cap


class Gemma3(Gemma2, QKNorm):
    pass


class Experts(Reference):
    """A router sends each position to its two best experts."""

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        moe = self.blocks[i].mlp
        chances = F.linear(h, moe.gate.weight).softmax(-1)
        best, which = chances.topk(2, -1)
        if getattr(self.config, "norm_topk_prob", True):
            best = best / best.sum(-1, keepdim=True)
        weight = torch.zeros_like(chances).scatter(-1, which, best)
        out = torch.zeros_like(h)
        for e, (both, down) in enumerate(zip(moe.experts.gate_up_proj, moe.experts.down_proj, strict=True)):
            gate, up = F.linear(h, both).chunk(2, -1)
            out = out + weight[..., e : e + 1] * F.linear(F.silu(gate) * up, down)
        if hasattr(moe, "shared_expert"):
            one = moe.shared_expert
            always = one.down_proj(F.silu(one.gate_proj(h)) * one.up_proj(h))
            out = out + torch.sigmoid(moe.shared_expert_gate(h)) * always
        return {"out": out}


class Qwen3Experts(Experts, QKNorm):
    pass


CLASSES: dict[str, type[Reference]] = {
    "gpt2": GPT2,
    "gpt_neox": NeoX,
    "gpt_neox-sequential": NeoX,
    "gptj": GPTJ,
    "opt": OPT,
    "opt-350m": OPT,
    "bloom": Bloom,
    "llama": Reference,
    "mistral": Reference,
    "qwen2": Reference,
    "qwen3": QKNorm,
    "gemma": Gemma,
    "smollm3": SmolLM3,
    "ministral": Reference,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "phi3": Phi3,
    "mixtral": Experts,
    "qwen2_moe": Experts,
    "qwen3_moe": Qwen3Experts,
    "phi": Phi,
    "falcon": Falcon,
    "falcon-new": Falcon,
    "falcon-alibi": Falcon,
    "mpt": MPT,
}
