"""CSR: a classifier that adds up how similar patches of an image are to prototypes of named concepts."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import normalize

from actinium.core.errors import InputError, LoadError
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.csr.atlas import ConceptAtlas, nearest_patches
from actinium.features.csr.boxes import importance_maps
from actinium.features.csr.concept_model import fit_concept_maps, local_concept_vectors
from actinium.features.csr.feedback import check_feedback, rejected_prototypes, weighted_maps, without_rejected
from actinium.features.csr.head import fit_linear_head
from actinium.features.csr.images import Data, batches, check_images, feature_map
from actinium.features.csr.prototypes import fit_prototypes, prototype_report

__all__ = ["ConceptSimilarityReasoner", "Similarities"]

PAPER = "csr-concept-prototypes"
MODULES = ("backbone_", "concept_layer_", "projector_", "head_")
TENSORS = ("prototypes_", "kept_", "mean_scores_", "assigned_")


@dataclass(frozen=True, eq=False)
class Similarities:
    """What a prediction rests on.

    Attributes:
        logits: (b, classes).
        scores: (b, K, M) similarity of each prototype to its best cell, after boxes and rejections.
        maps: (b, K, M, H, W) similarity of each prototype to each cell, after boxes.
    """

    logits: Tensor
    scores: Tensor
    maps: Tensor


class ConceptSimilarityReasoner(SavedEstimator):
    """Concept-based similarity reasoning (CSR): four stages, each fitted with the earlier ones fixed.

    1. `fit_concepts`: the backbone (a copy of it) and a 1x1 convolution to K concept maps, from image-level labels.
    2. `fit_prototypes`: one vector for each present concept of each image (its map's softmax over the features), and
       M prototypes per concept that attract the projected vectors of their own concept.
    3. `fit_head`: a linear map from the best cosine of every prototype over the image to the classes.

    Args:
        backbone: images (b, c, h, w) to features (b, d, H, W), such as a network without pooling and head.
        n_concepts: K.
        n_classes: classes of the task.
        n_prototypes: M of each concept.
        width: dimensions in which prototypes live.
        lam, gamma, delta: see `softtriple_loss`.
        train_backbone: whether stage 1 also trains the backbone's copy.
        lr: learning rate of Adam in stages 1 and 2.
        concept_epochs, prototype_epochs: passes over the data in these stages.
        batch_size: images in a step.
        l2: penalty of the head, see `fit_linear_head`.
        bias: whether the head has a constant.
        multilabel: classes (n, n_classes) of 0 and 1 instead of one class for each image.
        seed: of weights and order.

    Attributes:
        backbone_, concept_layer_, projector_, head_: fitted modules.
        prototypes_: (K, M, width) unit vectors.
        kept_: (K, M) bool, False where the head does without a prototype.
        mean_scores_: (K, M) mean score over the training images.
        assigned_: (K, M) training vectors for which a prototype is the nearest of its concept.
        concept_loss_, prototype_loss_: mean loss of each epoch.

    Source: Huy et al., 2025. Loss constants, M and the projector are not from the paper, whose code was not at hand;
    the constants are those of Qian et al., 2019 (SoftTriple).
    """

    fitted = "head_"
    saved_as = "concept similarity reasoner"

    def __init__(
        self,
        backbone: nn.Module,
        n_concepts: int,
        n_classes: int,
        n_prototypes: int = 10,
        *,
        width: int = 128,
        lam: float = 20.0,
        gamma: float = 10.0,
        delta: float = 0.01,
        train_backbone: bool = True,
        lr: float = 1e-3,
        concept_epochs: int = 20,
        prototype_epochs: int = 30,
        batch_size: int = 32,
        l2: float = 1e-4,
        bias: bool = True,
        multilabel: bool = False,
        seed: int = 0,
    ) -> None:
        self.backbone, self.n_concepts = backbone, n_concepts
        self.n_classes, self.n_prototypes = n_classes, n_prototypes
        self.width, self.lam, self.gamma, self.delta = width, lam, gamma, delta
        self.train_backbone, self.lr = train_backbone, lr
        self.concept_epochs, self.prototype_epochs, self.batch_size = concept_epochs, prototype_epochs, batch_size
        self.l2, self.bias, self.multilabel, self.seed = l2, bias, multilabel, seed

    def fit(self, data: Data, *, progress: bool = False) -> Self:
        """All stages; `data` holds images, concepts (n, K) of 0 and 1, and classes.

        Args:
            data: tensors (images, concepts, classes), or a loader that yields batches of them.
            progress: show a progress bar.

        Raises:
            InputError: see the stages.
        """
        return self.fit_concepts(data, progress=progress).fit_prototypes(data, progress=progress).fit_head(data)

    def fit_concepts(self, data: Data, *, progress: bool = False) -> Self:
        """Stage 1; see `fit`.

        Raises:
            InputError: images that hold NaN; concepts that are not 0 or 1, or one that is never present; a backbone
                that gives no map, or a map of one cell.
        """
        if min(self.n_concepts, self.n_classes - 1 + self.multilabel, self.n_prototypes, self.width) < 1:
            raise InputError(
                "expected one concept or more, two classes or more (one if multilabel), and n_prototypes and width of "
                f"1 or more, got {self.n_concepts}, {self.n_classes}, {self.n_prototypes}, {self.width}"
            )
        self.backbone_ = copy.deepcopy(self.backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.concept_layer_, self.concept_loss_ = fit_concept_maps(
                self.backbone_,
                data,
                self.n_concepts,
                train_backbone=self.train_backbone,
                lr=self.lr,
                epochs=self.concept_epochs,
                batch_size=self.batch_size,
                generator=torch.Generator().manual_seed(self.seed),
                progress=progress,
            )
        return self

    def fit_prototypes(self, data: Data, *, progress: bool = False) -> Self:
        """Stage 2; see `fit`.

        Raises:
            InputError: `fit_concepts` was not called, or data that do not fit.
        """
        vectors, owners = self.concept_vectors(data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.projector_, self.prototypes_, self.prototype_loss_ = fit_prototypes(
                vectors,
                owners,
                self.n_concepts,
                self.n_prototypes,
                width=self.width,
                lam=self.lam,
                gamma=self.gamma,
                delta=self.delta,
                lr=self.lr,
                epochs=self.prototype_epochs,
                generator=torch.Generator().manual_seed(self.seed),
                progress=progress,
            )
        nearest = torch.einsum("nd,nmd->nm", normalize(self.projector_(vectors), dim=-1), self.prototypes_[owners])
        pairs = owners * self.n_prototypes + nearest.argmax(1)
        self.assigned_ = pairs.bincount(minlength=self.prototypes_[..., 0].numel()).view(self.n_concepts, -1).cpu()
        return self

    def fit_head(
        self, data: Data, *, rejected_concepts: Sequence[int] = (), rejected_prototypes: Sequence[Sequence[int]] = ()
    ) -> Self:
        """Stage 3, also to fit the head again without prototypes that were found to be shortcuts.

        Args:
            data: see `fit`.
            rejected_concepts: concepts that the head does without.
            rejected_prototypes: prototypes (concept, number) that it does without.

        Raises:
            InputError: `fit_prototypes` was not called, all prototypes are rejected, or data without fitting classes.
        """
        self._stage("prototypes_", "fit_prototypes")
        kept = ~self._rejected(rejected_concepts, rejected_prototypes)
        if not bool(kept.any()):
            raise InputError("all prototypes are rejected: nothing is left to decide by")
        scores, labels = [], []
        for images, _, classes in batches(data, self.batch_size, self.n_concepts):
            if classes is None:
                raise InputError("the head needs classes: give (images, concepts, classes)")
            scores.append(self.similarity_maps(images).amax((-2, -1)))
            labels.append(classes)
        all_scores = torch.cat(scores)
        self.kept_, self.mean_scores_ = kept, all_scores.mean(0)
        x = (all_scores * kept.to(all_scores)).flatten(1)
        options = {"multilabel": self.multilabel, "bias": self.bias, "l2": self.l2}
        self.head_ = fit_linear_head(x, torch.cat(labels), self.n_classes, **options)
        return self

    @torch.no_grad()
    def concept_vectors(self, data: Data) -> tuple[Tensor, Tensor]:
        """Local concept vectors (v, d) of the present concepts of all images, and the concept (v,) of each.

        Raises:
            InputError: `fit_concepts` was not called, or data that do not fit.
        """
        self._stage("concept_layer_", "fit_concepts")
        vectors, owners = [], []
        for images, concepts, _ in batches(data, self.batch_size, self.n_concepts):
            features = feature_map(self.backbone_, images)
            row, concept = concepts.nonzero().T.to(features.device)
            vectors.append(local_concept_vectors(features, self.concept_layer_(features))[row, concept])
            owners.append(concept)
        return torch.cat(vectors), torch.cat(owners)

    @torch.no_grad()
    def concept_maps(self, images: Any) -> Tensor:
        """Concept activation maps S (b, K, H, W); their means over places are the logits of the concepts.

        Raises:
            InputError: `fit_concepts` was not called, or images that do not fit.
        """
        self._stage("concept_layer_", "fit_concepts")
        parts = check_images(images).split(self.batch_size)
        return torch.cat([self.concept_layer_(feature_map(self.backbone_, part)) for part in parts])

    @torch.no_grad()
    def similarity_maps(self, images: Any) -> Tensor:
        """Cosine R (b, K, M, H, W) of every prototype with the projected features of every cell.

        Raises:
            InputError: `fit_prototypes` was not called, or images that do not fit.
        """
        self._stage("prototypes_", "fit_prototypes")
        out = []
        for part in check_images(images).split(self.batch_size):
            features = feature_map(self.backbone_, part).permute(0, 2, 3, 1)
            u = normalize(self.projector_(features), dim=-1)
            out.append(torch.einsum("bhwd,kmd->bkmhw", u, self.prototypes_).clamp(-1, 1))
        return torch.cat(out)

    def predict(
        self,
        images: Any,
        *,
        rejected_concepts: Sequence[int] = (),
        rejected_prototypes: Sequence[Sequence[int]] = (),
        pos_boxes: Any = None,
        neg_boxes: Any = None,
        outside: float = 0.0,
        mode: str = "scale",
        replacement: str = "zero",
    ) -> Similarities:
        """Classify, under what a user says about the images.

        Args:
            images: (b, c, h, w).
            rejected_concepts: concepts whose prototypes do not count.
            rejected_prototypes: prototypes (concept, number) that do not count.
            pos_boxes: boxes (m, 4) x0, y0, x1, y1 in pixels for all images, or a list of them for each: look here.
            neg_boxes: likewise: do not look here.
            outside: importance of the cells outside positive boxes, from 0 to 1.
            mode: "scale" multiplies similarities by the importance, so a negative one rises to 0 where it is 0;
                "mask" leaves cells of importance 0 out of the maximum (they show as -1 in the maps).
            replacement: score of what is rejected: "zero", "floor" (-1), or "mean" over the training images, which is
                the neutral one where absent concepts score above 0.

        Raises:
            InputError: `fit` was not called; boxes that are empty or reach outside; prototypes that do not exist; all
                of them rejected; nothing left to look at under "mask".
            UnknownNameError: no such mode or replacement.
        """
        self.check_fitted()
        check_feedback(mode, replacement)
        rejected = self._rejected(rejected_concepts, rejected_prototypes)
        if bool((rejected | ~self.kept_).all()):
            raise InputError("all prototypes are rejected: nothing is left to decide by")
        x = check_images(images)
        maps = self.similarity_maps(x)
        weights = importance_maps(pos_boxes, neg_boxes, len(x), tuple(maps.shape[-2:]), tuple(x.shape[-2:]), outside)
        maps = weighted_maps(maps, weights, mode)
        scores = without_rejected(maps.amax((-2, -1)), rejected, self.mean_scores_, replacement)
        return Similarities(self.head_(scores.flatten(1)), scores, maps)

    def explain(self, images: Any, **how: Any) -> Result:
        """What each prototype adds to each class: W_{j,km} s_km.

        Args:
            images: (b, c, h, w).
            **how: of `predict`.

        Returns:
            by image, class, concept and prototype: `contribution`; by image and class: `logit`; by class: `bias`; by
            image, concept and prototype: `score`.

        Raises:
            InputError, UnknownNameError: see `predict`.
        """
        found = self.predict(images, **how)
        weight = self.head_.weight.view(self.n_classes, self.n_concepts, self.n_prototypes)
        adds = weight[None] * found.scores[:, None]
        constant = self.head_.bias if self.bias else torch.zeros(self.n_classes)
        data = xr.Dataset(
            {
                "contribution": (("image", "class", "concept", "prototype"), adds.cpu().numpy()),
                "logit": (("image", "class"), found.logits.cpu().numpy()),
                "bias": ("class", constant.cpu().numpy()),
                "score": (("image", "concept", "prototype"), found.scores.cpu().numpy()),
            }
        )
        data = data.assign_coords({d: np.arange(n) for d, n in data.sizes.items()})
        return Result(data, "ConceptSimilarityReasoner", PAPER, provenance(inputs=images, seed=self.seed, **how))

    def score(self, images: Any, labels: Any) -> float:
        """Share of right classes (of right yes and no, if multilabel); see `predict` for what is refused."""
        logits = self.predict(images).logits
        said = (logits > 0).long() if self.multilabel else logits.argmax(1)
        return float((said.cpu() == torch.as_tensor(labels).cpu()).double().mean())

    def atlas(self, data: Data, top: int = 5) -> ConceptAtlas:
        """The training patches nearest to every prototype, one of an image, of images that have its concept.

        Raises:
            InputError: `fit_prototypes` was not called, `top` is below 1, or data that do not fit.
        """
        self._stage("prototypes_", "fit_prototypes")
        parts = batches(data, self.batch_size, self.n_concepts)
        return nearest_patches(((self.similarity_maps(x), c, tuple(x.shape[-2:])) for x, c, _ in parts), top)

    def prototype_report(self) -> Result:
        """Whether prototypes are used and apart; see `prototypes.prototype_report`.

        Raises:
            InputError: `fit_prototypes` was not called.
        """
        self._stage("prototypes_", "fit_prototypes")
        return prototype_report(self.prototypes_, self.assigned_)

    def _rejected(self, concepts: Sequence[int], prototypes: Sequence[Sequence[int]]) -> Tensor:
        return rejected_prototypes(concepts, prototypes, self.n_concepts, self.n_prototypes)

    def _stage(self, attribute: str, before: str) -> None:
        if not hasattr(self, attribute):
            raise InputError(f"this {type(self).__name__} is not fitted so far; call {before} first")

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.get_params().items() if name != "backbone"}

    def _state(self) -> State:
        tensors = {name: getattr(self, name) for name in TENSORS}
        for name in MODULES:
            tensors |= prefixed(name, getattr(self, name).state_dict())
        return tensors, {"concept_loss": self.concept_loss_, "prototype_loss": self.prototype_loss_}

    @classmethod
    def load(cls, path: str | os.PathLike[str], backbone: nn.Module) -> Self:  # type: ignore[override]
        """Read what `save` wrote: all fitted modules, the backbone's copy among them.

        Args:
            path: the file.
            backbone: a module of the same architecture; it stays as it is.

        Raises:
            LoadError: the file is missing, damaged, or belongs to another architecture.
        """
        return cls._loaded(path, backbone)

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name in TENSORS:
            setattr(self, name, tensors[name])
        d = tensors["concept_layer_.weight"].shape[1]
        self.backbone_ = copy.deepcopy(self.backbone).eval()
        self.concept_layer_ = nn.Conv2d(d, self.n_concepts, 1)
        self.projector_ = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, self.width))
        bias = "head_.bias" in tensors
        self.head_ = nn.Linear(self.n_concepts * self.n_prototypes, self.n_classes, bias=bias)
        for name in MODULES:
            try:
                getattr(self, name).load_state_dict(below(name, tensors))
            except RuntimeError as error:
                raise LoadError(f"the {self.saved_as} does not go with this backbone: {error}") from None
            getattr(self, name).requires_grad_(False)
        self.concept_loss_, self.prototype_loss_ = about["concept_loss"], about["prototype_loss"]
