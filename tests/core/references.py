"""What each architecture's weights say its activations must be.

A `Reference` recomputes every site of a tower from the sites before it in plain tensor arithmetic: it knows the
module's weights and its published equations, and nothing of Actinium's family table. `expected` yields pairs of a
site's name and the value that the recorded sites before it demand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def rotated(x: Tensor, theta: float, size: int, interleaved: bool = False) -> Tensor:
    """Rotary position embedding of (batch, pos, head, d_head) as a product of complex numbers."""
    part, rest = x[..., :size].double(), x[..., size:]
    angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
    pairs = part.unflatten(-1, (-1, 2)) if interleaved else torch.stack(part.chunk(2, -1), -1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    out = turned.flatten(-2) if interleaved else torch.cat(turned.unbind(-1), -1)
    return torch.cat([out.to(x.dtype), rest], -1)


class Reference:
    """Llama and those that differ from it in sizes only; subclasses say what else differs.

    Args:
        module: the whole model.
        ids: its token ids.
    """

    style = "sequential"
    causal = True
    final: str | None = "norm"
    attn_norm, mlp_norm = "input_layernorm", "post_attention_layernorm"
    attn_module, projection = "self_attn", "o_proj"
    prefix = ""

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module, self.config, self.inputs = module, module.config, inputs
        self.base = getattr(module, module.base_model_prefix, module)
        self.heads = next(
            getattr(self.config, n)
            for n in ("num_attention_heads", "n_head", "n_heads", "num_heads")
            if hasattr(self.config, n)
        )

    # What subclasses change ---------------------------------------------------------------------------------

    @property
    def blocks(self) -> Any:
        return self.base.layers

    def embed(self) -> Tensor:
        return F.embedding(self.inputs, self.base.embed_tokens.weight)

    def stream(self, embed: Tensor) -> Tensor:
        """What enters the first block."""
        return embed

    def qkv(self, i: int, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.blocks[i].get_submodule(self.attn_module)
        size = attn.q_proj.weight.shape[0] // self.heads
        return tuple(p(h).unflatten(-1, (-1, size)) for p in (attn.q_proj, attn.k_proj, attn.v_proj))

    def rotate(self, i: int, x: Tensor) -> Tensor:
        rope = self.config.rope_parameters
        rope = rope.get(self.config.layer_types[i], rope) if hasattr(self.config, "layer_types") else rope
        size = int(x.shape[-1] * rope.get("partial_rotary_factor", 1.0))
        return rotated(x, rope["rope_theta"], size)

    def scale(self, i: int, d_head: int) -> float:
        return d_head**-0.5

    def biased(self, i: int, scores: Tensor) -> Tensor:
        """Everything between the scaled products and the mask."""
        return scores

    def window(self, i: int) -> int | None:
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[i] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def attn_out(self, i: int, z: Tensor) -> Tensor:
        return self.blocks[i].get_submodule(self.attn_module).get_submodule(self.projection)(z)

    def mlp(self, i: int, h: Tensor) -> dict[str, Tensor]:
        mlp = self.blocks[i].mlp
        gate, pre = mlp.gate_proj(h), mlp.up_proj(h)
        post = self.activation(gate) * pre
        return {"gate": gate, "pre": pre, "post": post, "out": mlp.down_proj(post)}

    def activation(self, x: Tensor) -> Tensor:
        names = ("hidden_act", "hidden_activation", "activation_function")
        return ACTIVATIONS[next(getattr(self.config, n) for n in names if hasattr(self.config, n))](x)

    def logits(self, final: Tensor) -> Tensor | None:
        return F.linear(final, self.module.lm_head.weight, self.module.lm_head.bias)

    # The arithmetic all share -------------------------------------------------------------------------------

    def visible(self, i: int, n: int) -> Tensor:
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        seen = distance >= 0 if self.causal else torch.ones(n, n, dtype=torch.bool)
        window = self.window(i)
        return seen if window is None else seen & (distance < window)

    def attention(self, i: int, rec: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        """Scores, pattern and z from the recorded q, k and v."""
        q, k, v = (rec[f"{name}.{p}"] for p in "qkv")
        k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.scale(i, q.shape[-1])
        seen = self.visible(i, q.shape[1]) if k.shape[1] == q.shape[1] else torch.ones(k.shape[1], dtype=torch.bool)
        yield f"{name}.scores", self.biased(i, scores).masked_fill(~seen, torch.nan)
        exact = rec[f"{name}.scores"].double().masked_fill(~seen, -torch.inf)
        yield f"{name}.pattern", exact.softmax(-1).float()
        yield f"{name}.z", torch.einsum("bhqk,bkhd->bqhd", rec[f"{name}.pattern"], v)

    def block(self, i: int, rec: Any) -> Iterator[tuple[str, Tensor]]:
        at, block = f"{self.prefix}blocks.{i}.", self.blocks[i]
        pre = rec[at + "resid_pre"]
        post_norm = self.style == "post-norm"
        normed = pre if post_norm else block.get_submodule(self.attn_norm)(pre)
        q, k, v = self.qkv(i, normed)
        yield at + "attn.q", self.rotate(i, q)
        yield at + "attn.k", self.rotate(i, k)
        yield at + "attn.v", v
        yield from self.attention(i, rec, at + "attn")
        yield at + "attn.out", self.attn_out(i, rec[at + "attn.z"].flatten(2))
        if self.style == "parallel":
            branch = block.get_submodule(self.mlp_norm)(pre)
            whole = pre + rec[at + "attn.out"] + rec[at + "mlp.out"]
        else:
            mid = pre + rec[at + "attn.out"]
            yield at + "resid_mid", block.get_submodule(self.attn_norm)(mid) if post_norm else mid
            mid = rec[at + "resid_mid"]
            branch = mid if post_norm else block.get_submodule(self.mlp_norm)(mid)
            whole = mid + rec[at + "mlp.out"]
            whole = block.get_submodule(self.mlp_norm)(whole) if post_norm else whole
        for part, value in self.mlp(i, branch).items():
            yield f"{at}mlp.{part}", value
        yield at + "resid_post", whole

    def expected(self, rec: Any) -> Iterator[tuple[str, Tensor]]:
        """(site, value) for every site of the tower."""
        yield self.prefix + "embed", self.embed()
        before = self.stream(rec[self.prefix + "embed"])
        for i in range(len(self.blocks)):
            yield f"{self.prefix}blocks.{i}.resid_pre", before
            yield from self.block(i, rec)
            before = rec[f"{self.prefix}blocks.{i}.resid_post"]
        if self.final is not None:
            yield self.prefix + "final_norm", self.base.get_submodule(self.final)(before)
            before = rec[self.prefix + "final_norm"]
        logits = self.logits(before)
        if logits is not None:
            yield "logits", logits
