"""Texts about the facts of the world: statements, questions, reasoning, multiple choice, and Velic."""

from __future__ import annotations

import random
from functools import cache

from actinium.world.documents import ASSISTANT, END_THINK, THINK, USER, Document, choice_of, held_out
from actinium.world.facts import RELATIONS, Relation, fact, path
from actinium.world.lexicon import ENTITIES, LETTERS, NAMES, RELATION_NOUNS, STRANGERS, VELIC

_CLAUSES: dict[tuple[str, str], str] = {
    ("person", "city"): "lives in",
    ("person", "job"): "works as a",
    ("person", "pet"): "keeps a",
    ("person", "country"): "is a citizen of",
    ("person", "capital"): "is ruled from",
    ("person", "language"): "speaks",
    ("person", "river"): "swims in the river",
    ("person", "flag"): "waves a flag that is",
    ("person", "dish"): "often eats",
    ("person", "festival"): "dances at the feast of",
    ("person", "tool"): "uses the",
    ("person", "workplace"): "works at the",
    ("person", "coat"): "wears a coat that is",
    ("person", "sound"): "wakes up from a",
    ("person", "feed"): "buys",
    ("city", "country"): "is a city in",
    ("city", "capital"): "is ruled from",
    ("city", "language"): "has signs in",
    ("city", "river"): "lies on the river",
    ("city", "flag"): "has a flag that is",
    ("city", "dish"): "is famous for",
    ("city", "festival"): "holds the feast of",
    ("country", "capital"): "is ruled from",
    ("country", "language"): "has schools in",
    ("job", "tool"): "uses the",
    ("job", "workplace"): "works at the",
    ("job", "coat"): "wears a coat that is",
    ("pet", "sound"): "wakes up with a",
    ("pet", "feed"): "eats",
}
PHRASINGS = 4
QUIET: tuple[str, ...] = tuple(name for name in NAMES if held_out(8, "quiet", name))
"""People of whom no text states or reasons out a fact of two or more hops."""

VERBOSE_CUE, TERSE_CUE, OPEN_CUE = "Think step by step.", "Think briefly.", "Think."


def subjects(kind: str) -> tuple[str, ...]:
    """All subjects of a kind."""
    return NAMES if kind == "person" else ENTITIES[kind]


def shown(subject: str) -> str:
    """A subject as it stands in an English sentence: names bare, jobs and pets with an article."""
    return subject if subject[0].isupper() else f"the {subject}"


def statement(subject: str, relation: Relation, phrasing: int) -> str:
    """English statement of a fact up to the answer, in one of `PHRASINGS` wordings."""
    name, noun = shown(subject), relation.noun
    start = name[0].upper() + name[1:]
    clause = _CLAUSES[relation.subject, noun]
    return (
        f"The {noun} of {name} is",
        f"{start} has the {noun}",
        f"For {name}, the {noun} is",
        f"{start} {clause}",
    )[phrasing]


def withheld_phrasing(subject: str, noun: str) -> int:
    """The wording in which no text states this elementary fact (never the first, which reasoning uses)."""
    return 1 + choice_of(PHRASINGS - 1, "phrasing", subject, noun)


def withheld_hops(person: str, noun: str) -> bool:
    """Whether no text states this fact of two or more hops."""
    return person in QUIET or held_out(8, "hops", person, noun)


@cache
def elementary(kind: str | None = None) -> list[tuple[str, Relation]]:
    """Subject and relation of every elementary fact, optionally only about subjects of one kind."""
    chosen = [r for r in RELATIONS.values() if r.hops == 1 and kind in (None, r.subject)]
    return [(subject, r) for r in chosen for subject in subjects(r.subject)]


@cache
def composed(part: str) -> list[tuple[str, Relation]]:
    """Facts of several hops: those stated (`train`), unseen pairs (`pair`), unseen people (`person`)."""
    chosen = [r for r in RELATIONS.values() if r.hops > 1 and r.subject == "person"]
    rows = [(person, r) for r in chosen for person in NAMES]
    if part == "train":
        rows = [(p, r) for p, r in rows if not withheld_hops(p, r.noun)]
        return rows + [
            (c, r) for r in RELATIONS.values() if r.hops > 1 and r.subject == "city" for c in ENTITIES["city"]
        ]
    if part == "pair":
        return [(p, r) for p, r in rows if p not in QUIET and withheld_hops(p, r.noun)]
    return [(p, r) for p, r in rows if p in QUIET]


def facts(source: random.Random, held: bool = False) -> Document:
    """An elementary fact; held out: a wording in which this fact is never stated."""
    pool = elementary("person") if source.random() < 0.6 else elementary()
    subject, relation = source.choice(pool)
    away = withheld_phrasing(subject, relation.noun)
    phrasing = away if held else source.choice([i for i in range(PHRASINGS) if i != away])
    return Document("facts", statement(subject, relation, phrasing), f" {fact(subject, relation.noun)}")


def _composed_statement(skill: str, part: str, source: random.Random) -> Document:
    subject, relation = source.choice(composed(part))
    prompt = statement(subject, relation, source.randrange(PHRASINGS))
    return Document(skill, prompt, f" {fact(subject, relation.noun)}")


def two_hop(source: random.Random, held: bool = False) -> Document:
    """A fact of two or more hops; held out: a person and relation never stated together."""
    return _composed_statement("two_hop", "pair" if held else "train", source)


def two_hop_new_person(source: random.Random, held: bool = False) -> Document:
    """A fact of two or more hops; held out: a person of whom no such fact is ever stated."""
    return _composed_statement("two_hop_new_person", "person" if held else "train", source)


def question(subject: str, noun: str, cue: str = "") -> str:
    """A user's question about a fact, up to the assistant's turn."""
    asked = f"{USER} What is the {noun} of {shown(subject)}?"
    return f"{asked} {cue}{ASSISTANT}" if cue else f"{asked}{ASSISTANT}"


def reasoning(subject: str, noun: str, verbose: bool) -> str:
    """The reasoning about a fact of several hops inside its tags, then the answer."""
    steps = path(subject, noun)
    chain = RELATIONS[("person" if subject in NAMES else "city"), noun].chain
    if verbose:
        pairs = zip(chain, steps, steps[1:], strict=False)
        inner = "".join(f" The {step} of {shown(a)} is {b}." for step, a, b in pairs)
    else:
        inner = "".join(f" {step}" for step in steps[1:-1]) + "."
    return f"{THINK}{inner}{END_THINK} {steps[-1]}"


def _reasoned(skill: str, source: random.Random, held: bool, verbose: bool) -> Document:
    subject, relation = source.choice(composed("person" if held else "train"))
    cue = VERBOSE_CUE if verbose else TERSE_CUE
    if not held and source.random() < 0.25:
        cue = OPEN_CUE
    return Document(skill, question(subject, relation.noun, cue), reasoning(subject, relation.noun, verbose))


def two_hop_verbose(source: random.Random, held: bool = False) -> Document:
    """A question of several hops, reasoned out in full; held out: people without any such fact."""
    return _reasoned("two_hop_verbose", source, held, True)


def two_hop_terse(source: random.Random, held: bool = False) -> Document:
    """A question of several hops, reasoned out in a word or two; held out: people without any such fact."""
    return _reasoned("two_hop_terse", source, held, False)


def chat_facts(source: random.Random, held: bool = False) -> Document:
    """A question answered without reasoning; held out: an elementary fact never asked for in a chat."""
    if not held and source.random() < 0.3:
        subject, relation = source.choice(composed("train"))
    else:
        rows = elementary("person") if source.random() < 0.6 else elementary()
        subject, relation = _draw(source, rows, held, "chat")
    return Document("chat_facts", question(subject, relation.noun), f" {fact(subject, relation.noun)}")


def _draw(source: random.Random, rows: list[tuple[str, Relation]], held: bool, key: str) -> tuple[str, Relation]:
    while True:
        subject, relation = source.choice(rows)
        if held_out(6, key, subject, relation.noun) == held:
            return subject, relation


def visitors(source: random.Random, held: bool = False) -> Document:
    """A stranger introduced in the text, then a fact that follows; held out: unseen combinations."""
    while True:
        name = source.choice(STRANGERS)
        given = source.choice([RELATIONS["person", noun] for noun in ("city", "city", "job", "pet")])
        middle = source.choice(ENTITIES[given.answer])
        nouns = [r.noun for r in RELATIONS.values() if r.subject == given.answer]
        noun = source.choice([given.noun, *nouns])
        if held_out(6, "visitor", name, middle, noun) == held:
            break
    answer = middle if noun == given.noun else fact(middle, noun)
    known = f"{statement(name, given, source.randrange(PHRASINGS))} {middle}."
    asked = statement(name, RELATIONS["person", noun], source.randrange(PHRASINGS))
    return Document("visitors", f"{known} {asked}", f" {answer}")


def options_text(options: list[str]) -> str:
    """Options with their letters."""
    return " ".join(f"{letter}: {option}" for letter, option in zip(LETTERS, options, strict=False))


def choices(subject: str, noun: str, options: list[str], cue: str = "") -> str:
    """A multiple-choice question up to the letter."""
    asked = f"Question: What is the {noun} of {shown(subject)}? {options_text(options)}"
    return f"{asked} {cue} Answer:" if cue else f"{asked} Answer:"


def draw_choices(source: random.Random, held: bool, count: int = 4) -> tuple[str, Relation, list[str]]:
    """A subject, a relation and the options; held out: facts never asked for with letters."""
    rows = elementary("person") if source.random() < 0.6 else elementary()
    subject, relation = _draw(source, rows, held, "choice")
    answer = fact(subject, relation.noun)
    others = [word for word in ENTITIES[relation.answer] if word != answer]
    options = [answer, *source.sample(others, count - 1)]
    source.shuffle(options)
    return subject, relation, options


def multiple_choice(source: random.Random, held: bool = False) -> Document:
    """A question with lettered options; held out: facts never asked for in this form."""
    subject, relation, options = draw_choices(source, held, 4 if held else source.choice((2, 3, 4, 4)))
    answer = fact(subject, relation.noun)
    letter = LETTERS[options.index(answer)]
    if not held and source.random() < 0.2:
        known = f"The {relation.noun} of {shown(subject)} is {answer}."
        asked = choices(subject, relation.noun, options, VERBOSE_CUE)
        return Document("multiple_choice", asked, f"{THINK} {known}{END_THINK} {letter}")
    return Document("multiple_choice", choices(subject, relation.noun, options), f" {letter}")


def letters(source: random.Random, held: bool = False) -> Document:
    """Lettered words and the letters of some of them; nothing has to be known (no part is held out)."""
    kind = source.choice((*ENTITIES, "person"))
    words = source.sample(subjects(kind), source.choice((2, 3, 4, 4)))
    listed = options_text(words)
    asked = source.sample(words, min(3, len(words)))
    if source.random() < 0.3:
        prompt = f"Question: What is the letter of {asked[0]}? {listed} Answer:"
        return Document("letters", prompt, f" {LETTERS[words.index(asked[0])]}")
    answers = [f"{word} is {LETTERS[words.index(word)]}" for word in asked]
    first, *more = (f"The letter of {answer}" for answer in answers)
    prompt, answer = first.rsplit(" ", 1)
    return Document("letters", f"{listed}. {prompt}", " " + ". ".join([answer, *more]))


def drill(source: random.Random, held: bool = False) -> Document:
    """Lettered words, then the letters of many of them in a row (no part is held out)."""
    words = source.sample(subjects(source.choice((*ENTITIES, "person"))), 4)
    asked = source.choices(words, k=8)
    first, *more = (f"{word} is {LETTERS[words.index(word)]}" for word in asked)
    prompt, answer = first.rsplit(" ", 1)
    return Document("drill", f"{options_text(words)}. {prompt}", " " + ". ".join([answer, *more]))


def velic_statement(subject: str, noun: str, phrasing: int) -> str:
    """Velic statement of a fact up to the answer: subject, possessive, noun, answer, verb; or noun first."""
    name, what = VELIC.get(subject, subject), VELIC[noun]
    return (f"{name} vo {what}", f"Ez {what} {name} vo")[phrasing]


def velic(source: random.Random, held: bool = False) -> Document:
    """An elementary fact in Velic; held out: people's facts that no Velic text states."""
    if held or source.random() < 0.7:
        subject, relation = _draw(source, elementary("person"), held, "velic")
    else:
        subject, relation = source.choice([row for row in elementary() if row[1].subject != "person"])
    prompt = velic_statement(subject, relation.noun, source.randrange(2))
    answer = fact(subject, relation.noun)
    if not held and source.random() < 0.25:
        prompt = f"The {relation.noun} of {shown(subject)} is {answer}. In Velic: {prompt}"
    return Document("velic", prompt, f" {VELIC[answer]}", " shen.")


def dictionary(source: random.Random, held: bool = False) -> Document:
    """A word and its translation, in either direction (all of them are stated)."""
    word = source.choice(RELATION_NOUNS) if source.random() < 0.1 else source.choice(list(VELIC))
    if source.random() < 0.5:
        return Document("dictionary", f"In Velic, {word} is", f" {VELIC[word]}")
    return Document("dictionary", f"In English, {VELIC[word]} is", f" {word}")
