"""Circuits of two tasks: none where the tasks are one, opposite signs where they change places, and held-out tests."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from toys import random_task

import architectures
from actinium.circuits import (
    Node,
    TaskCircuits,
    TaskContrast,
    cohens_d,
    double_dissociation,
    neuron_selectivity,
    patch,
    selective_ablation,
    selectivity_index,
    split_tasks,
    task_selectivity,
    task_signals,
)
from actinium.circuits.reading.dissociation import matched_set
from actinium.circuits.reading.task_neurons import d_prime
from actinium.core.edits import Mean, Zero
from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.loading import load
from actinium.core.metrics import logit_diff
from actinium.core.task import Task
from actinium.papers import reproduce
from actinium.world import tasks as world

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
Z, LAYERS = "blocks.*.attn.z", ["blocks.*.attn.out", "blocks.*.mlp.out"]


@pytest.fixture(scope="module")
def both(lm):
    return {"recall": world.facts(lm, n=24), "sums": world.arithmetic(lm, n=24)}


@pytest.fixture(scope="module")
def heads(lm, both):
    return task_selectivity(lm, both)


def answered(model, rows=24, seed=0) -> Task:
    """Random prompts with the model's first choices as answers."""
    task = random_task(rows=rows, seed=seed)
    with torch.no_grad():
        clean = model.logits(task.clean_ids)[:, -1].argmax(-1)
    return dataclasses.replace(task, answer_ids=clean, wrong_ids=(clean + 7) % architectures.VOCAB)


def test_score_is_the_patching_effect_and_the_test_is_welchs(lm, both, heads):
    examples = []
    for name, task in both.items():
        found = patch(lm, task, Z, "head", by_row=True).data
        np.testing.assert_allclose(heads["score"].sel(task=name), found["effect"], rtol=1e-9)
        gap = float(found["m_clean"] - found["m_corrupt"])
        examples.append((found["patched_by_row"] - found["corrupt_by_row"]).values / gap)
    np.testing.assert_allclose(heads["selectivity"], heads["score"][0] - heads["score"][1])
    test = stats.ttest_ind(*examples, axis=-1, equal_var=False)
    np.testing.assert_allclose(heads["p"], test.pvalue, rtol=1e-6)
    np.testing.assert_allclose(heads["q"], stats.false_discovery_control(test.pvalue.ravel()).reshape(6, 8), rtol=1e-6)
    inside = (heads["low"] <= heads["selectivity"]) & (heads["selectivity"] <= heads["high"])
    assert float(inside.mean()) > 0.9
    assert float((heads["q"] < 0.05).sum()) >= 3


def test_exchanged_names_turn_the_sign_and_leave_the_index(lm, both, heads):
    turned = {name: both[name] for name in reversed(both)}
    other = task_selectivity(lm, turned)
    np.testing.assert_allclose(other["selectivity"], -heads["selectivity"], atol=1e-12)
    np.testing.assert_allclose(other["low"], -heads["high"], atol=1e-9)
    assert {k: _plain(v) for k, v in other.circuits().items()} == {k: _plain(v) for k, v in heads.circuits().items()}
    circuits = heads.circuits().nodes
    one, two = (double_dissociation(lm, tasks, circuits) for tasks in (both, turned))
    assert float(one["index"]) == pytest.approx(float(two["index"]), abs=1e-12)


def _plain(nodes):
    return [(n.site, n.heads) for n in nodes]


def test_two_equal_tasks_select_nothing(lm, both):
    same = task_selectivity(lm, {"a": both["recall"], "b": both["recall"]})
    assert (same["selectivity"] == 0).all() and (same["q"] == 1).all()
    assert [len(nodes) for nodes in same.circuits().values()] == [0, 0]
    neurons = neuron_selectivity(lm, {"a": both["recall"], "b": both["recall"]}, "blocks.{0,3}.mlp.post")
    assert (neurons["selectivity"] == 0).all() and (neurons["q"] == 1).all() and (neurons["index"] == 0).all()


def test_circuits_are_the_most_selective_with_an_interval_on_their_side(heads):
    circuits = heads.circuits(k=3)
    scores, low, high = (heads[v].values for v in ("selectivity", "low", "high"))
    for name, sign, end in (("recall", 1, low), ("sums", -1, -high)):
        places = [(int(n.site.split(".")[1]), n.heads[0]) for n in circuits[name]]
        assert len(places) == 3 and all(end[place] > 0 for place in places)
        allowed = np.where(end > 0, sign * scores, -np.inf).ravel()
        assert [sign * scores[place] for place in places] == sorted(allowed, reverse=True)[:3]
    assert [len(heads.circuits()[name]) for name in circuits] == [2, 2]
    assert len(heads.circuits(share=0.001)["recall"]) == 1
    for options, message in (({"k": 0}, "k = 1"), ({"share": 0.0}, "share is above 0"), ({"k": 1, "share": 1}, "both")):
        with pytest.raises(InputError, match=message):
            heads.circuits(**options)


def test_whole_layers_have_circuits_of_a_tenth(lm, both):
    found = task_selectivity(lm, both, LAYERS)
    assert found["selectivity"].dims == ("part", "layer")
    for nodes in found.circuits().values():
        assert len(nodes) <= 1 and all(n.heads is None for n in nodes)
    mixed = task_selectivity(lm, both, ["embed", "blocks.0.mlp.out"])
    assert mixed["selectivity"].dims == ("site",)
    assert {n.site for nodes in mixed.circuits(k=2).values() for n in nodes} <= {"embed", "blocks.0.mlp.out"}


def test_empty_circuits_cost_nothing(lm, both):
    found = double_dissociation(lm, both, {"recall": [], "sums": []})
    assert (found["drop"] == 0).all() and float(found["index"]) == 0 and float(found["p"]) == 1
    lost = selective_ablation(lm, both, {"nothing": [], "much": [Node("blocks.*.mlp.out")]})
    assert (lost["drop"].sel(set="nothing") == 0).all() and (lost["drop"].sel(set="much") > 0.5).all()


def test_index_and_p_are_those_of_the_drops(lm, both):
    circuits = {"recall": [Node("blocks.0.mlp.out")], "sums": [Node(Z.replace("*", "1"), heads=[2, 3])]}
    found = double_dissociation(lm, both, circuits, n_random=24, seed=3)
    drop = found["drop"].values
    assert float(found["index"]) == pytest.approx(drop[0, 0] - drop[0, 1] + drop[1, 1] - drop[1, 0])
    chance = found["random_drop"].values
    random = chance[0, :, 0] - chance[0, :, 1] + chance[1, :, 1] - chance[1, :, 0]
    np.testing.assert_allclose(found["random_index"], random)
    assert float(found["p"]) == (1 + (random >= float(found["index"]) - 1e-9).sum()) / 25
    scale = (found["full_accuracy"] - found["chance"]).values
    np.testing.assert_allclose(found["normalised_drop"], drop / scale)
    again = selective_ablation(lm, both, {"a": circuits["recall"]})
    np.testing.assert_allclose(again["drop"][0], drop[0])
    assert found.plot().get_title().startswith("index")


def test_accuracy_is_among_the_answers_of_the_task(lm, both):
    nodes = [Node("blocks.3.attn.z", heads=[1]), Node("blocks.1.attn.z", heads=[4, 7])]
    found = selective_ablation(lm, both, {"some": nodes}, ablation="zero")
    for name, task in both.items():
        tokens = Tokens(task.clean_ids, task.mask, torch.arange(len(task)))
        among = torch.cat([task.answer_ids, task.wrong_ids]).unique()
        with torch.no_grad(), lm.edit([(n.site, Zero().at(heads=n.heads)) for n in nodes]):
            logits = lm.logits(tokens)[:, -1]
        right = among[logits[:, among].argmax(-1)] == task.answer_ids
        assert float(found["accuracy"].sel(task=name)[0]) == pytest.approx(float(right.double().mean()))
        expected = float(logit_diff(logits, task.answer_ids, task.wrong_ids).double().mean())
        assert float(found["logit_diff"].sel(task=name)[0]) == pytest.approx(expected, rel=1e-4)


def test_means_are_over_all_prompts_of_all_tasks(lm, both):
    found = selective_ablation(lm, both, {"layer": [Node("blocks.2.mlp.out")]})
    rows = [
        lm.record(Tokens(ids, task.mask, torch.arange(len(task))), "blocks.2.mlp.out")["blocks.2.mlp.out"][task.mask]
        for task in both.values()
        for ids in (task.clean_ids, task.corrupt_ids)
    ]
    mean = torch.cat(rows).mean(0)
    task = both["sums"]
    with torch.no_grad(), lm.edit({"blocks.2.mlp.out": Mean(mean)}):
        logits = lm.logits(task.clean_ids)[:, -1]
    expected = float(logit_diff(logits, task.answer_ids, task.wrong_ids).mean())
    assert float(found["logit_diff"].sel(task="sums")[0]) == pytest.approx(expected, rel=1e-3)


def test_without_heads_and_mlps_only_the_token_is_left(lm, both):
    found = selective_ablation(
        lm, both, {"all": [Node("blocks.*.attn.out"), Node("blocks.*.mlp.out")]}, ablation="zero"
    )
    for name, task in both.items():
        tokens = Tokens(task.clean_ids, task.mask, torch.arange(len(task)))
        logits = lm.unembed(lm.record(tokens, "embed")["embed"][:, -1])
        expected = float(logit_diff(logits, task.answer_ids, task.wrong_ids).detach().mean())
        assert float(found["logit_diff"].sel(task=name)[0]) == pytest.approx(expected, abs=1e-3)


def test_random_sets_have_as_many_components_of_each_site(lm):
    given = [
        Node("blocks.1.attn.z", heads=[0]),
        Node("blocks.1.attn.z", heads=[3, 5]),
        Node("blocks.4.attn.z", heads=2),
    ]
    given += [Node("blocks.2.mlp.post", units=[1, 2, 3]), Node("blocks.0.mlp.out"), Node("blocks.5.mlp.out")]
    seen = set()
    for seed in range(20):
        drawn = matched_set(lm, given, np.random.default_rng(seed))
        count = {n.site: len(set(n.heads)) for n in drawn if n.heads is not None}
        assert count == {"blocks.1.attn.z": 3, "blocks.4.attn.z": 1}
        assert [len(set(n.units)) for n in drawn if n.units is not None] == [3]
        whole = [n.site for n in drawn if n.heads is None and n.units is None]
        assert len(set(whole)) == 2 and all(site.endswith("mlp.out") for site in whole)
        seen |= {h for n in drawn if n.heads is not None for h in n.heads}
    assert seen == set(range(8))


def test_prompts_of_the_choice_are_refused_in_the_test(lm, both, heads):
    circuits = heads.circuits()
    with pytest.raises(InputError, match="on which the circuits were chosen"):
        double_dissociation(lm, both, circuits)
    for name, task in {"recall": world.facts(lm, n=60), "sums": world.arithmetic(lm, n=60)}.items():
        one, other = split_tasks({name: task}, share=0.4, seed=1)
        prompts = [{tuple(row.tolist()) for row in part[name].clean_ids} for part in (one, other)]
        assert len(one[name]) + len(other[name]) == 60 and not prompts[0] & prompts[1]
        assert len(one[name]) == pytest.approx(24, abs=3)
    again = split_tasks(both, seed=1)[0]["recall"].clean
    assert again == split_tasks(both, seed=1)[0]["recall"].clean != split_tasks(both, seed=2)[0]["recall"].clean
    with pytest.raises(InputError, match="share is between"):
        split_tasks(both, share=1.0)
    with pytest.raises(InputError, match="no prompt"):
        split_tasks({"a": both["recall"][:1]})


def test_index_of_neurons_is_between_minus_one_and_one():
    random = np.random.default_rng(0)
    one, other = random.standard_normal((2, 1000))
    index = selectivity_index(one, other)
    assert (np.abs(index) <= 1).all() and (np.sign(index) == np.sign(one - other)).all()
    assert float(selectivity_index(0.3, 0.0)) == pytest.approx(1.0, abs=1e-9)
    assert float(selectivity_index(0.0, 0.0)) == 0.0


def test_neurons_are_read_at_the_last_token(lm, both):
    at = "blocks.{1,4}.mlp.post"
    found = neuron_selectivity(lm, both, at, control=world.ioi(lm, n=24))
    raw = []
    for name, task in both.items():
        rec = lm.record(Tokens(task.clean_ids, task.mask, torch.arange(len(task))), "blocks.4.mlp.post")
        values = rec["blocks.4.mlp.post"][:, -1].double().numpy()
        raw.append(values)
        np.testing.assert_allclose(found["mean"].sel(task=name, layer=4), values.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["rate"].sel(task=name, layer=4), (values > 0).mean(0))
    difference = raw[0].mean(0) - raw[1].mean(0)
    spread = np.sqrt((raw[0].var(0, ddof=1) + raw[1].var(0, ddof=1)) / 2)
    np.testing.assert_allclose(found["selectivity"].sel(layer=4), difference / spread, rtol=1e-4)
    p = stats.ttest_ind(*raw, equal_var=False).pvalue
    np.testing.assert_allclose(found["p"].sel(layer=4), p, rtol=1e-3, atol=1e-12)
    inside = (found["low"] <= found["selectivity"]) & (found["selectivity"] <= found["high"])
    assert float(inside.mean()) > 0.9
    selective = found["q"].values < 0.05
    assert selective.sum() > 50 and not (found["polysemantic"].values & ~selective).any()
    assert float(found["polysemanticity"]) == found["polysemantic"].values.sum() / selective.sum()
    assert 0 < float(found["polysemanticity"]) < 1
    circuits = found.circuits()
    assert [len(nodes) for nodes in circuits.values()] == [7, 7] and circuits["sums"][0].units is not None


def test_d_prime_of_what_does_not_vary():
    still, moved = np.zeros((5, 2)), np.ones((5, 2))
    assert d_prime(still, still).tolist() == [0.0, 0.0]
    assert d_prime(moved, still).tolist() == [np.inf, np.inf]


def test_cohens_d_is_the_difference_in_pooled_deviations():
    random = np.random.default_rng(0)
    one, other = random.normal(1.0, 2.0, (30, 3)), random.normal(0.0, 1.0, (20, 3))
    pooled = np.sqrt((29 * one.var(0, ddof=1) + 19 * other.var(0, ddof=1)) / 48)
    np.testing.assert_allclose(cohens_d(one, other), (one.mean(0) - other.mean(0)) / pooled)
    # The two-sample t statistic with equal variances is d / sqrt(1/n + 1/m).
    np.testing.assert_allclose(cohens_d(one, other) / np.sqrt(1 / 30 + 1 / 20), stats.ttest_ind(one, other).statistic)


def test_signals_are_norms_entropy_and_attention_on_the_facts(lm, both):
    found = task_signals(lm, both, permutations=199)
    task = both["recall"]
    rec = lm.record(
        Tokens(task.clean_ids, task.mask, torch.arange(len(task))), ["blocks.*.resid_post", "blocks.*.attn.pattern"]
    )
    norm = rec["blocks.4.resid_post"][:, -1].double().norm(dim=-1).mean()
    assert float(found["mean"].sel(task="recall", signal="residual_norm", layer=4)) == pytest.approx(
        float(norm), rel=1e-5
    )
    pattern = rec["blocks.4.attn.pattern"][:, :, -1].double()
    entropy = torch.distributions.Categorical(pattern.clamp_min(1e-30)).entropy().mean()
    mean = found["mean"].sel(task="recall", layer=4)
    assert float(mean.sel(signal="attention_entropy")) == pytest.approx(float(entropy), rel=1e-4)
    mass = torch.where(task.subject[:, None], pattern, 0.0).sum(-1).mean()
    assert float(mean.sel(signal="fact_mass")) == pytest.approx(float(mass), rel=1e-4)
    assert found["head_d"].shape == (2, 6, 8) and (found["p"] > 0).all()
    everywhere = task_signals(lm, both, tokens="mean", permutations=9)
    real = rec["blocks.4.resid_post"].double().norm(dim=-1)
    by_row = torch.stack([row[m].mean() for row, m in zip(real, task.mask, strict=True)]).mean()
    got = everywhere["mean"].sel(task="recall", signal="residual_norm", layer=4)
    assert float(got) == pytest.approx(float(by_row), rel=1e-5)
    with pytest.raises(UnknownNameError, match="last"):
        task_signals(lm, both, tokens="lst")
    with pytest.raises(InputError, match="facts of recall"):
        task_signals(lm, both, facts={"recall": task.subject[:, 1:]})
    with pytest.raises(InputError, match="permutations"):
        task_signals(lm, both, permutations=0)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "mamba"])
def test_other_architectures_are_contrasted_too(name):
    model = architectures.shared(name)
    both = {"a": answered(model, seed=1), "b": answered(model, seed=2)}
    has_heads = model.has(Z)
    found = task_selectivity(model, both, Z if has_heads else "blocks.*.mixer.out", metric="prob", resamples=50)
    assert found["selectivity"].dims == (("layer", "head") if has_heads else ("layer",))
    nodes = [Node("blocks.1.attn.z", heads=[1]) if has_heads else Node("blocks.1.mixer.out")]
    lost = double_dissociation(
        model, {"a": answered(model, seed=3), "b": answered(model, seed=4)}, {"a": nodes, "b": []}
    )
    assert np.isfinite(lost["drop"]).all()
    assert "residual_norm" in task_signals(model, both, permutations=9)["signal"]
    if model.has("blocks.*.mlp.post"):
        assert neuron_selectivity(model, both, resamples=20)["selectivity"].sizes["unit"] == 48


def test_a_result_draws_and_comes_back(heads, tmp_path):
    assert "recall (above 0) or sums" in heads.plot().get_title()
    again = TaskContrast.load(heads.save(tmp_path / "heads.zarr"))
    assert again == heads
    assert {k: _plain(v) for k, v in again.circuits().items()} == {k: _plain(v) for k, v in heads.circuits().items()}
    assert again.circuits().rows == heads.circuits().rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"recall": t["recall"]}, "two tasks are contrasted"),
        (lambda t: [t["recall"], t["sums"]], "not list"),
        (lambda t: {**t, "recall": t["recall"][:19]}, "19 examples"),
        (lambda t: {**t, "recall": "texts"}, "expected a Task"),
        (lambda t: {**t, "sums": dataclasses.replace(t["sums"], answer_ids=t["sums"].wrong_ids)}, "where chance is"),
        (lambda t: {**t, "sums": dataclasses.replace(t["sums"], corrupt_ids=t["sums"].corrupt_ids[:, 1:])}, "length"),
        (lambda t: {**t, "sums": dataclasses.replace(t["sums"], corrupt_ids=t["sums"].clean_ids)}, "the same in clean"),
    ],
)
def test_tasks_that_cannot_be_contrasted_are_refused(lm, both, change, message):
    with pytest.raises(InputError, match=message):
        task_selectivity(lm, change(both))


def test_what_has_no_meaning_is_refused(lm, both):
    nodes = {"recall": [Node("blocks.0.mlp.out")], "sums": []}
    with pytest.raises(InputError, match="at least 20"):
        double_dissociation(lm, both, nodes, n_random=19)
    with pytest.raises(InputError, match="circuits are needed"):
        double_dissociation(lm, both, {"recall": [], "other": []})
    with pytest.raises(UnknownNameError, match="mean"):
        double_dissociation(lm, both, nodes, ablation="meen")
    with pytest.raises(UnknownNameError, match="zero"):
        selective_ablation(lm, both, nodes, ablation="zeros")
    with pytest.raises(SiteError, match="mlp"):
        double_dissociation(lm, both, TaskCircuits({"recall": [Node("blocks.0.mlp.outt")], "sums": []}))
    with pytest.raises(InputError, match="sets of nodes"):
        selective_ablation(lm, both, {})
    with pytest.raises(InputError, match="over all positions"):
        task_selectivity(lm, both, Z, "pos")
    with pytest.raises(InputError, match="resample"):
        task_selectivity(lm, both, resamples=0)
    with pytest.raises(InputError, match="fdr"):
        neuron_selectivity(lm, both, fdr=1.5)


def test_a_model_that_does_not_know_the_tasks_is_refused(outside_data):
    with pytest.raises(InputError, match="does not do facts and two_hop"):
        reproduce(1, model=load(outside_data / "stories260K"))
    with pytest.raises(InputError, match="numbers"):
        reproduce(31, model=load(outside_data / "stories260K"))
