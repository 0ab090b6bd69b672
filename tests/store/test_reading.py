"""Rows, contexts, ranks, splits, statistics, and other forms of a store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray
import zarr
from torch.utils.data import DataLoader

import actinium as ac

SITE = "blocks.1.resid_post"
Z = "blocks.2.attn.z"


def test_indexing_is_that_of_a_tensor(packed):
    whole = packed[SITE][:]
    view, n = packed[SITE], len(packed)
    assert view.shape == whole.shape == (n, 128)
    for index in (0, -1, n - 1, slice(5, 900), slice(None, None, 7), slice(9, 3), slice(-4, None), [3, 1, 3, -2]):
        assert torch.equal(view[index], whole[index])
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:500]
    assert torch.equal(packed.rows(SITE, chosen), whole[chosen])
    mask = np.arange(n) % 11 == 0
    assert torch.equal(view[mask], whole[torch.from_numpy(mask)])
    assert packed.rows(SITE, []).shape == (0, 128)


def test_a_slice_of_a_shard_is_the_file_in_memory(packed):
    rows = packed.manifest.shards[0].rows
    opened = ac.store.open(packed.address.local)
    one, two = opened[SITE][: rows // 2], opened[SITE][: rows // 2]
    assert one.data_ptr() == two.data_ptr()
    one[0, 0] = 123.0  # a private page: the file keeps its bytes
    assert two[0, 0] == 123.0
    assert not opened.verify()
    assert packed[SITE][0][0] != 123.0


def test_out_of_range_and_unknown_sites_are_refused(packed):
    with pytest.raises(ac.errors.InputError, match=f"row {len(packed)} is out of range: there are {len(packed)}"):
        packed.rows(SITE, [0, len(packed)])
    with pytest.raises(ac.errors.InputError, match="out of range"):
        packed.context(-len(packed) - 1)
    with pytest.raises(ac.errors.SiteError, match=r"did you mean 'blocks\.1\.resid_post'"):
        packed["blocks.1.resid_pst"]
    with pytest.raises(IndexError, match="whole numbers"):
        packed.rows(SITE, [0.5])


def test_context_shows_the_tokens_around_a_row(packed, lm):
    table = packed.query("SELECT * FROM rows ORDER BY row")
    for row in (0, 1, 31, 32, 100, len(packed) - 1):
        place, mine = packed.context(row, 4, 2), table.iloc[row]
        same = table[(table["sequence"] == mine["sequence"]) & (table["slot"] - mine["slot"]).between(-4, 2)]
        assert place.tokens == same["token"].tolist()
        assert place.tokens[place.index] == mine["token"]
        assert (place.document, place.position) == (mine["document"], mine["position"])
        assert "".join(place.text).strip() == lm.tokenizer.decode(place.tokens).strip()


@pytest.mark.parametrize("wanted", [3, "direction", (2, 5)])
def test_top_is_exact_and_kept(packed, wanted):
    site = Z if isinstance(wanted, tuple) else SITE
    flat = packed[site][:].flatten(1)
    if wanted == "direction":
        wanted = torch.randn(128, generator=torch.Generator().manual_seed(1))
        scores = flat @ wanted
    else:
        scores = flat[:, 2 * 16 + 5] if isinstance(wanted, tuple) else flat[:, wanted]
    for k in (25, 10, 40):
        found = packed.top(site, wanted, k)
        values, rows = scores.sort(descending=True, stable=True)
        np.testing.assert_allclose(found["value"], values[:k].numpy(), rtol=1e-5, atol=1e-6)
        assert set(found["row"]) == set(rows[:k].tolist())
        assert found["context"].str.contains("[", regex=False).all()
    assert packed.address.local.joinpath("cache.duckdb").exists()


def test_top_of_more_than_there_is(padded):
    assert len(padded.top(SITE, 0, 10**6)) == len(padded)


def test_splits_share_no_document(packed):
    train, test = packed.split(0.8, seed=3)
    documents = packed.query("SELECT document FROM rows ORDER BY row")["document"].to_numpy()
    parts = []
    for view in (train, test):
        rows = torch.cat([r for r, _ in view.batches(SITE, 100, with_rows=True)]).numpy()
        assert len(rows) == len(view)
        parts.append(set(documents[rows]))
        assert torch.equal(view[SITE][:], packed.rows(SITE, np.sort(rows)))
    assert not parts[0] & parts[1]
    assert len(parts[0]) == round(0.8 * len(set(documents)))
    assert len(train) + len(test) == len(packed)
    assert torch.equal(packed.split(0.8, seed=3)[0][SITE][:], train[SITE][:])


def test_statistics_are_those_of_the_rows_and_are_kept(packed):
    values = packed[SITE][:].double()
    for view, x in ((packed, values), (packed.split(0.5)[0], packed.split(0.5)[0][SITE][:].double())):
        stats = view.stats(SITE)
        assert stats.count == len(x)
        torch.testing.assert_close(stats.mean, x.mean(0))
        torch.testing.assert_close(stats.cov, x.T.cov(correction=0), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(stats.std, x.std(0, correction=0))
    assert (packed.address.local / "statistics" / f"{SITE}.safetensors").exists()
    again = ac.store.open(packed.address.local).stats(SITE)
    assert torch.equal(again.cov, packed.stats(SITE).cov)


def test_reducers_give_what_they_give_over_the_model(lm, texts, settings, tmp_path):
    from actinium.core.inputs import Tokens

    ids = [lm.tokenizer(t)["input_ids"] for t in texts]
    options = {**settings, "context": max(map(len, ids)), "packing": "pad", "dtype": "float32"}
    padded = ac.store.create(tmp_path / "s", lm, texts, SITE, **options)
    width = max(map(len, ids))
    rows = torch.full((len(ids), width), lm.tokenizer.pad_token_id)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for i, one in enumerate(ids):
        rows[i, : len(one)], mask[i, : len(one)] = torch.tensor(one), True
    both = {"moments": ac.reducers.Moments(), "top": ac.reducers.TopK(3, context=2)}
    model = lm.record(Tokens(rows, mask, torch.arange(len(ids))), SITE, reduce=both)[SITE]
    store = padded.reduce(SITE, both)
    torch.testing.assert_close(store["moments"].mean, model["moments"].mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(store["moments"].kurtosis, model["moments"].kurtosis, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(store["top"].overall.values, model["top"].overall.values, rtol=1e-4, atol=1e-4)
    found = store["top"].per_feature
    for feature in range(0, 128, 9):
        row, position = int(found.rows[feature, 0]), int(found.positions[feature, 0])
        around = [ids[row][i] if 0 <= i < len(ids[row]) else -1 for i in range(position - 2, position + 3)]
        assert found.contexts[feature, 0].tolist() == around


def test_zarr_numpy_and_torch_hold_the_same(packed, tmp_path):
    packed.to_zarr(tmp_path / "out.zarr")
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert np.array_equal(group[SITE][:], packed[SITE][:].numpy())
    opened = xarray.open_zarr(tmp_path / "out.zarr", consolidated=False)
    assert opened[Z].dims == ("row", f"head:{Z}", f"d_head:{Z}")
    assert opened["token"].to_numpy().tolist() == packed.query("SELECT token FROM rows ORDER BY row")["token"].tolist()
    with pytest.raises(ac.errors.InputError, match="exists"):
        packed.to_zarr(tmp_path / "out.zarr")
    assert np.array_equal(packed.to_numpy(SITE), packed[SITE][:].numpy())
    train, _ = packed.split(0.5)
    for store in (packed, train):
        for workers in (0, 2):
            loader = DataLoader(store.to_torch_dataset(SITE), batch_size=64, num_workers=workers)
            assert torch.equal(torch.cat(list(loader)), store[SITE][:])


def test_sql_errors_are_told(packed):
    with pytest.raises(ac.errors.InputError, match="DuckDB refuses"):
        packed.query("SELECT nothing FROM rows")
