"""What the model is read with: documents, windows, images, and how much of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import actinium as ac
from actinium.report import images, texts
from actinium.report.trial import trial


def test_lines_are_documents_unless_blank_lines_part_them():
    assert texts.documents("one\ntwo\n\n") == ["one", "two"]
    assert texts.documents("\none\ntwo\n\n\nthree\n") == ["one\ntwo", "three"]
    assert texts.documents(" \n \n") == []


@given(st.lists(st.text(alphabet="ab c", min_size=1).filter(str.strip), min_size=1, max_size=8), st.booleans())
def test_no_document_is_lost(parts, blank):
    joined = ("\n\n" if blank else "\n").join(parts)
    assert texts.documents(joined) == [part.strip() for part in parts]


def test_neutral_text_is_long_enough_and_plain():
    paragraphs = texts.neutral_text()
    assert sum(p.count(".") for p in paragraphs) >= 60
    assert all(ord(c) < 128 for p in paragraphs for c in p)


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return ac.load(tiny_llama)


def test_windows_hold_every_token_once(llama):
    documents = ["the cat sat on the mat " * 11, "a dog ran", "old red boat , " * 9]
    made = texts.windows(llama, documents, most_tokens=10_000, seed=0)
    for i, document in enumerate(documents):
        rows = (made.tokens.rows == i).nonzero().flatten()
        ids = torch.cat([made.tokens.ids[r][made.tokens.mask[r]] for r in rows]).tolist()
        assert ids == llama.tokenizer(document)["input_ids"]
        assert all(int(made.tokens.mask[r].sum()) <= 32 for r in rows)


def test_limit_on_tokens_is_kept_and_said(llama, text_file):
    sample = ac.report.read(llama, text=text_file, limit=100)
    assert 100 <= sample.tokens < 100 + 16
    assert sample.used == 7
    assert "7 of 40 documents were drawn at random" in " ".join(sample.notes)


def test_seed_decides_which_documents_are_drawn(llama, text_file):
    a, again, other = (ac.report.read(llama, text=text_file, limit=100, seed=s).inputs.rows for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.equal(a, other)


def test_some_rows_are_spread_and_trimmed(llama):
    documents = ["a cat"] * 9 + ["the old dog sat on the hill and slept ."]
    sample = ac.report.read(llama, text=documents)
    assert sample.inputs.ids.shape == (10, 11)
    part = sample.some(2)
    assert part.rows.tolist() == [0, 9]
    assert sample.some(3).ids.shape[1] == 11
    assert sample.some(100) is sample.inputs


def test_cost_of_a_linear_map_is_two_operations_per_weight():
    model = ac.load(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU()))
    cost = trial(model, torch.zeros(3, 11, 5))
    assert cost.operations == 2 * 35 * 11
    assert cost.numbers == 2 * 7 * 11
    assert cost.modules == {"0": 1, "1": 1}


def test_cost_of_a_convolution_is_two_operations_per_weight_and_place():
    model = ac.load(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
    assert trial(model, torch.zeros(2, 3, 10, 8)).operations == 2 * (4 * 27) * (8 * 6)


def test_grey_is_the_luma_that_pillow_computes():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    ours = images._channels(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, 1)
    theirs = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.float32) / 255
    assert np.abs(ours[0].numpy() - theirs).max() < 1 / 255


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_resized_image_has_the_size_and_stays_in_bounds(h, w, height, width):
    image = torch.rand(3, h, w, generator=torch.Generator().manual_seed(0))
    found = images._resized(image, height, width)
    assert found.shape == (3, height, width)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_resizing_keeps_a_constant_image():
    assert torch.allclose(images._resized(torch.full((1, 7, 13), 0.4), 5, 5), torch.full((1, 5, 5), 0.4))


def test_array_of_images_may_have_channels_last():
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    found = images.images_of(array)
    assert found[1].shape == (3, 6, 5)
    assert float(found[1][2, 4, 3]) == pytest.approx(array[1, 4, 3, 2] / 255)
    assert images.images_of(array.astype(np.float32)) is None


def test_datasets_library_gives_texts_and_images(tmp_path, pictures, llama, factory):
    pytest.importorskip("datasets", reason="the datasets library is not installed")
    (tmp_path / "test.csv").write_text("label,text\n" + "".join(f"{i},the cat sat on mat {i}\n" for i in range(30)))
    sample = ac.report.read(llama, dataset=str(tmp_path))
    assert sample.available == 30
    module = ac.load(f"{factory}:build")
    seen = ac.report.read(module, dataset=str(pictures), limit=6)
    assert seen.inputs.shape[:2] == (6, 3)
