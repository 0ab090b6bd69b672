"""Rectifiers of statistics: batch means while training, running means in evaluation, errors of epochs."""

from __future__ import annotations

import math

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError

get = ac.functions.get


def batches():
    torch.manual_seed(0)
    return [torch.randn(8, 3, 5) * 2 + torch.tensor([0.0, 1.0, -2.0])[:, None] for _ in range(4)]


def running(values):
    mean = values[0]
    for v in values[1:]:
        mean = 0.9 * mean + 0.1 * v
    return mean


def test_aoaf_uses_the_mean_of_the_batch_while_training():
    x = batches()[0]
    m = x.mean((0, 2), keepdim=True)
    module = get("AOAF", num_parameters=3).train()
    torch.testing.assert_close(module(x), torch.relu(x - 0.17 * m) + 0.17 * m)
    m = x.mean()
    torch.testing.assert_close(get("AOAF", b=0.3, c=0.1).train()(x), torch.relu(x - 0.3 * m) + 0.1 * m)


def test_aoaf_uses_the_running_mean_in_evaluation():
    module = get("AOAF", num_parameters=3).train()
    for x in batches():
        module(x)
    m = running([x.mean((0, 2)) for x in batches()])[:, None]
    x = batches()[1] * 3
    torch.testing.assert_close(module.eval()(x), torch.relu(x - 0.17 * m) + 0.17 * m)
    torch.testing.assert_close(module(x[:1]), module(x)[:1])
    assert torch.equal(get("AOAF").eval()(x), torch.relu(x))


def test_aoaf_passes_gradients_through_the_mean():
    x = batches()[0].double().requires_grad_()
    module = get("AOAF", num_parameters=3).double().train()
    assert torch.autograd.gradcheck(lambda t: module(t), (x[:2].detach().requires_grad_(),))


def test_margin_relu_gathers_the_mean_negative_response_of_each_channel():
    module = get("Margin ReLU", num_parameters=3).train()
    for x in batches():
        y = module(x)
    last = torch.stack([x[:, i][x[:, i] < 0].mean() for i in range(3)])
    torch.testing.assert_close(y, torch.maximum(x, last[:, None]))
    m = running([torch.stack([x[:, i][x[:, i] < 0].mean() for i in range(3)]) for x in batches()])
    x = batches()[2]
    torch.testing.assert_close(module.eval()(x), torch.maximum(x, m[:, None]))


def test_margin_relu_keeps_what_it_knows_where_nothing_is_negative():
    module = get("Margin ReLU", num_parameters=2, channel_dim=-1).train()
    module(torch.tensor([[-2.0, 1.0], [-4.0, 3.0]]))
    assert module.mean.tolist() == [-3.0, 0.0]
    module(torch.tensor([[5.0, -1.0], [6.0, -3.0]]))
    assert module.mean.tolist() == [-3.0, -2.0]
    assert module(torch.zeros(0, 2)).shape == (0, 2)
    assert module(torch.tensor([-9.0, -9.0])).tolist() == [-9.0, -9.0]


def test_margin_relu_with_given_margins_gathers_nothing():
    module = get("Margin ReLU", m=torch.tensor([-1.0, -0.5]), num_parameters=2, channel_dim=-1).train()
    x = torch.tensor([[-3.0, -3.0], [0.2, -0.1]])
    expected = torch.tensor([[-1.0, -0.5], [0.2, -0.1]])
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.eval()(x), expected)


@pytest.mark.parametrize(
    ("name", "slope"), [("DLReLU", lambda q: 0.01 * q), ("exp-DLReLU", lambda q: 0.01 * math.exp(-q))]
)
def test_slopes_follow_the_error_of_the_last_epoch(name, slope):
    module = get(name)
    x = torch.tensor([-2.0, 3.0])
    for q in (1.0, 0.3, 7.0):
        module.observe(q)
        torch.testing.assert_close(module(x), torch.tensor([-2.0 * slope(q), 3.0]))
        torch.testing.assert_close(module(x), ac.functions.functional(name)(x, q=q))
    twin = get(name)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))
    with pytest.raises(InputError, match="mean squared error"):
        module.observe(float("nan"))
    with pytest.raises(InputError, match="mean squared error"):
        get(name, q=-1.0)


@pytest.mark.parametrize("name", ["AOAF", "Margin ReLU", "DLReLU"])
def test_half_precision_and_extreme_numbers(name):
    module = get(name).train()
    x = torch.tensor([-60000.0, -50000.0, -1.0, 2.0, 60000.0] * 3, dtype=torch.float16)
    y = module(x)
    assert y.dtype == torch.float16 and y.isfinite().all()


def test_the_state_is_saved():
    module, twin = get("AOAF", num_parameters=3).train(), get("AOAF", num_parameters=3)
    module(batches()[0])
    twin.load_state_dict(module.state_dict())
    x = batches()[3]
    assert torch.equal(module.eval()(x), twin.eval()(x))


def test_bad_settings_and_inputs_are_refused():
    with pytest.raises(InputError, match="momentum"):
        get("AOAF", momentum=1.5)
    with pytest.raises(InputError, match="number up to 0"):
        get("Margin ReLU", m=0.5)
    with pytest.raises(InputError, match="number up to 0"):
        get("Margin ReLU", m=torch.tensor([-1.0, -1.0]), num_parameters=3)
    with pytest.raises(InputError, match="3 channels"):
        get("AOAF", num_parameters=3).train()(torch.zeros(2, 4))
    with pytest.raises(InputError, match="floating-point"):
        get("Margin ReLU")(torch.tensor([1]))
