"""What a vector says: projections, cosines, tokens and principal components against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError

SITES = ["blocks.1.resid_post", "blocks.4.resid_post"]
TEXTS = ["The film was wonderful, I loved it.", "The meal was dull."]


@pytest.fixture(scope="module")
def vector():
    torch.manual_seed(0)
    return ac.steering.SteeringVector({site: torch.randn(128) for site in SITES})


def test_a_projection_map_shows_every_token_of_every_text(lm, vector):
    found = ac.steering.projection_map(lm, vector, TEXTS)
    plain = ac.steering.projection_map(lm, vector, TEXTS, kind="projection")
    first = 0
    for number, text in enumerate(TEXTS):
        rec = lm.record(text, SITES)
        h = rec[SITES[1]][0]
        here = slice(first, first + len(h))
        cosine = torch.cosine_similarity(h, vector[SITES[1]][None], dim=-1)
        assert found["cosine"].sel(site=SITES[1]).values[here] == pytest.approx(cosine.numpy(), abs=1e-5)
        along = h @ vector[SITES[1]] / vector[SITES[1]].norm()
        assert plain["projection"].sel(site=SITES[1]).values[here] == pytest.approx(along.numpy(), abs=1e-4)
        assert found.data.coords["text"].values[here].tolist() == [number] * len(h)
        assert list(found.data.coords["token"].values[here]) == lm.to_str_tokens(lm.to_tokens(text).ids[0])
        first += len(h)
    assert found.data.sizes["token"] == first
    assert found.plot().get_xlabel() == "token"
    with pytest.raises(UnknownNameError, match="cosine"):
        ac.steering.projection_map(lm, vector, TEXTS, kind="cosin")


def test_layer_cosines_are_those_of_numpy(vector):
    found = ac.steering.layer_cosines(vector)["cosine"].values
    a, b = (vector[site].double().numpy() for site in SITES)
    assert found[0, 1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
    assert np.diag(found) == pytest.approx(1.0)
    assert ac.steering.layer_cosines(vector, -vector)["cosine"].values == pytest.approx(-found)
    mixed = ac.steering.SteeringVector({"a": torch.ones(3), "b": torch.ones(4)})
    with pytest.raises(InputError, match="one width"):
        ac.steering.layer_cosines(mixed)


def test_tokens_of_a_vector_are_those_of_the_unembedding(lm):
    row = lm.tokenizer.convert_tokens_to_ids("▁happy")
    head = lm.module.get_output_embeddings().weight.detach()
    v = ac.steering.SteeringVector(dict.fromkeys(SITES, head[row]))
    found = ac.steering.vector_tokens(lm, v, n=3)
    logits = lm.unembed(head[row]).detach()
    assert found.data["top_id"].sel(site=SITES[0]).values.tolist() == logits.topk(3).indices.tolist()
    assert found.data["top_token"].sel(site=SITES[1]).values[0].strip() == "happy"
    assert found.data["bottom_logit"].sel(site=SITES[0]).values == pytest.approx(
        (-(-logits).topk(3).values).numpy(), abs=1e-4
    )


def test_components_are_those_of_scikit_learn_and_labels_are_told_apart():
    decomposition = pytest.importorskip("sklearn.decomposition")
    random = np.random.default_rng(0)
    behaviour, letter = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    noise = random.normal(size=(40, 6))
    early = noise + 9 * letter[:, None] * np.eye(6)[0]
    late = noise + 9 * behaviour[:, None] * np.eye(6)[1]
    labels = {"behaviour": behaviour, "letter": letter}
    found = ac.steering.activation_pca(None, {"early": early, "late": late}, labels, "*")
    theirs = decomposition.PCA(2).fit(late)
    ours = found["component_value"].sel(site="late").values
    assert np.abs(ours) == pytest.approx(np.abs(theirs.transform(late)), abs=1e-4)
    assert found["explained_variance"].sel(site="late").values == pytest.approx(
        theirs.explained_variance_ratio_, abs=1e-6
    )
    share = found["separation"]
    assert float(share.sel(site="early", label="letter")) > 0.8 > 0.2 > float(share.sel(site="late", label="letter"))
    assert float(share.sel(site="late", label="behaviour")) > 0.8
    groups = [ours[behaviour == b] for b in (0, 1)]
    between = sum(len(g) * (g.mean(0) ** 2).sum() for g in groups) / (ours**2).sum()
    assert float(share.sel(site="late", label="behaviour")) == pytest.approx(between)
    assert found.plot().get_title() == "activation_pca, late"
    assert found.plot(variable="letter").get_title() == "activation_pca, early"
    with pytest.raises(UnknownNameError):
        found.plot(site="later")


def test_texts_of_two_behaviours_part_with_depth(lm):
    from actinium.world.contrasts import contrast

    pairs = contrast("refusal-reply", n=24)
    labels = {"behaviour": ["declined"] * 24 + ["agreed"] * 24}
    found = ac.steering.activation_pca(lm, pairs.positive + pairs.negative, labels)
    assert float(found["separation"].max()) > 0.5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "one label or more"),
        ({"letter": ["A", "B"]}, "2 values for 4"),
        ({"letter": ["A"] * 4}, "all texts have one"),
    ],
)
def test_senseless_labels_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        ac.steering.activation_pca(None, {"a": np.eye(4)}, labels, "*")


def test_texts_that_do_not_differ_are_refused():
    with pytest.raises(InputError, match="do not differ"):
        ac.steering.activation_pca(None, {"a": np.ones((4, 3))}, {"letter": list("ABAB")}, "*")
    with pytest.raises(InputError, match="three or more"):
        ac.steering.activation_pca(None, {"a": np.eye(2)}, {"letter": list("AB")}, "*")
