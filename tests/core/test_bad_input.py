"""Bad input is refused before work starts, and a long text is cut, said so."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from test_loading import word_tokenizer
from torch import nn

from actinium.core.edits import Scale
from actinium.core.errors import ActiniumWarning, InputError, LoadError, SiteError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.recording import Recording
from architectures import VOCAB, build, images, shared, token_ids

SITE = "blocks.1.resid_post"
WORDS = [f"w{i}" for i in range(90)]


@pytest.fixture(scope="module")
def model():
    """A GPT-2 that reads words and has room for 64 tokens."""
    return Model(build("gpt2"), word_tokenizer(WORDS))


def text(n, first=0):
    return " ".join(WORDS[(first + i) % 90] for i in range(n))


EMPTY = ["", "   ", "\n\t", [], [""], ["w1", " "], torch.zeros(0, 3, dtype=torch.long), torch.zeros(2, 0).long(), [[]],
         [[3, 4], []], np.zeros((0, 3), dtype=np.int64), {}, {"input_ids": torch.zeros(0, 3).long()}]  # fmt: skip


@pytest.mark.parametrize("inputs", EMPTY, ids=str)
def test_empty_input_is_refused(model, inputs):
    with pytest.raises(InputError):
        model.record(inputs, SITE)


@pytest.mark.parametrize(
    "inputs",
    [3, None, object(), [None], ["w1", 2], [["w1"]], b"w1", {"input_ids": "w1"}],
    ids=lambda given: type(given).__name__,
)
def test_input_of_an_unknown_kind_is_refused(model, inputs):
    with pytest.raises(InputError):
        model.record(inputs, SITE)


@pytest.mark.parametrize("wrong", [VOCAB, -1, 10**9])
@pytest.mark.parametrize("form", ["tensor", "lists", "tokens", "dict"])
def test_ids_out_of_range_are_refused(model, wrong, form):
    ids = token_ids()
    ids[1, 3] = wrong
    inputs = {
        "tensor": ids,
        "lists": ids.tolist(),
        "tokens": Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2)),
        "dict": {"input_ids": ids},
    }[form]
    with pytest.raises(InputError, match=f"{VOCAB - 1}"):
        model.record(inputs, SITE)


def test_ids_longer_than_the_context_are_refused():
    """Only texts are cut; ids are taken as they are meant."""
    with pytest.raises(InputError, match="64"):
        shared("gpt2").record(token_ids(1, 65), SITE)


def test_a_row_of_padding_only_is_refused():
    ids = token_ids()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(InputError, match="row 1"):
        shared("gpt2").record(Tokens(ids, mask, torch.arange(2)), SITE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_and_tensors_that_are_not_finite_are_refused(value):
    x = images()
    x[1, 0, 3, 3] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        shared("vit").record(x, SITE)
    with pytest.raises(InputError, match="NaN or infinite"):
        Model(nn.Sequential(nn.Conv2d(3, 2, 3))).record(x.numpy(), "module:0")
    with pytest.raises(InputError, match="NaN or infinite"):
        shared("vit").record({"pixel_values": x}, SITE)


def test_activations_that_are_not_finite_are_given_as_they_are():
    """They are a finding, not a fault of the input."""
    module = build("gpt2")
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.bias[3] = float("inf")
    rec = Model(module).record(token_ids(), SITE)
    assert bool(torch.isinf(rec[SITE][..., 3]).all())


def test_a_text_longer_than_the_context_is_cut_into_windows_and_said_so(model):
    long, short = text(150, first=5), text(10)
    with pytest.warns(ActiniumWarning, match=r"1 of 2 texts are longer than the context of 64 tokens.*4 rows"):
        rec = model.record([long, short], SITE)
    assert rec.rows.tolist() == [0, 0, 0, 1]
    assert rec.mask.sum(1).tolist() == [64, 64, 22, 10]
    ids = model.tokenizer(long)["input_ids"]
    assert [t for row, m in zip(rec.tokens[:3], rec.mask[:3], strict=True) for t in row[m].tolist()] == ids
    alone = model.record(torch.tensor([ids[64:128]]), SITE)[SITE]
    assert torch.allclose(rec[SITE][1], alone[0], atol=1e-5)
    with pytest.warns(ActiniumWarning, match="cut into windows"):
        tokens = model.to_tokens(long)
    assert tokens.rows.tolist() == [0, 0, 0]


def test_a_text_that_fills_the_context_is_not_cut(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.record(text(64), SITE)[SITE].shape == (1, 64, 32)


def test_a_prompt_longer_than_the_context_is_refused_for_generation(model):
    with pytest.raises(InputError, match="64"):
        model.generate(text(70), max_new_tokens=2)


def test_texts_of_unlike_lengths_give_what_each_gives_alone(model):
    texts = [text(9), text(2, 30), text(5, 60)]
    rec = model.record(texts, SITE)
    for i, one in enumerate(texts):
        alone = model.record(one, SITE)
        assert torch.allclose(rec[SITE][i][rec.mask[i]], alone[SITE][0], atol=1e-5)
        assert rec.words[i] == one.split()


def test_texts_without_a_tokenizer_are_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        shared("gpt2").record("a text", SITE)
    with pytest.raises(InputError, match="no tokenizer"):
        shared("gpt2").to_tokens("a text")
    with pytest.raises(InputError, match="no image processor"):
        from PIL import Image

        shared("vit").record(Image.new("RGB", (16, 16)), SITE)


def test_loss_is_the_cross_entropy_of_the_real_targets(model):
    texts = [text(9), text(4, 30)]
    each = model.loss(texts, reduction="token")
    logs = model.logits(texts).log_softmax(-1)
    tokens = model.prepare(texts).tokens
    wanted = [-logs[i, t, tokens.ids[i, t + 1]] for i, n in enumerate((9, 4)) for t in range(n - 1)]
    assert torch.allclose(each[~each.isnan()], torch.stack(wanted), atol=1e-5)
    assert int((~each.isnan()).sum()) == 8 + 3
    assert torch.allclose(model.loss(texts), torch.stack(wanted).mean(), atol=1e-6)
    with pytest.raises(InputError, match="sum"):
        model.loss(texts, reduction="sum")
    with pytest.raises(InputError, match="masked-lm"):
        shared("bert").loss(token_ids())


def test_an_unknown_site_is_refused_before_the_model_runs(model):
    ran = []
    handle = model.module.register_forward_pre_hook(lambda m, a: ran.append(1))
    with pytest.raises(SiteError, match=r"blocks\.1\.resid_post"):
        model.record(token_ids(), "blocks.1.resid_pst")
    with pytest.raises(SiteError, match=r"mlp\.pre, mlp\.post"):
        model.record(token_ids(), "blocks.1.mlp.gate")
    with pytest.raises(InputError):
        model.record(token_ids(), SITE, batch_size=0)
    with pytest.raises(InputError):
        model.record(token_ids(), SITE, positions="last")
    with pytest.raises(InputError):
        model.record(token_ids(), SITE, positions=7)
    with pytest.raises(InputError):
        model.record(token_ids(), SITE, reduce=3)
    handle.remove()
    assert not ran


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match="Module"):
        Model(3)


@pytest.fixture
def recorded(model):
    return model.record([text(7), text(3)], ["blocks.*.resid_post", "blocks.1.attn.pattern"], dtype=torch.bfloat16)


def test_a_recording_survives_saving_bit_for_bit(recorded, tmp_path):
    path = tmp_path / "rec.safetensors"
    recorded.save(path)
    back = Recording.load(path)
    assert back.sites == recorded.sites
    assert back.dims == recorded.dims
    assert back.words == recorded.words
    assert all(torch.equal(back[s], recorded[s]) and back[s].dtype == torch.bfloat16 for s in back.sites)
    for name in ("tokens", "mask", "rows"):
        assert torch.equal(getattr(back, name), getattr(recorded, name))
    assert torch.equal(back["blocks.-1.resid_post"], recorded["blocks.2.resid_post"])
    assert list(tmp_path.iterdir()) == [path]


def test_layers_keep_their_order_in_a_saved_recording(tmp_path):
    """Names sort blocks.10 before blocks.2; layers must not."""
    values = {f"blocks.{i}.resid_post": torch.full((1, 2, 3), float(i)) for i in range(12)}
    dims = dict.fromkeys(values, ("batch", "pos", "d_model"))
    rec = Recording(values, dims, n_layers=12)
    rec.save(tmp_path / "rec")
    back = Recording.load(tmp_path / "rec")
    assert back.sites == list(values)
    assert back.stack("blocks.*.resid_post")[:, 0, 0, 0].tolist() == list(range(12))


def test_sites_that_share_memory_are_saved_whole(tmp_path):
    rec = shared("llama").record(token_ids(), ["blocks.0.resid_post", "blocks.1.resid_pre"])
    rec.save(tmp_path / "rec")
    assert torch.equal(Recording.load(tmp_path / "rec")["blocks.1.resid_pre"], rec["blocks.0.resid_post"])


def test_a_damaged_recording_is_refused(recorded, tmp_path):
    path = tmp_path / "rec.safetensors"
    recorded.save(path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:5],
        whole[: len(whole) // 2],
        whole[:-1],
        b"\xff" * 300,
        whole[:8] + b"{" + whole[9:40],
    ):
        path.write_bytes(damaged)
        with pytest.raises(LoadError):
            Recording.load(path)
    with pytest.raises(LoadError):
        Recording.load(tmp_path / "none")
    with pytest.raises(LoadError):
        Recording.load(tmp_path)


def test_a_safetensors_file_that_is_no_recording_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for metadata in (None, {"actinium": "null"}, {"actinium": "{"}, {"actinium": json.dumps({"format": 99})},
                     {"actinium": json.dumps({"format": 1})}, {"actinium": "[]"}):  # fmt: skip
        save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(LoadError):
            Recording.load(path)


def test_a_reducers_result_is_not_saved_as_a_tensor(model, tmp_path):
    from actinium.core import reducers

    rec = model.record(token_ids(), SITE, reduce=reducers.Moments())
    with pytest.raises(InputError, match="reducer"):
        rec.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(recorded, tmp_path):
    path = tmp_path / "rec"
    recorded.save(path)
    before = path.read_bytes()
    broken = Recording({**recorded.values, "x": object()}, {**recorded.dims, "x": ()})
    with pytest.raises(InputError):
        broken.save(path)
    assert path.read_bytes() == before


def test_an_edit_that_breaks_the_numbers_is_the_users_right():
    """Overflow by an edit is reported by the values, not by an exception."""
    model = shared("gpt2")
    with model.edit({SITE: Scale(1e38)}):
        assert not bool(torch.isfinite(model.record(token_ids(), "logits")["logits"]).all())
