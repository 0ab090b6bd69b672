"""The language of rules: what it means, against Python's own, and what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actinium.core.errors import InputError, UnknownNameError
from actinium.steering.rules import Rule

NAMES = ("C1", "C2", "C3")
ROWS = torch.tensor(list(itertools.product([False, True], repeat=3)))
VALUES = dict(zip(NAMES, ROWS.T, strict=True))


@pytest.mark.parametrize(
    "text",
    ["C1 or (C2 and not C3)", "C1 or C2 and not C3", "not (C1 or C2)", "C1 and C2 or C3", "not not C2", "NOT C1 Or C3"],
)
def test_rules_mean_what_python_means(text):
    want = [eval(text.lower(), {}, dict(zip(map(str.lower, NAMES), row, strict=True))) for row in ROWS.tolist()]
    assert Rule.parse(f"if {text} then B1").holds(VALUES).tolist() == want


@st.composite
def expressions(draw, depth=3):
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(NAMES))
    kind = draw(st.sampled_from(["not", "and", "or"]))
    if kind == "not":
        return f"not ({draw(expressions(depth=depth - 1))})"
    return f"({draw(expressions(depth=depth - 1))}) {kind} ({draw(expressions(depth=depth - 1))})"


@given(expressions())
def test_a_rule_as_text_is_read_as_the_same_rule(text):
    rule = Rule.parse(f"if {text} then B1, B2")
    assert Rule.parse(str(rule)) == rule
    want = [eval(text, {}, dict(zip(NAMES, row, strict=True))) for row in ROWS.tolist()]
    assert rule.holds(VALUES).tolist() == want


def test_parts_of_a_rule():
    rule = Rule.parse('IF C2 or C1 and not C2 THEN B1 and "be kind, then stop"')
    assert rule.conditions == ("C2", "C1") and rule.behaviours == ("B1", "be kind, then stop")
    assert Rule.parse("C1 -> B1") == Rule.parse("if C1 then B1")
    assert Rule.parse('if "if it rains then" then B1').conditions == ("if it rains then",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a rule is a text"),
        ("C1", "expected 'if CONDITION then BEHAVIOUR'"),
        ("if C1", "expected one 'then'"),
        ("if C1 then B1 then B2", "found 2"),
        ("if then B1", "no condition"),
        ("if C1 then", "no behaviour"),
        ("if C1 and then B1", "expected a name"),
        ("if (C1 then B1", "expected '\\)'"),
        ("if C1 C2 then B1", "found 'C2'"),
        ("if C1 then B1 or B2", "joined by 'and'"),
        ("if C1 then not B1", "joined by 'and'"),
        ("if C1 then B1 and B1", "twice"),
        ("if C1 + C2 then B1", "begins neither"),
    ],
)
def test_what_is_no_rule_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        Rule.parse(text)


def test_unknown_names_get_the_nearest_spelling():
    rule = Rule.parse("if medical and not legl then refuse")
    with pytest.raises(UnknownNameError, match="did you mean 'legal'"):
        rule.check(["medical", "legal"], ["refuse"])
    with pytest.raises(UnknownNameError, match="no behaviour 'refuse'; did you mean 'refusal'"):
        rule.check(["medical", "legl"], ["refusal"])
