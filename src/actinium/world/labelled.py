"""Images with labels and known concepts: what the world's sets of images have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["LabelledImages", "value_index"]


def value_index(values: Mapping[str, Sequence[str]], concept: str, value: str | int) -> int:
    """Number of a concept's value.

    Args:
        values: names of the values of each concept.
        concept: a concept.
        value: name or number of one of its values.

    Raises:
        UnknownNameError: there is no such concept or value.
        InputError: `value` is neither a name nor a number.
    """
    if concept not in values:
        raise UnknownNameError(unknown("concept", str(concept), values))
    names = list(values[concept])
    if isinstance(value, str):
        if value not in names:
            raise UnknownNameError(unknown(f"value of {concept}", value, names))
        return names.index(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"a value of {concept} is a name or a number, not {value!r}")
    if not 0 <= value < len(names):
        raise UnknownNameError(f"{concept} has the values 0 to {len(names) - 1}, not {value}: {', '.join(names)}")
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images, what they show, and which class that makes them.

    Args:
        images: (n, channel, height, width) float32 in 0..1.
        labels: (n,) int64 classes.
        concepts: for each concept the number (n,) int64 of its value in each image.
        classes: names of the classes.
    """

    images: Tensor
    labels: Tensor
    concepts: dict[str, Tensor]
    classes: tuple[str, ...]
    values: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names of the values of each concept."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Self:
        """Some of the images: by numbers, a slice or a mask, as the rows of a tensor; one number gives a set of one.

        Raises:
            IndexError: there is no such image.
        """
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"there are {len(self)} images, and none has the number {rows}")
            rows = slice(rows, rows + 1 or None)
        new: dict[str, Any] = {}
        for field in fields(self):
            held = getattr(self, field.name)
            if isinstance(held, Tensor):
                new[field.name] = held[rows]
            elif isinstance(held, dict):
                new[field.name] = {name: values[rows] for name, values in held.items()}
        return replace(self, **new)

    def where(self, **wanted: str | int | Sequence[str | int]) -> Self:
        """The images that show what is asked for.

        Args:
            wanted: for concepts, and for `label`, the value or several values (names or numbers) that are kept.

        Raises:
            UnknownNameError: there is no such concept or value.
            InputError: no image is left.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        values = {**self.values, "label": self.classes}
        for concept, value in wanted.items():
            several = [value] if isinstance(value, str | int) else list(value)
            numbers = torch.tensor([value_index(values, concept, v) for v in several], dtype=torch.int64)
            held = self.labels if concept == "label" else self.concepts[concept]
            keep &= torch.isin(held, numbers)
        if not bool(keep.any()):
            asked = ", ".join(f"{concept}={value!r}" for concept, value in wanted.items())
            raise InputError(f"none of the {len(self)} images has {asked}")
        return self[keep]
