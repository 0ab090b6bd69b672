"""Propagation rules: values stay to the last bit, coefficients are those of the closed forms, and all is undone."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import architectures
from actinium.circuits import lrp_rules
from actinium.circuits.patching.lrp import RELP
from actinium.core import edits, taps
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

ALL = (*RELP, "ah")
NAMES = [*architectures.CAUSAL, "bert", "t5-gated", "vit", "dinov2", "cohere", "olmo", "nemotron", "stablelm", "glm4"]


class Gated(nn.Module):
    """y = w . ((A x) * (B x)), without biases; with `act`, w . (act(A x) * (B x))."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = nn.Linear(5, 7, bias=False), nn.Linear(5, 7, bias=False)
        self.down_proj = nn.Linear(7, 1, bias=False)
        self.act = act or nn.Identity()

    def forward(self, x):
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


def coefficients(module, x, rules=None, **options):
    """Output, and gradient with respect to the input under the rules."""
    x = x.detach().clone().requires_grad_()
    if rules is None:
        y = module(x)
    else:
        with lrp_rules(module, rules, **options):
            y = module(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), found


def double(module):
    return module.double().eval()


@pytest.mark.parametrize("name", NAMES)
def test_values_of_every_architecture_stay(name):
    model, inputs = architectures.shared(name), architectures.inputs_for(name)
    with torch.enable_grad():
        plain = model.logits(inputs).detach()
        with lrp_rules(model) as report:
            assert torch.equal(model.logits(inputs).detach(), plain)
        assert "ln" in report.converted.values()
        with lrp_rules(model, ALL):
            held = model.logits(inputs).detach()
    # Patterns that are constants are multiplied out by the module's plain mathematics, not by its kernel.
    assert float((held - plain).abs().max()) <= 1e-5 * max(1.0, float(plain.abs().max()))
    assert taps.board(model.module).hooks == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_gradients_are_the_models_own_again_after_an_error(name):
    model, ids = Model(architectures.build(name)), architectures.token_ids()
    weight = next(p for n, p in model.module.named_parameters() if "embed" in n or "wte" in n)

    def gradient():
        return torch.autograd.grad(model.logits(ids).pow(2).sum(), weight)[0]

    before = gradient()
    with pytest.raises(ZeroDivisionError), lrp_rules(model, ALL):
        assert not torch.equal(gradient(), before)
        raise ZeroDivisionError
    torch.testing.assert_close(gradient(), before, rtol=0, atol=0)
    assert taps.board(model.module).hooks == 0


def test_a_bilinear_gate_counts_twice_and_with_the_half_rule_once():
    module, x = double(Gated()), torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, plain = coefficients(module, x)
    assert float((plain * x).sum() / y) == pytest.approx(2.0, abs=1e-10)
    halved, found = coefficients(module, x, ("half",))
    assert torch.equal(y, halved)
    assert float((found * x).sum() / y) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("factor", ["gate_proj", "up_proj"])
def test_each_factor_of_a_gate_gets_half_and_their_product_all(factor):
    module = double(Gated(nn.SiLU()))
    model, x = Model(module), torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    deltas = {f"module:{factor}": torch.zeros(3, 7).double(), "module_in:down_proj": torch.zeros(3, 7).double()}
    for delta in deltas.values():
        delta.requires_grad_()

    def found():
        with model.edit([(name, edits.Add(delta)) for name, delta in deltas.items()]):
            return torch.autograd.grad(module(x).sum(), list(deltas.values()))

    plain = found()
    with lrp_rules(model, ("half",)):
        halved = found()
    torch.testing.assert_close(halved[0], plain[0] / 2)
    torch.testing.assert_close(halved[1], plain[1])


def test_layer_norm_keeps_what_the_linear_form_of_its_scale_says():
    random = torch.Generator().manual_seed(0)
    x, w = (torch.randn(16, dtype=torch.float64, generator=random) for _ in range(2))
    norm = nn.LayerNorm(16, eps=0.0, bias=False).double()
    module = nn.Sequential(norm, nn.Linear(16, 1, bias=False).double()).eval()
    with torch.no_grad():
        module[1].weight.copy_(w)
    y, plain = coefficients(module, x)
    assert abs(float((plain * x).sum())) < 1e-12
    _, found = coefficients(module, x, ("ln",))
    assert float((found * x).sum()) == pytest.approx(float(w @ F.layer_norm(x, (16,), eps=0.0)), abs=1e-12)
    assert float((found * x).sum()) == pytest.approx(float(y), abs=1e-12)
    # The mean is not held: the coefficients do not change when a constant is added to all inputs.
    assert abs(float(found.sum())) < 1e-12


def part(name, path):
    return architectures.build(name).get_submodule(path)


@pytest.mark.parametrize(
    ("norm", "dims", "centred"),
    [
        (lambda: nn.LayerNorm(32), (-1,), True),
        (lambda: nn.LayerNorm((2, 32)), (-2, -1), True),
        (lambda: nn.GroupNorm(1, 2), (-2, -1), True),
        (lambda: nn.RMSNorm(32), (-1,), False),
        (lambda: part("llama", "model.norm"), (-1,), False),
        (lambda: part("gemma", "model.norm"), (-1,), False),
        (lambda: part("cohere", "model.norm"), (-1,), True),
        (lambda: part("nemotron", "model.norm"), (-1,), True),
        (lambda: part("t5", "decoder.final_layer_norm"), (-1,), False),
    ],
    ids=["LayerNorm", "LayerNorm over two", "GroupNorm", "RMSNorm", "Llama", "Gemma", "Cohere", "Nemotron", "T5"],
)
def test_coefficients_of_a_norm_give_the_change_to_any_input_of_the_same_scale(norm, dims, centred):
    """With its scale held a norm is affine, so from x to x' with the same spread the coefficients are exact."""
    module, random = nn.Sequential(norm()).eval(), torch.Generator().manual_seed(0)
    x, other, w = (torch.randn(3, 2, 32, generator=random) for _ in range(3))
    if centred:
        x, other = (t - t.mean(dims, keepdim=True) for t in (x, other))
    other *= (x.pow(2).sum(dims, keepdim=True) / other.pow(2).sum(dims, keepdim=True)).sqrt()
    x.requires_grad_()
    with lrp_rules(module, ("ln",)):
        (found,) = torch.autograd.grad((module(x) * w).sum(), x)
    with torch.no_grad():
        change = float(((module(other) - module(x)) * w).sum())
        assert float((found * (other - x)).sum()) == pytest.approx(change, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("x", "slope"), [(1.0, 0.841345), (-1.0, 0.158655), (0.0, 0.0)])
def test_slope_of_the_identity_rule_is_the_ratio_of_output_and_input(x, slope):
    module = nn.Sequential(nn.GELU()).eval()
    y, found = coefficients(module, torch.tensor([x], dtype=torch.float64), ("identity",))
    assert float(found) == pytest.approx(slope, abs=2e-6)
    assert float(y) == pytest.approx(x * slope, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_values_and_has_finite_slopes(dtype):
    module = nn.Sequential(nn.LayerNorm(8), nn.SiLU()).to(dtype).eval()
    x = torch.linspace(-4, 4, 8).to(dtype)
    y, found = coefficients(module, x, ("ln", "identity"))
    assert torch.equal(y, module(x).detach())
    assert bool(torch.isfinite(found).all())
    ratio = coefficients(nn.Sequential(nn.SiLU()).to(dtype).eval(), torch.zeros(3, dtype=dtype), ("identity",))[1]
    assert not ratio.any()


def test_relu_and_linear_layers_keep_their_gradient():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    x = torch.randn(5, 4)
    with lrp_rules(module) as report:
        pass
    assert report.converted == {"1": "identity"} and not report.left
    assert torch.equal(coefficients(module, x, RELP)[1], coefficients(module, x)[1])


def dense(layer, x):
    """Weight (out, in) and bias (out,) of a layer for inputs of this shape, found from its values."""
    with torch.no_grad():
        bias = layer(torch.zeros_like(x)).flatten()
        unit = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
        return torch.stack([layer(u).flatten() - bias for u in unit], 1), bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d of GPT-2"])
def test_epsilon_and_gamma_share_relevance_as_their_sums_say(kind, bias):
    """The sums over inputs of both rules written out with the layer's matrix (Bach et al.; Montavon et al.)."""
    torch.manual_seed(0)
    layer, x = {
        "linear": (nn.Linear(6, 4, bias=bias), torch.randn(6)),
        "conv2d": (nn.Conv2d(2, 3, 2, stride=2, padding=1, bias=bias), torch.randn(2, 4, 4)),
        "conv1d of GPT-2": (Conv1D(4, 6), torch.randn(6)),
    }[kind]
    if kind == "conv1d of GPT-2":
        nn.init.normal_(layer.weight)
        nn.init.constant_(layer.bias, 0.3 if bias else 0.0)
    layer, x = double(layer), x.double()
    weight, shift = dense(layer, x)
    z = weight @ x.flatten() + shift
    sign = torch.where(z < 0, -1.0, 1.0)
    module = nn.Sequential(layer).eval()
    _, found = coefficients(module, x, ("epsilon",), epsilon=0.1)
    relevance = (weight * x.flatten() * (z / (z + 0.1 * sign))[:, None]).sum(0)
    torch.testing.assert_close((found * x).flatten(), relevance)
    _, found = coefficients(module, x, ("gamma",), gamma=0.5, epsilon=0.0)
    total = torch.zeros_like(x).flatten()
    for j in range(len(z)):
        parts = weight[j] * x.flatten()
        helps = parts * sign[j] > 0
        raised = torch.where(helps, 1.5 * parts, parts)
        share = shift[j] * (1.5 if shift[j] * sign[j] > 0 else 1.0)
        total += raised / (raised.sum() + share) * z[j]
    torch.testing.assert_close((found * x).flatten(), total)


@pytest.mark.parametrize(("rule", "options"), [("epsilon", {"epsilon": 0.05}), ("gamma", {"gamma": 0.25})])
def test_relevance_of_a_convolutional_network_is_that_of_zennit(rule, options):
    zennit = pytest.importorskip("zennit", exc_type=Exception)
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten())
    module = double(nn.Sequential(*layers, nn.Linear(16, 3)))
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    stabiliser = options.get("epsilon", 1e-6)
    made = {"epsilon": lambda: zennit.rules.Epsilon(stabiliser), "gamma": lambda: zennit.rules.Gamma(0.25, stabiliser)}
    plan = [((nn.Conv2d, nn.Linear), made[rule]())]
    composite = zennit.composites.LayerMapComposite(plan)
    with composite.context(module) as changed:
        inputs = x.clone().requires_grad_()
        out = changed(inputs)
        (expected,) = torch.autograd.grad(out, inputs, out.detach())
    # Zennit hands relevance from layer to layer, here it is what the input's coefficients make of the input.
    inputs = x.clone().requires_grad_()
    with lrp_rules(module, (rule,), **options):
        (found,) = torch.autograd.grad(module(inputs).sum(), inputs)
    torch.testing.assert_close((found * x), expected, rtol=1e-4, atol=1e-6)


def test_rules_belong_to_the_thread_that_entered_them():
    module, x = double(Gated()), torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, plain = coefficients(module, x)
    seen = []
    with lrp_rules(module, ("half",)):
        thread = threading.Thread(target=lambda: seen.append(coefficients(module, x)[1]))
        thread.start()
        thread.join()
    torch.testing.assert_close(seen[0], plain)


def test_the_innermost_rules_of_a_model_count():
    module, x = (
        double(Gated(nn.SiLU())),
        torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    inner = coefficients(module, x, ("identity",))[1]
    with lrp_rules(module, ("half",)):
        assert torch.equal(coefficients(module, x, ("identity",))[1], inner)
        outer = coefficients(module, x)[1]
    assert torch.equal(outer, coefficients(module, x, ("half",))[1])
    assert not torch.equal(outer, inner)


def test_rules_can_be_switched_after_the_model_was_built():
    """And act on a block entered within an edit of what a norm gives."""
    model, ids = architectures.shared("llama"), architectures.token_ids()
    delta = torch.zeros(2, 7, 32, requires_grad=True)
    with model.edit({"final_norm": edits.Add(delta)}), lrp_rules(model):
        (found,) = torch.autograd.grad(model.logits(ids)[:, -1, 5].sum(), delta)
    head = model.module.get_output_embeddings().weight[5]
    torch.testing.assert_close(found[:, -1], head.expand(2, -1))


def test_report_names_what_follows_which_rule_and_what_does_not():
    with lrp_rules(architectures.shared("llama")) as report:
        pass
    assert report.converted["model.norm"] == "ln"
    assert report.converted["model.layers.1.mlp.act_fn"] == "identity"
    assert report.converted["model.layers.2.mlp.down_proj (input)"] == "half"
    assert report.left == {f"model.layers.{i}.self_attn": "softmax: rule ah not chosen" for i in range(3)}
    assert repr(report) == "Rules(ln 7, identity 3, half 3; left 3)"
    with lrp_rules(architectures.shared("gpt2"), ("ah",)) as report:
        pass
    assert set(report.converted.values()) == {"ah"}
    assert report.left["transformer.ln_f"] == "LayerNorm: rule ln not chosen"
    assert report.left["transformer.h.0.mlp.act"] == "NewGELUActivation: rule identity not chosen"
    with lrp_rules(architectures.shared("mixtral")) as report:
        pass
    assert report.left["model.layers.0.mlp.experts"] == "experts: the products within them"
    assert report.left["model.layers.0.mlp.gate"] == "MixtralTopKRouter: not known"
    with lrp_rules(architectures.shared("mamba")) as report:
        pass
    assert "state-space mixer" in report.left["backbone.layers.0.mixer"]


def test_activations_that_a_slope_cannot_stand_for_are_left():
    module = nn.Sequential(nn.Sigmoid(), nn.Softmax(-1), nn.SiLU(inplace=True), nn.Tanh()).eval()
    with lrp_rules(module) as report:
        pass
    assert report.converted == {"3": "identity"}
    assert report.left == {
        "0": "Sigmoid: is not 0 at 0",
        "1": "Softmax: not known",
        "2": "SiLU: writes over its input",
    }


class Hidden(nn.LayerNorm):
    """A norm whose whole computation is one kernel."""

    def forward(self, x):
        return torch.native_layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)[0]


@pytest.mark.parametrize(
    ("module", "rules", "options", "error", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), RELP, {}, InputError, "nothing in Sequential can follow ln, identity, half"),
        (nn.Sequential(nn.Softmax(-1)), RELP, {}, InputError, "Softmax: not known"),
        (nn.Sequential(Hidden(3)), RELP, {}, InputError, "where it cannot be seen"),
        (nn.Sequential(nn.GELU()), (), {}, InputError, "one or more"),
        (nn.Sequential(nn.GELU()), "ln", {}, InputError, "rules are names"),
        (nn.Sequential(nn.GELU()), ("identitiy",), {}, UnknownNameError, "'identity'"),
        (nn.Sequential(nn.Linear(3, 3)), ("epsilon", "gamma"), {}, InputError, "choose one"),
        (nn.Sequential(nn.Linear(3, 3)), ("epsilon",), {"epsilon": -1.0}, InputError, "0 or more"),
        (nn.Sequential(nn.Linear(3, 3)), ("gamma",), {"gamma": float("nan")}, InputError, "0 or more"),
    ],
)
def test_rules_without_a_meaning_are_refused(module, rules, options, error, message):
    with pytest.raises(error, match=message), lrp_rules(module.eval(), rules, **options):
        pass


def test_training_mode_is_refused():
    with pytest.raises(InputError, match="training mode"), lrp_rules(nn.Sequential(nn.GELU()).train()):
        pass


def test_a_hidden_norm_does_not_disturb_the_other_rules():
    module = nn.Sequential(Hidden(3), nn.GELU()).eval()
    with lrp_rules(module, ("identity",)) as report:
        pass
    assert report.converted == {"1": "identity"} and report.left == {"0": "Hidden: rule ln not chosen"}
