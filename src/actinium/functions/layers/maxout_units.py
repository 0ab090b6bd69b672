"""Maxout: the largest of several affine maps."""

from __future__ import annotations

from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["Maxout"]


class Maxout(nn.Module):
    """max_k (W_k x + b_k), which takes the place of a linear layer and its activation.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        pieces: number of affine maps.

    Raises:
        InputError: a size is less than one, or the input has another last dimension.

    Source: Goodfellow et al., 2013, "Maxout Networks", arXiv 1302.4389, section 3.
    """

    def __init__(self, in_features: int, out_features: int, pieces: int = 2) -> None:
        super().__init__()
        if min(in_features, out_features, pieces) < 1:
            raise InputError(
                f"Maxout takes sizes of one or more, not {in_features} inputs, {out_features} outputs, {pieces} pieces"
            )
        self.in_features, self.out_features, self.pieces = in_features, out_features, pieces
        self.linear = nn.Linear(in_features, out_features * pieces)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if x.ndim == 0 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise InputError(
                f"this Maxout takes a floating-point tensor (..., {self.in_features}), not {x.dtype} of shape "
                f"{tuple(x.shape)}"
            )
        return self.linear(x).unflatten(-1, (self.out_features, self.pieces)).amax(-1)
