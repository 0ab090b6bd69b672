"""A model in two halves at one of its modules: from inputs to activations, and from activations to logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.edits import Edit, Where
from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model
from actinium.features.sensitivity import one_site, refuse_training_mode

__all__ = ["Above", "Below", "cut"]

CLOSE = 1e-4
"""Largest difference, as a share of the largest logit, between the two halves joined and the whole model."""


class _Look(Edit):
    """Keeps a copy of the site's value, with its graph, before the model can go on in place."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def bound(self, site: Any) -> _Look:
        """The same object, so that what it saw can be read."""
        return self

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Look, and change nothing."""
        self.values.append(x.clone())
        return x


class Below:
    """From images (n, ...) to the activations of a site, differentiable.

    Attributes:
        seen: shape of one input of the last call, which the upper half needs.
    """

    def __init__(self, model: Model, site: str) -> None:
        self.model, self.site = model, site
        self.seen: torch.Size | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Activations of the site.

        Raises:
            InputError: the module does not run exactly once.
        """
        look = _Look()
        with self.model.edit({self.site: look}):
            self.model(x)
        if len(look.values) != 1:
            raise InputError(f"{self.site} ran {len(look.values)} times in a pass; a model is cut where it runs once")
        self.seen = x.shape[1:]
        return look.values[0]


class Above:
    """From activations of a site (n, ...) to logits (n, class).

    The module below runs on one empty input, whose activation is exchanged for all those given, so that n of them cost
    n passes of what lies above the site alone.
    """

    def __init__(self, below: Below) -> None:
        self.below = below

    def __call__(self, activations: Tensor) -> Tensor:
        """Logits.

        Raises:
            InputError: the lower half has not run yet, or the output has no logits (n, class).
        """
        model, seen = self.below.model, self.below.seen
        if seen is None:
            raise InputError("run the lower half first: the upper one takes the shape of an input from it")
        ((_, tap, _),) = model.resolve(self.below.site)

        def exchange(module: nn.Module, args: Any, output: Any = None) -> Any:
            return activations if tap.kind == "output" else (activations, *args[1:])

        hook = tap.module.register_forward_hook if tap.kind == "output" else tap.module.register_forward_pre_hook
        handle = hook(exchange)
        try:
            logits = model.logits(torch.zeros(1, *seen, dtype=activations.dtype, device=activations.device))
        finally:
            handle.remove()
        if logits.ndim != 2 or len(logits) != len(activations):
            raise InputError(
                f"{len(activations)} activations at {self.below.site} gave logits of shape {tuple(logits.shape)}: "
                "this site is no cut of the model"
            )
        return logits

    def check(self, x: Tensor) -> None:
        """Refuse a site past which something flows.

        Raises:
            InputError: the two halves joined do not give the model's logits.
        """
        with torch.no_grad():
            whole = self.below.model.logits(x)
            try:
                parts = self(self.below(x))
            except RuntimeError as error:
                raise InputError(f"{self.below.site} is no cut of the model: {error}") from None
        if not torch.allclose(parts, whole, rtol=0, atol=CLOSE * float(whole.abs().max().clamp_min(1e-12))):
            raise InputError(
                f"{self.below.site} is no cut of the model: part of the input reaches the logits beside it; "
                "take the output of a whole block or stage"
            )


def cut(model: Model, site: str) -> tuple[Below, Above]:
    """Both halves of a model at the output or input of a module that runs once.

    Args:
        model: a classifier, in evaluation mode.
        site: a `module:` or `module_in:` site through which everything flows.

    Raises:
        InputError: the site is of another kind, several sites are meant, or the model is in training mode.
        SiteError: the site does not exist.
    """
    name = one_site(model, site)
    ((_, _, call),) = model.resolve(name)
    if not name.startswith(("module:", "module_in:")) or call is not None:
        raise SiteError(f"{name}: a model is cut at a module; take 'module:<path>' or 'module_in:<path>'")
    refuse_training_mode(model.module)
    below = Below(model, name)
    return below, Above(below)
