"""Concepts of latents, their detection, and steering by rules: definitions, and what must not happen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import actinium as ac
import architectures
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.features.activation_reasoning.concepts import ConceptDictionary, log_decay
from actinium.features.activation_reasoning.detection import ConceptDetector, balanced_threshold
from actinium.features.activation_reasoning.labels import concept_rows
from actinium.features.activation_reasoning.reasoner import ActivationReasoner
from actinium.features.activation_reasoning.steering import RuleSteering

SITE = "blocks.1.resid_post"
IDS = torch.tensor([[1, 5, 6, 7, 8]])


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def rows(latents, n=20, m=16, seed=0):
    """Rows of small noise in which some latents are active."""
    x = drawn(n, m, seed=seed) * 0.1
    x[:, list(latents)] += 1 + drawn(n, len(latents), seed=seed + 1)
    return x


POSITIVE = {"a": rows([0, 1]), "b": rows([2, 3], seed=2), "c": rows([4, 1], seed=4)}
NEGATIVE = {name: torch.cat([rows([10], seed=9), *(v for k, v in POSITIVE.items() if k != name)]) for name in POSITIVE}


def test_weights_fall_with_the_logarithm_of_the_rank():
    assert log_decay(1).tolist() == [1.0]
    three = log_decay(3)
    assert (three / three[0]).tolist() == pytest.approx([1, 0.5, 1 - np.log(3) / np.log(4)])
    assert float(three.mean()) == pytest.approx(1) and float(log_decay(5, 0.2).sum()) == pytest.approx(1)


def test_latents_of_a_concept_are_those_whose_mean_rises_most():
    found = ConceptDictionary(top_k=3, order="original_order").fit(POSITIVE, NEGATIVE)
    for i, name in enumerate(found.concepts_):
        rise = POSITIVE[name].double().numpy().mean(0) - NEGATIVE[name].double().numpy().mean(0)
        order = np.argsort(-rise)[:3]
        kept = rise[order] > 0
        assert found.latents_[i][found.latents_[i] >= 0].tolist() == order[kept].tolist()
        assert found.weights_[i].numpy()[kept] == pytest.approx(rise[order][kept])


def test_shared_latents_come_last_or_are_dropped_and_never_become_latent_zero():
    original = ConceptDictionary(top_k=2, order="original_order").fit(POSITIVE, NEGATIVE)
    shared = [i for i in original.latents_.flatten().tolist() if original.latents_.flatten().tolist().count(i) > 1]
    assert 1 in shared
    first = ConceptDictionary(top_k=2).fit(POSITIVE, NEGATIVE)
    assert first.latents_[first.index("a")].tolist() == [0, 1] and first.latents_[first.index("c")].tolist() == [4, 1]
    only = ConceptDictionary(top_k=2, order="unique_only").fit(POSITIVE, NEGATIVE)
    assert only.latents_[only.index("c")].tolist() == [4, -1]
    assert float(only.weights_[only.index("c"), 1]) == 0
    # What latent 0 does says nothing of a concept that lost a latent.
    x = torch.zeros(1, 16)
    x[0, 0] = 5
    detector = ConceptDetector(only, latents_per_concept=2).fit()
    assert detector.detect(x).names == ("a",)


def test_a_tree_in_arrays_is_scikit_learns():
    from sklearn.tree import DecisionTreeClassifier

    x = drawn(60, 6, seed=3)
    there = (x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)
    n = min(int(there.sum()), int((~there).sum()))
    pair = {"xor": x[there][:n]}, {"xor": x[~there][:n]}
    found = ConceptDictionary(kind="tree", depth=4, seed=1).fit(*pair)
    test = drawn(200, 6, seed=5)
    random = torch.Generator().manual_seed(1)
    order = [torch.randperm(n, generator=random) for _ in range(2)]
    data = torch.cat([p["xor"][o] for p, o in zip(pair, order, strict=True)])
    tree = DecisionTreeClassifier(max_depth=4, class_weight="balanced", random_state=1)
    tree.fit(data.numpy(), np.repeat([1, 0], n))
    want = tree.predict_proba(test.numpy())[:, 1]
    assert found.tree_scores(test)[:, 0].numpy() == pytest.approx(want)
    detector = ConceptDetector(found, threshold=0.5).fit()
    assert len(detector.detect(test).propositions) == (want > 0.5).sum()


def test_scores_are_weighted_activations_of_the_largest_latents_of_a_token():
    concepts = ConceptDictionary(top_k=3, order="original_order").fit(POSITIVE, NEGATIVE)
    x = drawn(7, 16, seed=8)
    detector = ConceptDetector(concepts, 4, 2, threshold=0.1, global_threshold=0.05).fit()
    mask = torch.tensor([0, 1, 1, 1, 1, 0, 1]).bool()
    found = detector.detect(x, mask)
    w = np.array([1.0, 1 - np.log(2) / np.log(3)])
    w /= w.mean()
    raw = np.zeros((7, 3))
    for t in np.flatnonzero(mask.numpy()):
        kept = set(np.argsort(-x[t].numpy())[:4])
        for c in range(3):
            pairs = zip(w, concepts.latents_[c, :2].tolist(), strict=True)
            raw[t, c] = sum(wj * float(x[t, j]) for wj, j in pairs if j in kept)
    want = np.maximum(raw - 0.1, 0) * mask.numpy()[:, None]
    assert found.scores.numpy() == pytest.approx(want, abs=1e-6)
    assert found.global_scores.numpy() == pytest.approx(np.maximum(raw.sum(0) / 5 - 0.05, 0), abs=1e-6)
    assert {(p.position, p.concept) for p in found.propositions} == {
        (t, concepts.concepts_[c]) for t, c in zip(*np.nonzero(want), strict=True)
    }
    single = ConceptDetector(concepts, 4, 2, threshold=0.1, allow_multi=False).fit().detect(x, mask)
    assert all((row > 0).sum() <= 1 for row in single.scores)


@given(st.floats(-1, 3), st.floats(0, 2), st.booleans(), st.integers(0, 50))
@settings(max_examples=40)
def test_a_higher_threshold_never_adds_a_proposition(low, more, multi, seed):
    concepts = ConceptDictionary(top_k=2).fit(POSITIVE, NEGATIVE)
    x = drawn(6, 16, seed=seed) * 2
    raised = {"a": low + more, "b": low, "c": low}
    one, two = (ConceptDetector(concepts, 3, threshold=t, allow_multi=multi).fit().detect(x) for t in (low, raised))
    assert {(p.concept, p.position) for p in two.propositions} <= {(p.concept, p.position) for p in one.propositions}


def test_thresholds_are_between_scores_and_perfect_where_that_is_possible():
    tau, accuracy = balanced_threshold([0, 0, 0.2, 0.6, 0.9], [False, False, False, True, True])
    assert (tau, accuracy) == (pytest.approx(0.4), 1.0)
    scores = drawn(40, seed=3).numpy()
    present = drawn(40, seed=4).numpy() < scores
    tau, accuracy = balanced_threshold(scores, present)

    def balanced(t):
        return ((scores[present] > t).mean() + (scores[~present] <= t).mean()) / 2

    assert accuracy == pytest.approx(balanced(tau))
    assert accuracy == pytest.approx(max(balanced(t) for t in np.concatenate([scores, [-1.0]])))
    concepts = ConceptDictionary(top_k=2).fit(POSITIVE, NEGATIVE)
    detector = ConceptDetector(concepts, 3, threshold="auto", global_threshold="auto")
    texts = [POSITIVE["a"], POSITIVE["b"], POSITIVE["c"]]
    detector.fit(POSITIVE, NEGATIVE, texts, {n: [n == m for m in POSITIVE] for n in POSITIVE})
    assert detector.accuracy_.tolist() == [1.0] * 3
    for name, text in zip(POSITIVE, texts, strict=True):
        found = detector.detect(text)
        assert found.names == (name,) and len(found.propositions) == 20
        assert [c for c, g in zip(found.concepts, found.global_scores, strict=True) if g > 0] == [name]


# With a model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    return architectures.shared("gpt2")


@pytest.fixture(scope="module")
def sae():
    made = ac.features.ReLUSAE(24).build(32).eval()
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(32, 24, generator=torch.Generator().manual_seed(5)))
    return made


def detector_of(model, sae, threshold=0.0, top_k_output=24):
    """Two concepts: the latent that is largest at token 6 of the prompt, and another one."""
    latents = sae.encode(model.record(IDS, SITE)[SITE][0]).detach()
    best = int(latents[2].argmax())
    other = (best + 1) % 24
    there, away = torch.zeros(2, 3, 24)
    there[:, best], away[:, other] = 1, 1
    concepts = ConceptDictionary(top_k=1).fit({"six": there, "seven": away}, {"six": away, "seven": there})
    return ConceptDetector(concepts, top_k_output, threshold=threshold).fit(), best, other


def reasoner_of(model, sae, rules=("six -> seven",), threshold=0.0, **options):
    return ActivationReasoner(model, SITE, sae, detector_of(model, sae, threshold)[0], list(rules), **options)


def test_the_direction_is_the_weighted_sum_of_unit_decoder_rows(sae):
    there = torch.zeros(1, 24)
    there[0, [3, 7, 9]] = torch.tensor([3.0, 2.0, 1.0])
    concepts = ConceptDictionary(top_k=3).fit({"a": there, "b": 1 - there}, {"a": 0 * there, "b": there})
    w = np.array([1, 0.5, 1 - np.log(3) / np.log(4)])
    w /= w.sum()
    decoder = sae.W_dec.detach().double().numpy()
    for p in (1, 2):
        unit = decoder / (np.abs(decoder) ** p).sum(1, keepdims=True) ** (1 / p)
        parts = {name: w[:, None] * unit[concepts.latents_[i].numpy()] for i, name in enumerate(("a", "b"))}
        both = np.concatenate([parts["a"], parts["b"]])
        largest = both[np.abs(both).argmax(0), np.arange(32)]
        for combine, want in (("sum", both.sum(0)), ("mean", both.mean(0)), ("max", largest)):
            got = RuleSteering(concepts, sae, 3, p, combine).direction(["a", "b"])
            assert got.numpy() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, -2.0])
def test_the_last_token_moves_by_the_factor_times_its_own_norm(gpt2, sae, factor):
    reasoner = reasoner_of(gpt2, sae, factor=factor)
    clean = gpt2.record(IDS, SITE)[SITE]
    with reasoner.applied() as trace:
        steered = gpt2.record(IDS, SITE)[SITE]
    move = (steered - clean)[0]
    assert not move[:-1].any()
    assert float(move[-1].norm()) == pytest.approx(abs(factor) * float(clean[0, -1].norm()), rel=1e-5)
    direction = sae.W_dec[detector_of(gpt2, sae)[2]].detach()
    cosine = torch.nn.functional.cosine_similarity(move[-1], direction, dim=0)
    assert float(cosine) == pytest.approx(np.sign(factor), abs=1e-5)
    (step,) = trace.steps
    assert step.fired == ("six -> seven",) and step.steered == ("seven",) and step.position == 4
    assert step.norm == pytest.approx(float(move[-1].norm()), rel=1e-5)
    assert "six" in {p.concept for p in trace.propositions}


def test_factor_zero_reads_and_changes_nothing(gpt2, sae):
    reasoner = reasoner_of(gpt2, sae)
    with reasoner.applied(factor=0) as trace:
        read = gpt2.logits(IDS)
    assert torch.equal(read, gpt2.logits(IDS))
    assert trace.fired == ("six -> seven",) and trace.steps[0].norm == 0


def test_a_rule_whose_body_is_absent_does_nothing(gpt2, sae):
    reasoner = reasoner_of(gpt2, sae, threshold=1e6)
    with reasoner.applied() as trace:
        read = gpt2.logits(IDS)
    assert torch.equal(read, gpt2.logits(IDS))
    assert not trace.propositions and not trace.fired
    closed = reasoner_of(gpt2, sae, ["not six -> seven"], threshold=1e6)
    with closed.applied() as trace:
        gpt2.logits(IDS)
    assert trace.steps[0].steered == ("seven",)


def test_every_new_token_is_steered_with_and_without_a_cache(gpt2, sae):
    reasoner = reasoner_of(gpt2, sae, factor=1.5)
    options = {"max_new_tokens": 4, "min_new_tokens": 4}
    cached, whole = reasoner.generate(IDS, **options), reasoner.generate(IDS, use_cache=False, **options)
    assert torch.equal(cached.ids, whole.ids)
    assert [s.position for s in cached.trace.steps] == [4, 5, 6, 7] == [s.position for s in whole.trace.steps]
    x = gpt2.record(cached.ids[None, :-1], SITE)[SITE][0]
    assert [s.norm for s in cached.trace.steps] == pytest.approx((1.5 * x[4:].norm(dim=1)).tolist(), rel=1e-4)
    once = reasoner.generate(IDS, duration=1, **options)
    assert [s.norm > 0 for s in once.trace.steps] == [True, False, False, False]
    table = cached.trace.table()
    assert len(table) == 4 and table["fired"][0] == "six -> seven"


def test_scope_and_stickiness_decide_what_counts(gpt2, sae):
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "factor": 0}
    positions = {
        scope: {p.position for p in reasoner_of(gpt2, sae, scope=scope).generate(IDS, **options).trace.propositions}
        for scope in ("input", "output", "full_sequence")
    }
    assert positions["input"] and max(positions["input"]) < 5
    assert not positions["output"] or min(positions["output"]) >= 5
    assert positions["full_sequence"] == positions["input"] | positions["output"]
    reasoner = reasoner_of(gpt2, sae, ["not seven -> six"], scope="full_sequence", sticky=False)
    assert reasoner.conclusions(["seven"])[1] == [] and reasoner.conclusions([])[1] == ["not seven -> six"]
    ordered = reasoner_of(gpt2, sae, ["six and seven -> seven"], ordered=True)
    assert ordered.conclusions(["seven", "six"])[1] == []
    assert ordered.conclusions(["six", "seven"])[1] == ["six and seven -> seven"]


def test_questions_are_answered_from_what_a_text_holds(gpt2, sae):
    reasoner = reasoner_of(gpt2, sae, ["six -> even", "even -> not odd"], factor=0)
    value, proof = reasoner.ask(IDS, "odd")
    assert value is False and proof.steps == 2
    assert reasoner.ask(IDS, "odd or even").value is True
    assert reasoner.ask(IDS, "prime").value is None
    assert reasoner.ask(IDS, "prime", facts=["not even or prime"]).value is True
    assert reasoner.ask(IDS, "prime", facts=["prime"]).value is True


def test_a_reasoner_comes_back_from_its_json(gpt2, sae, tmp_path):
    options = {"factor": 0.7, "threshold": 0.01, "scope": "input", "sticky": False}
    reasoner = reasoner_of(gpt2, sae, ["six or seven -> seven", "six and not seven -> both"], **options)
    text = reasoner.config()
    again = ActivationReasoner.from_config(gpt2, sae, json.dumps(json.loads(text)))
    assert again.config() == text
    options = {"max_new_tokens": 3, "min_new_tokens": 3}
    one, two = reasoner.generate(IDS, **options), again.generate(IDS, **options)
    assert torch.equal(one.ids, two.ids) and one.trace == two.trace
    tree = ConceptDictionary(kind="tree").fit(POSITIVE, NEGATIVE)
    x = drawn(30, 16, seed=7)
    for back in (
        ConceptDictionary.from_config(json.loads(json.dumps(tree.config()))),
        ConceptDictionary.load(tree.save(tmp_path / "tree.safetensors")),
    ):
        assert torch.equal(back.tree_scores(x), tree.tree_scores(x)) and back.concepts_ == tree.concepts_
    for bad in ("{}", "no json", "[]"):
        with pytest.raises(LoadError, match="no reasoner"):
            ActivationReasoner.from_config(gpt2, sae, bad)


def test_words_texts_and_positions_label_rows(lm):
    site = "blocks.2.resid_post"
    made = ac.features.TopKSAE(32, 4).build(128).eval()
    texts = ["Ron has the job tailor.", "Gary keeps a hen.", "A hen keeps a tailor."]
    tokens = lm.to_tokens(texts)
    rec = lm.record(tokens, site)
    with torch.no_grad():
        f = made.encode(rec[site])
    hen = int(lm.to_tokens("hen").ids[0, -1])
    there = tokens.ids == hen
    positive, negative = concept_rows(lm, site, made, texts, {"hen": "hen"})
    assert torch.allclose(positive["hen"], f[there], atol=1e-4) and len(positive["hen"]) == 2
    ordinary = tokens.mask & (tokens.ids != lm.tokenizer.bos_token_id)
    assert len(negative["hen"]) == int(ordinary.sum()) - 2
    same, _ = concept_rows(lm, site, made, texts, {"hen": there}, "position")
    assert torch.equal(same["hen"], positive["hen"])
    whole, _ = concept_rows(lm, site, made, texts, {"tailor": [True, False, True]}, "sentence")
    assert torch.allclose(whole["tailor"][0], f[0][ordinary[0]].mean(0), atol=1e-5)
    with pytest.raises(InputError, match="present nowhere"):
        concept_rows(lm, site, made, texts, {"cow": "cow"})
    with pytest.raises(InputError, match="labels of shape"):
        concept_rows(lm, site, made, texts, {"hen": [True]}, "sentence")
    with pytest.raises(UnknownNameError, match="sentence"):
        concept_rows(lm, site, made, texts, {"hen": "hen"}, "sentense")


def test_it_runs_on_a_model_that_nobody_here_trained(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    site = f"blocks.{model.n_layers // 2}.resid_post"
    texts = ["Once upon a time there was a dog.", "The dog saw a cat.", "A cat and a dog played.", "Tom was happy."]
    rows_of = ac.features.ReLUSAE(4 * model.d_model).build(model.d_model).eval()
    pair = concept_rows(model, site, rows_of, texts, {"dog": "dog", "cat": "cat"})
    detector = ConceptDetector(ConceptDictionary().fit(*pair), 50, threshold="auto").fit(*pair)
    reasoner = ActivationReasoner(model, site, rows_of, detector, ["dog -> cat"], factor=1.0)
    out = reasoner.generate("The dog", max_new_tokens=3)
    assert out.trace.steps[0].fired == ("dog -> cat",) and out.trace.steps[0].norm > 0 and out.text


def test_what_does_not_fit_is_refused_before_work_starts(gpt2, sae):
    detector = detector_of(gpt2, sae)[0]
    with pytest.raises(InputError, match="'a' has no negatives"):
        ConceptDictionary().fit({"a": rows([0])}, {})
    with pytest.raises(InputError, match="'b' has no positives"):
        ConceptDictionary().fit({"a": rows([0])}, {"a": rows([1]), "b": rows([1])})
    with pytest.raises(InputError, match="12 entries, expected 16"):
        ConceptDictionary().fit({"a": rows([0])}, {"a": rows([1], m=12)})
    with pytest.raises(InputError, match="NaN"):
        ConceptDictionary().fit({"a": rows([0]) * torch.nan}, {"a": rows([1])})
    with pytest.raises(InputError, match="no latent is more active"):
        ConceptDictionary().fit({"a": torch.zeros(3, 4)}, {"a": torch.ones(3, 4)})
    with pytest.raises(InputError, match="no latent is active in any row"):
        ConceptDictionary(kind="tree").fit({"a": torch.zeros(3, 4)}, {"a": torch.ones(3, 4)})
    with pytest.raises(UnknownNameError, match="tree"):
        ConceptDictionary(kind="trees").fit(POSITIVE, NEGATIVE)
    with pytest.raises(InputError, match="not fitted"):
        ConceptDetector(ConceptDictionary()).fit()
    with pytest.raises(InputError, match="'auto' needs rows"):
        ConceptDetector(detector.concepts, threshold="auto").fit()
    with pytest.raises(InputError, match="all are masked"):
        detector.detect(torch.ones(3, 24), torch.zeros(3))
    with pytest.raises(InputError, match="no threshold for 'seven'"):
        ConceptDetector(detector.concepts, threshold={"six": 1.0}).fit()
    with pytest.raises(InputError, match="with and without"):
        balanced_threshold([0.0, 1.0], [True, True])

    def build(rules=("six -> seven",), d=detector, dictionary=sae, site=SITE, **options):
        return ActivationReasoner(gpt2, site, dictionary, d, list(rules), **options)

    with pytest.raises(UnknownNameError, match="did you mean 'six'"):
        build(["sixx -> seven"])
    with pytest.raises(InputError, match="not stratified"):
        build(["six and not seven -> six2", "six2 -> seven"])
    with pytest.raises(InputError, match="24 latents, but the dictionary has 8"):
        build(dictionary=ac.features.ReLUSAE(8).build(32))
    with pytest.raises(InputError, match="nothing to steer with"):
        build(["six -> unsafe"])
    with pytest.raises(InputError, match="wide"):
        build(site="blocks.1.mlp.post")
    with pytest.raises(SiteError, match="resid_post"):
        build(site="blocks.1.resid_pots")
    with pytest.raises(UnknownNameError, match="scope"):
        build(scope="prompt")
    tree = ConceptDictionary(kind="tree").fit(
        {"six": torch.eye(24), "seven": torch.eye(24)}, {"six": 1 - torch.eye(24), "seven": 1 - torch.eye(24)}
    )
    with pytest.raises(InputError, match="trees have no direction"):
        build(d=ConceptDetector(tree, threshold=0.5).fit())
    with pytest.raises(InputError, match="one text is needed"):
        build().generate(IDS.expand(2, -1))
    with pytest.raises(InputError, match="one text at a time"), build().applied():
        gpt2.logits(IDS.expand(2, -1))


def test_a_prompt_of_special_tokens_alone_is_refused(lm):
    made = ac.features.ReLUSAE(24).build(128).eval()
    there = torch.eye(24)
    concepts = ConceptDictionary(top_k=1).fit({"a": there[:1], "b": there[1:2]}, {"a": there[1:2], "b": there[:1]})
    reasoner = ActivationReasoner(lm, "blocks.2.resid_post", made, ConceptDetector(concepts).fit(), ["a -> b"])
    with pytest.raises(InputError, match="nothing but special tokens"):
        reasoner.generate(torch.tensor([[lm.tokenizer.bos_token_id]]))
