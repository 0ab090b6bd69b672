"""The contract of everything that is fitted: settings by name, a copy by scikit-learn, and no use before `fit`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import sklearn.base
from torch import nn

import actinium
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.estimator import Estimator


class Mean(Estimator):
    fitted = "mean_"

    def __init__(self, shift=0.0, *, scale=1.0):
        self.shift, self.scale = shift, scale

    def fit(self, x):
        self.mean_ = x
        return self


class Median(Mean):
    decided = ("scale",)

    def __init__(self, low=0, **common):
        super().__init__(scale=2.0, **common)
        self.low = low


def every_estimator():
    for module in pkgutil.walk_packages(actinium.__path__, "actinium."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = [], [Estimator]
    while left:
        subclasses = left.pop().__subclasses__()
        left += subclasses
        found += [c for c in subclasses if c.__module__.startswith("actinium.") and not inspect.isabstract(c)]
    return sorted(set(found), key=lambda c: c.__qualname__)


def test_settings_are_read_set_and_shown():
    one = Mean(2.0)
    assert one.get_params() == {"shift": 2.0, "scale": 1.0}
    assert one.set_params(scale=3.0) is one and one.scale == 3.0
    assert repr(one) == "Mean(shift=2.0, scale=3.0)"
    with pytest.raises(UnknownNameError, match="did you mean 'shift'"):
        one.set_params(shfit=1.0)


def test_settings_of_the_class_above_are_settings_too_but_for_those_that_are_decided():
    one = Median(1, shift=3.0)
    assert one.get_params() == {"low": 1, "shift": 3.0} and one.scale == 2.0
    copy = sklearn.base.clone(one)
    assert copy.get_params() == one.get_params()
    with pytest.raises(UnknownNameError, match="scale"):
        one.set_params(scale=1.0)


def test_before_fit_it_is_refused():
    with pytest.raises(InputError, match="Mean is not fitted yet"):
        Mean().check_fitted()
    Mean().fit(1.0).check_fitted()


def test_scikit_learn_copies_settings_alone():
    copy = sklearn.base.clone(Mean(2.0).fit(1.0))
    assert copy.get_params() == {"shift": 2.0, "scale": 1.0} and not hasattr(copy, "mean_")


def test_constructors_of_all_estimators_keep_their_arguments_and_do_nothing_else():
    """Every argument stands under its own name, as it was given; nothing that is fitted is there."""
    classes = [c for c in every_estimator() if not issubclass(c, nn.Module)]
    assert len(classes) >= 8
    for each in classes:
        parameters = inspect.signature(each.__init__).parameters.values()
        own = {p.name for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        given = {name: object() for name in each._names()}
        assert own <= set(given), each
        made = each(**given)
        assert made.get_params() == given, each
        assert not [name for name in vars(made) if name.endswith("_")], each
