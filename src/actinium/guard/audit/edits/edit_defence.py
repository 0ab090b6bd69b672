"""Against edits: a probe that has seen them, and how far a linear boundary lies beyond what edits move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.edits.editable_text import Frame, chat_frame
from actinium.guard.audit.edits.guard_probe import HiddenStateGuardProbe

__all__ = ["edit_margins", "harden_probe"]

PAPER = "agile-audit"


def harden_probe(
    model: Model,
    probe: HiddenStateGuardProbe,
    texts: Sequence[str],
    labels: Any,
    edited: Sequence[str],
    *,
    groups: Sequence[Any] | None = None,
    edited_groups: Sequence[Any] | None = None,
    frame: Frame | None = None,
    batch_size: int | None = None,
) -> HiddenStateGuardProbe:
    """A new probe of the same settings, trained on the texts and on edited guarded ones, which are still guarded.

    Classes are made equal by cutting the larger one, so give as many more benign texts as there are edited ones.

    Args:
        model: the model.
        probe: whose settings are taken; it stays as it is.
        texts, labels: what it was trained on, without frames, 1 for guarded.
        edited: edited guarded texts, such as the last ones of `ActivationGuidedEditAudit.texts_["guided"]`.
        groups, edited_groups: groups that are not divided, as of `HiddenStateGuardProbe.fit`; an edited text belongs to
            the group of its original.
        frame: as of `ActivationGuidedEditAudit`.
        batch_size: texts in a pass.

    Raises:
        InputError: no edited texts, groups for one part only, or as of `fit`.
    """
    if isinstance(edited, str) or not len(edited):
        raise InputError("no edited texts given")
    if (groups is None) != (edited_groups is None):
        raise InputError("groups are given for the texts and the edited ones, or for neither")
    around = frame or chat_frame(model)
    everything = [*texts, *edited]
    wanted = [*torch.as_tensor(labels).tolist(), *[1] * len(edited)]
    together = None if groups is None or edited_groups is None else [*groups, *edited_groups]
    new = HiddenStateGuardProbe(**probe.get_params())
    return new.fit(new.states(model, [around(t) for t in everything], batch_size), wanted, together)


def edit_margins(
    model: Model,
    probe: HiddenStateGuardProbe,
    texts: Sequence[str],
    edited: Sequence[str],
    *,
    frame: Frame | None = None,
    batch_size: int | None = None,
) -> Result:
    """How far guarded states lie from a linear boundary, beside how far edits move them.

    Args:
        model: the model.
        probe: a linear one of one layer.
        texts: guarded texts. edited: what became of each.
        frame, batch_size: as of `harden_probe`.

    Returns:
        Result over text: `margin`, |w . a + b| / |w| with its sign (above 0 on the guarded side); `displacement`
        |a' - a|; `toward`, the part of it against w, which is what counts; `certified`, whether the displacement is
        smaller than the margin, so that no edit of this size flips it. Attribute `certified` is their share.

    Raises:
        InputError: numbers differ, or the probe is not linear.
    """
    if isinstance(texts, str) or len(texts) != len(edited) or not len(texts):
        raise InputError(f"{len(texts)} texts and {len(edited)} edited ones")
    around = frame or chat_frame(model)
    before, after = (probe.states(model, [around(t) for t in part], batch_size)[:, 0] for part in (texts, edited))
    margin = probe.margin(before).double().numpy()
    moved = (after - before).double()
    w = probe.networks_[0].weight.double()
    normal = (w[1] - w[0]) / (w[1] - w[0]).norm()
    far = moved.norm(dim=-1).numpy()
    certified = (far < margin).astype(np.float64)
    values: dict[str, Any] = {"margin": margin, "displacement": far, "toward": -(moved @ normal).numpy()}
    data = xr.Dataset({name: ("text", value) for name, value in (values | {"certified": certified}).items()})
    data.attrs = {"certified": float(certified.mean())}
    return Result(data, "edit_margins", PAPER, provenance(model, [list(texts), list(edited)], probe.seed))
