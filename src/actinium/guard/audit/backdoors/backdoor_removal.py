"""Find the backdoor of a model of images and take it out, with clean images alone (InverTune)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.estimator import Estimator
from actinium.core.provenance import provenance
from actinium.guard.audit.backdoors.activation_tuning import Tuned, activation_tune
from actinium.guard.audit.backdoors.backdoor_metrics import attack_success, clean_accuracy
from actinium.guard.audit.backdoors.backdoor_report import BackdoorReport
from actinium.guard.audit.backdoors.suspect import Suspect
from actinium.guard.audit.backdoors.target_search import TargetSearch, identify_target
from actinium.guard.audit.backdoors.trigger_inversion import InversionWeights, InvertedTrigger, invert_trigger

__all__ = ["InverTune"]


class InverTune(Estimator):
    """Name the class that a backdoor calls for, find a trigger for it, and train the trigger's effect away.

    The three stages are methods of their own; `fit` runs them one after the other. The classes that the first stage
    ranks highest are all inverted, and the one with the smallest mask whose trigger works is taken for the target.

    Args:
        target: the class, if it is known; else it is looked for.
        candidates: number of classes of the first stage's ranking that are inverted.
        enough: success from which on a trigger works.
        weights, mask_channels, adapt, batch_size: of `invert_trigger`.
        inversion_epochs, inversion_rate: its epochs and rate.
        n_sites, align, keep, half_period: of `activation_tune`.
        tune_epochs, tune_rate: its epochs and rate. The authors' rate is for a CLIP of 10^8 parameters.
        seed: of all that is drawn.

    Attributes:
        report_: a `BackdoorReport`.
        suspect_: around the tuned copy of the network, `suspect_.module`; the examined one is as it was.

    Raises:
        InputError: a setting cannot be used; when `fit` or a stage is called.

    Source: Sun et al., 2025.
    """

    fitted = "report_"

    def __init__(
        self,
        target: int | None = None,
        *,
        candidates: int = 3,
        enough: float = 0.95,
        weights: InversionWeights | None = None,
        mask_channels: int | None = None,
        adapt: float | None = None,
        batch_size: int = 64,
        inversion_epochs: int = 10,
        inversion_rate: float = 0.01,
        n_sites: int = 3,
        align: float = 1.0,
        keep: float = 0.5,
        half_period: int = 100,
        tune_epochs: int = 200,
        tune_rate: float = 2e-6,
        seed: int = 0,
    ) -> None:
        self.target, self.candidates, self.enough, self.weights = target, candidates, enough, weights
        self.mask_channels, self.adapt, self.batch_size = mask_channels, adapt, batch_size
        self.inversion_epochs, self.inversion_rate = inversion_epochs, inversion_rate
        self.n_sites, self.align, self.keep, self.half_period = n_sites, align, keep, half_period
        self.tune_epochs, self.tune_rate, self.seed = tune_epochs, tune_rate, seed

    def identify_target(self, suspect: Suspect, images: Tensor, progress: bool = False) -> TargetSearch:
        """The first stage; see `identify_target`."""
        return identify_target(suspect, images, seed=self.seed, progress=progress)

    def invert_trigger(
        self, suspect: Suspect, images: Tensor, target: int, target_images: Tensor | None = None, progress: bool = False
    ) -> InvertedTrigger:
        """The second stage; see `invert_trigger`."""
        return invert_trigger(
            suspect,
            images,
            target,
            target_images=target_images,
            weights=self.weights,
            mask_channels=self.mask_channels,
            epochs=self.inversion_epochs,
            rate=self.inversion_rate,
            batch_size=self.batch_size,
            adapt=self.adapt,
            seed=self.seed,
            progress=progress,
        )

    def activation_tune(
        self, suspect: Suspect, images: Tensor, trigger: InvertedTrigger, progress: bool = False
    ) -> Tuned:
        """The third stage; see `activation_tune`."""
        return activation_tune(
            suspect,
            images,
            trigger,
            n_sites=self.n_sites,
            align=self.align,
            keep=self.keep,
            epochs=self.tune_epochs,
            rate=self.tune_rate,
            lowest_rate=min(1e-7, self.tune_rate),
            half_period=self.half_period,
            seed=self.seed,
            progress=progress,
        )

    def fit(
        self,
        suspect: Suspect,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        held_out: tuple[Tensor, Tensor] | None = None,
        stamp: Callable[[Tensor], Tensor] | None = None,
        progress: bool = False,
    ) -> InverTune:
        """Run the three stages.

        Args:
            suspect: the model, from `dual_encoder` or `image_classifier`.
            images: clean images (n, channel, height, width).
            labels: their classes (n,), to choose real images of the target; by default those that the model finds.
            held_out: other clean images and their classes, for accuracy and success before and after; without them
                `images` and `labels`, if there are any.
            stamp: from images to images with the true trigger, where it is known, to measure its success.
            progress: show progress bars.

        Raises:
            InputError: images or settings cannot be used.
        """
        images = suspect.check_images(images, 2)
        if self.candidates < 1 or not 0 < self.enough <= 1:
            raise InputError(f"candidates are one or more, and enough lies within 0..1: {self}")
        found = suspect.predict(images) if labels is None else suspect.check_labels(labels, images)
        k = suspect.count_classes(images)
        if suspect.classes is not None and len(suspect.classes) != k:
            raise InputError(f"{len(suspect.classes)} names of classes do not fit {k} classes")
        empty = torch.empty(0, dtype=torch.float64)
        clean, patched = empty, empty
        tried: Sequence[int | None] = [self.target]
        if self.target is None:
            search = self.identify_target(suspect, images, progress)
            clean, patched, tried = search.clean, search.patched, search.ranking[: self.candidates]
        inverted = [
            self.invert_trigger(suspect, images, c, images[found == c], progress) for c in tried if c is not None
        ]
        trigger = self._smallest(inverted)
        tuned = self.activation_tune(suspect, images, trigger, progress)
        known = held_out if held_out is not None else None if labels is None else (images, labels)
        before, after = (_measured(s, images, known, trigger, stamp) for s in (suspect, tuned.suspect))
        self.suspect_ = tuned.suspect
        self.report_ = BackdoorReport(
            trigger.target,
            trigger,
            clean,
            patched,
            {t.target: (t.mask_norm, t.success) for t in inverted},
            tuned.impacts,
            tuned.neurons,
            before,
            after,
            tuple(suspect.classes or map(str, range(k))),
            provenance(suspect.model, images, self.seed, **{n: v for n, v in self.get_params().items() if n != "seed"}),
        )
        return self

    def _smallest(self, inverted: list[InvertedTrigger]) -> InvertedTrigger:
        """The trigger with the smallest mask among those that work, else the one that works best."""
        working = [t for t in inverted if t.success >= self.enough]
        if working:
            return min(working, key=lambda t: t.mask_norm)
        best = max(inverted, key=lambda t: t.success)
        warnings.warn(
            f"no trigger takes {self.enough:.0%} of the images to a class that was tried (the best, for class "
            f"{best.target}, takes {best.success:.0%}): there may be no backdoor, or the inversion needs more epochs",
            ActiniumWarning,
            stacklevel=3,
        )
        return best


def _measured(
    suspect: Suspect,
    images: Tensor,
    known: tuple[Tensor, Tensor] | None,
    trigger: InvertedTrigger,
    stamp: Callable[[Tensor], Tensor] | None,
) -> dict[str, Any]:
    """Accuracy and successes as far as they can be measured."""
    if known is None:
        known = (images, suspect.predict(images))
        found: dict[str, Any] = {}
    else:
        found = {"CA": clean_accuracy(suspect, *known)}
    found["ASR, found trigger"] = attack_success(suspect, *known, trigger.apply, trigger.target)
    if stamp is not None:
        found["ASR"] = attack_success(suspect, *known, stamp, trigger.target)
    return found
