"""Activation distillation: one operator learns to give back what another one does, on that one's own inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.evaluation import evaluating
from actinium.core.progress import shown
from actinium.functions.exchange.graft_calls import OperatorCall, Select, chosen, packed, read_of

__all__ = ["ActivationDistiller", "GraftedOperator"]

POINTS = 20
"""How often the regression is judged on the batches for validation."""
VISIBLE = 1e-4
"""Change of an output, relative to its largest entry, from which on it is none of rounding."""
CACHES = ("past_key_values", "past_key_value", "cache_params")
REGRESSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "huber": functional.huber_loss,
}
Run = Callable[[nn.Module, OperatorCall], Tensor]


class ActivationDistiller(Estimator):
    """Fits an operator to recorded calls of another one.

    It is judged in evaluation mode, and learns in the mode that it is given in.

    Args:
        operator: the new operator; it is copied.
        old: the operator whose calls are given.
        select: which item of the old one's output is meant, where it is no tensor.
        name: what the place is called in messages.
        loss: "l1", "l2" or "huber"; "auto" is l1 where the old operator mixes tokens, and l2 where it does not.
        steps: of Adam, one call each; 0 leaves the weights as they are.
        lr: learning rate.
        validation: share of the calls, the last ones, that the weights are chosen on.
        seed: of the order of the calls.

    Attributes:
        operator_: the copy with the weights that were best on the calls for validation.
        whole_: it is of the old one's type, and called with everything that the old one was called with.
        loss_: the loss that was used.
        points_: steps after which it was judged.
        train_: mean loss since the point before; NaN at the first.
        validation_: loss on the calls for validation.
        relative_error_: |g - y|_1 / |y|_1 on the calls for validation.

    Source: Chandrasegaran, Poli et al., 2025, section 3 (stage 1).
    """

    fitted = "operator_"

    def __init__(
        self,
        operator: nn.Module,
        old: nn.Module,
        select: Select = None,
        name: str = "the operator",
        loss: str = "auto",
        steps: int = 250,
        lr: float = 1e-3,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.operator, self.old, self.select, self.name = operator, old, select, name
        self.loss, self.steps, self.lr, self.validation, self.seed = loss, steps, lr, validation, seed

    def fit(self, calls: Sequence[OperatorCall], *, progress: bool = False) -> Self:
        """Learn from the calls that `record_calls` kept.

        Raises:
            InputError: a setting is out of its range, there are no calls, or one alone; the operator changes the shape,
                gives NaN, or sees later tokens where the old one sees none.
        """
        self._check(calls)
        held = max(1, round(self.validation * len(calls))) if self.steps else len(calls)
        learned, judged = calls[: len(calls) - held], calls[len(calls) - held :]
        operator = _wide(copy.deepcopy(self.operator), calls[0].y)
        self.whole_ = isinstance(operator, type(self.old))
        behind, ahead = _reach(self._raw, self.old, calls[0])
        with evaluating(operator):
            self._check_operator(operator, judged[0], sees_later=ahead or not behind)
        self.loss_ = ("l1" if behind or ahead else "l2") if self.loss == "auto" else self.loss
        if self.loss == "auto" and calls[0].y.ndim > 3:
            raise InputError(f"{self.name} gives {tuple(calls[0].y.shape)}, not (batch, tokens, width): name the loss")
        self._regress(operator, learned, judged, progress)
        with evaluating(operator):
            self.relative_error_ = self._relative_error(operator, judged)
        first = next(self.old.parameters(), calls[0].y)
        self.operator_ = operator.to(first.dtype).train(self.old.training)
        return self

    def _check(self, calls: Sequence[OperatorCall]) -> None:
        if self.loss not in ("auto", *REGRESSIONS):
            raise InputError(f"loss is one of auto, {', '.join(REGRESSIONS)}, not {self.loss!r}")
        if self.steps < 0 or not self.lr > 0 or not 0 < self.validation < 1:
            raise InputError(
                "expected steps >= 0, lr > 0 and validation in (0, 1), "
                f"got {self.steps}, {self.lr} and {self.validation}"
            )
        if len(calls) < (2 if self.steps else 1):
            raise InputError(f"{len(calls)} batches cannot be both learned from and judged on: give two or more")

    def _check_operator(self, operator: nn.Module, call: OperatorCall, sees_later: bool) -> None:
        name, kind = self.name, type(operator).__name__
        try:
            with torch.no_grad():
                y = self._new(operator, call)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{name}: {kind} cannot be called with {tuple(call.h.shape)}: {error}") from None
        if y.shape != call.y.shape:
            raise InputError(f"{name}: {kind} gives {tuple(y.shape)}, expected {tuple(call.y.shape)}")
        if not bool(y.isfinite().all()):
            raise InputError(f"{name}: {kind} gives NaN or infinite values")
        if not sees_later and not self.whole_ and _reach(self._new, operator, call)[1]:
            raise InputError(f"{name}: {kind} sees later tokens, and {type(self.old).__name__} does not")

    def _raw(self, operator: nn.Module, call: OperatorCall) -> Tensor:
        """Output of the old operator, or one that is called as it is, in the precision of the call."""
        return chosen(operator(*call.args, **call.kwargs), self.select, self.name)[0]

    def _new(self, operator: nn.Module, call: OperatorCall) -> Tensor:
        """Output of the new operator in the precision of the regression."""
        if self.whole_:
            return self._raw(operator, _wide_call(call))
        y = operator(_wide(call.h, call.h))
        if not isinstance(y, Tensor):
            raise InputError(f"{type(operator).__name__} returns {type(y).__name__}, expected a tensor")
        return y

    @torch.enable_grad()
    def _regress(
        self, operator: nn.Module, learned: Sequence[OperatorCall], judged: Sequence[OperatorCall], progress: bool
    ) -> None:
        regression = REGRESSIONS[self.loss_]

        def judge() -> float:
            with torch.no_grad(), evaluating(operator):
                return _mean([float(regression(self._new(operator, c), _wide(c.y, c.y))) for c in judged])

        weights = [p for p in operator.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(weights, lr=self.lr) if weights else None
        order = torch.Generator().manual_seed(self.seed)
        queue: list[int] = []
        every = max(1, self.steps // POINTS)
        best, since = judge(), []
        kept = {k: v.clone() for k, v in operator.state_dict().items()}
        self.points_, self.train_, self.validation_ = [0], [math.nan], [best]
        for step in shown(range(1, self.steps + 1), self.name, progress):
            queue = queue or torch.randperm(len(learned), generator=order).tolist()
            call = learned[queue.pop()]
            loss = regression(self._new(operator, call), _wide(call.y, call.y))
            if optimiser is not None:
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            since.append(float(loss.detach()))
            if step % every and step != self.steps:
                continue
            now = judge()
            self.points_.append(step)
            self.train_.append(_mean(since))
            self.validation_.append(now)
            since = []
            if now < best:
                best, kept = now, {k: v.clone() for k, v in operator.state_dict().items()}
        operator.load_state_dict(kept)
        operator.zero_grad()

    @torch.no_grad()
    def _relative_error(self, operator: nn.Module, judged: Sequence[OperatorCall]) -> float:
        apart = sum(float((self._new(operator, c) - _wide(c.y, c.y)).abs().sum()) for c in judged)
        size = sum(float(_wide(c.y, c.y).abs().sum()) for c in judged)
        return apart / size if size else (math.inf if apart else 0.0)


class GraftedOperator(nn.Module):
    """Calls an operator with the tensor that the old one read, and hands its output on in the old one's layout.

    Args:
        operator: (batch, tokens, width) to the same.
        select: the item of the output that it is; the others are None.
        layout: of the old one's output: None for a tensor, the length of a tuple, the keys of a mapping.
    """

    def __init__(self, operator: nn.Module, select: Select, layout: int | tuple[str, ...] | None) -> None:
        super().__init__()
        self.operator = operator
        self._select, self._layout = select, layout

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network expects of the old operator.

        Raises:
            InputError: called with a cache, which this operator does not keep.
        """
        if any(kwargs.get(name) is not None for name in CACHES):
            raise InputError(f"{type(self.operator).__name__} keeps no cache: call the network with use_cache=False")
        return packed(self.operator(read_of(args, kwargs, type(self.operator).__name__)), self._select, self._layout)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _wide(value: Any, like: Tensor) -> Any:
    """A tensor or a module on the device of another tensor, in float32, or in float64 where that one is so."""
    return value.to(like.device, torch.promote_types(like.dtype, torch.float32))


def _wide_call(call: OperatorCall) -> OperatorCall:
    def widen(value: Any) -> Any:
        return _wide(value, value) if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = _pytree.tree_map(widen, (call.args, dict(call.kwargs)))
    return OperatorCall(args, kwargs, call.h, call.y, call.layout)


@torch.no_grad()
def _reach(output: Run, operator: nn.Module, call: OperatorCall) -> tuple[bool, bool]:
    """Whether tokens see earlier ones, and later ones: whether outputs change with the first, or the last token."""
    if call.h.ndim != 3 or call.h.shape[1] < 2:
        return False, False
    before = output(operator, call)
    seen = []
    for changed, others in ((0, slice(1, None)), (-1, slice(None, -1))):
        h = call.h.clone()
        h[:, changed] = h[:, changed].flip(-1) + h.std()
        args, kwargs = call.with_h(h)
        after = output(operator, OperatorCall(args, kwargs, h, call.y, call.layout))
        change = (after - before)[:, others].abs().max()
        seen.append(float(change) > VISIBLE * float(before.abs().max()))
    return seen[0], seen[1]
