"""How pre-activations become latents: what the architectures of sparse dictionaries differ in.

A rule says which entries matter (`select`), what they become (`activate`) and what they cost (`penalties`). The first
is asked without gradients, so that a dictionary can leave everything else out of its products. Pre-activations are
entries (entries,) with the latent of each, or dense (n, d_sae) where so many are active that leaving out does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.features.dictionaries.code import Code, Places, offsets_of, top_k
from actinium.features.dictionaries.largest import largest
from actinium.features.dictionaries.straight_through import Jump, Step

__all__ = ["BatchTopK", "Gated", "JumpReLU", "ReLU", "Rule", "TopK", "rule_of"]

DENSE = 1 / 16
"""Share of active entries above which everything is computed densely."""


class Rule(nn.Module):
    """ReLU without a penalty, and the base of the others.

    Attributes:
        encoder_bias: whether the encoder has a bias of its own.
        auxiliary: whether dead latents are revived by an auxiliary loss.
        k: number of active latents, where the rule fixes it.
    """

    encoder_bias = True
    auxiliary = False
    k: float | None = None

    def build(self, d_sae: int) -> None:
        """Make the parameters for so many latents."""

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """The entries of (n, d_sae) that can matter, with their pre-activations; None if they are too many."""
        return _above(pre, pre > 0)

    def activate(self, pre: Tensor, latents: Tensor | None, norms: Tensor) -> Tensor:
        """What the entries become, from pre-activations (entries,) or (n, d_sae), with gradients."""
        return pre.relu()

    def dense(self, pre: Tensor, norms: Tensor) -> Tensor:
        """(n, d_sae) from pre-activations, with gradients."""
        return self.activate(pre, None, norms)

    def penalties(self, pre: Tensor, f: Tensor, latents: Tensor | None, norms: Tensor, n: int) -> dict[str, Tensor]:
        """What is added to the loss, by name, before the sparsity coefficient's warm-up: means over n rows.

        Args:
            pre, f: entries before and after `activate`.
            latents: of the entries, None if they are dense.
            norms: (d_sae,) weight of each latent, the norm of its decoder row (1 where norms are constrained).
            n: number of rows.
        """
        return {}

    def fold(self, factor: Tensor) -> None:
        """Change thresholds for latents (d_sae,) that become so many times larger."""

    def rescale(self, factor: Tensor) -> None:
        """Change thresholds on latents times norms, where all norms become so many times larger."""

    def check_equal(self, norms: Tensor) -> None:
        """Refuse to make latents larger by factors (d_sae,) that would change which are active."""

    @property
    def threshold(self) -> Tensor | None:
        """(d_sae,) or scalar threshold of an equal JumpReLU, None if there is none."""
        return None


class ReLU(Rule):
    """f = ReLU(pre), and a penalty on the sum of latents, each weighted by its decoder norm.

    Args:
        l1: coefficient.
        p: of the p-norm; 1 is the sum.

    Source: Bricken et al., 2023; Anthropic, April 2024 (weighted by norms).
    """

    def __init__(self, l1: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        if l1 < 0 or p <= 0:
            raise InputError(f"l1 must be 0 or more and p above 0, not {l1} and {p}")
        self.l1, self.p = l1, p

    def penalties(self, pre: Tensor, f: Tensor, latents: Tensor | None, norms: Tensor, n: int) -> dict[str, Tensor]:
        """lambda sum_i f_i ||D_i||, or the p-norm."""
        weighted = f * _at(norms, latents)
        if self.p == 1:
            return {"sparsity": self.l1 * weighted.sum() / n}
        # The root has no gradient at 0: entries that are not active do not count.
        powers = torch.where(weighted > 0, weighted.clamp_min(1e-12) ** self.p, torch.zeros_like(weighted))
        if latents is not None:
            raise InputError("a p-norm needs dense latents")
        return {"sparsity": self.l1 * powers.sum(1).clamp_min(1e-12).pow(1 / self.p).mean()}

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """Positive entries; a p-norm is taken densely."""
        return None if self.p != 1 else super().select(pre, norms)

    @property
    def threshold(self) -> Tensor:
        """0."""
        return torch.zeros(())


class TopK(Rule):
    """The k largest latents of each row, if positive.

    Args:
        k: number of latents.

    Source: Gao et al., 2024.
    """

    auxiliary = True

    def __init__(self, k: int = 32) -> None:
        super().__init__()
        if k != int(k) or k < 1:
            raise InputError(f"k must be a whole number of 1 or more, not {k}")
        self.k = int(k)

    def build(self, d_sae: int) -> None:
        """Check that there are so many latents."""
        if self.k > d_sae:
            raise InputError(f"k is {self.k}, and there are only {d_sae} latents")

    def check_equal(self, norms: Tensor) -> None:
        """Norms that were not counted must be equal."""
        _check_equal(norms)

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """The k with the largest pre-activation times norm."""
        _, latents = top_k(pre if norms.ndim == 0 else pre * norms, self.k)
        found = Code.from_top(pre.gather(1, latents), latents, pre.shape[1])
        return found

    def dense(self, pre: Tensor, norms: Tensor) -> Tensor:
        """Zero but at the k largest."""
        code = self.select(pre.detach(), norms)
        assert code is not None
        return pre.relu() * code.with_values(torch.ones_like(code.values)).dense()


class BatchTopK(Rule):
    """The k x n largest latents of a batch of n rows in training, those above one threshold afterwards.

    Args:
        k: mean number of latents of a row; may be a fraction.
        rate: of the running mean of the smallest latent kept, which is the threshold.

    Source: Bussmann, Leask and Nanda, 2024.
    """

    auxiliary = True
    running: Tensor

    def __init__(self, k: float = 32, rate: float = 0.01) -> None:
        super().__init__()
        if not k > 0 or not 0 < rate <= 1:
            raise InputError(f"k must be above 0 and rate between 0 and 1, not {k} and {rate}")
        self.k, self.rate = k, rate
        self.register_buffer("running", torch.full((), -1.0, dtype=torch.float64))

    def build(self, d_sae: int) -> None:
        """Check that there are so many latents."""
        assert self.k is not None
        if self.k > d_sae:
            raise InputError(f"k is {self.k}, and there are only {d_sae} latents")

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """In training the largest of the batch, else those above the threshold."""
        ranked = pre if norms.ndim == 0 else pre * norms
        if not self.training and float(self.running) >= 0:
            return _above(pre, (ranked > self.running.to(pre)) & (pre > 0))
        assert self.k is not None
        wanted = min(max(1, int(self.k * len(pre))), ranked.numel())
        rows, latents, values = largest(ranked, wanted)
        if self.training and len(values):
            self._follow(values.min().double())
        return Code(pre[rows, latents], Places(latents, offsets_of(rows, len(pre)), pre.shape[1]))

    def _follow(self, smallest: Tensor) -> None:
        if float(self.running) < 0:
            self.running.copy_(smallest)
        else:
            self.running.lerp_(smallest, self.rate)

    def dense(self, pre: Tensor, norms: Tensor) -> Tensor:
        """Zero but at the entries that are kept."""
        code = self.select(pre.detach(), norms)
        if code is None:
            return pre * ((pre if norms.ndim == 0 else pre * norms) > self.running.to(pre)) * (pre > 0)
        return pre * code.with_values(torch.ones_like(code.values)).dense()

    def rescale(self, factor: Tensor) -> None:
        """The threshold changes with the norms."""
        self.running.mul_(factor.to(self.running))

    def check_equal(self, norms: Tensor) -> None:
        """Norms that were not counted must be equal; then the threshold grows with the latents."""
        _check_equal(norms)
        if float(self.running) >= 0:
            self.running.mul_(norms.mean().to(self.running))

    @property
    def threshold(self) -> Tensor | None:
        """The running mean, None before training."""
        return None if float(self.running) < 0 else self.running.float()


class JumpReLU(Rule):
    """f = pre where pre > theta_i, and a penalty on their number, with straight-through gradients for theta.

    Args:
        l0: coefficient of the penalty.
        bandwidth: eps of the rectangle kernel.
        theta: initial threshold.
        penalty: "l0": the mean number; "tanh": sum tanh(c f_i ||D_i||); "target": (L0 / target - 1)^2 of the batch;
            "quadratic": mean over rows of (2 / target) (L0 - target)^2.
        target: of the last two.
        c: of "tanh".
        ste_to_input: give pre-activations the negative of the threshold's gradient, too.

    Source: Rajamanoharan et al., 2024, equations 9 to 12; Anthropic, January 2025 (tanh, gradients to inputs).
    """

    PENALTIES = ("l0", "tanh", "target", "quadratic")

    def __init__(
        self,
        l0: float = 1e-3,
        bandwidth: float = 0.05,
        theta: float = 0.01,
        penalty: str = "l0",
        target: float = 20.0,
        c: float = 4.0,
        ste_to_input: bool = False,
    ) -> None:
        super().__init__()
        if penalty not in self.PENALTIES:
            raise UnknownNameError(unknown("penalty", penalty, self.PENALTIES))
        if l0 < 0 or bandwidth <= 0 or theta < 0 or target <= 0:
            raise InputError("l0 and theta must be 0 or more, bandwidth and target above 0")
        self.l0, self.bandwidth, self.start, self.penalty = l0, bandwidth, theta, penalty
        self.target, self.c, self.ste_to_input = target, c, ste_to_input

    def build(self, d_sae: int) -> None:
        """One threshold for each latent."""
        self.theta = nn.Parameter(torch.full((d_sae,), float(self.start)))

    def clamp(self) -> None:
        """Thresholds are not negative."""
        with torch.no_grad():
            self.theta.clamp_(min=0)

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """Entries above the threshold, in training also those up to half a bandwidth below; "quadratic" is dense."""
        if self.training and self.penalty == "quadratic":
            return None
        reach = self.bandwidth / 2 if self.training else 0.0
        return _above(pre, pre > self.theta.detach().clamp_min(0) - reach)

    def activate(self, pre: Tensor, latents: Tensor | None, norms: Tensor) -> Tensor:
        """pre H(pre - theta)."""
        theta = _at(self.theta, latents).clamp_min(0).expand_as(pre)
        found: Tensor = Jump.apply(pre, theta, self.bandwidth, self.ste_to_input)  # type: ignore[no-untyped-call]
        return found

    def penalties(self, pre: Tensor, f: Tensor, latents: Tensor | None, norms: Tensor, n: int) -> dict[str, Tensor]:
        """lambda times what `penalty` names."""
        if self.penalty == "tanh":
            return {"sparsity": self.l0 * torch.tanh(self.c * f * _at(norms, latents)).sum() / n}
        theta = _at(self.theta, latents).clamp_min(0).expand_as(pre)
        active: Tensor = Step.apply(pre, theta, self.bandwidth, self.ste_to_input)  # type: ignore[no-untyped-call]
        if self.penalty == "quadratic":
            if latents is not None:
                raise InputError("the quadratic penalty needs dense latents")
            return {"sparsity": self.l0 * (2 / self.target) * (active.sum(1) - self.target).square().mean()}
        mean = active.sum() / n
        return {"sparsity": self.l0 * (mean if self.penalty == "l0" else (mean / self.target - 1).square())}

    def fold(self, factor: Tensor) -> None:
        """Thresholds grow with their latents."""
        with torch.no_grad():
            self.theta.mul_(factor)

    @property
    def threshold(self) -> Tensor:
        """theta."""
        return self.theta.detach().clamp_min(0)


class Gated(Rule):
    """f = 1[pi + b_gate > 0] ReLU(exp(r_mag) pi + b_mag), with a penalty and an auxiliary loss on the gate.

    Args:
        l1: coefficient of the penalty on ReLU(pi + b_gate).

    Source: Rajamanoharan et al., 2024 (Improving Dictionary Learning with Gated Sparse Autoencoders), section 3.2.
    """

    encoder_bias = False

    def __init__(self, l1: float = 1.0) -> None:
        super().__init__()
        if l1 < 0:
            raise InputError(f"l1 must be 0 or more, not {l1}")
        self.l1 = l1

    def build(self, d_sae: int) -> None:
        """Biases of gate and magnitude, and the scale between the two, all 0."""
        for name in ("b_gate", "b_mag", "r_mag"):
            setattr(self, name, nn.Parameter(torch.zeros(d_sae)))

    def select(self, pre: Tensor, norms: Tensor) -> Code | None:
        """Entries whose gate is open."""
        return _above(pre, pre + self.b_gate.detach() > 0)

    def activate(self, pre: Tensor, latents: Tensor | None, norms: Tensor) -> Tensor:
        """Gate times magnitude."""
        size = (pre * _at(self.r_mag, latents).exp() + _at(self.b_mag, latents)).relu()
        return size * (pre + _at(self.b_gate, latents) > 0)

    def gate(self, pre: Tensor, latents: Tensor | None) -> Tensor:
        """ReLU(pi + b_gate), which the penalty and the auxiliary reconstruction use."""
        return (pre + _at(self.b_gate, latents)).relu()

    def penalties(self, pre: Tensor, f: Tensor, latents: Tensor | None, norms: Tensor, n: int) -> dict[str, Tensor]:
        """lambda sum ReLU(pi + b_gate)_i ||D_i||."""
        return {"sparsity": self.l1 * (self.gate(pre, latents) * _at(norms, latents)).sum() / n}

    def fold(self, factor: Tensor) -> None:
        """Biases grow with their latents; the scale between gate and magnitude stays."""
        with torch.no_grad():
            self.b_gate.mul_(factor)
            self.b_mag.mul_(factor)


RULES: Mapping[str, type[Rule]] = {
    "relu": ReLU,
    "topk": TopK,
    "batch_topk": BatchTopK,
    "jumprelu": JumpReLU,
    "gated": Gated,
}


def rule_of(activation: str, settings: Mapping[str, Any] | None = None) -> Rule:
    """A rule by name.

    Raises:
        UnknownNameError: there is no such rule.
        InputError: it has no such setting, or a setting is out of range.
    """
    if activation not in RULES:
        raise UnknownNameError(unknown("activation", activation, RULES))
    try:
        return RULES[activation](**(settings or {}))
    except TypeError as error:
        raise InputError(f"{activation}: {error}") from None


def _check_equal(norms: Tensor) -> None:
    if not bool((norms - norms.mean()).abs().max() <= 1e-3 * norms.mean()):
        raise InputError(
            "decoder rows have different norms, which do not count in what is active: folding them would change it"
        )


def _at(values: Tensor, latents: Tensor | None) -> Tensor:
    """Numbers of latents (d_sae,) at entries, or as they are where entries are dense or the number is one."""
    return values if latents is None or values.ndim == 0 else values[latents]


def _above(pre: Tensor, mask: Tensor) -> Code | None:
    """The entries at a mask (n, d_sae), None if there are too many."""
    if int(torch.count_nonzero(mask)) > DENSE * mask.numel():
        return None
    rows, latents = mask.nonzero(as_tuple=True)
    return Code(pre[rows, latents], Places(latents, offsets_of(rows, len(pre)), pre.shape[1]))
