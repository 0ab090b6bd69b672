"""dictionary_learning's folders: what is read and written there computes the same on both sides."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from interchange_cases import AUTOENCODERS, K, M, close, random_module, random_weights, rows
from interchange_cases import D as WIDTH

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.features.interchange.formats import load_dictionary, save_dictionary

CLASSES = {
    "relu": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
    "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
}


def published(folder, x):
    """Latents and output as the classes are described, in float64."""
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    w = {name: v.double() for name, v in torch.load(folder / "ae.pt", weights_only=True).items()}
    encoder = w["W_enc"] if "W_enc" in w else w["encoder.weight"].T
    decoder = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    bias = next(w[name] for name in ("b_dec", "bias", "decoder_bias", "decoder.bias") if name in w)
    subtracts = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    pre = (x.double() - bias * subtracts) @ encoder + w.get("encoder.bias", w.get("b_enc", 0))
    f = pre.relu()
    if kind == "GatedAutoEncoder":
        f = (pre + w["gate_bias"] > 0) * (w["r_mag"].exp() * pre + w["mag_bias"]).relu()
    elif kind == "AutoEncoderTopK":
        kept = f.topk(int(w["k"]), dim=-1)
        f = torch.zeros_like(f).scatter(-1, kept.indices, kept.values)
    elif "threshold" in w:
        f = f * (f > w["threshold"])
    return f, f @ decoder + bias


def library(folder, x):
    """What dictionary_learning's module of the class computes with the state as it stands."""
    pytest.importorskip("dictionary_learning")
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    state = torch.load(folder / "ae.pt", weights_only=True)
    module = empty(trainer["dict_class"], trainer.get("group_sizes"))
    module.load_state_dict(state)
    with torch.no_grad():
        return module.encode(x), module(x)


def empty(kind, groups=None):
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    counted = {"AutoEncoderTopK": AutoEncoderTopK, "BatchTopKSAE": BatchTopKSAE}
    if kind in counted:
        return counted[kind](WIDTH, M, K)
    if groups is not None:
        return MatryoshkaBatchTopKSAE(WIDTH, M, K, groups)
    return getattr(dictionary, kind)(WIDTH, M)


@pytest.fixture(params=[published, library], ids=["published", "library"])
def theirs(request):
    """The classes' description, and dictionary_learning itself where it is installed."""
    if request.param is library:
        pytest.importorskip("dictionary_learning")
    return request.param


def agree(dictionary, folder, theirs, latents=True):
    f, out = theirs(folder, rows())
    found = dictionary(rows())
    assert 0 < float((f > 0).double().mean()) < 1
    assert torch.equal(found.f > 0, f > 0)
    if latents:
        close(found.f, f)
    close(found.xhat, out)


@pytest.mark.parametrize("apply", [True, False])
@pytest.mark.parametrize(("how", "norms"), [("none", "unit"), ("none", "free"), ("mean_norm", "free")])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_what_is_written_computes_the_same_there(name, how, norms, apply, tmp_path, theirs):
    sae = AUTOENCODERS[name](normalize=how, decoder_norm=norms, apply_b_dec=apply)
    sae = random_weights(sae.build(WIDTH))
    sae.measure_scale(rows())
    save_dictionary(sae, tmp_path, "dictionary_learning")
    kind = json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"]
    assert kind == ("AutoEncoderNew" if name == "relu" and not apply else CLASSES[name])
    # Latents that are ranked by their norms grow by them.
    agree(sae, tmp_path, theirs, latents=norms == "unit" or name in ("relu", "gated", "jumprelu"))
    read = load_dictionary(tmp_path)
    assert type(read) is type(sae)
    close(read(rows()).xhat, sae(rows()).xhat)


@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK"]
)
def test_what_dictionary_learning_saves_computes_the_same_here(kind, tmp_path):
    pytest.importorskip("dictionary_learning")
    module = random_module(empty(kind))
    keep(module, tmp_path, kind)
    compare(module, tmp_path)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_batch_dictionaries_that_it_saves_compute_the_same_here(kind, tmp_path):
    pytest.importorskip("dictionary_learning")
    groups = [8, 16, M - 24] if kind.startswith("Matryoshka") else None
    module = random_module(empty(kind, groups))
    module.threshold.fill_(0.8)
    keep(module, tmp_path, kind, k=K, group_sizes=groups)
    read = compare(module, tmp_path)
    if groups:
        assert list(read.widths) == [8, 24, M]


def keep(module, folder, kind, **trainer):
    torch.save(module.state_dict(), folder / "ae.pt")
    settings = {"dict_class": kind, "activation_dim": WIDTH, "dict_size": M, "lm_name": "pythia", "layer": 4}
    settings |= {"submodule_name": "resid_post_layer_4"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {"ctx_len": 128}}))


def compare(module, folder):
    read = load_dictionary(folder)
    with torch.no_grad():
        close(read.encode(rows()), module.encode(rows()))
        close(read(rows()).xhat, module(rows()))
    assert (read.about["model"], read.about["site"]) == ("pythia", "blocks.4.resid_post")
    return read


def test_its_own_loader_opens_what_is_written(tmp_path):
    """For an AutoEncoder the loader folds norms, which is `fold_decoder_norm`."""
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary as theirs

    for name in AUTOENCODERS:
        sae = random_weights(AUTOENCODERS[name](decoder_norm="free" if name == "relu" else "unit").build(WIDTH))
        save_dictionary(sae, tmp_path / name, "dictionary_learning")
        module, config = theirs(str(tmp_path / name), device="cpu")
        assert config["trainer"]["dict_class"] == CLASSES[name]
        read = load_dictionary(tmp_path / name)
        with torch.no_grad():
            close(module(rows()), read(rows()).xhat)
            if name == "relu":
                assert not torch.allclose(module.encode(rows()), read.encode(rows()))
                read.fold_decoder_norm()
            close(module.encode(rows()), read.encode(rows()))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_reading_and_writing_again_changes_no_bit(name, tmp_path):
    sae = AUTOENCODERS[name](apply_b_dec=name != "jumprelu").build(WIDTH)
    first, second = tmp_path / "a", tmp_path / "b"
    save_dictionary(random_weights(sae), first, "dictionary_learning")
    save_dictionary(load_dictionary(first), second, "dictionary_learning")
    before, after = (torch.load(f / "ae.pt", weights_only=True) for f in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())


def test_a_threshold_that_is_not_set_stays_so(tmp_path):
    save_dictionary(ac.features.BatchTopKSAE(M, K).build(WIDTH), tmp_path, "dictionary_learning")
    read = load_dictionary(tmp_path)
    assert read.rule.threshold is None
    assert int((read.eval().encode(rows()) > 0).sum()) <= K * len(rows())


def test_what_is_known_is_kept_and_written_back(tmp_path):
    (tmp_path / "a").mkdir()
    save_dictionary(random_weights(AUTOENCODERS["topk"]().build(WIDTH)), tmp_path / "a", "dictionary_learning")
    state = torch.load(tmp_path / "a" / "ae.pt", weights_only=True) | {"threshold": torch.tensor(0.25)}
    torch.save(state, tmp_path / "a" / "ae.pt")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config = {"trainer": config["trainer"] | {"lr": 1e-4, "lm_name": "gemma"}, "buffer": {"ctx_len": 7}}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    read = load_dictionary(tmp_path / "a")
    assert read.about["threshold"] == 0.25
    save_dictionary(read, tmp_path / "b", "dictionary_learning")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config
    assert float(torch.load(tmp_path / "b" / "ae.pt", weights_only=True)["threshold"]) == 0.25


def test_a_dictionary_trained_here_tells_its_model_and_layer(tmp_path):
    sae = random_weights(AUTOENCODERS["relu"]().build(WIDTH))
    sae.about = {"model": "gpt2", "site": "blocks.3.resid_post"}
    save_dictionary(sae, tmp_path, "dictionary_learning")
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["lm_name"], trainer["layer"]) == ("gpt2", 3)


class Anything:
    """Something that a pickle would bring to life."""


def test_pickles_of_more_than_tensors_are_refused(tmp_path):
    write(tmp_path)
    torch.save({"model": Anything()}, tmp_path / "ae.pt")
    with pytest.raises(LoadError, match="nothing is unpickled"):
        load_dictionary(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Anything(), protocol=2))
    with pytest.raises(LoadError):
        load_dictionary(tmp_path)
    torch.save({"ae": {"W": torch.zeros(1)}, "step": 3}, tmp_path / "ae.pt")
    with pytest.raises(LoadError, match="backup"):
        load_dictionary(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "ae.pt")
    with pytest.raises(LoadError, match="by name"):
        load_dictionary(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"")
    with pytest.raises(LoadError):
        load_dictionary(tmp_path)


def write(folder, tensors=None, name="topk", **settings):
    """A folder of a dictionary with these settings and parameters."""
    save_dictionary(random_weights(AUTOENCODERS[name]().build(WIDTH)), folder, "dictionary_learning")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
    state = torch.load(folder / "ae.pt", weights_only=True) | (tensors or {})
    torch.save({key: value for key, value in state.items() if value is not None}, folder / "ae.pt")
    return folder


def test_older_files_without_k_and_threshold_are_read(tmp_path):
    read = load_dictionary(write(tmp_path, {"k": None, "threshold": None}, k=3))
    assert read.k == 3


@pytest.mark.parametrize(
    ("name", "settings", "tensors", "message"),
    [
        ("topk", {"dict_class": "IdentityDict"}, {}, "class of dictionary_learning"),
        ("topk", {"dict_class": "AutoEncoder"}, {}, "bias missing"),
        ("topk", {"activation_dim": WIDTH + 1}, {}, "activation_dim is"),
        ("topk", {"dict_size": M + 1}, {}, "dict_size is"),
        ("topk", {}, {"k": torch.tensor(M + 1)}, "k must be"),
        ("topk", {}, {"encoder.weight": torch.zeros(3)}, "a matrix is expected"),
        ("topk", {}, {"decoder.weight": torch.zeros(WIDTH, M + 1)}, "W_dec is"),
        ("topk", {}, {"b_dec": torch.full((WIDTH,), float("nan"))}, "not finite"),
        ("matryoshka", {}, {"group_sizes": torch.tensor([8, 8])}, "do not make up"),
        ("matryoshka", {}, {"group_sizes": torch.tensor([0, M])}, "do not make up"),
    ],
)
def test_what_does_not_fit_is_refused(name, settings, tensors, message, tmp_path):
    with pytest.raises((LoadError, UnknownNameError), match=message):
        load_dictionary(write(tmp_path, tensors, name, **settings))


def test_a_folder_that_does_not_name_its_class_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="does not name the class"):
        load_dictionary(tmp_path)


def test_what_dictionary_learning_does_not_have_is_not_written(tmp_path):
    fraction = random_weights(ac.features.BatchTopKSAE(M, 2.5).build(WIDTH))
    for made, message in (
        (ac.features.TopKSAE(M, K, normalize="layer_norm").build(WIDTH), "does not normalise rows"),
        (ac.features.Transcoder(M, "relu").build(WIDTH), "Transcoder"),
        (ac.features.Crosscoder(M, [4, 8]).build(WIDTH), "Crosscoder"),
        (ac.features.ReLUSAE(M), "not fitted"),
        (fraction, "whole number"),
    ):
        with pytest.raises(InputError, match=message):
            save_dictionary(made, tmp_path, "dictionary_learning")
    assert not list(tmp_path.iterdir())
