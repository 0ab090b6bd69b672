"""Corrupted prompts: tokens replaced by tokens (STR), or noise on the embeddings of the key tokens (GN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.inputs import Inputs, Tokens, parameters_of
from actinium.core.model import Model

__all__ = ["GaussianNoise", "corrupt_gaussian", "corrupt_tokens", "embedded", "with_embeddings"]

Piece = int | Sequence[int]


@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Noise on the embeddings of the key tokens of the clean prompts, in place of corrupt prompts.

    Args:
        k: standard deviation of the noise in units of `sigma`, above 0.
        sigma: "auto" (standard deviation of all embedding entries of the task's clean tokens), or a number.
        draws: independent draws of the noise; metrics are averaged over them.
        tokens: (row, pos) bool, the key tokens; by default those in which clean and corrupt prompts differ.

    Raises:
        InputError: `k` or `sigma` is not above 0, or there is no draw.

    Source: Meng et al., 2022 (causal tracing); Zhang and Nanda, 2023, section 2.
    """

    k: float = 3.0
    sigma: float | str = "auto"
    draws: int = 10
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        _check_scale(self.k, self.sigma)
        if self.draws < 1:
            raise InputError(f"draws must be at least 1, not {self.draws}")


def _check_scale(k: float, sigma: float | str) -> None:
    if not k > 0:
        raise InputError(f"noise of k = {k} leaves the run as it is, so effects are undefined; k must be above 0")
    if sigma != "auto" and (isinstance(sigma, str) or not sigma > 0):
        raise InputError(f"sigma must be 'auto' or a number above 0, not {sigma!r}")


def corrupt_gaussian(
    embeds: Tensor,
    token_mask: Tensor,
    sigma: float | str = "auto",
    k: float = 3.0,
    *,
    generator: torch.Generator | int,
    real: Tensor | None = None,
) -> Tensor:
    """Add eps ~ N(0, (k * sigma)^2 I) to the embeddings of the key tokens.

    Args:
        embeds: (batch, pos, d_model) token embeddings.
        token_mask: (batch, pos) bool, the key tokens.
        sigma: "auto" (standard deviation over all entries of all embeddings given), or a number.
        k: standard deviation of the noise in units of sigma.
        generator: a seed, or a generator on the CPU.
        real: (batch, pos) bool, False on padding, which "auto" leaves out.

    Returns:
        (batch, pos, d_model); other tokens keep their exact embedding.

    Raises:
        InputError: shapes do not fit, a row has no key token, `k` or `sigma` is not above 0, or all embeddings
            are one number.

    Source: Meng et al., 2022; Zhang and Nanda, 2023, section 2.
    """
    _check_scale(k, sigma)
    if embeds.ndim != 3 or token_mask.shape != embeds.shape[:2] or token_mask.dtype != torch.bool:
        raise InputError(
            f"expected embeddings (batch, pos, d_model) and a bool mask (batch, pos), got {tuple(embeds.shape)} "
            f"and {tuple(token_mask.shape)} {token_mask.dtype}"
        )
    if not bool(token_mask.any(1).all()):
        row = int((~token_mask.any(1)).nonzero()[0])
        raise InputError(f"row {row} has no key token, so there is nothing to add noise to")
    if isinstance(sigma, str):
        data = embeds if real is None else embeds[real.to(embeds.device)]
        sigma = float(data.detach().float().std(correction=0))
        if not sigma > 0:
            raise InputError("the embeddings are all one number: sigma is 0")
    random = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    noise = torch.randn(embeds.shape, generator=random).to(embeds) * (k * sigma)
    return torch.where(token_mask.to(embeds.device)[..., None], embeds + noise, embeds)


def corrupt_tokens(tokens: Tensor, mapping: Mapping[Any, Any]) -> Tensor:
    """Replace tokens, or runs of tokens, by others of the same number (symmetric token replacement).

    All replacements happen at once, so a mapping may exchange two tokens; longer runs go first.

    Args:
        tokens: (batch, pos) or (pos,) int64.
        mapping: {token id or ids: token id or ids}.

    Returns:
        As `tokens`.

    Raises:
        InputError: nothing is mapped, lengths differ, or a row holds none of the tokens.

    Source: Zhang and Nanda, 2023, section 2.
    """
    pairs = [(_ids(old), _ids(new)) for old, new in mapping.items()]
    if not pairs:
        raise InputError("the mapping is empty; pass {token id or ids: token id or ids}")
    for old, new in pairs:
        if len(old) != len(new) or not old:
            raise InputError(f"a replacement must keep the length: {old} has {len(old)} tokens, {new} has {len(new)}")
    pairs.sort(key=lambda pair: -len(pair[0]))
    rows = tokens[None] if tokens.ndim == 1 else tokens
    out = rows.clone()
    for i, row in enumerate(rows.tolist()):
        at = hits = 0
        while at < len(row):
            found = next(((o, n) for o, n in pairs if tuple(row[at : at + len(o)]) == o), None)
            if found is None:
                at += 1
                continue
            out[i, at : at + len(found[0])] = torch.tensor(found[1])
            at, hits = at + len(found[0]), hits + (found[0] != found[1])
        if not hits:
            raise InputError(f"row {i} holds none of the tokens to be replaced, so it would stay as it is")
    return out.view(tokens.shape)


def _ids(piece: Piece) -> tuple[int, ...]:
    return (piece,) if isinstance(piece, int) else tuple(int(i) for i in piece)


def embedded(model: Model, ids: Tensor) -> Tensor:
    """Token embeddings (batch, pos, d_model), as the module's forward takes them in place of ids.

    Raises:
        InputError: the module does not take embeddings.
    """
    get = getattr(model.module, "get_input_embeddings", None)
    layer = get() if get is not None else None
    if not isinstance(layer, nn.Module) or "inputs_embeds" not in parameters_of(model.module):
        raise InputError(f"{model.name} takes no embeddings in place of tokens, so it cannot be given noisy ones")
    with torch.no_grad():
        out: Tensor = layer(ids.to(model.device))
    return out


def with_embeddings(model: Model, tokens: Tokens, embeds: Tensor) -> Inputs:
    """Inputs that run `embeds` where `tokens` stand."""
    ready = model.prepare(tokens)
    arguments = {k: v for k, v in ready.arguments.items() if k != "input_ids"}
    return Inputs({**arguments, "inputs_embeds": embeds}, ready.size, (), ready.tokens)
