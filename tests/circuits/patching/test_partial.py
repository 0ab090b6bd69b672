"""A sweep that is stopped keeps what it has found, and goes on from there."""

from __future__ import annotations

import numpy as np
import pytest

from actinium.circuits import Interrupted, patch
from actinium.circuits.patching import runs
from actinium.core.errors import InputError, LoadError
from actinium.core.model import Model

SITES = "blocks.*.resid_pre"


@pytest.fixture
def small_pieces(monkeypatch):
    """Finished patches are kept every 16 variants."""
    monkeypatch.setattr(runs, "PIECE", 1)


@pytest.fixture
def stop_after(monkeypatch):
    """Ctrl-C in the n-th call of `Model.replay` from now on."""

    def arrange(calls: int):
        original, seen = Model.replay, []

        def replay(self, *args, **options):
            seen.append(1)
            if len(seen) > calls:
                raise KeyboardInterrupt
            return original(self, *args, **options)

        monkeypatch.setattr(Model, "replay", replay)
        return lambda: monkeypatch.setattr(Model, "replay", original)

    return arrange


def test_nodes_that_were_reached_are_kept(lm, ioi, small_pieces, stop_after):
    whole = patch(lm, ioi, SITES)["effect"].values
    stop_after(1)
    with pytest.raises(Interrupted, match="kept in") as stopped:
        patch(lm, ioi, SITES)
    found = stopped.value.partial["effect"].values
    reached = ~np.isnan(found)
    assert 0 < reached.sum() < found.size
    np.testing.assert_allclose(found[reached], whole[reached], atol=1e-6)


def test_whole_batches_that_were_finished_are_kept_with_all_nodes(lm, ioi, stop_after):
    first = patch(lm, ioi[:4], SITES, positions=[0, -1, -2])
    stop_after(1)
    with pytest.raises(Interrupted, match="4 of 8 rows") as stopped:
        patch(lm, ioi, SITES, positions=[0, -1, -2], batch_size=4)
    np.testing.assert_allclose(stopped.value.partial["effect"], first["effect"], atol=1e-5)


def test_a_stopped_sweep_goes_on_from_its_file_and_runs_only_the_rest(lm, ioi, small_pieces, stop_after, tmp_path):
    whole = patch(lm, ioi, SITES)["effect"].values
    file = tmp_path / "sweep.safetensors"
    again = stop_after(1)
    with pytest.raises(Interrupted, match="goes on from"):
        patch(lm, ioi, SITES, resume=file)
    again()
    seen = []
    original = Model.replay
    Model.replay = lambda self, inputs, variants, **options: (
        seen.append(len(variants)) or original(self, inputs, variants, **options)
    )
    try:
        found = patch(lm, ioi, SITES, resume=file)["effect"].values
        rest = sum(seen)
        assert np.array_equal(patch(lm, ioi, SITES, resume=file)["effect"].values, found)
        assert sum(seen) == rest  # nothing was left to run
    finally:
        Model.replay = original
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert 0 < rest < found.size


def test_a_file_of_another_sweep_is_refused(lm, ioi, tmp_path):
    file = tmp_path / "sweep.safetensors"
    patch(lm, ioi, SITES, positions=[-1], resume=file)
    with pytest.raises(InputError, match="another sweep"):
        patch(lm, ioi, SITES, positions=[-1], metric="prob", resume=file)
    with pytest.raises(InputError, match="another sweep"):
        patch(lm, ioi, SITES, positions=[-2], resume=file)


def test_a_damaged_file_and_a_missing_folder_are_refused(lm, ioi, tmp_path):
    file = tmp_path / "sweep.safetensors"
    file.write_bytes(b"not a tensor")
    with pytest.raises(LoadError, match="cannot read"):
        patch(lm, ioi, SITES, positions=[-1], resume=file)
    with pytest.raises(InputError, match="no folder"):
        patch(lm, ioi, SITES, positions=[-1], resume=tmp_path / "none" / "sweep.safetensors")


def test_stopped_before_anything_was_found_there_is_nothing_to_keep(lm, ioi, stop_after):
    stop_after(0)
    with pytest.raises(KeyboardInterrupt):
        patch(lm, ioi, SITES)
