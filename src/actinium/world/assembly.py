"""Transformers whose weights are written by hand: a residual stream of named spaces, filled head by head.

The model is a GPT-2 whose norms only subtract the mean (`normless`), and that is zero, for the last coordinate of
whatever is written is minus the sum of the others. A head or an MLP unit that the program does not use gets random
weights: it reads every space and writes into a space of its own that only such parts read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from actinium.core.model import Model
from actinium.world.normless import NORM, normless_config

__all__ = ["BOS", "Assembly", "identity", "unit"]

BOS = "<bos>"
Reads = Mapping[str, Tensor]
"""Space -> (width of the space, width of what is read)."""


def identity(size: int, width: int | None = None, gain: float = 1.0) -> Tensor:
    """(size, width) with `gain` on the diagonal; the width is the size by default."""
    return gain * torch.eye(size, size if width is None else width)


def unit(size: int, places: Mapping[int, float], width: int = 1, column: int = 0) -> Tensor:
    """(size, width) of zeros with one column that has values at some places."""
    out = torch.zeros(size, width)
    for place, value in places.items():
        out[place, column] = value
    return out


@dataclass(frozen=True)
class _Head:
    query: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


@dataclass(frozen=True)
class _Units:
    reads: Tensor
    bias: Tensor
    writes: Tensor


class Assembly:
    """A transformer in the making.

    The embedding writes each token into the space "token" and each position into the space "position", as unit
    vectors. Programs add spaces of their own; "answer" is the one that the logits read.

    Args:
        letters: tokens beside `<bos>`, which is the first.
        context: number of positions.
        layers: number of blocks.
        spaces: further spaces and their widths; "answer", as wide as the vocabulary, is always there.
        heads: heads in each block.
        head_width: width of a head; `heads * head_width` is the width of the stream.
        units: units of each MLP.
    """

    def __init__(
        self,
        letters: Sequence[str],
        context: int,
        layers: int,
        spaces: Mapping[str, int],
        heads: int = 4,
        head_width: int = 24,
        units: int = 48,
    ) -> None:
        self.tokens = (BOS, *letters)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.context, self.layers, self.heads = context, layers, heads
        self.head_width, self.units, self.width = head_width, units, heads * head_width
        self.vocabulary = len(self.tokens)
        sizes = {"token": self.vocabulary, "position": context, **spaces, "answer": self.vocabulary}
        self.spaces: dict[str, slice] = {}
        start = 0
        for name, size in sizes.items():
            self.spaces[name] = slice(start, start + size)
            start += size
        self.spaces["noise"] = slice(start, self.width - 1)
        self.gain, self.constant = 1.0, torch.zeros(self.vocabulary)
        self._heads: dict[tuple[int, int], _Head] = {}
        self._units: dict[int, list[_Units]] = {}

    def head(
        self,
        layer: int,
        head: int,
        key: Reads,
        value: Reads,
        out: str,
        query: Reads | None = None,
        query_bias: Mapping[int, float] | None = None,
    ) -> None:
        """Set a head; what it attends to is softmax(query . key), and it writes the value into one space.

        Args:
            layer, head: which.
            key, value: what is read.
            out: the space that the value is added to; the value is as wide.
            query: what is read; nothing by default.
            query_bias: constant query, coordinate by coordinate.
        """
        bias = unit(self.head_width, query_bias or {})[:, 0]
        written = torch.zeros(self.head_width, self.width)
        place = self.spaces[out]
        size = place.stop - place.start
        written[:size, place] = torch.eye(size)
        matrices = [self._read(r, self.head_width) for r in (query or {}, key, value)]
        self._heads[layer, head] = _Head(matrices[0], bias, matrices[1], matrices[2], written)

    def relu(self, layer: int, reads: Reads, bias: Tensor, writes: Reads) -> None:
        """Add units to an MLP: relu(reads + bias), written by `writes`.

        Args:
            layer: which MLP.
            reads: space -> (width of the space, unit).
            bias: (unit,).
            writes: space -> (unit, width of the space).
        """
        written = torch.zeros(len(bias), self.width)
        for name, matrix in writes.items():
            written[:, self.spaces[name]] += matrix
        self._units.setdefault(layer, []).append(_Units(self._read(reads, len(bias)), bias, written))

    def _read(self, reads: Reads, width: int) -> Tensor:
        out = torch.zeros(self.width, width)
        for name, matrix in reads.items():
            out[self.spaces[name], : matrix.shape[1]] += matrix
        return out

    def model(self, name: str, seed: int = 0) -> Model:
        """The finished model with its tokenizer.

        Args:
            name: how it is called.
            seed: of the weights of the parts that the program does not use.

        Returns:
            The model, float32, in evaluation mode.
        """
        sizes = (self.vocabulary, self.context, self.width, self.layers, self.heads, self.units)
        module = GPT2LMHeadModel(normless_config(*sizes, bos=0)).eval()
        generator = torch.Generator().manual_seed(seed)
        state = {key: torch.zeros_like(value) for key, value in module.state_dict().items()}
        state["transformer.wte.weight"][:, self.spaces["token"]] = torch.eye(self.vocabulary)
        state["transformer.wpe.weight"][:, self.spaces["position"]] = torch.eye(self.context)
        for key in state:
            if key.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                state[key].fill_(NORM)
        for layer in range(self.layers):
            self._fill(state, f"transformer.h.{layer}.", layer, generator)
        for key, value in state.items():
            if key.endswith(("wte.weight", "wpe.weight", "c_proj.weight")):
                value[:, -1] = -value[:, :-1].sum(1)
        answer = self.spaces["answer"]
        state["transformer.ln_f.bias"][answer] = self.constant
        state["lm_head.weight"][:, answer] = self.gain * torch.eye(self.vocabulary)
        module.load_state_dict(state)
        return Model(module, self.tokenizer(), name=name)

    def _fill(self, state: dict[str, Tensor], prefix: str, layer: int, generator: torch.Generator) -> None:
        for head in range(self.heads):
            found = self._heads.get((layer, head)) or self._idle_head(generator)
            columns = slice(head * self.head_width, (head + 1) * self.head_width)
            # Attention divides by the root of the head's width.
            scale = self.head_width**0.5
            weight, bias = state[f"{prefix}attn.c_attn.weight"], state[f"{prefix}attn.c_attn.bias"]
            for part, matrix in enumerate((scale * found.query, found.key, found.value)):
                weight[:, part * self.width : (part + 1) * self.width][:, columns] = matrix
            bias[: self.width][columns] = scale * found.query_bias
            state[f"{prefix}attn.c_proj.weight"][columns] = found.out
        start = 0
        for units in (*self._units.get(layer, ()), self._idle_units(layer, generator)):
            rows = slice(start, start + len(units.bias))
            state[f"{prefix}mlp.c_fc.weight"][:, rows] = units.reads
            state[f"{prefix}mlp.c_fc.bias"][rows] = units.bias
            state[f"{prefix}mlp.c_proj.weight"][rows] = units.writes
            start = rows.stop

    def _idle_head(self, generator: torch.Generator) -> _Head:
        query, key, value = (self._idle_reads(self.head_width, generator) for _ in range(3))
        return _Head(query, torch.zeros(self.head_width), key, value, self._noise(self.head_width, generator))

    def _idle_units(self, layer: int, generator: torch.Generator) -> _Units:
        count = self.units - sum(len(units.bias) for units in self._units.get(layer, ()))
        return _Units(self._idle_reads(count, generator), torch.zeros(count), self._noise(count, generator))

    def _idle_reads(self, count: int, generator: torch.Generator) -> Tensor:
        out = torch.randn(self.width, count, generator=generator) / 2
        place = self.spaces["noise"]
        # All its coordinates are in use at once; as weakly as this, what is written there does not grow.
        out[place] /= (place.stop - place.start) ** 0.5
        # The last one holds minus the sum of the others.
        out[-1] = 0
        return out

    def _noise(self, count: int, generator: torch.Generator) -> Tensor:
        place = self.spaces["noise"]
        out = torch.zeros(count, self.width)
        out[:, place] = torch.randn(count, place.stop - place.start, generator=generator) / count**0.5
        return out

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Words between spaces are tokens, other words are refused; `<bos>` is put before every text."""
        inner = Tokenizer(models.WordLevel(self.ids))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
        )
        inner.add_special_tokens([AddedToken(BOS, special=True)])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token=BOS, padding_side="left", model_max_length=self.context
        )
