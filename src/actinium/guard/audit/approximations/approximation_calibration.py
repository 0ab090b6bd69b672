"""What approximations need to know of a model: values at sites, weights that read them, functions they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.guard.audit.approximations.approximation_sites import approximation_sites, is_activation, is_norm
from actinium.guard.audit.approximations.replacements import PiecewisePolynomial

__all__ = ["activation_range", "consumer_weights", "real_values", "replaced_function"]


def real_values(model: Model, texts: Any, sites: Sequence[str], **options: Any) -> dict[str, Tensor]:
    """Activations (n, d) of the real tokens at each site.

    Raises:
        InputError: one is not finite.
    """
    inputs = model.prepare(texts)
    found = model.record(inputs, list(sites), **options)
    out: dict[str, Tensor] = {}
    for site in sites:
        values = found[site].detach()
        mask = inputs.tokens.mask if inputs.tokens is not None else None
        if mask is not None and values.shape[:2] == mask.shape:
            values = values[mask.to(values.device)]
        out[site] = values.reshape(-1, values.shape[-1])
        if not bool(torch.isfinite(out[site]).all()):
            raise InputError(f"activations at {site} are NaN or infinite")
    return out


def consumer_weights(model: Model, texts: Any, site: str) -> Tensor:
    """Weights (out, d) of all linear maps that read a site: those whose input equals it.

    Raises:
        InputError: no map reads it as it is.
    """
    maps = approximation_sites(model, "linear")
    inputs = model.prepare(texts)
    found = model.record(inputs, [site, *maps])
    weights = []
    for name in maps:
        if found[name].shape == found[site].shape and torch.equal(found[name], found[site]):
            module = model.module.get_submodule(name.partition(":")[2])
            weight: Any = module.weight
            weights.append(weight.detach().T if type(module).__name__ == "Conv1D" else weight.detach())
    if not weights:
        raise InputError(f"no linear map in the blocks reads {site} as it is, so there are no weights to smooth with")
    return torch.cat(weights)


def _source(model: Model, site: str) -> tuple[str, Any]:
    """The place where the input of a site's module is read, and the module."""
    known, tap, _ = model.resolve(site)[0]
    if not site.startswith("module:") and known.part != "final_norm":
        raise InputError(f"a polynomial stands for the function of a module; {site} is the output of none")
    path = next(path for path, m in model.module.named_modules() if m is tap.module)
    return f"module_in:{path}", tap.module


def _variance(module: Any, x: Tensor) -> Tensor:
    """What a norm takes the inverse square root of, (..., 1)."""
    centred = x - x.mean(-1, keepdim=True) if isinstance(module, torch.nn.LayerNorm) else x
    eps = next((getattr(module, n) for n in ("eps", "variance_epsilon", "epsilon") if hasattr(module, n)), 0.0)
    return centred.square().mean(-1, keepdim=True) + float(eps)


def activation_range(model: Model, texts: Any, site: str, **options: Any) -> dict[str, float]:
    """The range that a norm's mean square has on texts; nothing for other functions, whose interval is a setting."""
    if model.resolve(site)[0][0].part == "attn.scores":
        return {}
    source, module = _source(model, site)
    if not is_norm(module):
        return {}
    inputs = model.prepare(texts)
    values = real_values(model, inputs, [source], **options)[source]
    size = _variance(module, values.double())
    return {"low": float(size.min()), "high": float(size.max())}


def replaced_function(
    model: Model, site: str, degree: int, pieces: int, bound: float, known: Mapping[str, Any]
) -> tuple[str | None, Callable[..., Tensor]]:
    """Where the input is read (None: the site itself), and what gives the new activation from input and old one.

    Raises:
        InputError: the site's module has no function that we replace, or a norm's range is not known.
    """
    if not bound > 0:
        raise InputError(f"the interval of a polynomial needs a bound above 0, not {bound}")
    if model.resolve(site)[0][0].part == "attn.scores":
        power = PiecewisePolynomial(torch.exp, -bound, 0.0, degree, pieces, "zero")

        def scores(x: Tensor) -> Tensor:
            # Softmax of these is the approximated exponentials over their sum; the largest is never cut off.
            return power(x - x.amax(-1, keepdim=True)).clamp_min(0).log()

        return None, scores
    source, module = _source(model, site)
    if is_norm(module):
        if not known:
            raise InputError("the inverse square root of a norm is approximated on the range of texts: call fit first")
        low, high = known["low"], max(known["high"], known["low"] * 1.001)
        # Its argument spans decades; pieces of equal length in its logarithm are as good everywhere.
        inverse = PiecewisePolynomial(lambda t: torch.exp(-t / 2), _log(low), _log(high), degree, pieces, "edge")

        def norm(x: Tensor, out: Tensor) -> Tensor:
            size = _variance(module, x.float())
            ratio = (inverse(size.log()) * size.sqrt()).to(out)
            shift = getattr(module, "bias", None)
            return out * ratio if shift is None else (out - shift) * ratio + shift

        return source, norm
    if not is_activation(module):
        raise InputError(f"{site} is the output of {type(module).__name__}, whose function we do not replace")

    def exact(x: Tensor) -> Tensor:
        out: Tensor = module.forward(x)
        return out

    ends = exact(torch.tensor([-bound, bound], dtype=torch.float64))
    bent = abs(float(ends[0])) < 0.05 * bound and abs(float(ends[1]) - bound) < 0.05 * bound
    curve = PiecewisePolynomial(exact, -bound, bound, degree, pieces, "relu" if bent else "edge")
    return source, lambda x, _: curve(x)


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())
