"""Every reproduction that exists runs, says what it measured, and gives the same numbers again."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
from matplotlib.figure import Figure

from actinium.papers import Evidence, catalogue, registry, reproduce

DONE = [entry for entry in catalogue() if registry.is_done(entry)]
pytestmark = pytest.mark.parametrize(
    "entry",
    # One worker per system: its tests share the first run.
    [pytest.param(entry, id=entry.slug, marks=pytest.mark.xdist_group(entry.slug)) for entry in DONE],
)


@pytest.fixture(scope="session")
def evidence():
    """First runs by slug, so that the tests of one system share one."""
    runs: dict[str, Evidence] = {}

    def first_run(slug: str) -> Evidence:
        if slug not in runs:
            runs[slug] = reproduce(slug, seed=0, quick=True)
        return runs[slug]

    return first_run


def test_module_states_the_facts_of_the_catalogue(entry):
    module = importlib.import_module(f"actinium.papers.{registry.module_name(entry)}")
    assert dataclasses.replace(module.PAPER, claim="") == entry
    assert module.PAPER.claim


def test_quick_run_gives_complete_evidence(entry, evidence):
    run = evidence(entry.slug)
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


def test_same_seed_gives_the_same_numbers(entry, evidence):
    assert reproduce(entry.slug, seed=0, quick=True).measured == evidence(entry.slug).measured
