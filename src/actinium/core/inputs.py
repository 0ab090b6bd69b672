"""From what a person passes to what a module's forward takes, in batches, refused early where it cannot work."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError

__all__ = ["Inputs", "Tokens", "pad", "prepare", "tokenize"]


@dataclass(frozen=True)
class Tokens:
    """Token ids with their mask.

    Attributes:
        ids: (batch, pos) int64.
        mask: (batch, pos) bool, False on padding.
        rows: (batch,) int64, the text that each row comes from (a long text fills several rows).
    """

    ids: Tensor
    mask: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def after_first(self) -> Tensor:
        """(batch, pos) bool: the mask without each text's first token, whose activations are often unlike others."""
        mask = self.mask.clone()
        mask[torch.arange(len(mask)), mask.int().argmax(1)] = False
        return mask

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        """Some rows."""
        return Tokens(self.ids[rows], self.mask[rows], self.rows[rows])


@dataclass(frozen=True)
class Inputs:
    """Everything a forward pass takes, with the number of rows.

    Attributes:
        arguments: keyword arguments of the module's forward; tensors of `size` rows are cut into batches.
        positional: arguments without a name, for modules whose forward we know nothing of.
        size: number of rows.
        tokens: the tokens, if the input is text.
    """

    arguments: dict[str, Any]
    size: int
    positional: tuple[Any, ...] = ()
    tokens: Tokens | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def batches(
        self, batch_size: int | None, device: torch.device
    ) -> Iterator[tuple[int, tuple[Any, ...], dict[str, Any]]]:
        """First row, positional and keyword arguments of each batch, on `device`."""
        step = batch_size or self.size
        for start in range(0, self.size, step):
            stop = min(start + step, self.size)

            def cut(value: Any, start: int = start, stop: int = stop) -> Any:
                if not isinstance(value, Tensor):
                    return value
                if value.ndim and value.shape[0] == self.size and (start, stop) != (0, self.size):
                    value = value[start:stop]
                return value.to(device)

            yield start, tuple(map(cut, self.positional)), {k: cut(v) for k, v in self.arguments.items()}


def pad(sequences: Sequence[Sequence[int]], value: int, side: str = "right") -> tuple[Tensor, Tensor]:
    """Pad token lists to one length: ids (batch, pos) int64 and mask (batch, pos) bool."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), value, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
        ids[i, place] = torch.as_tensor(list(sequence), dtype=torch.long)
        mask[i, place] = True
    return ids, mask


def tokenize(
    tokenizer: Any, texts: Sequence[str], context: int | None, side: str = "right", window: bool = True
) -> Tokens:
    """Tokenise texts; one that is longer than `context` becomes several rows, said so in a warning.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: the texts.
        context: most tokens in a row, None for no limit.
        side: where padding goes.
        window: cut long texts; if False they are refused.
    Raises:
        InputError: without a tokenizer, for no texts, an empty text, or a long one with `window=False`.
    """
    if tokenizer is None:
        raise InputError("this model has no tokenizer; pass token ids, or ac.load(..., tokenizer=...)")
    if not texts:
        raise InputError("no texts given")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is a {type(text).__name__}, expected a str")
        if not text.strip():
            raise InputError(f"text {i} is empty")
    sequences = tokenizer(list(texts), verbose=False)["input_ids"]
    rows: list[int] = []
    pieces: list[list[int]] = []
    cut = 0
    for i, sequence in enumerate(sequences):
        if not len(sequence):
            raise InputError(f"text {i} has no tokens under this tokenizer: {texts[i]!r}")
        step = context or len(sequence)
        cut += len(sequence) > step
        for start in range(0, len(sequence), step):
            pieces.append(list(sequence[start : start + step]))
            rows.append(i)
    if cut and not window:
        raise InputError(f"{cut} of {len(texts)} texts are longer than the model's context of {context} tokens")
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} texts are longer than the context of {context} tokens; "
            f"they were cut into windows ({len(pieces)} rows in all)",
            ActiniumWarning,
            stacklevel=4,
        )
    fill = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    ids, mask = pad(pieces, fill, side)
    return Tokens(ids, mask, torch.tensor(rows))


def parameters_of(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward."""
    return inspect.signature(module.forward).parameters


def _accepts(module: nn.Module, name: str) -> bool:
    return name in parameters_of(module)


def _check_ids(config: Any, ids: Tensor) -> None:
    """Refuse token ids outside the vocabulary."""
    vocab = getattr(config, "vocab_size", None)
    if isinstance(vocab, int) and ids.numel() and (int(ids.max()) >= vocab or int(ids.min()) < 0):
        raise InputError(
            f"token ids go from {int(ids.min())} to {int(ids.max())}, "
            f"but this model knows 0 to {vocab - 1}; does the tokenizer belong to it?"
        )


def _check_length(module: nn.Module, ids: Tensor, context: int | None) -> None:
    """Refuse sequences that run past a table of learned positions (rotary and relative positions may go on)."""
    if context is None or ids.shape[1] <= context:
        return
    words = getattr(module, "get_input_embeddings", lambda: None)()
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding) and m is not words]
    if any(context <= table.num_embeddings <= context + 2 for table in tables):
        raise InputError(f"{ids.shape[1]} tokens in a row, but this model has positions for {context}")


def _from_tokens(module: nn.Module, tokens: Tokens, context: int | None = None) -> Inputs:
    config = getattr(module, "config", None)
    if tokens.ids.numel() == 0:
        raise InputError("no tokens given")
    _check_ids(config, tokens.ids)
    _check_length(module, tokens.ids, context)
    if not bool(tokens.mask.any(1).all()):
        raise InputError(f"row {int((~tokens.mask.any(1)).nonzero()[0])} holds padding only")
    if not _accepts(module, "input_ids"):
        return Inputs({}, len(tokens), (tokens.ids,), tokens)
    arguments: dict[str, Any] = {"input_ids": tokens.ids}
    padded = not bool(tokens.mask.all())
    if _accepts(module, "attention_mask"):
        arguments["attention_mask"] = tokens.mask.long()
    elif padded:
        raise InputError(f"{type(module).__name__} takes no attention mask; pass texts of equal length")
    if padded and not bool(tokens.mask[:, 0].all()) and _accepts(module, "position_ids"):
        # RoBERTa counts positions from the one after its padding token's id.
        roberta = getattr(config, "model_type", "") in ("roberta", "xlm-roberta")
        first = int(config.pad_token_id) + 1 if roberta and config is not None else 0
        arguments["position_ids"] = (tokens.mask.long().cumsum(1) - 1).clamp_min(0) + first
    if _accepts(module, "use_cache"):
        arguments["use_cache"] = False
    if getattr(config, "is_encoder_decoder", False):
        start = getattr(config, "decoder_start_token_id", None)
        arguments["decoder_input_ids"] = torch.full((len(tokens), 1), 0 if start is None else start)
    return Inputs(arguments, len(tokens), (), tokens)


def _from_tensor(module: nn.Module, x: Tensor, context: int | None = None) -> Inputs:
    if x.numel() == 0:
        raise InputError(f"the input is empty: shape {tuple(x.shape)}")
    if not x.is_floating_point():
        if x.ndim == 1:
            x = x[None]
        if x.ndim == 2:
            mask = torch.ones_like(x, dtype=torch.bool)
            return _from_tokens(module, Tokens(x.long(), mask, torch.arange(len(x))), context)
        return Inputs({}, len(x), (x,))
    if not bool(torch.isfinite(x).all()):
        raise InputError("the input holds NaN or infinite values")
    name = getattr(module, "main_input_name", None)
    config = getattr(module, "config", None)
    if name and _accepts(module, name) and config is not None:
        if name == "pixel_values" and x.ndim == 3:
            x = x[None]
        return Inputs({name: x}, len(x))
    return Inputs({}, len(x), (x,))


def _from_mapping(module: nn.Module, given: Mapping[str, Any]) -> Inputs:
    tensors = [v for v in given.values() if isinstance(v, Tensor) and v.ndim]
    if not tensors:
        raise InputError("a dict input needs at least one tensor with a batch dimension")
    size = int(tensors[0].shape[0])
    if not size:
        raise InputError("the input has no rows")
    for name in ("input_ids", "decoder_input_ids"):
        if isinstance(given.get(name), Tensor):
            _check_ids(getattr(module, "config", None), given[name])
    for name in ("pixel_values", "inputs_embeds"):
        if isinstance(given.get(name), Tensor) and not bool(torch.isfinite(given[name]).all()):
            raise InputError(f"{name} holds NaN or infinite values")
    tokens = None
    ids = given.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        mask = given.get("attention_mask")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else torch.ones_like(ids, dtype=torch.bool)
        tokens = Tokens(ids, mask, torch.arange(size))
    return Inputs(dict(given), size, (), tokens)


def prepare(
    module: nn.Module, inputs: Any, tokenizer: Any = None, processor: Any = None, context: int | None = None
) -> Inputs:
    """Bring any accepted input to what the module's forward takes.

    Args:
        module: the model.
        inputs: a text, texts, token ids (pos,) or (batch, pos), `Tokens`, float tensors or arrays, images for the
            processor, or a dict of the forward's own arguments.
        tokenizer, processor: for texts and images.
        context: most tokens in a row.
    Raises:
        InputError: if the input is empty, of no known kind, not finite, or does not fit the model.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, Tokens):
        return _from_tokens(module, inputs, context)
    if isinstance(inputs, Tensor):
        return _from_tensor(module, inputs, context)
    if isinstance(inputs, Mapping) or hasattr(inputs, "input_ids"):
        return _from_mapping(module, dict(inputs))
    if hasattr(inputs, "__array__") and not hasattr(inputs, "mode"):
        return _from_tensor(module, torch.as_tensor(inputs), context)
    items = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not items:
        raise InputError("no inputs given")
    if all(isinstance(i, str) for i in items):
        return _from_tokens(module, tokenize(tokenizer, items, context))
    if all(isinstance(i, Tensor) and i.ndim == 1 and not i.is_floating_point() for i in items):
        items = [i.tolist() for i in items]
    if all(isinstance(i, list) and all(isinstance(t, int) for t in i) for i in items):
        if not all(items):
            raise InputError(f"row {next(n for n, i in enumerate(items) if not i)} has no tokens")
        ids, mask = pad(items, getattr(tokenizer, "pad_token_id", None) or 0)
        return _from_tokens(module, Tokens(ids, mask, torch.arange(len(items))), context)
    if all(hasattr(i, "mode") for i in items):
        if processor is None:
            raise InputError("this model has no image processor; pass a float tensor (batch, channel, height, width)")
        return _from_tensor(module, processor(images=items, return_tensors="pt")["pixel_values"])
    kinds = sorted({type(i).__name__ for i in items})
    raise InputError(f"cannot read inputs of type {', '.join(kinds)}; pass texts, token ids, a tensor or a dict")
