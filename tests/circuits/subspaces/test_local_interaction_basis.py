"""The identities that define the local interaction basis, and its interactions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import architectures
from actinium.circuits import LocalInteractionBasis, block_sections, edge_ablation, interaction_graph, node_ablation
from actinium.circuits.subspaces.interaction_graph import _rule
from actinium.circuits.subspaces.sections import Section, sections_of, with_constant
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.core.model import Model

TIGHT = 1e-10


def mlp(sizes=(6, 8, 5, 4), seed=0, bias=True, activation=nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    parts = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(a, b, bias=bias)
        parts.append(layer if i == len(sizes) - 2 else nn.Sequential(layer, activation()))
    return nn.Sequential(*parts).double()


def samples(n=400, d=6, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def cuts_of(net, x):
    with torch.no_grad():
        out = [x]
        for part in net:
            out.append(part(out[-1]))
    return out


def jacobians(net, basis, cut, f):
    """(n, k', d + 1): derivatives of the next features with respect to [f, c], by hand, one sample at a time."""
    after = basis.C_[cut + 1]
    out = []
    for row in f:
        # Biases times c: the section of the augmented vector, written out for Linear and ReLU.
        def run(v):
            value, c = v[:-1], v[-1]
            for part in net[cut] if isinstance(net[cut], nn.Sequential) else [net[cut]]:
                if isinstance(part, nn.Linear):
                    value = part.weight @ value + (0 if part.bias is None else part.bias * c)
                else:
                    value = part(value)
            return torch.cat([value, c[None]]) @ after

        out.append(torch.autograd.functional.jacobian(run, with_constant(row)))
    return torch.stack(out)


@pytest.mark.parametrize("center", [True, False])
def test_features_are_uncorrelated_with_lambda_as_mean_square(center):
    net, x = mlp(), samples()
    basis = LocalInteractionBasis(center=center).fit(net, x)
    for cut, f in enumerate(cuts_of(net, x)):
        found = basis.transform(f, cut)
        gram = found.T @ found / len(found)
        scale = float(basis.Lambda_[cut].max())
        torch.testing.assert_close(gram, torch.diag(basis.Lambda_[cut]), atol=TIGHT * scale, rtol=0)


@pytest.mark.parametrize("center", [True, False])
def test_jacobians_in_the_basis_are_white(center):
    net, x = mlp(), samples()
    basis = LocalInteractionBasis(center=center).fit(net, x)
    first = int(center)  # the constant's couplings are left
    for cut in range(3):
        f = cuts_of(net, x)[cut]
        slopes = jacobians(net, basis, cut, f) @ basis.C_pinv_[cut].T
        white = torch.einsum("nij,nik->jk", slopes, slopes)[first:, first:] / len(f)
        torch.testing.assert_close(white, torch.eye(len(white), dtype=white.dtype), atol=TIGHT * 1e2, rtol=0)


@pytest.mark.parametrize("method", ["jacobian", "pca", "neuron"])
def test_pseudo_inverse_undoes_the_basis_on_what_is_kept(method):
    net, x = mlp(), samples()
    basis = LocalInteractionBasis(method=method).fit(net, x)
    for c, back in zip(basis.C_, basis.C_pinv_, strict=True):
        torch.testing.assert_close(back @ c, torch.eye(c.shape[1], dtype=c.dtype), atol=1e-9, rtol=0)


def test_projection_on_the_features_leaves_a_linear_network_as_it_is():
    net, x = mlp((6, 8, 3), activation=nn.Identity), samples()
    basis = LocalInteractionBasis().fit(net, x)
    assert basis.C_[1].shape[1] <= 4  # three outputs and the constant
    hidden = cuts_of(net, x)[1]
    with torch.no_grad():
        kept = basis.inverse_transform(basis.transform(hidden, 1), 1)
        torch.testing.assert_close(net[1](kept), net[1](hidden), atol=TIGHT, rtol=0)


def test_a_layer_has_no_more_features_than_outputs_that_can_be_reached():
    net, x = mlp((6, 5, 4), bias=False), samples()
    basis = LocalInteractionBasis(center=False, truncation=1e-9, last="neuron").fit(net, x)
    # Four outputs; the constant is passed on and makes a fifth.
    assert basis.C_[1].shape[1] == 5


def test_linear_network_has_squared_singular_values_as_lambda():
    net, x = mlp((6, 5), bias=False), samples()
    basis = LocalInteractionBasis(truncation=0.0).fit(net, x)
    covariance = torch.cov(x.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    after = basis.C_[1][:-1]  # the constant's row is about the mean alone
    singular = torch.linalg.svdvals(after.T @ net[0].weight.detach() @ root)
    expected = singular.pow(2)[: len(basis.Lambda_[0]) - 1]
    torch.testing.assert_close(basis.Lambda_[0][1 : 1 + len(expected)], expected, atol=1e-9, rtol=1e-9)


def test_a_unit_that_nobody_reads_and_one_that_never_changes_give_no_feature():
    net, x = mlp((6, 5, 4)), samples()
    with torch.no_grad():
        net[1].weight[:, 2] = 0.0
        net[0][0].weight[3] = 0.0
        net[0][0].bias[3] = 1.0
    basis = LocalInteractionBasis().fit(net, x)
    assert basis.C_[1].shape[1] <= 1 + 3
    assert float(basis.C_[1][[2, 3], 1:].abs().max()) < 1e-6 * float(basis.C_[1].abs().max())


def test_random_signs_estimate_the_sum_over_outputs():
    net, x = mlp(), samples(2000)
    exact = LocalInteractionBasis().fit(net, x).Lambda_[1]
    drawn = LocalInteractionBasis(sources=8, seed=3).fit(net, x).Lambda_[1]
    torch.testing.assert_close(drawn, exact, rtol=0.1, atol=0.02 * float(exact.max()))


def test_sections_become_homogeneous_with_their_constant():
    net, x = mlp(), samples(20)
    for section, f in zip(sections_of(net), cuts_of(net, x), strict=False):
        one = section(f, torch.ones(20, 1, dtype=f.dtype))
        torch.testing.assert_close(one, section(f))
        torch.testing.assert_close(section(3 * f, 3 * torch.ones(20, 1, dtype=f.dtype)), 3 * one)


def test_rules_agree_on_a_homogeneous_network():
    net, x = mlp(), samples(60)
    basis = LocalInteractionBasis(center=False).fit(net, x)
    found = [
        interaction_graph(basis, net, x, rule=rule, n=n)
        for rule, n in (("gradient", 0), ("gauss-legendre", 4), ("trapezoid", 6), ("trapezoid", 0))
    ]
    for other in found[1:]:
        for a, b in zip(found[0].edges, other.edges, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8 * float(a.max()))


def test_edges_of_a_linear_section_are_mean_squared_products():
    net, x = mlp((6, 5), bias=False), samples()
    basis = LocalInteractionBasis(center=False, last="neuron").fit(net, x)
    now = basis.transform(x, 0)
    weight = torch.block_diag(net[0].weight.detach(), torch.ones(1, 1, dtype=x.dtype))
    matrix = basis.C_[1].T @ weight @ basis.C_pinv_[0].T
    expected = (matrix[:, None] * now).pow(2).mean(1)
    torch.testing.assert_close(interaction_graph(basis, net, x).edges[0], expected)


@pytest.mark.parametrize("n", [1, 3])
def test_weights_of_a_rule_integrate_what_they_must(n):
    for rule, degree in (("gauss-legendre", 2 * n + 1), ("trapezoid", 0)):
        places, weights = _rule(rule, n)
        assert sum(weights) == pytest.approx(1.0)
        assert sum(w * p**degree for p, w in zip(places, weights, strict=True)) == pytest.approx(1 / (degree + 1))


def two_networks() -> nn.Sequential:
    """Two independent networks side by side, in a rotated hidden basis, with equal variances."""
    torch.manual_seed(0)
    net = mlp((6, 6, 6))
    with torch.no_grad():
        for layer in (net[0][0], net[1]):
            layer.weight[:3, 3:] = 0.0
            layer.weight[3:, :3] = 0.0
    return net


def test_two_independent_networks_do_not_interact():
    net, x = two_networks(), samples(3000)
    basis = LocalInteractionBasis(last="neuron").fit(net, x)
    edges = interaction_graph(basis, net, x).edges[1][1:, 1:]
    # Features of the hidden layer belong to one of the two; so do the outputs.
    first = edges[:3].sum(0) > edges[3:].sum(0)
    across = torch.where(first, edges[3:].sum(0), edges[:3].sum(0))
    assert float(across.max()) < 0.05 * float(edges.max())


def test_all_features_and_all_edges_give_the_network_back():
    net, x = mlp(), samples(200)
    basis = LocalInteractionBasis(truncation=0.0).fit(net, x)
    score = lambda out: float(out.pow(2).mean())  # noqa: E731
    nodes = node_ablation(basis, net, x, score, 1)
    assert float(nodes["score"][-1]) == pytest.approx(float(nodes["full"]), rel=1e-6)
    graph = interaction_graph(basis, net, x)
    edges = edge_ablation(basis, net, x, graph, score, 1, [0, graph.edges[1].numel()])
    assert float(edges["score"][1]) == pytest.approx(float(edges["full"]), rel=1e-6)
    assert float(edges["score"][0]) != pytest.approx(float(edges["full"]), rel=1e-2)


def test_modules_of_two_networks_are_two():
    net, x = two_networks(), samples(2000)
    graph = interaction_graph(LocalInteractionBasis(last="neuron").fit(net, x), net, x)
    _, modularity = graph.modules()
    assert modularity > 0.4
    assert 1 <= graph.needed(0.9) <= graph.needed(1.0) <= sum(e[1:, 1:].numel() for e in graph.edges)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_blocks_of_a_transformer_are_sections(name):
    model = architectures.build(name)
    model = model if isinstance(model, Model) else Model(model.eval())
    ids = architectures.token_ids(64, 3)
    sections, x = block_sections(model, ids)
    f = x
    with torch.no_grad():
        for section in sections:
            f = section(f)
        torch.testing.assert_close(f[:, 0], model.logits(ids)[:, -1], atol=1e-5, rtol=1e-4)
    with pytest.warns(ActiniumWarning, match="samples"):
        basis = LocalInteractionBasis(last="neuron", sources=4).fit(
            sections[-2:], f if len(sections) < 2 else _before(sections, x)
        )
    assert basis.n_cuts_ == 3


def _before(sections, x):
    with torch.no_grad():
        for section in sections[:-2]:
            x = section(x)
    return x


def test_saved_basis_reads_back(tmp_path):
    net, x = mlp(), samples()
    basis = LocalInteractionBasis(seed=3).fit(net, x)
    read = LocalInteractionBasis.load(basis.save(tmp_path / "basis.safetensors"))
    assert read.get_params() == basis.get_params()
    assert all(torch.equal(a, b) for a, b in zip(read.C_, basis.C_, strict=True))
    torch.save({}, tmp_path / "other")
    with pytest.raises(LoadError, match="cannot read the basis"):
        LocalInteractionBasis.load(tmp_path / "other")


def test_what_is_no_sequence_of_sections_is_refused():
    net, x = mlp(), samples()
    with pytest.raises(InputError, match="sections"):
        LocalInteractionBasis().fit(nn.Linear(6, 6), x)
    with pytest.raises(UnknownNameError, match="jacobian"):
        LocalInteractionBasis(method="jacobi").fit(net, x)
    with pytest.raises(InputError, match="folded"):
        LocalInteractionBasis(center=False).fit([lambda f: f + 1.0], x)
    with pytest.raises(InputError, match="finite"):
        LocalInteractionBasis().fit(net, x * torch.nan)
    with pytest.raises(InputError, match="not fitted"):
        LocalInteractionBasis().transform(x, 0)
    with pytest.warns(ActiniumWarning, match="samples"):
        LocalInteractionBasis().fit(net, x[:4])
    basis = LocalInteractionBasis().fit(net, x)
    with pytest.raises(InputError, match="entries"):
        basis.transform(x, 1)
    with pytest.raises(InputError, match="cuts go"):
        basis.transform(x, 9)
    with pytest.raises(UnknownNameError, match="trapezoid"):
        interaction_graph(basis, net, x, rule="trapez")
    with pytest.raises(InputError, match="k goes"):
        node_ablation(basis, net, x, lambda out: 0.0, 1, [99])
    with pytest.raises(InputError, match="one row"):
        Section(lambda f: f[:2])(x)
    assert bool(torch.isfinite(basis.Lambda_[0]).all())
