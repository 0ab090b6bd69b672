"""Massive activations: a few entries of the residual stream thousands of times larger than the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Inputs, Tokens
from actinium.core.model import Model
from actinium.core.reducers import Context
from actinium.core.result import Result
from actinium.measure.streaming import Layers, as_result, choose, ready, stream

__all__ = ["MassiveActivationReport", "find_massive_activations", "is_massive", "massive_entries"]

ENTRY_COLUMNS = ["bos", "row", "layer", "position", "channel", "value", "token"]
AS_GIVEN, WITH_BOS, WITHOUT_BOS = "as given", "with BOS", "without BOS"
# Where the median is zero any value above the absolute limit is massive; so many of one sequence are listed.
LISTED = 1000


def is_massive(top: Any, median: Any, abs_thr: float = 100.0, rel_thr: float = 1000.0) -> Any:
    """Existence rule: top > abs_thr and top >= rel_thr * median.

    Args:
        top: largest magnitude of a layer, averaged over sequences (a number or an array).
        median: median magnitude of the layer, averaged over sequences.
        abs_thr, rel_thr: the two limits.

    Source: Owen et al., 2025; limits of Sun et al., 2024, section 2.
    """
    return (top > abs_thr) & (top >= rel_thr * median)


def massive_entries(h: Tensor, abs_thr: float = 100.0, rel_thr: float = 1000.0) -> tuple[Tensor, float]:
    """Entries of one sequence that are massive: |h| > abs_thr and |h| > rel_thr * median(|h|), strictly.

    Args:
        h: (pos, d) residual stream of one sequence, padding left out. The median runs over all its entries,
            in float32 at least.
        abs_thr, rel_thr: the two limits.

    Returns:
        indices (n, 2) of position and channel, and the median.

    Raises:
        InputError: not (pos, d), or empty.

    Source: Owen et al., 2025 (token analysis).
    """
    if h.ndim != 2 or h.numel() == 0:
        raise InputError(f"expected the residual stream (pos, d) of one sequence, got shape {tuple(h.shape)}")
    size = h.float().abs() if h.dtype != torch.float64 else h.abs()
    finite = size.isfinite()
    median = float(size[finite].median()) if bool(finite.any()) else float("nan")
    return ((size > abs_thr) & (size > rel_thr * median) & finite).nonzero(), median


class _Massive:
    """Per sequence: top magnitudes, median and massive entries."""

    wants_context: ClassVar[bool] = True

    def __init__(self, abs_thr: float, rel_thr: float) -> None:
        self.abs_thr, self.rel_thr = abs_thr, rel_thr
        self.tops: list[list[float]] = []
        self.medians: list[float] = []
        self.counts: list[int] = []
        self.entries: list[dict[str, Any]] = []
        self.best: tuple[float, int, int, int] = (0.0, -1, -1, -1)

    def update(self, values: Tensor, context: Context) -> None:
        if values.ndim != 3:
            raise InputError(f"{context.site}: massive activations are sought in (batch, pos, d), not {context.dims}")
        # The tokens of an encoder-decoder are the encoder's; they say nothing of the decoder's positions.
        known = context.mask is not None and context.mask.shape == values.shape[:2]
        for row, h in enumerate(values):
            real = context.mask[row].to(h.device) if known else slice(None)
            tokens = context.tokens[row].to(h.device)[real] if known and context.tokens is not None else None
            self._sequence(h[real].float(), int(context.rows[row]), tokens)

    def _sequence(self, h: Tensor, row: int, tokens: Tensor | None) -> None:
        found, median = massive_entries(h, self.abs_thr, self.rel_thr)
        size = torch.where(h.isfinite(), h.abs(), 0.0)
        top = size.flatten().topk(min(3, size.numel()))
        self.tops.append(top.values.tolist())
        self.medians.append(median)
        self.counts.append(len(found))
        position, channel = divmod(int(top.indices[0]), h.shape[1])
        if float(top.values[0]) > abs(self.best[0]):
            self.best = (float(h[position, channel]), row, position, channel)
        order = size[found[:, 0], found[:, 1]].argsort(descending=True)[:LISTED]
        for position, channel in found[order].tolist():
            token = -1 if tokens is None else int(tokens[position])
            value = float(h[position, channel])
            self.entries.append(
                {"row": row, "position": position, "channel": channel, "value": value, "token_id": token}
            )

    def result(self) -> _Massive:
        return self


@dataclass(frozen=True)
class MassiveActivationReport:
    """Where a model has massive activations.

    Attributes:
        result: by `bos` variant and layer: `top` and `top3` (largest and third largest magnitude, mean over
            sequences), `median`, `ratio` (top over median), `massive` (existence rule), `n_entries` (massive
            entries per sequence), `channel`, `position` and `value` of the largest entry.
        entries: one row per massive entry: bos, row, layer (index into the sites read), position, channel,
            value, token; at most 1000 per sequence and layer, the largest.
        sites: the sites read.
        inputs: the tokens of each variant.
        abs_thr, rel_thr: the limits.
    """

    result: Result
    entries: pd.DataFrame
    sites: list[str]
    inputs: dict[str, Inputs] = field(repr=False)
    abs_thr: float = 100.0
    rel_thr: float = 1000.0

    @property
    def variants(self) -> list[str]:
        """The variants measured; the first is the input as it was given."""
        return list(self.inputs)

    def _entries(self, bos: str | None) -> pd.DataFrame:
        bos = self.variants[0] if bos is None else bos
        if bos not in self.inputs:
            raise InputError(f"no variant {bos!r}; there are: {', '.join(self.variants)}")
        return self.entries[self.entries["bos"] == bos]

    def first_layer(self, bos: str | None = None) -> int | None:
        """Index (into `sites`) of the first layer with a massive entry, or None."""
        layers = self._entries(bos)["layer"]
        return int(layers.min()) if len(layers) else None

    def channels(self, bos: str | None = None) -> list[int]:
        """Channels of the massive entries in the first massive layer."""
        entries = self._entries(bos)
        return sorted(entries[entries["layer"] == self.first_layer(bos)]["channel"].unique().tolist())

    def tokens(self, bos: str | None = None) -> pd.DataFrame:
        """Tokens that carry massive entries in the first massive layer, the commonest first.

        Columns: token, start (whether it is the first of its sequence), sequences, entries, mean and std of the
        magnitudes.
        """
        entries = self._entries(bos)
        entries = entries[entries["layer"] == self.first_layer(bos)]
        entries = entries.assign(start=entries["position"] == 0, size=entries["value"].abs())
        found = entries.groupby(["token", "start"], as_index=False).agg(
            sequences=("row", "nunique"), entries=("size", "size"), mean=("size", "mean"), std=("size", "std")
        )
        return found.sort_values(["sequences", "mean"], ascending=False, ignore_index=True)

    def exists(self, bos: str | None = None) -> bool:
        """Whether any layer is massive by the existence rule (means over sequences)."""
        return bool(self.result["massive"].sel(bos=self.variants[0] if bos is None else bos).any())

    def __repr__(self) -> str:
        lines = []
        for bos in self.variants:
            first = self.first_layer(bos)
            found = f"from {self.sites[first]}, channels {self.channels(bos)}" if first is not None else "none"
            lines.append(f"{bos}: {found}")
        return f"MassiveActivationReport({'; '.join(lines)})"


def bos_variants(model: Model, inputs: Inputs) -> dict[str, Inputs]:
    """The inputs with and without a beginning-of-sequence token; as given, where the model has none.

    A row is given the token or freed of it; nothing else changes, except that a row as long as the context
    loses its last token when the token is put before it.
    """
    bos = getattr(model.tokenizer, "bos_token_id", None)
    tokens = inputs.tokens
    if bos is None or tokens is None or model.kind != "causal-lm":
        return {AS_GIVEN: inputs}
    rows = [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]
    bare = [row[1:] if row[0] == bos else row for row in rows]
    if not all(bare):
        return {AS_GIVEN: inputs}
    limit = model.context
    given = {WITH_BOS: [[bos, *row][:limit] for row in bare], WITHOUT_BOS: bare}
    made = {name: model.prepare(_tokens(some, tokens.rows)) for name, some in given.items()}
    first = WITH_BOS if sum(row[0] == bos for row in rows) * 2 > len(rows) else WITHOUT_BOS
    return {first: made.pop(first), **made}


def _tokens(rows: list[list[int]], texts: Tensor) -> Tokens:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
    return Tokens(ids, mask, texts)


def find_massive_activations(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    abs_thr: float = 100.0,
    rel_thr: float = 1000.0,
    batch_size: int | None = 8,
    progress: bool = False,
) -> MassiveActivationReport:
    """Look for massive activations layer by layer, with and without a beginning-of-sequence token.

    An entry is massive if its magnitude exceeds `abs_thr` and `rel_thr` times the median magnitude of its
    layer over the whole sequence. A layer is massive if the means over sequences of the largest and of the
    median magnitude satisfy the same rule (with >= for the ratio).

    Args:
        model: the model.
        inputs: texts, tokens or images; each row is one sequence.
        at: sites (batch, pos, d); the residual stream after each block by default.
        abs_thr, rel_thr: the two limits.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        the report; where the tokenizer has no BOS token the only variant is "as given".

    Raises:
        InputError, SiteError: nothing to read, or a site without positions.

    Source: Owen et al., 2025, A Refined Analysis of Massive Activations in LLMs; Sun et al., 2024, section 2.
    """
    if abs_thr < 0 or rel_thr < 0:
        raise InputError(f"the limits must not be negative, got {abs_thr} and {rel_thr}")
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    variants = bos_variants(model, inputs)
    reducer = _Massive(abs_thr, rel_thr)
    found = {bos: stream(model, part, layers, reducer, batch_size, progress) for bos, part in variants.items()}
    result = _as_result(model, inputs, layers, found, abs_thr, rel_thr)
    rows = [
        {"bos": bos, "layer": i, **entry, "token": _name(model, entry["token_id"])}
        for bos, sites in found.items()
        for i, site in enumerate(sites)
        for entry in site.entries
    ]
    entries = pd.DataFrame(rows, columns=ENTRY_COLUMNS)
    return MassiveActivationReport(result, entries, layers.names, variants, abs_thr, rel_thr)


def _as_result(
    model: Model,
    inputs: Inputs,
    layers: Layers,
    found: dict[str, list[_Massive]],
    abs_thr: float,
    rel_thr: float,
) -> Result:
    def table(read: Any) -> np.ndarray:
        return np.array([[read(site) for site in sites] for sites in found.values()])

    top, median = table(lambda s: np.mean([t[0] for t in s.tops])), table(lambda s: np.mean(s.medians))
    two = ("bos", layers.dim)
    ratio = np.divide(top, median, out=np.full_like(top, np.inf), where=median != 0)
    variables: dict[str, Any] = {
        "ratio": (two, ratio),
        "top": (two, top),
        "top3": (two, table(lambda s: np.mean([t[-1] for t in s.tops]))),
        "median": (two, median),
        "massive": (two, is_massive(top, median, abs_thr, rel_thr)),
        "n_entries": (two, table(lambda s: np.mean(s.counts))),
        "value": (two, table(lambda s: s.best[0])),
        "position": (two, table(lambda s: s.best[2])),
        "channel": (two, table(lambda s: s.best[3])),
    }
    coords = {"bos": list(found)} | layers.coords
    return as_result(
        model,
        inputs,
        "find_massive_activations",
        variables,
        coords,
        paper="refined-massive-activations",
        at=layers.names,
        abs_thr=abs_thr,
        rel_thr=rel_thr,
    )


def _name(model: Model, token: int) -> str:
    if token < 0:
        return ""
    return model.to_str_tokens([token])[0] if model.tokenizer is not None else str(token)
