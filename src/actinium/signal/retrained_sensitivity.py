"""Sensitivity of the loss over several trained networks, beside correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError, MissingExtraError, unknown
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows
from actinium.signal.loss_derivatives import PAPER, loss_sensitivity

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LossSensitivity", "compare_with_spearman"]

ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}
BASELINES = ("spearman", "pearson", "saliency", "permutation", "mutual_information")
Factory = Callable[[int, int], nn.Module]
Floats = NDArray[np.float64]


class LossSensitivity(Estimator):
    """Derivatives of the squared error in each column of a table, over networks trained from different starts.

    Columns and target are standardised. The networks are trained in float64 on all rows at once with Adam.

    Args:
        factory: from the number of columns and a seed to a module with one output; by default a hidden layer with
            Glorot weights.
        n_retrain: networks, with seeds from `seed` on.
        hidden: units of the default network.
        activation: "tanh", "sigmoid", "silu", "gelu" or "relu"; for the default network.
        tanh_output: end the default network in tanh (it then reaches targets between -1 and 1 only).
        steps: of the optimiser.
        learning_rate: of Adam.
        record_every: note loss and derivatives at every so many steps, None for none.
        seed: the first seed.

    Attributes:
        networks_: the trained networks, on standardised columns.
        result_: Result over retraining and variable: `signed`, `D1`, `D2`, `D3` (means over rows), `abs_D1`, `abs_D3`
            (means of magnitudes), `slope_term` and `curvature_term` (the two parts of D2), `saliency` (mean |f_j|);
            over retraining: `mse`; over variable: `spearman`.
        history_: Result over retraining, step and variable: `D1`, `D2`, `D3` (means of magnitudes); over retraining and
            step: `loss`. None without `record_every`.

    Source: Faroz, 2024; the signed score is sign(mean f_j) sqrt(max(mean D2_j, 0) / 2).
    """

    fitted = "result_"

    def __init__(
        self,
        factory: Factory | None = None,
        n_retrain: int = 5,
        *,
        hidden: int = 16,
        activation: str = "tanh",
        tanh_output: bool = False,
        steps: int = 400,
        learning_rate: float = 1e-2,
        record_every: int | None = None,
        seed: int = 0,
    ) -> None:
        self.factory, self.n_retrain = factory, n_retrain
        self.hidden, self.activation, self.tanh_output = hidden, activation, tanh_output
        self.steps, self.learning_rate, self.record_every, self.seed = steps, learning_rate, record_every, seed

    def fit(self, X: Any, y: Any, names: Sequence[str] | None = None, *, progress: bool = False) -> Self:
        """Train the networks and differentiate their loss.

        Args:
            X: (n, d) real numbers, or a DataFrame of them.
            y: (n,).
            names: of the columns; those of a DataFrame, else x0, x1, ….
            progress: show a progress bar.

        Raises:
            InputError: fewer than three rows, integers or categories, a constant column, or numbers that do not fit.
        """
        self._check()
        names = names if names is not None else list(getattr(X, "columns", []))
        x, target = self._standardised(X, y)
        names = list(map(str, names)) or [f"x{j}" for j in range(x.shape[1])]
        if len(names) != x.shape[1]:
            raise InputError(f"{len(names)} names for {x.shape[1]} columns")
        self.networks_, rows, histories = [], [], []
        for seed in shown(range(self.seed, self.seed + self.n_retrain), "retraining", progress):
            network, history = self._trained(x, target, seed)
            self.networks_.append(network)
            rows.append(_measured(network, x, target))
            histories.append(history)
        coords = {"retraining": np.arange(self.n_retrain), "variable": names}
        data: dict[str, Any] = {k: (("retraining", "variable"), np.stack([r[k] for r in rows])) for k in rows[0]}
        data["mse"] = ("retraining", [float(((_one(n(x)) - target) ** 2).mean().detach()) for n in self.networks_])
        data["spearman"] = ("variable", _by_column(x.numpy(), target.numpy(), "spearman"))
        record = provenance(inputs=[x, target], **self.get_params())
        hints = {"plot": {"variables": ["signed"]}}
        self.result_ = Result(xr.Dataset(data, coords, hints), "LossSensitivity", PAPER, record)
        self.history_ = self._history(histories, names, record)
        return self

    def table(self) -> pd.DataFrame:
        """One row per variable: means over retrainings, `signed_sd` their spread, and `spearman`.

        Raises:
            InputError: `fit` was not called.
        """
        import pandas as pd

        self.check_fitted()
        data = self.result_.data
        kept = ["signed", "D1", "D2", "D3", "abs_D1", "abs_D3", "slope_term", "curvature_term"]
        columns = {name: data[name].mean("retraining").values for name in kept}
        columns |= {"signed_sd": data["signed"].std("retraining").values, "spearman": data["spearman"].values}
        return pd.DataFrame(columns, index=pd.Index(data["variable"].values, name="variable"))

    def _check(self) -> None:
        if self.n_retrain < 1 or self.steps < 1 or self.hidden < 1 or not self.learning_rate > 0:
            raise InputError("n_retrain, steps and hidden are 1 or more, and learning_rate is above 0")
        if self.record_every is not None and self.record_every < 1:
            raise InputError(f"record_every is 1 or more, or None, not {self.record_every}")
        if self.activation not in ACTIVATIONS:
            raise InputError(unknown("activation", self.activation, ACTIVATIONS))

    def _standardised(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        given = X if isinstance(X, Tensor) else np.asarray(X)
        if not (given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"):
            raise InputError("X holds integers or categories; encode them as real numbers first")
        x = as_rows(given, "X", flat=False, dtype=torch.float64)
        target = as_rows(np.asarray(y, dtype=np.float64).reshape(-1, 1), "y", dtype=torch.float64)[:, 0]
        if len(x) != len(target) or len(x) < 3:
            raise InputError(f"expected three rows or more and one target each, got {len(x)} and {len(target)}")
        constant = [j for j in range(x.shape[1]) if not bool((x[:, j] != x[0, j]).any())]
        if constant or not bool((target != target[0]).any()):
            raise InputError(f"columns {constant} do not vary" if constant else "y does not vary")
        return (x - x.mean(0)) / x.std(0, correction=0), (target - target.mean()) / target.std(correction=0)

    def _network(self, d: int, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.factory is not None:
                return self.factory(d, seed).double()
            first, last = nn.Linear(d, self.hidden), nn.Linear(self.hidden, 1)
            for layer in (first, last):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            end = [nn.Tanh()] if self.tanh_output else []
            return nn.Sequential(first, ACTIVATIONS[self.activation](), last, *end).double()

    def _trained(self, x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, list[dict[str, Any]]]:
        network = self._network(x.shape[1], seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        history = []
        for step in range(self.steps + 1):
            loss = ((_one(network(x)) - y) ** 2).mean()
            if self.record_every is not None and step % self.record_every == 0:
                found = loss_sensitivity(network, x, y, reduce="abs")
                history.append({"step": step, "loss": float(loss.detach())} | {f"D{k}": v for k, v in found.items()})
            if step < self.steps:
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return network.eval(), history

    def _history(self, runs: list[list[dict[str, Any]]], names: list[str], record: dict[str, Any]) -> Result | None:
        if self.record_every is None:
            return None
        data: dict[str, Any] = {"loss": (("retraining", "step"), [[h["loss"] for h in run] for run in runs])}
        for k in ("D1", "D2", "D3"):
            values = [np.stack([h[k].numpy() for h in run]) for run in runs]
            data[k] = (("retraining", "step", "variable"), np.stack(values))
        coords = {"retraining": np.arange(len(runs)), "step": [h["step"] for h in runs[0]], "variable": names}
        return Result(xr.Dataset(data, coords), "LossSensitivity history", PAPER, record)


def compare_with_spearman(
    fitted: LossSensitivity,
    X: Any,
    y: Any,
    baselines: Sequence[str] = ("spearman", "pearson", "saliency", "permutation"),
) -> Result:
    """The signed score beside correlations and other importances.

    Args:
        fitted: a LossSensitivity.
        X: (n, d) with the columns it was fitted on; (n,) targets in y. Both are standardised by themselves.
        y: (n,).
        baselines: some of "spearman", "pearson", "saliency" (mean |f_j|), "permutation" (rise of the squared error when
            a column is shuffled) and "mutual_information" (in nats, needs scikit-learn).

    Returns:
        Result over variable: `signed` (mean over retrainings), `signed_sd`, `D2` and each baseline. `rank_correlation`
        by baseline: Spearman's between its magnitudes and those of the signed score, over variables; NaN for fewer than
        three.

    Raises:
        InputError: `fit` was not called, an unknown baseline, or another number of columns.
        MissingExtraError: scikit-learn is needed and absent.
    """
    from scipy.stats import spearmanr

    fitted.check_fitted()
    for name in baselines:
        if name not in BASELINES:
            raise InputError(unknown("baseline", name, BASELINES))
    x, target = fitted._standardised(X, y)
    names = fitted.result_["variable"].values
    if x.shape[1] != len(names):
        raise InputError(f"X has {x.shape[1]} columns, the networks were trained on {len(names)}")
    rows = [_measured(network, x, target) for network in fitted.networks_]
    signed = np.stack([r["signed"] for r in rows])
    data: dict[str, Any] = {
        "signed": ("variable", signed.mean(0)),
        "signed_sd": ("variable", signed.std(0)),
        "D2": ("variable", np.mean([r["D2"] for r in rows], 0)),
    }
    agreement = []
    for name in baselines:
        if name == "saliency":
            values = np.mean([r["saliency"] for r in rows], 0)
        elif name == "permutation":
            values = np.mean([_shuffled(n, x, target, fitted.seed) for n in fitted.networks_], 0)
        else:
            values = _by_column(x.numpy(), target.numpy(), name)
        data[name] = ("variable", values)
        enough = len(names) > 2 and np.ptp(np.abs(values)) > 0
        agreement.append(float(spearmanr(np.abs(values), np.abs(signed.mean(0))).statistic) if enough else np.nan)
    data["rank_correlation"] = ("baseline", agreement)
    drawn = ["signed", *[b for b in baselines if b in ("spearman", "pearson")]]
    hints = {"plot": {"kind": "bar", "variables": drawn, "ylabel": "score"}}
    record = provenance(inputs=[x, target], baselines=list(baselines), **fitted.get_params())
    coords = {"variable": names, "baseline": list(baselines)}
    return Result(xr.Dataset(data, coords, hints), "compare_with_spearman", PAPER, record)


def _one(output: Tensor) -> Tensor:
    if output.ndim == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.ndim == 1:
        return output
    raise InputError(f"the network must have one output, got shape {tuple(output.shape)}")


def _measured(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, Floats]:
    slope = loss_sensitivity(network, x, y, "output", orders=(1,), reduce="none")[1]
    found = loss_sensitivity(network, x, y, reduce="none")
    second = found[2].mean(0)
    out = {
        "signed": slope.mean(0).sign() * (second.clamp(min=0) / 2).sqrt(),
        "D1": found[1].mean(0),
        "D2": second,
        "D3": found[3].mean(0),
        "abs_D1": found[1].abs().mean(0),
        "abs_D3": found[3].abs().mean(0),
        "slope_term": (2 * slope**2).mean(0),
        "curvature_term": (found[2] - 2 * slope**2).mean(0),
        "saliency": slope.abs().mean(0),
    }
    return {name: value.numpy() for name, value in out.items()}


def _by_column(x: Floats, y: Floats, name: str) -> Floats:
    from scipy.stats import pearsonr, spearmanr

    if name == "mutual_information":
        try:
            from sklearn.feature_selection import mutual_info_regression
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        return np.asarray(mutual_info_regression(x, y, random_state=0))
    of: Any = spearmanr if name == "spearman" else pearsonr
    return np.array([of(x[:, j], y).statistic for j in range(x.shape[1])])


@torch.no_grad()
def _shuffled(network: nn.Module, x: Tensor, y: Tensor, seed: int) -> Floats:
    """By how much the squared error rises when one column is shuffled."""
    random = torch.Generator().manual_seed(seed)
    before = ((_one(network(x)) - y) ** 2).mean()
    rises = []
    for j in range(x.shape[1]):
        mixed = x.clone()
        mixed[:, j] = x[torch.randperm(len(x), generator=random), j]
        rises.append(float(((_one(network(mixed)) - y) ** 2).mean() - before))
    return np.array(rises)
