"""dReLU against closed forms, in language models that come back as they were, and computed sparsely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.functions.exchange import dual_relu
from actinium.functions.exchange.dual_relu import (
    DReLU,
    GatedMLP,
    activated_parameters,
    find_gated_mlps,
    gated_sparsity,
    mixture_sparsity,
    relufy,
)
from actinium.functions.exchange.sparse_feed_forward import NeuronPredictor, SparseFFN

TEXTS = ["The owl lives in the forest.", "The cat sat on the mat and the dog ran."]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


def test_drelu_is_zero_where_either_is_not_above_zero_and_symmetric():
    g, u = normal(1000), normal(1000, seed=1)
    y = DReLU()(g, u)
    assert torch.equal(y == 0, (g <= 0) | (u <= 0)) and float(y.min()) >= 0
    assert torch.equal(y, DReLU()(u, g))
    assert torch.equal(y[u > 0], (g.relu() * u)[u > 0])


@pytest.mark.parametrize("rho", [0.0, -0.5, 0.7])
def test_the_share_of_zeros_of_normal_pairs_is_that_of_the_arcsine(rho):
    g, e = normal(400_000), normal(400_000, seed=1)
    zeros = float((DReLU()(g, rho * g + math.sqrt(1 - rho**2) * e) == 0).double().mean())
    expected = 1 - (0.25 + math.asin(rho) / (2 * math.pi))
    assert zeros == pytest.approx(expected, abs=0.004)
    assert expected == pytest.approx({0.0: 3 / 4, -0.5: 5 / 6}.get(rho, expected))


def test_silent_units_get_no_gradient():
    torch.manual_seed(0)
    mlp, x = GatedMLP(8, 40), normal(1, 8)
    relufy(mlp)
    mlp(x).square().sum().backward()
    silent = ((mlp.gate_proj(x) <= 0) | (x @ mlp.up_proj.weight.T <= 0))[0]
    assert 0 < int(silent.sum()) < 40
    for layer in (mlp.gate_proj, mlp.up_proj):
        assert bool((layer.weight.grad[silent] == 0).all()) and bool((layer.weight.grad[~silent] != 0).any(1).all())


def by_hand(mlp, x, mode):
    g, u = mlp.gate_proj(x), x @ mlp.up_proj.weight.T
    a = {"drelu": g.relu() * u.relu(), "reglu": g.relu() * u, "shifted": (g - 0.1).relu() * u}[mode]
    return a @ mlp.down_proj.weight.T


@pytest.mark.parametrize("mode", ["drelu", "reglu", "shifted"])
def test_an_mlp_becomes_the_formula_and_comes_back(mode):
    torch.manual_seed(0)
    mlp, x = GatedMLP(6, 20), normal(5, 6)
    before = mlp(x)
    with relufy(mlp, mode, shift=0.1 if mode == "shifted" else 0.0) as changed:
        assert changed.places == [""]
        torch.testing.assert_close(mlp(x), by_hand(mlp, x, mode))
        sparse = SparseFFN.from_dense(mlp)
        torch.testing.assert_close(sparse(x), mlp(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(mlp(x), before)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Gemma", "T5"])
def test_gated_mlps_of_real_architectures_are_found(kind):
    import transformers

    torch.manual_seed(0)
    size = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    if kind == "T5":
        config = transformers.T5Config(
            vocab_size=50, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        )  # fmt: skip
        model = transformers.T5EncoderModel(config).eval()
    else:
        config = getattr(transformers, f"{kind}Config")(num_key_value_heads=2, head_dim=8, **size)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    ids = torch.arange(8)[None] + 3
    out = lambda: model(input_ids=ids)[0]  # noqa: E731
    before = out()
    with relufy(model) as changed:
        assert len(changed.places) == 2
        found = gated_sparsity(model, [{"input_ids": ids}])
        assert bool((found["exact"] > 0.5).all()) and not torch.allclose(out(), before)
        sparse = {name: SparseFFN.from_dense(mlp.module) for name, mlp in find_gated_mlps(model).items()}
        dense = out()
        for name, fast in sparse.items():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, fast)
        torch.testing.assert_close(out(), dense, rtol=1e-5, atol=1e-5)


def test_zeros_in_a_language_model_are_those_of_its_recording(lm):
    smooth = gated_sparsity(lm, [TEXTS], tau=0.05)
    assert bool((smooth["exact"] < 1e-3).all()) and bool((smooth["thresholded"] > 0.05).all())
    with relufy(lm):
        found = gated_sparsity(lm, [TEXTS], tau=0.05, cett=0.2)
        recording = lm.record(TEXTS, "blocks.3.mlp.post")
        a = recording["blocks.3.mlp.post"][recording.mask]
    assert float(found["exact"][3]) == pytest.approx(float((a == 0).double().mean()), abs=1e-6)
    assert float(found["thresholded"][3]) == pytest.approx(float((a.abs() < 0.05).double().mean()), abs=1e-6)
    np.testing.assert_allclose(found["rate"][3], (a != 0).double().mean(0), atol=1e-9)
    assert float(found["never"][3]) == pytest.approx(float((a == 0).all(0).double().mean()))
    assert bool((found["droppable"] >= found["exact"] - 1e-9).all())
    with relufy(lm, "reglu"):
        half = gated_sparsity(lm, [TEXTS])
    assert bool((half["exact"] < found["exact"]).all())
    assert bool((gated_sparsity(lm, [TEXTS])["exact"] == smooth["exact"]).all())


def test_padding_counts_neither_in_an_encoder_nor_in_a_decoder():
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_ff=24, d_kv=8, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.arange(8).view(2, 4) + 3
    mask, labels = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]), torch.tensor([[4, 5, 6, 7], [8, 9, 10, -100]])
    seen = {}
    with relufy(model):
        for name, mlp in find_gated_mlps(model).items():
            mlp.part(2).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        found = gated_sparsity(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    assert [str(name).split(".")[0] for name in found["layer"].values] == ["encoder", "decoder"]
    for name, there in zip(seen, (mask.bool(), labels != -100), strict=True):
        expected = (seen[name][there] == 0).double().mean()
        assert float(found["exact"].sel(layer=name)) == pytest.approx(float(expected), abs=1e-9)


def test_experts_count_the_tokens_that_reach_them():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.shared = nn.ModuleList(GatedMLP(4, 6, nn.ReLU()) for _ in range(3)), GatedMLP(4, 6)

        def forward(self, x, attention_mask):
            rows = x.flatten(0, 1)
            return self.shared(rows) + self.experts[0](rows[:3]).sum() + self.experts[1](rows).sum()

    torch.manual_seed(0)
    net, x, mask = Mixture(), normal(2, 4, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.warns(ActiniumWarning, match="already"):
        assert relufy(net.experts, "reglu").places == []
    found = gated_sparsity(net, [{"x": x, "attention_mask": mask}])
    for layer, rows in (("experts.0", x[0, :3]), ("experts.1", x[mask.bool()])):
        g = net.experts[int(layer[-1])].gate_proj(rows)
        assert float(found["exact"].sel(layer=layer)) == pytest.approx(float((g <= 0).double().mean()))
    assert found.data.sel(layer="experts.2").isnull().to_array().all()
    assert float(found["exact"].sel(layer="shared")) == 0


def test_units_are_droppable_up_to_the_error(monkeypatch):
    torch.manual_seed(0)
    mlp, x = GatedMLP(5, 30), normal(7, 5)
    found = gated_sparsity(mlp, [x], cett=0.2)
    a = (functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)).detach()
    monkeypatch.setattr(dual_relu, "ENTRIES", 300)
    again = gated_sparsity(mlp, [x], cett=0.2)
    np.testing.assert_allclose(again["droppable"], found["droppable"], rtol=1e-12)
    counts = []
    for row in a.double():
        parts = row[:, None] * mlp.down_proj.weight.detach().double().T
        order = parts.norm(dim=1).argsort()
        errors = [float(parts[order[:k]].sum(0).norm() / parts.sum(0).norm()) for k in range(31)]
        counts.append(max(k for k, e in enumerate(errors) if e <= 0.2))
    assert float(found["droppable"][0]) == pytest.approx(np.mean(counts) / 30)


def test_neighbouring_tokens_share_units_as_the_jaccard_index_says():
    torch.manual_seed(0)
    mlp, x = GatedMLP(5, 30), normal(2, 6, 5)
    with relufy(mlp):
        found = gated_sparsity(mlp, [x])
        on = (mlp.gate_proj(x) > 0) & (mlp.up_proj(x) > 0)
    shares = [
        float((a & b).sum() / (a | b).sum()) for row in on for a, b in zip(row[1:], row[:-1], strict=True)
    ]  # fmt: skip
    assert float(found["overlap"][0]) == pytest.approx(np.mean(shares), abs=1e-6)


def test_sparse_execution_leaves_out_what_is_silent(lm):
    with relufy(lm):
        mlp = lm.module.model.layers[2].mlp
        sparse, x = SparseFFN.from_dense(mlp), normal(1, 1, 128)
        torch.testing.assert_close(sparse(x), mlp(x), rtol=1e-5, atol=1e-6)
        assert sparse.computed == int(((mlp.gate_proj(x) > 0) & (mlp.up_proj(x) > 0)).sum()) < 150


def test_a_predictor_finds_units_of_inputs_it_has_not_seen():
    torch.manual_seed(0)
    mlp, basis = GatedMLP(32, 64), normal(4, 32)
    x = normal(1200, 4, seed=3) @ basis
    with relufy(mlp):
        on = (mlp.gate_proj(x) > 0) & (mlp.up_proj(x) > 0)
        predictor = NeuronPredictor(steps=200).fit(x[:900], on[:900])
        quality = predictor.score(x[900:], on[900:])
        assert quality["recall"] > 0.9 and quality["precision"] > 0.7 > float(on.double().mean()) + 0.2
        sparse = SparseFFN.from_dense(mlp, predictor)
        row = x[900:901]
        off = (sparse(row) - mlp(row)).norm() / mlp(row).norm()
        assert float(off.detach()) < 0.3 and sparse.computed < 64


def test_parameters_at_work_are_counted_as_published():
    assert activated_parameters(4096, 14336, 0.9) == pytest.approx(17.6e6, rel=2e-3)
    assert activated_parameters(4, 8, 0.5, attention=10, router=2) == 60
    assert mixture_sparsity(0.88, 2, 8) == pytest.approx(0.97)


def test_what_is_so_already_is_left_with_a_warning():
    mlp = GatedMLP(3, 4, nn.ReLU())
    with pytest.warns(ActiniumWarning, match="already"):
        assert relufy(mlp, "reglu").places == []
    relufy(mlp)
    with pytest.warns(ActiniumWarning, match="already"):
        relufy(mlp)
    both = nn.Sequential(GatedMLP(3, 4), mlp)
    with pytest.raises(InputError, match="undo"):
        relufy(both, "reglu")
    assert isinstance(both[0].act_fn, nn.SiLU)
    learnt = GatedMLP(3, 4, nn.PReLU(7))
    assert relufy(learnt).places == [""]


def test_fused_experts_are_refused_with_their_name():
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="experts keeps both maps"):
        relufy(transformers.MixtralForCausalLM(config))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: relufy(GatedMLP(2, 3), "drelo"), "drelu"),
        (lambda: relufy(nn.Linear(2, 2)), "no gated MLP"),
        (lambda: relufy(GatedMLP(2, 3), "drelu", shift=1.0), "shifted"),
        (lambda: SparseFFN.from_dense(GatedMLP(2, 3)), "SiLU"),
        (lambda: SparseFFN.from_dense(nn.Sequential(GatedMLP(2, 3))), "holds gated"),
        (lambda: gated_sparsity(GatedMLP(2, 3), []), "no batches"),
        (lambda: gated_sparsity(GatedMLP(2, 3), [], cett=2.0), "cett"),
        (lambda: GatedMLP(0, 3), "widths"),
        (lambda: activated_parameters(2, 3, 1.5), "sparsity"),
        (lambda: mixture_sparsity(0.5, 3, 2), "experts"),
        (lambda: NeuronPredictor().fit(torch.zeros(3, 2), torch.zeros(4, 2)), "active"),
        (lambda: NeuronPredictor().predict(torch.zeros(3, 2)), "not fitted"),
    ],
)
def test_what_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()
