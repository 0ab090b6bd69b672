"""Total Sobol indices of functions whose indices are known, with every sampler and estimator."""

from __future__ import annotations

import numpy as np
import pytest

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError
from actinium.features.sobol import ESTIMATORS, sobol_design, sobol_importance, sobol_total


def weighted(m):
    return m[:, 0] + 2 * m[:, 1]


def product(m):
    return m[:, 0] * m[:, 1]


@pytest.mark.parametrize(("n", "want"), [(32, (0.177, 0.800, 0.0)), (4096, (0.200, 0.800, 0.0))])
def test_unscrambled_halton_and_jansen_give_the_known_numbers_of_a_weighted_sum(n, want):
    found = sobol_importance(weighted, 3, n)
    assert found == pytest.approx(want, abs=6e-4)
    assert found[2] == 0


@pytest.mark.parametrize(("n", "want"), [(32, (0.511, 0.630)), (4096, (0.572, 0.572))])
def test_a_product_has_the_index_four_sevenths(n, want):
    assert sobol_importance(product, 2, n) == pytest.approx(want, abs=6e-4)
    assert want[0] == pytest.approx(4 / 7, abs=0.07)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("options", [{}, {"sampler": "sobol"}, {"sampler": "lhs", "seed": 1}, {"scramble": True}])
def test_every_estimator_and_sampler_comes_near_the_exact_indices(estimator, options):
    """Y = 2 m1 + m2 m3: V(Y) = 4/12 + 7/144, E[V(Y | not m1)] = 4/12, and E[m3^2] V(m2) = 4/144 for m2, as for m3."""
    found = sobol_importance(lambda m: 2 * m[:, 0] + m[:, 1] * m[:, 2], 3, 4096, estimator=estimator, **options)
    total = 4 / 12 + 7 / 144
    assert found == pytest.approx([4 / 12 / total, 4 / 144 / total, 4 / 144 / total], abs=0.04)


def test_scipys_own_indices_agree():
    from scipy.stats import sobol_indices, uniform

    def function(x):
        return np.sin(6 * x[0]) + 7 * np.sin(6 * x[1]) ** 2 + x[2] ** 4 * np.sin(6 * x[0])

    want = sobol_indices(func=function, n=8192, dists=[uniform()] * 3, rng=np.random.default_rng(0)).total_order
    found = sobol_importance(lambda m: function(m.T), 3, 8192, sampler="sobol")
    assert found == pytest.approx(want, abs=0.01)


def test_homma_and_saltelli_are_the_same_number_and_jansen_alone_is_never_negative():
    outputs = np.random.default_rng(0).normal(size=5 * 64) + 3
    first, second = (sobol_total(outputs, 3, name) for name in ("homma", "saltelli"))
    assert first == pytest.approx(second, abs=1e-9)
    assert (sobol_total(outputs, 3) > 0).all()
    found = {name: sobol_importance(weighted, 3, 32, estimator=name)[2] for name in ESTIMATORS}
    assert found["jansen"] == 0
    assert all(found[name] != 0 for name in ESTIMATORS if name != "jansen")


def test_the_design_takes_one_column_at_a_time_from_the_second_half():
    design = sobol_design(3, 8)
    assert design.shape == (40, 3) and (design[0] == 0).all()
    a, b, mixed = design[:8], design[8:16], design[16:].reshape(3, 8, 3)
    for i in range(3):
        assert (mixed[i][:, i] == b[:, i]).all()
        others = [j for j in range(3) if j != i]
        assert (mixed[i][:, others] == a[:, others]).all()
    assert (sobol_design(3, 8, "lhs", seed=1) == sobol_design(3, 8, "lhs", seed=1)).all()
    assert (sobol_design(3, 8, scramble=True, seed=1) != sobol_design(3, 8, scramble=True, seed=2)).any()


def test_rows_of_values_are_treated_alone_and_constant_ones_give_zeros_with_a_warning():
    design = sobol_design(2, 16)
    values = np.stack([product(design), np.full(len(design), 0.1), design[:, 0]])
    with pytest.warns(ActiniumWarning, match="1 of 3 rows"):
        found = sobol_total(values, 2)
    assert (found[1] == 0).all() and found[2] == pytest.approx([1.14, 0.0], abs=0.2)
    assert (found[0] == sobol_total(values[0], 2)).all()
    noise = np.float32(3) + np.random.default_rng(0).choice([0, 2.4e-7], size=len(design)).astype(np.float32)
    with pytest.warns(ActiniumWarning, match="do not vary"):
        assert (sobol_total(noise, 2) == 0).all()


def test_a_short_halton_sequence_of_many_inputs_is_warned_about():
    with pytest.warns(ActiniumWarning, match="correlated"):
        sobol_design(31, 32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sobol_design(0, 8), InputError, "one input"),
        (lambda: sobol_design(2, 1), InputError, "two points"),
        (lambda: sobol_design(2, 8, "halten"), UnknownNameError, "halton"),
        (lambda: sobol_design(2, 8, "lhs", scramble=True), InputError, "leave scramble out"),
        (lambda: sobol_total(np.zeros(9), 2), InputError, "expected n"),
        (lambda: sobol_total(np.full(8, np.nan), 2), InputError, "not finite"),
        (lambda: sobol_total(np.zeros(8), 2, "sobol"), UnknownNameError, "jansen"),
        (lambda: sobol_importance(lambda m: m, 2, 4), InputError, "one value for each"),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
