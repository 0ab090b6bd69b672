"""What the browser shows of a latent is where it is active, and the command shows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import actinium as ac
from actinium.cli.app import app
from actinium.core.errors import InputError

SITE = "blocks.3.resid_post"


@pytest.fixture(scope="module")
def texts():
    return ac.world.heldout_text("lm")[:40]


@pytest.fixture(scope="module")
def sae(lm, texts):
    made = ac.features.TopKSAE(256, 8)
    made.fit(lm, sites=SITE, texts=texts, batch_size=128, rows=128 * 30, lr=2e-3)
    made.about = {"model": "world:lm", "site": SITE}
    return made


@pytest.fixture(scope="module")
def browser(lm, sae, texts):
    return ac.features.Browser(lm, SITE, sae, texts, k=3)


def test_contexts_are_the_texts_with_the_largest_activations(browser, lm, sae, texts):
    latent = browser.strongest(1)[0]
    page = browser.latent(latent)
    rec = lm.record(texts, SITE)
    mask = rec.mask.clone()
    mask[torch.arange(len(mask)), mask.int().argmax(1)] = False
    f = sae.encode(rec[SITE]).detach()[..., latent].masked_fill(~mask, 0)
    assert page["largest"] == pytest.approx(float(f.max()), rel=1e-5)
    best = f.amax(1).sort(descending=True).values[:3]
    shown = [context["values"][context["at"]] for context in page["contexts"]]
    np.testing.assert_allclose(shown, best, rtol=1e-4)
    assert page["density"] == pytest.approx(float((f > 0).sum() / mask.sum()), rel=1e-5)
    for context in page["contexts"]:
        assert len(context["tokens"]) == len(context["values"])
        assert context["values"][context["at"]] == max(context["values"])


def test_promoted_tokens_are_those_of_the_vocabulary_projection(browser, lm, sae):
    latent = browser.strongest(1)[0]
    found = ac.features.vocabulary_projection(lm, sae.W_dec[latent].detach()[None], SITE, 8)
    assert browser.latent(latent)["promotes"] == [str(t) for t in found["top_token"].values[0]]


def test_pages_are_written_whole_and_say_the_same(browser, tmp_path):
    folder = browser.save(tmp_path / "out", [3, 5])
    pages = json.loads((folder / "features.json").read_text())
    assert [page["latent"] for page in pages["latents"]] == [3, 5] and pages["site"] == SITE
    text = (folder / "features.html").read_text()
    assert "Latent 3" in text and "Latent 5" in text and "http" not in text
    assert list(browser.table([3, 5])["latent"]) == [3, 5]
    with pytest.raises(InputError, match="0 to 255"):
        browser.latent(256)
    with pytest.raises(InputError, match="cannot write"):
        browser.save("/dev/null/x")


def test_the_command_shows_a_dictionary_of_any_format(sae, tmp_path):
    ac.features.save_dictionary(sae, tmp_path / "lens", "saelens")
    own = sae.save(tmp_path / "sae.safetensors")
    (tmp_path / "texts.txt").write_text("\n".join(ac.world.heldout_text("lm")[:20]))
    common = ["--data", str(tmp_path / "texts.txt"), "--latent", "3", "--contexts", "2"]
    for path, more in ((own, []), (tmp_path / "lens", ["--model", "world:lm", "--at", SITE])):
        done = CliRunner().invoke(app, ["features", str(path), *common, *more, "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        assert "256 latents" in done.output
    assert (tmp_path / "out" / "features.html").is_file()


def test_a_dictionary_that_belongs_nowhere_is_asked_for(tmp_path):
    path = ac.features.TopKSAE(8, 2).build(4).save(tmp_path / "one")
    done = CliRunner().invoke(app, ["features", str(path)])
    assert done.exit_code == 2 and "--model" in done.output
    assert CliRunner().invoke(app, ["features", str(tmp_path / "none")]).exit_code == 2
