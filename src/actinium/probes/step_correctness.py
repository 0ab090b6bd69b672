"""Probes that tell right steps from wrong ones, layer by layer, beside what words alone and chance would give."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.rows import as_classes, as_rows, one_value_each, tensor_of
from actinium.probes.splits import group_folds

__all__ = ["StepCorrectnessProbe", "word_counts"]

KINDS = ("logistic", "mlp")
STRENGTHS = {"logistic": (1e-3, 1e-2, 1e-1, 1.0, 10.0), "mlp": (1.0,)}
PAPER = "arrangement-puzzle"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Folds = list[tuple[Ints, Ints, list[tuple[Ints, Ints]]]]
Weights = list[tuple[Floats, Floats]]


class StepCorrectnessProbe(SavedEstimator):
    """A classifier of right and wrong steps for each layer, tested on puzzles that it was not fitted on.

    The classes are made equal by leaving out rows of the larger one. Every fold is of whole puzzles, those in which the
    strength of the penalty is chosen as well.

    Args:
        kind: "logistic" (L2 penalty) or "mlp" (one hidden layer of ReLUs).
        Cs: inverse strengths of the penalty to choose from; None for 1e-3 to 10 (logistic) or 1 (mlp).
        folds: of cross-validation.
        inner_folds: in which the strength is chosen by accuracy.
        hidden: units of the MLP.
        epochs: passes of Adam over the data, of the MLP.
        controls: also fit to shuffled labels and, where `fit` gets texts, to the control task.
        seed: of folds, controls, the rows left out and the MLP.

    Attributes:
        layers_: (layer,) names, numbers from 0 where activations have none.
        accuracy_: (layer,) mean over folds of the accuracy on held-out puzzles. auroc_: the same of the AUROC.
        standard_error_: (layer,) standard deviation of the accuracy over folds / sqrt(folds); folds share training
            rows, so it is a little too small.
        shuffled_: (layer,) accuracy with labels shuffled over all rows; None without controls.
        control_: (layer,) accuracy on the control task, in which each distinct text has a label of its own, drawn once.
            selectivity_: accuracy_ - control_. None without controls or texts.
        surface_: accuracy and AUROC, on the same folds, of a logistic probe of the step's word counts and length. None
            without texts.
        folds_: what the means are of, each (layer, fold); of the surface accuracy and AUROC, (2, fold).
        rows_: number of rows that were used.
        result_: a `Result` of the means.
        weights_: for each layer the probe fitted on all rows: pairs of a (d, k) matrix and (k,) offsets, with ReLUs
            between.

    Source: Atanas and Liu, 2025 (correctness of steps; sizes and settings are ours); Hewitt and Liang, 2019, section 2
    (control tasks and selectivity).
    """

    fitted = "weights_"
    saved_as = "step correctness probe"

    def __init__(
        self,
        kind: str = "logistic",
        *,
        Cs: Sequence[float] | None = None,
        folds: int = 5,
        inner_folds: int = 3,
        hidden: int = 256,
        epochs: int = 60,
        controls: bool = True,
        seed: int = 0,
    ) -> None:
        self.kind, self.Cs, self.folds, self.inner_folds = kind, Cs, folds, inner_folds
        self.hidden, self.epochs, self.controls, self.seed = hidden, epochs, controls, seed

    def fit(
        self, acts: Any, y: Any, groups: Any, *, texts: Sequence[str] | None = None, progress: bool = False
    ) -> Self:
        """Cross-validate at every layer, then fit on all rows.

        Args:
            acts: (layer, step, d), or {site: (step, d)} as `step_activations` gives.
            y: (step,) whether each step is right.
            groups: (step,) the puzzle that each belongs to.
            texts: (step,) the steps, for the surface baseline and the control task.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, values are not finite, one class only, groups are missing or too few for the
                folds, or a setting is out of range.
            MissingExtraError: scikit-learn is not installed.
            UnknownNameError: no such kind.
        """
        self._check()
        layers = _layers(acts)
        first = next(iter(layers.values()))
        classes, label = as_classes(y, len(first), two=True)
        if groups is None:
            raise InputError("groups are missing: without them the same puzzle would be fitted on and tested on")
        group = one_value_each(groups, len(first), "groups")
        if texts is not None and len(texts) != len(first):
            raise InputError(f"{len(texts)} texts for {len(first)} steps")
        keep = _equal_classes(label, self.seed)
        label, group = label[keep], group[keep]
        said = None if texts is None else [texts[i] for i in keep]
        folds = self._folds(label, group)
        inner = group_folds(label, group, self.inner_folds, seed=self.seed)
        targets = self._targets(label, said)
        found: dict[str, list[Floats]] = {}
        weights = []
        for name in shown(list(layers), "probing layers", progress):
            rows = layers[name][keep]
            accuracy, auroc = self._scores(rows, label, folds, self.kind)
            values = {"accuracy": accuracy, "auroc": auroc}
            values |= {what: self._scores(rows, target, folds, self.kind)[0] for what, target in targets.items()}
            for what, value in values.items():
                found.setdefault(what, []).append(value)
            weights.append(_weights(self._fitted(rows, label, inner, self.kind)))
        measured = {what: np.array(values) for what, values in found.items()}
        if said is not None:
            scores = self._scores(word_counts(said), label, folds, "logistic")
            measured["surface"] = np.stack(scores)
        self._keep(list(layers), classes, weights, measured, len(keep))
        return self

    def _check(self) -> None:
        try:
            import sklearn  # noqa: F401
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        if self.kind not in KINDS:
            raise UnknownNameError(unknown("kind", str(self.kind), KINDS))
        if self.Cs is not None and (not len(self.Cs) or any(not c > 0 for c in self.Cs)):
            raise InputError(f"Cs must hold numbers above 0, got {self.Cs}")
        if self.hidden < 1 or self.epochs < 1:
            raise InputError(f"hidden and epochs must be 1 or more, got {self.hidden} and {self.epochs}")

    def _folds(self, label: Ints, group: NDArray[Any]) -> Folds:
        """Training and test rows, and folds within the training rows."""
        return [
            (train, test, group_folds(label[train], group[train], self.inner_folds, seed=self.seed))
            for train, test in group_folds(label, group, self.folds, seed=self.seed)
        ]

    def _targets(self, label: Ints, texts: Sequence[str] | None) -> dict[str, Ints]:
        """Labels of the controls."""
        if not self.controls:
            return {}
        random = np.random.default_rng(self.seed)
        targets = {"shuffled": random.permutation(label)}
        if texts is not None:
            kinds, of = np.unique(np.array(texts), return_inverse=True)
            if len(kinds) < 2:
                raise InputError("all texts are the same: they give neither a surface baseline nor a control task")
            # Half of the distinct texts get each label, so that the task has two classes.
            targets["control"] = random.permutation(np.arange(len(kinds)) % 2)[of]
        return targets

    def _scores(self, rows: Floats, label: Ints, folds: Folds, kind: str) -> tuple[Floats, Floats]:
        """Accuracy and AUROC on the test rows of each fold (0.5 where they are of one class)."""
        from sklearn.metrics import roc_auc_score

        accuracy, auroc = [], []
        for train, test, inner in folds:
            probability = self._fitted(rows[train], label[train], inner, kind).predict_proba(rows[test])[:, 1]
            accuracy.append(np.mean((probability > 0.5) == label[test]))
            auroc.append(roc_auc_score(label[test], probability) if len(set(label[test])) == 2 else 0.5)
        return np.array(accuracy), np.array(auroc)

    def _fitted(self, rows: Floats, label: Ints, inner: Any, kind: str) -> Any:
        """A pipeline of standardisation and classifier, with the best strength of the inner folds."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        strengths = STRENGTHS[kind] if self.Cs is None or kind != self.kind else tuple(self.Cs)
        if kind == "logistic":
            model: Any = LogisticRegression(C=strengths[0], max_iter=2000)
            grid = {"logisticregression__C": list(strengths)}
        else:
            model = MLPClassifier((self.hidden,), alpha=1 / strengths[0], max_iter=self.epochs, random_state=self.seed)
            model.set_params(n_iter_no_change=self.epochs)
            grid = {"mlpclassifier__alpha": [1 / c for c in strengths]}
        pipeline = make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            # The MLP is trained for a fixed number of epochs.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if len(strengths) == 1:
                return pipeline.fit(rows, label)
            return GridSearchCV(pipeline, grid, cv=inner, scoring="accuracy").fit(rows, label).best_estimator_

    def _keep(
        self, layers: list[Any], classes: NDArray[Any], weights: list[Weights], measured: dict[str, Floats], rows: int
    ) -> None:
        """Set what was fitted and measured; values of `measured` are (layer, fold), of the surface (2, fold)."""
        self.layers_, self.classes_, self.weights_ = layers, classes, weights
        self.folds_, self.rows_ = measured, rows
        mean = {what: values.mean(1) for what, values in measured.items()}
        self.accuracy_, self.auroc_ = mean["accuracy"], mean["auroc"]
        folds = measured["accuracy"]
        self.standard_error_: Floats = folds.std(1, ddof=1) / np.sqrt(folds.shape[1])
        self.shuffled_, self.control_ = mean.get("shuffled"), mean.get("control")
        self.selectivity_ = None if self.control_ is None else self.accuracy_ - self.control_
        self.surface_ = (float(mean["surface"][0]), float(mean["surface"][1])) if "surface" in mean else None

    @property
    def result_(self) -> Result:
        """Accuracy, AUROC and controls by layer, with the accuracy of the surface baseline as a line."""
        self.check_fitted()
        values = {"accuracy": self.accuracy_, "auroc": self.auroc_, "standard_error": self.standard_error_}
        values |= {"shuffled": self.shuffled_, "control": self.control_, "selectivity": self.selectivity_}
        if self.surface_ is not None:
            values |= {"surface": np.full(len(self.layers_), self.surface_[0])}
            values |= {"surface_auroc": np.full(len(self.layers_), self.surface_[1])}
        data = xr.Dataset(
            {name: ("layer", value) for name, value in values.items() if value is not None}, {"layer": self.layers_}
        )
        shown = [name for name in ("accuracy", "shuffled", "control", "surface") if name in data]
        data.attrs["plot"] = {"variables": shown, "ylabel": "accuracy on held-out puzzles"}
        settings = {name: value for name, value in self.get_params().items() if name != "seed"}
        return Result(data, "step_correctness", PAPER, provenance(seed=self.seed, rows=self.rows_, **settings))

    def predict_proba(self, acts: Any, layer: int | str) -> Floats:
        """Probability that each step is right, by the probe of one layer, (step,).

        Args:
            acts: (step, d) of that layer.
            layer: its name, or its place in `layers_`.

        Raises:
            InputError: `fit` was not called, or shapes do not fit.
            UnknownNameError: no such layer.
        """
        place = self._place(layer)
        weights = self.weights_[place]
        values = as_rows(acts, width=len(weights[0][0]))
        for i, (matrix, offset) in enumerate(weights):
            values = (np.maximum(values, 0) if i else values) @ matrix + offset
        return np.asarray(expit(values[:, 0]))

    def predict(self, acts: Any, layer: int | str) -> NDArray[Any]:
        """The more probable class of each step, by the probe of one layer; see `predict_proba`."""
        probability = self.predict_proba(acts, layer)
        return np.asarray(self.classes_[(probability > 0.5).astype(int)])

    def direction(self, layer: int | str) -> Floats:
        """The unit vector along which a logistic probe reads steps as right, (d,).

        Raises:
            InputError: `fit` was not called, or the probe is an MLP or constant.
            UnknownNameError: no such layer.
        """
        place = self._place(layer)
        weights = self.weights_[place]
        vector = weights[0][0][:, 0]
        if len(weights) > 1 or not vector.any():
            raise InputError("only a logistic probe that is not constant has a direction")
        return np.asarray(vector / np.linalg.norm(vector))

    def _place(self, layer: int | str) -> int:
        self.check_fitted()
        if isinstance(layer, int) and -len(self.layers_) <= layer < len(self.layers_):
            return layer
        if layer not in self.layers_:
            raise UnknownNameError(unknown("layer", str(layer), [str(name) for name in self.layers_]))
        return self.layers_.index(layer)

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"Cs": None if self.Cs is None else [float(c) for c in self.Cs]}

    def _state(self) -> State:
        tensors = {
            f"{part}.{i}.{j}": tensor_of(value)
            for i, layer in enumerate(self.weights_)
            for j, pair in enumerate(layer)
            for part, value in zip(("matrix", "offset"), pair, strict=True)
        }
        tensors |= prefixed("folds", {what: tensor_of(values) for what, values in self.folds_.items()})
        about = {"layers": self.layers_, "classes": self.classes_.tolist(), "rows": self.rows_}
        return tensors, about | {"maps": len(self.weights_[0])}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        values = {name: tensor.numpy() for name, tensor in tensors.items()}
        layers = about["layers"]
        weights = [
            [(values[f"matrix.{i}.{j}"], values[f"offset.{i}.{j}"]) for j in range(about["maps"])]
            for i in range(len(layers))
        ]
        folds = {what: value.numpy() for what, value in below("folds", tensors).items()}
        self._keep(layers, np.array(about["classes"]), weights, folds, about["rows"])


def word_counts(texts: Sequence[str]) -> Floats:
    """What a reader of words alone knows: counts of the words and signs of each text, and its length, (text, word)."""
    said = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
    words = {word: i for i, word in enumerate(sorted({word for text in said for word in text}))}
    counts = np.zeros((len(texts), len(words) + 1))
    for row, text in zip(counts, said, strict=True):
        for word in text:
            row[words[word]] += 1
        row[-1] = len(text)
    return counts


def _layers(acts: Any) -> dict[Any, Floats]:
    """Activations by layer, each (step, d) float64."""
    if not isinstance(acts, Mapping) and not hasattr(acts, "items"):
        acts = dict(enumerate(acts)) if getattr(acts, "ndim", 3) == 3 else {}
    layers = {name: as_rows(value, f"activations of layer {name}") for name, value in acts.items()}
    if not layers:
        raise InputError("expected activations (layer, step, d), or {site: (step, d)} with one site or more")
    if len({value.shape for value in layers.values()}) > 1 and len({len(value) for value in layers.values()}) > 1:
        raise InputError("the layers differ in their number of steps")
    return layers


def _equal_classes(label: Ints, seed: int) -> Ints:
    """Rows with as many of either class, in their order."""
    rows = [np.flatnonzero(label == k) for k in (0, 1)]
    size = min(map(len, rows))
    random = np.random.default_rng(seed)
    return np.sort(np.concatenate([r if len(r) == size else random.choice(r, size, replace=False) for r in rows]))


def _weights(pipeline: Any) -> Weights:
    """The maps of a fitted pipeline, with the standardisation inside the first."""
    scaler, model = pipeline[0], pipeline[-1]
    if hasattr(model, "coefs_"):
        matrices, offsets = list(model.coefs_), list(model.intercepts_)
    else:
        matrices, offsets = [model.coef_.T], [model.intercept_]
    first = matrices[0] / scaler.scale_[:, None]
    return list(zip([first, *matrices[1:]], [offsets[0] - scaler.mean_ @ first, *offsets[1:]], strict=True))
