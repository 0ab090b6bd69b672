"""Mean and covariance of a site, computed once and kept with the store."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from actinium.core.errors import StoreError
from actinium.core.moments import Covariance
from actinium.store.address import Address
from actinium.store.manifest import folder_of
from actinium.store.reader import Reader
from actinium.store.selection import Selection
from actinium.store.streams import chunks

__all__ = ["Statistics", "statistics"]


@dataclass(frozen=True)
class Statistics:
    """Over `count` rows: `mean` (features,) and population covariance `cov` (features, features), float64.

    `dropped` rows held NaN or infinite values and were left out.
    """

    count: int
    dropped: int
    mean: Tensor
    cov: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation of each feature."""
        return self.cov.diagonal().sqrt()


def statistics(address: Address, fingerprint: str, reader: Reader, selection: Selection) -> Statistics:
    """The statistics that are kept, if they belong to these rows, else new ones, which are then kept."""
    name = f"statistics/{folder_of(reader.site.name)}.safetensors"
    mark = f"{fingerprint}:{selection.mark}"
    if address.local is not None and selection.whole:
        kept = _kept(address, name, mark)
        if kept is not None:
            return kept
    covariance = Covariance()
    for values in chunks(reader, selection):
        covariance.update(values.flatten(1))
    found = covariance.result()
    out = Statistics(found.count, found.dropped, found.mean, found.cov)
    if address.local is not None and selection.whole:
        about = {"mark": mark, "count": str(out.count), "dropped": str(out.dropped)}
        try:
            with address.staged(name) as path:
                save_file({"mean": out.mean.contiguous(), "cov": out.cov.contiguous()}, path, metadata=about)
        except StoreError:
            pass  # a store that cannot be written can still be read
    return out


def _kept(address: Address, name: str, mark: str) -> Statistics | None:
    if not address.exists(name):
        return None
    try:
        with safe_open(str(address.local / name), "pt") as file:  # type: ignore[operator]
            about = file.metadata() or {}
            if about.get("mark") != mark:
                return None
            return Statistics(
                int(about["count"]), int(about["dropped"]), file.get_tensor("mean"), file.get_tensor("cov")
            )
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
