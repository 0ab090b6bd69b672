"""Safety neurons: the published probe, the choice of neurons, ablation, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens, pad
from actinium.core.intervals import area_under_roc
from actinium.core.model import Model
from actinium.guard.audit.neurons.logistic import adam_logistic, cross_validated_area, ridge_logistic
from actinium.guard.audit.neurons.neuron_ablation import ablate_neurons, neuron_overlap, strongest_neurons
from actinium.guard.audit.neurons.neuron_sites import neuron_layers, neuron_sites, pooled_neurons
from actinium.guard.audit.neurons.safety_neuron_audit import SafetyNeuronAudit
from actinium.guard.audit.neurons.safety_neurons import find_safety_neurons
from actinium.world import lexicon, situations

TOPICS = lexicon.REFUSED[:4] + lexicon.WELCOME[:4]
PROMPTS = [situations.request(topic, frame) for topic in TOPICS for frame in range(3)]
LABELS = [1] * 12 + [0] * 12


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


@pytest.fixture(scope="module")
def found(lm):
    return find_safety_neurons(lm, PROMPTS, LABELS, top_fraction=0.02, epochs=200)


def tiny_llama(layers=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return Model(LlamaForCausalLM(config).eval(), name="tiny llama")


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return Model(GPT2LMHeadModel(config).eval(), name="tiny gpt2")


def ids(n=8, length=6, seed=0):
    return torch.randint(3, 40, (n, length), generator=torch.Generator().manual_seed(seed))


# The probe ----------------------------------------------------------------------------------------------------


def test_probe_is_a_linear_layer_trained_by_adam_after_a_seeded_shuffle():
    x = torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(1))
    y = (torch.arange(30) % 2).float()
    w, b = adam_logistic(x, y, epochs=150, lr=1e-2, seed=1234)
    for site in range(2):
        torch.manual_seed(1234)
        order = torch.randperm(30)
        layer = nn.Linear(12, 1)
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=1e-3)
        for _ in range(150):
            optimiser.zero_grad()
            nn.BCEWithLogitsLoss()(layer(x[site][order])[:, 0], y[order]).backward()
            optimiser.step()
        torch.testing.assert_close(w[site], layer.weight.detach()[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b[site], layer.bias.detach()[0], rtol=1e-4, atol=1e-5)


def test_ridge_probe_is_scikit_learns():
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 5)) * [1, 10, 0.1, 3, 1] + 4
    y = (x[:, 1] + 5 * random.normal(size=60) > 4).astype(float)
    w, b = ridge_logistic(x, y, ridge=0.05)
    other = linear.LogisticRegression(C=1 / (0.05 * 60), tol=1e-10, max_iter=5000)
    other.fit((x - x.mean(0)) / x.std(0), y)
    np.testing.assert_allclose(w, other.coef_[0], atol=1e-4)
    assert b == pytest.approx(float(other.intercept_[0]), abs=1e-4)


def test_area_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, y = random.integers(0, 6, 50), random.integers(0, 2, 50)
    assert area_under_roc(scores, y) == pytest.approx(metrics.roc_auc_score(y, scores))
    with pytest.raises(InputError, match="both classes"):
        area_under_roc(scores, np.ones(50))


def test_a_probe_of_shuffled_labels_knows_nothing_of_prompts_kept_apart():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 10))
    y = random.permutation(np.arange(400) % 2).astype(float)
    assert cross_validated_area(x, y, np.arange(400)) == pytest.approx(0.5, abs=0.08)
    assert cross_validated_area(x + 2 * y[:, None], y, np.arange(400)) > 0.99


def test_the_audit_of_shuffled_labels_has_no_heldout_area(lm):
    prompts = [situations.request(t, f) for t in lexicon.WELCOME for f in range(10)]
    y = np.random.default_rng(0).permutation(np.arange(160) % 2)
    sites = "blocks.2.mlp.gate"
    found = find_safety_neurons(lm, prompts, y, sites, probe="ridge", heldout=0.5)
    assert abs(found.auc_heldout[sites] - 0.5) < 0.2
    assert found.auc_train[sites] > 0.9


# The choice ---------------------------------------------------------------------------------------------------


def test_z_is_standardised_and_neurons_lie_above_tau(found):
    for site, z in found.z.items():
        assert float(z.mean()) == pytest.approx(0, abs=1e-5)
        assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-5)
        chosen = found.chosen(tau=1.5).indices[site]
        assert chosen.tolist() == [j for j in range(len(z)) if z[j] > 1.5 and found.weights[site][j] > 0]
        first = found.indices[site]
        assert len(first) == round(0.02 * len(z))
        rest = np.delete(z.numpy(), first.numpy())
        assert float(z[first].min()) >= rest.max()
    assert found.count == 12 * 7
    assert found.total == 12 * 352
    assert found.table()["chosen"].tolist() == [7] * 12
    assert "84 of 4224" in repr(found)


def test_the_guard_can_be_told_from_the_prompts(found):
    assert min(found.auc_heldout.values()) > 0.9


def test_runs_are_averaged_over_seeds(lm):
    sites = "blocks.0.mlp.gate"
    options = {"sites": sites, "epochs": 20, "heldout": 0.0}
    both = find_safety_neurons(lm, PROMPTS, LABELS, runs=2, seed=5, **options)
    single = [find_safety_neurons(lm, PROMPTS, LABELS, seed=s, **options).weights[sites] for s in (5, 6)]
    torch.testing.assert_close(both.weights[sites], (single[0] + single[1]) / 2)
    assert np.isnan(both.auc_heldout[sites])


# What is read -------------------------------------------------------------------------------------------------


def test_values_are_maxima_over_real_tokens_whatever_the_padding_side():
    model = tiny_llama()
    texts = [row[:n].tolist() for row, n in zip(ids(), (6, 3, 5, 2, 6, 4, 3, 6), strict=True)]
    sites = neuron_sites(model)
    assert sites == [f"blocks.{i}.mlp.{part}" for i in range(2) for part in ("pre", "gate")]
    alone = [model.record(torch.tensor([row]), sites) for row in texts]
    sides = {}
    for side in ("left", "right"):
        tokens = Tokens(*pad(texts, 0, side), torch.arange(8))
        sides[side], size = pooled_neurons(model, tokens, sites, batch_size=3)
        wrong, _ = pooled_neurons(model, tokens, sites, padding=True)
        for site in sites:
            expected = torch.stack([rec[site][0].amax(0) for rec in alone])
            torch.testing.assert_close(sides[side][site], expected, rtol=1e-4, atol=1e-5)
            mean = torch.stack([rec[site][0].abs().mean(0) for rec in alone])
            torch.testing.assert_close(size[site], mean, rtol=1e-4, atol=1e-5)
            assert bool((wrong[site] >= expected - 1e-4).all())
            assert not torch.allclose(wrong[site], expected, atol=1e-4)
    for how, of in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1])):
        values, _ = pooled_neurons(model, Tokens(*pad(texts, 0, "left"), torch.arange(8)), sites, pool=how)
        expected = torch.stack([of(rec[sites[1]][0]) for rec in alone])
        torch.testing.assert_close(values[sites[1]], expected, rtol=1e-4, atol=1e-5)


def test_modules_can_be_named_by_patterns_and_expressions():
    model = tiny_llama(12)
    gates = neuron_sites(model, re.compile(r"model\.layers\.\d+\.mlp\.gate_proj"))
    assert gates == neuron_sites(model, "module:**.gate_proj")
    assert neuron_layers(model, gates) == {name: i for i, name in enumerate(gates)}
    assert neuron_sites(model, re.compile(r"model\.layers\.1\.mlp\.gate_proj")) == [gates[1]]
    y = [0, 1] * 4
    by_module = find_safety_neurons(model, ids(), y, [gates[11]], epochs=5)
    by_name = find_safety_neurons(model, ids(), y, "blocks.11.mlp.gate", epochs=5)
    assert torch.equal(by_module.weights[gates[11]], by_name.weights["blocks.11.mlp.gate"])
    assert by_module.layers == {gates[11]: 11}


def test_images_are_prompts_too():
    model = ac.load("world:digits-vit")
    images = ac.world.heldout_images("digits-vit", n=60)
    found = find_safety_neurons(model, images.images, (images.labels == 0).long(), epochs=300, top_fraction=0.05)
    assert max(found.auc_heldout.values()) > 0.9


# Ablation -----------------------------------------------------------------------------------------------------


def test_no_neurons_change_no_bit_and_nothing_stays(found, lm):
    before = lm.logits(PROMPTS)
    with ablate_neurons(lm, found.chosen(tau=1e9)):
        assert torch.equal(lm.logits(PROMPTS), before)
    with pytest.raises(RuntimeError), ablate_neurons(lm, found):
        assert not torch.equal(lm.logits(PROMPTS), before)
        raise RuntimeError
    assert torch.equal(lm.logits(PROMPTS), before)


def test_without_all_gates_an_mlp_gives_its_bias():
    for model, part in ((tiny_llama(), "gate"), (tiny_gpt2(), "pre")):
        site = f"blocks.1.mlp.{part}"
        width = model.sites(site)[0].sizes.get("d_mlp") or 64
        with torch.no_grad():
            for name, p in model.module.named_parameters():
                if name.endswith("mlp.c_proj.bias"):
                    p.copy_(torch.arange(16.0))
        with ablate_neurons(model, {site: range(width)}):
            out = model.record(ids(), "blocks.1.mlp.out")["blocks.1.mlp.out"]
        expected = torch.zeros(16) if part == "gate" else torch.arange(16.0)
        assert torch.equal(out, expected.expand_as(out))


def test_a_zero_gate_is_a_zero_column_of_the_down_projection():
    model = tiny_llama()
    with ablate_neurons(model, {"blocks.0.mlp.gate": [3, 7]}):
        ablated = model.logits(ids())
    with torch.no_grad():
        model.module.model.layers[0].mlp.down_proj.weight[:, [3, 7]] = 0
    torch.testing.assert_close(ablated, model.logits(ids()), rtol=0, atol=1e-6)


def test_only_the_blocks_that_are_named_are_ablated(found, lm):
    with ablate_neurons(lm, found, range(2)):
        prefix = lm.logits(PROMPTS)
    with ablate_neurons(lm, {s: u for s, u in found.indices.items() if s.startswith(("blocks.0.", "blocks.1."))}):
        assert torch.equal(lm.logits(PROMPTS), prefix)
    with ablate_neurons(lm, {s: u.tolist() for s, u in found.indices.items()}, [0, 1]):
        assert torch.equal(lm.logits(PROMPTS), prefix)


def test_strongest_neurons_are_those_of_largest_score():
    assert strongest_neurons({"a": torch.tensor([0.1, 3.0, -4.0, 2.0])}, {"a": 2})["a"].tolist() == [1, 3]


# Guards of a toy ----------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A gated MLP that answers the sign of one input, and refuses where the sum of two others is large."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(20, 256), nn.Linear(20, 256), nn.Linear(256, 3)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def test_targeted_ablation_destroys_a_guard_and_random_ablation_does_not():
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    y = torch.where(x[:, 0] + x[:, 1] > 1, 2, (x[:, 2] > 0).long())
    module = Gated()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-3)
    for _ in range(600):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    model = Model(module, name="guarded toy")
    test = torch.randn(2000, 20)
    guarded, sign = test[:, 0] + test[:, 1] > 1, (test[:, 2] > 0).long()

    def scores():
        with torch.no_grad():
            answers = module(test)
        benign = ~guarded
        return (
            float((answers[guarded].argmax(1) == 2).float().mean()),
            float((answers[benign, :2].argmax(1) == sign[benign]).float().mean()),
        )

    rows = torch.cat([x[y == 2][:400], x[y != 2][:400]])
    labels = torch.cat([torch.ones(400), torch.zeros(400)])
    found = find_safety_neurons(model, rows, labels, ["module:gate", "module:up"], tau=1.0, epochs=1500, heldout=0.0)
    whole = scores()
    with ablate_neurons(model, found):
        targeted = scores()
    random = torch.Generator().manual_seed(0)
    with ablate_neurons(model, {s: torch.randperm(256, generator=random)[: len(u)] for s, u in found.indices.items()}):
        others = scores()
    assert found.layers == {"module:gate": 0, "module:up": 1}
    assert whole[0] > 0.85
    assert targeted[0] < 0.3 < 0.7 < others[0]
    assert targeted[1] > whole[1] - 0.1


# Children -----------------------------------------------------------------------------------------------------


def test_overlap_is_one_with_itself_and_counts_what_is_shared(found, lm):
    same = neuron_overlap(found, found)
    np.testing.assert_allclose(same["jaccard"], 1)
    np.testing.assert_allclose(same["spearman"], 1)
    fewer = neuron_overlap(found, found.chosen(None, 0.01))
    np.testing.assert_allclose(fewer["jaccard"], 4 / 7)
    assert fewer["both"].values.tolist() == [4] * 12
    assert bool(np.isnan(neuron_overlap(found.chosen(1e9), found.chosen(1e9))["jaccard"]).all())
    child = find_safety_neurons(ac.load("world:lm-narrow"), PROMPTS, LABELS, top_fraction=0.02, epochs=200)
    assert float(neuron_overlap(found, child)["jaccard"].mean()) > 0.3
    other = find_safety_neurons(tiny_gpt2(), ids(), [0, 1] * 4, epochs=5)
    with pytest.raises(InputError, match="same sites"):
        neuron_overlap(found, other)


def test_an_audit_is_saved_and_read(tmp_path, lm):
    audit = SafetyNeuronAudit(top_fraction=0.02, epochs=30, heldout=0.0)
    with pytest.raises(InputError, match="not fitted"):
        audit.save(tmp_path / "a.safetensors")
    audit.fit(lm, PROMPTS, LABELS)
    again = SafetyNeuronAudit.load(audit.save(tmp_path / "a.safetensors"))
    assert again.get_params() == audit.get_params()
    for site, units in audit.neurons_.indices.items():
        assert torch.equal(again.neurons_.indices[site], units)
        assert torch.equal(again.neurons_.z[site], audit.neurons_.z[site])
    assert again.neurons_.layers == audit.neurons_.layers
    with audit.ablate(lm), again.ablate(lm):
        pass
    (tmp_path / "b.safetensors").write_text("no")
    with pytest.raises(LoadError, match="cannot read"):
        SafetyNeuronAudit.load(tmp_path / "b.safetensors")


# What is refused ----------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """Gives NaN for rows whose first entry is negative."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 4)

    def forward(self, x):
        return self.up(torch.where(x[:, :1] < 0, torch.nan, x))


def test_rows_that_are_not_finite_are_dropped_while_they_are_few():
    torch.manual_seed(0)
    model, x = Model(Broken()), torch.rand(40, 3)
    x[:3, 0] = -1
    found = find_safety_neurons(model, x, [0, 1] * 20, "module:up", epochs=5, heldout=0.0)
    assert found.dropped == {"module:up": 3}
    same = find_safety_neurons(model, x[3:], ([0, 1] * 20)[3:], "module:up", epochs=5, heldout=0.0)
    torch.testing.assert_close(found.weights["module:up"], same.weights["module:up"])
    x[:5, 0] = -1
    with pytest.raises(InputError, match="5 of 40 prompts"):
        find_safety_neurons(model, x, [0, 1] * 20, "module:up", epochs=5)


def test_what_cannot_be_audited_is_refused(lm):
    for labels, message in (
        ([1] * 24, "0 benign"),
        ([0] * 23 + [1], "1 guarded"),
        ([2] * 12 + [0] * 12, "1 for guarded"),
        ([np.nan] * 24, "1 for guarded"),
        (["a"] * 24, "1 for guarded"),
        ([0, 1] * 3, "6 labels for 24"),
    ):
        with pytest.raises(InputError, match=message):
            find_safety_neurons(lm, PROMPTS, labels, "blocks.0.mlp.gate", epochs=1)
    options = {"sites": "blocks.0.mlp.gate"}
    for more, error in (
        ({"probe": "svm"}, UnknownNameError),
        ({"pool": "median"}, UnknownNameError),
        ({"epochs": 0}, InputError),
        ({"heldout": 1.0}, InputError),
        ({"top_fraction": 2.0, "epochs": 1}, InputError),
        ({"pool": "mean", "legacy": True}, InputError),
        ({"sites": "blocks.9.mlp.gate"}, SiteError),
        ({"sites": re.compile("nothing")}, SiteError),
        ({"sites": []}, SiteError),
        ({"probe": "ridge", "ridge": 0.0}, InputError),
    ):
        with pytest.raises(error):
            find_safety_neurons(lm, PROMPTS, LABELS, **(options | more))
    with pytest.raises(SiteError, match="module:"):
        find_safety_neurons(Model(Gated()), torch.zeros(4, 20), [0, 0, 1, 1])
    with pytest.raises(InputError, match="lies in no block"):
        neuron_layers(lm, ["module:lm_head", "blocks.0.mlp.gate"])
    with pytest.raises(InputError, match="longer than the context"), pytest.warns(UserWarning):
        find_safety_neurons(lm, [*PROMPTS[:23], "zorbing " * 200], LABELS, "blocks.0.mlp.gate", epochs=1)
    with pytest.raises(InputError, match="units go from 0 to 351"), ablate_neurons(lm, {"blocks.0.mlp.gate": [352]}):
        pass
