"""A dictionary in a model: its reconstruction in the place of an activation, with what it misses or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from actinium.core.edits import Fn
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.features.dictionaries.dictionary import Dictionary

__all__ = ["changed_reconstruction", "flattened", "splice"]

Latents = Callable[[Tensor], Tensor]


def flattened(x: Tensor, width: int) -> Tensor:
    """An activation as rows of a dictionary: (..., width), heads side by side, as in files of attention dictionaries.

    Raises:
        InputError: it is neither so wide nor are its heads together.
    """
    if x.shape[-1] == width:
        return x
    if x.ndim > 2 and x.shape[-1] * x.shape[-2] == width:
        return x.flatten(-2)
    raise InputError(f"the activation is {tuple(x.shape)}, and the dictionary takes rows of width {width}")


@contextmanager
def splice(
    model: Model,
    site: str,
    dictionary: Dictionary,
    *,
    error_term: bool = True,
    latents: Latents | None = None,
    output: str | None = None,
) -> Iterator[Model]:
    """Put a dictionary's reconstruction in the place of an activation, while the block lasts.

    Args:
        model: the model.
        site: what the dictionary reads; of `attn.z`, heads side by side.
        dictionary: an autoencoder; or a transcoder, if `output` is given.
        error_term: add what the reconstruction misses, held: logits are then the model's own, and latents can change.
        latents: from latents (rows, d_sae) to those that are decoded, such as an ablation of some.
        output: the site that a transcoder writes.

    Raises:
        InputError: widths differ; a transcoder without an output, or one with an error term.
        SiteError: a site does not exist.
    """
    if not dictionary.autoencodes:
        if output is None or error_term:
            raise InputError("a transcoder needs output=, the site it writes, and error_term=False")
        with _transcoded(model, site, output, dictionary, latents):
            yield model
        return
    if output is not None:
        raise InputError("only a transcoder writes another site than it reads")

    def spliced(x: Tensor) -> Tensor:
        flat = flattened(x, dictionary.d_in)
        rows = flat.reshape(-1, dictionary.d_in).to(dictionary.W_dec.dtype)
        clean = dictionary(rows)
        made = clean.xhat if latents is None else changed_reconstruction(dictionary, rows, clean, latents)
        if error_term:
            made = made + (rows - clean.xhat).detach()
        return made.view(flat.shape).to(x.dtype).view(x.shape)

    with model.edit({site: Fn(spliced)}):
        yield model


def changed_reconstruction(dictionary: Dictionary, rows: Tensor, clean: Any, latents: Latents) -> Tensor:
    """The reconstruction of rows (n, d_in) from changed latents."""
    new = latents(clean.f)
    if new.shape != clean.f.shape:
        raise InputError(f"latents= gave {tuple(new.shape)} for latents {tuple(clean.f.shape)}")
    # Normalisation by each row is undone with that row's own numbers, which only the difference needs to pass through.
    difference = (new - clean.f) @ dictionary.W_dec
    if dictionary.normalize == "layer_norm":
        difference = difference * rows.std(-1, keepdim=True)
    elif dictionary.normalize == "norm":
        difference = difference * rows.norm(dim=-1, keepdim=True).clamp_min(1e-5) / rows.shape[-1] ** 0.5
    elif dictionary.normalize != "none":
        difference = difference / dictionary.scale
    made: Tensor = clean.xhat + difference
    return made


@contextmanager
def _transcoded(
    model: Model, site: str, output: str, dictionary: Dictionary, latents: Latents | None
) -> Iterator[None]:
    seen: list[Tensor] = []

    def read(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def write(y: Tensor) -> Tensor:
        x = flattened(seen.pop(), dictionary.d_in)
        out = dictionary(x)
        made = out.xhat
        if latents is not None:
            made = made + ((latents(out.f) - out.f) @ dictionary.W_dec)
        if made.numel() != y.numel():
            raise InputError(
                f"{output} is {tuple(y.shape)}, and the transcoder writes {dictionary.d_out} numbers a row"
            )
        return made.to(y.dtype).view(y.shape)

    with model.edit({site: Fn(read), output: Fn(write)}):
        yield
