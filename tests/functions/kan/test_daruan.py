"""DARUAN and QKAN: explicit matrices, closed forms, spectra, extension, gradients, and circuits in a network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.kan.daruan import DARUAN, QKANLayer
from actinium.functions.kan.qkan_networks import HQKAN, QKAN, layer_extension
from actinium.functions.kan.reuploading_circuits import ANSAETZE, angle_shape, reuploading_circuit

X = torch.linspace(-1, 1, 41, dtype=torch.float64)


def drawn(ansatz, reps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = angle_shape(ansatz, reps)
    theta = 2 * math.pi * torch.rand(shape, generator=rng, dtype=torch.float64)
    w, b = torch.rand(2, reps, generator=rng, dtype=torch.float64) / 2
    return theta, w, b


def matrices(x, theta, w, b, ansatz):
    """The state (2,) by products of 2 x 2 complex matrices."""

    def rz(t):
        return np.diag([np.exp(-0.5j * t), np.exp(0.5j * t)])

    def ry(t):
        return np.array([[np.cos(t / 2), -np.sin(t / 2)], [np.sin(t / 2), np.cos(t / 2)]])

    def rx(t):
        return np.array([[np.cos(t / 2), -1j * np.sin(t / 2)], [-1j * np.sin(t / 2), np.cos(t / 2)]])

    flip, sign = np.array([[0, 1], [1, 0]]), np.diag([1, -1])
    psi = np.array([[1, 1], [1, -1]]) / np.sqrt(2) @ np.array([1, 0])
    for step in range(len(w)):
        t, a = theta[step], w[step] * x + b[step]
        gates = {
            "pz": lambda t, a: [rz(t[0]), ry(t[1]), rz(a)],
            "rpz": lambda t, a: [ry(t[0]), rz(a)],
            "px": lambda t, a: [rz(t[0]), rx(np.arccos(a))],
            "real": lambda t, a: [flip, ry(t[0]), sign, ry(a)],
            "mix": lambda t, a: [rz(t[0]), rx(t[1]), ry(a)],
        }[ansatz](t, a)
        for gate in gates:
            psi = gate @ psi
    if ansatz != "real":
        t = theta[len(w)]
        last = {"pz": [rz(t[0]), ry(t[-1])], "rpz": [ry(t[0])], "px": [rz(t[0])], "mix": [rz(t[0]), rx(t[-1])]}[ansatz]
        for gate in last:
            psi = gate @ psi
    return psi


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize("measure", ["expectation", "fast"])
def test_a_circuit_is_a_product_of_matrices(ansatz, measure):
    theta, w, b = drawn(ansatz, 3)
    found = reuploading_circuit(X, theta, w, b, ansatz, measure)
    power = 2 if measure == "expectation" else 1
    for x, value in zip(X.numpy(), found.numpy(), strict=True):
        psi = np.abs(matrices(x, theta.numpy(), w.numpy(), b.numpy(), ansatz)) ** power
        assert value == pytest.approx(psi[0] - psi[1], abs=1e-12)
    assert float(found.abs().max()) <= 1


def test_angles_of_nought_give_nought_and_one_turn_gives_the_cosine():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    one, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    theta = torch.zeros(4, 2, dtype=torch.float64)
    assert float(reuploading_circuit(x, theta, one, zero).abs().max()) == 0
    theta = torch.zeros(2, 2, dtype=torch.float64)
    theta[1, 1] = -math.pi / 2
    torch.testing.assert_close(reuploading_circuit(x, theta, one[:1], zero[:1]), x.cos(), rtol=0, atol=1e-12)
    fast = reuploading_circuit(x, theta, one[:1], zero[:1], measure="fast")
    # Of an expectation c the amplitudes are the roots of (1 + c) / 2 and (1 - c) / 2.
    wanted = ((1 + x.cos()) / 2).sqrt() - ((1 - x.cos()) / 2).sqrt()
    torch.testing.assert_close(fast, wanted, rtol=0, atol=1e-7)
    assert float((fast - x.cos()).abs().max()) == pytest.approx(0.168, abs=2e-3)


def bins(w, measure="expectation", theta=None):
    if theta is None:
        rng = torch.Generator().manual_seed(0)
        theta = 2 * math.pi * torch.rand(len(w) + 1, 2, generator=rng, dtype=torch.float64)
    x = torch.arange(1024, dtype=torch.float64) * (2 * math.pi / 1024) - math.pi
    w = torch.tensor(w, dtype=torch.float64)
    y = reuploading_circuit(x, theta, w, torch.zeros_like(w), measure=measure)
    return (torch.fft.rfft(y).abs() / 1024 > 1e-12).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("w", "wanted"),
    [
        ([1.0] * 3, 4), ([1.0, 2.0, 4.0], 8), ([1.0, 2.0, 4.0, 8.0], 16),
        ([1.0, 3.0, 9.0], 14), ([1.0, 3.0, 9.0, 27.0], 41),
    ],
)  # fmt: skip
def test_the_spectrum_is_that_of_the_input_weights(w, wanted):
    found = bins(w)
    assert found == list(range(wanted))
    module = DARUAN(reps=len(w)).double()
    with torch.no_grad():
        module.w.copy_(torch.tensor([w]))
    listed = module.frequencies()
    assert listed.shape == (1, (3 ** len(w) + 1) // 2)
    assert sorted({round(f) for f in listed.flatten().tolist()}) == found


def test_the_fast_read_out_is_not_band_limited():
    assert len(bins([1.0] * 3)) == 4 and len(bins([1.0] * 3, "fast")) > 20
    # The cosine: amplitudes vanish, where the read-out has a kink.
    theta = torch.tensor([[0.0, 0.0], [0.0, -math.pi / 2]], dtype=torch.float64)
    assert bins([1.0], theta=theta) == [1] and len(bins([1.0], "fast", theta)) > 200
    with pytest.raises(InputError, match="trigonometric"):
        DARUAN(measure="fast").frequencies()


@pytest.mark.parametrize("ansatz", ["pz", "rpz"])
def test_an_extension_leaves_the_function(ansatz):
    torch.manual_seed(0)
    network = QKAN([3, 4, 2], reps=3, ansatz=ansatz, preact_trainable=True).double()
    for p in network.parameters():
        torch.nn.init.normal_(p)
    longer = layer_extension(network, 5)
    x = torch.randn(50, 3, dtype=torch.float64)
    assert float((network(x) - longer(x)).detach().abs().max()) < 1e-12
    assert longer.layers[0].theta.shape[2] == 6 and longer.layers[0].reps == 5 and network.layers[0].reps == 3
    longer(x).sum().backward()
    assert float(longer.layers[0].theta.grad[:, :, 5, -1].abs().min()) > 0  # the added gates can learn
    unit = ac.functions.get("DARUAN", num_parameters=3, ansatz=ansatz).double()
    assert float((unit(x) - layer_extension(unit, 4)(x)).detach().abs().max()) < 1e-12


def test_gates_that_are_not_diagonal_cannot_be_added():
    for ansatz in ("px", "real", "mix"):
        with pytest.raises(InputError, match="only pz and rpz"):
            QKANLayer(2, 2, ansatz=ansatz).extend(5)
    with pytest.raises(InputError, match="more repetitions than 3"):
        QKANLayer(2, 2).extend(3)
    with pytest.raises(InputError, match="holds no"):
        layer_extension(torch.nn.Linear(2, 2), 4)


@pytest.mark.parametrize("ansatz", ANSAETZE)
@pytest.mark.parametrize("measure", ["expectation", "fast"])
def test_gradients_are_those_of_finite_differences(ansatz, measure):
    theta, w, b = (v.requires_grad_() for v in drawn(ansatz, 2, 3))
    x = (X[::8] * 0.8 + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: reuploading_circuit(*v, ansatz, measure), (x, theta, w, b))


def test_the_slope_of_a_vanishing_amplitude_is_finite():
    theta = torch.zeros(2, 2, dtype=torch.float64)
    theta[1, 1] = -math.pi / 2
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    reuploading_circuit(x, theta, one, one * 0, measure="fast").sum().backward()
    assert x.grad.isfinite().all()


def test_the_slope_at_the_ends_of_the_arc_cosine_is_finite():
    theta, w, b = (v.requires_grad_() for v in (torch.zeros(3, 1), torch.ones(2), torch.zeros(2)))
    x = torch.tensor([-1.0, 0.5, 1.0], requires_grad=True)
    for measure in ("expectation", "fast"):
        reuploading_circuit(x, theta, w, b, "px", measure).sum().backward()
        assert all(bool(v.grad.isfinite().all()) for v in (x, theta, w, b))


def test_a_layer_is_the_sum_over_its_edges():
    torch.manual_seed(1)
    layer = QKANLayer(
        3, 2, reps=2, preact_trainable=True, postact_weight_trainable=True, postact_bias_trainable=True
    ).double()
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    layer.mask[0, 1] = 0.0
    x = torch.randn(5, 3, dtype=torch.float64)
    wanted = torch.zeros(5, 2, dtype=torch.float64)
    for o in range(2):
        for i in range(3):
            phi = reuploading_circuit(x[:, i], layer.theta[o, i], layer.w[o, i], layer.b[o, i])
            edge = layer.postact_weight[o, i] * (phi + layer.postact_bias[o, i])
            edge = edge + layer.base_weight[o, i] * torch.nn.functional.silu(x[:, i])
            wanted[:, o] += layer.mask[o, i] * edge
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.edge_outputs(x).sum(-1), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x.view(5, 1, 3)), wanted[:, None])


def test_what_is_learnt_is_as_asked():
    def learnt(m):
        return {n for n, p in m.named_parameters() if p.requires_grad}

    assert learnt(QKANLayer(2, 3)) == {"theta", "base_weight"}
    assert learnt(QKANLayer(2, 3, ansatz="rpz", base_trainable=False)) == {"theta", "b"}
    assert float(QKANLayer(2, 3, base_trainable=False).base_weight.abs().max()) == 0
    assert learnt(QKANLayer(2, 3, preact_trainable=True)) == {"theta", "base_weight", "w", "b"}
    assert QKANLayer(2, 3).theta.shape == (3, 2, 4, 2)
    # Parameters grow linearly with the repetitions.
    counts = [sum(p.numel() for p in DARUAN(reps=r).parameters()) for r in (1, 2, 3, 4)]
    assert counts == [8, 12, 16, 20]


def test_grouped_edges_share_a_circuit():
    layer = QKANLayer(5, 3, group=2, postact_weight_trainable=True).double()
    assert layer.theta.shape == (1, 2, 4, 2)
    x = torch.full((4, 5), 0.7, dtype=torch.float64)
    found = layer.edge_outputs(x)
    assert found.shape == (4, 3, 5)
    torch.testing.assert_close(found[:, 0, 0], found[:, 2, 4])
    assert not torch.allclose(found[:, 0, 0], found[:, 0, 1])


def test_batch_norm_comes_first():
    torch.manual_seed(0)
    layer = QKANLayer(3, 2, batch_norm=True)
    x = 100 + 50 * torch.randn(200, 3)
    plain = QKANLayer(3, 2)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("norm")})
    scaled = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), plain(scaled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QKANLayer(2, 2, reps=0), "one repetition"),
        (lambda: QKANLayer(0, 2), "one input"),
        (lambda: QKANLayer(2, 2, ansatz="pzz"), "pz"),
        (lambda: QKANLayer(2, 2, measure="slow"), "expectation"),
        (lambda: QKANLayer(2, 2, group=3), "number of inputs"),
        (lambda: QKANLayer(2, 2)(torch.zeros(3, 3)), r"\(\.\.\., 2\)"),
        (lambda: QKANLayer(2, 2)(torch.tensor([[0.0, float("nan")]])), "NaN"),
        (lambda: QKANLayer(2, 2)(torch.zeros(3, 2, dtype=torch.long)), "floating-point"),
        (lambda: QKANLayer(2, 2, ansatz="px")(torch.full((1, 2), 1.01)), "1 at most"),
        (lambda: QKANLayer(2, 2, ansatz="px").frequencies(), "trigonometric"),
        (lambda: HQKAN(4, 0), "1 or more"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_unit_of_the_catalogue_follows_its_channels():
    torch.manual_seed(0)
    unit = ac.functions.get("DARUAN", num_parameters=3, channel_dim=-1)
    x = torch.randn(7, 3)
    for i in range(3):
        wanted = reuploading_circuit(x[:, i], unit.theta[i], unit.w[i], unit.b[i])
        torch.testing.assert_close(unit(x)[:, i], wanted)


def test_a_hybrid_stands_in_for_an_mlp_of_a_transformer():
    """In a tiny random GPT-2, which is then trained."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=11, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    model.transformer.h[0].mlp = HQKAN(16, 4)
    tokens = torch.arange(12).repeat(4, 1) % 11
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    hybrid = sum(p.numel() for p in HQKAN(768, 16).parameters())
    assert hybrid < 0.01 * (768 * 3072 * 2)
