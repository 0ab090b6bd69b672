"""What an edit, or a recording, costs while a model generates with a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import actinium as ac
from benchmarks.page import alone
from benchmarks.paired import Disagreement, Goal, Ratio, Row, agree, interleave
from benchmarks.settings import Settings, gpt2, tokens

__all__ = ["rows"]

EDIT, RECORDING, HOOK, PLAIN = "edit", "recording", "a hand-written forward hook", "plain generation"


def rows(settings: Settings) -> list[Row]:
    """Time of generation with each, divided by that of plain generation."""
    module = gpt2(settings.tiny)
    model = ac.Model(module)
    layer = model.n_layers // 2
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    ids = tokens(module, 1, 8 if settings.tiny else 16)
    new = 6 if settings.tiny else 32
    streams = ["blocks.*.resid_pre", f"blocks.{model.n_layers - 1}.resid_post"]

    def generate(around) -> Tensor:
        with around:
            return module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )

    site = f"blocks.{layer}.resid_post"
    runs = {
        EDIT: lambda: generate(model.edit({site: ac.edits.Add(vector, scale=4.0)})),
        RECORDING: lambda: generate(model.recording(streams)),
        HOOK: lambda: generate(_hooked(module, layer, 4.0 * vector)),
        PLAIN: lambda: generate(nullcontext()),
    }
    made = {name: run() for name, run in runs.items()}
    agree("tokens generated under the edit and under the hook", made[EDIT], made[HOOK], 0.0)
    agree("tokens generated with and without recording", made[RECORDING], made[PLAIN], 0.0)
    if torch.equal(made[EDIT], made[PLAIN]):
        raise Disagreement("the edit changes no token that is generated, so nothing shows that it was in force")
    size = f"{new} tokens after {ids.shape[1]}"
    times = interleave(runs, settings.repeats(25), settings.clock, "generate")
    what = {
        EDIT: f"generate {size} under an Add edit: time / peer's",
        RECORDING: f"generate {size} while every residual stream is recorded: time / peer's",
        HOOK: f"generate {size} under {HOOK}: time / peer's",
    }
    goals = {EDIT: Goal("<=", 1.02)}
    return [Row(what[name], PLAIN, Ratio.of(times[name], times[PLAIN]), goals.get(name)) for name in what]


@contextmanager
def _hooked(module: GPT2LMHeadModel, layer: int, vector: Tensor) -> Iterator[None]:
    """The least that adds a vector to a block's output."""
    handle = module.transformer.h[layer].register_forward_hook(lambda block, args, output: output + vector)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    alone(rows, __doc__)
