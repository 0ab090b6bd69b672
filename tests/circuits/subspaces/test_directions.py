"""Directions from classes, variance, probes, gradients and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_task

import architectures
from actinium.circuits import (
    Node,
    gradient_direction,
    mean_difference,
    pca_directions,
    probe_direction,
    reading_directions,
    readout_weight,
)
from actinium.circuits.subspaces.directions import orthonormal
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


def classes(n=400, d=6, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=n)
    x = random.normal(size=(n, d)) @ np.diag([3, 1, 1, 1, 0.5, 0.2])
    x[:, 1] += 2.0 * labels
    return x, labels


def test_mean_difference_points_from_the_smaller_label_to_the_larger():
    x, labels = classes()
    want = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    assert mean_difference(x, labels).numpy() == pytest.approx(want / np.linalg.norm(want))
    assert mean_difference(x, 5 - labels).numpy() == pytest.approx(-want / np.linalg.norm(want))


def test_principal_directions_are_the_covariances_eigenvectors():
    x, _ = classes()
    vectors = np.linalg.eigh(np.cov(x.T))[1][:, ::-1].T[:3]
    got = pca_directions(torch.from_numpy(x), 3).numpy()
    assert np.abs((got * vectors).sum(1)) == pytest.approx(np.ones(3), abs=1e-9)
    assert (np.take_along_axis(got, np.abs(got).argmax(1)[:, None], 1) > 0).all()


def test_probe_direction_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    x, labels = classes()
    peer = linear.LogisticRegression(C=1 / 3, tol=1e-10, max_iter=10000).fit(x, labels).coef_[0]
    assert probe_direction(x, labels, penalty=3.0).numpy() == pytest.approx(peer / np.linalg.norm(peer), abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_direction_is_that_of_finite_differences(name):
    model, task = architectures.shared(name), random_task(padding=(2,))
    site, n = "blocks.1.resid_post", len(task)
    got = gradient_direction(model, task, site, position=-2)
    tokens = Tokens(task.clean_ids, task.mask, torch.arange(n))
    from actinium.core.edits import Add

    def difference(shift):
        with torch.no_grad(), model.edit({site: Add(shift.float()).at(positions=-2)}):
            logits = model.logits(tokens)[:, -1].double()
        return float((logits.gather(1, task.answer_ids[:, None]) - logits.gather(1, task.wrong_ids[:, None])).mean())

    step = 1e-2
    slopes = [(difference(step * e) - difference(-step * e)) / (2 * step) for e in torch.eye(32).double()]
    want = torch.tensor(slopes).double()
    assert float(got @ (want / want.norm())) > 0.999


def test_a_score_of_a_later_site_has_a_gradient_and_frozen_weights_do_not_matter():
    model, task = architectures.shared("llama"), random_task()
    score = lambda rec: rec["blocks.2.attn.scores"][:, 1, -1, 2]  # noqa: E731
    options = {"at": "blocks.2.attn.scores", "position": 2}
    got = gradient_direction(model, task, "blocks.1.resid_post", score, **options)
    frozen = architectures.build("llama").requires_grad_(False)
    assert torch.allclose(gradient_direction(type(model)(frozen), task, "blocks.1.resid_post", score, **options), got)
    # What attends from the last position reads the key's position and nothing at positions between.
    with pytest.raises(InputError, match="zero"):
        gradient_direction(model, task, "blocks.1.resid_post", score, at="blocks.2.attn.scores", position=3)
    with pytest.raises(InputError, match="does not depend"):
        gradient_direction(model, task, "blocks.2.resid_post", score, at="blocks.2.attn.scores")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "phi3"])
def test_readout_weight_maps_the_site_to_what_is_added(name):
    model, ids = architectures.shared(name), architectures.token_ids()
    rec = model.record(ids, ["blocks.1.mlp.post", "blocks.1.mlp.out", "blocks.1.attn.z", "blocks.1.attn.out"])
    for site, out, heads in (("mlp.post", "mlp.out", [None]), ("attn.z", "attn.out", range(model.n_heads))):
        read, added = rec[f"blocks.1.{site}"].double(), rec[f"blocks.1.{out}"].double()
        parts = [(read if h is None else read[:, :, h]) @ readout_weight(model, f"blocks.1.{site}", h).T for h in heads]
        # Up to the bias, which is the same everywhere.
        rest = (added - sum(parts)).flatten(0, 1)
        assert torch.allclose(rest, rest[:1].expand_as(rest), atol=1e-4)


def test_reading_directions_hold_the_gradients():
    model, task = architectures.shared("llama"), random_task()
    site = "blocks.1.resid_post"
    all_of = reading_directions(model, task, site, energy=1.0)
    mean = gradient_direction(model, task, site)
    assert float((all_of @ mean).norm()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(all_of @ all_of.T, torch.eye(len(all_of), dtype=torch.float64), atol=1e-9)
    assert len(reading_directions(model, task, site, energy=0.5)) < len(all_of) == 6
    node = Node("blocks.2.attn.q", heads=1, positions=-1)
    # The six rows of the head, and what the norm adds along the stream of each of the six runs.
    assert len(reading_directions(model, task, site, node, energy=1.0)) == 12
    # Queries read through W_Q and the norm's gain: almost all of the gradient lies in these rows.
    attn, norm = model.module.model.layers[2].self_attn, model.module.model.layers[2].input_layernorm
    rows = (attn.q_proj.weight.view(4, 6, 32)[1] * norm.weight).detach().double()
    known = torch.linalg.qr(rows.T)[0]
    found = reading_directions(model, task, site, node, energy=0.6)
    assert float((found[:1] @ known).norm()) > 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: mean_difference(x, y[:-1]), "one label"),
        (lambda x, y: mean_difference(x, 0 * y), "two values"),
        (lambda x, y: mean_difference(x[:, :0], y), "expected rows"),
        (lambda x, y: pca_directions(x, 0), "from 1 to 6"),
        (lambda x, y: probe_direction(x, y, penalty=0), "above 0"),
        (lambda x, y: probe_direction(np.full_like(x, np.nan), y), "NaN"),
        (lambda x, y: orthonormal([[float("inf"), 1.0]]), "finite"),
        (
            lambda x, y: readout_weight(architectures.shared("llama"), "blocks.1.resid_post"),
            "not the input of a linear",
        ),
        (lambda x, y: readout_weight(architectures.shared("llama"), "blocks.*.mlp.post"), "3 sites"),
        (lambda x, y: readout_weight(architectures.shared("llama"), "blocks.1.mlp.post", 0), "has no heads"),
        (lambda x, y: readout_weight(architectures.shared("llama"), "blocks.1.attn.z"), "from 0 to 3, not None"),
        (
            lambda x, y: reading_directions(architectures.shared("llama"), random_task(), "blocks.1.resid_post", []),
            "behind the site",
        ),
        (
            lambda x, y: reading_directions(
                architectures.shared("llama"), random_task(), "blocks.1.resid_post", energy=0
            ),
            "energy",
        ),
        (
            lambda x, y: gradient_direction(architectures.shared("llama"), random_task(), "blocks.1.attn.z"),
            "needs head=",
        ),
        (
            lambda x, y: gradient_direction(
                architectures.shared("llama"), random_task(), "blocks.1.resid_post", position=9
            ),
            "outside a prompt",
        ),
    ],
)
def test_what_gives_no_direction_is_refused(call, message):
    x, labels = classes(20)
    with pytest.raises(InputError, match=message):
        call(x, labels)
