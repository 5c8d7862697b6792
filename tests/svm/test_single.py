"""Shards of float32 keys: what they report is what float64 finds in the very same keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_maxmargin.svm import RowProblem, only, solve_att_svm
from lightning_maxmargin.svm.blocks import BlockShards
from lightning_maxmargin.svm.look import Look
from lightning_maxmargin.svm.single import SingleShard, single_shard
from lightning_maxmargin.svm.sizes import single_differences
from lightning_maxmargin.svm.sources import LocalShard, MappedSource, ShardSummary

N, T, D = 60, 16, 12


def drawn(seed: int, dq: int | None, masked: bool, rhs: bool, offset: float = 0.0) -> tuple[Any, ...]:
    """float32 keys, where masked with a copy of a selected one and NaN on padding; right-hand sides, many of them 0."""
    draw = np.random.default_rng(seed)
    keys = (draw.normal(size=(N, T, D)) + offset).astype(np.float32)
    selected = (keys @ draw.normal(size=D)).argmax(1)
    queries = None if dq is None else torch.from_numpy(draw.random((N, dq)))
    mask = None
    if masked:
        keys[3, (selected[3] + 1) % T] = keys[3, selected[3]]
        there = draw.random((N, T)) < 0.7
        there[np.arange(N), selected] = True
        keys[~there] = np.nan
        mask = torch.from_numpy(there)
    asked = torch.from_numpy(draw.integers(3, size=(N, T)) / 2.0) if rhs else None
    return keys, torch.from_numpy(selected), queries, mask, asked


def both(problem: tuple[Any, ...]) -> tuple[SingleShard, LocalShard]:
    keys, selected, queries, mask, rhs = problem
    shard = single_shard(keys, selected, queries, mask, rhs, (100, T + 2, None))
    assert shard is not None
    return shard, LocalShard(RowProblem.attention(torch.from_numpy(keys), selected, queries, mask, rhs), 100, T + 2)


def directions(problem: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    """A random one, the optimal one, and one that misses some rows by less than float32 can tell."""
    keys, selected, queries, mask, rhs = problem
    found = only(solve_att_svm(torch.from_numpy(keys), selected, queries=queries, mask=mask, rhs=rhs)).direction.numpy()
    return [np.random.default_rng(1).normal(size=found.shape), found, found * (1 - 1e-9)]


@pytest.mark.parametrize("dq", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rhs", [False, True])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_what_is_told_is_float64s(dq: int | None, masked: bool, rhs: bool, offset: float) -> None:
    problem = drawn(0, dq, masked, rhs, offset)
    single, double = both(problem)
    np.testing.assert_array_equal(single.live(), double.live())
    np.testing.assert_allclose(single.mean_row(), double.mean_row(), rtol=1e-4, atol=1e-3 * (1 + offset))
    for direction in directions(problem):
        for k in (N * T, 7):
            told, wanted = single.evaluate(direction, k), double.evaluate(direction, k)
            if k > 7:
                np.testing.assert_array_equal(np.sort(told[0].ids), np.sort(wanted[0].ids))
            no_less_deep(told[0], wanted[0], k, 0.0 if k > 7 else 0.1 * (offset > 0))
            assert told[0].smallest == pytest.approx(wanted[0].smallest, rel=1e-13)
            assert told[1].smallest == pytest.approx(wanted[1].smallest, rel=1e-13)
            assert told[1].violation == pytest.approx(wanted[1].violation, rel=1e-9, abs=1e-15)
            assert told[1].tight.tolist() == wanted[1].tight.tolist()
            assert (told[1].merged, told[1].live) == (wanted[1].merged, wanted[1].live)
        no_less_deep(single.worst_rows(direction, 9, True), double.worst_rows(direction, 9, True), 9, 1e-3)


def no_less_deep(told: ShardSummary, wanted: ShardSummary, k: int, by: float) -> None:
    """Which four rows of a sequence fall short most float32 may not tell, and these are of different depths."""
    assert len(told.ids) == len(wanted.ids) <= k
    deep = np.sort(wanted.depth)
    assert (np.sort(told.depth) <= deep + by + 1e-10 * (1 + np.abs(deep))).all()


@pytest.mark.parametrize("dq", [None, 3])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_no_margin_is_below_its_bound(dq: int | None, offset: float) -> None:
    for seed in range(5):
        single, double = both(drawn(seed, dq, False, False, offset))
        direction = np.random.default_rng(seed).normal(size=double.problem.shape)
        look, margins = Look.of(single, direction), double.problem.margins(direction)
        live = double.live()
        lower, lost = look.lower[live] * look.length, look._lost(np.flatnonzero(live)) * look.length
        assert (lower <= margins[live]).all()
        assert (margins[live] <= lower + 2.1 * lost).all()
        assert np.isposinf(look.lower[~live]).all()


@pytest.mark.parametrize("near", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 2.0**-45, 2.0**-60, 2.0**50])
def test_sizes_are_bounds(near: float, scale: float) -> None:
    draw = np.random.default_rng(0)
    keys = ((draw.normal(size=(N, 1, 384)) + near * draw.normal(size=(N, T, 384))) * scale).astype(np.float32)
    selected = draw.integers(T, size=N)
    sizes, chosen = single_differences(keys, selected)
    long = keys.astype(np.float64)
    exact = np.linalg.norm(long[np.arange(N), selected][:, None] - long, axis=2)
    assert (sizes >= exact * (1 - 1e-7)).all()
    assert (sizes <= 1.1 * exact).all()
    own = np.linalg.norm(long[np.arange(N), selected], axis=1)
    assert (chosen >= own * (1 - 1e-7)).all()
    assert (chosen <= own * (1 + 1e-3) + 2.0**-50).all()


@pytest.mark.parametrize("case", ["NaN", "Inf", "squares", "queries", "right-hand sides"])
def test_sizes_that_need_float64(case: str) -> None:
    keys, selected, queries, mask, rhs = drawn(0, 3, False, True)
    keys[5, selected[5], 1] = {"NaN": np.nan, "Inf": np.inf, "squares": 1e25}.get(case, 0.0)
    if case == "queries":
        queries[4] *= 1e-30
    if case == "right-hand sides":
        rhs[4, :] = 1e-200
    assert single_shard(keys, selected, queries, mask, rhs, (0, T, None)) is None


def test_few_rows_are_computed_in_float64_and_four_bytes_a_token_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    keys = draw.normal(size=(400, 64, 16)).astype(np.float32)
    chosen = torch.from_numpy((keys @ draw.normal(size=16)).argmax(1))
    direction = only(solve_att_svm(torch.from_numpy(keys), chosen)).direction.numpy()
    counted: list[int] = []
    parts = SingleShard._parts

    def count(self: SingleShard, ids: Any) -> Any:
        counted.append(len(ids))
        return parts(self, ids)

    monkeypatch.setattr(SingleShard, "_parts", count)
    shards = BlockShards(MappedSource(keys, numbers=40_000), chosen, None, None, None, 64)
    for _ in range(2):
        found = [shard.evaluate(direction, 100)[1] for shard in shards()]
    assert min(part.smallest for part in found) == pytest.approx(1.0, abs=1e-12)
    assert 0 < sum(counted) < 0.01 * keys.shape[0] * keys.shape[1]
    kept = [x for shard in shards._kept.values() for x in vars(shard).values() if isinstance(x, np.ndarray)]
    assert sum(x.nbytes for x in kept) < 4.5 * keys.shape[0] * keys.shape[1]
