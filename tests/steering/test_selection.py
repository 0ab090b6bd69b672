"""A sweep's cells against steering done by hand, its file, its front and its rule."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.steering.held_out import check_held_out, text_marks
from actinium.world.contrasts import contrast
from actinium.world.judging import declines

SITES = ["blocks.1.resid_post", "blocks.4.resid_post"]
STRENGTHS = [-1.0, 0.5, 1.0]
TEXTS = ["Ron has the job tailor.", "For Alice, the pet is frog."]


@pytest.fixture(scope="module")
def pairs():
    return contrast("refusal", n=24)


@pytest.fixture(scope="module")
def vector(lm, pairs):
    return ac.steering.extract(lm, pairs.positive, pairs.negative, SITES)


@pytest.fixture(scope="module")
def arguments(lm, pairs):
    return {
        "choices": ac.world.tasks.refusal(lm, n=8),
        "prompts": pairs.prompts[:6],
        "judge": declines,
        "texts": TEXTS,
        "tasks": [ac.world.tasks.facts(lm, n=8), ac.world.tasks.arithmetic(lm, n=8)],
        "made_from": pairs.positive + pairs.negative,
        "max_new_tokens": 4,
    }


@pytest.fixture(scope="module")
def found(lm, vector, arguments):
    return ac.steering.sweep(lm, vector, STRENGTHS, **arguments)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("strength", [-1.0, 0.0, 1.0])
def test_each_cell_is_what_steering_by_hand_gives(lm, vector, arguments, found, site, strength):
    cell = found.data.sel(site=site, strength=strength)
    task, prompts = arguments["choices"], arguments["prompts"]
    edits = {site: ac.edits.Add(vector[site], strength)}
    with lm.edit(edits), torch.no_grad():
        logits = lm.logits(task.prompts())[:, -1]
        written = lm.generate(prompts, max_new_tokens=4, do_sample=False)
    gap = ac.metrics.logit_diff(logits, task.answer_ids, task.wrong_ids)
    assert float(cell["logit_diff"]) == pytest.approx(float(gap.mean()), abs=1e-3)
    assert float(cell["choice_score"]) == pytest.approx(float(gap.sigmoid().mean()), abs=1e-4)
    assert float(cell["success"]) == pytest.approx(np.mean([declines(text) for text in written]))
    effects = ac.steering.next_token_effects(lm, prompts, edits)
    assert float(cell["kl"]) == pytest.approx(float(effects["kl"].mean()), abs=1e-3)
    assert float(cell["entropy"]) == pytest.approx(float(effects["entropy"].mean()), abs=1e-3)
    texts = ac.steering.perplexity_ratio(lm, TEXTS, edits)
    assert float(cell["perplexity_ratio"]) == pytest.approx(float(texts["ratio_of_all"]), rel=1e-4)
    mean_kl = float((texts["kl"] * texts["tokens"]).sum() / texts["tokens"].sum())
    assert float(cell["text_kl"]) == pytest.approx(mean_kl, abs=1e-5)
    lost = ac.steering.task_effects(lm, arguments["tasks"], edits)["accuracy_lost"]
    assert cell["accuracy_lost"].values == pytest.approx(lost.values)
    assert float(cell["worst_accuracy_lost"]) == pytest.approx(float(lost.max()))
    size = ac.steering.relative_strength(lm, vector, prompts, strength)[site]
    assert float(cell["relative_norm"]) == pytest.approx(size, rel=1e-5)


def test_the_vector_moves_the_refusals(found):
    here = found["success"].sel(site=SITES[0])
    assert float(here.sel(strength=1.0)) >= float(here.sel(strength=0.0)) >= float(here.sel(strength=-1.0))
    assert float(here.sel(strength=1.0) - here.sel(strength=-1.0)) > 0.5


def test_batches_and_operators_give_the_same_numbers(lm, vector, arguments):
    options = {**arguments, "texts": None, "tasks": ()}
    few, many = (
        ac.steering.sweep(lm, vector, STRENGTHS, operator="preserve_norm", positions="last", batch_size=n, **options)
        for n in (7, 64)
    )
    for name in few.data.data_vars:
        assert few[name].values == pytest.approx(many[name].values, abs=1e-4), name


def test_strength_zero_is_the_unsteered_model_under_every_operator(lm, vector, arguments, found):
    options = {**arguments, "texts": TEXTS, "tasks": (), "sites": SITES[0]}
    ablated = ac.steering.sweep(lm, vector, [1.0], operator="ablate", **options)
    for name in ("success", "logit_diff", "kl", "perplexity_ratio"):
        plain, new = (ablated[name].sel(strength=s)[0] for s in (0.0, 1.0))
        assert float(plain) == pytest.approx(float(found[name].sel(site=SITES[0], strength=0.0)), abs=1e-4)
        assert name == "success" or abs(float(new - plain)) > 1e-3


def test_a_text_is_read_as_if_written_behind_its_first_token(lm, vector):
    options = {"choices": ac.world.tasks.refusal(lm, n=2), "texts": TEXTS, "sites": SITES[0]}
    by_name = ac.steering.sweep(lm, vector, [1.0], positions="new", **options)
    edits = {SITES[0]: ac.edits.Add(vector[SITES[0]]).at(positions=slice(1, None))}
    by_hand = ac.steering.perplexity_ratio(lm, TEXTS, edits)["ratio_of_all"]
    assert float(by_name["perplexity_ratio"].sel(strength=1.0)[0]) == pytest.approx(float(by_hand), rel=1e-4)
    # What is new to the prompts has no bearing on the token behind them.
    assert float(by_name["kl"].max()) < 1e-5


def test_a_stopped_sweep_goes_on_from_its_file(lm, vector, arguments, found, tmp_path):
    path, calls = tmp_path / "sweep.jsonl", []

    def stopping(text):
        calls.append(text)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return declines(text)

    stopping.__qualname__ = declines.__qualname__
    with pytest.raises(ac.steering.SweepStopped, match="goes on from") as stopped:
        ac.steering.sweep(lm, vector, STRENGTHS, path=path, **{**arguments, "judge": stopping})
    partial = stopped.value.partial
    assert int(partial["success"].isnull().sum()) == 4
    assert partial["success"].sel(site=SITES[0]).values == pytest.approx(found["success"].sel(site=SITES[0]).values)
    assert len(partial.pareto()) >= 1
    later: list[str] = []

    def counting(text):
        later.append(text)
        return declines(text)

    counting.__qualname__ = declines.__qualname__
    whole = ac.steering.sweep(lm, vector, STRENGTHS, path=path, **{**arguments, "judge": counting})
    assert len(later) == 4 * 6
    assert whole == found
    # More strengths use what is there.
    wider = ac.steering.sweep(lm, vector, [*STRENGTHS, 2.0], path=path, **{**arguments, "judge": counting})
    assert len(later) == 4 * 6 + 2 * 6
    assert wider["success"].sel(strength=STRENGTHS).values == pytest.approx(
        found["success"].sel(strength=STRENGTHS).values
    )


def test_a_sweep_stopped_before_its_first_cell_keeps_nothing(lm, vector, arguments):
    def stopping(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        ac.steering.sweep(lm, vector, STRENGTHS, **{**arguments, "judge": stopping})
    assert not isinstance(stopped.value, ac.steering.SweepStopped)


def test_the_file_of_another_sweep_is_refused(lm, vector, tmp_path):
    path = tmp_path / "sweep.jsonl"
    task = ac.world.tasks.refusal(lm, n=2)
    ac.steering.sweep(lm, vector, [1.0], choices=task, sites=SITES[0], path=path)
    assert json.loads(path.read_text().splitlines()[1])["site"] == SITES[0]
    with pytest.raises(LoadError, match=r"another sweep \(different inputs"):
        ac.steering.sweep(lm, vector, [1.0], choices=ac.world.tasks.refusal(lm, n=3), path=path)
    path.write_text("no sweep\n")
    with pytest.raises(LoadError, match="no file of a sweep"):
        ac.steering.sweep(lm, vector, [1.0], choices=task, path=path)
    with pytest.raises(InputError, match="cannot write"):
        ac.steering.sweep(lm, vector, [1.0], choices=task, path=path / "sweep.jsonl")


def made_up(success, ratio, kl):
    dims = ("site", "strength")
    values = {"success": success, "perplexity_ratio": ratio, "kl": kl, "relative_norm": [[0.0, 1.0, 2.0]] * 2}
    data = xr.Dataset(
        {k: (dims, np.array(v)) for k, v in values.items()}, {"site": ["a", "b"], "strength": [0.0, 1.0, 2.0]}
    )
    return ac.steering.Sweep(data, "sweep", "caa", {"seed": None})


@pytest.fixture(scope="module")
def grid():
    return made_up(
        [[0.1, 0.6, 0.9], [0.1, 0.6, 0.5]], [[1.0, 1.2, 3.0], [1.0, 1.1, 1.3]], [[0, 0.5, 2.0], [0, 0.5, math.nan]]
    )


def test_the_front_holds_what_nothing_beats(grid):
    front = grid.pareto(costs=["perplexity_ratio"])
    assert list(zip(front["site"], front["strength"], strict=True)) == [("a", 2.0), ("b", 1.0), ("a", 0.0)]
    assert front["success"].tolist() == [0.9, 0.6, 0.1]


def test_the_front_is_that_of_comparing_all_cells(found):
    front = found.pareto("logit_diff", ["kl", "perplexity_ratio"])
    cells = found.data[["logit_diff", "kl", "perplexity_ratio"]].to_dataframe().reset_index()
    rows = [(r.site, r.strength, -r.logit_diff, r.kl, r.perplexity_ratio) for r in cells.itertuples()]
    rows = [r for r in rows if r[1] or r[0] == SITES[0]]
    kept = {
        r[:2]
        for r in rows
        if not any(all(o[i] <= r[i] for i in (2, 3, 4)) and any(o[i] < r[i] for i in (2, 3, 4)) for o in rows)
    }
    assert set(zip(front["site"], front["strength"], strict=True)) == kept


def test_the_best_cell_is_the_highest_within_the_limits(grid):
    assert (grid.best().site, grid.best().strength) == ("a", 2.0)
    best = grid.best("success", at_most={"perplexity_ratio": 1.15})
    assert (best.site, best.strength, float(best["success"])) == ("b", 1.0, 0.6)
    assert best.provenance["rule"] == {"highest": "success", "at_most": {"perplexity_ratio": 1.15}, "at_least": {}}
    assert grid.best("kl", at_least={"success": 0.5}, at_most={"kl": 1.0}).strength == 1.0
    # Of equals the weaker: both sites have 0.1 at strength 0 and 0.6 at strength 1.
    assert grid.best(at_most={"success": 0.2}).strength == 0.0


def test_rules_that_no_cell_meets_say_how_near_they_come(grid):
    with pytest.raises(InputError, match=r"at most 0\.9; the nearest has 1"):
        grid.best(at_most={"perplexity_ratio": 0.9})
    with pytest.raises(InputError, match=r"at least 0\.95; the nearest has 0\.9"):
        grid.best(at_least={"success": 0.95})
    with pytest.raises(InputError, match="all limits at once"):
        grid.best(at_least={"success": 0.9}, at_most={"perplexity_ratio": 1.0})
    with pytest.raises(UnknownNameError, match="perplexity_ratio"):
        grid.best(at_most={"perplexity": 1.0})
    with pytest.raises(UnknownNameError, match="success"):
        grid.pareto("succes")


def test_a_saved_sweep_still_knows_its_best(found, tmp_path):
    again = ac.steering.Sweep.load(found.save(tmp_path / "sweep.zarr"))
    assert again == found
    one, other = (s.best(at_most={"worst_accuracy_lost": 0.5}) for s in (again, found))
    assert (one.site, one.strength) == (other.site, other.strength)
    assert found.plot().get_xlabel() == "strength"


def test_prompts_that_made_the_vector_are_refused(lm, pairs, vector):
    options = {"judge": declines, "made_from": pairs.positive + pairs.negative}
    with pytest.raises(InputError, match="also made the vector"):
        ac.steering.sweep(lm, vector, [1.0], prompts=[pairs.positive[3]], **options)
    task = ac.Task.from_prompts(lm.tokenizer, pairs.negative[:1], pairs.negative[:1], ["Sorry"], ["Sure"])
    with pytest.raises(InputError, match="also made the vector"):
        ac.steering.sweep(lm, vector, [1.0], choices=task, made_from=pairs.negative)
    # A vector that remembers its texts needs no one to name them; the answer is not part of the prompt.
    replies = contrast("refusal-reply", n=4)
    marked = ac.steering.SteeringVector(vector.directions, made={"texts": text_marks(replies.positive)})
    asked = replies.positive[0].removesuffix(" Sorry")
    with pytest.raises(InputError, match="also made the vector"):
        ac.steering.sweep(lm, marked, [1.0], prompts=[asked], judge=declines)


def test_questions_with_letters_that_made_the_vector_are_refused_everywhere(lm):
    item = {"answer_matching_behavior": "A", "answer_not_matching_behavior": "B"}
    for left, right in (("", ""), ("(", ")")):
        given = {name: f"{left}{letter}{right}" for name, letter in item.items()}
        things = [f"Is the {thing} good? A: yes B: no Answer:" for thing in ("film", "meal", "song", "game")]
        swapped = dict(zip(given, list(given.values())[::-1], strict=True))
        made, others = (
            ac.steering.ab_pairs([{"question": q, **(swapped if i % 2 else given)} for i, q in enumerate(some)])
            for some in (things[:2], things[2:])
        )
        marked = ac.steering.SteeringVector({SITES[0]: torch.ones(128)}, made={"texts": text_marks(made.positive)})
        # The brackets are no words of this tokenizer, so that prompts stand for what a task would hold.
        asked = made.prompts[0]
        task, held = (
            ac.Task.from_prompts(lm.tokenizer, [p], [p], ["A"], ["B"], name="q")
            for p in (asked.removesuffix(" ("), others.prompts[0].removesuffix(" ("))
        )
        with pytest.raises(InputError, match="also made the vector"):
            check_held_out([asked], marked.made)
        with pytest.raises(InputError, match="also made the vector"):
            ac.steering.choice_scores(lm, task, marked, [1.0])
        with pytest.raises(InputError, match="also made the vector"):
            ac.steering.evaluate_control(lm, marked, [asked], [" A"], [" A", " B"], [1.0])
        with pytest.raises(InputError, match="also made the vector"):
            ac.steering.length_sweep(lm, marked, [asked], [1.0], lambda i, text: True)
        found = ac.steering.choice_scores(lm, held, marked, [1.0])
        assert found.provenance["settings"]["held_out"] == "checked"


def test_provenance_says_whether_prompts_were_held_out(lm, vector, found):
    assert found.provenance["settings"]["held_out"] == "checked"
    free = ac.steering.SteeringVector(vector.directions)
    other = ac.steering.sweep(lm, free, [1.0], choices=ac.world.tasks.refusal(lm, n=2), sites=SITES[0])
    assert other.provenance["settings"]["held_out"].startswith("not checked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs prompts"),
        ({"prompts": ["Zoe"]}, "judge"),
        ({"judge": declines}, "needs prompts"),
        ({"prompts": "Zoe", "judge": declines}, "give a list"),
        ({"prompts": ["Zoe"], "judge": lambda text: math.nan, "max_new_tokens": 1}, "judge gave NaN"),
        ({"prompts": ["Zoe"], "judge": declines, "texts": []}, "no inputs"),
        ({"prompts": ["Zoe"], "judge": declines, "operator": "affine"}, "reference"),
    ],
)
def test_senseless_sweeps_are_refused(lm, vector, options, message):
    with pytest.raises(InputError, match=message):
        ac.steering.sweep(lm, vector, [1.0], **options)


def test_senseless_strengths_are_refused(lm, vector):
    task = ac.world.tasks.refusal(lm, n=2)
    for strengths in ([], [0.0], [math.inf]):
        with pytest.raises(InputError, match="finite strength"):
            ac.steering.sweep(lm, vector, strengths, choices=task)
    with pytest.raises(InputError, match="lower the strength"):
        ac.steering.sweep(lm, vector, [1e38], choices=task)


def test_the_affine_operator_is_swept_beside_the_unsteered_model(lm, vector, arguments):
    site = vector.sites[0]
    one = vector.only(site)
    reference = {site: torch.zeros(128)}
    found = ac.steering.sweep(lm, one, [1.0], **{**arguments, "operator": "affine", "reference": reference})
    plain = ac.steering.sweep(lm, one, [1.0], **arguments)
    assert float(found["kl"].sel(strength=0.0).squeeze()) == pytest.approx(0, abs=1e-6)
    assert float(found["kl"].sel(strength=1.0).squeeze()) != pytest.approx(
        float(plain["kl"].sel(strength=1.0).squeeze())
    )


def test_a_file_of_cells_knows_one_expression_from_another(lm, vector, arguments, tmp_path):
    one, path = vector.only(vector.sites[0]), tmp_path / "cells"
    found = ac.steering.sweep(lm, one, [1.0], path=path, **{**arguments, "judge": ac.steering.Matches(".")})
    assert found["success"].values.min() == 1
    with pytest.raises(LoadError, match="another sweep"):
        ac.steering.sweep(lm, one, [1.0], path=path, **{**arguments, "judge": ac.steering.Matches("never written")})
    with pytest.raises(InputError, match="named function"):
        ac.steering.sweep(lm, one, [1.0], path=tmp_path / "x", **{**arguments, "judge": lambda text: True})
    with pytest.raises(InputError, match="no regular expression"):
        ac.steering.Matches("(")
