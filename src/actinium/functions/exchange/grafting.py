"""Grafting: exchange operators inside of a trained network for others that were fitted to their activations.

graft = ac.functions.Graft(model, {"blocks.1.attn": SlidingWindowAttention(64, heads=4)})
graft.distill(batches).plot()             # each new operator learns what the old one gives back
swapped = graft.apply()                   # a copy; the network itself stays as it is
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.exchange.activation_distillation import CACHES, ActivationDistiller, GraftedOperator
from actinium.functions.exchange.graft_calls import Select, record_calls, run, submodules

__all__ = ["Graft", "interleaved", "redrawn"]


class Graft(Estimator):
    """Operators that take the place of others in a network which stays as it is.

    A new operator g: (batch, tokens, width) -> (batch, tokens, width) is called with the tensor that the old one read,
    after the norm of its block, and gives what is added to the residual stream. One of the old operator's type (a copy
    with other weights) is called with everything that the old one was called with. An operator that mixes tokens and is
    called with h alone has no cache and knows no padding: the copy that `apply` gives generates without a cache.

    Args:
        model: the network.
        sites: the new operator by the name of the module whose place it takes; they are copied.
        select: which item of the output is meant where a module gives a tuple or a mapping, for all sites or by name.
        seed: of the order of the batches.

    Attributes:
        operators_: the distilled operators by site.
        result_: what `distill` returned.
        finetuned_: what `finetune` returned, once it was called.
        losses_: (steps,) losses of `finetune`.

    Source: Chandrasegaran, Poli et al., 2025, section 3.
    """

    fitted = "operators_"

    def __init__(
        self,
        model: nn.Module | Model,
        sites: Mapping[str, nn.Module],
        select: Mapping[str, Select] | Select = None,
        seed: int = 0,
    ) -> None:
        self.model, self.sites, self.select, self.seed = model, sites, select, seed

    @property
    def _module(self) -> nn.Module:
        return self.model.module if isinstance(self.model, Model) else self.model

    def distill(
        self,
        batches: Iterable[Any],
        loss: str = "auto",
        steps: int = 250,
        lr: float = 1e-3,
        validation: float = 0.2,
        *,
        progress: bool = False,
    ) -> Result:
        """Fit each new operator to the activations of the old one, each by itself, and keep the best weights.

        Activations are kept in memory, and the regression runs in float32 or wider. A step takes one batch.

        Args:
            batches: inputs as in `record_calls`, of the data that the network was trained on.
            loss: "l1", "l2" or "huber"; "auto" is l1 where the old operator mixes tokens, and l2 where it does not.
            steps: of Adam; with 0 the operators are put in as they are.
            lr: learning rate.
            validation: share of the batches, the last ones, that the weights are chosen on.
            progress: show progress bars.

        Returns:
            by site: `relative_error` |g - y|_1 / |y|_1 on the batches for validation; by site and step: `train`, the
            mean loss since the step before, NaN at the first, and `validation`.

        Raises:
            InputError: no batches, or one alone; an operator changes the shape, gives NaN, or sees later tokens where
                the old one sees none; a setting out of its range; what `record_calls` refuses.
            SiteError: there is no such module.
        """
        old, select = self._old(), self._select()
        batches = list(batches)
        done = {
            name: ActivationDistiller(
                self.sites[name], module, select[name], name, loss, steps, lr, validation, self.seed
            )
            for name, module in old.items()
        }
        calls = record_calls(self.model, list(old), batches, self.select, progress=progress)
        for name, distiller in done.items():
            distiller.fit(calls[name], progress=progress)
        self.operators_ = {name: d.operator_ for name, d in done.items()}
        self._whole = {name: d.whole_ for name, d in done.items()}
        self._layouts = {name: made[0].layout for name, made in calls.items()}
        cached = [name for name, made in calls.items() if set(CACHES) & set(made[0].kwargs)]
        self._cached = any(not self._whole[name] for name in cached)
        self._example = batches[0]
        self.result_ = self._told(done, steps, lr, validation)
        return self.result_

    def _old(self) -> dict[str, nn.Module]:
        if not isinstance(self.model, nn.Module | Model):
            raise InputError(f"model is a torch.nn.Module or a Model, not {type(self.model).__name__}")
        if not isinstance(self.sites, Mapping):
            raise InputError("sites is a mapping from names of modules to new operators")
        for name, operator in self.sites.items():
            if not isinstance(operator, nn.Module):
                raise InputError(f"{name}: a new operator is a torch.nn.Module, not {type(operator).__name__}")
        old = submodules(self._module, self.sites)
        for name in old:
            inside = [other for other in old if other.startswith(f"{name}.")]
            if inside:
                raise InputError(f"{inside[0]} is a part of {name}: one of them can be exchanged")
        return old

    def _select(self) -> dict[str, Select]:
        if isinstance(self.select, Mapping):
            return {name: self.select.get(name) for name in self.sites}
        return dict.fromkeys(self.sites, self.select)

    def _told(self, done: Mapping[str, ActivationDistiller], steps: int, lr: float, validation: float) -> Result:
        any_one = next(iter(done.values()))
        data = xr.Dataset(
            {
                "validation": (("site", "step"), np.array([d.validation_ for d in done.values()])),
                "train": (("site", "step"), np.array([d.train_ for d in done.values()])),
                "relative_error": (("site",), [d.relative_error_ for d in done.values()]),
                "loss": (("site",), [d.loss_ for d in done.values()]),
            },
            coords={"site": list(done), "step": any_one.points_},
            attrs={"plot": {"variables": ["relative_error"], "kind": "bar", "ylabel": "relative error"}},
        )
        # The network may be one that `Model` wraps or not: its fingerprint is taken the same way.
        model = self.model if isinstance(self.model, Model) else Model(self.model)
        about = provenance(model, seed=self.seed, sites=list(done), steps=steps, lr=lr, validation=validation)
        return Result(data, "graft", "grafting", about)

    def apply(self) -> Any:
        """A copy of the network with the new operators in their places, of the type that the network was given as.

        Raises:
            InputError: `distill` was not called.
        """
        self.check_fitted()
        module = copy.deepcopy(self._module)
        for name, operator in self.operators_.items():
            new = copy.deepcopy(operator)
            if not self._whole[name]:
                new = GraftedOperator(new, self._select()[name], self._layouts[name])
            module.set_submodule(name, new)
        if self._cached:
            for config in (getattr(module, "config", None), getattr(module, "generation_config", None)):
                if config is not None:
                    config.use_cache = False
        if isinstance(self.model, Model):
            return Model(module, self.model.tokenizer, self.model.processor, f"{self.model.name} (grafted)")
        return module

    def finetune(
        self,
        step_fn: Callable[[Any], Tensor],
        steps: int,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        ema: float | None = None,
        *,
        grafted_only: bool = False,
        progress: bool = False,
    ) -> Any:
        """Train a copy with the new operators on the network's own objective, in the mode that the network is in.

        Args:
            step_fn: called with what `apply` gives, returns the loss of the next batch.
            steps: of AdamW.
            lr: learning rate.
            weight_decay: of AdamW.
            ema: decay of an average of the weights that is kept in the end, None for the last weights.
            grafted_only: leave the old parts as they are.
            progress: show a progress bar.

        Returns:
            what `apply` gives, trained.

        Raises:
            InputError: `distill` was not called, nothing can be trained, a setting is out of its range, or the loss is
                no finite number.
        """
        if steps < 1 or not lr > 0 or weight_decay < 0 or not (ema is None or 0 <= ema < 1):
            raise InputError(
                "expected steps >= 1, lr > 0, weight_decay >= 0 and ema in [0, 1), "
                f"got {steps}, {lr}, {weight_decay}, {ema}"
            )
        grafted = self.apply()
        module = grafted.module if isinstance(grafted, Model) else grafted
        parts = [module.get_submodule(name) for name in self.sites] if grafted_only else [module]
        weights = [p for part in parts for p in part.parameters() if p.requires_grad]
        if not weights:
            raise InputError("no parameter of the network requires a gradient")
        optimiser = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
        average = [w.detach().clone() for w in weights]
        losses = np.empty(steps)
        for step in shown(range(steps), "fine-tuning", progress):
            loss = step_fn(grafted)
            if not (isinstance(loss, Tensor) and loss.ndim == 0 and bool(loss.isfinite())):
                raise InputError(f"step {step}: step_fn returns the loss, one finite number, not {loss!r}")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[step] = float(loss.detach())
            if ema is not None:
                torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - ema)
        if ema is not None:
            with torch.no_grad():
                for weight, mean in zip(weights, average, strict=True):
                    weight.copy_(mean)
        optimiser.zero_grad()
        self.finetuned_, self.losses_ = grafted, losses
        return grafted

    def report(self, eval_fn: Callable[[Any], float], timed: int = 0) -> Result:
        """Quality and cost of the network, of the copy after the exchange, and of the fine-tuned one where it exists.

        Args:
            eval_fn: called with each of them, without gradients; returns one number.
            timed: forward passes whose median time is told; 0 for none.

        Returns:
            by network: `quality`, what `eval_fn` gave; `parameters`; `flops` of one forward pass of the first batch
            that was recorded, counted on matrix products and convolutions as they are carried out (a window of
            attention that is a mask costs what the whole does); with `timed` also `seconds`.

        Raises:
            InputError: `distill` was not called, or `timed` is negative.
        """
        self.check_fitted()
        if timed < 0:
            raise InputError(f"timed must not be negative, got {timed}")
        networks = {"base": self.model, "grafted": self.apply()}
        if hasattr(self, "finetuned_"):
            networks["fine-tuned"] = self.finetuned_
        rows: dict[str, list[float]] = {"quality": [], "parameters": [], "flops": []}
        if timed:
            rows["seconds"] = []
        for network in networks.values():
            module = network.module if isinstance(network, Model) else network
            with torch.no_grad():
                rows["quality"].append(float(eval_fn(network)))
                rows["parameters"].append(sum(p.numel() for p in module.parameters()))
                rows["flops"].append(_flops(network, self._example))
                if timed:
                    rows["seconds"].append(_seconds(network, self._example, timed))
        data = xr.Dataset(
            {name: (("network",), values) for name, values in rows.items()},
            coords={"network": list(networks)},
            attrs={"plot": {"variables": ["quality"], "kind": "bar", "ylabel": "quality"}},
        )
        return Result(data, "graft report", "grafting", self.result_.provenance)


def interleaved(n: int, share: float = 0.5) -> list[int]:
    """Indices of the blocks to graft where a share of n blocks is exchanged: 1, 3, 5, … for one half.

    Raises:
        InputError: n is not above 0, or the share not in (0, 1].

    Source: the published configurations for one half; other shares are spread in the same way.
    """
    if n < 1 or not 0 < share <= 1:
        raise InputError(f"expected n above 0 and a share in (0, 1], got {n} and {share}")
    # Rounding must not take an index away where a multiple of the share is whole.
    count = [int(np.floor(i * share + 1e-9)) for i in range(n + 1)]
    return [i for i in range(n) if count[i + 1] > count[i]]


def redrawn(operator: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with random weights: the control of a graft is an operator of the old one's own kind, drawn anew.

    Parts with `reset_parameters` draw as they do when they are built. In other parts matrices are drawn from a normal
    distribution of the deviation that they have, and vectors are set to their mean.

    Args:
        operator: left as it is.
        seed: of the weights; the caller's random numbers stay as they are.

    Source: Chandrasegaran, Poli et al., 2025 (self-grafting).
    """
    copied = copy.deepcopy(operator)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in copied.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
                continue
            for weight in part.parameters(recurse=False):
                if weight.ndim > 1:
                    weight.copy_(torch.randn(weight.shape) * float(weight.std(correction=0)))
                else:
                    weight.fill_(float(weight.mean()))
    return copied


def _flops(network: nn.Module | Model, batch: Any) -> int:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know every fused kernel of attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(network, batch)
    return counter.get_total_flops()


def _seconds(network: nn.Module | Model, batch: Any, passes: int) -> float:
    device = next((p.device for p in (network.module if isinstance(network, Model) else network).parameters()), None)
    taken = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        run(network, batch)
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    # The first pass pays for what is set up once.
    return float(np.median(taken[1:]))
