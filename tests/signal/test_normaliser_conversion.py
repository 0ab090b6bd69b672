"""Residual networks without their batch norms: of transformers, named as in torchvision, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import RegNetConfig, RegNetForImageClassification, ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

import actinium as ac
from actinium.core.errors import InputError
from actinium.signal import (
    GainedActivation,
    NFBlock,
    convert_to_nf,
    expected_variance,
    nonlinearity_gain,
    standardise_weight,
)


def resnet(**options):
    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "num_labels": 5, "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**{**sizes, **options})).eval()


class Basic(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Net(nn.Module):
    """Named as in torchvision."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.layer2 = nn.Sequential(Basic(8, 16, 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x))))).mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"layer_type": "bottleneck"}, {"hidden_act": "silu"}])
def test_networks_of_transformers_lose_their_norms_and_keep_their_weights(options):
    model = resnet(**options)
    before = copy.deepcopy(model.state_dict())
    new = convert_to_nf(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not [m for m in new.modules() if isinstance(m, nn.BatchNorm2d)] and not new.training
    blocks = [m for m in new.modules() if isinstance(m, NFBlock)]
    # Only a block with a convolution in its shortcut starts the variance again.
    has = [b.shortcut is not None for b in blocks]
    variance, betas = 1.0, []
    for one in has:
        betas.append(variance**0.5)
        variance = (1.0 if one else variance) + 0.04
    assert [b.beta for b in blocks] == pytest.approx(betas)
    old = [m for m in model.modules() if type(m).__name__ in ("ResNetBasicLayer", "ResNetBottleNeckLayer")]
    convolutions = [[part.convolution for part in one.layer] for one in old]
    for block, theirs in zip(blocks, convolutions, strict=True):
        ours = [m for m in block.branch if isinstance(m, nn.Conv2d)]
        for mine, conv in zip(ours, theirs, strict=True):
            assert torch.equal(mine.weight, conv.weight) and mine.stride == conv.stride
    x = torch.randn(2, 3, 32, 32)
    found = new(x, labels=torch.tensor([0, 1]))
    assert found.logits.shape == (2, 5)
    found.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in new.parameters())


def test_a_block_is_its_formula():
    model = resnet(hidden_act="silu")
    old = model.resnet.encoder.stages[0].layers[0]
    new = convert_to_nf(model, alpha=0.3).resnet.encoder.stages[0].layers[0]
    x, gain = torch.randn(2, 32, 9, 9), nonlinearity_gain("silu")

    def conv(x, weight):
        return nn.functional.conv2d(x, standardise_weight(weight), padding=1)

    inner = conv(gain * nn.functional.silu(x), old.layer[0].convolution.weight)
    wanted = x + 0.3 * conv(gain * nn.functional.silu(inner), old.layer[1].convolution.weight)
    torch.testing.assert_close(new(x), wanted, atol=1e-5, rtol=1e-5)


def test_the_signal_is_the_calculated_one():
    model = resnet(embedding_size=128, hidden_sizes=[128], depths=[4])
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            part.padding_mode = "circular"
            part._reversed_padding_repeated_twice = [p for p in part.padding for _ in (0, 1)]
            nn.init.normal_(part.weight)
    new = convert_to_nf(model)
    blocks = list(new.resnet.encoder.stages[0].layers)
    x = torch.randn(8, 128, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for block, wanted in zip(blocks[:-1], expected_variance([4], at="output"), strict=False):
            x = block(x)
            assert float(x.var((0, 2, 3), correction=0).mean()) == pytest.approx(wanted, rel=0.05)
    # The last block brings its activation along, as the classifier's last one was behind it.
    assert isinstance(blocks[-1], nn.Sequential) and len(blocks[-1]) == 2


def test_a_network_named_as_in_torchvision_is_converted_and_learns():
    torch.manual_seed(0)
    net = Net()
    new = convert_to_nf(ac.Model(net))
    assert isinstance(new.bn1, nn.Identity) and isinstance(new.relu, nn.Identity) and new.training
    assert sum(isinstance(m, NFBlock) for m in new.modules()) == 3
    data = ac.world.digits.load("train")
    optimiser = torch.optim.Adam(new.parameters(), 1e-2)
    losses = []
    for i in range(30):
        rows = slice(64 * i % 1100, 64 * i % 1100 + 64)
        loss = nn.functional.cross_entropy(new(2 * data.images[rows] - 0.6), data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    plot = ac.signal.signal_propagation_plot(convert_to_nf(net), input_shape=(1, 16, 16))
    # The plot finds the three branches of the copy, each near the variance 1 that weights standardised give it.
    branches = plot.table()["residual_variance"].to_numpy()[1:]
    assert len(branches) == 3 and (abs(branches - 1) < 0.3).all()


def test_what_is_not_known_is_refused():
    regnet = RegNetForImageClassification(
        RegNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], groups_width=8, num_labels=2)
    )
    with pytest.raises(InputError, match="no residual block is known"):
        convert_to_nf(regnet)
    with pytest.raises(InputError, match="no residual block is known"):
        convert_to_nf(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    net = Net()
    net.layer2.append(nn.BatchNorm2d(16))
    with pytest.raises(InputError, match=r"layer2\.1"):
        convert_to_nf(net)
    net = Net()
    net.layer1[1].attention = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"'layer1\.1' has parts that are not known: \['attention'"):
        convert_to_nf(net)
    net = Net()
    net.layer1[0].conv2 = nn.Conv1d(8, 8, 3)
    with pytest.raises(InputError, match="convolutions of images"):
        convert_to_nf(net)
    with pytest.raises(InputError, match="no residual block is known"):
        convert_to_nf(Basic(8, 8))  # not a network of blocks
    net = Net()
    net.neck = ResNetConvLayer(16, 16)  # behind the blocks, where its norm and activation may matter
    with pytest.raises(InputError, match=r"neck\.normalization"):
        convert_to_nf(net)
    net = Net()
    net.conv1 = nn.Sequential(net.conv1)
    with pytest.raises(InputError, match="'conv1' is not known as the stem's convolution"):
        convert_to_nf(net)


def test_a_stem_of_several_convolutions_keeps_the_activations_between_them():
    model = resnet()
    model.resnet.embedder.embedder = nn.Sequential(ResNetConvLayer(3, 16), ResNetConvLayer(16, 32))
    first, second = convert_to_nf(model).resnet.embedder.embedder
    assert isinstance(first.activation, GainedActivation) and isinstance(second.activation, nn.Identity)
    assert first.activation.gain == pytest.approx(nonlinearity_gain("relu"))
    assert isinstance(first.normalization, nn.Identity) and isinstance(second.normalization, nn.Identity)
