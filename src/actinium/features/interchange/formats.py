"""Dictionaries from and to files, whichever library they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.interchange import dictionary_learning, gemma_scope, prisma, saelens, sparsify

__all__ = ["load_dictionary", "save_dictionary"]

OWN = "actinium"
READERS: Mapping[str, Callable[[Path], Dictionary]] = {
    OWN: Dictionary.load,
    saelens.NAME: saelens.read_saelens,
    sparsify.NAME: sparsify.read_sparsify,
    dictionary_learning.NAME: dictionary_learning.read_dictionary_learning,
    gemma_scope.NAME: gemma_scope.read_gemma_scope,
    prisma.NAME: prisma.read_prisma,
}
WRITERS: Mapping[str, Callable[[Dictionary, Path], Path]] = {
    OWN: Dictionary.save,
    saelens.NAME: saelens.write_saelens,
    sparsify.NAME: sparsify.write_sparsify,
    dictionary_learning.NAME: dictionary_learning.write_dictionary_learning,
}
FILES: Mapping[str, tuple[str, ...]] = {
    saelens.NAME: (saelens.SETTINGS, saelens.WEIGHTS),
    sparsify.NAME: (sparsify.SETTINGS, sparsify.WEIGHTS),
    dictionary_learning.NAME: (dictionary_learning.SETTINGS, dictionary_learning.WEIGHTS),
}
"""The files by which a folder is recognised."""


def load_dictionary(path: str | os.PathLike[str], format: str | None = None) -> Dictionary:
    """A dictionary from a file of Actinium's or a folder of another library's.

    Args:
        path: the folder, or one of its files.
        format: "actinium", "saelens", "sparsify", "dictionary_learning", "gemma_scope" or "prisma"; recognised from the
            files by default.

    Returns:
        The dictionary, in evaluation mode and float32; what is known of its place in a model is in `about`.

    Raises:
        LoadError: there is no dictionary, it is damaged, or it computes something else.
        UnknownNameError: there is no such format, or no such architecture in it.
        InputError: the files fit several formats.
    """
    place = Path(path)
    if not place.exists():
        raise LoadError(f"there is no file or folder {place}")
    name = _recognised(place) if format is None else format
    if name not in READERS:
        raise UnknownNameError(unknown("format of dictionaries", name, READERS))
    if place.is_file() and name in FILES:
        place = place.parent
    return READERS[name](place)


def save_dictionary(dictionary: Dictionary, path: str | os.PathLike[str], format: str) -> Path:
    """Write a dictionary for Actinium or another library.

    Args:
        dictionary: a fitted one.
        path: the folder, or the file of Actinium's own format.
        format: "actinium", "saelens", "sparsify" or "dictionary_learning".

    Raises:
        InputError: the library has no such architecture, or nothing can be written there.
        UnknownNameError: there is no such format that is written.
    """
    if format not in WRITERS:
        raise UnknownNameError(unknown("format that dictionaries are written in", format, WRITERS))
    place = Path(path)
    if format != OWN and place.is_file():
        raise InputError(f"{place} is a file, and {format} keeps a dictionary in a folder")
    return WRITERS[format](dictionary, place)


def _recognised(place: Path) -> str:
    """The format of a folder or file."""
    if place.is_file():
        return _recognised_file(place)
    fitting = [name for name, files in FILES.items() if all((place / file).is_file() for file in files)]
    if any((place / file).is_file() for file in gemma_scope.FILES):
        fitting.append(gemma_scope.NAME)
    if not fitting and (place / prisma.SETTINGS).is_file() and any(place.glob("*.pt")):
        fitting.append(prisma.NAME)
    if len(fitting) > 1:
        raise InputError(f"the files in {place} fit {' and '.join(fitting)}: name one as format")
    if not fitting:
        known = "; ".join(f"{name}: {' and '.join(files)}" for name, files in FILES.items())
        within = [f.name for f in sorted(place.iterdir()) if f.is_dir()]
        hint = f"; it holds the folders {', '.join(within[:10])}" if within else ""
        raise LoadError(f"{place} holds no dictionary ({known}; gemma_scope: params.npz){hint}")
    return fitting[0]


def _recognised_file(file: Path) -> str:
    for name, files in FILES.items():
        if file.name in files and all((file.parent / other).is_file() for other in files):
            return name
    if file.suffix == ".npz" or file.name in gemma_scope.FILES:
        return gemma_scope.NAME
    return prisma.NAME if file.suffix == ".pt" else OWN
