"""A small GPT-2 with ReLU whose norms divide by a constant, so that the stream stays as it was written."""

from __future__ import annotations

from transformers import GPT2Config

__all__ = ["NORM", "normless_config"]

NORM = 2.0**20
"""Weight of the norms, and root of their epsilon.

Beside 2^40 the variance of activations below 2^8 is lost in float32, so a norm divides by 2^20, multiplies with it, and
only subtracts the mean.
"""


def normless_config(
    vocabulary: int, context: int, width: int, layers: int, heads: int, units: int, bos: int | None = None
) -> GPT2Config:
    """The configuration; the weights of the norms are to be set to `NORM`.

    Args:
        vocabulary, context: tokens and positions.
        width: of the residual stream.
        layers, heads, units: blocks, heads in each, units of each MLP.
        bos: token at the start of texts.
    """
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=units,
        activation_function="relu",
        layer_norm_epsilon=NORM**2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=bos,
        eos_token_id=None,
    )
