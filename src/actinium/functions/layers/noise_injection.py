"""Noise in the weights and activations of a network while a block runs.

    four_bits = ac.functions.ReducePrecision(15)
    with ac.functions.inject_noise(model, "model.layers.*.mlp.down_proj", weight_noise=four_bits):
        model.loss(texts)

Source: Shah and Youngblood, 2024, arXiv 2402.02593 (where hardware rounds and is noisy).
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from actinium.core.edits import Fn
from actinium.core.errors import ActiniumWarning, InputError, SiteError, unknown
from actinium.core.model import Model

__all__ = ["inject_noise"]

Noise = Callable[[Tensor], Tensor]


@contextmanager
def inject_noise(
    model: nn.Module | Model,
    sites: str | Sequence[str],
    weight_noise: Noise | None = None,
    act_noise: Noise | None = None,
    input_noise: Noise | None = None,
) -> Iterator[nn.Module | Model]:
    """Noise in a network while a block runs; gradients reach its parameters, which stay as they are.

    Args:
        model: the network.
        sites: names of modules or patterns (`*`) of them; of a `Model` also addresses of activations, such as
            "blocks.*.mlp.post", where only `act_noise` can act.
        weight_noise: from a parameter to what the module uses instead, such as `ReducePrecision(15)`; called in each
            pass for each of the module's own parameters (biases too).
        act_noise: of the output, or of the activation at an address.
        input_noise: of the module's first input.

    Raises:
        InputError: no noise is given, an output is no tensor, or weights are asked of an activation.
        SiteError: there is no such module or activation.

    Warns:
        ActiniumWarning: at the end, of modules that never ran, so that no noise acted: a network may use a module's
            weights without calling it, as nn.MultiheadAttention does with those of `out_proj`.
    """
    if weight_noise is None and act_noise is None and input_noise is None:
        raise InputError("one of weight_noise, act_noise and input_noise is needed")
    module = model.module if isinstance(model, Model) else model
    patterns = [sites] if isinstance(sites, str) else list(sites)
    if not patterns:
        raise InputError("no site is given")
    parts: dict[str, nn.Module] = {}
    edits: dict[str, Fn] = {}
    known = {name: part for name, part in module.named_modules() if name}
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        parts |= {name: known[name] for name in found}
        if found:
            continue
        if not isinstance(model, Model) or not model.has(pattern):
            raise SiteError(unknown("module", pattern, known))
        if act_noise is None or weight_noise is not None or input_noise is not None:
            raise InputError(
                f"{pattern} is an activation and has neither weights nor inputs: only act_noise can act there"
            )
        edits[pattern] = Fn(act_noise)
    ran: set[str] = set()
    with ExitStack() as stack:
        if edits and isinstance(model, Model):
            stack.enter_context(model.edit(edits))
        for name, part in parts.items():
            for handle in _hooked(name, part, weight_noise, act_noise, input_noise, ran):
                stack.callback(handle.remove)
        yield model
    # Lists of modules have no pass of their own.
    idle = [n for n, p in parts.items() if n not in ran and type(p).forward is not nn.Module.forward]
    if idle:
        warnings.warn(f"no noise acted at {', '.join(idle)}: there was no call of it", ActiniumWarning, stacklevel=3)


def _hooked(
    name: str,
    part: nn.Module,
    weight_noise: Noise | None,
    act_noise: Noise | None,
    input_noise: Noise | None,
    ran: set[str],
) -> Iterator[Any]:
    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        ran.add(name)
        if weight_noise is not None:
            # What stands in the instance's dictionary is found before the parameter, which stays registered.
            for key, p in module.named_parameters(recurse=False):
                module.__dict__[key] = weight_noise(p)
        if input_noise is None:
            return None
        if not args or not isinstance(args[0], Tensor):
            raise InputError(f"the first input of {name} is no tensor")
        return (input_noise(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if weight_noise is not None:
            for key, _ in module.named_parameters(recurse=False):
                module.__dict__.pop(key, None)
        if act_noise is None or output is None:
            return None
        if not isinstance(output, Tensor):
            raise InputError(f"the output of {name} is a {type(output).__name__} and no tensor; choose a module inside")
        return act_noise(output)

    yield part.register_forward_pre_hook(before)
    yield part.register_forward_hook(after, always_call=True)
