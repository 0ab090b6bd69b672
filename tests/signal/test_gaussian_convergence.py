"""Pseudo-iid weights pass the conditions, others do not, and wide networks of all kinds are one Gaussian process."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from actinium.core.errors import InputError
from actinium.signal.gaussian_convergence import check_pseudo_iid, gp_convergence_test
from actinium.signal.initialisers import pseudo_iid_init_, pseudo_iid_weights
from actinium.signal.nngp import NNGPKernel

KINDS = {"iid": {}, "orthogonal": {}, "low_rank": {"rank": 0.5}, "structured_sparse": {"blocks": 4}}


def draws(kind, reps=400, shape=(24, 32), sw=1.3, **options):
    random = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.stack(
            [pseudo_iid_weights(*shape, kind, sw, generator=random, **options).weight for _ in range(reps)]
        )


def inputs():
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x * math.sqrt(32) / x.norm(dim=1, keepdim=True)


def factory(kind, sw=1.3, sb=0.2, **options):
    def make(width, random):
        layers = [nn.Linear(32, width)]
        for _ in range(4):
            layers += [nn.Tanh(), nn.Linear(width, width)]
        net = nn.Sequential(*layers).double()
        pseudo_iid_init_(net, kind, sw, sb, generator=random, **options)
        return net

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_construction_passes_all_conditions(kind):
    found = check_pseudo_iid(draws(kind, **KINDS[kind]), 1.3)
    assert bool(found["holds"].all()), found.table().to_string()


def test_the_eighth_moment_of_gaussians_is_105():
    found = check_pseudo_iid(draws("iid", reps=4000, shape=(16, 16)), 1.3)["value"]
    for name in ("random", "constant", "one-hot"):
        assert float(found.sel(condition=f"eighth {name}")) == pytest.approx(105, rel=0.3)


def test_sums_over_pairs_equal_loops():
    w = draws("low_rank", reps=50, shape=(4, 5), rank=2)
    value = check_pseudo_iid(w, 1.3)["value"]
    scaled = (w / 1.3 * math.sqrt(5)).numpy()
    equal, crossed = [], []
    for i in range(4):
        for j in range(4):
            for a in range(5):
                for b in range(5):
                    if i != j and a != b:
                        equal.append((scaled[:, i, a] ** 2 * scaled[:, j, b] ** 2).mean())
                        crossed.append((scaled[:, i, a] * scaled[:, i, b] * scaled[:, j, a] * scaled[:, j, b]).mean())
    assert float(value.sel(condition="fourth equal")) == pytest.approx(np.mean(equal), rel=1e-9)
    assert float(value.sel(condition="fourth crossed")) == pytest.approx(np.mean(crossed), rel=1e-9)


def broken(found):
    return set(found["condition"].values[~found["holds"].values])


def test_weights_that_break_a_condition_are_told():
    good = draws("iid")
    assert "variance" in broken(check_pseudo_iid(good, 1.0))
    assert "mean" in broken(check_pseudo_iid(good + 0.02, 1.3))
    in_order = draws("structured_sparse", blocks=4, permute=False)
    assert {"rows alike", "columns alike"} <= broken(check_pseudo_iid(in_order, 1.3))
    uneven = good * torch.linspace(0.5, 1.32, 24, dtype=torch.float64)[None, :, None]
    assert "row variance" in broken(check_pseudo_iid(uneven, 1.3))
    # Rows of orthogonal weights have the same length in every draw, so a wrong one has no spread to be judged by.
    fixed = draws("orthogonal", shape=(24, 24)) * torch.linspace(0.9, 1.1, 24, dtype=torch.float64)[None, :, None]
    assert "row variance" in broken(check_pseudo_iid(fixed, 1.3))
    signs = torch.randn(400, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).sign() / 8**0.5
    assert not broken(check_pseudo_iid(signs, 1.0))
    signs[:, 1, 1] = signs[:, 0, 0]
    assert broken(check_pseudo_iid(signs, 1.0)) == {"correlation"}
    tied = good.clone()
    tied[:, 1, 1] = tied[:, 0, 0]
    assert "correlation" in broken(check_pseudo_iid(tied, 1.3))
    # All rows share the scale of their draw: uncorrelated, but no Gaussian limit.
    chi = torch.randn(400, 1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert "fourth equal" in broken(check_pseudo_iid(good * chi, 1.3))
    rank_one = draws("low_rank", rank=1)
    assert "fourth crossed" in broken(check_pseudo_iid(rank_one, 1.3))
    cauchy = torch.distributions.Cauchy(0.0, 0.05).icdf(
        torch.rand(400, 24, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    )
    assert "eighth one-hot" in broken(check_pseudo_iid(cauchy, 1.3))


@pytest.mark.parametrize("kind", KINDS)
def test_wide_networks_of_each_kind_have_the_variance_of_the_kernel(kind):
    kernel = NNGPKernel(torch.tanh, 5, 1.3, 0.2)
    found = gp_convergence_test(factory(kind, **KINDS[kind]), inputs(), kernel, widths=(48,), reps=150).data.isel(
        width=0
    )
    # Four standard errors of 300 units.
    assert float(found["variance"]) == pytest.approx(0.5458, rel=4 * math.sqrt(2 / 300))
    assert float(found["ks_p"]) > 1e-3
    assert abs(float(found["unit_correlation"])) < 4 / math.sqrt(150)
    assert float(found["covariance"]) == pytest.approx(float(found["expected_covariance"]), abs=0.13)


def test_a_wrong_kernel_and_heavy_tails_are_seen():
    wrong = NNGPKernel(torch.tanh, 5, 2.0, 0.2)
    found = gp_convergence_test(factory("iid"), inputs(), wrong, widths=(24,), reps=150)
    assert float(found["ks_p"][0]) < 1e-3 and float(found["variance_error"][0]) > 0.5
    narrow = gp_convergence_test(
        factory("structured_sparse", blocks=4), inputs(), NNGPKernel(torch.tanh, 5, 1.3, 0.2), widths=(4, 48), reps=250
    )
    assert float(narrow["excess_kurtosis"][0]) > 1
    assert float(narrow["wasserstein"][0]) > float(narrow["wasserstein"][1])
    assert narrow.plot() is not None


def test_the_same_seed_gives_the_same_result():
    kernel = NNGPKernel(torch.tanh, 5, 1.3, 0.2)
    one, two = (gp_convergence_test(factory("iid"), inputs(), kernel, widths=(8,), reps=20, seed=4) for _ in range(2))
    assert one == two


def test_too_little_to_test_is_refused():
    good = draws("iid", reps=60)
    for bad in (good[:40], good[0], good[:, :3], good.masked_fill(good > 0.5, float("nan"))):
        with pytest.raises(InputError, match="draws"):
            check_pseudo_iid(bad, 1.3)
    with pytest.raises(InputError, match="sw"):
        check_pseudo_iid(good, 0.0)
    kernel = NNGPKernel(torch.tanh, 5, 1.3, 0.2)
    with pytest.raises(InputError, match="two inputs"):
        gp_convergence_test(factory("iid"), inputs()[:1], kernel)
    with pytest.raises(InputError, match="20 networks"):
        gp_convergence_test(factory("iid"), inputs(), kernel, reps=5)
    with pytest.raises(InputError, match="2 or more units"):
        gp_convergence_test(lambda w, g: nn.Linear(32, 1).double(), inputs(), kernel, widths=(8,), reps=20)
