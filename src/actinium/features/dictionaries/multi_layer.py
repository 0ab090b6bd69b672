"""One sparse autoencoder for the residual stream of all layers, and where its latents are active."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.dictionaries.architectures import TopKSAE
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.normalisation import normalised
from actinium.features.dictionaries.rules import Rule

__all__ = ["LatentLayerDistribution", "MultiLayerSAE"]


class MultiLayerSAE(TopKSAE):
    """A TopK dictionary whose rows come from every layer, each standardised by itself.

    Args:
        d_sae: number of latents.
        k: active latents of a row.
        aux_k, aux_alpha: of the auxiliary loss.
        standardize: subtract each row's mean and divide by its standard deviation (plus 1e-5), undone afterwards; else
            layers of larger norm dominate the loss.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Lawson et al., 2024, section 3. The loss is the share of variance that is lost, averaged over layers.
    """

    decided = ("multi_k", "normalize", "reconstruction")

    def __init__(
        self,
        d_sae: int,
        k: int = 32,
        *,
        aux_k: int | None = 256,
        aux_alpha: float = 1 / 32,
        standardize: bool = True,
        **common: Any,
    ) -> None:
        normalize = "layer_norm" if standardize else "none"
        super().__init__(
            d_sae, k, aux_k=aux_k, aux_alpha=aux_alpha, normalize=normalize, reconstruction="fvu", **common
        )
        self.standardize = standardize

    def make_rule(self) -> Rule:
        """TopK without a bias of the encoder."""
        rule = super().make_rule()
        rule.encoder_bias = False
        return rule

    def loss(
        self, x: Tensor, y: Tensor | None = None, dead: Tensor | None = None, warm: Tensor | float = 1.0
    ) -> tuple[dict[str, Tensor], Code | Tensor]:
        """The parts of the loss on (n, layer, d_in), and the latents of the rows n x layer."""
        if x.ndim != 3:
            raise InputError(f"a multi-layer dictionary is trained on (rows, layer, d), not {tuple(x.shape)}")
        normal, undo = normalised(x.flatten(0, 1), self.normalize, self.scale)
        latents, pre, _ = self.active(normal)
        made = self.reconstruct(latents)
        error = undo(made).view_as(x) - x
        variance = x.var((0, 2), correction=0).clamp_min(1e-12)
        parts = {"reconstruction": (error.square().mean((0, 2)) / variance).mean()}
        return parts | self.auxiliary(normal, normal, made, latents, pre, dead), latents

    def arrange(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The layers as (n, layer, d_in).

        Raises:
            InputError: they have different widths.
        """
        if len({p.shape[1] for p in parts}) != 1:
            raise InputError(f"layers of one width are needed, not {[p.shape[1] for p in parts]}")
        return torch.stack(list(parts), 1), None


class LatentLayerDistribution:
    """Over which layers the activation of each latent is spread.

    Args:
        n_layers: 2 or more.
        d_sae: number of latents.

    Source: Lawson et al., 2024, section 4. Moments within a token are weighted by activation, so that a silent latent
    has no share in them.
    """

    def __init__(self, n_layers: int, d_sae: int) -> None:
        if n_layers < 2:
            raise InputError(f"a spread over layers needs 2 layers or more, not {n_layers}")
        self.totals = torch.zeros(n_layers, d_sae, dtype=torch.float64)
        # Of each token and latent: mass, and mass times the variance over layers within the token.
        self.within = torch.zeros((), dtype=torch.float64)
        self.tokens = 0

    def update(self, values: Tensor, latents: Tensor) -> LatentLayerDistribution:
        """Add tokens: values and latents (n, layer, k), the same tokens at every layer.

        Raises:
            InputError: shapes do not fit.
        """
        n_layers, d_sae = self.totals.shape
        if values.shape != latents.shape or values.ndim != 3 or values.shape[1] != n_layers:
            raise InputError(f"expected values and latents (n, {n_layers}, k), not {tuple(values.shape)}")
        values = values.detach().double().cpu().clamp_min(0)
        latents = latents.cpu()
        layers = torch.arange(n_layers).view(1, -1, 1).expand_as(latents)
        tokens = torch.arange(len(values)).view(-1, 1, 1).expand_as(latents)
        self.totals.index_put_((layers.flatten(), latents.flatten()), values.flatten(), accumulate=True)
        pair, place = torch.unique(tokens.flatten() * d_sae + latents.flatten(), return_inverse=True)
        moments = torch.zeros(3, len(pair), dtype=torch.float64)
        for power in range(3):
            moments[power].index_add_(0, place, (values * layers.double() ** power).flatten())
        mass = moments[0].clamp_min(1e-300)
        variance = moments[2] / mass - (moments[1] / mass) ** 2
        self.within += (moments[0] * variance.clamp_min(0)).sum()
        self.tokens += len(values)
        return self

    def extend(self, batches: Iterable[tuple[Tensor, Tensor]]) -> LatentLayerDistribution:
        """`update` with each of several batches."""
        for values, latents in batches:
            self.update(values, latents)
        return self

    @property
    def probs(self) -> Tensor:
        """(layer, d_sae) share of a latent's activation at each layer, NaN for one that was never active."""
        mass = self.totals.sum(0)
        return torch.where(mass > 0, self.totals / mass.clamp_min(1e-300), torch.nan)

    def _moment(self, power: int) -> Tensor:
        layers = torch.arange(len(self.totals), dtype=torch.float64)[:, None]
        return (self.probs * layers**power).sum(0)

    @property
    def layer_mean(self) -> Tensor:
        """(d_sae,) mean layer."""
        return self._moment(1)

    @property
    def layer_std(self) -> Tensor:
        """(d_sae,) standard deviation over layers."""
        return (self._moment(2) - self._moment(1) ** 2).clamp_min(0).sqrt()

    def variance_ratios(self) -> tuple[float, float]:
        """Var(L | latent) / Var(L), and Var(L | token, latent) / Var(L | latent), both averaged with activation.

        The first is near 1 where latents are spread over layers as all activation is, the second near 0 where for one
        token a latent lives at one layer. Both are between 0 and 1 (law of total variance).
        """
        mass = self.totals.sum(0)
        total = self.totals.sum(1)
        layers = torch.arange(len(total), dtype=torch.float64)
        mean = float((total * layers).sum() / total.sum())
        overall = float((total * (layers - mean) ** 2).sum() / total.sum())
        each = torch.nan_to_num(self.layer_std) ** 2
        by_latent = float((mass * each).sum() / mass.sum())
        by_token = float(self.within / mass.sum())
        return by_latent / max(overall, 1e-300), by_token / max(by_latent, 1e-300)

    def result(self, **about: Any) -> Result:
        """`share` over layer and the latents that were active, in the order of their mean layer."""
        active = torch.nonzero(self.totals.sum(0) > 0).flatten()
        order = active[self.layer_mean[active].argsort()]
        ratios = self.variance_ratios()
        data = {
            "share": (("layer", "latent"), self.probs[:, order].numpy()),
            "layer_mean": ("latent", self.layer_mean[order].numpy()),
            "layer_std": ("latent", self.layer_std[order].numpy()),
            "spread_of_latents": ((), ratios[0]),
            "spread_within_tokens": ((), ratios[1]),
        }
        coords = {"layer": np.arange(len(self.totals)), "latent": order.numpy()}
        return Result(xr.Dataset(data, coords), "latent_layer_distribution", "mlsae", provenance(None, None, **about))
