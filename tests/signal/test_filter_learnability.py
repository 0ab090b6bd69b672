"""The moments of a filter's patches give its gradient, and equal their closed forms for normal patches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.signal.filter_learnability import (
    angular_smoothness,
    filter_moments,
    image_patches,
    patch_closeness,
    suggest_lr_schedule,
)
from actinium.signal.teacher_student import TeacherStudentFilter, relu_filter


def patches(n: int, k: int, p: int, rho: float = 0.0, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 1, p, generator=random, dtype=torch.float64)
    return rho**0.5 * base + (1 - rho) ** 0.5 * torch.randn(n, k, p, generator=random, dtype=torch.float64)


def filters(p: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    w = torch.randn(2, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return w[0], w[1]


@pytest.mark.parametrize("k", [1, 4])
def test_gradient_of_the_moments_is_autograd_s(k):
    z = patches(500, k, 6, 0.4) + 0.2
    w, w_star = filters(6)
    w = w.requires_grad_()
    loss = ((relu_filter(w, z) - relu_filter(w_star, z)) ** 2).mean() / 2
    (wanted,) = torch.autograd.grad(loss, w)
    moments = filter_moments(z, w, w_star)
    assert float((moments.gradient(w.detach(), w_star) - wanted).abs().max()) < 1e-12
    if k == 1:
        short = moments.both @ (w - w_star) + moments.student @ w
        assert float((short.detach() - wanted).abs().max()) < 1e-12
        assert moments.cross() == 0


def test_learner_descends_along_the_gradient_of_the_moments():
    z = patches(300, 3, 5)
    learner = TeacherStudentFilter(5, seed=1)
    start = learner.start()
    run = learner.run(z, lr=0.2, steps=1, start=start)
    wanted = start - 0.2 * filter_moments(z, start, learner.teacher).gradient(start, learner.teacher)
    assert np.allclose(run["student"], wanted, atol=1e-13)


@pytest.mark.parametrize(
    ("phi", "gamma", "largest"),
    [(0.2, 0.4365, 0.0635), (0.5, 0.3441, 0.1559), (1.0, 0.2069, 0.2931), (1.5, 0.1025, 0.3975)],
)
def test_normal_patches_have_the_eigenvalues_of_the_closed_form(phi, gamma, largest):
    assert gamma == pytest.approx((math.pi - phi - math.sin(phi)) / (2 * math.pi), abs=1e-4)
    assert largest == pytest.approx((phi + math.sin(phi)) / (2 * math.pi), abs=1e-4)
    z = patches(20_000, 1, 10)
    got = angular_smoothness(z, angles=[phi], directions=3)
    assert float(got["gamma"][0]) == pytest.approx(gamma, abs=0.03) and float(got["gamma"][0]) < gamma
    assert float(got["L"][0]) == pytest.approx(largest, abs=0.03)


def test_student_at_the_teacher_has_half_the_moment_and_nothing_alone():
    w, _ = filters(6)
    at = filter_moments(patches(40_000, 1, 6), w, w)
    assert float(at.student.abs().max()) == 0
    assert float(torch.linalg.eigvalsh(at.both)[0]) == pytest.approx(0.5, abs=0.02)


def test_what_both_and_what_the_student_alone_sees_is_what_the_student_sees():
    z = patches(200, 1, 5)
    w, w_star = filters(5)
    moments = filter_moments(z, w, w_star)
    flat = z[:, 0]
    on = flat[(flat @ w) >= 0]
    assert torch.allclose(moments.both + moments.student, on.T @ on / 200, atol=1e-13)


def test_equal_patches_reproduce_one_patch_exactly():
    z = patches(500, 1, 6)
    w, w_star = filters(6)
    one, eight = filter_moments(z, w, w_star), filter_moments(z.expand(500, 8, 6).contiguous(), w, w_star)
    for name in ("both", "student", "both_student", "both_teacher", "student_teacher"):
        assert torch.allclose(getattr(one, name), getattr(eight, name), atol=1e-14)
    learner = [TeacherStudentFilter(6, seed=2).run(a, steps=20) for a in (z, z.expand(500, 8, 6).contiguous())]
    assert np.allclose(learner[0]["distance"], learner[1]["distance"], atol=1e-12)


def test_averaging_before_the_mask_is_something_else():
    z = patches(500, 4, 6)
    w, w_star = filters(6)
    mean = filter_moments(z.mean(1, keepdim=True), w, w_star)
    assert not torch.allclose(filter_moments(z, w, w_star).both, mean.both, atol=1e-2)


def test_scale_of_the_patches_does_not_matter_when_normalised():
    z = patches(400, 2, 5)
    a, b = angular_smoothness(z, directions=2), angular_smoothness(50 * z, directions=2)
    assert np.allclose(a["gamma"], b["gamma"]) and np.allclose(a["cross"], b["cross"])
    raw = angular_smoothness(50 * z, directions=2, normalise=False)
    assert np.allclose(raw["gamma"], 2500 * angular_smoothness(z, directions=2, normalise=False)["gamma"])


def test_smoothness_falls_and_rises_with_the_angle_and_its_intervals_hold_the_truth():
    got = angular_smoothness(patches(3000, 1, 6), directions=2, resamples=20)
    assert bool((got["gamma"].diff("phi") < 0).all()) and bool((got["L"].diff("phi") > 0).all())
    phi = got["phi"].values
    truth = (math.pi - phi - np.sin(phi)) / (2 * math.pi)
    inside = (got["gamma_low"].values < truth) & (truth < got["gamma_high"].values)
    assert inside.mean() >= 0.5
    assert float(got["samples_per_entry"]) == 500
    assert float(got["beta"]) == pytest.approx(float((got["L"] / got["phi"]).max()))
    got.plot()


def test_largest_second_moment_is_over_filters_that_see_a_part_of_the_patches():
    # Two opposite patches: their mean is nothing, but a filter that is on for one of them sees that one.
    z = patches(400, 1, 3)
    opposite = torch.cat([z, -z], 1)
    found = angular_smoothness(opposite, angles=[0.5], directions=8, normalise=False)
    assert float(torch.linalg.eigvalsh(opposite.mean(1).T @ opposite.mean(1))[-1]) == pytest.approx(0, abs=1e-20)
    _, w = filters(3)
    seen = filter_moments(opposite, w, -w).seen()
    mean = (opposite * (opposite @ w > 0)[..., None]).mean(1)
    torch.testing.assert_close(seen, mean.T @ mean / len(mean), rtol=1e-10, atol=1e-12)
    assert float(found["lambda_max"]) > 0.2


def test_closer_patches_have_smaller_cross_terms():
    far, close = (angular_smoothness(patches(1000, 6, 5, rho), directions=3) for rho in (0.1, 0.99))
    assert float(close["cross"].mean()) < 0.5 * float(far["cross"].mean())


def test_closeness_equals_a_plain_double_loop():
    z = patches(30, 4, 5, 0.5)
    got = patch_closeness(z)
    cosines = [
        float(z[n, i] @ z[n, j] / z[n, i].norm() / z[n, j].norm())
        for n in range(30)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    assert got["cosine"] == pytest.approx(np.mean(cosines))
    assert got["same_side"] == pytest.approx(1 - np.arccos(cosines).mean() / math.pi)
    assert got["rho"] == pytest.approx(float((z.mean(1) ** 2).sum(1).mean() / (z**2).sum(2).mean()))
    planes = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sides = z @ planes.T >= 0
    same = [(sides[:, i] == sides[:, j]).double().mean() for i in range(4) for j in range(i + 1, 4)]
    assert got["same_side"] == pytest.approx(float(torch.stack(same).mean()), abs=0.01)


def test_closeness_of_equal_and_of_single_patches_is_one():
    z = patches(50, 1, 5)
    for given in (z, z.expand(50, 3, 5).contiguous()):
        got = patch_closeness(given)
        assert [got[n] for n in ("cosine", "rho", "same_side")] == pytest.approx([1, 1, 1], abs=1e-7)


def test_steps_to_the_teacher_rise_as_patches_part():
    counts = []
    for rho in (1.0, 0.5, 0.1):
        learner = TeacherStudentFilter(10, seed=0)
        start = learner.start(sphere=True)
        start = start if float(start @ learner.teacher) > 0 else -start
        assert float(start.norm()) == pytest.approx(0.3)
        run = learner.run(patches(800, 8, 10, rho), start=start)
        counts.append(int(run["reached"]))
        assert bool((run["rate"].values[:-1] <= 1).all())
    assert 0 < counts[0] < counts[1] < counts[2]


def test_schedule_grows_with_gamma_and_reaches_the_teacher_sooner():
    z = patches(1000, 1, 6)
    smoothness = angular_smoothness(z, directions=3)
    schedule = suggest_lr_schedule(smoothness, first=0.2)
    assert schedule(1.5) == pytest.approx(0.2) and schedule(0.1) > schedule(0.7) > 0.2
    assert schedule(0.5) == pytest.approx(0.2 * float(smoothness["gamma"].sel(phi=0.5) / smoothness["gamma"][-1]))
    runs = [TeacherStudentFilter(6, seed=4) for _ in range(2)]
    start = 0.3 * runs[0].teacher
    slow, fast = runs[0].run(z, lr=0.2, start=start), runs[1].run(z, schedule=schedule, start=start)
    assert 0 <= int(fast["reached"]) < int(slow["reached"])
    assert suggest_lr_schedule(smoothness)(1.5) > 0


def test_stochastic_steps_end_at_a_floor_above_the_deterministic_ones():
    z = patches(500, 2, 6, 0.8)
    learner = TeacherStudentFilter(6, seed=0)
    start = 0.5 * learner.teacher
    noisy = learner.run(z, lr=0.1, steps=300, start=start, batch_size=8, tolerance=1e-9)
    assert float(noisy["distance"][-1]) < 0.1
    assert int(learner.run(z, lr=0.1, steps=1000, start=start)["reached"]) > 0


def test_starts_fill_the_ball_and_half_of_small_ones_are_nearer_than_zero():
    learner = TeacherStudentFilter(4, radius=0.05, seed=0)
    starts = torch.stack([learner.start() for _ in range(2000)])
    assert float(starts.norm(dim=1).max()) <= 0.05
    # The radius of an even draw has the distribution r^p.
    assert float((starts.norm(dim=1) < 0.05 * 0.5**0.25).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(((starts - learner.teacher).norm(dim=1) < 1).double().mean()) == pytest.approx(0.5, abs=0.06)


def test_patches_of_images_are_those_a_convolution_reads():
    images = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    w = torch.randn(18, dtype=torch.float64)
    z = image_patches(images, 3, stride=2, padding=1)
    wanted = torch.nn.functional.conv2d(images, w.view(1, 2, 3, 3), stride=2, padding=1).flatten(1)
    assert torch.allclose(z @ w, wanted)
    with pytest.raises(InputError):
        image_patches(images, 7)


def test_trained_filters_are_measured_on_the_images_they_read():
    net = ac.load("world:digits-cnn").module
    z = image_patches(ac.world.digits.load("train").images[:200], 3, padding=1)
    trained = net.stage1[0].weight.detach()[0].flatten()
    got = angular_smoothness(z, trained, angles=(0.2, 1.0), directions=4)
    assert bool(np.isfinite(got["gamma"]).all()) and float(got["lambda_max"]) > 1
    close = patch_closeness(z)
    assert 0 < close["empty"] < 1 and 0 < close["cosine"] < 1


def test_bad_input_is_refused():
    z = patches(100, 2, 5)
    with pytest.raises(InputError, match="too few"):
        angular_smoothness(patches(40, 1, 5))
    with pytest.raises(InputError, match="same"):
        angular_smoothness(torch.ones(100, 2, 5))
    with pytest.raises(InputError, match="NaN"):
        patch_closeness(torch.full((100, 2, 5), torch.nan))
    for empty in (torch.ones(100, 0, 5), torch.ones(0, 2, 5), torch.ones(100, 5)):
        with pytest.raises(InputError):
            patch_closeness(empty)
    for angles in ((), (0.0,), (1.6,)):
        with pytest.raises(InputError, match="angles"):
            angular_smoothness(z, angles=angles)
    with pytest.raises(InputError, match="not all of them 0"):
        filter_moments(z, torch.zeros(5), torch.ones(5))
    with pytest.raises(InputError, match="w_star"):
        angular_smoothness(z, torch.ones(4))
    for bad in ({"lr": 0.0}, {"steps": 0}, {"tolerance": 0.0}, {"batch_size": 0}, {"start": torch.ones(4)}):
        with pytest.raises(InputError):
            TeacherStudentFilter(5).run(z, **bad)
    with pytest.raises(InputError, match="diverged"):
        TeacherStudentFilter(5).run(z, lr=1e6, steps=300)
    with pytest.raises(InputError):
        TeacherStudentFilter(5, teacher=torch.zeros(5))
    with pytest.raises(InputError, match="angular_smoothness"):
        suggest_lr_schedule(TeacherStudentFilter(5).run(z, steps=1))
