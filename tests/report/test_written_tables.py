"""What is written from the code is up to date."""

from __future__ import annotations

import numpy as np
import pytest

from actinium.report import schema, write_docs
from actinium.report.shown import number


def test_docs_show_every_rule_and_every_measurement(root):
    page = (root / "docs" / "scan.md").read_text()
    assert page == write_docs.with_tables(page), "run: python -m actinium.report.write_docs"
    for rule in write_docs.RULES:
        assert f"| `{rule.name}` | {rule.severity} | {rule.threshold} | {rule.source} |" in page


def test_shipped_schema_is_that_of_the_classes():
    assert write_docs.SCHEMA.read_text() == write_docs.schema_text(), "run: python -m actinium.report.write_docs"


def test_tables_replace_what_is_between_the_markers():
    page = "a\n<!-- rules -->\nstale\n<!-- end -->\nb\n<!-- measurements -->\n<!-- end -->\nc\n"
    made = write_docs.with_tables(page)
    assert "stale" not in made
    assert made.startswith("a\n<!-- rules -->\n\n| finding")
    assert made.endswith("<!-- end -->\nc\n")
    assert write_docs.with_tables(made) == made


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.array([[1.5, np.nan], [np.inf, -np.inf]]), [[1.5, None], ["Infinity", "-Infinity"]]),
        (np.array(["a"]), ["a"]),
        (np.float32(0.5), 0.5),
        (np.array(3), 3),
        (np.array([True]), [True]),
        (np.zeros((0, 2)), []),
    ],
)
def test_numbers_become_strict_json(value, plain):
    made = schema.plain_values(value)
    assert made == plain
    assert schema.Variable(dims=[], values=made).values == plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not a number"),
        (3, "3"),
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (2.345, "2.35"),
        (45.67, "45.7"),
        (12345.6, "12,346"),
        (1.5e-5, "1.50e-05"),
        (3.2e9, "3.20e+09"),
        ("Infinity", "Infinity"),
        (True, "True"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short_to_read(value, text):
    assert number(value) == text
