"""Probes that are networks: hidden layers find what is not linear, attention finds where it stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError, LoadError
from actinium.probes import AttentionProbe, LinearProbe, MLPProbe


def xor(n=400, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 5))
    return x, (x[:, 0] * x[:, 1] > 0).astype(int)


def needle(n=200, pos=9, d=6, seed=0):
    """Texts of unequal length; every position has a sign on entry 1, and that of the marked one is the label."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, pos, d))
    x[..., 1] = random.choice([-3, 3], size=(n, pos))
    length = random.integers(3, pos + 1, size=n)
    mask = np.arange(pos) < length[:, None]
    y = np.arange(n) % 2
    where = (random.random(n) * length).astype(int)
    x[np.arange(n), where, 0] += 6
    x[np.arange(n), where, 1] = np.where(y == 1, 3, -3)
    return torch.from_numpy(x).float(), torch.from_numpy(mask), y, where


def test_hidden_units_read_what_no_direction_does():
    x, y = xor()
    test = xor(seed=1)
    probe = MLPProbe((32,), epochs=60, lr=1e-2).fit(x, y)
    assert probe.score(*test) > 0.9
    assert LinearProbe().fit(x, y).score(*test) < 0.65
    assert probe.losses_[-1] < 0.5 * probe.losses_[0]
    p = probe.predict_proba(test[0])
    assert p.sum(1) == pytest.approx(1)
    assert np.log(p[:, 1] / p[:, 0]) == pytest.approx(probe.decision_function(test[0]), abs=1e-3)


def test_attention_finds_the_position_that_tells():
    x, mask, y, _ = needle()
    probe = AttentionProbe(epochs=60).fit(x, y, mask)
    x2, mask2, y2, where2 = needle(seed=1)
    assert probe.score(x2, y2, mask2) > 0.9
    look = probe.attention(x2, mask2)[:, 0]
    assert look.sum(1) == pytest.approx(1)
    assert (look[~mask2.numpy()] == 0).all()
    # It is enough to find the marked positions of one class: where there is none, the text is of the other.
    found = look.argmax(1) == where2
    assert max(found[y2 == c].mean() for c in (0, 1)) > 0.9
    pooled = [((v * m[..., None]).sum(1) / m.sum(1, keepdim=True)) for v, m in ((x, mask), (x2, mask2))]
    assert LinearProbe().fit(pooled[0], y).score(pooled[1], y2) < probe.score(x2, y2, mask2) - 0.1


def test_padding_and_order_of_positions_do_not_matter():
    x, mask, y, _ = needle(n=40)
    probe = AttentionProbe(heads=2, epochs=5).fit(x, y, mask)
    base = probe.decision_function(x, mask=mask)
    noisy = torch.where(mask[..., None], x, torch.full_like(x, 1e6))
    assert probe.decision_function(noisy, mask=mask) == pytest.approx(base, abs=1e-5)
    order = torch.randperm(x.shape[1])
    assert probe.decision_function(x[:, order], mask=mask[:, order]) == pytest.approx(base, abs=1e-5)


def test_before_training_every_position_weighs_the_same():
    x, mask, y, _ = needle(n=20)
    probe = AttentionProbe(epochs=1, lr=1e-12, weight_decay=0.0).fit(x, y, mask)
    even = mask.float() / mask.sum(1, keepdim=True)
    assert probe.attention(x, mask)[:, 0] == pytest.approx(even.numpy(), abs=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_seed_repeats_itself_leaves_the_global_one_and_comes_back_from_disk(kind, tmp_path):
    if kind == "mlp":
        x, y = xor(60)
        made, inputs = (lambda seed: MLPProbe((8, 4), dropout=0.1, epochs=3, seed=seed).fit(x, y)), (x,)
    else:
        x, mask, y, _ = needle(n=60)
        made, inputs = (lambda seed: AttentionProbe(2, epochs=3, seed=seed).fit(x, y, mask)), (x, mask)
    state = torch.random.get_rng_state()
    one, two, other = (made(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (one.predict_proba(*inputs) == two.predict_proba(*inputs)).all()
    assert not np.allclose(one.predict_proba(*inputs), other.predict_proba(*inputs))
    one.save(tmp_path / "probe")
    again = type(one).load(tmp_path / "probe")
    assert (again.predict_proba(*inputs) == one.predict_proba(*inputs)).all()
    assert again.get_params() == one.get_params() | ({"hidden": [8, 4]} if kind == "mlp" else {})
    with pytest.raises(LoadError):
        (AttentionProbe if kind == "mlp" else MLPProbe).load(tmp_path / "probe")


def test_several_classes_are_told_apart():
    x = np.random.default_rng(0).normal(size=(300, 4))
    y = np.array(["a", "b", "c"])[x[:, :3].argmax(1)]
    probe = MLPProbe((16,), epochs=40, lr=1e-2).fit(x, y)
    assert probe.score(x, y) > 0.9
    assert probe.decision_function(x).shape == (300, 3)
    assert list(probe.classes_) == ["a", "b", "c"]


def test_what_cannot_be_trained_is_refused():
    x, y = xor(20)
    for settings, message in (
        ({"hidden": ()}, "widths"),
        ({"hidden": 3}, "widths"),
        ({"dropout": 1.0}, "dropout"),
        ({"epochs": 0}, "epochs"),
    ):
        with pytest.raises(InputError, match=message):
            MLPProbe(**settings).fit(x, y)
    with pytest.raises(InputError, match="one class only"):
        MLPProbe().fit(x, np.zeros(20))
    with pytest.raises(InputError, match="all activations are the same"):
        MLPProbe().fit(np.ones((20, 3)), y)
    texts, mask, labels, _ = needle(n=10)
    for values, real, message in (
        (texts[:, 0], None, "expected activations"),
        (texts, mask[:, :3], "mask: expected"),
        (texts, mask & False, "no real position"),
        (texts * torch.nan, mask, "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            AttentionProbe().fit(values, labels, real)
    with pytest.raises(InputError, match="heads must be"):
        AttentionProbe(0).fit(texts, labels, mask)
    with pytest.raises(InputError, match="call fit"):
        AttentionProbe().predict(texts)
    probe = AttentionProbe(epochs=1).fit(texts, labels, mask)
    with pytest.raises(InputError, match="expected 6"):
        probe.predict(texts[..., :3], mask=mask)
