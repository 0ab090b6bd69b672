"""A Kolmogorov-Arnold network as a diagram: nodes in rows, on each edge the curve that it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actinium.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from actinium.functions.kan.kan_network import KANNetwork

LEARNT, FORMULA, PLAIN = "#222222", "#C0392B", "#2E6DA4"
BOX = 0.4
"""Height and greatest width of the box of a curve; nodes have a distance of 1, rows one of 2."""


def draw(
    network: KANNetwork,
    x: Tensor,
    ax: Any,
    names: Sequence[str] | None,
    beta: float,
    limit: int,
) -> Any:
    """Draw the `limit` edges of the highest scores; see `KANNetwork.plot`."""
    if names is not None and len(names) != network.sizes[0]:
        raise InputError(f"{len(names)} names for {network.sizes[0]} inputs")
    if not beta > 0 or limit < 1:
        raise InputError(f"beta is positive and limit 1 or more, got {beta} and {limit}")
    sizes = [*network.sizes, *([] if network.head is None else [network.head.out_features])]
    widest = max(sizes)
    if ax is None:
        from matplotlib.figure import Figure

        size = (min(16.0, max(4.0, 1.5 * widest)), min(14.0, 1.0 + 2.2 * (len(sizes) - 1)))
        ax = Figure(figsize=size, layout="constrained").subplots()
    places = [np.linspace(0, widest, 2 * n + 1)[1::2] for n in sizes]
    with torch.no_grad():
        inputs, outputs = network.edges(x)
        entering = [layer.prepare(a) for layer, a in zip(network.layers, inputs, strict=False)]
    edges = [
        (float(scores[o, i]), number, o, i)
        for number, (layer, scores) in enumerate(zip(network.layers, network.edge_scores(x), strict=True))
        for o, i in layer.kept().nonzero().tolist()
    ]
    drawn = sorted(edges, reverse=True)[:limit]
    for score, number, o, i in reversed(drawn):
        layer = network.layers[number]
        colour = FORMULA if f"{o}_{i}" in layer.symbolic else LEARNT
        alpha = 0.1 + 0.9 * float(np.tanh(beta * max(score, 0.0)))
        # The boxes of a layer stand in the order of their edges, side by side.
        middle = widest * (o * layer.in_dim + i + 0.5) / (layer.in_dim * layer.out_dim)
        half = min(BOX, 0.8 * widest / (layer.in_dim * layer.out_dim)) / 2
        height = 2 * number + 1.0
        ax.plot(
            *zip((places[number][i], 2 * number), (middle, height - BOX / 2), strict=True), color=colour, alpha=alpha
        )
        ax.plot(
            *zip((middle, height + BOX / 2), (places[number + 1][o], 2 * number + 2), strict=True),
            color=colour,
            alpha=alpha,
        )
        ax.fill_between([middle - half, middle + half], height - BOX / 2, height + BOX / 2, color="white", zorder=2)
        order = entering[number][:, i].argsort()
        across, up = (_within(t[order]) for t in (entering[number][:, i], outputs[number][:, o, i]))
        ax.plot(
            middle + 0.85 * half * across,
            height + 0.85 * BOX / 2 * up,
            color=colour,
            alpha=alpha,
            linewidth=1.5,
            zorder=3,
        )
    if network.head is not None:
        share = network.head.weight.detach().abs()
        share = (share / share.max().clamp(min=1e-12)).tolist()
        for o, row in enumerate(share):
            for i, part in enumerate(row):
                ends = zip((places[-2][i], 2 * len(sizes) - 4), (places[-1][o], 2 * len(sizes) - 2), strict=True)
                ax.plot(*ends, color=PLAIN, alpha=0.1 + 0.9 * part)
    for number, row in enumerate(places):
        ax.scatter(row, np.full(len(row), 2.0 * number), s=40, color="#222222", zorder=4)
    for place, name in zip(places[0], names or [f"x{i}" for i in range(network.sizes[0])], strict=True):
        ax.annotate(name, (place, 0.0), (0, -8), textcoords="offset points", ha="center", va="top", fontsize=8)
    few = f"the strongest {len(drawn)} of " if len(drawn) < len(edges) else ""
    ax.set_title(
        f"{few}{len(edges)} {network.layer} edges, darker where they matter; formulas in red", fontsize="medium"
    )
    ax.set_xlim(-0.3, widest + 0.3)
    ax.set_ylim(-0.6, 2 * len(sizes) - 1.6)
    ax.set_axis_off()
    return ax


def _within(values: Tensor) -> Any:
    """Values on -1..1; 0 where they are constant."""
    low, high = values.min(), values.max()
    return ((values - (low + high) / 2) / ((high - low) / 2).clamp(min=1e-12)).cpu().numpy()
