"""The format is what docs/store-format.md says: another program can read it with safetensors and Parquet alone."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

import actinium as ac

SITE = "blocks.1.resid_post"


def test_safetensors_and_parquet_alone_read_it(packed, lm):
    folder = packed.address.local
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["format"], manifest["complete"]) == ("actinium-store", 1, True)
    assert manifest["origin"]["model"]["fingerprint"] == lm.fingerprint()
    (index,) = (i for i, site in enumerate(manifest["sites"]) if site["name"] == SITE)
    assert manifest["sites"][index] == {"name": SITE, "dims": ["d_model"], "shape": [128], "dtype": "float32"}
    values, tables = [], []
    for shard in manifest["shards"]:
        file = folder / shard["sites"][index]["name"]
        data = file.read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sites"][index]["sha256"]
        assert len(data) == shard["sites"][index]["bytes"]
        values.append(load_file(file)["values"])
        tables.append(pq.read_table(folder / shard["table"]["name"]))
        assert len(values[-1]) == len(tables[-1]) == shard["rows"]
    assert np.array_equal(np.concatenate(values), packed[SITE][:].numpy())
    rows = [row for table in tables for row in table["row"].to_pylist()]
    assert rows == list(range(len(packed)))
    assert tables[0].column_names == ["row", "sequence", "slot", "document", "position", "token"]


def test_heads_keep_their_dimensions(packed):
    found = packed.manifest.sites[1]
    assert (found.dims, found.shape) == (["head", "d_head"], [8, 16])
    assert packed["blocks.2.attn.z"][:3].shape == (3, 8, 16)


def test_int8_files_hold_values_and_scales(lm, texts, settings, tmp_path):
    store = ac.store.create(tmp_path / "s", lm, texts[:9], SITE, dtype="int8", **settings)
    file = store.address.local / store.manifest.shards[0].sites[0].name
    with safe_open(file, "pt") as f:
        values, scales = f.get_tensor("values"), f.get_tensor("scales")
    assert (values.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert torch.equal(values.float() * scales[:, None], store[SITE][: len(values)])


def test_the_manifest_names_every_file(packed):
    folder = packed.address.local
    named = {f.name for s in packed.manifest.shards for f in (*s.sites, s.table)} | {"manifest.json", "tokenizer.json"}
    have = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert have - {"cache.duckdb"} - {n for n in have if n.startswith("statistics/")} == named


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("shape", [[3], [2, 5], [1]])
def test_safetensors_reads_any_shape(tmp_path, dtype, shape):
    from actinium.store.codec import decode, encode
    from actinium.store.manifest import StoredSite
    from actinium.store.shard import MappedShard, ShardFile

    site = StoredSite(name="s", dims=["a", "b"][: len(shape)], shape=shape, dtype=dtype)
    x = torch.randn(7, *shape)
    file = ShardFile(tmp_path / "f", "f", site, 7)
    file.append(encode(x[:4], dtype))
    file.append(encode(x[4:], dtype))
    entry = file.finish()
    assert entry.bytes == (tmp_path / "f").stat().st_size
    with safe_open(tmp_path / "f", "pt") as f:
        theirs = f.get_tensor("values")
        scales = f.get_tensor("scales") if dtype == "int8" else None
    ours = MappedShard(tmp_path / "f", site, 7)
    assert torch.equal(decode(ours.values, ours.scales), decode(theirs, scales))
