"""Making a store: plan it, run the model over the data, and write shard after shard."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from actinium import __version__
from actinium.core.errors import ActiniumWarning, InputError, StoreError
from actinium.core.loading import load
from actinium.core.model import Model
from actinium.core.provenance import fingerprint
from actinium.core.sites import Site
from actinium.store.address import Address
from actinium.store.codec import as_dtype, row_bytes
from actinium.store.documents import Documents, read_documents
from actinium.store.lock import NAME as LOCK
from actinium.store.lock import writing
from actinium.store.manifest import File, Layout, Manifest, Origin, StoredSite
from actinium.store.pipeline import run
from actinium.store.recorder import Recorder
from actinium.store.store import Store
from actinium.store.windows import Block, blocks

__all__ = ["create"]

WINDOWS = 16  # in a pass, by default


def create(
    path: str | os.PathLike[str],
    model: Model | str | Any,
    data: Any,
    at: str | Site | Sequence[str | Site],
    *,
    dtype: str = "float16",
    context: int | None = 512,
    batch_size: int | None = None,
    shard_mb: float = 256,
    resume: bool = True,
    packing: str = "pack",
    column: str | None = None,
    exclude_special: bool = False,
    max_tokens: int | None = None,
    engine: str = "local",
    workers: int = 2,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Store:
    """Run a model over data and keep the activations of some sites on disk.

    A row is one token (one patch, one position of a feature map, one image where a site has no positions). All
    sites are read in one pass, which ends after the last of them. Shards appear only whole, and the manifest after
    them: interrupted at any moment, the same call goes on where it stopped, and the finished store has the same
    bytes as one that was never interrupted.

    Args:
        path: a folder, or any address that fsspec knows ("s3://bucket/folder").
        model: a `Model`, or anything that `ac.load` takes.
        data: see `read_documents`: texts, files, folders, datasets, arrays, a `DataLoader`.
        at: sites or patterns; all must give the same rows.
        dtype: "float16", "bfloat16", "float32", or "int8" (one scale for each row; the error is in the manifest).
        context: tokens in a window, cut to the model's context; None for the model's context.
        batch_size: windows in a pass, 16 by default.
        shard_mb: most megabytes (10^6 bytes) of one shard of the largest site.
        resume: go on with a store that is not finished, or open the finished one; if False, a store there is refused.
        packing: "pack" (documents follow each other, every window is full) or "pad" (a document begins a window).
        column: the column of a table that holds the documents.
        exclude_special: leave out the rows of special tokens (the model still reads them).
        max_tokens: stop after so many tokens (images, array rows).
        engine: "local", or "ray" for several processes or machines (`workers` of them).
        workers: models that work at once with "ray".
        storage_options: what the file system of the address takes.
        progress: show a bar with tokens per second, bytes written and the time left.

    Returns:
        The finished store.

    Raises:
        InputError: data, sizes or sites that cannot be used; a path that holds something else.
        SiteError: a site that the model does not have.
        StoreError: another writer is at work, the store there is of another model, tokenizer, data or settings, or
            it cannot be written. What was written before stays valid.
    """
    address = Address(path, storage_options)
    _check_numbers(batch_size, shard_mb, max_tokens, workers, packing, engine)
    kind = as_dtype(dtype)
    existing = _existing(address, resume)
    loaded = model if isinstance(model, Model) else load(model)
    documents = read_documents(data, column)
    layout = _layout(loaded, documents, context, batch_size or WINDOWS, packing, exclude_special, max_tokens)
    recorder, sites = _planned(loaded, documents, at, kind, layout, shard_mb)
    manifest = Manifest(
        complete=False,
        origin=_origin(loaded, documents),
        layout=recorder.layout,
        sites=sites,
        tokenizer=_tokenizer_file(loaded, documents),
        shards=[],
    )
    if existing is not None:
        _same(existing, manifest, address)
        if existing.complete:
            return Store(address)
    with writing(address) as alive:
        if address.exists("manifest.json"):
            begun = Manifest.load(address)  # another writer may have begun or gone on meanwhile
            _same(begun, manifest, address)
            manifest = begun
        else:
            _room(address, manifest, documents)
            if manifest.tokenizer is not None:
                with untouched(loaded.tokenizer.backend_tokenizer):
                    address.write(manifest.tokenizer.name, _tokenizer_state(loaded))
            manifest.save(address)
        if not manifest.complete:
            address.sweep()
            manifest = run(address, manifest, recorder, documents, engine, workers, progress, alive)
    _tell(manifest)
    return Store(address)


def _check_numbers(
    batch_size: int | None, shard_mb: float, max_tokens: int | None, workers: int, packing: str, engine: str
) -> None:
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if not shard_mb > 0:
        raise InputError(f"shard_mb must be more than 0, not {shard_mb}")
    if packing not in ("pack", "pad"):
        raise InputError(f'packing is "pack" or "pad", not {packing!r}')
    if engine not in ("local", "ray"):
        raise InputError(f'engine is "local" or "ray", not {engine!r}')


def _existing(address: Address, resume: bool) -> Manifest | None:
    """The manifest at an address, None if nothing lies there."""
    if address.empty() or _only_leavings(address):
        return None
    try:
        found = Manifest.load(address)
    except StoreError as error:
        if not address.exists("manifest.json"):
            raise InputError(f"{address} exists and is not a store; choose another path or remove it") from None
        raise error
    if not resume:
        raise InputError(
            f"{address} holds a store; remove it, choose another path, or pass resume=True to go on with it"
        )
    return found


def _only_leavings(address: Address) -> bool:
    """Whether a writer was stopped before its first manifest."""
    names = address.names()
    return bool(names) and all(n in (LOCK, "tokenizer.json") or n.endswith(".partial") for n in names)


def _layout(
    model: Model,
    documents: Documents,
    context: int | None,
    batch_size: int,
    packing: str,
    exclude_special: bool,
    max_tokens: int | None,
) -> Layout:
    """The sizes, with one pass for a shard until the width of a row is known."""
    if documents.kind == "text" and model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; pass token ids, or ac.load(..., tokenizer=...)")
    if documents.kind == "images" and model.processor is None:
        raise InputError(f"{model.name} has no image processor; pass an array (row, channel, height, width)")
    if context is not None and context < 2:
        raise InputError(f"context must be at least 2, not {context}")
    has_tokens, size = documents.kind in ("text", "tokens"), 0
    if has_tokens:
        limits = [c for c in (context, model.context) if c is not None]
        if not limits:
            raise InputError(f"{model.name} has no longest context; pass context=")
        size = min(limits)
    return Layout(
        packing=packing if has_tokens else "none",  # type: ignore[arg-type]
        context=size,
        batch_size=batch_size,
        windows_per_shard=batch_size,
        exclude_special=exclude_special,
        max_tokens=max_tokens,
    )


def _planned(
    model: Model, documents: Documents, at: Any, dtype: str, layout: Layout, shard_mb: float
) -> tuple[Recorder, list[StoredSite]]:
    """What records, with the size of a shard, and the sites, from one window that is read for their shapes."""
    sites, rows = Recorder(model, at, layout).trial(_first(documents, model, layout), dtype)
    per_window = layout.context or rows
    largest = max(row_bytes(site.shape, site.dtype) for site in sites)
    passes = max(1, int(shard_mb * 1e6 // (largest * per_window * layout.batch_size)))
    layout = layout.model_copy(update={"windows_per_shard": passes * layout.batch_size})
    recorder = Recorder(model, [site.name for site in sites], layout)
    recorder.per_window = rows
    return recorder, sites


def _origin(model: Model, documents: Documents) -> Origin:
    has_tokenizer = documents.kind in ("text", "tokens") and model.tokenizer is not None
    return Origin(
        model={"name": model.name, "fingerprint": model.fingerprint(), "dtype": str(model.dtype)},
        tokenizer=tokenizer_fingerprint(model.tokenizer) if has_tokenizer else None,
        data={"kind": documents.kind, "name": documents.name, "fingerprint": documents.fingerprint},
        versions={"actinium": __version__} | {name: version(name) for name in ("torch", "transformers")},
    )


def _tokenizer_state(model: Model) -> bytes:
    return str(model.tokenizer.backend_tokenizer.to_str()).encode()


def _tokenizer_file(model: Model, documents: Documents) -> File | None:
    """The entry of the tokenizer's own file, which turns ids back to text; only fast tokenizers have one."""
    if documents.kind not in ("text", "tokens") or not hasattr(model.tokenizer, "backend_tokenizer"):
        return None
    with untouched(model.tokenizer.backend_tokenizer):
        data = _tokenizer_state(model)
    return File(name="tokenizer.json", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _first(documents: Documents, model: Model, layout: Layout) -> Block:
    one = layout.model_copy(update={"windows_per_shard": 1})
    first = next(blocks(documents, model.tokenizer, one), None)
    if first is None:
        raise InputError(f"{documents.name}: no document has text that the tokenizer knows")
    return first


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: its whole state where it is a fast one, else its vocabulary."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return fingerprint(sorted(tokenizer.get_vocab().items()))
    with untouched(inner):
        return fingerprint(inner.to_str())


@contextmanager
def untouched(inner: Any) -> Iterator[None]:
    """A fast tokenizer without the truncation and padding of its last call, which are not its own."""
    truncation, padding = inner.truncation, inner.padding
    inner.no_truncation()
    inner.no_padding()
    try:
        yield
    finally:
        if truncation:
            inner.enable_truncation(**truncation)
        if padding:
            inner.enable_padding(**padding)


def _same(old: Manifest, new: Manifest, address: Address) -> None:
    """Refuse to go on with a store that another call made.

    Raises:
        StoreError: naming what differs.
    """
    pairs = [
        ("model", old.origin.model["fingerprint"], new.origin.model["fingerprint"]),
        ("model's dtype", old.origin.model["dtype"], new.origin.model["dtype"]),
        ("tokenizer", old.origin.tokenizer, new.origin.tokenizer),
        ("data", old.origin.data["fingerprint"], new.origin.data["fingerprint"]),
        *((name, a, getattr(new.layout, name)) for name, a in old.layout),
        ("sites", [s.model_dump() for s in old.sites], [s.model_dump() for s in new.sites]),
        *((f"version of {name}", old.origin.versions.get(name), v) for name, v in new.origin.versions.items()),
    ]
    if old.complete:
        pairs = pairs[: -len(new.origin.versions)]
    for name, before, now in pairs:
        if before != now:
            raise StoreError(
                f"{address} was made with another {name} ({_short(before)}, now {_short(now)}); "
                "pass what it was made with to go on, choose another path, or remove it"
            )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text if len(text) < 120 else f"{text[:117]}…"


def _room(address: Address, manifest: Manifest, documents: Documents) -> None:
    """Refuse what cannot fit on the disk, where the number of rows is known before.

    Raises:
        StoreError: with the bytes needed and left.
    """
    free = address.free()
    limit = manifest.layout.max_tokens
    if free is None or documents.kind == "text" or documents.size is None:
        return
    windows = documents.size if documents.kind != "tokens" else 0
    if limit is not None:
        windows = min(windows, limit)
    need = windows * sum(row_bytes(s.shape, s.dtype) for s in manifest.sites)
    if need > free:
        raise StoreError(f"no space left for {address}: at least {need / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _tell(manifest: Manifest) -> None:
    """Warn of values that could not be kept as they were."""
    for site in manifest.sites:
        saturated = sum(shard.saturated.get(site.name, 0) for shard in manifest.shards)
        not_finite = sum(shard.not_finite.get(site.name, 0) for shard in manifest.shards)
        if saturated:
            warnings.warn(
                f"{site.name}: {saturated} values were beyond the range of {site.dtype} and were set to its largest; "
                'dtype="bfloat16" or "float32" keeps them',
                ActiniumWarning,
                stacklevel=3,
            )
        if not_finite:
            warnings.warn(f"{site.name}: {not_finite} values were NaN or infinite", ActiniumWarning, stacklevel=3)
