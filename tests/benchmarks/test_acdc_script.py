"""The benchmark of ACDC runs on a tiny model without its peer, and compares only runs that kept the same edges."""

from __future__ import annotations

import pytest
import torch
from benchmarks.paired import Disagreement, Ratio
from benchmarks.settings import Settings

from actinium.circuits.graph.layout import Layout
from benchmarks import acdc
from benchmarks import patching as pairs

pytestmark = pytest.mark.usefixtures("no_peers")


def test_acdc_is_compared_without_its_peer():
    plain, authors = acdc.rows(Settings(tiny=True, rounds=1))
    assert plain.peer == acdc.PLAIN
    assert isinstance(plain.ratio, Ratio)
    assert plain.ratio.low > 0
    assert (authors.peer, authors.ratio, authors.goal.bound) == (acdc.AUTHORS, "not installed", 10)


def test_runs_that_kept_other_edges_are_refused():
    kept = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(Disagreement, match="kept edges"):
        acdc._row(Settings(tiny=True, rounds=1), "what", "peer", lambda: ~kept, lambda: kept)


def test_plain_algorithm_keeps_some_edges_of_the_random_model_and_not_all():
    model = acdc.ac.Model(acdc._model(tiny=True))
    task = pairs.random_pairs(model, 2, 6)
    tau = acdc.SHARE * float(acdc.ac.circuits.Wiring(model, task, metric="kl").corrupt.mean())
    kept = acdc._plain(model, task, tau)
    assert 0 < int(kept.sum()) < len(kept)
    assert torch.equal(kept, acdc._ours(model, task, tau))


def test_order_of_the_authors_holds_every_edge_once():
    layout = Layout(2, 3)
    order = acdc._authors_order(layout)
    assert sorted(order) == sorted(layout.edges)
    assert order[:5] == ["m1->logits", "a1.h0->logits", "a1.h1->logits", "a1.h2->logits", "m0->logits"]
    last = [edge for edge in order if edge.endswith("->a1.h2<v>")]
    assert last == ["m0->a1.h2<v>", "a0.h0->a1.h2<v>", "a0.h1->a1.h2<v>", "a0.h2->a1.h2<v>", "input->a1.h2<v>"]
    assert order.index("m0->a1.h2<v>") < order.index("m0->a1.h1<v>") < order.index("m0->a1.h2<k>")
