"""Any module by its path: what it returns, how often it runs, and transformers without a row in the table."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actinium.core.edits import Add, Fn, Scale, Zero
from actinium.core.errors import SiteError
from actinium.core.model import Model
from architectures import UNLISTED, inputs_for, shared

PLAIN = ("stablelm", "olmo", "starcoder2", "cohere")


@pytest.mark.parametrize("name", PLAIN)
def test_an_unlisted_transformer_is_recognised_and_its_sites_are_consistent(name):
    """Identities that need no knowledge of the architecture."""
    model, inputs = shared(name), inputs_for(name)
    assert model.family is None
    assert model.n_layers == 3
    assert model.n_heads == 4
    rec = model.record(inputs, "**")
    with torch.no_grad():
        out = model.module(inputs, output_hidden_states=True)
    for i in range(3):
        at = f"blocks.{i}."
        assert torch.allclose(rec[at + "resid_pre"], out.hidden_states[i], atol=1e-5)
        v = rec[at + "attn.v"].repeat_interleave(2, 2)
        z = torch.einsum("bhqk,bkhd->bqhd", rec[at + "attn.pattern"], v)
        assert torch.allclose(rec[at + "attn.z"], z, atol=1e-5)
        assert torch.allclose(rec[at + "attn.pattern"], rec[at + "attn.scores"].softmax(-1), atol=1e-5)
        whole = rec[at + "resid_pre"] + rec[at + "attn.out"] + rec[at + "mlp.out"]
        assert torch.allclose(rec[at + "resid_post"], whole, atol=1e-5)
        post = rec[at + "mlp.post"]
        down = getattr(model.module.model.layers[i].mlp, "down_proj", None)
        down = down or model.module.model.layers[i].mlp.c_proj
        assert torch.allclose(rec[at + "mlp.out"], F.linear(post, down.weight, down.bias), atol=1e-5)
    assert torch.allclose(rec["final_norm"], out.hidden_states[-1], atol=1e-5)
    assert torch.equal(rec["logits"], out.logits)


@pytest.mark.parametrize("name", UNLISTED)
def test_what_an_unlisted_block_adds_to_its_stream_is_what_is_offered(name):
    """Norms after each half, multipliers: a site that would not hold what its name says must not exist."""
    model, inputs = shared(name), inputs_for(name)
    rec = model.record(inputs, "**")
    for i in range(model.n_layers):
        at = f"blocks.{i}."
        added = [at + p for p in ("attn.out", "mlp.out") if model.has(at + p)]
        if len(added) == 2:
            whole = rec[at + "resid_pre"] + rec[added[0]] + rec[added[1]]
            assert torch.allclose(rec[at + "resid_post"], whole, atol=1e-5), at
    with torch.no_grad():
        states = model.module(inputs, output_hidden_states=True).hidden_states
    assert all(torch.allclose(rec[f"blocks.{i}.resid_pre"], states[i], atol=1e-5) for i in range(model.n_layers))


@pytest.mark.parametrize("name", UNLISTED)
def test_an_unlisted_causal_model_is_known_as_one(name):
    assert shared(name).kind == ("masked-lm" if name == "distilbert" else "causal-lm")


def test_a_hand_written_transformer_is_recognised():
    """Alike blocks with an `attn` and an `mlp`, attention in operations of its own, no configuration."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 2
            self.is_causal = True
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.proj(z.transpose(1, 2).flatten(2))

    class Feed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.gelu(self.fc1(x)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2, self.attn, self.mlp = nn.LayerNorm(8), nn.LayerNorm(8), Attention(), Feed()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.blocks = nn.Embedding(11, 8), nn.ModuleList([Block(), Block()])
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    model = Model(Small())
    ids = torch.randint(0, 11, (3, 5))
    rec = model.record(ids, "**")
    assert torch.equal(rec["embed"], model.module.embed(ids))
    for i, block in enumerate(model.module.blocks):
        at = f"blocks.{i}."
        x = rec[at + "resid_pre"]
        assert torch.allclose(rec[at + "attn.out"], block.attn(block.norm1(x)), atol=1e-6)
        q, k, v = (t.unflatten(-1, (2, 4)) for t in block.attn.qkv(block.norm1(x)).chunk(3, -1))
        for part, want in (("q", q), ("k", k), ("v", v)):
            assert torch.allclose(rec[f"{at}attn.{part}"], want, atol=1e-6)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / 2
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
        assert torch.allclose(rec[at + "attn.pattern"], scores.softmax(-1), atol=1e-6)
        x = x + rec[at + "attn.out"]
        assert torch.allclose(rec[at + "mlp.pre"], block.mlp.fc1(block.norm2(x)), atol=1e-5)
        assert torch.allclose(rec[at + "mlp.post"], F.gelu(rec[at + "mlp.pre"]), atol=1e-6)
        assert torch.allclose(rec[at + "resid_post"], x + rec[at + "mlp.out"], atol=1e-6)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    ).eval()  # fmt: skip


def test_a_convolutional_network_is_read_by_module_path():
    """The in-place ReLU after each convolution must not reach what was recorded."""
    net = cnn()
    model, x = Model(net), torch.randn(2, 3, 12, 12)
    rec = model.record(x, ["module:0", "module_in:1", "module:2", "module:3", "module:7"])
    first = net[0](x)
    assert torch.equal(rec["module:0"], first)
    assert torch.equal(rec["module_in:1"], first)
    assert torch.equal(rec["module:2"], net[1](first).relu())
    assert torch.equal(rec["module:7"], net(x))
    assert rec.dims["module:0"] == ("batch", "channel", "height", "width")
    assert float(rec["module:3"].min()) < 0
    assert [s.name for s in model.sites()] == [f"module:{i}" for i in range(8)]
    assert model.kind == "other"


def test_channels_of_a_convolutional_network_are_edited_as_units():
    net = cnn()
    model, x = Model(net), torch.randn(2, 3, 12, 12)
    first = net[0](x)
    first[:, [1, 3]] = 0
    with torch.no_grad(), model.edit({"module:0": Zero().at(units=[1, 3])}):
        assert torch.equal(model(x), net[1:](first))
    with torch.no_grad(), model.edit({"module_in:3": Scale(2.0).at(rows=[1])}):
        edited = model(x)
    h = net[:3](x)
    h[1] *= 2
    assert torch.equal(edited, net[3:](h))


def test_a_plain_perceptron_is_read_and_edited_by_module_path():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model, x = Model(net), torch.randn(5, 4)
    rec = model.record(x, "module:*")
    assert torch.equal(rec["module:1"], net[0](x).tanh())
    assert rec.dims["module:1"] == ("batch", "feature")
    shift = torch.linspace(0, 1, 8)
    with torch.no_grad(), model.edit({"module:1": Add(shift).at(units=[2, 5])}):
        edited = model(x)
    h = net[:2](x)
    h[:, [2, 5]] += shift[[2, 5]]
    assert torch.allclose(edited, net[2](h))


def test_a_recurrent_network_is_read_by_module_path():
    """The LSTM returns (output, (h, c)); its site is the first tensor of that."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    net = Reader()
    model, x = Model(net), torch.randn(2, 5, 4)
    rec = model.record(x, ["module:lstm", "module:head"])
    states = net.lstm(x)[0]
    assert torch.allclose(rec["module:lstm"], states, atol=1e-6)
    with torch.no_grad(), model.edit({"module:lstm": Scale(0.5)}):
        halved = model(x)
    assert torch.allclose(halved, net.head(states[:, -1] * 0.5), atol=1e-6)


Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Report:
    count: int
    value: Tensor
    more: dict


SHAPES = {
    "tuple": lambda x: (x * 2, x * 3),
    "list": lambda x: [x * 2, x * 3],
    "nested tuple": lambda x: ((None, x * 2), x * 3),
    "named tuple": lambda x: Pair(x * 2, x * 3),
    "dict": lambda x: {"flag": True, "a": x * 2, "b": x * 3},
    "dataclass": lambda x: Report(3, x * 2, {"b": x * 3}),
    "ids first": lambda x: (torch.arange(3), x * 2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_structured_outputs_are_read_and_written_at_their_first_float_tensor(shape):
    class Structured(nn.Module):
        def forward(self, x: Tensor):
            return SHAPES[shape](x)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Structured()

        def forward(self, x: Tensor):
            return self.inner(x)

    model, x = Model(Whole()), torch.randn(2, 4)
    assert torch.equal(model.record(x, "module:inner")["module:inner"], x * 2)
    plain = model(x)
    with model.edit({"module:inner": Add(torch.ones(4))}):
        edited = model(x)
    assert type(edited) is type(plain)
    flat = {"dict": lambda o: (o["a"], o["b"]), "dataclass": lambda o: (o.value, o.more["b"])}.get(
        shape, lambda o: (o[0][1], o[1]) if shape == "nested tuple" else (o[1], o[0]) if shape == "ids first" else o
    )
    got, want = flat(edited), flat(plain)
    assert torch.equal(got[0], want[0] + 1)
    assert torch.equal(got[1], want[1])


def test_keyword_arguments_are_read_and_written_at_the_modules_input():
    class Inner(nn.Module):
        def forward(self, scale: float = 1.0, hidden: Tensor | None = None) -> Tensor:
            return scale * hidden

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(scale=2.0, hidden=x)

    model, x = Model(Whole()), torch.randn(2, 4)
    assert torch.equal(model.record(x, "module_in:inner")["module_in:inner"], x)
    with model.edit({"module_in:inner": Add(torch.ones(4))}):
        assert torch.equal(model(x), 2 * (x + 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(torch.tanh(self.step(x))))


def test_each_call_of_a_module_called_twice_is_a_site():
    net, x = Twice(), torch.randn(3, 4)
    model = Model(net)
    first = net.step(x)
    second = net.step(first.tanh())
    rec = model.record(x, "module:step")
    assert rec.sites == ["module:step#0", "module:step#1"]
    assert torch.equal(rec["module:step#0"], first)
    assert torch.equal(rec["module:step#1"], second)
    one = model.record(x, "module:step#1")
    assert torch.equal(one["module:step#1"], second)
    assert torch.equal(model.record(x, "module_in:step#1")["module_in:step#1"], first.tanh())
    batched = model.record(x, "module:step", batch_size=2)
    assert all(torch.allclose(batched[s], rec[s]) for s in rec.sites)


def test_an_edit_at_one_call_leaves_the_other_alone():
    net, x = Twice(), torch.randn(3, 4)
    model = Model(net)
    moved = net.step(x) + 1
    wanted = {
        "module:step#1": net.head(net.step(net.step(x).tanh()) + 1),
        "module:step#0": net.head(net.step(moved.tanh())),
        "module:step": net.head(net.step(moved.tanh()) + 1),
    }
    for site, want in wanted.items():
        with torch.no_grad(), model.edit({site: Add(torch.ones(4))}):
            assert torch.allclose(model(x), want, atol=1e-6), site


def test_a_call_that_does_not_happen_is_refused_with_the_number_of_calls():
    model = Model(Twice())
    with pytest.raises(SiteError, match="ran 2 times"):
        model.record(torch.randn(3, 4), "module:step#2")


def test_a_module_that_does_not_run_is_refused():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(SiteError, match=r"module:idle.*did not run"):
        Model(Idle()).record(torch.randn(3, 4), ["module:used", "module:idle"])


def test_module_patterns_follow_the_site_language():
    model = shared("llama")
    names = [s.name for s in model.sites("module:model.layers.*.mlp.{gate_proj,up_proj}")]
    assert names == [f"module:model.layers.{i}.mlp.{p}_proj" for i in range(3) for p in ("gate", "up")]
    rec = model.record(inputs_for("llama"), ["module:model.layers.1.mlp.up_proj", "blocks.1.mlp.pre"])
    assert torch.equal(rec["module:model.layers.1.mlp.up_proj"], rec["blocks.1.mlp.pre"])


def test_a_function_that_changes_the_shape_is_refused():
    model = Model(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match="must return shape"), model.edit({"module:0": Fn(lambda x: x[:, :3])}):
        model(torch.randn(2, 4))
