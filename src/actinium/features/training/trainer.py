"""The trainer of all dictionaries: one pass over the data for any number of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.training.checkpoint import read_checkpoint, write_checkpoint
from actinium.features.training.config import TrainConfig
from actinium.features.training.data import Source, source_of
from actinium.features.training.distributed import Team
from actinium.features.training.logs import Logs
from actinium.features.training.revival import Silence, fired_in, resample
from actinium.features.training.schedule import optimizer_of, rate_factor, sparsity_factor

__all__ = ["Interrupted", "train"]

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Interrupted(KeyboardInterrupt):
    """Training was stopped; dictionaries are as they were after the last whole step."""


class Run:
    """One dictionary in training.

    Attributes:
        dictionary, optimizer: what is trained, and by what.
        silence: how long each latent has not been active.
        history: entries of the log.
        resamplings: how often dead latents were resampled.
    """

    def __init__(self, dictionary: Dictionary, config: TrainConfig, source: Source, device: torch.device) -> None:
        self.dictionary, self.config = dictionary, config
        sample = source.sample(config.sample, config.seed)
        x, y = dictionary.arrange(sample)
        width, out = x.shape[-1], x.shape[-1] if y is None else y.shape[-1]
        if "d_in" not in vars(dictionary):
            dictionary.build(width, out)
            dictionary.measure(x.flatten(0, -2), y)
        elif (dictionary.d_in, dictionary.d_out) != (width, out):
            raise InputError(
                f"the dictionary maps width {dictionary.d_in} to {dictionary.d_out}, the data from {width} to {out}"
            )
        dictionary.to(device).train()
        self.rate = config.rate(dictionary.d_sae)
        self.optimizer = optimizer_of(config, list(dictionary.parameters()), self.rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")
        self.silence = Silence(dictionary.d_sae, device)
        self.history: list[dict[str, float]] = []
        self.resamplings = 0
        self.loss: Callable[..., tuple[dict[str, Tensor], Code | Tensor]] = dictionary.loss
        if config.compile:
            self.loss = torch.compile(dictionary.loss)

    def accumulate(
        self, x: Tensor, y: Tensor | None, warm: float, team: Team
    ) -> tuple[dict[str, Tensor], Code | Tensor]:
        """Add the gradients of a batch."""
        dead = self.silence.dead(self.config.dead_after) if self.config.revive == "auxiliary" else None
        half = HALF.get(self.config.precision)
        cast: AbstractContextManager[Any] = nullcontext() if half is None else torch.autocast(x.device.type, dtype=half)
        with cast:
            # A number that changes from step to step would be compiled anew each time; a tensor is not.
            parts, latents = self.loss(x, y, dead, torch.tensor(warm, device=x.device))
            total = torch.stack([p.float() for p in parts.values()]).sum() / self.config.accumulate
        self.scaler.scale(total).backward()
        self.silence.update(team.add(fired_in(latents)), len(x) * team.size)
        return parts, latents

    def step(self, factor: float, team: Team) -> float:
        """One step of the optimiser; returns the norm of the gradient."""
        parameters = list(self.dictionary.parameters())
        team.average(parameters)
        self.scaler.unscale_(self.optimizer)
        self.dictionary.before_step()
        norm = float("nan")
        if self.config.clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.clip))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.dictionary.after_step()
        team.agree(self.dictionary.rule.buffers())
        return norm


def train(
    dictionaries: Sequence[Dictionary],
    data: Any,
    *,
    config: TrainConfig | None = None,
    sites: str | Sequence[str] | None = None,
    progress: bool = False,
    source: dict[str, Any] | None = None,
    texts: Any = None,
    **options: Any,
) -> Result:
    """Train dictionaries on the same rows, each of which is read once for all of them.

    Started by `torchrun`, each process takes a share of every batch.

    Args:
        dictionaries: any architectures; those without parameters are built.
        data, sites, texts: see `source_of`.
        config: settings; fields can also be given by name.
        progress: show a progress bar.
        source: options of a model as the data (`block`, `skip_first`, `batch_size`).
        options: fields of `TrainConfig`.

    Returns:
        Result over `dictionary` and `step`: `loss` and its parts, `l0`, `dead` latents, `gradient_norm` unclipped.

    Raises:
        InputError: rows are not finite, constant, or of another width; a setting is out of range; a checkpoint in the
            folder belongs to another run.
        Interrupted: stopped by Ctrl-C; with a folder the same call goes on.
    """
    config = dataclasses.replace(config or TrainConfig(), **_known(options))
    rows = source_of(data, sites, texts, **(source or {}))
    if not dictionaries:
        raise InputError("there is no dictionary to train")
    found = next(dictionaries[0].parameters(), None)
    device = torch.device(config.device or (found.device if found is not None else "cpu"))
    team = Team(device)
    _check_team(team, config)
    runs = [Run(d, config, rows, device) for d in dictionaries]
    steps = config.steps(rows.rows)
    settings = {**config.record(), "steps": steps, "processes": team.size}
    folder = None if config.folder is None else Path(config.folder)
    done = 0 if folder is None else read_checkpoint(folder, runs, rows.mark, settings)
    logs = Logs(config.logs if team.first else (), config.folder, settings, done)
    try:
        done = _loop(runs, rows, config, steps, done, folder if team.first else None, settings, logs, team, progress)
    finally:
        logs.close()
        team.close()
    for run in runs:
        run.dictionary.rows_ = done * config.batch_size * config.accumulate
        run.dictionary.eval()
    return _result(runs, rows, config)


def _loop(
    runs: list[Run],
    rows: Source,
    config: TrainConfig,
    steps: int,
    done: int,
    folder: Path | None,
    settings: dict[str, Any],
    logs: Logs,
    team: Team,
    progress: bool,
) -> int:
    batches = rows.batches(config.batch_size, config.seed, done * config.accumulate)
    device = runs[0].silence.rows.device
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    clock, since = time.perf_counter(), done
    with Progress(*columns, transient=True, disable=not progress or not team.first) as bar:
        task = bar.add_task("training", total=steps, completed=done)
        try:
            for step in range(done, steps):
                taken = [[p.to(device) for p in parts] for parts in islice(batches, config.accumulate)]
                log = (step + 1) % config.log_every == 0 or step + 1 == steps
                for i, run in enumerate(runs):
                    numbers = _step(run, taken, config, step, steps, team)
                    if log:
                        run.history.append({"step": step + 1, **numbers})
                        rate = (
                            (step + 1 - since) * config.batch_size * config.accumulate / (time.perf_counter() - clock)
                        )
                        shown = {**numbers, "rows_per_second": rate}
                        named = {f"{i}/{k}": v for k, v in shown.items()} if len(runs) > 1 else shown
                        logs.write(step + 1, named, bar.console.print)
                        words = f"loss {numbers['loss']:.4g}  L0 {numbers['l0']:.1f}"
                        bar.update(task, description=words)
                done = step + 1
                bar.update(task, completed=done)
                if folder is not None and (done % config.checkpoint_every == 0 or done == steps):
                    write_checkpoint(folder, runs, done, rows.mark, settings)
        except KeyboardInterrupt:
            for run in runs:
                run.dictionary.eval()
            if folder is None:
                raise Interrupted(f"stopped after {done} of {steps} steps") from None
            # A step that was not finished is done again; what it changed already would be changed twice.
            raise Interrupted(
                f"stopped after {done} of {steps} steps; the same call goes on from the last checkpoint in {folder}"
            ) from None
    return done


def _step(
    run: Run, taken: list[list[Tensor]], config: TrainConfig, step: int, steps: int, team: Team
) -> dict[str, float]:
    """One step of one dictionary, and its numbers."""
    warm = sparsity_factor(config, step, steps)
    for parts in taken:
        x, y = run.dictionary.arrange(parts)
        x, y = team.share(x), None if y is None else team.share(y)
        losses, latents = run.accumulate(x, y, warm, team)
    values = {name: float(value.detach()) for name, value in losses.items()}
    if not all(np.isfinite(v) for v in values.values()) and config.precision != "float16":
        bad = sum(int((~p.isfinite().all(1)).sum()) for parts in taken for p in parts)
        reason = f"{bad} rows of this batch hold NaN or infinity" if bad else "lower the learning rate, or normalise"
        raise InputError(f"the loss is not finite at step {step + 1}: {reason}")
    norm = run.step(rate_factor(config, step, steps), team)
    seen = (step + 1) * config.batch_size * config.accumulate
    due = config.revive == "resample" and run.resamplings < config.resample_times
    if due and seen // config.resample_every > run.resamplings:
        run.resamplings += 1
        resample(run.dictionary, x, y, run.silence.window == 0, run.optimizer, config.seed + step)
        run.silence.window.zero_()
    numbers = {"loss": sum(values.values()), **values, "l0": _l0(latents)}
    numbers["dead"] = float(run.silence.dead(config.dead_after).sum())
    if not np.isnan(norm):
        numbers["gradient_norm"] = norm
    return numbers


def _check_team(team: Team, config: TrainConfig) -> None:
    """Refuse what several processes would do differently."""
    if team.size > 1 and config.revive == "resample":
        raise InputError("processes see different rows, and would resample differently: use revive='auxiliary'")
    if config.batch_size % team.size:
        raise InputError(f"a batch of {config.batch_size} rows cannot be shared evenly by {team.size} processes")


def _l0(latents: Code | Tensor) -> float:
    if isinstance(latents, Code):
        return float((latents.values.detach() > 0).sum()) / max(1, len(latents))
    return float((latents.detach() > 0).sum()) / len(latents)


def _known(options: dict[str, Any]) -> dict[str, Any]:
    from actinium.core.errors import UnknownNameError, unknown

    names = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in options:
        if name not in names:
            raise UnknownNameError(unknown("setting of training", name, names))
    return options


def _result(runs: list[Run], rows: Source, config: TrainConfig) -> Result:
    """The logs, with a coordinate for each dictionary."""
    names = sorted({k for run in runs for entry in run.history for k in entry} - {"step"})
    steps = [int(entry["step"]) for entry in runs[0].history]
    data: dict[str, Any] = {}
    for name in ("loss", *[n for n in names if n != "loss"]):
        table = [[entry.get(name, np.nan) for entry in run.history] for run in runs]
        data[name] = (("dictionary", "step"), np.array(table, dtype=float).reshape(len(runs), len(steps)))
    labels = [f"{i} {type(run.dictionary).__name__}" for i, run in enumerate(runs)]
    found = xr.Dataset(data, {"dictionary": labels, "step": steps}, {"plot": {"kind": "line", "x": "step"}})
    about = provenance(None, None, config.seed, data=rows.mark, dictionaries=[repr(r.dictionary) for r in runs])
    return Result(found, "train", provenance=about | {"training": config.record()})
