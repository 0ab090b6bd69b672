"""Liquid-drop formulas, the geometry of numbers, and the network whose inside is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from actinium.applications import (
    EmbeddingRegressor,
    bw2,
    components,
    concept_alignment,
    fit_helix,
    latent_topography,
    liquid_drop_terms,
    nuclei_near_stability,
    pc_ablation_curve,
    read_nuclei,
    semf,
)
from actinium.core.errors import InputError, LoadError


@pytest.mark.parametrize(("z", "n", "mev"), [(26, 30, 8.8461), (92, 146, 7.6249)])
def test_binding_energy_per_nucleon_is_that_of_the_published_formula(z, n, mev):
    assert float(semf(z, n)) / 1000 == pytest.approx(mev, abs=5e-5)


def test_terms_of_lead_208_by_hand():
    terms = {k: float(v) for k, v in liquid_drop_terms(82, 126).items()}
    expected = {
        "volume": 208, "surface": 208 ** (2 / 3), "coulomb": 82 * 81 / 208 ** (1 / 3), "asymmetry": 44**2 / 208,
        "pairing": 11.18 / 208**0.5, "shell": 0, "curvature": 208 ** (1 / 3),
        "exchange": 82 ** (4 / 3) / 208 ** (1 / 3),
        "wigner": 44 / 208, "strutinsky": 44**2 / 208 ** (4 / 3),
    }  # fmt: skip
    assert terms == pytest.approx(expected)
    assert float(liquid_drop_terms(83, 126)["pairing"]) == 0
    assert float(liquid_drop_terms(83, 127)["pairing"]) < 0
    assert float(liquid_drop_terms(80, 123)["shell"]) == pytest.approx(2 * 3 / 5)


def test_extended_formula_is_its_sum_written_out():
    z, n = 50, 70
    a, t = 120, {k: float(v) for k, v in liquid_drop_terms(50, 70).items()}
    total = (
        16.58 * a - 26.95 * t["surface"] - 0.774 * 2500 / a ** (1 / 3) - 31.51 * t["asymmetry"] + 2.22 * t["exchange"]
        - 43.4 * t["wigner"] + 55.62 * t["strutinsky"] + 14.77 * t["curvature"] - 1.9 * t["shell"]
        + 0.14 * t["shell"] ** 2 + t["pairing"]
    )  # fmt: skip
    assert float(bw2(z, n)) == pytest.approx(total / a * 1000)
    assert float(bw2(z, n)) == pytest.approx(8505, abs=150)  # measured for tin-120: 8505 keV


def test_no_energy_is_negative_and_empty_nuclei_are_refused():
    assert float(semf(1, 0)) == 0
    for z, n in ((0, 0), (-1, 5)):
        with pytest.raises(InputError, match="nucleus"):
            semf(z, n)
    z, n = nuclei_near_stability()
    assert 2000 < len(z) < 4000 and z.min() >= 8 and n.max() <= 160
    with pytest.raises(InputError, match="low"):
        nuclei_near_stability(10, 5)


def test_tables_of_measured_nuclei_are_read_and_gaps_left_out(tmp_path):
    file = tmp_path / "ground_states.csv"
    file.write_text("z,n,symbol,binding\n26,30,Fe,8790.3\n92,146,U,7570.1\n1,5,H, \n")
    table = read_nuclei(file)
    assert table.to_dict("list") == {"z": [26, 92], "n": [30, 146], "binding": [8790.3, 7570.1]}
    with pytest.raises(InputError, match="radius"):
        read_nuclei(file, "radius")
    with pytest.raises(InputError, match="no file"):
        read_nuclei(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("z,n,binding\n1,2,\n")
    with pytest.raises(InputError, match="no row"):
        read_nuclei(tmp_path / "empty.csv")


@pytest.mark.parametrize("w", [0.3, 0.07, 1.2, -0.5])
def test_helix_is_recovered_whichever_way_it_turns(w):
    number = np.arange(40.0)
    angle, radius = w * number + 0.4, 2 + 0.01 * number
    local = np.stack([0.1 * number, radius * np.cos(angle), radius * np.sin(angle)], 1)
    points = local @ Rotation.from_rotvec([0.4, -1.0, 0.3]).as_matrix().T + np.array([1.0, 2.0, 3.0])
    found = fit_helix(points, number)
    assert abs(found.w) == pytest.approx(abs(w), abs=1e-3)
    assert found.r2 == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(found.at(number), points, atol=1e-5)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


def test_noise_is_no_helix_and_bad_points_are_refused():
    random = np.random.default_rng(0)
    assert fit_helix(random.standard_normal((200, 3)), np.arange(200)).r2 < 0.15
    for points, numbers in (
        (np.zeros((10, 3)), np.arange(10)), (np.ones((5, 3)), np.arange(5)),
        (random.standard_normal((10, 2)), np.arange(10)), (random.standard_normal((10, 3)), np.ones(10)),
        (np.full((10, 3), np.nan), np.arange(10)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            fit_helix(points, numbers)


def linear_case(n=300, h=6, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, h)) * np.array([5.0, 3, 2, 1, 0.5, 0.2])
    weight = random.standard_normal(h)
    return x, (lambda v: v @ weight + 1.5), x @ weight + 1.5


def test_all_components_give_the_model_back_and_none_its_mean():
    x, readout, y = linear_case()
    target = y + np.random.default_rng(1).standard_normal(len(y))
    found = pc_ablation_curve(x, readout, target)
    assert float(found["rms"].sel(k=6)) == pytest.approx(float(np.sqrt(np.mean((y - target) ** 2))))
    constant = readout(x.mean(0)[None])[0]
    assert float(found["rms"].sel(k=0)) == pytest.approx(float(np.sqrt(np.mean((constant - target) ** 2))))
    assert float(found["share"].sum()) == pytest.approx(1.0)
    with pytest.raises(InputError, match="rank"):
        pc_ablation_curve(x, readout, target, ks=[7])


def test_contributions_of_single_components_add_up_to_the_prediction():
    x, readout, y = linear_case()
    laid = components(x)
    base = readout(np.repeat(laid.mean[None], len(x), 0))
    alone = [readout(laid.mean + laid.scores[:, [i]] * laid.axes[i]) for i in range(6)]
    np.testing.assert_allclose(sum(alone) - 5 * base, y)


def test_a_term_is_aligned_with_itself_and_not_with_shuffled_ones():
    x, readout, _ = linear_case(n=2849)
    laid = components(x)
    own = readout(laid.mean + laid.scores[:, [1]] * laid.axes[1])
    terms = {"own": own, "shuffled": np.random.default_rng(0).permutation(own), "constant": np.ones(len(x))}
    found = concept_alignment(x, readout, terms, k=6)["correlation"]
    assert float(found.sel(component=2, term="own")) == pytest.approx(1.0)
    assert float(abs(found.sel(term="shuffled")).max()) < 0.1
    assert bool(np.isnan(found.sel(term="constant")).all())
    errors = concept_alignment(x, readout, terms, k=6)["rms_from"]
    assert float(errors.sel(count=2, term="own")) < 1e-6 < float(errors.sel(count=1, term="own"))


def test_topography_is_the_output_over_the_plane():
    x, readout, _ = linear_case()
    found = latent_topography(x, readout, grid=5)["output"]
    laid = components(x)
    a, b = (float(found[d][3]) for d in found.dims)
    assert float(found[3, 3]) == pytest.approx(
        float(readout((laid.mean + a * laid.axes[0] + b * laid.axes[1])[None])[0])
    )
    with pytest.raises(InputError, match="components"):
        latent_topography(x, readout, first=2, second=2)


def test_regressor_learns_a_sum_and_masks_what_is_not_known(tmp_path):
    a, b = (g.ravel() for g in np.meshgrid(np.arange(12), np.arange(12)))
    ids = np.stack([a, b], 1)
    targets = np.stack([3.0 * a + b, 100.0 - a], 1)
    targets[::3, 1] = np.nan
    made = EmbeddingRegressor((12, 12), 2, hidden=16, steps=600, weight_decay=0.0).fit(ids, targets)
    assert made.score(ids, targets) > 0.98
    again = EmbeddingRegressor((12, 12), 2, hidden=16, steps=600, weight_decay=0.0).fit(ids, targets)
    np.testing.assert_array_equal(made.predict(ids), again.predict(ids))
    np.testing.assert_allclose(made.read(made.penultimate(ids)), made.predict(ids))
    assert made.embedding(0).shape == (12, 16)
    read = EmbeddingRegressor.load(made.save(tmp_path / "new" / "net.safetensors"))
    np.testing.assert_array_equal(read.predict(ids), made.predict(ids))
    assert read.get_params()["hidden"] == 16
    (tmp_path / "net.safetensors").write_bytes(b"broken")
    with pytest.raises(LoadError, match="cannot read the regressor"):
        EmbeddingRegressor.load(tmp_path / "net.safetensors")


def test_what_the_regressor_cannot_learn_is_refused():
    ids, y = np.array([[0, 1], [1, 2]]), np.array([1.0, 2.0])
    small = EmbeddingRegressor((5, 5), hidden=4, steps=2)
    with pytest.raises(InputError, match="goes from 0"):
        small.fit(np.array([[0, 5], [1, 2]]), y)
    with pytest.raises(InputError, match="whole numbers"):
        small.fit(ids.astype(float), y)
    with pytest.raises(InputError, match="two different"):
        small.fit(ids, np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="rows of"):
        small.fit(ids, np.array([1.0, 2.0, 3.0]))
    with pytest.raises(InputError, match="not fitted"):
        small.predict(ids)
    with pytest.raises(InputError, match="never seen"):
        small.fit(ids, y).predict(np.array([[3, 1]]))
    assert torch.isfinite(small.penultimate(ids)).all()
