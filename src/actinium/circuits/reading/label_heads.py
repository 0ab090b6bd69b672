"""Heads that answer multiple choice: which kind each is, and how little of their queries, keys and values it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import check_task
from actinium.core.edits import Replace
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.metrics import accuracy, logprob
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["HeadCompression", "classify_heads"]

PAPER = "chinchilla-mcq-circuit"
CLASSES = ("correct letter", "single letter", "uniform", "amplification", "other")
APART = 0.2
"""Difference of attention by which a label stands out among the others."""
MUCH = 0.5
"""Share of attention that counts as most of it."""
PARTS = ("q", "k", "v")


def _positions(task: Task, label_positions: Any) -> Tensor:
    """(row, m) columns of the labels, from positions (m,) or (row, m) that count from each prompt's first token.

    Raises:
        InputError: there are fewer than two labels, or a position is outside its prompt.
    """
    given = torch.as_tensor(label_positions)
    given = given.expand(len(task), -1) if given.ndim == 1 else given
    length = task.mask.sum(1, keepdim=True)
    if given.ndim != 2 or len(given) != len(task) or given.shape[1] < 2 or given.is_floating_point():
        raise InputError(
            f"expected positions of two labels or more, (m,) or ({len(task)}, m), not {tuple(given.shape)}"
        )
    if not bool(((given >= 0) & (given < length)).all()):
        raise InputError("a label lies outside its prompt")
    return given + task.mask.int().argmax(1, keepdim=True)


def _correct(task: Task, columns: Tensor) -> Tensor:
    """(row,) which label is the answer.

    Raises:
        InputError: the answer of a prompt is none of its labels.
    """
    labels = task.clean_ids.gather(1, columns)
    right = labels == task.answer_ids[:, None]
    if not bool(right.any(1).all()):
        row = int((~right.any(1)).nonzero()[0])
        raise InputError(f"row {row}: the answer is none of the labels at the given positions; labels are one token")
    return right.int().argmax(1)


def classify_heads(model: Model, task: Task, label_positions: Any, *, last: int = 3) -> Result:
    """What each head attends to from the last token: the right label, one label, all of them, or something else.

    Args:
        model: a decoder with attention patterns.
        task: prompts whose answers are among their labels; each option should be right equally often.
        label_positions: positions (m,) of the labels, the same in all prompts, or (row, m).
        last: tokens at the end of the prompt that make up the class "amplification".

    Returns:
        Result over layer and head: `kind`: "correct letter" (attention to the right label is above the mean of the
        others by more than .2), "single letter" (so for one fixed label), "uniform" (more than half of the attention is
        on labels, none apart), "amplification" (more than half is on the last tokens), "other"; `contrast`, the
        difference of the first; `on_labels`, `on_last`, `on_first`, mean shares of attention; `label`, the label
        attended most.

    Raises:
        InputError: labels are not where they are said to be, or there are fewer prompts than labels.
        SiteError: the model has no attention patterns.

    Source: Lieberum et al., 2023, section 4.1.
    """
    check_task(model, task)
    if not model.has("blocks.*.attn.pattern"):
        raise SiteError(f"{model.name} has no attention patterns")
    columns = _positions(task, label_positions)
    correct = _correct(task, columns)
    m = columns.shape[1]
    if len(task) < m:
        raise InputError(f"{len(task)} prompts for {m} labels; each should be right at least once")
    with torch.no_grad():
        rec = model.record(task.prompts(), "blocks.*.attn.pattern")
    rows = torch.stack([rec[f"blocks.{i}.attn.pattern"][:, :, -1].double().cpu() for i in range(model.n_layers)])
    on = rows.gather(-1, columns[None, :, None].expand(*rows.shape[:3], m))  # (layer, row, head, label)
    hit = torch.nn.functional.one_hot(correct, m).bool()[None, :, None].expand_as(on)
    contrast = (on.masked_fill(~hit, 0).sum(-1) - on.masked_fill(hit, 0).sum(-1) / (m - 1)).mean(1)
    mean = on.mean(1)  # (layer, head, label)
    lead = mean.amax(-1) - (mean.sum(-1) - mean.amax(-1)) / (m - 1)
    first = task.mask.int().argmax(1)
    start = rows.gather(-1, first.view(1, -1, 1, 1).expand(*rows.shape[:3], 1)).mean((1, 3))
    labels, end = mean.sum(-1), rows[..., -last:].sum(-1).mean(1)
    kinds = np.full(contrast.shape, CLASSES[4], dtype=object)
    kinds[(end > MUCH).numpy()] = CLASSES[3]
    kinds[(labels > MUCH).numpy()] = CLASSES[2]
    kinds[(lead > APART).numpy()] = CLASSES[1]
    kinds[(contrast > APART).numpy()] = CLASSES[0]
    dims = ("layer", "head")
    data: dict[str, Any] = {"contrast": (dims, contrast.numpy()), "kind": (dims, kinds)}
    data |= {"on_labels": (dims, labels.numpy()), "on_last": (dims, end.numpy()), "on_first": (dims, start.numpy())}
    data["label"] = (dims, mean.argmax(-1).numpy())
    coords = {"layer": list(range(model.n_layers)), "head": list(range(model.n_heads))}
    about = provenance(model, {"clean": task.clean_ids, "mask": task.mask}, last=last)
    return Result(
        xr.Dataset(data, coords=coords, attrs={"plot": {"variables": ["contrast"]}}), "classify_heads", PAPER, about
    )


class HeadCompression(Estimator):
    """The subspaces of one head's queries, keys and values that tell options apart.

    Queries are those at the last token, keys and values those at the labels, after rotary embedding where there is one.
    Deviations of queries from their mean over prompts, and of keys and values from their mean over the labels of each
    prompt, are reduced to their first principal axes.

    Args:
        layer, head: which head. Where key/value heads are shared, those of its group are changed for the whole group.
        parts: what is reduced, of "q", "k" and "v".

    Attributes:
        axes_: for each part (d_head, d_head), principal axes as rows, largest first.
        sizes_: for each part (d_head,), singular values.
        mean_query_: (d_head,).

    Source: Lieberum et al., 2023, section 4.2.
    """

    fitted = "axes_"

    def __init__(self, layer: int, head: int, parts: Sequence[str] = PARTS) -> None:
        self.layer, self.head, self.parts = layer, head, parts

    def fit(self, model: Model, task: Task, label_positions: Any) -> Self:
        """Find the axes on the prompts of a task.

        Args:
            model: the model.
            task: prompts whose answers are among their labels.
            label_positions: as in `classify_heads`.

        Raises:
            InputError, SiteError, UnknownNameError: the head or a part does not exist, or labels are elsewhere; fewer
                prompts than labels.
        """
        self._check(model, task)
        columns = _positions(task, label_positions)
        _correct(task, columns)
        if len(task) < columns.shape[1]:
            raise InputError(f"{len(task)} prompts for {columns.shape[1]} labels; each should be right at least once")
        query, key, value = self._read(model, task, columns)
        self.mean_query_ = query.mean(0)
        deviations = {
            "q": query - self.mean_query_,
            "k": (key - key.mean(1, keepdim=True)).flatten(0, 1),
            "v": (value - value.mean(1, keepdim=True)).flatten(0, 1),
        }
        self.axes_, self.sizes_ = {}, {}
        for part in PARTS:
            _, sizes, axes = torch.linalg.svd(deviations[part].double(), full_matrices=True)
            self.axes_[part] = axes
            self.sizes_[part] = torch.nn.functional.pad(sizes, (0, len(axes) - len(sizes)))
        return self

    def _check(self, model: Model, task: Task) -> None:
        check_task(model, task)
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError(unknown("part of a head", part, PARTS))
        if not self.parts:
            raise InputError("parts: the choice is empty")
        model.resolve([f"blocks.{self.layer}.attn.{part}" for part in PARTS])
        if not 0 <= self.head < model.n_heads:
            raise InputError(f"heads go from 0 to {model.n_heads - 1}, not {self.head}")

    def _sites(self, model: Model) -> tuple[str, str, str, int]:
        """Sites of q, k and v, and the key/value head of the group."""
        shared = model.n_heads // model.tower.kv_heads
        return (*(f"blocks.{self.layer}.attn.{part}" for part in PARTS), self.head // shared)  # type: ignore[return-value]

    def _read(self, model: Model, task: Task, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (row, d) at the end, keys and values (row, m, d) at the labels."""
        q, k, v, group = self._sites(model)
        with torch.no_grad():
            rec = model.record(task.prompts(), [q, k, v])
        rows = torch.arange(len(task))[:, None]
        return rec[q][:, -1, self.head], rec[k][rows, columns, group], rec[v][rows, columns, group]

    def _reduced(self, x: Tensor, mean: Tensor, part: str, rank: int) -> Tensor:
        if part not in self.parts:
            return x
        axes = self.axes_[part][:rank].to(x)
        return mean + (x - mean) @ axes.T @ axes

    def score_terms(self, model: Model, task: Task, label_positions: Any) -> Result:
        """The head's scores at the labels, before scaling, as a sum of four products of means and deviations.

        Args:
            model, task, label_positions: as in `fit`.

        Returns:
            Result over row and label: `mean_mean`, `mean_delta` (mean query, deviating keys), `delta_mean` and
            `delta_delta`, in q . k. Terms with the mean key are the same for all labels of a prompt, so that they do
            not matter to the softmax over labels.
        """
        self.check_fitted()
        query, key, _ = self._read(model, task, _positions(task, label_positions))
        query, key = query.double().cpu(), key.double().cpu()
        mean_q, mean_k = self.mean_query_.double().cpu().expand_as(query), key.mean(1, keepdim=True)
        pairs = {"mean": (mean_q, mean_k.expand_as(key)), "delta": (query - mean_q, key - mean_k)}
        data = {
            f"{a}_{b}": (("row", "label"), torch.einsum("rd,rmd->rm", pairs[a][0], pairs[b][1]).numpy())
            for a in pairs
            for b in pairs
        }
        return Result(
            xr.Dataset(data), "score_terms", PAPER, provenance(model, {"clean": task.clean_ids}, **self.get_params())
        )

    def evaluate(
        self, model: Model, task: Task, label_positions: Any, ranks: Sequence[int] | None = None, progress: bool = False
    ) -> Result:
        """Loss and accuracy of the model with the head reduced to each rank.

        Args:
            model: the model.
            task: prompts, for example with other labels than those that the axes were found on.
            label_positions: as in `fit`.
            ranks: numbers of axes; by default 0 to 4 and all.
            progress: show a progress bar.

        Returns:
            Result over rank: `loss` (-log p of the answer over the vocabulary, nats) and `accuracy` (the answer has the
            highest logit among the labels); `full_loss` and `full_accuracy` of the model as it is.

        Raises:
            InputError: not fitted; a rank is outside 0 to d_head; labels are elsewhere.

        Source: Lieberum et al., 2023, sections 4.2 and 5.
        """
        self.check_fitted()
        self._check(model, task)
        columns = _positions(task, label_positions)
        _correct(task, columns)
        most = len(self.axes_["q"])
        wanted = sorted({*range(min(4, most) + 1), most}) if ranks is None else [int(r) for r in ranks]
        if not wanted or any(not 0 <= r <= most for r in wanted):
            raise InputError(f"ranks go from 0 to {most}, not {wanted}")
        query, key, value = self._read(model, task, columns)
        q, k, v, group = self._sites(model)
        start = task.mask.int().argmax(1, keepdim=True)
        variants = []
        for rank in wanted:
            new = {
                q: self._reduced(query, self.mean_query_.to(query), "q", rank)[:, None],
                k: self._reduced(key, key.mean(1, keepdim=True), "k", rank),
                v: self._reduced(value, value.mean(1, keepdim=True), "v", rank),
            }
            places = {q: torch.full((len(task), 1), -1), k: columns - start, v: columns - start}
            heads = {q: self.head, k: group, v: group}
            variants.append(
                {
                    site: Replace(_spread(value, columns if site != q else None, task)).at(
                        positions=places[site], heads=heads[site]
                    )
                    for site, value in new.items()
                }
            )
        inputs = task.prompts()
        with torch.no_grad():
            full = model.logits(inputs)[:, -1]
        logits = model.replay(inputs, variants, progress=progress)
        found = [_scored(one, task, columns) for one in [full, *logits]]
        data = {
            "loss": (("rank",), [f[0] for f in found[1:]]),
            "accuracy": (("rank",), [f[1] for f in found[1:]]),
            "full_loss": ((), found[0][0]),
            "full_accuracy": ((), found[0][1]),
        }
        about = provenance(model, {"clean": task.clean_ids, "mask": task.mask}, **self.get_params())
        hints = {"plot": {"variables": ["loss", "accuracy"]}}
        return Result(xr.Dataset(data, coords={"rank": wanted}, attrs=hints), "HeadCompression.evaluate", PAPER, about)


def _spread(value: Tensor, columns: Tensor | None, task: Task) -> Tensor:
    """(row, pos, 1, d) tensor with values (row, m, d) at their columns, at the last column where there are none."""
    out = torch.zeros(*task.mask.shape, 1, value.shape[-1], dtype=value.dtype, device=value.device)
    rows = torch.arange(len(task))[:, None]
    if columns is None:
        out[:, -1, 0] = value[:, 0]
    else:
        out[rows, columns, 0] = value
    return out


def _scored(logits: Tensor, task: Task, columns: Tensor) -> tuple[float, float]:
    """Loss over the vocabulary, and accuracy among the labels."""
    labels = task.clean_ids.gather(1, columns).to(logits.device)
    ids = task.answer_ids.to(logits.device)
    loss = -logprob(logits, ids, ids).double().mean()
    picked = logits.gather(1, labels)
    right = accuracy(picked, (labels == ids[:, None]).int().argmax(1), ids * 0)
    return float(loss), float(right.double().mean())
