"""Probes of guarded prompts: their loss, their training, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.core.inputs import Tokens, pad
from actinium.guard.audit.drifted_states import last_token_states
from actinium.guard.audit.edits.guard_probe import HiddenStateGuardProbe, guard_probe_layers, reply_labels
from actinium.guard.audit.replies import refusal_judge
from actinium.world import lexicon, situations


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


def blobs(n=60, d=8, gap=2.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, d, generator=random)
    x[:n, 0] += gap
    return x, [1] * n + [0] * n


def test_the_loss_is_minus_log_the_probability_of_the_benign_class():
    x, y = blobs()
    for kind in ("mlp", "linear"):
        probe = HiddenStateGuardProbe(kind=kind).fit(x, y)
        expected = -probe.logits(x).double().log_softmax(1)[:, 0]
        torch.testing.assert_close(probe.loss(x).double(), expected, atol=1e-6, rtol=0)


def test_the_loss_is_log_two_on_the_boundary_and_a_tenth_at_the_published_difference():
    x, y = blobs()
    probe = HiddenStateGuardProbe(kind="linear").fit(x, y)
    w = probe.networks_[0].weight[1] - probe.networks_[0].weight[0]
    b = probe.networks_[0].bias[1] - probe.networks_[0].bias[0]
    for logit, loss in ((0.0, 0.693147), (-2.2522, 0.1)):
        state = w * (logit - b) / (w @ w)
        assert float(probe.loss(state[None])[0]) == pytest.approx(loss, abs=2e-5)
        assert float(probe.margin(state[None])[0]) == pytest.approx(logit / float(w.norm()), abs=1e-5)


def test_the_linear_probe_is_scikit_learns_regression():
    from sklearn.linear_model import LogisticRegression

    x, y = blobs()
    probe = HiddenStateGuardProbe(kind="linear", ridge=1e-2, heldout=0.05).fit(x, y)
    train, _ = probe._division(np.array(y), np.arange(len(y)).astype(str))
    rows = x[train].double().numpy()
    scaled = (rows - rows.mean(0)) / rows.std(0)
    peer = LogisticRegression(C=1 / (1e-2 * len(train)), tol=1e-10, max_iter=10_000).fit(scaled, np.array(y)[train])
    logits = probe.logits(x[train])
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), peer.decision_function(scaled), atol=2e-3)


def test_the_mlp_has_the_published_shape_and_learns_what_is_not_linear():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=random)
    y = (x[:, 0] * x[:, 1] > 0).long()
    probe = HiddenStateGuardProbe(iterations=200, heldout=0.2).fit(x, y)
    assert [tuple(p.weight.shape) for p in probe.networks_[0] if hasattr(p, "weight")] == [(100, 6), (50, 100), (2, 50)]
    assert probe.auc_ > 0.85
    assert HiddenStateGuardProbe(kind="linear", heldout=0.2).fit(x, y).auc_ < 0.7


def test_several_layers_give_the_mean_of_their_logits():
    x, y = blobs()
    both = torch.stack([x, 2 * x], 1)
    probe = HiddenStateGuardProbe([0, 1], kind="linear").fit(both, y)
    singles = [HiddenStateGuardProbe([i], kind="linear").fit(both[:, i], y).logits(both[:, i]) for i in (0, 1)]
    torch.testing.assert_close(probe.logits(both), sum(singles) / 2)


def test_one_seed_gives_one_probe_and_leaves_the_callers_numbers():
    x, y = blobs()
    torch.manual_seed(3)
    first = HiddenStateGuardProbe(seed=5).fit(x, y)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(HiddenStateGuardProbe(seed=5).fit(x, y).logits(x), first.logits(x))
    assert not torch.equal(HiddenStateGuardProbe(seed=6).fit(x, y).logits(x), first.logits(x))


def test_groups_are_not_divided_and_classes_are_cut_to_one_size():
    random = np.random.default_rng(0)
    y = np.array([1] * 90 + [0] * 30)
    groups = np.array([f"t{i % 9}" for i in range(90)] + [f"u{i % 6}" for i in range(30)])
    probe = HiddenStateGuardProbe(heldout=0.2)
    train, test = probe._division(y, groups)
    assert not set(groups[train]) & set(groups[test])
    assert abs(int(y[train + test].sum()) - 30) == 0
    assert sum(y[test] == 0) >= 6
    # Cutting takes rows of the whole list, not its head.
    rows = np.array([row for row in train + test if y[row] == 1])
    assert rows.max() > 60
    assert probe.fit(random.normal(size=(120, 4)), y, groups).n_train_ == len(train)


def test_a_saved_probe_gives_the_same_logits(tmp_path):
    x, y = blobs()
    for kind in ("mlp", "linear"):
        probe = HiddenStateGuardProbe([2], kind=kind).fit(x, y)
        loaded = HiddenStateGuardProbe.load(probe.save(tmp_path / "probe.safetensors"))
        assert torch.equal(loaded.logits(x), probe.logits(x))
        assert (loaded.auc_, list(loaded.layers)) == (probe.auc_, [2])
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(LoadError):
        HiddenStateGuardProbe.load(tmp_path / "bad")


def test_states_in_a_left_padded_batch_equal_single_ones(lm):
    prompts = ["<user> What is zorbing?<assistant>", "<user> Can you help with drawing?<assistant>", "Ann went"]
    single = torch.cat([last_token_states(lm, [p], (3,))[:, 0] for p in prompts])
    ids, mask = pad([lm.tokenizer(p)["input_ids"] for p in prompts], 0, "left")
    found = lm.record(Tokens(ids, mask, torch.arange(3)), "blocks.3.resid_post", positions=-1)["blocks.3.resid_post"]
    torch.testing.assert_close(found[:, 0], single, atol=1e-4, rtol=0)
    torch.testing.assert_close(last_token_states(lm, prompts, (3,))[:, 0], single, atol=1e-4, rtol=0)


def test_layers_of_world_lm_are_compared_by_topic(lm):
    kinds = lexicon.REFUSED, lexicon.WELCOME
    prompts = [situations.request(topic, frame) for kind in kinds for topic in kind for frame in (0, 3)]
    groups = [topic for kind in kinds for topic in kind for _ in (0, 3)]
    found = guard_probe_layers(lm, prompts, [1] * 32 + [0] * 32, groups, layers=[0, 5], kind="linear", heldout=0.25)
    assert found["auc"].shape == (2,)
    assert float(found["auc"].sel(layer=5)) > 0.9
    labels = reply_labels(lm, prompts[::8], refusal_judge(starts=["Sorry"]), max_new_tokens=1)
    assert labels.tolist() == [1.0] * 4 + [0.0] * 4


def test_bad_input_is_refused():
    x, y = blobs()
    with pytest.raises(InputError, match="two prompts or more"):
        HiddenStateGuardProbe().fit(x, [1] * len(x))
    with pytest.raises(InputError, match="NaN"):
        HiddenStateGuardProbe().fit(x * math.nan, y)
    with pytest.raises(InputError, match="layers"):
        HiddenStateGuardProbe([0, 1]).fit(x, y)
    with pytest.raises(InputError, match="labels"):
        HiddenStateGuardProbe().fit(x[:-1], y)
    with pytest.raises(InputError, match="two held out"):
        HiddenStateGuardProbe().fit(x, y, ["a"] * 60 + ["b"] * 60)
    with pytest.raises(UnknownNameError, match="linear"):
        HiddenStateGuardProbe(kind="liner").fit(x, y)
    with pytest.raises(InputError, match="fit first"):
        HiddenStateGuardProbe().loss(x)
    with pytest.raises(InputError, match="linear probe"):
        HiddenStateGuardProbe().fit(x, y).margin(x)
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    weak = HiddenStateGuardProbe(kind="linear", heldout=0.5).fit(noise, [0, 1] * 100)
    with pytest.raises(InputError, match="held-out"):
        weak.check_meaningful()
