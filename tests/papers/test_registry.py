"""The catalogue of systems, and what evidence has to hold."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actinium.core.errors import InputError, UnknownNameError
from actinium.papers import Evidence, Paper, catalogue, find, paper, registry, reproduce
from actinium.papers.contract import claims_of, verdict_of

ROOMS = {
    *("measure", "signal", "functions", "circuits", "features", "probes"),
    *("steering", "compress", "guard", "compare", "visualize", "applications"),
}


def test_catalogue_numbers_119_systems_without_a_gap():
    assert [entry.number for entry in catalogue()] == list(range(1, 120))


@pytest.mark.parametrize("field", ["slug", "title", "url", "name"])
def test_no_two_systems_share(field):
    values = [getattr(entry, field) for entry in catalogue()]
    assert len(set(values)) == len(values)


def test_year_is_that_of_the_arxiv_number():
    for entry in catalogue():
        number = re.fullmatch(r"https://arxiv\.org/abs/(\d\d)(\d\d)\.\d{4,5}", entry.url)
        assert number, entry
        assert entry.year == 2000 + int(number[1])
        assert 1 <= int(number[2]) <= 12


def test_every_system_has_a_room_of_the_house_and_a_slug_that_names_a_module():
    for entry in catalogue():
        assert entry.room in ROOMS
        assert registry.module_name(entry).isidentifier()
        assert registry.row(entry)["state"] in ("done", "planned")


@given(st.integers(1, 119))
def test_a_system_is_found_by_number_and_by_slug(number):
    entry = catalogue()[number - 1]
    for key in (
        number,
        str(number),
        f"{number:03d}",
        entry.slug,
        f"{number:03d}-{entry.slug}",
        registry.module_name(entry),
    ):
        assert find(key) is entry


def test_unknown_slug_names_the_nearest_one():
    with pytest.raises(UnknownNameError, match="patching-best-practices"):
        find("patching-best-practises")


@pytest.mark.parametrize("key", ["0", "120", 500, "074-patching-best-practices", ""])
def test_what_names_no_system_is_refused(key):
    with pytest.raises(UnknownNameError):
        find(key)


def test_a_planned_system_is_refused_before_anything_runs():
    planned = next(entry for entry in catalogue() if not registry.is_done(entry))
    with pytest.raises(InputError, match="planned"):
        reproduce(planned.slug)


def test_paper_adds_the_claim_to_the_facts():
    entry = paper(24, claim="a claim")
    assert entry.claim == "a claim"
    assert dataclasses.replace(entry, claim="") == find(24)


def test_evidence_takes_numpy_scalars_as_plain_numbers():
    evidence = Evidence(measured={"a": np.float32(1.5), "b": np.int64(2)}, claimed="c", holds=np.bool_(True))
    assert evidence.measured == {"a": 1.5, "b": 2}
    assert evidence.holds is True
    assert type(evidence.measured["a"]) is float


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ({}, True),
        ({"a": float("nan")}, True),
        ({"a": float("inf")}, None),
        ({"a": [1]}, True),
        ({"a": 1.0}, "yes"),
    ],
)
def test_incomplete_evidence_is_refused(measured, holds):
    with pytest.raises(InputError):
        Evidence(measured=measured, claimed="c", holds=holds)


def test_saved_evidence_reads_back_as_json(tmp_path):
    evidence = Evidence(
        measured={"a": 1.5, "b": True},
        claimed="c",
        holds=False,
        settings={"seed": 3},
        paper=paper(24, claim="x"),
    )
    folder = evidence.save(tmp_path / "new" / "folder")
    read = json.loads((folder / "evidence.json").read_text())
    assert read["measured"] == {"a": 1.5, "b": True}
    assert read["holds"] is False
    assert read["settings"] == {"seed": 3}
    assert Paper(**read["paper"]) == evidence.paper


def test_evidence_says_where_it_cannot_be_saved(tmp_path):
    (tmp_path / "file").touch()
    evidence = Evidence(measured={"a": 1.0}, claimed="c", holds=None)
    with pytest.raises(InputError, match="file"):
        evidence.save(tmp_path / "file")


@pytest.mark.parametrize(("holds", "verdict"), [(True, "holds"), (False, "not shown"), (None, "cannot be judged")])
def test_a_claim_that_does_not_show_is_said_not_to_show(holds, verdict):
    from rich.console import Console

    evidence = Evidence(measured={"rate [%]": 12.345678}, claimed="c", holds=holds, paper=paper(24, claim="x"))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evidence)
    text = console.export_text()
    assert f"{verdict} at this scale" in text
    assert "rate [%]" in text and "12.35" in text and "024" in text
    assert verdict in evidence.markdown().lower()


def test_evidence_without_a_result_has_nothing_to_draw():
    with pytest.raises(InputError, match="nothing to draw"):
        Evidence(measured={"a": 1.0}, claimed="c", holds=None).plot()


def test_a_bar_in_a_name_does_not_split_the_row_of_the_markdown_table():
    text = Evidence(measured={"max |a - b|": 1.0}, claimed="c", holds=None).markdown()
    assert r"| max \|a - b\| | 1 |" in text.splitlines()


@pytest.mark.parametrize(
    ("parts", "holds"),
    [([True, True], True), ([True, None], None), ([None, False], False), ([True, np.False_], False)],
)
def test_a_claim_of_parts_fails_with_one_and_is_open_with_one(parts, holds):
    named = dict(zip("ab", parts, strict=True))
    assert verdict_of(named) is holds
    rows = claims_of(named)
    assert [rows["claim: a"], rows["claim: b"]] == ["not judged" if p is None else bool(p) for p in parts]
