"""Whatever happens to the files, a reader gives right data or a clear error."""

from __future__ import annotations

import copy as copying
import json
import random
import shutil
import warnings

import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import actinium as ac
from actinium.store.manifest import Manifest, StoredSite
from actinium.store.shard import MappedShard, header_of

SITE = "blocks.1.resid_post"
StoreError = ac.errors.StoreError


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed.address.local, tmp_path / "copy")


def a_shard(folder, number=1):
    return folder / json.loads((folder / "manifest.json").read_text())["shards"][number]["sites"][0]["name"]


def test_a_flipped_bit_is_found(copy):
    file = a_shard(copy)
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    assert ac.store.open(copy).verify() == [
        f"{file.relative_to(copy)} is damaged: its checksum differs; restore it, or remove it and create again"
    ]
    with pytest.raises(StoreError, match="checksum differs"):
        ac.store.open(copy, verify=True)[SITE][:]


def test_a_truncated_shard_is_refused(copy):
    file = a_shard(copy)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"is cut off: .* bytes, .* expected; remove it and run"):
        ac.store.open(copy)[SITE][:]
    assert "expected; restore it" in ac.store.open(copy).verify()[0]


@pytest.mark.parametrize("data", [b"", b"x", b"\0" * 5000])
def test_a_shard_of_anything_else_is_refused(copy, data):
    a_shard(copy).write_bytes(data)
    with pytest.raises(StoreError, match=r"cut off|damaged"):
        ac.store.open(copy)[SITE][:]


def test_a_missing_file_is_named(copy):
    a_shard(copy).unlink()
    with pytest.raises(StoreError, match=r"000001\.safetensors is missing; run the same create again"):
        ac.store.open(copy)[SITE][:]
    assert "is missing" in ac.store.open(copy).verify()[0]


def test_a_damaged_table_is_refused(copy):
    (copy / "rows" / "000000.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StoreError, match=r"rows/000000\.parquet is damaged"):
        ac.store.open(copy).context(3)


def test_a_newer_format_says_what_to_do(copy):
    text = (copy / "manifest.json").read_text().replace('"format": 1', '"format": 7')
    (copy / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"format 7.*reads up to 1; update it: pip install"):
        ac.store.open(copy)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["shards"][0].update(rows=-1), r"shards\.0\.rows"),
        (lambda m: m["shards"][0].update(rows="5"), r"shards\.0\.rows"),
        (lambda m: m["shards"][0]["sites"][0].update(name="../../etc/passwd"), "not a name inside the store"),
        (lambda m: m["shards"][0]["sites"][0].update(name="/etc/passwd"), "not a name inside the store"),
        (lambda m: m["shards"][0]["sites"].pop(), "1 files for 2 sites"),
        (lambda m: m["sites"][0].update(dtype="float64"), r"sites\.0\.dtype"),
        (lambda m: m["sites"][0].update(shape=[]), "1 names for 0 dimensions"),
        (lambda m: m["sites"].append(m["sites"][0]), "listed twice"),
        (lambda m: m.pop("layout"), "layout"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_place(copy, change, told):
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=told):
        ac.store.open(copy)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store was made there"):
        ac.store.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"is not a store: it holds no manifest\.json"):
        ac.store.open(tmp_path)


# Fuzzing ------------------------------------------------------------------------------------------------------

ROUNDS = 100_000


def mutated(data, source):
    """Bytes with some flipped, cut, doubled or exchanged for another part."""
    out = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(out) + 1) if out else 0
        kind = source.randrange(6)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << source.randrange(8)
        elif kind == 1:
            out = out[:at]
        elif kind == 2:
            end = min(len(out), at + source.randrange(1, 40))
            out[at:at] = out[at:end]
        elif kind == 3:
            del out[at : at + source.randrange(1, 40)]
        elif kind == 4:
            out[at:at] = source.choice([b"0", b"-1", b"1e999", b'"', b"[", b"{", b"null", b"NaN", b"\xff", b"9" * 30])
        elif out:
            digits = [i for i, c in enumerate(out) if 48 <= c <= 57]
            if digits:
                out[source.choice(digits)] = 48 + source.randrange(10)
    return bytes(out)


def test_a_hundred_thousand_damaged_manifests_give_an_error_or_a_consistent_one(packed):
    small = packed.manifest.model_copy(update={"shards": packed.manifest.shards[:1]})
    data, source, read = small.text(), random.Random(0), 0
    for _ in range(ROUNDS):
        try:
            found = Manifest.parse(mutated(data, source), "here")
        except StoreError:
            continue
        read += 1
        assert found.format == 1
        for shard in found.shards:
            assert len(shard.sites) == len(found.sites)
            assert shard.rows >= 0
            assert not any(".." in f.name.split("/") or f.name.startswith("/") for f in (*shard.sites, shard.table))
        assert Manifest.parse(found.text(), "again") == found
    assert 0 < read < ROUNDS


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_hundred_thousand_damaged_shards_give_an_error_or_the_right_shape(tmp_path, dtype):
    from actinium.store.codec import encode
    from actinium.store.shard import ShardFile

    site, rows = StoredSite(name="s", dims=["a"], shape=[3], dtype=dtype), 4
    file = ShardFile(tmp_path / "good", "good", site, rows)
    file.append(encode(torch.arange(12.0).view(4, 3), dtype))
    file.finish()
    data, source, read = (tmp_path / "good").read_bytes(), random.Random(1), 0
    head, path = header_of(site, rows), tmp_path / "bad"
    for _ in range(ROUNDS // 2):
        bad = mutated(data, source)
        path.write_bytes(bad)
        try:
            shard = MappedShard(path, site, rows)
        except StoreError:
            assert len(bad) != len(data) or not bad.startswith(head)
            continue
        read += 1
        # Only the numbers themselves can differ now, which the checksum tells.
        assert bad.startswith(head)
        assert shard.values.shape == (4, 3)
        assert shard.values.numpy().tobytes() == bad[len(head) : len(head) + shard.values.numpy().nbytes]
    assert 0 < read < ROUNDS // 2


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300)
    | st.text(max_size=300).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["kind", "format", "sites", "x"]), inner)
        ),
        max_leaves=10,
    ).map(lambda x: json.dumps(x).encode())
)
def test_anything_at_all_is_refused(data):
    with pytest.raises(StoreError):
        Manifest.parse(data, "here")


# Bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture
def create(lm, tmp_path):
    def run(data, at=SITE, **options):
        return ac.store.create(tmp_path / "store", lm, data, at, progress=False, **options)

    return run


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ([], "no documents given"),
        ([" ", ""], "all documents are empty"),
        (["Ann", 3], "document 1 holds int"),
        (["Ann", [1, 2]], "several kinds"),
        (3.5, "cannot read documents from a float"),
        ("/no/such/file.txt", "no file or folder"),
        (torch.zeros(0, 4), "is empty"),
        (torch.zeros(2, 3, dtype=torch.long) + 99999, "token ids go from 99999"),
    ],
)
def test_bad_documents_are_refused_before_work(create, tmp_path, data, told):
    with pytest.raises(ac.errors.InputError, match=told):
        create(data)
    assert not (tmp_path / "store").exists()


def test_missing_columns_are_named(create, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "a", "body": "b"}\n')
    with pytest.raises(ac.errors.InputError, match=r"no column 'bodi'; did you mean 'body'\?"):
        create(path, column="bodi")
    path.write_text('{"n": 1}\n')
    with pytest.raises(ac.errors.InputError, match=r"no column of texts; its columns are 'n'"):
        create(path)
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ac.errors.InputError, match="line 2 is not JSON"):
        create(path)
    path.write_text('{"text": 5}\n')
    with pytest.raises(ac.errors.InputError, match="line 1 holds int, expected a text"):
        create(path)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"at": "blocks.99.resid_post"}, ac.errors.SiteError, "blocks.99"),
        ({"at": "blocks.0.attn.pattern"}, ac.errors.SiteError, "depends on the length of the text"),
        ({"dtype": "float64"}, ac.errors.InputError, "dtype must be one of"),
        ({"context": 1}, ac.errors.InputError, "context must be at least 2"),
        ({"batch_size": 0}, ac.errors.InputError, "batch_size must be at least 1"),
        ({"shard_mb": 0}, ac.errors.InputError, "shard_mb must be more than 0"),
        ({"packing": "tight"}, ac.errors.InputError, 'packing is "pack" or "pad"'),
        ({"engine": "spark"}, ac.errors.InputError, 'engine is "local" or "ray"'),
    ],
)
def test_bad_settings_are_refused_before_work(create, tmp_path, options, error, told):
    with pytest.raises(error, match=told):
        create(["Ann lives in Orla."], **options)
    assert not (tmp_path / "store").exists()


def test_another_folder_is_not_touched(create, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.txt").write_text("mine")
    with pytest.raises(ac.errors.InputError, match="exists and is not a store"):
        create(["Ann lives in Orla."])
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["thesis.txt"]


def test_a_store_of_something_else_is_not_gone_on_with(lm, create, tmp_path):
    create(["Ann lives in Orla."], context=16)
    before = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="another data"):
        create(["Bob lives in Orla."], context=16)
    with pytest.raises(StoreError, match="another context"):
        create(["Ann lives in Orla."], context=8)
    with pytest.raises(StoreError, match="another sites"):
        create(["Ann lives in Orla."], ["blocks.2.resid_post"], context=16)
    with pytest.raises(ac.errors.InputError, match="holds a store"):
        create(["Ann lives in Orla."], context=16, resume=False)
    lower = copying.deepcopy(lm.tokenizer)
    lower.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(StoreError, match="another tokenizer"):
        spoken = ac.load("world:lm", tokenizer=lower)
        ac.store.create(tmp_path / "store", spoken, ["Ann lives in Orla."], SITE, context=16, progress=False)
    other = ac.load("world:lm")
    with torch.no_grad():
        next(other.module.parameters()).add_(1e-3)
    with pytest.raises(StoreError, match="another model"):
        ac.store.create(tmp_path / "store", other, ["Ann lives in Orla."], SITE, context=16, progress=False)
    assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()} == before


def test_a_shuffling_loader_is_refused(create):
    loader = torch.utils.data.DataLoader(torch.zeros(4, 3, dtype=torch.long), shuffle=True)
    with pytest.raises(ac.errors.InputError, match="shuffle=False"):
        create(loader)


def test_empty_documents_among_others_are_passed_over(create):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = create(["Ann lives in Orla.", "  ", "Bob lives in Vesk."], packing="pad")
    assert store.query("SELECT DISTINCT document FROM rows ORDER BY document")["document"].tolist() == [0, 2]
