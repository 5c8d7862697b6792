"""Keys in blocks and shards: the answer of the problem in one piece, with only the worst rows held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import RowProblem, Solution, certify, certify_infeasible, only, solve_att_svm
from lightning_maxmargin.svm.blocks import BlockShards
from lightning_maxmargin.svm.shards import solve_shards
from lightning_maxmargin.svm.sources import (
    ListedSource,
    LocalShard,
    MappedSource,
    ShardSummary,
    WrittenSource,
    as_source,
)


def problem(
    n: int = 60,
    T: int = 16,
    d: int = 12,
    *,
    dq: int | None = None,
    masked: bool = False,
    rhs: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    selected = (keys @ torch.randn(d, generator=g, dtype=torch.float64)).argmax(1)
    more: dict[str, Any] = {}
    if dq is not None:
        more["queries"] = torch.rand(n, dq, generator=g, dtype=torch.float64)
    if masked:
        mask = torch.rand(n, T, generator=g) < 0.7
        more["mask"] = mask.scatter(1, selected[:, None], True)
        keys[~more["mask"]] = torch.nan
    if rhs:
        more["rhs"] = (torch.rand(n, T, generator=g) < 0.5).double()
    return keys, selected, more


def in_blocks(keys: Tensor, size: int) -> Any:
    def make() -> Iterator[Tensor]:
        yield from keys.split(size)

    return make


def same(blocks: Solution, whole: Solution) -> None:
    assert (blocks.status, blocks.merged) == (whole.status, whole.merged)
    torch.testing.assert_close(blocks.direction, whole.direction, atol=1e-11, rtol=1e-11)
    assert blocks.margin == pytest.approx(whole.margin, rel=1e-12)
    assert blocks.dual.shape == whole.dual.shape
    if whole.status == "certified":
        assert blocks.support.tolist() == whole.support.tolist()
        assert blocks.gap == pytest.approx(whole.gap, abs=1e-11)
        assert blocks.violation == pytest.approx(whole.violation, abs=1e-11)


@pytest.mark.parametrize("dq", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rhs", [False, True])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_blocks_equal_one_piece(dq: int | None, masked: bool, rhs: bool, size: int) -> None:
    keys, selected, more = problem(dq=dq, masked=masked, rhs=rhs)
    whole = solve_att_svm(keys, selected, **more)
    blocks = solve_att_svm(in_blocks(keys, size), selected, **more)
    same(blocks, whole)
    assert whole.status == "certified"
    checked = certify(RowProblem.attention(keys, selected, **more), blocks.direction.numpy(), blocks.dual.numpy())
    assert checked[2] == "certified"


def test_many_rounds() -> None:
    keys, selected, _ = problem(150, 64, 64)
    keys[torch.arange(150), selected] *= 1.3
    whole, blocks = solve_att_svm(keys, selected), solve_att_svm(list(keys.split(40)), selected)
    same(blocks, whole)
    assert blocks.iterations > 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_mapped(tmp_path: Path, dtype: str) -> None:
    keys, selected, _ = problem()
    array = keys.numpy().astype(dtype)
    np.save(tmp_path / "keys.npy", array)
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    source = as_source(mapped)
    assert isinstance(source, MappedSource)
    whole = solve_att_svm(torch.from_numpy(array), selected)
    same(solve_att_svm(mapped, selected), whole)
    small = MappedSource(mapped, numbers=3 * 16 * 12)
    assert [len(block) for _, block in small.blocks()] == [3] * 20
    same(solve_att_svm(small, selected), whole)


@pytest.mark.parametrize("dq", [None, 3])
@pytest.mark.parametrize(
    ("offset", "scale"), [(0.0, 1.0), (1e3, 1.0), (0.0, 2.0**-40), (0.0, 2.0**-55), (0.0, 2.0**60)]
)
def test_products_in_float32_lose_nothing(offset: float, scale: float, dq: int | None) -> None:
    keys, selected, more = problem(dq=dq)
    array = ((keys + offset) * scale).float().numpy()
    written = WrittenSource()
    for start in range(0, len(array), 7):
        written.write(array[start : start + 7])
    whole = solve_att_svm(torch.from_numpy(array), selected, **more)
    assert whole.certified
    blocks = solve_att_svm(written, selected, **more)
    assert (blocks.status, blocks.merged) == (whole.status, whole.merged)
    torch.testing.assert_close(blocks.direction / blocks.direction.norm(), whole.direction / whole.direction.norm())
    assert blocks.margin == pytest.approx(whole.margin, rel=1e-10)
    assert blocks.support.tolist() == whole.support.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["mapped", "listed"])
def test_keys_of_any_dtype_in_blocks(kind: str, dtype: torch.dtype) -> None:
    keys, selected, more = problem(dq=3)
    keys = keys.to(dtype)
    source = MappedSource(keys, numbers=4 * 16 * 12) if kind == "mapped" else ListedSource(list(keys.split(9)))
    whole, blocks = solve_att_svm(keys.double(), selected, **more), solve_att_svm(source, selected, **more)
    assert whole.certified
    assert blocks.certified
    assert blocks.margin == pytest.approx(whole.margin, rel=1e-10)
    assert blocks.support.tolist() == whole.support.tolist()


def test_blocks_of_other_kinds_are_refused() -> None:
    keys, selected, _ = problem()
    with pytest.raises(InputError, match="keys are complex"):
        solve_att_svm(ListedSource([keys.to(torch.complex64)]), selected)
    with pytest.raises(InputError, match=r"block at sequence 0 has shape \[60, 16\]"):
        solve_att_svm(ListedSource([keys[:, :, 0]]), selected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_written_once_and_read_again(dtype: str) -> None:
    keys, selected, more = problem(masked=True)
    mask = more["mask"]
    array = np.where(mask.numpy()[:, :, None], keys.numpy(), 0.0).astype(dtype)
    written = WrittenSource()
    for start in range(0, len(array), 7):
        written.write(array[start : start + 7])
    for _ in range(2):
        assert np.array_equal(np.concatenate([block.copy() for _, block in written.blocks()]), array)
    same(solve_att_svm(written, selected, mask=mask), solve_att_svm(torch.from_numpy(array), selected, mask=mask))
    # Read later than written, and still at its end.
    written.write(array[:1])
    assert [start for start, _ in written.blocks()][-1] == len(array)


def test_ties_and_infeasible() -> None:
    keys, selected, _ = problem()
    keys[40, (selected[40] + 1) % 16] = keys[40, selected[40]]
    same(solve_att_svm(in_blocks(keys, 9), selected), solve_att_svm(keys, selected))
    wrong = (selected + 1) % 16
    blocks = solve_att_svm(in_blocks(keys, 9), wrong)
    same(blocks, solve_att_svm(keys, wrong))
    assert blocks.status == "infeasible"
    assert certify_infeasible(RowProblem.attention(keys, wrong), blocks.dual.numpy())[1] == "infeasible"
    assert blocks.support.tolist() == (blocks.dual > 0).nonzero().tolist()


@pytest.mark.parametrize("case", ["equal tokens", "zero right-hand sides"])
def test_nothing_to_do(case: str) -> None:
    keys, selected, _ = problem()
    more = {"rhs": torch.zeros(60, 16)} if case == "zero right-hand sides" else {}
    keys = torch.ones_like(keys) if case == "equal tokens" else keys
    whole, blocks = solve_att_svm(keys, selected, **more), solve_att_svm(in_blocks(keys, 11), selected, **more)
    assert (blocks.status, blocks.message, blocks.margin) == (whole.status, whole.message, float("inf"))
    assert blocks.merged == whole.merged


def test_one_positive_row_in_the_last_block() -> None:
    keys, selected, _ = problem()
    rhs = torch.zeros(60, 16)
    rhs[59, (selected[59] + 3) % 16] = 2.0
    same(solve_att_svm(in_blocks(keys, 25), selected, rhs=rhs), solve_att_svm(keys, selected, rhs=rhs))


class Remote:
    """A shard that counts what leaves it."""

    def __init__(self, part: LocalShard) -> None:
        self.part, self.sent = part, 0

    def mean_row(self) -> Any:
        return self.part.mean_row()

    def worst_rows(self, direction: Any, k: int, everything: bool = False) -> ShardSummary:
        report = self.part.worst_rows(direction, k, everything)
        assert len(report.ids) <= k
        self.sent += len(report.ids)
        return report

    def final(self, direction: Any) -> Any:
        return self.part.final(direction)

    def evaluate(self, direction: Any, k: int) -> Any:
        report, certificate = self.part.evaluate(direction, k)
        assert len(report.ids) <= k
        self.sent += len(report.ids) + len(certificate.pairs)
        return report, certificate


def test_two_shards_exchange_only_their_worst_rows() -> None:
    keys, selected, _ = problem(300, 64, 16)
    shards = [
        Remote(LocalShard(RowProblem.attention(keys[a:b], selected[a:b]), start=a)) for a, b in ((0, 120), (120, 300))
    ]
    solution = solve_shards(lambda: shards, (300, 64))
    same(solution, solve_att_svm(keys, selected))
    assert all(0 < shard.sent < 0.1 * shard.part.problem.live.sum() for shard in shards)


def test_worst_rows_are_the_worst() -> None:
    keys, selected, _ = problem()
    part = LocalShard(RowProblem.attention(keys, selected), start=100)
    p = np.random.default_rng(0).normal(size=12)
    margins = part.problem.margins(p)
    report = part.worst_rows(p, 5)
    assert report.smallest == pytest.approx(float(margins.min()), rel=1e-12)
    depth = (np.where(part.problem.live, margins, np.inf) - 1) / np.where(part.problem.live, part.problem.row_norms, 1)
    # Four rows of a sequence at most.
    worst = np.sort(np.sort(depth, axis=1)[:, :4].ravel())[:5]
    np.testing.assert_allclose(np.sort(report.depth), worst, atol=1e-9)
    np.testing.assert_allclose(report.delta @ p, margins.ravel()[report.ids - 1600], atol=1e-12)


def test_wrong_sources() -> None:
    keys, selected, _ = problem()
    cases: list[tuple[Any, str]] = [
        (iter(keys.split(7)), "keys are an iterator.*pass the function"),
        (in_blocks(keys[:50], 7), "keys hold 50 sequences and selected 60"),
        (in_blocks(torch.cat([keys, keys]), 7), "keys hold sequences 56 to 63, of 60"),
        (lambda: [keys[0]], r"block at sequence 0 has shape \[16, 12\]"),
        (lambda: [], "keys hold 0 sequences and selected 60"),
    ]
    for source, words in cases:
        with pytest.raises(InputError, match=words):
            solve_att_svm(source, selected)
    bad = keys.clone()
    bad[10, 2, 3] = torch.nan
    with pytest.raises(InputError, match=r"block from sequence 7: keys hold nan at \[3, 2, 3\]"):
        solve_att_svm(in_blocks(bad, 7), selected)


def test_every_look_reads_each_block_once() -> None:
    keys, selected, _ = problem()
    source = as_source(in_blocks(keys, 16))
    assert source is not None
    assert [part.start for part in BlockShards(source, selected, None, None, None, 16)()] == [0, 16, 32, 48]


def test_a_block_may_leave_out_padding_that_all_of_its_sequences_have() -> None:
    g = torch.Generator().manual_seed(3)
    keys = torch.randn(60, 9, 24, generator=g, dtype=torch.float64)
    lengths = torch.arange(60) // 10 + 4
    mask = torch.arange(9) < lengths[:, None]
    scores = keys @ torch.randn(24, generator=g, dtype=torch.float64)
    selected = scores.masked_fill(~mask, -torch.inf).argmax(1)
    blocks = [keys[i : i + 10, : int(lengths[i])] for i in range(0, 60, 10)]
    ragged = only(solve_att_svm(blocks, selected, mask=mask))
    whole = only(solve_att_svm(keys, selected, mask=mask))
    assert ragged.status == whole.status == "certified"
    assert torch.allclose(ragged.direction, whole.direction, atol=1e-7)
    assert ragged.support.tolist() == whole.support.tolist()
    assert torch.allclose(ragged.dual, whole.dual, atol=1e-6)
    with pytest.raises(InputError, match="block from sequence 50: 4 tokens, but its mask has later ones"):
        solve_att_svm([*blocks[:5], blocks[5][:, :4]], selected, mask=mask)
    with pytest.raises(InputError, match="block from sequence 10: 5 tokens, and the longest sequence has 4"):
        solve_att_svm(blocks, selected)
