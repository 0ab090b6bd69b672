"""Functions are compared from the same weights on the same batches, and tested in pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.functions.comparison.activation_comparison import compare_activations
from actinium.functions.comparison.comparison_tasks import TASKS, ComparisonTask, mlp, task
from actinium.functions.comparison.run_statistics import holm, paired_comparison, t_interval


class Scaled(nn.Module):
    """ReLU with a parameter that is drawn."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.rand(1))

    def forward(self, x):
        return self.a / self.a.detach() * torch.relu(x)


@pytest.fixture(scope="module")
def digits():
    functions = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "relu again": nn.ReLU,
        "drawn": Scaled,
        "constant": Zero,
        "NaN": Broken,
    }
    return compare_activations(functions, "digits", (0, 1), epochs=2)


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


class Broken(nn.Module):
    def forward(self, x):
        return x / 0 * 0


def test_the_same_function_gives_the_same_run(digits):
    data = digits.data
    first, again = data.sel(activation="relu"), data.sel(activation="relu again")
    for name in ("score", "curve", "roughness", "noisy", "gradient_norm"):
        assert first[name].equals(again[name].assign_coords(activation="relu")), name
    assert float(again["difference"]) == 0 and float(again["p"]) == 1
    # Parameters that a function draws leave the weights as they are.
    assert float(data["curve"].sel(activation="drawn", epoch=0).mean()) == pytest.approx(
        float(first["curve"].sel(epoch=0).mean()), rel=0.1
    )


def test_what_fails_is_said_and_what_learns_is_above_chance(digits):
    data = digits.data
    assert float(data["mean"].sel(activation="relu")) > 0.8 and float(data["mean"].sel(activation="tanh")) > 0.8
    assert float(data["mean"].sel(activation="constant")) < 0.3
    assert float(data["dead_units"].sel(activation="constant")) == 1 > float(data["dead_units"].sel(activation="relu"))
    assert math.isnan(data["mean"].sel(activation="NaN")) and float(data["failed"].sel(activation="NaN")) == 2
    assert int(data["rank"].sel(activation="constant")) == 5
    noisy = data["noisy"].sel(activation="relu")
    assert float(noisy[0]) > float(noisy[-1])
    assert digits.table("mean").shape[0] == 6


def test_the_statistics_are_those_of_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    found = paired_comparison(a, b)
    assert found["p"] == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-10)
    assert found["effect"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    low, high = t_interval(a)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 8, a.mean(), stats.sem(a)))
    assert holm(np.array([math.nan, 0.04, 0.01, 0.03])) == pytest.approx([math.nan, 0.06, 0.03, 0.06], nan_ok=True)
    assert all(math.isnan(v) for v in t_interval([1.0]))
    assert paired_comparison([1.0, 2.0], [1.0, 2.0])["p"] == 1


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains(name):
    chosen = task(name, epochs=1)
    short = ComparisonTask(
        name, chosen.build, tuple(t[:64] for t in chosen.train), tuple(t[:64] for t in chosen.test), chosen.loss,
        chosen.score, chosen.metric, chosen.higher_is_better, epochs=6, batch_size=16, continuous=chosen.continuous,
    )  # fmt: skip
    found = compare_activations({"relu": nn.ReLU, "silu": nn.SiLU}, short, (0,))
    curve = found["curve"].values
    assert np.isfinite(curve).all() and (curve[..., -1] < curve[..., 0]).all()
    assert np.isfinite(found["noisy"].values).all() == chosen.continuous


def test_a_comparison_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    made = []

    class Counted(nn.ReLU):
        def __init__(self, stop=99):
            super().__init__()
            made.append(self)
            if len(made) == stop:
                raise KeyboardInterrupt

    file, functions = tmp_path / "runs.jsonl", {"relu": nn.ReLU, "drawn": Scaled, "NaN": Broken}
    whole = compare_activations(functions | {"counted": Counted}, "digits", (0, 1), epochs=1)
    each = (len(made) - 1) // 2
    del made[:]
    with pytest.raises(KeyboardInterrupt):
        compare_activations(functions | {"counted": lambda: Counted(2 + each)}, "digits", (0, 1), epochs=1, path=file)
    assert len(file.read_text().splitlines()) == 1 + 3 * 2 + 1
    del made[:]
    found = compare_activations(functions | {"counted": Counted}, "digits", (0, 1), epochs=1, path=file)
    assert len(made) == 1 + each
    assert found.data.drop_attrs().equals(whole.data.drop_attrs())
    # More seeds may be added; another function of the same name is another run; another task is refused.
    longer = compare_activations(functions, "digits", (0, 1, 2), epochs=1, path=file)
    assert longer["score"].sel(activation="relu").values[:2] == pytest.approx(whole["score"].values[0])
    other = compare_activations({"relu": nn.Tanh, "drawn": Scaled}, "digits", (0,), epochs=1, path=file)
    assert float(other["score"].sel(activation="relu", seed=0)) != float(whole["score"].sel(activation="relu", seed=0))
    with pytest.raises(LoadError, match="different epochs"):
        compare_activations(functions, "digits", (0, 1), epochs=2, path=file)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="two activation functions"):
        compare_activations(["relu"])
    with pytest.raises(InputError, match="different numbers"):
        compare_activations({"a": nn.ReLU, "b": nn.Tanh}, seeds=(1, 1))
    with pytest.raises(InputError, match="no task 'digts'"):
        compare_activations({"a": nn.ReLU, "b": nn.Tanh}, "digts")
    with pytest.raises(UnknownNameError):
        compare_activations(["identity", "no such function"])
    x = torch.randn(6, 3)
    with pytest.raises(InputError, match="as many of both"):
        ComparisonTask(
            "mine", lambda act: mlp([3, 2], act), (x, x[:5]), (x, x), nn.functional.mse_loss, lambda o, t: 0.0, "m"
        )
    with pytest.raises(InputError, match="not finite"):
        ComparisonTask(
            "mine", lambda act: mlp([3, 2], act), (x / 0, x), (x, x), nn.functional.mse_loss, lambda o, t: 0.0, "m"
        )
