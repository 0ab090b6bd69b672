"""Gemma Scope's and Prisma's parameters, and how a file's format is recognised."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from interchange_cases import AUTOENCODERS, K, M, close, random_weights, rows
from interchange_cases import D as WIDTH
from safetensors.torch import load_file, save_file

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.interchange.formats import load_dictionary, save_dictionary


def draw(*shape, seed=0, scale=0.3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


# Gemma Scope


def gemma(d_out=WIDTH, **more):
    made = {"W_enc": draw(WIDTH, M), "W_dec": draw(M, d_out, seed=1), "b_enc": draw(M, seed=2)}
    return made | {"b_dec": draw(d_out, seed=3), "threshold": draw(M, seed=4).abs()} | more


def jumps(w, x):
    """Latents and output of Gemma Scope's tutorial formula, in float64."""
    w = {name: value.double() for name, value in w.items()}
    pre = x.double() @ w["W_enc"] + w["b_enc"]
    f = (pre > w["threshold"]) * pre.relu()
    return f, f @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("d_out", [WIDTH, 7])
def test_gemma_scope_computes_the_formula_of_its_release(d_out, tmp_path):
    w = gemma(d_out)
    np.savez(tmp_path / "params.npz", **{name: value.numpy() for name, value in w.items()})
    read = load_dictionary(tmp_path)
    assert type(read) is (ac.features.JumpReLUSAE if d_out == WIDTH else ac.features.Transcoder)
    f, out = jumps(w, rows())
    assert 0 < float((f > 0).double().mean()) < 1
    close(read.encode(rows()), f)
    close(read(rows()).xhat, out)
    close(load_dictionary(tmp_path / "params.npz").W_enc, read.W_enc)


def test_the_second_gemma_scope_has_other_names_and_a_skip(tmp_path):
    w = gemma(7)
    skip = draw(WIDTH, 7, seed=5)
    kept = {name.replace("W_", "w_"): value for name, value in w.items()} | {"affine_skip_connection": skip}
    save_file(kept, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}))
    read = load_dictionary(tmp_path)
    f, out = jumps(w, rows())
    close(read.encode(rows()), f)
    close(read(rows()).xhat, out + rows().double() @ skip.double())
    assert read.about["model"] == "gemma-v3-1b-pt"
    # SAELens has the same architecture.
    save_dictionary(read, tmp_path / "there", "saelens")
    cfg = json.loads((tmp_path / "there" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_out"]) == ("jumprelu_skip_transcoder", 7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"threshold": None}, "threshold missing"),
        ({"threshold": torch.zeros(M + 1)}, "theta is"),
        ({"b_dec": torch.full((WIDTH,), float("nan"))}, "not finite"),
        ({"W_dec": draw(M, 3, WIDTH)}, "must be matrices"),
        ({"W_other": draw(3)}, "W_other unexpected"),
    ],
)
def test_what_does_not_fit_gemma_scope_is_refused(changed, message, tmp_path):
    held = {name: value.numpy() for name, value in gemma(**changed).items() if value is not None}
    np.savez(tmp_path / "params.npz", **held)
    with pytest.raises(LoadError, match=message):
        load_dictionary(tmp_path)


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    held = {name: value.numpy() for name, value in gemma().items()}
    np.savez(tmp_path / "params.npz", **held | {"W_enc": np.array([object()], dtype=object)})
    with pytest.raises(LoadError, match="pickle"):
        load_dictionary(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"PK nothing")
    with pytest.raises(LoadError):
        load_dictionary(tmp_path)


# Prisma


def prisma(folder, weights=None, state=None, **settings):
    folder.mkdir(exist_ok=True)
    state = state or {"W_enc": draw(WIDTH, 48), "W_dec": draw(48, WIDTH, seed=1), "b_dec": draw(WIDTH, seed=2)}
    state = {"b_enc": draw(48, seed=3)} | state | (weights or {})
    base = {"d_in": WIDTH, "expansion_factor": 4, "architecture": "standard", "activation_fn_str": "relu"}
    base |= {"activation_fn_kwargs": {}, "normalize_activations": "none", "is_transcoder": False, "d_out": WIDTH}
    base |= {"model_name": "open-clip:tiny", "hook_point_layer": 4, "layer_subtype": "hook_resid_post"}
    (folder / "config.json").write_text(json.dumps(base | settings))
    torch.save({name: value for name, value in state.items() if value is not None}, folder / "weights.pt")
    return {name: value.double() for name, value in state.items() if value is not None}


def top(pre, k):
    kept = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())


@pytest.mark.parametrize("how", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_prisma_computes_what_its_settings_say(kind, how, tmp_path):
    settings = {"normalize_activations": how}
    settings |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}} if kind == "topk" else {}
    settings |= {"architecture": "gated"} if kind == "gated" else {}
    own = {name: draw(48, seed=i + 4) for i, name in enumerate(("b_gate", "b_mag", "r_mag"))}
    w = prisma(tmp_path, own if kind == "gated" else None, **settings)
    read = load_dictionary(tmp_path)
    x = rows().double()
    size, mean = x.new_ones(()), x.new_zeros(())
    if how == "constant_norm_rescale":
        size = x.norm(dim=-1, keepdim=True) / WIDTH**0.5
    elif how == "layer_norm":
        mean, size = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    pre = ((x - mean) / (size + 1e-5 * (how == "layer_norm")) - w["b_dec"]) @ w["W_enc"]
    if kind == "gated":
        f = (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    else:
        f = top(pre + w["b_enc"], K if kind == "topk" else 48)
    normal = f @ w["W_dec"] + w["b_dec"]
    close(read.encode(rows()), f)
    # Prisma multiplies by the deviation alone, where it divided by the deviation + 1e-5.
    close(read(rows()).xhat, normal * size + mean)
    assert (read.about["model"], read.about["site"]) == ("open-clip:tiny", "blocks.4.resid_post")


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_a_transcoder_of_prisma_has_a_bias_for_its_input(activation, skips, tmp_path):
    own = {"W_dec": draw(48, 7, seed=1), "b_dec_out": draw(7, seed=6), "W_skip": draw(7, WIDTH, seed=7)}
    own["W_skip"] = own["W_skip"] if skips else None
    details = {"activation_fn_str": activation, "activation_fn_kwargs": {"k": K} if activation == "topk" else {}}
    w = prisma(tmp_path, own, is_transcoder=True, d_out=7, **details)
    read = load_dictionary(tmp_path)
    pre = (rows().double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = top(pre, K if activation == "topk" else 48)
    out = f @ w["W_dec"] + w["b_dec_out"] + (rows().double() @ w["W_skip"].T if skips else 0)
    close(read.encode(rows()), f)
    close(read(rows()).xhat, out)


class Config:
    """A configuration as Prisma pickles it."""


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"architecture": "jumprelu"}, {}, "architecture of Prisma's"),
        ({"activation_fn_str": "tanh-relu"}, {}, "activation of Prisma's"),
        ({"activation_fn_str": "topk"}, {}, "k must be"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 49}}, {}, "k must be"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "normalisation"),
        ({"expansion_factor": 3}, {}, "is .*, and the settings make it"),
        ({"is_transcoder": True}, {}, "b_dec_out missing"),
        ({"is_transcoder": True, "normalize_activations": "layer_norm"}, {}, "input's norms"),
        ({"is_transcoder": True}, {"b_dec_out": draw(WIDTH), "b_dec": draw(3)}, "encoder is not that"),
        ({}, {"W_enc": draw(WIDTH, 48) / 0}, "not finite"),
    ],
)
def test_what_does_not_fit_prisma_is_refused(settings, weights, message, tmp_path):
    prisma(tmp_path, weights, **settings)
    with pytest.raises((LoadError, UnknownNameError), match=message):
        load_dictionary(tmp_path)


def test_a_pickled_configuration_is_refused(tmp_path):
    w = prisma(tmp_path)
    torch.save({"cfg": Config(), "state_dict": w}, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match="nothing is unpickled"):
        load_dictionary(tmp_path)
    # The same file without the object in it.
    torch.save({"state_dict": w}, tmp_path / "weights.pt")
    assert load_dictionary(tmp_path / "weights.pt").d_sae == 48
    torch.save({"state_dict": {"W_enc": 3}}, tmp_path / "weights.pt")
    with pytest.raises(LoadError, match="more than tensors"):
        load_dictionary(tmp_path)


def test_one_file_of_weights_is_expected(tmp_path):
    prisma(tmp_path)
    torch.save(torch.zeros(48), tmp_path / "n_images_10_log_feature_sparsity.pt")
    load_dictionary(tmp_path)
    torch.save({}, tmp_path / "more.pt")
    with pytest.raises(LoadError, match="2 files of weights"):
        load_dictionary(tmp_path)


# Formats


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_file_of_actinium_is_one_of_the_formats(name, tmp_path):
    sae = random_weights(AUTOENCODERS[name](normalize="norm", decoder_norm="free").build(WIDTH))
    file = save_dictionary(sae, tmp_path / "mine.safetensors", "actinium")
    read = load_dictionary(file)
    assert type(read) is type(sae)
    assert torch.equal(read(rows()).xhat, sae(rows()).xhat)


def test_a_folder_is_recognised_by_its_files_and_by_one_of_them(tmp_path):
    sae = random_weights(AUTOENCODERS["topk"]().build(WIDTH))
    for name, file in (
        ("saelens", "sae_weights.safetensors"),
        ("sparsify", "sae.safetensors"),
        ("dictionary_learning", "ae.pt"),
    ):
        folder = save_dictionary(sae, tmp_path / name, name)
        for read in (load_dictionary(folder), load_dictionary(folder / file), load_dictionary(folder, name)):
            assert type(read) is ac.features.TopKSAE
            assert read.about["format"] == name
            assert not read.training
            assert torch.equal(read(rows()).xhat, sae(rows()).xhat)


def test_one_format_is_written_as_another(tmp_path):
    sae = random_weights(AUTOENCODERS["topk"]().build(WIDTH))
    save_dictionary(sae, tmp_path / "a", "sparsify")
    save_dictionary(load_dictionary(tmp_path / "a"), tmp_path / "b", "saelens")
    save_dictionary(load_dictionary(tmp_path / "b"), tmp_path / "c", "dictionary_learning")
    found = load_dictionary(tmp_path / "c")
    assert torch.equal(found(rows()).xhat, sae(rows()).xhat)


def test_files_of_two_formats_in_one_folder_need_a_name(tmp_path):
    sae = random_weights(AUTOENCODERS["topk"]().build(WIDTH))
    save_dictionary(sae, tmp_path, "sparsify")
    save_dictionary(sae, tmp_path / "other", "dictionary_learning")
    (tmp_path / "other" / "config.json").rename(tmp_path / "config.json")
    (tmp_path / "other" / "ae.pt").rename(tmp_path / "ae.pt")
    with pytest.raises(InputError, match="sparsify and dictionary_learning"):
        load_dictionary(tmp_path)
    assert load_dictionary(tmp_path, "sparsify").about["format"] == "sparsify"


def test_what_is_no_dictionary_is_refused(tmp_path):
    with pytest.raises(LoadError, match="no file or folder"):
        load_dictionary(tmp_path / "nothing")
    (tmp_path / "layers.3").mkdir()
    with pytest.raises(LoadError, match=r"holds no dictionary .* it holds the folders layers\.3"):
        load_dictionary(tmp_path)
    with pytest.raises(UnknownNameError, match="saelens"):
        load_dictionary(tmp_path, "sae_lens")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(LoadError):
        load_dictionary(tmp_path / "notes.txt")


def test_where_nothing_can_be_written_is_refused(tmp_path):
    sae = random_weights(AUTOENCODERS["topk"]().build(WIDTH))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="in a folder"):
        save_dictionary(sae, tmp_path / "file", "saelens")
    with pytest.raises(InputError, match="cannot write"):
        save_dictionary(sae, tmp_path / "file" / "within", "saelens")
    with pytest.raises(UnknownNameError, match="written"):
        save_dictionary(sae, tmp_path / "x", "prisma")
    sae.about = {"format": "saelens", "metadata": {"odd": object()}}
    with pytest.raises(InputError, match="cannot be saved"):
        save_dictionary(sae, tmp_path / "y", "saelens")
    assert not (tmp_path / "y").exists()


def test_a_dictionary_of_a_real_model_goes_round_all_libraries(outside_data, tmp_path):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(str(folder))
    record = model.record(
        ["Once upon a time, there was a little girl who liked to play."] * 2, at="blocks.2.resid_post"
    )
    x = record["blocks.2.resid_post"].flatten(0, 1).float()
    sae = ac.features.TopKSAE(4 * x.shape[1], 8, b_dec_init="mean", normalize="mean_norm").build(x.shape[1])
    sae.measure(x)
    sae.eval().about = {"model": "stories260K", "site": "blocks.2.resid_post"}
    for name in ("saelens", "sparsify", "dictionary_learning"):
        save_dictionary(sae, tmp_path / name, name)
        read = load_dictionary(tmp_path / name)
        size = max(1.0, float(x.abs().max()))
        close(read.encode(x) / size, sae.encode(x) / size)
        close(read(x).xhat / size, sae(x).xhat / size)
    assert load_dictionary(tmp_path / "saelens").about["site"] == "blocks.2.resid_post"


def test_the_parameters_on_disk_are_contiguous_and_single(tmp_path):
    """W_enc is kept transposed in memory; other readers expect (d_in, d_sae) rows."""
    sae = random_weights(AUTOENCODERS["relu"]().build(WIDTH))
    save_dictionary(sae, tmp_path, "saelens")
    held = load_file(tmp_path / "sae_weights.safetensors")
    assert {name: tuple(value.shape) for name, value in held.items()} == {
        "W_enc": (WIDTH, M),
        "W_dec": (M, WIDTH),
        "b_enc": (M,),
        "b_dec": (WIDTH,),
    }
    assert torch.equal(held["W_enc"], sae.W_enc)
    assert all(value.dtype == torch.float32 for value in held.values())
