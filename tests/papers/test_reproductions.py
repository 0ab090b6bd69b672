"""Every reproduction that exists runs, says what it measured, and gives the same numbers again.

The second runs have a mark of their own, `again`, so that they are a step of their own: `make test` keeps what it
measured in pytest's cache, under a digest of the sources, and `make reproducible` compares with it in another process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import actinium
from actinium.papers import Evidence, catalogue, registry, reproduce

DONE = [entry for entry in catalogue() if registry.is_done(entry)]
pytestmark = pytest.mark.parametrize(
    "entry",
    # One worker per system: its tests share the first run.
    [pytest.param(entry, id=entry.slug, marks=pytest.mark.xdist_group(entry.slug)) for entry in DONE],
)


@pytest.fixture(scope="session")
def sources():
    """Digest of everything that a reproduction can depend on."""
    digest = hashlib.sha256()
    root = Path(actinium.__file__).parent
    for file in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


class Kept:
    """What reproductions measured, from this run of the tests or an earlier one of the same sources."""

    def __init__(self, cache: pytest.Cache, sources: str) -> None:
        self.cache, self.sources = cache, sources

    def keep(self, slug: str, run: Evidence) -> None:
        self.cache.set(f"reproductions/{slug}", [self.sources, as_kept(run)])

    def first(self, slug: str) -> dict[str, float | str]:
        sources, found = self.cache.get(f"reproductions/{slug}", [None, None])
        return found if sources == self.sources else as_kept(reproduce(slug, seed=0, quick=True))


@pytest.fixture
def kept(request, sources):
    return Kept(request.config.cache, sources)


def as_kept(run: Evidence) -> dict[str, float | str]:
    """Every measured value, as it comes back from the cache."""
    return json.loads(json.dumps(dict(run.measured)))


def differing(a: dict[str, float | str], b: dict[str, float | str]) -> list[str]:
    """Names of the measured values that differ, of numbers those that differ by more than rounding.

    NumPy aligns its arrays to 16 bytes, as the allocator gives them, and BLAS sums in another order at another
    address: the last digits of a least-squares fit are not the same in every process.
    """
    return [name for name in a.keys() | b.keys() if not _same(a.get(name), b.get(name))]


def _same(a: float | str | None, b: float | str | None) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def test_module_states_the_facts_of_the_catalogue(entry):
    module = importlib.import_module(f"actinium.papers.{registry.module_name(entry)}")
    assert dataclasses.replace(module.PAPER, claim="") == entry
    assert module.PAPER.claim


def test_quick_run_gives_complete_evidence(entry, kept):
    run = reproduce(entry.slug, seed=0, quick=True)
    kept.keep(entry.slug, run)
    numbers = [value for value in run.measured.values() if not isinstance(value, str)]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)
    assert run.holds in (True, False, None)
    assert run.claimed
    assert run.settings
    if run.result is not None:
        # The page of the documentation shows it.
        ax = run.plot(Figure().add_subplot())
        assert ax.has_data()


@pytest.mark.again
def test_same_seed_gives_the_same_numbers(entry, kept):
    first = kept.first(entry.slug)
    again = as_kept(reproduce(entry.slug, seed=0, quick=True))
    assert {name: (first.get(name), again.get(name)) for name in differing(first, again)} == {}
