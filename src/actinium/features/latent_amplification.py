"""A latent of a dictionary amplified in a running model, at the last token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.edit import Edit, Where, rows_of
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.finite_output import finite_output
from actinium.core.model import Model
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.normalisation import normalised
from actinium.features.splicing import flattened

__all__ = ["AmplifyLatent", "check_autoencoder", "latent_numbers", "steer_with_latent"]

MODES = ("every step", "prefill")


class AmplifyLatent(Edit):
    """x + factor * max_j f_j(x) * D_i at the last position: latent i raised by a multiple of the largest one there.

    Decoding is linear, so this is the reconstruction with the raised latent plus what the clean one misses.

    Args:
        dictionary: an autoencoder of the site.
        latents: (1,), or one for each row of the batch.
        factor: multiple of the largest latent.
        mode: "every step", each new token while it is the last, or "prefill", the prompt's last token alone.
    """

    def __init__(self, dictionary: Dictionary, latents: Tensor, factor: float, mode: str) -> None:
        super().__init__()
        self.dictionary, self.latents, self.factor = dictionary, latents, factor
        # Negative positions count from the end of the prompt: what comes after it are the new tokens.
        self.positions = -1 if mode == "prefill" else slice(-1, None)

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Raise the latent in the rows at the last position; only these are encoded."""
        chosen = where.now.selected(self.positions or -1, x.shape[1], where.start, x.device).expand(x.shape[:2])
        if not bool(chosen.any()):
            return x
        given = rows_of(self.latents.to(x.device), x, where, strengths=True)
        d = self.dictionary
        flat = flattened(x, d.d_in)
        rows = flat[chosen].to(d.W_dec.dtype)
        latents = given.expand(x.shape[0])[chosen.nonzero()[:, 0]]
        bump = self.factor * d.encode(rows).amax(1, keepdim=True) * d.W_dec[latents]
        # Reconstructions are affine in what the decoder gives, so the difference of two is what the bump adds.
        _, undo = normalised(rows, d.normalize, d.scale)
        new = flat.clone()
        new[chosen] = (rows + (undo(bump) - undo(torch.zeros_like(bump)))).to(x.dtype)
        return new.view(x.shape)


@contextmanager
def steer_with_latent(
    model: Model,
    site: str,
    dictionary: Dictionary,
    latent: int | Sequence[int] | Tensor,
    factor: float = 1.2,
    *,
    mode: str = "every step",
) -> Iterator[Model]:
    """Amplify a latent at the last position while the block lasts.

    The factor multiplies the largest latent of the same token, so that factors of two dictionaries mean different
    things. With factor 0 nothing changes, because what the reconstruction misses is kept.

    Args:
        model: a causal language model.
        site: what the dictionary reads.
        dictionary: an autoencoder.
        latent: one, or one for each row of the batch.
        factor: the authors tried 0.4 to 2.
        mode: "every step": in `generate` each new token is steered while it is the last one, and keeps its steered
            keys and values, with a cache or without; "prefill": the prompt's last token alone.

    Raises:
        InputError: the dictionary does not fit the site or is no autoencoder; a latent out of range; a factor that is
            not finite; while running, activations that it made NaN or infinite.
        UnknownNameError: another mode.
        SiteError: the site does not exist.

    Source: Arad, Mueller, Belinkov, 2025, and their program (amplification hook).
    """
    if mode not in MODES:
        raise UnknownNameError(unknown("mode", mode, MODES))
    if not np.isfinite(factor):
        raise InputError(f"the factor must be finite, not {factor}")
    check_autoencoder(model, site, dictionary)
    edit = AmplifyLatent(dictionary, latent_numbers(dictionary, latent), float(factor), mode)
    with model.edit([(site, edit), *finite_output(model)]):
        yield model


def check_autoencoder(model: Model, site: str, dictionary: Dictionary) -> None:
    """Refuse a dictionary that cannot be steered with at a site, before anything runs.

    Raises:
        InputError: it is no autoencoder or of another width; the pattern names several sites, or one without positions.
        SiteError: the site does not exist.
    """
    dictionary.check_fitted()
    if not dictionary.autoencodes:
        raise InputError("an autoencoder is needed: a transcoder's latents do not write to the site they read")
    found = model.sites(site)
    if len(found) != 1:
        raise InputError(f"{site!r} means {len(found)} sites; one is needed")
    known = found[0]
    if known.dims and known.dims[:2] != ("batch", "pos"):
        raise InputError(f"{known.name} has dimensions {known.dims}; activations at tokens are needed")
    sizes = [known.sizes.get(dim) for dim in known.dims[2:]]
    if sizes and None not in sizes and math.prod(s for s in sizes if s is not None) != dictionary.d_in:
        wide = " x ".join(map(str, sizes))
        raise InputError(f"{known.name} of {model.name} is {wide} wide, and the dictionary takes {dictionary.d_in}")


def latent_numbers(dictionary: Dictionary, latents: Any) -> Tensor:
    """Numbers of latents (n,), all for None.

    Raises:
        InputError: they are not integers, or out of range.
    """
    dictionary.check_fitted()
    if latents is None:
        return torch.arange(dictionary.d_sae)
    given = torch.as_tensor(latents).detach().cpu()
    if given.is_floating_point() or given.dtype == torch.bool or not given.numel() or given.ndim > 1:
        raise InputError(f"latents are integers (n,), got {given.dtype} of shape {tuple(given.shape)}")
    given = given.long().reshape(-1)
    out = given[(given < 0) | (given >= dictionary.d_sae)]
    if len(out):
        raise InputError(f"latent {int(out[0])} is out of range: the dictionary has {dictionary.d_sae}")
    return given
