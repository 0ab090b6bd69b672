"""The probe finds correctness where activations hold it, and the controls say where it only looks so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

import actinium as ac
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.puzzle_clues import Knowledge, truth
from actinium.probes.puzzle_steps import step_dataset
from actinium.probes.puzzle_wording import PuzzleAttribute
from actinium.probes.step_activations import step_activations
from actinium.probes.step_correctness import StepCorrectnessProbe, word_counts

PEOPLE = [PuzzleAttribute("person", ("Ann", "Bob", "Carl"))]


@pytest.fixture(scope="module")
def puzzles():
    return [ArrangementPuzzle.generate(3, seed, attributes=PEOPLE) for seed in range(80)]


@pytest.fixture(scope="module")
def steps(puzzles):
    return step_dataset(puzzles)


def fit(acts, steps, **options):
    settings = {"folds": 3, "Cs": (0.1,), **options}
    texts = settings.pop("texts", None)
    probe = StepCorrectnessProbe(**settings)
    return probe.fit(acts, [s.correct for s in steps], [s.group for s in steps], texts=texts)


def oracle(puzzles, steps, noise, seed=0):
    """What a perfect solver would hold: the possible arrangements and those of the claim, mixed and disturbed."""
    random = np.random.default_rng(seed)
    rows = []
    for step in steps:
        space = puzzles[step.group].space
        known, said = Knowledge.of(space, puzzles[step.group].clues).bits, truth(space, step.claim)
        rows.append([(bits >> i) & 1 for bits in (known, said, known & said) for i in range(space.worlds)])
    held = np.array(rows, float) @ random.normal(size=(18, 24)) + noise * random.normal(size=(len(rows), 24))
    return np.stack([random.normal(size=(len(rows), 24)), held])


def test_what_a_solver_knows_is_read_out_and_chance_is_not(puzzles, steps):
    probe = fit(oracle(puzzles, steps, 0.1), steps, texts=[s.text for s in steps], Cs=(0.1, 100.0))
    assert probe.accuracy_[1] > 0.9 and probe.auroc_[1] > 0.95
    bound = 3 * 0.5 / np.sqrt(len(steps))
    assert abs(probe.accuracy_[0] - 0.5) < bound
    assert np.abs(probe.shuffled_ - 0.5).max() < bound
    # The words are the same in both classes.
    assert probe.surface_[0] < 0.5 + bound
    np.testing.assert_array_equal(probe.selectivity_, probe.accuracy_ - probe.control_)
    assert probe.selectivity_[1] > 0.25
    assert probe.result_["accuracy"].dims == ("layer",)
    assert probe.result_.plot() is not None


def test_an_mlp_reads_what_no_line_separates():
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 400, 2))
    y = (x[0, :, 0] * x[0, :, 1] > 0).astype(int)
    groups = np.arange(400) // 4
    linear = StepCorrectnessProbe(folds=3, controls=False).fit(x, y, groups)
    bent = StepCorrectnessProbe("mlp", folds=3, controls=False, hidden=32, epochs=60, Cs=(100.0,)).fit(x, y, groups)
    assert linear.accuracy_[0] < 0.65 < 0.85 < bent.accuracy_[0]
    assert float(np.mean(bent.predict(x[0], 0) == y)) > 0.85
    with pytest.raises(InputError, match="only a logistic probe"):
        bent.direction(0)


def test_words_that_give_the_label_away_are_found_by_the_surface_baseline(steps):
    random = np.random.default_rng(0)
    texts = [("surely " if s.correct else "hardly ") + s.text for s in steps]
    probe = fit(random.normal(size=(1, len(steps), 3)), steps, texts=texts, controls=False)
    assert probe.surface_[0] == pytest.approx(1.0)
    assert probe.control_ is None and probe.shuffled_ is None


def test_the_control_task_is_solved_by_a_probe_that_only_knows_the_text(steps):
    texts = [s.text for s in steps]
    kinds = sorted(set(texts))
    one_hot = np.eye(len(kinds))[[kinds.index(text) for text in texts]]
    # Mixed by a rotation, so that nothing but capacity tells the texts apart.
    mixed = one_hot @ np.linalg.qr(np.random.default_rng(0).normal(size=(len(kinds), len(kinds))))[0]
    probe = fit(mixed[None], steps, texts=texts, Cs=(10.0,))
    assert probe.control_[0] > 0.75
    assert probe.selectivity_[0] < -0.2


def test_puzzles_are_not_split_between_fitting_and_testing():
    """Activations that name the puzzle and nothing else: without groups labels could be memorised."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 6)
    y = np.repeat(random.permutation(60) % 2, 6)
    rows = np.eye(60)[groups] + 0.05 * random.normal(size=(360, 60))
    probe = StepCorrectnessProbe(folds=5, Cs=(1.0,), controls=False).fit(rows[None], y, groups)
    assert probe.accuracy_[0] < 0.65
    alone = StepCorrectnessProbe(folds=5, Cs=(1.0,), controls=False).fit(rows[None], y, np.arange(360))
    assert alone.accuracy_[0] > 0.95


def test_accuracy_and_auroc_are_those_of_scikit_learn_fold_by_fold(puzzles, steps):
    rows = oracle(puzzles, steps, 3.0)[1]
    y, groups = np.array([s.correct for s in steps]).astype(int), np.array([s.group for s in steps])
    probe = fit(rows[None], steps, controls=False, seed=4)
    accuracy, auroc = [], []
    for train, test in StratifiedGroupKFold(3, shuffle=True, random_state=4).split(rows, y, groups):
        scale = StandardScaler().fit(rows[train])
        model = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(rows[train]), y[train])
        p = model.predict_proba(scale.transform(rows[test]))[:, 1]
        accuracy.append(np.mean((p > 0.5) == y[test]))
        auroc.append(roc_auc_score(y[test], p))
    np.testing.assert_allclose(probe.folds_["accuracy"][0], accuracy)
    assert probe.auroc_[0] == pytest.approx(np.mean(auroc))
    assert probe.standard_error_[0] == pytest.approx(np.std(accuracy, ddof=1) / np.sqrt(3))
    scale = StandardScaler().fit(rows)
    whole = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(rows), y)
    np.testing.assert_allclose(
        probe.predict_proba(rows, 0), whole.predict_proba(scale.transform(rows))[:, 1], atol=1e-10
    )
    direction = (whole.coef_ / scale.scale_)[0]
    np.testing.assert_allclose(probe.direction(0), direction / np.linalg.norm(direction))


def test_classes_are_made_equal():
    random = np.random.default_rng(0)
    y = np.array([1] * 150 + [0] * 50)
    probe = StepCorrectnessProbe(folds=3, Cs=(1.0,), controls=False)
    probe.fit(random.normal(size=(1, 200, 4)), y, np.tile(np.arange(50), 4))
    assert probe.rows_ == 100
    # Saying "right" always would give 0.75 on the rows as they came.
    assert probe.accuracy_[0] < 0.65


def test_a_probe_comes_back_from_disk(puzzles, steps, tmp_path):
    acts = {"early": oracle(puzzles, steps, 1.0)[0], "late": torch.tensor(oracle(puzzles, steps, 1.0)[1])}
    for kind in ("logistic", "mlp"):
        probe = fit(acts, steps, kind=kind, hidden=8, epochs=5, texts=[s.text for s in steps])
        probe.save(tmp_path / kind)
        again = StepCorrectnessProbe.load(tmp_path / kind)
        assert again.get_params() == {**probe.get_params(), "Cs": [0.1]}
        assert again.layers_ == ["early", "late"] and again.surface_ == probe.surface_
        np.testing.assert_array_equal(again.result_["selectivity"], probe.result_["selectivity"])
        np.testing.assert_array_equal(again.predict(acts["late"], "late"), probe.predict(acts["late"], 1))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="cannot read"):
        StepCorrectnessProbe.load(tmp_path / "other")


def test_word_counts_by_hand():
    counts = word_counts(["Ann is here.", "Ann, Ann"])
    # Columns: "," "." "ann" "here" "is" and the length.
    assert counts.tolist() == [[0, 1, 1, 1, 1, 4], [1, 0, 2, 0, 0, 3]]


GOOD = np.random.default_rng(0).normal(size=(2, 12, 3))
LABELS = [0, 1] * 6
GROUPS = np.repeat(np.arange(6), 2)


@pytest.mark.parametrize(
    ("acts", "y", "groups", "options", "error", "message"),
    [
        (GOOD, LABELS, None, {}, InputError, "groups are missing"),
        (GOOD, [1] * 12, GROUPS, {}, InputError, "one class only"),
        (GOOD, [0, 1, 2] * 4, GROUPS, {}, InputError, "two values"),
        (GOOD, LABELS, np.zeros(12), {}, InputError, "as many groups"),
        (GOOD, LABELS, GROUPS[:5], {}, InputError, "groups: expected one for each of 12"),
        (GOOD, LABELS[:5], GROUPS, {}, InputError, "labels: expected one for each of 12"),
        (GOOD * np.nan, LABELS, GROUPS, {}, InputError, "NaN"),
        (GOOD[0], LABELS, GROUPS, {}, InputError, "layer, step, d"),
        ({}, LABELS, GROUPS, {}, InputError, "one site or more"),
        ({"a": GOOD[0], "b": GOOD[0, :3]}, LABELS, GROUPS, {}, InputError, "differ in their number of steps"),
        (GOOD, LABELS, GROUPS, {"kind": "svm"}, UnknownNameError, "logistic"),
        (GOOD, LABELS, GROUPS, {"Cs": ()}, InputError, "above 0"),
        (GOOD, LABELS, GROUPS, {"Cs": (0.0,)}, InputError, "above 0"),
        (GOOD, LABELS, GROUPS, {"folds": 1}, InputError, "folds must be 2 or more"),
        (GOOD, LABELS, GROUPS, {"epochs": 0}, InputError, "1 or more"),
    ],
)
def test_what_cannot_be_probed_is_refused(acts, y, groups, options, error, message):
    with pytest.raises(error, match=message):
        StepCorrectnessProbe(**{"folds": 2, "inner_folds": 2, **options}).fit(acts, y, groups)


def test_texts_that_do_not_fit_and_probes_that_were_not_fitted_are_refused(steps):
    with pytest.raises(InputError, match="1 texts for 12 steps"):
        StepCorrectnessProbe(folds=2, inner_folds=2).fit(GOOD, LABELS, GROUPS, texts=["one"])
    with pytest.raises(InputError, match="all texts are the same"):
        StepCorrectnessProbe(folds=2, inner_folds=2).fit(GOOD, LABELS, GROUPS, texts=["one"] * 12)
    with pytest.raises(InputError, match="call fit"):
        StepCorrectnessProbe().predict(GOOD[0], 0)
    probe = StepCorrectnessProbe(folds=2, inner_folds=2, controls=False).fit(GOOD, LABELS, GROUPS)
    with pytest.raises(UnknownNameError, match="no layer"):
        probe.predict(GOOD[0], 2)
    with pytest.raises(InputError, match="rows have 2 entries"):
        probe.predict(GOOD[0][:, :2], 1)


def test_activations_are_those_of_each_text_alone(outside_data):
    model = ac.load(outside_data / "stories260K")
    puzzle = ArrangementPuzzle.generate(3, 0, attributes=PEOPLE)
    prompts = [puzzle.text + "\n", "", "Once upon a time, "]
    steps = ["Step 1: Ann is in seat 2.", "Bob is in seat 1.", "Carl left!"]
    got = {pool: step_activations(model, prompts, steps, pool=pool, batch_size=2) for pool in ("last", "claim", "mean")}
    assert list(got["last"]) == ["blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(5))]
    for i, (prompt, step) in enumerate(zip(prompts, steps, strict=True)):
        alone = model.record([prompt + step], "blocks.*.resid_post")
        before = len(model.tokenizer(prompt)["input_ids"]) if prompt else 0
        for site in ("blocks.0.resid_post", "blocks.4.resid_post"):
            states = alone[site][0]
            torch.testing.assert_close(got["last"][site][i], states[-1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got["claim"][site][i], states[-2], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got["mean"][site][i], states[before:].mean(0), rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_read_puzzles_does_not_know_what_is_right(outside_data, steps):
    """stories260K was trained on nursery stories; its accuracy is chance, as that of words is."""
    model = ac.load(outside_data / "stories260K")
    some = [s for s in steps if s.index == 0][:120]
    sites = ["blocks.0.resid_pre", "blocks.2.resid_post"]
    acts = step_activations(model, [s.prompt for s in some], [s.text for s in some], sites)
    probe = fit(acts, some, texts=[s.text for s in some], controls=False)
    assert probe.layers_ == sites
    # 0.5 within four standard errors.
    assert np.abs(probe.accuracy_ - 0.5).max() < 4 * 0.5 / np.sqrt(probe.rows_)


def test_what_cannot_be_read_is_refused(outside_data):
    model = ac.load(outside_data / "stories260K")
    with pytest.raises(UnknownNameError, match="claim"):
        step_activations(model, [""], ["Ann"], pool="claims")
    with pytest.raises(InputError, match="2 prompts and 1 steps"):
        step_activations(model, ["", ""], ["Ann"])
    with pytest.raises(InputError, match="no letter or digit"):
        step_activations(model, ["Ann"], [" ..."], pool="claim")
    with pytest.raises(InputError, match="adds no tokens"):
        step_activations(model, ["Ann"], [""])
    with pytest.raises(SiteError, match="dimensions batch head query key"):
        step_activations(model, [""], ["Ann"], at="blocks.0.attn.pattern")
    with (
        pytest.warns(ac.errors.ActiniumWarning, match="cut into windows"),
        pytest.raises(InputError, match="longer than the model's context"),
    ):
        step_activations(model, ["Ann " * 600], ["Bob"])
