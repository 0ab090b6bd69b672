"""Searches find what scores best, train equal functions once, go on from their file, and update as PPO does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, LoadError
from actinium.functions.searches.activation_search import EvolutionaryActivationSearch, TaskChild, exhaustive_search
from actinium.functions.searches.search_controller import RLActivationSearch, SearchController
from actinium.functions.searches.search_space import SearchSpace

X = torch.linspace(-3, 3, 61)
SMALL = SearchSpace(("x", "sin", "tanh", "relu", "sqrt"), ("add", "mul", "gate"))


class NearSilu:
    """A score without a network: how near the function is to SiLU. Counts what it was asked."""

    def __init__(self):
        self.asked, self.facts = 0, {"target": "silu"}

    def __call__(self, activation):
        self.asked += 1
        with torch.no_grad():
            return -float((activation()(X) - nn.functional.silu(X)).abs().mean())


def test_an_exhaustive_search_finds_the_best_and_trains_equal_functions_once():
    child = NearSilu()
    found = exhaustive_search(child, SMALL.unary, SMALL.binary)
    assert str(found.best()[0]) == "gate(x, x)" and found.table()["score"][0] == pytest.approx(0, abs=1e-7)
    assert found.draws == 75 and child.asked == len(found.trials) < 75
    assert len({t.key for t in found.trials}) == len(found.trials)
    texts = {t.expression for t in found.trials}
    assert ("add(sin(x), tanh(x))" in texts) != ("add(tanh(x), sin(x))" in texts)
    why = dict(found.failures().itertuples(index=False))
    assert "not finite" in why["add(x, sqrt(x))"] and len(why) == len(found.refused)
    assert exhaustive_search(NearSilu(), ("x", "relu"), ("max", "add")).failures()["reason"].tolist() == [
        "it is the identity"
    ]
    best = found.result["best"].values
    assert (np.diff(best) >= 0).all() and best[-1] == found.table()["score"][0]
    found.result.plot()


def test_a_safe_search_trains_roots_too():
    found = exhaustive_search(NearSilu(), ("x", "sqrt"), ("mul", "div"), safe=True)
    assert {"safe_div(x, safe_sqrt(x))", "mul(x, safe_sqrt(x))"} <= {t.expression for t in found.trials}


def _searches():
    return {
        "exhaustive": lambda child, n, file: exhaustive_search(child, SMALL.unary, SMALL.binary, budget=n, file=file),
        "rl": lambda child, n, file: RLActivationSearch(SMALL, hidden=8).fit(child, n, file).result_,
        "evolution": lambda child, n, file: EvolutionaryActivationSearch(SMALL, 6, 2).fit(child, n, file).result_,
    }


@pytest.mark.parametrize("name", _searches())
def test_a_stopped_search_goes_on_as_if_it_had_not_been(name, tmp_path):
    search, file = _searches()[name], tmp_path / "search.jsonl"
    whole = search(NearSilu(), 20, None)
    search(NearSilu(), 8, file)
    assert len(file.read_text().splitlines()) == 9
    with file.open("a") as out:
        out.write('{"expression": "add(x')  # stopped while it wrote
    child = NearSilu()
    again = search(child, 20, file)
    assert again.trials == whole.trials and len(again.trials) == 20
    assert child.asked == 12
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["expression"] for r in rows[1:]] == [t.expression for t in whole.trials]


def test_a_file_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search.jsonl"
    exhaustive_search(NearSilu(), ("x", "sin"), ("mul",), budget=2, file=file)
    with pytest.raises(LoadError, match=r"different .*seed"):
        exhaustive_search(NearSilu(), ("x", "sin"), ("mul",), budget=2, file=file, seed=1)
    with pytest.raises(LoadError, match=r"different .*method"):
        EvolutionaryActivationSearch(SMALL).fit(NearSilu(), 3, file)
    file.write_text("what is this\n")
    with pytest.raises(LoadError, match="damaged"):
        exhaustive_search(NearSilu(), ("x", "sin"), ("mul",), budget=2, file=file)


def test_a_failed_child_is_kept_with_its_reason(tmp_path):
    def child(activation):
        y = activation()(X)
        if float(y.detach().min()) < -1:
            raise RuntimeError("exploded")
        return math.nan if float(y.detach().max()) > 5 else 1.0

    file = tmp_path / "search.jsonl"
    found = exhaustive_search(child, ("x", "square", "tanh"), ("mul", "add"), file=file)
    reasons = dict(found.failures().itertuples(index=False))
    assert reasons["add(x, x)"] == "RuntimeError: exploded"
    assert reasons["mul(x, x)"] == "its score is not finite"
    assert found.table()["expression"].tolist() == ["mul(x, tanh(x))", "mul(tanh(x), tanh(x))"]
    # A failure is not tried again.
    again = exhaustive_search(lambda _: 2.0, ("x", "square", "tanh"), ("mul", "add"), file=file)
    assert again.table().equals(found.table())
    with pytest.raises(InputError, match="exploded"):
        exhaustive_search(lambda a: child(lambda: lambda x: x - 9), ("x", "sin"), ("mul",))
    with pytest.raises(InputError, match="refused"):
        exhaustive_search(child, ("beta",), ("mul",))


def test_processes_give_the_same_scores():
    child = TaskChild("regression", epochs=1, n=200)
    one = exhaustive_search(child, SMALL.unary, SMALL.binary, budget=4)
    two = exhaustive_search(child, SMALL.unary, SMALL.binary, budget=4, jobs=2)
    for a, b in zip(one.trials, two.trials, strict=True):
        assert (a.expression, a.key) == (b.expression, b.key) and a.score == pytest.approx(b.score, rel=1e-4)


def test_the_controller_gives_every_member_its_probability():
    torch.manual_seed(0)
    space = SearchSpace(("x", "sin"), ("add", "mul"), 2)
    controller = SearchController(space, 8)
    members = torch.tensor(list(space.members()))
    logs, entropy = controller(members)
    assert float(logs.detach().exp().sum()) == pytest.approx(1, abs=1e-5)
    # The chain rule: the mean of the steps' entropies is the entropy of the whole.
    whole = -float((logs.exp() * logs).detach().sum())
    assert float((logs.exp() * entropy).detach().sum()) == pytest.approx(whole, abs=1e-4)
    drawn = controller.sample(4000, torch.Generator().manual_seed(1))
    place = {tuple(m): i for i, m in enumerate(members.tolist())}
    counts = np.bincount([place[tuple(m)] for m in drawn.tolist()], minlength=space.size)
    expected = logs.exp().detach().double().numpy()
    expected *= 4000 / expected.sum()
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < space.size + 5 * math.sqrt(2 * space.size)


def test_the_objective_is_ppo_whose_first_step_is_reinforce():
    ppo, plain = RLActivationSearch(), RLActivationSearch(method="reinforce")
    before = torch.tensor([-3.0, -2.0, -4.0])
    advantages = torch.tensor([1.0, -0.5, 0.2])
    slopes = []
    for search in (ppo, plain):
        logs = before.clone().requires_grad_()
        (slope,) = torch.autograd.grad(search.objective(logs, before, advantages), logs)
        slopes.append(slope)
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(slopes[1], advantages / 3)
    # A ratio of 2 with a gain counts 1.2, and pulls no further; one with a loss counts in full.
    logs = (before + math.log(2)).requires_grad_()
    value = ppo.objective(logs, before, advantages)
    (slope,) = torch.autograd.grad(value, logs)
    assert float(value.detach()) == pytest.approx((1.2 * 1.0 - 2 * 0.5 + 1.2 * 0.2) / 3)
    assert slope.tolist() == pytest.approx([0.0, -1.0 / 3, 0.0])


@pytest.mark.parametrize("method", ["ppo", "reinforce"])
def test_the_controller_learns_what_is_rewarded(method):
    class Likes:
        def __call__(self, activation):
            return float("gate" in str(activation().expression)) + float("tanh" in str(activation().expression))

    search = RLActivationSearch(SMALL, hidden=16, method=method, lr=0.03, epochs=2, seed=2).fit(Likes(), 30)
    assert search.rewards_[-5:].mean() > search.rewards_[:3].mean() + 0.5
    members = torch.tensor(list(SMALL.members()))
    with torch.no_grad():
        p = search.controller_(members)[0].exp()
    liked = torch.tensor([1.0 if "gate" in str(SMALL.decode(m)) else 0.0 for m in members.tolist()])
    assert float((p * liked).sum()) > 0.6 > float(liked.mean())


def test_evolution_does_better_than_random_draws():
    space = SearchSpace()
    found = [EvolutionaryActivationSearch(space, 8, 4, seed).fit(NearSilu(), 120).result_ for seed in range(3)]
    drawn = [exhaustive_search(NearSilu(), budget=120, seed=seed) for seed in range(3)]
    late, random = (
        np.mean([np.median([t.score for t in r.trials[60:]]) for r in results]) for results in (found, drawn)
    )
    assert late > random + 0.1


def test_a_child_sees_no_test_data_and_is_the_same_each_time():
    task = ac.functions.task("digits", epochs=1, depth=1, width=16)
    child = TaskChild(task)
    rows = {tuple(r) for r in task.train[0].tolist()}
    used = torch.cat([child.task.train[0], child.task.test[0]])
    assert len(used) == len(task.train[0]) and {tuple(r) for r in used.tolist()} == rows
    assert child(nn.ReLU) == child(nn.ReLU)
    assert math.isnan(child(lambda: _Times(1e30)))
    assert TaskChild("regression", epochs=1, n=100)(nn.ReLU) < 0  # a mean squared error, negated
    with pytest.raises(InputError, match="seed"):
        TaskChild(task, seeds=())
    with pytest.raises(InputError, match="settings"):
        TaskChild(task, epochs=3)


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor * x.abs() * self.factor


def test_ranks_on_digits_agree_between_seeds_and_the_best_is_no_worse_than_relu():
    unary = ("x", "neg", "abs", "square", "scale", "sin", "cos", "tanh", "relu", "neg_part", "sigmoid", "gauss")
    binary = ("add", "mul", "sub", "max", "min", "gate")
    scores = []
    for seed in (0, 1):
        child = TaskChild("digits", (seed,), epochs=4, depth=2, width=32)
        found = exhaustive_search(child, unary, binary, budget=12)
        scores.append([t.score for t in found.trials])
        assert found.table()["score"][0] >= child(nn.ReLU)
    kept = np.isfinite(scores).all(0)
    assert spearmanr(*np.array(scores)[:, kept]).statistic > 0.4


def test_the_best_are_compared_again_with_relu_on_test_data():
    found = exhaustive_search(NearSilu(), SMALL.unary, SMALL.binary)
    again = found.compare(2, "digits", (0, 1), epochs=1, depth=1, width=16)
    assert again["mean"].coords["activation"].values.tolist() == ["ReLU", *map(str, found.best(2))]


def test_settings_out_of_range_are_refused():
    for settings, message in (
        ({"method": "a2c"}, "method"),
        ({"lr": 0.0}, "lr"),
        ({"batch": 0}, "batch"),
        ({"decay": 1.0}, "decay"),
    ):
        with pytest.raises(InputError, match=message):
            RLActivationSearch(SMALL, **settings).fit(NearSilu(), 4)
    with pytest.raises(InputError, match="tournament"):
        EvolutionaryActivationSearch(SMALL, 2, 3).fit(NearSilu(), 4)
    with pytest.raises(InputError, match="budget"):
        exhaustive_search(NearSilu(), budget=0)
