"""Exchanging a subspace: the formula, the metrics, and the sweep on real models."""

from __future__ import annotations

import pytest
import torch
from toys import random_task, task_of

import architectures
from actinium.circuits import fractional_decrease, interchange, patch, subspace_patch
from actinium.core.edits import Fn
from actinium.core.errors import ActiniumWarning, InputError, SiteError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
SITE = "blocks.1.resid_pre"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_published_toy_flips_along_the_mixed_direction_and_the_true_one_alone():
    readout = torch.tensor([0.0, 2.0, 1.0])
    base, source = 3 * torch.tensor([1.0, 0, 1]), -5 * torch.tensor([1.0, 0, 1])
    got = [float(interchange(base, source, d) @ readout) for d in ([1.0, 1, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])]
    assert got == pytest.approx([-5, 3, 3, -5], abs=1e-6)


def test_exchange_is_a_projection():
    u, w = drawn(4, 8).double(), drawn(4, 8, seed=1).double()
    basis = torch.linalg.qr(drawn(8, 8, seed=2).double())[0].T
    assert torch.allclose(interchange(u, w, basis), w)
    once = interchange(u, w, basis[:3])
    assert torch.allclose(interchange(once, w, basis[3:]), w)
    assert torch.allclose(interchange(once, w, basis[:3]), once)
    v = drawn(8, seed=3).double()
    want = u + ((w - u) @ v)[:, None] * v / (v @ v)
    for scale in (1.0, -1.0, 1e3):
        assert torch.allclose(interchange(u, w, scale * v), want)


def test_directions_that_are_not_orthogonal_are_warned_of_and_their_span_is_used():
    u, w = drawn(4, 8).double(), drawn(4, 8, seed=1).double()
    basis = torch.linalg.qr(drawn(8, 2, seed=2).double())[0].T
    with pytest.warns(ActiniumWarning, match="not orthogonal"):
        got = interchange(u, w, torch.stack([basis[0], basis[0] + 0.5 * basis[1]]))
    assert torch.allclose(got, interchange(u, w, basis))


def test_fractional_decrease_is_of_means_and_counts_a_flip_as_two():
    base = torch.tensor([1.0, 3.0])
    assert fractional_decrease(base, torch.stack([base, torch.zeros(2), -base])).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="neither answer"):
        fractional_decrease(torch.tensor([1.0, -1.0]), base)


def by_hand(model, task, site, basis, where):
    """Logit differences (answer - wrong) of clean runs with the corrupt runs' part in a subspace, and of clean runs."""
    tokens = [Tokens(ids, task.mask, torch.arange(len(task))) for ids in (task.clean_ids, task.corrupt_ids)]
    source = model.record(tokens[1], site)[site]

    def exchange(x):
        new = x + (source - x) @ basis.T @ basis
        return torch.where(where[:, :, None], new, x)

    out = []
    with torch.no_grad():
        for edits in ({site: Fn(exchange)}, {site: Fn(lambda x: x)}):
            with model.edit(edits):
                logits = model.logits(tokens[0])[:, -1]
            out.append(logits.gather(1, task.answer_ids[:, None]) - logits.gather(1, task.wrong_ids[:, None]))
    return out[0].double().mean(), out[1].double().mean()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_the_sweep_gives_what_one_edited_pass_gives(name):
    model, task = architectures.shared(name), random_task(padding=(2,))
    basis = torch.linalg.qr(drawn(32, 3))[0].T
    found = subspace_patch(model, task, SITE, basis, positions=-2)
    where = torch.zeros_like(task.mask)
    where[:, -2] = True
    patched, base = by_hand(model, task, SITE, basis, where)
    assert float(found["fldd"].sel(patch="subspace")) == pytest.approx(float(1 - patched / base), rel=1e-3, abs=1e-5)
    assert float(found["base_logit_diff"]) == pytest.approx(float(base), rel=1e-4)


def test_full_patching_is_that_of_patch(lm, ioi):
    found = subspace_patch(lm, ioi, "blocks.3.resid_pre", drawn(128), positions=-1, mode="denoise")
    known = patch(lm, ioi, "blocks.3.resid_pre", over="pos", positions=[-1])
    m_patched, m_corrupt = float(known["patched"][0, 0]), float(known["m_corrupt"])
    assert float(found["fldd"].sel(patch="full")) == pytest.approx(1 - m_patched / m_corrupt, rel=1e-4)
    assert float(found["interchange_accuracy"].sel(patch="full")) > 0.8
    assert abs(float(found["fldd"].sel(patch="random"))) < 0.2
    assert found["random_fldd"].shape == (4,)


def test_the_span_of_all_dimensions_is_the_full_component(lm, ioi):
    head = {"positions": -1, "over": "head", "heads": [4, 5]}
    found = subspace_patch(lm, ioi, "blocks.2.attn.z", {"all": torch.eye(16)}, mode="both", **head)
    assert found["fldd"].dims == ("patch", "head")
    assert found["fldd"].sel(patch="all").values == pytest.approx(found["fldd"].sel(patch="full").values, abs=1e-4)
    assert float(found["flipped"].sel(patch="full", head=4)) > 0.8


def test_both_modes_together_are_the_rows_of_either(lm, ioi):
    basis = torch.linalg.qr(drawn(128, 3))[0].T
    runs = {
        mode: subspace_patch(lm, ioi, SITE, basis, positions=-1, mode=mode, compare=False, batch_size=size)
        for mode, size in (("noise", None), ("denoise", 3), ("both", 5))
    }
    single = [runs[mode]["logit_diff"].values for mode in ("noise", "denoise")]
    assert runs["both"]["logit_diff"].values == pytest.approx(sum(single) / 2, rel=1e-4)


def test_equal_runs_lose_nothing():
    model, task = architectures.shared("llama"), random_task()
    same = task_of(task.clean_ids, task.clean_ids, task.answer_ids, task.wrong_ids)
    found = subspace_patch(model, same, SITE, drawn(32), over="pos")
    assert found["fldd"].shape == (3, 7)
    assert abs(found["fldd"].values).max() < 1e-6


def test_a_result_draws_and_saves_itself(lm, ioi, tmp_path):
    found = subspace_patch(lm, ioi, "blocks.3.resid_pre", {"one": drawn(128)}, positions=-1)
    found.plot()
    found.save(tmp_path / "found.zarr")
    assert type(found).load(tmp_path / "found.zarr") == found


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"directions": torch.zeros(0, 32)}, InputError, "k >= 1"),
        ({"directions": drawn(16)}, InputError, "16 entries, the activations 32"),
        ({"directions": torch.ones(2, 32)}, InputError, "depend on each other"),
        ({"directions": torch.zeros(32)}, InputError, "not zero"),
        ({"directions": {}}, InputError, "no directions"),
        ({"directions": {"full": drawn(32)}}, InputError, "those of the comparisons"),
        ({"site": "blocks.1.attn.z", "directions": drawn(6)}, InputError, "belongs to one head"),
        ({"site": "blocks.1.attn.pattern", "directions": drawn(6)}, InputError, "known size"),
        ({"site": ["blocks.1.mlp.post", "blocks.1.mlp.out"]}, InputError, "differ in width"),
        ({"over": "unit"}, InputError, "not swept over units"),
        ({"draws": 0}, InputError, "draws"),
        ({"mode": "nois"}, UnknownNameError, "noise"),
        ({"site": "blocks.1.resid_pr"}, SiteError, "resid_pre"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(change, error, message):
    options = {"site": SITE, "directions": drawn(32), **change}
    with pytest.raises(error, match=message):
        subspace_patch(architectures.shared("llama"), random_task(), **options)


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(InputError, match="differ in width"):
        interchange(drawn(3, 8), drawn(3, 7), drawn(8))
    with pytest.raises(InputError, match="expected a Task"):
        subspace_patch(architectures.shared("llama"), ["a"], SITE, drawn(32))


def test_a_module_of_any_kind_is_patched():
    class Product(torch.nn.Module):
        """Logit of token 1 is the sum of three copies of the last token's number."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = torch.nn.Linear(1, 3, bias=False)
            self.hidden.weight.data = torch.ones(3, 1)

        def forward(self, ids):
            total = self.hidden(ids.float()[..., None]).sum(-1)
            return torch.stack([torch.zeros_like(total), total], -1)

    model, task = Model(Product()), task_of([[2, 3]], [[2, -1]], [1], [0])
    with pytest.raises(InputError, match="known size"):
        subspace_patch(model, task, "module:hidden", torch.tensor([1.0, 0, 0]))
