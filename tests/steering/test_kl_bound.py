"""The strength that a divergence allows, against the card's numbers, closed forms and measurement."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.steering.kl_bound import kl_bounded_coefficient, kl_bounded_strength, measured_kl
from architectures import shared, token_ids

Z, U = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).double(), torch.tensor([[1.0, -1.0, 0.5, 0.0]]).double()


def divergence(z, u, strength):
    p, q = z.log_softmax(-1), (z + strength * u).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_the_three_bounds_on_known_logits():
    p = Z.softmax(-1)
    variance = float((p * (U - (p * U).sum()).square()).sum())
    assert variance == pytest.approx(0.699540, abs=1e-6)
    for strength, true, second, hoeffding, spectral in (
        (0.1, 0.003393, 0.003498, 0.005, 0.005625),
        (0.5, 0.074259, 0.087442, 0.125, 0.140625),
        (1.0, 0.249132, 0.349770, 0.5, 0.5625),
    ):
        assert divergence(Z, U, strength) == pytest.approx(true, abs=1e-6)
        # Each closed form gives the strength back from its own bound on the divergence.
        for name, value in (("second_order", second), ("hoeffding", hoeffding), ("spectral", spectral)):
            assert kl_bounded_coefficient(Z, U, value, name) == pytest.approx(strength, rel=1e-4)
    assert kl_bounded_coefficient(Z, U, 0.05) == pytest.approx(0.378089, abs=1e-6)
    assert kl_bounded_coefficient(Z, U, 0.05, "hoeffding") == pytest.approx(0.316228, abs=1e-6)


@hypothesis.given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=9),
    st.floats(1e-3, 1.0),
    st.sampled_from(["hoeffding", "spectral"]),
)
def test_guaranteed_bounds_hold_for_any_distribution(entries, epsilon, bound):
    z, u = (torch.tensor([list(side)], dtype=torch.float64) for side in zip(*entries, strict=True))
    hypothesis.assume(float(u.std()) > 1e-3)
    assert divergence(z, u, kl_bounded_coefficient(z, u, epsilon, bound)) <= epsilon * (1 + 1e-9)


def test_a_direction_without_effect_is_refused():
    with pytest.raises(InputError, match="does not change"):
        kl_bounded_coefficient(Z, torch.ones_like(Z), 0.05)
    for epsilon in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="epsilon"):
            kl_bounded_coefficient(Z, U, epsilon)
    with pytest.raises(InputError, match="not finite"):
        kl_bounded_coefficient(Z, U * math.inf, 0.05)
    with pytest.raises(ac.errors.UnknownNameError):
        kl_bounded_coefficient(Z, U, 0.05, "second")


def test_slopes_in_a_model_are_its_derivative():
    model, ids = shared("gpt2"), token_ids(3, 6)
    direction = torch.linspace(-1, 1, 32)
    scale = torch.zeros((), dtype=torch.float32, requires_grad=True)

    def logits(strength):
        with model.edit({"blocks.1.resid_post": ac.edits.Add(direction * strength).at(positions=-1)}):
            return model.logits(ids)[:, -1]

    slopes = torch.autograd.functional.jacobian(logits, scale.detach(), vectorize=False)
    want = kl_bounded_coefficient(logits(torch.tensor(0.0)), slopes, 0.01)
    found = kl_bounded_strength(model, "blocks.1.resid_post", direction, ids, 0.01)
    assert found == pytest.approx(want, rel=5e-3)


def test_the_exact_strength_reaches_the_budget():
    model, ids = shared("gpt2"), token_ids(3, 6)
    direction = torch.linspace(-1, 1, 32)
    for epsilon in (0.02, 0.5):
        found = kl_bounded_strength(model, "blocks.1.resid_post", direction, ids, epsilon, exact=True)
        assert measured_kl(model, "blocks.1.resid_post", direction, ids, found) == pytest.approx(epsilon, rel=1e-2)
    assert measured_kl(model, "blocks.1.resid_post", direction, ids, 0.0) == 0.0


def test_a_strength_that_makes_nan_is_stopped():
    model, ids = shared("gpt2"), token_ids(3, 6)
    with pytest.raises(InputError, match="lower the strength"):
        measured_kl(model, "blocks.1.resid_post", torch.ones(32), ids, 1e38)
