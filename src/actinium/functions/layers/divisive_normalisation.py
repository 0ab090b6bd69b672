"""Generalised divisive normalisation: a layer, its approximate inverse, and a density of activations made from it.

    nn.Sequential(nn.Conv2d(3, 64, 5, stride=2), ac.functions.GDN(64))
    density = ac.functions.GDNDensity(8).fit(rows)
    density.log_prob(rows)

Source: Balle, Laparra and Simoncelli, 2015, arXiv 1511.06281; defaults of the layer from tensorflow/compression.
"""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.progress import shown
from actinium.core.rows import as_rows

__all__ = ["GDN", "IGDN", "GDNDensity", "negentropy"]

PEDESTAL = 2.0**-36
BETA_MIN = 1e-6
NEAR_ZERO = 1e-9
"""Added to |z| so that the slope of |z|^alpha at 0 is finite for alpha below 2."""
ENTRIES = 2**22
"""Of the Jacobians that are held at once."""


class _AtLeast(torch.autograd.Function):
    """max(v, bound), whose gradient passes where v is above the bound or would be moved up."""

    @staticmethod
    def forward(v: Tensor, bound: float) -> Tensor:
        return v.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (v,) = ctx.saved_tensors
        return torch.where((v >= ctx.bound) | (slope < 0), slope, 0.0), None


class _Bounded(nn.Module):
    """A parameter kept as v, whose value is max(v, bound)^2 - pedestal and never below `least`."""

    def __init__(self, start: Tensor, least: float) -> None:
        super().__init__()
        self.bound = math.sqrt(least + PEDESTAL)
        self.v = nn.Parameter((start + PEDESTAL).sqrt())

    def forward(self) -> Tensor:
        """The value."""
        root: Tensor = _AtLeast.apply(self.v, self.bound)
        return root.square() - PEDESTAL


class GDN(nn.Module):
    """y_i = z_i / (beta_i + sum_j gamma_ij |z_j|^alpha)^eps over the channels of each position; times it if `inverse`.

    Args:
        channels: size of dimension 1.
        alpha, eps: exponents; 1 and 1 are the cheaper form of later work.
        inverse: multiply, as one step of the inverse does (IGDN).
        learn_exponents: learn alpha (one for each pair, from 1 on) and eps (one for each channel, from 0 on).
        beta, gamma: where beta, and the diagonal of gamma, start.
        dim: of the channels.

    Raises:
        InputError: a setting has no such value; at the call: no floating-point tensor, or another number of channels.

    Source: Balle et al., 2015, equation 3; gamma_ij has i for the output and j for what is pooled.
    """

    def __init__(
        self,
        channels: int,
        alpha: float = 2.0,
        eps: float = 0.5,
        inverse: bool = False,
        learn_exponents: bool = False,
        beta: float = 1.0,
        gamma: float = 0.1,
        dim: int = 1,
    ) -> None:
        super().__init__()
        if channels < 1 or not 1 <= alpha < math.inf or not 0 <= eps < math.inf:
            raise InputError(f"channels and alpha are 1 or more and eps 0 or more, got {channels}, {alpha} and {eps}")
        if not BETA_MIN <= beta < math.inf or not 0 <= gamma < math.inf:
            raise InputError(f"beta is {BETA_MIN:g} or more and gamma 0 or more, got {beta} and {gamma}")
        if not inverse and alpha * eps > 1:
            warnings.warn(
                f"alpha eps is {alpha * eps:g}, above 1: this GDN cannot be undone", ActiniumWarning, stacklevel=2
            )
        self.channels, self.inverse, self.learn_exponents, self.dim = channels, inverse, learn_exponents, dim
        self.beta_of = _Bounded(torch.full((channels,), beta), BETA_MIN)
        self.gamma_of = _Bounded(gamma * torch.eye(channels), 0.0)
        self.alpha_of: Any = None
        if learn_exponents:
            self.alpha_of = _Bounded(torch.full((channels, channels), alpha - 1), 0.0)
            self.eps_of = _Bounded(torch.full((channels,), eps), 0.0)
        self._alpha, self._eps = alpha, eps

    @property
    def beta(self) -> Tensor:
        """(channels,), above 0."""
        value: Tensor = self.beta_of()
        return value

    @property
    def gamma(self) -> Tensor:
        """(channels, channels), not below 0: row i is what channel i is divided by."""
        value: Tensor = self.gamma_of()
        return value

    @property
    def alpha(self) -> Tensor | float:
        """One number, or (channels, channels)."""
        return 1 + self.alpha_of() if self.learn_exponents else self._alpha

    @property
    def eps(self) -> Tensor | float:
        """One number, or (channels,)."""
        return self.eps_of() if self.learn_exponents else self._eps

    def forward(self, x: Tensor) -> Tensor:
        """The function of (N, C, ...), in its shape. Half precision is computed in float32, in an autocast too: squares
        overflow there."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise InputError(f"GDN takes a floating-point tensor, not {type(x).__name__}")
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] != self.channels:
            raise InputError(f"expected {self.channels} channels in dimension {self.dim}, got shape {tuple(x.shape)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        z = wide.movedim(self.dim, -1)
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            y = z * self.pooled(z) if self.inverse else z / self.pooled(z)
        return y.movedim(-1, self.dim).to(x.dtype)

    def pooled(self, z: Tensor) -> Tensor:
        """(beta_i + sum_j gamma_ij |z_j|^alpha_ij)^eps_i of (..., C)."""
        pooled: Tensor = self._sums(z) ** _as(self.eps, z)
        return pooled

    def _sums(self, z: Tensor) -> Tensor:
        gamma, beta, alpha = self.gamma.to(z.dtype), self.beta.to(z.dtype), _as(self.alpha, z)
        if isinstance(alpha, Tensor):
            return beta + (gamma * (z.abs() + NEAR_ZERO)[..., None, :] ** alpha).sum(-1)
        size = z.square() if alpha == 2 else z.abs() if alpha == 1 else (z.abs() + NEAR_ZERO) ** alpha
        return beta + size @ gamma.T

    def jacobian(self, z: Tensor) -> Tensor:
        """dy_i / dz_k, (n, C, C), of rows (n, C), in the closed form; not of the inverse form."""
        s, alpha, eps = self._sums(z), _as(self.alpha, z), _as(self.eps, z)
        size = z.abs() + (NEAR_ZERO if isinstance(alpha, Tensor) or alpha not in (1, 2) else 0)
        # (n, i, k): gamma_ik alpha_ik |z_k|^(alpha_ik - 1) sgn(z_k)
        inner = self.gamma.to(z.dtype) * alpha * (size[:, None, :] ** (alpha - 1)) * z.sign()[:, None, :]
        full: Tensor = torch.diag_embed(s**-eps) - (z * eps * s ** (-eps - 1))[:, :, None] * inner
        return full

    def solve(self, y: Tensor, tol: float = 1e-6, max_iter: int = 200) -> tuple[Tensor, Tensor]:
        """The z (n, C) whose output is y (n, C), by the paper's fixed point, and which rows have converged (n,).

        Raises:
            InputError: alpha_ij eps_i is above 1 where gamma_ij is above 0.
        """
        alpha, eps = _as(self.alpha, y), _as(self.eps, y)
        own = alpha.diagonal() if isinstance(alpha, Tensor) else alpha
        gamma, product = self.gamma.to(y.dtype).diagonal(), torch.as_tensor(own * eps, dtype=y.dtype)
        grows = torch.as_tensor(alpha, dtype=y.dtype) * torch.as_tensor(eps, dtype=y.dtype).view(-1, 1)
        if bool(((grows > 1 + 1e-6) & (self.gamma > 0)).any()):
            raise InputError("a GDN is undone where alpha_ij eps_i is 1 or less; here it is above for some channels")
        room = (1 - product).clamp(min=1e-3)
        far = y.sign() * (gamma**eps * y.abs()) ** (1 / room)
        near = self.beta.to(y.dtype) ** eps * y
        z = torch.where((product < 1 - 1e-3) & far.isfinite(), far, near)
        done = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        for _ in range(max_iter):
            new = self.pooled(z) * y
            done = ((new - z).abs() <= tol * (1 + z.abs())).all(-1)
            z = new
            if bool(done.all()):
                break
        return z, done

    def extra_repr(self) -> str:
        """Channels and form."""
        return f"{self.channels}, alpha={self._alpha:g}, eps={self._eps:g}, inverse={self.inverse}"


def IGDN(channels: int, **settings: Any) -> GDN:
    """The layer that undoes a GDN approximately: y_i = x_i (beta_i + sum_j gamma_ij |x_j|^alpha)^eps.

    Args:
        channels: size of dimension 1.
        settings: of `GDN`.
    """
    return GDN(channels, inverse=True, **settings)


def _as(value: Tensor | float, x: Tensor) -> Any:
    return value.to(x.dtype) if isinstance(value, Tensor) else value


class _Stage(nn.Module):
    """A linear map and a normalisation, with the logarithm of its volume."""

    def __init__(self, start: Tensor, learn_exponents: bool) -> None:
        super().__init__()
        self.h = nn.Parameter(start)
        self.gdn = GDN(len(start), learn_exponents=learn_exponents).to(start.dtype)

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.h.T
        return z / self.gdn.pooled(z)

    def volume(self, x: Tensor) -> Tensor:
        jacobian = self.gdn.jacobian(x @ self.h.T)
        volume: Tensor = torch.linalg.slogdet(jacobian)[1] + torch.linalg.slogdet(self.h)[1]
        return volume


class GDNDensity(SavedEstimator):
    """A density of rows: stages of a linear map and a GDN, trained so that what they put out is standard normal.

    The linear map starts at the whitening of the rows. Stages are learnt jointly by maximum likelihood with Adam.

    Args:
        d: entries of a row.
        stages: number of stages.
        steps, rate, batch_size: of Adam; the rate falls to 0 along a half cosine.
        learn_exponents: learn alpha and eps too.
        seed: of the batches.

    Attributes:
        losses_: negative log-likelihood in nats by step.

    Source: Balle et al., 2015, equations 4 to 6.
    """

    fitted = "mean_"

    def __init__(
        self,
        d: int,
        stages: int = 1,
        steps: int = 700,
        rate: float = 2e-2,
        batch_size: int = 1000,
        learn_exponents: bool = False,
        seed: int = 0,
    ) -> None:
        self.d, self.stages, self.steps, self.rate, self.batch_size = d, stages, steps, rate, batch_size
        self.learn_exponents, self.seed = learn_exponents, seed

    def fit(self, rows: Any, progress: bool = False) -> Self:
        """Learn from rows (n, d).

        Raises:
            InputError: NaN, another width, fewer than 10 d rows, or rows that lie in fewer dimensions.
        """
        x = as_rows(rows, "rows", self.d, dtype=torch.float64)
        if len(x) < 10 * self.d:
            raise InputError(f"{10 * self.d} rows or more are needed for {self.d} dimensions, got {len(x)}")
        if min(self.stages, self.steps, self.batch_size) < 1 or not self.rate > 0:
            raise InputError("stages, steps and batch_size are 1 or more, and the rate is above 0")
        mean = x.mean(0)
        net = self._network(_whitening(x - mean))
        optimiser = torch.optim.Adam(net.parameters(), self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        random = torch.Generator().manual_seed(self.seed)
        losses = []
        for _ in shown(range(self.steps), "GDN density", progress):
            part = torch.randperm(len(x), generator=random)[: self.batch_size]
            loss = -_log_prob(net, x[part] - mean).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.mean_, self.losses_, self.net_ = mean, losses, net.requires_grad_(False)
        return self

    def _network(self, start: Tensor) -> nn.ModuleList:
        eye = torch.eye(self.d, dtype=torch.float64)
        return nn.ModuleList(_Stage(start if i == 0 else eye.clone(), self.learn_exponents) for i in range(self.stages))

    def _rows(self, rows: Any) -> Tensor:
        self.check_fitted()
        return as_rows(rows, "rows", self.d, dtype=torch.float64)

    def log_prob(self, rows: Any) -> Tensor:
        """Logarithm of the density in nats, (n,) of (n, d)."""
        x = self._rows(rows)
        return torch.cat([_log_prob(self.net_, part - self.mean_) for part in self._parts(x)])

    def transform(self, rows: Any) -> Tensor:
        """What is close to standard normal, (n, d) of (n, d)."""
        y = self._rows(rows) - self.mean_
        for stage in self.net_:
            y = stage(y)
        return y

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rows, as many at once as their Jacobians have room for."""
        return torch.split(x, max(1, ENTRIES // self.d**2))

    def inverse(self, y: Any, tol: float = 1e-6, max_iter: int = 200) -> Tensor:
        """The rows (n, d) of transformed ones (n, d); NaN, with a warning, where the fixed point is not reached: with
        alpha eps = 1 each output is bounded, and there is nothing beyond."""
        z = self._rows(y)
        lost = torch.zeros(len(z), dtype=torch.bool)
        for stage in reversed(list(self.net_)):
            gdn: GDN = stage.gdn  # type: ignore[assignment]
            z, done = gdn.solve(z, tol, max_iter)
            lost |= ~done
            z = torch.linalg.solve(stage.h, z.T).T
        if bool(lost.any()):
            warnings.warn(
                f"{int(lost.sum())} of {len(z)} rows have no inverse that {max_iter} iterations find; they are NaN",
                ActiniumWarning,
                stacklevel=2,
            )
        return torch.where(lost[:, None], math.nan, z + self.mean_)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n rows (n, d): normal ones through the inverse, drawn again where there is none.

        Raises:
            InputError: n is below 1, or hardly any normal row has an inverse.
        """
        self.check_fitted()
        if n < 1:
            raise InputError(f"one row or more can be drawn, not {n}")
        random = torch.Generator().manual_seed(seed)
        kept = torch.empty(0, self.d, dtype=torch.float64)
        for _ in range(50):
            y = torch.randn(n, self.d, generator=random, dtype=torch.float64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ActiniumWarning)
                new = self.inverse(y)
            kept = torch.cat([kept, new[new.isfinite().all(1)]])
            if len(kept) >= n:
                return kept[:n]
        raise InputError("hardly any normal row has an inverse; fit with fewer stages or more rows")

    def denoise(self, rows: Any, sigma: float) -> Tensor:
        """x + sigma^2 grad log p(x): the posterior mean where this density is that of rows with normal noise of sigma.

        Raises:
            InputError: sigma is below 0.

        Source: Balle et al., 2015, section on denoising (empirical Bayes).
        """
        if not 0 <= sigma < math.inf:
            raise InputError(f"sigma is a number from 0 on, got {sigma}")
        x = self._rows(rows)
        slopes = []
        for part in self._parts(x):
            with torch.enable_grad():
                at = part.clone().requires_grad_()
                slopes.append(torch.autograd.grad(_log_prob(self.net_, at - self.mean_).sum(), at)[0])
        return x + sigma**2 * torch.cat(slopes)

    def _state(self) -> State:
        return {"mean": self.mean_} | prefixed("net", self.net_.state_dict()), {"losses": self.losses_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.net_ = self._network(torch.eye(self.d, dtype=torch.float64))
        self.net_.load_state_dict(below("net", tensors))
        self.net_.requires_grad_(False)
        self.mean_, self.losses_ = tensors["mean"], about["losses"]


def _log_prob(net: Any, x: Tensor) -> Tensor:
    volume = torch.zeros(len(x), dtype=x.dtype)
    for stage in net:
        volume = volume + stage.volume(x)
        x = stage(x)
    return volume - 0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


def _whitening(x: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    if float(values[0]) <= 1e-10 * float(values[-1]):
        raise InputError("the rows lie in fewer dimensions than they have entries; project them first")
    white: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return white


def negentropy(rows: Any, log_volume: Any) -> float:
    """Mean negative log-likelihood in nats of what was mapped to rows, if they are taken for standard normal.

    It is the rows' distance from a normal distribution up to a constant, the entropy of what was mapped.

    Args:
        rows: (n, d), what a map put out.
        log_volume: (n,) or a number, log |det| of the map's Jacobian.

    Raises:
        InputError: no rows, or another number of volumes.

    Source: Balle et al., 2015, equation 5.
    """
    y = as_rows(rows, "rows", dtype=torch.float64)
    volume = torch.as_tensor(log_volume, dtype=torch.float64).detach()
    if volume.ndim > 1 or (volume.ndim == 1 and len(volume) != len(y)):
        raise InputError(f"log_volume: expected ({len(y)},) or a number, got shape {tuple(volume.shape)}")
    return float((0.5 * y.square().sum(1) - volume).mean() + 0.5 * y.shape[1] * math.log(2 * math.pi))
