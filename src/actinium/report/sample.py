"""What the model is read with: texts, images or arrays, drawn from where the person points, within a limit."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, unknown
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.report import hub, images, texts
from actinium.report.trial import Cost, trial
from actinium.store.stored import StoredModel

__all__ = ["Sample", "check_source", "of_store", "read", "reads_text"]

BUILT_IN = ("digits",)
TEXT_KINDS = ("causal-lm", "masked-lm", "encoder-decoder")
# One pass over the sample is to stay near this many operations: some seconds on two cores, or on an accelerator.
OPERATIONS = {"cpu": 2e11, "accelerator": 2e13}
TOKENS = (1024, 16384)  # fewest and most, whatever a pass costs
IMAGES = (64, 512)
STORED_ROWS = 65536


@dataclass(frozen=True)
class Sample:
    """What the measurements read.

    Attributes:
        inputs: tokens, or a float tensor with one row per image or array entry; what `Model.record` takes.
        kind: "text", "images" or "arrays".
        source: where it comes from, in words.
        used, available: documents, images or rows taken, and how many there are.
        notes: what a reader of the report has to know about it.
        call: Python expression that makes these inputs again, with `model` and `ac` defined.
        cost: of one row.
    """

    inputs: Tokens | Tensor
    kind: str
    source: str
    used: int
    available: int
    notes: list[str] = field(default_factory=list)
    call: str = ""
    cost: Cost = field(default_factory=lambda: Cost(0.0, 1))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.inputs)

    @property
    def tokens(self) -> int | None:
        """Number of tokens without padding, None without tokens."""
        return int(self.inputs.mask.sum()) if isinstance(self.inputs, Tokens) else None

    @property
    def width(self) -> int:
        """Positions in a row with padding; 1 without tokens."""
        return int(self.inputs.ids.shape[1]) if isinstance(self.inputs, Tokens) else 1

    def some(self, rows: int) -> Tokens | Tensor:
        """At most so many rows, evenly spaced."""
        if rows >= self.rows:
            return self.inputs
        chosen = torch.linspace(0, self.rows - 1, max(1, rows)).round().long()
        if not isinstance(self.inputs, Tokens):
            return self.inputs[chosen]
        ids, mask = self.inputs.ids[chosen], self.inputs.mask[chosen]
        longest = int(mask.sum(1).max())
        return Tokens(ids[:, :longest], mask[:, :longest], self.inputs.rows[chosen])


def check_source(text: Any, data: Any, dataset: str | None) -> None:
    """Refuse sources that cannot be read, before a model is loaded.

    Raises:
        InputError: more than one source, a path that does not exist, an empty text, an unknown dataset.
        MissingExtraError: the library that reads it is not installed.
    """
    given = [n for n, v in (("text", text), ("data", data), ("dataset", dataset)) if v is not None]
    if len(given) > 1:
        raise InputError(f"give one of text, data and dataset, not {' and '.join(given)}")
    if _is_path(text):
        if Path(text).is_dir():
            raise InputError(f"text is a file, and {str(text)!r} is a folder; for a folder of images pass data=...")
        texts.read_text(Path(text))
    if _is_path(data):
        path = Path(data)
        if path.is_dir():
            images.image_files(path)
        elif not path.is_file():
            raise InputError(f"no file or folder {str(data)!r}")
        else:
            _array(path)
    if dataset is not None and dataset not in BUILT_IN:
        hub.check(dataset, BUILT_IN)


def read(
    model: Model,
    *,
    text: str | os.PathLike[str] | Sequence[str] | None = None,
    data: Any = None,
    dataset: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Sample:
    """The sample that `scan` reads a model with.

    Args:
        model: the model.
        text: a UTF-8 file with one document per line (per paragraph where blank lines separate them), or a list
            of texts.
        data: a folder of images, a .npy or .npz file, or an array or tensor: images (uint8), token ids
            (integers) or whatever the module's forward takes (floats).
        dataset: "digits" (scikit-learn), or the name of a dataset that the `datasets` library loads.
        limit: most tokens, images or rows; by default from what a pass costs, between 1024 and 16384 tokens or
            64 and 512 images.
        seed: of the draw where there is more.

    Returns:
        the sample. Without a source: the held-out text of a shipped model, else the plain English text that
        comes with the package.

    Raises:
        InputError: no source that fits, or one that cannot be read.
        MissingExtraError: the library that reads it is not installed.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    check_source(text, data, dataset)
    if text is not None:
        found = _text(model, text, limit, seed)
    elif data is not None:
        found = _data(model, data, limit, seed)
    elif dataset is not None:
        found = _dataset(model, dataset, limit, seed)
    else:
        found = _default(model, limit, seed)
    call = _call(text=text, data=data, dataset=dataset, limit=limit, seed=seed or None)
    return Sample(**{**vars(found), "call": call, "cost": trial(model, found.some(2))})


def of_store(model: StoredModel, limit: int | None) -> Sample:
    """The windows of a store, evenly spaced, within a limit on rows (by default 65,536).

    Raises:
        InputError: the store holds no rows.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    tokens = model.windows(limit or STORED_ROWS)
    manifest = model.store.manifest
    notes = [] if manifest.complete else ["the store is not finished: this is about what is there"]
    rounded = {s.dtype for s in manifest.sites} - {"float32"}
    if rounded:
        notes.append(f"the activations were rounded to {', '.join(sorted(rounded))} when they were stored")
    kind = {"images": "images", "arrays": "arrays"}.get(manifest.origin.data["kind"], "text")
    windows = sum(shard.windows for shard in manifest.shards)
    documents = int(model.store.column("document").max()) + 1
    if len(tokens) < windows:
        notes.append(f"{len(tokens)} of {windows} windows were read, evenly spaced")
    source = f"store {Path(str(model.store.address)).name} of {manifest.origin.data['name']}"
    call = f"model.windows({limit or STORED_ROWS})"
    return Sample(tokens, kind, source, documents, documents, notes, call)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def reads_text(model: Model) -> bool:
    """Whether a model takes token ids."""
    return model.kind in TEXT_KINDS or (model.kind != "vision" and model.tokenizer is not None)


def _call(**given: Any) -> str:
    """The Python expression for the same sample; what was passed as an object keeps the argument's name."""
    parts = ["model"]
    for name, value in given.items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if value is not None:
            parts.append(f"{name}={value!r}" if isinstance(value, str | int) else f"{name}={name}")
    return f"ac.report.read({', '.join(parts)}).inputs"


def _budget(model: Model, cost: float, bounds: tuple[int, int], limit: int | None) -> int:
    """How many tokens or images to read."""
    if limit is not None:
        return limit
    total = OPERATIONS["cpu" if model.device.type == "cpu" else "accelerator"]
    return int(min(max(total / max(cost, 1.0), bounds[0]), bounds[1]))


def _text(model: Model, text: Any, limit: int | None, seed: int) -> Sample:
    if not reads_text(model):
        raise InputError(f"{model.name} reads no text (it is of kind {model.kind!r}); pass data=... or dataset=...")
    if _is_path(text):
        found, notes = texts.read_text(Path(text))
        return _windows(model, found, f"text file {Path(text).name}", notes, limit, seed)
    if not isinstance(text, Sequence) or not text:
        raise InputError(f"text is a file or a list of texts, not {type(text).__name__}")
    return _windows(model, list(text), "texts passed in Python", [], limit, seed)


def _windows(model: Model, found: Sequence[str], source: str, notes: list[str], limit: int | None, seed: int) -> Sample:
    first = texts.windows(model, found, 1, seed).tokens
    per_token = trial(model, first).operations / int(first.mask[0].sum())
    chosen = texts.windows(model, found, _budget(model, per_token, TOKENS, limit), seed)
    return Sample(chosen.tokens, "text", source, chosen.used, chosen.available, notes + chosen.notes)


def _default(model: Model, limit: int | None, seed: int) -> Sample:
    if not reads_text(model) or model.tokenizer is None:
        wanted = {"vision": "images", "other": "images or arrays"}.get(model.kind, "token ids")
        raise InputError(
            f"{model.name} reads {wanted}: pass a folder of images or a .npy or .npz file with --data "
            f"(data=...), or --dataset {BUILT_IN[0]}"
        )
    if model.name.startswith("world:"):
        from actinium.world import heldout_text

        name = model.name.removeprefix("world:")
        return _windows(model, heldout_text(name), f"held-out text of {model.name}", [], limit, seed)
    note = "no text was given: the numbers are about a few paragraphs of plain English; pass --text for your own"
    return _windows(model, texts.neutral_text(), "plain English text of the package", [note], limit, seed)


def _data(model: Model, data: Any, limit: int | None, seed: int) -> Sample:
    if _is_path(data):
        path = Path(data)
        if path.is_dir():
            files = images.image_files(path)
            probe = images.folder_images(files[:1])
            most = _images(model, probe, limit)
            chosen = images.draw(len(files), most, seed)
            found = images.folder_images([files[i] for i in chosen])
            return _fitted(model, found, f"folder {path.name}", len(files))
        return _from_array(model, *_array(path), limit, seed)
    if not (hasattr(data, "__array__") or isinstance(data, Tensor)):
        raise InputError(f"data is a folder, an array file or an array, not {type(data).__name__}")
    return _from_array(model, np.asarray(data), "array passed in Python", limit, seed)


def _dataset(model: Model, dataset: str, limit: int | None, seed: int) -> Sample:
    if dataset == "digits":
        digits = images.digits()
        chosen = images.draw(len(digits), _images(model, digits[:1], limit), seed)
        return _fitted(model, [digits[i] for i in chosen], "scikit-learn's digits", len(digits))
    source = f"dataset {dataset}"
    if reads_text(model):
        every, note = hub.texts(dataset)
        return _windows(model, every, source, [note], limit, seed)
    probe, _ = hub.images(dataset, 1)
    pixels, note = hub.images(dataset, _images(model, probe, limit))
    return _fitted(model, pixels, source, len(pixels), [note])


def _images(model: Model, probe: list[Tensor], limit: int | None) -> int:
    if reads_text(model):
        raise InputError(f"{model.name} reads text, not images; pass --text")
    if limit is not None:
        return limit
    ready, _ = images.fit(model, probe)
    return _budget(model, trial(model, ready).operations, IMAGES, None)


def _fitted(model: Model, found: list[Tensor], source: str, available: int, more: Sequence[str] = ()) -> Sample:
    ready, notes = images.fit(model, found)
    notes = [*more, *notes]
    if len(found) < available:
        notes.append(f"{len(found)} of {available} images were drawn at random to stay within the limit")
    return Sample(ready, "images", source, len(found), available, notes)


def _array(path: Path) -> tuple[np.ndarray, str]:
    """The array of a .npy or .npz file, and its name in words."""
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"data is a folder of images or a .npy or .npz file, not {path.name!r}")
    try:
        held = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
        if isinstance(held, np.ndarray):
            return held, f"array file {path.name}"
        with held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the array file {str(path)!r}: {error}") from None
    names = [n for n, a in arrays.items() if a.ndim >= 2]
    preferred = [n for n in ("images", "test_images", "x", "X", "inputs", "input_ids", "data") if n in names]
    if not names:
        raise InputError(unknown("array with rows in", path.name, arrays))
    name = (preferred or names)[0]
    return arrays[name], f"array {name!r} of {path.name}"


def _from_array(model: Model, array: np.ndarray, source: str, limit: int | None, seed: int) -> Sample:
    if array.ndim < 2 or array.shape[0] == 0:
        raise InputError(f"an array has rows and at least one more dimension; got shape {array.shape}")
    if reads_text(model):
        return _ids(model, array, source, limit, seed)
    pixels = images.images_of(array[:1])
    if pixels is not None:
        chosen = images.draw(len(array), _images(model, pixels, limit), seed)
        return _fitted(model, images.images_of(np.asarray(array[chosen])) or [], source, len(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{model.name} takes floating-point arrays or 8-bit images, not {array.dtype}")
    probe = _rows(model, array, [0])
    most = limit or _budget(model, trial(model, probe).operations, IMAGES, None)
    chosen = images.draw(len(array), most, seed)
    notes = [] if len(chosen) == len(array) else [f"{len(chosen)} of {len(array)} rows were drawn at random"]
    return Sample(_rows(model, array, chosen), "arrays", source, len(chosen), len(array), notes)


def _rows(model: Model, array: np.ndarray, chosen: list[int]) -> Tensor:
    rows = np.array(array[chosen])
    if not np.isfinite(rows).all():
        raise InputError("the array holds NaN or infinite values")
    return torch.from_numpy(rows).to(model.dtype)


def _ids(model: Model, array: np.ndarray, source: str, limit: int | None, seed: int) -> Sample:
    """Token ids (rows, pos); rows longer than the window are cut."""
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != 2:
        raise InputError(f"{model.name} takes token ids (rows, pos) as integers, not {array.dtype} {array.shape}")
    ids = torch.from_numpy(np.array(array)).long()
    width = texts.window_tokens(model.context)
    notes = []
    if ids.shape[1] > width:
        ids = ids[:, : ids.shape[1] // width * width].reshape(-1, width)
        notes.append(f"rows were cut into windows of {width} tokens; what did not fill one was left out")
    whole = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids)))
    probe = Tokens(ids[:1], whole.mask[:1], whole.rows[:1])
    per_token = trial(model, probe).operations / ids.shape[1]
    most = max(1, _budget(model, per_token, TOKENS, limit) // ids.shape[1])
    chosen = images.draw(len(ids), most, seed)
    if len(chosen) < len(ids):
        notes.append(f"{len(chosen)} of {len(ids)} rows were drawn at random to stay within the limit on tokens")
    tokens = Tokens(ids[chosen], whole.mask[chosen], torch.tensor(chosen))
    return Sample(tokens, "text", source, len(chosen), len(ids), notes)
