"""Kolmogorov-Arnold networks: what edges do, pruning, the penalty that makes them few, finer grids, and formulas."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.evaluation import evaluating
from actinium.functions.kan import kan_diagram
from actinium.functions.kan.daruan import QKANLayer
from actinium.functions.kan.edge_layers import KANLayer
from actinium.functions.kan.jacobi_layers import (
    FractionalKANLayer,
    PadeKANLayer,
    RationalJacobiKANLayer,
    WaveletKANLayer,
)
from actinium.functions.kan.kan_layers import ChebyshevKANLayer, FastKANLayer, FourierKANLayer, SplineKANLayer
from actinium.functions.kan.symbolic_edges import ELEMENTARY, SymbolicEdge, SymbolicFit, fit_symbolic

__all__ = ["KAN_LAYERS", "KANNetwork", "kan_layer"]

KAN_LAYERS: Mapping[str, tuple[type[KANLayer], str | None]] = MappingProxyType(
    {
        "chebyshev": (ChebyshevKANLayer, "order"),
        "fourier": (FourierKANLayer, "grid"),
        "spline": (SplineKANLayer, "grid"),
        "fast": (FastKANLayer, "centres"),
        "jacobi": (RationalJacobiKANLayer, "order"),
        "fractional": (FractionalKANLayer, "order"),
        "pade": (PadeKANLayer, "order"),
        "wavelet": (WaveletKANLayer, None),
        "daruan": (QKANLayer, "reps"),
    }
)
"""Layers by name, each with the argument that says how rich its functions are."""
SMALL = 1e-4
"""What is added to a standard deviation before it divides."""


def kan_layer(layer: str, in_dim: int, out_dim: int, order: int | None = None, **options: Any) -> KANLayer:
    """A layer by its name.

    Args:
        layer: a name of `KAN_LAYERS`.
        in_dim, out_dim: its sizes.
        order: how rich its functions are: the degree, the number of frequencies, intervals, centres or repetitions.
        options: further arguments of the layer.

    Raises:
        UnknownNameError: there is no such layer.
        InputError: the layer has no order or not such an option, or an option has a wrong value.
    """
    if layer not in KAN_LAYERS:
        raise UnknownNameError(unknown("layer", str(layer), list(KAN_LAYERS)))
    kind, name = KAN_LAYERS[layer]
    if order is not None:
        if name is None:
            raise InputError(f"functions of a {layer} layer have no order; leave it out")
        options = {name: order} | options
    try:
        return kind(in_dim, out_dim, **options)
    except TypeError as error:
        raise InputError(f"{kind.__name__}: {error}") from None


class KANNetwork(nn.Module):
    """Layers of learnt functions of one variable, one after the other, and a linear map behind them where asked for.

    Args:
        sizes: number of inputs, and of outputs of each layer.
        layer: a name of `KAN_LAYERS`.
        order: how rich the functions are; the layer's own default if not given.
        head: number of outputs of a linear map behind the last layer; none if not given.
        options: further arguments of the layers.

    Raises:
        InputError: there are fewer than two sizes, one is below 1, or an option is wrong.
        UnknownNameError: there is no such layer.

    Source: Liu et al., 2024, arXiv 2404.19756.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        layer: str = "spline",
        order: int | None = None,
        head: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        sizes = tuple(int(size) for size in sizes)
        if len(sizes) < 2 or min(sizes) < 1 or (head is not None and head < 1):
            raise InputError(f"a network has two sizes of 1 or more and a head of 1 or more, got {sizes} and {head}")
        self.sizes, self.layer = sizes, layer
        self.layers = nn.ModuleList(kan_layer(layer, *pair, order, **options) for pair in pairwise(sizes))
        self.head = None if head is None else nn.Linear(sizes[-1], head)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., out) at x (..., in)."""
        for layer in self.layers:
            x = layer(x)
        return x if self.head is None else self.head(x)

    def edges(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What enters each layer, (n, in), and what each of its edges adds, (n, out, in), for rows x (n, in).

        The last inputs are those of the head, or the outputs where there is none.
        """
        x = _rows(x)
        inputs, outputs = [x], []
        for layer in self.layers:
            outputs.append(layer.edge_outputs(x))
            x = outputs[-1].sum(-1)
            x = x if layer.bias is None else x + layer.bias
            inputs.append(x)
        return inputs, outputs

    @torch.no_grad()
    def scores(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """How much nodes and edges matter for the outputs.

        The score of an edge is the score of the node that it enters, times the standard deviation of the edge over that
        of the node; the score of a node is the sum over the edges that leave it. Each output has the score 1 over the
        number of outputs.

        Args:
            x: rows (n, in), two or more.

        Returns:
            scores of the nodes (in,) that enter each layer and of those (out,) that leave the last one, and of the
            edges (out, in) of each layer.

        Raises:
            InputError: there are fewer than two rows, or x does not fit.

        Source: Liu et al., 2024, arXiv 2408.10205, section 5.3.
        """
        with evaluating(self):
            inputs, outputs = self.edges(x)
        last = inputs[-1]
        node = torch.full((last.shape[1],), 1 / last.shape[1], dtype=last.dtype, device=last.device)
        if self.head is not None:
            y = self.head(last)
            share = (self.head.weight * last.std(0)).abs() / (y.std(0)[:, None] + SMALL)
            node = share.mean(0)
        nodes, edges = [node], []
        for entered, out in zip(reversed(inputs[1:]), reversed(outputs), strict=True):
            edge = out.std(0) * (nodes[0] / (entered.std(0) + SMALL))[:, None]
            edges.insert(0, edge)
            nodes.insert(0, edge.sum(0))
        return nodes, edges

    def edge_scores(self, x: Tensor) -> list[Tensor]:
        """The edges' part of `scores`, (out, in) for each layer."""
        return self.scores(x)[1]

    def prune(self, x: Tensor, node_th: float = 1e-2, edge_th: float = 3e-2, input_th: float = 0.0) -> Self:
        """A copy without the hidden nodes, and then without the edges and inputs, whose scores are below a threshold.

        An edge that was left alone, without one before or behind it, goes too. What is pruned stays at 0 in training;
        its mean is gone as well, which shifts the outputs, so train on.

        Args:
            x: rows (n, in) on which scores are taken.
            node_th, edge_th: least scores of hidden nodes and of edges.
            input_th: least score of an input; one below stays an input, on which nothing depends. pykan's own is 0.01.

        Raises:
            InputError: a threshold is negative, or x does not fit.
        """
        if min(node_th, edge_th, input_th) < 0:
            raise InputError(f"thresholds are not negative, got {node_th}, {edge_th} and {input_th}")
        out = copy.deepcopy(self)
        nodes, _ = out.scores(x)
        for number in range(1, len(nodes) - (self.head is None)):
            out._drop_nodes(number, nodes[number] < node_th)
        for layer, scores in zip(out.layers, out.edge_scores(x), strict=True):
            layer.drop(scores < edge_th)
        if input_th:
            first = out.layers[0]
            first.drop((out.scores(x)[0][0] < input_th).expand(first.out_dim, first.in_dim))
        while out._drop_lonely():
            pass
        return out

    def _drop_nodes(self, number: int, gone: Tensor) -> None:
        """Prune the edges into and out of nodes that a boolean tensor marks; the last nodes have a head behind them."""
        into = self.layers[number - 1]
        into.drop(gone[:, None].expand(into.out_dim, into.in_dim))
        if number < len(self.layers):
            behind = self.layers[number]
            behind.drop(gone.expand(behind.out_dim, behind.in_dim))

    def _drop_lonely(self) -> bool:
        """Prune edges next to hidden nodes that none enters or none leaves; whether there were any."""
        found = False
        for before, behind in pairwise(self.layers):
            entered, left = before.kept().any(1), behind.kept().any(0)
            if bool((entered != left).any()):
                found = True
                before.drop((~left)[:, None].expand(before.out_dim, before.in_dim))
                behind.drop((~entered).expand(behind.out_dim, behind.in_dim))
        return found

    def n_edges(self) -> int:
        """How many edges are not pruned."""
        return sum(int(layer.kept().sum()) for layer in self.layers)

    def regulariser(self, x: Tensor, l1: float = 1.0, entropy: float = 2.0) -> Tensor:
        """The penalty that makes edges few: l1 times their sizes plus `entropy` times how evenly they are spread.

        The size of an edge is its standard deviation over rows, over that of its input + 0.1. The spread is the mean
        entropy, in bits, of the sizes over the inputs of each output, and over the outputs of each input; before, the
        sizes are divided by 1 + their sum, so that few small edges count as little spread. Sizes and this 1 are those
        of the authors' code; the paper takes mean absolute values and shares.

        Args:
            x: rows (n, in), two or more.
            l1, entropy: weights of the parts.

        Raises:
            InputError: a weight is negative, or x does not fit.

        Source: Liu et al., 2024, arXiv 2404.19756, equations 2.17-2.20.
        """
        if l1 < 0 or entropy < 0:
            raise InputError(f"weights are not negative, got {l1} and {entropy}")
        inputs, outputs = self.edges(x)
        total = inputs[0].new_zeros(())
        for entering, out in zip(inputs[:-1], outputs, strict=True):
            # A pruned edge is constant, and the root of its variance has no slope.
            size = (out.var(0) + 1e-12).sqrt() / (entering.std(0) + 0.1)
            spread = sum(_entropy(size / (size.sum(k, keepdim=True) + 1), k) for k in (0, 1))
            total = total + l1 * size.sum() + entropy * spread
        return total

    def refine_grid(self, grid: int) -> None:
        """Give all spline layers a finer grid; see `SplineKANLayer.refine`. Optimisers have to be made again.

        Raises:
            InputError: the layers are no spline layers, or the grid is not finer.
        """
        for layer in self._splines():
            layer.refine(grid)

    def fit_ranges(self, x: Tensor, grid_eps: float = 1.0) -> None:
        """Lay the grids of all spline layers over what enters them at rows x (n, in), layer by layer.

        With `grid_eps` below 1 the knots follow the density of the data; see `SplineKANLayer.fit_range`.

        Raises:
            InputError: the layers are no spline layers, something that enters one is constant, or grid_eps is wrong.
        """
        x = _rows(x)
        with torch.no_grad():
            for layer in self._splines():
                layer.fit_range(x, grid_eps)
                x = layer(x)

    def _splines(self) -> list[SplineKANLayer]:
        found = [layer for layer in self.layers if isinstance(layer, SplineKANLayer)]
        if len(found) < len(self.layers):
            raise InputError(f"only spline layers have a grid; this network has {self.layer} layers")
        return found

    def plot(
        self,
        x: Tensor,
        ax: Any = None,
        names: Sequence[str] | None = None,
        beta: float = 3.0,
        limit: int = 200,
    ) -> Any:
        """Draw the network from the inputs upwards, on each edge its curve over rows x, darker the higher its score.

        Args:
            x: rows (n, in), two or more; a curve is drawn where they lie.
            ax: matplotlib Axes to draw on; a new one if not given.
            names: of the inputs.
            beta: an edge is drawn with the opacity tanh(beta score), and never quite invisible.
            limit: how many edges are drawn, those of the highest scores.

        Returns:
            the matplotlib Axes.

        Raises:
            InputError: x does not fit, there is another number of names, or beta or limit is not positive.

        Source: Liu et al., 2024, arXiv 2404.19756, section 2.5.1 (visualisation).
        """
        with evaluating(self):
            return kan_diagram.draw(self, x, ax, names, beta, limit)

    def suggest(
        self, x: Tensor, layer: int, output: int, i: int, functions: tuple[str, ...] | None = None
    ) -> list[SymbolicFit]:
        """The formulas nearest to one edge at rows x, best first; see `fit_symbolic`.

        Raises:
            InputError: there is no such edge, or it is constant.
            UnknownNameError: there is no such function.
        """
        if not 0 <= layer < len(self.layers):
            raise InputError(f"there are layers 0 to {len(self.layers) - 1}, not {layer}")
        of = self.layers[layer]
        if not (0 <= output < of.out_dim and 0 <= i < of.in_dim):
            raise InputError(f"there is no edge from {i} to {output} in a layer {of.in_dim} -> {of.out_dim}")
        with torch.no_grad(), evaluating(self):
            inputs, outputs = self.edges(x)
            entering = of.prepare(inputs[layer])
        return fit_symbolic(entering[:, i], outputs[layer][:, output, i], functions)

    def fix_symbolic(self, layer: int, output: int, i: int, fit: SymbolicFit) -> None:
        """Put a formula, whose four numbers are then learnt, in the place of one edge."""
        self.layers[layer].fix(output, i, SymbolicEdge(fit))

    def auto_symbolic(
        self, x: Tensor, least: float = 0.99, functions: tuple[str, ...] | None = None
    ) -> dict[tuple[int, int, int], SymbolicFit]:
        """Replace every edge that a formula explains well, from the inputs on.

        An edge that is constant at rows x becomes the constant, as 0 (x) + d. Where several functions are within 1e-3
        of the best R^2, the first of `functions` is taken, so that these are best named from simple to complicated.

        Args:
            x: rows (n, in).
            least: least R^2.
            functions: names; all of `ELEMENTARY` if not given.

        Returns:
            by layer, output and input the formula that was put there.

        Raises:
            InputError: x does not fit.
            UnknownNameError: there is no such function.
        """
        placed: dict[tuple[int, int, int], SymbolicFit] = {}
        for number, layer in enumerate(self.layers):
            with torch.no_grad(), evaluating(self):
                values = self.edges(x)[1][number]
            constant = values.amin(0) == values.amax(0)
            for output, i in layer.kept().nonzero().tolist():
                if f"{output}_{i}" in layer.symbolic:
                    continue
                if constant[output, i]:
                    fit = SymbolicFit("x", 1.0, 1.0, 0.0, 0.0, float(values[0, output, i]))
                    self.fix_symbolic(number, output, i, fit)
                    placed[number, output, i] = fit
                    continue
                found = self.suggest(x, number, output, i, functions)
                names = list(functions or ELEMENTARY)
                near = [fit for fit in found if fit.r2 >= max(least, found[0].r2 - 1e-3)]
                if near:
                    fit = min(near, key=lambda fit: names.index(fit.name))
                    self.fix_symbolic(number, output, i, fit)
                    placed[number, output, i] = fit
        return placed

    def formulas(self, names: Sequence[str] | None = None) -> list[str]:
        """Each output as text, with the formulas of all edges put into each other.

        Args:
            names: of the inputs; x1, x2, .. if not given.

        Raises:
            InputError: an edge that is not pruned has no formula yet, a layer normalises its inputs, or names are
                missing.
        """
        names = [f"x{i + 1}" for i in range(self.sizes[0])] if names is None else list(names)
        if len(names) != self.sizes[0]:
            raise InputError(f"there are {self.sizes[0]} inputs, and {len(names)} names")
        texts = names
        for number, layer in enumerate(self.layers):
            if layer.normalises:
                raise InputError(f"layer {number} normalises its inputs; formulas of those are not written")
            terms: list[list[str]] = [[] for _ in range(layer.out_dim)]
            for output, i in layer.kept().nonzero().tolist():
                if f"{output}_{i}" not in layer.symbolic:
                    raise InputError(
                        f"the edge from {i} to {output} of layer {number} has no formula yet; see auto_symbolic, prune"
                    )
                fit = layer.symbolic[f"{output}_{i}"].fit
                terms[output].append(fit.in_terms_of(texts[i] if number == 0 else f"({texts[i]})"))
            if layer.bias is not None:
                for term, value in zip(terms, layer.bias.tolist(), strict=True):
                    term.append(f"{value:.4g}")
            texts = [" + ".join(term) or "0" for term in terms]
        if self.head is None:
            return texts
        return [
            " + ".join([*(f"{w:.4g} ({text})" for w, text in zip(row, texts, strict=True)), f"{b:.4g}"])
            for row, b in zip(self.head.weight.tolist(), self.head.bias.tolist(), strict=True)
        ]


def _entropy(p: Tensor, along: int) -> Tensor:
    return -(p * torch.log2(p + SMALL)).sum(along).mean()


def _rows(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or len(x) < 2:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"expected a tensor of two rows or more, (n, in), got {shape}")
    return x
