"""Small random Llamas whose residual stream may be turned into another basis."""

from __future__ import annotations

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama(width: int = 8, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """A small random Llama in float64."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 12, "num_hidden_layers": layers, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes, initializer_range=0.3, bos_token_id=1)).double().eval()


def in_another_basis(module: LlamaForCausalLM, turn: torch.Tensor) -> LlamaForCausalLM:
    """The same function with its residual stream multiplied by an orthogonal matrix (its norms have no weights)."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.copy_(turn.T @ weight)
            elif weight.ndim == 2:
                weight.copy_(weight @ turn)
    return other
