"""KAN-Mixer: its shapes and sizes, what it treats alike, and a table that it learns."""

from __future__ import annotations

import pytest
import torch

from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.kan.kan_mixer import KANMixer
from actinium.functions.kan.kan_training import train_network


def small(**options):
    torch.manual_seed(0)
    return KANMixer(5, 3, channels=8, blocks=2, hidden=6, **options)


def test_its_parameters_are_those_of_its_parts():
    count = sum(p.numel() for p in small().parameters())
    token = 5 * 6 * 4 + (6 * 5 + 5)
    channel = 8 * 16 * 4 + (16 * 8 + 8)
    norms = 2 * 2 * 8
    assert count == (8 + 8) + 2 * (token + channel + norms) + 2 * 8 + (8 * 3 + 3)
    published = KANMixer(30, 2)
    assert len(published.blocks) == 4 and published.embed.out_features == 128


def test_it_is_its_formula():
    net = small().double()
    x = torch.randn(7, 5, dtype=torch.float64)
    z = x[..., None] * net.embed.weight[:, 0] + net.embed.bias

    def norm(v, of):
        return torch.nn.functional.layer_norm(v, (8,), of.weight, of.bias)

    def mixed(rows, pair):
        layer, back = pair
        n = torch.arange(4, dtype=torch.float64)
        terms = torch.cos(n * torch.arccos(torch.tanh(rows))[..., None])
        return torch.einsum("...ik,iok->...o", terms, layer.coefficients) @ back.weight.T + back.bias

    for block in net.blocks:
        z = z + mixed(norm(z, block.token_norm).transpose(1, 2), block.token).transpose(1, 2)
        z = z + mixed(norm(z, block.channel_norm), block.channel)
    wanted = norm(z, net.norm).mean(1) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-9)


def test_rows_do_not_see_each_other():
    net = small()
    x = torch.randn(6, 5)
    torch.testing.assert_close(net(x)[2:4], net(x[2:4]))


@pytest.mark.parametrize("layer", ["chebyshev", "fourier"])
def test_it_learns_a_product_of_two_features(layer):
    """No sum of functions of one variable tells the sign of a product."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(600, 5, generator=rng)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = KANMixer(5, 2, channels=12, blocks=1, hidden=12, layer=layer)
    loss = torch.nn.functional.cross_entropy
    train_network(net, x[:400], y[:400], loss, steps=200, lr=1e-2, batch_size=100)
    with torch.no_grad():
        assert float((net(x[400:]).argmax(1) == y[400:]).float().mean()) > 0.8


def test_it_tells_irises():
    data = pytest.importorskip("sklearn.datasets").load_iris()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x[::2].mean(0)) / x[::2].std(0)
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    net = KANMixer(4, 3, channels=16, blocks=1, hidden=8)
    train_network(net, x[::2], y[::2], torch.nn.functional.cross_entropy, steps=60, lr=1e-2, batch_size=32)
    with torch.no_grad():
        assert float((net(x[1::2]).argmax(1) == y[1::2]).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: KANMixer(0, 2), InputError),
        (lambda: KANMixer(2, 2, blocks=0), InputError),
        (lambda: KANMixer(2, 2, layer="nonsense"), UnknownNameError),
        (lambda: small()(torch.zeros(3, 4)), InputError),
        (lambda: small()(torch.zeros(5)), InputError),
        (lambda: small()(torch.full((2, 5), float("nan"))), InputError),
    ],
)
def test_what_cannot_be_is_refused(call, error):
    with pytest.raises(error):
        call()
