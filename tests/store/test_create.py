"""What a store holds is what the model computed, for every packing, type and kind of data."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader

import actinium as ac

SITE = "blocks.1.resid_post"
Z = "blocks.2.attn.z"


def windows_of(store):
    """Token ids of each window, in order."""
    table = store.query("SELECT * FROM rows ORDER BY row")
    return [group for _, group in table.groupby("sequence")]


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_rows_are_what_the_model_computes_for_the_window(lm, request, kind):
    store = request.getfixturevalue(kind)
    for group in windows_of(store)[:: max(1, len(windows_of(store)) // 8)]:
        ids = torch.tensor(group["token"].to_numpy())[None]
        rec = lm.record(ids, [SITE, Z])
        rows = group["row"].to_numpy()
        torch.testing.assert_close(store.rows(SITE, rows), rec[SITE][0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(store.rows(Z, rows), rec[Z][0], atol=2e-5, rtol=1e-4)


def test_packed_windows_are_full_and_hold_every_token_once(lm, texts, packed):
    groups = windows_of(packed)
    bos, eos = lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id
    assert all(len(group) == 32 for group in groups[:-1])
    assert all(group["token"].iloc[0] == bos and group["position"].iloc[0] == -1 for group in groups)
    stream = [t for group in groups for t in group["token"].to_numpy()[1:]]
    expected = [t for text in texts for t in [*lm.tokenizer(text, add_special_tokens=False)["input_ids"], eos]]
    assert stream == expected


def test_padded_windows_begin_with_their_document(lm, texts, padded):
    table = padded.query("SELECT * FROM rows WHERE position >= 0 ORDER BY row")
    for document, group in table.groupby("document"):
        ids = lm.tokenizer(texts[document], add_special_tokens=False)["input_ids"]
        assert group["token"].tolist() == ids
        assert group["position"].tolist() == list(range(len(ids)))
    assert padded.query("SELECT count(DISTINCT document) AS n FROM rows")["n"][0] == len(texts)
    assert (padded.query("SELECT count(DISTINCT document) AS n FROM rows GROUP BY sequence")["n"] == 1).all()


def test_documents_longer_than_the_context_lose_nothing(lm, tmp_path):
    words = " ".join(["Ann lives in Orla."] * 40)
    store = ac.store.create(tmp_path / "s", lm, [words], SITE, context=16, packing="pad", progress=False)
    ids = store.query("SELECT token FROM rows WHERE position >= 0 ORDER BY row")["token"].tolist()
    assert ids == lm.tokenizer(words, add_special_tokens=False)["input_ids"]


def test_special_tokens_can_be_left_out(lm, texts, packed, settings, tmp_path):
    options = {**settings, "dtype": "float32", "exclude_special": True}
    store = ac.store.create(tmp_path / "s", lm, texts, SITE, **options)
    kept = packed.query("SELECT row, token FROM rows ORDER BY row")
    plain = kept[~kept["token"].isin(lm.tokenizer.all_special_ids)]
    assert len(plain) < len(kept)
    torch.testing.assert_close(store[SITE][:], packed.rows(SITE, plain["row"].to_numpy()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_16_bit_types_are_the_nearest_rounding(lm, texts, packed, settings, tmp_path, dtype, relative):
    store = ac.store.create(tmp_path / "s", lm, texts, SITE, dtype=dtype, **settings)
    exact = packed[SITE][:]
    assert store[SITE].dtype == getattr(torch, dtype)
    assert torch.equal(store[SITE][:], exact.to(getattr(torch, dtype)))
    assert bool(((store[SITE][:].float() - exact).abs() <= relative * exact.abs() + 6e-8).all())


def test_int8_error_is_at_most_half_a_step_and_stated(lm, texts, packed, settings, tmp_path):
    store = ac.store.create(tmp_path / "s", lm, texts, SITE, dtype="int8", **settings)
    exact, got = packed[SITE][:], store[SITE][:]
    step = exact.abs().amax(1, keepdim=True) / 127
    assert bool(((got - exact).abs() <= step * 0.5001).all())
    stated = store.rounding_error[SITE]
    true = float((got - exact).double().square().sum() / exact.double().square().sum()) ** 0.5
    assert stated == pytest.approx(true, rel=1e-3)
    assert 0 < stated < 0.02


def test_values_beyond_float16_are_clamped_and_said(tmp_path):
    model = ac.Model(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()))
    data = torch.tensor([[1.0, 1e6, -1e6, 65504.0]])
    with pytest.warns(ac.errors.ActiniumWarning, match="2 values were beyond the range of float16"):
        store = ac.store.create(tmp_path / "s", model, data, "module:0", progress=False)
    assert store["module:0"][0].tolist() == [1.0, 65504.0, -65504.0, 65504.0]


class Bad(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Identity()

    def forward(self, x):
        return self.out(torch.where(x > 2, torch.nan, x))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_nan_is_kept_and_said(tmp_path, dtype):
    data = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.5]])
    with pytest.warns(ac.errors.ActiniumWarning, match="1 values were NaN"):
        store = ac.store.create(tmp_path / "s", ac.Model(Bad()), data, "module:out", dtype=dtype, progress=False)
    bad = store["module:out"][:].isnan().any(1)
    assert bad.tolist() == [False, True, False]


def test_max_tokens_stops_there(lm, texts, settings, tmp_path):
    store = ac.store.create(tmp_path / "s", lm, texts, SITE, max_tokens=333, **settings)
    assert len(store) == 333


def test_shards_stay_below_their_size(packed):
    for shard in packed.manifest.shards:
        assert all(file.bytes <= 0.2e6 + 200 for file in shard.sites)
    assert len(packed.manifest.shards) > 3


def test_a_store_without_rows_can_be_made_and_read(lm, tmp_path):
    ids = [[lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id]] * 3
    for dtype in ("float16", "int8"):
        path = tmp_path / dtype
        store = ac.store.create(path, lm, ids, SITE, dtype=dtype, context=4, exclude_special=True, progress=False)
        assert len(store) == 0
        assert store[SITE][:].shape == (0, 128)
        assert list(store.batches(SITE, 8)) == []
        assert store.verify() == []


# Data ---------------------------------------------------------------------------------------------------------


def same_rows(store, other):
    assert len(store) == len(other)
    assert torch.equal(store[SITE][:], other[SITE][:].to(store[SITE].dtype))
    ours, theirs = (s.query("SELECT token, document FROM rows ORDER BY row") for s in (store, other))
    assert ours.equals(theirs)


@pytest.fixture
def make(lm, settings, tmp_path):
    numbers = iter(range(100))
    return lambda data, **more: ac.store.create(
        tmp_path / f"store-{next(numbers)}", lm, data, SITE, dtype="float32", **{**settings, **more}
    )


def test_files_give_the_rows_of_their_texts(make, texts, packed, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"n": i, "text": t}) for i, t in enumerate(texts)))
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"body": t, "note": "x"}) for t in texts))
    pandas.DataFrame({"n": range(len(texts)), "text": texts}).to_csv(tmp_path / "f.csv", index=False)
    pandas.DataFrame({"text": texts}).to_csv(tmp_path / "g.tsv", index=False, sep="\t")
    pa.parquet.write_table(pa.table({"n": range(len(texts)), "text": texts}), tmp_path / "e.parquet")
    for name, more in (
        ("a.txt", {}),
        ("b.txt", {}),
        ("c.jsonl", {}),
        ("d.jsonl", {"column": "body"}),
        ("e.parquet", {}),
        ("f.csv", {}),
        ("g.tsv", {}),
    ):
        same_rows(make(str(tmp_path / name), **more), packed)
    half = len(texts) // 2
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.txt").write_text("\n".join(texts[:half]))
    (folder / "2.txt").write_text("\n".join(texts[half:]))
    same_rows(make(folder), packed)


def test_datasets_give_the_rows_of_their_texts(make, texts, packed):
    import datasets

    whole = datasets.Dataset.from_dict({"id": list(range(len(texts))), "text": texts})
    same_rows(make(whole), packed)
    same_rows(make(whole.to_iterable_dataset()), packed)


def test_token_ids_and_loaders_are_documents(lm, make, texts):
    ids = [lm.tokenizer(t)["input_ids"] for t in texts]
    store = make(ids, packing="pad")
    tokens = store.query("SELECT token FROM rows ORDER BY row")["token"].tolist()
    assert tokens == [t for row in ids for t in row]
    square = torch.tensor([row[:6] for row in ids if len(row) >= 6])
    loader = DataLoader([{"input_ids": row} for row in square], batch_size=7)
    for data in (square, square.numpy(), loader):
        found = make(data, packing="pad").query("SELECT token FROM rows ORDER BY row")["token"].tolist()
        assert found == square.flatten().tolist()


def test_images_of_a_folder_go_through_the_processor(tmp_path):
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    model = ac.Model(ViTModel(config).eval(), processor=ViTImageProcessor(size={"height": 16, "width": 16}))
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)) for i in range(5)
    ]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    store = ac.store.create(
        tmp_path / "s", model, tmp_path, "blocks.0.resid_post", dtype="float32", batch_size=2, progress=False
    )
    expected = model.record(pictures, "blocks.0.resid_post")["blocks.0.resid_post"]
    assert len(store) == 5 * 5
    torch.testing.assert_close(store["blocks.0.resid_post"][:].view(5, 5, 16), expected, atol=1e-5, rtol=1e-4)
    table = store.query("SELECT document, position FROM rows ORDER BY row")
    assert table["document"].tolist() == [i for i in range(5) for _ in range(5)]
    assert table["position"].tolist() == list(range(5)) * 5


def test_maps_of_a_convolution_are_rows_of_channels(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    model, data = ac.Model(module), torch.randn(7, 3, 8, 8)
    store = ac.store.create(tmp_path / "s", model, data, "module:0", dtype="float32", batch_size=3, progress=False)
    expected = module[0](data).detach().permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(store["module:0"][:], expected)
    assert store.manifest.sites[0].dims == ["channel"]
    with pytest.raises(ac.errors.SiteError, match="different rows for one window"):
        ac.store.create(tmp_path / "t", model, data, ["module:0", "module:3"], progress=False)
