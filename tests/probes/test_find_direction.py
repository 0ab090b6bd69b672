"""One direction, found in several ways, exchanged and removed as algebra says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.loading import load
from actinium.core.task import Task
from actinium.probes import (
    Direction,
    LinearProbe,
    direction_agreement,
    direction_effect,
    directional_ablate,
    directional_patch,
    find_direction,
    patching_direction,
    summarization_score,
    token_projection,
)
from actinium.probes.directional import answer_differences, token_positions
from actinium.world.lexicon import DISLIKED, LIKED, NEGATIVE, POSITIVE
from actinium.world.tasks import sentiment

SITE = "blocks.3.resid_pre"
ALL = "blocks.*.resid_pre"


def two_clouds(d=64, n=3200, seed=0, spread=None):
    """P and N at plus and minus three times a unit vector, with isotropic noise of unit variance."""
    random = np.random.default_rng(seed)
    theta = random.normal(size=d)
    theta /= np.linalg.norm(theta)
    y = np.arange(n) % 2
    noise = random.normal(size=(n, d)) * (1.0 if spread is None else spread)
    return theta, 3 * (2 * y[:, None] - 1) * theta + noise, y


@pytest.fixture(scope="module")
def lm():
    return load("world:lm")


@pytest.fixture(scope="module")
def task(lm):
    return sentiment(lm, n=24)


@pytest.fixture(scope="module")
def found(lm):
    """A direction of good and bad at the last token, from other texts."""
    train = sentiment(lm, n=40, split="train", seed=1)
    acts = lm.record(train.prompts(), SITE)[SITE][:, -1]
    return find_direction(acts, [a == " happy" for a in train.answers])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("method", "least"), [("mean_diff", 0.998), ("k_means", 0.998), ("pca", 0.998), ("logistic", 0.9)]
)
def test_a_planted_direction_is_found(method, least, labelled):
    theta, x, y = two_clouds()
    if not labelled and method in ("mean_diff", "logistic"):
        with pytest.raises(InputError, match="needs labels"):
            find_direction(x, None, method)
        return
    direction = find_direction(torch.from_numpy(x), y if labelled else None, method)
    cosine = float(direction.theta @ torch.from_numpy(theta))
    assert (cosine if labelled else abs(cosine)) > least
    assert float(direction.theta.norm()) == pytest.approx(1)
    if labelled:
        assert direction.score(x, y) > 0.99
        assert (-direction).score(x, y) < 0.01


def test_the_directions_are_those_of_closed_forms_and_scikit_learn():
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    _, x, y = two_clouds(d=8, n=200)
    gap = x[y == 1].mean(0) - x[y == 0].mean(0)
    ours = find_direction(x, y)
    assert ours.theta.numpy() == pytest.approx(gap / np.linalg.norm(gap))
    assert ours.bias == pytest.approx(-float(ours.theta.numpy() @ (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2))
    pca = PCA(1).fit(x)
    ours = find_direction(x, y, "pca")
    assert abs(float(ours.theta.numpy() @ pca.components_[0])) == pytest.approx(1)
    assert ours.info["explained"] == pytest.approx(pca.explained_variance_ratio_[0])
    peer = LogisticRegression(solver="liblinear", C=1.0, random_state=0).fit(x, y)
    ours = find_direction(x, y, "logistic")
    assert (ours.project(x) + ours.bias).numpy() == pytest.approx(
        peer.decision_function(x) / np.linalg.norm(peer.coef_), abs=1e-6
    )


def test_noise_that_is_not_round_parts_mean_difference_and_discriminant():
    theta, x, y = two_clouds(d=8, n=4000, spread=np.geomspace(0.2, 6, 8))
    mean, fisher = find_direction(x, y).theta, LinearProbe("lda").fit(x, y).direction_
    assert float(mean @ torch.from_numpy(theta)) > 0.99
    assert float(mean @ fisher) < 0.7


def test_without_labels_the_sign_is_fixed_and_random_ones_follow_their_seed():
    _, x, y = two_clouds(d=6, n=100)
    for method in ("pca", "k_means", "random"):
        unit = find_direction(x, method=method).theta
        assert float(unit[unit.abs().argmax()]) > 0
    one, two, other = (find_direction(x, method="random", seed=s).theta for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)
    names = {m: find_direction(x, y, m) for m in ("mean_diff", "pca", "random")}
    agreement = direction_agreement(names)
    assert float(agreement["cosine"].sel(direction="mean_diff", other="pca")) > 0.9
    assert np.diag(agreement["cosine"].values) == pytest.approx(1)
    assert float(agreement["signed"].sel(direction="pca", other="random")) == pytest.approx(
        names["pca"].cosine(names["random"])
    )


def test_a_direction_comes_back_from_disk(tmp_path):
    _, x, y = two_clouds(d=6, n=100)
    direction = find_direction(x, y, "pca")
    direction.save(tmp_path / "direction")
    again = Direction.load(tmp_path / "direction")
    assert torch.equal(again.theta, direction.theta)
    assert (again.bias, again.method, again.info) == (direction.bias, "pca", direction.info)
    LinearProbe().fit(x, y).save(tmp_path / "probe")
    with pytest.raises(LoadError):
        Direction.load(tmp_path / "probe")


def test_zero_ablation_leaves_no_projection_and_is_idempotent(lm, task, found):
    from actinium.core.edits import ProjectOut

    edit = ProjectOut(found.theta)
    with lm.edit({SITE: edit}):
        once = lm.record(task.prompts(), SITE)[SITE]
    assert found.project(once)[task.mask].abs().max() < 1e-5
    with lm.edit({SITE: [edit, edit]}):
        twice = lm.record(task.prompts(), SITE)[SITE]
    assert torch.allclose(once, twice, atol=1e-5)
    ours = directional_ablate(lm, task.prompts(), found, SITE, mode="zero")
    with torch.no_grad(), lm.edit({SITE: edit}):
        assert torch.allclose(ours, lm.logits(task.prompts())[:, -1])
    flipped = directional_ablate(lm, task.prompts(), -found, SITE, mode="zero")
    assert torch.allclose(ours, flipped, atol=1e-4)


def test_mean_ablation_with_the_own_projection_changes_nothing(lm, task, found):
    with torch.no_grad():
        clean = lm.logits(task.prompts())[:, -1]
    row = Tokens(task.clean_ids[:1], task.mask[:1], torch.arange(1))
    # One position of one text: its mean is its own projection.
    same = directional_ablate(lm, row, found, SITE, positions=-1)
    assert torch.allclose(same, clean[:1], atol=1e-4)
    assert not torch.allclose(directional_ablate(lm, row, found, SITE, positions=-1, mode="zero"), clean[:1], atol=0.1)


def test_the_mean_is_that_of_the_replaced_positions(lm, task, found):
    from actinium.core.edits import Fn

    where = token_positions(lm, task.prompts(), {"."})
    ours = directional_ablate(lm, task.prompts(), found, SITE, tokens={"."})
    values = lm.record(task.prompts(), SITE)[SITE]
    column = where + task.mask.int().argmax(1, keepdim=True)
    inside = where < task.mask.sum(1, keepdim=True)
    chosen = torch.zeros_like(task.mask)
    for i in range(len(task)):
        chosen[i, column[i][inside[i]]] = True
    mu = found.project(values)[chosen].mean()

    def by_hand(x):
        moved = x + ((mu - found.project(x))[..., None] * found.theta).float()
        return torch.where(chosen[..., None], moved, x)

    with torch.no_grad(), lm.edit({SITE: Fn(by_hand)}):
        want = lm.logits(task.prompts())[:, -1]
    assert torch.allclose(ours, want, atol=1e-4)


def test_patching_with_the_own_run_does_nothing_and_the_sign_of_the_direction_does_not_matter(lm, task, found):
    same = Task.from_ids(task.clean_ids, task.clean_ids, task.answer_ids, task.wrong_ids, mask=task.mask)
    with pytest.raises(InputError, match="effect is not defined"):
        directional_patch(lm, same, found, SITE)
    one = directional_patch(lm, task, found, SITE)
    other = directional_patch(lm, task, -found, SITE)
    assert one["patched"].values == pytest.approx(other["patched"].values, abs=1e-4)
    assert float(one["effect"]) == pytest.approx(1 - float(one["official"]))


def test_all_directions_together_replace_the_activation(lm, task):
    from actinium.core.edits import Replace, ReplaceWithin

    source = lm.record(task.prompts(corrupt=True), SITE)[SITE]
    logits = []
    for edit in (Replace(source), ReplaceWithin(source, torch.eye(lm.d_model))):
        with torch.no_grad(), lm.edit({SITE: edit}):
            logits.append(lm.logits(task.prompts())[:, -1])
    assert torch.allclose(*logits, atol=1e-4)


def test_one_direction_flips_the_answers_and_random_ones_do_not(lm, task, found):
    found_effect = directional_patch(lm, task, found, ALL)
    assert float(found_effect["effect"]) > 0.5
    assert float(found_effect["changed"]) > 0.5
    noise = find_direction(np.random.default_rng(0).normal(size=(4, lm.d_model)), method="random")
    assert abs(float(directional_patch(lm, task, noise, ALL)["effect"])) < 0.1
    lost = direction_effect(lm, task, found, ALL, random=3)
    assert float(lost["lost_above_chance"]) == pytest.approx(
        (float(lost["clean"]) - float(lost["ablated"])) / (float(lost["clean"]) - 0.5)
    )
    assert float(lost["lost_above_chance"]) > float(lost["random_lost"].max()) + 0.1
    again = direction_effect(lm, task, found, ALL, random=3)
    assert again == lost


def test_the_papers_percentages_are_its_formula():
    for clean, ablated, share in ((1.0, 0.62, 0.76), (1.0, 0.82, 0.36)):
        assert (clean - ablated) / (clean - 0.5) == pytest.approx(share)


def test_resampling_draws_from_the_reference(lm, task, found):
    one, two, other = (directional_ablate(lm, task.prompts(), found, SITE, mode="resample", seed=s) for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)
    row = Tokens(task.clean_ids[:1], task.mask[:1], torch.arange(1))
    only = directional_ablate(lm, task.prompts(), found, SITE, mode="resample", reference=row, positions=-1)
    mean = directional_ablate(lm, task.prompts(), found, SITE, mode="mean", reference=row, positions=-1)
    assert torch.allclose(only, mean, atol=1e-5)


def test_sides_average_over_their_answers_and_a_preference_is_taken_away(lm, task):
    happy, sad = int(task.answer_ids[task.answers.index(" happy")]), int(task.answer_ids[task.answers.index(" sad")])
    logits = torch.randn(len(task), 1200, generator=torch.Generator().manual_seed(0))
    plain = answer_differences(logits, task)
    assert torch.allclose(plain, answer_differences(logits, task, ([happy], [sad])))
    wide = answer_differences(logits, task, ([happy, 5], [sad, 6]))
    right = torch.where(task.answer_ids == happy, 1.0, -1.0).double()
    want = (logits[:, [happy, 5]].mean(1) - logits[:, [sad, 6]].mean(1)).double() * right
    assert torch.allclose(wide, want)
    for sides, message in ((([happy], [happy]), "none in common"), (([1], [2]), "neither side")):
        with pytest.raises(InputError, match=message):
            answer_differences(logits, task, sides)


def test_alignment_search_learns_a_direction_that_flips_held_out_answers(lm, task):
    train = sentiment(lm, n=16, split="train", seed=2)
    state = torch.random.get_rng_state()
    learned = patching_direction(lm, train, SITE, lr=0.02, epochs=8, batch_size=8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in lm.module.parameters())
    assert learned.method == "das"
    assert float(directional_patch(lm, task, learned, SITE)["effect"]) > 0.8
    assert learned.info["effect"] == pytest.approx(float(directional_patch(lm, train, learned, SITE)["effect"]))
    with pytest.raises(InputError, match="epochs >= 1"):
        patching_direction(lm, train, SITE, epochs=0)


def test_tokens_are_projected_in_their_order(lm, task, found):
    lexicon = dict.fromkeys(POSITIVE + LIKED, 1) | dict.fromkeys(NEGATIVE + DISLIKED, -1)
    result = token_projection(lm, task.clean, found, SITE, lexicon=lexicon)
    values = lm.record(task.clean[3], SITE)[SITE][0]
    own = result["row"].values == 3
    want = (found.project(values) + found.bias).numpy()
    assert result["projection"].values[own] == pytest.approx(want, abs=1e-4)
    assert result["position"].values[own].tolist() == list(range(len(values)))
    assert "".join(result["text"].values[own]).strip() != ""
    known = [lexicon.get(t.strip(), 0) for t in result["text"].values]
    right = [np.sign(p) == k for p, k in zip(result["projection"].values, known, strict=True) if k]
    assert float(result["precision"]) == pytest.approx(np.mean(right))
    assert int(result["found"]) == len(right)
    with pytest.raises(InputError, match="in the lexicon"):
        token_projection(lm, task.clean[:2], found, SITE, lexicon={"zebra": 1})
    with pytest.raises(InputError, match="positive"):
        token_projection(lm, task.clean[:2], found, SITE, lexicon={"good": 2})


def test_what_goes_through_punctuation_is_measured_in_two_ways(lm, task, found):
    result = summarization_score(lm, task, found, ALL)
    for name in ("neutral", "valenced", "both", "carried", "without"):
        assert np.isfinite(float(result[name]))
    neutral = directional_patch(lm, task, found, ALL, tokens={",", "."})
    assert float(result["neutral"]) == pytest.approx(float(neutral["effect"]), abs=1e-5)
    # Effects of different sign have no share; here the direction at the end says nothing at the punctuation.
    same_sign = float(result["neutral"]) * float(result["valenced"]) >= 0
    assert np.isfinite(float(result["share"])) == same_sign
    with pytest.raises(InputError, match="token of this class"):
        summarization_score(lm, task, found, ALL, neutral={"#"})


def test_classes_of_tokens_are_found_under_padding(lm, task):
    where = token_positions(lm, task.prompts(), {",", "."})
    for row, places in enumerate(where):
        tokens = task.tokens(row)
        real = [int(p) for p in places if p < len(tokens)]
        assert real == [i for i, t in enumerate(tokens) if t.strip() in (",", ".")]
    with pytest.raises(InputError, match="collection"):
        token_positions(lm, task.prompts(), ",")


def test_what_cannot_be_done_is_refused(lm, task, found):
    _, x, y = two_clouds(d=4, n=20)
    for acts, labels, method, error, message in (
        (x, y, "meandiff", UnknownNameError, "mean_diff"),
        (x, y, "das", InputError, "patching_direction"),
        (x, np.ones(20), "mean_diff", InputError, "one class"),
        (np.ones((5, 3)), None, "pca", InputError, "all activations are the same"),
        (x * np.nan, y, "pca", InputError, "NaN"),
    ):
        with pytest.raises(error, match=message):
            find_direction(acts, labels, method)
    with pytest.raises(InputError, match="is zero"):
        Direction(torch.zeros(4))
    with pytest.raises(InputError, match="two directions"):
        direction_agreement({"one": found})
    with pytest.raises(InputError, match="is zero"):
        directional_ablate(lm, task.prompts(), torch.zeros(lm.d_model), SITE)
    with pytest.raises(UnknownNameError, match="mean"):
        directional_ablate(lm, task.prompts(), found, SITE, mode="men")
    with pytest.raises(SiteError):
        directional_ablate(lm, task.prompts(), found, "blocks.9.resid_pre")
    with pytest.raises(SiteError, match="no direction for the site"):
        directional_ablate(lm, task.prompts(), {SITE: found}, ALL)
    with pytest.raises(InputError, match="not both"):
        directional_ablate(lm, task.prompts(), found, SITE, positions=0, tokens={"."})
    wrong = Task.from_ids(task.clean_ids, task.corrupt_ids, task.wrong_ids, task.answer_ids, mask=task.mask)
    with pytest.raises(InputError, match="not above chance"):
        direction_effect(lm, wrong, found, SITE)
    with pytest.raises(InputError, match="chance must be"):
        direction_effect(lm, task, found, SITE, chance=1.0)
