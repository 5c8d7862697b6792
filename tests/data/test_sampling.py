"""Batches are a function of (seed, epoch, step, rank), and a stopped epoch goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data import sampling
from lightning_maxmargin.data.sampling import BatchLoader, epoch_order


def data(n: int) -> Sequences:
    return Sequences(torch.arange(n * 2.0).view(n, 2, 1), torch.ones(n))


@contextmanager
def process(rank: int, world: int) -> Iterator[None]:
    """Plays one of the processes of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sampling,
            "dist",
            SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: rank, get_world_size=lambda: world),
        )
        yield


def indices(loader: BatchLoader, epoch: int = 0) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)
    return [batch.index.tolist() for batch in loader]


settings_of_a_loader = {
    "n": st.integers(1, 13),
    "batch_size": st.one_of(st.none(), st.integers(1, 15)),
    "shuffle": st.booleans(),
    "seed": st.integers(0, 5),
    "epoch": st.integers(0, 5),
}


@settings(deadline=None, max_examples=100)
@given(world=st.integers(2, 5), **settings_of_a_loader)
def test_union_over_ranks_is_the_batch_of_one_process(
    n: int, batch_size: int | None, shuffle: bool, seed: int, epoch: int, world: int
) -> None:
    alone = indices(BatchLoader(data(n), batch_size, shuffle, seed), epoch)
    parts = []
    for rank in range(world):
        with process(rank, world):
            loader = BatchLoader(data(n), batch_size, shuffle, seed)
            parts.append(indices(loader, epoch))
            # Every process takes as many steps, also with empty parts.
            assert len(parts[-1]) == len(loader) == len(alone)
    for step, batch in enumerate(alone):
        shares = [part[step] for part in parts]
        # Dealt out in turn: nothing is padded, dropped or seen twice, and sizes differ by one at most.
        assert [batch[rank::world] for rank in range(world)] == shares
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(deadline=None, max_examples=100)
@given(**settings_of_a_loader)
def test_an_epoch_sees_every_sequence_once(
    n: int, batch_size: int | None, shuffle: bool, seed: int, epoch: int
) -> None:
    loader = BatchLoader(data(n), batch_size, shuffle, seed)
    batches = indices(loader, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    size = min(batch_size or n, n)
    assert len(loader) == len(batches) == math.ceil(n / size)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    # The same loader, a fresh one, and one that has been through other epochs agree.
    other = BatchLoader(data(n), batch_size, shuffle, seed)
    indices(other, epoch + 1)
    assert indices(loader, epoch) == indices(other, epoch) == batches


def test_a_part_may_be_empty_and_keeps_its_shape() -> None:
    with process(2, 3):
        batches = list(BatchLoader(data(5), batch_size=2))
    assert [len(b) for b in batches] == [0, 0, 0]
    assert batches[0].keys.shape == (0, 2, 1)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {(s, e): tuple(epoch_order(20, s, e, shuffle=True).tolist()) for s in range(4) for e in range(4)}
    assert len(set(orders.values())) == 16
    torch.manual_seed(123)
    torch.rand(7)
    state = torch.get_rng_state()
    assert all(tuple(epoch_order(20, s, e, shuffle=True).tolist()) == order for (s, e), order in orders.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert epoch_order(4, 3, 2, shuffle=False).tolist() == [0, 1, 2, 3]


def test_known_order() -> None:
    """A change of the generator would change every run that is resumed after an update."""
    assert sorted(epoch_order(6, 1, 2, shuffle=True).tolist()) == list(range(6))
    want = torch.randperm(6, generator=torch.Generator().manual_seed(1_000_005)).tolist()
    assert epoch_order(6, 1, 2, shuffle=True).tolist() == want


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_resumed_epoch_gives_the_same_remaining_batches(done: int, world: int) -> None:
    for rank in range(world):
        with process(rank, world):
            loader = BatchLoader(data(17), 4, shuffle=True, seed=3)
            whole, following = indices(loader, 2), indices(loader, 3)
            loader.sampler.set_epoch(2)
            list(islice(iter(loader), done))
            state = loader.state_dict()
            resumed = BatchLoader(data(17), 4, shuffle=True, seed=3)
            resumed.load_state_dict(state)
            assert indices(resumed, 2) == whole[done:]
            # Once: the next epoch starts afresh.
            assert indices(resumed, 3) == following


@pytest.mark.parametrize("batch_size", [None, 4, 17])
def test_after_the_last_batch_the_state_is_zero(batch_size: int | None) -> None:
    loader = BatchLoader(data(17), batch_size)
    # As Lightning does: it stops at len() without asking for the batch after the last.
    list(islice(iter(loader), len(loader)))
    assert loader.state_dict() == {"next": 0}
    resumed = BatchLoader(data(17), batch_size)
    resumed.load_state_dict(loader.state_dict())
    assert len(indices(resumed)) == len(loader)


def test_state_counts_the_batch_in_hand() -> None:
    loader = BatchLoader(data(10), 3)
    assert loader.state_dict() == {"next": 0}
    for step, _ in enumerate(loader, start=1):
        assert loader.state_dict() == {"next": step % 4}


def test_an_abandoned_epoch_leaves_no_trace() -> None:
    loader = BatchLoader(data(10), 3)
    next(iter(loader))
    assert indices(loader) == indices(BatchLoader(data(10), 3))


def test_full_batch_is_the_data_itself() -> None:
    """No copy of the whole set at every step."""
    whole = data(6)
    (batch,) = BatchLoader(whole, None, shuffle=True)
    assert batch is whole
    with process(1, 2):
        loader = BatchLoader(whole)
        (first,), (second,) = list(loader), list(loader)
    assert first is second
    assert first.index.tolist() == [1, 3, 5]
