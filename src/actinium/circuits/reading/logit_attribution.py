"""Direct logit attribution: what each part writes towards a token's logit."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.reading.readout import readout_directions, writes
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["logit_attribution"]


def logit_attribution(
    model: Model,
    inputs: Any,
    tokens: Any = None,
    *,
    heads: bool = True,
    centre: bool | None = None,
    by_row: bool = False,
) -> Result:
    """Contribution of every head and MLP to the logits of chosen tokens after the last position.

    The final norm's scale is held at that of the run, so contributions add up: all parts and the constant (biases of
    the final norm and of the unembedding) together are the logits.

    Args:
        model: a decoder whose blocks are known.
        inputs: a `Task` (its clean prompts), texts or tokens.
        tokens: token ids or single-token words (k,), or ids (row, k); of a task its answer minus its wrong answer.
        heads: one part for each head instead of one for each attention layer.
        centre: subtract the mean over the k tokens, so that what raises all of them counts for nothing; by default
            where there are three or more.
        by_row: keep every prompt.

    Returns:
        Result: `contribution` over part and token ("difference" for a task), in logits, mean over rows; coordinates
        `layer` and `kind`; `constant` and `logit`, which the parts and the constant add up to.

    Raises:
        InputError: the parts do not add up to the stream; a word is not one token; a token does not exist.

    Source: Elhage et al., 2021 (direct path); Lieberum et al., 2023, section 3.1.
    """
    task = inputs if isinstance(inputs, Task) else None
    given: Any = inputs.prompts() if task is not None else inputs
    found = writes(model, given, heads)
    difference = tokens is None
    if difference and task is None:
        raise InputError("which logits? pass tokens, or a Task with answers and wrong answers")
    if difference:
        assert task is not None
        ids, names = torch.stack([task.answer_ids, task.wrong_ids], 1), ["difference"]
    else:
        ids, names = _ids(model, tokens, len(found.stream))
    directions, constant = readout_directions(model, found.stream, ids)
    parts = torch.einsum("prd,rkd->prk", found.values.double(), directions.double())
    constant = constant.double()
    if difference:
        parts, constant = parts[..., :1] - parts[..., 1:], constant[:, :1] - constant[:, 1:]
    elif len(names) > 2 if centre is None else centre:
        parts, constant = (t - t.mean(-1, keepdim=True) for t in (parts, constant))
    return _result(model, given, found.names, found.layers, names, parts, constant, by_row, heads)


def _ids(model: Model, tokens: Any, rows: int) -> tuple[Tensor, list[str]]:
    """(row, k) or (k,) ids, and the names of the k tokens."""
    if isinstance(tokens, Tensor):
        if tokens.ndim == 2 and len(tokens) != rows:
            raise InputError(f"tokens: {len(tokens)} rows for {rows} prompts")
        if tokens.ndim not in (1, 2) or tokens.is_floating_point() or not tokens.numel():
            raise InputError(f"tokens are integer ids (k,) or (row, k), not {tuple(tokens.shape)} {tokens.dtype}")
        if tokens.ndim == 2:
            return tokens, [str(i) for i in range(tokens.shape[1])]
        return tokens, _words(model, tokens)
    items = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not items:
        raise InputError("tokens: the choice is empty")
    ids = torch.tensor([i if isinstance(i, int) else _one(model, i) for i in items])
    return ids, _words(model, ids)


def _one(model: Model, word: str) -> int:
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; pass token ids")
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"{word!r} is {len(ids)} tokens of this tokenizer; a word of one token is needed")
    return int(ids[0])


def _words(model: Model, ids: Tensor) -> list[str]:
    return [str(int(i)) for i in ids] if model.tokenizer is None else model.to_str_tokens(ids)


def _result(
    model: Model,
    given: Any,
    names: tuple[str, ...],
    layers: tuple[int, ...],
    tokens: list[str],
    parts: Tensor,
    constant: Tensor,
    by_row: bool,
    heads: bool,
) -> Result:
    kinds = ["embed" if n == "embed" else "attention" if n.startswith("a") else "mlp" for n in names]
    data: dict[str, Any] = {
        "contribution": (("part", "token"), parts.mean(1).numpy()),
        "constant": (("token",), constant.mean(0).numpy()),
        "logit": (("token",), (parts.sum(0) + constant).mean(0).numpy()),
    }
    if by_row:
        data["by_row"] = (("part", "row", "token"), parts.numpy())
    if len(tokens) == 1:
        data = {k: (tuple(d for d in dims if d != "token"), v[..., 0]) for k, (dims, v) in data.items()}
    coords: dict[str, Any] = {"part": list(names), "layer": ("part", list(layers)), "kind": ("part", kinds)}
    if len(tokens) > 1:
        coords["token"] = tokens
    ready = model.prepare(given)
    content = dict(ready.arguments) if isinstance(ready.tokens, Tokens) else None
    dataset = xr.Dataset(data, coords=coords, attrs={"plot": {"kind": "bar", "variables": ["contribution"]}})
    return Result(
        dataset, "logit_attribution", "chinchilla-mcq-circuit", provenance(model, content, heads=heads, tokens=tokens)
    )
