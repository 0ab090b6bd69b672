"""The same scores, decisions and logits as IBM's activation-steering gives, from files that it wrote."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actinium.steering.application import steer
from actinium.steering.conditional import ConditionalSteering
from actinium.steering.conditions import VectorCondition, fire_when_of
from actinium.steering.interchange import load_vector, save_vector
from actinium.steering.vector import SteeringVector
from architectures import shared, token_ids

ibm = pytest.importorskip("activation_steering", reason="IBM's activation-steering is not installed")
BLOCKS = (1, 2)


@pytest.fixture
def theirs():
    """Their wrapper of a model of its own, with their global state as it was."""
    from activation_steering.leash_layer import LeashLayer

    LeashLayer.reset_class()
    module = copy.deepcopy(shared("llama").module).eval()
    yield ibm.MalleableModel(module, SimpleNamespace(eos_token=None, pad_token=None)), LeashLayer
    LeashLayer.reset_class()


def vectors(model):
    random = np.random.default_rng(0)
    draw = {i: random.normal(size=model.d_model).astype(np.float32) for i in range(3)}
    shares = dict.fromkeys(draw, 0.5)
    behaviour = ibm.SteeringVector("llama", {i: v * 2 for i, v in draw.items()}, shares)
    return behaviour, ibm.SteeringVector("llama", {i: v[::-1].copy() for i, v in draw.items()}, shares)


@pytest.mark.parametrize("read", ["mean", "last"])
@pytest.mark.parametrize("comparator", ["larger", "smaller"])
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("prefill", [True, False])
def test_scores_and_logits_are_theirs(tmp_path, theirs, read, comparator, guard, prefill):
    wrapped, leash = theirs
    model, ids = shared("llama"), token_ids(4, 5)
    behaviour, condition = vectors(model)
    behaviour.save(str(tmp_path / "b.svec"))
    condition.save(str(tmp_path / "c.svec"))
    ours = VectorCondition(load_vector(tmp_path / "c.svec").only("blocks.1.resid_pre"), 0.1, read=read)
    scores = ours.scores(model, ids)["blocks.1.resid_pre"]
    middle = float(scores.sort().values[1:3].mean())
    ours = VectorCondition(ours.vector, middle, fire_when_of(comparator), read=read)
    steering = ConditionalSteering(
        {"B1": load_vector(tmp_path / "b.svec")},
        {"C1": ours},
        "if C1 then B1",
        strength=1.5,
        sites="blocks.{1,2}.resid_pre",
        apply_on_prefill=prefill,
        norm_guard=guard,
    )
    fired = []
    for row in range(4):
        leash.reset_class()
        wrapped.steer(
            behaviour, list(BLOCKS), 1.5, condition, [1], middle, comparator, read,
            use_ooi_preventive_normalization=guard, apply_behavior_on_first_call=prefill,
        )  # fmt: skip
        with torch.no_grad(), steering.applied(model) as now:
            want = wrapped.model.generate(ids[row : row + 1], **options())
            got = model.generate(ids[row : row + 1], **options())
        assert torch.equal(got.sequences, want.sequences)
        assert torch.allclose(torch.stack(got.logits), torch.stack(want.logits), atol=1e-4)
        assert float(now.last_scores["C1"]["blocks.1.resid_pre"]) == pytest.approx(
            float(leash.condition_similarities[0][1]), abs=1e-5
        )
        fired.append(bool(now.fired["C1"]))
        assert fired[-1] == bool(leash.condition_met[0])
    assert sorted(fired) == [False, False, True, True]


def options():
    return {
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "return_dict_in_generate": True,
        "output_logits": True,
    }


def test_they_read_what_is_written_and_act_at_the_same_place(tmp_path, theirs):
    wrapped, _ = theirs
    model, ids = shared("llama"), token_ids(1, 5)
    vector = SteeringVector({"blocks.0.resid_post": torch.linspace(-2, 2, model.d_model)})
    save_vector(vector, tmp_path / "v.svec", model_type="llama")
    read = ibm.SteeringVector.load(str(tmp_path / "v.svec"))
    assert list(read.directions) == [1]
    wrapped.steer(read, [1], 1.0)
    with torch.no_grad(), steer(model, vector):
        assert torch.allclose(wrapped.model(ids).logits, model.logits(ids), atol=1e-5)
