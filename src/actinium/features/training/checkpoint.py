"""The state of a training run as one safetensors file: parameters, moments, counts, and where the data stood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.fitted import read_fitted, write_fitted

if TYPE_CHECKING:
    from actinium.features.training.trainer import Run

__all__ = ["read_checkpoint", "write_checkpoint"]

KIND = "training run"
NAME = "checkpoint.safetensors"


def write_checkpoint(folder: Path, runs: list[Run], step: int, mark: str, settings: dict[str, Any]) -> Path:
    """Write the state after a number of steps; a file is there whole or not at all."""
    tensors: dict[str, Tensor] = {}
    plain: list[dict[str, Any]] = []
    for i, run in enumerate(runs):
        tensors |= {f"{i}.parameter.{name}": t for name, t in run.dictionary.state_dict().items()}
        silence = {"rows": run.silence.rows, "window": run.silence.window}
        tensors |= {f"{i}.silence.{name}": t for name, t in silence.items()}
        named = {id(p): name for name, p in run.dictionary.named_parameters()}
        for parameter, state in run.optimizer.state.items():
            for name, value in state.items():
                tensors[f"{i}.moment.{named[id(parameter)]}.{name}"] = torch.as_tensor(value)
        plain.append({"history": run.history, "resamplings": run.resamplings, "scaler": run.scaler.state_dict()})
    about = {"step": step, "data": mark, "runs": plain, "dictionaries": [repr(run.dictionary) for run in runs]}
    return write_fitted(folder / NAME, KIND, tensors, settings, **about)


def read_checkpoint(folder: Path, runs: list[Run], mark: str, settings: dict[str, Any]) -> int:
    """Put runs back where they stood; returns the number of steps done, 0 if there is no checkpoint.

    Raises:
        LoadError: the file is damaged.
        InputError: it belongs to other data, settings or dictionaries.
    """
    path = folder / NAME
    if not path.exists():
        return 0
    about, tensors = read_fitted(path, KIND)
    found = [repr(run.dictionary) for run in runs]
    for what, saved, now in (
        ("dictionaries", about["dictionaries"], found),
        ("data", about["data"], mark),
        ("settings", about["settings"], settings),
    ):
        if saved != now:
            raise InputError(
                f"{path} is of a run with other {what} ({_difference(saved, now)}); choose another folder, or remove it"
            )
    for i, run in enumerate(runs):
        own = {name.removeprefix(f"{i}."): t for name, t in tensors.items() if name.startswith(f"{i}.")}
        run.dictionary.load_state_dict({n.removeprefix("parameter."): t for n, t in own.items() if n[0] == "p"})
        for name in ("rows", "window"):
            getattr(run.silence, name).copy_(own[f"silence.{name}"])
        run.optimizer.state.clear()
        for name, parameter in run.dictionary.named_parameters():
            prefix = f"moment.{name}."
            state = {n.removeprefix(prefix): t for n, t in own.items() if n.startswith(prefix)}
            # Moments are kept in the parameter's own layout, which its kernel expects.
            placed = {
                n: torch.empty_like(parameter).copy_(t) if t.shape == parameter.shape else t.clone()
                for n, t in state.items()
            }
            if placed:
                run.optimizer.state[parameter] = placed
        plain = about["runs"][i]
        run.history, run.resamplings = list(plain["history"]), int(plain["resamplings"])
        run.scaler.load_state_dict(plain["scaler"])
    return int(about["step"])


def _difference(saved: Any, now: Any) -> str:
    if isinstance(saved, dict) and isinstance(now, dict):
        names = [k for k in {**saved, **now} if saved.get(k) != now.get(k)]
        return ", ".join(f"{k}: {saved.get(k)!r}, now {now.get(k)!r}" for k in names)
    return f"{saved}, now {now}"
