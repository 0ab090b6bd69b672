"""Steering vectors: arithmetic, files, and models they do not fit."""

from __future__ import annotations

import math

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError

A, B = "blocks.1.resid_post", "blocks.2.resid_post"


def vector(**made):
    return ac.steering.SteeringVector({A: torch.tensor([3.0, 4.0]), B: torch.tensor([0.0, 2.0])}, "given", made)


def test_arithmetic_is_that_of_the_directions():
    v, w = vector(), ac.steering.SteeringVector({B: torch.tensor([1.0, 1.0])})
    assert (v + w)[B].tolist() == [1.0, 3.0] and (v + w)[A].tolist() == [3.0, 4.0]
    assert (v - w)[B].tolist() == [-1.0, 1.0]
    assert (2 * v)[A].tolist() == (v * 2)[A].tolist() == [6.0, 8.0]
    assert (-v)[A].tolist() == [-3.0, -4.0] and (v / 2)[A].tolist() == [1.5, 2.0]
    assert ac.steering.compose([v, w], [2, -1])[B].tolist() == [-1.0, 3.0]


def test_lengths_are_set_and_compared():
    v = vector()
    assert v.norms == {A: 5.0, B: 2.0}
    assert v.normalize().norms == pytest.approx({A: 1.0, B: 1.0})
    assert v.normalize({A: 2.0, B: 3.0}).norms == pytest.approx({A: 2.0, B: 3.0})
    assert v.normalize().normalize(v).norms == pytest.approx(v.norms)
    control = v.random_like(3)
    assert control.norms == pytest.approx(v.norms) and control.method == "random"
    assert torch.equal(control[A], v.random_like(3)[A]) and not torch.equal(control[A], v.random_like(4)[A])


def test_behaviours_are_brought_to_their_mean_length():
    random = torch.Generator().manual_seed(0)
    drawn = [{s: torch.randn(6, generator=random) * size for s in (A, B)} for size in (1, 3, 7)]
    behaviours = [ac.steering.SteeringVector(one) for one in drawn]
    for one, given in zip(behaviours, drawn, strict=True):
        new = one.normalize(behaviours)
        for site in (A, B):
            mean = sum(float(d[site].norm()) for d in drawn) / 3
            assert new.norms[site] == pytest.approx(mean, rel=1e-6)
            assert torch.allclose(new[site], given[site] * mean / given[site].norm(), rtol=1e-5)
    with pytest.raises(InputError, match="one steering vector or more"):
        behaviours[0].normalize([])
    with pytest.raises(UnknownNameError):
        behaviours[0].normalize([behaviours[0], behaviours[1].only(A)])


def test_sums_remember_the_texts_of_both():
    v, w = (ac.steering.SteeringVector({A: torch.ones(2)}, made={"texts": [text]}) for text in ("one", "two"))
    assert (v + w).made["texts"] == ["one", "two"]


def test_cosines_are_those_of_the_directions():
    v = vector()
    w = ac.steering.SteeringVector({A: torch.tensor([4.0, -3.0]), B: torch.tensor([1.0, 1.0])})
    assert v.cosine(w)[A] == pytest.approx(0.0, abs=1e-7)
    assert v.cosine(w)[B] == pytest.approx(1 / math.sqrt(2))
    with pytest.raises(InputError, match="share no site"):
        v.only(A).cosine(w.only(B))


def test_orthogonalised_vectors_have_nothing_of_the_others():
    torch.manual_seed(0)
    v, *others = (ac.steering.SteeringVector({A: torch.randn(8)}) for _ in range(4))
    left = v.orthogonalize(*others)
    assert all(abs(left.cosine(o)[A]) < 1e-6 for o in others)
    # v is what was taken out plus what is left: the rest lies in the span of the others.
    basis = torch.stack([o[A] for o in others]).double()
    rest = (v[A] - left[A]).double()
    assert torch.allclose(torch.linalg.lstsq(basis.T, rest).residuals, torch.zeros(1).double(), atol=1e-10)
    with pytest.raises(InputError, match="zero at every site"):
        v.orthogonalize(v)


def test_only_takes_patterns():
    v = vector()
    assert v.only("blocks.1.*").sites == [A]
    assert v.only("blocks.*.resid_post").sites == [A, B]


def test_saved_vectors_come_back_the_same(tmp_path):
    v = vector(pairs=7, name="x")
    back = ac.steering.SteeringVector.load(v.save(tmp_path / "deep" / "v.safetensors"))
    assert back.sites == v.sites and all(torch.equal(back[s], v[s]) for s in v.sites)
    assert back.method == "given" and back.made == {"pairs": 7, "name": "x"}


def test_damaged_files_are_refused(tmp_path):
    path = vector().save(tmp_path / "v.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(LoadError):
        ac.steering.SteeringVector.load(path)
    with pytest.raises(LoadError):
        ac.steering.SteeringVector.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "one site or more"),
        ({A: torch.zeros(3)}, "zero at every site"),
        ({A: torch.tensor([1.0, math.nan])}, "NaN"),
        ({A: torch.ones(2, 2)}, "vector"),
    ],
)
def test_what_is_no_vector_is_refused(directions, message):
    with pytest.raises(InputError, match=message):
        ac.steering.SteeringVector(directions)


def test_senseless_arithmetic_is_refused():
    v = vector()
    with pytest.raises(InputError, match="other than 0"):
        v * 0
    with pytest.raises(InputError, match="widths"):
        v + ac.steering.SteeringVector({A: torch.ones(3)})
    with pytest.raises(InputError, match="different models"):
        vector(model="a") + vector(model="b")
    with pytest.raises(UnknownNameError):
        v["blocks.3.resid_post"]
    with pytest.raises(InputError, match="weights"):
        ac.steering.compose([v], [1.0, 2.0])


def test_a_vector_for_another_model_is_refused():
    model = ac.load("world:lm")
    with pytest.raises(InputError, match="128 wide"):
        vector().check(model)
    wide = {A: torch.ones(128)}
    ac.steering.SteeringVector(wide, made={"model": model.fingerprint()}).check(model)
    other = ac.steering.SteeringVector(wide, made={"model": "f" * 64, "name": "some model"})
    with pytest.raises(InputError, match="made on some model"):
        other.check(model)
    other.check(model, transfer=True)
    with pytest.raises(ac.errors.SiteError):
        ac.steering.SteeringVector({"blocks.99.resid_post": torch.ones(128)}).check(model)
