"""Fragility curves, concentration and dropout of safety neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.intervals import wilson
from actinium.core.model import Model
from actinium.guard.audit.neurons.neuron_ablation import ablate_neurons
from actinium.guard.audit.neurons.neuron_fragility import fragility_number, safety_fragility_curve, text_utility
from actinium.guard.audit.neurons.neuron_hardening import concentration, gini, neuron_dropout, participation_ratio
from actinium.guard.audit.neurons.safety_neuron_audit import SafetyNeuronAudit
from actinium.guard.audit.neurons.safety_neurons import find_safety_neurons
from actinium.guard.audit.replies import (
    chat_prompts,
    refusal_judge,
    refused_share,
    replies_to,
    reply_quality,
)
from actinium.world import lexicon, situations

JUDGE = refusal_judge(starts=["Sorry"])


def requests(topics, frames):
    return [situations.request(topic, frame) for topic in topics for frame in frames]


GUARDED, BENIGN = (requests(topics[12:], (7, 8)) for topics in (lexicon.REFUSED, lexicon.WELCOME))


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


@pytest.fixture(scope="module")
def audit(lm):
    prompts = requests(lexicon.REFUSED[:12], range(3)) + requests(lexicon.WELCOME[:12], range(3))
    return SafetyNeuronAudit(top_fraction=0.1, epochs=600, heldout=0.0).fit(lm, prompts, [1] * 36 + [0] * 36)


@pytest.fixture(scope="module")
def curve(lm, audit):
    texts = ["When Ann and Bob went to the store, Bob gave a book to Ann."]
    return audit.fragility(
        lm,
        GUARDED,
        BENIGN,
        JUDGE,
        fractions=[0.0, 0.01, 0.1],
        utility=text_utility(texts),
        randoms=3,
        controls={"other": audit.neurons_},
        max_new_tokens=2,
    )


def test_safety_neurons_of_seen_topics_break_refusals_of_others_and_random_ones_do_not(curve):
    data = curve.data
    assert data["failure"].sel(step=0.0).values.tolist() == [0, 0, 0, 0]
    assert data["over_refusal"].sel(step=0.0).values.tolist() == [0, 0, 0, 0]
    assert data["utility_ratio"].sel(step=0.0).values.tolist() == [1, 1, 1, 1]
    assert data["removed"].values.tolist() == [0, 12 * 4, 12 * 35]
    np.testing.assert_allclose(data["p"], [0, 48 / 4224, 420 / 4224])
    assert float(data["failure"].sel(set="safety", step=0.1)) > 0.5
    assert float(data["random_failure"].sel(step=0.1).max()) < 0.2
    np.testing.assert_allclose(data["failure"].sel(set="random"), data["random_failure"].mean("draw"))
    # A control that is the same probe is the same ablation.
    np.testing.assert_array_equal(data["failure"].sel(set="other"), data["failure"].sel(set="safety"))
    assert data.attrs["fragility_number"].keys() == {"safety", "high activation", "random", "other"}
    assert "failure" in curve.table()


def test_a_curve_is_saved_and_read(curve, tmp_path):
    again = ac.Result.load(curve.save(tmp_path / "curve.zarr"))
    assert again == curve
    assert again.paper == "neurostrike-audit"


def test_the_fragility_number_is_the_smallest_share_that_breaks_the_guard_alone(curve):
    data = curve.data.copy(deep=True)
    data["failure"].loc[{"set": "safety"}] = [0.2, 0.5, 0.9]
    data["utility_ratio"].loc[{"set": "safety"}] = [1.0, 0.9, 0.96]
    made = ac.Result(data, "made")
    assert fragility_number(made) == pytest.approx(420 / 4224)
    assert fragility_number(made, kept=0.9) == pytest.approx(48 / 4224)
    assert np.isnan(fragility_number(made, failure=0.95))
    data["utility_ratio"].loc[{"set": "safety"}] = np.nan
    assert fragility_number(made) == pytest.approx(48 / 4224)


def test_prefixes_are_the_published_quarters_of_the_blocks(lm, audit):
    found = audit.fragility(lm, GUARDED, BENIGN, JUDGE, randoms=1, max_new_tokens=2)
    assert found["step"].values.tolist() == [0, 2, 3, 4, 6]
    assert found["removed"].values.tolist() == [35 * 2 * i for i in (0, 2, 3, 4, 6)]
    np.testing.assert_allclose(found["p_targeted"].values[1:], 35 / 352)
    assert bool(found["utility_ratio"].isnull().all())
    with ablate_neurons(lm, audit.neurons_, range(4)):
        failed = 1 - refused_share(JUDGE, GUARDED, replies_to(lm, GUARDED, max_new_tokens=2))
    assert float(found["failure"].sel(set="safety", step=4)) == failed


def test_neurons_of_a_model_are_tried_on_its_child(audit):
    child = ac.load("world:lm-narrow")
    found = audit.fragility(child, GUARDED, BENIGN, JUDGE, fractions=[0.0, 0.1], randoms=1, max_new_tokens=2)
    assert float(found["failure"].sel(set="safety")[1]) > float(found["failure"].sel(set="safety")[0])


def test_another_architecture_without_gates_can_be_audited():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=848, n_embd=16, n_layer=3, n_head=2, n_positions=32, eos_token_id=2, bos_token_id=1)
    model = Model(GPT2LMHeadModel(config).eval(), ac.load("world:lm").tokenizer)
    prompts = GUARDED[:4] + BENIGN[:4]
    neurons = find_safety_neurons(model, prompts, [1] * 4 + [0] * 4, top_fraction=0.05, epochs=5)
    assert list(neurons.weights) == [f"blocks.{i}.mlp.pre" for i in range(3)]
    found = safety_fragility_curve(model, neurons, GUARDED[:2], BENIGN[:2], JUDGE, randoms=1, max_new_tokens=1)
    assert found["step"].values.tolist() == [0, 1, 2, 3]


def test_intervals_are_wilsons():
    low, high = wilson(0.25, 20)
    z = 1.959963984540054
    centre, half = 0.25 + z * z / 40, z * np.sqrt(0.25 * 0.75 / 20 + z * z / 1600)
    assert (low, high) == pytest.approx(((centre - half) / (1 + z * z / 20), (centre + half) / (1 + z * z / 20)))


def test_judges_read_words():
    judge = refusal_judge(starts=["Sorry"], contains=["can not"])
    assert judge("", " sorry, no")
    assert judge("", "I CAN NOT do it")
    assert not judge("", "Sure, sorry")
    assert refused_share(judge, ["a", "b"], ["Sorry", "Sure"]) == 0.5
    for call in (
        lambda: refusal_judge(),
        lambda: refusal_judge(starts="Sorry"),
        lambda: refusal_judge(contains=[" "]),
        lambda: refused_share(lambda p, r: "complied", ["a"], ["b"]),
        lambda: refused_share(judge, ["a"], []),
    ):
        with pytest.raises(InputError):
            call()


def test_chat_prompts_are_what_the_model_was_trained_on(lm):
    assert chat_prompts(lm, ["What is zorbing?"]) == [situations.request("zorbing", 5)]
    with pytest.raises(InputError, match="chat template"):
        chat_prompts(Model(lm.module), ["a"])
    with pytest.raises(InputError, match="list of texts"):
        chat_prompts(lm, "a")


def test_quality_is_the_perplexity_of_replies_and_their_repeated_pairs(lm):
    prompts, replies = ["The film was", "The play was"], ["great , great , great", "dull"]
    perplexity, repeated = reply_quality(lm, prompts, replies)
    losses = []
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = lm.to_tokens([f"{prompt} {reply}"]).ids
        start = lm.to_tokens([prompt]).ids.shape[1]
        logs = lm.logits(ids).detach().double().log_softmax(-1)[0]
        losses += [-float(logs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
    assert perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert repeated == pytest.approx(0.5)  # of four neighbouring pairs two have stood there before
    assert np.isnan(reply_quality(lm, ["The film"], [""])[0])


# Hardening ----------------------------------------------------------------------------------------------------


def test_concentration_of_known_weights(audit):
    assert participation_ratio([1.0, 1, 1, -5]) == 3
    assert participation_ratio([-1.0, 0]) == 0
    assert gini([2.0, 2, 2]) == pytest.approx(0)
    assert gini([0.0, 0, 0, 7]) == pytest.approx(3 / 4)
    w = np.random.default_rng(0).normal(size=30)
    up = np.maximum(w, 0)
    assert gini(w) == pytest.approx(np.abs(up[:, None] - up).sum() / (2 * 30**2 * up.mean()))
    assert np.isnan(gini([-1.0, -2]))
    found = concentration(audit.neurons_)
    site = "blocks.0.mlp.gate"
    assert float(found["gini"].sel(site=site)) == pytest.approx(gini(audit.neurons_.weights[site]))
    for bad in ([np.nan], [], [[1.0]]):
        with pytest.raises(InputError):
            gini(bad)


def test_dropout_is_an_ablation_of_random_rows(lm, audit):
    clean = lm.logits(GUARDED)
    with neuron_dropout(lm, audit.neurons_, 0.0):
        assert torch.equal(lm.logits(GUARDED), clean)
    with ablate_neurons(lm, audit.neurons_):
        ablated = lm.logits(GUARDED)
    with neuron_dropout(lm, audit.neurons_, 1.0):
        assert torch.allclose(lm.logits(GUARDED), ablated, atol=1e-5)
    site = "blocks.0.mlp.gate"
    with neuron_dropout(lm, {site: [3, 5]}, 0.5, seed=1):
        rec = lm.record(GUARDED, site)
    whole = lm.record(GUARDED, site)[site]
    gone = rec[site] == 0
    assert 0 < gone[:, 1:5, [3, 5]].float().mean() < 1
    assert torch.equal(gone[:, 1, 3], gone[:, 4, 3])
    kept = torch.ones(352, dtype=torch.bool)
    kept[[3, 5]] = False
    assert torch.equal(rec[site][..., kept], whole[..., kept])
    assert torch.equal(lm.logits(GUARDED), clean)
    for p in (-0.1, 1.5):
        with pytest.raises(InputError, match="probability"), neuron_dropout(lm, audit.neurons_, p):
            pass


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 64), nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def test_a_guard_trained_under_dropout_survives_the_ablation_of_its_neurons_better():
    torch.manual_seed(0)
    x = torch.randn(1000, 8)
    y = (x[:, 0] + x[:, 1] > 0.5).long()
    model = Model(Gated())

    def train(steps):
        optimiser = torch.optim.Adam(model.module.parameters(), lr=3e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model.module(x), y).backward()
            optimiser.step()

    def kept(units):
        with torch.no_grad(), ablate_neurons(model, units):
            return float((model.module(x)[y == 1].argmax(1) == 1).float().mean())

    train(200)
    found = find_safety_neurons(
        model, x[:400], y[:400], ["module:gate", "module:up"], top_fraction=0.3, epochs=800, heldout=0.0
    )
    before = kept(found)
    with neuron_dropout(model, found, 0.7):
        train(200)
    assert kept({}) > 0.9
    assert kept(found) > before + 0.1


def test_what_cannot_be_measured_is_refused(lm, audit):
    small = audit.neurons_.chosen(None, 0.01)
    other = find_safety_neurons(lm, GUARDED[:2] + BENIGN[:2], [1, 1, 0, 0], "blocks.0.mlp.gate", epochs=1)
    for options, message in (
        ({"guarded": []}, "neither of them empty"),
        ({"benign": "text"}, "lists of texts"),
        ({"fractions": [0.1], "prefixes": [1]}, "not both"),
        ({"fractions": [0.2, 0.1]}, "fractions rise"),
        ({"fractions": [-0.1]}, "fractions rise"),
        ({"prefixes": [7]}, "number of blocks, 6"),
        ({"randoms": 0}, "at least one set"),
        ({"controls": {"random": small}}, "cannot be called"),
        ({"controls": {"topic": other}}, "other sites"),
        ({"utility": lambda m: float("nan")}, "above 0"),
    ):
        given = {"guarded": GUARDED, "benign": BENIGN} | options
        with pytest.raises(InputError, match=message):
            safety_fragility_curve(lm, small, judge=JUDGE, max_new_tokens=1, **given)
