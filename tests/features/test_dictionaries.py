"""The architectures: what their definitions say, and which of them are one another's special cases."""

from __future__ import annotations

import copy

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.dictionaries.normalisation import geometric_median
from actinium.features.dictionaries.rules import BatchTopK, Gated, JumpReLU, ReLU, rule_of

F = ac.features
D, M = 12, 64


def rows(n=40, d=D, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def random_weights(dictionary, seed=1):
    """Weights in no special position: biases, thresholds and norms of their own."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in dictionary.named_parameters():
            scale = 0.2 if name.endswith(("b_enc", "b_dec", "b_gate", "b_mag", "r_mag")) else 0.5
            p.copy_(
                torch.rand(p.shape, generator=g) * 0.4
                if name.endswith("theta")
                else torch.randn(p.shape, generator=g) * scale
            )
        if isinstance(dictionary.rule, BatchTopK):
            dictionary.rule.running.fill_(0.8)
    return dictionary


ALL = {
    "relu": lambda **o: F.ReLUSAE(M, **o),
    "topk": lambda **o: F.TopKSAE(M, 5, **o),
    "batch_topk": lambda **o: F.BatchTopKSAE(M, 5, **o),
    "jumprelu": lambda **o: F.JumpReLUSAE(M, **o),
    "gated": lambda **o: F.GatedSAE(M, **o),
    "matryoshka": lambda **o: F.MatryoshkaSAE([8, 24, M], 5, **o),
}


@pytest.fixture(params=ALL)
def free(request):
    """Every architecture with free decoder norms, in use after training."""
    return random_weights(ALL[request.param](decoder_norm="free").build(D)).eval()


def test_folding_decoder_norms_changes_neither_reconstruction_nor_what_is_active(free):
    x = rows()
    before = free(x)
    folded = copy.deepcopy(free).fold_decoder_norm()
    after = folded(x)
    torch.testing.assert_close(after.xhat, before.xhat, atol=1e-5, rtol=1e-5)
    assert torch.equal(after.f > 0, before.f > 0)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(M))


@pytest.mark.parametrize(("how", "norms"), [("mean_norm", "unit"), ("mean_square", "free")])
@pytest.mark.parametrize("name", ALL)
def test_folding_the_input_scale_changes_neither_reconstruction_nor_what_is_active(name, how, norms):
    sae = random_weights(ALL[name](normalize=how, decoder_norm=norms).build(D)).eval()
    x = rows()
    sae.measure_scale(x)
    assert float(sae.scale) != 1
    before = sae(x)
    after = copy.deepcopy(sae).fold_input_scale()(x)
    torch.testing.assert_close(after.xhat, before.xhat, atol=1e-5, rtol=1e-5)
    assert torch.equal(after.f > 0, before.f > 0)


@pytest.mark.parametrize("name", ALL)
def test_sparse_and_dense_ways_give_one_loss_and_one_gradient(name, monkeypatch):
    """Float64; what is active is the same, only the way differs."""
    from actinium.features.dictionaries import rules

    sae = random_weights(ALL[name](decoder_norm="free", normalize="layer_norm").build(D)).double().train()
    x, found = rows().double(), []
    for share in (1.0, -1.0):
        monkeypatch.setattr(rules, "DENSE", share)
        if share < 0:
            monkeypatch.setattr(type(sae.rule), "select", _densely(type(sae.rule).select))
        twin = copy.deepcopy(sae)
        parts, _ = twin.loss(x)
        sum(parts.values()).backward()
        found.append((parts, {n: p.grad for n, p in twin.named_parameters()}))
    for part, value in found[0][0].items():
        torch.testing.assert_close(value, found[1][0][part])
    for name_, grad in found[0][1].items():
        other = found[1][1][name_]
        torch.testing.assert_close(grad, torch.zeros_like(grad) if other is None else other, msg=name_)


def _densely(select):
    """Answers "too many" once, where a dictionary asks; `dense` asks again for what is active."""
    asked = []

    def densely(self, pre, norms):
        asked.append(1)
        return None if len(asked) == 1 else select(self, pre, norms)

    return densely


@pytest.mark.parametrize("name", ALL)
def test_both_folded_is_what_it_was(name):
    sae = random_weights(ALL[name](normalize="mean_norm").build(D)).eval()
    sae.after_step()
    x = rows()
    sae.measure_scale(x)
    before = sae(x)
    after = copy.deepcopy(sae).fold_input_scale().fold_decoder_norm()(x)
    torch.testing.assert_close(after.xhat, before.xhat, atol=1e-4, rtol=1e-4)
    assert torch.equal(after.f > 0, before.f > 0)


@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_norms_that_do_not_count_are_not_folded(name):
    with pytest.raises(InputError, match="different norms"):
        random_weights(ALL[name]().build(D)).fold_decoder_norm()


def test_thresholds_of_zero_make_a_relu_dictionary():
    jump = random_weights(F.JumpReLUSAE(M).build(D)).eval()
    with torch.no_grad():
        jump.rule.theta.zero_()
    plain = F.ReLUSAE(M).build(D)
    plain.load_state_dict({k: v for k, v in jump.state_dict().items() if k != "rule.theta"})
    torch.testing.assert_close(jump(rows()).xhat, plain(rows()).xhat)


def test_batches_of_one_row_make_topk_of_batch_topk():
    batch = random_weights(F.BatchTopKSAE(M, 5).build(D)).train()
    top = F.TopKSAE(M, 5).build(D)
    top.load_state_dict({k: v for k, v in batch.state_dict().items() if k != "rule.running"})
    for row in rows(6):
        torch.testing.assert_close(batch(row[None]).f, top(row[None]).f)


def test_one_width_makes_batch_topk_of_matryoshka():
    nested, batch = F.MatryoshkaSAE([M], 5).build(D), F.BatchTopKSAE(M, 5).build(D)
    random_weights(nested)
    batch.load_state_dict(nested.state_dict())
    a, b = (s.train().loss(rows())[0]["reconstruction"] for s in (nested, batch))
    torch.testing.assert_close(a, b)


def test_matryoshka_adds_the_losses_of_its_prefixes():
    nested = random_weights(F.MatryoshkaSAE([8, 24, M], 5).build(D)).train()
    x = rows()
    parts, latents = nested.loss(x)
    f = latents.dense()
    errors = [((f[:, :w] @ nested.W_dec[:w] + nested.b_dec - x) ** 2).sum(1).mean() for w in (8, 24, M)]
    torch.testing.assert_close(parts["reconstruction"], sum(errors))


def test_gates_that_are_no_gates_make_a_relu_dictionary():
    gated = random_weights(F.GatedSAE(M).build(D))
    with torch.no_grad():
        gated.rule.r_mag.zero_()
        gated.rule.b_mag.copy_(gated.rule.b_gate)
    plain = F.ReLUSAE(M).build(D)
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "." not in k} | {"b_enc": gated.rule.b_gate})
    torch.testing.assert_close(gated(rows()).xhat, plain(rows()).xhat)


def test_a_gated_auxiliary_loss_does_not_move_the_decoder():
    gated = random_weights(F.GatedSAE(M).build(D))
    x = rows()
    latents, pre, _ = gated.active(x)
    gated.auxiliary(x, x, gated.reconstruct(latents), latents, pre, None)["auxiliary"].backward()
    assert gated.W_dec.grad is None
    assert float(gated.W_enc.grad.abs().sum()) > 0 and float(gated.rule.b_gate.grad.abs().sum()) > 0
    # The decoder's bias is subtracted from the input, too, and may move for that.
    assert gated.b_dec.grad is not None


def test_pseudo_gradients_of_thresholds_are_those_of_the_kernel():
    """pre .03, theta .02, bandwidth .05: df/dtheta = -.4, dH/dtheta = -20."""
    rule = JumpReLU(l0=1.0, bandwidth=0.05, theta=0.02)
    rule.build(1)
    pre = torch.tensor([[0.03]])
    (of_f,) = torch.autograd.grad(rule.dense(pre, torch.ones(())).sum(), rule.theta)
    f = rule.dense(pre, torch.ones(()))
    (of_count,) = torch.autograd.grad(rule.penalties(pre, f, None, torch.ones(()), 1)["sparsity"], rule.theta)
    assert float(of_f) == pytest.approx(-0.4, abs=1e-5)
    assert float(of_count) == pytest.approx(-20.0, abs=1e-4)


@pytest.mark.parametrize("penalty", ["l0", "tanh", "target", "quadratic"])
def test_penalties_of_jumprelu_are_as_written(penalty):
    rule = JumpReLU(l0=0.3, theta=0.1, penalty=penalty, target=4.0, c=4.0)
    rule.build(6)
    pre = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    f, norms = rule.dense(pre, torch.ones(())), torch.linspace(0.5, 2, 6)
    counts = (pre > 0.1).sum(1).float()
    expected = {
        "l0": counts.mean(),
        "tanh": torch.tanh(4 * f * norms).sum(1).mean(),
        "target": (counts.mean() / 4 - 1) ** 2,
        "quadratic": (2 / 4 * (counts - 4) ** 2).mean(),
    }[penalty]
    torch.testing.assert_close(rule.penalties(pre, f, None, norms, 5)["sparsity"], 0.3 * expected)


def test_gradients_to_inputs_are_the_negative_of_the_thresholds():
    rule = JumpReLU(bandwidth=0.5, theta=0.2, ste_to_input=True)
    rule.build(1)
    pre = torch.tensor([[0.1], [0.3], [2.0]], requires_grad=True)
    out = rule.dense(pre, torch.ones(()))
    for_pre, for_theta = torch.autograd.grad(out.sum(), (pre, rule.theta))
    assert for_pre.flatten().tolist() == pytest.approx([0.4, 1.4, 1.0])
    assert float(for_theta) == pytest.approx(-0.8)


def test_a_p_norm_is_that_of_torch():
    rule = ReLU(l1=0.5, p=0.7)
    pre = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    f = pre.relu()
    expected = 0.5 * ((f**0.7).sum(1) ** (1 / 0.7)).mean()
    torch.testing.assert_close(rule.penalties(pre, f, None, torch.ones(()), 5)["sparsity"], expected)


def test_exactly_k_latents_at_most_are_active_and_negative_ones_are_not():
    sae = random_weights(F.TopKSAE(M, 5).build(D))
    assert int((sae(rows()).f > 0).sum(1).max()) <= 5
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert not bool(sae(rows()).f.any())


def test_batch_topk_after_training_uses_one_threshold_and_is_a_jumprelu():
    sae = random_weights(F.BatchTopKSAE(M, 5, decoder_norm="free").build(D)).eval()
    x = rows(200)
    whole = sae(x).f
    torch.testing.assert_close(torch.cat([sae(row[None]).f for row in x]), whole)
    jump = sae.to_jumprelu()
    assert torch.equal(jump(x).f > 0, whole > 0)
    torch.testing.assert_close(jump(x).xhat, sae(x).xhat)
    with pytest.raises(InputError, match="after training"):
        F.BatchTopKSAE(M, 5).build(D).to_jumprelu()


def test_batch_topk_keeps_k_times_n_and_follows_the_smallest():
    rule = BatchTopK(3, rate=0.5)
    rule.build(32)
    rule.train()
    pre = torch.rand(10, 32, generator=torch.Generator().manual_seed(0))
    code = rule.select(pre, torch.ones(()))
    expected = pre.flatten().topk(30).values
    assert torch.equal(code.values.sort().values, expected.sort().values)
    assert float(rule.running) == pytest.approx(float(expected.min()))
    rule.select(pre + 1, torch.ones(()))
    assert float(rule.running) == pytest.approx(float(expected.min()) + 0.5, abs=1e-6)


def test_a_skip_of_zero_makes_a_transcoder_of_a_skip_transcoder():
    plain, skip = F.Transcoder(M, "topk", {"k": 5}).build(D, 7), F.SkipTranscoder(M, "topk", {"k": 5}).build(D, 7)
    random_weights(plain)
    skip.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(skip(rows()).xhat, plain(rows()).xhat)
    with torch.no_grad():
        skip.W_skip.copy_(rows(7))
    torch.testing.assert_close(skip(rows()).xhat, plain(rows()).xhat + rows() @ skip.W_skip.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reconstruction", ["sse", "fvu"])
def test_loss_of_a_skip_transcoder_is_that_of_its_output(reconstruction):
    skip = random_weights(F.SkipTranscoder(M, "topk", {"k": 5}, reconstruction=reconstruction).build(D, 7))
    x, y = rows(), rows(d=7, seed=3)
    error = (skip(x).xhat - y) ** 2
    expected = error.sum(1).mean() if reconstruction == "sse" else error.sum() / ((y - y.mean(0)) ** 2).sum()
    torch.testing.assert_close(skip.loss(x, y)[0]["reconstruction"], expected, atol=1e-4, rtol=1e-5)
    with pytest.raises(InputError, match="pairs"):
        skip.loss(x)


def test_one_place_makes_a_relu_dictionary_of_a_crosscoder():
    cross = random_weights(F.Crosscoder(M, [D], "relu", {"l1": 0.3}).build(D))
    plain = F.ReLUSAE(M, 0.3, decoder_norm="free", apply_b_dec=False).build(D)
    plain.load_state_dict({k: v for k, v in cross.state_dict().items() if k != "scale"}, strict=False)
    for a, b in zip(cross.loss(rows())[0].values(), plain.loss(rows())[0].values(), strict=True):
        torch.testing.assert_close(a, b)


def test_crosscoder_weighs_latents_by_the_sum_of_norms_and_tells_whose_they_are():
    cross = random_weights(F.Crosscoder(M, [5, 7], "relu", {"l1": 1.0}).build(12))
    parts, latents = cross.loss(rows())
    f = latents.dense() if isinstance(latents, F.Code) else latents
    norms = cross.W_dec[:, :5].norm(dim=1) + cross.W_dec[:, 5:].norm(dim=1)
    torch.testing.assert_close(parts["sparsity"], (f * norms).sum(1).mean())
    with torch.no_grad():
        cross.W_dec[0, :5] = 0
        cross.W_dec[1, 5:] = 0
    share = cross.relative_norms().detach()
    assert float(share[0]) == 1 and float(share[1]) == 0 and bool(((share >= 0) & (share <= 1)).all())
    assert [p.shape[-1] for p in cross.split(rows())] == [5, 7]


def test_places_of_a_crosscoder_are_scaled_each_by_itself():
    cross = F.Crosscoder(M, [6, 6], normalize="mean_norm").build(12)
    x = rows()
    x[:, 6:] *= 100
    cross.measure_scale(x)
    for part in (x * cross.scale).split(6, 1):
        assert float(part.norm(dim=1).mean()) == pytest.approx(6**0.5, rel=1e-5)


def test_dead_latents_reconstruct_what_is_left_and_gradients_stay_with_them():
    sae = random_weights(F.TopKSAE(M, 5, aux_k=4).build(D))
    x, dead = rows(), torch.zeros(M, dtype=torch.bool)
    assert "auxiliary" not in sae.loss(x, dead=dead)[0]
    dead[[3, 9, 20, 33, 41]] = True
    parts, latents = sae.loss(x, dead=dead)
    e = (x - sae.reconstruct(latents)).detach()
    pre = sae.pre(x)[:, dead].topk(4)
    f = torch.zeros(len(x), 5).scatter(1, pre.indices, pre.values.relu())
    expected = ((e - f @ sae.W_dec[dead]) ** 2).mean() / ((e - e.mean(0)) ** 2).mean() / 32
    torch.testing.assert_close(parts["auxiliary"], expected)
    parts["auxiliary"].backward()
    assert bool((sae.W_dec.grad[~dead] == 0).all()) and bool((sae.W_dec.grad[dead] != 0).any())


def test_four_k_latents_share_in_the_loss_of_multi_topk():
    sae = random_weights(F.TopKSAE(M, 5, multi_k=1 / 8).build(D))
    many = F.TopKSAE(M, 20).build(D)
    many.load_state_dict(sae.state_dict())
    x = rows()
    lost = ((many(x).xhat - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    torch.testing.assert_close(sae.loss(x)[0]["multi_k"], lost / 8)
    assert sae.rule.k == 5


def test_standardised_rows_commute_with_shift_and_scale():
    sae = random_weights(F.MultiLayerSAE(M, 5).build(D))
    x = rows()
    torch.testing.assert_close(sae(3.0 * x + 2.0).xhat, 3.0 * sae(x).xhat + 2.0, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("how", ["norm", "layer_norm"])
def test_rows_normalised_by_themselves_are_undone(how):
    sae = random_weights(F.ReLUSAE(M, normalize=how).build(D))
    x = rows()
    own = sae(x)
    shift = x.mean(1, keepdim=True) if how == "layer_norm" else 0.0
    size = x.std(1, keepdim=True) if how == "layer_norm" else x.norm(dim=1, keepdim=True) / D**0.5
    plain = F.ReLUSAE(M).build(D)
    plain.load_state_dict(sae.state_dict())
    normal = (x - shift) / (size + (1e-5 if how == "layer_norm" else 0.0))
    torch.testing.assert_close(own.xhat, plain(normal).xhat * size + shift)
    with pytest.raises(InputError, match="depends on the row"):
        sae.decode(own.f)


def test_geometric_median_is_that_of_a_line_and_resists_an_outlier():
    x = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [1e6, 0]])
    torch.testing.assert_close(geometric_median(x), torch.tensor([2.0, 0.0]), atol=1e-3, rtol=0)


def test_leading_dimensions_are_kept_and_widths_are_checked():
    sae = F.TopKSAE(M, 5).build(D)
    out = sae(rows(6).view(2, 3, D))
    assert out.xhat.shape == (2, 3, D) and out.f.shape == (2, 3, M) and len(out.code) == 6
    torch.testing.assert_close(sae.decode(out.f), out.xhat)
    with pytest.raises(InputError, match="width 12, not 11"):
        sae(torch.zeros(2, 11))
    with pytest.raises(InputError, match="not fitted"):
        F.TopKSAE(M, 5)(rows())


@pytest.mark.parametrize("name", ALL)
def test_saved_dictionaries_are_read_back(name, tmp_path):
    sae = random_weights(ALL[name](normalize="layer_norm").build(D)).eval()
    sae.about = {"model": "world:lm", "site": "blocks.2.resid_post"}
    path = sae.save(tmp_path / "sae.safetensors")
    again = F.Dictionary.load(path)
    assert type(again) is type(sae) and again.get_params() == sae.get_params() and again.about == sae.about
    for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert again.W_enc.stride() == sae.W_enc.stride()
    other = F.GatedSAE if name != "gated" else F.TopKSAE
    with pytest.raises(LoadError, match="holds a"):
        other.load(path)


@pytest.mark.parametrize("name", ["transcoder", "crosscoder", "multi_layer"])
def test_other_shapes_are_read_back(name, tmp_path):
    made = {
        "transcoder": lambda: F.SkipTranscoder(M, "jumprelu", {"l0": 0.1}).build(D, 7),
        "crosscoder": lambda: F.Crosscoder(M, [5, 7]).build(12),
        "multi_layer": lambda: F.MultiLayerSAE(M, 5).build(D),
    }[name]()
    random_weights(made).eval()
    again = F.Dictionary.load(made.save(tmp_path / "one"))
    assert torch.equal(again(rows()).xhat, made(rows()).xhat)
    with pytest.raises(LoadError):
        F.Dictionary.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: F.TopKSAE(8, 9), "only 8 latents"),
        (lambda: F.TopKSAE(8, 0), "whole number"),
        (lambda: F.BatchTopKSAE(8, 9), "only 8 latents"),
        (lambda: F.MatryoshkaSAE([8, 4], 2), "must rise"),
        (lambda: F.MatryoshkaSAE([], 2), "d_sae"),
        (lambda: F.ReLUSAE(8, -1.0), "l1"),
        (lambda: F.JumpReLUSAE(8, bandwidth=0.0), "bandwidth"),
        (lambda: F.Crosscoder(8, [0]), "widths"),
        (lambda: F.Crosscoder(8, [4], normalize="layer_norm"), "constant"),
        (lambda: F.TopKSAE(8, 2, aux_k=0), "aux_k"),
        (lambda: F.Transcoder(8, "topk", {"kk": 2}), "topk"),
        (lambda: F.Crosscoder(8, [4], "relu", aux_k=2), "no auxiliary loss"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make().build(4)


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(UnknownNameError, match="layer_norm"):
        F.TopKSAE(8, 2, normalize="layernorm").build(4)
    with pytest.raises(UnknownNameError, match="batch_topk"):
        rule_of("batchtopk")
    with pytest.raises(UnknownNameError, match="tanh"):
        JumpReLU(penalty="than")
    assert isinstance(rule_of("gated"), Gated)
