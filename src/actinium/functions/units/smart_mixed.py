"""One activation function for each neuron, chosen from a pool while the network is trained, and then kept.

    selector = ac.functions.GumbelActivationSelector(64)      # in place of an activation of 64 units
    selector.choices()                                        # (64,) which function of the pool each has
    ac.functions.freeze_selectors(network)                    # one function each from now on
    ac.functions.export_choices(network, "choices.json")

Source: Omidvar, 2025, arXiv 2510.22450, and its code, omidvaramin/SmartMixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, LoadError, unknown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.registry import functional as catalogued
from actinium.functions.units.channel_units import ChannelUnit

__all__ = [
    "MIXED_POOL",
    "GumbelActivationSelector",
    "PerNeuronActivation",
    "activation_preference_report",
    "apply_choices",
    "export_choices",
    "freeze_selectors",
    "mean_reciprocal_rank",
]

Function = Callable[[Tensor], Tensor]
Pool = Sequence[str] | Mapping[str, Function]

MIXED_POOL: dict[str, Function] = {
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
}
"""The published pool, in its order; the slope of leaky_relu is 0.01, alpha of elu is 1."""
TINY = 1e-20
FIRST = 1e-3
"""The logit with which a random function of each neuron begins; the others have 0."""


def _pool(pool: Pool) -> dict[str, Function]:
    """Functions by name.

    Raises:
        InputError: there are none, or one changes the shape of its input.
        UnknownNameError: there is no function of a name.
    """
    if isinstance(pool, str):
        raise InputError(f"a pool is a list of names or functions by name, not {pool!r}")
    found = dict(pool) if isinstance(pool, Mapping) else {n: MIXED_POOL.get(n) or catalogued(n) for n in pool}
    if not found:
        raise InputError("a pool needs one function or more")
    probe = torch.linspace(-1.0, 1.0, 6).view(2, 3)
    for name, fn in found.items():
        with torch.no_grad():
            y = fn(probe)
        if not isinstance(y, Tensor) or y.shape != probe.shape:
            raise InputError(f"{name} of the pool changes the shape of its input")
    return found


class GumbelActivationSelector(ChannelUnit):
    """Phase 1: a mixture of the functions of a pool for each neuron, with weights that are drawn at each call.

    Weights are softmax((logits + g) / tau) with Gumbel noise g, one draw for a whole batch; `hard` ones are rounded to
    the largest, with the gradient of those that are not. Noise is drawn in evaluation too, as published.

    Args:
        num_neurons: size of `dim`; with 1 all neurons share a choice.
        pool: names (of MIXED_POOL or the catalogue), or functions by name.
        tau: temperature.
        hard: whether one function is used at a time.
        clamp: each function and the mixture are kept inside of -clamp..clamp.
        dim: dimension of the neurons; 1 for the channels of images.
        noise_in_evaluation: False for the most likely function in evaluation, without noise.

    Raises:
        InputError: no neurons or functions, tau or clamp not above 0, or a function that changes the shape.
        UnknownNameError: there is no function of a name.

    Source: Omidvar, 2025, section 3; Jang et al., 2017, for the straight-through estimator.
    """

    def __init__(
        self,
        num_neurons: int = 1,
        pool: Pool = MIXED_POOL,
        tau: float = 0.5,
        hard: bool = True,
        clamp: float = 10.0,
        dim: int = -1,
        noise_in_evaluation: bool = True,
    ) -> None:
        super().__init__(num_neurons, dim)
        if not (tau > 0 and clamp > 0):
            raise InputError(f"tau and clamp are above 0, not {tau} and {clamp}")
        self.pool, self.tau, self.hard, self.clamp = _pool(pool), tau, hard, clamp
        self.noise_in_evaluation = noise_in_evaluation
        first = torch.randint(len(self.pool), (num_neurons, 1))
        self.logits = nn.Parameter(torch.zeros(num_neurons, len(self.pool)).scatter_(1, first, FIRST))

    def respond(self, x: Tensor) -> Tensor:
        """The mixture at x."""
        weights = self.weights().to(x.dtype)
        values = [f(x).clamp(-self.clamp, self.clamp) for f in self.pool.values()]
        mixed = sum(self.spread(weights[:, k], x) * y for k, y in enumerate(values))
        assert isinstance(mixed, Tensor)
        return mixed.clamp(-self.clamp, self.clamp)

    def weights(self) -> Tensor:
        """Weights of the functions, (num_neurons, functions), drawn anew at each call."""
        quiet = not (self.training or self.noise_in_evaluation)
        # Noise of few digits would tie, and ties go to the first function of the pool.
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        noise = 0.0 if quiet else -torch.log(-torch.log(torch.rand_like(logits) + TINY) + TINY)
        soft = ((logits + noise) / self.tau).softmax(-1)
        if not self.hard:
            return soft
        one = functional.one_hot(soft.argmax(-1), len(self.pool)).to(soft.dtype)
        return one + (soft - soft.detach())

    def choices(self) -> Tensor:
        """Number in the pool of each neuron's most likely function, (num_neurons,)."""
        return self.logits.detach().argmax(-1)

    def probabilities(self) -> Tensor:
        """How likely each function is, (num_neurons, functions): softmax of the logits."""
        return self.logits.detach().softmax(-1)

    def freeze(self) -> PerNeuronActivation:
        """The most likely function of each neuron, without clamps."""
        return PerNeuronActivation(self.choices(), self.pool, self.channel_dim)

    def extra_repr(self) -> str:
        """Neurons, pool and temperature."""
        return f"{super().extra_repr()}, pool={list(self.pool)}, tau={self.tau:g}"


class PerNeuronActivation(ChannelUnit):
    """Phase 2: one function for each neuron; each function is computed for its neurons only.

    Args:
        choices: (neurons,) numbers in the pool, or names.
        pool: names (of MIXED_POOL or the catalogue), or functions by name.
        dim: dimension of the neurons.

    Raises:
        InputError: no choices, one that is not in the pool, or a function that changes the shape.
        UnknownNameError: there is no function of a name.

    Source: Omidvar, 2025, section 3.
    """

    chosen: Tensor
    order: Tensor

    def __init__(self, choices: Tensor | Sequence[int] | Sequence[str], pool: Pool = MIXED_POOL, dim: int = -1) -> None:
        self_pool = _pool(pool)
        numbers = _numbers(choices, list(self_pool))
        super().__init__(len(numbers), dim)
        self.pool = self_pool
        self.register_buffer("chosen", numbers)
        self._group()

    def _group(self) -> None:
        """For each function its neurons; and where each neuron is, once these stand one behind the other."""
        device = self.chosen.device
        self.groups = [(self.chosen == k).nonzero()[:, 0].to(device) for k in range(len(self.pool))]
        behind = torch.cat(self.groups)
        self.register_buffer("order", behind.argsort(), persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._group()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerNeuronActivation:
        super()._apply(fn, recurse)
        self._group()
        return self

    def respond(self, x: Tensor) -> Tensor:
        """Each neuron's function of it."""
        self.spread(self.chosen, x)
        functions = list(self.pool.values())
        if self.num_parameters == 1:
            return functions[int(self.chosen)](x)
        parts = [f(x.index_select(self.channel_dim, i)) for f, i in zip(functions, self.groups, strict=True) if len(i)]
        return torch.cat(parts, self.channel_dim).index_select(self.channel_dim, self.order)

    def choices(self) -> Tensor:
        """Number in the pool of each neuron's function, (neurons,)."""
        return self.chosen

    def names(self) -> list[str]:
        """Name of each neuron's function."""
        known = list(self.pool)
        return [known[k] for k in self.chosen.tolist()]

    def extra_repr(self) -> str:
        """Neurons, and how many have which function."""
        counts = self.chosen.bincount(minlength=len(self.pool)).tolist()
        return f"{super().extra_repr()}, {dict(zip(self.pool, counts, strict=True))}"


def _numbers(choices: Any, known: list[str]) -> Tensor:
    if not isinstance(choices, Tensor) and len(choices) and isinstance(choices[0], str):
        for name in choices:
            if name not in known:
                raise InputError(unknown("function of the pool", name, known))
        choices = [known.index(name) for name in choices]
    numbers = torch.as_tensor(choices)
    if numbers.ndim != 1 or not len(numbers) or numbers.is_floating_point():
        raise InputError("choices are one number or name for each neuron")
    if int(numbers.min()) < 0 or int(numbers.max()) >= len(known):
        raise InputError(f"choices are numbers from 0 to {len(known) - 1}, the functions of the pool")
    return numbers.long().clone()


def _units(network: nn.Module, kinds: Any = (GumbelActivationSelector, PerNeuronActivation)) -> dict[str, Any]:
    found = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    if not found:
        raise InputError(f"{type(network).__name__} has no activation that is chosen for each neuron")
    return found


def freeze_selectors(network: nn.Module) -> dict[str, PerNeuronActivation]:
    """Put, in place of every selector of a network, the choice that it made.

    Returns:
        The new modules by name.

    Raises:
        InputError: the network has no selectors, or is one itself (see `GumbelActivationSelector.freeze`).
    """
    if isinstance(network, GumbelActivationSelector):
        raise InputError("a selector cannot be exchanged inside of itself; use its freeze()")
    frozen = {name: m.freeze().train(m.training) for name, m in _units(network, GumbelActivationSelector).items()}
    for name, module in frozen.items():
        network.set_submodule(name, module)
    return frozen


def export_choices(network: nn.Module, file: str | os.PathLike[str] | None = None) -> dict[str, list[str]]:
    """Name of the function of each neuron, by layer; of selectors their most likely one.

    Args:
        network: with selectors or frozen ones.
        file: JSON that is written, for `apply_choices`.

    Raises:
        InputError: the network has none, or the file cannot be written.
    """
    found = {}
    for name, unit in _units(network).items():
        known = list(unit.pool)
        found[name] = [known[k] for k in unit.choices().tolist()]
    if file is not None:
        try:
            Path(file).write_text(json.dumps(found) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {file}: {error.strerror}") from error
    return found


def apply_choices(
    network: nn.Module,
    choices: Mapping[str, Sequence[str]] | str | os.PathLike[str],
    pool: Pool = MIXED_POOL,
    dim: int = -1,
) -> dict[str, PerNeuronActivation]:
    """Put chosen functions into a network, in place of the modules of their names.

    Args:
        network: changed in place.
        choices: names of functions by layer, as `export_choices` gives them, or its file.
        pool: where the names are from.
        dim: dimension of the neurons.

    Returns:
        The new modules by name.

    Raises:
        InputError: the network has no module of a name, or the pool no such function.
        LoadError: the file cannot be read.
    """
    if not isinstance(choices, Mapping):
        try:
            choices = json.loads(Path(choices).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoadError(f"{choices} is no file of choices: {error}") from None
        if not isinstance(choices, dict):
            raise LoadError("a file of choices holds lists of names by layer")
    known = dict(network.named_modules())
    for name in choices:
        if not name or name not in known:
            raise InputError(unknown("module", name, known))
    made = {name: PerNeuronActivation(list(names), pool, dim) for name, names in choices.items()}
    for name, module in made.items():
        network.set_submodule(name, module.train(network.training))
    return made


def activation_preference_report(network: nn.Module) -> Result:
    """Which functions the neurons of each layer chose.

    Returns:
        Result by layer and function: "share", "count"; by layer: "neurons", "chi_square" against a uniform choice and
        its "p" (functions - 1 degrees of freedom); by pair of layers "layer" and "other": "p_same", of the
        hypothesis that both choose alike (NaN for a layer and itself).

    Raises:
        InputError: the network has no such layers, or their pools differ.

    Source: Omidvar, 2025, section 4.
    """
    from scipy import stats

    units = _units(network)
    pools = {tuple(u.pool) for u in units.values()}
    if len(pools) > 1:
        raise InputError(f"layers with one pool can be reported together; these have {len(pools)}")
    names = list(next(iter(pools)))
    counts = np.array([u.choices().cpu().bincount(minlength=len(names)).numpy() for u in units.values()])
    chi = [stats.chisquare(row) if len(names) > 1 else (0.0, 1.0) for row in counts]
    same = np.array([[_p_same(a, b) if a is not b else np.nan for b in counts] for a in counts])
    data = xr.Dataset(
        {
            "share": (("layer", "function"), counts / counts.sum(1, keepdims=True)),
            "count": (("layer", "function"), counts),
            "neurons": ("layer", counts.sum(1)),
            "chi_square": ("layer", [float(c[0]) for c in chi]),
            "p": ("layer", [float(c[1]) for c in chi]),
            "p_same": (("layer", "other"), same),
        },
        {"layer": list(units), "other": list(units), "function": names},
    )
    return Result(data, "activation_preference_report", "smartmixed", provenance(layers=list(units), pool=names))


def _p_same(a: np.ndarray, b: np.ndarray) -> float:
    """p of the chi-square test that two rows of counts are of one distribution."""
    from scipy import stats

    table = np.stack([a, b])
    table = table[:, table.sum(0) > 0]
    return float(stats.chi2_contingency(table, correction=False)[1]) if table.shape[1] > 1 else 1.0


def mean_reciprocal_rank(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How methods rank over experiments: the mean of 1 / rank, ties sharing their mean rank.

    Args:
        scores: of each method, one for each experiment, higher being better.

    Raises:
        InputError: there are no scores, not as many of each method, or some are NaN.
    """
    from scipy.stats import rankdata

    lengths = {len(v) for v in scores.values()}
    table = np.array(list(scores.values()), dtype=float) if len(lengths) == 1 else np.empty((0, 0))
    if not table.size or np.isnan(table).any():
        raise InputError("each method needs a score for every experiment")
    ranks = rankdata(-table, axis=0)
    return dict(zip(scores, (1 / ranks).mean(1).tolist(), strict=True))
