"""NF-ResNets keep the variance that is calculated for them, and have the sizes of the released networks."""

from __future__ import annotations

import pytest
import torch

from actinium import signal
from actinium.core.errors import InputError, UnknownNameError
from actinium.signal.normaliser_free import NFResNetBlock, SqueezeExcite, expected_variance, nf_resnet


def test_expected_variance_is_that_of_the_card():
    assert expected_variance([3], 0.2) == pytest.approx([1, 1.04, 1.08])
    assert expected_variance([12], 0.2, at="output")[-1] == pytest.approx(1.48)
    # A stage's first block reads the last variance of the stage before and starts again.
    assert expected_variance([2, 2], 0.5) == pytest.approx([1, 1.25, 1.5, 1.25])
    for bad in ([], [0], [2, 0]):
        with pytest.raises(InputError):
            expected_variance(bad)
    with pytest.raises(UnknownNameError):
        expected_variance([1], at="inputs")


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_variance_of_circular_blocks_is_the_calculated_one(activation):
    torch.manual_seed(0)
    betas = [v**0.5 for v in expected_variance([6])]
    blocks = [
        NFResNetBlock(64, 64, beta=b, bottleneck=None, padding_mode="circular", activation=activation) for b in betas
    ]
    x = torch.randn(16, 64, 8, 8)
    with torch.no_grad():
        for block, wanted in zip(blocks, expected_variance([6], at="output"), strict=True):
            x = block(x)
            assert float(x.var((0, 2, 3), correction=0).mean()) == pytest.approx(wanted, rel=0.05)


def test_a_gain_is_given_to_every_activation():
    block = NFResNetBlock(8, 8, activation="relu", gain=1.5, bottleneck=0.5)
    gains = [m.gain for m in block.modules() if isinstance(m, signal.GainedActivation)]
    assert gains == [1.5] * 3
    with pytest.raises(InputError, match="positive"):
        NFResNetBlock(8, 8, gain=-1.0)
    with pytest.raises(InputError, match="in place"):
        NFResNetBlock(8, 8, activation=torch.nn.ReLU(inplace=True))


def test_transition_starts_the_variance_again():
    torch.manual_seed(0)
    block = NFResNetBlock(64, 128, beta=3.0, stride=2, bottleneck=0.25)
    with torch.no_grad():
        out = block(3 * torch.randn(16, 64, 8, 8))
    assert out.shape == (16, 128, 4, 4)
    assert float(out.var((0, 2, 3), correction=0).mean()) == pytest.approx(1.04, rel=0.06)


def test_scale_before_and_after_differ_for_silu_and_not_for_relu():
    x = torch.randn(2, 8, 5, 5)
    for activation, same in (("relu", True), ("silu", False)):
        torch.manual_seed(1)
        post = NFResNetBlock(8, 8, beta=2.0, activation=activation, scale="post")
        pre = NFResNetBlock(8, 8, beta=2.0, activation=activation, scale="pre")
        pre.load_state_dict(post.state_dict())
        assert torch.allclose(post(x), pre(x), atol=1e-6) == same


def test_block_is_its_formula():
    block = NFResNetBlock(8, 8, beta=1.5, alpha=0.3)
    x = torch.randn(2, 8, 5, 5)
    scaled = signal.nonlinearity_gain("relu") * torch.relu(x) / 1.5
    assert torch.allclose(block(x), x + 0.3 * block.branch(scaled), atol=1e-6)


def test_skip_init_starts_as_the_identity_and_stochastic_depth_skips_rows_in_training_only():
    x = torch.randn(64, 8, 5, 5)
    assert torch.equal(NFResNetBlock(8, 8, skip_init=True)(x), x)
    block = NFResNetBlock(8, 8, drop=0.5)
    torch.manual_seed(0)
    skipped = (block.train()(x) == x).flatten(1).all(1)
    assert 10 < int(skipped.sum()) < 54
    assert not bool((block.eval()(x) == x).flatten(1).all(1).any())


def test_squeeze_excite_keeps_the_signal_when_its_gate_is_half():
    layer = SqueezeExcite(8)
    for p in layer.parameters():
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 8, 3, 3)
    assert torch.allclose(layer(x), x)


def test_resnet50_has_the_parameters_of_the_normalised_one():
    # Gain and bias of a convolution stand for scale and bias of its batch norm: torchvision's ResNet-50 has 25,557,032.
    net = nf_resnet("resnet50", 1000)
    assert sum(p.numel() for p in net.parameters()) == 25_557_032


@pytest.mark.parametrize("options", [{}, {"shortcut": "pool"}, {"squeeze_excite": True, "stochastic_depth": 0.2}])
def test_small_network_learns_digits(options):
    from actinium.world import digits

    torch.manual_seed(0)
    data = digits.load("train")
    net = nf_resnet("small", depths=(1, 1), widths=(8, 8), in_channels=1, **options)
    optimiser = torch.optim.Adam(signal.decay_groups(net, 1e-4), 2e-2)
    losses = []
    for i in range(40):
        rows = slice(64 * i % 1100, 64 * i % 1100 + 64)
        loss = torch.nn.functional.cross_entropy(net(2 * data.images[rows] - 0.6), data.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_wrong_settings_are_refused():
    for options in ({"beta": 0.0}, {"alpha": -1.0}, {"drop": 1.0}, {"bottleneck": 0.01}, {"transition": False}):
        with pytest.raises(InputError):
            NFResNetBlock(8, 16, **options)
    with pytest.raises(InputError, match="pooled"):
        NFResNetBlock(8, 16, stride=3, shortcut="pool")
    for options in ({"scale": "past"}, {"shortcut": "none"}, {"activation": "relv"}):
        with pytest.raises(UnknownNameError):
            NFResNetBlock(8, 8, **options)
    with pytest.raises(UnknownNameError, match="resnet50"):
        nf_resnet("resnet5")
    with pytest.raises(InputError):
        nf_resnet("small", widths=(8,))
    with pytest.raises(UnknownNameError):
        nf_resnet("small", stem="imagenets")


def test_regnets_have_the_released_sizes():
    net = signal.nf_regnet("B0")
    blocks = list(net.blocks)
    assert len(blocks) == 16 and net.head.in_features == 1280 * 330 // 440
    # Inner widths by hand: 36 x 1, then 36 x 2.25 = 81, 78 x 2.25 = 175.5, ..., each down to a multiple of 8.
    inner = [block.branch[0].out_channels for block in blocks]
    assert inner[:3] == [32, 80, 168] and inner[-1] == 736
    assert [b.branch[2].groups for b in blocks[:3]] == [4, 10, 21]
    assert [i for i, b in enumerate(blocks) if b.shortcut is not None] == [0, 1, 4, 10]
    assert [b.beta**2 for b in blocks[:5]] == pytest.approx([1, 1.04, 1.04, 1.08, 1.12])
    # timm's B1, whose widths are rounded otherwise, has 10.2 million parameters.
    assert sum(p.numel() for p in signal.nf_regnet("B1").parameters()) == pytest.approx(10.22e6, rel=0.05)
    assert float(net.head.weight.detach().abs().max()) == 0
    with pytest.raises(UnknownNameError, match="B8"):
        signal.nf_regnet("B9")
    with pytest.raises(InputError, match="groups"):
        signal.NFRegNet(2, (4, 8), (1, 1))


def test_branches_of_a_regnet_keep_the_variance_that_they_are_told():
    torch.manual_seed(0)
    net = signal.NFRegNet(3, (256, 256), (2, 2), width=1.0, skip_init=False).eval()
    with torch.no_grad():
        for block in net.blocks:
            x = block.beta * torch.randn(4, 256, 16, 16)
            out = block.branch(block.entry(x) / block.beta)
            assert float(out.var((0, 2, 3), correction=0).mean()) == pytest.approx(1, rel=0.15)
            if block.shortcut is None:
                torch.testing.assert_close(block(x), x + 0.2 * out)
        assert net(torch.randn(2, 3, 64, 64)).shape == (2, 3)
