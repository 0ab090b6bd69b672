"""Files of fitted estimators."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from actinium.core.errors import InputError, LoadError
from actinium.core.fitted import read_fitted, write_fitted


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
