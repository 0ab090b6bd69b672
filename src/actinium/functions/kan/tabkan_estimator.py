"""What Kolmogorov-Arnold networks for tables have in common: training, checks, explanation and transfer."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, MissingExtraError, unknown
from actinium.core.estimator import Estimator
from actinium.functions.kan.kan_importance import kan_feature_effects, kan_feature_importance
from actinium.functions.kan.kan_network import KANNetwork
from actinium.functions.kan.kan_training import train_network
from actinium.functions.kan.table_preparation import TablePreparation, learn_codes, text_columns, with_codes

__all__ = ["TabKANEstimator"]


def from_sklearn(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        MissingExtraError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None


class TabKANEstimator(Estimator, ABC):
    """Base of the classifier and the regressor.

    Args:
        layer: "chebyshev", "fourier", "spline", "fast", "jacobi", "fractional", "pade", "wavelet" or "daruan".
        hidden: outputs of each layer.
        order: how rich the functions are (degree, frequencies, intervals, centres or repetitions); the layer's own
            default if not given.
        layer_options: further arguments of the layers. Layers of radial functions ("fast") do without their norm unless
            it is asked for: columns are on a common scale, and a norm over a row would mix them.
        optimiser: "adam" or "lbfgs"; see `train_network`.
        steps, lr, batch_size, weight_decay: of the training.
        sparsity: weight of `KANNetwork.regulariser` in the loss.
        validation_fraction: share of the rows that is held out of training; the network is then the one that was best
            on them.
        scale: "standard", "quantile" or None; see `TablePreparation`.
        impute: "mean", "median", "zero", or None to refuse missing values.
        encode: "ordinal" to take text columns of a DataFrame as codes, or None to refuse them.
        seed: of weights, batches and held-out rows.
        progress: show a progress bar.
    """

    fitted = "network_"

    def __init__(
        self,
        layer: str = "chebyshev",
        hidden: tuple[int, ...] = (16,),
        order: int | None = None,
        layer_options: dict[str, Any] | None = None,
        optimiser: str = "adam",
        steps: int = 200,
        lr: float = 1e-2,
        batch_size: int | None = None,
        weight_decay: float = 1e-4,
        sparsity: float = 0.0,
        validation_fraction: float = 0.0,
        scale: str | None = "standard",
        impute: str | None = None,
        encode: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.layer = layer
        self.hidden = hidden
        self.order = order
        self.layer_options = layer_options
        self.optimiser = optimiser
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.sparsity = sparsity
        self.validation_fraction = validation_fraction
        self.scale = scale
        self.impute = impute
        self.encode = encode
        self.seed = seed
        self.progress = progress

    @abstractmethod
    def _kind(self) -> str:
        """What scikit-learn calls it."""

    @abstractmethod
    def _outputs(self) -> int:
        """How many outputs the network has."""

    @abstractmethod
    def _loss(self, y: Tensor, targets: Tensor) -> Tensor:
        """What is trained on."""

    @abstractmethod
    def _learn_targets(self, y: np.ndarray) -> Tensor:
        """Targets as the network is trained on them, with what is needed to turn them back."""

    @abstractmethod
    def _same_targets(self, y: np.ndarray) -> Tensor | None:
        """Targets in the terms that were learnt; None where they have no such ones."""

    @abstractmethod
    def _explained(self) -> KANNetwork:
        """The network whose outputs are explained."""

    @abstractmethod
    def _unit(self) -> float:
        """What an output of 1 is in the units of the target."""

    def fit(self, X: Any, y: Any) -> Self:
        """Train on rows (n, d) and targets (n,).

        Raises:
            InputError: text columns without an encoder, missing values without an imputer, a target that does not vary,
                or settings and data that do not fit.
            MissingExtraError: scikit-learn is not installed.
        """
        table, y = self._training_table(X, y)
        targets = self._learn_targets(y)
        self.preparation_ = TablePreparation(self.scale, self.impute).fit(table)
        self.places_ = np.arange(table.shape[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            options = ({"norm": False} if self.layer == "fast" else {}) | dict(self.layer_options or {})
            sizes = (table.shape[1], *self.hidden)
            # In float64: tables are small, and predictions do not depend on which rows stand beside a row.
            network = KANNetwork(sizes, self.layer, self.order, self._outputs(), **options).double()
        self.losses_ = self._train(network, self._inputs(table), targets)
        self.network_ = network
        return self

    def _train(
        self,
        network: KANNetwork,
        x: Tensor,
        targets: Tensor,
        parameters: list[nn.Parameter] | None = None,
        **settings: Any,
    ) -> list[float]:
        if self.sparsity < 0 or not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"sparsity is not negative and a fraction is from 0 to 1, got {self.sparsity} and "
                f"{self.validation_fraction}"
            )
        held_out = None
        if self.validation_fraction > 0:
            train, held = self._split(targets)
            held_out = (x[held], targets[held])
            x, targets = x[train], targets[train]
        chosen: dict[str, Any] = {"steps": self.steps, "lr": self.lr} | settings
        return train_network(
            network, x, targets, self._loss, parameters=parameters, optimiser=self.optimiser,
            batch_size=self.batch_size, weight_decay=self.weight_decay, penalty=self._penalty(network),
            held_out=held_out, seed=self.seed, progress=self.progress, **chosen,
        )  # fmt: skip

    def _penalty(self, network: KANNetwork) -> Any:
        if not self.sparsity:
            return None
        return lambda rows: self.sparsity * network.regulariser(rows)

    def _split(self, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of training and of held-out rows; of each class the same share."""
        select = from_sklearn("model_selection")
        stratify = targets.numpy() if targets.dtype == torch.long else None
        try:
            train, held = select.train_test_split(
                np.arange(len(targets)), test_size=self.validation_fraction, random_state=self.seed, stratify=stratify
            )
        except ValueError as error:
            raise InputError(f"no rows can be held out: {error}") from None
        return train, held

    # What is known of tables

    def _training_table(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Checked rows and targets, from which names, number and codes of the columns are learnt."""
        if self.encode not in (None, "ordinal"):
            raise InputError(unknown("encoder", str(self.encode), ["ordinal"]))
        strange = text_columns(X)
        if strange and self.encode is None:
            raise InputError(f"columns {strange[:4]} hold no numbers; encode them, or use encode='ordinal'")
        self.codes_ = learn_codes(X)
        return self._validated(X, y, ensure_min_samples=2)

    def _table(self, X: Any) -> np.ndarray:
        """Checked rows of a table like that of the training."""
        return self._validated(X, "no_validation", reset=False)

    def _validated(self, X: Any, y: Any, **rules: Any) -> Any:
        """Rows in float64 and targets, as far as scikit-learn can check them."""
        checks = from_sklearn("utils.validation")
        if self.codes_ and text_columns(X):
            X = with_codes(X, self.codes_)
        finite = "allow-nan" if self.impute else True
        try:
            found = checks.validate_data(self, X, y, dtype=np.float64, ensure_all_finite=finite, **rules)
            return found if isinstance(found, np.ndarray) else (found[0], checks.column_or_1d(found[1], warn=True))
        except ValueError as error:
            raise InputError(str(error)) from None

    def _inputs(self, table: np.ndarray) -> Tensor:
        """Rows as the network takes them: columns that it knows, in its order; 0 where a table has no such column."""
        x = np.zeros((len(table), len(self.places_)))
        for i, place in enumerate(self.places_):
            if place >= 0:
                x[:, i] = self.preparation_.column(i, table[:, place])
        return torch.tensor(x)

    def _output(self, X: Any) -> np.ndarray:
        """What the network gives for rows, (n, outputs)."""
        self.check_fitted()
        with torch.no_grad():
            return self.network_(self._inputs(self._table(X))).numpy()

    def check_fitted(self) -> None:
        """Refuse to go on before `fit`.

        Raises:
            NotFittedError: `fit` was not called.
        """
        if self.fitted not in vars(self):
            # scikit-learn's own error, which its tools know; it is a ValueError, as InputError is.
            raise from_sklearn("exceptions").NotFittedError(
                f"this {type(self).__name__} is not fitted yet; call fit first"
            )

    def __sklearn_tags__(self) -> Any:
        tags = from_sklearn("utils")
        kind = self._kind()
        return tags.Tags(
            estimator_type=kind,
            target_tags=tags.TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=tags.ClassifierTags() if kind == "classifier" else None,
            regressor_tags=tags.RegressorTags() if kind == "regressor" else None,
            input_tags=tags.InputTags(allow_nan=self.impute is not None),
        )

    # Interpretation

    def _number(self, i: int | str) -> int:
        """The network's input of a column by its number or name."""
        names = list(getattr(self, "feature_names_in_", []))
        if isinstance(i, str):
            if i not in names:
                raise InputError(unknown("column", i, names))
            i = names.index(i)
        if not 0 <= i < self.n_features_in_:
            raise InputError(f"there are columns 0 to {self.n_features_in_ - 1}, not {i}")
        found = np.flatnonzero(self.places_ == i)
        if not len(found):
            raise InputError(f"column {i} was not there where this model was trained, and is not used")
        return int(found[0])

    def feature_curve(self, i: int | str, grid: Any) -> np.ndarray:
        """The first layer's functions of one column.

        Args:
            i: number or name of the column.
            grid: its values (n,), in the units of the table.

        Returns:
            (n, nodes): what each node of the first layer gets.

        Raises:
            InputError: there is no such column, the grid is not one of finite numbers, or the first layer's functions
                are of normalised inputs.
        """
        self.check_fitted()
        if self.network_.layers[0].normalises:
            raise InputError(
                "functions of this layer are of normalised inputs, not of a column; make it without a norm"
            )
        number = self._number(i)
        values = np.asarray(grid, np.float64)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise InputError(f"expected finite values (n,), got shape {values.shape}")
        at = torch.tensor(self.preparation_.column(number, values))
        with torch.no_grad():
            return self.network_.layers[0].curve(number, at).numpy()

    def feature_effects(self, X: Any) -> np.ndarray:
        """By how much predictions move with each column, as a standard deviation over rows.

        Returns:
            (d, outputs): in the units of the target, or of each class's logit less the mean logit of the row.

        Raises:
            InputError: the rows do not fit.
        """
        self.check_fitted()
        found = kan_feature_effects(self._explained(), self._inputs(self._table(X))).numpy()
        return self._of_columns(found) * self._unit()

    def feature_importance(self, X: Any = None, method: str = "effect") -> np.ndarray:
        """Importance (d,) of the columns; they add up to 1.

        Args:
            X: rows that stand for the data; not needed for "coefficients".
            method: "effect", "score" or "coefficients"; see `kan_feature_importance`.

        Raises:
            InputError: there is no such method, or the rows are missing or do not fit.
        """
        self.check_fitted()
        rows = None if X is None else self._inputs(self._table(X))
        return self._of_columns(kan_feature_importance(self._explained(), rows, method).numpy())

    def _of_columns(self, values: np.ndarray) -> np.ndarray:
        """Values of the network's inputs for the columns of the table, 0 for columns that it does not use."""
        out = np.zeros((self.n_features_in_, *values.shape[1:]))
        used = self.places_ >= 0
        out[self.places_[used]] = values[used]
        return out

    # Transfer

    def transfer(
        self,
        X: Any,
        y: Any,
        *,
        columns: list[int | str | None] | None = None,
        train: str = "all",
        steps: int | None = None,
        lr: float | None = None,
    ) -> Self:
        """A model for a table with partly other columns, which starts as this one.

        Columns of this model that the new table lacks are held at 0, their mean in training where columns are
        standardised; further columns of the new table are not used. Scaling stays that of this model. Where there are
        classes that it does not know, it gets a new head.

        Args:
            X, y: the new rows and targets.
            columns: for each column of the new table the column of this model that it is (a number, a name, or None);
                by equal names if not given.
            train: "all", or "head" to leave the learnt functions as they are.
            steps, lr: of the training; those of this model if not given.

        Raises:
            InputError: no column is common to both, or columns without names are not said.
        """
        self.check_fitted()
        if train not in ("all", "head"):
            raise InputError(unknown("part to train", str(train), ["all", "head"]))
        new = copy.deepcopy(self)
        mine = list(getattr(self, "feature_names_in_", []))
        for name in ("n_features_in_", "feature_names_in_", "network_"):
            vars(new).pop(name, None)
        table, y = new._validated(X, y)
        new.places_ = np.full(len(self.places_), -1)
        for place, source in enumerate(_sources(columns, mine, new)):
            if source is not None:
                number = self._number(source)
                if new.places_[number] >= 0:
                    raise InputError(f"column {source!r} of the model stands for two columns of the table")
                new.places_[number] = place
        if (new.places_ < 0).all():
            raise InputError("the new table has no column of the model; say with columns= which are the same")
        network = copy.deepcopy(self.network_)
        targets = new._same_targets(y)
        if new._outputs() != network.head.out_features or targets is None:
            targets = new._learn_targets(y)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network.head = nn.Linear(network.head.in_features, new._outputs()).double()
        learnt = list(network.head.parameters()) if train == "head" else None
        settings = {"steps": self.steps if steps is None else steps, "lr": self.lr if lr is None else lr}
        new.losses_ = new._train(network, new._inputs(table), targets, learnt, **settings)
        new.network_ = network
        return new


def _sources(columns: list[int | str | None] | None, mine: list[str], new: Any) -> list[int | str | None]:
    """For each column of a new table the column of the model that it is."""
    if columns is not None:
        if len(columns) != new.n_features_in_:
            raise InputError(f"columns says {len(columns)} columns, and the table has {new.n_features_in_}")
        return list(columns)
    names = list(getattr(new, "feature_names_in_", []))
    if not names or not mine:
        raise InputError("columns of arrays have no names; say with columns= which column of the model each one is")
    return [name if name in mine else None for name in names]
