"""The report as data: what its JSON file holds.

`schema.json` beside this file is made from these classes. Numbers are JSON numbers; NaN is null, and the
infinities are the strings "Infinity" and "-Infinity". Nothing in it depends on the clock.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

__all__ = [
    "VERSION",
    "DataFacts",
    "Document",
    "Finding",
    "Measurement",
    "ModelFacts",
    "Variable",
    "json_schema",
    "plain_values",
]

VERSION = "1.0"
"""Version of the schema: the first number changes when something is removed or means something else."""

Number = Annotated[int | float, Field(allow_inf_nan=False)]
Values = TypeAliasType("Values", "Number | bool | str | list[Values] | None")


class Record(BaseModel):
    """Base of every part of the report: no unknown fields, and strict JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelFacts(Record):
    """The model that was read."""

    name: str
    module: str = Field(description="class of the module")
    kind: str = Field(description="causal-lm, masked-lm, encoder-decoder, vision or other")
    family: str | None
    parameters: int
    layers: int = Field(description="blocks; 0 for a module without known blocks")
    d_model: int
    heads: int
    context: int | None = Field(description="most tokens in a sequence")
    dtype: str
    device: str
    fingerprint: str = Field(description="SHA-256 of class, configuration and weights")
    notes: list[str] = Field(description="what was said while it was loaded")


class DataFacts(Record):
    """What it was read with."""

    source: str
    kind: Literal["text", "images", "arrays"]
    used: int = Field(description="documents, images or rows that were read")
    available: int = Field(description="how many there were")
    rows: int = Field(description="rows of the model's input; a long document fills several")
    tokens: int | None = Field(description="tokens without padding")
    fingerprint: str = Field(description="SHA-256 of the input")
    notes: list[str]


class Variable(Record):
    """One array of numbers, with its dimensions named."""

    dims: list[str]
    values: Values = Field(description="nested lists in the order of dims; null is NaN")


class Measurement(Record):
    """What one measurement found, or why it found nothing."""

    name: str
    title: str
    state: Literal["done", "not applicable", "failed", "not run"]
    reason: str | None = Field(description="why it is not done")
    method: str | None = Field(description="the function that measured")
    paper: str | None
    rows: int | None = Field(description="rows of the input that it read")
    tokens: int | None
    settings: dict[str, Any]
    notes: list[str] = Field(description="what was said while it ran")
    coords: dict[str, Variable] = Field(description="labels of the dimensions")
    variables: dict[str, Variable]
    omitted: list[str] = Field(description="variables left out: values per row and position")


class Finding(Record):
    """Something that stands out.

    The rule behind it is in the table of `docs/scan.md`.
    """

    rule: str
    severity: Literal["critical", "warning", "opportunity", "note"]
    what: str
    where: str
    value: Values = Field(description="how big it is; null where it is not a number")
    unit: str
    why: str = Field(description="why it matters")
    look: str = Field(description="Python that shows more; it starts with imports and runs as it stands")
    threshold: str = Field(description="the condition it met")
    source: str
    measurement: str


class Document(Record):
    """The whole report."""

    schema_version: Literal["1.0"] = "1.0"
    state: Literal["complete", "interrupted"]
    model: ModelFacts
    data: DataFacts
    versions: dict[str, str | None] = Field(description="of the libraries")
    seed: int
    setup: str = Field(description="Python that loads the model and makes the inputs again")
    findings: list[Finding] = Field(description="the most important first")
    measurements: list[Measurement]

    def to_json(self) -> str:
        """Strict JSON: sorted keys, no NaN, one measurement after the other."""
        return json.dumps(self.model_dump(), ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the report."""
    made = Document.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def plain_values(array: Any) -> Any:
    """An array, number or text as JSON values; NaN becomes None, an infinity its name."""
    if isinstance(array, np.ndarray):
        return [plain_values(item) for item in array] if array.ndim else plain_values(array.item())
    if isinstance(array, np.generic):
        array = array.item()
    if isinstance(array, list | tuple):
        return [plain_values(item) for item in array]
    if isinstance(array, float) and not math.isfinite(array):
        return None if math.isnan(array) else ("Infinity" if array > 0 else "-Infinity")
    return array
