"""Operators put in place of a layer within one pass, and the rows they are fitted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
import architectures
from actinium.circuits import TransportOperator, transport_loss, transport_pairs, transported
from actinium.core.edits import Fn
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens, pad
from actinium.core.loading import load

FROM, TO = "blocks.0.resid_post", "blocks.1.resid_post"


def operator(d=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 80, d, generator=g).double()
    return TransportOperator(alpha=1.0).fit(x, y)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "mamba"])
def test_the_later_site_holds_what_the_operator_makes_of_the_earlier_one(name):
    model, op, ids = architectures.shared(name), operator(), architectures.token_ids()
    plain = model.record(ids, [FROM, TO])
    with transported(model, op, FROM, TO, positions=slice(1, None)):
        got = model.record(ids, [FROM, TO])
    assert torch.equal(got[FROM], plain[FROM])
    assert torch.equal(got[TO][:, 0], plain[TO][:, 0])
    assert torch.allclose(got[TO][:, 1:], op.predict(plain[FROM])[:, 1:], atol=1e-5)
    assert torch.equal(model.record(ids, TO)[TO], plain[TO])


def test_only_the_part_along_a_feature_is_replaced():
    model, op, ids = architectures.shared("llama"), operator(), architectures.token_ids()
    d = torch.randn(32, generator=torch.Generator().manual_seed(5))
    plain = model.record(ids, [FROM, TO])
    with transported(model, op, FROM, TO, feature=3 * d):
        got = model.record(ids, TO)[TO]
    along = (d / d.norm()).expand(2, 7, 32)
    assert torch.allclose((got * along).sum(-1), (op.predict(plain[FROM]) * along).sum(-1), atol=1e-4)
    rest = [v - (v * along).sum(-1, keepdim=True) * along for v in (got, plain[TO])]
    assert torch.allclose(*rest, atol=1e-5)


def test_generation_with_a_cache_is_transported_token_by_token():
    model, op, ids = architectures.shared("llama"), operator(), architectures.token_ids()
    with transported(model, op, FROM, TO), model.recording([FROM, TO]) as rec:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert rec[TO].shape[1] == 10
    assert torch.allclose(rec[TO], op.predict(rec[FROM]), atol=1e-4)


def test_losses_are_those_of_edited_passes():
    model, op = architectures.shared("gpt2"), operator()
    texts = [architectures.token_ids(1, n, seed=n)[0].tolist() for n in (9, 5, 7)]
    ids, mask = pad(texts, 0, "left")
    tokens = Tokens(ids, mask, torch.arange(3))
    found = transport_loss(model, op, tokens, FROM, TO, others={"rank 1": op.truncate(1)})
    assert found["run"].values.tolist() == ["clean", "operator", "identity", "null", "zero", "rank 1"]
    x = model.record(tokens, FROM)[FROM]
    first = mask.int().cumsum(1) == 1
    values = {"operator": op.predict(x), "identity": x, "null": op.bias_.float().expand_as(x), "zero": 0 * x}
    for name, value in values.items():
        put = Fn(lambda y, value=value: torch.where(first[..., None], y, value))
        with torch.no_grad(), model.edit({TO: put}):
            want = float(model.loss(tokens))
        assert float(found["loss"].sel(run=name)) == pytest.approx(want, rel=1e-5), name
        assert float(found["perplexity"].sel(run=name)) == pytest.approx(np.exp(want), rel=1e-4)
    assert float(found["rise"].sel(run="clean")) == 0
    parts = transport_loss(model, op, tokens, FROM, TO, batch_size=2)
    assert float(parts["loss"].sel(run="operator")) == pytest.approx(float(found["loss"].sel(run="operator")), rel=1e-5)
    found.plot()


def test_ridge_carries_one_layer_of_a_trained_model_at_little_cost(lm):
    texts = ac.world.heldout_text("lm")
    train, test = texts[::2][:120], texts[1::2][:40]
    sites = ["blocks.2.resid_post", "blocks.3.resid_post"]
    op = TransportOperator(alpha=10.0).fit(*transport_pairs(lm.record(train, sites), *sites))
    rise = transport_loss(lm, op, test, *sites)["rise"]
    assert float(rise.sel(run="zero")) > 3 * float(rise.sel(run="operator"))


def test_a_model_from_outside_is_carried_too(outside_data):
    model = load(outside_data / "stories260K")
    sites = ["blocks.2.resid_post", "blocks.3.resid_post"]
    texts = [f"Once upon a time, there was a little {what}." for what in ("girl", "boy", "dog", "cat", "bird", "fish")]
    x, y = transport_pairs(model.record(texts, sites), *sites)
    op = TransportOperator(alpha=10.0).fit(x, y)
    rise = transport_loss(model, op, texts, *sites)["rise"]
    assert float(rise.sel(run="operator")) < float(rise.sel(run="zero")) / 3


# Rows -------------------------------------------------------------------------------------------------------------


def test_pairs_are_real_tokens_with_the_source_before_the_target():
    model = architectures.shared("llama")
    texts = [architectures.token_ids(1, n, seed=n)[0].tolist() for n in (6, 3)]
    for side in ("left", "right"):
        ids, mask = pad(texts, 0, side)
        rec = model.record(Tokens(ids, mask, torch.arange(2)), [FROM, TO])
        rows = [[rec[site][i][mask[i]] for i in range(2)] for site in (FROM, TO)]
        x, y = transport_pairs(rec, FROM, TO)
        assert torch.equal(x, torch.cat([r[1:] for r in rows[0]]))
        assert torch.equal(y, torch.cat([r[1:] for r in rows[1]]))
        x, y = transport_pairs(rec, FROM, TO, lag=2, skip=0)
        assert torch.equal(x, torch.cat([r[:-2] for r in rows[0]]))
        assert torch.equal(y, torch.cat([r[2:] for r in rows[1]]))
    with pytest.raises(InputError, match="no token"):
        transport_pairs(rec, FROM, TO, lag=5, skip=3)
    with pytest.raises(InputError, match="0 or more"):
        transport_pairs(rec, FROM, TO, lag=-1)
    with pytest.raises(InputError, match="whole texts"):
        transport_pairs(model.record(ids, [FROM, TO], positions=[0]), FROM, TO)
    with pytest.raises(SiteError, match="resid_post"):
        transport_pairs(rec, FROM, "blocks.1.resid_pst")


@pytest.mark.parametrize("lag", [0, 2])
def test_a_store_gives_the_rows_of_its_recording(lm, tmp_path, lag):
    texts, sites = ac.world.heldout_text("lm")[:12], ["blocks.0.resid_post", "blocks.2.attn.z"]
    store = ac.store.create(tmp_path / "store", lm, texts, sites, dtype="float32", packing="pad", progress=False)
    ours = transport_pairs(store, *sites, lag=lag)
    want = transport_pairs(lm.record(texts, sites), *sites, lag=lag)
    for a, b in zip(ours, want, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=1e-4)


def test_pairs_of_a_packed_store_stay_within_a_text(lm, tmp_path):
    texts, site = ac.world.heldout_text("lm")[:12], "blocks.0.resid_post"
    store = ac.store.create(tmp_path / "store", lm, texts, site, dtype="float32", progress=False)
    document, position = store.column("document"), store.column("position")
    x, y = transport_pairs(store, site, site, lag=3)
    later = [i for i in range(len(store)) if i >= 3 and document[i - 3] == document[i] and position[i - 3] >= 0]
    assert 0 < len(y) <= len(later) < len(store) - 3
    assert torch.equal(y, store.rows(site, later)[-len(y) :])
    assert torch.equal(x, store.rows(site, np.array(later) - 3)[-len(x) :])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"from_site": TO, "to_site": FROM}, InputError, "before"),
        ({"from_site": "module:model.layers.0"}, InputError, "standard site before"),
        ({"to_site": "blocks.*.resid_post"}, InputError, "means 3 sites"),
        ({"to_site": "blocks.1.mlp.post"}, InputError, "32 to 32 dimensions; blocks.1.mlp.post"),
        ({"to_site": "blocks.1.attn.z"}, InputError, "blocks.1.attn.z has the dimensions"),
        ({"to_site": "blocks.1.resid_pst"}, SiteError, "resid_post"),
        ({"feature": torch.zeros(32)}, InputError, "not zero"),
        ({"feature": torch.ones(8)}, InputError, "direction"),
        ({"op": TransportOperator()}, InputError, "call fit"),
    ],
)
def test_what_cannot_be_put_in_place_is_refused(change, error, message):
    options = {"op": operator(), "from_site": FROM, "to_site": TO, **change}
    with pytest.raises(error, match=message), transported(architectures.shared("llama"), **options):
        pass
