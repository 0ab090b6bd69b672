"""What the operators do to an activation, against closed forms, and within generation."""

from __future__ import annotations

import math

import pytest
import torch

import actinium as ac
from actinium.core.edit import Where
from actinium.core.errors import InputError
from actinium.core.passes import Pass
from actinium.core.sites import Site
from actinium.steering.operators import Affine, ClampCoordinate, Gate, PiecewiseAdd, PreserveNorm, Rotate, ScheduledAdd
from architectures import shared, token_ids


def at(rows, n=1, start=0, prompt=None):
    site = Site("blocks.0.resid_post", ("batch", "pos", "d_model"), {}, 0, "resid_post")
    prompt = None if prompt is None else torch.tensor(prompt)
    return Where(site, Pass(batch=rows, start=start, columns=start + n, prompt=prompt))


def run(edit, *rows):
    x = torch.tensor(rows, dtype=torch.float32)[:, None]
    return edit(x, at(len(rows)))[:, 0]


def test_norm_preserving_addition():
    new = run(PreserveNorm(ac.edits.Add(torch.tensor([5.0, 0.0]))), [3.0, 4.0])
    assert new[0].tolist() == pytest.approx([4.4721, 2.2361], abs=1e-4)
    assert float(new.norm()) == pytest.approx(5.0, abs=1e-5)


def test_piecewise_addition_follows_the_side():
    v = torch.tensor([1.0, 0.0])
    assert run(PiecewiseAdd(v, 2.0), [3.0, 1.0], [-3.0, 1.0]).tolist() == [[5.0, 1.0], [-5.0, 1.0]]


def test_affine_sets_the_coordinate_and_is_idempotent():
    torch.manual_seed(0)
    x, r, mean = torch.randn(6, 9), torch.randn(9), torch.randn(9)
    unit = r / r.norm()
    new = run(Affine(r, 1.5), *x.tolist())
    assert torch.allclose(new @ unit, torch.full((6,), 1.5), atol=1e-5)
    assert torch.allclose(new - (new @ unit)[:, None] * unit, x - (x @ unit)[:, None] * unit, atol=1e-5)
    ablated = run(Affine(r), *x.tolist())
    assert torch.allclose(ablated @ unit, torch.zeros(6), atol=1e-5)
    assert torch.allclose(run(Affine(r), *ablated.tolist()), ablated, atol=1e-6)
    assert torch.allclose(ablated, run(ac.edits.ProjectOut(r), *x.tolist()), atol=1e-5)
    around = run(Affine(r, 0.5, mean), *x.tolist())
    assert torch.allclose(around @ unit, (mean @ unit + 0.5).expand(6), atol=1e-5)


def test_clamped_coordinates_stay_within_limits():
    r = torch.tensor([0.0, 2.0])
    assert run(ClampCoordinate(r, max=1.0), [3.0, 4.0], [3.0, -4.0]).tolist() == [[3.0, 1.0], [3.0, -4.0]]
    assert run(ClampCoordinate(r, min=-1.0, max=1.0), [3.0, -4.0]).tolist() == [[3.0, -1.0]]


def test_rotation_keeps_the_length_and_sets_the_angle():
    e1, e2 = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    new = run(Rotate(e1, e2, math.pi / 2), [3.0, 4.0, 12.0])
    assert new[0].tolist() == pytest.approx([0.0, 5.0, 12.0], abs=1e-5)
    assert run(Rotate(e1, e2, math.pi / 2, adaptive=True), [-3.0, 4.0, 12.0])[0].tolist() == [-3.0, 4.0, 12.0]
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    turned = run(Rotate(torch.randn(3), torch.randn(3), torch.linspace(0, 3, 5)), *x.tolist())
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1), atol=1e-5)


@pytest.mark.parametrize("name", ["piecewise", "affine", "rotate"])
def test_rows_have_strengths_of_their_own(name):
    torch.manual_seed(0)
    v, w = torch.randn(4), torch.randn(4)
    make = {
        "piecewise": lambda s: PiecewiseAdd(v, s),
        "affine": lambda s: Affine(v, s),
        "rotate": lambda s: Rotate(v, w, s),
    }[name]
    x, strengths = torch.randn(3, 4), torch.tensor([0.5, -1.0, 2.0])
    together = run(make(strengths), *x.tolist())
    alone = torch.cat([run(make(float(s)), row.tolist()) for s, row in zip(strengths, x, strict=True)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("operator", ["add", "piecewise"])
def test_as_many_rows_as_dimensions_are_no_vector(operator):
    model = shared("llama")
    rows, site = model.d_model, "blocks.2.resid_post"
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.linspace(-9, 9, rows)})
    ids, strengths = token_ids(rows, 4), torch.linspace(-1, 1, rows)
    beams = {"max_new_tokens": 2, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    with ac.steering.steer(model, vector, strengths, operator=operator):
        whole = model.record(ids, site)[site]
        assert torch.allclose(model.record(ids, site, batch_size=5)[site], whole, atol=1e-5)
        written = model.generate(ids, **beams)
        with pytest.raises(InputError, match=f"{rows} values do not fit a batch of 3"):
            model.logits(ids[:3])
    for row in (0, rows - 1):
        with ac.steering.steer(model, vector, float(strengths[row]), operator=operator):
            assert torch.equal(model.generate(ids[row : row + 1], **beams)[0], written[row])


def test_scheduled_strengths_count_from_the_end_of_each_prompt():
    x = torch.zeros(2, 4, 1)
    edit = ScheduledAdd(torch.ones(1), lambda steps: 10.0 + steps)
    new = edit(x, at(2, n=4, prompt=[2, 3]))[..., 0]
    assert new.tolist() == [[0.0, 10.0, 11.0, 12.0], [0.0, 0.0, 10.0, 11.0]]
    later = edit(x[:, :1], at(2, n=1, start=4, prompt=[2, 3]))[..., 0]
    assert later.tolist() == [[13.0], [12.0]]
    rows = ScheduledAdd(torch.tensor([[1.0], [2.0]]), torch.ones_like)(x, at(2, n=4, prompt=[2, 3]))[..., 0]
    assert rows.tolist() == [[0.0, 1.0, 2.0, 2.0], [0.0, 0.0, 1.0, 2.0]]


def test_a_gate_edits_only_rows_where_the_condition_holds():
    gate = Gate(ac.edits.Zero(), lambda where: torch.tensor([True, False]))
    x = torch.randn(2, 3, 4)
    new = gate(x, at(2, n=3))
    assert float(new[0].abs().max()) == 0 and torch.equal(new[1], x[1])
    with pytest.raises(InputError, match="condition"):
        Gate(ac.edits.Zero(), lambda where: torch.ones(3))(x, at(2, n=3))


@pytest.mark.parametrize("options", [{"use_cache": True}, {"use_cache": False}, {"num_beams": 3}])
@pytest.mark.parametrize("operator", ["add", "preserve_norm", "piecewise", "ablate_and_add"])
def test_each_prompt_generates_as_it_does_alone(operator, options):
    model = shared("llama")
    ids = token_ids(2, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.linspace(-9, 9, model.d_model)})
    strengths = torch.tensor([0.25, 1.0])
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, **options}
    with ac.steering.steer(model, vector, strengths, operator=operator):
        both = model.generate(ids, **greedy)
    for row, strength in enumerate(strengths.tolist()):
        with ac.steering.steer(model, vector, strength, operator=operator):
            assert torch.equal(model.generate(ids[row : row + 1], **greedy)[0], both[row])


def test_schedules_give_the_same_with_a_cache_and_without():
    model, ids = shared("llama"), token_ids(2, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.linspace(-9, 9, model.d_model)})
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    got = []
    for use_cache in (True, False):
        with ac.steering.steer(model, vector, schedule=lambda steps: 1 / (1 + steps.clamp(min=0).float())):
            got.append(model.generate(ids, **greedy, use_cache=use_cache))
    assert torch.equal(*got) and not torch.equal(got[0], model.generate(ids, **greedy))


def test_assisted_decoding_gives_the_steered_models_text():
    model, ids = shared("llama"), token_ids(1, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.linspace(-9, 9, model.d_model)})
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with ac.steering.steer(model, vector):
        plain = model.generate(ids, **greedy)
        assisted = model.generate(ids, **greedy, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, assisted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Affine(torch.zeros(3)),
        lambda: Affine(torch.ones(3), math.nan),
        lambda: Affine(torch.ones(3), 0.0, torch.ones(2)),
        lambda: PiecewiseAdd(torch.tensor([1.0, math.inf])),
        lambda: ClampCoordinate(torch.ones(3)),
        lambda: ClampCoordinate(torch.ones(3), 2.0, 1.0),
        lambda: Rotate(torch.ones(3), -torch.ones(3), 0.0),
        lambda: Rotate(torch.ones(3), torch.ones(2), 0.0),
        lambda: ScheduledAdd(torch.ones(3), 1.0),
    ],
)
def test_senseless_operators_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_steering_arguments_that_do_not_go_together_are_refused():
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.ones(128)})
    edits = ac.steering.steering_edits
    with pytest.raises(ac.errors.UnknownNameError, match="preserve_norm"):
        edits(vector, operator="preserve-norm")
    with pytest.raises(InputError, match="schedule"):
        edits(vector, operator="ablate", schedule=torch.ones_like)
    with pytest.raises(InputError, match="reference"):
        edits(vector, operator="affine")
    with pytest.raises(InputError, match="finite"):
        edits(vector, math.inf)
    with pytest.raises(ac.errors.SiteError):
        edits(vector, sites="blocks.7.resid_post")


def test_strength_zero_and_a_finished_block_change_nothing():
    model, ids = shared("gpt2"), token_ids(2, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.ones(32)})
    plain = model.logits(ids)
    with ac.steering.steer(model, vector, 0.0):
        assert torch.equal(model.logits(ids), plain)
    with ac.steering.steer(model, vector, 5.0):
        assert not torch.equal(model.logits(ids), plain)
    assert torch.equal(model.logits(ids), plain)


def test_a_strength_that_makes_nan_is_stopped():
    model, ids = shared("gpt2"), token_ids(1, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.ones(32)})
    with ac.steering.steer(model, vector, 1e38), pytest.raises(InputError, match="lower the strength"):
        model.logits(ids)


def test_a_model_without_a_last_norm_is_watched_at_its_last_block():
    model, ids = shared("opt-350m"), token_ids(1, 5)
    assert not model.has("final_norm")
    end = [site.name for site in model.sites("blocks.*.resid_post")][-1]
    vector = ac.steering.SteeringVector({end: torch.full((model.d_model,), 3e38)})
    with ac.steering.steer(model, vector, 4.0), pytest.raises(InputError, match="lower the strength"):
        model.logits(ids)


def test_relative_strength_is_a_ratio_of_lengths():
    model, ids = shared("gpt2"), token_ids(2, 5)
    vector = ac.steering.SteeringVector({"blocks.1.resid_post": torch.ones(32)})
    found = ac.steering.relative_strength(model, vector, ids, -2.0)["blocks.1.resid_post"]
    rows = model.record(ids, "blocks.1.resid_post")["blocks.1.resid_post"][:, 1:]
    assert found == pytest.approx(2 * math.sqrt(32) / float(rows.norm(dim=-1).mean()), rel=1e-5)
