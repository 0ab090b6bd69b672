"""The site language against a slow matcher written from its definition, and against arbitrary text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actinium.core.errors import SiteError
from actinium.core.sites import is_pattern, select, split_call, translate
from architectures import shared

WORDS = ["a", "b", "ab", "blocks", "attn", "x_1", "0", "3", "7", "12", "123"]
part = st.sampled_from(WORDS)
names = st.lists(part, min_size=1, max_size=5).map(".".join)


@st.composite
def pattern_parts(draw):
    """One part of a pattern, as the list of texts with stars that it stands for."""
    kind = draw(st.sampled_from(["word", "stars", "braces", "range", "range in braces", "any"]))
    if kind == "any":
        return "**", None
    if kind == "range":
        low = draw(st.integers(0, 13))
        high = draw(st.integers(low, 14))
        return f"{low}-{high}", [str(n) for n in range(low, high + 1)]
    if kind == "range in braces":
        low = draw(st.integers(0, 13))
        high = draw(st.integers(low, 14))
        before = draw(st.sampled_from(["", "a", "x_"]))
        return f"{before}{{{low}-{high},b}}", [f"{before}{n}" for n in range(low, high + 1)] + [f"{before}b"]
    if kind == "word":
        word = draw(part)
        return word, [word]
    if kind == "stars":
        text = "*".join(draw(st.lists(st.sampled_from(["", "a", "b", "1", "attn"]), min_size=2, max_size=3)))
        text = text.replace("**", "*")
        return text, [text]
    choices = draw(st.lists(st.sampled_from(["a", "b*", "*1", "attn", "3"]), min_size=1, max_size=3))
    before, after = draw(st.sampled_from(["", "a"])), draw(st.sampled_from(["", "b"]))
    return f"{before}{{{','.join(choices)}}}{after}", [before + c + after for c in choices]


def glob(text, word):
    """Whether `word` matches a text with single stars, one character after another."""
    if not text:
        return not word
    if text[0] == "*":
        return any(glob(text[1:], word[k:]) for k in range(len(word) + 1))
    return bool(word) and text[0] == word[0] and glob(text[1:], word[1:])


def matches(meaning, parts):
    """The definition: `**` stands for any number of parts, everything else for one."""
    if not meaning:
        return not parts
    if meaning[0] is None:
        return any(matches(meaning[1:], parts[k:]) for k in range(len(parts) + 1))
    return bool(parts) and any(glob(t, parts[0]) for t in meaning[0]) and matches(meaning[1:], parts[1:])


@settings(max_examples=400)
@given(st.lists(pattern_parts(), min_size=1, max_size=4), st.lists(names, min_size=1, max_size=6, unique=True))
def test_a_pattern_selects_what_its_definition_selects(parts, candidates):
    pattern = ".".join(text for text, _ in parts)
    wanted = [n for n in candidates if matches([m for _, m in parts], n.split("."))]
    assert [n for n in candidates if translate(pattern).fullmatch(n)] == wanted
    if wanted and is_pattern(pattern) and pattern not in candidates:
        assert select(pattern, candidates) == wanted
        assert select([pattern, wanted[0], pattern], candidates) == wanted
    if not wanted:
        with pytest.raises(SiteError):
            select(pattern, candidates)


@given(names, st.lists(names, max_size=5))
def test_a_name_means_itself_first(name, others):
    assert select(name, [*others, name]) == [name]


@pytest.mark.parametrize("name", ["gpt2", "t5-gated", "clip", "mamba"])
def test_every_sites_name_means_that_site_alone(name):
    model = shared(name)
    for site in model.sites():
        assert not is_pattern(site.name)
        assert [s.name for s in model.sites(site.name)] == [site.name]
        assert split_call(f"{site.name}#3") == (site.name, 3)
        assert split_call(site.name) == (site.name, None)


def test_the_forms_of_a_pattern():
    model = shared("llama")
    picked = lambda at: [s.name for s in model.sites(at)]  # noqa: E731
    assert picked("blocks.*.resid_post") == [f"blocks.{i}.resid_post" for i in range(3)]
    assert picked("blocks.{0,2}.resid_post") == ["blocks.0.resid_post", "blocks.2.resid_post"]
    assert picked("blocks.1-2.resid_post") == ["blocks.1.resid_post", "blocks.2.resid_post"]
    assert picked("blocks.-1.resid_post") == ["blocks.2.resid_post"]
    assert picked("blocks.1.{resid_mid,attn.z}") == ["blocks.1.attn.z", "blocks.1.resid_mid"]
    assert picked("**.z") == [f"blocks.{i}.attn.z" for i in range(3)]
    assert picked("blocks.0.**") == [s.name for s in model.sites() if s.layer == 0]
    assert picked("blocks.0.attn.*") == [f"blocks.0.attn.{p}" for p in ("q", "k", "v", "scores", "pattern", "z", "out")]
    assert picked(["logits", "embed"]) == ["logits", "embed"]
    assert not model.has("blocks.3.resid_post")
    assert not model.has("blocks.-4.resid_post")


@settings(max_examples=300)
@given(st.text(st.sampled_from("ab01.*{}-,:#_ \\[]()+?|^$\n") | st.characters(), max_size=24))
@example("blocks.{0,1.resid_post")
@example("blocks.}0{.resid_post")
@example("blocks.3-1.resid_post")
@example("blocks.a**b.out")
@example("blocks.{{0,1}}.out")
@example("module:")
@example("module:#2")
@example("module_in:**")
@example("")
@example("#0")
@example("²-³")
def test_any_text_is_a_selection_or_a_site_error(text):
    model = shared("gpt2")
    try:
        assert model.sites(text)
    except SiteError:
        assert not model.has(text)


@given(st.one_of(st.none(), st.integers(), st.floats(), st.binary(), st.lists(st.integers(), min_size=1)))
def test_what_is_no_text_is_a_site_error(at):
    with pytest.raises(SiteError):
        shared("gpt2").sites(at)


def test_a_range_of_any_width_costs_nothing():
    """A slip of the finger must not fill the memory."""
    code = (
        "from actinium.core.sites import select;"
        "print(select('blocks.2-99999999999.out', [f'blocks.{i}.out' for i in range(4)]))"
    )
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
    done = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, timeout=20)
    assert done.stdout.strip() == "['blocks.2.out', 'blocks.3.out']", done.stderr[-300:]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.1.resid_pots", "blocks.1.resid_post"),
        ("block.1.resid_post", "blocks.1.resid_post"),
        ("blocks.1.attn.patern", "blocks.1.attn.pattern"),
        ("finalnorm", "final_norm"),
        ("module:transformer.h.1.mpl", "module:transformer.h.1.mlp"),
    ],
)
def test_an_unknown_site_is_refused_with_the_nearest_names(wrong, right):
    with pytest.raises(SiteError, match=right.replace(".", r"\.")):
        shared("gpt2").sites(wrong)


@pytest.mark.parametrize(
    ("name", "site"),
    [("gptj", "blocks.0.resid_mid"), ("gpt2", "blocks.0.mlp.gate"), ("mixtral", "blocks.0.mlp.post"),
     ("mamba", "blocks.0.attn.z"), ("falcon", "blocks.*.resid_mid")],
)  # fmt: skip
def test_a_site_that_the_architecture_lacks_is_refused_with_what_it_has(name, site):
    model = shared(name)
    with pytest.raises(SiteError) as caught:
        model.sites(site)
    for part in dict.fromkeys(s.part for s in model.sites() if s.layer is not None):
        assert part in str(caught.value)


def test_a_standard_site_of_a_module_without_any_is_refused_with_the_way_to_name_modules():
    from torch import nn

    from actinium.core.model import Model

    with pytest.raises(SiteError, match="module:"):
        Model(nn.Sequential(nn.Linear(2, 2))).sites("blocks.0.resid_post")
