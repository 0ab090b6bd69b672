"""Every measure gives a Result that draws, prints and reads back, and does not depend on the batches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from actinium import measure
from actinium.core.result import Result

MEASURES = [
    "activation_moments",
    "norm_growth",
    "outlier_channels",
    "dead_units",
    "saturated_units",
    "activation_sparsity",
    "effective_rank",
    "layer_similarity",
    "attention_summary",
    "logit_lens",
    "quantisation_sensitivity",
    "ppl_p_sparsity",
    "find_massive_activations",
]


def run(name: str, model, inputs, batch_size) -> Result:
    options = {"grid": 4, "tol": 0.1} if name == "ppl_p_sparsity" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*positions are few")
        found = getattr(measure, name)(model, inputs, batch_size=batch_size, **options)
    return found.result if name == "find_massive_activations" else found


@pytest.mark.parametrize("name", MEASURES)
def test_results_draw_print_save_and_do_not_depend_on_batches(name, gpt2, ragged, tmp_path):
    one = run(name, gpt2, ragged, 2)
    assert one.method == f"measure.{name}"
    assert one.plot().has_data()
    assert len(one.table())
    one.save(tmp_path / "result.zarr")
    assert Result.load(tmp_path / "result.zarr") == one
    other = run(name, gpt2, ragged, None)
    assert other.provenance == one.provenance
    for variable, values in one.data.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(other[variable], values, rtol=1e-3, atol=1e-5, err_msg=variable)


def test_names_are_found_on_the_room():
    assert set(MEASURES) <= set(dir(measure))
    for name in measure.__all__:
        # What other rooms need too lies in the core.
        assert getattr(measure, name).__module__.startswith(("actinium.measure.", "actinium.core."))
