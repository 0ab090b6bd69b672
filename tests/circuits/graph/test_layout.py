"""The edges of a transformer and their names."""

from __future__ import annotations

import pytest
import torch

from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, UnknownNameError


@pytest.mark.parametrize(("layers", "heads", "edges"), [(12, 12, 32491), (2, 4, 110), (4, 8, 1519)])
def test_number_of_edges_is_that_of_the_paper(layers, heads, edges):
    assert Layout(layers, heads).n_edges == edges


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_number_of_edges_follows_from_what_each_receiver_reads(kv_heads, parallel):
    heads, layers = 4, 3
    before = [1 + layer * (heads + 1) for layer in range(layers)]
    expected = sum((heads + 2 * kv_heads) * n + n + (0 if parallel else heads) for n in before)
    assert Layout(layers, heads, kv_heads, parallel).n_edges == expected + 1 + layers * (heads + 1)


def test_vector_is_the_inverse_of_matrix():
    layout = Layout(2, 3)
    values = torch.randn(5, layout.n_edges)
    full = layout.matrix(values)
    assert torch.equal(layout.vector(full), values)
    assert torch.equal((full[0] != 0), layout.allowed)


def test_names_are_those_of_the_benchmark_and_lead_back():
    layout = Layout(2, 2)
    assert {"input->a0.h1<q>", "a0.h0->m0", "m0->a1.h1<v>", "a1.h0->logits"} <= set(layout.edges)
    assert layout.mask(["m0->m1"]).nonzero().item() == layout.index["m0->m1"]
    assert "a1.kv0<k>" in {r.name for r in Layout(2, 4, 2).receivers}


def test_unknown_edge_names_the_nearest():
    with pytest.raises(UnknownNameError, match="m0->m1"):
        Layout(2, 2).mask(["m0->n1"])


def test_impossible_sizes_are_refused():
    with pytest.raises(InputError):
        Layout(2, 3, 2)


def test_layout_of_a_model_is_that_of_its_configuration(lm):
    assert Layout.of(lm) == Layout(6, 8)
