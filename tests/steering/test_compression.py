"""Activation-steered compression: its vector, where it is added, and what is measured."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.steering.activation_steered_compression import ActivationSteeredCompression, length_sweep
from actinium.world import reasoning

SITE = "blocks.2.resid_post"


@pytest.fixture(scope="module")
def asked():
    return reasoning.pairs(24)


def columns(rows):
    return [r.prompt for r in rows], [r.concise for r in rows], [r.verbose for r in rows]


@pytest.fixture(scope="module")
def fitted(lm, asked):
    return ActivationSteeredCompression(SITE, "mean_rationale").fit(lm, *columns(asked))


def test_the_vector_is_the_mean_difference_at_the_token_read(lm, asked):
    problems, concise, verbose = columns(asked[:4])
    last = ActivationSteeredCompression(SITE).fit(lm, problems, concise, verbose)
    mean = ActivationSteeredCompression(SITE, "mean_rationale").fit(lm, problems, concise, verbose)
    ends, means = [], []
    for q, s, b in zip(problems, concise, verbose, strict=True):
        skip = len(lm.to_tokens(q).ids[0])
        rows = [lm.record(q + r, SITE)[SITE][0] for r in (s, b)]
        ends.append(rows[0][-1] - rows[1][-1])
        means.append(rows[0][skip:].mean(0) - rows[1][skip:].mean(0))
    assert torch.allclose(last.direction, torch.stack(ends).mean(0), atol=1e-4)
    assert torch.allclose(mean.direction, torch.stack(means).mean(0), atol=1e-4)
    assert -1 <= mean.stability_ <= 1


def test_the_sites_of_the_authors_program_are_one_block_apart(lm, asked, tmp_path):
    rows = columns(asked[:4])
    one = ActivationSteeredCompression(SITE, read_at="blocks.2.resid_pre").fit(lm, *rows)
    below = ActivationSteeredCompression("blocks.2.resid_pre").fit(lm, *rows)
    assert one.vector_.sites == [SITE] and torch.equal(one.direction, below.direction)
    back = ActivationSteeredCompression.load(one.save(tmp_path / "asc.safetensors"))
    assert back.get_params() == one.get_params() and back.read_at == "blocks.2.resid_pre"
    with pytest.raises(InputError, match="wide"):
        ActivationSteeredCompression(SITE, read_at="blocks.2.mlp.post").fit(lm, *rows)


def test_halves_hold_pairs_of_both_kinds(lm, asked):
    # Facts and sums alternate: even and odd numbers would compare the two kinds.
    mixed = ActivationSteeredCompression(SITE).fit(lm, *columns(asked))
    facts, sums = (ActivationSteeredCompression(SITE).fit(lm, *columns(asked[kind::2])) for kind in (0, 1))
    kinds = torch.nn.functional.cosine_similarity(facts.direction, sums.direction, dim=0)
    assert mixed.stability_ > float(kinds)


def test_texts_longer_than_the_context_are_refused(lm, asked):
    problems, concise, verbose = columns(asked[:2])
    with pytest.raises(InputError, match="longer than the model's context"):
        ActivationSteeredCompression(SITE).fit(lm, problems, concise, [verbose[0] * 20, verbose[1]])


def test_exchanged_rationales_turn_the_vector_round(lm, asked, fitted):
    problems, concise, verbose = columns(asked)
    with pytest.raises(InputError, match="exchanged"):
        ActivationSteeredCompression(SITE).fit(lm, problems, verbose, concise)
    with pytest.warns(ActiniumWarning, match="not shorter"):
        half = [v if i % 3 else c for i, (c, v) in enumerate(zip(concise, verbose, strict=True))]
        rest = [c if i % 3 else v for i, (c, v) in enumerate(zip(concise, verbose, strict=True))]
        one = ActivationSteeredCompression(SITE).fit(lm, problems, half, rest)
        two = ActivationSteeredCompression(SITE).fit(lm, problems, rest, half)
    assert torch.allclose(one.direction, -two.direction, atol=1e-4)


def test_only_the_last_token_of_the_prompt_is_steered(lm, asked, fitted):
    prompt = asked[0].prompt
    plain = lm.logits(prompt)
    with fitted.apply(lm, 1.0):
        steered = lm.logits(prompt)
    assert torch.equal(steered[:, :-1], plain[:, :-1]) and not torch.equal(steered[:, -1], plain[:, -1])
    with fitted.apply(lm, 0.0):
        assert torch.equal(lm.logits(prompt), plain)


def test_files_keep_vector_and_settings(fitted, tmp_path):
    back = ActivationSteeredCompression.load(fitted.save(tmp_path / "asc.safetensors"))
    assert torch.equal(back.direction, fitted.direction) and back.get_params() == fitted.get_params()
    assert back.stability_ == fitted.stability_ and back.vector_.made == fitted.vector_.made
    with pytest.raises(InputError, match="not of activation"):
        ActivationSteeredCompression.load(ac.steering.SteeringVector({SITE: torch.ones(3)}).save(tmp_path / "v"))


def test_the_sweep_measures_length_and_accuracy_of_what_is_generated(lm, asked, fitted):
    rows = reasoning.pairs(6, split="heldout")
    prompts = [r.prompt for r in rows]

    def judge(i, text):
        return text.strip().removesuffix(".").endswith(rows[i].answer)

    found = length_sweep(lm, fitted.vector_, prompts, [0.5], judge, max_new_tokens=40, batch_size=4)
    table = found.table()
    assert list(table["strength"]) == [0.0, 0.5]
    sizes = []
    for row in rows:
        ids = lm.generate(lm.to_tokens(row.prompt).ids, max_new_tokens=40, do_sample=False)[0]
        new = ids[len(lm.to_tokens(row.prompt).ids[0]) :].tolist()
        sizes.append(new.index(lm.tokenizer.eos_token_id) if lm.tokenizer.eos_token_id in new else len(new))
    assert float(table["tokens"][0]) == pytest.approx(sum(sizes) / len(sizes))
    assert float(table["compression"][0]) == 0 and float(table["kl"][0]) == 0 and float(table["kl"][1]) > 0
    assert float(table["accuracy"][0]) > 0.5
    begun = [p + "<think>" for p in prompts]
    inside = length_sweep(lm, fitted.vector_, prompts[:1], [0.5], judge, max_new_tokens=2, contexts=begun)
    want = ac.steering.measured_kl(lm, SITE, fitted.direction, begun, 0.5)
    assert float(inside.table()["kl"][1]) == pytest.approx(want)


def test_replies_end_at_every_token_that_ends_the_models_generation(fitted):
    model = ac.load("world:lm")
    prompts = [r.prompt for r in reasoning.pairs(3, split="heldout")]
    ids = model.generate(model.to_tokens(prompts[0]).ids, max_new_tokens=40, do_sample=False)[0].tolist()
    new = ids[len(model.to_tokens(prompts[0]).ids[0]) :]
    other = new[4]
    model.module.generation_config.eos_token_id = [model.tokenizer.eos_token_id, other]
    found = length_sweep(model, fitted.vector_, prompts[:1], [0.5], lambda i, text: True, max_new_tokens=40)
    assert float(found["tokens"].sel(strength=0.0)) == new.index(other)
    assert float(found["truncated"].sel(strength=0.0)) == 0


def test_the_coefficient_keeps_to_its_budget(lm, asked, fitted):
    contexts = [r.prompt for r in asked[:8]]
    strength = fitted.coefficient(lm, contexts, 0.05, "exact")
    kl = ac.steering.measured_kl(lm, SITE, fitted.direction, contexts, strength)
    assert kl == pytest.approx(0.05, rel=1e-2)
    assert fitted.coefficient(lm, contexts, 0.05, "hoeffding") <= fitted.coefficient(lm, contexts, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concise": lambda c: c[:-1]}, "both rationales"),
        ({"concise": lambda c: ["", *c[1:]]}, "empty"),
    ],
)
def test_bad_rationales_are_refused(lm, asked, change, message):
    given = dict(zip(("problems", "concise", "verbose"), columns(asked), strict=True))
    for name, function in change.items():
        given[name] = function(given[name])
    with pytest.raises(InputError, match=message):
        ActivationSteeredCompression(SITE).fit(lm, **given)


def test_senseless_settings_are_refused(lm, asked, fitted):
    with pytest.raises(InputError, match="token must be"):
        ActivationSteeredCompression(SITE, "first").fit(lm, *columns(asked))
    with pytest.raises(InputError, match="means 6 sites"):
        ActivationSteeredCompression("blocks.*.resid_post").fit(lm, *columns(asked))
    with pytest.raises(InputError, match="list of prompts"):
        length_sweep(lm, fitted.vector_, [], [1.0], lambda i, text: True)
