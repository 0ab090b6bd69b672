"""The peers, each on weights copied from the same model. One that is not installed is left out."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

__all__ = ["LENS", "NNSIGHT", "Lens", "hooked_lens", "lenses", "nnsight_recorder", "optional", "version_of"]

LENS, NNSIGHT = "transformer-lens", "nnsight"


def optional(module: str) -> ModuleType | None:
    """A module, or None where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def version_of(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    if optional(package.replace("-", "_")) is None:
        return "not installed"
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Lens:
    """A model of TransformerLens: `HookedTransformer` (until 3) or `TransformerBridge` (since 3)."""

    name: str
    model: Any

    def record(self, ids: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Every residual stream, and the logits."""
        last = f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(
                ids, names_filter=lambda name: name.endswith("hook_resid_pre") or name == last
            )
        names = [f"blocks.{i}.hook_resid_pre" for i in range(self.model.cfg.n_layers)]
        return [cache[name] for name in (*names, last)], logits

    def sweep(self, clean: Tensor, corrupt: Tensor, metric: Callable[[Tensor], Tensor]) -> Tensor:
        """The metric (layer, pos) with each position of each resid_pre patched from the clean run."""
        return self._sweep("hook_resid_pre", "get_act_patch_resid_pre", clean, corrupt, metric)

    def sweep_heads(self, clean: Tensor, corrupt: Tensor, metric: Callable[[Tensor], Tensor]) -> Tensor:
        """The metric (layer, head) with each head's z patched from the clean run at all positions."""
        return self._sweep("hook_z", "get_act_patch_attn_head_out_all_pos", clean, corrupt, metric)

    def _sweep(self, hook: str, function: str, clean: Tensor, corrupt: Tensor, metric: Any) -> Tensor:
        patching = importlib.import_module("transformer_lens.patching")
        with torch.no_grad():
            _, cache = self.model.run_with_cache(clean, names_filter=lambda name: name.endswith(hook))
            effects: Tensor = getattr(patching, function)(self.model, corrupt, cache, metric)
        return effects


def lenses(module: GPT2LMHeadModel) -> list[Lens]:
    """What the installed TransformerLens offers, with the weights of `module` copied and no LayerNorm folded."""
    library = optional("transformer_lens")
    if library is None:
        return []
    # A progress bar for each of many sweeps says nothing here.
    importlib.import_module("transformer_lens.patching").tqdm = lambda items, **_: items
    made = []
    if optional("transformer_lens.HookedTransformer") is not None:
        made.append(Lens("TransformerLens HookedTransformer", _hooked(module, library)))
    builder = optional("transformer_lens.model_bridge.sources._bridge_builder")
    if builder is not None and hasattr(builder, "build_bridge_from_module"):
        # The bridge takes the module over, so it gets one of its own.
        own = copy.deepcopy(module)
        bridge = builder.build_bridge_from_module(own, "GPT2LMHeadModel", hf_config=own.config)
        made.append(Lens("TransformerLens TransformerBridge", bridge.eval()))
    return made


def hooked_lens(module: GPT2LMHeadModel) -> Any:
    """TransformerLens's `HookedTransformer` with the weights of `module`, or None where the installed one has none."""
    library = optional("transformer_lens")
    if library is None or optional("transformer_lens.HookedTransformer") is None:
        return None
    return _hooked(module, library)


def _hooked(module: GPT2LMHeadModel, library: ModuleType) -> Any:
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = module.config
    shape = library.HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        device="cpu",
    )
    model = library.HookedTransformer(shape)
    model.load_and_process_state_dict(
        convert_gpt2_weights(module, shape),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def nnsight_recorder(module: GPT2LMHeadModel) -> Callable[[Tensor], tuple[Sequence[Tensor], Tensor]] | None:
    """A function from ids to every residual stream and the logits, or None without nnsight."""
    library = optional("nnsight")
    if library is None:
        return None
    model = library.NNsight(module)

    def run(ids: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        with torch.no_grad(), model.trace(ids, use_cache=False):
            streams = [block.input for block in model.transformer.h]
            streams.append(model.transformer.h[-1].output)
            logits = model.lm_head.output
            library.save(streams)
            library.save(logits)
        return streams, logits

    return run
