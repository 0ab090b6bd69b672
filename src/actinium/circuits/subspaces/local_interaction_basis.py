"""The local interaction basis: directions that the rest of the network uses, with sparse steps from layer to layer."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from actinium.circuits.subspaces.sections import Section, sections_of, with_constant
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown

__all__ = ["LocalInteractionBasis"]

METHODS = ("jacobian", "pca", "neuron")
ENDS = ("pca", "neuron")


class LocalInteractionBasis(SavedEstimator):
    """A basis of the activations at every cut of a network, found from the last cut backwards.

    At each cut the activations, a constant appended, are whitened; the directions are then those along which the
    Jacobian of the next cut's features is largest. Directions that nothing later uses are dropped.

    Args:
        truncation: eigenvalues below it are dropped, of the Gram matrix and of the Jacobian's.
        center: keep the constant apart, so that features describe deviations from the mean.
        method: "jacobian" (the local interaction basis), "pca" or "neuron" (for comparison).
        last: basis of the last cut, "pca" or "neuron".
        sources: random signs in place of the sum over all outputs and positions; None for the exact sum.
        seed: of the signs.

    Attributes:
        C_: at each cut (d + 1, k): features are `C.T @ [f, 1]`.
        C_pinv_: at each cut (k, d + 1): `[f, 1]` of the features.
        Lambda_: at each cut (k,), mean square of each feature; the constant first where centred, then largest first.
        n_cuts_: number of cuts, one more than sections.

    Source: Bushnaq et al., 2024, sections 3.2 and 3.3.
    """

    fitted = "C_"
    saved_as = "basis"

    def __init__(
        self,
        truncation: float = 1e-5,
        center: bool = True,
        method: str = "jacobian",
        last: str = "pca",
        sources: int | None = None,
        seed: int = 0,
    ) -> None:
        self.truncation, self.center, self.method = truncation, center, method
        self.last, self.sources, self.seed = last, sources, seed

    def fit(self, network: Any, x: Tensor, progress: bool = False) -> Self:
        """Find the basis of every cut.

        Args:
            network: an `nn.Sequential`, a list of modules and functions, or sections of a transformer
                (`block_sections`); residual streams beside a branch are passed on concatenated.
            x: activations (n, d) or (n, pos, d) at the first cut.
            progress: show a progress bar.

        Raises:
            InputError: the network is not a sequence of sections; `x` is not finite; without centring a bias cannot be
                folded; a setting is out of range.
            UnknownNameError: there is no such method.
        """
        sections = self._checked(network, x)
        cuts = [x.detach()]
        with torch.no_grad():
            for section in sections:
                cuts.append(section(cuts[-1]))
        _warn_few(cuts)
        self.n_cuts_ = len(cuts)
        grams = [_gram(f) for f in cuts]
        found = [_End(grams[-1], self).basis(self.last)]
        steps = list(range(len(sections) - 1, -1, -1))
        for i in shown(steps, "basis", progress):
            if self.method != "jacobian":
                found.insert(0, _End(grams[i], self).basis(self.method))
                continue
            squares = self._squares(sections[i], cuts[i], found[0][0])
            found.insert(0, _End(grams[i], self).interacting(squares))
        self.C_ = [c for c, _, _ in found]
        self.C_pinv_ = [c for _, c, _ in found]
        self.Lambda_ = [size for _, _, size in found]
        return self

    def _checked(self, network: Any, x: Tensor) -> list[Section]:
        if self.method not in METHODS:
            raise UnknownNameError(unknown("method", self.method, METHODS))
        if self.last not in ENDS:
            raise UnknownNameError(unknown("basis of the last cut", self.last, ENDS))
        if self.truncation < 0 or (self.sources is not None and self.sources < 1):
            raise InputError(f"truncation cannot be negative and sources must be at least 1: {self.get_params()}")
        sections = sections_of(network)
        if x.ndim not in (2, 3) or not len(x) or not bool(torch.isfinite(x).all()):
            raise InputError(f"expected finite activations (n, d) or (n, pos, d), not {tuple(x.shape)}")
        if not self.center and not all(section.folds for section in sections):
            raise InputError(
                "without centring every bias must be folded into the constant, and a section here has one that is not "
                "known; use center=True"
            )
        return sections

    def _squares(self, section: Section, f: Tensor, after: Tensor) -> Tensor:
        """M' (d + 1, d + 1) float64: mean over samples and input positions of the sum of squared derivatives."""
        leaf = with_constant(f).detach().requires_grad_()
        with torch.enable_grad():
            out = features(section, leaf, after.to(f))
        total = torch.zeros(leaf.shape[-1], leaf.shape[-1], dtype=torch.float64)
        positions = f.shape[1] if f.ndim == 3 else 1
        for cotangent, weight in self._cotangents(out):
            (g,) = torch.autograd.grad(out, leaf, cotangent, retain_graph=True)
            g = g.double().cpu().flatten(0, -2)
            total += weight * (g.T @ g)
        return total / (len(f) * positions)

    def _cotangents(self, out: Tensor) -> Any:
        """What is summed over: each output at each position, or random signs."""
        if self.sources is not None:
            random = torch.Generator().manual_seed(self.seed)
            for _ in range(self.sources):
                # The same signs for all samples would correlate them; each has its own.
                yield (torch.randint(0, 2, out.shape, generator=random) * 2 - 1).to(out), 1 / self.sources
            return
        flat = out[0].numel()
        for i in range(flat):
            one = torch.zeros(flat, dtype=out.dtype, device=out.device)
            one[i] = 1
            yield one.view(out.shape[1:]).expand_as(out), 1.0

    def transform(self, f: Tensor, cut: int) -> Tensor:
        """Features (..., k) of activations (..., d) at a cut.

        Raises:
            InputError: there is no such cut, or the width does not fit.
        """
        return with_constant(f).double() @ self._at(cut, f.shape[-1]).to(f.device)

    def inverse_transform(self, features: Tensor, cut: int) -> Tensor:
        """Activations (..., d) of features (..., k) at a cut."""
        self._at(cut, None)
        return (features.double() @ self.C_pinv_[cut].to(features.device))[..., :-1]

    def _at(self, cut: int, width: int | None) -> Tensor:
        self.check_fitted()
        if not 0 <= cut < self.n_cuts_:
            raise InputError(f"cuts go from 0 to {self.n_cuts_ - 1}, not {cut}")
        if width is not None and width + 1 != self.C_[cut].shape[0]:
            raise InputError(f"activations at cut {cut} have {self.C_[cut].shape[0] - 1} entries, not {width}")
        return self.C_[cut]

    def _state(self) -> State:
        groups = {"C": self.C_, "C_pinv": self.C_pinv_, "Lambda": self.Lambda_}
        tensors = {f"{name}.{i}": t for name, group in groups.items() for i, t in enumerate(group)}
        return tensors, {"n_cuts": self.n_cuts_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.n_cuts_ = int(about["n_cuts"])
        for name in ("C", "C_pinv", "Lambda"):
            setattr(self, f"{name}_", [tensors[f"{name}.{i}"] for i in range(self.n_cuts_)])


def features(section: Section, augmented: Tensor, after: Tensor) -> Tensor:
    """Features (n, ..., k) of the next cut from activations with their constant (n, ..., d + 1)."""
    f, constant = augmented[..., :-1], augmented[..., -1:]
    out = section(f, constant)
    if out.ndim == constant.ndim and out.shape[:-1] != constant.shape[:-1]:
        # The section kept only some of the positions: the last ones.
        constant = constant[:, -out.shape[1] :]
    return torch.cat([out, constant], -1) @ after


def _gram(f: Tensor) -> Tensor:
    rows = with_constant(f).detach().double().cpu().flatten(0, -2)
    return rows.T @ rows / len(rows)


class _End:
    """Whitening at one cut, and the bases made from it."""

    def __init__(self, gram: Tensor, settings: LocalInteractionBasis) -> None:
        self.gram, self.cut_off, self.center = gram, settings.truncation, settings.center
        d = len(gram)
        self.shift, self.back = torch.eye(d, dtype=gram.dtype), torch.eye(d, dtype=gram.dtype)
        if self.center:
            # Coordinates `shift.T @ [f, 1]` are the constant, then the deviations from the mean.
            mean = gram[-1, :-1]
            order = torch.cat([torch.tensor([d - 1]), torch.arange(d - 1)])
            self.shift = torch.eye(d, dtype=gram.dtype)[:, order]
            self.shift[-1, 1:] = -mean
            self.back = torch.linalg.inv(self.shift)
        gram = self.shift.T @ self.gram @ self.shift
        first = int(self.center)
        sizes, vectors = _eigen(gram[first:, first:], self.cut_off)
        if self.center:
            sizes = torch.cat([gram[:1, 0], sizes])
            vectors = torch.block_diag(torch.ones(1, 1, dtype=gram.dtype), vectors)
        self.sizes, self.vectors = sizes, vectors

    def basis(self, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Principal directions, or the units themselves (deviations from their mean where centred)."""
        if kind == "pca":
            return self.shift @ self.vectors, self.vectors.T @ self.back, self.sizes
        return self.shift, self.back, (self.shift.T @ self.gram @ self.shift).diagonal().clone()

    def interacting(self, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C, its pseudo-inverse and Lambda, from the squared derivatives of what follows."""
        white = self.shift @ self.vectors * self.sizes.rsqrt()
        dark = (self.vectors * self.sizes.sqrt()).T @ self.back
        m = dark @ squares @ dark.T
        first = int(self.center)
        sizes, vectors = _eigen(m[first:, first:], self.cut_off)
        if self.center:
            # The constant stays one feature however little it matters; its couplings are left.
            sizes = torch.cat([m[:1, 0].clamp_min(self.cut_off or 1e-300), sizes])
            vectors = torch.block_diag(torch.ones(1, 1, dtype=m.dtype), vectors)
        return white @ vectors * sizes.sqrt(), (vectors * sizes.rsqrt()).T @ dark, sizes


def _eigen(matrix: Tensor, cut_off: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues above the cut-off, largest first, and their vectors as columns."""
    sizes, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    # Below the last digits of the largest an eigenvalue is rounding, and so is its direction.
    keep = sizes >= max(cut_off, 1e-13 * float(sizes.max()) if len(sizes) else 0.0, 1e-300)
    return sizes[keep].flip(0), vectors[:, keep].flip(1)


def _warn_few(cuts: list[Tensor]) -> None:
    import warnings

    from actinium.core.errors import ActiniumWarning

    for i, f in enumerate(cuts):
        rows = f[..., 0].numel()
        if rows <= f.shape[-1]:
            warnings.warn(
                f"cut {i} has {f.shape[-1]} dimensions and only {rows} samples: directions that they lack are lost",
                ActiniumWarning,
                stacklevel=3,
            )
