"""Causal mediation: the formula, its limits at everything and nothing, and what it does not answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from toys import Parallel, random_task, task_of

import architectures
from actinium.circuits import (
    Node,
    causal_mediation,
    equation_positions,
    indirect_effect,
    patch,
    relative_importance,
    repeated_names,
    top_overlap,
)
from actinium.core.edits import Replace
from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.core.loading import load
from actinium.core.model import Model
from actinium.core.task import Task
from actinium.world import tasks

WRITERS = ("blocks.*.attn.out", "blocks.*.mixer.out", "blocks.*.mlp.out")
CHANCES = st.floats(1e-6, 1.0)


def answered(model: Model, padding=(), rows=3, seed=0) -> Task:
    """Random prompts with the model's own first choices as answers, so that it is never at chance."""
    task = random_task(rows=rows, padding=padding, seed=seed)
    with torch.no_grad():
        clean, corrupt = (model.logits(ids)[:, -1].argmax(-1) for ids in (task.clean_ids, task.corrupt_ids))
    return dataclasses.replace(task, answer_ids=clean, wrong_ids=corrupt)


@pytest.fixture(scope="module")
def pairs():
    """A model, and pairs that it tells apart."""
    model = architectures.shared("llama")
    task = answered(model, rows=12)
    apart = (task.answer_ids != task.wrong_ids).nonzero().flatten().tolist()
    assert len(apart) >= 4
    return model, task[apart]


@pytest.fixture(scope="module")
def sums(lm):
    return tasks.arithmetic(lm, n=12, both=True)


@pytest.fixture(scope="module")
def found(lm, sums):
    return causal_mediation(lm, sums, positions=equation_positions(sums), by_row=True)


def test_the_formula_gives_the_number_worked_out_by_hand():
    assert float(indirect_effect(0.6, 0.1, 0.2, 0.5)) == pytest.approx(3.0, abs=1e-12)
    assert float(indirect_effect(0.6, 0.1, 0.2, 0.5, "difference")) == pytest.approx(0.4)
    assert float(indirect_effect(0.6, 0.1, 0.2, 0.5, "sum")) == pytest.approx(0.8)
    assert float(indirect_effect(0.6, 0.1, 0.2, 0.5, "log")) == pytest.approx(0.5 * np.log(5 * 3))
    assert float(indirect_effect(0.6, 0.6, 0.2, 0.2, "single")) == pytest.approx(0.4)
    # (x - 1)^2 / 2x with x = 1/3.
    assert float(indirect_effect(0.6, 0.6, 0.2, 0.2, "reduced")) == pytest.approx(2 / 3)


@given(CHANCES, CHANCES, CHANCES, CHANCES)
def test_effect_is_zero_without_change_and_at_least_minus_one(r, other, new_r, new_other):
    for form in ("relative", "difference", "sum", "log", "single", "reduced"):
        assert float(indirect_effect(r, other, r, other, form)) == 0.0
    assert float(indirect_effect(r, other, new_r, new_other)) >= -1.0
    assert float(indirect_effect(r, other, new_r, new_other, "reduced")) >= 0.0
    forward = float(indirect_effect(r, other, new_r, new_other))
    # The other way round, r' is the answer of the first prompt.
    assert float(indirect_effect(new_other, new_r, other, r)) == pytest.approx(forward, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gptj", "mamba"])
def test_everything_exchanged_is_the_total_effect_and_leaves_no_direct_one(name):
    model = architectures.shared(name)
    task = answered(model, rows=6)
    apart = task[(task.answer_ids != task.wrong_ids).nonzero().flatten().tolist()]
    everything = [s for s in ("embed", *WRITERS) if model.has(s)]
    nodes = {"everything": everything, "nothing that differs": Node("embed", positions=0)}
    got = causal_mediation(model, apart, nodes, by_row=True, margin=0.0)
    total = float(got["total"])
    assert abs(total) > 1e-3
    assert got["indirect"].values == pytest.approx([total, 0.0], rel=1e-3, abs=1e-6)
    assert got["direct"].values == pytest.approx([0.0, total], rel=1e-3, abs=1e-3 * abs(total))


def test_total_effect_is_that_of_the_pair_the_other_way_round(lm, sums):
    turned = dataclasses.replace(
        sums,
        clean_ids=sums.corrupt_ids,
        corrupt_ids=sums.clean_ids,
        answer_ids=sums.wrong_ids,
        wrong_ids=sums.answer_ids,
    )
    at = "blocks.5.mlp.out"
    one, other = (causal_mediation(lm, t, at, positions=[-1]) for t in (sums, turned))
    assert float(one["total"]) == pytest.approx(float(other["total"]), rel=1e-9)


def test_effects_are_those_of_edited_passes_over_the_full_vocabulary(lm, sums, found):
    with torch.no_grad():
        rec = lm.record(sums.corrupt_ids, "blocks.3.mlp.out")
        clean = lm.logits(sums.clean_ids)[:, -1].double().softmax(-1)
        with lm.edit({"blocks.3.mlp.out": Replace(rec["blocks.3.mlp.out"]).at(positions=[-1])}):
            new = lm.logits(sums.clean_ids)[:, -1].double().softmax(-1)
    rows = torch.arange(len(sums))
    p, q = (clean[rows, ids] for ids in (sums.answer_ids, sums.wrong_ids))
    p_new, q_new = (new[rows, ids] for ids in (sums.answer_ids, sums.wrong_ids))
    expected = 0.5 * ((q_new - q) / q + (p - p_new) / p_new)
    place = {"part": "mlp.out", "layer": 3, "pos": "last"}
    np.testing.assert_allclose(found["indirect_by_row"].sel(place), expected, rtol=1e-3, atol=1e-4)
    assert float(found["indirect"].sel(place)) == pytest.approx(float(expected.mean()), rel=1e-3)
    assert float(found["indirect_median"].sel(place)) == pytest.approx(float(np.median(expected)), rel=1e-3)
    assert float(found["log_indirect"].sel(place)) == pytest.approx(np.log1p(float(expected.mean())), rel=1e-3)


def test_log_form_is_half_the_fall_of_the_logit_difference(lm, sums):
    got = causal_mediation(lm, sums, "blocks.*.mlp.out", positions=[-1], effect="log", direct=False)
    drop = -patch(lm, sums, "blocks.*.mlp.out", positions=[-1], mode="noise", normalise=False)["effect"]
    np.testing.assert_allclose(got["indirect"], -0.5 * drop, rtol=1e-4, atol=1e-4)
    assert "direct" not in got.data and "log_indirect" not in got.data


def test_last_mlp_before_the_last_token_has_no_effect(found):
    before = found["indirect"].sel(part="mlp.out", layer=5).drop_sel(pos="last")
    np.testing.assert_allclose(before, 0.0, atol=1e-4)
    assert (found["desired"].sel(part="mlp.out", layer=5).drop_sel(pos="last") == 0).all()
    # Nothing before the first number differs, and nothing is run there.
    assert (found["indirect"].sel(pos="before") == 0).all()


def test_rates_count_predictions_that_change(lm, sums, found):
    assert float(found["total_desired"]) == float(found["accuracy_corrupt"]) == 1.0
    assert float(found["total_undesired"]) == float(found["accuracy_clean"]) == 1.0
    assert (found["desired"] <= found["undesired"]).all()
    assert float(found["desired"].max()) > 0.3


def test_a_class_of_positions_has_the_mean_over_its_tokens_before_the_logarithm(lm, sums):
    at = ["blocks.{0,3}.mlp.out", "blocks.{0,3}.attn.out"]
    each = causal_mediation(lm, sums, at, direct=False)
    places = {"numbers": torch.tensor([[1, 3]]).expand(len(sums), -1), "end": -1}
    both = causal_mediation(lm, sums, at, positions=places, direct=False)
    mean = each["indirect"].sel(pos=[1, 3]).mean("pos")
    np.testing.assert_allclose(both["indirect"].sel(pos="numbers"), mean, rtol=1e-6)
    np.testing.assert_allclose(both["log_indirect"].sel(pos="numbers"), np.log1p(mean), rtol=1e-6)
    # A position that a row lacks does not count.
    wide = places["numbers"].clone()
    wide[1:, 1] = 99
    some = causal_mediation(lm, sums, at, positions={"numbers": wide}, direct=False, by_row=True)
    rows = causal_mediation(lm, sums, at, positions=[1, 3], direct=False, by_row=True)["indirect_by_row"]
    np.testing.assert_allclose(some["indirect_by_row"][..., 0, 0], rows[..., 0].mean("pos"), rtol=1e-6)
    np.testing.assert_allclose(some["indirect_by_row"][..., 0, 1:], rows.sel(pos=1)[..., 1:], rtol=1e-6)


def test_worked_examples_are_left_out_of_the_sweep(lm):
    task = tasks.arithmetic(lm, n=8, both=True, shots=2)
    prefix = 1 + 2 * 6
    got = causal_mediation(lm, task, "blocks.0.mlp.out", prefix=prefix, direct=False)
    assert got["pos"].values.tolist() == list(range(prefix, prefix + 4))
    places = equation_positions(task, prefix)
    assert list(places) == ["operand 1", "between", "operand 2", "last"]
    named = causal_mediation(lm, task, "blocks.0.mlp.out", positions=places, direct=False)
    np.testing.assert_allclose(named["indirect"], got["indirect"], rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="prefix is between"):
        causal_mediation(lm, task, prefix=99)
    with pytest.raises(InputError, match="positions="):
        causal_mediation(lm, task, prefix=1, positions=[-1])


def test_parts_of_an_equation_stand_where_the_words_say(lm):
    task = Task.from_prompts(lm.tokenizer, ["The sum of 23 and 45 is"], ["The sum of 12 and 30 is"], ["68"], ["42"])
    places = {name: value.tolist() for name, value in equation_positions(task).items()}
    words = {name: [task.clean_tokens[0][i].strip() for i in value[0]] for name, value in places.items()}
    assert words == {
        "before": ["<bos>", "The", "sum", "of"],
        "operand 1": ["23"],
        "between": ["and"],
        "operand 2": ["45"],
        "last": ["is"],
    }
    with pytest.raises(InputError, match="two numbers"):
        equation_positions(tasks.facts(lm, n=2))
    moved = Task.from_prompts(lm.tokenizer, ["23 + 45 = = ="], ["= 23 + 45 = ="], ["68"], ["42"])
    with pytest.raises(InputError, match="mean the same"):
        equation_positions(moved)


def test_a_number_of_several_tokens_ends_at_its_last_one():
    ids = torch.arange(3, 10)[None]
    task = dataclasses.replace(task_of(ids, ids + 1, [5], [6]), clean_tokens=[["1", "2", "+", "3", "4", "5", "="]])
    task = dataclasses.replace(task, corrupt_tokens=task.clean_tokens)
    places = {name: value.tolist()[0] for name, value in equation_positions(task).items()}
    assert places == {"before": [0], "operand 1": [1], "between": [2, 3, 4], "operand 2": [5], "last": [6]}


def test_pairs_of_one_result_need_a_form_of_one_answer(lm):
    task = tasks.arithmetic(lm, n=8, same_result=True)
    with pytest.raises(InputError, match="same result twice"):
        causal_mediation(lm, task)
    got = causal_mediation(lm, task, positions=equation_positions(task), effect="single", by_row=True)
    assert "desired" not in got.data and (got["indirect"] >= 0).all()
    # Whole streams exchanged: the answer is the same and hardly moves.
    assert float(got["total"]) < 0.2
    reduced = causal_mediation(lm, task, positions=[-1], effect="reduced", direct=False)
    assert (reduced["indirect"] > -1e-9).all()


def test_shares_add_up_to_one(found):
    everything = {"part": "mlp.out"}
    assert relative_importance(found, everything) == pytest.approx(1.0)
    parts = [relative_importance(found, {"layer": [layer]}) for layer in found["layer"].values]
    assert sum(parts) == pytest.approx(1.0)
    logs = np.log1p(np.maximum(found["indirect"].sel(part="mlp.out").values, -1 + 1e-6))
    late = logs[3:, list(found["pos"].values).index("last")].sum() / logs.sum()
    assert relative_importance(found) == pytest.approx(late)
    mask = found["indirect"].notnull() & (found["part"] == "mlp.out") & (found["layer"] >= 3)
    assert relative_importance(found, mask) == pytest.approx(sum(parts[3:]))
    raised = np.log1p(np.maximum(found["indirect"].sel(part="mlp.out").values, 0.1))
    late = raised[3:, list(found["pos"].values).index("last")].sum() / raised.sum()
    assert relative_importance(found, floor=0.1) == pytest.approx(late)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": {"layers": 1}}, "layer"),
        ({"subset": {"layer": 9}}, "no 9 on the axis"),
        ({"subset": {"part": "attn.out"}}, "none of the subset"),
        ({"floor": -1.0}, "above -1"),
    ],
)
def test_shares_of_what_is_not_there_are_refused(found, options, message):
    with pytest.raises(InputError, match=message):
        relative_importance(found, **options)


def test_shares_of_nothing_are_refused(found):
    flat = xr.DataArray(np.zeros((2, 3)), dims=("layer", "pos"), coords={"layer": [0, 1], "pos": [0, 1, 2]})
    with pytest.raises(InputError, match="adds up to 0"):
        relative_importance(flat)
    with pytest.raises(InputError, match="not among those that count"):
        relative_importance(found, found["indirect"].notnull())
    with pytest.raises(InputError, match="axis 'pos'"):
        relative_importance(flat.isel(pos=0, drop=True))
    with pytest.raises(InputError, match="bool array"):
        relative_importance(flat, flat)


def test_top_neurons_overlap_wholly_with_themselves(lm, sums):
    at = "blocks.5.mlp.out"
    units = causal_mediation(lm, sums, at, "unit", positions=-1, units=list(range(24)), direct=False)
    assert units["indirect"].dims == ("layer", "unit")
    assert top_overlap(units, units, 5) == 1.0
    values = units["indirect"]
    assert top_overlap(values, -values, 24) == 1.0
    best = set(np.argsort(-values.values.ravel())[:6])
    worst = set(np.argsort(values.values.ravel())[:6])
    assert top_overlap(values, -values, 6) == len(best & worst) / 6
    with pytest.raises(InputError, match="k goes from 1 to 24"):
        top_overlap(units, units, 25)
    with pytest.raises(InputError, match="different sites"):
        top_overlap(values, values[:, :3], 2)


def test_heads_and_embeddings_are_sites_like_others(lm, sums):
    heads = causal_mediation(lm, sums, "blocks.{0,3}.attn.pattern", "head", direct=False)
    assert heads["indirect"].dims == ("layer", "head") and heads["indirect"].shape == (2, 8)
    got = causal_mediation(
        lm, sums, ["embed", "blocks.5.mlp.out"], positions={"operand 1": 1, "last": -1}, direct=False
    )
    assert float(got["indirect"].sel(site="embed", pos="operand 1")) > 1.0
    assert float(got["indirect"].sel(site="embed", pos="last")) == 0.0
    assert relative_importance(got, {"pos": "last"}) == pytest.approx(1.0, abs=1e-4)


def test_rows_in_batches_give_the_same_numbers(lm):
    task = tasks.facts(lm, n=8)
    assert len(set(task.mask.sum(1).tolist())) > 1
    one, other = (
        causal_mediation(lm, task, "blocks.*.mlp.out", positions=[-2, -1], batch_size=size) for size in (None, 3)
    )
    for name in ("indirect", "direct", "total", "desired"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5)


def test_a_result_draws_and_comes_back(found, tmp_path):
    axes = found.plot()
    assert "relative, total effect" in axes.get_title()
    again = type(found).load(found.save(tmp_path / "found.zarr"))
    assert again == found and again.heading() == found.heading()


def test_what_has_no_meaning_is_refused(pairs):
    model, task = pairs
    with pytest.raises(UnknownNameError, match="relative"):
        causal_mediation(model, task, effect="relativ")
    with pytest.raises(UnknownNameError, match="relative"):
        indirect_effect(0.1, 0.1, 0.1, 0.1, "relativ")
    with pytest.raises(InputError, match="from 0 to 1"):
        indirect_effect(1.2, 0.1, 0.1, 0.1)
    with pytest.raises(SiteError, match="resid_pre"):
        causal_mediation(model, task, "blocks.*.resid_pree")
    with pytest.raises(InputError, match="same length"):
        causal_mediation(model, dataclasses.replace(task, corrupt_ids=task.corrupt_ids[:, 1:]))
    with pytest.raises(InputError, match="pass answer_ids"):
        causal_mediation(model, task, answer_ids=[1, 2])
    with pytest.raises(InputError, match="integers"):
        causal_mediation(model, task, positions={"a": [0.5]})
    with pytest.raises(InputError, match="no prompt has"):
        causal_mediation(model, task, positions={"a": [99]})
    # The answers exchanged: the model is always wrong.
    turned = dataclasses.replace(task, answer_ids=task.wrong_ids, wrong_ids=task.answer_ids)
    with pytest.raises(InputError, match="where chance is"):
        causal_mediation(model, turned)


def test_answers_of_several_tokens_are_refused(lm):
    with pytest.raises(InputError, match="not one token"):
        Task.from_prompts(lm.tokenizer, ["23 + 45 ="], ["23 + 12 ="], ["68 ."], ["35"])


def test_probabilities_that_are_rounding_are_refused_and_the_log_form_is_not():
    model = Model(Parallel())
    with torch.no_grad():
        for part in model.module.parts:
            part.weight.mul_(40.0)
    clean, corrupt = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8, 9], [10, 11, 12]])
    answers, wrong = (model.logits(ids)[:, -1].argmax(-1) for ids in (clean, corrupt))
    task = task_of(clean, corrupt, answers, wrong)
    sites = ["module:parts.0", "module:parts.1"]
    with pytest.raises(InputError, match="below 1e-12 in"):
        causal_mediation(model, task, sites, "layer")
    got = causal_mediation(model, task, sites, "layer", effect="log")
    assert np.isfinite(got["indirect"]).all() and float(got["total"]) > 10
    with pytest.raises(InputError, match="divides by P"):
        indirect_effect(0.5, 1e-13, 0.5, 0.5)


def test_a_model_that_nobody_here_made_moves_a_name_to_the_last_token(outside_data):
    model = load(outside_data / "stories260K")
    task = repeated_names(model)
    name = task.subject.int().argmax(1) - task.mask.shape[1]
    got = causal_mediation(model, task, positions={"name": name, "last": -1}, effect="log", direct=False)
    attention = got["indirect"].sel(part="attn.out")
    assert float(attention.sel(pos="last").max()) > 5 * float(attention.sel(pos="name").max())
    assert float(got["indirect"].sel(part="mlp.out", pos="name", layer=4)) == pytest.approx(0.0, abs=1e-4)
    assert 0.0 < float(got["total_desired"]) <= float(got["accuracy_corrupt"])
