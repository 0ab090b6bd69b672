"""Activation patching against gates with known answers, plain sweeps written out, and the ends of its scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import Coincidence, Gate, Parallel, Suppressed, gate_task, linear_task, random_task, task_of

import architectures
from actinium.circuits import Node, detect, patch
from actinium.circuits.patching.effects import Effects, Runs, effect_of
from actinium.core import edits
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import METRICS
from actinium.core.model import Model
from actinium.core.task import Task

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "bloom", "opt", "falcon-alibi", "mixtral", "mamba")


def inputs_of(task: Task, corrupt: bool = False) -> Tokens:
    return Tokens(task.corrupt_ids if corrupt else task.clean_ids, task.mask, torch.arange(len(task)))


def logit_diff(model: Model, task: Task, inputs: Tokens) -> torch.Tensor:
    with torch.no_grad():
        logits = model.logits(inputs)[:, -1].double()
    rows = torch.arange(len(task))
    return logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]


# Gates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "mode", "patched", "effect"),
    [("and", "noise", 0.0, 1.0), ("and", "denoise", 0.0, 0.0), ("or", "noise", 1.0, 0.0), ("or", "denoise", 1.0, 1.0)],
)
def test_noising_finds_both_inputs_of_an_and_gate_and_denoising_both_of_an_or_gate(gate, mode, patched, effect):
    found = patch(Model(Gate(gate)), gate_task(), at=["module:a", "module:b"], over="layer", mode=mode)
    assert found.data["patched"].values.tolist() == [patched, patched]
    assert found.data["effect"].values.tolist() == [effect, effect]


def test_two_redundant_inputs_are_found_by_noising_only_as_a_pair():
    sets = {"a": "module:a", "b": "module:b", "both": ["module:a", "module:b"]}
    found = patch(Model(Gate("or")), gate_task(), at=sets, mode="noise")
    assert dict(zip(found.data["set"].values, found.data["effect"].values, strict=True)) == {"a": 0, "b": 0, "both": 1}


def test_linear_model_adds_up_and_scores_alike_in_both_modes():
    model, task = Model(Parallel()), linear_task()
    parts = [f"module:parts.{i}" for i in range(4)]
    one = patch(model, task, at=parts, over="layer").data["effect"].values
    other = patch(model, task, at=parts, over="layer", mode="noise").data["effect"].values
    pair = patch(model, task, at={"pair": parts[1:3]}).data["effect"].values
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(pair, one[1] + one[2], atol=1e-5)
    assert one.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_component_that_lowers_the_answer_shows_in_logits_and_not_in_probabilities():
    task = task_of([[1]], [[0]], [1], [0])
    found = {
        metric: patch(Model(Suppressed()), task, at="module:negative", over="layer", metric=metric)
        for metric in ("prob", "logit_diff")
    }
    assert abs(float(found["prob"].data["effect"][0])) < 0.02
    assert float(found["logit_diff"].data["effect"][0]) == pytest.approx(-3.0 / 9.0)


# Ends of the scale ----------------------------------------------------------------------------------------------

SWEEPS = [
    ("blocks.*.resid_pre", "pos"),
    ("blocks.*.resid_post", "layer"),
    ("blocks.*.attn.z", "head"),
    ("blocks.*.attn.{q,z}", "head_pos"),
    ("blocks.*.attn.v", "pos"),
    ("blocks.*.attn.pattern", "head"),
    ("blocks.*.attn.scores", "head_pos"),
    ("blocks.1.mlp.post", "unit"),
    (["embed", "blocks.1.attn.out", "final_norm"], "pos"),
]


@pytest.mark.parametrize(("at", "over"), SWEEPS)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_patching_a_run_with_itself_changes_nothing(at, over, mode):
    given = random_task(padding=(2,))
    task = task_of(given.clean_ids, given.clean_ids, given.answer_ids, given.wrong_ids, given.mask)
    found = patch(architectures.shared("llama"), task, at=at, over=over, mode=mode, normalise=False)
    assert np.abs(found.data["effect"].values).max() == 0.0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_embeddings_or_the_last_stream_at_all_positions_are_the_other_run(name, mode):
    model, task = architectures.shared(name), random_task(padding=(0, 1) if name != "mamba" else ())
    found = patch(model, task, at=["embed", f"blocks.{model.n_layers - 1}.resid_post"], over="layer", mode=mode)
    np.testing.assert_allclose(found.data["effect"].values, 1.0, atol=2e-5)
    end = patch(model, task, at="blocks.-1.resid_post", over="pos", positions=[-1], mode=mode)
    np.testing.assert_allclose(end.data["effect"].values, 1.0, atol=2e-5)


@pytest.mark.parametrize("metric", ["logit_diff", "prob", "logprob", "kl"])
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_every_metric_is_1_when_everything_is_patched_and_0_when_nothing_is(metric, mode):
    model, task = architectures.shared("gpt2"), random_task(changed=3)
    everything = patch(model, task, at="blocks.0.resid_pre", over="layer", mode=mode, metric=metric)
    assert float(everything.data["effect"][0]) == pytest.approx(1.0, abs=1e-4)
    before = patch(model, task, at="blocks.*.resid_post", over="pos", positions=[0, 1, 2], mode=mode, metric=metric)
    assert np.abs(before.data["effect"].values).max() == 0.0
    if metric == "kl":
        assert float(everything.data["m_clean"]) == 0.0


def test_rank_and_accuracy_reach_those_of_the_other_run(lm, ioi):
    for metric in ("rank", "accuracy"):
        found = patch(lm, ioi, at="blocks.-1.resid_post", over="pos", positions=[-1], metric=metric)
        assert float(found.data["effect"][0, 0]) == 1.0
        assert float(found.data["patched"][0, 0]) == float(found.data["m_clean"])


# Against sweeps written out -------------------------------------------------------------------------------------


def plainly(model, task, mode, site, positions=None, heads=None, units=None):
    """Ratio of means from three runs, with nothing but `record` and `edit`."""
    clean, corrupt = inputs_of(task), inputs_of(task, corrupt=True)
    base, source = (corrupt, clean) if mode == "denoise" else (clean, corrupt)
    value = model.record(source, site)[site]
    if site.endswith("scores"):
        value = value.clamp_min(-1e30)
    with model.edit({site: edits.Replace(value).at(positions=positions, heads=heads, units=units)}):
        patched = logit_diff(model, task, base)
    ends = logit_diff(model, task, base).mean(), logit_diff(model, task, source).mean()
    return float((patched.mean() - ends[0]) / (ends[1] - ends[0]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_sweep_equals_the_runs_written_out(name, mode):
    model, task = architectures.shared(name), random_task(changed=2)
    for part in ("resid_pre", "attn.out", "mlp.out"):
        found = patch(model, task, at=f"blocks.*.{part}", over="pos", mode=mode).data["effect"]
        assert found.dims == ("layer", "pos")
        for layer, pos in ((0, 2), (1, 4), (2, 6)):
            expected = plainly(model, task, mode, f"blocks.{layer}.{part}", positions=[pos])
            assert float(found[layer, pos]) == pytest.approx(expected, abs=5e-5)
    for part, dim in (("q", "head"), ("k", "kv_head"), ("v", "kv_head"), ("z", "head"), ("pattern", "head")):
        found = patch(model, task, at=f"blocks.*.attn.{part}", over="head", mode=mode).data["effect"]
        assert found.dims == ("layer", dim)
        expected = plainly(model, task, mode, f"blocks.1.attn.{part}", heads=[1])
        assert float(found[1, 1]) == pytest.approx(expected, abs=5e-5)
    found = patch(model, task, at="blocks.*.attn.z", over="head_pos", mode=mode).data["effect"]
    assert found.dims == ("layer", "head", "pos")
    expected = plainly(model, task, mode, "blocks.0.attn.z", positions=[3], heads=[2])
    assert float(found[0, 2, 3]) == pytest.approx(expected, abs=5e-5)
    found = patch(model, task, at="blocks.0.mlp.post", over="unit", units=[3, 40], mode=mode).data["effect"]
    assert float(found[0, 1]) == pytest.approx(plainly(model, task, mode, "blocks.0.mlp.post", units=[40]), abs=5e-5)


def test_padded_prompts_score_as_the_same_prompts_alone(lm, ioi):
    """Positions count from the end where lengths differ, and each effect is over the rows that have the position."""
    lengths = ioi.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    found = patch(lm, ioi, at="blocks.{2,3}.resid_pre", over="pos").data
    assert found["pos"].values.tolist() == list(range(-int(lengths.max()), 0))
    longest = [i for i, n in enumerate(lengths.tolist()) if n == int(lengths.max())]
    alone = patch(lm, ioi[longest], at="blocks.{2,3}.resid_pre", over="pos").data
    first = int(-lengths.max())
    assert found["n_rows"].sel(pos=first).values.tolist() == [len(longest)] * 2
    np.testing.assert_allclose(found["effect"].sel(pos=first), alone["effect"].sel(pos=0), atol=1e-5)
    values = [plainly(lm, ioi, "denoise", "blocks.2.resid_pre", positions=[-5])]
    np.testing.assert_allclose(found["effect"].sel(layer=2, pos=-5), values[0], atol=1e-5)


def test_named_positions_may_differ_between_rows(lm, ioi):
    ends = ioi.mask.shape[1] - ioi.subject.int().argmax(1)
    found = patch(lm, ioi, at="blocks.*.resid_pre", positions={"giver": -ends, "end": -1})
    assert found.data["pos"].values.tolist() == ["giver", "end"]
    effect = found.data["effect"]
    assert float(effect.sel(layer=0, pos="giver")) == pytest.approx(1.0, abs=1e-5)
    assert float(effect.sel(layer=5, pos="end")) == pytest.approx(
        plainly(lm, ioi, "denoise", "blocks.5.resid_pre", positions=[-1]), abs=1e-5
    )


def test_effect_is_the_ratio_of_means_and_rows_are_kept_on_request():
    model, task = architectures.shared("llama"), random_task(rows=4)
    found = patch(model, task, at="blocks.1.attn.z", over="head", by_row=True).data
    clean, corrupt = found["clean_by_row"].values, found["corrupt_by_row"].values
    patched = found["patched_by_row"].values
    assert patched.shape == (1, 4, 4)
    of_means = (patched.mean(-1) - corrupt.mean()) / (clean.mean() - corrupt.mean())
    np.testing.assert_allclose(found["effect"].values, of_means, rtol=1e-6)
    means_of = ((patched - corrupt) / (clean - corrupt)).mean(-1)
    assert np.abs(of_means - means_of).max() > 1e-3
    np.testing.assert_allclose(found["patched"].values, patched.mean(-1), rtol=1e-6)


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("metric", ["kl", "rank", "logit_diff"])
def test_without_normalising_an_effect_towards_the_other_run_is_positive(lm, ioi, mode, metric):
    found = patch(
        lm, ioi, at="blocks.-1.resid_post", over="pos", positions=[-1], mode=mode, metric=metric, normalise=False
    )
    gap = abs(float(found.data["m_clean"]) - float(found.data["m_corrupt"]))
    assert float(found.data["effect"][0, 0]) == pytest.approx(gap, rel=1e-5)


def test_a_metric_of_ones_own_equals_the_named_one():
    model, task = architectures.shared("gpt2"), random_task()
    named = patch(model, task, at="blocks.*.mlp.out", metric="logit_diff")
    own = patch(model, task, at="blocks.*.mlp.out", metric=lambda *args: METRICS["logit_diff"](*args))
    np.testing.assert_array_equal(named.data["effect"].values, own.data["effect"].values)


def test_rows_in_batches_give_the_same_effects(lm, ioi):
    whole = patch(lm, ioi, at="blocks.*.attn.out")
    parts = patch(lm, ioi, at="blocks.*.attn.out", batch_size=3)
    np.testing.assert_allclose(whole.data["effect"], parts.data["effect"], atol=1e-5)


# Ablations ------------------------------------------------------------------------------------------------------


def test_zero_and_mean_ablation_equal_the_runs_written_out():
    model, task = architectures.shared("llama"), random_task()
    clean, corrupt = inputs_of(task), inputs_of(task, corrupt=True)
    reference = architectures.token_ids(5, 7, seed=3)
    site = "blocks.1.mlp.out"
    values = model.record(reference, site)[site]
    ends = logit_diff(model, task, clean).mean(), logit_diff(model, task, corrupt).mean()
    cases = [
        ({"ablation": "zero"}, torch.zeros(7, architectures.D_MODEL)),
        ({"ablation": "mean", "reference": reference}, values.mean((0, 1)).expand(7, -1)),
        ({"ablation": "mean", "reference": reference, "per_position": True}, values.mean(0)),
    ]
    for options, value in cases:
        found = patch(model, task, at=site, mode="noise", **options).data["effect"]
        for pos in (0, 5):
            with model.edit({site: edits.Replace(value[pos]).at(positions=[pos])}):
                patched = logit_diff(model, task, clean).mean()
            expected = float((patched - ends[0]) / (ends[1] - ends[0]))
            assert float(found[0, pos]) == pytest.approx(expected, abs=5e-5)


def test_resampling_from_a_reference_uses_other_rows_and_follows_the_seed():
    model, task = architectures.shared("llama"), random_task(rows=4)
    at = {"all": "blocks.*.resid_post"}
    runs = [patch(model, task, at=at, mode="noise", reference=task, seed=s, by_row=True) for s in (0, 0, 1)]
    values = [r.data["patched_by_row"].values for r in runs]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 0
    logits = model.logits(inputs_of(task))[:, -1].double().detach()
    # The last stream of row j scored with the answers of row i, for some j other than i.
    scores = logits[:, task.answer_ids] - logits[:, task.wrong_ids]
    for i, value in enumerate(values[0][0]):
        others = [float(scores[j, i]) for j in range(4) if j != i]
        assert min(abs(value - o) for o in others) < 1e-4


# Around it ------------------------------------------------------------------------------------------------------


def hooks_of(model: Model) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(m, kind)) for m in model.module.modules() for kind in kinds)


def test_no_hook_is_left_after_a_sweep_or_after_one_that_fails():
    model, task = Model(architectures.build("llama")), random_task()
    patch(model, task, at="blocks.*.attn.{q,pattern,z}", over="head", heads=[0])
    assert hooks_of(model) == 0

    def fails(*args):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        patch(model, task, metric=fails)
    assert hooks_of(model) == 0


def test_the_code_block_of_the_design_runs(tmp_path):
    import actinium as ac

    model = ac.load("world:lm")
    task = ac.world.tasks.ioi(model, n=64)
    effect = ac.circuits.patch(model, task, at="blocks.*.resid_pre", over="pos")
    axes = effect.plot()
    assert axes.get_xticklabels()[-1].get_text() == "to -1"
    assert "m_clean" in axes.get_title() and "denoise" in axes.get_title()
    table = effect.table()
    assert list(table.columns[:3]) == ["layer", "pos", "effect"]
    assert set(table.columns) >= {"token", "patched", "m_clean", "m_corrupt"}
    effect.save(tmp_path / "effect.zarr")
    again = Effects.load(tmp_path / "effect.zarr")
    assert again == effect and again.provenance == effect.provenance


def test_three_axes_are_drawn_as_stacked_rows():
    found = patch(architectures.shared("gpt2"), random_task(), at="blocks.*.attn.z", over="head_pos")
    axes = found.plot()
    assert axes.get_ylabel() == "layer.head"
    assert axes.images[0].get_array().shape == (12, 7)


def test_equal_calls_have_equal_provenance_and_other_settings_another():
    model, task = architectures.shared("gpt2"), random_task()
    one, two = (patch(model, task).provenance for _ in range(2))
    assert one == two
    assert patch(model, task, mode="noise").provenance != one


def test_detect_finds_signed_deviations_of_more_than_two_standard_deviations():
    import xarray as xr

    values = np.zeros((4, 5))
    values[1, 2], values[3, 4] = 2.0, -1.6
    found = detect(xr.DataArray(values, dims=("layer", "head"), name="effect"))
    mean, sd = values.mean(), values.std()
    np.testing.assert_allclose(found.data["z"], (values - mean) / sd)
    expected = np.sign(values) * (np.abs(values - mean) > 2 * sd)
    np.testing.assert_array_equal(found.data["found"], expected)
    assert found.data["found"].values[1, 2] == 1 and found.data["found"].values[3, 4] == -1
    still = detect(xr.DataArray(np.full(6, 0.3), dims="layer"))
    assert not still.data["found"].values.any()
    with pytest.raises(InputError, match="three effects"):
        detect(xr.DataArray([1.0, 2.0], dims="layer"))


def test_a_node_may_be_a_pattern_with_restrictions():
    model, task = architectures.shared("llama"), random_task()
    both = patch(model, task, at={"all": Node("blocks.*.attn.z", heads=[0, 1], positions=[2, 3])})
    listed = [Node(f"blocks.{i}.attn.z", heads=[0, 1], positions=[2, 3]) for i in range(model.n_layers)]
    assert both == patch(model, task, at={"all": listed})


def test_a_set_holds_what_both_runs_share_even_when_another_of_its_nodes_changes():
    """With `a` restored alone `b` speaks up (0.5 x 10); a set with both keeps `b` at the silence of both runs."""
    sets = {"a": "module:a", "b": "module:b", "both": ["module:a", "module:b"]}
    found = patch(Model(Coincidence()), task_of([[1, 0]], [[0, 1]], [1], [0]), at=sets)
    assert found.data["effect"].values.tolist() == [6.0, 0.0, 1.0]


def test_rows_that_do_not_differ_have_no_normalised_effect():
    clean, corrupt = torch.tensor([3.0, 5.0, 1.0]).double(), torch.tensor([3.0 + 1e-6, 1.0, 0.0]).double()
    patched = torch.tensor([[3.0, 5.0, 0.5], [3.5, 1.0, 1.0]]).double()
    present = torch.tensor([[True, False, False], [False, True, True]])
    effect = effect_of(Runs(clean, corrupt, patched, present, "denoise"), True, "logit_diff")
    assert torch.isnan(effect[0])
    assert float(effect[1]) == pytest.approx((1.0 - 0.5) / (3.0 - 0.5))
