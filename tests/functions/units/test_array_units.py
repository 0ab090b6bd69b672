"""Functions that hold arrays of weights, inside of a convolutional network on the shipped digits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.functions.registry import every
from actinium.functions.units.array_units import ArrayUnit, member

NAMES = [s.name for s in every() if s.family.startswith("blending") and s.module is not None]


@pytest.fixture(scope="module")
def digits():
    data = ac.world.digits.load("train")
    images = torch.as_tensor(data.images[:256]).float().flatten(1).view(256, 1, 8, 8)
    return (images - images.mean()) / images.std(), torch.as_tensor(data.labels[:256])


def test_every_row_with_weights_is_here():
    assert len(NAMES) == 22
    assert all(isinstance(ac.functions.get(name), ArrayUnit) for name in NAMES)
    assert set(NAMES) <= set(ac.functions.list(trainable=True))


@pytest.mark.parametrize("name", NAMES)
def test_units_learn_in_a_convolutional_network(name, digits):
    images, labels = digits
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        ac.functions.get(name, num_parameters=6),
        nn.Flatten(),
        nn.Linear(216, 10),
    )
    start = [p.detach().clone() for p in net[2].parameters()]
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(start, net[2].parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_state_dicts(name):
    torch.manual_seed(0)
    unit = ac.functions.get(name, num_parameters=3)
    x = torch.randn(4, 3, 2)
    unit(x)
    twin, other = copy.deepcopy(unit).eval(), ac.functions.get(name, num_parameters=3).eval()
    other.load_state_dict(unit.state_dict())
    unit.eval()
    for m in (twin, other):
        torch.testing.assert_close(m(x), unit(x), rtol=0, atol=0)
    assert type(unit).__name__ in repr(unit)


def test_members_are_names_or_callables():
    x = torch.randn(5)
    assert torch.equal(member("relu")(x), torch.relu(x))
    assert member(torch.tanh) is torch.tanh
    with pytest.raises(ac.errors.InputError, match="has a state"):
        member("SLAF")
    with pytest.raises(ac.errors.InputError, match="a name or a callable"):
        member(1.5)
