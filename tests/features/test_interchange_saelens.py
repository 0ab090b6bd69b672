"""SAELens's folders: what is read and written there computes the same on both sides."""

from __future__ import annotations

import json

import pytest
import torch
from interchange_cases import AUTOENCODERS, K, M, close, random_module, random_weights, rows
from interchange_cases import D as WIDTH
from safetensors.torch import load_file, save_file

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.features.interchange.formats import load_dictionary, save_dictionary

OUT = 7


def transcoder(skips=False, activation="relu", **options):
    kind = ac.features.SkipTranscoder if skips else ac.features.Transcoder
    made = kind(M, activation, **options).build(WIDTH, OUT)
    return random_weights(made)


def published(folder, x):
    """Latents and output as the format's settings describe them, in float64."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: value.double() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    x, raw, back = x.double(), x.double(), lambda y: y
    if cfg["normalize_activations"] == "layer_norm":
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x, back = (x - mean) / (std + 1e-5), lambda y: y * std + mean
    elif cfg["normalize_activations"] == "constant_norm_rescale":
        size = cfg["d_in"] ** 0.5 / x.norm(dim=-1, keepdim=True)
        x, back = x * size, lambda y: y / size
    x = x - w["b_dec"] if cfg["apply_b_dec_to_input"] else x
    pre = x @ w["W_enc"] + w.get("b_enc", 0)
    if cfg["architecture"] == "gated":
        f = (pre + w["b_gate"] > 0) * (pre * w["r_mag"].exp() + w["b_mag"]).relu()
    elif cfg["architecture"] == "topk":
        pre = pre * w["W_dec"].norm(dim=1) if cfg["rescale_acts_by_decoder_norm"] else pre
        kept = pre.topk(cfg["k"], dim=-1)
        f = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values.relu())
    else:
        f = pre.relu() * (pre > w.get("threshold", 0))
    if cfg.get("rescale_acts_by_decoder_norm"):
        out = f / w["W_dec"].norm(dim=1) @ w["W_dec"] + w["b_dec"]
    else:
        out = f @ w["W_dec"] + w["b_dec"]
    if "transcoder" in cfg["architecture"]:
        return f, out + (raw @ w["W_skip"].T if "W_skip" in w else 0)
    return f, back(out)


def library(folder, x):
    """What SAELens computes."""
    sae_lens = pytest.importorskip("sae_lens")
    sae = sae_lens.SAE.load_from_disk(str(folder))
    with torch.no_grad():
        return sae.encode(x), sae(x)


@pytest.fixture(params=[published, library], ids=["published", "library"])
def theirs(request):
    """The format's description, and SAELens itself where it is installed."""
    if request.param is library:
        pytest.importorskip("sae_lens")
    return request.param


def agree(dictionary, folder, theirs, latents=True):
    x = rows()
    f, out = theirs(folder, x)
    assert 0 < float((f > 0).double().mean()) < 1
    if latents:
        close(dictionary.encode(x), f)
    assert torch.equal(dictionary.encode(x) > 0, f > 0)
    close(dictionary(x).xhat, out)


@pytest.mark.parametrize("norms", ["unit", "free"])
@pytest.mark.parametrize("how", ["none", "mean_norm", "mean_square", "norm"])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_what_is_written_computes_the_same_there(name, how, norms, tmp_path, theirs):
    sae = random_weights(AUTOENCODERS[name](normalize=how, decoder_norm=norms).build(WIDTH))
    sae.measure_scale(rows())
    if isinstance(sae, ac.features.BatchTopKSAE):
        # A threshold in units of what is ranked.
        sae.rule.running.fill_(0.4)
    save_dictionary(sae, tmp_path, "saelens")
    # SAELens has no ranks by norms with latents that do not grow by them.
    agree(sae, tmp_path, theirs, latents=not (name == "topk" and norms == "free"))
    read = load_dictionary(tmp_path)
    close(read(rows()).xhat, sae(rows()).xhat)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_rows_that_are_standardised_agree(name, tmp_path, theirs):
    sae = random_weights(AUTOENCODERS[name](normalize="layer_norm").build(WIDTH))
    save_dictionary(sae, tmp_path, "saelens")
    agree(sae, tmp_path, theirs)


@pytest.mark.parametrize("apply", [True, False])
def test_the_bias_is_subtracted_where_it_was(apply, tmp_path, theirs):
    sae = random_weights(ac.features.ReLUSAE(M, apply_b_dec=apply).build(WIDTH))
    save_dictionary(sae, tmp_path, "saelens")
    agree(sae, tmp_path, theirs)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk"])
def test_transcoders_compute_the_same_there(activation, skips, tmp_path, theirs):
    made = transcoder(skips, activation)
    save_dictionary(made, tmp_path, "saelens")
    agree(made, tmp_path, theirs)
    read = load_dictionary(tmp_path)
    assert type(read) is type(made)
    close(read(rows()).xhat, made(rows()).xhat)


def test_transcoders_with_normalised_inputs_compute_the_same_there(tmp_path, theirs):
    for how in ("mean_norm", "norm", "layer_norm"):
        made = transcoder(normalize=how)
        made.measure_scale(rows())
        save_dictionary(made, tmp_path / how, "saelens")
        agree(made, tmp_path / how, theirs)


def test_a_multi_layer_dictionary_is_a_topk_one_there(tmp_path, theirs):
    made = random_weights(ac.features.MultiLayerSAE(M, K, standardize=False).build(WIDTH))
    assert made.b_enc is None
    save_dictionary(made, tmp_path, "saelens")
    agree(made, tmp_path, theirs)


@pytest.mark.parametrize("name", ["relu", "gated", "topk", "jumprelu"])
def test_reading_and_writing_again_changes_no_bit(name, tmp_path):
    sae = random_weights(AUTOENCODERS[name]().build(WIDTH))
    first, second = tmp_path / "a", tmp_path / "b"
    save_dictionary(sae, first, "saelens")
    read = load_dictionary(first)
    assert type(read) is type(sae)
    save_dictionary(read, second, "saelens")
    before, after = (load_file(f / "sae_weights.safetensors") for f in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (first / "cfg.json").read_text() == (second / "cfg.json").read_text()


# Folders that SAELens wrote


def config(sae_lens, name):
    common = {"d_in": WIDTH, "d_sae": M}
    return {
        "standard": lambda: sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**common)),
        "standard, no input bias": lambda: sae_lens.StandardSAE(
            sae_lens.StandardSAEConfig(apply_b_dec_to_input=False, **common)
        ),
        "standard, norms": lambda: sae_lens.StandardSAE(
            sae_lens.StandardSAEConfig(normalize_activations="constant_norm_rescale", **common)
        ),
        "gated": lambda: sae_lens.GatedSAE(sae_lens.GatedSAEConfig(**common)),
        "topk": lambda: sae_lens.TopKSAE(sae_lens.TopKSAEConfig(k=K, **common)),
        "topk, rescaled": lambda: sae_lens.TopKSAE(
            sae_lens.TopKSAEConfig(k=K, rescale_acts_by_decoder_norm=True, **common)
        ),
        "jumprelu": lambda: sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**common)),
        "transcoder": lambda: sae_lens.Transcoder(
            sae_lens.TranscoderConfig(d_out=OUT, apply_b_dec_to_input=False, **common)
        ),
        "skip_transcoder": lambda: sae_lens.SkipTranscoder(
            sae_lens.SkipTranscoderConfig(d_out=OUT, apply_b_dec_to_input=False, **common)
        ),
        "jumprelu_transcoder": lambda: sae_lens.JumpReLUTranscoder(
            sae_lens.JumpReLUTranscoderConfig(d_out=OUT, apply_b_dec_to_input=False, **common)
        ),
        "jumprelu_skip_transcoder": lambda: sae_lens.saes.transcoder.JumpReLUSkipTranscoder(
            sae_lens.saes.transcoder.JumpReLUSkipTranscoderConfig(d_out=OUT, apply_b_dec_to_input=False, **common)
        ),
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "standard",
        "standard, no input bias",
        "standard, norms",
        "gated",
        "topk",
        "topk, rescaled",
        "jumprelu",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ],
)
def test_what_saelens_writes_computes_the_same_here(name, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae = random_module(config(sae_lens, name))
    sae.save_model(tmp_path)
    read = load_dictionary(tmp_path)
    with torch.no_grad():
        close(read.encode(rows()), sae.encode(rows()))
        close(read(rows()).xhat, sae(rows()))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", ["BatchTopK", "MatryoshkaBatchTopK", "TopK"])
def test_what_saelens_exports_after_training_computes_the_same_here(kind, rescale, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    made = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    settings = {"matryoshka_widths": [8, 24, M]} if kind.startswith("Matryoshka") else {}
    cfg = made(d_in=WIDTH, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale, **settings)
    sae = random_module(getattr(sae_lens, f"{kind}TrainingSAE")(cfg))
    if kind != "TopK":
        sae.topk_threshold.fill_(0.9)
    sae.save_inference_model(tmp_path)
    f, out = library(tmp_path, rows())
    read = load_dictionary(tmp_path)
    assert type(read) is (ac.features.TopKSAE if kind == "TopK" else ac.features.JumpReLUSAE)
    close(read.encode(rows()), f)
    close(read(rows()).xhat, out)


# Settings


def write(folder, tensors=None, **settings):
    """A folder of a "standard" dictionary with these settings and parameters."""
    sae = random_weights(ac.features.ReLUSAE(M).build(WIDTH))
    save_dictionary(sae, folder, "saelens")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | settings))
    held = load_file(folder / "sae_weights.safetensors")
    held = {name: value for name, value in (held | (tensors or {})).items() if value is not None}
    save_file(held, folder / "sae_weights.safetensors")
    return folder


def test_metadata_are_kept_and_written_back(tmp_path):
    metadata = {
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.hook_resid_pre",
        "context_size": 128,
        "sae_lens_version": "6.20.0",
        "mine": [1, None],
    }
    read = load_dictionary(write(tmp_path / "a", metadata=metadata))
    assert read.about["metadata"] == metadata
    assert (read.about["model"], read.about["site"]) == ("gpt2-small", "blocks.8.resid_pre")
    kept = ac.features.Dictionary.load(read.save(tmp_path / "own.safetensors"))
    save_dictionary(kept, tmp_path / "b", "saelens")
    assert json.loads((tmp_path / "b" / "cfg.json").read_text())["metadata"] == metadata


def test_a_dictionary_trained_here_tells_saelens_its_model_and_hook(tmp_path):
    sae = random_weights(ac.features.ReLUSAE(M).build(WIDTH))
    sae.about = {"model": "gpt2", "site": "blocks.3.attn.z"}
    save_dictionary(sae, tmp_path, "saelens")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["metadata"]["model_name"] == "gpt2"
    assert cfg["metadata"]["hook_name"] == "blocks.3.attn.hook_z"
    assert cfg["reshape_activations"] == "hook_z"
    read = load_dictionary(tmp_path)
    assert (read.about["site"], read.about["reshape_activations"]) == ("blocks.3.attn.z", "hook_z")


def test_rows_of_a_hook_z_dictionary_are_heads_side_by_side(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    folder = write(tmp_path, reshape_activations="hook_z", metadata={"hook_name": "blocks.0.attn.hook_z"})
    z = rows().view(-1, 3, WIDTH // 3)
    sae = sae_lens.SAE.load_from_disk(str(folder))
    with torch.no_grad():
        close(load_dictionary(folder)(z.flatten(-2)).xhat.view_as(z), sae(z))


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_settings_from_before_version_6_stand_side_by_side(activation, tmp_path, theirs):
    folder = write(tmp_path / "old")
    old = {
        "d_in": WIDTH,
        "d_sae": M,
        "dtype": "float32",
        "device": "cpu",
        "model_name": "pythia-70m",
        "hook_point": "blocks.2.hook_resid_post",
        "hook_point_layer": 2,
        "context_size": 64,
        "prepend_bos": True,
        "activation_fn_str": activation,
        "activation_fn_kwargs": {"k": K} if activation == "topk" else {},
        "normalize_activations": False,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    read = load_dictionary(folder)
    assert type(read) is (ac.features.TopKSAE if activation == "topk" else ac.features.ReLUSAE)
    assert read.about["site"] == "blocks.2.resid_post"
    assert read.about["metadata"]["hook_name"] == "blocks.2.hook_resid_post"
    assert read.about["metadata"]["context_size"] == 64
    if theirs is library:
        agree(read, folder, theirs)
    # Written again it has the settings of version 6, which SAELens takes for such by the version in the metadata.
    save_dictionary(read, tmp_path / "new", "saelens")
    agree(read, tmp_path / "new", theirs)
    cfg = json.loads((tmp_path / "new" / "cfg.json").read_text())
    assert cfg["metadata"]["model_name"] == "pythia-70m"
    assert cfg["metadata"]["sae_lens_version"] == "6.0.0"
    if theirs is library:
        sae = pytest.importorskip("sae_lens").SAE.load_from_disk(str(tmp_path / "new"))
        assert sae.cfg.metadata.hook_name == "blocks.2.hook_resid_post"


def test_a_width_that_is_not_told_is_a_multiple_of_the_input(tmp_path):
    sae = random_weights(ac.features.ReLUSAE(3 * WIDTH).build(WIDTH))
    save_dictionary(sae, tmp_path, "saelens")
    cfg = json.loads((tmp_path / "cfg.json").read_text()) | {"expansion_factor": 3, "d_sae": None}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    assert load_dictionary(tmp_path).d_sae == 3 * WIDTH


def test_an_old_version_in_the_metadata_moves_to_that_of_training(tmp_path):
    read = load_dictionary(write(tmp_path / "a", metadata={"sae_lens_version": "3.1.0"}))
    save_dictionary(read, tmp_path / "b", "saelens")
    metadata = json.loads((tmp_path / "b" / "cfg.json").read_text())["metadata"]
    assert metadata == {"sae_lens_version": "6.0.0", "sae_lens_training_version": "3.1.0"}


def test_the_scale_of_a_checkpoint_is_folded(tmp_path):
    folder = write(tmp_path, normalize_activations="expected_average_only_in")
    plain = load_dictionary(write(tmp_path / "plain"))
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4}))
    read = load_dictionary(folder)
    assert read.normalize == "none"
    close(read(rows()).xhat, plain(rows() * 0.4).xhat / 0.4)
    close(read.encode(rows()), plain.encode(rows() * 0.4))


def test_a_scale_that_is_not_known_is_told(tmp_path, theirs):
    folder = write(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.warns(ActiniumWarning, match="measure_scale"):
        read = load_dictionary(folder)
    agree(read, folder, theirs)


def test_logarithms_of_thresholds_are_read(tmp_path):
    theta = torch.rand(M) + 0.1
    folder = write(tmp_path, {"log_threshold": theta.log()}, architecture="jumprelu")
    close(load_dictionary(folder).rule.theta, theta)


def test_factors_that_are_all_one_are_left_out(tmp_path):
    load_dictionary(write(tmp_path / "a", {"scaling_factor": torch.ones(M)}))
    with pytest.raises(LoadError, match="fine-tuning"):
        load_dictionary(write(tmp_path / "b", {"scaling_factor": torch.full((M,), 2.0)}))


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"d_in": WIDTH + 1}, {}, "the settings make it"),
        ({"d_sae": M - 1}, {}, "is .*, and the settings make it"),
        ({"d_in": "12"}, {}, "d_in must be a whole number"),
        ({"architecture": "temporal"}, {}, "architecture"),
        ({"architecture": "topk", "k": M + 1}, {}, "k must be"),
        ({"architecture": "topk", "k": 1.5}, {}, "k must be"),
        ({"architecture": "topk"}, {}, "k must be"),
        ({"architecture": "transcoder", "d_out": WIDTH}, {}, "cannot subtract"),
        ({"architecture": "jumprelu"}, {}, "threshold missing"),
        ({"normalize_activations": "covariance_whitening"}, {}, "normalisation"),
        ({"activation_fn": "tanh-relu"}, {}, "tanh-relu"),
        ({}, {"W_enc": torch.full((WIDTH, M), float("nan"))}, "not finite"),
        ({}, {"W_enc": torch.full((WIDTH, M), 1e300, dtype=torch.float64)}, "not finite"),
        ({}, {"b_dec": torch.zeros(WIDTH + 1)}, "b_dec is"),
        ({}, {"b_enc": None}, "b_enc missing"),
        ({}, {"W_more": torch.zeros(2)}, "W_more unexpected"),
    ],
)
def test_what_does_not_fit_is_refused(settings, tensors, message, tmp_path):
    with pytest.raises((LoadError, UnknownNameError), match=message):
        load_dictionary(write(tmp_path, tensors, **settings))


def test_what_is_damaged_is_refused(tmp_path):
    folder = write(tmp_path)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(LoadError, match=r"cfg\.json"):
        load_dictionary(folder)
    folder = write(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(LoadError, match="sae_weights"):
        load_dictionary(folder)


def test_what_saelens_does_not_have_is_not_written(tmp_path):
    with pytest.raises(InputError, match="only after training"):
        save_dictionary(ac.features.BatchTopKSAE(M, K).build(WIDTH), tmp_path, "saelens")
    with pytest.raises(InputError, match="TopK"):
        save_dictionary(transcoder(activation="topk"), tmp_path, "saelens")
    with pytest.raises(InputError, match="skip with the input as it is"):
        save_dictionary(transcoder(True, normalize="norm"), tmp_path, "saelens")
    with pytest.raises(InputError, match="crosscoders"):
        save_dictionary(ac.features.Crosscoder(M, [4, 8]).build(WIDTH), tmp_path, "saelens")
    with pytest.raises(InputError, match="not fitted"):
        save_dictionary(ac.features.ReLUSAE(M), tmp_path, "saelens")
    broken = random_weights(ac.features.ReLUSAE(M).build(WIDTH))
    broken.W_dec.data[0, 0] = float("inf")
    with pytest.raises(InputError, match="not finite"):
        save_dictionary(broken, tmp_path, "saelens")
    assert not list(tmp_path.iterdir())
