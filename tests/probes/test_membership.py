"""Scores of membership are their formulas, and they find what a model has memorised."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from torch import nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.probes.membership import (
    binary_labels,
    membership_inference,
    membership_scores,
    min_k,
    min_k_plus_plus,
    perplexity_of,
    reference_ratio,
    step_entropy,
    tpr_at_fpr,
    zlib_ratio,
)
from actinium.probes.output_signature import OutputSignature, output_signatures


@pytest.fixture
def signature():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(10, 30, dtype=torch.float64, generator=random)
    return OutputSignature.from_logits(logits, torch.randint(0, 30, (10,), generator=random), shift=False)


def partial(signature):
    return OutputSignature.from_topk(signature.tds[:, :5], signature.atp, 30)


def test_scores_are_their_formulas(signature):
    atp = signature.atp.numpy()
    assert perplexity_of(signature) == pytest.approx(math.exp(-atp.mean()))
    assert min_k(signature, 0.3) == pytest.approx(np.sort(atp)[:3].mean())
    assert min_k(signature, 1.0) == pytest.approx(atp.mean())
    assert min_k(signature, 0.01) == pytest.approx(atp.min())
    p = signature.tds.exp().numpy()
    logp = np.log(p)
    mean = (p * logp).sum(1)
    z = (atp - mean) / np.sqrt((p * logp**2).sum(1) - mean**2)
    assert min_k_plus_plus(signature, 0.2) == pytest.approx(np.sort(z)[:2].mean())
    np.testing.assert_allclose(step_entropy(signature).numpy(), -mean)
    text = "a text of some words"
    assert zlib_ratio(signature, text) == pytest.approx(-atp.mean() / len(zlib.compress(text.encode())))
    assert reference_ratio(signature, signature) == 0.0
    assert reference_ratio(signature, signature.steps(slice(0, 4))) == pytest.approx(atp[:4].mean() - atp.mean())


def test_no_token_is_lost_to_rounding():
    logits = torch.randn(100, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    s = OutputSignature.from_logits(logits, logits.argmin(1), shift=False)
    assert 0.29 * 100 < 29
    assert min_k(s, 0.29) == pytest.approx(float(s.atp.sort().values[:29].mean()))


def test_flat_distributions_say_nothing_under_min_k_plus_plus():
    s = OutputSignature.from_logits(torch.zeros(4, 50), torch.arange(4), shift=False)
    assert min_k_plus_plus(s) == 0.0
    assert min_k(s) == pytest.approx(-math.log(50), rel=1e-6)


def test_higher_always_means_member(signature):
    scores = membership_scores([signature], texts=["some text"], reference=[signature.steps(slice(0, 3))])
    assert list(scores) == [
        "mean log-probability",
        "min log-probability",
        "max log-probability",
        "perplexity",
        "Min-K%",
        "Min-K%++",
        "entropy",
        "zlib ratio",
        "reference ratio",
    ]
    assert scores["perplexity"][0] == -perplexity_of(signature)
    assert scores["zlib ratio"][0] == -zlib_ratio(signature, "some text")
    assert scores["entropy"][0] < 0
    assert set(membership_scores([partial(signature)])) == set(list(scores)[:5])


def test_tpr_is_the_last_point_below_the_bound():
    random = np.random.default_rng(0)
    for draws in (20, 200):
        y = random.permutation(np.arange(draws) % 2)
        for scores in (random.normal(size=draws) + y, random.integers(0, 6, draws) + y):
            fpr, tpr, _ = roc_curve(y, scores, drop_intermediate=False)
            for bound in (0.05, 0.3, 1.0):
                assert tpr_at_fpr(scores, y, bound) == pytest.approx(tpr[np.where(fpr < bound)[0][-1]])
    assert tpr_at_fpr([2.0, 1.0, 1.0, 0.0], [1, 1, 0, 0]) == 0.5
    assert tpr_at_fpr([1.0, 1.0], [1, 0]) == 0.0


def test_a_memorised_half_is_told_from_the_other():
    """A table of the next token of each pair, overfitted on half of the texts, against one that saw none."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (80, 12), generator=random)

    class Bigrams(nn.Module):
        def __init__(self, texts):
            super().__init__()
            counts = torch.full((20, 20), 0.1)
            for row in texts:
                counts.index_put_((row[:-1], row[1:]), torch.ones(11), accumulate=True)
            self.table = nn.Parameter(counts.log())

        def forward(self, input_ids):
            return self.table[input_ids]

    def read(texts):
        module = Bigrams(texts)
        return [OutputSignature.from_logits(module(row), row) for row in ids]

    signatures = read(ids[:40])
    labels = torch.arange(80) < 40
    found = membership_inference(signatures, labels, reference=read(ids[:0]))
    area = {str(s): float(v) for s, v in zip(found["score"].values, found["auroc"].values, strict=True)}
    assert min(area["mean log-probability"], area["Min-K%"], area["reference ratio"]) > 0.9
    assert area["reference ratio"] >= area["mean log-probability"]
    assert float(found["tpr"].sel(score="mean log-probability")) > 0.5
    assert found.table().shape == (8, 3)


def test_stories_are_likelier_than_reviews_to_a_model_of_stories(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir() or not (outside_data / "sst2_dev.tsv").is_file():
        pytest.skip("stories260K or SST is absent")
    import actinium as ac

    model: Model = ac.load(folder)
    lines = (outside_data / "sst2_dev.tsv").read_text().splitlines()
    reviews = [line.split("\t")[-1] for line in lines if len(line) > 60][:12]
    torch.manual_seed(0)
    stories = [
        "Once upon a time" + model.generate("Once upon a time", max_new_tokens=60, do_sample=True) for _ in range(12)
    ]
    texts = stories + reviews
    found = membership_inference(output_signatures(model, texts), [1] * 12 + [0] * 12, texts=texts)
    assert float(found["auroc"].sel(score="perplexity")) > 0.95
    assert float(found["auroc"].sel(score="Min-K%++")) > 0.9


def test_what_cannot_be_scored_is_refused(signature):
    for call, message in (
        (lambda: min_k(signature, 0.0), "share"),
        (lambda: min_k(signature, 1.5), "share"),
        (lambda: min_k_plus_plus(partial(signature)), "whole distribution"),
        (lambda: step_entropy(partial(signature)), "whole distribution"),
        (lambda: zlib_ratio(signature, ""), "empty"),
        (lambda: membership_scores([signature], texts=["a", "b"]), "2 texts were given for 1"),
        (lambda: membership_scores(signature), "list of output signatures"),
        (lambda: membership_scores([]), "at least one"),
        (lambda: membership_scores([signature, 3]), "entry 1 is a int"),
        (lambda: membership_scores([signature, partial(signature)]), "cannot be mixed"),
        (lambda: membership_inference([signature] * 2, [1, 1]), "both classes"),
        (lambda: membership_inference([signature] * 2, [1, 0, 1]), "for each of 2"),
        (lambda: binary_labels([1, 2], 2), "0 or 1"),
        (lambda: tpr_at_fpr([0.1, np.nan], [0, 1]), "NaN"),
        (lambda: tpr_at_fpr([0.1, 0.2], [0, 1], 0.0), "fpr must be"),
    ):
        with pytest.raises(InputError, match=message):
            call()
