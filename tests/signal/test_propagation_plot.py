"""Signal propagation plots equal means and variances computed by hand, on any kind of network, and change nothing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import actinium as ac
import architectures
from actinium.core.errors import ActiniumWarning, InputError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.signal.normaliser_free import NFResNetBlock, nf_resnet
from actinium.signal.propagation_plot import noise_inputs, signal_propagation_plot
from actinium.signal.residual_sums import residual_blocks


class Basic(nn.Module):
    """A post-activation block, its addition and its ReLUs in place."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(before, after, 1, stride) if stride > 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    stages = nn.Sequential(Basic(8, 8), Basic(8, 8)), nn.Sequential(Basic(8, 16, 2))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )


def by_hand(x: torch.Tensor) -> tuple[float, float]:
    """Squared mean and variance of channels (n, c, ...)."""
    rows = x.detach().double().movedim(1, -1).flatten(0, -2).numpy()
    return float((rows.mean(0) ** 2).mean()), float(rows.var(0).mean())


def test_values_of_a_convolutional_block_equal_those_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(NFResNetBlock(6, 6, bottleneck=None), NFResNetBlock(6, 6, bottleneck=None))
    x = torch.randn(8, 6, 5, 5) + 0.3
    got = signal_propagation_plot(net, x, batch_size=3)
    assert got["site"].values.tolist() == ["module_in:0", "module:0", "module:1"]
    with torch.no_grad():
        first = net[0](x)
        branch = net[1].branch(net[1].entry(first) / net[1].beta)
        values = [x, first, net[1](first)]
    for depth, value in enumerate(values):
        mean, variance = by_hand(value)
        assert float(got["squared_mean"][depth]) == pytest.approx(mean, rel=1e-5)
        assert float(got["variance"][depth]) == pytest.approx(variance, rel=1e-5)
    assert float(got["residual_variance"][2]) == pytest.approx(by_hand(branch)[1], rel=1e-5)
    assert np.isnan(got["residual_variance"][0])
    assert got["count"].values.tolist() == [200] * 3 and got["channels"].values.tolist() == [6] * 3


def test_residual_blocks_are_found_by_what_passes_through_them():
    found = residual_blocks(Model(resnet().eval()), torch.randn(2, 3, 8, 8))
    assert [(b.path, b.branch, b.rectified) for b in found] == [
        ("1.0", "1.0.bn2", True),
        ("1.1", "1.1.bn2", True),
        ("2.0", "2.0.bn2", True),
    ]
    assert all(b.scale == pytest.approx(1, abs=1e-4) for b in found)


def test_scale_of_a_branch_is_found_and_a_silent_branch_is_one():
    class Scaled(nn.Module):
        def __init__(self, alpha):
            super().__init__()
            self.inner, self.alpha = nn.Conv2d(4, 4, 3, padding=1), alpha

        def forward(self, x):
            return x + self.alpha * self.inner(x)

    net = nn.Sequential(Scaled(0.25), Scaled(1.0))
    nn.init.zeros_(net[1].inner.weight)
    nn.init.zeros_(net[1].inner.bias)
    first, second = residual_blocks(Model(net), torch.randn(2, 4, 6, 6))
    assert (first.path, first.branch) == ("0", "0.inner") and first.scale == pytest.approx(0.25, rel=1e-4)
    assert second.branch == "1.inner" and np.isnan(second.scale)


def test_a_skip_around_the_whole_network_does_not_hide_its_blocks():
    class Skip(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(x)

    net = Skip(nn.Sequential(Skip(nn.Conv2d(4, 4, 1)), Skip(nn.Conv2d(4, 4, 1))))
    found = residual_blocks(Model(nn.Sequential(net)), torch.randn(2, 4, 6, 6))
    assert [b.path for b in found] == ["0.inner.0", "0.inner.1"]


def test_plain_networks_have_no_residual_blocks():
    assert residual_blocks(ac.load("world:digits-cnn"), torch.randn(2, 1, 8, 8)) == []
    assert residual_blocks(Model(nn.Linear(3, 2)), torch.randn(2, 3)) == []


def test_transformers_resnet_is_measured_at_its_blocks():
    import transformers as hf

    torch.manual_seed(0)
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=3)
    net = hf.ResNetForImageClassification(config).eval()
    with pytest.warns(ActiniumWarning, match="running statistics"):
        got = signal_propagation_plot(net, torch.randn(4, 3, 32, 32))
    assert len(got["depth"]) == 4
    assert bool(np.isfinite(got["residual_variance"].values[1:]).all())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "t5"])
def test_transformer_values_equal_those_of_recorded_activations(name):
    model = architectures.shared(name)
    ids = architectures.token_ids(4, 20)
    stack = "decoder." if name == "t5" else ""
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if stack else ids
    got = signal_propagation_plot(model, inputs, batch_size=3)
    sites = got["site"].values.tolist()
    assert sites[0] == f"{stack}blocks.0.resid_pre" and sites[-1] == f"{stack}blocks.2.resid_post"
    rec = model.record(inputs, sites)
    for depth, site in enumerate(sites):
        mean, variance = by_hand(rec[site].movedim(-1, 1))
        assert float(got["squared_mean"][depth]) == pytest.approx(mean, rel=1e-4)
        assert float(got["variance"][depth]) == pytest.approx(variance, rel=1e-4)
    # What was added between two sites is the branch, or both branches of a parallel block.
    for depth in range(1, len(sites)):
        added = by_hand((rec[sites[depth]] - rec[sites[depth - 1]]).movedim(-1, 1))[1]
        assert float(got["residual_variance"][depth]) == pytest.approx(added, rel=1e-3)


def test_padding_does_not_count():
    model = architectures.shared("llama")
    ids = architectures.token_ids(6, 20)
    mask = torch.ones(6, 20, dtype=torch.bool)
    mask[1, :9] = mask[2, 15:] = False
    got = signal_propagation_plot(model, Tokens(ids, mask, torch.arange(6)), at="blocks.1.resid_post")
    real = model.record(Tokens(ids, mask, torch.arange(6)), "blocks.1.resid_post")["blocks.1.resid_post"][mask]
    assert int(got["count"][0]) == int(mask.sum())
    assert float(got["variance"][0]) == pytest.approx(by_hand(real)[1], rel=1e-4)


@pytest.mark.parametrize("name", ["world:lm", "world:digits-cnn", "world:digits-vit"])
def test_shipped_models_are_plotted_without_data(name, tmp_path):
    got = signal_propagation_plot(ac.load(name), rows=16)
    assert bool((got["variance"] > 0).all()) and int(got["dropped"].sum()) == 0
    lines = got.plot().get_lines()
    assert len(lines) == (2 if name == "world:digits-cnn" else 3)
    assert ac.Result.load(got.save(tmp_path / "plot.zarr")) == got


def test_texts_and_images_are_plotted():
    texts = ac.world.heldout_text("lm")[:40]
    assert int(signal_propagation_plot(ac.load("world:lm"), list(texts))["count"][0]) >= 64
    images = ac.world.digits.load("test").images[:8]
    got = signal_propagation_plot(ac.load("world:digits-cnn"), images)
    rec = ac.load("world:digits-cnn").record(images, "module:stage1.0")["module:stage1.0"]
    assert float(got["squared_mean"][0]) == pytest.approx(by_hand(rec)[0], rel=1e-5)


def test_model_is_left_as_it_was():
    net = resnet().train()
    net[1][0].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    with pytest.warns(ActiniumWarning):
        signal_propagation_plot(net, torch.randn(4, 3, 8, 8))
    signal_propagation_plot(net, torch.randn(4, 3, 8, 8), batch_statistics=True)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_batch_statistics_are_those_of_training():
    net = resnet().eval()
    x = 3 * torch.randn(4, 3, 8, 8)
    got = signal_propagation_plot(net, x, batch_statistics=True)
    # What leaves a batch norm of training has a variance of 1.
    assert float(got["residual_variance"][1]) == pytest.approx(1, rel=1e-3)
    with pytest.warns(ActiniumWarning, match="batch_statistics"):
        assert float(signal_propagation_plot(net, x)["residual_variance"][1]) != pytest.approx(1, rel=0.1)
    with pytest.raises(InputError, match="one pass"):
        signal_propagation_plot(net, x, batch_statistics=True, batch_size=2)


def test_layout_decides_which_dimension_is_the_channel():
    line = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 4, 3))
    x = torch.randn(8, 3, 20)
    got = signal_propagation_plot(line, x)
    assert got["channels"].values.tolist() == [5, 4]
    assert float(got["variance"][0]) == pytest.approx(by_hand(line[0](x))[1], rel=1e-5)
    last = nn.Sequential(nn.Linear(3, 7))
    image = torch.randn(4, 6, 6, 3)
    got = signal_propagation_plot(last, image, layout="channels_last")
    assert int(got["channels"][0]) == 7
    assert float(got["variance"][0]) == pytest.approx(by_hand(last(image).movedim(-1, 1))[1], rel=1e-5)
    with pytest.raises(UnknownNameError, match="channels_last"):
        signal_propagation_plot(last, image, layout="channel_last")


def test_branches_can_be_named():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.randn(80, 4)
    got = signal_propagation_plot(net, x, at="module:2", branches={"module:2": "module:1"})
    assert float(got["residual_variance"][0]) == pytest.approx(by_hand(net[1](net[0](x)))[1], rel=1e-5)
    with pytest.raises(InputError, match="module:3"):
        signal_propagation_plot(net, x, at="module:2", branches={"module:3": "module:1"})


def test_values_that_overflow_are_counted():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        net[1].weight[0] = torch.inf
    got = signal_propagation_plot(net, torch.randn(80, 4))
    assert got["dropped"].values.tolist() == [0, 80]
    assert np.isfinite(got["variance"]).all()


def test_noise_is_the_same_for_a_seed():
    model = ac.load("world:digits-cnn")
    one, two, other = (noise_inputs(model, rows=4, seed=s).arguments["pixel_values"] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and one.shape == (4, 1, 8, 8)
    assert float(signal_propagation_plot(architectures.shared("t5"))["variance"][0]) > 0
    with pytest.raises(InputError, match="shape"):
        noise_inputs(Model(nn.Linear(3, 2)))
    with pytest.raises(InputError, match="positive"):
        noise_inputs(model, (0, 3))


def test_bad_inputs_are_refused():
    net = nf_resnet(depths=(1,), widths=(4,))
    with pytest.raises(InputError, match="too few"):
        signal_propagation_plot(net, torch.randn(2, 3, 5, 5))
    with pytest.raises(InputError, match="NaN"):
        signal_propagation_plot(net, torch.full((4, 3, 8, 8), torch.nan))
    with pytest.raises(SiteError):
        signal_propagation_plot(net, torch.randn(4, 3, 8, 8), at="module:nothing")
    with pytest.raises(InputError, match="no residual blocks"):
        signal_propagation_plot(nn.Sequential(nn.ReLU()), torch.randn(80, 3))
    block = NFResNetBlock(4, 4, bottleneck=None)
    block.residual_branch = "brunch"
    with pytest.raises(InputError, match="brunch"):
        signal_propagation_plot(nn.Sequential(block), torch.randn(4, 4, 8, 8))
