"""Separation of equivalent from near statements is what its formulas say, and words alone do not make it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

import actinium as ac
from actinium.core.errors import InputError
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.equivalence import equivalence_separation, partial_correlation, token_overlap
from actinium.probes.puzzle_clues import truth
from actinium.probes.puzzle_steps import equivalence_quadruples
from actinium.probes.puzzle_wording import PuzzleAttribute
from actinium.probes.step_activations import step_activations

PEOPLE = [PuzzleAttribute("person", ("Ann", "Bob", "Carl", "Dora"))]


@pytest.fixture(scope="module")
def quadruples():
    puzzles = [ArrangementPuzzle.generate(4, seed, attributes=PEOPLE) for seed in range(40)]
    return puzzles, equivalence_quadruples(puzzles, 2)


def order(n):
    return np.arange(4 * n).reshape(n, 4)


def test_numbers_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    n = 9
    acts = random.normal(size=(1, 4 * n, 5))
    texts = [" ".join(random.choice(list("abcdefg"), size=random.integers(2, 6))) for _ in range(4 * n)]
    found = equivalence_separation(acts, order(n), texts)
    x = acts[0] - acts[0].mean(0)

    def distance(a, b):
        return 1 - x[a] @ x[b] / np.linalg.norm(x[a]) / np.linalg.norm(x[b])

    same, near, other = (np.array([distance(4 * i, 4 * i + k) for i in range(n)]) for k in (1, 2, 3))
    both = np.concatenate([same, near])
    assert float(found["auroc"][0]) == pytest.approx(roc_auc_score([0] * n + [1] * n, both))
    assert float(found["paired"][0]) == pytest.approx(np.mean(same < near))
    pooled = np.sqrt((same.var(ddof=1) + near.var(ddof=1)) / 2)
    assert float(found["dprime"][0]) == pytest.approx((near.mean() - same.mean()) / pooled)
    np.testing.assert_allclose(found["distance"][0], [same.mean(), near.mean(), other.mean()])
    pairs = [(4 * i + a, 4 * i + b) for i in range(n) for a, b in itertools.combinations(range(4), 2)]
    distances = [distance(a, b) for a, b in pairs]
    different = [float((a % 4, b % 4) != (0, 1)) for a, b in pairs]
    assert float(found["rsa"][0]) == pytest.approx(spearmanr(distances, different).statistic)
    overlap = [token_overlap(texts[a], texts[b]) for a, b in pairs]
    length = [abs(len(texts[a].split()) - len(texts[b].split())) for a, b in pairs]
    # Partial correlation from the inverse of the correlation matrix.
    inverse = np.linalg.inv(np.corrcoef([rankdata(v) for v in (distances, different, overlap, length)]))
    want = -inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    assert float(found["rsa_partial"][0]) == pytest.approx(want)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_partial_correlation_with_one_covariate_is_the_textbook_formula(seed):
    random = np.random.default_rng(seed)
    x, y, z = random.normal(size=(3, 12)) + random.normal(size=12)
    ranks = [rankdata(v) for v in (x, y, z)]
    xy, xz, yz = (pearsonr(ranks[a], ranks[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2)))
    want = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, z) == pytest.approx(want)
    assert partial_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_partial_correlation_of_nothing_is_none():
    x = np.arange(6.0)
    assert np.isnan(partial_correlation(x, x[::-1], x))
    assert np.isnan(partial_correlation(x, np.ones(6)))
    assert np.isnan(partial_correlation(x, [np.nan] * 6))
    with pytest.raises(InputError, match="three or more"):
        partial_correlation([1, 2], [1, 2])


def test_activations_of_meaning_separate_and_those_of_words_do_not(quadruples):
    puzzles, found = quadruples
    texts = [text for q in found for text in q.texts]
    random = np.random.default_rng(0)
    meaning = np.array(
        [[truth(puzzles[q.group].space, c) >> i & 1 for i in range(24)] for q in found for c in q.claims], float
    )
    vocabulary = sorted({word for text in texts for word in text.lower().strip(".").split()})
    words = np.array([[text.lower().strip(".").split().count(w) for w in vocabulary] for text in texts], float)
    result = equivalence_separation(
        {
            "words": words,
            "meaning": meaning + 0.3 * random.normal(size=meaning.shape),
            "noise": random.normal(size=words.shape),
        },
        order(len(found)),
        texts,
    )
    by = {name: result.data.sel(layer=name) for name in ("words", "meaning", "noise")}
    assert float(by["meaning"]["auroc"]) > 0.95 and float(by["meaning"]["dprime"]) > 2
    assert float(by["meaning"]["rsa_partial"]) > 0.4
    # The equivalent and the near statement consist of the same words, so every pair is a tie.
    assert float(by["words"]["paired"]) == 0.5
    assert abs(float(by["words"]["rsa_partial"])) < 0.15
    assert abs(float(by["noise"]["auroc"]) - 0.5) < 3 * np.sqrt(1 / (6 * len(found)))
    assert result.plot() is not None


def test_overlap_that_mimics_equivalence_is_partialled_out():
    """Equivalent statements that share more words than near ones: the plain correlation is fooled."""
    random = np.random.default_rng(1)
    texts, rows = [], []
    for _ in range(60):
        words = random.choice(200, size=24, replace=False)
        shared = [words[:6], [*words[:5], words[6]], [*words[:2], *words[7:11]], words[12:18]]
        texts += [" ".join(map(str, s)) for s in shared]
        rows += [np.bincount(s, minlength=200) for s in shared]
    acts = np.array(rows, float) + 0.05 * random.normal(size=(240, 200))
    found = equivalence_separation(acts[None], order(60), texts)
    assert float(found["rsa"][0]) > 0.5
    assert abs(float(found["rsa_partial"][0])) < 0.15


def test_where_nothing_differs_there_is_no_number():
    acts = np.stack([np.ones((8, 3)), np.random.default_rng(0).normal(size=(8, 3))])
    found = equivalence_separation(acts, order(2), list("abcdefgh"))
    for name in ("auroc", "paired", "dprime", "rsa", "rsa_partial"):
        assert np.isnan(found[name][0]) and np.isfinite(found[name][1])


def test_token_overlap_by_hand():
    assert token_overlap("Ann is left of Bob.", "Bob is right of Ann.") == pytest.approx(4 / 6)
    assert token_overlap("a b", "B, A.") == 1.0
    assert token_overlap("", "") == 1.0
    assert token_overlap("a", "") == 0.0


@pytest.mark.parametrize(
    ("acts", "quadruples", "texts", "message"),
    [
        (np.ones((1, 8, 2)), [[0, 1, 2, 3]], None, "two or more quadruples"),
        (np.ones((1, 8, 2)), [[0, 1, 2], [3, 4, 5]], None, "two or more quadruples"),
        (np.ones((1, 8, 2)), [[0, 1, 2, 3], [4, 5, 6, 8]], None, "0 to 7"),
        (np.ones((1, 8, 2)), [[0, 1, 2, 3], [4, 5, 6, 6]], None, "same statement twice"),
        (np.ones((1, 8, 2)), order(2) + 0.5, None, "row numbers"),
        (np.full((1, 8, 2), np.nan), order(2), None, "NaN"),
        (np.ones((1, 8, 2)), order(2), ["a"], "1 texts for 8 statements"),
        ({"a": np.ones((8, 2)), "b": np.ones((9, 2))}, order(2), None, "differ in their number"),
        ({}, order(2), None, "no layers"),
    ],
)
def test_what_cannot_be_compared_is_refused(acts, quadruples, texts, message):
    with pytest.raises(InputError, match=message):
        equivalence_separation(acts, quadruples, texts)


def test_an_outside_model_is_measured_at_every_layer(outside_data, quadruples):
    model = ac.load(outside_data / "stories260K")
    found = quadruples[1][:20]
    texts = [text for q in found for text in q.texts]
    acts = step_activations(model, ["" for _ in texts], texts)
    result = equivalence_separation(acts, order(len(found)), texts)
    assert result["auroc"].sizes["layer"] == 6
    # All statements end with the same full stop, and the first block has not read anything else yet.
    assert np.isnan(result["auroc"][0])
    assert np.isfinite(result["auroc"][1:]).all()
    assert ((result["distance"][1:] > 0) & (result["distance"][1:] < 2)).all()
