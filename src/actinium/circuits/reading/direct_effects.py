"""Direct and total effects of what each part writes at the last token, and the few parts that write the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import Scorer, last_logits
from actinium.circuits.patching.readout import held_readout
from actinium.circuits.reading.readout import Writes, check_readout, writes
from actinium.core import replay
from actinium.core.edits import Replace
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.metrics import accuracy, get_metric
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["choice_metric", "direct_effect", "output_nodes", "total_effect"]

SOURCES = ("pair", "others")
# Most logits held at once.
IN_FLIGHT = 2**26
PAPER = "chinchilla-mcq-circuit"


def choice_metric(option_ids: Sequence[int] | Tensor) -> Callable[..., Tensor]:
    """Metric: logit of the answer minus the mean logit of the other options.

    Args:
        option_ids: (m,) token ids of the options, two or more, the same for all prompts.

    Raises:
        InputError: there are fewer than two options, or an answer is none of them (when the metric is called).

    Source: Lieberum et al., 2023, section 2.
    """
    options = torch.as_tensor(list(option_ids))
    if options.ndim != 1 or len(options) < 2:
        raise InputError(f"expected the token ids of two options or more, not {tuple(options.shape)}")

    def centred(
        logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None
    ) -> Tensor:
        picked = logits.float()[:, options.to(logits.device)]
        right = answer_ids.to(logits.device)[:, None] == options.to(logits.device)
        if not bool(right.any(1).all()):
            raise InputError("an answer is none of the options")
        others = picked.masked_fill(right, 0.0).sum(1) / (len(options) - 1)
        return picked.masked_fill(~right, 0.0).sum(1) - others

    return centred


def direct_effect(
    model: Model,
    task: Task,
    *,
    metric: str | Callable[..., Tensor] | None = None,
    source: str = "pair",
    freeze_norm: bool = False,
    heads: bool = True,
    by_row: bool = False,
    seed: int = 0,
) -> Result:
    """Loss of the metric when only the logits, and no later part, see another prompt's output of a part.

    Args:
        model: a decoder whose blocks are known.
        task: prompts; the outputs are replaced at their last token.
        metric: as in `patch`; the task's own by default.
        source: whose outputs are put in: "pair" (the corrupt prompt of the pair) or "others" (another clean prompt,
            drawn among those with another answer).
        freeze_norm: hold the final norm's scale instead of computing it anew.
        heads: single heads instead of attention layers.
        by_row: keep every prompt.
        seed: of the draw.

    Returns:
        Result: `effect` over part, the metric's mean loss (positive: the part speaks for the answer), with `layer`;
        `m_clean`.

    Raises:
        InputError: as `patch`; a prompt has no other with another answer.
        UnknownNameError: there is no such source or metric.

    Source: Lieberum et al., 2023, section 3.2.
    """
    run = _Run(model, task, metric, source, heads, seed)
    streams = run.own.stream + run.difference
    effects = run.clean - run.scores(streams, freeze_norm)
    return run.result("direct_effect", effects, by_row, source=source, freeze_norm=freeze_norm, seed=seed)


def total_effect(
    model: Model,
    task: Task,
    *,
    metric: str | Callable[..., Tensor] | None = None,
    source: str = "pair",
    heads: bool = True,
    by_row: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Loss of the metric when a part's output at the last token is another prompt's and all later parts see it.

    Args:
        model, task, metric, source, heads, by_row, seed: as in `direct_effect`; total minus direct effect is indirect.
        progress: show a progress bar.

    Returns:
        Result as that of `direct_effect`.

    Raises:
        InputError, UnknownNameError: as `direct_effect`.

    Source: Lieberum et al., 2023, section 3.2.
    """
    run = _Run(model, task, metric, source, heads, seed)
    changed = [i for i, step in enumerate(run.difference) if bool(step.any())]
    effects = torch.zeros(len(run.own.names), len(task), dtype=torch.float64)
    if changed:
        variants = run.variants(changed)
        values = model.replay(task.prompts(), variants, metric=run.score, progress=progress)
        effects[changed] = run.clean - values.cpu().double()
    return run.result("total_effect", effects, by_row, source=source, seed=seed)


def output_nodes(
    model: Model,
    task: Task,
    *,
    cover: float = 0.8,
    metric: str | Callable[..., Tensor] | None = None,
    source: str = "pair",
    freeze_norm: bool = False,
    heads: bool = True,
    seed: int = 0,
) -> Result:
    """The smallest set of parts, by size of their direct effect, whose direct paths alone keep the metric.

    Args:
        model, task, metric, source, freeze_norm, heads, seed: as in `direct_effect`.
        cover: share of the metric to be kept, in (0, 1]: 0 is where the direct paths of all parts are replaced, 1 the
            run itself.

    Returns:
        Result over the parts in order of their effect: `kept`, the share of the metric that they and those before them
        keep; `accuracy`; `effect`; `chosen`; `layer`.

    Raises:
        InputError: as `direct_effect`; `cover` is not in (0, 1]; replacing every direct path changes nothing.

    Source: Lieberum et al., 2023, section 3.2.
    """
    if not 0 < cover <= 1:
        raise InputError(f"cover is a share above 0 and at most 1, not {cover}")
    run = _Run(model, task, metric, source, heads, seed)
    effects = (run.clean - run.scores(run.own.stream + run.difference, freeze_norm)).mean(1)
    order = effects.abs().argsort(descending=True, stable=True)
    every = run.difference.sum(0)
    # The paths of all parts but the first k are replaced, k from none to all.
    steps = torch.cat([every[None], every - run.difference[order].cumsum(0)])
    scores, right = run.scores(run.own.stream + steps, freeze_norm, also=accuracy)
    low, high = float(scores[0].mean()), float(run.clean.mean())
    if abs(high - low) < 1e-7 * max(1.0, abs(high)):
        raise InputError("replacing the direct path of every part changes nothing: the two prompts end alike")
    kept = (scores[1:].mean(1) - low) / (high - low)
    enough = int((kept >= cover - 1e-6).int().argmax()) + 1
    names = [run.own.names[i] for i in order.tolist()]
    data = {
        "kept": (("part",), kept.numpy()),
        "accuracy": (("part",), right[1:].mean(1).numpy()),
        "effect": (("part",), effects[order].numpy()),
        "chosen": (("part",), np.arange(len(names)) < enough),
        "m_clean": ((), high),
        "m_replaced": ((), low),
    }
    coords = {"part": names, "layer": ("part", [run.own.layers[i] for i in order.tolist()])}
    hints = {"plot": {"variables": ["kept", "accuracy"], "ylabel": "share kept by the first parts"}}
    about = run.provenance(cover=cover, source=source, freeze_norm=freeze_norm, seed=seed)
    return Result(xr.Dataset(data, coords=coords, attrs=hints), "output_nodes", PAPER, about)


class _Run:
    """Both prompts taken apart, and how a changed stream is scored."""

    def __init__(
        self, model: Model, task: Task, metric: str | Callable[..., Tensor] | None, source: str, heads: bool, seed: int
    ) -> None:
        check_readout(model, task)
        if source not in SOURCES:
            raise UnknownNameError(unknown("source", source, SOURCES))
        self.model, self.task = model, task
        self.metric: Any = task.metric if metric is None else metric
        get_metric(self.metric)
        self.chosen = _others(task, seed) if source == "others" else None
        self.own: Writes = writes(model, task.prompts(), heads)
        there = self.own if self.chosen is not None else writes(model, task.prompts(corrupt=True), heads)
        values = there.values if self.chosen is None else there.values[:, self.chosen]
        self.difference = values - self.own.values
        logits, _ = last_logits(model, task.prompts(), [])
        self.score = Scorer(self.metric, task.answer_ids, task.wrong_ids, logits)
        self.clean = self.score.run(logits, "clean").cpu().double()

    def scores(self, streams: Tensor, freeze: bool, also: Callable[..., Tensor] | None = None) -> Any:
        """(n, row) metric of streams (n, row, d_model) that enter the final norm; with `also` a second metric."""
        read = held_readout(self.model, self.own.stream) if freeze else lambda x: replay.tail(self.model, x)
        size = max(1, IN_FLIGHT // (streams.shape[1] * int(self.model.config.vocab_size)))
        first, second = [], []
        with torch.no_grad():
            for part in streams.split(size):
                logits = read(part)
                first.append(self.score(logits).cpu().double())
                if also is not None:
                    ids = self.task.answer_ids, self.task.wrong_ids
                    second.append(torch.stack([also(one, *ids) for one in logits]).cpu().double())
        return torch.cat(first) if also is None else (torch.cat(first), torch.cat(second))

    def variants(self, parts: list[int]) -> list[dict[str, Any]]:
        """For each part the edit that puts in its output at the last token."""
        sites = {self.site(self.own.names[i])[0] for i in parts}
        given = self.task.prompts(corrupt=self.chosen is None)
        rec = self.model.record(given, sorted(sites), positions=[-1])
        out = []
        for i in parts:
            site, head = self.site(self.own.names[i])
            value = rec[site] if self.chosen is None else rec[site][self.chosen]
            out.append({site: Replace(value).at(positions=[-1], heads=head)})
        return out

    def site(self, name: str) -> tuple[str, int | None]:
        """Site and head behind the name of a part."""
        if name == "embed":
            return "blocks.0.resid_pre", None
        layer, _, rest = name[1:].partition(".")
        if name[0] == "m":
            return f"blocks.{layer}.mlp.out", None
        if rest.startswith("h"):
            return f"blocks.{layer}.attn.z", int(rest[1:])
        whole = f"blocks.{layer}.attn.out"
        return (whole if self.model.has(whole) else f"blocks.{layer}.mixer.out"), None

    def result(self, method: str, effects: Tensor, by_row: bool, **settings: Any) -> Result:
        """(part, row) effects, labelled."""
        data: dict[str, Any] = {
            "effect": (("part",), effects.mean(1).numpy()),
            "m_clean": ((), float(self.clean.mean())),
        }
        if by_row:
            data["by_row"] = (("part", "row"), effects.numpy())
        coords = {"part": list(self.own.names), "layer": ("part", list(self.own.layers))}
        hints = {"plot": {"kind": "bar", "variables": ["effect"], "ylabel": "loss of the metric"}}
        return Result(xr.Dataset(data, coords=coords, attrs=hints), method, PAPER, self.provenance(**settings))

    def provenance(self, **settings: Any) -> dict[str, Any]:
        """Of the model, the prompts and the settings."""
        task, name = self.task, self.metric if isinstance(self.metric, str) else "metric"
        return provenance(
            self.model,
            {"clean": task.clean_ids, "corrupt": task.corrupt_ids, "mask": task.mask, "answers": task.answer_ids},
            metric=name,
            **settings,
        )


def _others(task: Task, seed: int) -> Tensor:
    """(row,) for each prompt another one, drawn among those with another answer."""
    random = torch.Generator().manual_seed(seed)
    chosen = []
    for row, answer in enumerate(task.answer_ids.tolist()):
        rest = (task.answer_ids != answer).nonzero().flatten()
        if not len(rest):
            raise InputError(f"row {row}: no prompt of the task has another answer to resample from")
        chosen.append(rest[torch.randint(len(rest), (1,), generator=random)])
    return torch.cat(chosen)
