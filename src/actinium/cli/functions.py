"""`actinium functions`: the catalogue of activation functions, what each is like, and how they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(help="Activation functions: list, show, compare, search.", no_args_is_help=True)


@app.command(name="list")
def list_(
    find: Annotated[str | None, typer.Argument(help="text that the name, formula, source or family holds")] = None,
    family: Annotated[str | None, typer.Option(help="part of a family's name")] = None,
    trainable: Annotated[
        bool | None, typer.Option("--trainable/--fixed", help="with or without learnt parameters")
    ] = None,
    smooth: Annotated[bool | None, typer.Option("--smooth/--kinked", help="continuously differentiable or not")] = None,
    bounded: Annotated[bool | None, typer.Option("--bounded/--unbounded", help="whether the values are")] = None,
    monotone: Annotated[bool | None, typer.Option("--monotone/--turning", help="whether it turns")] = None,
    arity: Annotated[str | None, typer.Option(help="elementwise, gated, vector or channels")] = None,
    experimental: Annotated[bool, typer.Option("--experimental", help="uncertain formulas too")] = False,
) -> None:
    """List the catalogue: name, family, formula, parameters, source."""
    from rich.console import Console
    from rich.table import Table

    from actinium import functions

    names = functions.list(
        family=family, trainable=trainable, smooth=smooth, bounded=bounded, monotone=monotone, arity=arity,
        min_confidence="c" if experimental else "b",
    )  # fmt: skip
    if find is not None:
        found = set(functions.search(find))
        names = [n for n in names if n in found]
    table = Table("name", "family", "formula", "parameters", "source", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in names:
        spec = functions.spec(name)
        values = ", ".join(f"{k}={p.default:g}{'*' if p.trainable else ''}" for k, p in spec.parameters.items())
        table.add_row(name, spec.family, spec.formula, values, spec.source)
    if names:
        Console().print(table, highlight=False, markup=False)
    typer.echo(f"{len(names)} functions" + (" (* learnt)" if names else ""))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="name or alias, such as golu")],
    lo: Annotated[float, typer.Option(help="left end of the interval that is looked at")] = -10.0,
    hi: Annotated[float, typer.Option(help="right end")] = 10.0,
    sb: Annotated[float, typer.Option(min=0.0, help="standard deviation of biases at the edge of chaos")] = 0.2,
    out: Annotated[
        Path | None, typer.Option(help="figure of the function and two derivatives, such as golu.svg")
    ] = None,
) -> None:
    """Show a function: formula, measured properties, and where its edge of chaos lies."""
    from rich.console import Console
    from rich.table import Table

    from actinium import functions, signal
    from actinium.core.errors import InputError

    spec = functions.spec(name)
    report = functions.analyze_activation(name, lo, hi)
    typer.echo(f"{spec.name}: {spec.formula}    ({spec.family}; {spec.source})")
    if spec.note:
        typer.echo(spec.note)
    table = Table("property", "value", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for key, value in report.to_dict().items():
        if key not in ("name", "lo", "hi"):
            table.add_row(key.replace("_", " "), _said(value))
    try:
        edge = signal.EdgeOfChaos(spec).curve([sb])
        sw, q = float(edge["sw"].values[0]), float(edge["q"].values[0])
        table.add_row("edge of chaos", f"weights {sw:.4g} / sqrt(n) with biases {sb:g}; variance {q:.4g}")
    except InputError as error:
        table.add_row("edge of chaos", str(error))
    Console().print(table, highlight=False, markup=False)
    if out is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.5), layout="constrained")
        report.curves.plot(figure.add_subplot())
        figure.savefig(out)
        typer.echo(f"figure: {out}")


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(_said(v) if not isinstance(v, tuple) else f"({_said(v)})" for v in value) or "none"
    return str(value)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(help="functions; the first one is the reference")],
    task: Annotated[str, typer.Option(help="digits, shapes, lm, regression, or a causal language model")] = "digits",
    seeds: Annotated[int, typer.Option(min=1, help="number of seeds")] = 5,
    epochs: Annotated[int | None, typer.Option(min=1, help="of training; the task's own if absent")] = None,
    text: Annotated[Path | None, typer.Option(help="texts for a model, one per line")] = None,
    old: Annotated[str | None, typer.Option(help="which function of a model is exchanged; all if absent")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder for table.csv, figures, the values (Zarr) and finished runs: a stopped comparison goes on"
        ),
    ] = None,
) -> None:
    """Train the same network with each function, from the same weights on the same batches, and compare."""
    from rich.console import Console
    from rich.table import Table

    from actinium import functions
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError

    hide_weight_bars()
    settings = {} if epochs is None else {"epochs": epochs}
    on: Any = task
    if task in functions.TASKS and (text is not None or old is not None):
        raise InputError(f"--text and --old are for a model; {task} has its own data and network")
    if task not in functions.TASKS:
        if text is None:
            raise InputError(
                f"the tasks are {', '.join(functions.TASKS)}; for a model, such as {task!r}, pass its texts with --text"
            )
        from actinium.core.loading import load

        texts = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        on, settings = functions.model_task(load(task), texts, old, **settings), {}
    file = None if out is None else out / "runs.jsonl"
    found = functions.compare_activations(names, on, range(seeds), path=file, progress=True, **settings)
    data = found.data
    columns = (
        "mean",
        "low",
        "high",
        "difference",
        "p_holm",
        "effect",
        "latent_variance",
        "gradient_norm",
        "dead_units",
    )
    table = Table(
        data.attrs["metric"], *(c.replace("_", " ") for c in columns), box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i in data["rank"].values.argsort():
        row = data.isel(activation=int(i))
        table.add_row(str(row["activation"].values), *(f"{float(row[c]):.4g}" for c in columns))
    Console().print(table, highlight=False, markup=False)
    best, count = data["p_holm"].values, int((data["p_holm"] < 0.05).sum())
    typer.echo(
        f"{count} of {len(best) - 1} differ from {names[0]} at p < 0.05 (paired t-test over {seeds} seeds, Holm)"
    )
    if out is not None:
        _write(found, out)


def _write(found: Any, out: Path) -> None:
    """Table, figures and values of a comparison."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    data = found.data
    flat = data[[k for k in data if data[k].dims == ("activation",)]].to_dataframe()
    flat.to_csv(out / "table.csv")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    scores, curves = figure.subplots(1, 2)
    found.plot(scores)
    for name in data["activation"].values:
        curves.plot(data["curve"].sel(activation=name).mean("seed").values, label=str(name))
    curves.set(xlabel="epoch", ylabel="training loss")
    curves.legend(fontsize="small")
    figure.savefig(out / "comparison.svg")
    found.save(out / "comparison.zarr")
    typer.echo(f"written: {out}")


@app.command()
def search(
    method: Annotated[str, typer.Option(help="exhaustive (a random sample), rl or evolution")] = "exhaustive",
    task: Annotated[str, typer.Option(help="digits, shapes, lm or regression")] = "digits",
    budget: Annotated[int, typer.Option(min=1, help="how many networks are trained")] = 40,
    out: Annotated[Path | None, typer.Option(help="JSON lines of the scores; a stopped search goes on from it")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="of training; the task's own if absent")] = None,
    units: Annotated[int, typer.Option(min=1, help="core units of an expression")] = 1,
    safe: Annotated[bool, typer.Option("--safe", help="roots and quotients that are defined everywhere")] = False,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    show: Annotated[int, typer.Option(min=1, help="how many of the best are printed")] = 10,
) -> None:
    """Search for activation functions: train a small network with each expression, and print the best."""
    from rich.console import Console
    from rich.table import Table

    from actinium import functions
    from actinium.core.errors import InputError, unknown

    methods = ("exhaustive", "rl", "evolution")
    if method not in methods:
        raise InputError(unknown("method", method, methods))
    child = functions.TaskChild(task, **({} if epochs is None else {"epochs": epochs}))
    space = functions.SearchSpace(n_units=units, safe=safe)
    if method == "exhaustive":
        found = functions.exhaustive_search(
            child, n_units=units, budget=budget, safe=safe, seed=seed, file=out, progress=True
        )
    else:
        searcher = {"rl": functions.RLActivationSearch, "evolution": functions.EvolutionaryActivationSearch}[method]
        found = searcher(space, seed=seed).fit(child, budget, out, progress=True).result_
    metric = ("" if child.task.higher_is_better else "-") + child.task.metric
    table = Table("rank", "expression", f"{metric}, held out", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in found.table().head(show).itertuples():
        table.add_row(str(row.rank), row.expression, f"{row.score:.4g}")
    Console().print(table, highlight=False, markup=False)
    failed = sum(bool(t.reason) for t in found.trials)
    typer.echo(
        f"{len(found.trials)} networks, {failed} of them failed; {len(found.refused)} expressions refused. "
        "Scores of one run differ by more than the best functions do: compare the best again with several seeds"
    )
    if out is not None:
        typer.echo(f"written: {out}")
