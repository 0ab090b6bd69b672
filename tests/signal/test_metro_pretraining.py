"""The joint loss is the sum of its parts, labels and ratios are those of the tokens, and training lowers it."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from torch import nn

from actinium.core.errors import InputError
from actinium.signal.metro_pretraining import CorrectiveLM, MetroPretrainer, ReplacedTokenDetection
from actinium.signal.token_corruption import mask_tokens, span_corruption

MASK, LOW, HIGH, WORDS = 1, 2, 22, 32
SETTINGS = {"mask_id": MASK, "vocabulary": (LOW, HIGH)}


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(batch=8, length=24, seed=0):
    return torch.randint(LOW, HIGH, (batch, length), generator=source(seed))


def seq2seq(words=WORDS, seed=0):
    torch.manual_seed(seed)
    config = hf.T5Config(vocab_size=words, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0)
    return hf.T5ForConditionalGeneration(config)


def masked_lm(words=WORDS, width=16, dropout=0.0):
    torch.manual_seed(1)
    return hf.BertForMaskedLM(
        hf.BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


class Restores(nn.Module):
    """A generator that knows the text."""

    def __init__(self, original, words=WORDS):
        super().__init__()
        self.original, self.words = original, words

    def forward(self, ids, mask):
        return 1e4 * nn.functional.one_hot(self.original, self.words).float()


class Shifts(Restores):
    """A generator that is always wrong."""

    def forward(self, ids, mask):
        return 1e4 * nn.functional.one_hot(self.original + 1, self.words).float()


class Embeds(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, 6)
        self.seen = None

    def forward(self, ids, mask):
        self.seen = ids
        return self.words(ids)


class Writes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.out = nn.Linear(6, WORDS)
        self.seen = None

    def forward(self, shifted, hidden, mask):
        self.seen = shifted
        return self.out(hidden), hidden


def test_the_head_starts_at_ln_two():
    hidden, mask = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    head = ReplacedTokenDetection(6)
    for labels in (torch.zeros(3, 5, dtype=torch.bool), torch.rand(3, 5) > 0.5):
        assert float(head.loss(head(hidden), labels, mask).detach()) == pytest.approx(math.log(2))
    trainer = MetroPretrainer.from_transformers(masked_lm(), seq2seq(), **SETTINGS)
    assert float(trainer(tokens())["rtd_loss"].detach()) == pytest.approx(0.6931, abs=1e-4)


def test_a_generator_that_restores_leaves_nothing_to_detect():
    x = tokens()
    trainer = MetroPretrainer(Restores(x), Embeds(), Writes(), ReplacedTokenDetection(6), **SETTINGS)
    out = trainer(x)
    assert float(out["replace_ratio"]) == 0
    assert torch.isnan(out["rtd_recall"])
    assert float(out["generator_accuracy"]) == 1
    assert torch.equal(trainer.encoder.seen, x)
    noisy = trainer.encoder.seen
    assert not ReplacedTokenDetection.labels(x, noisy, torch.ones_like(x, dtype=torch.bool)).any()


def test_a_generator_that_is_always_wrong_replaces_what_was_masked():
    x = tokens()
    trainer = MetroPretrainer(Shifts(x), Embeds(), Writes(), ReplacedTokenDetection(6), **SETTINGS)
    out = trainer(x, source=source())
    assert float(out["replace_ratio"]) == float(out["mask_ratio"]) > 0
    replaced = trainer.encoder.seen != x
    assert torch.equal(trainer.encoder.seen[replaced], x[replaced] + 1)


def test_replaced_tokens_are_masked_ones_and_never_padding():
    x, mask = tokens(), torch.ones(8, 24, dtype=torch.bool)
    mask[:, 15:] = False
    trainer = MetroPretrainer.from_transformers(masked_lm(), seq2seq(), **SETTINGS)
    for seed in range(3):
        out = trainer(x, mask, source(seed))
        assert 0 <= float(out["replace_ratio"]) <= float(out["mask_ratio"]) < 0.5
    text, chosen = mask_tokens(x, mask, MASK, (LOW, HIGH), source=source())
    assert not chosen[:, 15:].any()
    assert torch.equal(text[~chosen], x[~chosen])


def test_without_generator_and_detection_the_loss_is_that_of_masked_language_modelling():
    x, mask = tokens(), torch.ones(8, 24, dtype=torch.bool)
    trainer = MetroPretrainer(None, Embeds(), Writes(), rtd_weight=0, **SETTINGS)
    out = trainer(x, mask, source(5))
    text, chosen = mask_tokens(x, mask, MASK, (LOW, HIGH), source=source(5))
    logits, _ = trainer.decoder(x, trainer.encoder(text, mask), mask)
    expected = nn.functional.cross_entropy(logits[chosen], x[chosen])
    assert torch.allclose(out["loss"], expected)
    assert set(out) >= {"loss", "lm_loss"}
    assert "rtd_loss" not in out and "generator_loss" not in out


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {"generator_weight": 2.0, "lm_weight": 3.0, "rtd_weight": 7.0}
    trainer = MetroPretrainer.from_transformers(masked_lm(), seq2seq(), **SETTINGS, **weights)
    out = trainer(tokens())
    assert torch.allclose(out["loss"], 2 * out["generator_loss"] + 3 * out["lm_loss"] + 7 * out["rtd_loss"])


def test_the_decoder_is_given_the_original_text_and_gradients_stop_at_the_samples():
    x = tokens()
    generator = masked_lm()
    settings = {**SETTINGS, "generator_weight": 0.0, "lm_weight": 1.0, "rtd_weight": 1.0}
    trainer = MetroPretrainer.from_transformers(generator, seq2seq(), share_embeddings=False, **settings)
    trainer(x)["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in generator.parameters())
    plain = MetroPretrainer(Restores(x), Embeds(), Writes(), ReplacedTokenDetection(6), **SETTINGS)
    plain(x)
    assert torch.equal(plain.decoder.seen[:, 1:], x[:, :-1])
    assert (plain.decoder.seen[:, 0] == MASK).all()


def test_wrapped_models_compute_what_the_library_computes():
    x, mask = tokens(), torch.ones(8, 24, dtype=torch.bool)
    model = seq2seq()
    trainer = MetroPretrainer.from_transformers(None, model, rtd_weight=0, start_id=0, **SETTINGS)
    shifted = torch.cat([torch.zeros(8, 1, dtype=torch.long), x[:, :-1]], 1)
    ours = trainer.decoder(shifted, trainer.encoder(x, mask), mask)
    theirs = model(input_ids=x, decoder_input_ids=shifted).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    generator = masked_lm()
    shared = MetroPretrainer.from_transformers(generator, model, **SETTINGS)
    assert generator.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert sum(p is model.get_input_embeddings().weight for p in shared.parameters()) == 1


def test_corrective_loss_counts_the_positions_it_is_asked_for():
    x, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    chosen = torch.zeros(2, 6, dtype=torch.bool)
    chosen[0, 1] = chosen[1, 3] = True
    logits, rtd = torch.randn(2, 6, WORDS), torch.randn(2, 6, requires_grad=True)
    each = nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none")
    assert torch.allclose(CorrectiveLM()(logits, x, chosen, mask), each[chosen].mean())
    assert torch.allclose(CorrectiveLM("all")(logits, x, chosen, mask), each[mask].mean())
    weighted = CorrectiveLM(weighted=True)(logits, x, chosen, mask, rtd)
    assert torch.allclose(weighted, (each * rtd.detach().sigmoid())[chosen].mean())
    assert not weighted.requires_grad


def test_masks_have_the_asked_rates():
    x, mask = tokens(400, 50), torch.ones(400, 50, dtype=torch.bool)
    text, chosen = mask_tokens(x, mask, MASK, (LOW, HIGH), source=source())
    assert float(chosen.double().mean()) == pytest.approx(0.15, abs=0.01)
    of = text[chosen]
    assert float((of == MASK).double().mean()) == pytest.approx(0.8, abs=0.02)
    # A twentieth of the random tokens are the token that stood there.
    assert float((of == x[chosen]).double().mean()) == pytest.approx(0.105, abs=0.015)
    _, spans = mask_tokens(x, mask, MASK, (LOW, HIGH), masking="span", span_length=3, source=source())
    assert float(spans[:, 2:].double().mean()) == pytest.approx(0.15, abs=0.01)
    follow = (spans[:, 1:] & spans[:, :-1]).sum() / spans[:, :-1].sum()
    assert float(follow) > 0.6  # iid: 0.15
    assert not (mask_tokens(x, mask, MASK, (LOW, 10), source=source())[1] & (x >= 10)).any()


def test_a_corrupted_text_and_its_target_are_the_original():
    x = tokens(16, 30)
    sentinels = tuple(range(22, 30))
    out = span_corruption(x, sentinels, rate=0.3, span_length=3, source=source())
    assert out["input_ids"].shape == (16, 30 - 9 + 3)
    assert out["labels"].shape == (16, 9 + 4)
    for row, text, target in zip(x.tolist(), out["input_ids"].tolist(), out["labels"].tolist(), strict=True):
        spans = {}
        for t in target:
            if t in sentinels:
                at = t
                spans[at] = []
            else:
                spans[at].append(t)
        restored = [t for word in text for t in (spans[word] if word in sentinels else [word])]
        assert restored == row
        assert target[-1] == sentinels[3]


def test_both_objectives_are_learned_by_small_transformers():
    # Each token is the one before plus one, so that a masked one can be told from its neighbours.
    x = (torch.arange(24)[None] + torch.arange(16)[:, None]) % 20 + LOW
    settings = {**SETTINGS, "mask_rate": 0.2}
    trainer = MetroPretrainer.from_transformers(masked_lm(), seq2seq(), share_embeddings=False, **settings)
    optimiser = torch.optim.Adam(trainer.parameters(), lr=1e-2)
    history = []
    for step in range(60):
        out = trainer(x, source=source(step))
        optimiser.zero_grad()
        out["loss"].backward()
        optimiser.step()
        history.append({k: float(v.detach()) for k, v in out.items()})
    assert all(math.isfinite(h[k]) for h in history for k in ("loss", "generator_loss", "lm_loss", "rtd_loss"))
    assert history[-1]["generator_loss"] < history[0]["generator_loss"]
    assert history[-1]["lm_loss"] < 0.5 * history[0]["lm_loss"]
    assert history[-1]["rtd_loss"] < math.log(2)


def test_a_head_at_the_decoder_reads_its_hidden_states():
    trainer = MetroPretrainer.from_transformers(masked_lm(), seq2seq(), rtd_side="decoder", **SETTINGS)
    out = trainer(tokens())
    out["rtd_loss"].backward()
    assert trainer.rtd_head.out.weight.grad.abs().sum() > 0


def whole(x=None, **settings):
    x = tokens() if x is None else x
    return MetroPretrainer(Restores(x), Embeds(), Writes(), ReplacedTokenDetection(6), **{**SETTINGS, **settings})(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whole(mask_rate=1e-9), "no token of this batch"),
        (lambda: whole(mask_rate=1 - 1e-9), "every token of this batch"),
        (lambda: whole(mask_rate=1.5), "rate is between"),
        (lambda: whole(keep=0.8, random=0.3), "at most 1"),
        (lambda: whole(masking="blocks"), "masking"),
        (lambda: whole(vocabulary=(5, 5)), "vocabulary is"),
        (lambda: whole(rtd_side="both"), "rtd_side is one of"),
        (lambda: whole(lm_positions="some"), "positions is one of"),
        (lambda: whole(lm_weight=-1.0), "not negative"),
        (lambda: MetroPretrainer(None, Embeds(), Writes(), **SETTINGS), "rtd_weight=0"),
        (lambda: MetroPretrainer.from_transformers(masked_lm(40), seq2seq(), **SETTINGS), "knows 40 tokens"),
        (lambda: MetroPretrainer.from_transformers(masked_lm(width=8), seq2seq(), **SETTINGS), "cannot be shared"),
        (lambda: MetroPretrainer.from_transformers(None, masked_lm(), **SETTINGS), "no encoder-decoder"),
        (
            lambda: MetroPretrainer.from_transformers(masked_lm(dropout=0.1), seq2seq(), **SETTINGS).train()(tokens()),
            "with dropout",
        ),
        (
            lambda: MetroPretrainer(Restores(tokens(), 25), Embeds(), Writes(), ReplacedTokenDetection(6), **SETTINGS)(
                tokens()
            ),
            "knows 25 tokens and the decoder 32",
        ),
        (lambda: ReplacedTokenDetection(6)(torch.randn(2, 3, 5)), "expected hidden states"),
        (lambda: ReplacedTokenDetection(0), "at least 1"),
        (lambda: mask_tokens(torch.randn(2, 3), torch.ones(2, 3), 1, (2, 5)), "expected ids"),
        (lambda: span_corruption(tokens(), (30,)), "sentinels"),
        (lambda: span_corruption(torch.randn(2, 3), (30,)), "expected ids"),
        (
            lambda: CorrectiveLM(weighted=True)(
                torch.randn(1, 2, 4), torch.ones(1, 2).long(), torch.ones(1, 2).bool(), torch.ones(1, 2).bool()
            ),
            "needs the logits",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
