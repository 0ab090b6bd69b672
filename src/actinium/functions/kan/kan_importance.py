"""How much each input of a Kolmogorov-Arnold network matters for its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.core.errors import InputError, unknown
from actinium.functions.kan.edge_layers import CoefficientLayer
from actinium.functions.kan.kan_network import KANNetwork

__all__ = ["kan_feature_effects", "kan_feature_importance"]

METHODS = ("effect", "score", "coefficients")


def kan_feature_effects(network: KANNetwork, x: Tensor) -> Tensor:
    """By how much the outputs move with each input: a standard deviation over rows, (in, outputs).

    What the edges of an input add, less its mean, is weighted by the slope of the output behind the node that it is
    added to. For one layer with a linear head this is exact: the standard deviation of the part of the output that
    depends on the input.

    Args:
        network: with inputs (in).
        x: rows (n, in), two or more.

    Raises:
        InputError: x does not fit.
    """
    with torch.no_grad():
        inputs, edges = network.edges(x)
    centred = edges[0] - edges[0].mean(0)
    nodes = inputs[1].clone().requires_grad_()
    with torch.enable_grad():
        y = nodes
        for layer in list(network.layers)[1:]:
            y = layer(y)
        y = y if network.head is None else network.head(y)
        slopes = [torch.autograd.grad(y[:, k].sum(), nodes, retain_graph=True)[0] for k in range(y.shape[1])]
    return torch.stack([torch.einsum("no,noi->ni", slope, centred).std(0) for slope in slopes], -1)


def kan_feature_importance(network: KANNetwork, x: Tensor | None = None, method: str = "effect") -> Tensor:
    """Importance (in,) of the inputs; they add up to 1, or are all 0 where the network is constant.

    Args:
        network: with inputs (in).
        x: rows (n, in) that stand for the data; not needed for "coefficients".
        method: "effect", the root mean square of `kan_feature_effects` over outputs; "score", the node scores of the
            inputs (`KANNetwork.scores`); or "coefficients", the norm of the first layer's weights, which is not small
            for inputs that are noise and cannot be compared between bases.

    Raises:
        InputError: there is no such method, x is missing, or the first layer has no weights of fixed terms.

    Source: Eslamian et al., 2025, arXiv 2504.06559 ("coefficients").
    """
    if method not in METHODS:
        raise InputError(unknown("method", str(method), list(METHODS)))
    if method == "coefficients":
        first = network.layers[0]
        if not isinstance(first, CoefficientLayer):
            raise InputError(f"functions of a {network.layer} layer are no sums of fixed terms; use method='effect'")
        found = first.coefficient_norms().detach()
    elif x is None:
        raise InputError(f"the method {method!r} needs rows")
    elif method == "score":
        found = network.scores(x)[0][0]
    else:
        found = kan_feature_effects(network, x).square().mean(-1).sqrt()
    total = found.sum()
    return found / total if float(total) > 0 else found
