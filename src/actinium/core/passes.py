"""What is known about the forward pass in flight: which columns of which sequences it computes.

Positions that a person writes count the tokens of each text: 0 is its first token whatever padding stands before
it, -1 the last token of the prompt. A pass sees columns; with a key-value cache only the new ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["Generation", "Pass", "Positions", "check_positions", "read_pass"]

Positions = int | slice | Iterable[int] | Tensor | str
SPANS = ("prompt", "new")


@dataclass(frozen=True, eq=False)
class Generation:
    """One call of `generate`: the number of tokens of each prompt, (batch,)."""

    prompt: Tensor


@dataclass
class Pass:
    """One forward pass of one tower.

    Attributes:
        batch: number of rows.
        start: column of the first position computed (the length of the cache).
        columns: number of columns once this pass is done.
        left: padding columns before each row's first token, (batch,) or None where there is no padding.
        prompt: number of tokens of each row when the cache was empty, (batch,) or None if unknown.
        row_start: number of rows of the same call that earlier batches held.
        rows: number of rows of the whole call, 0 if it is not known.
        arguments: what the tower's forward was given, by name.
        real: (batch, column) bool, False on padding, or None where there is none.
        generation: the call of `generate` it belongs to.
        again: it computes the columns of the pass before it once more (generation without a cache).
    """

    batch: int = 0
    start: int = 0
    columns: int = 0
    left: Tensor | None = None
    prompt: Tensor | None = None
    row_start: int = 0
    rows: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    real: Tensor | None = field(default=None, repr=False)
    generation: Generation | None = None
    again: bool = False

    def tokens(self, n: int, start: int, device: torch.device) -> Tensor:
        """Index of the token in each of `n` columns from `start`: (batch or 1, n), negative in left padding."""
        columns = torch.arange(start, start + n, device=device)[None]
        return columns if self.left is None else columns - self.left.to(device)[:, None]

    def selected(self, positions: Positions, n: int, start: int, device: torch.device) -> Tensor:
        """Which of `n` columns from `start` the positions mean: bool (batch or 1, n).

        Args:
            positions: a number, several, a slice, or a tensor: integers (k,), integers (batch, k) for other
                positions in each row. Negative numbers count from the end of the prompt. "prompt" are all of its
                tokens, "new" those that are generated after it.
            n: number of columns.
            start: the first column.
            device: where the answer is wanted.
        """
        tokens = self.tokens(n, start, device)
        length = self.prompt.to(device)[:, None] if self.prompt is not None else None
        if isinstance(positions, str):
            end = length if length is not None else torch.tensor([[start + n]], device=device)
            inside = tokens < end if positions == "prompt" else tokens >= end
            return self._without_padding(inside, start)
        if isinstance(positions, slice):
            return self._without_padding(self._slice(positions, tokens, length, start + n), start)
        wanted = _as_tensor(positions).to(device)
        if wanted.ndim == 2 and wanted.shape[0] != self.batch:
            wanted = wanted[self.row_start : self.row_start + self.batch]
        if wanted.ndim == 1:
            wanted = wanted[None]
        if bool((wanted < 0).any()):
            end = length if length is not None else torch.tensor([[start + n]], device=device)
            wanted = torch.where(wanted < 0, wanted + end, wanted)
        return self._without_padding((tokens[:, :, None] == wanted[:, None, :]).any(-1), start)

    def _without_padding(self, chosen: Tensor, start: int) -> Tensor:
        if self.real is None or start < 0:
            return chosen
        real = self.real[:, start : start + chosen.shape[1]].to(chosen.device)
        return chosen & real if real.shape[1] == chosen.shape[1] else chosen

    def _slice(self, positions: slice, tokens: Tensor, length: Tensor | None, stop: int) -> Tensor:
        end = length if length is not None else torch.full((1, 1), stop, device=tokens.device)

        def edge(value: int | None, default: Tensor | int) -> Tensor | int:
            if value is None:
                return default
            return end + value if value < 0 else value

        low = edge(positions.start, 0)
        chosen = tokens >= low
        if positions.stop is not None:
            chosen = chosen & (tokens < edge(positions.stop, 0))
        if positions.step not in (None, 1):
            chosen = chosen & ((tokens - low) % positions.step == 0)
        return chosen


def _as_tensor(positions: Any) -> Tensor:
    if isinstance(positions, Tensor):
        return positions.long()
    if isinstance(positions, int):
        return torch.tensor([positions])
    return torch.tensor(list(positions), dtype=torch.long)


def check_positions(positions: Any) -> None:
    """Refuse what cannot be a choice of positions.

    Raises:
        InputError: for text, booleans, floating-point numbers, an empty choice, or more than two dimensions.
    """
    if isinstance(positions, slice):
        if positions.step is not None and positions.step < 1:
            raise InputError(f"positions: a slice's step must be at least 1, not {positions.step}")
        return
    if isinstance(positions, str) and positions in SPANS:
        return
    if isinstance(positions, str | bool | float):
        raise InputError(
            f"positions: expected integers, a slice, a tensor of integers, 'prompt' or 'new', not {positions!r}"
        )
    if isinstance(positions, Tensor) and (positions.is_floating_point() or positions.dtype == torch.bool):
        raise InputError(f"positions: expected a tensor of integers, not of {positions.dtype}")
    try:
        wanted = _as_tensor(positions)
    except (TypeError, ValueError) as error:
        raise InputError(f"positions: expected integers, a slice or a tensor of integers ({error})") from None
    if wanted.numel() == 0:
        raise InputError("positions: the choice is empty")
    if wanted.ndim > 2:
        raise InputError(f"positions: a tensor must be (k,) or (batch, k), not of shape {tuple(wanted.shape)}")


@cache
def _names(forward: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)


def _cached(given: Mapping[str, Any], before: Pass | None) -> int:
    """Number of columns that a cache holds already."""
    past = given.get("past_key_values")
    length = getattr(past, "get_seq_length", None)
    if length is not None:
        return int(length())
    # A state-space model keeps a state and no columns: it goes on where the pass before it ended.
    filled = getattr(given.get("cache_params"), "has_previous_state", None)
    filled = filled() if callable(filled) else filled
    return before.columns if filled and before is not None else 0


def read_pass(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    before: Pass | None,
    row_start: int,
    rows: int = 0,
    generation: Generation | None = None,
) -> Pass:
    """Read the columns, the padding and the cache's length from the arguments of a tower's forward."""
    names = _names(type(module).forward)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    main = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    for name in ("input_ids", "inputs_embeds", "pixel_values", "decoder_input_ids"):
        if isinstance(given.get(name), Tensor):
            main = given[name]
            break
    batch = int(main.shape[0]) if main is not None and main.ndim else 0
    start = _cached(given, before)
    # Only token ids and their embeddings have a column for each position: an image's second dimension is its channels.
    ids = given.get("input_ids", given.get("decoder_input_ids"))
    main = ids if isinstance(ids, Tensor) else given.get("inputs_embeds")
    columns = start + int(main.shape[1]) if isinstance(main, Tensor) and main.ndim > 1 else 0
    mask = given.get("attention_mask")
    left = prompt = padded = None
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[0] == batch:
        real = mask.bool()
        if not bool(real.all()):
            left, padded = real.int().argmax(1), real
        prompt = real[:, :columns].sum(1)
    elif batch and columns:
        prompt = torch.full((batch,), columns)
    if start and before is not None and before.left is not None and (padded is None or padded.shape[1] < columns):
        # A state-space model is told of the new columns only; the padding is where it was.
        left, known = before.left, before.real
        padded = None if known is None else nn.functional.pad(known, (0, columns - known.shape[1]), value=True)
    if generation is not None and batch % len(generation.prompt) == 0:
        prompt = generation.prompt.repeat_interleave(batch // len(generation.prompt))
    elif start and before is not None and before.prompt is not None and before.prompt.shape[0] == batch:
        prompt = before.prompt
    again = generation is not None and before is not None and before.generation is generation and start == 0
    return Pass(batch, start, columns, left, prompt, row_start, rows, given, padded, generation, again)
