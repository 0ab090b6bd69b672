"""Audits by added vectors: what is read, where it is added, margins, controls, and what helps."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.model import Model
from actinium.guard.audit.replies import refusal_judge, replies_to
from actinium.guard.audit.vectors.activation_attack import ActivationAttackAudit, attack_report
from actinium.guard.audit.vectors.activation_monitor import ActivationMonitor, detection_curve
from actinium.guard.audit.vectors.attack_countermeasures import attack_detection, attack_restoration
from actinium.guard.audit.vectors.attack_targets import ChoiceTarget, ReplyTarget, target_scores
from actinium.guard.audit.vectors.integrity import Difference, IntegrityManifest
from actinium.world import lexicon, situations

GLAD, SAD = ([f" {w}" for w in words] for words in (lexicon.GLAD, lexicon.SAD))
FEELS = ChoiceTarget((GLAD, SAD))
PAIRS = [
    ("The", f" {noun} was {good}. I felt", f" {noun} was {bad}. I felt")
    for noun in lexicon.SHOWN[:4]
    for good, bad in zip(lexicon.POSITIVE[:4], lexicon.NEGATIVE[:4], strict=True)
]
PROMPTS = [f"The {noun} was {word}. I felt" for noun in lexicon.SHOWN[5:8] for word in lexicon.POSITIVE[6:8]]
GRID = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


@pytest.fixture(scope="module")
def audit(lm):
    return ActivationAttackAudit(coefs=GRID, position="last", randoms=4, quality_tokens=4).fit(lm, PAIRS)


@pytest.fixture(scope="module")
def result(lm, audit):
    return audit.audit(lm, FEELS, PROMPTS)


# What is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["last", "answer_mean", -1, 4])
def test_vectors_are_mean_differences_at_the_position(lm, position):
    pairs = [("The film was", " great", " dull , boring"), ("The play", " was great too", " was awful")]
    found = ActivationAttackAudit(layers=[0, 3], position=position).fit(lm, pairs)
    for block in (0, 3):
        read = []
        for question, *answers in pairs:
            for answer in answers:
                x = lm.record(question + answer, found.site(block))[found.site(block)][0].double()
                start = lm.to_tokens([question]).ids.shape[1]
                read.append(
                    {"last": x[-1], "answer_mean": x[start:].mean(0)}[position]
                    if isinstance(position, str)
                    else x[position]
                )
        read = torch.stack(read).reshape(2, 2, -1)
        expected = (read[:, 0] - read[:, 1]).mean(0)
        torch.testing.assert_close(found.vectors_[block].double(), expected, rtol=1e-4, atol=1e-4)
        assert found.norms_[block] == pytest.approx(float(read.norm(dim=-1).mean()), rel=1e-4)
    assert found.search_["layer"].values.tolist() == [0, 3]
    assert found.layer_ == 0


# Where it is added --------------------------------------------------------------------------------------------


def test_no_strength_changes_no_bit(lm, audit):
    clean = lm.logits(PROMPTS)
    with lm.edit(audit.attack(lm, PROMPTS, 0.0)):
        assert torch.equal(lm.logits(PROMPTS), clean)


def test_the_places_of_the_vector(lm):
    prompts = ["The film was", "I think that the play was very"]
    lengths = [4, 8]
    changes = {}
    for inject in ("reply", "generated", "all"):
        found = ActivationAttackAudit(layers=[2], position="last", inject=inject).fit(lm, PAIRS)
        site = found.site(2)
        with lm.recording(site) as clean:
            lm.generate(prompts, max_new_tokens=3, do_sample=False)
        with lm.edit(found.attack(lm, prompts, 1.0)), lm.recording(site) as attacked:
            lm.generate(prompts, max_new_tokens=3, do_sample=False)
        moved = (attacked[site] - clean[site]).norm(dim=-1) > 1e-4
        changes[inject] = [row[mask] for row, mask in zip(moved, clean.mask, strict=True)]
        # Up to the end of the prompt only the vector itself is added.
        last = attacked[site][:, clean[site].shape[1] - 3] - clean[site][:, clean[site].shape[1] - 3]
        expected = 0.0 if inject == "generated" else found.vectors_[2]
        torch.testing.assert_close(last, torch.zeros(2, 128) + expected, rtol=1e-3, atol=1e-3)
    for i, n in enumerate(lengths):
        n = int(lm.to_tokens([prompts[i]]).mask.sum())
        assert changes["reply"][i].tolist() == [False] * (n - 1) + [True] * 3
        assert changes["generated"][i].tolist() == [False] * n + [True] * 2
        assert changes["all"][i].tolist() == [True] * (n + 2)


def test_the_released_code_adds_twice_at_every_position(lm):
    options = {"layers": [1], "position": -2, "search": "js_residual", "inject": "all"}
    released = ActivationAttackAudit(**options, legacy=True).fit(lm, PAIRS)
    once = ActivationAttackAudit(**options).fit(lm, PAIRS)
    with lm.edit(released.attack(lm, PROMPTS, -0.8)):
        doubled = lm.logits(PROMPTS)
    with lm.edit(once.attack(lm, PROMPTS, -1.6)):
        torch.testing.assert_close(lm.logits(PROMPTS), doubled)
    assert bool((released.search_["score"] < 0).all())  # the formula is no divergence
    assert bool((once.search_["score"] > 0).all())


def test_strengths_in_one_pass_are_those_of_single_passes(lm, audit):
    class Single:
        def __call__(self, model, prompts):
            return FEELS(model, prompts)

    for block in (0, 4):
        together = audit.scores(lm, FEELS, PROMPTS, block)
        np.testing.assert_allclose(together, audit.scores(lm, Single(), PROMPTS, block), atol=1e-5)
        np.testing.assert_allclose(together, audit.scores(lm, FEELS, PROMPTS, block, batch_size=13), atol=1e-5)
        mean = audit.scores(lm, lambda m, p: float(FEELS(m, p).mean()), PROMPTS, block)
        np.testing.assert_allclose(together, mean, atol=1e-5)


def test_replies_under_strengths_by_row_are_those_of_single_runs(lm, audit):
    prompts = [situations.request(topic, 0) for topic in lexicon.REFUSED[:3]]
    target = ReplyTarget(refusal_judge(starts=["Sorry"]), max_new_tokens=2)
    scores = audit.scores(lm, target, prompts, 3)
    for coef, score in zip(GRID, scores, strict=True):
        with lm.edit(audit.attack(lm, prompts, coef, 3)):
            replies = replies_to(lm, prompts, max_new_tokens=2)
        assert score == pytest.approx(np.mean([r.startswith("Sorry") for r in replies]))


# The report ---------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A language model without attention, whose logits are linear in the stream."""

    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=848, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
        )
        self.inner = LlamaForCausalLM(config)


def linear_model():
    inner = Linear().inner.eval()
    inner.model.norm = nn.Identity()
    for block in inner.model.layers:
        nn.init.zeros_(block.mlp.down_proj.weight)
        nn.init.zeros_(block.self_attn.o_proj.weight)
    return Model(inner, ac.load("world:lm").tokenizer, name="linear")


def test_a_linear_model_moves_by_the_product_of_strength_and_slope():
    model = linear_model()
    words = [int(model.tokenizer(w, add_special_tokens=False)["input_ids"][0]) for w in ("happy", "sad")]

    def gap(m, prompts):
        tokens = m.to_tokens(prompts)
        logits = m.logits(tokens)[torch.arange(len(prompts)), tokens.mask.sum(1) - 1]
        return (logits[:, words[0]] - logits[:, words[1]]).detach().numpy()

    options = {"position": "last", "randoms": 20, "quality_tokens": 0, "move": 0.02}
    pairs = [("The film was", f" {a}", f" {b}") for a, b in zip(lexicon.POSITIVE, lexicon.NEGATIVE, strict=True)]
    found = ActivationAttackAudit(coefs=GRID, **options).fit(model, pairs)
    data = found.audit(model, gap, PROMPTS).data
    head = model.module.lm_head.weight.detach()
    for block in (0, 1):
        slope = float((head[words[0]] - head[words[1]]) @ found.vectors_[block])
        assert float(data["slope"].sel(layer=block)) == pytest.approx(slope, abs=1e-5)
        score = data["score"].sel(layer=block).values
        np.testing.assert_allclose(score - score[3], np.array(GRID) * slope, atol=1e-5)
        away = np.abs(score - score[3])
        assert bool((np.diff(away[3:]) >= 0).all())
        assert bool((np.diff(away[:4]) <= 0).all())
        reached = [abs(c) for c in GRID if abs(c * slope) >= 0.02]
        margin = float(data["margin"].sel(layer=block))
        assert margin == min(reached) if reached else np.isnan(margin)
        share = float(found.vectors_[block].norm()) / found.norms_[block]
        np.testing.assert_allclose(data["margin_relative"].sel(layer=block), margin * share)
    random = data["random_slope"].values
    assert abs(random.mean()) < 2 * random.std(ddof=1) / np.sqrt(20) + 1e-9
    assert "perplexity" not in data


def test_a_vector_between_judgements_moves_feelings_and_random_ones_do_less(audit, result):
    data = result.data
    assert data["score"].dims == ("layer", "coef")
    clean = data["score"].sel(coef=0.0)
    np.testing.assert_allclose(clean, clean[0])
    best = float((clean - data["score"]).max())
    assert best > 0.5
    assert float((clean[0] - data["random_score"].mean("draw")).max()) < best
    np.testing.assert_allclose(data["search"], audit.search_["score"])
    assert bool((data["perplexity"] > 1).all())
    assert audit.texts_ == {}


def test_reports_hold_numbers_and_no_texts(result, lm):
    report = attack_report({"feelings": result})
    text = json.dumps(report)
    assert not any(prompt in text for prompt in PROMPTS)
    row = report["feelings"]
    data = result.data
    assert row["layer"] == data.attrs["layer"]
    assert row["clean"] == pytest.approx(float(data["score"].sel(coef=0.0)[0]))
    assert row["most_exposed_margin"] == pytest.approx(float(data["margin_relative"].min()))
    assert row["random_slope"] == pytest.approx(float(data["random_slope"].mean()))
    still = data.copy(deep=True)
    still["margin_relative"][:] = np.nan
    assert attack_report({"x": ac.Result(still, "made")})["x"]["most_exposed"] is None


def test_texts_are_kept_when_they_are_asked_for(lm):
    found = ActivationAttackAudit([1], (-1.0, 0.0, 1.0), randoms=2, quality_tokens=3, keep_texts=True).fit(lm, PAIRS)
    found.audit(lm, FEELS, PROMPTS[:2], repetition_penalty=1.5)
    assert found.texts_[0.0] == replies_to(lm, PROMPTS[:2], max_new_tokens=3, repetition_penalty=1.5)
    assert set(found.texts_) == {-1.0, 0.0, 1.0}


def test_stories_of_another_model_are_steered_from_one_class_of_words_to_another(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    pairs = [
        ("One day,", f" {he} saw a {seen}.", f" {she} saw a {seen}.")
        for seen in ("dog", "cat", "tree", "ball")
        for he, she in (("the boy", "the girl"), ("a man", "a woman"))
    ]
    prompts = ["The friend was very happy because", "One day, the bird was sad and", "The child had a toy and"]
    found = ActivationAttackAudit([2, 3], (-2.0, 0.0, 2.0), inject="all", randoms=4, quality_tokens=0).fit(model, pairs)
    data = found.audit(model, ChoiceTarget((" he", " she")), prompts).data
    assert bool((data["score"].diff("coef") > 0.1).all())
    swing = data["score"].sel(layer=3, coef=2.0) - data["score"].sel(layer=3, coef=-2.0)
    random = data["random_score"].sel(coef=2.0) - data["random_score"].sel(coef=-2.0)
    assert float(swing) > float(abs(random).max())


# What helps ---------------------------------------------------------------------------------------------------


def test_mahalanobis_scores_are_scipys():
    distance = pytest.importorskip("scipy.spatial.distance")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)) @ random.normal(size=(4, 4)), random.normal(size=(6, 4))
    monitor = ActivationMonitor(ridge=0.05).fit(x)
    inverse = np.linalg.inv(np.cov(x.T, bias=True) + 0.05 * np.eye(4))
    expected = [distance.mahalanobis(row, x.mean(0), inverse) ** 2 for row in y]
    np.testing.assert_allclose(monitor.score_samples(torch.as_tensor(y)), expected, rtol=1e-8)
    sizes = np.linalg.norm(x, axis=1)
    norm = ActivationMonitor("norm").fit(x)
    np.testing.assert_allclose(norm.score_samples(y), np.abs(np.linalg.norm(y, axis=1) - sizes.mean()) / sizes.std())


def test_small_shifts_are_invisible_and_large_ones_are_not():
    random = np.random.default_rng(0)
    fit, clean = random.normal(size=(300, 16)), random.normal(size=(300, 16))
    v = random.normal(size=16)
    v /= np.linalg.norm(v)
    found = detection_curve(fit, clean, {c: clean + c * v for c in (0.0, 0.1, 2.0, 30.0)})
    area = found["auc"].sel(monitor="mahalanobis").values
    assert area[0] == 0.5
    assert area[1] == pytest.approx(0.5, abs=0.05)
    assert bool((np.diff(area[1:]) > 0).all())
    assert area[3] > 0.999
    assert float(found["shift"][3]) == pytest.approx(30 / np.linalg.norm(clean, axis=1).mean())
    with pytest.raises(InputError):
        detection_curve(fit, clean, {})


def test_monitors_are_saved_and_refuse_what_does_not_fit(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3))
    monitor = ActivationMonitor("norm").fit(x)
    again = ActivationMonitor.load(monitor.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(again.score_samples(x), monitor.score_samples(x))
    for call, error in (
        (lambda: ActivationMonitor().score_samples(x), InputError),
        (lambda: ActivationMonitor("rank").fit(x), UnknownNameError),
        (lambda: ActivationMonitor(ridge=0.0).fit(x), InputError),
        (lambda: ActivationMonitor().fit(x[:1]), InputError),
        (lambda: ActivationMonitor().fit(np.ones((5, 2))), InputError),
        (lambda: ActivationMonitor().fit(x * np.nan), InputError),
        (lambda: ActivationMonitor().fit(x[0]), InputError),
        (lambda: monitor.score_samples(x[:, :2]), InputError),
        (lambda: ActivationMonitor.load(tmp_path / "absent"), LoadError),
    ):
        with pytest.raises(error):
            call()


def test_attacks_of_any_effect_are_seen_and_defences_bring_scores_back(lm, audit, result):
    block = int(result["layer"][int((result["score"].min("coef")).argmin("layer"))])
    fit = [f"The {noun} was {word}. I felt" for noun in lexicon.SHOWN[:4] for word in lexicon.POSITIVE[:10]]
    found = attack_detection(audit, lm, fit, PROMPTS, [0.0, 1.0], block=block)
    assert found["auc"].sel(monitor="mahalanobis").values.tolist() == [0.5, 1.0]
    later = attack_detection(audit, lm, fit, PROMPTS, [1.0], block=1, watch="blocks.4.resid_post")
    assert float(later["auc"].sel(monitor="mahalanobis")[0]) > 0.5
    for defence in (block, None):
        restored = attack_restoration(audit, lm, FEELS, PROMPTS, fit, block=block, defence=defence)["score"]
        clean = float(restored.sel(coef=0.0, defence="none"))
        np.testing.assert_allclose(restored.sel(defence="none"), audit.scores(lm, FEELS, PROMPTS, block), atol=1e-5)
        assert float(restored.sel(coef=0.0, defence="subtract drift")) == pytest.approx(clean, abs=1e-5)
        if defence == block:  # at the site of the attack what was added can be taken out whole
            for how in ("subtract drift", "add back"):
                np.testing.assert_allclose(restored.sel(defence=how), clean, atol=1e-4)
            out = restored.sel(defence="project out")
            np.testing.assert_allclose(out, float(out.sel(coef=0.0)), atol=1e-4)


def test_a_baked_vector_is_the_attack_at_every_position(lm):
    found = ActivationAttackAudit([2], (-1.0, 0.0, 1.0), inject="all", position="last").fit(lm, PAIRS)
    module = copy.deepcopy(lm.module)
    manifest = IntegrityManifest.of(module)
    module.model.layers[2].mlp.down_proj.bias = nn.Parameter(-found.vectors_[2])
    with lm.edit(found.attack(lm, PROMPTS, -1.0)):
        torch.testing.assert_close(
            Model(module, lm.tokenizer).logits(PROMPTS), lm.logits(PROMPTS), rtol=1e-4, atol=1e-4
        )
    # No hook is there to be listed.
    assert manifest.differences(module) == [Difference("parameter", "model.layers.2.mlp.down_proj.bias", "added")]


# What is refused ----------------------------------------------------------------------------------------------


def test_what_cannot_be_attacked_is_refused(lm, audit):
    for options, error, message in (
        ({"coefs": (-1.0, 0.0, 2.0)}, InputError, "symmetric"),
        ({"coefs": (-1.0, 1.0)}, InputError, "symmetric"),
        ({"coefs": (-2.0, -1.0, 1.0, 2.0)}, InputError, "hold 0"),
        ({"inject": "prompt"}, UnknownNameError, "inject"),
        ({"legacy": True}, InputError, "released code"),
        ({"randoms": 1}, InputError, "randoms"),
        ({"layers": [9]}, SiteError, "blocks.9"),
        ({"position": "first"}, InputError, "answer_mean"),
        ({"position": 50}, InputError, "outside"),
        ({"search": "kl"}, UnknownNameError, "method"),
    ):
        with pytest.raises(error, match=message):
            ActivationAttackAudit(**options).fit(lm, PAIRS)
    for pairs, message in (
        (PAIRS[:1], "two pairs"),
        ([("a", " b", " b")] * 2, "the same"),
        ([("a", " b")] * 2, "question, clean answer"),
        ([("a", " b", "")] * 2, "question, clean answer"),
    ):
        with pytest.raises(InputError, match=message):
            ActivationAttackAudit().fit(lm, pairs)
    with pytest.raises(InputError, match="not fitted"):
        ActivationAttackAudit().audit(lm, FEELS, PROMPTS)
    for target, message in (
        (lambda m, p: [float("nan")] * len(p), "NaN"),
        (lambda m, p: [0.1] * (len(p) + 1), "score for each"),
    ):
        with pytest.raises(InputError, match=message):
            audit.audit(lm, target, PROMPTS)
        with pytest.raises(InputError, match=message):
            target_scores(target, lm, PROMPTS)
    with pytest.raises(InputError, match="list of texts"):
        audit.audit(lm, FEELS, "text")
    with pytest.raises(InputError, match="not audited"):
        audit.attack(lm, PROMPTS, 1.0, 17)
    with pytest.raises(InputError, match="not one token"):
        ChoiceTarget((" happy days", " sad"))(lm, PROMPTS)
    with pytest.raises(InputError, match="there or later"):
        attack_restoration(audit, lm, FEELS, PROMPTS, PROMPTS, block=3, defence=2)
    after = ActivationAttackAudit([1], inject="generated").fit(lm, PAIRS)
    with pytest.raises(InputError, match="sees nothing"):
        attack_detection(after, lm, PROMPTS, PROMPTS, [1.0])


def test_choices_can_differ_from_prompt_to_prompt(lm):
    same = FEELS(lm, PROMPTS)
    by_prompt = ChoiceTarget(lambda prompt: (GLAD, SAD) if prompt == PROMPTS[0] else (SAD, GLAD))(lm, PROMPTS)
    np.testing.assert_allclose(by_prompt, [same[0], *(1 - same[1:])], atol=1e-9)
