"""Low-rank adapters in the file format of PEFT: what they hold, and how they are merged into a model's weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, LoadError, unknown

__all__ = ["Adapter", "is_adapter", "read_adapter", "write_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings of PEFT that add something else than B A to a weight, with the values at which they do nothing.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alpha_pattern": (None, {}),
    "alora_invocation_tokens": (None, []),
}


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates of a model's weights.

    Attributes:
        base: name or folder of the model that it belongs to.
        scales: by module: what the product is multiplied with, alpha / r (alpha / sqrt(r) for rank-stabilised ones).
        factors: by module: A (r, d_in) and B (d_out, r).
    """

    base: str
    scales: dict[str, float]
    factors: dict[str, tuple[Tensor, Tensor]]

    @torch.no_grad()
    def merge(self, module: nn.Module) -> None:
        """Add scale B A to the weights of a model, in float32 whatever the type of the weights.

        Args:
            module: a model of the base's architecture; its weights change.

        Raises:
            LoadError: before anything changes, if it lacks a module or a weight has another shape.
        """
        modules = dict(module.named_modules())
        updates: list[tuple[Tensor, Tensor]] = []
        for name, (a, b) in self.factors.items():
            if name not in modules:
                raise LoadError(unknown("module for the adapter in this model:", name, modules))
            weight = modules[name].get_parameter("weight")
            update = self.scales[name] * (b.float() @ a.float())
            # GPT-2's maps keep (in, out); every other one (out, in).
            update = update.T if type(modules[name]).__name__ == "Conv1D" else update
            if update.shape != weight.shape:
                raise LoadError(
                    f"the adapter changes {name} by {tuple(update.shape)}, but its weight has the shape "
                    f"{tuple(weight.shape)}; does the adapter belong to {self.base}?"
                )
            updates.append((weight, update))
        for weight, update in updates:
            weight.copy_(weight.float() + update.to(weight.device))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that PEFT or `write_adapter` wrote.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        Adapter.

    Raises:
        LoadError: a file is missing or damaged, or the adapter is of a kind that is no sum of low-rank products.

    Source: Hu et al., 2021, LoRA, eq. 3; Kalajdzievski, 2023 (rank-stabilised).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"cannot read the adapter {folder}: {error}") from None
    if not isinstance(config, dict):
        raise LoadError(f"{folder / CONFIG} is damaged: an object was expected")
    for name, plain in PLAIN.items():
        if name in config and config[name] not in plain:
            raise LoadError(
                f"{folder}: adapters with {name}={config[name]!r} cannot be merged here; merge it with PEFT"
            )
    base, alpha = config.get("base_model_name_or_path"), config.get("lora_alpha")
    if not isinstance(base, str) or not base or not isinstance(alpha, int | float):
        raise LoadError(f"{folder / CONFIG} names no base_model_name_or_path or no lora_alpha")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, mark, side = key.removeprefix(PREFIX).rpartition(".lora_")
        if not mark or side not in ("A.weight", "B.weight") or value.ndim != 2:
            raise LoadError(f"{folder / WEIGHTS} holds {key!r}, which is no factor of a linear map")
        parts.setdefault(name, {})[side[0]] = value
    factors = {}
    for name, sides in parts.items():
        if set(sides) != {"A", "B"} or sides["A"].shape[0] != sides["B"].shape[1]:
            raise LoadError(f"{folder / WEIGHTS} is damaged: the factors of {name} do not fit together")
        factors[name] = (sides["A"], sides["B"])
    rank = math.sqrt if config.get("use_rslora") else float
    return Adapter(base, {name: alpha / rank(a.shape[0]) for name, (a, _) in factors.items()}, factors)


def write_adapter(
    folder: Path,
    base: str,
    alpha: float,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    *,
    rslora: bool = False,
    whole_names: bool = False,
) -> None:
    """Write low-rank updates of one rank as an adapter that PEFT reads, in float16.

    Args:
        folder: an existing folder.
        base: name of the model that it belongs to.
        alpha: the product is multiplied with alpha / r.
        factors: by module: A (r, d_in) and B (d_out, r).
        rslora: whether the product is multiplied with alpha / sqrt(r) instead.
        whole_names: whether the modules are named in full, because others with the same last name have no update.

    Raises:
        InputError: there are no factors, or they have several ranks.
    """
    from safetensors.torch import save_file

    ranks = {a.shape[0] for a, _ in factors.values()}
    if len(ranks) != 1:
        raise InputError(f"an adapter of one rank was expected, got the ranks {sorted(ranks)}")
    tensors = {}
    for name, (a, b) in factors.items():
        for side, value in (("A", a), ("B", b)):
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = value.detach().half().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name if whole_names else name.rpartition(".")[2] for name in factors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    if rslora:
        config["use_rslora"] = True
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf8")
