"""Gradient of a logit at the sites of a model, and how it changes along a concept's direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.edits import Edit, Where
from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.features.cav import CAV, pooled

__all__ = [
    "Target",
    "activations_at",
    "concept_sensitivity",
    "gradients_at",
    "logit_of",
    "one_site",
    "refuse_training_mode",
    "tcav_score",
]

Target = int | Callable[[Tensor], Tensor]


class _Shift(Edit):
    """Adds zeros whose gradient is that of the site, also where the model goes on in place.

    Attributes:
        zeros: as the site's value, of each pass.
        columns: (batch or 1, pos) bool: which positions are real, or None at a site without positions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zeros: list[Tensor] = []
        self.columns: Tensor | None = None

    def bound(self, site: Any) -> _Shift:
        """The same object, so that what it saw can be read."""
        self.check(site)
        return self

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add zeros that require a gradient."""
        if where.pos is not None and x.ndim > where.pos:
            everything = slice(None)
            self.columns = where.now.selected(everything, x.shape[where.pos], where.start, x.device)
        self.zeros.append(torch.zeros_like(x, requires_grad=True))
        return x + self.zeros[-1]


def refuse_training_mode(module: Any, what: str = "the model") -> None:
    """Refuse a module whose output is random or depends on the other rows of a batch.

    Raises:
        InputError: dropout or batch norm is in training mode.
    """
    if not isinstance(module, nn.Module):
        return
    moving = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for name, part in module.named_modules():
        if isinstance(part, moving) and part.training:
            raise InputError(f"{what}: {name or type(part).__name__} is in training mode; call eval() first")


def one_site(model: Model, site: str) -> str:
    """The name that a site resolves to.

    Raises:
        InputError: it means several sites.
        SiteError: it does not exist.
    """
    found = model.resolve(site)
    if len(found) != 1:
        raise InputError(f"{site!r} means {len(found)} sites; a concept's direction belongs to one")
    name, call = found[0][0].name, found[0][2]
    return name if call is None else f"{name}#{call}"


def logit_of(logits: Tensor, target: Target, mask: Tensor | None = None) -> Tensor:
    """(n,) what is explained: the logit of a class or of the next token, or any function of the logits.

    Args:
        logits: (n, class), or (n, pos, d_vocab), of which the last real position is taken.
        target: class or token id, or a function from (n, class) to (n,).
        mask: (n, pos) bool, False on padding.

    Raises:
        InputError: the class does not exist, or the function does not give one number for each row.
    """
    if logits.ndim == 3:
        n = len(logits)
        places = torch.arange(logits.shape[1], device=logits.device)
        last = (mask.to(logits.device) * places).argmax(1) if mask is not None else places[-1:].expand(n)
        logits = logits[torch.arange(n, device=logits.device), last]
    if logits.ndim != 2:
        raise InputError(f"expected logits (n, class), got shape {tuple(logits.shape)}")
    if callable(target):
        value = target(logits)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            raise InputError("a target that is a function gives one number for each row of logits (n, class)")
        return value
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < logits.shape[1]:
        raise InputError(f"the target is a class from 0 to {logits.shape[1] - 1}, not {target!r}")
    return logits[:, target]


def _batches(ready: Inputs, batch_size: int | None, device: torch.device) -> Iterator[Inputs]:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    for start, args, kwargs in ready.batches(batch_size, device):
        stop = min(start + (batch_size or ready.size), ready.size)
        tokens = None if ready.tokens is None else ready.tokens[start:stop]
        yield Inputs(kwargs, stop - start, args, tokens)


def _chosen(value: Tensor, columns: Tensor | None, positions: int | None, pool: str, total: bool) -> Tensor:
    """(n, m) rows of one site: at one position of each row, or pooled over the real ones, or flattened."""
    if columns is None:
        if positions is not None:
            raise InputError(f"positions were given, but this site has none: its shape is {tuple(value.shape)}")
        return pooled(value, pool, total)
    real = columns.expand(len(value), -1).to(value.device)
    if positions is not None:
        rank = real.long().cumsum(1) - 1
        count = real.sum(1, keepdim=True)
        wanted = positions + count if positions < 0 else torch.full_like(count, positions)
        if bool(((wanted < 0) | (wanted >= count)).any()):
            raise InputError(f"position {positions} is outside a text of {int(count.min())} tokens")
        place = ((rank == wanted) & real).long().argmax(1)
        return value[torch.arange(len(value), device=value.device), place].flatten(1)
    if pool == "none":
        if not bool(real.all()):
            raise InputError('the texts differ in length; give positions=-1 for the last token, or pool="mean"')
        return value.flatten(1)
    weight = real.to(value.dtype).view(*real.shape, *[1] * (value.ndim - 2))
    summed = (value * weight).sum(1)
    return (summed if total else summed / weight.sum(1)).flatten(1)


def activations_at(
    model: Model,
    inputs: Any,
    at: Sequence[str],
    *,
    pool: str = "none",
    positions: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Activations of each input, (n, m) float64 by site.

    Args:
        model: the model.
        inputs: whatever `model.record` takes.
        at: names of sites.
        pool: "mean" over positions, or height and width; see `CAV`.
        positions: of text sites, the token position (0 first, -1 last); None for all.
        batch_size: rows in a pass.

    Raises:
        InputError: inputs cannot be read, or texts differ in length and neither `positions` nor a pool is given.
        SiteError: a site does not exist.
    """
    names = [one_site(model, site) for site in at]
    refuse_training_mode(model.module)
    rec = model.record(model.prepare(inputs), names, batch_size=batch_size)
    out = {}
    for name in names:
        value, columns = rec[name], None
        if rec.dims[name][1:2] == ("pos",):
            fits = rec.mask is not None and rec.mask.shape == value.shape[:2]
            columns = rec.mask if fits else torch.ones(value.shape[:2], dtype=torch.bool)
        out[name] = _chosen(value, columns, positions, pool, total=False).double().cpu()
    return out


def gradients_at(
    model: Model,
    inputs: Any,
    at: Sequence[str],
    target: Target,
    *,
    pool: str = "none",
    positions: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Gradient of one logit of each input at sites, (n, m) float64 by site; summed over what `pool` averages.

    Args:
        model, inputs, at, pool, positions, batch_size: as in `activations_at`.
        target: class, id of the next token, or a function from logits (n, class) to (n,).

    Raises:
        InputError: the class does not exist, a gradient is not finite, or no input's logit depends on a site.
        SiteError: a site does not exist.
    """
    names = [one_site(model, site) for site in at]
    refuse_training_mode(model.module)
    ready = model.prepare(inputs)
    pieces: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in _batches(ready, batch_size, model.device):
        shifts = {name: _Shift() for name in names}
        with torch.enable_grad(), model.edit(list(shifts.items())):
            mask = None if batch.tokens is None else batch.tokens.mask
            value = logit_of(model.logits(batch), target, mask).sum()
        for name, shift in shifts.items():
            if len(shift.zeros) != 1:
                raise InputError(
                    f"{name} ran {len(shift.zeros)} times in a pass; name one call of it, such as {name}#0"
                )
        zeros = [shift.zeros[0] for shift in shifts.values()]
        grads = torch.autograd.grad(value, zeros, allow_unused=True) if value.requires_grad else [None] * len(names)
        for (name, shift), grad in zip(shifts.items(), grads, strict=True):
            grad = torch.zeros_like(shift.zeros[0]) if grad is None else grad
            pieces[name].append(_chosen(grad, shift.columns, positions, pool, total=True).double().cpu())
    out = {name: torch.cat(parts) for name, parts in pieces.items()}
    for name, grad in out.items():
        if not bool(torch.isfinite(grad).all()):
            raise InputError(f"the gradient at {name} is not finite")
        if not bool(grad.any()):
            raise InputError(f"the logit does not depend on {name}: its gradient is 0 for every input")
    return out


def concept_sensitivity(
    model: Model,
    site: str,
    inputs: Any,
    target: Target,
    cav: CAV,
    *,
    positions: int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """(n,) directional derivative of a logit along a concept's vector: how fast it grows as the concept is added.

    Args:
        model: the model, in evaluation mode.
        site: the site where the vector was learned.
        inputs: inputs of the class.
        target: class, id of the next token, or a function from logits (n, class) to (n,).
        cav: fitted on activations of this site.
        positions: of text sites, the token position at which the stream is moved; None for all.
        batch_size: rows in a pass.

    Raises:
        InputError: see `gradients_at`, or the vector has another length.
        SiteError: the site does not exist.

    Source: Kim et al., 2018, equation 1.
    """
    (grad,) = gradients_at(
        model, inputs, [site], target, pool=cav.pool, positions=positions, batch_size=batch_size
    ).values()
    return cav.sensitivity(grad)


def tcav_score(sensitivity: Any) -> float:
    """Share of inputs whose logit grows along the concept; 0 is no growth.

    Args:
        sensitivity: (n,) from `concept_sensitivity`.

    Raises:
        InputError: there are none, or they are not finite.

    Source: Kim et al., 2018, equation 2.
    """
    values = torch.as_tensor(sensitivity)
    if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        raise InputError(f"expected finite sensitivities (n,), got shape {tuple(values.shape)}")
    return float((values > 0).double().mean())
