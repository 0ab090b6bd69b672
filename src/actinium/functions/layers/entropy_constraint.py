"""Output activations that keep the entropy of a policy, a classifier or a language model from falling below a target.

    net = nn.Sequential(body, nn.Linear(64, 10), ac.functions.ERASoftmax(min_entropy=0.6))   # logits as before
    mu, log_std = ac.functions.ERAGaussian(target_entropy=-1.0)(mu, s)                        # head of a policy

Source: Kang et al., 2025, arXiv 2510.08549, and its code (nothingbutbut/era).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown
from actinium.functions.stable import cdf, pdf

__all__ = ["ERAGaussian", "ERASoftmax", "ERATokenScaling", "inverse_entropy_term", "policy_entropy"]

NORMAL = 0.5 * math.log(2 * math.pi * math.e)
"""Entropy of the standard normal in nats."""
LEAST = 1e-12
NEWTON = 8
TOKENS = 1024
"""Tokens whose entropies are computed at once."""


def policy_entropy(
    *, logits: Tensor | None = None, log_std: Tensor | None = None, mu: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Entropy in nats of the distribution that a head puts out.

    Args:
        logits: (..., D) of a categorical distribution; -inf excludes a class.
        log_std: (..., D) of independent normal distributions.
        mu: (..., D): with it, the normal distributions are those around tanh(mu), cut to -1..1, whose entropy is lower.

    Returns:
        (...).

    Raises:
        InputError: neither or both of logits and log_std are given, shapes differ, or values are NaN.
    """
    if (logits is None) == (log_std is None) or (mu is not None and log_std is None):
        raise InputError("either logits, or log_std (with or without mu) are needed")
    if logits is not None:
        terms: Tensor = torch.special.entr(torch.softmax(widened(logits, "logits"), -1))
        return terms.sum(-1)
    assert log_std is not None
    width = widened(log_std, "log_std")
    if mu is None:
        return (width + NORMAL).sum(-1)
    if mu.shape != width.shape:
        raise InputError(f"mu and log_std have one shape, got {tuple(mu.shape)} and {tuple(width.shape)}")
    loc, sigma = torch.tanh(widened(mu, "mu")), width.exp()
    a, b = (-1 - loc) / sigma, (1 - loc) / sigma
    mass = (cdf(b) - cdf(a)).clamp(min=torch.finfo(sigma.dtype).tiny)
    return (width + NORMAL + mass.log() + (a * pdf(a) - b * pdf(b)) / (2 * mass)).sum(-1)


def widened(x: Any, what: str) -> Tensor:
    """A tensor (..., D) in float32 or wider, without NaN."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(f"{what}: a floating-point tensor (..., D) is needed, not {type(x).__name__}")
    if x.ndim < 1 or not x.numel():
        raise InputError(f"{what}: one dimension and one value or more are needed, got shape {tuple(x.shape)}")
    if bool(x.isnan().any()):
        raise InputError(f"{what} hold NaN")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class ERAGaussian(nn.Module):
    """Standard deviations of a normal policy whose entropy is at least a target (before actions are cut to a range).

    log sigma_i = max(log s_max + (H - D log sqrt(2 pi e) - D log s_max) softmax(s)_i, log s_min), H = H_0 + delta.

    Args:
        target_entropy: H_0, nats over all D dimensions.
        log_std_min, log_std_max: where log sigma ends.
        delta: what is added to the target for the entropy that cutting actions takes, from 0 on; "learned": a
            parameter, which `delta_loss` trains and nothing else.

    Raises:
        InputError: log_std_min is not below log_std_max, or delta is neither a number from 0 on nor "learned"; at the
            call: shapes differ, values are NaN, or D standard deviations up to the largest do not reach the target.
    """

    def __init__(
        self,
        target_entropy: float,
        log_std_min: float = -8.0,
        log_std_max: float = 0.0,
        delta: float | str = 0.0,
    ) -> None:
        super().__init__()
        if not math.isfinite(target_entropy) or not -math.inf < log_std_min < log_std_max < math.inf:
            raise InputError(
                "the target is finite and log_std_min below log_std_max, got "
                f"{target_entropy}, {log_std_min} and {log_std_max}"
            )
        learnt = delta == "learned"
        if not learnt and not (isinstance(delta, int | float) and 0 <= delta < math.inf):
            raise InputError(f"delta is a number from 0 on, or 'learned', not {delta!r}")
        self.target_entropy, self.log_std_min, self.log_std_max = target_entropy, log_std_min, log_std_max
        self.delta: Any = nn.Parameter(torch.zeros(())) if learnt else float(delta)

    def forward(self, mu: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, log_std), each (..., D), of a head's two outputs (..., D)."""
        if mu.shape != s.shape:
            raise InputError(f"mu and s have one shape, got {tuple(mu.shape)} and {tuple(s.shape)}")
        wide = widened(s, "s")
        d = s.shape[-1]
        most = d * (self.log_std_max + NORMAL)
        if self.target_entropy > most:
            raise InputError(
                f"{d} standard deviations up to e^{self.log_std_max:g} have an entropy up to {most:.4g}, "
                f"below the target {self.target_entropy:g}"
            )
        # The actor's loss must not lower the target: delta learns from `delta_loss` alone.
        delta = self.delta.detach().clamp(min=0).to(wide) if isinstance(self.delta, Tensor) else self.delta
        target = torch.clamp(torch.as_tensor(self.target_entropy + delta, dtype=wide.dtype, device=s.device), max=most)
        log_std = self.log_std_max + (target - most) * torch.softmax(wide, -1)
        return mu, log_std.clamp(min=self.log_std_min).to(s.dtype)

    def delta_loss(self, entropy: Tensor) -> Tensor:
        """E[delta (H - H_0)], whose gradient step raises delta while the entropy of the actions is below the target.

        Args:
            entropy: (...) nats, of the distribution that actions are drawn from.

        Raises:
            InputError: delta is a constant.
        """
        if not isinstance(self.delta, Tensor):
            raise InputError("this delta is a constant; make the module with delta='learned'")
        with torch.no_grad():
            self.delta.clamp_(min=0)
        return self.delta * (widened(entropy, "entropy").detach() - self.target_entropy).mean().to(self.delta)


def inverse_entropy_term(h: Tensor, exact: bool = False) -> Tensor:
    """The t <= -1 at which -t e^t is h.

    Args:
        h: of any shape, in 0..1/e; values below 1e-12 are taken for it.
        exact: the branch W_{-1}(-h) of Lambert's function; else -1 - sqrt(2 u) - 3 u / 4 with u = -1 - ln h, which is
            off by less than 4 % for u up to 8.

    Source: Kang et al., 2025, section on discrete spaces.
    """
    u = (-1 - torch.log(h.clamp(min=LEAST))).clamp(min=LEAST)
    near = -1 - torch.sqrt(2 * u) - 0.75 * u
    if not exact:
        return near
    # s - ln s = 1 + u for s = -t, by Newton's method; its last step carries the gradient ds/du = s / (s - 1).
    s, fixed = -near.detach(), u.detach()
    for _ in range(NEWTON):
        s = (s * (fixed + torch.log(s)) / (s - 1)).clamp(min=1 + torch.finfo(s.dtype).eps)
    return -(s + (u - fixed) * s / (s - 1))


class ERASoftmax(nn.Module):
    """Logits whose softmax has an entropy of at least a bound, with the order of the classes kept.

    It follows the last linear layer in training and inference. Cross-entropy rises with it by construction.

    Args:
        min_entropy: H_0 in nats.
        tau: from e on; log(tau) / tau is what the surest class gets of the bound.
        inverse: "approx" (as published) or "lambert" (exact).

    Raises:
        InputError: tau is below e, the bound is too low for tau (exp(H_0 - 1) < log(tau) / tau), or there is no such
            inverse; at the call: fewer than two classes, NaN, a bound of ln D or more, or one that would turn the
            order of the classes around (exp(H_0 - 1) >= D log(tau) / tau).

    Source: Kang et al., 2025, section on discrete spaces. The last limit is ours: above it the published formula gives
    the surest class the smallest logit.
    """

    def __init__(self, min_entropy: float = 0.6, tau: float = 4.0, inverse: str = "approx") -> None:
        super().__init__()
        if not math.e * (1 - 1e-12) <= tau < math.inf:
            raise InputError(f"tau is a number from e = 2.718... on, got {tau}")
        if inverse not in ("approx", "lambert"):
            raise InputError(unknown("inverse", str(inverse), ["approx", "lambert"]))
        self.share = math.log(tau) / tau
        least = 1 + math.log(self.share)
        if not least <= min_entropy < math.inf:
            raise InputError(f"with tau = {tau:g} the bound is {least:.5g} nats or more, got {min_entropy}")
        self.min_entropy, self.tau, self.inverse = min_entropy, tau, inverse

    def forward(self, logits: Tensor) -> Tensor:
        """New logits (..., D) of logits (..., D), the smallest of which is 0."""
        z = widened(logits, "logits")
        h = self.terms(z)
        t = inverse_entropy_term(h, self.inverse == "lambert")
        return (t - t.detach().amin(-1, keepdim=True)).to(logits.dtype)

    def terms(self, logits: Tensor) -> Tensor:
        """What each class adds to the bound, (..., D); the sum is exp(H_0 - 1)."""
        d = logits.shape[-1]
        total = math.exp(self.min_entropy - 1)
        if d < 2 or self.min_entropy >= math.log(d):
            raise InputError(
                f"{d} classes have an entropy below {math.log(d):.4g} nats, which {self.min_entropy:g} is not"
            )
        if total >= d * self.share:
            most = 1 + math.log(d * self.share)
            raise InputError(
                f"with tau = {self.tau:g} and {d} classes the bound is below {most:.4g} nats, got "
                f"{self.min_entropy:g}; with tau = e it may come up to {math.log(d):.4g}"
            )
        other = 1 - torch.softmax(logits, -1)
        return (self.share + (total - d * self.share) / (d - 1) * other).clamp(min=0)

    def extra_repr(self) -> str:
        """Settings."""
        return f"min_entropy={self.min_entropy:g}, tau={self.tau:g}, inverse={self.inverse!r}"


class ERATokenScaling(nn.Module):
    """Logits of a policy gradient, sharpened where a response is too sure already and flattened where it is too unsure.

    It stands between a language model and the loss (and where old log-probabilities are computed), not in sampling.
    Tokens with an advantage above 0 get k z if the response's entropy is below `low`, and z / k if it is above `high`.

    Args:
        low, high: bounds in nats of the mean of the largest token entropies of a response.
        k: factor, from 1 on.
        top_frac: share of a response's tokens (one or more) over which that mean is.
        scale_advantage: also divide the advantage by k below `low`, and multiply it above `high`.

    Raises:
        InputError: a setting has no such value; at the call: other shapes, NaN, or a response without tokens.

    Source: Kang et al., 2025, section on language models; dp_actor.py of its code.
    """

    def __init__(
        self,
        low: float = 0.45,
        high: float = 3.0,
        k: float = 2.0,
        top_frac: float = 0.2,
        scale_advantage: bool = False,
    ) -> None:
        super().__init__()
        if not low < high or not 1 <= k < math.inf or not 0 < top_frac <= 1:
            raise InputError(
                f"low is below high, k is 1 or more and top_frac in 0..1, got {low}, {high}, {k} and {top_frac}"
            )
        self.low, self.high, self.k, self.top_frac, self.scale_advantage = low, high, k, top_frac, scale_advantage

    def forward(self, logits: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """New logits and advantages in the shapes of the given ones.

        Args:
            logits: (B, T, V).
            advantages: (B, T), or (B,) for whole responses.
            mask: (B, T), true (not 0) at the tokens of the responses.
        """
        on = mask.bool()
        if logits.ndim != 3 or on.shape != logits.shape[:2] or advantages.shape not in (on.shape, on.shape[:1]):
            raise InputError(
                "expected logits (B, T, V), advantages (B, T) or (B,) and a mask (B, T), got "
                f"{tuple(logits.shape)}, {tuple(advantages.shape)} and {tuple(mask.shape)}"
            )
        entropy = self.response_entropy(logits, on)
        good = advantages > 0
        scale = torch.where(entropy < self.low, self.k, torch.where(entropy > self.high, 1 / self.k, 1.0))
        by_token = scale[:, None].expand(on.shape)
        chosen = (good if good.ndim == 2 else good[:, None]) & on
        factor = torch.where(chosen, by_token, 1.0).to(logits.dtype)
        if self.scale_advantage:
            own = by_token if advantages.ndim == 2 else scale
            kept = chosen if advantages.ndim == 2 else good
            advantages = torch.where(kept, advantages / own.to(advantages.dtype), advantages)
        return logits * factor[..., None], advantages

    @torch.no_grad()
    def response_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Mean of the largest token entropies of each response, (B,) nats, without gradient."""
        on = mask.bool()
        if not bool(on.any(1).all()):
            raise InputError("a response without tokens has no entropy; leave it out of the batch")
        found = []
        for z, tokens in zip(logits, on, strict=True):
            # In parts: probabilities of a vocabulary at every token are more than there is memory for.
            entropy = torch.cat([policy_entropy(logits=z[i]) for i in tokens.nonzero()[:, 0].split(TOKENS)])
            # floor(0.29 * 100) is 29: what a product of floats lacks does not count.
            k = max(1, int(self.top_frac * len(entropy) + 1e-9))
            found.append(entropy.topk(k).values.mean())
        return torch.stack(found)
