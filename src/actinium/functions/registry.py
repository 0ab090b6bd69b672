"""The catalogue of activation functions: what each is, what it needs, and what is known about its shape.

    ac.functions.get("golu")                      # a torch.nn.Module
    ac.functions.functional("swish")(x, b=1.5)    # the plain function
    ac.functions.spec("golu").properties          # range, smoothness, Lipschitz constant, ...
    ac.functions.list(trainable=True, smooth=2)   # names

Source of the list: Kunc and Kléma, 2024, arXiv 2402.09092.
"""

from __future__ import annotations

import builtins
import difflib
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ActivationSpec",
    "Parameter",
    "Properties",
    "every",
    "fixed",
    "functional",
    "get",
    "list",
    "register_activation",
    "row",
    "search",
    "spec",
    "trainable",
]

INF = math.inf
ARITIES = ("elementwise", "gated", "vector", "channels")
KINDS = ("fixed", "hyper", "trainable", "stochastic")


@dataclass(frozen=True)
class Parameter:
    """A parameter of an activation function.

    Args:
        default: its (initial) value; the middle of `drawn` where that is given.
        trainable: whether it is learnt with the weights.
        low, high: the values that it may have, inclusive.
        drawn: range from which initial values are drawn uniformly.
        whole: whether it is an integer, such as a number of terms.
    """

    default: float
    trainable: bool = False
    low: float = -INF
    high: float = INF
    drawn: tuple[float, float] | None = None
    whole: bool = False

    def check(self, name: str, of: str, value: Any) -> None:
        """Raises InputError for a value outside of the domain."""
        values = value.detach().double().flatten().tolist() if isinstance(value, Tensor) else [value]
        for v in values:
            if isinstance(v, bool) or not isinstance(v, int | float) or math.isnan(v):
                raise InputError(f"{name} of {of} is a number, not {v!r}")
            if self.whole and v != int(v):
                raise InputError(f"{name} of {of} is a whole number, not {v}")
            if not self.low <= v <= self.high:
                raise InputError(f"{name} of {of} lies between {self.low:g} and {self.high:g}, got {v:g}")


def fixed(default: float, low: float = -INF, high: float = INF, whole: bool = False) -> Parameter:
    """A hyper-parameter."""
    return Parameter(default, False, low, high, None, whole)


def trainable(
    default: float, low: float = -INF, high: float = INF, drawn: tuple[float, float] | None = None
) -> Parameter:
    """A parameter that is learnt."""
    return Parameter(default, True, low, high, drawn)


@dataclass(frozen=True)
class Properties:
    """The shape of an elementwise function at its default parameters.

    Args:
        range: infimum and supremum of its values.
        limits: values towards -inf and +inf; NaN where there is none (a sine).
        smooth: how often it is continuously differentiable: -1 for one with jumps, 0 for one with kinks, inf.
        monotone: whether it nowhere falls, or nowhere rises.
        lipschitz: supremum of the absolute derivative; inf where there is none.
        slope: derivative at 0; NaN where the two sides differ.
        dead: the longest interval on which the derivative is 0, if there is one.
        domain: where it is defined or of use: poles, roots and exponential growth end it.
    """

    range: tuple[float, float]
    limits: tuple[float, float]
    smooth: float
    monotone: bool
    lipschitz: float
    slope: float
    dead: tuple[float, float] | None = None
    domain: tuple[float, float] = (-INF, INF)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationSpec:
    """One function of the catalogue.

    Args:
        name: as its authors write it.
        formula: LaTeX, with x (a and b for gated ones, z for vectors) and the parameters.
        function: the plain function, (x, **parameters) -> Tensor; None where state is needed (then `module`).
        family: group of the catalogue.
        source: first author and year, or "survey".
        parameters: by name.
        kind: "fixed", "hyper" (hyper-parameters), "trainable" or "stochastic" (draws while training).
        arity: "elementwise", "gated" (halves of a dimension), "vector" (along a dimension) or "channels".
        aliases: other names of the same function.
        confidence: "a" (standard or derived again), "b" (from a secondary source) or "c" (experimental).
        note: what a user should know, such as how an uncertain formula was read.
        properties: of elementwise ones, at their defaults.
        module: factory of the module where it is not the general one; takes the keywords of `get`.
    """

    name: str
    formula: str
    source: str
    function: Callable[..., Tensor] | None = None
    family: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    kind: str = "fixed"
    arity: str = "elementwise"
    aliases: tuple[str, ...] = ()
    confidence: str = "a"
    note: str = ""
    properties: Properties | None = None
    module: Callable[..., nn.Module] | None = None

    @property
    def key(self) -> str:
        """The name as it is looked up."""
        return normalised(self.name)

    @property
    def experimental(self) -> bool:
        """Whether the formula is uncertain."""
        return self.confidence == "c"

    @property
    def is_trainable(self) -> bool:
        """Whether something is learnt at the defaults."""
        return self.kind == "trainable" or any(p.trainable for p in self.parameters.values())

    def __reduce_ex__(self, protocol: Any) -> Any:
        # By its name where it has one, as most functions are lambdas: modules can be saved whole and sent to processes.
        known = _registry().by_name.get(self.key) is self
        return (spec, (self.name,)) if known else super().__reduce_ex__(protocol)

    def __call__(self, x: Tensor, **parameters: Any) -> Tensor:
        """The function at x with parameters, defaults for those that are not given.

        Raises:
            InputError: x is no floating-point tensor, a parameter is unknown or outside of its domain, or the function
                has a state.
        """
        check_input(x, self)
        given = {k: p.default for k, p in self.parameters.items()} | checked(self, parameters)
        return evaluate(self, x, given)


def normalised(name: str) -> str:
    """A name as it is looked up: lower case, without spaces, hyphens and underscores."""
    return re.sub(r"[-_\s]", "", name).lower()


def check_input(x: Any, of: ActivationSpec) -> None:
    """Raises InputError for what is no floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{of.name} takes a floating-point tensor, not {what}")


def checked(of: ActivationSpec, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The given parameters, if they are known and inside of their domains.

    Raises:
        InputError: they are not.
    """
    for name, value in parameters.items():
        if name not in of.parameters:
            raise InputError(unknown(f"parameter of {of.name}", name, builtins.list(of.parameters)))
        of.parameters[name].check(name, of.name, value)
    return dict(parameters)


def evaluate(of: ActivationSpec, x: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """The function without checks. Half precision is computed in float32 and given back in half precision."""
    if of.function is None:
        raise InputError(f"{of.name} has a state and no plain function; use get({of.key!r})")
    if x.dtype in (torch.float16, torch.bfloat16):
        wide = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in parameters.items()}
        return of.function(x.float(), **wide).to(x.dtype)
    return of.function(x, **parameters)


def row(
    name: str,
    formula: str,
    function: Callable[..., Tensor] | None,
    source: str = "survey",
    properties: Properties | None = None,
    parameters: Mapping[str, Parameter] | None = None,
    **others: Any,
) -> ActivationSpec:
    """One line of a catalogue's table; the kind follows from the parameters where it is not given."""
    held = dict(parameters or {})
    kind = "fixed" if not held else "trainable" if any(p.trainable for p in held.values()) else "hyper"
    facts: dict[str, Any] = {"kind": kind} | others
    return ActivationSpec(
        name=name,
        formula=formula,
        source=source,
        function=function,
        properties=properties,
        parameters=held,
        **facts,
    )


class _Registry:
    """Specifications by normalised name and alias."""

    def __init__(self) -> None:
        self.by_name: dict[str, ActivationSpec] = {}
        self.order: builtins.list[ActivationSpec] = []

    def add(self, spec: ActivationSpec) -> None:
        if spec.arity not in ARITIES or spec.kind not in KINDS or spec.confidence not in ("a", "b", "c"):
            raise InputError(
                f"{spec.name}: arity is one of {ARITIES}, kind one of {KINDS}, confidence a, b or c; "
                f"got {spec.arity!r}, {spec.kind!r}, {spec.confidence!r}"
            )
        if spec.function is None and spec.module is None:
            raise InputError(f"{spec.name} needs a function or a module")
        names = {normalised(n) for n in (spec.name, *spec.aliases)}
        for name in names:
            if name in self.by_name:
                raise InputError(f"there is an activation function {name!r} already: {self.by_name[name].name}")
        self.by_name |= dict.fromkeys(names, spec)
        self.order.append(spec)


@cache
def _registry() -> _Registry:
    """The catalogue, read when it is first asked for."""
    found = _Registry()
    package = importlib.import_module("actinium.functions.catalogue")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        part = importlib.import_module(f"{package.__name__}.{module.name}")
        for spec in part.ROWS:
            found.add(replace(spec, family=spec.family or part.FAMILY))
    return found


def every() -> Iterator[ActivationSpec]:
    """All specifications in the order of the catalogue, experimental ones too."""
    return iter(tuple(_registry().order))


def register_activation(spec: ActivationSpec) -> None:
    """Add a function of one's own; `get`, `list` and every tool that takes a name then know it.

    Args:
        spec: the specification.

    Raises:
        InputError: a name is taken, or the specification lacks its function.
    """
    _registry().add(replace(spec, family=spec.family or "registered"))


def spec(name: str) -> ActivationSpec:
    """The specification of a function.

    Args:
        name: name or alias; case, spaces, hyphens and underscores do not matter.

    Raises:
        UnknownNameError: there is no such function; the nearest names are offered.
    """
    known = _registry().by_name
    if normalised(name) not in known:
        near = difflib.get_close_matches(normalised(name), known, 6, 0.4)
        offered = builtins.list(dict.fromkeys(known[n].name for n in near))[:3]
        hint = f"did you mean {' or '.join(map(repr, offered))}?" if offered else "`actinium functions list` shows all"
        raise UnknownNameError(f"no activation function {name!r}; {hint}")
    return known[normalised(name)]


def functional(name: str) -> Callable[..., Tensor]:
    """The plain function (x, **parameters) -> Tensor of a name.

    Raises:
        UnknownNameError: there is no such function.
        InputError: it has a state, so that there is only a module.
    """
    found = spec(name)
    if found.function is None:
        raise InputError(f"{found.name} has a state and no plain function; use get({found.key!r})")
    return found


def get(
    name: str,
    *,
    experimental: bool = False,
    num_parameters: int = 1,
    channel_dim: int = 1,
    trainable: bool | None = None,
    fused: bool = False,
    **parameters: Any,
) -> nn.Module:
    """A module of a function.

    Args:
        name: name or alias; case, spaces, hyphens and underscores do not matter.
        experimental: whether functions whose formula is uncertain may be had.
        num_parameters: 1, or the size of `channel_dim`: one value of each trainable parameter for each channel.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        trainable: make every parameter trainable (True) or none (False); as published if not given.
        fused: compile forward and backward into one kernel each (`torch.compile`), where they are not one already.
        parameters: (initial) values.

    Raises:
        UnknownNameError: there is no such function; the nearest names are offered.
        InputError: it is experimental and that was not asked for, or a parameter is unknown or outside of its domain.
    """
    from actinium.functions.modules import Activation

    found = spec(name)
    if found.experimental and not experimental:
        reason = f" ({found.note})" if found.note else ""
        raise InputError(
            f"the formula of {found.name} is uncertain{reason}; pass experimental=True to have it all the same"
        )
    shape = {"num_parameters": num_parameters, "channel_dim": channel_dim, "trainable": trainable, "fused": fused}
    if found.module is not None:
        standard = {"num_parameters": 1, "channel_dim": 1, "trainable": None, "fused": False}
        given = {k: v for k, v in shape.items() if v != standard[k]} | parameters
        taken = inspect.signature(found.module).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        strange = [k for k in given if k not in taken]
        if strange and not open_ended:
            raise InputError(unknown(f"setting of {found.name}", strange[0], builtins.list(taken)))
        missing = [
            k for k, p in taken.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD and k not in given
        ]
        if missing:
            raise InputError(
                f"{found.name} needs {' and '.join(missing)}, such as get({found.key!r}, {missing[0]}=...)"
            )
        return found.module(**given)
    return Activation(found, **shape, **parameters)


def list(
    *,
    family: str | None = None,
    trainable: bool | None = None,
    smooth: float | bool | None = None,
    bounded: bool | None = None,
    monotone: bool | None = None,
    arity: str | None = None,
    kind: str | None = None,
    min_confidence: str = "b",
) -> builtins.list[str]:
    """Names of the catalogue that are as asked.

    Args:
        family: a part of the family's name.
        trainable: whether something is learnt.
        smooth: True for functions that are continuously differentiable, False for others; a number for at least so many
            continuous derivatives. Functions without a measured shape are left out, as with the next two.
        bounded: whether the values are.
        monotone: whether it nowhere falls, or nowhere rises.
        arity: "elementwise", "gated", "vector" or "channels".
        kind: "fixed", "hyper", "trainable" or "stochastic".
        min_confidence: "a", "b" or "c" (which includes experimental ones).

    Raises:
        InputError: arity, kind or confidence are none of these, or no family has such a name.
    """
    for value, known, what in ((arity, ARITIES, "arity"), (kind, KINDS, "kind"), (min_confidence, "abc", "confidence")):
        if value is not None and value not in known:
            raise InputError(unknown(what, value, builtins.list(known)))
    specs = [s for s in every() if s.confidence <= min_confidence]
    if family is not None:
        specs = [s for s in specs if normalised(family) in normalised(s.family)]
        if not specs:
            raise InputError(unknown("family", family, sorted({s.family for s in every()})))
    tests: builtins.list[Callable[[ActivationSpec], bool]] = []
    if trainable is not None:
        tests.append(lambda s: s.is_trainable == trainable)
    if arity is not None:
        tests.append(lambda s: s.arity == arity)
    if kind is not None:
        tests.append(lambda s: s.kind == kind)
    if smooth is not None:
        least = 1 if isinstance(smooth, bool) else smooth
        tests.append(lambda s: s.properties is not None and (s.properties.smooth >= least) == (smooth is not False))
    if bounded is not None:
        tests.append(lambda s: s.properties is not None and all(map(math.isfinite, s.properties.range)) == bounded)
    if monotone is not None:
        tests.append(lambda s: s.properties is not None and s.properties.monotone == monotone)
    return [s.name for s in specs if all(test(s) for test in tests)]


def search(text: str) -> builtins.list[str]:
    """Names of functions whose name, alias, formula, source or family holds a text."""
    wanted = normalised(text)
    return [
        s.name
        for s in every()
        if any(wanted in normalised(part) for part in (s.name, *s.aliases, s.formula, s.source, s.family))
    ]
