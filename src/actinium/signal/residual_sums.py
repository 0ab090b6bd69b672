"""Which modules of a network are residual blocks: found by what passes through them, not by their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["ResidualBlock", "residual_blocks"]

# Relative size of what a sum of two recorded tensors may leave unexplained, by rounding of the additions.
TOLERANCE = 1e-4
# Entries that a sum is first tried on, for most candidates fail.
GLANCE = 2048


@dataclass(frozen=True)
class ResidualBlock:
    """A module whose output is what came in (or a shortcut of it) plus a multiple of what one child gave.

    Attributes:
        path: of the module.
        branch: path of the child at the end of the residual branch.
        scale: the multiple; NaN where the branch is silent on the inputs tried.
        rectified: whether a ReLU follows the addition.
    """

    path: str
    branch: str
    scale: float
    rectified: bool = False


def residual_blocks(model: Model, inputs: Any) -> list[ResidualBlock]:
    """The residual blocks of a network, in the order in which they run.

    The network runs once. A module is a block if its output, or the input of the ReLU that gave it, equals its input or
    a child's output plus a multiple of another child's output. Where two children are added as they are, the branch is
    the one that reads what was computed later, else the one with more layers in it, else the one that ran last. A
    module that names its branch in an attribute `residual_branch` is taken at its word. What runs several times in a
    pass is left out, and so is a block around other blocks.

    Args:
        model: the network.
        inputs: what it runs on; a few rows are enough.

    Returns:
        The innermost ones.

    Raises:
        InputError: the inputs cannot be read.
    """
    modules = {path: m for path, m in model.module.named_modules() if path}
    parents = {path: m for path, m in modules.items() if next(m.children(), None) is not None}
    if not parents:
        return []
    order: dict[str, int] = {}
    handles = [m.register_forward_hook(_marks(path, order)) for path, m in modules.items()]
    try:
        with model.recording(["module:**", "module_in:**"]) as seen, torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    found: list[ResidualBlock] = []
    for path in sorted((p for p in parents if p in order), key=order.__getitem__):
        # A module ends after those inside it.
        around = any(b.path.startswith(f"{path}.") for b in found)
        block = None if around else _block(path, parents[path], seen.values, order)
        if block is not None:
            found.append(block)
    return found


def _marks(path: str, order: dict[str, int]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        order[path] = len(order)

    return hook


def _block(path: str, module: nn.Module, seen: dict[str, Tensor], order: dict[str, int]) -> ResidualBlock | None:
    named = getattr(module, "residual_branch", None)
    out, into = seen.get(f"module:{path}"), seen.get(f"module_in:{path}")
    if isinstance(named, str):
        # A misspelt name is an error of the module's author, which a silent fallback would hide.
        if f"module:{path}.{named}" not in seen:
            raise InputError(f"{path} names {named!r} as its residual branch, which did not run once")
        return ResidualBlock(path, f"{path}.{named}", float(getattr(module, "alpha", 1.0)))
    if out is None or into is None or not out.is_floating_point():
        return None
    children = [f"{path}.{name}" for name, _ in module.named_children() if f"module:{path}.{name}" in seen]
    children = sorted((c for c in children if c in order), key=order.__getitem__)
    given = {c: seen[f"module:{c}"] for c in children if seen[f"module:{c}"].shape == out.shape}
    some = slice(None, None, max(1, out.numel() // GLANCE))
    glance = {id(t): t.flatten()[some] for t in (out, into, *given.values())}
    for branch, shortcut in _pairs(list(given)):
        kept = into if shortcut is None else given[shortcut]
        if kept.shape != out.shape:
            continue
        for rectified in (False, True):
            tried = (out, kept, given[branch])
            if _multiple(*(glance[id(t)] for t in tried), rectified) is None:
                continue
            scale = _multiple(*tried, rectified)
            if scale is None:
                continue
            if shortcut is not None and abs(scale - 1) < TOLERANCE:
                branch = max(branch, shortcut, key=lambda c: (*_depth(c, module, path, children, seen), order[c]))
            return ResidualBlock(path, branch, scale, rectified)
    return None


def _depth(child: str, module: nn.Module, path: str, children: list[str], seen: dict[str, Tensor]) -> tuple[int, int]:
    """Which child's output a child reads (-1: the block's input; else the last place), and how many layers it has."""
    read = seen.get(f"module_in:{child}")
    produced = [f"module_in:{path}", *(f"module:{c}" for c in children)]
    same = [i - 1 for i, name in enumerate(produced) if read is not None and _equal(read, seen[name])]
    inner = module.get_submodule(child.removeprefix(f"{path}."))
    layers = sum(next(m.children(), None) is None for m in inner.modules())
    return (same[-1] if same else len(children)), layers


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _pairs(children: list[str]) -> Iterator[tuple[str, str | None]]:
    """Branch and shortcut, the last child first; None stands for the block's input."""
    for branch in reversed(children):
        yield branch, None
        for shortcut in reversed(children):
            if shortcut != branch:
                yield branch, shortcut


def _multiple(out: Tensor, kept: Tensor, branch: Tensor, rectified: bool) -> float | None:
    """c with out = kept + c branch, or its positive part; None where there is no such c."""
    out, kept, branch = (t.double() for t in (out, kept, branch))
    # Where the output is 0 behind a ReLU only the sign of the sum is known.
    rows = out > 0 if rectified else torch.ones_like(out, dtype=torch.bool)
    size = branch[rows].square().sum()
    if not bool(rows.any()) or not bool(out.isfinite().all()):
        return None
    if float(size) == 0:
        silent = float(branch.abs().max()) == 0
        same = kept.clamp(min=0) if rectified else kept
        return float("nan") if silent and _close(out, same, out) else None
    scale = ((out - kept)[rows] * branch[rows]).sum() / size
    total = kept + scale * branch
    if float(scale) == 0 or not _close(out, total.clamp(min=0) if rectified else total, scale * branch):
        return None
    return float(scale)


def _close(out: Tensor, wanted: Tensor, against: Tensor) -> bool:
    return float((out - wanted).norm()) <= TOLERANCE * float(against.norm())
