"""A tiny random model of every architecture in the family table, and of some that are not in it.

Weights are drawn wide enough that attention patterns are far from uniform, and every size differs where an
architecture allows it (heads of another width than d_model / heads, fewer key-value heads than query heads, a short
sliding window), so that a confusion of sizes shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from actinium.core.model import Model

VOCAB = 99
D_MODEL, LAYERS, HEADS, CONTEXT, WINDOW = 32, 3, 4, 64, 4
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def _causal(name: str, **options: Any) -> nn.Module:
    """A model whose configuration speaks Llama's words."""
    words = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
        **ENDS,
    }
    if name != "GPTNeoX":
        words["num_key_value_heads"] = 2
    config, model = name if isinstance(name, tuple) else (f"{name}Config", f"{name}ForCausalLM")
    return getattr(hf, model)(getattr(hf, config)(**{**words, **options}))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": 48}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, **sizes, **ENDS))


def _neox(parallel: bool) -> nn.Module:
    return _causal("GPTNeoX", use_parallel_residual=parallel, rotary_pct=0.5)


def _gptj() -> nn.Module:
    sizes = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": 48}
    return hf.GPTJForCausalLM(hf.GPTJConfig(vocab_size=VOCAB, rotary_dim=4, **sizes, **ENDS))


def _opt(**options: Any) -> nn.Module:
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": 48}
    words = {"max_position_embeddings": CONTEXT, "vocab_size": VOCAB, "word_embed_proj_dim": D_MODEL}
    return hf.OPTForCausalLM(hf.OPTConfig(**{**sizes, **words, **ENDS, **options}))


def _bloom() -> nn.Module:
    return hf.BloomForCausalLM(
        hf.BloomConfig(hidden_size=D_MODEL, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB, **ENDS)
    )


def _falcon(**options: Any) -> nn.Module:
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    words = {"vocab_size": VOCAB, "ffn_hidden_size": 48, "max_position_embeddings": CONTEXT}
    return hf.FalconForCausalLM(hf.FalconConfig(**sizes, **words, **ENDS, **options))


def _mpt() -> nn.Module:
    sizes = {"d_model": D_MODEL, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT}
    return hf.MptForCausalLM(hf.MptConfig(vocab_size=VOCAB, **sizes, **ENDS))


def _mamba(name: str) -> nn.Module:
    sizes = {"hidden_size": D_MODEL, "num_hidden_layers": LAYERS, "state_size": 4, "vocab_size": VOCAB}
    return getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**sizes, **ENDS))


ENCODER = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}


def _bert(name: str, **options: Any) -> nn.Module:
    words = {"max_position_embeddings": CONTEXT, "vocab_size": VOCAB, **ENDS}
    return getattr(hf, f"{name}ForMaskedLM")(getattr(hf, f"{name}Config")(**ENCODER, **words, **options))


def _t5(name: str, **options: Any) -> nn.Module:
    sizes = {"d_model": D_MODEL, "d_kv": 6, "d_ff": 48, "num_layers": 4, "num_decoder_layers": LAYERS}
    words = {"num_heads": HEADS, "vocab_size": VOCAB, "decoder_start_token_id": 0}
    model = getattr(hf, f"{name}ForConditionalGeneration")
    return model(getattr(hf, f"{name}Config")(**sizes, **words, **{**ENDS, "bos_token_id": None}, **options))


IMAGE = {"image_size": 16, "patch_size": 8, "num_labels": 5}


def _vit(name: str, **options: Any) -> nn.Module:
    config = getattr(hf, f"{name}Config")(**{**ENCODER, **IMAGE, **options})
    return getattr(hf, f"{name}ForImageClassification")(config)


def _clip_vision() -> nn.Module:
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**ENCODER, image_size=16, patch_size=8))


def _clip() -> nn.Module:
    text = {**ENCODER, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, **ENDS}
    vision = {**ENCODER, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _gpt_neo() -> nn.Module:
    sizes = {"hidden_size": D_MODEL, "num_layers": 2, "num_heads": HEADS, "max_position_embeddings": CONTEXT}
    kinds = [[["global", "local"], 1]]
    return hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(vocab_size=VOCAB, attention_types=kinds, window_size=4, **sizes, **ENDS)
    )


def _distilbert() -> nn.Module:
    sizes = {"dim": D_MODEL, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48, "vocab_size": VOCAB}
    return hf.DistilBertForMaskedLM(hf.DistilBertConfig(**sizes, max_position_embeddings=CONTEXT, pad_token_id=0))


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}

# Families of the design, by the `model_type`s of the table; several rows where one type has several shapes.
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,
    "gpt_neox": lambda: _neox(True),
    "gpt_neox-sequential": lambda: _neox(False),
    "gptj": _gptj,
    "opt": _opt,
    "opt-350m": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "bloom": _bloom,
    "llama": lambda: _causal("Llama", attention_bias=True, mlp_bias=True, head_dim=6),
    "mistral": lambda: _causal("Mistral", sliding_window=WINDOW),
    "qwen2": lambda: _causal("Qwen2"),
    "qwen3": lambda: _causal("Qwen3", head_dim=12),
    "gemma": lambda: _causal("Gemma", head_dim=12, num_key_value_heads=1),
    "smollm3": lambda: _causal("SmolLM3", no_rope_layers=[1, 1, 0]),
    "ministral": lambda: _causal("Ministral", head_dim=12, sliding_window=WINDOW, layer_types=LAYER_TYPES),
    "gemma2": lambda: _causal(
        "Gemma2", head_dim=12, sliding_window=WINDOW, query_pre_attn_scalar=20, attn_logit_softcapping=5.0
    ),
    "gemma3_text": lambda: _causal(
        ("Gemma3TextConfig", "Gemma3ForCausalLM"), head_dim=12, sliding_window=WINDOW, layer_types=LAYER_TYPES
    ),
    "phi3": lambda: _causal("Phi3"),
    "mixtral": lambda: _causal("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: _causal("Qwen2Moe", shared_expert_intermediate_size=20, **EXPERTS),
    "qwen3_moe": lambda: _causal("Qwen3Moe", head_dim=12, norm_topk_prob=True, **EXPERTS),
    "phi": lambda: _causal("Phi", partial_rotary_factor=0.5),
    "falcon": _falcon,
    "falcon-new": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon-alibi": lambda: _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    "mpt": _mpt,
    "mamba": lambda: _mamba("Mamba"),
    "falcon_mamba": lambda: _mamba("FalconMamba"),
    "bert": lambda: _bert("Bert"),
    "roberta": lambda: _bert("Roberta"),
    "xlm-roberta": lambda: _bert("XLMRoberta"),
    "electra": lambda: _bert("Electra", embedding_size=20),
    "t5": lambda: _t5("T5", feed_forward_proj="relu"),
    "t5-gated": lambda: _t5("T5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: _t5("MT5"),
    "umt5": lambda: _t5("UMT5"),
    "vit": lambda: _vit("ViT"),
    "deit": lambda: _vit("DeiT"),
    "dinov2": lambda: _vit("Dinov2", mlp_ratio=2),
    "dinov2_with_registers": lambda: _vit("Dinov2WithRegisters", mlp_ratio=2, num_register_tokens=2),
    "clip_vision_model": _clip_vision,
    "clip": _clip,
}
# Transformers without a row: recognised from their structure or not at all.
UNLISTED: dict[str, Callable[[], nn.Module]] = {
    "stablelm": lambda: _causal("StableLm"),
    "olmo": lambda: _causal("Olmo"),
    "starcoder2": lambda: _causal("Starcoder2", sliding_window=None),
    "cohere": lambda: _causal("Cohere"),
    "nemotron": lambda: _causal("Nemotron"),
    "olmo2": lambda: _causal("Olmo2"),
    "glm4": lambda: _causal("Glm4"),
    "granite": lambda: _causal("Granite", residual_multiplier=0.3),
    "gpt_neo": _gpt_neo,
    "distilbert": _distilbert,
}
CAUSAL = tuple(list(BUILDERS)[: list(BUILDERS).index("bert")])
MASKED = ("bert", "roberta", "xlm-roberta", "electra")
SEQ2SEQ = ("t5", "t5-gated", "mt5", "umt5")
VISION = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model")
ATTENTION = tuple(n for n in CAUSAL if "mamba" not in n)


@torch.no_grad()
def _randomise(module: nn.Module, seed: int) -> None:
    """Draw every weight anew: wide enough for peaked patterns, norms and biases away from one and zero."""
    random = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random)

    for name, p in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in ("A_log", "D") or "dt_proj" in name or p.ndim == 0:
            continue  # a state-space model's own initialisation keeps its recurrence stable; temperatures stay
        if p.ndim == 1:
            scale = leaf == "weight" or leaf == "lambda1"
            p.copy_(1.0 + 0.3 * draw(p) if scale else 0.2 * draw(p))
        elif "embed" in name or "wte" in name or "wpe" in name or name.startswith("shared"):
            p.copy_(0.6 * draw(p))
        elif "bias" in name:
            p.copy_(0.5 * draw(p))
        else:
            # Linear maps keep (out, in), GPT-2's Conv1D (in, out); stacked experts (expert, out, in).
            inputs = p[0].numel() if p.ndim == 2 or p.ndim == 4 else p.shape[-1]
            p.copy_(1.3 * inputs**-0.5 * draw(p))


def build(name: str, seed: int = 0, attention: str | None = None) -> nn.Module:
    """A fresh model in evaluation mode; the same weights for the same name and seed.

    Args:
        name: of `BUILDERS` or `UNLISTED`.
        seed: of its weights.
        attention: attention implementation, the library's choice by default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = {**BUILDERS, **UNLISTED}[name]()
    _randomise(module, seed)
    if attention is not None:
        # Also for code of a model's own (Falcon), which the library's setter leaves alone.
        for part in module.modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = attention
    return module.eval()


@cache
def shared(name: str, attention: str | None = None) -> Model:
    """One model for all tests of a session; none of them may change it."""
    return Model(build(name, attention=attention))


def token_ids(batch: int = 2, length: int = 7, seed: int = 0) -> Tensor:
    """Random ids (batch, length) above the special tokens."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def images(batch: int = 2, seed: int = 0) -> Tensor:
    """Random images (batch, 3, 16, 16)."""
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def inputs_for(name: str, batch: int = 2, seed: int = 0) -> Any:
    """What `Model.record` takes for this architecture."""
    if name in VISION:
        return images(batch, seed)
    if name == "clip":
        return {"input_ids": token_ids(batch, 7, seed), "pixel_values": images(batch, seed)}
    if name in SEQ2SEQ:
        return {"input_ids": token_ids(batch, 7, seed), "decoder_input_ids": token_ids(batch, 5, seed + 1)}
    return token_ids(batch, 7, seed)
