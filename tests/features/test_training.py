"""The trainer: what it learns, that it goes on exactly where it was, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, MissingExtraError, UnknownNameError
from actinium.features.training import trainer
from actinium.features.training.config import TrainConfig
from actinium.features.training.data import Rows, Running, source_of
from actinium.features.training.revival import Silence, fired_in, resample
from actinium.features.training.schedule import Signum, rate_factor, sparsity_factor

F = ac.features
SHORT = {"batch_size": 64, "rows": 64 * 12, "lr": 3e-3, "log_every": 4}


def superposed(n, seed=1, m=32, d=16):
    """Rows that are sums of few of 32 unit features in 16 dimensions, and the features."""
    directions = torch.randn(m, d, generator=torch.Generator().manual_seed(0))
    directions = directions / directions.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(seed)
    f = (torch.rand(n, m, generator=g) < 1 / 16) * (0.5 + torch.rand(n, m, generator=g))
    return f @ directions, directions


def found_share(sae, directions):
    """Mean over true features of the largest cosine to a decoder row."""
    rows = sae.W_dec.detach()
    return float((directions @ (rows / rows.norm(dim=1, keepdim=True)).T).amax(1).mean())


@pytest.fixture(scope="module")
def toy():
    return superposed(20000)


@pytest.mark.parametrize(
    ("make", "explained"),
    [
        (lambda: F.ReLUSAE(32, 0.3), 0.8),
        (lambda: F.TopKSAE(32, 2), 0.7),
        (lambda: F.BatchTopKSAE(32, 2), 0.8),
        (lambda: F.JumpReLUSAE(32, 0.03), 0.8),
        (lambda: F.GatedSAE(32, 0.3), 0.8),
        (lambda: F.MatryoshkaSAE([16, 32], 2), 0.7),
    ],
)
def test_every_architecture_finds_features_in_superposition(toy, make, explained):
    rows, directions = toy
    sae = make()
    chance = found_share(F.TopKSAE(32, 2, seed=9).build(16), directions)
    sae.fit(rows, batch_size=256, rows=700 * 256, lr=3e-3, schedule="constant", warmup=0, sparsity_warmup=0.3)
    assert sae.score(superposed(2000, seed=2)[0]) > explained
    assert found_share(sae, directions) > 0.8 > chance


def test_a_transcoder_learns_a_map_and_a_skip_takes_its_linear_part(toy):
    rows, _ = toy
    matrix = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
    x, y = rows, rows @ matrix + 0.1 * rows[:, :8].relu()
    scores = []
    for kind in (F.Transcoder, F.SkipTranscoder):
        one = kind(32, "topk", {"k": 2}).fit((x, y), batch_size=256, rows=300 * 256, lr=3e-3, schedule="constant")
        scores.append(one.score((x[:2000], y[:2000])))
    assert 0.4 < scores[0] < scores[1]


def test_several_dictionaries_in_one_pass_are_those_trained_alone(toy):
    rows, _ = toy
    kinds = [lambda: F.TopKSAE(32, 2), lambda: F.ReLUSAE(24, 0.1, b_dec_init="geometric_median")]
    together = [make() for make in kinds]
    log = F.train(together, rows, **SHORT)
    for one, make in zip(together, kinds, strict=True):
        alone = make().fit(rows, **SHORT)
        for a, b in zip(one.state_dict().values(), alone.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert log["loss"].dims == ("dictionary", "step") and log.data.sizes == {"dictionary": 2, "step": 3}
    assert bool((log["loss"].values[:, -1] < log["loss"].values[:, 0]).all())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "signum"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(toy, tmp_path, monkeypatch, optimizer):
    rows, _ = toy
    options = {
        **SHORT,
        "optimizer": optimizer,
        "checkpoint_every": 5,
        "folder": str(tmp_path / "a"),
        "revive": "resample",
    }
    options |= {"resample_every": 64 * 3, "accumulate": 2, "rows": 64 * 24, "logs": ("jsonl",), "log_every": 1}
    whole = F.BatchTopKSAE(32, 2).fit(rows, **{**options, "folder": str(tmp_path / "b")})
    step, calls = trainer._step, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(trainer, "_step", stopped)
    with pytest.raises(F.Interrupted, match="7 of 12 steps"):
        F.BatchTopKSAE(32, 2).fit(rows, **options)
    again = F.BatchTopKSAE(32, 2).fit(rows, **options)
    assert len(calls) == 8 + 12 - 5
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert again.rows_ == whole.rows_ == 64 * 24
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("a", "b")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in logs]
    assert steps[0] == steps[1] == list(range(1, 13))


def test_a_checkpoint_of_another_run_is_refused(toy, tmp_path):
    rows, _ = toy
    options = {**SHORT, "folder": str(tmp_path)}
    F.TopKSAE(32, 2).fit(rows, **options)
    for dictionary, data, more, match in (
        (F.TopKSAE(32, 3), rows, {}, "other dictionaries"),
        (F.JumpReLUSAE(32), rows, {}, "other dictionaries"),
        (F.TopKSAE(32, 2), rows * 2, {}, "other data"),
        (F.TopKSAE(32, 2), rows, {"lr": 1e-3}, r"other settings \(lr"),
    ):
        with pytest.raises(InputError, match=match):
            dictionary.fit(data, **{**options, **more})


def test_accumulated_batches_are_one_large_one(toy):
    rows, _ = toy
    options = {"rows": 64 * 8, "lr": 3e-3, "log_every": 4, "clip": None}
    a = F.ReLUSAE(32, 0.1).fit(rows, batch_size=64, accumulate=2, **options)
    b = F.ReLUSAE(32, 0.1).fit(rows, batch_size=128, **options)
    torch.testing.assert_close(a.W_dec, b.W_dec, atol=1e-5, rtol=1e-4)


def test_constrained_decoder_rows_keep_their_norm_and_free_ones_do_not(toy):
    rows, _ = toy
    unit, free = (F.ReLUSAE(32, 0.1, decoder_norm=n).fit(rows, **SHORT).W_dec.norm(dim=1) for n in ("unit", "free"))
    torch.testing.assert_close(unit, torch.ones(32), atol=1e-6, rtol=0)
    assert float((free - 1).detach().abs().max()) > 1e-3


def test_gradients_along_constrained_rows_are_taken_out():
    sae = F.ReLUSAE(600, 0.1).build(16).double()
    sae.after_step()
    sum(sae.loss(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).double())[0].values()).backward()
    before = (sae.W_dec.grad * sae.W_dec).detach().sum(1).abs().max()
    sae.before_step()
    assert float((sae.W_dec.grad * sae.W_dec).detach().sum(1).abs().max()) < 1e-12 * float(before)


def test_decoder_bias_and_scale_are_measured_before_training(toy):
    rows = toy[0] * 7 + 3
    config = TrainConfig(rows=1, batch_size=1)
    sae = F.TopKSAE(32, 2, normalize="mean_norm", b_dec_init="mean")
    run = trainer.Run(sae, config, Rows([rows]), torch.device("cpu"))
    sample = Rows([rows]).sample(config.sample, config.seed)[0]
    scale = 16**0.5 / float(sample.norm(dim=1).mean())
    assert float(run.dictionary.scale) == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(run.dictionary.b_dec.detach(), (sample * scale).mean(0), atol=1e-4, rtol=1e-4)


def test_dead_latents_are_pointed_at_what_is_reconstructed_badly():
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    x[:5] *= 100
    sae = F.ReLUSAE(32, 0.1).build(16)
    optimizer = torch.optim.Adam(sae.parameters(), 1e-3)
    sum(sae.loss(x)[0].values()).backward()
    optimizer.step()
    dead = torch.zeros(32, dtype=torch.bool)
    dead[[4, 7, 30]] = True
    before, living = sae.W_dec.detach().clone(), float(sae.W_enc.detach()[:, ~dead].norm(dim=0).mean())
    assert resample(sae, x, None, dead, optimizer, seed=0) == 3
    ways = (x[:5] - sae.b_dec).detach()
    cosine = (sae.W_dec[dead] @ (ways / ways.norm(dim=1, keepdim=True)).T).detach().amax(1)
    torch.testing.assert_close(cosine, torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.W_enc[:, dead].norm(dim=0).detach(), torch.full((3,), 0.2 * living))
    assert torch.equal(sae.b_enc[dead], torch.zeros(3))
    assert torch.equal(sae.W_dec[~dead].detach(), before[~dead])
    moments = optimizer.state[sae.W_dec]
    assert float(moments["exp_avg"][dead].abs().max()) == 0 < float(moments["exp_avg"][~dead].abs().max())
    assert float(optimizer.state[sae.W_enc]["exp_avg_sq"][:, dead].abs().max()) == 0


def test_silence_counts_rows_since_a_latent_was_active():
    silence = Silence(3, torch.device("cpu"))
    silence.update(fired_in(torch.tensor([[1.0, 0, 0], [0, 0, 0]])), 2)
    silence.update(fired_in(torch.tensor([[0.0, 2, 0]])), 1)
    assert silence.rows.tolist() == [1, 0, 3] and silence.window.tolist() == [1, 1, 0]
    assert silence.dead(3).tolist() == [False, False, True]


def test_auxiliary_loss_revives_latents_that_were_dead(toy):
    """Latents that are too small to be among the largest grow until they are."""
    rows, _ = toy
    dead, score = {}, {}
    for revive in ("none", "auxiliary"):
        sae = F.TopKSAE(32, 2, aux_k=8).build(16)
        with torch.no_grad():
            sae.W_enc[:, 8:] *= 0.02
        log = F.train([sae], rows, batch_size=256, rows=300 * 256, lr=1e-3, revive=revive, dead_after=2048)
        dead[revive], score[revive] = float(log["dead"].values[0, -1]), sae.score(rows[:2000])
    assert dead["auxiliary"] < dead["none"] / 2
    assert score["auxiliary"] > score["none"] + 0.05


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_and_fall_as_they_say(schedule):
    config = TrainConfig(schedule=schedule, warmup=0.1, decay_start=0.8, sparsity_warmup=0.5)
    rates = [rate_factor(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == pytest.approx(1.0) and max(rates) <= 1
    ends = {"constant": 1.0, "linear": 1 / 20, "cosine": 0.1}
    assert rates[-1] == pytest.approx(ends[schedule], abs=2e-3)
    if schedule == "linear":
        assert rates[79] == 1.0 and rates[90] == pytest.approx(0.5)
    assert [sparsity_factor(config, s, 100) for s in (0, 24, 49, 99)] == pytest.approx([0.02, 0.5, 1, 1])
    assert rate_factor(TrainConfig(warmup=10), 4, 1000) == pytest.approx(5 / 11)


def test_signum_steps_along_the_sign_of_a_running_mean():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = Signum([p], lr=0.1, momentum=0.5)
    for grad in ([1.0, -2.0, 0.0], [-3.0, -1.0, 0.0]):
        p.grad = torch.tensor(grad)
        optimizer.step()
    assert p.tolist() == pytest.approx([0.0, 0.2, 0.0])


def test_a_store_a_model_and_a_recording_are_read_alike(tmp_path):
    lm = ac.load("world:lm")
    texts, site = ac.world.heldout_text("lm")[:24], "blocks.2.resid_post"
    store = ac.store.create(tmp_path / "store", lm, texts, at=[site], context=32, packing="pad")
    rec = lm.record(texts, site)
    sources = [source_of(store), source_of(store[site]), source_of(lm, site, texts), source_of(rec)]
    sums = [s.sample(10**6, 0)[0].double().sum(0) for s in sources]
    assert {s.rows for s in sources[:2]} == {len(store)} and sources[2].rows == sources[3].rows
    torch.testing.assert_close(sums[0], sums[1])
    torch.testing.assert_close(sums[2], sums[3], atol=1e-2, rtol=1e-4)
    for data, more in ((store, {}), (lm, {"sites": site, "texts": texts})):
        sae = F.TopKSAE(256, 8).fit(data, batch_size=128, rows=128 * 20, lr=1e-3, **more)
        assert sae.d_in == 128 and sae.score(rec[site][rec.mask]) > 0.3


def test_rows_of_a_running_model_come_once_in_every_pass_and_go_on():
    lm = ac.load("world:lm")
    texts = ac.world.heldout_text("lm")[:20]
    source = Running(lm, texts, ["blocks.0.resid_post"], block=7)
    size = 16
    batches, taken = source.batches(size, 3, 0), []
    for _ in range(source.rows // size):
        taken.append(next(batches)[0])
    every = source.sample(10**6, 0)[0]
    # Each row of a pass is one of the rows there are, and none comes twice more often than it is there.
    order, own = torch.cat(taken).sum(1).sort().values, every.sum(1).sort().values
    missing = len(own) - len(order)
    assert 0 <= missing < size
    assert np.isin(np.round(order.numpy(), 3), np.round(own.numpy(), 3)).mean() > 0.95
    later = source.batches(size, 3, 5)
    torch.testing.assert_close(next(later)[0], taken[5])
    first = Running(lm, texts, ["blocks.0.resid_post"], skip_first=True)
    assert first.rows == source.rows - len(texts)


def test_pairs_and_layers_are_arranged_for_who_wants_them(toy):
    rows, _ = toy
    several = torch.stack([rows, 3 * rows], 1)
    multi = F.MultiLayerSAE(32, 2, aux_k=4).fit(several, **SHORT)
    assert multi.d_in == 16
    cross = F.Crosscoder(32, [16, 16], "topk", {"k": 2}).fit(several, **SHORT)
    assert cross.d_in == 32 and cross(several).xhat.shape == several.shape
    with pytest.raises(InputError, match="16, 16"):
        F.Crosscoder(32, [16, 8]).fit(several, **SHORT)
    with pytest.raises(InputError, match="1 place, not 2"):
        F.TopKSAE(32, 2).fit(several, **SHORT)
    with pytest.raises(InputError, match="2 places, not 1"):
        F.Transcoder(32).fit(rows, **SHORT)
    with pytest.raises(InputError, match="one width"):
        F.MultiLayerSAE(32, 2).fit([rows, rows[:, :8]], **SHORT)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (torch.ones(10, 4), "all 10 rows are equal"),
        (torch.tensor([[1.0, torch.nan], [1, 2]]), "1 of 2 rows hold NaN"),
        (torch.zeros(0, 4), "expected rows"),
        ([torch.randn(4, 2), torch.randn(5, 2)], "same token"),
        ("text", "expected rows"),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_refused(data, match):
    with pytest.raises(InputError, match=match):
        F.TopKSAE(8, 2).fit(data, batch_size=2)


def test_a_store_with_nan_rows_is_refused_before_anything_is_learnt(tmp_path):
    lm = ac.load("world:lm")
    site = "blocks.2.resid_post"
    store = ac.store.create(tmp_path / "store", lm, ac.world.heldout_text("lm")[:4], at=[site], context=32)
    store[site][: len(store)][3, 5] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        F.TopKSAE(8, 2).fit(store, sites=site, batch_size=16, rows=64)


def test_a_dictionary_of_another_width_is_refused(toy):
    with pytest.raises(InputError, match="maps width 8"):
        F.TopKSAE(8, 2).build(8).fit(toy[0], **SHORT)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"optimiser": "adam"}, UnknownNameError, "optimizer"),
        ({"optimizer": "adma"}, UnknownNameError, "adam"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"lr": 0.0}, InputError, "above 0"),
        ({"clip": -1.0}, InputError, "clip"),
        ({"logs": ("jsonl",)}, InputError, "folder"),
        ({"logs": ("tensorbord",)}, UnknownNameError, "tensorboard"),
        ({"decay_start": 0.0}, InputError, "decay_start"),
    ],
)
def test_settings_that_cannot_be_are_refused(toy, options, error, match):
    with pytest.raises(error, match=match):
        F.TopKSAE(8, 2).fit(toy[0], **options)


def test_logs_hold_every_number(toy, tmp_path, capsys):
    log = F.train([F.TopKSAE(32, 2)], toy[0], **SHORT, folder=str(tmp_path), logs=("console", "jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert [line["loss"] for line in lines] == log["loss"].values[0].tolist()
    assert {"reconstruction", "l0", "dead", "gradient_norm", "rows_per_second"} <= set(lines[0])
    assert "l0 2" in capsys.readouterr().out


def test_tensorboard_gets_what_the_log_has(toy, tmp_path):
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        with pytest.raises(MissingExtraError, match="tensorboard"):
            F.train([F.TopKSAE(32, 2)], toy[0], **SHORT, folder=str(tmp_path), logs=("tensorboard",))
        return
    log = F.train([F.TopKSAE(32, 2)], toy[0], **SHORT, folder=str(tmp_path), logs=("tensorboard",))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(log["loss"].values[0].tolist())


def test_weights_and_biases_gets_what_the_log_has(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(MissingExtraError, match="wandb"):
            F.train([F.TopKSAE(32, 2)], toy[0], **SHORT, folder=str(tmp_path), logs=("wandb",))
        return
    log = F.train([F.TopKSAE(32, 2)], toy[0], **SHORT, folder=str(tmp_path), logs=("wandb",))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # The records hold the values as JSON.
    written = path.read_bytes()
    assert all(json.dumps(loss).encode() in written for loss in log["loss"].values[0].tolist())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_what_single_does(toy, precision):
    rows, _ = toy
    options = {"batch_size": 256, "rows": 200 * 256, "lr": 3e-3, "schedule": "constant"}
    whole = F.TopKSAE(32, 2).fit(rows, **options)
    half = F.TopKSAE(32, 2).fit(rows, **options, precision=precision)
    assert half.W_dec.dtype == torch.float32
    assert half.score(rows[:2000]) > whole.score(rows[:2000]) - 0.05


def test_a_compiled_loss_learns_the_same(toy):
    rows, _ = toy
    plain, compiled = (F.ReLUSAE(32, 0.1).fit(rows, **SHORT, compile=c) for c in (False, True))
    torch.testing.assert_close(plain.W_dec, compiled.W_dec, atol=1e-4, rtol=1e-3)


def test_what_processes_would_do_differently_is_refused():
    from actinium.features.training.distributed import Team

    team = Team(torch.device("cpu"))
    team.size = 2
    with pytest.raises(InputError, match="resample differently"):
        trainer._check_team(team, TrainConfig(revive="resample"))
    with pytest.raises(InputError, match="shared evenly by 2"):
        trainer._check_team(team, TrainConfig(batch_size=63))


def test_two_processes_learn_what_one_does(tmp_path):
    """Started by torchrun as a user would, each with half of every batch."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, torch, actinium as ac\n"
        "x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))\n"
        "both = [ac.features.TopKSAE(48, 4), ac.features.BatchTopKSAE(48, 4)]\n"
        "options = {'batch_size': 64, 'rows': 64 * 10, 'lr': 3e-3, 'log_every': 5}\n"
        "ac.features.train(both, x, folder=sys.argv[1], logs=('jsonl',), **options)\n"
        "for name, sae in zip(('top', 'batch'), both):\n"
        "    sae.save(f\"{sys.argv[1]}/{name}{os.environ.get('RANK', '0')}.safetensors\")\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    subprocess.run([sys.executable, script, tmp_path / "one"], check=True, env=environment)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, script, tmp_path / "two"], check=True, env=environment, capture_output=True)

    def load(folder, name):
        return F.Dictionary.load(tmp_path / folder / f"{name}.safetensors")

    for name in ("top", "batch"):
        a, b = load("two", f"{name}0"), load("two", f"{name}1")
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
            assert torch.equal(x, y)
    torch.testing.assert_close(load("two", "top0").W_enc, load("one", "top0").W_enc, atol=1e-4, rtol=1e-3)
    # Of BatchTopK each process keeps the largest of its own half: another choice than that of the whole batch.
    assert float(load("two", "batch0").rule.running) == pytest.approx(
        float(load("one", "batch0").rule.running), rel=0.05
    )
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 4
