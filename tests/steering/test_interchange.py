"""Vectors in other libraries' files: bytes as they must be, and what those libraries read, write and do with them."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
import torch

from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.steering.application import steer
from actinium.steering.gguf_file import from_gguf, to_gguf
from actinium.steering.interchange import load_vector, save_vector
from actinium.steering.vector import SteeringVector
from architectures import shared, token_ids

# Two directions of three entries for blocks 1 and 2 of a "gpt2", as gguf 0.19 and repeng 0.4.0 write them.
GOLDEN = bytes.fromhex(
    "4747554603000000" "0200000000000000" "0300000000000000"
    "1400000000000000" + b"general.architecture".hex() + "08000000" "0d00000000000000" + b"controlvector".hex() +
    "1800000000000000" + b"controlvector.model_hint".hex() + "08000000" "0400000000000000" + b"gpt2".hex() +
    "1900000000000000" + b"controlvector.layer_count".hex() + "04000000" "02000000"
    "0b00000000000000" + b"direction.1".hex() + "01000000" "0300000000000000" "00000000" "0000000000000000"
    "0b00000000000000" + b"direction.2".hex() + "01000000" "0300000000000000" "00000000" "2000000000000000"
)  # fmt: skip
GOLDEN += bytes(-len(GOLDEN) % 32)
GOLDEN += np.array([1.0, -2.0, 0.5], "<f4").tobytes() + bytes(20)
GOLDEN += np.array([0.0, 3.0, 0.25], "<f4").tobytes() + bytes(20)
DIRECTIONS = {1: torch.tensor([1.0, -2.0, 0.5]), 2: torch.tensor([0.0, 3.0, 0.25])}


def sited(part, directions=DIRECTIONS):
    return SteeringVector({f"blocks.{i}.{part}": v for i, v in directions.items()})


def library(name, monkeypatch):
    """Another library, or a skipped test."""
    if name == "repeng":
        # repeng 0.4 names a type in its annotations that NumPy 2 does not have any more.
        monkeypatch.setattr(np, "float_", np.float64, raising=False)
        monkeypatch.delitem(sys.modules, "repeng", raising=False)
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


def same(a, b):
    assert a.sites == b.sites and all(torch.equal(a[site], b[site]) for site in a.sites)


def test_gguf_bytes(tmp_path):
    assert to_gguf(DIRECTIONS, "gpt2") == GOLDEN
    path = save_vector(sited("resid_post"), tmp_path / "v.gguf", model_type="gpt2")
    assert path.read_bytes() == GOLDEN
    read = load_vector(path)
    same(read, sited("resid_post"))
    assert read.made == {"format": "gguf", "model_type": "gpt2"}
    assert save_vector(read, tmp_path / "again.gguf").read_bytes() == GOLDEN


def test_svec_text(tmp_path):
    vector = SteeringVector(sited("resid_pre").directions, made={"explained_variances": {"blocks.1.resid_pre": 0.5}})
    path = save_vector(vector, tmp_path / "v.svec", model_type="llama")
    assert path.read_text() == (
        '{"model_type": "llama", "directions": {"1": [1.0, -2.0, 0.5], "2": [0.0, 3.0, 0.25]},'
        ' "explained_variances": {"1": 0.5}}'
    )
    same(load_vector(path), vector)
    assert load_vector(path).made["explained_variances"] == {"blocks.1.resid_pre": 0.5}
    same(load_vector(path, part="resid_post"), sited("resid_post"))


def test_the_arguments_of_steering_vectors(tmp_path):
    for part, kind in (("resid_post", "decoder_block"), ("mlp.out", "mlp"), ("attn.out", "self_attn")):
        path = save_vector(sited(part), tmp_path / "v.pt")
        stored = torch.load(path, weights_only=True)
        assert stored["layer_type"] == kind and torch.equal(stored["layer_activations"][2], DIRECTIONS[2])
        same(load_vector(path), sited(part))


def test_one_stream_has_one_number(tmp_path):
    """The output of block 1 is the input of block 2, whichever of the two a format counts by."""
    one = {1: DIRECTIONS[1]}
    save_vector(sited("resid_post", one), tmp_path / "v.svec", model_type="llama")
    same(load_vector(tmp_path / "v.svec"), SteeringVector({"blocks.2.resid_pre": DIRECTIONS[1]}))
    save_vector(SteeringVector({"blocks.2.resid_pre": DIRECTIONS[1]}), tmp_path / "v.gguf", model_type="llama")
    same(load_vector(tmp_path / "v.gguf"), sited("resid_post", one))
    save_vector(sited("resid_post", one), tmp_path / "read.svec", model_type="llama", part="resid_post")
    assert list(json.loads((tmp_path / "read.svec").read_text())["directions"]) == ["1"]


def test_own_files_go_through_the_same_door(tmp_path):
    save_vector(sited("mlp.out"), tmp_path / "v.safetensors")
    same(load_vector(tmp_path / "v.safetensors"), sited("mlp.out"))
    with pytest.raises(InputError, match="part"):
        load_vector(tmp_path / "v.safetensors", part="resid_pre")


def test_half_precision_and_other_keys_are_read():
    info = b"direction.2" + b"\x01\0\0\0" + (3).to_bytes(8, "little")
    assert info in GOLDEN
    half = GOLDEN.replace(info + bytes(4), info + b"\x01\0\0\0")
    start = len(GOLDEN) - 32
    half = half[:start] + np.array([0.0, 3.0, 0.25], "<f2").tobytes() + bytes(26)
    directions, hint = from_gguf(half)
    assert directions[2].tolist() == [0.0, 3.0, 0.25] and hint == "gpt2"
    more = (7).to_bytes(8, "little") + b"a.names" + b"\x09\0\0\0" + b"\x08\0\0\0" + (1).to_bytes(8, "little")
    more += (2).to_bytes(8, "little") + b"xy"
    at = GOLDEN.index((11).to_bytes(8, "little") + b"direction.1")
    longer = (
        GOLDEN[:16]
        + (4).to_bytes(8, "little")
        + GOLDEN[24:at]
        + more
        + GOLDEN[at : GOLDEN.index(b"\x20\0\0\0\0\0\0\0", at) + 8]
    )
    longer += bytes(-len(longer) % 32) + GOLDEN[-64:]
    assert torch.equal(from_gguf(longer)[0][1], DIRECTIONS[1])


@pytest.mark.parametrize("size", [0, 3, 12, 40, 100, 200, len(GOLDEN) - 65, len(GOLDEN) - 25])
def test_damaged_gguf_is_refused(tmp_path, size):
    (tmp_path / "v.gguf").write_bytes(GOLDEN[:size])
    with pytest.raises(LoadError, match=r"v\.gguf"):
        load_vector(tmp_path / "v.gguf")


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(LoadError, match="cannot read"):
        load_vector(tmp_path / "absent.gguf")
    (tmp_path / "v.gguf").write_bytes(GOLDEN.replace(b"controlvector\x18", b"llama.vectors\x18"))
    with pytest.raises(LoadError, match="no control vector"):
        load_vector(tmp_path / "v.gguf")
    (tmp_path / "v.gguf").write_bytes(GOLDEN.replace(b"direction.2", b"direction.x"))
    with pytest.raises(LoadError, match="names no layer"):
        load_vector(tmp_path / "v.gguf")
    for text in ("{", "[]", '{"directions": {"a": [1]}}', '{"directions": {"1": "x"}}', '{"directions": {"1": [[1]]}}',
                 '{"directions": {}}', '{"directions": {"1": [NaN]}}'):  # fmt: skip
        (tmp_path / "v.svec").write_text(text)
        with pytest.raises(LoadError):
            load_vector(tmp_path / "v.svec")
    for given in ([1], {"layer_activations": {}}, {"layer_activations": {"1": torch.ones(2)}},
                  {"layer_activations": {1: torch.ones(2)}, "layer_type": "input_layernorm"}):  # fmt: skip
        torch.save(given, tmp_path / "v.pt")
        with pytest.raises(LoadError):
            load_vector(tmp_path / "v.pt")
    torch.save({"layer_activations": Harmful()}, tmp_path / "v.pt")
    with pytest.raises(LoadError, match="unpickled"):
        load_vector(tmp_path / "v.pt")


class Harmful:
    def __reduce__(self):
        raise_it = "raise SystemExit"
        return exec, (raise_it,)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InputError, match="model_type"):
        save_vector(sited("resid_post"), tmp_path / "v.gguf")
    with pytest.raises(InputError, match="cannot be written"):
        save_vector(sited("mlp.out"), tmp_path / "v.gguf", model_type="gpt2")
    with pytest.raises(InputError, match="before the first block"):
        save_vector(SteeringVector({"blocks.0.resid_pre": torch.ones(3)}), tmp_path / "v.gguf", model_type="gpt2")
    with pytest.raises(InputError, match="no block"):
        save_vector(SteeringVector({"embed": torch.ones(3)}), tmp_path / "v.gguf", model_type="gpt2")
    twice = SteeringVector({"blocks.1.resid_post": torch.ones(3), "blocks.2.resid_pre": torch.ones(3)})
    with pytest.raises(InputError, match="second time"):
        save_vector(twice, tmp_path / "v.gguf", model_type="gpt2")
    with pytest.raises(UnknownNameError, match=r"\.gguf"):
        load_vector(tmp_path / "v.ggu")
    with pytest.raises(UnknownNameError, match="svec"):
        load_vector(tmp_path / "v.json", "svek")
    with pytest.warns(ActiniumWarning, match="block 0"):
        save_vector(sited("resid_post", {0: torch.ones(3)}), tmp_path / "v.gguf", model_type="gpt2")


def test_a_pickled_vector_of_steering_vectors_is_read_without_unpickling(tmp_path, monkeypatch):
    theirs = library("steering_vectors", monkeypatch)
    torch.save(theirs.SteeringVector(dict(DIRECTIONS), "mlp"), tmp_path / "v.pt")
    same(load_vector(tmp_path / "v.pt"), sited("mlp.out"))


# What the other libraries do -------------------------------------------------------------------------------------


def random_vector(model, part, layers=(1, 2)):
    random = torch.Generator().manual_seed(0)
    return SteeringVector({f"blocks.{i}.{part}": torch.randn(model.d_model, generator=random) for i in layers})


def test_gguf_of_the_gguf_package(tmp_path, monkeypatch):
    gguf = library("gguf", monkeypatch)
    save_vector(sited("resid_post"), tmp_path / "v.gguf", model_type="gpt2")
    found = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    assert {k: v.tolist() for k, v in found.items()} == {f"direction.{i}": v.tolist() for i, v in DIRECTIONS.items()}


def test_repeng_reads_writes_and_acts_alike(tmp_path, monkeypatch):
    repeng = library("repeng", monkeypatch)
    theirs = repeng.ControlVector("gpt2", {i: v.numpy() for i, v in DIRECTIONS.items()})
    theirs.export_gguf(tmp_path / "theirs.gguf")
    assert (tmp_path / "theirs.gguf").read_bytes() == GOLDEN
    # With transformers 5 repeng 0.4 steers one text at a time.
    model, ids = shared("gpt2"), token_ids(1, 6)
    vector = random_vector(model, "resid_post")
    save_vector(vector, tmp_path / "ours.gguf", model_type="gpt2")
    read = repeng.ControlVector.import_gguf(tmp_path / "ours.gguf")
    assert sorted(read.directions) == [1, 2] and read.model_type == "gpt2"
    with steer(model, load_vector(tmp_path / "ours.gguf"), 1.5), torch.no_grad():
        ours = model.logits(ids)
    wrapped = repeng.ControlModel(model.module, [1, 2])
    try:
        wrapped.set_control(read, 1.5)
        with torch.no_grad():
            assert torch.allclose(wrapped(ids).logits, ours, atol=1e-5)
    finally:
        wrapped.unwrap()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("part", ["resid_post", "mlp.out", "attn.out"])
def test_steering_vectors_acts_alike(tmp_path, monkeypatch, name, part):
    library_ = library("steering_vectors", monkeypatch)
    model, ids = shared(name), token_ids(2, 6)
    vector = random_vector(model, part)
    path = save_vector(vector, tmp_path / "v.pt")
    theirs = library_.SteeringVector(**torch.load(path, weights_only=True))
    guessed = (
        {"layer_config": {"self_attn": "transformer.h.{num}.attn"}} if name == "gpt2" and part == "attn.out" else {}
    )
    with steer(model, load_vector(path), 1.5), torch.no_grad():
        ours = model.logits(ids)
    with theirs.apply(model.module, multiplier=1.5, **guessed), torch.no_grad():
        assert torch.allclose(model.logits(ids), ours, atol=1e-5)
