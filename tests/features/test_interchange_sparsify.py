"""sparsify's folders: what is read and written there computes the same on both sides."""

from __future__ import annotations

import json

import pytest
import torch
from interchange_cases import AUTOENCODERS, K, M, close, random_module, random_weights, rows
from interchange_cases import D as WIDTH
from safetensors.torch import load_file, save_file

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.interchange.formats import load_dictionary, save_dictionary


def published(folder, x):
    """Latents and output as the format's settings describe them, in float64."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: value.double() for name, value in load_file(folder / "sae.safetensors").items()}
    x = x.double()
    pre = (x if cfg["transcode"] else x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    kept = pre.relu().topk(cfg["k"], dim=-1)
    f = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)
    return f, f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if cfg["skip_connection"] else 0)


def library(folder, x):
    """What sparsify computes."""
    coder = pytest.importorskip("sparsify").SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        return of(coder, x)


def of(coder, x):
    """Dense latents and output of sparsify's module."""
    found = coder(x)
    return torch.zeros(len(x), coder.num_latents).scatter(-1, found.latent_indices, found.latent_acts), found.sae_out


@pytest.fixture(params=[published, library], ids=["published", "library"])
def theirs(request):
    """The format's description, and sparsify itself where it is installed."""
    if request.param is library:
        pytest.importorskip("sparsify")
    return request.param


def agree(dictionary, folder, theirs, latents=True):
    f, out = theirs(folder, rows())
    found = dictionary(rows())
    assert torch.equal(found.f > 0, f > 0)
    assert int((f > 0).sum(1).max()) == K
    if latents:
        close(found.f, f)
    close(found.xhat, out)


@pytest.mark.parametrize("norms", ["unit", "free"])
@pytest.mark.parametrize("how", ["none", "mean_norm"])
@pytest.mark.parametrize("apply", [True, False])
def test_what_is_written_computes_the_same_there(apply, how, norms, tmp_path, theirs):
    sae = ac.features.TopKSAE(M, K, normalize=how, decoder_norm=norms, apply_b_dec=apply)
    sae = random_weights(sae.build(WIDTH))
    sae.measure_scale(rows())
    save_dictionary(sae, tmp_path, "sparsify")
    # Latents that are ranked by their norms grow by them.
    agree(sae, tmp_path, theirs, latents=norms == "unit")
    close(load_dictionary(tmp_path)(rows()).xhat, sae(rows()).xhat)


@pytest.mark.parametrize("kind", [ac.features.Transcoder, ac.features.SkipTranscoder])
@pytest.mark.parametrize("how", ["none", "mean_square"])
def test_transcoders_compute_the_same_there(kind, how, tmp_path, theirs):
    made = random_weights(kind(M, "topk", {"k": K}, normalize=how).build(WIDTH))
    made.measure_scale(rows())
    save_dictionary(made, tmp_path, "sparsify")
    agree(made, tmp_path, theirs)
    read = load_dictionary(tmp_path)
    assert type(read) is kind
    close(read(rows()).xhat, made(rows()).xhat)


def test_a_multi_layer_dictionary_is_a_topk_one_there(tmp_path, theirs):
    made = random_weights(ac.features.MultiLayerSAE(M, K, standardize=False).build(WIDTH))
    save_dictionary(made, tmp_path, "sparsify")
    agree(made, tmp_path, theirs)


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_what_sparsify_writes_computes_the_same_here(transcode, skip, tmp_path):
    sparsify = pytest.importorskip("sparsify")
    cfg = sparsify.SparseCoderConfig(num_latents=M, k=K, transcode=transcode, skip_connection=skip)
    coder = random_module(sparsify.SparseCoder(WIDTH, cfg))
    folder = tmp_path / "layers.10"
    coder.save_to_disk(folder)
    read = load_dictionary(folder)
    with torch.no_grad():
        f, out = of(coder, rows())
    close(read.encode(rows()), f)
    close(read(rows()).xhat, out)
    assert read.about["site"] == "blocks.10.resid_post"
    # And back: an autoencoder that skips has become a transcoder from its input to its input.
    save_dictionary(read, tmp_path / "again", "sparsify")
    close(library(tmp_path / "again", rows())[1], out)


def test_reading_and_writing_again_changes_no_bit(tmp_path):
    sae = random_weights(ac.features.TopKSAE(M, K).build(WIDTH))
    first, second = tmp_path / "a", tmp_path / "b"
    save_dictionary(sae, first, "sparsify")
    save_dictionary(load_dictionary(first), second, "sparsify")
    before, after = (load_file(f / "sae.safetensors") for f in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((first / "cfg.json").read_text()) == json.loads((second / "cfg.json").read_text())


def write(folder, tensors=None, drop=(), **settings):
    """A folder of a dictionary with these settings and parameters."""
    save_dictionary(random_weights(ac.features.TopKSAE(M, K).build(WIDTH)), folder, "sparsify")
    cfg = json.loads((folder / "cfg.json").read_text()) | settings
    (folder / "cfg.json").write_text(json.dumps({name: v for name, v in cfg.items() if name not in drop}))
    save_file(load_file(folder / "sae.safetensors") | (tensors or {}), folder / "sae.safetensors")
    return folder


def test_settings_of_older_versions_and_none_for_the_width_are_read(tmp_path):
    old = ("activation", "transcode", "skip_connection", "multi_topk")
    assert type(load_dictionary(write(tmp_path / "a", drop=old))) is ac.features.TopKSAE
    sae = random_weights(ac.features.TopKSAE(2 * WIDTH, K).build(WIDTH))
    save_dictionary(sae, tmp_path / "b", "sparsify")
    cfg = json.loads((tmp_path / "b" / "cfg.json").read_text()) | {"num_latents": 0}
    assert cfg["expansion_factor"] == 2
    (tmp_path / "b" / "cfg.json").write_text(json.dumps(cfg))
    assert load_dictionary(tmp_path / "b").d_sae == 2 * WIDTH


def test_half_precision_is_read_exactly(tmp_path):
    half = torch.randn(M, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
    read = load_dictionary(write(tmp_path, {"W_dec": half}))
    assert read.W_dec.dtype == torch.float32
    assert torch.equal(read.W_dec, half.float())
    # Rows of any norm are not given unit norm, and do not weight ranks.
    read.after_step()
    assert torch.equal(read.W_dec, half.float())
    close(read(rows()).xhat, published(tmp_path, rows())[1])


def test_settings_are_kept_and_written_back(tmp_path):
    read = load_dictionary(write(tmp_path / "h.3.mlp", multi_topk=True, mine="kept"))
    assert read.about["site"] == "blocks.3.mlp.out"
    save_dictionary(read, tmp_path / "b", "sparsify")
    cfg = json.loads((tmp_path / "b" / "cfg.json").read_text())
    assert (cfg["mine"], cfg["multi_topk"]) == ("kept", True)


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"activation": "groupmax"}, {}, "groupmax"),
        ({"signed": True}, {}, "both signs"),
        ({"k": M + 1}, {}, "k must be"),
        ({"k": 0}, {}, "k must be"),
        ({"k": "many"}, {}, "k must be"),
        ({"d_in": WIDTH + 1}, {}, r"encoder\.weight is"),
        ({"num_latents": M + 1}, {}, r"encoder\.weight is"),
        ({"num_latents": 0, "expansion_factor": None}, {}, "expansion_factor"),
        ({"skip_connection": True}, {}, "W_skip missing"),
        ({}, {"W_skip": torch.zeros(WIDTH, WIDTH)}, "W_skip unexpected"),
        ({}, {"W_dec": torch.zeros(M, WIDTH + 1)}, "W_dec is"),
        ({}, {"b_dec": torch.full((WIDTH,), float("inf"))}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(settings, tensors, message, tmp_path):
    with pytest.raises((LoadError, UnknownNameError), match=message):
        load_dictionary(write(tmp_path, tensors, **settings))


@pytest.mark.parametrize("name", [name for name in AUTOENCODERS if name != "topk"])
def test_other_latents_than_topk_are_not_written(name, tmp_path):
    with pytest.raises(InputError, match="TopK"):
        save_dictionary(random_weights(AUTOENCODERS[name]().build(WIDTH)), tmp_path, "sparsify")


def test_what_sparsify_does_not_have_is_not_written(tmp_path):
    with pytest.raises(InputError, match="does not normalise rows"):
        save_dictionary(ac.features.TopKSAE(M, K, normalize="norm").build(WIDTH), tmp_path, "sparsify")
    with pytest.raises(InputError, match="keep the width"):
        save_dictionary(ac.features.Transcoder(M, "topk", {"k": K}).build(WIDTH, 7), tmp_path, "sparsify")
    crosscoder = ac.features.Crosscoder(M, [4, 8], "topk", {"k": K}).build(WIDTH)
    with pytest.raises(InputError, match="Crosscoder"):
        save_dictionary(crosscoder, tmp_path, "sparsify")
    with pytest.raises(InputError, match="not fitted"):
        save_dictionary(ac.features.TopKSAE(M, K), tmp_path, "sparsify")
    assert not list(tmp_path.iterdir())
