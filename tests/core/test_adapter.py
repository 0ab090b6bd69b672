"""Low-rank adapters: merged weights, PEFT's own reading of the same file, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import actinium as ac
from actinium.core.adapter import read_adapter, write_adapter
from actinium.core.errors import InputError, LoadError
from architectures import build

SOURCE = torch.Generator().manual_seed(0)
CHANGED = {
    "llama": ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"),
    "gpt2": ("transformer.h.1.attn.c_attn",),
}
SIZES = {
    "model.layers.0.self_attn.q_proj": (32, 24),
    "model.layers.2.mlp.down_proj": (48, 32),
    "transformer.h.1.attn.c_attn": (32, 96),
}


@pytest.fixture(params=["llama", "gpt2"])
def saved(request, tmp_path):
    """Folder of a base, folder of an adapter for it, the base, and the factors."""
    module = build(request.param)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    module.save_pretrained(base)
    folder.mkdir()
    factors = {
        name: (torch.randn(4, SIZES[name][0], generator=SOURCE), torch.randn(SIZES[name][1], 4, generator=SOURCE))
        for name in CHANGED[request.param]
    }
    write_adapter(folder, str(base), 6, factors)
    return base, folder, module, {name: (a.half().float(), b.half().float()) for name, (a, b) in factors.items()}


def changed(folder, **settings):
    """The configuration with some settings changed."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_loaded_adapter_is_the_base_plus_scaled_products(saved):
    _, folder, module, factors = saved
    model = ac.load(folder)
    assert model.name == str(folder)
    for name, weight in model.module.named_parameters():
        expected = module.get_parameter(name)
        if name.removesuffix(".weight") in factors:
            a, b = factors[name.removesuffix(".weight")]
            update = 6 / 4 * b @ a
            expected = expected + (update if expected.shape == update.shape else update.T)
            assert not torch.equal(weight, module.get_parameter(name))
        torch.testing.assert_close(weight, expected)


def test_a_merged_model_computes_what_the_added_branch_computes(saved):
    _, folder, module, factors = saved
    ids = torch.randint(3, 90, (2, 6), generator=SOURCE)
    merged = ac.load(folder).logits(ids)
    assert not torch.allclose(module(ids).logits, merged, atol=1e-2)
    for name, (a, b) in factors.items():
        module.get_submodule(name).register_forward_hook(lambda _, x, y, a=a, b=b: y + 1.5 * x[0] @ a.T @ b.T)
    torch.testing.assert_close(module(ids).logits, merged, atol=1e-4, rtol=1e-4)


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(saved):
    _, folder, _, factors = saved
    changed(folder, use_rslora=True)
    assert read_adapter(folder).scales == dict.fromkeys(factors, 6 / math.sqrt(4))


def test_the_type_of_the_weights_is_kept(saved):
    _, folder, _, factors = saved
    name = next(iter(factors))
    half = ac.load(folder, dtype="bfloat16").module.get_submodule(name).weight
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), ac.load(folder).module.get_submodule(name).weight, atol=0.1, rtol=0.02)


def test_peft_reads_the_same_weights(saved):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    _, folder, module, _ = saved
    theirs = peft.PeftModel.from_pretrained(module, folder).merge_and_unload()
    ours = ac.load(folder).module
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(weight, ours.get_parameter(name), msg=name)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"down_proj": 2}}])
def test_an_adapter_that_peft_wrote_gives_its_weights(tmp_path, settings):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    build("llama").save_pretrained(tmp_path / "base")
    options = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "init_lora_weights": False,
        **settings,
    }
    theirs = peft.get_peft_model(build("llama"), peft.LoraConfig(**options))
    theirs.save_pretrained(tmp_path / "adapter")
    changed(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    ours = ac.load(tmp_path / "adapter").module
    for name, weight in theirs.merge_and_unload().named_parameters():
        torch.testing.assert_close(weight, ours.get_parameter(name), msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"alpha_pattern": {"q_proj": 2}},
    ],
)
def test_adapters_that_are_more_than_products_are_refused(saved, settings):
    changed(saved[1], **settings)
    with pytest.raises(LoadError, match=f"{next(iter(settings))}.*merge it with PEFT"):
        ac.load(saved[1])


@pytest.mark.parametrize("settings", [{"base_model_name_or_path": ""}, {"lora_alpha": None}])
def test_adapters_without_base_or_scale_are_refused(saved, settings):
    changed(saved[1], **settings)
    with pytest.raises(LoadError, match="names no base"):
        ac.load(saved[1])


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_configuration_is_refused(saved, text):
    (saved[1] / "adapter_config.json").write_text(text)
    with pytest.raises(LoadError, match="adapter"):
        ac.load(saved[1])


def test_missing_and_damaged_weights_are_refused(saved):
    file = saved[1] / "adapter_model.safetensors"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(LoadError, match="cannot read the adapter"):
            ac.load(saved[1])
        file.write_bytes(whole)


def test_factors_that_do_not_fit_are_refused(saved):
    file = saved[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("lora_A.weight"))
    name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    for content, said in (
        ({k: v for k, v in tensors.items() if k != key}, "do not fit together"),
        (tensors | {key: tensors[key][:2].contiguous()}, "do not fit together"),
        (tensors | {key: tensors[key][:, :5].contiguous()}, f"changes {name}.*does the adapter belong"),
        (tensors | {"base_model.model.x.lora_embedding_A": tensors[key].clone()}, "no factor of a linear map"),
        ({k.replace(name, name + "_"): v for k, v in tensors.items()}, f"{name}'"),
    ):
        save_file(content, file)
        with pytest.raises(LoadError, match=said):
            ac.load(saved[1])


def test_a_base_is_a_model_and_neither_code_nor_an_adapter(saved, tmp_path):
    folder = saved[1]
    code = tmp_path / "code.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef make(): pass\n")
    for wrong in (f"{code}:make", str(folder), str(tmp_path / "nowhere")):
        changed(folder, base_model_name_or_path=wrong)
        with pytest.raises(LoadError):
            ac.load(folder)
    assert not (tmp_path / "ran").exists()
    changed(folder, base_model_name_or_path="world:lmm")
    with pytest.raises(LoadError, match="world:lm"):
        ac.load(folder)


def test_an_adapter_is_not_split(saved):
    with pytest.raises(InputError, match="merge it into its base"):
        ac.load(saved[1], tp_plan="auto")


def test_factors_of_several_ranks_are_not_written(tmp_path):
    with pytest.raises(InputError, match="one rank"):
        write_adapter(
            tmp_path, "base", 1, {"a": (torch.ones(1, 2), torch.ones(2, 1)), "b": (torch.ones(2, 2), torch.ones(2, 2))}
        )
    with pytest.raises(InputError, match="one rank"):
        write_adapter(tmp_path, "base", 1, {})
