"""Whether every file of a store is what its manifest says."""

from __future__ import annotations

import hashlib

from actinium.core.errors import StoreError
from actinium.store.address import Address
from actinium.store.manifest import File, Manifest
from actinium.store.reader import check

__all__ = ["problems"]


def problems(address: Address, manifest: Manifest, progress: bool = False) -> list[str]:
    """A line for each file that is missing or damaged, empty if all is well."""
    files = [file for shard in manifest.shards for file in (*shard.sites, shard.table)]
    if manifest.tokenizer is not None:
        files.insert(0, manifest.tokenizer)
    if not progress:
        return [found for file in files if (found := _problem(address, file))]
    from rich.progress import track

    return [f for file in track(files, description="verifying", transient=True) if (f := _problem(address, file))]


def _problem(address: Address, file: File) -> str | None:
    if not address.exists(file.name):
        return f"{file.name} is missing; run the same create again, or restore it"
    try:
        if address.local is not None:
            return check(address.local / file.name, file)
        if hashlib.sha256(address.read(file.name)).hexdigest() != file.sha256:
            return f"{file.name} is damaged: its checksum differs; restore it, or remove it and create again"
    except (StoreError, OSError) as error:
        return f"{file.name} cannot be read: {error}"
    return None
