"""Batches hold every row once an epoch, in an order as good as a permutation, and go on where they stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import actinium as ac
from actinium.store.batches import BLOCK, BUFFER, order
from actinium.store.mixing import PARTS, Batch, Fill, mixture
from actinium.store.selection import Selection

SITE = "module:same"


@pytest.mark.parametrize(
    "options", [{}, {"block": 1}, {"block": 7, "buffer": 100}, {"shuffle": False}, {"workers": 0}, {"workers": 3}]
)
def test_every_row_comes_once(array_store, options):
    parts = list(array_store.batches(SITE, 64, **options))
    assert [len(p) for p in parts] == [64] * 62 + [32]
    assert sorted(torch.cat(parts)[:, 0].tolist()) == list(range(4000))


def test_short_batches_can_be_dropped(array_store):
    batches = array_store.batches(SITE, 64, drop_last=True)
    assert len(batches) == len(list(batches)) == 62


def test_unshuffled_batches_are_in_order(array_store):
    whole = torch.cat(list(array_store.batches(SITE, 100, shuffle=False)))
    assert torch.equal(whole, array_store[SITE][:])


def test_rows_belong_to_their_values(array_store):
    for rows, values in array_store.batches(SITE, 50, with_rows=True, dtype=torch.float64):
        assert values.dtype == torch.float64
        assert torch.equal(rows.double(), values[:, 0])


def test_several_sites_come_with_the_same_rows(packed):
    sites = ["blocks.1.resid_post", "blocks.2.attn.z"]
    for rows, values in packed.batches(sites, 200, with_rows=True):
        for site in sites:
            assert torch.equal(values[site], packed.rows(site, rows))


def test_epochs_and_seeds_differ_and_repeat(array_store):
    def one(batches):
        return torch.cat(list(batches))[:, 0].tolist()

    batches = array_store.batches(SITE, 64, seed=5)
    first, second = one(batches), one(batches)
    assert first != second
    again = array_store.batches(SITE, 64, seed=5)
    assert [one(again), one(again)] == [first, second]
    assert one(array_store.batches(SITE, 64, seed=6)) != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 40, 62, 63, 100])
def test_iteration_goes_on_from_its_state(array_store, workers, stop):
    def run(batches):
        while True:
            yield from batches

    options = {"block": 16, "buffer": 256, "seed": 2}
    whole = run(array_store.batches(SITE, 64, **options))
    expected = [next(whole) for _ in range(140)]
    begun = array_store.batches(SITE, 64, workers=workers, **options)
    source = run(begun)
    for _ in range(stop):
        next(source)
    state = json.loads(json.dumps(begun.state_dict()))
    later = array_store.batches(SITE, 64, workers=workers, **options)
    later.load_state_dict(state)
    rest = run(later)
    assert all(torch.equal(next(rest), want) for want in expected[stop:])


def test_the_state_of_another_iteration_is_refused(array_store, packed):
    state = array_store.batches(SITE, 64).state_dict()
    with pytest.raises(ac.errors.InputError, match="another size"):
        array_store.batches(SITE, 32).load_state_dict(state)
    with pytest.raises(ac.errors.InputError, match="another store"):
        packed.batches("blocks.1.resid_post", 64).load_state_dict(state)
    with pytest.raises(ac.errors.InputError, match="not the state"):
        array_store.batches(SITE, 64).load_state_dict({"epoch": 1})


def test_bad_sizes_are_refused(array_store):
    for options in ({"size": 0}, {"size": 10, "workers": -1}, {"size": 10, "block": 0}, {"size": 10, "buffer": 5}):
        with pytest.raises(ac.errors.InputError):
            array_store.batches(SITE, **options)


# Quality of the shuffle ---------------------------------------------------------------------------------------


def together(batches, total, neighbours):
    """Pairs of rows at most so far apart on the disk that share a batch, over the number that chance gives."""
    where = np.empty(total, np.int64)
    for number, rows in enumerate(batches):
        where[rows] = number
    met = sum(int((where[:-d] == where[d:]).sum()) for d in range(1, neighbours + 1))
    pairs = sum(total - d for d in range(1, neighbours + 1))
    return met / pairs / (len(batches[0]) / total)


TOTAL, SIZE = 2_000_000, 2048


def rows_of(selection, size, seed, block, buffer):
    return [e.rows for e in mixture(selection, size, seed, 0, block, buffer) if isinstance(e, Batch)]


def test_a_store_that_fits_the_buffer_is_permuted_exactly():
    rows = rows_of(Selection.all(200_000), SIZE, 0, 256, 1 << 18)
    assert together(rows, 200_000, 8) == pytest.approx(1, abs=0.05)
    # The rank correlation of a permutation of n has the standard deviation 1 / sqrt(n).
    flat = np.concatenate(rows)
    assert abs(np.corrcoef(flat, np.arange(len(flat)))[0, 1]) < 4 / len(flat) ** 0.5


def test_single_rows_as_blocks_are_permuted_exactly():
    rows = list(order(Selection.all(400_000), SIZE, 0, 0, True))
    assert together(rows, 400_000, 8) == pytest.approx(1, abs=0.06)


def test_a_larger_store_is_mixed():
    block, buffer = BLOCK, BUFFER
    rows = rows_of(Selection.all(TOTAL), SIZE, 0, block, buffer)
    flat = np.concatenate(rows)
    assert np.array_equal(np.sort(flat), np.arange(TOTAL))
    # Others of its block that a row meets in its batch: as many as the mixture holds, two in 2048.
    where = np.empty(TOTAL, np.int64)
    for number, batch in enumerate(rows):
        where[batch] = number
    mates = np.mean([np.sum(b[:, None] == b) - len(b) for b in where[: 64 * 500].reshape(500, 64)]) / 64
    assert mates == pytest.approx((block - 1) * SIZE / buffer, rel=0.15)
    # Every part of the store is in every part of the epoch: the share of each tenth in each tenth, which holds some
    # 312 blocks, so that the standard deviation of an even draw is 0.057.
    tenths = np.histogram2d(flat, np.arange(TOTAL), bins=10)[0] / (TOTAL / 100)
    assert abs(tenths - 1).max() < 4 * 0.057


@given(
    st.integers(1, 400),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(1, 120),
    st.integers(0, 2**70),
    st.lists(st.booleans(), min_size=1, max_size=300),
)
def test_any_selection_is_given_out_once(total, size, block, buffer, seed, chosen):
    mask = np.resize(np.array(chosen), total)
    selection = Selection.where(mask)
    mixed = rows_of(selection, size, seed, block, max(buffer, size))
    for rows in (mixed, list(order(selection, size, seed, 1, True)), list(order(selection, size, seed, 1, False))):
        assert all(len(r) == size for r in rows[:-1])
        flat = np.concatenate(rows) if rows else np.zeros(0)
        assert np.array_equal(np.sort(flat), np.flatnonzero(mask))


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 40), st.integers(1, 120), st.integers(0, 99))
def test_what_is_given_out_is_in_its_slab_at_that_time(total, size, block, buffer, seed):
    slots: dict[int, tuple[int, np.ndarray]] = {}
    for event in mixture(Selection.all(total), size, seed, 0, block, max(buffer, size)):
        if isinstance(event, Fill):
            rows = np.concatenate([np.arange(a, b) for a, b in event.ranges])
            slots[event.number % (PARTS + 2)] = (event.number, rows)
            continue
        for slab, place, row in zip(event.slabs, event.places, event.rows, strict=True):
            number, rows = slots[slab % (PARTS + 2)]
            assert number == slab
            assert rows[place] == row
