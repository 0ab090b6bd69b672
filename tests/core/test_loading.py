"""Models come from folders, factories, modules and the package, and what is damaged is refused with its reason."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumError, ActiniumWarning, InputError, LoadError
from actinium.core.model import Model
from architectures import build, token_ids

SENTENCE = "the cat sat on the mat and the dog ran"


def word_tokenizer(words, **special):
    """A tokenizer with one id for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(words)])}
    inner = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A GPT-2 of 99 tokens with its tokenizer, in Hugging Face's folder format."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("gpt2").save_pretrained(folder)
    word_tokenizer(SENTENCE.split()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "tiny")


def test_a_folder_loads_with_its_weights_and_tokenizer(saved):
    model = ac.load(str(saved))
    assert model.kind == "causal-lm"
    assert model.family.name == "GPT-2"
    assert not model.module.training
    with torch.no_grad():
        assert torch.equal(model.logits(token_ids()), build("gpt2")(token_ids()).logits)
    assert model.to_str_tokens(model.to_tokens(SENTENCE).ids[0]) == SENTENCE.split()
    assert model.to_str_tokens(SENTENCE) == SENTENCE.split()
    assert model.fingerprint() == Model(build("gpt2")).fingerprint()
    assert ac.load(saved).fingerprint() == model.fingerprint()


def test_a_fingerprint_changes_with_one_weight():
    module = build("gpt2")
    model = Model(module)
    before = model.fingerprint()
    with torch.no_grad():
        module.transformer.h[1].mlp.c_fc.weight[3, 4] += 1e-3
    assert model.fingerprint() != before
    assert Model(build("gpt2", seed=1)).fingerprint() != before


def test_dtype_and_tokenizer_may_be_chosen(saved, tmp_path):
    model = ac.load(saved, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    other = tmp_path / "words"
    word_tokenizer(["one", "two"]).save_pretrained(other)
    assert ac.load(saved, tokenizer=str(other)).to_tokens("one two").ids.tolist() == [[4, 5]]
    assert ac.load(saved, tokenizer=word_tokenizer(["x"])).to_tokens("x").ids.tolist() == [[4]]
    with pytest.raises(InputError, match="bfloat16"):
        ac.load(saved, dtype="bfloat61")
    with pytest.raises(InputError, match="device"):
        ac.load(saved, device="gpu-of-dreams")
    with pytest.raises(LoadError, match="tokenizer"):
        ac.load(saved, tokenizer=str(tmp_path / "nowhere"))


def test_a_module_keeps_its_mode_and_a_model_is_itself():
    module = nn.Sequential(nn.Linear(2, 2)).train()
    model = ac.load(module)
    assert model.module is module
    assert module.training
    assert ac.load(model) is model
    with pytest.raises(InputError, match="int"):
        ac.load(3)
    with pytest.raises(InputError, match="empty"):
        ac.load("  ")


@pytest.mark.parametrize("name", ["world:ml", "world:", "wrold:lm", "world-lm"])
def test_an_unknown_model_is_refused_with_the_nearest_name(name):
    with pytest.raises(LoadError, match="world:lm"):
        ac.load(name)


@pytest.mark.parametrize("name", ["no-such-model-anywhere", "no/such-model"])
def test_a_name_that_is_neither_here_nor_on_the_hub_is_refused(name):
    with pytest.raises(LoadError, match=f"{name}.*no folder here.*hub"):
        ac.load(name)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(LoadError, match=r"config\.json"):
        ac.load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(LoadError, match="folder that holds"):
        ac.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"model_type": "gpt2"', "[1, 2]", "null", "{}", '{"model_type": "no_such_type"}', '{"model_type": 3}',
     '{"model_type": "gpt2", "n_embd": "wide"}', "\x00\xff\xfe"],
)  # fmt: skip
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="latin1")
    with pytest.raises(LoadError):
        ac.load(folder)


@pytest.mark.parametrize("kind", ["empty", "truncated", "header cut", "noise", "header noise", "missing"])
def test_damaged_weights_are_refused(folder, kind):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "header cut": whole[:100],
        "noise": bytes(range(256)) * 40,
        "header noise": whole[:8] + b"\xff" * 200 + whole[208:],
    }
    path.unlink()
    if kind in damaged:
        path.write_bytes(damaged[kind])
    with pytest.raises(LoadError, match=r"weights|safetensors"):
        ac.load(folder)


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 48}))
    with pytest.raises(LoadError):
        ac.load(folder)


def test_weights_that_are_not_there_are_said_to_be_random(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 4}))
    with pytest.warns(ActiniumWarning, match="drawn at random"):
        ac.load(folder)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickled_checkpoint_is_refused_and_never_unpickled(folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "adapter_model.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Trap(str(mark))))
    with pytest.raises(LoadError, match="safetensors"):
        ac.load(folder)
    assert not mark.exists()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(folder):
    word_tokenizer([f"w{i}" for i in range(200)]).save_pretrained(folder)
    with pytest.raises(LoadError, match=r"203.*99 tokens"):
        ac.load(folder)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused_when_passed(saved):
    with pytest.raises(LoadError, match="99 tokens"):
        ac.load(saved, tokenizer=word_tokenizer([f"w{i}" for i in range(200)]))


FACTORY = """
from torch import nn

made = nn.Linear(3, 2)

def build():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU())

def words():
    return nn.Embedding(5, 2), "a tokenizer"

def nothing():
    pass

def broken():
    raise RuntimeError("the reactor is off")

def needs(argument):
    return nn.Linear(3, 2)
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "my_module.py"
    path.write_text(FACTORY)
    return path


def test_a_factory_gives_a_module_in_evaluation_mode(factory):
    model = ac.load(f"{factory}:build")
    assert [s.name for s in model.sites()] == ["module:0", "module:1"]
    assert not model.module.training
    assert model.name.endswith(":build")
    assert isinstance(ac.load(f"{factory}:made").module, nn.Linear)
    assert ac.load("torch.nn:Identity").module.__class__ is nn.Identity


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bulid", "build"),
        ("nothing", "NoneType"),
        ("broken", "the reactor is off"),
        ("needs", "argument"),
        ("", "function"),
    ],
)
def test_a_factory_that_fails_is_refused_with_its_reason(factory, name, said):
    with pytest.raises(LoadError, match=said):
        ac.load(f"{factory}:{name}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def build(:", "SyntaxError"),
        ("import no_such_package_at_all", "no_such_package_at_all"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_factory_file_that_does_not_run_is_refused_with_its_reason(tmp_path, text, said):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(LoadError, match=said):
        ac.load(f"{path}:build")


def test_a_factory_that_is_not_there_is_refused(tmp_path):
    for source in (f"{tmp_path}/none.py:build", "no.such.package:build", "torch.nn:Linaer"):
        with pytest.raises(LoadError):
            ac.load(source)


def test_every_refusal_is_an_actinium_error():
    assert issubclass(LoadError, ActiniumError)
    assert issubclass(InputError, ActiniumError)


def test_the_shipped_model_loads_and_knows_its_words():
    model = ac.load("world:lm")
    assert model.kind == "causal-lm"
    assert model.tokenizer is not None
    tokens = model.to_tokens(["Ann", "Bob"])
    assert model.logits(tokens).shape[-1] == model.config.vocab_size


def test_a_device_map_is_passed_on_to_transformers(tmp_path):
    plain = ac.load("world:lm")
    plain.module.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    spread = ac.load(tmp_path, device_map={"model": "cpu", "lm_head": "cpu"}, dtype="float32")
    text = "Ann lives in"
    site = "blocks.2.resid_post"
    assert torch.equal(spread.record(text, site)[site], plain.record(text, site)[site])
    with pytest.raises(LoadError, match=r"cannot load the weights.*nowhere"):
        ac.load(tmp_path, device_map={"": "nowhere"})


def test_spreading_is_refused_where_it_cannot_be():
    with pytest.raises(InputError, match="pass device or device_map, not both"):
        ac.load("gpt2", device="cpu", device_map="auto")
    with pytest.raises(InputError, match="needs a hub name or a folder"):
        ac.load(torch.nn.Linear(2, 2), device_map="auto")
