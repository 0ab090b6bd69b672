"""Rules: the language, what follows and what does not, and the same answers as truth tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actinium.core.errors import InputError, UnknownNameError
from actinium.features.activation_reasoning.formulas import And, Atom, Implies, Not, Or, Xor, cnf, dnf, parse
from actinium.features.activation_reasoning.rules import Rule, RuleBase

NAMES = "abcde"
atoms = st.sampled_from(NAMES).map(Atom)


def _larger(inner):
    many = st.lists(inner, min_size=2, max_size=3).map(tuple)
    pairs = st.tuples(inner, inner)
    return st.one_of(
        inner.map(Not), many.map(And), many.map(Or), pairs.map(lambda p: Xor(*p)), pairs.map(lambda p: Implies(*p))
    )


formulas = st.recursive(atoms, _larger, max_leaves=6)
horn = st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), st.sampled_from(NAMES)).map(
    lambda pair: f"{' and '.join(pair[0])} -> {pair[1]}"
)
literals = st.tuples(st.sampled_from(NAMES), st.booleans()).map(lambda p: p[0] if p[1] else f"not {p[0]}")


def true(formula, world):
    """The truth value of a formula, by its definition."""
    match formula:
        case Atom(name):
            return world[name]
        case Not(part):
            return not true(part, world)
        case And(parts):
            return all(true(p, world) for p in parts)
        case Or(parts):
            return any(true(p, world) for p in parts)
        case Xor(left, right):
            return true(left, world) != true(right, world)
        case Implies(body, head):
            return not true(body, world) or true(head, world)


def worlds():
    for values in itertools.product([False, True], repeat=len(NAMES)):
        yield dict(zip(NAMES, values, strict=True))


@given(formulas)
def test_a_formula_is_read_as_it_is_written(formula):
    assert parse(str(formula)) == formula


@given(formulas)
def test_normal_forms_have_the_truth_table_of_the_formula(formula):
    clauses, conjunctions = cnf(formula), dnf(formula)
    for world in worlds():
        value = true(formula, world)
        assert value == all(any(world[n] == sign for n, sign in c) for c in clauses)
        assert value == any(all(world[n] == sign for n, sign in c) for c in conjunctions)


def test_connectives_bind_in_their_order():
    assert parse("not a and b or c xor d -> e -> f") == parse("((((not a) and b) or (c xor d)) -> (e -> f))")
    assert parse("~a & b | c ^ d => e") == parse("not a and b or c xor d -> e")
    assert parse('"golden gate" -> not-x.y') == Implies(Atom("golden gate"), Atom("not-x.y"))
    assert parse("NOT a") == Not(Atom("a")) and parse("a, b") == parse("a and b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a and", "found the end"),
        ("a b", "found 'b' at 2"),
        ("(a", r"expected '\)'"),
        ("a ? b", r"'\?' at 2"),
        ("-> b", "found '->' at 0"),
        ("", "is a text"),
    ],
)
def test_what_is_no_formula_is_refused_with_its_place(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


@given(st.lists(horn, max_size=6), st.lists(st.sampled_from(NAMES), max_size=3))
def test_of_horn_rules_exactly_what_is_true_in_every_model_follows(rules, facts):
    base = RuleBase(rules)
    models = [w for w in worlds() if all(w[f] for f in facts) and all(true(parse(r), w) for r in rules)]
    closed = base.forward(facts)
    assert closed.atoms == base.forward(facts, "explicit").atoms
    for name in NAMES:
        follows = all(w[name] for w in models)
        assert (name in closed.atoms) == follows
        answer = base.entails(facts, name)
        assert answer.value == (True if follows else None)
        assert (answer.proof is not None) == follows


@given(st.lists(st.tuples(formulas, formulas), max_size=3), st.lists(formulas, max_size=3), formulas)
@settings(max_examples=60)
def test_what_is_proved_is_true_in_every_model(pairs, facts, query):
    rules = [Rule(*pair) for pair in pairs if cnf(pair[1])]
    models = [
        w for w in worlds() if all(true(f, w) for f in facts) and all(true(Implies(r.body, r.head), w) for r in rules)
    ]
    value, proof = RuleBase(rules).entails([str(f) for f in facts], str(query))
    assert value is None or proof is not None
    if models and value is not None:
        assert all(true(query, w) == value for w in models)


@given(
    st.lists(st.tuples(st.lists(literals, min_size=1, max_size=2), st.sampled_from(NAMES)), max_size=6),
    st.lists(st.sampled_from(NAMES), max_size=3),
    st.randoms(use_true_random=False),
)
def test_the_closure_is_idempotent_and_independent_of_the_order_of_rules(rules, facts, random):
    texts = [f"{' and '.join(body)} -> {head}" for body, head in rules]
    base = RuleBase(texts)
    try:
        first = base.forward(facts)
    except InputError:
        with pytest.raises(InputError, match="not stratified"):
            RuleBase(reversed(texts)).strata()
        return
    assert base.forward(first.atoms).literals == first.literals
    shuffled = list(texts)
    random.shuffle(shuffled)
    again = RuleBase(shuffled).forward(facts)
    assert again.literals == first.literals
    assert {str(r) for r in again.fired} == {str(r) for r in first.fired}


def test_a_chain_is_proved_in_as_many_steps_as_it_has_rules():
    value, proof = RuleBase(["b -> c", "a -> b", "z -> c"]).entails(["a"], "c")
    assert value is True and proof.steps == 2
    assert proof.lines() == ["a  [fact]", "b  [a -> b] from a", "c  [b -> c] from b"]


def test_a_disjunction_gives_what_is_left_when_the_rest_is_refuted():
    assert RuleBase().entails(["a or b", "not a"], "b").value is True
    assert RuleBase().entails(["a or b or c", "not c"], "a or b").value is True
    assert RuleBase().entails(["a or b"], "a").value is None
    assert RuleBase().entails(["a xor b", "a"], "b").value is False
    assert RuleBase(["a -> b or c"]).entails(["a", "not b"], "c").value is True


def test_a_proved_disjunct_is_enough_whatever_the_other_is():
    assert RuleBase(["a -> b"]).entails(["a"], "b or unseen").value is True
    assert RuleBase(["a -> b"]).entails(["a"], "not b and unseen").value is False


def test_the_unknown_and_the_contradictory_have_no_answer():
    assert RuleBase(["a -> b"]).entails(["a"], "unseen") == (None, None)
    value, proof = RuleBase().entails(["a", "not a"], "a")
    assert value is None and proof.by == "contradiction"
    # Nothing else follows from a contradiction.
    assert RuleBase().entails(["a", "not a"], "b") == (None, None)
    assert RuleBase(["a -> b"]).entails(["a", "not a"], "b").value is True


def test_rules_are_not_turned_round():
    base = RuleBase(["bird -> flies", "penguin -> not flies"])
    assert base.entails(["bird"], "penguin") == (None, None)
    assert base.entails(["penguin"], "flies").value is False


def test_in_a_closed_world_absence_is_negation_and_strata_are_kept():
    base = RuleBase(["a and not b -> c", "d -> b", "not c -> e"])
    assert base.forward(["a"]).atoms == {"a", "c"}
    assert base.forward(["a", "d"]).atoms == {"a", "b", "d", "e"}
    assert base.forward(["a"], "explicit").atoms == {"a"}
    assert base.forward(["a", "not b"], "explicit").atoms == {"a", "c"}
    assert str(base.forward(["a"]).proof(("c", True))).splitlines()[1] == "not b  [failure]"


def test_rules_that_depend_on_their_own_absence_are_refused():
    with pytest.raises(InputError, match="not stratified: b, c depend"):
        RuleBase(["a and not b -> c", "c -> b"]).forward(["a"])
    with pytest.raises(InputError, match="not stratified: b depend"):
        RuleBase(["not b -> b"]).strata()
    assert RuleBase(["a and not b -> c", "c -> b"]).entails(["a", "not b"], "c").value is True


def test_an_ordered_body_is_a_subsequence():
    base = RuleBase(["x and y -> z", "b and a and b -> d"])
    assert [r.heads for r in base.in_order(["x", "q", "y"])] == [("z",)]
    assert base.in_order(["y", "x"]) == ()
    assert base.in_order(["a", "b", "a"]) == ()
    assert [r.heads for r in base.in_order(["b", "a", "c", "b"])] == [("d",)]
    with pytest.raises(InputError, match="ordered body"):
        RuleBase(["a or b -> c"]).in_order(["a"])


def test_what_is_no_rule_is_refused():
    with pytest.raises(InputError, match="no arrow"):
        RuleBase(["a and b"])
    with pytest.raises(InputError, match="one text"):
        RuleBase("a -> b")
    with pytest.raises(InputError, match="says nothing"):
        RuleBase(["a -> b or not b"])
    with pytest.raises(UnknownNameError, match="did you mean 'bird'"):
        RuleBase(["brid -> flies"]).check(["bird"])
    with pytest.raises(InputError, match="not certain"):
        RuleBase(["a -> b"]).forward(["a or c"])
    with pytest.raises(UnknownNameError, match="negation"):
        RuleBase().forward([], "fail")
    with pytest.raises(InputError, match="2048"):
        cnf(parse(" or ".join(f"(a{i} and b{i})" for i in range(12))))


def test_rules_survive_as_texts():
    base = RuleBase(["a and not (b or c) -> d", '"golden gate" -> sf'])
    assert RuleBase(base.texts()).rules == base.rules
    assert len(base.add("a -> b").add("a->b")) == 3
