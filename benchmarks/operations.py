"""How many multiplications and additions a position x layer sweep over the residual stream takes in GPT-2's shape.

Two are counted for each entry of a matrix product; norms, activations and softmax are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GPT2Config

__all__ = ["Shape"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and of the prompts.

    Attributes:
        layers, width, vocabulary: of the model.
        length, batch: of the prompts.
    """

    layers: int
    width: int
    vocabulary: int
    length: int
    batch: int

    @classmethod
    def of(cls, config: GPT2Config, length: int, batch: int) -> Shape:
        """From a configuration."""
        return cls(config.n_layer, config.n_embd, config.vocab_size, length, batch)

    def _linear(self, queries: int, keys: int, outputs: int) -> int:
        """A block's linear maps: query, key and value for so many tokens, what follows attention for `outputs`."""
        return 2 * self.width**2 * (queries + 2 * keys + 9 * outputs)

    def _attention(self, first: int, tokens: int) -> int:
        """Scores and weighted values of queries `first`, `first + 1`, ...: each sees the keys up to its own."""
        return 4 * self.width * sum(first + i + 1 for i in range(tokens))

    def _unembedding(self, tokens: int) -> int:
        return 2 * self.width * self.vocabulary * tokens

    def forward(self, logits: int | None = None) -> int:
        """A whole pass, with the logits of so many positions (all by default)."""
        n = self.length
        block = self._linear(n, n, n) + self._attention(0, n)
        return self.batch * (self.layers * block + self._unembedding(n if logits is None else logits))

    def plain_sweep(self) -> int:
        """One pass for each layer and position, and one of the clean prompts."""
        return (self.layers * self.length + 1) * self.forward()

    def needed(self) -> int:
        """Only products whose inputs a patch changes and whose results the last position's logits read.

        The stream entering a patch's first block differs in one column, above it in all later ones; of the last block
        the logits read one position, for which it needs every key and value.
        """
        total = 0
        for layer in range(self.layers):
            for position in range(self.length):
                total += self._variant(layer, position)
        return 2 * self.forward(logits=1) + self.batch * total

    def _variant(self, layer: int, position: int) -> int:
        later = self.length - position
        total = self._unembedding(1)
        for block in range(layer, self.layers):
            changed = 1 if block == layer else later
            if block < self.layers - 1:
                total += self._linear(changed, changed, later) + self._attention(position, later)
            else:
                queries = 1 if changed == later else 0
                total += self._linear(queries, changed, 1) + self._attention(self.length - 1, 1)
        return total
