"""Every elementwise function of one input: its compiled forward and backward pass beside GELU's, and what it keeps.

Each function is compiled by `torch.compile` and runs forward and backward on the same million numbers, in turns with
compiled GELU and with itself uncompiled. Bytes are those that autograd keeps between the passes, of both forms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import actinium as ac
from actinium.functions.registry import ActivationSpec, every
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.settings import Settings

__all__ = ["rows"]

TINY = ("golu", "prelu")
PEER = "nn.GELU, compiled"
LIMIT = Goal("<=", 1.3)


def rows(settings: Settings) -> list[Row]:
    """A row for each function, those that miss a goal first, after two rows over all."""
    specs = [s for s in every() if _is_elementwise(s) and (not settings.tiny or s.key in TINY)]
    size = 4096 if settings.tiny else 1 << 20
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    gelu = _pass(torch.compile(nn.functional.gelu), x)
    table, beside_gelu, beside_naive = [], [], []
    for spec in specs:
        torch.compiler.reset()
        module = ac.functions.get(spec.name, experimental=True, fused=True).eval()
        plain = ac.functions.get(spec.name, experimental=True).eval()
        plain.load_state_dict(module.state_dict())
        agree(spec.name, module(x).detach(), plain(x).detach(), 1e-4)
        compiled, naive = _pass(module, x), _pass(plain, x)
        sides = {"gelu": gelu, "compiled": compiled, "naive": naive}
        times = interleave(sides, settings.repeats(5), settings.clock, spec.key)
        ratio, own = Ratio.of(times["compiled"], times["gelu"]), Ratio.of(times["compiled"], times["naive"])
        beside_gelu.append(ratio.median)
        beside_naive.append(own.median)
        kept = f"keeps {_kept(module, x):.0f} B a number, uncompiled {_kept(plain, x):.0f}"
        what = f"{spec.name}: time / GELU's; / its own uncompiled {own.median:.2f}; {kept}"
        table.append(Row(what, PEER, ratio, LIMIT))
    table.sort(key=lambda row: -row.ratio.median if isinstance(row.ratio, Ratio) else 0.0)
    return [_over(beside_gelu, PEER, LIMIT), _over(beside_naive, "its own uncompiled form", Goal("<=", 1.0)), *table]


def _is_elementwise(spec: ActivationSpec) -> bool:
    # The others have modules of their own, which are not fused.
    general = spec.function is not None and spec.module is None
    return general and spec.arity == "elementwise" and spec.kind != "stochastic"


def _pass(f: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward once."""
    at, slope = x.clone().requires_grad_(), torch.ones_like(x)

    def run() -> None:
        at.grad = None
        y = f(at)
        if y.requires_grad:
            y.backward(slope)

    return run


def _kept(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Bytes per number that autograd keeps after the forward pass."""
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        f(x.clone().requires_grad_())
    return sum(kept.values()) / x.numel()


def _over(medians: list[float], peer: str, goal: Goal) -> Row:
    low, median, high = np.percentile(medians, (10, 50, 90))
    share = float(np.mean([goal.met(m) for m in medians]))
    what = f"forward and backward of {len(medians)} functions, medians: time / peer's (the goal is met by {share:.0%})"
    return Row(what, peer, Ratio(float(median), float(low), float(high)), goal, value=max(medians))


if __name__ == "__main__":
    alone(rows, __doc__)
