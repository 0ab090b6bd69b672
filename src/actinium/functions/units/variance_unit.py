"""VeLU: an activation whose gain follows the spread of the batch, with a penalty towards the standard normal.

    net = nn.Sequential(nn.Linear(64, 64), ac.functions.VeLU(lam_ot=0.1), nn.Linear(64, 10))
    loss = criterion(net(x), y) + ac.functions.collect_penalties(net)

Source: Shakarami et al., 2025, arXiv 2504.15051; the text leaves open which of two forms is meant (`trig`, `ot`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError, unknown

__all__ = ["VeLU", "collect_penalties", "velu", "wasserstein2_gaussian"]

MARGIN = 1e-4
"""How far below 1 the argument of the arcsine ends: its slope at 1 is infinite."""
GAIN = (0.5, 2.0)
TINY = 1e-12


def velu(
    x: Tensor,
    sigma: Tensor | float,
    *,
    alpha: float = 1.0,
    beta1: float = 1.0,
    beta2: float = 1.0,
    gamma: float = 0.1,
    mu: float = 1.0,
    lam: Tensor | float = 1.0,
    trig: str = "asin",
    margin: float = MARGIN,
) -> Tensor:
    """lam x sigmoid(alpha (atan(beta1 x) + asin(beta2 x))) s with s = 1 + gamma tanh(mu sigma), within 0.5..2.

    Args:
        x: of any shape.
        sigma: standard deviation of the batch, which broadcasts with x.
        trig: "asin", whose argument is cut to -1 + margin .. 1 - margin, or "sin".
    """
    gain = torch.clamp(1 + gamma * torch.tanh(torch.as_tensor(mu * sigma, dtype=x.dtype, device=x.device)), *GAIN)
    turned = beta2 * x
    second = torch.sin(turned) if trig == "sin" else torch.asin(turned.clamp(-1 + margin, 1 - margin))
    return lam * x * torch.sigmoid(alpha * (torch.atan(beta1 * x) + second)) * gain


def wasserstein2_gaussian(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Squared 2-Wasserstein distance of a normal with the mean and deviation of x from N(0, 1): m^2 + (s - 1)^2.

    Args:
        x: of any shape.
        dims: over which statistics are taken; all if not given.

    Returns:
        a scalar, or one number for what is left of the dimensions.

    Raises:
        InputError: no floating-point tensor, or an empty one.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
        raise InputError("a floating-point tensor with one element or more is needed")
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # squares of float16 end at 65504
    over = tuple(range(x.ndim)) if dims is None else dims
    mean = x.mean(over)
    return mean.square() + (x.var(over, correction=0).clamp(min=TINY).sqrt() - 1).square()


class VeLU(nn.Module):
    """lam x sigmoid(alpha (atan(beta1 x) + asin(beta2 x))) (1 + gamma tanh(mu sigma)) with sigma of the batch.

    The output of an element depends on the others of its batch; with `momentum` evaluation uses a running sigma.

    Args:
        alpha, beta1, beta2, gamma, mu: of the formula.
        lam_init: where lam starts.
        lam_ot: weight of the penalty W, the squared Wasserstein distance of the inputs from N(0, 1).
        ot: "loss" (`collect_penalties` gives lam_ot W), "subtract" (lam_ot W is taken from each output) or "none".
        trig: "asin", or "sin" as in the first version's abstract.
        stat_dims: "all", or "channel": statistics for each entry of dimension 1.
        momentum: of the running sigma, inside of 0..1; None: the batch's own, in evaluation too.
        eps: added to the variance.
        trainable: whether lam is learnt.
        detach_stats: let no gradient pass through sigma.

    Attributes:
        penalty: W of the last input (mean over channels), with its graph; None before the first and with ot="none".

    Raises:
        InputError: a setting has no such value; at the call: no floating-point tensor, an empty one, or none with
            channels where they are needed.

    Source: Shakarami et al., 2025; the defaults of alpha, beta, gamma, mu and lam_ot are ours.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta1: float = 1.0,
        beta2: float = 1.0,
        gamma: float = 0.1,
        mu: float = 1.0,
        lam_init: float = 1.0,
        lam_ot: float = 1e-3,
        ot: str = "loss",
        trig: str = "asin",
        stat_dims: str = "all",
        momentum: float | None = None,
        eps: float = 1e-3,
        trainable: bool = True,
        detach_stats: bool = False,
    ) -> None:
        super().__init__()
        for what, value, known in (
            ("ot", ot, ["loss", "subtract", "none"]),
            ("trig", trig, ["asin", "sin"]),
            ("stat_dims", stat_dims, ["all", "channel"]),
        ):
            if value not in known:
                raise InputError(unknown(what, str(value), known))
        if trig == "asin" and beta2 < 0:
            raise InputError(f"beta2 is 0 or more with the arcsine, got {beta2}")
        if not eps > 0 or not lam_ot >= 0 or (momentum is not None and not 0 < momentum < 1):
            raise InputError(
                f"eps is above 0, lam_ot 0 or more and momentum inside of 0..1, got {eps}, {lam_ot}, {momentum}"
            )
        self.alpha, self.beta1, self.beta2, self.gamma, self.mu = alpha, beta1, beta2, gamma, mu
        self.lam_ot, self.ot, self.trig, self.stat_dims = lam_ot, ot, trig, stat_dims
        self.momentum, self.eps, self.detach_stats = momentum, eps, detach_stats
        self.lam = nn.Parameter(torch.tensor(float(lam_init)), requires_grad=trainable)
        self.running: Tensor | None
        self.register_buffer("running", None)
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor, in its shape."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
            raise InputError("VeLU takes a floating-point tensor with one element or more")
        if self.stat_dims == "channel" and x.ndim < 2:
            raise InputError(f"a tensor of shape {tuple(x.shape)} has no channels in dimension 1")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        over = tuple(d for d in range(x.ndim) if self.stat_dims == "all" or d != 1)
        y = velu(
            wide, self._sigma(wide, over), alpha=self.alpha, beta1=self.beta1, beta2=self.beta2, gamma=self.gamma,
            mu=self.mu, lam=self.lam.to(wide.dtype), trig=self.trig,
        )  # fmt: skip
        if self.ot != "none":
            self.penalty = wasserstein2_gaussian(wide, over).mean()
            y = y - self.lam_ot * self.penalty if self.ot == "subtract" else y
        return y.to(x.dtype)

    def _sigma(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        if not self.training and self.running is not None:
            return self.running.to(x.dtype)
        if math.prod(x.shape[d] for d in over) == 1:
            warnings.warn("the variance of one element is taken for 0", ActiniumWarning, stacklevel=3)
        sigma = (x.var(over, correction=0, keepdim=True) + self.eps).sqrt()
        if self.training and self.momentum is not None:
            new = sigma.detach()
            self.running = new if self.running is None else torch.lerp(new, self.running.to(new), self.momentum)
        return sigma.detach() if self.detach_stats else sigma

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with a graph can be neither copied nor pickled, and belongs to the last batch alone.
        return self.__dict__ | {"penalty": None}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        held = state_dict.get(prefix + "running")
        if held is not None and self.momentum is not None:
            self.running = torch.empty_like(held, device=self.lam.device)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        """Settings."""
        return f"gamma={self.gamma:g}, mu={self.mu:g}, lam_ot={self.lam_ot:g}, ot={self.ot!r}, {self.stat_dims}"


def collect_penalties(model: nn.Module) -> Tensor:
    """The sum of lam_ot W over the VeLUs of a network with ot="loss", of the last pass: what is added to its loss.

    Raises:
        InputError: the network has no such VeLU, or none has run.
    """
    found = [m for m in model.modules() if isinstance(m, VeLU) and m.ot == "loss"]
    held = [m.lam_ot * m.penalty for m in found if m.penalty is not None]
    if not held:
        raise InputError("no VeLU with ot='loss' has run" if found else "the network has no VeLU with ot='loss'")
    return torch.stack(held).sum()
