"""What recording every residual stream costs beside a plain forward pass and beside other libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import actinium as ac
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.peers import lenses, nnsight_recorder
from benchmarks.settings import Settings, gpt2, tokens

__all__ = ["rows"]

PLAIN, HIDDEN, STREAMS = "plain forward", "Hugging Face output_hidden_states", "streams"
Recorder = Callable[[Tensor], tuple[Sequence[Tensor], Tensor]]


def rows(settings: Settings) -> list[Row]:
    """Time with recording, divided by the peer's time. Every peer computes logits too."""
    module = gpt2(settings.tiny)
    libraries: dict[str, Recorder | None] = {lens.name: lens.record for lens in lenses(module)}
    libraries = libraries or {"TransformerLens run_with_cache": None}
    libraries["nnsight trace"] = nnsight_recorder(module)
    table = []
    for batch, length in ((1, 16), (2, 8)) if settings.tiny else ((1, 16), (4, 64)):
        table += _rows(settings, module, tokens(module, batch, length), libraries)
    return table


def _rows(settings: Settings, module: GPT2LMHeadModel, ids: Tensor, libraries: dict[str, Recorder | None]) -> list[Row]:
    installed = {name: record for name, record in libraries.items() if record is not None}
    model = ac.Model(module)
    names = ["blocks.*.resid_pre", f"blocks.{model.n_layers - 1}.resid_post"]

    @torch.no_grad()
    def plain(**options: bool) -> object:
        return module(ids, use_cache=False, **options)

    def ours() -> ac.Recording:
        return model.record(ids, [*names, "logits"])

    _check(module, ids, ours(), installed)
    runs: dict[str, Callable[[], object]] = {
        "actinium": ours,
        STREAMS: lambda: model.record(ids, names),
        PLAIN: plain,
        HIDDEN: lambda: plain(output_hidden_states=True),
        **{name: lambda record=record: record(ids) for name, record in installed.items()},
    }
    size = f"{ids.shape[0]} x {ids.shape[1]} tokens"
    times = interleave(runs, settings.repeats(40), settings.clock, f"record, {size}")
    what = f"record every residual stream, {size}"

    def ratio(above: str, below: str) -> Ratio:
        return Ratio.of(times[above], times[below])

    table = []
    for run, title in (("actinium", f"{what}, with logits"), (STREAMS, f"{what} (the pass ends after the last block)")):
        table.append(Row(f"{title}: time / peer's", PLAIN, ratio(run, PLAIN), Goal("<=", 1.05)))
        table.append(Row(f"{title}: time / peer's", HIDDEN, ratio(run, HIDDEN), Goal("<", 1.0)))
    for name in libraries:
        found = ratio("actinium", name) if name in installed else "not installed"
        table.append(Row(f"{what}, with logits: time / peer's", name, found))
    for name in (HIDDEN, *installed):
        table.append(Row(f"{name}, {size}: time / peer's", PLAIN, ratio(name, PLAIN)))
    return table


def _check(module: GPT2LMHeadModel, ids: Tensor, ours: ac.Recording, libraries: dict[str, Recorder]) -> None:
    """Everyone's streams and logits are the same numbers."""
    with torch.no_grad():
        plain = module(ids, use_cache=False, output_hidden_states=True)
    *streams, last = (ours[name] for name in ours.sites if name != "logits")
    # The library's last hidden state is the one after the final norm.
    with torch.no_grad():
        normed = module.transformer.ln_f(last)
    for i, (found, expected) in enumerate(zip([*streams, normed], plain.hidden_states, strict=True)):
        agree(f"{HIDDEN}, stream {i}", found, expected, 1e-6)
    agree("logits", ours["logits"], plain.logits, 1e-6)
    for name, record in libraries.items():
        theirs, logits = record(ids)
        for i, (found, expected) in enumerate(zip([*streams, last], theirs, strict=True)):
            agree(f"{name}, stream {i}", found, expected.detach(), 1e-4)
        agree(f"{name}, logits", ours["logits"], logits.detach(), 1e-4)


if __name__ == "__main__":
    alone(rows, __doc__)
