"""Files of fitted estimators."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from actinium.core.errors import InputError, LoadError
from actinium.core.fitted import SavedEstimator, below, prefixed, read_fitted, write_fitted


def test_what_is_written_reads_back_and_any_reader_sees_the_tensors(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(3)}
    path = write_fitted(tmp_path / "new" / "x.safetensors", "probe", tensors, {"rate": 0.1, "sizes": [1, 2]}, loss=2.5)
    about, read = read_fitted(path, "probe")
    assert about["settings"] == {"rate": 0.1, "sizes": [1, 2]} and about["loss"] == 2.5
    assert all(torch.equal(read[k], v) for k, v in tensors.items())
    assert torch.equal(load_file(path)["a"], tensors["a"])


def test_what_is_no_such_file_is_refused(tmp_path):
    path = write_fitted(tmp_path / "x.safetensors", "probe", {"a": torch.ones(1)}, {})
    with pytest.raises(LoadError, match="no basis"):
        read_fitted(path, "basis")
    with pytest.raises(LoadError, match="cannot read"):
        read_fitted(tmp_path / "absent", "probe")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(LoadError, match="cannot read"):
        read_fitted(path, "probe")
    with pytest.raises(InputError, match="cannot be saved"):
        write_fitted(tmp_path / "y", "probe", {}, {"function": print})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        write_fitted(tmp_path / "file" / "y", "probe", {}, {})


class Scaled(SavedEstimator):
    fitted = "network_"

    def __init__(self, base, factor=1.0):
        self.base, self.factor = base, factor

    def fit(self):
        self.network_, self.steps_ = torch.nn.Linear(2, 1), 3
        return self

    def _settings(self):
        return {"factor": self.factor}

    def _state(self):
        return prefixed("network", self.network_.state_dict()), {"steps": self.steps_}

    @classmethod
    def load(cls, path, base):
        return cls._loaded(path, base)

    def _restore(self, tensors, about):
        self.network_, self.steps_ = torch.nn.Linear(2, 1), int(about["steps"])
        self.network_.load_state_dict(below("network", tensors))


def test_an_estimator_takes_up_what_it_found_and_draws_no_numbers_of_the_caller(tmp_path):
    with pytest.raises(InputError, match="not fitted"):
        Scaled("base").save(tmp_path / "x")
    one = Scaled("base", 2.0).fit()
    path = one.save(tmp_path / "x")
    state = torch.random.get_rng_state()
    again = Scaled.load(path, "other")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.get_params() == {"base": "other", "factor": 2.0} and again.steps_ == 3
    assert torch.equal(again.network_.weight, one.network_.weight)
    assert read_fitted(path, "Scaled")[0] == {"format": 1, "kind": "Scaled", "settings": {"factor": 2.0}, "steps": 3}


@pytest.mark.parametrize(
    ("tensors", "settings", "more"),
    [
        ({}, {"factor": 1.0}, {"steps": 3}),
        ({"network.weight": torch.ones(1, 2), "network.bias": torch.ones(1)}, {"speed": 1.0}, {"steps": 3}),
        ({"network.weight": torch.ones(1, 2), "network.bias": torch.ones(1)}, {}, {}),
        ({"network.weight": torch.ones(1, 3), "network.bias": torch.ones(1)}, {}, {"steps": 3}),
    ],
)
def test_a_file_that_lacks_something_or_does_not_fit_is_refused(tmp_path, tensors, settings, more):
    path = write_fitted(tmp_path / "x", "Scaled", tensors, settings, **more)
    with pytest.raises(LoadError, match="is damaged or does not fit"):
        Scaled.load(path, "base")
