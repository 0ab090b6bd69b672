"""Classifiers that know several answers: ensembles, dropout in prediction, Bayes by backprop; and scaled logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.evaluation import evaluating
from actinium.core.rows import as_rows

__all__ = [
    "BayesByBackpropPredictor",
    "BayesLinear",
    "EnsemblePredictor",
    "LogitScaling",
    "MCDropoutPredictor",
    "anchor_penalty",
    "anchors_of",
]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Predict = Callable[[Tensor], Tensor]


class EnsemblePredictor(nn.Module):
    """Logits (K, n, C) of K classifiers.

    Args:
        members: two modules or more that give logits (n, C).

    Raises:
        InputError: fewer than two.

    Source: Lakshminarayanan, Pritzel and Blundell, 2017.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"an ensemble has two members or more, got {len(members)}")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """(K, n, C) of inputs (n, ...)."""
        return torch.stack([member(x) for member in self.members])


class MCDropoutPredictor(nn.Module):
    """Logits (K, n, C) of a network with K dropout masks; everything but dropout stays in evaluation mode.

    Args:
        module: a network with dropout layers.
        samples: K.
        seed: of the masks; the same in every call.
        shared: every row has the same masks, so that each member is one function of its input. Else each row of a batch
            has masks of its own.

    Raises:
        InputError: no dropout with a probability above 0, or fewer than two samples.

    Source: Gal and Ghahramani, 2016.
    """

    def __init__(self, module: nn.Module, samples: int = 10, seed: int = 0, shared: bool = True) -> None:
        super().__init__()
        layers = [m for m in module.modules() if isinstance(m, DROPOUTS) and m.p > 0]
        if not layers:
            raise InputError(f"{type(module).__name__} has no dropout layer with a probability above 0")
        if samples < 2:
            raise InputError(f"two samples or more, not {samples}")
        self.module, self.samples, self.seed, self.shared = module, samples, seed, shared

    def forward(self, x: Tensor) -> Tensor:
        """(K, n, C) of inputs (n, ...)."""
        out = []
        with evaluating(self.module):
            for sample in range(self.samples):
                with self._masked(torch.Generator().manual_seed(self.seed * 1_000_003 + sample)):
                    out.append(self.module(x))
        return torch.stack(out)

    @contextmanager
    def _masked(self, random: torch.Generator) -> Iterator[None]:
        def drop(layer: Any, args: Any, out: Tensor) -> Tensor:
            shape = list(out.shape)
            shape[0] = 1 if self.shared else shape[0]
            if not isinstance(layer, nn.Dropout):  # whole channels
                shape[2:] = [1] * (len(shape) - 2)
            kept = torch.rand(shape, generator=random) >= layer.p
            return out * (kept.to(out) / (1 - layer.p)) if layer.p < 1 else out * 0

        layers = [m for m in self.module.modules() if isinstance(m, DROPOUTS)]
        handles = [m.register_forward_hook(drop) for m in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class BayesLinear(nn.Module):
    """Linear map whose weights are independent normals with learned mean and spread.

    A draw of the weights is used until `redraw`; `divergence` is the sum over weights of log q(w) - log p(w) of that
    draw, with a prior of two centred normals.

    Args:
        d_in, d_out: sizes.
        rho: first spread, sigma = ln(1 + e^rho).
        prior_mix, prior_sigmas: weight of the first normal of the prior, and both standard deviations.

    Raises:
        InputError: a mixing weight outside 0 and 1, or a standard deviation that is not positive.

    Source: Blundell et al., 2015, sections 3.2 and 3.3.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        rho: float = -4.0,
        prior_mix: float = 0.5,
        prior_sigmas: tuple[float, float] = (1.0, 0.1),
    ) -> None:
        super().__init__()
        if not 0 < prior_mix < 1 or min(prior_sigmas) <= 0:
            raise InputError(f"expected 0 < prior_mix < 1 and positive sigmas, got {prior_mix}, {prior_sigmas}")
        self.mean = nn.Parameter(torch.randn(d_out, d_in + 1) * (2 / d_in) ** 0.5)
        self.mean.data[:, -1] = 0
        self.rho = nn.Parameter(torch.full((d_out, d_in + 1), rho))
        self.prior_mix, self.prior_sigmas = prior_mix, prior_sigmas
        self.register_buffer("noise", torch.zeros(d_out, d_in + 1), persistent=False)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other weights."""
        self.noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)

    def weights(self) -> Tensor:
        """The present draw (d_out, d_in + 1), biases last."""
        return self.mean + functional.softplus(self.rho) * self.noise

    def divergence(self) -> Tensor:
        """log q(w) - log p(w) of the present draw, a scalar."""
        w, sigma = self.weights(), functional.softplus(self.rho)
        posterior = -sigma.log() - (w - self.mean) ** 2 / (2 * sigma**2)
        first, second = (-math.log(s) - w**2 / (2 * s**2) for s in self.prior_sigmas)
        prior = torch.logaddexp(first + math.log(self.prior_mix), second + math.log(1 - self.prior_mix))
        return (posterior - prior).sum()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        w = self.weights()
        return functional.linear(x, w[:, :-1], w[:, -1])


class BayesByBackpropPredictor(nn.Module):
    """Logits (K, n, C) of a network with K draws of the weights of its `BayesLinear` layers.

    Args:
        module: the network.
        samples: K.
        seed: of the draws; the same in every call.

    Raises:
        InputError: no such layer, or fewer than two samples.

    Source: Blundell et al., 2015.
    """

    def __init__(self, module: nn.Module, samples: int = 10, seed: int = 0) -> None:
        super().__init__()
        self.layers = [m for m in module.modules() if isinstance(m, BayesLinear)]
        if not self.layers or samples < 2:
            raise InputError(f"expected BayesLinear layers and two samples or more, got {len(self.layers)}, {samples}")
        self.module, self.samples, self.seed = module, samples, seed

    def forward(self, x: Tensor) -> Tensor:
        """(K, n, C) of inputs (n, ...)."""
        random, before = torch.Generator().manual_seed(self.seed), [layer.noise for layer in self.layers]
        out = []
        try:
            for _ in range(self.samples):
                for layer in self.layers:
                    layer.redraw(random)
                out.append(self.module(x))
        finally:
            for layer, noise in zip(self.layers, before, strict=True):
                layer.noise = noise
        return torch.stack(out)


def anchors_of(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A draw of the prior for each parameter, N(0, 2 / fan-in) for weights and N(0, 0.01) for the others.

    Source: Pearce et al., 2020.
    """
    random = torch.Generator().manual_seed(seed)
    out = {}
    for name, p in module.named_parameters():
        std = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        out[name] = (torch.randn(p.shape, generator=random) * std).to(p)
    return out


def anchor_penalty(module: nn.Module, anchors: dict[str, Tensor], rows: int) -> Tensor:
    """What a member of an anchored ensemble adds to its mean cross-entropy over `rows` examples.

    Half the squared distance of each parameter from its anchor, in standard deviations of the prior, by the rows.

    Raises:
        InputError: no rows, or anchors of other parameters.

    Source: Pearce et al., 2020, equation 9.
    """
    parameters = dict(module.named_parameters())
    if rows < 1 or set(parameters) != set(anchors):
        raise InputError(f"expected an anchor for each parameter and rows >= 1, got {len(anchors)}, {rows}")
    total = torch.zeros(())
    for name, p in parameters.items():
        precision = p[0].numel() / 2 if p.ndim > 1 else 100.0
        total = total + precision * (p - anchors[name]).square().sum()
    return total / (2 * rows)


class LogitScaling(Estimator):
    """Calibration of logits by one temperature, or by a temperature and a bias for each class.

    Args:
        bias: fit a bias for each class too (Platt's scaling, for several classes).

    Attributes:
        scale_: factor of the logits, 1 / temperature.
        bias_: (C,), zeros without bias.

    Source: Guo et al., 2017, section 4.2; Platt, 1999.
    """

    fitted = "scale_"

    def __init__(self, bias: bool = False) -> None:
        self.bias = bias

    def fit(self, logits: Any, labels: Any) -> LogitScaling:
        """Minimise the cross-entropy on held-out rows.

        Args:
            logits: (n, C), not of the rows that the network was trained on.
            labels: (n,) integers from 0 to C - 1.

        Raises:
            InputError: rows and labels do not fit.
        """
        rows = as_rows(logits, "logits", flat=False, dtype=torch.float64)
        wanted = torch.as_tensor(labels)
        if wanted.shape != rows.shape[:1] or wanted.is_floating_point() or int(wanted.min()) < 0:
            raise InputError(f"expected a label for each of {len(rows)} rows, got shape {tuple(wanted.shape)}")
        if int(wanted.max()) >= rows.shape[1]:
            raise InputError(f"a label is {int(wanted.max())}, but there are {rows.shape[1]} classes")
        log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=self.bias)
        parameters = [log_scale, bias] if self.bias else [log_scale]
        optimiser = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = functional.cross_entropy(rows * log_scale.exp() + bias, wanted.long())
            loss.backward()
            return loss

        optimiser.step(closure)
        self.scale_, self.bias_ = float(log_scale.detach().exp()), bias.detach()
        return self

    def transform(self, logits: Tensor) -> Tensor:
        """Scaled logits, (..., C), with graph."""
        self.check_fitted()
        return logits * self.scale_ + self.bias_.to(logits)

    def predictor(self, predict: Predict) -> Predict:
        """The classifier followed by the scaling."""
        self.check_fitted()
        return lambda x: self.transform(predict(x))
