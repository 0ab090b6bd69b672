"""The manifest of a store: what its files are, in JSON, checked strictly when it is read."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from actinium.core.errors import StoreError
from actinium.store.address import Address

__all__ = ["FORMAT", "Cursor", "File", "Layout", "Manifest", "Origin", "Shard", "StoredSite", "folder_of"]

NAME = "manifest.json"
FORMAT = 1
KIND = "actinium-store"

Count = Annotated[int, Field(ge=0, lt=2**53)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dtype = Literal["float16", "bfloat16", "float32", "int8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Cursor(_Strict):
    """Where in the data a block of windows begins: a document, and a token within it."""

    document: Count
    token: Count = 0


class File(_Strict):
    """A file of the store: its name within the folder, its size in bytes, and its SHA-256."""

    name: str
    bytes: Count
    sha256: Digest

    @model_validator(mode="after")
    def _inside(self) -> File:
        parts = PurePosixPath(self.name).parts
        if not parts or self.name.startswith("/") or ".." in parts or "\\" in self.name or "\0" in self.name:
            raise ValueError(f"{self.name!r} is not a name inside the store")
        return self


class StoredSite(_Strict):
    """A site: its name, the names and sizes of the dimensions of one row, and how numbers are kept."""

    name: Annotated[str, Field(min_length=1)]
    dims: list[str]
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]]
    dtype: Dtype

    @model_validator(mode="after")
    def _named(self) -> StoredSite:
        if len(self.dims) != len(self.shape) or not self.shape:
            raise ValueError(f"{self.name}: {len(self.dims)} names for {len(self.shape)} dimensions")
        return self


class Shard(_Strict):
    """Some windows of the data: the files of each site, the table of their rows, and where the next shard begins.

    Attributes:
        rows: number of rows in each of its files.
        windows: number of windows.
        tokens: tokens (images, array rows) that the model read, stored or not.
        sites: one file for each site, in the order of the manifest's sites.
        table: the Parquet file that says where each row comes from.
        next: where the next shard begins.
        saturated: by site, values that were too large for the type and were set to its largest.
        not_finite: by site, values that were NaN or infinite when they were recorded.
        error: by site (int8 only), sums of squares of the rounding error and of the values.
    """

    rows: Count
    windows: Count
    tokens: Count
    sites: list[File]
    table: File
    next: Cursor
    saturated: dict[str, Count] = {}
    not_finite: dict[str, Count] = {}
    error: dict[str, tuple[float, float]] = {}


class Layout(_Strict):
    """How the data were cut into windows and the windows into shards."""

    packing: Literal["pack", "pad", "none"]
    context: Count
    batch_size: Annotated[int, Field(ge=1)]
    windows_per_shard: Annotated[int, Field(ge=1)]
    exclude_special: bool
    max_tokens: Count | None = None


class Origin(_Strict):
    """What the activations were made from.

    Attributes:
        model: name, fingerprint and dtype of the model.
        tokenizer: its fingerprint, or None.
        data: a name for the data, their kind, and their fingerprint.
        versions: of the libraries.
    """

    model: dict[str, str]
    tokenizer: str | None
    data: dict[str, str]
    versions: dict[str, str]


class Manifest(_Strict):
    """Everything about a store but its numbers."""

    kind: Literal["actinium-store"] = KIND
    format: Literal[1] = FORMAT
    complete: bool
    origin: Origin
    layout: Layout
    sites: Annotated[list[StoredSite], Field(min_length=1)]
    tokenizer: File | None = None
    shards: list[Shard]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [site.name for site in self.sites]
        if len(set(names)) != len(names):
            raise ValueError("a site is listed twice")
        files = [f.name for shard in self.shards for f in (*shard.sites, shard.table)]
        if len(set(files)) != len(files):
            raise ValueError("a file is listed twice")
        for number, shard in enumerate(self.shards):
            if len(shard.sites) != len(names):
                raise ValueError(f"shard {number} has {len(shard.sites)} files for {len(names)} sites")
            known = {*shard.saturated, *shard.not_finite, *shard.error} - set(names)
            if known:
                raise ValueError(f"shard {number} speaks of unknown sites {sorted(known)}")
        return self

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def next(self) -> Cursor:
        """Where in the data the next shard begins."""
        return self.shards[-1].next if self.shards else Cursor(document=0)

    def text(self) -> bytes:
        """The JSON of the manifest; the same manifest gives the same bytes."""
        return (json.dumps(self.model_dump(mode="json", exclude_defaults=False), indent=1) + "\n").encode()

    def save(self, address: Address) -> None:
        """Write it in place of the one before."""
        address.write(NAME, self.text())

    @classmethod
    def load(cls, address: Address) -> Manifest:
        """Read and check the manifest at an address.

        Raises:
            StoreError: there is none, it is damaged, or it is of a newer format.
        """
        if not address.exists():
            raise StoreError(f"nothing at {address}: no store was made there")
        if not address.exists(NAME):
            raise StoreError(f"{address} is not a store: it holds no {NAME}")
        return cls.parse(address.read(NAME), str(address))

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """The manifest in some bytes.

        Raises:
            StoreError: as `load`.
        """
        try:
            found: Any = json.loads(data.decode("utf-8"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise StoreError(f"the manifest of {where} is damaged: {error}; restore it from a copy") from None
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise StoreError(f"the manifest of {where} is not that of a store (kind {KIND!r} is missing)")
        version = found.get("format")
        if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT:
            raise StoreError(
                f"{where} is a store of format {version}, and this version of Actinium reads up to {FORMAT}; "
                "update it: pip install --upgrade actinium"
            )
        try:
            # From JSON, so that lists become the tuples that JSON does not have.
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise StoreError(f"the manifest of {where} is damaged at {place}: {first['msg']}") from None


def folder_of(site: str) -> str:
    """The folder of a site's shards: its name, percent-encoded where a file system may object."""
    return re.sub(r"^\.+", lambda m: "%2E" * len(m[0]), quote(site, safe="._-"))
