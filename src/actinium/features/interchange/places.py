"""The names that other libraries give to places in a model, as sites of Actinium and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["hook_of", "site_of"]

PARTS: Mapping[str, str] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn.out",
    "hook_mlp_out": "mlp.out",
    "attn.hook_z": "attn.z",
    "mlp.hook_post": "mlp.post",
}
"""TransformerLens's names within a block, where both mean the same activation in every architecture."""
BACK = {ours: theirs for theirs, ours in PARTS.items()}


def site_of(hook: object) -> str | None:
    """The site that a TransformerLens hook names; None if there is no such site."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook) if isinstance(hook, str) else None
    return f"blocks.{found[1]}.{PARTS[found[2]]}" if found and found[2] in PARTS else None


def hook_of(site: object) -> str | None:
    """The TransformerLens hook of a site; None if it has none."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", site) if isinstance(site, str) else None
    return f"blocks.{found[1]}.{BACK[found[2]]}" if found and found[2] in BACK else None
