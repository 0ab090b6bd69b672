"""Rules of layer-wise relevance propagation, put on unmodified modules: the same values, other gradients.

Within the block a backward pass gives propagation coefficients in place of gradients. What a rule touches gets the
value that the module computed and the graph of the rule's linear form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actinium.circuits.patching.norms import ScaleWatch, hides_its_scale, is_norm
from actinium.core import taps
from actinium.core.edits import Fn
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model

__all__ = ["RELP", "RULES", "Rules", "lrp_rules"]

RULES = ("ln", "identity", "half", "ah", "epsilon", "gamma")
RELP = ("ln", "identity", "half")
STABILISER = 1e-6
# Of a gated MLP: the maps into its two factors, and the map that takes their product.
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
# Their gradient is the slope phi(x) / x already, or they are linear, or they choose.
PIECEWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU)
LINEAR = (
    *(nn.Linear, nn.Embedding, nn.Identity, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Flatten),
    *(nn.modules.dropout._DropoutNd, nn.modules.loss._Loss, nn.modules.pooling._AvgPoolNd, nn.Unflatten),
    *(nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd),
    *(nn.Upsample, nn.ZeroPad2d, nn.ParameterList, nn.ModuleList, nn.ModuleDict, nn.Sequential),
)
LINEAR_NAMES = ("conv1d", "rotaryembedding", "layerscale", "positionalembedding")
ACTIVATIONS = ("gelu", "silu", "swish", "mish", "relu", "tanh", "sigmoid", "activation")
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Carried = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor | None]


@dataclass(eq=False)
class Rules:
    """Which modules follow which rule.

    Attributes:
        names: the rules asked for.
        converted: path of each module that follows a rule: its rule; piecewise linear activations follow "identity" as
            they are, and products bear the path of the map that takes them.
        left: path of each module that keeps its gradient although it is not known to be linear: why.
    """

    names: tuple[str, ...]
    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = {rule: sum(r == rule for r in self.converted.values()) for rule in self.names}
        shown = ", ".join(f"{rule} {n}" for rule, n in counts.items())
        return f"Rules({shown}; left {len(self.left)})"


@contextmanager
def lrp_rules(
    model: Model | nn.Module, rules: Sequence[str] = RELP, *, epsilon: float = STABILISER, gamma: float = 0.25
) -> Iterator[Rules]:
    """Let backward passes within the block follow propagation rules; values stay, and all is undone at its end.

    "ln": the scale of LayerNorm, RMSNorm and GroupNorm is a constant, their mean is not. "identity": an activation phi
    with phi(0) = 0 has the slope phi(x) / x. "half": each factor of a gated MLP's product gets half of what the product
    gets. "ah": attention patterns are constants. "epsilon" and "gamma" (linear and convolutional layers): shares of the
    outputs' relevance with a stabilised denominator, or with weights of the output's sign raised. Elsewhere the
    gradient is used. Functions that a forward calls past any module are not seen.

    Args:
        model: a model or module in evaluation mode.
        rules: names; at most one of "epsilon" and "gamma".
        epsilon: of the rule "epsilon", and the stabiliser of "gamma".
        gamma: of the rule "gamma", by how much weights are raised.

    Yields:
        Rules: what follows which rule, and what was left.

    Raises:
        InputError: there is no rule, or two for the same layers; nothing in the model can follow one; a norm hides its
            scale; the model is in training mode; epsilon or gamma is below 0.
        UnknownNameError: there is no such rule.

    Source: Rezaei Jafari et al., 2025, section 3 (RelP); Ali et al., 2022 (LN and AH); Bach et al., 2015 (epsilon);
        Montavon et al., 2019 (gamma); Arras et al., 2019 (half).
    """
    wrapped = model if isinstance(model, Model) else Model(model)
    _check(wrapped, rules, epsilon, gamma)
    plan = _Plan(wrapped, tuple(rules), epsilon, gamma)
    if not plan.report.converted:
        raise InputError(
            f"nothing in {wrapped.name} can follow {', '.join(rules)}: it has no norm, activation, gated MLP or "
            "attention as a module that we know" + _some(plan.report.left)
        )
    with plan.in_force():
        yield plan.report


def _check(model: Model, rules: Sequence[str], epsilon: float, gamma: float) -> None:
    if isinstance(rules, str) or not len(rules):
        raise InputError(f"rules are names such as {RELP}, one or more, not {rules!r}")
    for name in rules:
        if name not in RULES:
            raise UnknownNameError(unknown("rule", str(name), RULES))
    if "epsilon" in rules and "gamma" in rules:
        raise InputError('"epsilon" and "gamma" are rules for the same layers; choose one')
    if not epsilon >= 0 or not gamma >= 0:
        raise InputError(f"epsilon and gamma are 0 or more, not {epsilon} and {gamma}")
    if model.module.training:
        raise InputError(f"{model.name} is in training mode, where dropout changes every run; call .eval() first")


def _some(left: dict[str, str]) -> str:
    shown = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:3])
    return f" ({shown})" if shown else ""


def _carry(value: Tensor, graph: Tensor) -> Tensor:
    """The value of one tensor, to the last bit, with the gradient of another."""
    return value.detach() + (graph - graph.detach())


def _stabilised(x: Tensor, by: float) -> Tensor:
    return x + torch.where(x < 0, -by, by)


# What each rule does to the output of a module -------------------------------------------------------------------


def _ln(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    with ScaleWatch(Tensor.detach) as watch:
        again = module.forward(*args, **kwargs)
    if not watch.seen:
        raise InputError(f"the scale of {type(module).__name__} cannot be seen from outside")
    return _carry(out, again)


def _identity(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor | None:
    x = taps.first_tensor(args if args else kwargs)
    if x is None:
        return None
    with torch.no_grad():
        # Half precision does not hold the stabiliser beside x.
        slope = (out.double() / _stabilised(x.double(), STABILISER)).to(x.dtype)
    return _carry(out, x * slope)


def _epsilon(by: float, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    return _carry(out, out * (out / _stabilised(out, by)).detach().nan_to_num(0.0))


def _gamma(
    gamma: float, by: float, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Tensor:
    x = taps.first_tensor(args if args else kwargs)
    assert x is not None
    above, below = x.clamp(min=0), x.clamp(max=0)

    def raised(sign: int) -> Tensor:
        """The layer with weights raised where they pull its output towards this sign."""
        parts = {k: p.clamp(min=0) for k, p in module.named_parameters(recurse=False)}
        if sign < 0:
            parts = {k: p.clamp(max=0) for k, p in module.named_parameters(recurse=False)}
        other = {k: p - q for (k, p), q in zip(module.named_parameters(recurse=False), parts.values(), strict=True)}
        own = {k: p + gamma * parts[k] for k, p in module.named_parameters(recurse=False)}
        against = {k: p + gamma * other[k] for k, p in module.named_parameters(recurse=False)}
        return _linear(module, above, own["weight"], own.get("bias")) + _linear(module, below, against["weight"], None)

    up, down = raised(1), raised(-1)
    wide = torch.where(out > 0, up, down)
    share = torch.where(out == 0, 0.0, out / _stabilised(wide, by)).detach()
    return _carry(out, wide * share)


def _linear(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if hasattr(module, "_conv_forward"):
        out: Tensor = module._conv_forward(x, weight, bias)
        return out
    # GPT-2 keeps its weights (in, out).
    return x @ weight if bias is None else x @ weight + bias


def _weighted(module: nn.Module) -> bool:
    return isinstance(module, WEIGHTED) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


# Which module follows which rule ---------------------------------------------------------------------------------


class _State(threading.local):
    def __init__(self) -> None:
        self.plans: list[_Plan] = []


_state = _State()


class _Plan:
    """The rules of one block: what each module's hook does in the thread that entered it."""

    def __init__(self, model: Model, names: tuple[str, ...], epsilon: float, gamma: float) -> None:
        self.model, self.names, self.report = model, names, Rules(names)
        self.after: dict[nn.Module, Carried] = {}
        self.products: set[nn.Module] = set()
        self.layer: tuple[str, Carried] | None = None
        if "epsilon" in names:
            self.layer = "epsilon", partial(_epsilon, epsilon)
        elif "gamma" in names:
            self.layer = "gamma", partial(_gamma, gamma, epsilon)
        self.paths = {module: path for path, module in model.module.named_modules()}
        for module, path in self.paths.items():
            self._place(module, path)
        self._place_products()
        self._place_attention()

    def _place(self, module: nn.Module, path: str) -> None:
        """Find the rule of a module without children, or say why it has none."""
        kind = type(module).__name__
        if any(module.children()):
            if "Experts" in kind:
                self.report.left[path] = "experts: the products within them"
            elif isinstance(module, nn.MultiheadAttention):
                self.report.left[path] = "softmax: within a fused function"
            return
        if self.layer is not None and _weighted(module):
            self._follow(module, path, *self.layer)
        elif is_norm(module):
            self._place_norm(module, path)
        elif isinstance(module, LINEAR) or any(word in kind.lower() for word in LINEAR_NAMES):
            return
        elif not (_activation(module) and _elementwise(module)):
            self.report.left[path] = f"{kind}: not known"
        elif "identity" not in self.names:
            self.report.left[path] = f"{kind}: rule identity not chosen"
        elif isinstance(module, PIECEWISE):
            self.report.converted[path] = "identity"
        elif getattr(module, "inplace", False):
            self.report.left[path] = f"{kind}: writes over its input"
        elif float(_at_zero(module)) != 0.0:
            self.report.left[path] = f"{kind}: is not 0 at 0"
        else:
            self._follow(module, path, "identity", _identity)

    def _place_norm(self, module: nn.Module, path: str) -> None:
        if "ln" not in self.names:
            self.report.left[path] = f"{type(module).__name__}: rule ln not chosen"
        elif hides_its_scale(module):
            raise InputError(
                f"{path} ({type(module).__name__}) computes its scale where it cannot be seen; load the model without "
                'fused kernels, or leave out the rule "ln"'
            )
        else:
            self._follow(module, path, "ln", _ln)

    def _follow(self, module: nn.Module, path: str, rule: str, carried: Carried) -> None:
        self.after[module] = carried
        self.report.converted[path] = rule

    def _place_products(self) -> None:
        taken = set(self._products_of_sites()) | set(self._products_of_names())
        for module in taken:
            path = self.paths[module]
            if "half" in self.names:
                self.products.add(module)
                # The module itself may follow a rule for layers; the product is named for what takes it.
                self.report.converted[f"{path} (input)"] = "half"
            else:
                self.report.left[f"{path} (input)"] = "product: rule half not chosen"
        for tower in self.model.anatomy.towers:
            for block in tower.blocks:
                if tower.stack.block.mixer:
                    mixer = block.get_submodule(tower.stack.block.mixer)
                    self.report.left[self.paths[mixer]] = "state-space mixer: the products within it"

    def _products_of_sites(self) -> Iterator[nn.Module]:
        known = self.model.anatomy.taps
        for name, tap in known.items():
            if name.endswith("mlp.post") and name.replace("mlp.post", "mlp.gate") in known:
                yield tap.module

    def _products_of_names(self) -> Iterator[nn.Module]:
        for module in self.paths:
            children = dict(module.named_children())
            for gate, up, down in GATED:
                if {gate, up, down} <= children.keys():
                    yield children[down]

    def _place_attention(self) -> None:
        known = self.model.anatomy.taps
        self.patterns = [name for name in known if name.endswith("attn.pattern")]
        for name in self.patterns:
            path = self.paths[known[name].module]
            if "ah" in self.names:
                self.report.converted[path] = "ah"
            else:
                self.report.left[path] = "softmax: rule ah not chosen"

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Hooks in place and meant for this thread."""
        board, held = taps.board(self.model.module), []
        root = self.model.module
        try:
            with ExitStack() as stack:
                stack.enter_context(self.model.eagerly())
                if "ah" in self.names and self.patterns:
                    stack.enter_context(self.model.edit({name: Fn(Tensor.detach) for name in self.patterns}))
                for modules, install in ((self.after, _install_after), (self.products, _install_before)):
                    for module in modules:
                        key = (id(module), f"lrp {install.__name__}")
                        board.acquire(key, partial(install, module, root))
                        held.append(key)
                _state.plans.append(self)
                yield
        finally:
            if self in _state.plans:
                _state.plans.remove(self)
            for key in held:
                board.release(key)


def _current(root: nn.Module) -> _Plan | None:
    """The innermost rules of this thread for a module."""
    if not torch.is_grad_enabled():
        return None
    return next((plan for plan in reversed(_state.plans) if plan.model.module is root), None)


def _install_after(module: nn.Module, root: nn.Module) -> Callable[[], None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        plan = _current(root)
        carried = plan.after.get(module) if plan is not None else None
        if carried is None or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        return carried(module, args, kwargs, output)

    # Before the hooks that read or edit the module's output: what they add is not the module's.
    return module.register_forward_hook(hook, prepend=True, with_kwargs=True).remove


def _install_before(module: nn.Module, root: nn.Module) -> Callable[[], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        plan = _current(root)
        if plan is None or module not in plan.products or not args or not isinstance(args[0], Tensor):
            return None
        return (_carry(args[0], args[0] * 0.5), *args[1:])

    return module.register_forward_pre_hook(hook, prepend=True).remove


def _at_zero(module: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = module.forward(torch.zeros(1, dtype=_dtype(module)))
    return out


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.get_default_dtype())


def _activation(module: nn.Module) -> bool:
    """Whether a module is one of the library's activations, or is called as one."""
    kind = type(module)
    library = kind.__module__ in ("torch.nn.modules.activation", "transformers.activations")
    return library or any(word in kind.__name__.lower() for word in ACTIVATIONS)


def _elementwise(module: nn.Module) -> bool:
    """Whether a module maps every number by itself, found by running it."""
    x = torch.linspace(-2.0, 2.0, 6, dtype=_dtype(module)).reshape(2, 3)
    try:
        with torch.no_grad():
            whole = module.forward(x.clone())
            apart = torch.stack([module.forward(v.reshape(1, 1).clone()) for v in x.flatten()])
    except (TypeError, RuntimeError, ValueError):
        return False
    if not isinstance(whole, Tensor) or whole.shape != x.shape:
        return False
    return torch.allclose(whole, apart.reshape(x.shape), atol=1e-6)
