"""What was read: activations by site, with the tokens and the mask they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError
from actinium.core.sites import Site, select

if TYPE_CHECKING:
    import xarray

__all__ = ["Recording"]

FORMAT = 1
Words = list[list[str]] | None


class Recording:
    """Activations by site.

    Attributes:
        values: by site name: a tensor in the site's layout, or a reducer's result. Padding positions hold zeros.
        dims: by site name: the names of the dimensions.
        tokens: (batch, pos) int64, or None where the input has none.
        mask: (batch, pos) bool, False on padding, or None.
        rows: (batch,) int64: the text that each row comes from.
    """

    def __init__(
        self,
        values: dict[str, Any],
        dims: dict[str, tuple[str, ...]],
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        rows: Tensor | None = None,
        words: Words | Callable[[], Words] = None,
        n_layers: int = 0,
    ) -> None:
        self.values, self.dims, self.tokens, self.mask, self.rows = values, dims, tokens, mask, rows
        self._words, self.n_layers = words, n_layers

    @property
    def words(self) -> Words:
        """The tokens as text, by row, or None. They are decoded when they are first asked for."""
        if callable(self._words):
            self._words = self._words()
        return self._words

    @words.setter
    def words(self, words: Words | Callable[[], Words]) -> None:
        self._words = words

    @property
    def sites(self) -> list[str]:
        """Names of the recorded sites."""
        return list(self.values)

    def __getitem__(self, site: str | Site) -> Any:
        """The values of one site.

        Raises:
            SiteError: if it was not recorded; the nearest names are offered.
        """
        name = site.name if isinstance(site, Site) else site
        return self.values[name] if name in self.values else self.values[self._one(name)]

    def _one(self, name: str) -> str:
        found = select(name, self.values, self.n_layers)
        if len(found) != 1:
            raise InputError(f"{name!r} means {len(found)} sites; use rec.stack({name!r}) for all of them")
        return found[0]

    def __contains__(self, site: object) -> bool:
        return site in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def stack(self, pattern: str) -> Tensor:
        """All sites of a pattern in one tensor, (site, …).

        Raises:
            SiteError: if nothing matches.
            InputError: if the shapes differ.
        """
        names = select(pattern, self.values, self.n_layers)
        shapes = {tuple(self.values[n].shape) for n in names}
        if len(shapes) > 1:
            raise InputError(f"{pattern!r}: the sites differ in shape ({', '.join(map(str, sorted(shapes)))})")
        return torch.stack([self.values[n] for n in names])

    def to_xarray(self) -> xarray.Dataset:
        """A labelled copy: one variable for each site, with shared dimensions and the tokens as a coordinate."""
        import xarray

        sizes: dict[str, int] = {}
        variables: dict[str, Any] = {}
        for name, value in self.values.items():
            if not isinstance(value, Tensor):
                raise InputError(f"{name} holds a reducer's result ({type(value).__name__}), not a tensor")
            dims = []
            for dim, size in zip(self.dims[name], value.shape, strict=True):
                dim = dim if sizes.setdefault(dim, size) == size else f"{dim}_{name}"
                dims.append(dim)
            array = value.detach().cpu()
            array = array.float() if array.dtype == torch.bfloat16 else array
            variables[name] = (tuple(dims), array.numpy())
        coords: dict[str, Any] = {}
        if self.tokens is not None and sizes.get("pos") == self.tokens.shape[1]:
            coords["token"] = (("batch", "pos"), self.tokens.cpu().numpy())
            if self.mask is not None:
                coords["mask"] = (("batch", "pos"), self.mask.cpu().numpy())
        return xarray.Dataset(variables, coords=coords)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            InputError: if a value is not a tensor.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for name, value in self.values.items():
            if not isinstance(value, Tensor):
                raise InputError(f"{name} holds a reducer's result ({type(value).__name__}); only tensors are saved")
            tensors[f"site:{name}"] = value.detach().cpu().contiguous()
        for name in ("tokens", "mask", "rows"):
            value = getattr(self, name)
            if value is not None:
                tensors[name] = value.cpu().contiguous()
        about = {"format": FORMAT, "dims": self.dims, "words": self.words, "n_layers": self.n_layers}
        path = Path(path)
        # Tensors that share memory (two sites at one point) must each be written whole.
        tensors = {k: v.clone() for k, v in tensors.items()}
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={"actinium": json.dumps(about)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote.

        Raises:
            LoadError: if the file is missing, damaged, or not a recording.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("actinium", "null"))
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise LoadError(f"cannot read the recording {path}: {error}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise LoadError(f"{path} is not a recording of format {FORMAT}")
        try:
            dims = {k: tuple(v) for k, v in about["dims"].items()}
            values = {k: tensors[f"site:{k}"] for k in dims}
        except (KeyError, AttributeError, TypeError) as error:
            raise LoadError(f"{path} is damaged: {error} is missing or of a wrong kind") from None
        rest = {k: tensors.get(k) for k in ("tokens", "mask", "rows")}
        return cls(values, dims, **rest, words=about.get("words"), n_layers=about.get("n_layers", 0))

    def __repr__(self) -> str:
        lines = []
        for name, value in self.values.items():
            shape = f"{tuple(value.shape)} {value.dtype}".replace("torch.", "") if isinstance(value, Tensor) else value
            lines.append(f"  {name}: {' '.join(self.dims[name])} {shape}")
        shown = lines if len(lines) <= 16 else [*lines[:15], f"  … and {len(lines) - 15} more"]
        return f"Recording of {len(self)} sites\n" + "\n".join(shown)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td><code>{escape(n)}</code></td><td>{escape(' '.join(self.dims[n]))}</td>"
            f"<td>{escape(str(tuple(v.shape)) if isinstance(v, Tensor) else repr(v))}</td></tr>"
            for n, v in self.values.items()
        )
        return f"<table><tr><th>site</th><th>dimensions</th><th>shape</th></tr>{rows}</table>"
