"""An output signature holds the distributions without the tokens' names, aligned with what occurred."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

import actinium as ac
import architectures
from actinium.core.errors import InputError, LoadError
from actinium.core.inputs import Tokens
from actinium.probes.output_signature import (
    OutputSignature,
    load_signatures,
    output_signatures,
    save_signatures,
)

N, V = 9, 40


@pytest.fixture
def logits():
    return 3 * torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ids():
    return torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))


def test_every_value_is_that_of_numpy_and_scipy(logits, ids):
    s = OutputSignature.from_logits(logits, ids)
    want = log_softmax(logits.numpy(), axis=1)[:-1]
    chosen = want[np.arange(N - 1), ids[1:]]
    p = np.exp(want)
    np.testing.assert_allclose(s.tds.numpy(), -np.sort(-want, 1), atol=1e-12)
    np.testing.assert_allclose(s.atp.numpy(), chosen, atol=1e-12)
    assert s.rank.tolist() == [
        int(np.flatnonzero(np.argsort(-row) == i)[0]) for row, i in zip(want, ids[1:], strict=True)
    ]
    np.testing.assert_allclose(s.mean.numpy(), want.mean(1), atol=1e-12)
    np.testing.assert_allclose(s.std.numpy(), want.std(1, ddof=1), atol=1e-12)
    np.testing.assert_allclose(-s.expected.numpy(), entropy(p, axis=1), atol=1e-12)
    np.testing.assert_allclose(s.spread.numpy(), np.sqrt((p * want**2).sum(1) - (p * want).sum(1) ** 2), atol=1e-9)
    assert (len(s), s.vocab_size, s.partial) == (N - 1, V, False)
    assert repr(s) == "OutputSignature(8 steps, 40 of 40 tokens)"


def test_without_shift_each_row_is_about_its_own_token(logits, ids):
    own = OutputSignature.from_logits(logits, ids, shift=False)
    moved = OutputSignature.from_logits(torch.cat([logits, logits[:1]]), torch.cat([ids[:1], ids]))
    assert len(own) == N
    assert torch.equal(own.atp, moved.atp)
    assert torch.equal(own.tds, moved.tds)


def test_names_of_tokens_and_a_constant_do_not_matter(logits, ids):
    s = OutputSignature.from_logits(logits, ids)
    names = torch.randperm(V, generator=torch.Generator().manual_seed(2))
    renamed = OutputSignature.from_logits(logits[:, names], names.argsort()[ids])
    moved = OutputSignature.from_logits(logits + 7 * torch.arange(N)[:, None], ids)
    for other in (renamed, moved):
        assert torch.equal(other.rank, s.rank)
        for name in ("tds", "atp", "mean", "std", "expected", "spread"):
            assert torch.allclose(getattr(other, name), getattr(s, name), atol=1e-6)


def test_the_most_likely_token_has_rank_zero_and_ties_share_the_first_place(logits):
    s = OutputSignature.from_logits(logits, logits.argmax(1), shift=False)
    assert not s.rank.any()
    assert torch.equal(s.atp, s.tds[:, 0])
    tied = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert [int(OutputSignature.from_logits(tied, torch.tensor([i]), shift=False).rank) for i in range(4)] == [
        0,
        1,
        1,
        3,
    ]


def test_rows_are_normalised_before_they_are_cut(logits, ids):
    s = OutputSignature.from_logits(logits, ids)
    whole, _, _, real = s.features(V, N)
    assert torch.allclose(whole[:-1].mean(1), torch.zeros(N - 1, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(whole[:-1].std(1), torch.ones(N - 1, dtype=torch.float64), atol=1e-5)
    cut, atp, rank, _ = OutputSignature.from_logits(logits, ids, keep=5).features(5, N)
    assert torch.equal(cut, whole[:, :5])
    assert torch.allclose(atp[:-1], (s.atp - s.mean) / s.std)
    assert real.tolist() == [True] * (N - 1) + [False]
    assert not cut[-1].any() and atp[-1] == 0
    assert rank[-1] == V - 1
    short = s.features(V, 3)
    assert [t.shape[0] for t in short] == [3] * 4
    assert torch.equal(short[0], whole[:3])


def test_columns_beyond_the_vocabulary_are_zero_and_flat_rows_have_no_shape(logits, ids):
    wide = OutputSignature.from_logits(logits, ids).features(V + 3, N)[0]
    assert wide.shape == (N, V + 3)
    assert not wide[:, V:].any()
    for flat in (torch.full((N, V), 0.1), torch.zeros(N, V, dtype=torch.float64)):
        tds, atp = OutputSignature.from_logits(flat, ids).normalised()
        assert not tds.any() and not atp.any()


def test_a_partial_signature_has_the_moments_of_what_is_known(logits, ids):
    logp = torch.log_softmax(logits, 1)
    atp = logp.gather(1, ids[:, None])[:, 0]
    whole = OutputSignature.from_logits(logits, ids, shift=False)
    top = logp.topk(10).values.flip(1)
    s = OutputSignature.from_topk(top, atp, V)
    assert s.partial and s.expected is None
    assert torch.equal(s.tds, whole.tds[:, :10])
    assert torch.equal(s.rank, whole.rank.clamp(max=10))
    assert torch.allclose(s.mean, top.mean(1))
    assert torch.allclose(s.std, top.std(1))
    everything = OutputSignature.from_topk(logp, atp, V)
    assert torch.allclose(everything.features(V, N)[0], whole.features(V, N)[0])


def test_steps_are_chosen_and_files_come_back(logits, ids, tmp_path):
    some = [OutputSignature.from_logits(logits[i:], ids[i:], keep=6) for i in range(3)]
    assert torch.equal(some[0].steps(slice(2, None)).atp, some[2].atp)
    exact = load_signatures(save_signatures(tmp_path / "exact", some, half=False))
    half = load_signatures(save_signatures(tmp_path / "half", some))
    assert [len(s) for s in exact] == [8, 7, 6]
    for new, rounded, old in zip(exact, half, some, strict=True):
        assert torch.equal(new.tds, old.tds) and torch.equal(new.rank, old.rank)
        assert torch.equal(new.spread, old.spread) and torch.equal(rounded.atp, old.atp)
        assert torch.allclose(rounded.tds, old.tds, rtol=1e-3)
    part = [OutputSignature.from_topk(torch.log_softmax(logits, 1), logits.log_softmax(1)[:, 0], V)]
    assert load_signatures(save_signatures(tmp_path / "part", part))[0].partial
    with pytest.raises(LoadError, match="cannot read"):
        load_signatures(tmp_path / "absent")
    with pytest.raises(InputError, match="same number"):
        save_signatures(tmp_path / "no", [some[0], OutputSignature.from_logits(logits, ids)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "falcon", "mamba"])
def test_signatures_of_padded_texts_are_those_of_each_text_alone(name):
    model = architectures.shared(name)
    ids = architectures.token_ids(3, 8)
    lengths = [8, 5, 3]
    padded = torch.zeros_like(ids)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, n in enumerate(lengths):
        padded[i, 8 - n :], mask[i, 8 - n :] = ids[i, :n], True
    if name == "mamba":  # takes padding on the right only
        padded, mask = torch.where(torch.arange(8) < torch.tensor(lengths)[:, None], ids, 0), mask.flip(1)
    found = output_signatures(model, Tokens(padded, mask, torch.arange(3)), keep=None, batch_size=2)
    for one, row, n in zip(found, ids, lengths, strict=True):
        with torch.no_grad():
            alone = OutputSignature.from_logits(model.logits(row[None, :n])[0], row[:n])
        assert len(one) == n - 1
        assert torch.allclose(one.tds, alone.tds, atol=1e-4)
        assert torch.allclose(one.atp, alone.atp, atol=1e-4)


def test_the_answer_alone_is_scored():
    model, ids = architectures.shared("llama"), architectures.token_ids(2, 7)
    whole = output_signatures(model, ids)
    answer = output_signatures(model, ids, start=[4, 6], progress=True)
    assert [len(s) for s in answer] == [3, 1]
    assert torch.equal(answer[0].atp, whole[0].atp[3:])
    loss = model.loss(ids, "token")
    assert torch.allclose(-torch.stack([s.atp for s in whole]), loss, atol=1e-5)


def test_stories_that_a_model_wrote_itself_are_likelier_than_scrambled_ones(outside_data):
    if not (outside_data / "stories260K").is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(outside_data / "stories260K")
    torch.manual_seed(0)
    story = model.generate("Once upon a time", max_new_tokens=40, do_sample=False)
    ids = model.to_tokens("Once upon a time" + story).ids[0]
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(len(ids) - 1)])
    own, scrambled = output_signatures(model, torch.stack([ids, ids[order]]), keep=50)
    assert own.tds.shape == (len(ids) - 1, 50)
    assert own.atp.mean() > scrambled.atp.mean() + 2
    assert own.rank.float().mean() < 10 < scrambled.rank.float().mean()


def test_what_is_no_signature_is_refused(logits, ids):
    broken = logits.clone()
    broken[3, 2] = -torch.inf
    logp = logits.log_softmax(1)
    for call, message in (
        (lambda: OutputSignature.from_logits(broken, ids), "row 3 holds NaN or infinite"),
        (lambda: OutputSignature.from_logits(logits[:1], ids[:1]), "no token is left"),
        (lambda: OutputSignature.from_logits(logits, ids + V), "from 0 to 39"),
        (lambda: OutputSignature.from_logits(logits, ids[1:]), "N token ids"),
        (lambda: OutputSignature.from_logits(logits, ids, keep=0), "keep must be"),
        (lambda: OutputSignature.from_topk(logits, logits[:, 0], V), "pass log-probabilities"),
        (lambda: OutputSignature.from_topk(logp, logp[:, 0], V - 1), "vocabulary of 39"),
        (lambda: OutputSignature.from_topk(logp[:, :3] - 5, logp[:, 0] + 9, V), "than the most likely"),
        (lambda: OutputSignature.from_topk(logp, logp[:, 0] * torch.nan, V), "NaN or infinite"),
        (lambda: OutputSignature.from_topk(logp[:, :1], logp[:, 0], V), "K >= 2"),
        (lambda: OutputSignature.from_logits(logits, ids, keep=4).features(5), "holds the 4 most likely of 40"),
        (lambda: OutputSignature.from_logits(logits, ids).features(0), "k >= 1"),
        (lambda: OutputSignature.from_logits(logits, ids).steps(slice(9, None)), "no step"),
        (lambda: save_signatures("nowhere", []), "at least one"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_models_and_texts_that_cannot_be_scored_are_refused(lm):
    llama, rows = architectures.shared("llama"), architectures.token_ids(2, 7)
    for call, message in (
        (lambda: output_signatures(architectures.shared("bert"), rows), "needs? a causal"),
        (lambda: output_signatures(llama, rows, start=7), "starts at 1 to 6"),
        (lambda: output_signatures(llama, rows, start=[1]), "1 starts were given"),
        (lambda: output_signatures(llama, rows, batch_size=0), "batch_size"),
        (lambda: output_signatures(llama, rows[:, :1]), "text 0 has 1 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.warns(ac.core.errors.ActiniumWarning), pytest.raises(InputError, match="longer than"):
        output_signatures(lm, "Ann lives in Orla. " * 60)


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")
