"""LUNAR: unlearning by one down-projection that sends what is to be forgotten to where the model declines."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, LoadError
from actinium.core.estimator import Estimator
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.maps import is_linear
from actinium.core.model import Model
from actinium.steering.extraction import extract
from actinium.steering.vector import SteeringVector

__all__ = ["LUNAR", "deviation_score", "redirected_weight", "redirection_vector"]

KIND = "LUNAR"
SOLVERS = ("closed_form", "adam", "lora")
TOKENS = ("own", "all")


def redirection_vector(
    model: Model, reference: Sequence[str], forget: Sequence[str], layers: int | Sequence[int], **options: Any
) -> SteeringVector:
    """Mean activation of prompts that the model declines minus that of prompts to be forgotten, at their last token.

    Args:
        model: a causal language model.
        reference: prompts that it already declines, best because they cannot be answered.
        forget: prompts whose answers are to be forgotten.
        layers: blocks whose output is read.
        **options: of `extract` (batch_size, progress).

    Source: Shen et al., 2025, LUNAR, equation 1. It is not normalised: added once, it takes one mean to the other.
    """
    sites = [f"blocks.{layer}.resid_post" for layer in _layers(layers)]
    found = extract(model, reference, forget, sites, method="cluster_means", position=-1, **options)
    return SteeringVector(found.directions, "redirection", found.made)


def redirected_weight(
    weight: Tensor, forget: Tensor, retain: Tensor, redirection: Tensor, coefficient: float = 2.0, ridge: float = 1e-2
) -> Tensor:
    """The weight nearest to the old one that shifts the outputs of some rows and keeps those of others.

    Minimises |A_f (W' - W)^T - 1 (c r)^T|^2 + |A_r (W' - W)^T|^2 + ridge |W' - W|^2. The change has rank one:
    W' = W + c r g^T with g = (A_f^T A_f + A_r^T A_r + ridge I)^-1 A_f^T 1.

    Args:
        weight: (d, p).
        forget: (n, p) inputs whose outputs shift by `coefficient * redirection`.
        retain: (m, p) inputs whose outputs stay.
        redirection: (d,).
        coefficient: c.
        ridge: above 0, or 0 where the rows span all of the inputs.

    Returns:
        (d, p) float64.

    Raises:
        InputError: shapes do not fit, values are not finite, or the system is singular without a ridge.

    Source: the least-squares problem of Shen et al., 2025, equation 4, in closed form.
    """
    if weight.ndim != 2 or redirection.shape != weight.shape[:1]:
        raise InputError(
            f"a weight (d, p) and a vector (d,) are needed: {tuple(weight.shape)}, {tuple(redirection.shape)}"
        )
    for rows, what in ((forget, "forget"), (retain, "retain")):
        if rows.ndim != 2 or rows.shape[1] != weight.shape[1] or not len(rows):
            raise InputError(f"{what} rows are (n, {weight.shape[1]}) with n above 0, not {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise InputError(f"{what} rows hold NaN or infinite values")
    if not bool(torch.isfinite(weight).all() and torch.isfinite(redirection).all()) or not math.isfinite(coefficient):
        raise InputError("weight, redirection and coefficient must be finite")
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise InputError(f"ridge must be 0 or more, not {ridge}")
    w, a_f, a_r, r = (t.detach().double().cpu() for t in (weight, forget, retain, redirection))
    gram = a_f.T @ a_f + a_r.T @ a_r + ridge * torch.eye(w.shape[1], dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) or not float(factor.diagonal().min()) > 1e-7 * float(factor.diagonal().max()):
        raise InputError("the rows do not span all inputs, so that the system is singular: give a ridge above 0")
    g = torch.cholesky_solve(a_f.sum(0)[:, None], factor)[:, 0]
    return w + coefficient * torch.outer(r, g)


def deviation_score(forget_rouge: float, retain_rouge: float) -> float:
    """100 sqrt(forget^2 + (1 - retain)^2) of two ROUGE-1 scores in 0..1: 0 forgets all and keeps all.

    Raises:
        InputError: a score is outside 0..1.

    Source: Shen et al., 2025 (deviation score).
    """
    if not (0 <= forget_rouge <= 1 and 0 <= retain_rouge <= 1):
        raise InputError(f"ROUGE scores lie between 0 and 1, got {forget_rouge} and {retain_rouge}")
    return 100 * float((forget_rouge**2 + (1 - retain_rouge) ** 2) ** 0.5)


class LUNAR(Estimator):
    """Redirect prompts at some blocks by new weights of their down-projections; no hook remains.

    Args:
        layers: blocks whose down-projection is changed (one in the paper, of the later middle).
        coefficient: c, how far to go along the redirection vector.
        solver: "closed_form" (rank one), "adam" (gradient descent on the whole weight, as the authors do), or "lora"
            (gradient descent on a change of rank `rank`).
        ridge: of the closed form.
        tokens: "own": of each prompt to be forgotten the tokens that no retained prompt begins with, too; "all": all
            of them, those with conflicting targets included.
        rank: of "lora".
        epochs, rate, batch_size, decay, weight_decay: of AdamW for "adam" and "lora"; the rate is multiplied by
            `decay` after each epoch.
        seed: of the batches and of the adapter.

    Attributes:
        vector_: `SteeringVector`, the redirection.
        deltas_: {layer: (d, p)} float32, what is added to each weight.
        forget_error_, retain_error_: {layer: mean squared error of the write}.

    Source: Shen et al., 2025.
    """

    fitted = "deltas_"
    vector_: SteeringVector
    deltas_: dict[int, Tensor]
    forget_error_: dict[int, float]
    retain_error_: dict[int, float]

    def __init__(
        self,
        layers: int | Sequence[int],
        coefficient: float = 2.0,
        *,
        solver: str = "closed_form",
        ridge: float = 1e-2,
        tokens: str = "own",
        rank: int = 8,
        epochs: int = 20,
        rate: float = 1e-2,
        batch_size: int = 64,
        decay: float = 0.9,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        self.layers, self.coefficient, self.solver, self.ridge, self.tokens = layers, coefficient, solver, ridge, tokens
        self.rank, self.epochs, self.rate, self.batch_size = rank, epochs, rate, batch_size
        self.decay, self.weight_decay, self.seed = decay, weight_decay, seed

    def fit(
        self,
        model: Model,
        forget: Sequence[str],
        retain: Sequence[str],
        reference: Sequence[str],
        *,
        progress: bool = False,
    ) -> Self:
        """Find the new weights; the model stays as it is.

        Args:
            model: a causal language model.
            forget: prompts whose answers are to be forgotten.
            retain: prompts whose answers are to stay; as many as there are of the others, or more.
            reference: prompts that the model declines already.
            progress: show a progress bar.

        Raises:
            InputError: an empty set, a prompt that is both to be forgotten and kept, no token of its own, a setting out
                of range, or a block without a linear down-projection.
            SiteError: there is no such block.
        """
        self._check(forget, retain, reference)
        layers = _layers(self.layers)
        maps = {layer: down_projection(model, layer) for layer in layers}
        self.vector_ = redirection_vector(model, reference, forget, layers, progress=progress)
        sites = [f"blocks.{layer}.mlp.post" for layer in layers]
        tokens = [model.to_tokens(list(texts)) for texts in (forget, retain)]
        keep = _own(tokens) if self.tokens == "own" else tokens[0].mask
        empty = ~keep.any(1)
        if bool(empty.any()):
            text = forget[int(empty.nonzero()[0])]
            raise InputError(f"every token of {text!r} also begins a retained prompt; the two cannot be told apart")
        rows = [model.record(t, sites, progress=progress) for t in tokens]
        self.deltas_, self.forget_error_, self.retain_error_ = {}, {}, {}
        for layer, site in zip(layers, sites, strict=True):
            a_f, a_r = rows[0][site][keep].float().cpu(), rows[1][site][tokens[1].mask].float().cpu()
            r = self.vector_[f"blocks.{layer}.resid_post"]
            weight = as_out_in(maps[layer]).detach().float().cpu()
            delta = self._solve(weight, a_f, a_r, r)
            self.deltas_[layer] = delta
            self.forget_error_[layer] = float((a_f @ delta.T - self.coefficient * r).square().mean())
            self.retain_error_[layer] = float((a_r @ delta.T).square().mean())
        return self

    def _check(self, forget: Sequence[str], retain: Sequence[str], reference: Sequence[str]) -> None:
        for texts, what in ((forget, "forget"), (retain, "retain"), (reference, "reference")):
            if isinstance(texts, str) or not len(texts):
                raise InputError(f"{what}: give a list of one prompt or more")
        both = sorted({*forget} & {*retain})
        if both:
            raise InputError(f"{len(both)} prompts are to be forgotten and to be kept, for example {both[0]!r}")
        if self.solver not in SOLVERS or self.tokens not in TOKENS:
            raise InputError(
                f"solver is one of {', '.join(SOLVERS)} and tokens one of {', '.join(TOKENS)}, not {self.solver!r} and"
                f" {self.tokens!r}"
            )
        if min(self.epochs, self.batch_size, self.rank) < 1 or not self.rate > 0:
            raise InputError("epochs, batch_size, rank and rate must be above 0")

    def _solve(self, weight: Tensor, a_f: Tensor, a_r: Tensor, r: Tensor) -> Tensor:
        if self.solver == "closed_form":
            return (redirected_weight(weight, a_f, a_r, r, self.coefficient, self.ridge) - weight.double()).float()
        random = torch.Generator().manual_seed(self.seed)
        inputs = torch.cat([a_f, a_r])
        targets = torch.cat([(self.coefficient * r).expand(len(a_f), -1), torch.zeros(len(a_r), len(r))])
        # The weight itself is what decays, so it is what is learned.
        down = torch.randn(self.rank, weight.shape[1], generator=random) / weight.shape[1] ** 0.5
        lora = self.solver == "lora"
        leaves = [torch.zeros(len(r), self.rank), down] if lora else [weight.clone()]
        for leaf in leaves:
            leaf.requires_grad_(True)
        optimiser = torch.optim.AdamW(leaves, lr=self.rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, self.decay)

        def change() -> Tensor:
            return leaves[0] @ leaves[1] if lora else leaves[0] - weight

        for _ in range(self.epochs):
            for rows in torch.randperm(len(inputs), generator=random).split(self.batch_size):
                loss = nn.functional.mse_loss(inputs[rows] @ change().T, targets[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
        found = change().detach()
        if not bool(torch.isfinite(found).all()):
            raise InputError("the weights became NaN or infinite; lower the rate")
        return found

    @contextmanager
    def apply(self, model: Model) -> Iterator[Model]:
        """Put the new weights in place while the block lasts; the old ones come back bit for bit.

        Raises:
            InputError: not fitted, or the weights have other shapes.
        """
        self.check_fitted()
        weights = {layer: self._weight(model, layer) for layer in self.deltas_}
        kept = {layer: w.detach().clone() for layer, w in weights.items()}
        try:
            self._add(weights)
            yield model
        finally:
            with torch.no_grad():
                for layer, w in weights.items():
                    w.copy_(kept[layer])

    def bake(self, model: Model) -> Model:
        """A copy of the model with the new weights, whose `module.save_pretrained` writes a plain checkpoint."""
        self.check_fitted()
        out = Model(copy.deepcopy(model.module), model.tokenizer, model.processor, f"{model.name}, unlearned")
        self._add({layer: self._weight(out, layer) for layer in self.deltas_})
        return out

    def _weight(self, model: Model, layer: int) -> Tensor:
        weight = as_out_in(down_projection(model, layer))
        if weight.shape != self.deltas_[layer].shape:
            raise InputError(
                f"block {layer} of {model.name} has a down-projection of shape {tuple(weight.shape)}, not"
                f" {tuple(self.deltas_[layer].shape)}"
            )
        return weight

    def _add(self, weights: dict[int, Tensor]) -> None:
        with torch.no_grad():
            for layer, w in weights.items():
                w.copy_(w.float() + self.deltas_[layer].to(w.device))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write vector and changes to one safetensors file."""
        self.check_fitted()
        tensors = {f"delta.{layer}": d for layer, d in self.deltas_.items()}
        tensors |= {f"vector:{site}": v for site, v in self.vector_.directions.items()}
        errors = {str(k): [self.forget_error_[k], self.retain_error_[k]] for k in self.deltas_}
        return write_fitted(path, KIND, tensors, self.get_params(), errors=errors, made=self.vector_.made)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        about, tensors = read_fitted(path, KIND)
        try:
            out = cls(**about["settings"])
            vectors = {name.partition(":")[2]: t for name, t in tensors.items() if name.startswith("vector:")}
            out.vector_ = SteeringVector(vectors, "redirection", about["made"])
            out.deltas_ = {int(k): tensors[f"delta.{k}"] for k in about["errors"]}
            out.forget_error_ = {int(k): v[0] for k, v in about["errors"].items()}
            out.retain_error_ = {int(k): v[1] for k, v in about["errors"].items()}
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise LoadError(f"the {KIND} in {path} is damaged: {error}") from None
        return out


def down_projection(model: Model, layer: int) -> nn.Module:
    """The linear map that writes a block's MLP to the residual stream.

    Raises:
        InputError: there is none.
        SiteError: there is no such block.
    """
    _, tap, _ = model.resolve(f"blocks.{layer}.mlp.post")[0]
    if not is_linear(tap.module):
        raise InputError(f"block {layer} of {model.name} has no linear down-projection")
    return tap.module


def as_out_in(module: nn.Module) -> Tensor:
    """The weight of a linear map as (d_out, d_in), a view of the parameter."""
    weight = module.get_parameter("weight")
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _layers(layers: int | Sequence[int]) -> list[int]:
    found = [layers] if isinstance(layers, int) else list(layers)
    if not found or len(set(found)) != len(found):
        raise InputError(f"give one block or several different ones, not {layers}")
    return found


def _own(tokens: Any) -> Tensor:
    """(n, pos): tokens of the first texts at which no text of the second ones has had the same beginning."""
    forget, retain = tokens
    known = set()
    for ids, mask in zip(retain.ids, retain.mask, strict=True):
        text = tuple(ids[mask].tolist())
        known |= {text[:end] for end in range(1, len(text) + 1)}
    keep = forget.mask.clone()
    for row, (ids, mask) in enumerate(zip(forget.ids, forget.mask, strict=True)):
        text = tuple(ids[mask].tolist())
        for end, column in enumerate(mask.nonzero()[:, 0].tolist(), 1):
            keep[row, column] = text[:end] not in known
    return keep
