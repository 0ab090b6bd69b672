"""Rules decide for each prompt once, in every way of generating, and leave other prompts exactly as they are."""

from __future__ import annotations

import threading

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.steering.application import steer
from actinium.steering.conditional import ConditionalSteering, NormGuard
from actinium.steering.conditions import ProbeCondition, VectorCondition
from actinium.steering.decisions import Decision
from actinium.steering.vector import SteeringVector
from architectures import shared, token_ids

GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
EARLY, LATE = "blocks.0.resid_post", "blocks.1.resid_post"
WAYS = {
    "cache": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams without cache": {"num_beams": 3, "use_cache": False},
}


def conditions(model, ids, site=EARLY, read="mean"):
    """A condition that holds for about half of the prompts, and one that holds for the last alone."""
    c = SteeringVector({site: torch.linspace(-1, 1, model.d_model).sin()})
    scores = VectorCondition(c, 0.0, score="projection", read=read).scores(model, ids)[site]
    middle = float(scores.sort().values[len(ids) // 2 - 1 : len(ids) // 2 + 1].mean())
    half = VectorCondition(c, middle, score="projection", read=read)
    return half, half.holds({site: scores})


def behaviour(model, site=LATE, size=9.0):
    return SteeringVector({site: torch.linspace(-size, size, model.d_model)})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_prompt_is_steered_or_left_in_every_way_of_generating(name, way, prefill):
    model, ids = shared(name), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    vector = behaviour(model)
    steering = ConditionalSteering({"B": vector}, {"C": condition}, "if C then B", apply_on_prefill=prefill)
    options = {**GREEDY, **WAYS[way]}
    plain = model.generate(ids, **options)
    with steer(model, vector, positions="all" if prefill else "new"):
        steered = model.generate(ids, **options)
    with steering.applied(model) as now:
        got = model.generate(ids, **options)
    assert holds.tolist() != [holds[0].item()] * 4 and torch.equal(now.fired["C"], holds)
    assert torch.equal(got, torch.where(holds[:, None], steered, plain)) and not torch.equal(steered, plain)
    assert torch.allclose(now.last_scores["C"][EARLY], condition.scores(model, ids)[EARLY], atol=1e-5)
    assert torch.equal(model.generate(ids, **options), plain)


def test_sampled_sequences_of_a_prompt_share_its_decision():
    model, ids = shared("llama"), token_ids(2, 5)
    condition, holds = conditions(model, ids)
    options = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": True, "num_return_sequences": 3}
    vector = behaviour(model)
    runs = []
    for block in (ConditionalSteering({"B": vector}, {"C": condition}, "C -> B").applied(model), steer(model, vector)):
        torch.manual_seed(0)
        with block as now:
            runs.append(model.generate(ids, **options))
        if len(runs) == 1:
            assert torch.equal(now.fired["C"], holds)
    torch.manual_seed(0)
    plain = model.generate(ids, **options)
    assert torch.equal(runs[0], torch.where(holds.repeat_interleave(3)[:, None], runs[1], plain))


@pytest.mark.parametrize("row", [0, 1])
def test_assisted_decoding_gives_what_plain_decoding_gives(row):
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    row = int((holds == bool(row)).nonzero()[0])
    with steering.applied(model):
        plain = model.generate(ids[row : row + 1], **GREEDY)
        assisted = model.generate(ids[row : row + 1], **GREEDY, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, assisted)


def test_several_calls_in_one_block_are_decided_anew():
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    vector = behaviour(model)
    with steer(model, vector):
        steered = model.generate(ids, **GREEDY)
    plain = model.generate(ids, **GREEDY)
    with ConditionalSteering({"B": vector}, {"C": condition}, "if C then B").applied(model) as now:
        for rows in ([0, 1], [3], [2, 1, 0]):
            got = model.generate(ids[rows], **GREEDY)
            assert torch.equal(now.fired["C"], holds[rows])
            assert torch.equal(got, torch.where(holds[rows][:, None], steered[rows], plain[rows]))


def test_rows_of_plain_passes_in_batches_are_decided_one_by_one():
    model, ids = shared("gpt2"), token_ids(5, 6)
    condition, holds = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    plain = model.record(ids, "blocks.2.resid_post")["blocks.2.resid_post"]
    with steering.applied(model) as now:
        got = model.record(ids, "blocks.2.resid_post", batch_size=2)["blocks.2.resid_post"]
        assert torch.equal(now.fired["C"], holds)
        model.logits(ids[:2])
        assert torch.equal(now.fired["C"], holds[:2])
    changed = (got - plain).abs().amax((1, 2)) > 1e-3
    assert torch.equal(changed, holds)


def test_a_rule_that_does_not_hold_leaves_the_logits_bitwise():
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    plain = model.logits(ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    with steering.applied(model):
        got = model.logits(ids)
    assert torch.equal(got[~holds], plain[~holds]) and not torch.equal(got[holds], plain[holds])
    off = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C and not C then B")
    with off.applied(model):
        assert torch.equal(model.logits(ids), plain)
    assert torch.equal(model.logits(ids), plain)


def test_left_padded_prompts_are_decided_as_they_are_alone():
    model, ids = shared("llama"), token_ids(3, 6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    rows = [ids[0:1, 3:], ids[1:2], ids[2:3]]
    c = SteeringVector({EARLY: torch.linspace(-1, 1, model.d_model).sin()})
    for read in ("mean", "last"):
        condition = VectorCondition(c, 0.0, score="projection", read=read)
        alone = torch.cat([condition.scores(model, one)[EARLY] for one in rows])
        steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
        for use_cache in (True, False):
            with steering.applied(model) as now:
                model.generate(Tokens(ids, mask, torch.arange(3)), **GREEDY, use_cache=use_cache)
            assert torch.allclose(now.last_scores["C"][EARLY], alone, atol=1e-5)


def test_several_rules_add_up():
    model, ids = shared("gpt2"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    one, two = behaviour(model), SteeringVector({LATE: torch.cos(torch.arange(model.d_model).float())})
    steering = ConditionalSteering(
        {"B1": one, "B2": two},
        {"C": condition},
        ["if C then B1", "if C or not C then B2", "not C -> B2"],
        strength={"B1": 2.0, "B2": 3.0},
    )
    seen = model.record(ids, LATE)[LATE]
    with steering.applied(model) as now:
        got = model.record(ids, LATE)[LATE]
    times = torch.where(holds, 1.0, 2.0)[:, None, None]
    want = seen + 2 * holds[:, None, None] * one[LATE] + 3 * times * two[LATE]
    assert torch.allclose(got, want, atol=1e-4)
    assert now.behaviours["B2"].tolist() == times.flatten().tolist()
    assert now.rules["if C then B1"].tolist() == holds.tolist()


def test_a_condition_above_the_behaviour_is_refused_or_steers_what_follows():
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids, site="blocks.2.resid_post")
    vector = behaviour(model, EARLY)
    with (
        pytest.raises(InputError, match="apply_on_prefill=False"),
        ConditionalSteering({"B": vector}, {"C": condition}, "if C then B").applied(model),
    ):
        pass
    steering = ConditionalSteering({"B": vector}, {"C": condition}, "if C then B", apply_on_prefill=False)
    for options in WAYS.values():
        with steer(model, vector, positions="new"):
            steered = model.generate(ids, **GREEDY, **options)
        plain = model.generate(ids, **GREEDY, **options)
        with steering.applied(model) as now:
            got = model.generate(ids, **GREEDY, **options)
        assert torch.equal(now.fired["C"], holds)
        assert torch.equal(got, torch.where(holds[:, None], steered, plain))


def test_a_decision_by_hand_gates_any_steering():
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    decision, vector = Decision(condition), behaviour(model)
    plain = model.logits(ids)
    with pytest.raises(InputError, match="no prompt"):
        _ = decision.fired
    with decision.reading(model), steer(model, vector, operator="preserve_norm", when=decision):
        got = model.logits(ids)
    with steer(model, vector, operator="preserve_norm"):
        steered = model.logits(ids)
    assert torch.equal(decision.fired, holds)
    assert torch.allclose(got, torch.where(holds[:, None, None], steered, plain), atol=1e-5)
    # Read after the site that it decides on, it comes too late for a plain pass, also when an older one is known.
    with Decision(condition).reading(model) as late, steer(model, behaviour(model, "blocks.0.resid_pre"), when=late):
        model.logits(ids)
        assert torch.equal(model.logits(ids), plain)


@pytest.mark.parametrize("beams", [1, 2])
def test_an_encoders_condition_gates_the_decoder(beams):
    model, ids = shared("t5"), token_ids(4, 5)
    early = next(s.name for s in model.sites("**") if s.stack == "encoder" and s.part == "resid_post")
    late = next(s.name for s in model.sites("**") if s.stack == "decoder" and s.part == "resid_post")
    condition, holds = conditions(model, ids, site=early)
    vector = behaviour(model, late)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    plain = model.generate(ids, **options)
    with steer(model, vector):
        steered = model.generate(ids, **options)
    with ConditionalSteering({"B": vector}, {"C": condition}, "if C then B").applied(model) as now:
        got = model.generate(ids, **options)
    assert torch.equal(now.fired["C"], holds) and not torch.equal(steered, plain)
    assert torch.equal(got, torch.where(holds[:, None], steered, plain))


def test_threads_and_models_do_not_see_each_others_decisions():
    model, other, ids = shared("llama"), shared("gpt2"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    with steering.applied(model):
        want = model.generate(ids, **GREEDY)
    together, gate = [None] * 4, threading.Barrier(4)

    def run(row):
        with steering.applied(model) as now:
            gate.wait()
            for _ in range(3):
                got = model.generate(ids[row : row + 1], **GREEDY)
                other.generate(ids[: row + 1], **GREEDY)
            together[row] = (torch.equal(got[0], want[row]), now.fired["C"].tolist() == [bool(holds[row])])

    threads = [threading.Thread(target=run, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [(True, True)] * 4


def test_a_prompt_that_is_read_in_parts_is_refused():
    model, ids = shared("llama"), token_ids(2, 8)
    condition, _ = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    cache = model.module(ids[:, :4], use_cache=True).past_key_values
    with steering.applied(model), pytest.raises(InputError, match="whole prompt"):
        model.generate(ids, **GREEDY, past_key_values=cache)


def test_the_users_own_loop_keeps_the_decision_of_its_prompt():
    model, ids = shared("llama"), token_ids(2, 5)
    condition, holds = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B")
    with steering.applied(model) as now:
        want = model.generate(ids, **{**GREEDY, "max_new_tokens": 3})[:, -3:]
        step, cache, got = ids, None, []
        for _ in range(3):
            out = model.module(step, past_key_values=cache, use_cache=True)
            step, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            got.append(step)
        assert torch.equal(torch.cat(got, 1), want) and torch.equal(now.fired["C"], holds)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_norm_guard_brings_back_what_became_longer(use_cache):
    model, ids = shared("llama"), token_ids(4, 5)
    condition, holds = conditions(model, ids)
    steering = ConditionalSteering({"B": behaviour(model)}, {"C": condition}, "if C then B", norm_guard=True)
    plain = model.record(ids, LATE)[LATE]
    with steering.applied(model):
        got = model.record(ids, LATE)[LATE]
        text = model.generate(ids, **GREEDY, use_cache=use_cache)
    assert torch.equal(got[~holds], plain[~holds])
    added = plain + behaviour(model)[LATE]
    assert torch.allclose(
        got[holds], (added * plain.norm(dim=-1, keepdim=True) / added.norm(dim=-1, keepdim=True))[holds], atol=1e-4
    )
    with steering.applied(model):
        assert torch.equal(text, model.generate(ids, **GREEDY, use_cache=not use_cache))


def test_the_norm_guard_leaves_prompts_that_become_shorter():
    from actinium.core.edit import Where
    from actinium.core.passes import Pass
    from actinium.core.sites import Site

    where = Where(Site("blocks.0.resid_post", ("batch", "pos", "d_model"), {}, 0, "resid_post"), Pass(2, 0, 2))
    x = torch.tensor([[[4.0, 0.0], [6.0, 0.0]], [[-1.0, 0.0], [6.0, 0.0]]])
    new = NormGuard([ac.edits.Add(torch.tensor([-1.0, 0.0]))])(x, where)
    assert new[0].tolist() == [[3.0, 0.0], [5.0, 0.0]]  # no token is longer
    assert new[1].tolist() == [[-1.0, 0.0], [6.0, 0.0]]  # one is, and all are brought back
    later = Where(where.site, Pass(2, 2, 4, prompt=torch.tensor([2, 2])))
    assert NormGuard([ac.edits.Add(torch.tensor([-1.0, 0.0]))])(x, later)[1].tolist() == [[-1.0, 0.0], [5.0, 0.0]]


def test_saved_steering_does_the_same(tmp_path):
    model, ids = shared("llama"), token_ids(4, 5)
    condition, _ = conditions(model, ids)
    steering = ConditionalSteering(
        {"a b": behaviour(model), "B2": behaviour(model, "blocks.2.resid_post")},
        {"C": condition, "P": ProbeCondition(lambda rows: rows[:, 0] > 0, EARLY)},
        ['if C then "a b"', "if P then B2"],
        strength=0.5,
        sites="blocks.*.resid_post",
        norm_guard=True,
    )
    path = steering.save(tmp_path / "cast.safetensors")
    with pytest.raises(InputError, match="'P'"):
        ConditionalSteering.load(path)
    again = ConditionalSteering.load(path, {"P": steering.conditions["P"]})
    texts = []
    for one in (steering, again):
        with one.applied(model) as now:
            texts.append((model.generate(ids, **GREEDY), now.fired["C"], now.last_scores["C"][EARLY]))
    assert all(torch.equal(a, b) for a, b in zip(*texts, strict=True))
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LoadError):
        ConditionalSteering.load(tmp_path / "cut.safetensors")
    with pytest.raises(LoadError):
        SteeringVector.load(path)


def test_what_does_not_fit_is_refused():
    model = shared("llama")
    condition = VectorCondition(SteeringVector({EARLY: torch.ones(model.d_model)}), 0.1)
    parts = ({"B": behaviour(model)}, {"C": condition}, "if C then B")
    for wrong in (({}, *parts[1:]), (parts[0], {}, parts[2]), (*parts[:2], [])):
        with pytest.raises(InputError, match="needs a behaviour"):
            ConditionalSteering(*wrong)
    with pytest.raises(UnknownNameError, match="did you mean 'legal'"):
        ConditionalSteering(parts[0], {"legal": condition}, "if legl then B")
    with pytest.raises(UnknownNameError, match="behaviour 'B9'"):
        ConditionalSteering(*parts[:2], "if C then B9")
    with pytest.raises(UnknownNameError, match="strength"):
        ConditionalSteering(*parts, strength={"B9": 1.0})
    with pytest.raises(InputError, match="no strength"):
        ConditionalSteering({**parts[0], "B2": behaviour(model)}, *parts[1:], strength={"B": 1.0})
    with pytest.raises(InputError, match="finite"):
        ConditionalSteering(*parts, strength=float("nan"))
    with pytest.raises(SiteError):
        ConditionalSteering(*parts, sites="blocks.7.resid_post")
    with pytest.raises(InputError, match="SteeringVector"):
        ConditionalSteering({"B": torch.ones(3)}, *parts[1:])
    with pytest.raises(InputError, match="Condition"):
        ConditionalSteering(parts[0], {"C": 0.1}, parts[2])
    with (
        pytest.raises(InputError, match="wide"),
        ConditionalSteering({"B": SteeringVector({LATE: torch.ones(3)})}, *parts[1:]).applied(model),
    ):
        pass
    with (
        pytest.raises(InputError, match="lower the strength"),
        ConditionalSteering(*parts[:2], "if C or not C then B", strength=1e38).applied(model),
    ):
        model.logits(token_ids(1, 5))
