"""Activations as sums of few concepts: non-negative factorisation, its codes and their derivative, and baselines."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.rows import as_rows
from actinium.features.decompositions import PCA, KMeans
from actinium.features.semi_nmf import SemiNMF

__all__ = ["FACTORISATIONS", "ConceptBank", "nonnegative_codes"]

FACTORISATIONS = ("nmf", "semi-nmf", "kmeans", "pca")


def _codes(rows: NDArray[np.float64], bank: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, r) least squares with non-negative codes by the active set of Lawson and Hanson, after a QR of the bank."""
    from scipy.optimize import nnls

    # |W' u - a|^2 = |R u - Q' a|^2 + what no code can reach: r equations in place of p.
    q, triangle = np.linalg.qr(bank.T)
    short = rows @ q
    limit = 10 * len(bank) + 100
    return np.stack([nnls(triangle, b, maxiter=limit)[0] for b in short])


class _NonnegativeCodes(torch.autograd.Function):
    """Codes with the derivative of their active set."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bank: Tensor) -> Tensor:
        found = _codes(rows.detach().double().cpu().numpy(), bank.detach().double().cpu().numpy())
        codes = torch.from_numpy(found)
        ctx.save_for_backward(codes, bank)
        ctx.kind = rows.dtype, rows.device
        return codes.to(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        codes, bank = ctx.saved_tensors
        w = bank.detach().double().cpu()
        active = (codes > 0).double()
        # Rows and columns outside the active set are those of the identity, so that one batched solve serves all sets.
        gram = active[:, :, None] * (w @ w.T) * active[:, None, :] + torch.diag_embed(1 - active)
        inner = active * grads[0].double().cpu()
        back = (torch.linalg.solve(gram, inner[..., None])[..., 0] * active) @ w
        return back.to(device=ctx.kind[1], dtype=ctx.kind[0]), None


def nonnegative_codes(activations: Tensor, bank: Tensor) -> Tensor:
    """U(a) = argmin over u >= 0 of |a - u W|^2, exact and differentiable in the activations.

    Where the set S of positive codes does not change, dU_S/da = (W_S W_S^T)^-1 W_S and the other codes stay 0: implicit
    differentiation of the optimality conditions.

    Args:
        activations: (..., p).
        bank: W (r, p).

    Returns:
        (..., r), in the type of the activations.

    Raises:
        InputError: widths differ, or values are not finite.

    Source: Fel et al., 2023, section 3.3 (implicit differentiation); the active set in closed form is ours.
    """
    if bank.ndim != 2 or activations.shape[-1:] != bank.shape[1:]:
        raise InputError(f"a bank (r, p) is needed for {tuple(activations.shape)}, got {tuple(bank.shape)}")
    if not bool(torch.isfinite(activations.detach()).all()) or not bool(torch.isfinite(bank.detach()).all()):
        raise InputError("activations or bank hold NaN or infinite values")
    rows = activations.reshape(-1, bank.shape[1])
    codes: Tensor = _NonnegativeCodes.apply(rows, bank)  # type: ignore[no-untyped-call]
    return codes.reshape(*activations.shape[:-1], len(bank))


def _nmf(a: NDArray[np.float64], r: int, max_iter: int, seed: int) -> Tensor:
    """W (r, p) by scikit-learn's coordinate descent from the start that the authors' program has."""
    try:
        from sklearn.decomposition import NMF
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    factor = NMF(r, init="nndsvda", max_iter=max_iter, random_state=seed)
    return torch.from_numpy(np.array(factor.fit(a).components_, dtype=np.float64))


class ConceptBank(SavedEstimator):
    """A few vectors whose combinations give back activations: A = offset + U W, nearly.

    Args:
        method: "nmf" (U and W are not negative), "semi-nmf" (U is not negative; for signed activations), "kmeans" (one
            concept for each row) or "pca" (signed codes about the mean).
        n_concepts: r.
        max_iter: of the factorisation.
        seed: of the first guess.

    Attributes:
        bank_: W (r, p) float64.
        offset_: (p,); 0 but for "pca".
        error_: |A - offset - U W| / |A| of the rows it was fitted to (Frobenius).

    Source: Fel et al., 2023, equation 1; Ding et al., 2010 (semi-NMF).
    """

    fitted = "bank_"
    saved_as = "concept bank"

    def __init__(self, method: str = "nmf", n_concepts: int = 10, *, max_iter: int = 200, seed: int = 0) -> None:
        self.method, self.n_concepts, self.max_iter, self.seed = method, n_concepts, max_iter, seed

    def fit(self, activations: Any) -> Self:
        """Find the concepts of rows (n, p).

        Raises:
            InputError: values are not finite, negative for "nmf", all 0, or fewer rows or entries than concepts.
            UnknownNameError: there is no such method.
            MissingExtraError: scikit-learn is needed and not installed.
        """
        a = self._checked(activations)
        self.offset_ = torch.zeros(a.shape[1], dtype=torch.float64)
        if self.method == "nmf":
            self.bank_ = _nmf(a, self.n_concepts, self.max_iter, self.seed)
        elif self.method == "semi-nmf":
            semi = SemiNMF(self.n_concepts, sparsity=None, max_iter=self.max_iter, seed=self.seed)
            self.bank_ = semi.fit(torch.from_numpy(a)).components_
        else:
            kmeans = KMeans(self.n_concepts, max_iter=self.max_iter, seed=self.seed)
            one = (kmeans if self.method == "kmeans" else PCA(self.n_concepts)).fit(a)
            self.bank_, self.offset_ = one.components_, one.mean_
        rest = torch.from_numpy(a) - self.inverse_transform(self.transform(a))
        self.error_ = float(rest.norm() / np.linalg.norm(a))
        return self

    def _checked(self, activations: Any) -> NDArray[np.float64]:
        if self.method not in FACTORISATIONS:
            raise UnknownNameError(unknown("factorisation", str(self.method), FACTORISATIONS))
        a: NDArray[np.float64] = as_rows(activations, flat=False, dtype=torch.float64).cpu().numpy()
        if self.max_iter < 1 or not 1 <= self.n_concepts <= min(a.shape):
            raise InputError(
                f"n_concepts lies between 1 and {min(a.shape)} for activations {a.shape}, and max_iter is at least 1; "
                f"got {self.n_concepts} and {self.max_iter}"
            )
        if self.method == "nmf" and a.min() < 0:
            raise InputError(
                f"activations are negative ({a.min():.3g} at least): NMF needs a site behind a ReLU. For a signed site "
                'choose method="semi-nmf"; nothing is clipped'
            )
        if not a.any():
            raise InputError("all activations are 0")
        return a

    def transform(self, activations: Any) -> Tensor:
        """Codes (..., r) of activations (..., p), float64 unless they are a float tensor; differentiable but "kmeans".

        Raises:
            InputError: `fit` was not called, the width differs, or activations are negative for "nmf".
        """
        self.check_fitted()
        given = torch.as_tensor(activations)
        given = given if given.is_floating_point() else given.double()
        if given.shape[-1:] != self.bank_.shape[1:]:
            raise InputError(f"this bank has width {self.bank_.shape[1]}, got activations {tuple(given.shape)}")
        if self.method == "nmf" and bool((given.detach() < 0).any()):
            raise InputError("activations are negative, which those of the fit were not")
        bank = self.bank_.to(given)
        if self.method == "pca":
            return (given - self.offset_.to(given)) @ bank.T
        if self.method == "kmeans":
            nearest = torch.cdist(given.reshape(-1, len(self.offset_)), bank).argmin(1)
            codes = torch.nn.functional.one_hot(nearest, len(bank)).to(given)
            return codes.reshape(*given.shape[:-1], len(bank))
        return nonnegative_codes(given, self.bank_)

    def inverse_transform(self, codes: Tensor) -> Tensor:
        """Activations (..., p) of codes (..., r).

        Raises:
            InputError: `fit` was not called, or the number of concepts differs.
        """
        self.check_fitted()
        if codes.shape[-1:] != self.bank_.shape[:1]:
            raise InputError(f"this bank has {len(self.bank_)} concepts, got codes {tuple(codes.shape)}")
        return codes @ self.bank_.to(codes) + self.offset_.to(codes)

    def _state(self) -> State:
        return {"bank": self.bank_, "offset": self.offset_}, {"error": self.error_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.bank_, self.offset_, self.error_ = tensors["bank"], tensors["offset"], float(about["error"])
