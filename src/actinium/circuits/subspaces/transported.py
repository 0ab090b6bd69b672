"""Put what an operator makes of an earlier layer in place of a later one, in the same forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.subspaces.transport import TransportOperator
from actinium.core.edits import Edit, Where, Zero
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.passes import Positions
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.result import Result

__all__ = ["transport_loss", "transport_pairs", "transported"]

SLUG = "activation-transport-operators"


class _Keep(Edit):
    """Changes nothing and keeps the activation for an edit further on in the same pass."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def change(self, x: Tensor, where: Where) -> Tensor:
        self.kept["x"] = x
        return x


class _Carry(Edit):
    """Puts T x + b of the activation that was kept, or only its part along one direction."""

    def __init__(self, kept: dict[str, Tensor], op: TransportOperator, feature: Tensor | None) -> None:
        super().__init__()
        self.kept, self.op, self.feature = kept, op, feature

    def change(self, x: Tensor, where: Where) -> Tensor:
        new = self.op.predict(self.kept.pop("x"))
        if self.feature is None:
            return new
        along = self.feature.to(x)
        return x + ((new - x) @ along)[..., None] * along


@contextmanager
def transported(
    model: Model,
    op: TransportOperator,
    from_site: str,
    to_site: str,
    *,
    positions: Positions | None = None,
    feature: Any = None,
) -> Iterator[Model]:
    """Within the block, every pass has T x + b at a later site, where x is what the same pass has at an earlier one.

    Args:
        model: the model.
        op: an operator fitted from activations of `from_site` to those of `to_site`, at the same position.
        from_site, to_site: names of two sites of the residual stream or of another width.
        positions: where it is replaced (0 first, -1 last); all by default. The first token is often worth leaving
            out: slice(1, None).
        feature: (d_y,), replace only the part along this direction.

    Yields:
        The model.

    Raises:
        InputError: the order or the widths do not fit, or the operator is not fitted.
        SiteError: a site does not exist.

    Source: Szablewski and Masiak, 2025, section 3.
    """
    places = []
    for name in (from_site, to_site):
        found = model.resolve(name)
        if len(found) != 1:
            raise InputError(f"{name!r} means {len(found)} sites; an operator goes from one to one")
        places.append(found[0][0])
    order = list(model.anatomy.sites)
    first, then = (order.index(s.name) if s.name in order else None for s in places)
    if first is None or then is None or not first < then:
        raise InputError(f"{places[0].name} must be a standard site before {places[1].name}")
    matrix = op._fitted()
    for place, size in zip(places, reversed(matrix.shape), strict=True):
        # The width of an embedding is not known before it runs; then it is checked.
        if place.dims[:2] != ("batch", "pos") or len(place.dims) != 3 or place.sizes.get(place.dims[-1], size) != size:
            raise InputError(
                f"the operator maps {matrix.shape[1]} to {matrix.shape[0]} dimensions; {place.name} has the dimensions "
                f"{place.dims} with {dict(place.sizes)}"
            )
    along = None
    if feature is not None:
        along = torch.as_tensor(feature).detach().double()
        if along.shape != matrix.shape[:1] or not float(along.norm()) > 0:
            raise InputError(
                f"a feature is a direction ({matrix.shape[0]},) that is not zero, got {tuple(along.shape)}"
            )
        along = along / along.norm()
    kept: dict[str, Tensor] = {}
    carry = _Carry(kept, op, along)
    with model.edit(
        [(from_site, _Keep(kept)), (to_site, carry if positions is None else carry.at(positions=positions))]
    ):
        yield model


def transport_loss(
    model: Model,
    op: TransportOperator,
    inputs: Any,
    from_site: str,
    to_site: str,
    *,
    positions: Positions | None = slice(1, None),
    others: Mapping[str, TransportOperator] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """Loss of the next token where the later site is what an operator makes of the earlier one.

    Args:
        model: a causal language model.
        op: the operator.
        inputs: texts or tokens that the operator was not fitted on.
        from_site, to_site: as in `transported`.
        positions: where it is replaced; by default all but the first token.
        others: further operators to compare with, by name.
        batch_size: texts run at a time, all by default.
        progress: show a progress bar.

    Returns:
        Result over "run": clean, operator, identity (the earlier activation itself, where the widths are equal),
        null (the operator's answer to zero), zero, and the others: `loss` in nats, `perplexity`, and `rise`, the
        loss above the clean one.

    Raises:
        InputError: as `transported`; the model does not predict the next token.

    Source: Szablewski and Masiak, 2025, section 3.
    """
    ready = model.prepare(inputs)
    if ready.tokens is None:
        raise InputError("the loss needs tokens")
    runs: dict[str, Any] = {"clean": None, "operator": op}
    matrix = op._fitted()
    if matrix.shape[0] == matrix.shape[1]:
        same = torch.eye(len(matrix))
        runs["identity"] = TransportOperator("identity").fit(same, same)
    runs |= {"null": op.null(), "zero": Zero(), **(others or {})}
    with transported(model, op, from_site, to_site):
        pass  # what cannot be done is refused before the first run
    ids, mask = ready.tokens.ids, ready.tokens.mask
    losses = {}
    for name in shown(list(runs), "running", progress):
        run = runs[name]
        if run is None:
            block: Any = nullcontext()
        elif isinstance(run, TransportOperator):
            block = transported(model, run, from_site, to_site, positions=positions)
        else:
            block = model.edit({to_site: run if positions is None else run.at(positions=positions)})
        with torch.no_grad(), block:
            losses[name] = _loss(model, ids, mask, batch_size or len(ids))
    values = np.array(list(losses.values()))
    data = {"rise": values - losses["clean"], "loss": values, "perplexity": np.exp(values)}
    hints = {"kind": "bar", "variables": ["rise"], "ylabel": "loss above the clean run (nats)"}
    found = xr.Dataset(
        {name: (("run",), v) for name, v in data.items()}, coords={"run": list(losses)}, attrs={"plot": hints}
    )
    record = provenance(
        model, {"ids": ids, "mask": mask}, operator=op.get_params(), matrix=matrix, from_site=from_site,
        to_site=to_site, positions=positions,
    )  # fmt: skip
    return Result(found, "transport_loss", SLUG, record)


def _loss(model: Model, ids: Tensor, mask: Tensor, batch_size: int) -> float:
    """Mean loss over all targets of all batches."""
    each = []
    for rows in torch.arange(len(ids)).split(batch_size):
        part = Tokens(ids[rows], mask[rows], torch.arange(len(rows)))
        each.append(model.loss(part, reduction="token").flatten())
    return float(torch.cat(each).double().nanmean())


def transport_pairs(source: Any, from_site: str, to_site: str, *, lag: int = 0, skip: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of two sites of the same tokens, from a recording or a store.

    Args:
        source: a `Recording` of whole texts, or a `Store`.
        from_site, to_site: names of the sites; heads and their entries are put side by side.
        lag: how many tokens X stands before Y in the same text.
        skip: first tokens of each text, or of each window of a store, that are left out in X and in Y (the first one
            often has an activation of its own kind).

    Returns:
        X (n, d_x) and Y (n, d_y).

    Raises:
        InputError: no rows are left, a recording of single positions, `lag` or `skip` below 0.
        SiteError: a site was not recorded.
    """
    if lag < 0 or skip < 0:
        raise InputError(f"lag and skip must be 0 or more, got {lag} and {skip}")
    if isinstance(source, Recording):
        x, y = (source[name] for name in (from_site, to_site))
        mask = source.mask
        if mask is None or x.shape[:2] != mask.shape or y.shape[:2] != mask.shape:
            raise InputError("a recording of whole texts is needed, with (batch, pos) activations at both sites")
        place = mask.int().cumsum(1) - 1
        keep = mask[:, lag:] & (place[:, lag:] >= skip + lag)
        first, second = x[:, : x.shape[1] - lag].flatten(2)[keep], y[:, lag:].flatten(2)[keep]
    else:
        first, second = _stored(source, from_site, to_site, lag, skip)
    if not len(first):
        raise InputError(f"no token has another one {lag} before it and {skip} to skip")
    return first, second


def _stored(store: Any, from_site: str, to_site: str, lag: int, skip: int) -> tuple[Tensor, Tensor]:
    sequence, slot, document = (store.column(name) for name in ("sequence", "slot", "document"))
    # A number for each place in each window, in which `lag` places earlier is `lag` less.
    place = sequence * (int(slot.max(initial=0)) + 1) + slot
    order = np.argsort(place)
    later = np.flatnonzero(slot >= skip + lag)
    found = np.searchsorted(place[order], place[later] - lag)
    earlier = order[np.minimum(found, len(order) - 1)]
    # Not every token need have been stored, and a window may hold several texts.
    there = (place[earlier] == place[later] - lag) & (document[earlier] == document[later])
    later, earlier = later[there], earlier[there]
    return store.rows(from_site, earlier).flatten(1), store.rows(to_site, later).flatten(1)
