"""Small changes of an input that move the prediction (PGD), or the attribution map alone (IFIA)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.guard.attribution_maps import Classifier, attribution_map, refuse_batch_statistics, scores_of

__all__ = ["Perturbed", "check_ball", "ifia", "pgd"]

OBJECTIVES = ("topk", "centre", "cosine")


@dataclass(frozen=True, eq=False)
class Perturbed:
    """Changed inputs.

    Attributes:
        x: (batch, ...).
        kept: (batch,) bool, where the prediction is that of the unchanged input.
        objective: (batch,) what the attack has reached, larger is worse for the map; 0 where nothing was found.
    """

    x: Tensor
    kept: Tensor
    objective: Tensor


def check_ball(eps: float, bounds: tuple[float, float] | None) -> None:
    """Refuse a ball that does not exist.

    Raises:
        InputError: `eps` is negative, or the bounds are in the wrong order.
    """
    if eps < 0:
        raise InputError(f"eps is the radius of a ball, not {eps}")
    if bounds is not None and bounds[0] >= bounds[1]:
        raise InputError(f"bounds are (lowest, highest), not {bounds}")


def _inside(x: Tensor, centre: Tensor, eps: float, bounds: tuple[float, float] | None) -> Tensor:
    x = torch.minimum(torch.maximum(x, centre - eps), centre + eps)
    return x if bounds is None else x.clamp(*bounds)


def _start(x: Tensor, eps: float, bounds: tuple[float, float] | None, generator: torch.Generator) -> Tensor:
    noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
    return _inside(x + eps * noise, x, eps, bounds)


def pgd(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int = 7,
    step: float | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    loss: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | int = 0,
) -> Tensor:
    """Inputs in the L-infinity ball around `x` that raise a loss, found by projected signed-gradient steps.

    Args:
        model, x, y: as in `integrated_gradients`.
        eps: radius.
        steps: how many; 0 gives a random point of the ball.
        step: length of one; 2.5 eps / steps by default.
        bounds: lowest and highest value of an input, None for none.
        loss: from scores (batch, class) to (batch,); the cross-entropy of `y` by default.
        generator: a seed, or a generator on the CPU, of the starting point.

    Returns:
        As `x`, without graph.

    Raises:
        InputError: `eps` or `steps` is negative.

    Source: Madry et al., 2018, section 2.1.
    """
    check_ball(eps, bounds)
    if steps < 0:
        raise InputError(f"steps cannot be {steps}")
    if eps == 0:
        return x.detach().clone()
    random = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    length = 2.5 * eps / max(steps, 1) if step is None else step
    now = _start(x.detach(), eps, bounds, random)
    for _ in range(steps):
        point = now.requires_grad_()
        with torch.enable_grad():
            scores = scores_of(model, point)
            value = F.cross_entropy(scores, y, reduction="none") if loss is None else loss(scores)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        now = _inside(now.detach() + length * gradient.sign(), x.detach(), eps, bounds)
    return now.detach()


def ifia(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    objective: str = "topk",
    method: str = "ig",
    k: int | None = None,
    steps: int = 50,
    restarts: int = 3,
    ig_steps: int = 10,
    baseline: float | Tensor = 0.0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
) -> Perturbed:
    """Attack on the attribution map that leaves the prediction as it is.

    Signed-gradient steps of eps / 10 in the L-infinity ball; of all points visited in all restarts the one with the
    largest objective whose prediction is unchanged is kept, and the input itself where there is none. For ReLU networks
    the gradient of the map is that through the weights and the position on the line only.

    Args:
        model, x, bounds: as in `pgd`.
        y: classes whose score is attributed (batch,).
        eps: radius.
        objective: "topk" (less attribution on the k entries that had most), "centre" (the centre of mass moves) or
            "cosine" (1 - cosine of the two maps).
        method, ig_steps, baseline: of the map, see `attribution_map`.
        k: entries of "topk"; 100, at most a quarter of the entries, by default.
        steps: in each restart.
        restarts: random starting points.
        seed: of these.

    Returns:
        Perturbed.

    Raises:
        InputError: `eps` is negative; no steps or restarts; `k` is outside the input; the model is in training mode and
            normalises by batch statistics.
        UnknownNameError: there is no such objective.

    Source: Ghorbani et al., 2019, algorithm 1.
    """
    if objective not in OBJECTIVES:
        raise UnknownNameError(unknown("objective", objective, OBJECTIVES))
    check_ball(eps, bounds)
    if steps < 1 or restarts < 1:
        raise InputError(f"steps and restarts must be at least 1, not {steps} and {restarts}")
    refuse_batch_statistics(model)
    size = x[0].numel()
    k = min(100, max(1, size // 4)) if k is None else k
    if not 1 <= k <= size:
        raise InputError(f"k goes from 1 to {size}, not {k}")

    def draw(point: Tensor, graph: bool) -> Tensor:
        return attribution_map(model, point, y, method, steps=ig_steps, baseline=baseline, graph=graph)

    x = x.detach()
    first = draw(x, False).detach()
    worse = _Objective(objective, first, k)
    with torch.no_grad():
        label = scores_of(model, x).argmax(1)
    best, value = x.clone(), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    random = torch.Generator().manual_seed(seed)
    for _ in range(restarts if eps > 0 else 0):
        now = _start(x, eps, bounds, random)
        for i in range(steps + 1):
            point = now.requires_grad_()
            with torch.enable_grad():
                each = worse(draw(point, True))
                moved = i < steps and each.requires_grad
                (gradient,) = torch.autograd.grad(each.sum(), point) if moved else (None,)
            with torch.no_grad():
                same = scores_of(model, now).argmax(1) == label
            better = same & (each.detach() > value)
            best[better], value[better] = now.detach()[better], each.detach()[better]
            found |= same
            if gradient is None:
                break
            now = _inside(now.detach() + eps / 10 * gradient.sign(), x, eps, bounds)
    return Perturbed(best, found | (eps == 0), value)


class _Objective:
    """How far a map (batch, ...) has moved from the first one, (batch,)."""

    def __init__(self, name: str, first: Tensor, k: int) -> None:
        self.name, self.first = name, first.flatten(1)
        self.top = self.first.abs().topk(k, 1).indices
        self.mass = self._shares(self.first).gather(1, self.top).sum(1)
        self.centre = self._centre(first)

    def _shares(self, flat: Tensor) -> Tensor:
        return flat.abs() / flat.abs().sum(1, keepdim=True).clamp_min(1e-12)

    def _centre(self, maps: Tensor) -> Tensor:
        """Mean place of the attribution along each dimension of the input (batch, dimension)."""
        shares = self._shares(maps.flatten(1)).view_as(maps)
        out = []
        for dim in range(1, maps.ndim):
            rest = [d for d in range(1, maps.ndim) if d != dim]
            along = shares.sum(rest) if rest else shares
            out.append(along @ torch.arange(maps.shape[dim], dtype=maps.dtype, device=maps.device))
        return torch.stack(out, 1)

    def __call__(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        if self.name == "topk":
            return self.mass - self._shares(flat).gather(1, self.top).sum(1)
        if self.name == "centre":
            return (self._centre(maps) - self.centre).pow(2).sum(1).clamp_min(1e-24).sqrt()
        return 1 - F.cosine_similarity(flat, self.first, dim=1)
