"""An edit at work: at one point, in the layout of its site, for the pass in flight."""

from __future__ import annotations

from torch import Tensor

from actinium.core import taps
from actinium.core.collector import dims_of
from actinium.core.edits import Edit, Where
from actinium.core.sites import Site
from actinium.core.taps import Program, Tap

__all__ = ["EditAction"]


class EditAction:
    """One edit at one tap, with the call of the module it is meant for (None: every call)."""

    def __init__(self, edit: Edit, site: Site, tap: Tap, call: int | None, program: Program) -> None:
        self.edit, self.site, self.tap, self.call, self.program = edit, site, tap, call, program

    def __call__(self, raw: Tensor) -> Tensor | None:
        """The new tensor in the module's layout, or None where nothing changes."""
        if self.call is not None and self.program.calls.get(self.tap.key, 0) != self.call:
            return None
        now = taps.current_pass(self.tap.root)
        value = self.tap.view(raw, now.batch)
        site, start = self.site, now.start
        if not site.dims:
            site = Site(site.name, dims_of(site, value), {}, None, site.part)
            self.edit.check(site)
        if self.tap.part in ("k", "v"):
            # The attention call sees keys of earlier passes too: the last ones, or with a static cache all columns.
            start = max(0, now.columns - value.shape[1]) if "key_pos" not in site.dims else 0
        new = self.edit(value, Where(site, now, start))
        if new is value:
            return None
        # Where the model goes on in place, it must not write into a tensor that the edit's owner still holds.
        in_place = self.tap.copies or site.name.startswith("module")
        return self.tap.unview(new.clone() if in_place else new, raw)
