"""Distributed alignment search finds the subspace that carries the answer, and says what it did."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from toys import random_task, task_of

import architectures
from actinium.circuits import DAS, TransportOperator, interchange
from actinium.core.edits import Fn
from actinium.core.errors import InputError, LoadError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.world.tasks import sentiment

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
SITE = "blocks.1.resid_post"


@pytest.fixture(scope="module")
def found(lm):
    """A direction of happy and sad, learned on eight pairs in wordings of the training text."""
    train = sentiment(lm, n=8, split="train")
    return DAS("blocks.3.resid_pre", mode="noise", batch_size=4, epochs=20).fit(lm, train)


def test_one_direction_flips_held_out_answers(lm, found):
    test = sentiment(lm, n=16, seed=1)
    result = found.evaluate(lm, test, draws=2)
    fldd = {p: float(result["fldd"].sel(patch=p)) for p in ("DAS", "full", "random")}
    assert fldd["DAS"] > 1.2
    assert abs(fldd["random"]) < 0.1
    assert found.score(lm, test) == float(result["interchange_accuracy"].sel(patch="DAS")) > 0.7
    assert found.loss_[-1] < 0.5 * found.loss_[0]
    assert found.loss_.shape == (20,)
    assert torch.allclose(found.directions_ @ found.directions_.T, torch.eye(1, dtype=torch.float64))


def test_a_search_comes_back_from_disk(found, tmp_path):
    found.save(tmp_path / "search")
    again = DAS.load(tmp_path / "search")
    assert again.get_params() == found.get_params()
    assert torch.equal(again.directions_, found.directions_)
    assert (again.loss_ == found.loss_).all()
    TransportOperator("mean").fit(torch.eye(3), torch.eye(3)).save(tmp_path / "other")
    for name, message in (("absent", "cannot read"), ("other", "is no alignment search")):
        with pytest.raises(LoadError, match=message):
            DAS.load(tmp_path / name)


@pytest.mark.parametrize(("name", "loss"), [("llama", "cross_entropy"), ("gpt2", "logit_diff")])
def test_the_loss_is_that_of_the_patched_run_and_weights_get_no_gradient(name, loss):
    model, task = architectures.shared(name), random_task(padding=(2,))
    search = DAS(SITE, k=3, mode="noise", loss=loss, lr=1e-12, epochs=1, batch_size=10).fit(model, task)
    tokens = [Tokens(ids, task.mask, torch.arange(len(task))) for ids in (task.clean_ids, task.corrupt_ids)]
    source = model.record(tokens[1], SITE)[SITE]

    def exchange(x):
        last = interchange(x[:, -1].detach(), source[:, -1], search.directions_)
        return torch.cat([x[:, :-1], last[:, None]], 1)

    with torch.no_grad(), model.edit({SITE: Fn(exchange)}):
        logits = model.logits(tokens[0])[:, -1]
    rows = torch.arange(len(task))
    want = cross_entropy(logits, task.wrong_ids)
    if loss == "logit_diff":
        want = (logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean()
    assert search.loss_[0] == pytest.approx(float(want), rel=1e-4)
    assert all(p.grad is None for p in model.module.parameters())


def test_the_same_seed_learns_the_same_and_another_starts_elsewhere():
    model, task = architectures.shared("llama"), random_task(rows=4)
    state = torch.random.get_rng_state()
    fits = [DAS("blocks.1.attn.z", head=1, epochs=2, batch_size=3, seed=s).fit(model, task) for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(fits[0].directions_, fits[1].directions_)
    assert not torch.allclose(fits[0].directions_, fits[2].directions_)
    assert fits[0].directions_.shape == (1, 6)


def test_all_dimensions_are_the_full_component_and_positions_may_differ_by_row():
    model, task = architectures.shared("llama"), random_task(rows=4)
    where = torch.tensor([[-1], [3], [2], [-2]])
    search = DAS(SITE, k=32, epochs=1, mode="both").fit(model, task, positions=where)
    result = search.evaluate(model, task, positions=where)
    assert result["fldd"].sel(patch="DAS") == pytest.approx(float(result["fldd"].sel(patch="full")), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, InputError, "k must be from 1 to 32"),
        ({"k": 33}, InputError, "k must be from 1 to 32"),
        ({"epochs": 0}, InputError, "epochs >= 1"),
        ({"lr": 0.0}, InputError, "lr > 0"),
        ({"mode": "noising"}, UnknownNameError, "noise"),
        ({"loss": "cross-entropy"}, UnknownNameError, "cross_entropy"),
        ({"site": "blocks.*.resid_post"}, InputError, "means 3 sites"),
        ({"site": "blocks.1.attn.z"}, InputError, "give head="),
        ({"site": "blocks.1.attn.pattern"}, InputError, "known size"),
        ({"site": "blocks.1.resid_pst"}, SiteError, "resid_post"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, error, message):
    task = random_task()
    with pytest.raises(error, match=message):
        DAS(**{"site": SITE, **options}).fit(architectures.shared("llama"), task)


def test_pairs_without_a_difference_are_refused():
    model, task = architectures.shared("llama"), random_task()
    with pytest.raises(InputError, match="the same at"):
        DAS(SITE).fit(model, task_of(task.clean_ids, task.clean_ids, task.answer_ids, task.wrong_ids))
    with pytest.raises(InputError, match="same answer twice"):
        DAS(SITE).fit(model, task_of(task.clean_ids, task.corrupt_ids, task.answer_ids, task.answer_ids))
    with pytest.raises(InputError, match="call fit"):
        DAS(SITE).score(model, task)
    with pytest.raises(UnknownNameError, match="epochs"):
        DAS(SITE).set_params(epoch=3)
    search = DAS(SITE, positions=slice(1, None), epochs=1).fit(model, task)
    with pytest.raises(InputError, match="cannot be saved"):
        search.save("nowhere")
