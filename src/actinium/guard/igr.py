"""Training whose attribution maps keep their direction under small changes of the input (IGR), and its rivals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.guard.attribution_maps import Classifier, integrated_gradients, scores_of
from actinium.guard.perturbation import check_ball, pgd

__all__ = ["AttributionProtection", "IGRegularizer"]

BASES = ("natural", "adversarial", "trades")
PENALTIES = ("cosine", "norm", "sum_norm", "none")


class IGRegularizer:
    """Penalty on the change of integrated gradients between an input and a changed one.

    Args:
        steps: of the integrals.
        baseline: of the integrals, a number or a tensor that broadcasts to the inputs.
        lam: weight of the penalty, 0 or more.
        penalty: "cosine" (IGR: 1 - cosine of the two maps), "norm" (after IG-NORM: sum of absolute differences of the
            maps) or "sum_norm" (after IG-SUM-NORM: that and the cross-entropy of the changed input).

    Raises:
        InputError: `lam` is negative or there is no step.
        UnknownNameError: there is no such penalty.

    Source: Wang and Kong, 2022, equation 8; Chen et al., 2019 (IG-NORM, IG-SUM-NORM).
    """

    def __init__(
        self, steps: int = 10, baseline: float | Tensor = 0.0, lam: float = 1.0, penalty: str = "cosine"
    ) -> None:
        if penalty not in PENALTIES[:-1]:
            raise UnknownNameError(unknown("penalty", penalty, PENALTIES[:-1]))
        if lam < 0 or steps < 1:
            raise InputError(f"lam cannot be negative and steps must be at least 1, not {lam} and {steps}")
        self.steps, self.baseline, self.lam, self.penalty = steps, baseline, lam, penalty
        self.undefined_ = 0

    def __call__(self, model: Classifier, x: Tensor, x_changed: Tensor, y: Tensor) -> Tensor:
        """Weighted mean penalty, a scalar with a graph to the weights.

        Rows whose map is zero have no direction: they are left out and counted in `undefined_`.

        Args:
            model: from inputs (batch, ...) to scores (batch, class).
            x, x_changed: inputs of one shape; the changed ones are used without their graph.
            y: classes whose score is attributed, of both (batch,).
        """
        pair = torch.cat([x, x_changed.detach()])
        maps = integrated_gradients(
            model, pair, torch.cat([y, y]), steps=self.steps, baseline=self.baseline, graph=True
        ).flatten(1)
        first, second = maps.chunk(2)
        if self.penalty != "cosine":
            each = (first - second).abs().sum(1)
            if self.penalty == "sum_norm":
                each = each + F.cross_entropy(scores_of(model, x_changed.detach()), y, reduction="none")
            return self.lam * each.mean()
        defined = (first.detach().norm(dim=1) > 0) & (second.detach().norm(dim=1) > 0)
        self.undefined_ = int((~defined).sum())
        if not bool(defined.any()):
            return self.lam * (maps * 0).sum()
        return self.lam * (1 - F.cosine_similarity(first[defined], second[defined], dim=1)).mean()


class AttributionProtection(Estimator):
    """Train a classifier so that its attribution maps withstand small changes of the input.

    Args:
        base: "natural" (cross-entropy), "adversarial" (cross-entropy of PGD inputs) or "trades" (cross-entropy, and
            `beta` times the divergence of the two predictions).
        penalty: see `IGRegularizer`; "none" leaves the base loss alone.
        lam, ig_steps, baseline: of the penalty.
        eps: radius of the L-infinity ball.
        pgd_steps: steps of the inner attack on the classification loss.
        beta: weight of TRADES' divergence.
        epochs, batch_size, rate: of Adam.
        bounds: lowest and highest value of an input, None for none.
        seed: of the order and of the attack.

    Attributes:
        losses_: mean loss of each epoch.

    Raises:
        InputError, UnknownNameError: a setting is not one of those above; when `fit` is called.

    Source: Wang and Kong, 2022, section 4; Zhang et al., 2019, equation 5 (TRADES).
    """

    def __init__(
        self,
        base: str = "natural",
        penalty: str = "cosine",
        *,
        lam: float = 1.0,
        ig_steps: int = 10,
        baseline: float = 0.0,
        eps: float = 0.1,
        pgd_steps: int = 7,
        beta: float = 6.0,
        epochs: int = 15,
        batch_size: int = 128,
        rate: float = 2e-3,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        self.base, self.penalty, self.lam, self.ig_steps, self.baseline = base, penalty, lam, ig_steps, baseline
        self.eps, self.pgd_steps, self.beta, self.bounds = eps, pgd_steps, beta, bounds
        self.epochs, self.batch_size, self.rate, self.seed = epochs, batch_size, rate, seed

    def fit(self, model: torch.nn.Module, x: Tensor, y: Tensor, progress: bool = False) -> AttributionProtection:
        """Train the model in place; it ends in evaluation mode.

        Args:
            model: from inputs (batch, ...) to scores (batch, class).
            x: inputs (n, ...).
            y: classes (n,) int64.
            progress: show a progress bar.

        Raises:
            InputError, UnknownNameError: a setting cannot be used, or inputs and classes do not fit.
        """
        regularizer = self._checked(x, y)
        optimiser = torch.optim.Adam(model.parameters(), lr=self.rate)
        random = torch.Generator().manual_seed(self.seed)
        self.losses_: list[float] = []
        for _ in _epochs(self.epochs, progress):
            total = 0.0
            for rows in torch.randperm(len(x), generator=random).split(self.batch_size):
                loss = self._loss(model, x[rows], y[rows], regularizer, random)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            self.losses_.append(total / len(x))
        model.eval()
        return self

    def _checked(self, x: Tensor, y: Tensor) -> IGRegularizer | None:
        if self.base not in BASES:
            raise UnknownNameError(unknown("base loss", self.base, BASES))
        if self.penalty not in PENALTIES:
            raise UnknownNameError(unknown("penalty", self.penalty, PENALTIES))
        check_ball(self.eps, self.bounds)
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch_size must be at least 1, not {self.epochs} and {self.batch_size}")
        if len(x) != len(y) or not len(x) or not bool(torch.isfinite(x).all()):
            raise InputError(
                f"expected finite inputs and one class for each, got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        return None if self.penalty == "none" else IGRegularizer(self.ig_steps, self.baseline, self.lam, self.penalty)

    def _loss(
        self, model: torch.nn.Module, x: Tensor, y: Tensor, regularizer: IGRegularizer | None, random: torch.Generator
    ) -> Tensor:
        changed = x
        if self.base != "natural" or regularizer is not None:
            # The attack sees the model as it will be used.
            model.eval()
            changed = pgd(model, x, y, self.eps, steps=self.pgd_steps, bounds=self.bounds, generator=random)
        model.train()
        scores = scores_of(model, changed if self.base == "adversarial" else x)
        loss = F.cross_entropy(scores, y)
        if self.base == "trades":
            other = F.log_softmax(scores_of(model, changed), 1)
            loss = loss + self.beta * F.kl_div(other, F.log_softmax(scores, 1), reduction="batchmean", log_target=True)
        return loss if regularizer is None else loss + regularizer(model, x, changed, y)


def _epochs(n: int, progress: bool) -> Sequence[int]:
    if not progress:
        return range(n)
    from rich.progress import track

    return track(range(n), description="training", transient=True)  # type: ignore[return-value]
