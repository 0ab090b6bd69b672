"""Conditions on a model that they were not developed on: small stories, told apart by whom they begin with."""

from __future__ import annotations

import torch

from actinium.core.loading import load
from actinium.probes.linear import LinearProbe
from actinium.probes.positions import activations_at
from actinium.steering.condition_search import find_condition_point
from actinium.steering.conditional import ConditionalSteering
from actinium.steering.conditions import ProbeCondition
from actinium.steering.extraction import extract

STARTS = (
    "Once upon a time, {} went to the park.",
    "{} had a red ball and a big box.",
    "One day, {} was very happy.",
    "There was {} who liked to play in the garden.",
    "The sun was hot and {} wanted to swim.",
    "In the house, {} saw a big bird.",
)
GIRLS = ("a little girl named Lily", "a girl called Anna", "a small girl named Mia", "a girl named Sue")
BOYS = ("a little boy named Tom", "a boy called Ben", "a small boy named Max", "a boy named Tim")


def stories(people, starts=STARTS[:4]):
    return [start.format(one) for one in people for start in starts]


def test_stories_of_girls_are_steered_and_those_of_boys_left(outside_data):
    model = load(outside_data / "stories260K")
    sites = [f"blocks.{i}.resid_post" for i in range(3)]
    up, down = stories(GIRLS), stories(BOYS)
    direction = extract(model, up, down, sites, method="pca_pairwise", position="mean")
    behaviour = extract(model, stories(["a dog"]), stories(["a cat"]), "blocks.3.resid_post", position="mean")
    found = find_condition_point(model, up, down, direction, most=2, score="projection")
    rows = {
        kind: activations_at(model, texts, "blocks.2.resid_post", {"mean": "mean"})["blocks.2.resid_post", "mean"]
        for kind, texts in (("girl", up), ("boy", down))
    }
    probe = LinearProbe().fit(torch.cat([rows["girl"], rows["boy"]]), [1] * len(up) + [0] * len(down))
    conditions = {"girl": found.condition, "probe": ProbeCondition(probe, "blocks.2.resid_post", read="mean")}
    steering = ConditionalSteering({"B": behaviour}, conditions, "if girl then B", strength=8.0)
    unseen = stories(GIRLS, STARTS[4:]) + stories(BOYS, STARTS[4:])
    girls = torch.tensor([True] * 8 + [False] * 8)
    options = {"max_new_tokens": 12, "do_sample": False}
    plain = model.generate(unseen, **options)
    with steering.applied(model) as now:
        told = model.generate(unseen, **options)
    for name in conditions:
        assert int((now.fired[name] == girls).sum()) >= 14, name
    changed = torch.tensor([a != b for a, b in zip(plain, told, strict=True)])
    assert not bool((changed & ~now.fired["girl"]).any()) and int(changed.sum()) >= 5
