"""The figures of the report: one for each measurement, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from actinium.core.result import Result

__all__ = ["FIGURES", "svg"]

INK = "#010203"  # stands for the page's text colour, which the page fills in
COLOURS = ("#2a9d8f", "#e76f51", "#7c72e8", "#d99a2b", "#3f8fd6", "#b5518f")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "actinium",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
}


def svg(name: str, result: Result) -> str | None:
    """The figure of a measurement as an SVG element, or None where there is nothing to draw."""
    draw = FIGURES.get(name)
    if draw is None:
        return None
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the font
        figure = draw(result)
        if figure is None:
            return None
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """The element alone, its ids made unique in the page, its size left to the page, its ink the page's."""
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<image [^>]*?) id="[^"]*"', r"\1", text)  # equal colour bars would share one
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    head, _, rest = text.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{name}">{rest}'.strip()


def _places(result: Result) -> tuple[str, np.ndarray, list[str]]:
    """The dimension of depth, where its entries are drawn, and what they are called."""
    dim = "layer" if "layer" in result.data.dims else "site"
    labels = result[dim].values
    names = [str(v).removeprefix("module:").removeprefix("module_in:") for v in labels]
    return dim, np.arange(len(labels)), names


def _depth_axis(ax: Any, result: Result) -> None:
    dim, places, names = _places(result)
    if result[dim].dtype.kind in "iu":
        ax.set_xticks(places, names)
        if len(names) > 16:
            step = -(-len(names) // 16)
            ax.set_xticks(places[::step], names[::step])
        ax.set_xlabel("layer")
    else:
        _name_ticks(ax, places, names)
    ax.grid(axis="x", visible=False)


def _name_ticks(ax: Any, places: np.ndarray, names: list[str]) -> None:
    """Names below the axis, upright where they are long; the figure grows with them."""
    step, longest = -(-len(names) // 40), max(map(len, names))
    ax.set_xticks(places[::step], names[::step], rotation=90 if longest > 3 else 0, fontsize=8)
    figure = ax.figure
    figure.set_figheight(max(figure.get_figheight(), 2.3 + 0.075 * longest))


def _log(ax: Any, axis: str = "y") -> None:
    """A logarithmic axis with plain numbers; the two and the five are named where there is room."""
    (ax.set_yscale if axis == "y" else ax.set_xscale)("log")
    scale = ax.yaxis if axis == "y" else ax.xaxis
    low, high = scale.get_view_interval()
    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def _legend(ax: Any) -> None:
    """Above the drawing, so that it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    most = 4 if len(ax.figure.axes) == 1 else 2
    options = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "ncols": min(most, len(labels))}
    ax.legend(handles, labels, **options, borderaxespad=0.2, columnspacing=1.2, handlelength=1.6)


def _lines(ax: Any, result: Result, names: dict[str, str], log: bool = False) -> None:
    _, places, _ = _places(result)
    for variable, label in names.items():
        ax.plot(places, result[variable].values, marker="o", label=label)
    values = np.concatenate([result[v].values.astype(float) for v in names])
    if log and (values[np.isfinite(values)] > 0).all():
        _log(ax)
    _depth_axis(ax, result)
    if len(names) > 1:
        _legend(ax)


def _bars(ax: Any, result: Result, names: dict[str, str]) -> None:
    """Shares in percent."""
    _, places, _ = _places(result)
    width = 0.8 / len(names)
    for i, (variable, label) in enumerate(names.items()):
        values = 100 * result[variable].values
        ax.bar(places - 0.4 + (i + 0.5) * width, values, width, label=label)
    ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
    _depth_axis(ax, result)
    if len(names) > 1:
        _legend(ax)


def _panels(n: int = 1, height: float = 2.9, width: float = 8.4) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height))
    return figure, np.atleast_1d(figure.subplots(1, n))


def _heat(ax: Any, values: np.ndarray, names: list[str], title: str, bounds: tuple[float, float]) -> None:
    image = ax.imshow(
        values, aspect="auto", origin="lower", interpolation="none", vmin=bounds[0], vmax=bounds[1], cmap="viridis"
    )
    step = -(-len(names) // 12)
    ax.set_yticks(range(0, len(names), step), names[::step])
    ax.set_title(title)
    ax.grid(visible=False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.9)
    bar.outline.set_visible(False)


def prediction(result: Result) -> Figure:
    """Cross-entropy beside that of word counts and of an even guess."""
    figure, (ax,) = _panels(height=1.7)
    values = [float(result[n]) for n in ("uniform_loss", "unigram_loss", "loss")]
    bars = ax.barh(["even guess", "word counts", "this model"], values, color=[COLOURS[3], COLOURS[4], COLOURS[0]])
    ax.bar_label(bars, fmt="%.2f", padding=4)
    ax.set_xlabel("nats per token")
    ax.grid(axis="y", visible=False)
    return figure


def classes(result: Result) -> Figure:
    """Share of the inputs that each class is predicted for."""
    figure, (ax,) = _panels()
    shares = result["predicted"].values
    order = np.argsort(-shares, kind="stable")[:30]
    order = np.sort(order)
    names = [str(result["class"].values[i]) for i in order]
    ax.bar(range(len(order)), 100 * shares[order])
    ax.set_xticks(range(len(order)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    ax.set_ylabel("% of the inputs")
    ax.set_xlabel("predicted class" + (" (the 30 commonest)" if len(shares) > 30 else ""))
    ax.grid(axis="x", visible=False)
    return figure


def norms(result: Result) -> Figure:
    """Norms along the depth, on a logarithmic scale."""
    figure, (ax,) = _panels()
    names = {"mean": "mean", "median": "median", "max": "largest"}
    if "layer" in result.data.dims:
        names["first"] = "first position"
    _lines(ax, result, names, log=True)
    ax.set_ylabel("norm")
    return figure


def moments(result: Result) -> Figure:
    """Excess kurtosis and spread along the depth."""
    figure, (left, right) = _panels(2)
    _lines(left, result, {"kurtosis": "excess kurtosis"})
    left.set_ylabel("excess kurtosis")
    if np.nanmax(result["kurtosis"].values, initial=0) > 200:
        left.set_yscale("symlog", linthresh=10)
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _lines(right, result, {"min": "smallest", "max": "largest", "std": "std"})
    right.set_ylabel("value")
    return figure


def outliers(result: Result) -> Figure:
    """Root mean square of the largest channels over the median one, by layer."""
    figure, (ax,) = _panels(height=3.1)
    _, places, _ = _places(result)
    for place in places:
        ratio = result["ratio"].values[place]
        ratio = ratio[np.isfinite(ratio)]
        if not len(ratio):
            continue
        ax.scatter(np.full(len(ratio), place), ratio, s=7, alpha=0.35, color=COLOURS[4], linewidths=0)
        best = int(
            np.nanargmax(np.where(np.isfinite(result["ratio"].values[place]), result["ratio"].values[place], -1))
        )
        ax.annotate(str(best), (place, ratio.max()), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    limit = float(result.provenance["settings"]["ratio"])
    ax.axhline(limit, color=COLOURS[1], linestyle="--", linewidth=1, label=f"outlier from {limit:g} on")
    ax.set_ylabel("RMS over that of\nthe median channel")
    if (result["ratio"].values[np.isfinite(result["ratio"].values)] > 0).all():
        _log(ax)
    _depth_axis(ax, result)
    _legend(ax)
    return figure


def massive(result: Result) -> Figure:
    """Largest and median magnitudes by layer."""
    figure, (ax,) = _panels(height=3.2)
    _, places, _ = _places(result)
    for i, bos in enumerate(str(b) for b in result["bos"].values):
        part = result.data.isel(bos=i)
        more = "" if bos == "as given" else f", {bos}"
        style = "-" if i == 0 else ":"
        ax.plot(places, part["top"].values, style, marker="o", color=COLOURS[1], label=f"largest{more}")
        ax.plot(places, part["median"].values, style, marker="o", color=COLOURS[0], label=f"median{more}")
    given = result.data.isel(bos=0)
    ax.plot(
        places,
        np.maximum(1000 * given["median"].values, 100),
        "--",
        color=COLOURS[3],
        linewidth=1,
        label="massive from here on",
    )
    for place in places:
        channel, position = int(given["channel"].values[place]), int(given["position"].values[place])
        if channel >= 0 and len(places) <= 40:
            at = (place, float(given["top"].values[place]))
            ax.annotate(f"c{channel}\np{position}", at, (0, 5), textcoords="offset points", ha="center", fontsize=7)
    if (given["median"].values > 0).all():
        _log(ax)
    ax.set_ylabel("magnitude")
    _depth_axis(ax, result)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def attention(result: Result) -> Figure:
    """Entropy, sinks and neighbours of each head, as maps of layer by head."""
    dim = str(result["sink"].dims[0])
    layers = [str(v) for v in result[dim].values]
    panels = {"sink": "attention to sinks", "relative_entropy": "entropy / even attention"}
    panels["previous"] = "attention to the token before"
    figure, axes = _panels(3, height=max(2.4, min(5.5, 1.2 + 0.22 * len(layers))), width=9.2)
    for ax, (variable, title) in zip(axes, panels.items(), strict=True):
        _heat(ax, result[variable].values, layers, title, (0, 1))
        ax.set_xlabel("head")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("layer")
    return figure


def similarity(result: Result) -> Figure:
    """Cosine and CKA between every two layers."""
    _, _, names = _places(result)
    figure, axes = _panels(2, height=3.6, width=8.8)
    for ax, variable, title in zip(axes, ("cosine", "cka"), ("mean cosine", "linear CKA"), strict=True):
        values = result[variable].values
        low = min(0.0, float(np.nanmin(values))) if np.isfinite(values).any() else 0.0
        _heat(ax, values, names, title, (low, 1.0))
        ax.set_aspect("equal")
        _name_ticks(ax, np.arange(len(names)), names)
    return figure


def lens(result: Result) -> Figure:
    """Agreement with the final prediction, and divergence from it, along the depth."""
    figure, (left, right) = _panels(2)
    names = {"agreement": "top token of the end"}
    if np.isfinite(result["target_probability"].values).any():
        names["target_probability"] = "P(next token)"
    _lines(left, result, names)
    left.set_ylim(0, 1.03)
    left.set_ylabel("share")
    _lines(right, result, {"kl": "KL to the end", "entropy": "entropy"})
    right.set_ylabel("nats")
    return figure


def dead(result: Result) -> Figure | None:
    """How often units fire; None where all always do."""
    if not (result["frequency"].values < 1).any() and not result["quiet"].values.any():
        return None
    figure, (left, right) = _panels(2)
    _bars(left, result, {"dead": "dead", "quiet": "quiet"})
    left.set_ylabel("% of the units")
    for place, values in enumerate(result["frequency"].values):
        kept = np.sort(values[np.isfinite(values)])
        share = np.linspace(0, 100, len(kept))
        right.plot(share, 100 * kept, color=COLOURS[0], alpha=0.35 + 0.6 * place / len(result["frequency"]))
    right.set_xlabel("units, in order (%)")
    right.set_ylabel("fires at % of positions")
    right.set_title("one line per layer, later ones darker")
    return figure


def saturated(result: Result) -> Figure | None:
    """Share of the units that are always on; None where there are none."""
    if not result["saturated"].values.any():
        return None
    figure, (ax,) = _panels(height=2.5)
    _bars(ax, result, {"saturated": "always on"})
    ax.set_ylabel("% of the units")
    return figure


def zeros(result: Result) -> Figure | None:
    """Share of exact zeros; None where there are none."""
    if not result["sparsity"].values.any():
        return None
    figure, (ax,) = _panels(height=2.6)
    _bars(ax, result, {"ratio": "not zero at a position", "union": "not zero anywhere in a row"})
    ax.set_ylabel("% of the units")
    return figure


def sparsity(result: Result) -> Figure:
    """Share of the units that can be left out, by layer."""
    figure, (ax,) = _panels(height=2.6)
    _bars(ax, result, {"sparsity": "can be left out"})
    ax.set_ylabel("% of the units")
    ax.set_ylim(0, 100)
    return figure


def rank(result: Result) -> Figure:
    """Effective dimensions along the depth, and the spectra."""
    figure, (left, right) = _panels(2)
    names = {"components_90": "90 % components", "entropy_rank": "entropy rank"}
    names |= {"participation_ratio": "participation ratio", "stable_rank": "stable rank"}
    _lines(left, result, names, log=True)
    left.set_ylabel("dimensions")
    for place, spectrum in enumerate(result["spectrum"].values):
        kept = spectrum[np.isfinite(spectrum)]
        line = 100 * np.cumsum(kept)
        right.plot(
            np.arange(1, len(kept) + 1), line, color=COLOURS[0], alpha=0.35 + 0.6 * place / len(result["spectrum"])
        )
    _log(right, "x")
    right.set_xlabel("principal components")
    right.set_ylabel("% of the variance")
    right.set_title("one line per layer, later ones darker")
    return figure


def quantisation(result: Result) -> Figure:
    """Signal to noise of the output when one layer is rounded."""
    figure, (ax,) = _panels(height=3.0)
    names = [re.sub(r"^(.*\.)?blocks\.", "", str(v)) for v in result["layer"].values]
    places = np.arange(len(names))
    for i, bits in enumerate(result["bits"].values):
        values = result["sqnr"].values[i]
        ax.plot(
            places,
            np.where(np.isfinite(values), values, np.nan),
            "o-",
            color=COLOURS[i],
            label=f"int{bits}, this layer",
        )
        together = float(result["sqnr_all"].values[i])
        if np.isfinite(together):
            ax.axhline(together, color=COLOURS[i], linestyle="--", linewidth=1, label=f"int{bits}, all layers")
    _name_ticks(ax, places, names)
    ax.set_ylabel("SQNR of the output (dB)")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURES: dict[str, Callable[[Result], Figure | None]] = {
    draw.__name__: draw
    for draw in (
        *(prediction, classes, norms, moments, outliers, massive, attention, similarity, lens),
        *(dead, saturated, zeros, sparsity, rank, quantisation),
    )
}
