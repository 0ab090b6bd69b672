"""Scores of conditions against closed forms, and the search for a threshold against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.probes.linear import LinearProbe
from actinium.steering.condition_search import find_condition_point
from actinium.steering.conditions import ProbeCondition, VectorCondition, condition_scores, fire_when_of
from actinium.steering.vector import SteeringVector
from architectures import shared, token_ids

SITE, LATER = "blocks.0.resid_post", "blocks.1.resid_post"


def vector(*directions):
    return SteeringVector(dict(zip((SITE, LATER), map(torch.tensor, directions), strict=False)))


def test_scores_are_those_of_the_paper():
    h, c = [[3.0, 4.0]], [2.0, 1.0]
    assert float(condition_scores(h, c, "projection")) == pytest.approx(0.894427, abs=1e-6)
    assert float(condition_scores(h, c)) == pytest.approx(0.987247, abs=1e-6)
    # The projection is (4, 2).
    bent = torch.tanh(torch.tensor([4.0, 2.0], dtype=torch.float64))
    assert float(condition_scores(h, c)) == pytest.approx(
        float(bent @ torch.tensor([3.0, 4.0]).double() / bent.norm() / 5)
    )


def test_the_papers_score_loses_the_side_and_tends_to_the_absolute_cosine():
    torch.manual_seed(0)
    h, c = torch.randn(20, 8).double(), torch.randn(8).double()
    assert torch.equal(condition_scores(h, c), condition_scores(-h, c))
    assert torch.allclose(condition_scores(h, c, "projection"), -condition_scores(-h, c, "projection"))
    small = condition_scores(1e-4 * h, c)
    assert torch.allclose(small, condition_scores(h, c, "projection").abs(), atol=1e-6)
    assert float((condition_scores(h, c) - small).abs().max()) > 0.01


def test_activations_across_the_direction_score_zero():
    for score in ("cast", "projection"):
        assert condition_scores([[0.0, 2.0], [0.0, 0.0]], [3.0, 0.0], score).tolist() == [0.0, 0.0]


def test_the_comparator_of_ibm_says_what_the_threshold_is():
    assert (fire_when_of("larger"), fire_when_of("smaller")) == ("below", "above")
    with pytest.raises(UnknownNameError, match="smaller"):
        fire_when_of("smalller")


def test_several_sites_are_joined_by_or_and_equal_scores_do_not_fire():
    above = VectorCondition(vector([1.0, 0.0], [0.0, 1.0]), {SITE: 0.5, LATER: 0.25}, score="projection")
    scores = {SITE: torch.tensor([0.6, 0.5, 0.1]), LATER: torch.tensor([0.1, 0.25, 0.3])}
    assert above.holds(scores).tolist() == [True, False, True]
    below = VectorCondition(vector([1.0, 0.0], [0.0, 1.0]), {SITE: 0.5, LATER: 0.25}, "below", score="projection")
    assert below.holds(scores).tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("read", ["mean", "last"])
def test_padding_on_either_side_leaves_the_scores(name, read):
    model = shared(name)
    torch.manual_seed(0)
    condition = VectorCondition(SteeringVector({SITE: torch.randn(model.d_model)}), 0.0, read=read)
    long, short = token_ids(2, 7), token_ids(1, 4, seed=3)
    alone = torch.cat([condition.scores(model, ids)[SITE] for ids in (long, short)])
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
        ids[:2], mask[:2] = long, True
        place = slice(3, 7) if side == "left" else slice(0, 4)
        ids[2, place], mask[2, place] = short[0], True
        decision = decided(
            model,
            condition,
            {"input_ids": ids, "attention_mask": mask.long(), "position_ids": (mask.cumsum(1) - 1).clamp_min(0)},
        )
        assert torch.allclose(decision.last_scores[SITE], alone, atol=1e-5)


def decided(model, condition, inputs):
    from actinium.steering.decisions import Decision

    decision = Decision(condition)
    with decision.reading(model):
        model(inputs)
    return decision


def test_a_probe_is_asked_for_its_probability_or_its_decision():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(30, 4) + 2, torch.randn(30, 4) - 2])
    probe = LinearProbe().fit(x, [1] * 30 + [0] * 30)
    condition = ProbeCondition(probe, SITE)
    scores = condition.score_at(SITE, x)
    assert torch.allclose(scores, torch.from_numpy(probe.predict_proba(x.numpy())[:, 1]))
    assert condition.holds({SITE: scores}).tolist() == [True] * 30 + [False] * 30

    class Margin:
        decision_function = staticmethod(lambda rows: rows[:, 0] - 1)

    assert ProbeCondition(Margin(), SITE).thresholds == {SITE: 0.0}
    assert torch.allclose(ProbeCondition(Margin(), SITE).score_at(SITE, x), x[:, 0].double() - 1)
    flags = ProbeCondition(lambda rows: rows[:, 1] > 0, SITE)
    assert torch.equal(flags.holds({SITE: flags.score_at(SITE, x)}), x[:, 1] > 0)


def test_the_label_of_a_probe_of_several_is_named():
    x = torch.eye(3).repeat(8, 1)
    probe = LinearProbe().fit(x, ["a", "b", "c"] * 8)
    assert ProbeCondition(probe, SITE, label="b").score_at(SITE, x[:3]).argmax() == 1
    with pytest.raises(InputError, match="label="):
        ProbeCondition(probe, SITE).score_at(SITE, x)
    with pytest.raises(UnknownNameError):
        ProbeCondition(probe, SITE, label="d").score_at(SITE, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorCondition(vector([1.0, 0.0]), 1.5),
        lambda: VectorCondition(vector([1.0, 0.0]), math.nan),
        lambda: VectorCondition(vector([1.0, 0.0]), 0.1, "larger"),
        lambda: VectorCondition(vector([1.0, 0.0]), 0.1, score="cosine"),
        lambda: VectorCondition(vector([1.0, 0.0]), 0.1, read="first"),
        lambda: VectorCondition(vector([1.0, 0.0]), {LATER: 0.1}),
        lambda: VectorCondition(torch.ones(2), 0.1),
        lambda: ProbeCondition(LinearProbe()),
        lambda: ProbeCondition({SITE: LinearProbe()}, SITE),
        lambda: ProbeCondition(3, SITE),
        lambda: condition_scores(torch.ones(2, 3), torch.ones(2)),
        lambda: find_condition_point(None, {SITE: np.ones((2, 2))}, {SITE: np.ones((2, 2))}, vector([1.0, 0.0])),
        lambda: find_condition_point(None, {SITE: np.eye(2)}, {SITE: np.eye(2)}, vector([1.0, 0.0]), most=0),
        lambda: find_condition_point(
            None, {SITE: np.eye(2)}, {SITE: np.eye(2)}, vector([1.0, 0.0]), thresholds=[0.5, 2.0]
        ),
    ],
)
def test_senseless_conditions_are_refused(make):
    with pytest.raises((InputError, UnknownNameError)):
        make()


def test_empty_kinds_of_prompts_are_refused():
    model = shared("gpt2")
    one = SteeringVector({SITE: torch.ones(model.d_model)})
    with pytest.raises(InputError, match="negative"):
        find_condition_point(model, ["a"], [], one)


def test_a_condition_needs_sites_that_a_model_has():
    model = shared("gpt2")
    with pytest.raises(SiteError):
        VectorCondition(SteeringVector({"blocks.9.resid_post": torch.ones(model.d_model)}), 0.1).check(model)
    with pytest.raises(InputError, match="wide"):
        VectorCondition(vector([1.0, 0.0]), 0.1).check(model)
    for name in ("blocks.-1.resid_post", "blocks.*.resid_post"):
        with pytest.raises(InputError, match="in full"):
            ProbeCondition(lambda rows: rows[:, 0], name, 0.1).check(model)
    with pytest.raises(InputError, match="batch, pos, d"):
        ProbeCondition(lambda rows: rows[:, 0], "blocks.0.attn.z", 0.1).check(model)


@pytest.mark.parametrize("score", ["cast", "projection"])
def test_the_search_finds_what_trying_everything_finds(score):
    random = np.random.default_rng(0)
    sites = [f"blocks.{i}.resid_post" for i in range(4)]
    directions = SteeringVector({s: torch.from_numpy(random.normal(size=5)) for s in sites})
    up = {s: random.normal(size=(9, 5)) + 0.4 for s in sites}
    down = {s: random.normal(size=(11, 5)) for s in sites}
    grid = np.arange(-1, 1, 0.05)
    found = find_condition_point(None, up, down, directions, most=3, thresholds=grid, score=score)
    best = (-1.0, None)
    kinds = [{s: condition_scores(side[s], directions[s], score).numpy() for s in sites} for side in (up, down)]
    for chosen in (c for size in (1, 2, 3) for c in itertools.combinations(sites, size)):
        for theta in grid:
            for fire in ("below", "above"):
                hits, alarms = (
                    np.any([k[s] < theta if fire == "below" else k[s] > theta for s in chosen], 0).sum() for k in kinds
                )
                f1 = 2 * hits / (2 * hits + alarms + (9 - hits))
                if f1 > best[0]:
                    best = (f1, (chosen, theta, fire))
    condition = found.condition
    assert found.f1 == pytest.approx(best[0], abs=1e-12)
    assert (tuple(condition.sites), condition.thresholds[condition.sites[0]], condition.fire_when) == best[1]
    free = find_condition_point(None, up, down, directions, most=3, score=score)
    assert free.f1 >= found.f1 and set(free.alone) == set(sites)


def test_the_threshold_found_predicts_at_run_time_as_in_the_search():
    random = np.random.default_rng(1)
    c = SteeringVector({SITE: torch.from_numpy(random.normal(size=16))})
    # Mean states that differ by little along the direction, as a narrow one in a wide space: thresholds are tiny.
    up, down = (random.normal(size=(40, 16)) * 30 + shift * c[SITE].numpy() for shift in (6.0, 0.0))
    found = find_condition_point(None, {SITE: up}, {SITE: down}, c, score="projection")
    holds = [
        found.condition.holds({SITE: found.condition.score_at(SITE, torch.from_numpy(side))}) for side in (up, down)
    ]
    hits, alarms = (int(h.sum()) for h in holds)
    assert 2 * hits / (hits + alarms + 40) == pytest.approx(found.f1)
    assert round(found.condition.thresholds[SITE], 3) != found.condition.thresholds[SITE]
