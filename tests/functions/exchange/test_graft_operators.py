"""Operators to graft are what their formulas say, and causal, local and of a fixed length where they claim it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.exchange.graft_operators import (
    GraftMLP,
    HyenaSE,
    HyenaX,
    HyenaXMLP,
    HyenaY,
    SlidingWindowAttention,
    ZeroOperator,
)
from actinium.functions.exchange.selective_state_space import Mamba2

WIDTH, TOKENS = 12, 10
CAUSAL = {
    "hyena-se": lambda: HyenaSE(WIDTH),
    "hyena-x": lambda: HyenaX(WIDTH),
    "hyena-y": lambda: HyenaY(WIDTH),
    "window": lambda: SlidingWindowAttention(WIDTH, heads=3, window=2, causal=True),
    "mamba-2": lambda: Mamba2(WIDTH, state=5, head=8),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def changed_outputs(operator, token):
    """Which outputs change with one token, by token."""
    h = torch.randn(2, TOKENS, WIDTH)
    other = h.clone()
    other[:, token] += 1
    with torch.no_grad():
        return (operator(h) != operator(other)).any(-1).any(0)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("token", [0, 4, TOKENS - 1])
def test_causal_operators_do_not_see_later_tokens(name, token):
    changed = changed_outputs(CAUSAL[name](), token)
    assert not changed[:token].any()
    assert changed[token]


@pytest.mark.parametrize("window", [0, 1, 4])
def test_sliding_window_attention_sees_tokens_within_its_window_alone(window):
    operator = SlidingWindowAttention(WIDTH, heads=2, window=window)
    near = (torch.arange(TOKENS) - 5).abs() <= window
    assert torch.equal(changed_outputs(operator, 5), near)


def test_short_filters_reach_as_far_as_their_taps():
    assert changed_outputs(HyenaX(WIDTH, kernel=3), 2).tolist() == [False, False, True, True, True] + [False] * 5
    two_filters = HyenaSE(WIDTH, kernel=3)
    nn.init.normal_(two_filters.inner.convolution.weight)
    assert changed_outputs(two_filters, 2).tolist() == [False, False] + [True] * 5 + [False] * 3


def test_hyena_se_at_the_start_is_hyena_x_with_the_same_weights():
    se, x = HyenaSE(WIDTH), HyenaX(WIDTH)
    missing = se.load_state_dict(x.state_dict(), strict=False)
    assert all(key.startswith("inner.") for key in missing.missing_keys) and not missing.unexpected_keys
    h = torch.randn(3, TOKENS, WIDTH)
    torch.testing.assert_close(se(h), x(h), atol=1e-6, rtol=0)


def test_hyena_y_at_the_start_gates_linear_maps():
    y = HyenaY(WIDTH)
    h = torch.randn(3, TOKENS, WIDTH)
    q, k, v = y.project_in(h).split(WIDTH, dim=-1)
    torch.testing.assert_close(y(h), y.project_out(q * k * v), atol=1e-6, rtol=0)


def test_hyena_se_is_its_formula_written_as_sums():
    se = HyenaSE(WIDTH).double()
    nn.init.normal_(se.inner.convolution.weight)
    h = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)

    def convolved(x, module):
        taps, bias = module.convolution.weight[:, 0], module.convolution.bias
        rows = [
            bias + sum(taps[:, 3 - back] * x[t - back] for back in range(4) if t - back >= 0) for t in range(TOKENS)
        ]
        return torch.stack(rows)

    q, k, v = convolved(se.project_in(h[0]), se.featuriser).split(WIDTH, dim=-1)
    torch.testing.assert_close(se(h)[0], se.project_out(q * convolved(k * v, se.inner)))


def test_sliding_window_attention_of_the_whole_length_is_multi_head_attention():
    ours = SlidingWindowAttention(WIDTH, heads=3, window=TOKENS)
    theirs = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.project_in.weight.data, ours.project_in.bias.data
    theirs.out_proj = ours.project_out
    h = torch.randn(2, TOKENS, WIDTH)
    torch.testing.assert_close(ours(h), theirs(h, h, h)[0], atol=1e-6, rtol=0)


def test_hyena_x_across_channels_convolves_each_token_by_itself():
    mlp = HyenaXMLP(WIDTH, TOKENS, ratio=2)
    h = torch.randn(2, TOKENS, WIDTH)
    wide = functional.pad(mlp.project_in(h), (3, 0))
    taps, bias = mlp.featuriser.convolution.weight[:, 0], mlp.featuriser.convolution.bias
    mixed = (wide.unfold(-1, 4, 1) * taps[:, None]).sum(-1) + bias[:, None]
    q, k, v = mixed.split(2 * WIDTH, dim=-1)
    torch.testing.assert_close(mlp(h), mlp.project_out(q * k * v), atol=1e-6, rtol=0)
    assert changed_outputs(mlp, 3).nonzero().flatten().tolist() == [3]


def test_the_mlp_is_linear_gelu_linear_of_any_ratio():
    for ratio, hidden in ((0.5, 6), (3, 36), (6, 72)):
        mlp = GraftMLP(WIDTH, ratio)
        theirs = nn.Sequential(mlp.project_in, nn.GELU(approximate="tanh"), mlp.project_out)
        h = torch.randn(2, WIDTH)
        assert torch.equal(mlp(h), theirs(h)) and mlp.project_in.out_features == hidden
    assert torch.equal(ZeroOperator()(h), torch.zeros_like(h))


def test_mamba2_is_that_of_transformers():
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=WIDTH, num_heads=3, head_dim=8, state_size=5, expand=2, n_groups=1, conv_kernel=4, chunk_size=4
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    ours = Mamba2(WIDTH, state=5, head=8)
    ours.project_in, ours.project_out, ours.featuriser.convolution.bias = (
        theirs.in_proj,
        theirs.out_proj,
        theirs.conv1d.bias,
    )
    ours.featuriser.convolution.weight = theirs.conv1d.weight
    ours.dt_bias, ours.A_log, ours.D, ours.norm.weight = theirs.dt_bias, theirs.A_log, theirs.D, theirs.norm.weight
    nn.init.uniform_(theirs.norm.weight, 0.5, 1.5)
    h = torch.randn(2, TOKENS, WIDTH)
    torch.testing.assert_close(ours(h), theirs(h), atol=1e-5, rtol=1e-4)


def test_mamba2_in_its_dual_form_is_the_recurrence():
    x, decay = torch.randn(1, 6, 2, 3).double(), -torch.rand(1, 6, 2).double()
    B, C = torch.randn(1, 6, 4).double(), torch.randn(1, 6, 4).double()
    state, rows = torch.zeros(2, 3, 4).double(), []
    for t in range(6):
        state = state * decay[0, t].exp()[:, None, None] + x[0, t, :, :, None] * B[0, t]
        rows.append(state @ C[0, t])
    torch.testing.assert_close(Mamba2._scan(x, decay, B, C)[0], torch.stack(rows))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HyenaSE(0), "above 0"),
        (lambda: HyenaX(8, kernel=0), "kernel"),
        (lambda: SlidingWindowAttention(10, heads=3), "no multiple"),
        (lambda: SlidingWindowAttention(8, window=-1), "window"),
        (lambda: GraftMLP(8, 0.1), "hidden"),
        (lambda: HyenaXMLP(8, 0), "tokens"),
        (lambda: Mamba2(8, head=7), "no multiple"),
        (lambda: HyenaXMLP(8, 5)(torch.zeros(1, 4, 8)), "filters for 5 tokens"),
        (lambda: HyenaSE(8)(torch.zeros(1, 4, 7)), "takes"),
        (lambda: Mamba2(8)(torch.zeros(4, 8)), "takes"),
        (lambda: GraftMLP(8)(torch.zeros(4, 7)), "takes"),
    ],
)
def test_sizes_and_shapes_that_do_not_fit_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
