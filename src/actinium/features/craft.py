"""CRAFT: concepts of a class found in crops of its images, how much each matters, and where it is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional as F

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.features.concept_bank import ConceptBank
from actinium.features.crops import check_images, crops_of
from actinium.features.cut import Above, cut
from actinium.features.sensitivity import logit_of, refuse_training_mode
from actinium.features.sobol import sobol_design, sobol_total

__all__ = ["CRAFT"]

Half = Callable[[Tensor], Tensor]
PLACES = ("crops", "positions")
LOST = 0.5
"""Relative error of rebuilt activations above which a warning is given."""


class CRAFT(SavedEstimator):
    """Finds the concepts of a class in activations of crops of its images.

    The network is split in g, from images to activations that are not negative, and h, from there to logits. Images are
    preprocessed as the network wants them before they come here. `CRAFT.at` splits a model at a site.

    Args:
        g: from images (n, channel, size, size) to activations (n, p, height, width) or (n, p), differentiable for maps.
        h: from activations of that shape to logits (n, class).
        n_concepts: r.
        patch_size: height and width of a crop in pixels.
        stride: pixels between crops; floor(0.8 patch_size) by default.
        method: factorisation; see `ConceptBank`. "semi-nmf" for signed activations, "kmeans" and "pca" to compare with.
        on: "crops" (mean activation of each crop; CRAFT) or "positions" (each position of each image; ICE).
        batch_size: inputs in a pass.
        max_iter: of the factorisation.
        seed: of the factorisation.

    Attributes:
        bank_: the fitted `ConceptBank`; `bank_.bank_` is W (r, p), `bank_.error_` the relative error.
        crops_: (k, channel, s, s) examples: the crops, or the images with `on="positions"`.
        origins_: (k, 3) image, first row, first column of each crop.
        codes_: (k, r) coefficients of each example.
        size_: height and width of the images.

    Source: Fel et al., 2023; Zhang et al., 2021 (ICE).
    """

    fitted = "bank_"
    saved_as = "CRAFT"

    def __init__(
        self,
        g: Half,
        h: Half,
        n_concepts: int = 10,
        patch_size: int = 64,
        *,
        stride: int | None = None,
        method: str = "nmf",
        on: str = "crops",
        batch_size: int = 64,
        max_iter: int = 200,
        seed: int = 0,
    ) -> None:
        self.g, self.h, self.n_concepts, self.patch_size = g, h, n_concepts, patch_size
        self.stride, self.method, self.on = stride, method, on
        self.batch_size, self.max_iter, self.seed = batch_size, max_iter, seed

    @classmethod
    def at(cls, model: Model, site: str, n_concepts: int = 10, patch_size: int = 64, **settings: Any) -> CRAFT:
        """Split a classifier at a `module:` or `module_in:` site through which everything flows.

        Args:
            model: the model, in evaluation mode.
            site: for example "module:layer4".
            n_concepts, patch_size, **settings: of the constructor.

        Raises:
            InputError, SiteError: see `cut`.
        """
        return cls(*cut(model, site), n_concepts, patch_size, **settings)

    def fit(self, images: Tensor, progress: bool = False) -> Self:
        """Find the concepts in images of one class, some hundreds if there are.

        Args:
            images: (n, channel, size, size), as the network takes them.
            progress: show a progress bar.

        Raises:
            InputError: images or crops do not fit, activations are negative for "nmf" or not finite, more concepts than
                rows or channels, or the network is in training mode.
            UnknownNameError: there is no such factorisation or place.
        """
        self._check_halves()
        check_images(images)
        if isinstance(self.h, Above):
            self.h.check(images[:2])
        if self.on == "positions":
            origins = torch.zeros(len(images), 3, dtype=torch.int64)
            origins[:, 0] = torch.arange(len(images))
            return self._fit(images, origins, images.shape[-1], progress)
        crops, origins = crops_of(images, self.patch_size, self.stride)
        return self._fit(crops, origins, images.shape[-1], progress)

    def _check_halves(self) -> None:
        if self.on not in PLACES:
            raise UnknownNameError(unknown("place to take activations from", str(self.on), PLACES))
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {self.batch_size}")
        for half, name in ((self.g, "g"), (self.h, "h")):
            refuse_training_mode(half, name)

    def _fit(self, examples: Tensor, origins: Tensor, size: int, progress: bool) -> Self:
        found = self._below(examples, size, progress)
        rows = found.movedim(1, -1).flatten(0, -2) if self.on == "positions" else _mean(found)
        bank = ConceptBank(self.method, self.n_concepts, max_iter=self.max_iter, seed=self.seed).fit(rows)
        self.codes_ = bank.transform(_mean(found).double())
        self.crops_, self.origins_, self.size_ = examples.detach().cpu(), origins, size
        self.bank_ = bank
        return self

    def _below(self, images: Tensor, size: int, progress: bool = False) -> Tensor:
        """Activations (n, p) or (n, p, height, width) of images brought to the network's size, without graph."""
        pieces = []
        for part in shown(images.split(self.batch_size), "concepts", progress):
            if part.shape[-1] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            with torch.no_grad():
                found = self.g(part)
            if not isinstance(found, Tensor) or found.ndim not in (2, 4) or len(found) != len(part):
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise InputError(f"g gives activations (n, p) or (n, p, height, width), not {got}")
            pieces.append(found)
        return torch.cat(pieces)

    def _images(self, images: Tensor) -> Tensor:
        self.check_fitted()
        check_images(images)
        if images.shape[-1] != self.size_:
            raise InputError(f"these concepts belong to images of {self.size_} pixels, got {images.shape[-1]}")
        return images

    def codes(self, images: Tensor) -> Tensor:
        """Coefficients (n, height, width, r) or (n, r) of images, with a graph to the images where one is wanted.

        Raises:
            InputError: `fit` was not called, or images of another size.
        """
        found = self.g(self._images(images))
        return self.bank_.transform(found.movedim(1, -1))

    def transform(self, images: Tensor) -> Tensor:
        """Coefficients (n, height, width, r) or (n, r) of images, by non-negative least squares for "nmf".

        Raises:
            InputError: as `codes`.
        """
        found = self._below(self._images(images), self.size_)
        return self.bank_.transform(found.movedim(1, -1))

    def logit(self, codes: Tensor, class_id: int) -> Tensor:
        """(n,) logit of a class of what the coefficients (n, height, width, r) or (n, r) give back: h(U W).

        Raises:
            InputError: the class does not exist, or coefficients do not fit.
        """
        self.check_fitted()
        parts = codes.split(self.batch_size)
        return torch.cat([self._head(self.bank_.inverse_transform(p).movedim(-1, 1), class_id) for p in parts])

    def _head(self, activations: Tensor, class_id: int) -> Tensor:
        with torch.no_grad():
            return logit_of(self.h(activations), class_id)

    def _warn_if_lost(self, found: Tensor, codes: Tensor) -> None:
        """Say so where the concepts of crops do not give back the activations of whole images."""
        error = float((found - self.bank_.inverse_transform(codes).movedim(-1, 1)).norm() / found.norm())
        if error > LOST:
            warnings.warn(
                f"the concepts give back the activations of these images with an error of {error:.2f}: their "
                'importance says little about the network. Take larger crops, more concepts, or on="positions"',
                ActiniumWarning,
                stacklevel=3,
            )

    def estimate_importance(
        self,
        images: Tensor,
        class_id: int,
        nb_design: int = 32,
        *,
        sampler: str = "halton",
        estimator: str = "jansen",
        scramble: bool = False,
        seed: int = 0,
        progress: bool = False,
    ) -> Result:
        """Total Sobol index of each concept: its share in the variance of the logit when concepts are dimmed at random.

        Every concept of an image is multiplied by a number from 0 to 1, the same at all positions. Indices have no sign
        and may sum to more than 1. It takes nb_design (r + 2) passes of h for each image.

        Args:
            images: (n, channel, size, size) of the class.
            class_id: the class.
            nb_design: points of the design.
            sampler, scramble, seed: see `sobol_design`.
            estimator: see `sobol_total`.
            progress: show a progress bar.

        Returns:
            `importance` (concept), the mean of `by_image` (image, concept); 0 for an image whose logit does not vary.
            `logit` (image) of the network, and `rebuilt_logit` (image) of what the coefficients give back: indices
            explain the second. A warning is given where activations come back with an error of more than a half.

        Raises:
            InputError: the class does not exist, or images do not fit.
            UnknownNameError: there is no such sampler or estimator.

        Source: Fel et al., 2023, section 3.2.
        """
        found = self._below(self._images(images), self.size_)
        codes = self.bank_.transform(found.movedim(1, -1))
        self._warn_if_lost(found, codes)
        r = codes.shape[-1]
        design = torch.from_numpy(sobol_design(r, nb_design, sampler, scramble=scramble, seed=seed)).to(codes)
        values = []
        for one in shown(codes, "concepts", progress):
            masks = design.view(len(design), *[1] * (one.ndim - 1), r)
            values.append(self.logit(masks * one, class_id))
        outputs = torch.stack(values).cpu().numpy()
        by_image = sobol_total(outputs, r, estimator)
        whole = torch.cat([self._head(part, class_id) for part in found.split(self.batch_size)])
        data = xr.Dataset(
            {
                "importance": ("concept", by_image.mean(0)),
                "by_image": (("image", "concept"), by_image),
                "logit": ("image", whole.cpu().numpy()),
                "rebuilt_logit": ("image", self.logit(codes, class_id).cpu().numpy()),
            }
        )
        data.attrs["plot"] = {"kind": "bar", "variables": ["importance"]}
        settings = {"nb_design": nb_design, "sampler": sampler, "estimator": estimator, "scramble": scramble}
        model = self.h.below.model if isinstance(self.h, Above) else None
        bank = fingerprint([self.bank_.bank_, self.bank_.offset_])
        record = provenance(model, images, seed, bank=bank, class_id=class_id, **settings)
        return Result(data, "CRAFT.estimate_importance", "craft", record)

    def best_crops(self, concept: int, k: int = 10) -> Tensor:
        """(k, channel, s, s) the examples with the largest coefficient of a concept, largest first.

        Raises:
            InputError: `fit` was not called, or there is no such concept.
        """
        order = self.codes_[:, self._concept(concept)].argsort(descending=True, stable=True)
        return self.crops_[order[:k]]

    def _concept(self, concept: int) -> int:
        self.check_fitted()
        r = len(self.bank_.bank_)
        if isinstance(concept, bool) or not isinstance(concept, int) or not 0 <= concept < r:
            raise InputError(f"concepts are numbered from 0 to {r - 1}, not {concept!r}")
        return concept

    def recurse(
        self,
        concept: int,
        g_prev: Half | str,
        h_prev: Half | None = None,
        *,
        n_concepts: int | None = None,
        share: float = 0.1,
        most: int = 100,
    ) -> CRAFT:
        """Sub-concepts: the crops of one concept, factorised again at an earlier layer.

        Args:
            concept: the concept.
            g_prev: from images to activations of the earlier layer, or its site where `CRAFT.at` made this.
            h_prev: from there to logits, for importance; needed with a g_prev that is a function.
            n_concepts: sub-concepts; by default as many as here, if there are as many crops.
            share, most: the crops with the largest coefficients are taken, this share of all and no more than `most`.

        Returns:
            A fitted CRAFT at the earlier layer; its crops are those of the concept.

        Raises:
            InputError: there is no such concept, no h_prev, too few crops, or activations that do not fit.

        Source: Fel et al., 2023, section 3.1; share and number of crops are ours.
        """
        codes = self.codes_[:, self._concept(concept)]
        if not 0 < share <= 1 or most < 1:
            raise InputError(f"share lies between 0 and 1 and most is at least 1, got {share} and {most}")
        if isinstance(g_prev, str):
            if not isinstance(self.h, Above):
                raise InputError("a site needs a CRAFT made by CRAFT.at; give g_prev and h_prev as functions")
            g_prev, h_prev = cut(self.h.below.model, g_prev)
        if h_prev is None:
            raise InputError("give h_prev too: it takes the activations of g_prev to logits")
        count = min(most, max(1, round(share * len(codes))), int((codes > 0).sum()))
        chosen = codes.argsort(descending=True, stable=True)[:count]
        settings = self.get_params() | {"g": g_prev, "h": h_prev}
        settings["n_concepts"] = min(self.n_concepts, count) if n_concepts is None else n_concepts
        out = type(self)(**settings)
        out._check_halves()
        return out._fit(self.crops_[chosen], self.origins_[chosen], self.size_, False)

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.get_params().items() if name not in ("g", "h")}

    def _state(self) -> State:
        tensors = {"bank": self.bank_.bank_, "offset": self.bank_.offset_, "crops": self.crops_}
        tensors |= {"origins": self.origins_, "codes": self.codes_}
        return tensors, {"error": self.bank_.error_, "size": self.size_}

    @classmethod
    def load(cls, path: str | os.PathLike[str], g: Half, h: Half) -> Self:  # type: ignore[override]
        """Read what `save` wrote: concepts and examples, without the network.

        Args:
            path: the file.
            g, h: both halves of the network.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        return cls._loaded(path, g, h)

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.bank_ = ConceptBank(self.method, self.n_concepts, max_iter=self.max_iter, seed=self.seed)
        self.bank_.bank_, self.bank_.offset_ = tensors["bank"], tensors["offset"]
        self.bank_.error_, self.size_ = float(about["error"]), int(about["size"])
        self.crops_, self.origins_, self.codes_ = tensors["crops"], tensors["origins"], tensors["codes"]


def _mean(found: Tensor) -> Tensor:
    """(n, p): the mean over positions."""
    return found.mean((2, 3)) if found.ndim == 4 else found
