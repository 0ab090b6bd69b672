"""A model of images that may have a backdoor, as the searches and repairs here see it: embeddings and class scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, SiteError, unknown
from actinium.core.model import Model

__all__ = ["Suspect", "dual_encoder", "image_classifier", "unit"]

Bounds = tuple[float | Sequence[float], float | Sequence[float]]
UNIT = 1e-3
"""How far the length of a class's vector may be from 1."""


class Suspect:
    """A model that is examined: never changed, copied where something is to be tuned.

    Args:
        module: the network.
        read: from network and images (n, channel, height, width) to embeddings (n, e) and class scores (n, class).
        bounds: lowest and highest value of a pixel as the network takes it, numbers or one for each channel.
        sites: activations that tell a trigger's effect, patterns of `Model.sites`.
        mean, std: with which pixels in 0..1 were normalised, numbers or one for each channel.
        classes: names of the classes.

    Raises:
        InputError: the bounds are no interval, or a std is not positive.
        SiteError: there is no such site.
    """

    def __init__(
        self,
        module: nn.Module,
        read: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
        *,
        bounds: Bounds,
        sites: Sequence[str],
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.module, self._read = module, read
        self.low, self.high = (_channels(v, "a bound") for v in bounds)
        self.mean, self.std = _channels(mean, "the mean"), _channels(std, "the std")
        if not bool((self.low < self.high).all()) or not bool((self.std > 0).all()):
            raise InputError(f"pixels lie between two bounds and are divided by a positive std, not {bounds} and {std}")
        self.model = Model(module)
        self.sites = [site.name for pattern in sites for site in self.model.sites(pattern)]
        if not self.sites:
            raise InputError("name one site or more at which a trigger's effect is read")
        self.classes = None if classes is None else [str(c) for c in classes]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    def check_images(self, images: Any, least: int = 1) -> Tensor:
        """The images, in float32 where the network is.

        Raises:
            InputError: they are no images, fewer than needed, not finite, or outside of the bounds.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) < least:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images are a tensor (n, channel, height, width) with n >= {least}, not {shape}")
        if not bool(torch.isfinite(images).all()):
            raise InputError("an image holds NaN or infinity")
        images = images.detach().to(self.device, torch.float32)
        if bool((images < self.low.to(images) - UNIT).any()) or bool((images > self.high.to(images) + UNIT).any()):
            raise InputError(
                f"pixels lie in {float(images.min()):.3g}..{float(images.max()):.3g}, outside of the bounds that were "
                "given; pass bounds=(lowest, highest) as the network takes them"
            )
        return images

    def check_labels(self, labels: Any, images: Tensor) -> Tensor:
        """The classes (n,) int64 of images, where the network is.

        Raises:
            InputError: there is not one integer for each image.
        """
        given = torch.as_tensor(labels).to(images.device)
        if given.shape != (len(images),) or given.is_floating_point() or given.dtype == torch.bool:
            raise InputError(f"labels are one integer for each of {len(images)} images, not {tuple(given.shape)}")
        return given.long()

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (n, e) and class scores (n, class), with their gradient."""
        embeddings, scores = self._read(self.module, images)
        return unit(embeddings), scores

    def activations(self, images: Tensor, sites: Sequence[str]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Activations (n, ...) by site, unit embeddings and class scores of one pass, with their gradient."""
        with self.model.recording(list(sites), grad=True) as recorded:
            embeddings, scores = self.read(images)
        return {site: recorded[site] for site in sites}, embeddings, scores

    def predict(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Classes (n,) of the highest score."""
        with torch.no_grad():
            return torch.cat([self.read(part)[1].argmax(1) for part in images.split(batch_size)])

    def embed(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Unit embeddings (n, e), without gradient."""
        with torch.no_grad():
            return torch.cat([self.read(part)[0] for part in images.split(batch_size)])

    def count_classes(self, images: Tensor) -> int:
        """Number of classes.

        Raises:
            InputError: there are fewer than two.
        """
        with torch.no_grad():
            k = self.read(images[:1])[1].shape[1]
        if k < 2:
            raise InputError("one class alone cannot be mistaken for another; two or more are needed")
        return k

    def check_target(self, target: int, images: Tensor) -> int:
        """The number of a class, given by number or name.

        Raises:
            InputError, UnknownNameError: there is no such class.
        """
        k = self.count_classes(images)
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < k:
            raise InputError(f"a class is a number from 0 to {k - 1}, not {target!r}")
        return target

    def displayed(self, images: Tensor) -> Tensor:
        """Pixels before they were normalised, in 0..1."""
        return images * self.std.to(images) + self.mean.to(images)

    def copy(self) -> Suspect:
        """The same around a copy of the network whose weights may be trained."""
        new = copy.copy(self)
        new.module = copy.deepcopy(self.module)
        for parameter in new.module.parameters():
            parameter.requires_grad_(True)
        new.model = Model(new.module)
        return new


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., d) divided by their length."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _channels(values: float | Sequence[float], what: str) -> Tensor:
    found = torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
    if not found.numel() or not bool(torch.isfinite(found).all()):
        raise InputError(f"{what} is a number, or one for each channel, not {values!r}")
    return found


def _clip_images(module: Any, images: Tensor) -> Tensor:
    """What a CLIPModel or an open_clip model makes of images."""
    if hasattr(module, "vision_model"):
        out: Tensor = module.visual_projection(module.vision_model(pixel_values=images).pooler_output)
        return out
    if hasattr(module, "encode_image"):
        encoded: Tensor = module.encode_image(images)
        return encoded
    raise InputError(
        f"{type(module).__name__} has no image encoder that is known; pass encode=function(module, images)"
    )


def dual_encoder(
    module: Any,
    bank: Tensor,
    *,
    bounds: Bounds,
    encode: Callable[[Any, Tensor], Tensor] | None = None,
    sites: Sequence[str] | None = None,
    tau: float = 0.07,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    classes: Sequence[str] | None = None,
) -> Suspect:
    """An encoder of images beside vectors of classes, such as CLIP's of texts.

    Args:
        module: transformers' `CLIPModel`, an open_clip model, or a `Model` or module for which `encode` is given.
        bank: (class, e) unit vectors of the classes: the mean over each one's prompts, of unit vectors, made unit.
        bounds, mean, std, classes: see `Suspect`.
        encode: from the module and images to embeddings (n, e).
        sites: see `Suspect`; by default the stream after each block of the vision tower.
        tau: divides the cosines.

    Raises:
        InputError: the vectors are not of length 1, there are fewer than two classes, `tau` is not positive, or the
            image encoder is not found.
        SiteError: there is no such site.
    """
    if not isinstance(bank, Tensor) or bank.ndim != 2 or len(bank) < 2:
        raise InputError("a bank of classes is a tensor (class, e) with two classes or more")
    lengths = bank.detach().norm(dim=1)
    if not bool(((lengths - 1).abs() < UNIT).all()):
        raise InputError("the vectors of the classes must have length 1; divide each by its norm")
    if not tau > 0:
        raise InputError(f"tau divides the cosines and must be positive, not {tau}")
    network = module.module if isinstance(module, Model) else module
    if encode is None and not (hasattr(network, "vision_model") or hasattr(network, "encode_image")):
        raise InputError(
            f"{type(network).__name__} has no image encoder that is known; pass encode=function(module, images)"
        )
    fixed, given = bank.detach().float(), encode or _clip_images

    def read(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = given(network, images)
        return embeddings, unit(embeddings) @ fixed.to(embeddings).T / tau

    return Suspect(
        network, read, bounds=bounds, sites=_sites(network, sites, "vision."), mean=mean, std=std, classes=classes
    )


def image_classifier(
    module: Any,
    *,
    bounds: Bounds,
    head: str | None = None,
    sites: Sequence[str] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    classes: Sequence[str] | None = None,
) -> Suspect:
    """A classifier of images with a linear head, whose input is the embedding.

    Args:
        module: a module or `Model` from images to logits.
        bounds, mean, std, classes: see `Suspect`.
        head: path of the linear layer; by default the module's last one.
        sites: see `Suspect`; by default the stream after each block, or each of the module's children with outputs of
            several dimensions that are called "stage1", "layer1" and so on.

    Raises:
        InputError: the head is no linear layer.
        SiteError: there is no such head or site.
    """
    network = module.module if isinstance(module, Model) else module
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if head is None and not linear:
        raise InputError("the network has no linear layer; pass head=, the path of the last one")
    path = linear[-1] if head is None else head
    if path not in linear:
        raise SiteError(unknown("linear layer", path, linear))

    def read(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        hook = network.get_submodule(path).register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            out: Any = network(images)
        finally:
            hook.remove()
        return kept[-1].flatten(1), out if isinstance(out, Tensor) else out.logits

    names = classes if classes is not None else getattr(getattr(network, "config", None), "classes", None)
    return Suspect(network, read, bounds=bounds, sites=_sites(network, sites, ""), mean=mean, std=std, classes=names)


def _sites(network: nn.Module, given: Sequence[str] | None, prefix: str) -> Sequence[str]:
    """The sites that were asked for, or those that stand for a network's layers."""
    if given is not None:
        return [given] if isinstance(given, str) else list(given)
    model = Model(network)
    for pattern in (f"{prefix}blocks.*.resid_post", "blocks.*.resid_post"):
        if model.has(pattern):
            return [pattern]
    start = "visual." if prefix and hasattr(network, "visual") else ""
    parts = dict(network.named_modules())
    for kind in ("stage", "layer"):
        stages = [f"module:{start}{kind}{i}" for i in range(1, 100) if f"{start}{kind}{i}" in parts]
        if stages:
            return stages
    raise InputError('the layers of this network are not known; pass sites=["module:...", ...]')
