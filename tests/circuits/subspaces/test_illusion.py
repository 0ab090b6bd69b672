"""The illusion test on constructed cases whose answer is known, and on models."""

from __future__ import annotations

import pytest
import torch
from toys import random_task, task_of

import architectures
from actinium.circuits import illusion_diagnostics, illusion_test, pca_directions, split_directions, subspace_patch
from actinium.core.errors import InputError, SiteError, UnknownNameError

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


class Dormant:
    """A hidden layer that knows the feature; its read-out is orthogonal to all that it does; the stream answers."""

    def __init__(self, n=2000, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.feature = torch.randint(0, 2, (n,), generator=g).double() * 2 - 1
        self.stream = 0.5 * torch.randn(n, 16, generator=g).double()
        self.stream[:, 0] = self.feature
        self.hidden = torch.nn.functional.gelu(self.stream @ (torch.randn(16, 128, generator=g).double() / 4))
        up, down = self.feature > 0, self.feature < 0
        self.gap = self.hidden[up].mean(0) - self.hidden[down].mean(0)
        known = torch.linalg.qr(torch.cat([self.gap[None], pca_directions(self.hidden, 100)]).T)[0]
        readout = torch.randn(128, generator=g).double()
        readout -= known @ (known.T @ readout)
        self.readout = readout / readout.norm() * 6 / self.gap.norm()
        n = min(int(up.sum()), int(down.sum()))
        up, down = up.nonzero()[:n, 0], down.nonzero()[:n, 0]
        self.base, self.source = torch.cat([up, down]), torch.cat([down, up])

    def difference(self, hidden):
        logit = self.stream[self.base, 0] + (hidden - self.hidden.mean(0)) @ self.readout
        return self.feature[self.base] * logit

    def test(self, direction):
        return illusion_diagnostics(
            direction,
            self.hidden[self.base],
            self.hidden[self.source],
            self.readout,
            self.feature[self.base],
            self.difference,
        )


@pytest.fixture(scope="module")
def dormant():
    return Dormant()


def test_a_constructed_dormant_pathway_is_flagged(dormant):
    mixed = dormant.gap / dormant.gap.norm() + dormant.readout / dormant.readout.norm()
    found = dormant.test(mixed)
    flips = found["interchange_accuracy"]
    assert float(flips.sel(patch="subspace")) == 1
    assert [float(flips.sel(patch=p)) for p in ("full", "null", "row")] == [0, 0, 0]
    assert (int(found["illusory"]), int(found["faithful"]), int(found["exceeds_full"])) == (1, 0, 1)
    # The read-out gets a shift of half the gap times its length, +-3, against a clean logit of +-1.
    assert float(found["fldd"].sel(patch="subspace")) == pytest.approx(3.0, abs=0.05)
    assert found["share"].values == pytest.approx([1, 0.5, 0.5])
    assert float(found["correlation"].sel(part="null")) > 0.95
    assert float(found["correlation"].sel(part="row")) < 0.05
    assert float(found["variance_ratio"]) > 100


def test_neither_half_of_the_dormant_pathway_does_anything_alone(dormant):
    for direction in (dormant.gap, dormant.readout):
        found = dormant.test(direction)
        assert float(found["interchange_accuracy"].sel(patch="subspace")) == 0
        assert abs(float(found["fldd"].sel(patch="subspace"))) < 0.01
        assert (int(found["illusory"]), int(found["faithful"])) == (0, 0)


def test_the_published_toy_is_split_as_stated():
    x = torch.tensor([3.0, -5.0, 2.0, -1.0]).double()
    base, source = (v[:, None] * torch.tensor([1.0, 0, 1]).double() for v in (x, x[[1, 0, 3, 2]]))
    readout = torch.tensor([0.0, 2, 1])
    labels = x > 0

    def difference(h):
        return (h @ readout.double()) * torch.sign(x)

    # Along e1 nothing is read; e2 is read and silent; the read-out also holds the true e3.
    found = illusion_diagnostics([1.0, 1, 0], base, source, readout, labels, difference)
    assert float(found["interchange_accuracy"].sel(patch="subspace")) == 1
    assert float(found["fldd"].sel(patch="row, same shift")) == pytest.approx(
        float(found["fldd"].sel(patch="subspace")), abs=1e-9
    )
    kernel = illusion_diagnostics([1.0, 0, 0], base, source, readout, labels, difference)
    assert float(kernel["share"].sel(part="null")) == pytest.approx(1)
    assert float(kernel["fldd"].sel(patch="subspace")) == pytest.approx(0, abs=1e-12)
    silent = illusion_diagnostics([0, 1.0, 0], base, source, [0.0, 1, 0], labels)
    assert silent["correlation"].values.tolist() == [0, 0, 0]
    assert silent["d_prime"].values.tolist() == [0, 0, 0]
    assert "fldd" not in silent.data


def test_a_direction_that_is_read_and_carries_the_feature_is_faithful(dormant):
    stream, base, source = dormant.stream, dormant.base, dormant.source
    labels = dormant.feature[base]
    first = torch.eye(16)[0]
    found = illusion_diagnostics(first, stream[base], stream[source], first, labels, lambda h: labels * h[:, 0])
    assert float(found["fldd"].sel(patch="row")) == pytest.approx(2)
    assert (int(found["illusory"]), int(found["faithful"])) == (0, 1)


def test_correlation_and_distance_are_those_of_the_coordinates():
    g = torch.Generator().manual_seed(0)
    acts = torch.randn(60, 5, generator=g).double()
    labels = torch.arange(60) % 2 == 0
    acts[:, 1] += 0.8 * labels
    base, source = acts[:30], acts[30:]
    v = torch.tensor([1.0, 2, 0, 0, 1]).double()
    found = illusion_diagnostics(v, base, source, torch.eye(5), labels[:30], source_labels=~labels[:30])
    of = torch.cat([labels[:30], ~labels[:30]])
    z = torch.cat([base, source]) @ v
    want = torch.corrcoef(torch.stack([z, of.double()]))[0, 1].abs()
    assert float(found["correlation"].sel(part="subspace")) == pytest.approx(float(want))
    pooled = torch.cat([z[of] - z[of].mean(), z[~of] - z[~of].mean()]).square().sum() / (len(z) - 2)
    distance = (z[of].mean() - z[~of].mean()).abs() / pooled.sqrt()
    assert float(found["d_prime"].sel(part="subspace")) == pytest.approx(float(distance))


def test_a_split_is_orthogonal_and_copes_with_a_read_out_of_deficient_rank():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(12, 2, generator=g).double() @ torch.randn(2, 8, generator=g).double()
    split = split_directions(torch.linalg.qr(torch.randn(8, 3, generator=g).double())[0].T, low)
    assert torch.allclose(split.null + split.row, split.directions)
    assert float((split.null @ low.T).abs().max()) < 1e-12
    assert float((split.null @ split.row.T).abs().max()) < 1e-12
    assert split.share == pytest.approx(float(split.null.square().sum()) / 3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_on_models_the_null_part_is_silent_and_the_same_shift_gives_the_same_output(name):
    model, task = architectures.shared(name), random_task(rows=4, padding=(2,))
    v = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    found = illusion_test(model, task, "blocks.1.mlp.post", torch.linalg.qr(v.T)[0].T, labels=[0, 1, 0, 1])
    fldd = {p: float(found["fldd"].sel(patch=p)) for p in found["patch"].values}
    assert abs(fldd["null"]) < 1e-5
    assert fldd["row, same shift"] == pytest.approx(fldd["subspace"], abs=1e-4)
    assert abs(fldd["subspace"]) > 1e-4
    other = subspace_patch(model, task, "blocks.1.mlp.post", torch.linalg.qr(v.T)[0].T, positions=-1, mode="both")
    for ours, theirs in (("subspace", "subspace"), ("full", "full")):
        assert fldd[ours] == pytest.approx(float(other["fldd"].sel(patch=theirs)), abs=1e-4)


def test_one_head_and_other_positions_in_each_row():
    model, task = architectures.shared("llama"), random_task(rows=4)
    v = torch.randn(6, generator=torch.Generator().manual_seed(1))
    where = torch.tensor([2, -1, 4, -3])
    options = {"head": 2, "labels": [0, 1, 0, 1], "position": where}
    one = illusion_test(model, task, "blocks.1.attn.z", v, **options)
    parts = illusion_test(model, task, "blocks.1.attn.z", v, **options, batch_size=3)
    assert parts["fldd"].values == pytest.approx(one["fldd"].values, abs=1e-5)
    # A head of six dimensions is read whole.
    assert float(one["share"].sel(part="null")) == pytest.approx(0, abs=1e-12)
    patched = subspace_patch(
        model, task, "blocks.1.attn.z", v, heads=2, positions=where[:, None], mode="both", compare=False
    )
    assert float(one["fldd"].sel(patch="subspace")) == pytest.approx(float(patched["fldd"][0]), abs=1e-4)


def test_the_answer_is_the_label_where_the_task_has_two(tmp_path):
    task = random_task(rows=4)
    two = task_of(task.clean_ids, task.corrupt_ids, [5, 25, 5, 25], [25, 5, 25, 5])
    model, v = architectures.shared("llama"), torch.ones(48)
    implicit = illusion_test(model, two, "blocks.1.mlp.post", v)
    explicit = illusion_test(model, two, "blocks.1.mlp.post", v, labels=[0, 1, 0, 1])
    assert implicit["correlation"].equals(explicit["correlation"])
    implicit.plot()
    implicit.save(tmp_path / "found.zarr")
    assert type(implicit).load(tmp_path / "found.zarr") == implicit


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, InputError, "more than two answers"),
        ({"labels": [1, 1, 1]}, InputError, "two values"),
        ({"labels": [0, 1]}, InputError, "one label"),
        ({"site": "blocks.1.resid_post", "directions": torch.ones(32)}, InputError, "give readout="),
        ({"readout": torch.ones(3, 8)}, InputError, "read-out of 48 entries"),
        ({"readout": torch.zeros(3, 48)}, InputError, "zero"),
        ({"directions": torch.ones(8)}, InputError, "8 entries, the activations 48"),
        ({"position": 9}, InputError, "outside a prompt"),
        ({"mode": "all"}, UnknownNameError, "mode"),
        ({"site": "blocks.*.mlp.post"}, InputError, "means 3 sites"),
        ({"site": "blocks.1.mlp.pos"}, SiteError, "mlp.post"),
    ],
)
def test_what_cannot_be_tested_is_refused(change, error, message):
    options = {"site": "blocks.1.mlp.post", "directions": torch.ones(48), "labels": [0, 1, 0], **change}
    with pytest.raises(error, match=message):
        illusion_test(architectures.shared("llama"), random_task(), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": torch.ones(3, 4)}, "differ in shape"),
        ({"labels": [1, 1, 1, 1]}, "two values"),
        ({"source_labels": [1, 1, 0, 0]}, "same label in 2 of 4"),
        ({"outcome": lambda h: h}, "one logit difference"),
    ],
)
def test_activations_that_do_not_fit_are_refused(change, message):
    random = torch.Generator().manual_seed(0)
    base, source = torch.randn(4, 5, generator=random), torch.randn(4, 5, generator=random)
    given = {"directions": torch.ones(5), "base": base, "source": source, "readout": torch.eye(5)}
    with pytest.raises(InputError, match=message):
        illusion_diagnostics(**{**given, "labels": [0, 1, 0, 1], **change})
