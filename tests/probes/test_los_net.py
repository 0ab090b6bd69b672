"""LOS-Net reads the shapes of distributions; its ablations read only the tokens that occurred."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_scheduler

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.probes.calibration import auroc
from actinium.probes.los_net import ATP_R_MLP, ATP_R_Transformer, LOSNet
from actinium.probes.membership import membership_scores
from actinium.probes.output_signature import OutputSignature, output_signatures
from actinium.probes.signature_classifier import warm_up_then_fall
from actinium.probes.signature_networks import RankedProbability, SignatureBatch, SignatureTransformer, encoded_rank

V, STEPS = 24, 6
SMALL = {"d": 32, "heads": 4, "dropout": 0.1, "lr": 3e-3, "epochs": 12, "batch_size": 32}
FLAT_SMALL = {name: value for name, value in SMALL.items() if name != "heads"}


def shaped(n, seed=0):
    """Texts whose tokens look alike; of label 1 half of the steps are sharp and half flat, of label 0 all between."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    texts = []
    for label in labels:
        sharpness = torch.full((STEPS, 1), 1.5)
        if label:
            sharpness = torch.tensor([0.6, 2.4]).repeat(STEPS // 2)[torch.randperm(STEPS, generator=random), None]
        exponent = 1 + 0.1 * torch.rand(STEPS, 1, generator=random)
        falling = -((torch.arange(V) / V) ** (exponent / sharpness))
        tds = torch.log_softmax(4 * falling, -1)
        mean, std = tds.mean(-1), tds.std(-1)
        rank = torch.randint(0, V, (STEPS,), generator=random)
        atp = mean + torch.randn(STEPS, generator=random) * std
        texts.append(OutputSignature(tds, atp, rank, mean, std, None, None, V, partial=True))
    return texts, labels


def batch_of(seed=0, n=5, k=7, steps=4):
    random = torch.Generator().manual_seed(seed)
    return SignatureBatch(
        torch.randn(n, steps, k, generator=random),
        torch.randn(n, steps, generator=random),
        torch.randint(0, V, (n, steps), generator=random),
        torch.arange(steps) < torch.tensor([4, 3, 1, 2, 4])[:n, None],
        torch.full((n,), V),
    )


def transformer(k, d, mask_padding=False, pool="cls", seed=0):
    torch.manual_seed(seed)
    return SignatureTransformer(k, 4, d, 4, 2, 0.3, pool, None, mask_padding).eval()


def test_ranks_go_from_one_to_minus_one():
    assert encoded_rank(torch.tensor([0, V // 2, V]), V).tolist() == [1.0, 0.0, -1.0]
    code, batch = RankedProbability(6), batch_of()
    w1, w2 = code.of_probability, code.of_rank
    got = code(batch.atp, batch.rank, batch.vocab)
    for i, j in ((0, 0), (3, 2)):
        r = 2 * (0.5 - float(batch.rank[i, j]) / V)
        assert torch.allclose(got[i, j], batch.atp[i, j] * (w1 + r * w2), atol=1e-6)
    own = RankedProbability(6, V)
    want = batch.atp[1, 1] * (own.of_probability + own.of_rank.weight[batch.rank[1, 1]])
    assert torch.allclose(own(batch.atp, batch.rank, batch.vocab)[1, 1], want)


def test_without_distributions_it_is_the_ablation():
    net, ablation, batch = transformer(7, 16), transformer(0, 16, seed=1), batch_of()
    shared = {name: value for name, value in net.state_dict().items() if "ranked" not in name and "distr" not in name}
    ablation.load_state_dict(shared, strict=False)
    with torch.no_grad():
        assert not torch.allclose(net(batch), ablation(batch))
        for parameter in (net.distribution.weight, net.distribution.bias):
            parameter.zero_()
        for wide, narrow in zip(ablation.ranked.parameters(), net.ranked.parameters(), strict=True):
            wide.copy_(torch.cat([torch.zeros(8), narrow]))
        assert torch.allclose(net(batch), ablation(batch), atol=1e-6)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_is_attended_to_unless_it_is_masked(pool):
    batch = batch_of()
    noise = torch.where(batch.real[..., None], batch.tds, 9.0)
    other = batch._replace(tds=noise, atp=torch.where(batch.real, batch.atp, 9.0))
    for mask_padding in (False, True):
        net = transformer(7, 16, mask_padding, pool)
        with torch.no_grad():
            same = torch.isclose(net(batch), net(other), atol=1e-5)
        assert same.tolist() == [True, mask_padding, mask_padding, mask_padding, True]


def test_the_rate_is_that_of_the_librarys_linear_schedule():
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    schedule = get_scheduler("linear", optimizer=optimiser, num_warmup_steps=3, num_training_steps=20)
    ours = warm_up_then_fall(3, 20)
    for step in range(21):
        assert ours(step) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert warm_up_then_fall(0, 4)(0) == 1.0


def test_only_the_net_that_sees_distributions_tells_their_shapes():
    train, y = shaped(160)
    test, y_test = shaped(160, seed=1)
    assert LOSNet(V, STEPS, **SMALL).fit(train, y).score(test, y_test) > 0.9
    assert abs(ATP_R_Transformer(STEPS, **SMALL).fit(train, y).score(test, y_test) - 0.5) < 0.15
    assert abs(ATP_R_MLP(STEPS, **FLAT_SMALL).fit(train, y).score(test, y_test) - 0.5) < 0.15


def test_members_of_an_overfitted_model_are_found():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (240, 12), generator=random)
    counts = torch.full((V, V), 0.3)
    for row in ids[:120]:
        counts.index_put_((row[:-1], row[1:]), torch.ones(11), accumulate=True)
    texts = [OutputSignature.from_logits(counts.log()[row], row) for row in ids]
    labels, order = (torch.arange(240) < 120).long(), torch.randperm(240, generator=random)
    train, test = order[:160], order[160:]
    net = LOSNet(V, 11, **SMALL).fit([texts[i] for i in train], labels[train])
    held = [texts[i] for i in test]
    assert net.score(held, labels[test]) > 0.8
    assert net.score(held, labels[test]) >= auroc(membership_scores(held)["Min-K%"], labels[test]) - 0.02


def test_predictions_agree_and_come_back_from_disk(tmp_path):
    train, y = shaped(40)
    for number, net in enumerate(
        (
            LOSNet(V, STEPS, rank_encoding="one_hot", mask_padding=True, pool="mean", **{**SMALL, "epochs": 2}),
            ATP_R_Transformer(STEPS, **{**SMALL, "epochs": 2}),
            ATP_R_MLP(STEPS, **{**FLAT_SMALL, "epochs": 2}),
        )
    ):
        net.fit(train, y, progress=True)
        logits, p = net.decision_function(train), net.predict_proba(train)
        np.testing.assert_allclose(p.sum(1), 1)
        np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-logits)))
        assert (net.predict(train) == (p[:, 1] > 0.5)).all()
        assert net.score(train, y) == auroc(p[:, 1], y)
        again = type(net).load(net.save(tmp_path / str(number)))
        assert again.get_params() == net.get_params()
        np.testing.assert_array_equal(again.decision_function(train), logits)
    with pytest.raises(LoadError, match="is no LOSNet"):
        LOSNet.load(tmp_path / "1")


def test_the_seed_decides_and_the_callers_numbers_stay(tmp_path):
    train, y = shaped(40)
    state = torch.random.get_rng_state()
    few = {**SMALL, "epochs": 2}
    nets = [LOSNet(V, STEPS, seed=s, **few).fit(train, y) for s in (0, 0, 1)]
    LOSNet.load(nets[0].save(tmp_path / "net"))
    assert torch.equal(torch.random.get_rng_state(), state)
    logits = [net.decision_function(train) for net in nets]
    assert (logits[0] == logits[1]).all() and (logits[0] != logits[2]).any()
    assert len(nets[0].loss_) == len(nets[0].validation_auroc_) == 2


def test_the_best_epoch_is_kept_and_patience_ends_it():
    train, y = shaped(60)
    test = shaped(30, seed=1)
    net = LOSNet(V, STEPS, **{**SMALL, "epochs": 10, "patience": 2}).fit(train, y, validation=test)
    assert net.score(*test) == max(net.validation_auroc_)
    best = int(np.argmax(net.validation_auroc_))
    assert len(net.validation_auroc_) == min(10, best + 3)
    last = LOSNet(V, STEPS, validation_share=0, **{**SMALL, "epochs": 2}).fit(train, y)
    assert last.validation_auroc_ == []


def test_it_reads_the_signatures_of_another_model(outside_data):
    if not (outside_data / "stories260K").is_dir():
        pytest.skip("stories260K is absent")
    story, world = ac.load(outside_data / "stories260K"), ac.load("world:lm")
    torch.manual_seed(0)
    start = story.to_tokens("Once upon a time").ids
    own = story.generate(start.repeat(40, 1), max_new_tokens=12, do_sample=True)
    other = torch.cat([own[:, :1], own[:, 1:].flip(1)], 1)
    texts = output_signatures(story, torch.cat([own, other]), keep=100)
    labels = torch.arange(80) < 40
    order = torch.randperm(80)
    train, test = order[:50], order[50:]
    net = LOSNet(100, 16, **SMALL).fit([texts[i] for i in train], labels[train])
    assert net.score([texts[i] for i in test], labels[test]) > 0.9
    facts = ac.world.tasks.facts(world, n=30, split="train").clean
    scrambled = [" ".join(reversed(text.split())) for text in facts]
    moved = net.score(output_signatures(world, facts + scrambled, keep=100), [1] * 30 + [0] * 30)
    assert moved > 0.8


def test_a_single_text_that_is_left_over_joins_the_batch_before_it():
    train, y = shaped(33)
    net = ATP_R_MLP(STEPS, validation_share=0, **{**FLAT_SMALL, "epochs": 1}).fit(train, y)
    assert np.isfinite(net.loss_).all()


def test_what_cannot_be_learned_is_refused():
    train, y = shaped(20)
    whole = [OutputSignature.from_logits(torch.randn(4, V), torch.arange(4)) for _ in range(20)]
    net = LOSNet(V, STEPS, **{**SMALL, "epochs": 1})
    for call, error, message in (
        (lambda: net.fit(train, y * 0), InputError, "both classes"),
        (lambda: net.fit(train, y[:5]), InputError, "for each of 20"),
        (lambda: net.fit(train[:10] + whole[:10], y), InputError, "cannot be mixed"),
        (lambda: net.fit(train, y, validation=(whole, y)), InputError, "cannot be mixed"),
        (lambda: net.fit(train, y, groups=y), InputError, "groups"),
        (lambda: net.fit([], []), InputError, "at least one"),
        (lambda: LOSNet(V, STEPS, d=30).fit(train, y), InputError, "divisible by heads"),
        (lambda: LOSNet(0, STEPS).fit(train, y), InputError, "k >= 1"),
        (lambda: LOSNet(V, STEPS, epochs=0).fit(train, y), InputError, "at least 1"),
        (lambda: LOSNet(V, STEPS, validation_share=0.6).fit(train, y), InputError, "validation_share"),
        (lambda: LOSNet(V, STEPS, rank_encoding="onehot").fit(train, y), UnknownNameError, "one_hot"),
        (lambda: ATP_R_Transformer(STEPS, pool="max").fit(train, y), UnknownNameError, "mean"),
        (lambda: net.set_params(epoch=3), UnknownNameError, "epochs"),
        (lambda: LOSNet().predict(train), InputError, "call fit"),
    ):
        with pytest.raises(error, match=message):
            call()
    fitted = LOSNet(V, STEPS, rank_encoding="one_hot", **{**SMALL, "epochs": 1}).fit(whole, y)
    with pytest.raises(InputError, match="fitted on whole"):
        fitted.predict(train)
    larger = [OutputSignature.from_logits(torch.randn(4, V + 1), torch.arange(4))]
    with pytest.raises(InputError, match="rank_encoding='scale'"):
        fitted.predict(larger)
    with pytest.warns(ActiniumWarning, match="columns that are missing are zero"):
        LOSNet(V + 5, STEPS, **{**SMALL, "epochs": 1}).fit(whole, y)
