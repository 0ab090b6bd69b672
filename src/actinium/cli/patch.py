"""`actinium patch`: which activations carry a behaviour."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from actinium.circuits.patching.effects import Effects

__all__ = ["patch"]


class Method(StrEnum):
    """How an effect is found: exactly, from gradients, along paths, or by taking away."""

    patch = "patch"
    path = "path"
    atp = "atp"
    atp_star = "atp*"
    ig = "ig"
    relp = "relp"
    zero = "zero"
    mean = "mean"
    resample = "resample"
    noise = "noise"


ABLATIONS = (Method.zero, Method.mean, Method.resample, Method.noise)


class Mode(StrEnum):
    """Which run is patched."""

    denoise = "denoise"
    noise = "noise"


def patch(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    task: Annotated[str, typer.Option(help="ioi, facts, ..., repeated_tokens, or a JSONL or CSV file of pairs")],
    at: Annotated[list[str], typer.Option(help="site or pattern; several with several --at")] = ["blocks.*.resid_pre"],  # noqa: B006
    over: Annotated[str | None, typer.Option(help="pos, layer, head, head_pos or unit; by the sites if absent")] = None,
    method: Annotated[
        Method, typer.Option(help="patch, path; estimates atp, atp*, ig, relp; ablations zero, mean, resample, noise")
    ] = Method.patch,
    mode: Annotated[Mode | None, typer.Option(help="denoise or noise; the method's own by default")] = None,
    ablation: Annotated[str, typer.Option(help="of patch and path: resample or gaussian")] = "resample",
    metric: Annotated[str | None, typer.Option(help="logit_diff, logprob, prob, kl, rank, accuracy")] = None,
    receivers: Annotated[str, typer.Option(help="of path: logits, or a pattern of sites")] = "logits",
    n: Annotated[int, typer.Option(min=1, help="prompt pairs")] = 64,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pairs in a pass")] = None,
    top: Annotated[int, typer.Option(min=1, help="rows of the table")] = 10,
    out: Annotated[Path | None, typer.Option(help="folder for effect.zarr, effect.svg and effect.json")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; cpu if absent")] = None,
) -> None:
    """Patch or ablate activations of MODEL on a task, and show the largest effects.

    With --out a sweep that was stopped goes on where it was.
    """
    from actinium import circuits
    from actinium.cli.folders import make_folder
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError
    from actinium.core.loading import load

    hide_weight_bars()
    loaded = load(model, device=device)
    pairs = circuits.named_task(loaded, task, n=n, seed=seed)
    if out is not None:
        make_folder(out)
    options: dict[str, Any] = {"metric": metric, "seed": seed, "batch_size": batch_size}
    if mode is not None:
        if method in ABLATIONS:
            raise InputError(f"--mode belongs to patching; {method.value} ablation takes away from the clean run")
        options["mode"] = mode.value
    if method == Method.path:
        options["receivers"] = receivers
    if method in (Method.patch, Method.path):
        options["ablation"] = ablation
    if method is Method.patch or method in ABLATIONS:
        options |= {"progress": True, "resume": None if out is None else out / "sweep.safetensors"}
    try:
        found = _function(method)(loaded, pairs, at, over if over is not None else _over(loaded, at, method), **options)
    except circuits.Interrupted as stopped:
        if stopped.partial is not None:
            _show(cast("Effects", stopped.partial), top, None)
        raise
    _show(found, top, out)


def _function(method: Method) -> Callable[..., Effects]:
    """The method as a function of model, task, sites and what is swept."""
    from functools import partial

    from actinium import circuits

    if method in ABLATIONS:
        return partial(circuits.ablate, method=method.value)
    if method is Method.path:
        return lambda model, task, at, over, **options: circuits.path_patch(model, task, at, over=over, **options)
    if method is Method.relp:
        return circuits.relevance_patch
    return circuits.patch if method is Method.patch else partial(circuits.attribution_patch, method=method.value)


def _over(model: Any, at: list[str], method: Method) -> str:
    """What is swept where nothing is said: heads where there are some, else positions; whole sites of an ablation."""
    if all({"head", "kv_head"} & set(site.dims) for site in model.sites(at)):
        return "head"
    return "layer" if method in ABLATIONS or method is Method.path else "pos"


def _show(found: Effects, top: int, out: Path | None) -> None:
    """The largest effects as a table; the files where there is a folder for them."""
    from rich.console import Console
    from rich.table import Table

    rows = found.table()
    rows = rows.reindex(rows["effect"].abs().sort_values(ascending=False).index).dropna(subset=["effect"])
    shown = [c for c in rows.columns if c not in ("m_clean", "m_corrupt", "patched")]
    console, table = Console(), Table(*shown, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in rows[shown].head(top).itertuples(index=False):
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row))
    console.print(found.heading())
    console.print(table)
    if out is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    found.plot(figure.subplots())
    figure.savefig(out / "effect.svg")
    rows.to_json(out / "effect.json", orient="records", indent=1)
    found.save(out / "effect.zarr")
    (out / "sweep.safetensors").unlink(missing_ok=True)
    typer.echo(f"saved: {out / 'effect.zarr'}, effect.svg, effect.json")
