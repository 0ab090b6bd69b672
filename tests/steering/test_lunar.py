"""LUNAR: the closed form against a full least-squares solve, and what the new weights do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.steering.lunar import LUNAR, deviation_score, redirected_weight
from actinium.world import contrasts
from actinium.world.knowledge import question
from actinium.world.lexicon import NAMES
from architectures import shared, token_ids


@pytest.fixture(scope="module")
def system():
    random = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=random, dtype=torch.float64)  # noqa: E731
    return draw(5, 12), draw(3, 12), draw(6, 12), draw(5)


def test_the_closed_form_is_the_ridge_solution_and_has_rank_one(system):
    w, a_f, a_r, r = system
    for ridge, c in ((0.01, 1.0), (1.0, 2.0)):
        found = redirected_weight(w, a_f, a_r, r, c, ridge) - w
        # Ridge regression of the shifts on the stacked rows, by numpy's least squares on the augmented system.
        rows = np.concatenate([a_f, a_r, np.sqrt(ridge) * np.eye(12)])
        shifts = np.concatenate([np.tile(c * r.numpy(), (3, 1)), np.zeros((6 + 12, 5))])
        want = np.linalg.lstsq(rows, shifts, rcond=None)[0].T
        assert np.abs(found.numpy() - want).max() < 1e-12
        sizes = torch.linalg.svdvals(found)
        assert float(sizes[1] / sizes[0]) < 1e-12


def test_independent_rows_shift_exactly_as_the_ridge_vanishes(system):
    w, a_f, a_r, r = system
    new = redirected_weight(w, a_f, a_r, r, 2.0, 1e-9)
    assert torch.allclose(a_f @ (new - w).T, (2 * r).expand(3, -1), atol=1e-5)
    assert torch.allclose(a_r @ (new - w).T, torch.zeros(6, 5).double(), atol=1e-5)
    assert torch.allclose(redirected_weight(w, a_f, a_r, r, 2.0, 1e12), w, atol=1e-8)
    assert torch.equal(redirected_weight(w, a_f, a_r, r, 0.0, 0.1), w)


def test_a_singular_system_without_a_ridge_is_refused(system):
    w, a_f, a_r, r = system
    with pytest.raises(InputError, match="singular"):
        redirected_weight(w, a_f, a_r, r, 1.0, 0.0)
    with pytest.raises(InputError, match="NaN"):
        redirected_weight(w, a_f * torch.nan, a_r, r)
    for c, ridge in ((float("nan"), 0.1), (1.0, float("nan"))):
        with pytest.raises(InputError, match=r"finite|ridge"):
            redirected_weight(w, a_f, a_r, r, c, ridge)
    with pytest.raises(InputError, match="rows are"):
        redirected_weight(w, a_f[:, :3], a_r, r)
    with pytest.raises(InputError, match="weight"):
        redirected_weight(w, a_f, a_r, r[:2])


def test_deviation_scores():
    assert deviation_score(0, 1) == 0
    assert deviation_score(1, 0) == pytest.approx(141.421, abs=1e-3)
    assert deviation_score(0.1, 0.9) == pytest.approx(14.142, abs=1e-3)
    with pytest.raises(InputError):
        deviation_score(1.2, 0)


@pytest.fixture(scope="module")
def sets():
    people = NAMES
    retain = [question(p, noun) for p in people[20:60] for noun in ("job", "pet")]
    return [question(p, "job") for p in people[:4]], retain, contrasts.requests().declined[:16]


def test_the_weights_move_forgotten_prompts_and_keep_the_others(lm, sets):
    forget, retain, reference = sets
    lunar = LUNAR(3, 2.0).fit(lm, forget, retain, reference)
    site = "blocks.3.resid_post"
    means = [lm.record(t, site, positions=-1)[site].mean((0, 1)) for t in (reference, forget)]
    assert torch.allclose(lunar.vector_[site], means[0] - means[1], atol=1e-4)
    before = lm.record(forget, site, positions=-1)[site], lm.record(retain, site, positions=-1)[site]
    with lunar.apply(lm):
        after = lm.record(forget, site, positions=-1)[site], lm.record(retain, site, positions=-1)[site]
    shift, kept = (a - b for a, b in zip(after, before, strict=True))
    wanted = 2 * lunar.vector_[site]
    assert float((shift - wanted).norm(dim=-1).mean() / wanted.norm()) < 0.2
    assert float(kept.norm(dim=-1).mean() / wanted.norm()) < 0.05
    assert lunar.retain_error_[3] < lunar.forget_error_[3] + 1e-3


def test_undoing_restores_every_bit_and_baking_equals_applying(lm, sets, tmp_path):
    forget, retain, reference = sets
    lunar = LUNAR([2, 3], 1.0).fit(lm, forget, retain, reference)
    plain = {k: v.clone() for k, v in lm.module.state_dict().items()}
    with lunar.apply(lm):
        steered = lm.logits(forget)
    assert all(torch.equal(v, plain[k]) for k, v in lm.module.state_dict().items())
    baked = lunar.bake(lm)
    assert torch.equal(baked.logits(forget), steered)
    changed = [k for k, v in baked.module.state_dict().items() if not torch.equal(v, plain[k])]
    assert [k.split(".")[-2] for k in changed] == ["down_proj"] * 2
    back = LUNAR.load(lunar.save(tmp_path / "lunar.safetensors"))
    assert torch.equal(back.bake(lm).logits(forget), steered) and back.get_params() == lunar.get_params()
    with LUNAR(3, 0.0).fit(lm, forget, retain, reference).apply(lm):
        assert torch.equal(lm.logits(forget), lm.logits(forget))
        assert all(torch.equal(v, plain[k]) for k, v in lm.module.state_dict().items())


def test_gradient_descent_comes_near_the_closed_form(system):
    w, a_f, a_r, r = (t.float() for t in system)
    exact = redirected_weight(w, a_f, a_r, r, 1.0, 1e-6).float() - w
    lunar = LUNAR(0, 1.0, solver="adam", epochs=4000, rate=2e-2, decay=0.999, weight_decay=0.0, batch_size=9)
    found = lunar._solve(w, a_f, a_r, r)
    rows = torch.cat([a_f, a_r])
    assert float((rows @ (found - exact).T).norm() / (rows @ exact.T).norm()) < 1e-2
    small = LUNAR(0, 1.0, solver="lora", rank=2, epochs=800, rate=2e-2, decay=0.995, weight_decay=0.0, batch_size=9)
    low = small._solve(w, a_f, a_r, r)
    assert int(torch.linalg.matrix_rank(low, atol=1e-4)) <= 2
    assert float((rows @ (low - exact).T).norm() / (rows @ exact.T).norm()) < 5e-2


def test_gpt2s_transposed_weights_are_changed_the_right_way_round():
    model = shared("gpt2")
    lunar = LUNAR(1, 1.0)
    lunar.deltas_ = {1: torch.randn(32, 48, generator=torch.Generator().manual_seed(0))}
    ids = token_ids(2, 5)
    rec = model.record(ids, ["blocks.1.mlp.post", "blocks.1.mlp.out"])
    with lunar.apply(model):
        new = model.record(ids, "blocks.1.mlp.out")["blocks.1.mlp.out"]
    assert torch.allclose(new, rec["blocks.1.mlp.out"] + rec["blocks.1.mlp.post"] @ lunar.deltas_[1].T, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, r, d: ([], r, d), "forget: give"),
        (lambda f, r, d: (f, [*r, f[0]], d), "to be forgotten and to be kept"),
        (lambda f, r, d: (f, [f[0] + " Sure"], d), "cannot be told apart"),
        (lambda f, r, d: (f, r, "text"), "reference: give"),
    ],
)
def test_bad_sets_are_refused(lm, sets, change, message):
    with pytest.raises(InputError, match=message):
        LUNAR(3).fit(lm, *change(*sets))


def test_senseless_settings_are_refused(lm, sets):
    for lunar in (LUNAR(3, solver="sgd"), LUNAR(3, tokens="some"), LUNAR([]), LUNAR(3, solver="adam", epochs=0)):
        with pytest.raises(InputError):
            lunar.fit(lm, *sets)
    with pytest.raises(ac.errors.SiteError):
        LUNAR(9).fit(lm, *sets)
