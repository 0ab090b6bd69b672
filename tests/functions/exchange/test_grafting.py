"""Grafts learn what the old operator did, in networks of one's own and of transformers, which stay as they are."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, SiteError
from actinium.functions.exchange.activation_distillation import ActivationDistiller
from actinium.functions.exchange.graft_calls import record_calls
from actinium.functions.exchange.graft_operators import GraftMLP, HyenaXMLP, SlidingWindowAttention, ZeroOperator
from actinium.functions.exchange.grafting import Graft, interleaved, redrawn
from actinium.functions.exchange.parallel_blocks import ParallelPair, parallelize_blocks
from actinium.functions.exchange.site_survey import attention_locality, locality_of, operator_statistics

WIDTH, TOKENS = 8, 6


class Block(nn.Module):
    """A block of a transformer, causal or not, whose attention may give a tuple."""

    def __init__(self, causal=False, pair=False):
        super().__init__()
        self.attn = Attention(causal, pair)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        y = self.attn(self.norm1(x))
        x = x + (y[0] if isinstance(y, tuple) else y)
        return x + self.mlp(self.norm2(x))


class Attention(SlidingWindowAttention):
    def __init__(self, causal, pair):
        super().__init__(WIDTH, 2, TOKENS, causal)
        self.pair = pair

    def forward(self, h):
        y = super().forward(h)
        return (y, None) if self.pair else y


class Net(nn.Module):
    def __init__(self, blocks=3, **kind):
        super().__init__()
        self.blocks = nn.ModuleList(Block(**kind) for _ in range(blocks))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def batches(n=8, size=4):
    return [torch.randn(size, TOKENS, WIDTH) for _ in range(n)]


def same_weights(module, before):
    after = module.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


@pytest.fixture(scope="module")
def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def ids(n=4, size=3, vocabulary=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(vocabulary, (size, 12), generator=generator)} for _ in range(n)]


# Distil and put in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 20])
def test_a_copy_of_the_same_operator_changes_no_output(steps):
    net = Net()
    sites = {name: copy.deepcopy(net.get_submodule(name)) for name in ("blocks.0.attn", "blocks.2.mlp")}
    graft = Graft(net, sites)
    found = graft.distill(batches(), steps=steps)
    x = torch.randn(2, TOKENS, WIDTH)
    assert torch.equal(graft.apply()(x), net(x))
    assert found["relative_error"].values.tolist() == [0.0, 0.0]


def test_the_network_and_the_operators_given_stay_bit_identical():
    net, new = Net(), GraftMLP(WIDTH, 2)
    before, given = copy.deepcopy(net.state_dict()), copy.deepcopy(new.state_dict())
    graft = Graft(net, {"blocks.1.mlp": new})
    graft.distill(batches(), steps=10)
    swapped = graft.apply()
    graft.finetune(lambda m: m(torch.randn(2, TOKENS, WIDTH)).square().mean(), steps=3, lr=0.1)
    graft.report(lambda m: 0.0)
    assert same_weights(net, before) and same_weights(new, given)
    assert isinstance(net.blocks[1].mlp, nn.Sequential) and not net.blocks[1].mlp._forward_hooks
    assert not same_weights(swapped.blocks[1].mlp.operator, given)
    assert all(p.grad is None for p in net.parameters())


def test_a_regression_without_noise_finds_the_map():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(3, 3)

        def forward(self, x):
            return self.part(x)

    net = Linear()
    x = [torch.randn(32, 3) for _ in range(10)]
    for loss in ("l1", "l2", "huber"):
        graft = Graft(net, {"part": nn.Sequential(nn.Linear(3, 3))})
        found = graft.distill(x, loss=loss, steps=400, lr=0.02)
        assert float(found["relative_error"][0]) < 0.03 and found["loss"].values.tolist() == [loss]
        torch.testing.assert_close(graft.operators_["part"][0].weight, net.part.weight, atol=0.03, rtol=0)


def test_l2_regression_of_a_linear_operator_nears_least_squares():
    net, x = Net(), batches(20, 8)
    calls = record_calls(net, ["blocks.1.mlp"], x)["blocks.1.mlp"]
    held = ActivationDistiller(nn.Linear(WIDTH, WIDTH), net.blocks[1].mlp, steps=600, lr=0.01).fit(calls)
    h, y = (torch.cat([getattr(c, k).flatten(0, 1) for c in calls[:16]]).double() for k in "hy")
    wide = torch.cat([h, torch.ones(len(h), 1)], 1)
    # What comes out of a layer norm sums to zero: the columns depend on each other.
    solved = torch.linalg.pinv(wide, rtol=1e-5) @ y
    h, y = (torch.cat([getattr(c, k).flatten(0, 1) for c in calls[16:]]).double() for k in "hy")
    best = float((h @ solved[:-1] + solved[-1] - y).square().mean())
    assert held.loss_ == "l2"
    assert min(held.validation_) == pytest.approx(best, rel=0.1)
    # The weights that are kept are those of the lowest loss on the calls for validation.
    with torch.no_grad():
        kept = np.mean([float((held.operator_(c.h) - c.y).square().mean()) for c in calls[16:]])
    assert kept == pytest.approx(min(held.validation_), rel=1e-5)


def test_attention_is_regressed_by_l1_and_an_mlp_by_l2():
    for causal in (False, True):
        net = Net(causal=causal)
        graft = Graft(net, {f"blocks.0.{k}": redrawn(net.get_submodule(f"blocks.0.{k}")) for k in ("attn", "mlp")})
        assert graft.distill(batches(), steps=2)["loss"].values.tolist() == ["l1", "l2"]


def test_recorded_are_the_operators_inputs_after_the_norm_and_outputs_before_the_sum():
    net, x = Net(), batches(1)
    calls = record_calls(net, ["blocks.1.attn", "blocks.1.mlp"], x)
    stream = net.blocks[0](x[0])
    h = net.blocks[1].norm1(stream)
    torch.testing.assert_close(calls["blocks.1.attn"][0].h, h)
    torch.testing.assert_close(calls["blocks.1.attn"][0].y, net.blocks[1].attn(h))
    middle = stream + net.blocks[1].attn(h)
    torch.testing.assert_close(calls["blocks.1.mlp"][0].h, net.blocks[1].norm2(middle))
    named = ac.Model(net).record({"x": x[0]}, at=["module_in:blocks.1.mlp", "module:blocks.1.mlp"])
    torch.testing.assert_close(named["module_in:blocks.1.mlp"], calls["blocks.1.mlp"][0].h)
    torch.testing.assert_close(named["module:blocks.1.mlp"], calls["blocks.1.mlp"][0].y)


def test_each_operator_learns_on_the_inputs_of_the_old_network():
    net, x = Net(), batches()
    both = Graft(net, {"blocks.0.mlp": ZeroOperator(), "blocks.2.mlp": redrawn(net.blocks[2].mlp)})
    alone = Graft(net, {"blocks.2.mlp": redrawn(net.blocks[2].mlp)})
    found = both.distill(x, steps=30)
    assert found.data.sel(site="blocks.2.mlp")["validation"].equals(
        alone.distill(x, steps=30).data.sel(site="blocks.2.mlp")["validation"]
    )
    assert float(found.data.sel(site="blocks.0.mlp")["relative_error"]) == 1.0
    assert same_weights(both.operators_["blocks.2.mlp"], alone.operators_["blocks.2.mlp"].state_dict())


def test_half_precision_is_regressed_in_float32_and_put_in_as_it_was():
    net = Net().bfloat16()
    graft = Graft(net, {"blocks.1.mlp": GraftMLP(WIDTH, 2)})
    found = graft.distill([x.bfloat16() for x in batches()], steps=40, lr=1e-2)
    assert float(found["validation"][0].min()) < 0.7 * float(found["validation"][0][0])
    swapped = graft.apply()
    assert {p.dtype for p in swapped.parameters()} == {torch.bfloat16}
    assert swapped(batches(1)[0].bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("part", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(TOKENS)])
def test_an_operator_is_judged_as_it_will_be_used(part):
    net = Net(causal=True).eval()
    x = batches()
    calls = record_calls(net, ["blocks.1.attn"], x)["blocks.1.attn"]
    graft = Graft(net, {"blocks.1.attn": nn.Sequential(nn.Linear(WIDTH, WIDTH), part())})
    with torch.no_grad():  # as a caller may have it
        found = graft.distill(x, steps=30, lr=1e-2)
    new = graft.operators_["blocks.1.attn"]
    assert not new.training and not torch.equal(new[0].weight, graft.sites["blocks.1.attn"][0].weight)
    with torch.no_grad():
        apart = [new(c.h) - c.y for c in calls[6:]]
    told = sum(float(a.abs().sum()) for a in apart) / sum(float(c.y.abs().sum()) for c in calls[6:])
    assert float(found["relative_error"][0]) == pytest.approx(told, rel=1e-5)
    assert float(found["validation"][0].min()) == pytest.approx(
        np.mean([float(a.abs().mean()) for a in apart]), rel=1e-5
    )


def test_a_tuple_needs_select_and_keeps_its_layout():
    net = Net(pair=True)
    site = {"blocks.1.attn": SlidingWindowAttention(WIDTH, 2, 1)}
    with pytest.raises(InputError, match=r"tuple of 2 items: give select"):
        Graft(net, site).distill(batches())
    for wrong, words in ((2, "select says"), (1, "not a tensor"), ("a", "select says")):
        with pytest.raises(InputError, match=words):
            Graft(net, site, select=wrong).distill(batches())
    graft = Graft(net, site, select={"blocks.1.attn": 0})
    graft.distill(batches(), steps=5)
    assert graft.apply().blocks[1].attn(torch.randn(1, TOKENS, WIDTH))[1] is None
    with pytest.raises(SiteError, match=r"blocks\.1\.attn"):
        Graft(net, site, select={"blocks.1.atn": 0}).distill(batches())
    with pytest.raises(InputError, match="nothing to select"):
        Graft(Net(), site, select=0).distill(batches())


# Fine-tuning and report -----------------------------------------------------------------------------------------------


def test_fine_tuning_lowers_the_loss_of_the_whole_network():
    net, x = Net(), batches()
    stream = itertools.cycle(x)

    def step(m):
        batch = next(stream)
        return functional.mse_loss(m(batch), net(batch).detach())

    graft = Graft(net, {"blocks.1.mlp": GraftMLP(WIDTH, 1)})
    graft.distill(x, steps=0)
    before = step(graft.apply()).item()
    graft.finetune(step, steps=80, lr=5e-3)
    assert graft.losses_[-8:].mean() < 0.3 * before
    told = graft.report(lambda m: step(m).item(), timed=1)
    assert told["network"].values.tolist() == ["base", "grafted", "fine-tuned"]
    assert float(told["quality"][0]) == 0 and float(told["quality"][2]) < float(told["quality"][1])
    # Two linear maps of 8 x 16 with biases give way to two of 8 x 8; a product of n x m by m x k counts 2 n m k.
    assert told["parameters"].values[0] - told["parameters"].values[1] == (2 * 128 + 24) - (2 * 64 + 16)
    assert told["flops"].values[0] - told["flops"].values[1] == 2 * 4 * TOKENS * 2 * (128 - 64)
    assert (told["seconds"].values > 0).all() and told.plot() is not None


def test_an_average_of_weights_is_kept_and_old_parts_may_stay():
    net = Net(1)
    graft = Graft(net, {"blocks.0.mlp": nn.Linear(WIDTH, WIDTH)})
    graft.distill(batches(2), steps=0)
    x, seen = torch.randn(2, TOKENS, WIDTH), []

    def step(m):
        seen.append(m.blocks[0].mlp.operator.weight.detach().clone())
        return m(x).square().mean()

    tuned = graft.finetune(step, steps=3, lr=0.1, ema=0.5, grafted_only=True)
    assert same_weights(tuned.blocks[0].attn, net.blocks[0].attn.state_dict())
    step(graft.finetune(step, steps=3, lr=0.1, grafted_only=True))
    w0, w1, w2, w3 = seen[0], seen[1], seen[2], seen[-1]  # the last call saw the weights after the third step
    expected = 0.5 * (0.5 * (0.5 * w0 + 0.5 * w1) + 0.5 * w2) + 0.5 * w3
    torch.testing.assert_close(tuned.blocks[0].mlp.operator.weight.detach(), expected)


# Networks of transformers ---------------------------------------------------------------------------------------------


def test_an_mlp_of_gpt2_is_exchanged(tiny_gpt2):
    before = copy.deepcopy(tiny_gpt2.state_dict())
    graft = Graft(tiny_gpt2, {"transformer.h.1.mlp": GraftMLP(16, 2)})
    found = graft.distill(ids(), steps=60, lr=1e-2)
    assert float(found["relative_error"][0]) < 0.8
    assert graft.apply()(**ids(1)[0]).logits.shape == (3, 12, 50)
    assert same_weights(tiny_gpt2, before) and tiny_gpt2.config.use_cache


def test_a_copy_of_gpt2s_attention_changes_no_output_and_keeps_its_cache(tiny_gpt2):
    name = "transformer.h.0.attn"
    graft = Graft(tiny_gpt2, {name: copy.deepcopy(tiny_gpt2.get_submodule(name))}, select=0)
    graft.distill(ids(), steps=5)
    swapped, x = graft.apply(), ids(1)[0]
    assert torch.equal(swapped(**x).logits, tiny_gpt2(**x).logits) and swapped.config.use_cache
    assert torch.equal(swapped.generate(**x, max_new_tokens=3), tiny_gpt2.generate(**x, max_new_tokens=3))


def test_attention_of_gpt2_gives_way_to_a_window_and_generates_without_a_cache(tiny_gpt2):
    site = "transformer.h.0.attn"
    graft = Graft(tiny_gpt2, {site: SlidingWindowAttention(16, 2, 4, causal=True)}, select=0)
    assert graft.distill(ids(), steps=20)["loss"].values.tolist() == ["l1"]
    swapped, x = graft.apply(), ids(1)[0]["input_ids"]
    assert not swapped.config.use_cache and tiny_gpt2.config.use_cache
    out = swapped.generate(input_ids=x, max_new_tokens=4, do_sample=False)
    for t in range(12, 16):
        assert torch.equal(swapped(input_ids=out[:, :t]).logits[:, -1].argmax(-1), out[:, t])
    with pytest.raises(InputError, match="keeps no cache"):
        swapped(input_ids=x, use_cache=True)


def test_a_causal_operator_gives_way_to_no_operator_that_sees_later_tokens(tiny_gpt2):
    graft = Graft(tiny_gpt2, {"transformer.h.0.attn": SlidingWindowAttention(16, 2, 4)}, select=0)
    with pytest.raises(InputError, match="sees later tokens, and GPT2Attention does not"):
        graft.distill(ids())


def test_a_distilled_mlp_in_the_shipped_language_model_is_better_than_a_drawn_one():
    model = ac.load("world:lm")
    texts = ac.world.heldout_text("lm")[::3]
    learned, judged = [texts[i : i + 10] for i in range(0, 80, 10)], texts[80:]
    before = copy.deepcopy(model.module.state_dict())
    # Of the first block: without the MLP of a later one this model is as good as with it.
    loss, new = {"base": model.loss(judged).item()}, GraftMLP(128, 2)
    for name, steps in (("drawn", 0), ("distilled", 60)):
        graft = Graft(model, {"model.layers.0.mlp": new})
        graft.distill(learned, steps=steps, lr=3e-3)
        loss[name] = graft.apply().loss(judged).item()
    assert loss["base"] < loss["distilled"] < (loss["base"] + loss["drawn"]) / 2
    assert same_weights(model.module, before)


# Depth to width -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_pairs_of_blocks_start_as_the_sum_of_both_and_learn_the_pair(rank):
    net, x = Net(5), batches(10)
    before = copy.deepcopy(net.state_dict())
    graft = parallelize_blocks(net, "blocks", WIDTH, rank=rank)
    assert list(graft.sites) == ["blocks.0", "blocks.1"] and len(graft.model.blocks) == 3
    assert torch.equal(graft.model(x[0]), net(x[0]))
    b1, b2 = net.blocks[0], net.blocks[1]
    torch.testing.assert_close(graft.sites["blocks.0"](x[0]), b1(x[0]) + b2(x[0]) - x[0])
    found = graft.distill(x, loss="l1", steps=60, lr=3e-3)
    curve = found["validation"].values
    assert (curve.min(1) < 0.8 * curve[:, 0]).all()
    swapped = graft.apply()
    assert len(swapped.blocks) == 3 and isinstance(swapped.blocks[0], ParallelPair)
    if rank is not None:
        kept = swapped.blocks[0].first.mlp[0].linear
        assert torch.equal(kept.weight, net.blocks[0].mlp[0].weight) and not kept.weight.requires_grad
        assert torch.equal(swapped.blocks[0].first.attn.project_in.linear.weight, net.blocks[0].attn.project_in.weight)
    assert same_weights(net, before)


def test_pairs_of_blocks_of_llama_are_put_side_by_side():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    graft = parallelize_blocks(llama, "model.layers", 16, pairs=[1])
    x = ids(1)[0]
    assert torch.equal(graft.model(**x).logits, llama(**x).logits)
    found = graft.distill(ids(), steps=40)
    assert float(found["validation"].min()) < float(found["validation"][0, 0])
    swapped = graft.apply()
    out = swapped.generate(**x, max_new_tokens=3, do_sample=False)
    assert torch.equal(swapped(input_ids=out[:, :-1]).logits[:, -1].argmax(-1), out[:, -1])


def test_pairs_that_overlap_and_blocks_that_are_no_list_are_refused():
    net = Net(4)
    for pairs in ([0, 1], [3], [-1], []):
        with pytest.raises(InputError, match="two apart"):
            parallelize_blocks(net, "blocks", WIDTH, pairs=pairs)
    with pytest.raises(InputError, match="ModuleList"):
        parallelize_blocks(net, "blocks.0", WIDTH)
    with pytest.raises(InputError, match="rank"):
        parallelize_blocks(net, "blocks", WIDTH, rank=0)
    with pytest.raises(SiteError, match="blocks"):
        parallelize_blocks(net, "block", WIDTH)


# Choosing sites -------------------------------------------------------------------------------------------------------


def test_locality_of_uniform_and_diagonal_attention():
    even = torch.full((2, 3, 16, 16), 1 / 16)
    assert locality_of(even, 0) == pytest.approx(0.0625)
    assert locality_of(even, 2) == pytest.approx((5 * 16 - 6) / 256)
    assert locality_of(even, 15) == pytest.approx(1)
    drawn = torch.randn(4, 9, 9).softmax(-1)
    assert locality_of(drawn, 8) == pytest.approx(1)
    direct = sum(drawn[:, i, j].mean() for i in range(9) for j in range(9) if abs(i - j) <= 3) / 9
    assert locality_of(drawn, 3) == pytest.approx(float(direct))
    found = attention_locality({"0": torch.eye(16), "1": even})
    assert found["reach"].values.tolist() == [1, 2, 4, 8]
    assert found["locality"][0].values == pytest.approx(1) and found["locality"][1].values == pytest.approx(
        found["uniform"].values
    )


def test_locality_of_the_shipped_language_model_rises_with_the_reach():
    model = ac.load("world:lm")
    recorded = model.record(torch.arange(24).reshape(2, 12) + 5, at="blocks.*.attn.pattern")
    found = attention_locality(recorded)
    assert found["locality"].shape == (6, 4) and (np.diff(found["locality"].values, axis=1) > 0).all()
    assert found.plot() is not None


def test_patterns_that_are_none_are_refused():
    for wrong, words in [
        (torch.rand(4, 4), "sums to 1"),
        (torch.zeros(2, 3), "attention is"),
        (torch.full((2, 2), torch.nan), "sums to 1"),
        (torch.zeros(3, 0, 0), "no tokens"),
    ]:
        with pytest.raises(InputError, match=words):
            locality_of(wrong, 1)
    with pytest.raises(InputError, match="negative"):
        locality_of(torch.eye(3), -1)
    with pytest.raises(InputError, match="no patterns"):
        attention_locality({})


def test_statistics_of_operators_are_those_of_their_outputs():
    from scipy.stats import kurtosis

    net, x = Net(), batches(3)
    found = operator_statistics(net, ["blocks.0.mlp", "blocks.1.attn"], x)
    y = torch.cat([net.blocks[0].mlp(net.blocks[0].norm2(b + net.blocks[0].attn(net.blocks[0].norm1(b)))) for b in x])
    y = y.detach().double().numpy().ravel()
    row = found.data.sel(site="blocks.0.mlp")
    assert float(row["kurtosis"]) == pytest.approx(kurtosis(y, fisher=False), rel=1e-4)
    assert float(row["mean"]) == pytest.approx(y.mean(), rel=1e-4, abs=1e-6)
    assert float(row["std"]) == pytest.approx(y.std(), rel=1e-4)
    assert float(row["largest"]) == pytest.approx(np.abs(y).max(), rel=1e-4)


def test_blocks_are_interleaved_and_drawn_operators_differ():
    assert interleaved(28) == list(range(1, 28, 2)) and interleaved(5) == [1, 3]
    assert interleaved(8, 0.75) == [1, 2, 3, 5, 6, 7] and interleaved(3, 1) == [0, 1, 2]
    for n, share in ((0, 0.5), (4, 0), (4, 1.5)):
        with pytest.raises(InputError, match="share"):
            interleaved(n, share)
    old = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    state = torch.get_rng_state()
    one, same, other = redrawn(old, 1), redrawn(old, 1), redrawn(old, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)
    assert one[0].weight.std().item() == pytest.approx(old[0].weight.std().item(), rel=0.1)


def test_weights_of_parts_that_cannot_reset_are_drawn_with_their_deviation(tiny_gpt2):
    old = tiny_gpt2.transformer.h[0].mlp
    new = redrawn(old)
    assert not torch.equal(new.c_fc.weight, old.c_fc.weight)
    assert new.c_fc.weight.std().item() == pytest.approx(old.c_fc.weight.std().item(), rel=0.15)


# What cannot be done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "new", "words"),
    [
        ("blocks.1.mlp", lambda: nn.Linear(WIDTH, WIDTH + 1), r"gives \(4, 6, 9\), expected \(4, 6, 8\)"),
        ("blocks.1.mlp", lambda: nn.Linear(WIDTH + 1, WIDTH), "cannot be called"),
        ("blocks.1.mlp", lambda: HyenaXMLP(WIDTH, TOKENS + 1), "filters for 7 tokens, got 6"),
        ("blocks.1.mlp", lambda: nn.LSTM(WIDTH, WIDTH), "returns tuple"),
        ("blocks.1.mlp", lambda: "gelu", "is a torch.nn.Module"),
        ("blocks.1.mpl", lambda: nn.Identity(), "did you mean"),
    ],
)
def test_operators_that_do_not_fit_are_refused(site, new, words):
    with pytest.raises((InputError, SiteError), match=words):
        Graft(Net(), {site: new()}).distill(batches())


def test_streams_settings_and_networks_that_cannot_work_are_refused():
    net = Net()
    site = {"blocks.1.mlp": GraftMLP(WIDTH)}
    graft = Graft(net, site)
    for call, words in [
        (lambda: graft.distill([]), "no batches"),
        (lambda: graft.distill(batches(1)), "two or more"),
        (lambda: graft.distill(batches(), loss="mse"), "loss is one of"),
        (lambda: graft.distill(batches(), steps=-1), "steps"),
        (lambda: graft.distill(batches(), validation=1.0), "validation"),
        (lambda: graft.distill([torch.full((2, TOKENS, WIDTH), torch.nan)] * 2), "NaN"),
        (lambda: graft.apply(), "not fitted"),
        (lambda: graft.report(lambda m: 0.0), "not fitted"),
        (lambda: Graft(net, {}).distill(batches()), "no site"),
        (lambda: Graft("gpt2", site).distill(batches()), "not str"),
        (lambda: Graft(net, site | {"blocks.1": nn.Identity()}).distill(batches()), "part of blocks.1"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    graft.distill(batches(), steps=0)
    for call, words in [
        (lambda: graft.finetune(lambda m: m(batches(1)[0]).mean(), steps=0), "steps"),
        (lambda: graft.finetune(lambda m: m(batches(1)[0]).mean(), steps=1, ema=1.0), "ema"),
        (lambda: graft.finetune(lambda m: m(batches(1)[0]), steps=1), "one finite number"),
        (lambda: graft.finetune(lambda m: m(batches(1)[0]).mean() * torch.nan, steps=1), "one finite number"),
        (lambda: graft.report(lambda m: 0.0, timed=-1), "timed"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(InputError, match="requires a gradient"):
        frozen = Graft(net.requires_grad_(False), {"blocks.1.mlp": ZeroOperator()})
        frozen.distill(batches(), steps=0)
        frozen.finetune(lambda m: m(batches(1)[0]).mean(), steps=1)


def test_a_network_that_drops_out_or_counts_is_not_read(tiny_gpt2):
    net = Net()
    net.blocks[0].mlp.append(nn.Dropout(0.1))
    graft = Graft(net, {"blocks.1.mlp": GraftMLP(WIDTH)})
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.3 drops out in training"):
        graft.distill(batches())
    net.eval()
    graft.distill(batches(), steps=0)
    counting = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(InputError, match="counts statistics"):
        record_calls(counting, ["0"], [torch.randn(4, 3)])

    class DropPath(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop_prob = 0.1

    with pytest.raises(InputError, match="drops out"):
        record_calls(nn.Sequential(nn.Linear(3, 3), DropPath()), ["0"], [torch.randn(4, 3)])
    attending = nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True)
    with pytest.raises(InputError, match="drops out"):
        record_calls(nn.Sequential(attending), ["0"], [torch.randn(1, 4, 4)])


def test_a_module_that_is_called_twice_or_not_at_all_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(self.used(x))

    for name, words in (("used", "2 times"), ("idle", "0 times")):
        with pytest.raises(InputError, match=words):
            record_calls(Twice(), [name], [torch.randn(2, 3)])
