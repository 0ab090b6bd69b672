"""`actinium circuit`: which edges carry a behaviour."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from actinium.circuits.graph.circuit import CircuitGraph

__all__ = ["circuit"]

SHARE = 50
TAU = 0.01
KEPT = "acdc.safetensors"


class Finder(StrEnum):
    """How the edges are found."""

    acdc = "acdc"
    eap = "eap"
    eap_ig_inputs = "eap-ig-inputs"
    eap_ig_activations = "eap-ig-activations"
    clean_corrupted = "clean-corrupted"
    mask_gradient = "mask-gradient"
    exact = "exact"
    hisp = "hisp"
    sp = "sp"


class Ablation(StrEnum):
    """What an ablated edge carries."""

    resample = "resample"
    zero = "zero"
    mean = "mean"


CHOOSING = (Finder.acdc, Finder.sp)
"""Finders that say themselves which edges they keep."""
STEPPED = (Finder.eap_ig_inputs, Finder.eap_ig_activations, Finder.mask_gradient)


def circuit(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    task: Annotated[str, typer.Option(help="ioi, facts, ..., repeated_tokens, or a JSONL or CSV file of pairs")],
    method: Annotated[
        Finder,
        typer.Option(help="acdc; scores from gradients; exact, each edge by itself; hisp (parts); sp (a learnt mask)"),
    ] = Finder.eap_ig_inputs,
    metric: Annotated[
        str | None, typer.Option(help="logit_diff, logprob, prob, kl; kl by default for acdc and sp, else the task's")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="keep the edges of the largest scores; 2 % by default")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="choose them from the logits downwards")] = False,
    threshold: Annotated[float | None, typer.Option(help="keep the edges with at least this score")] = None,
    tau: Annotated[
        float | None, typer.Option(help=f"of acdc: what the loss of an edge may cost; {TAU} if absent")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of the integrated methods; 5 if absent")] = None,
    ablation: Annotated[
        Ablation, typer.Option(help="resample; zero; mean, over the clean prompts")
    ] = Ablation.resample,
    n: Annotated[int, typer.Option(min=1, help="prompt pairs")] = 64,
    seed: Annotated[int, typer.Option(help="seed of the draw")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pairs in a pass")] = None,
    rows: Annotated[int, typer.Option(min=1, help="rows of the table")] = 10,
    out: Annotated[Path | None, typer.Option(help="folder for circuit.zarr, circuit.svg and circuit.json")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; cpu if absent")] = None,
) -> None:
    """Find the edges of MODEL that a task needs, show the strongest and how faithful they are alone.

    Where a method only scores edges, those with the largest scores are kept, less those on no path from the input to
    the logits. With --out a search by acdc that was stopped goes on where it was.
    """
    from actinium import circuits
    from actinium.cli.folders import make_folder
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.loading import load

    _check(method, top, greedy, threshold, tau, steps, ablation)
    hide_weight_bars()
    loaded = load(model, device=device)
    pairs = circuits.named_task(loaded, task, n=n, seed=seed)
    if out is not None:
        make_folder(out)
    wired = {"ablation": ablation.value, "reference": pairs if ablation is Ablation.mean else None}
    more: dict[str, Any] = {"batch_size": batch_size}
    if method is Finder.hisp:
        found = circuits.head_importance(loaded, pairs, metric=metric, **more)
    elif method is Finder.sp:
        more = {} if batch_size is None else more
        found = circuits.subnetwork_probing(
            loaded, pairs, metric=metric or "kl", seed=seed, progress=True, **wired, **more
        )
    elif method is Finder.acdc:
        limit = TAU if tau is None else tau
        more |= {"metric": metric or "kl", "progress": True, "resume": None if out is None else out / KEPT}
        try:
            found = circuits.acdc(loaded, pairs, limit, **wired, **more)
        except circuits.Interrupted as stopped:
            graph: Any = stopped.partial
            typer.echo(f"{graph.n_kept:,} of {graph.layout.n_edges:,} edges not taken away so far")
            raise
    else:
        more |= {"metric": metric, "steps": 5 if steps is None else steps, "progress": True}
        found = circuits.edge_attribution(loaded, pairs, method=method.value, **wired, **more)
    if method not in CHOOSING:
        found = _chosen(found, top, greedy, threshold).prune()
    judged = pairs.metric if metric is None else metric
    faithful = circuits.evaluate_circuit(loaded, pairs, found, metric=judged, batch_size=batch_size, **wired)
    _show(found, faithful, judged, rows, out)


def _check(
    method: Finder,
    top: int | None,
    greedy: bool,
    threshold: float | None,
    tau: float | None,
    steps: int | None,
    ablation: Ablation,
) -> None:
    from actinium.core.errors import InputError

    if method in CHOOSING and (top is not None or threshold is not None or greedy):
        raise InputError(f"--top, --greedy and --threshold belong to scores; {method.value} says itself what it keeps")
    if threshold is not None and (top is not None or greedy):
        raise InputError("--threshold and --top (or --greedy) choose edges in different ways; give one of them")
    if tau is not None and method is not Finder.acdc:
        raise InputError(f"--tau belongs to acdc, not to {method.value}")
    if steps is not None and method not in STEPPED:
        raise InputError(f"--steps belongs to {', '.join(m.value for m in STEPPED)}, not to {method.value}")
    if method is Finder.hisp and ablation is not Ablation.resample:
        raise InputError(f"hisp compares the two runs of a pair and knows no {ablation.value} ablation")


def _chosen(found: CircuitGraph, top: int | None, greedy: bool, threshold: float | None) -> CircuitGraph:
    if threshold is not None:
        return found.threshold(threshold)
    n = max(1, found.layout.n_edges // SHARE) if top is None else top
    return found.greedy(n) if greedy else found.top(n)


def _show(found: CircuitGraph, faithful: Any, metric: str, rows: int, out: Path | None) -> None:
    """The strongest edges as a table, how faithful all are, and the files where there is a folder for them."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("edge", "score", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    kept = found.table()
    for row in kept.head(rows).itertuples(index=False):
        table.add_row(row.edge, f"{row.score:.4g}")
    console.print(f"{found.method}: {found.n_kept:,} of {found.layout.n_edges:,} edges, {len(found.nodes)} parts")
    console.print(table, highlight=False, markup=False)
    numbers = {name: float(faithful[name]) for name in ("m_full", "m_circuit", "m_empty", "faithfulness")}
    console.print(f"{metric}, {', '.join(f'{name} {value:.3g}' for name, value in numbers.items())}")
    if out is None:
        return
    import json

    names = ["circuit.zarr", "circuit.json"]
    if found.n_kept:
        found.svg(out / "circuit.svg")
        names.append("circuit.svg")
    page = found.json() | {"metric": metric, **numbers}
    (out / "circuit.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    found.save(out / "circuit.zarr")
    (out / KEPT).unlink(missing_ok=True)
    typer.echo(f"saved: {out}: {', '.join(names)}")
