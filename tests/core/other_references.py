"""The equations of the architectures that are no causal attention models: BERT, T5, vision towers, CLIP, Mamba."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from causal_references import Unrotated
from references import Reference
from torch import Tensor, nn
from torch.nn import functional as F


class Bert(Unrotated):
    style, causal, final = "post-norm", False, None
    attn_norm, mlp_norm = "attention.output.LayerNorm", "output.LayerNorm"
    into, out_of, attn_module, projection = "intermediate.dense", "output.dense", "attention", "output.dense"
    first_position = 0

    @property
    def blocks(self) -> Any:
        return self.base.encoder.layer

    def embed(self) -> Tensor:
        e = self.base.embeddings
        positions = e.position_embeddings.weight[self.first_position :][: self.inputs.shape[1]]
        types = e.token_type_embeddings.weight[0]
        return e.LayerNorm(F.embedding(self.inputs, e.word_embeddings.weight) + positions + types)

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.blocks[i].attention.self
        return tuple(p(h).unflatten(-1, (self.heads, -1)) for p in (attn.query, attn.key, attn.value))

    def logits(self, final: Tensor) -> Tensor:
        head = self.module.cls.predictions
        h = head.transform.LayerNorm(F.gelu(head.transform.dense(final)))
        return F.linear(h, head.decoder.weight, head.decoder.bias)


class Roberta(Bert):
    @property
    def first_position(self) -> int:
        return self.config.pad_token_id + 1

    def logits(self, final: Tensor) -> Tensor:
        head = self.module.lm_head
        return F.linear(head.layer_norm(F.gelu(head.dense(final))), head.decoder.weight, head.decoder.bias)


class Electra(Bert):
    def stream(self, embed: Tensor) -> Tensor:
        return self.base.embeddings_project(embed)

    def logits(self, final: Tensor) -> Tensor:
        head = self.module.generator_predictions
        h = head.LayerNorm(F.gelu(head.dense(final)))
        return F.linear(h, self.module.generator_lm_head.weight, self.module.generator_lm_head.bias)


class ViT(Unrotated):
    causal, final = False, "layernorm"
    attn_norm, mlp_norm, attn_module, projection = "layernorm_before", "layernorm_after", "attention", "o_proj"

    def patches(self) -> Tensor:
        """Each 8 x 8 patch times the projection's weights: (batch, patch, d_model)."""
        conv = self.base.embeddings.patch_embeddings.projection
        cut = self.inputs.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return F.linear(cut, conv.weight.flatten(1), conv.bias)

    def specials(self) -> Tensor:
        return self.base.embeddings.cls_token

    def embed(self) -> Tensor:
        patches = self.patches()
        tokens = torch.cat([self.specials().expand(len(patches), -1, -1), patches], 1)
        return tokens + self.base.embeddings.position_embeddings

    def logits(self, final: Tensor) -> Tensor:
        return self.module.classifier(final[:, 0])


class DeiT(ViT):
    def specials(self) -> Tensor:
        return torch.cat([self.base.embeddings.cls_token, self.base.embeddings.distillation_token], 1)


class Dinov2(ViT):
    """Each half is scaled channel by channel; registers carry no position."""

    attn_norm, mlp_norm = "norm1", "norm2"

    @property
    def blocks(self) -> Any:
        return self.base.encoder.layer

    def embed(self) -> Tensor:
        tokens = super().embed()
        registers = getattr(self.base.embeddings, "register_tokens", None)
        if registers is None:
            return tokens
        return torch.cat([tokens[:, :1], registers.expand(len(tokens), -1, -1), tokens[:, 1:]], 1)

    def attn_out(self, i: int, z: Tensor) -> Tensor:
        return super().attn_out(i, z) * self.blocks[i].layer_scale1.lambda1

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        parts = super().mlp(i, h)
        return {**parts, "out": parts["out"] * self.blocks[i].layer_scale2.lambda1}

    def logits(self, final: Tensor) -> Tensor:
        return self.module.classifier(torch.cat([final[:, 0], final[:, -4:].mean(1)], 1))


class ClipVision(ViT):
    attn_norm, mlp_norm, attn_module, projection = "layer_norm1", "layer_norm2", "self_attn", "out_proj"
    final = None

    @property
    def blocks(self) -> Any:
        return self.base.encoder.layers

    def embed(self) -> Tensor:
        e = self.base.embeddings
        cut = self.inputs.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        patches = cut @ e.patch_embedding.weight.flatten(1).T
        tokens = torch.cat([e.class_embedding.expand(len(patches), 1, -1), patches], 1)
        return tokens + e.position_embedding.weight

    def stream(self, embed: Tensor) -> Tensor:
        return self.base.pre_layrnorm(embed)

    def logits(self, final: Tensor) -> None:
        return None


class ClipText(ClipVision):
    causal, final, prefix = True, "final_layer_norm", "text."

    def embed(self) -> Tensor:
        e = self.base.embeddings
        ids = self.inputs
        return F.embedding(ids, e.token_embedding.weight) + e.position_embedding.weight[: ids.shape[1]]

    def stream(self, embed: Tensor) -> Tensor:
        return embed


class Clip(Reference):
    """Both towers of a full CLIP."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.vision = ClipVision(module.vision_model, inputs["pixel_values"])
        self.text = ClipText(module.text_model, inputs["input_ids"])
        self.vision.base, self.text.base, self.vision.prefix = module.vision_model, module.text_model, "vision."

    def expected(self, rec: Any) -> Iterator[tuple[str, Tensor]]:
        yield from self.vision.expected(rec)
        yield from self.text.expected(rec)


class T5Tower(Unrotated):
    """One tower of a T5; texts are shorter than the range in which every distance has a bucket of its own."""

    final = "final_layer_norm"

    def __init__(self, module: nn.Module, ids: Tensor, name: str) -> None:
        super().__init__(module, ids)
        self.base, self.prefix, self.causal = getattr(module, name), f"{name}.", name == "decoder"

    @property
    def blocks(self) -> Any:
        return self.base.block

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.module.shared.weight)

    def scale(self, i: int, d_head: int) -> float:
        return 1.0

    def heads_of(self, attn: nn.Module, h: Tensor, parts: str) -> list[Tensor]:
        return [attn.get_submodule(p)(h).unflatten(-1, (self.heads, -1)) for p in parts]

    def biased(self, i: int, scores: Tensor) -> Tensor:
        if scores.shape[-1] != scores.shape[-2]:
            return scores  # attention to the encoder knows no positions
        n = scores.shape[-1]
        own = self.config.model_type == "umt5"  # else the first block's biases serve all
        table = self.blocks[i if own else 0].layer[0].SelfAttention.relative_attention_bias.weight
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]  # query minus key
        later = self.config.relative_attention_num_buckets // 2 * (distance < 0)
        bucket = distance.clamp(min=0) if self.causal else distance.abs() + later
        return scores + table[bucket].permute(2, 0, 1)

    def block(self, i: int, rec: Any) -> Iterator[tuple[str, Tensor]]:
        at, layers = f"{self.prefix}blocks.{i}.", self.blocks[i].layer
        pre = rec[at + "resid_pre"]
        yield from zip(
            [at + f"attn.{p}" for p in "qkv"],
            self.heads_of(layers[0].SelfAttention, layers[0].layer_norm(pre), "qkv"),
            strict=True,
        )
        yield from self.attention(i, rec, at + "attn")
        yield at + "attn.out", layers[0].SelfAttention.o(rec[at + "attn.z"].flatten(2))
        yield at + "resid_mid", pre + rec[at + "attn.out"]
        before = rec[at + "resid_mid"]
        if self.causal:
            cross, memory = layers[1].EncDecAttention, rec["encoder.final_norm"]
            yield at + "cross_attn.q", self.heads_of(cross, layers[1].layer_norm(before), "q")[0]
            yield from zip([at + "cross_attn.k", at + "cross_attn.v"], self.heads_of(cross, memory, "kv"), strict=True)
            yield from self.attention(i, rec, at + "cross_attn")
            yield at + "cross_attn.out", cross.o(rec[at + "cross_attn.z"].flatten(2))
            yield at + "resid_cross", before + rec[at + "cross_attn.out"]
            before = rec[at + "resid_cross"]
        for part, value in self.feed_forward(layers[-1], before).items():
            yield f"{at}mlp.{part}", value
        yield at + "resid_post", before + rec[at + "mlp.out"]

    def feed_forward(self, layer: nn.Module, before: Tensor) -> dict[str, Tensor]:
        h, dense = layer.layer_norm(before), layer.DenseReluDense
        if not self.config.is_gated_act:
            pre = dense.wi(h)
            return {"pre": pre, "post": F.relu(pre), "out": dense.wo(F.relu(pre))}
        gate, pre = dense.wi_0(h), dense.wi_1(h)
        post = F.gelu(gate, approximate="tanh") * pre
        return {"gate": gate, "pre": pre, "post": post, "out": dense.wo(post)}

    def logits(self, final: Tensor) -> Tensor | None:
        if not self.causal:
            return None
        own = {"mt5": False, "umt5": self.config.tie_word_embeddings}
        scaled = own.get(self.config.model_type, getattr(self.config, "scale_decoder_outputs", None))
        return F.linear(final * self.config.d_model**-0.5 if scaled else final, self.module.lm_head.weight)


class T5(Reference):
    """Encoder and decoder."""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.encoder = T5Tower(module, inputs["input_ids"], "encoder")
        self.decoder = T5Tower(module, inputs["decoder_input_ids"], "decoder")

    def expected(self, rec: Any) -> Iterator[tuple[str, Tensor]]:
        yield from self.encoder.expected(rec)
        yield from self.decoder.expected(rec)


class Mamba(Reference):
    """The selective state space (Gu and Dao 2023, algorithm 2), one position after another."""

    final = "norm_f"
    heads = 0

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module, self.config, self.inputs, self.base = module, module.config, inputs, module.backbone

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.base.embeddings.weight)

    def block(self, i: int, rec: Any) -> Iterator[tuple[str, Tensor]]:
        at, block = f"blocks.{i}.", self.blocks[i]
        pre = rec[at + "resid_pre"]
        yield at + "mixer.out", self.mix(block.mixer, block.norm(pre))
        yield at + "resid_post", pre + rec[at + "mixer.out"]

    def mix(self, m: nn.Module, h: Tensor) -> Tensor:
        x, z = m.in_proj(h).chunk(2, -1)
        width = m.conv1d.weight.shape[-1]
        padded = F.pad(x, (0, 0, width - 1, 0))
        x = sum(padded[:, j : j + x.shape[1]] * m.conv1d.weight[:, 0, j] for j in range(width))
        x = F.silu(x + m.conv1d.bias)
        rank, size = self.config.time_step_rank, self.config.state_size
        step, B, C = m.x_proj(x).split([rank, size, size], -1)
        if self.config.model_type == "falcon_mamba":
            # Falcon Mamba normalises the three without weights.
            eps = self.config.mixer_rms_eps
            step, B, C = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + eps) for t in (step, B, C))
        delta, A = F.softplus(F.linear(step, m.dt_proj.weight, m.dt_proj.bias)), -torch.exp(m.A_log)
        state, out = torch.zeros(*x.shape[::2], size), []
        for t in range(x.shape[1]):
            state = torch.exp(delta[:, t, :, None] * A) * state
            state = state + delta[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
            out.append((state * C[:, t, None]).sum(-1))
        return m.out_proj((torch.stack(out, 1) + x * m.D) * F.silu(z))


CLASSES: dict[str, type[Reference]] = {
    "mamba": Mamba,
    "falcon_mamba": Mamba,
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
    "electra": Electra,
    "t5": T5,
    "t5-gated": T5,
    "mt5": T5,
    "umt5": T5,
    "vit": ViT,
    "deit": DeiT,
    "dinov2": Dinov2,
    "dinov2_with_registers": Dinov2,
    "clip_vision_model": ClipVision,
    "clip": Clip,
}
