"""What a dictionary gives back, and how far it is from what it reconstructs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from actinium.features.dictionaries.code import Code

__all__ = ["DictionaryOutput", "error_of"]


@dataclass(frozen=True, eq=False)
class DictionaryOutput:
    """What a dictionary makes of activations.

    Attributes:
        xhat: the reconstruction, in the shape of what it reconstructs.
        latents: active latents, as a `Code` of the flattened rows or a dense tensor (rows, d_sae).
        shape: leading dimensions of the input.
    """

    xhat: Tensor
    latents: Code | Tensor
    shape: tuple[int, ...]

    @property
    def f(self) -> Tensor:
        """(..., d_sae) latents."""
        dense = self.latents.dense() if isinstance(self.latents, Code) else self.latents
        return dense.view(*self.shape, dense.shape[-1])

    @property
    def code(self) -> Code:
        """The active latents of the flattened rows."""
        return self.latents.active() if isinstance(self.latents, Code) else Code.from_dense(self.latents)


def error_of(xhat: Tensor, target: Tensor, how: str) -> Tensor:
    """Squared error of rows (n, d): "sse" sums over d, "mse" is the mean over all, "fvu" the share of the variance."""
    error = (xhat - target).square()
    if how == "fvu":
        return error.sum() / (target - target.mean(0)).square().sum().clamp_min(1e-12)
    return error.mean() if how == "mse" else error.sum() / len(target)
