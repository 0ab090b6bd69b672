"""A watch at the end of a model: activations that edits made NaN or infinite are refused."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["Finite", "finite_output"]


class Finite(Edit):
    """Nothing is changed; NaN or infinite values are refused."""

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Look at the values."""
        # The sum of finite values in float32 is finite, and is read back as one number.
        if not bool(torch.isfinite(x.detach().float().sum())):
            raise InputError(
                f"steering made activations NaN or infinite at {where.site.name}: lower the strength, or compute in"
                " float32"
            )
        return x


def finite_output(model: Model) -> list[tuple[str, Edit]]:
    """The edit that watches the last norm, or the last block of a model without one; none where neither is known."""
    if model.has("final_norm"):
        return [("final_norm", Finite())]
    ends = [site.name for site in model.sites() if site.part == "resid_post"]
    return [(ends[-1], Finite())] if ends else []
