"""Products of a dictionary that touch only its active latents, forward and backward.

With k of m latents active, what follows the encoder needs k / m of the dense multiplications, and so do the gradients
of both weights. On a processor sums over active rows run through `embedding_bag`, and the products that gradients of
activations need through `sampled_addmm`; on a GPU both through the kernels of `triton_sparse`, where triton runs.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from actinium.features.dictionaries.code import Code, Places

__all__ = ["decode", "encode_entries"]

CHUNK = 2**14
"""Entries whose products are taken at a time where there is no sparse kernel for them."""


class _Decode(torch.autograd.Function):
    """sum_i f_i W[i] over the active latents of each row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.places = places
        return weighted_rows(weight, places.latents, places.offsets, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        for_values = products(grad, weight, ctx.places) if ctx.needs_input_grad[0] else None
        for_weight = transposed_rows(grad, values, ctx.places) if ctx.needs_input_grad[1] else None
        return for_values, for_weight, None


class _Entries(torch.autograd.Function):
    """x . W[:, i] + b_i at some places, whose values are known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, known: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places = places
        return known.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        places: Places = ctx.places
        (grad,) = grads
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = weighted_rows(weight.T, places.latents, places.offsets, grad)
        if ctx.needs_input_grad[1]:
            for_weight = transposed_rows(x, grad, places).T
        if ctx.needs_input_grad[2]:
            for_bias = torch.zeros(places.d_sae, dtype=grad.dtype, device=grad.device)
            for_bias.index_add_(0, places.latents, grad)
        return for_x, for_weight, for_bias, None, None


class _Shift(torch.autograd.Function):
    """x - b, whose gradient for b is taken from that of the products: sum over latents, not over rows and width."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, weight: Tensor, known: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.places = places
        return known.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        (grad,) = grads
        sums = torch.zeros(ctx.places.d_sae, dtype=grad.dtype, device=grad.device)
        sums.index_add_(0, ctx.places.latents, grad)
        return -(weight @ sums), None, grad, None


def decode(code: Code, weight: Tensor) -> Tensor:
    """(n, d): for each row the sum of its active latents' rows of `weight` (d_sae, d), each times its value."""
    found: Tensor = _Decode.apply(code.values, weight, code.places)  # type: ignore[no-untyped-call]
    return found


def encode_entries(x: Tensor, weight: Tensor, bias: Tensor, known: Code, shift: Tensor | None = None) -> Code:
    """Pre-activations (x - shift) W + b at the places of a code, with gradients for all of these.

    Args:
        x: (n, d), the shift subtracted already and its graph cut.
        weight, bias: of the encoder, (d, d_sae) and (d_sae,); columns of the weight should be contiguous.
        known: the values at these places.
        shift: (d,) what was subtracted.
    """
    found: Tensor = _Entries.apply(x, weight, bias, known.values, known.places)  # type: ignore[no-untyped-call]
    if shift is not None:
        found = _Shift.apply(shift, weight.detach(), found, known.places)  # type: ignore[no-untyped-call]
    return known.with_values(found)


def weighted_rows(weight: Tensor, rows: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """(n, d): for each group of entries the sum of value times a row of `weight` (m, d)."""
    if not len(rows):
        return weight.new_zeros(len(offsets) - 1, weight.shape[1])
    kernels = _kernels(weight.device)
    if kernels is not None:
        summed: Tensor = kernels.weighted_rows(weight, rows, offsets, values)
        return summed
    return functional.embedding_bag(
        rows, weight, offsets, mode="sum", per_sample_weights=values.to(weight.dtype), include_last_offset=True
    )


def transposed_rows(rows: Tensor, values: Tensor, places: Places) -> Tensor:
    """(d_sae, d): for each latent the sum over its entries of value times the entry's row of `rows` (n, d)."""
    order, ends = places.by_latent
    return weighted_rows(rows, places.rows[order], ends, values[order])


def products(rows: Tensor, weight: Tensor, places: Places) -> Tensor:
    """(entries,): product of each entry's row of `rows` (n, d) with its latent's row of `weight` (d_sae, d)."""
    kernels = _kernels(rows.device)
    if kernels is not None and len(places.latents):
        found: Tensor = kernels.products(rows, weight, places.rows, places.latents)
        return found
    sampled = rows.device.type == "cpu" and rows.dtype == weight.dtype and rows.dtype in (torch.float32, torch.float64)
    if sampled and len(places.latents):
        # The kernel goes through the entries one by one, so their order within a row does not matter.
        zeros = torch.zeros(len(places.latents), dtype=rows.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            size = (len(places), places.d_sae)
            pattern = torch.sparse_csr_tensor(places.offsets, places.latents, zeros, size, check_invariants=False)
            return torch.sparse.sampled_addmm(pattern, rows, weight.T, beta=0.0).values()
    out = torch.empty(len(places.latents), dtype=rows.dtype, device=rows.device)
    for a in range(0, len(places.latents), CHUNK):
        piece = slice(a, a + CHUNK)
        out[piece] = (rows[places.rows[piece]] * weight[places.latents[piece]].to(rows.dtype)).sum(-1)
    return out


def _kernels(device: torch.device) -> ModuleType | None:
    """Triton kernels for a device, or None where there are none: on a processor, or where triton does not run."""
    if device.type != "cuda":
        return None
    from actinium.features.dictionaries import triton_sparse

    return triton_sparse if triton_sparse.runs_on(device) else None
