"""The adding model: what its recipe declares is what its weights do, and it adds by a few frequencies."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model
from actinium.world import modular, modular_train, shipped
from actinium.world.modular_train import ModularRecipe


@pytest.fixture(scope="module")
def model():
    return ac.load("world:modular")


@pytest.fixture(scope="module")
def recipe():
    return shipped.recipe("modular")


def planted(p, frequencies):
    """Numbers as cosines and sines of some frequencies, of equal weight."""
    n = np.arange(p)[:, None] * 2 * np.pi * np.array(frequencies) / p
    return np.concatenate([np.cos(n), np.sin(n)], 1)


def test_the_declared_recipe_is_the_one_in_the_package(recipe):
    assert recipe["settings"] == json.loads(json.dumps(ModularRecipe().__dict__))
    assert recipe["fingerprint"] == ModularRecipe().fingerprint()
    assert ModularRecipe().fingerprint() != replace(ModularRecipe(), seed=1).fingerprint()


def test_the_model_adds_pairs_that_it_has_not_read(model, recipe):
    held, read = modular.accuracy(model), modular.accuracy(model, "train")
    assert held == pytest.approx(recipe["held_out_accuracy"]["modular"], abs=5e-5) and held >= 0.99
    assert read == recipe["train_accuracy"] == 1


def test_few_frequencies_hold_the_embedding_and_explain_the_logits(model, recipe):
    keys = modular.key_frequencies(model)
    assert keys == recipe["key_frequencies"] and 2 <= len(keys) <= 5
    places = np.array(keys) - 1
    embedded, explained = modular.embedding_spectrum(model), modular.logit_spectrum(model)
    shares = embedded[places].sum(), explained[places].sum()
    assert shares == pytest.approx((recipe["embedding_share"], recipe["logit_share"]), abs=1e-4)
    assert min(shares) > 0.95
    assert set(np.argsort(explained)[-len(keys) :]) == set(places)


def test_without_its_key_frequencies_the_embedding_does_not_add(model):
    module = modular_train.make_model(ModularRecipe())
    module.load_state_dict(model.module.state_dict())
    values = module.transformer.wte.weight[: modular.P].detach()
    basis, _ = np.linalg.qr(planted(modular.P, modular.key_frequencies(model)))
    basis = torch.as_tensor(basis).float()
    mean = values.mean(0)
    kept = mean + basis @ (basis.T @ (values - mean))
    scores = []
    for replaced in (kept, values - kept + mean):
        with torch.no_grad():
            module.transformer.wte.weight[: modular.P] = replaced
        scores.append(modular.accuracy(Model(module.eval())))
    assert scores[0] > 0.95 and scores[1] < 0.1


def test_an_untrained_model_does_not_add_and_has_no_key_frequency():
    fresh = Model(modular_train.make_model(ModularRecipe()).eval())
    assert modular.accuracy(fresh) < 0.06
    assert modular.embedding_spectrum(fresh).max() < 0.1 and modular.logit_spectrum(fresh).sum() < 0.1


def test_the_spectrum_of_cosines_is_their_frequencies():
    found = modular.fourier_spectrum(planted(31, [2, 7]) + 5)
    wanted = np.zeros(15)
    wanted[[1, 6]] = 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(31, 8))
    assert modular.fourier_spectrum(noise).sum() == pytest.approx(1)


def test_the_logit_spectrum_is_a_least_squares_fit(model):
    values = modular.logits(model).double().numpy()
    p = len(values)
    values = values - values.mean(2, keepdims=True)
    a, b, c = np.meshgrid(*(np.arange(p),) * 3, indexing="ij")
    for k in (modular.key_frequencies(model)[0], 5):
        wave = np.cos(2 * np.pi * k * (a + b - c) / p)
        left = values - (values * wave).sum() / (wave**2).sum() * wave
        share = 1 - (left**2).sum() / (values**2).sum()
        assert modular.logit_spectrum(model)[k - 1] == pytest.approx(share, abs=1e-10)


def test_the_fast_forward_pass_is_the_models_own():
    recipe = replace(ModularRecipe(), p=11, d_model=16, d_mlp=24)
    module = modular_train.make_model(recipe).eval()
    with torch.no_grad():
        for parameter in module.transformer.h.parameters():
            if parameter.requires_grad and parameter.ndim == 1:
                parameter.normal_()
        pairs = modular.pairs("all", 11)
        own = module(modular.prompts(pairs, 11)).logits[:, -1]
        torch.testing.assert_close(modular_train.answers(module, pairs), own, atol=1e-5, rtol=1e-5)


def test_training_is_the_same_each_time_and_lowers_the_loss():
    recipe = replace(ModularRecipe(), p=11, d_model=32, d_mlp=64, steps=100, turn=80)
    losses: list[list[float]] = []
    weights = []
    for _ in range(2):
        losses.append([])
        module, tokenizer = modular_train.train(recipe, lambda step, loss: losses[-1].append(loss))
        weights.append(module.transformer.wte.weight)
    assert losses[0] == losses[1] and torch.equal(*weights)
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert tokenizer("3 10 =")["input_ids"] == [3, 10, 11]


def test_splits_are_all_pairs_without_overlap():
    train, held = ({tuple(pair) for pair in modular.pairs(split).tolist()} for split in ("train", "heldout"))
    assert not train & held and len(train) == modular.P**2 // 2
    assert train | held == {(a, b) for a in range(modular.P) for b in range(modular.P)}
    lines = shipped.heldout_text("modular")
    assert {tuple(map(int, line.split(" = ")[0].split())) for line in lines} == held
    assert all((int(a) + int(b)) % modular.P == int(c) for a, b, _, c in map(str.split, lines))


def test_the_task_is_about_unread_pairs_and_the_model_prefers_the_sum(model):
    task = modular.task(64, seed=1, model=model)
    held = {tuple(pair) for pair in modular.pairs().tolist()}
    assert {tuple(row[:2]) for row in task.clean_ids.tolist()} <= held
    assert bool(((task.clean_ids[:, :2].sum(1)) % modular.P == task.answer_ids).all())
    assert bool((task.clean_ids[:, :2] != task.corrupt_ids[:, :2]).all())
    with torch.no_grad():
        found = model.module(task.clean_ids).logits[:, -1]
    values = ac.metrics.get_metric("logit_diff")(found, task.answer_ids, task.wrong_ids)
    assert (values > 0).all()
    assert modular.task(8, seed=1).clean_ids.tolist() == task.clean_ids[:8].tolist()


def test_the_folder_is_small_and_plain(model):
    folder = shipped.path("modular")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6
    assert model.family.name == "GPT-2" and model.n_layers == 1
    assert model.tokenizer("12 50 =")["input_ids"] == [12, 50, modular.P]


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(UnknownNameError, match="heldout"):
        modular.pairs("held")
    with pytest.raises(InputError, match="row"):
        modular.task(0)
    with pytest.raises(InputError, match="odd"):
        modular.fourier_spectrum(torch.ones(4, 2))
    with pytest.raises(InputError, match="constant"):
        modular.fourier_spectrum(torch.ones(5, 2))
    with pytest.raises(InputError, match="between"):
        modular.key_frequencies(model, 1.5)
    with pytest.raises(InputError, match="numbers"):
        modular.logits(Model(torch.nn.Linear(2, 2)))
