"""Activation functions of a finished network, exchanged for others, and put back.

with ac.functions.replace(module, "gelu", "golu") as swap:
    swap.places                               # names of the modules that were exchanged
    ...
# as it was; without `with`, swap.undo() does the same
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.evaluation import evaluating
from actinium.functions.exchange.function_fit import FunctionFit, fit_to_function
from actinium.functions.registry import ActivationSpec, every, get, spec

__all__ = ["Replacement", "find_activations", "replace"]

Function = Callable[[Tensor], Tensor]
PROBE = torch.cat([torch.linspace(-6.0, 6.0, 97), torch.tensor([-0.01, 0.01, 0.3, -0.7])])
SAME = 2e-6
"""Largest difference on the probe of two functions that are taken for one; the two forms of GELU differ by 5e-4."""


class Replacement:
    """What `replace` exchanged. As a context manager it puts everything back when its block ends.

    Args:
        places: name of each exchanged module, and the module that stood there.
        fits: how well each new function was fitted to the old one, by name; empty without `preserve`.
    """

    def __init__(self, root: nn.Module, places: dict[str, nn.Module], fits: dict[str, FunctionFit]) -> None:
        self._root, self._before, self.fits = root, places, fits

    @property
    def places(self) -> list[str]:
        """Names of the exchanged modules."""
        return list(self._before)

    def undo(self) -> None:
        """Put the old modules back; a second call does nothing."""
        for name, module in self._before.items():
            self._root.set_submodule(name, module)
        self._before = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def find_activations(module: nn.Module, old: str | type[nn.Module] | Function | None = None) -> dict[str, nn.Module]:
    """Modules without children that compute an activation function, by name.

    A module is known by what it does: its values on a probe are those of the function. So it does not matter whether a
    library calls its class `NewGELUActivation` or `GELUTanh`.

    Args:
        module: the network, left in its mode.
        old: name of a function, a class of modules, or a function; None for every function of the catalogue that is
            elementwise, not linear, and has no jumps.

    Raises:
        UnknownNameError: there is no function of that name.
        InputError: nothing in the network is this function.
    """
    leaves = {name: m for name, m in module.named_modules() if name and not any(True for _ in m.children())}
    if isinstance(old, type):
        found = {name: m for name, m in leaves.items() if isinstance(m, old)}
    else:
        outputs = {name: y for name, m in leaves.items() if (y := _probed(m)) is not None}
        wanted = _wanted(old)
        found = {
            name: leaves[name] for name, y in outputs.items() if any(float((y - w).abs().max()) <= SAME for w in wanted)
        }
    if not found:
        what = (
            "an activation function"
            if old is None
            else repr(old if isinstance(old, str) else getattr(old, "__name__", old))
        )
        seen = sorted({type(m).__name__ for m in leaves.values()})
        raise InputError(
            f"no module of {type(module).__name__} is {what}; it consists of {', '.join(seen) or 'nothing'}. "
            "Functions that are called inside of a forward cannot be exchanged: give the network a module for them"
        )
    return found


def replace(
    module: nn.Module,
    old: str | type[nn.Module] | Function | None,
    new: str | nn.Module | Callable[[], nn.Module],
    *,
    preserve: bool = False,
    reach: float = 3.0,
    **settings: Any,
) -> Replacement:
    """Exchange the activation functions of a network in place.

    Args:
        module: the network. A gated MLP's activation is a module of its own and is exchanged like any other.
        old: which ones, as in `find_activations`.
        new: name of a function, a module that is copied to every place, or a factory that is called for each.
        preserve: fit the trainable parameters of the new function to the old one, so that the network does as before.
        reach: the fit is over -reach..reach.
        settings: of `get`, with a name.

    Returns:
        Replacement, whose `undo` puts the old ones back.

    Raises:
        UnknownNameError: there is no function of a name.
        InputError: nothing is to be exchanged, or `preserve` is asked of a function without parameters.
    """
    if settings and not isinstance(new, str):
        raise InputError(f"settings {sorted(settings)} are for a function given by its name")
    places = find_activations(module, old)
    fits: dict[str, FunctionFit] = {}
    made: dict[str, nn.Module] = {}
    for name, before in places.items():
        fresh = _made(new, settings).train(before.training)
        if preserve:
            fits[name] = fit_to_function(fresh, before, -reach, reach)
        made[name] = _to_device_of(module, fresh)
    for name, fresh in made.items():
        module.set_submodule(name, fresh)
    return Replacement(module, dict(places), fits)


def _made(new: str | nn.Module | Callable[[], nn.Module], settings: dict[str, Any]) -> nn.Module:
    made = get(new, **settings) if isinstance(new, str) else copy.deepcopy(new) if isinstance(new, nn.Module) else new()
    if not isinstance(made, nn.Module):
        raise InputError(f"a new activation function is a module, not {type(made).__name__}")
    return made


def _to_device_of(network: nn.Module, fresh: nn.Module) -> nn.Module:
    first = next(network.parameters(), None)
    return fresh if first is None else fresh.to(first.device)


def _probed(module: nn.Module) -> Tensor | None:
    """Values of a module on the probe in evaluation, if it is a function of each element."""
    try:
        first = next(module.parameters(), PROBE)
        with torch.no_grad(), evaluating(module):
            y = module(PROBE.to(first.device, torch.float32)[None])
            if not isinstance(y, Tensor) or y.shape != (1, len(PROBE)):
                return None
            turned = module(PROBE.flip(0).to(first.device, torch.float32)[None])
        # A vectorised kernel may round differently at another place.
        same = torch.allclose(turned[0].flip(0), y[0], rtol=0, atol=SAME, equal_nan=True)
        return y[0].cpu().float() if same else None
    except Exception:  # whatever a module that wants other inputs raises: it is no activation function
        return None


def _wanted(old: str | Function | None) -> list[Tensor]:
    if old is None:
        smooth = [
            s for s in every() if s.arity == "elementwise" and s.properties and s.properties.smooth >= 0 and s.function
        ]
        values = [s(PROBE) for s in smooth]
        return [y for y in values if not torch.allclose(y * PROBE[0], y[0] * PROBE, atol=1e-5)]
    function = spec(old) if isinstance(old, str) else old
    if isinstance(function, ActivationSpec) and (function.function is None or function.arity != "elementwise"):
        raise InputError(f"{function.name} is not elementwise, so that no module is known by its values")
    with torch.no_grad():
        return [function(PROBE)]
