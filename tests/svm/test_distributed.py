"""Sequences on two and three processes: one process's answers, only the worst rows travel, errors reach all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from lightning_maxmargin.core.ranks import Ranks
from lightning_maxmargin.svm import (
    DistributedShard,
    JointSolution,
    Solution,
    only,
    solve_att_svm,
    solve_joint_svm,
    solve_label_svm,
)
from tests.ddp.ranks import on_ranks
from tests.svm.test_shards import problem

#: Processes and sequences: fewer than processes, as many, and shares that are not equal; a second each.
QUICK = ((2, 5), (3, 67))
SIZES = [
    (world, n) if (world, n) in QUICK else pytest.param(world, n, marks=pytest.mark.slow)
    for world in (2, 3)
    for n in (1, 2, 3, 5, 64, 65, 67)
]
LIMITS: dict[str, dict[str, Any]] = {
    "strict": {}, "relaxed": {"limit": "relaxed"}, "rate_coupled": {"limit": "rate_coupled", "norm_ratio": 0.7},
}  # fmt: skip
T, D, DQ = 9, 7, 4


class Instance:
    """n sequences with labels of two classes and of three, and the share of them that a process has."""

    def __init__(self, n: int, mapped: Path | None = None) -> None:
        g = torch.Generator().manual_seed(n)
        self.n = n
        self.keys: Any = torch.randn(n, T, D, generator=g, dtype=torch.float64)
        self.mask = torch.rand(n, T, generator=g) < 0.8
        scores = self.keys @ torch.randn(D, generator=g, dtype=torch.float64)
        self.selected = scores.argmax(1)
        self.mask.scatter_(1, self.selected[:, None], True)
        self.queries = torch.rand(n, DQ, generator=g, dtype=torch.float64)
        self.rhs = (torch.rand(n, T, generator=g) < 0.7).double()
        self.values = self.keys[torch.arange(n), self.selected]
        self.binary = (self.values @ torch.randn(D, generator=g, dtype=torch.float64)).sign()
        self.classes = (self.values @ torch.randn(D, 3, generator=g, dtype=torch.float64)).argmax(1)
        if mapped is not None:
            # The selected tokens were chosen in float64; in float32 they are first as well.
            array = self.keys.numpy().astype(np.float32)
            np.save(mapped, array)
            self.keys = np.load(mapped, mmap_mode="r")

    def all(self) -> dict[str, Any]:
        """What one process answers, by the name of the problem."""
        keys = torch.from_numpy(np.array(self.keys)) if isinstance(self.keys, np.memmap) else self.keys
        return self._solved(keys, slice(None), self.values)

    def part(self, rank: int, world: int, at_once: int, unchanging: bool = False) -> dict[str, Any]:
        """The same of one of several processes, which take turns."""
        rows = slice(rank, self.n, world)
        index = range(rank, self.n, world)
        values = DistributedShard(self.values[rows], index, at_once=at_once)
        keys = DistributedShard(self.keys[rows], index, at_once=at_once, unchanging=unchanging)
        return self._solved(keys, rows, values)

    def _solved(self, keys: Any, rows: slice, values: Any) -> dict[str, Any]:
        selected, z, mask, rhs = (x[rows] for x in (self.selected, self.queries, self.mask, self.rhs))
        read = self.keys if isinstance(keys, DistributedShard) else keys
        found: dict[str, Any] = {
            "p": solve_att_svm(keys, selected),
            "W, padded": solve_att_svm(keys, selected, queries=z, mask=mask),
            "p, right-hand sides": solve_att_svm(keys, selected, rhs=rhs),
            "labels": solve_label_svm(values, self.binary[rows]),
            "classes": solve_label_svm(values, self.classes[rows], num_classes=3),
        }
        for name, limit in LIMITS.items():
            found[f"joint {name}"] = solve_joint_svm(keys, read[rows], self.binary[rows], selected, queries=z, **limit)
        found["joint classes"] = solve_joint_svm(keys, read[rows], self.classes[rows], selected, limit="relaxed")
        return found


def compare(name: str, found: Any, whole: Any) -> None:
    if isinstance(whole, JointSolution):
        compare(name, found.attention, whole.attention)
        compare(name, found.head, whole.head)
        assert (found.rhs is None) == (whole.rhs is None)
        if whole.rhs is not None:
            close(name, found.rhs, whole.rhs)
        return
    assert (found.status, found.merged) == (whole.status, whole.merged), name
    close(name, found.direction, whole.direction)
    assert found.margin == pytest.approx(whole.margin, rel=1e-10), name
    assert found.dual.shape == whole.dual.shape
    if whole.certified:
        assert found.support.tolist() == whole.support.tolist(), name
        assert (found.gap, found.violation) == pytest.approx((whole.gap, whole.violation), abs=1e-10), name


def close(name: str, found: Tensor, whole: Tensor) -> None:
    torch.testing.assert_close(found, whole, atol=1e-10, rtol=1e-10, msg=lambda text: f"{name}: {text}")


def flat(found: dict[str, Any]) -> list[Solution]:
    """All Solutions of a process."""
    parts = [[x.attention, x.head] if isinstance(x, JointSolution) else [x] for x in found.values()]
    return [only(x) for part in parts for x in part]


@pytest.mark.parametrize(("world", "n"), SIZES)
@pytest.mark.parametrize(
    ("at_once", "unchanging"), [(0, False), (0, True), (100_000, False)],
    ids=["rows travel", "rows are remembered", "in one piece"],
)  # fmt: skip
def test_one_processes_answers(world: int, n: int, at_once: int, unchanging: bool, tmp_path: Path) -> None:
    instance = Instance(n)
    whole = instance.all()
    found = on_ranks(world, tmp_path, lambda rank: instance.part(rank, world, at_once, unchanging))
    assert not isinstance(found[0], str), found
    for name, solution in whole.items():
        compare(name, found[0][name], solution)
    for other in found[1:]:
        for ours, theirs in zip(flat(other), flat(found[0]), strict=True):
            # To the last bit.
            assert torch.equal(ours.direction, theirs.direction)
            assert torch.equal(ours.dual, theirs.dual)
            assert (ours.gap, ours.message, ours.support.tolist()) == (
                theirs.gap,
                theirs.message,
                theirs.support.tolist(),
            )


@pytest.mark.parametrize(("world", "n"), SIZES)
def test_mapped(world: int, n: int, tmp_path: Path) -> None:
    instance = Instance(n, tmp_path / "keys.npy")
    whole = instance.all()
    found = on_ranks(world, tmp_path, lambda rank: instance.part(rank, world, 0))
    assert not isinstance(found[0], str), found
    for name, solution in whole.items():
        compare(name, found[0][name], solution)


def test_a_selection_that_changes_on_one_process_is_seen_by_all(tmp_path: Path) -> None:
    """What was remembered of the others' rows then holds, and of its own no longer; tensors are written to in place."""
    instance, world = Instance(67), 2
    later = instance.selected.clone()
    # The second best of each sequence of the second process: other rows, which a direction may separate or not.
    scores = (instance.keys @ torch.ones(D, dtype=torch.float64)).scatter(1, instance.selected[:, None], -torch.inf)
    later[1::world] = torch.where(torch.arange(67) % 5 == 1, scores.argmax(1), instance.selected)[1::world]
    expected = [
        solve_att_svm(instance.keys, selected, queries=instance.queries) for selected in (instance.selected, later)
    ]

    def part(rank: int) -> list[Any]:
        rows = slice(rank, 67, world)
        shard = DistributedShard(instance.keys[rows], range(rank, 67, world), at_once=0, unchanging=True)
        selected = instance.selected[rows].clone()
        first = solve_att_svm(shard, selected, queries=instance.queries[rows])
        selected.copy_(later[rows])
        return [first, solve_att_svm(shard, selected, queries=instance.queries[rows])]

    found = on_ranks(world, tmp_path, part)
    assert not isinstance(found[0], str), found
    assert not torch.equal(expected[0].direction, expected[1].direction)
    for ours, theirs in zip(found[0], expected, strict=True):
        compare("W", ours, theirs)


def test_in_a_group_of_its_own_and_in_rank_order(tmp_path: Path) -> None:
    """Ranks 1 and 2 of three, each with blocks of consecutive sequences."""
    keys, selected, _ = problem(60)
    whole = only(solve_att_svm(keys, selected))

    def work(rank: int) -> Any:
        group = dist.new_group([1, 2], backend="gloo")
        if rank == 0:
            return None
        rows = slice(0, 25) if rank == 1 else slice(25, 60)
        shard = DistributedShard(list(keys[rows].split(8)), group=group, at_once=0)
        return only(solve_att_svm(shard, selected[rows]))

    _, first, second = on_ranks(3, tmp_path, work)
    compare("blocks", first, whole)
    compare("blocks", second, whole)


def test_tokens_of_unequal_number(tmp_path: Path) -> None:
    keys, selected, _ = problem(30, 12, 6)
    selected = selected % 7
    mask = torch.ones(30, 12, dtype=torch.bool)
    mask[1::2, 7:] = False
    whole = only(solve_att_svm(keys, selected, mask=mask))
    for at_once in (0, 100_000):

        def work(rank: int, at_once: int = at_once) -> Any:
            part = keys[rank::2] if rank == 0 else keys[rank::2, :7]
            shard = DistributedShard(part, range(rank, 30, 2), at_once=at_once)
            return only(solve_att_svm(shard, selected[rank::2]))

        for found in on_ranks(2, tmp_path, work):
            compare("ragged", found, whole)


@pytest.mark.parametrize("case", ["infeasible", "equal tokens", "head that does not separate"])
def test_no_answer(case: str, tmp_path: Path) -> None:
    keys, selected, _ = problem(60)
    labels = torch.ones(60)
    if case == "infeasible":
        selected = (selected + 1) % 16
    if case == "equal tokens":
        keys = torch.ones_like(keys)
    if case == "head that does not separate":
        keys[7] = -keys[8]
        selected[7] = selected[8]

    def solved(keys: Any, values: Tensor, rows: slice) -> list[Any]:
        joint = solve_joint_svm(keys, values[rows], labels[rows], selected[rows], limit="relaxed")
        return [solve_att_svm(keys, selected[rows]), joint]

    whole = solved(keys, keys, slice(None))
    for found in on_ranks(2, tmp_path, lambda rank: solved(
        DistributedShard(keys[rank::2], range(rank, 60, 2), at_once=0), keys, slice(rank, None, 2)
    )):  # fmt: skip
        for ours, theirs in zip(found, whole, strict=True):
            compare(case, ours, theirs)


def test_only_the_worst_rows_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, selected, _ = problem(300, 64, 16)
    sent: list[int] = []
    before = Ranks.collect

    def counted(self: Any, make: Any) -> Any:
        def telling() -> Any:
            found = make()
            sent.append(len(getattr(found, "ids", ())))
            return found

        return before(self, telling)

    monkeypatch.setattr(Ranks, "collect", counted)

    def work(rank: int) -> Any:
        shard = DistributedShard(keys[rank::3], range(rank, 300, 3), at_once=0)
        return only(solve_att_svm(shard, selected[rank::3])), sum(sent)

    whole = only(solve_att_svm(keys, selected))
    for found, count in on_ranks(3, tmp_path, work):
        compare("rows", found, whole)
        assert 0 < count < 0.25 * 100 * 63


# --- bad input -------------------------------------------------------------------------------------------------------


def ends_early(keys: Tensor, times: int) -> Any:
    """A reader that gives all blocks so many times, and then one less."""
    seen = []

    def make() -> Any:
        seen.append(1)
        return list(keys.split(8))[: None if len(seen) <= times else -1]

    return make


def fails(keys: Tensor) -> Any:
    def make() -> Any:
        yield keys[:4]
        raise OSError("truncated file")

    return make


def wrong(case: str, rank: int) -> Any:
    """What rank 1 does that rank 0 does not."""
    keys, selected, _ = problem(60)
    mine, chosen = keys[rank::2], selected[rank::2]
    index: Any = range(rank, 60, 2)
    more: dict[str, Any] = {}
    if rank == 1:
        if case == "dimension":
            mine = mine[:, :, :5]
        if case == "dtype":
            mine = mine.float()
        if case == "right-hand sides":
            more["rhs"] = torch.ones(30, 16)
        if case == "norm":
            more["norm"] = "linf"
        if case == "unknown norm":
            more["norm"] = "l7"
        if case == "queries":
            more["queries"] = torch.ones(30, 2)
        if case == "reader":
            mine = ends_early(mine, 1)
        if case == "reader later":
            mine = ends_early(mine, 3)
        if case == "file":
            mine = fails(mine)
        if case == "nan":
            mine = mine.clone()
            mine[4, 2, 3] = torch.nan
        if case == "index":
            index = range(0, 60, 2)
        if case == "no index":
            index = None
        if case == "other call":
            return solve_label_svm(DistributedShard(mine[:, 0], index), torch.ones(30))
    return solve_att_svm(DistributedShard(mine, index, at_once=0), chosen, **more)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("dimension", "rank 1: keys have dimension 5, and on rank 0 12: give parts of one problem"),
        ("dtype", "rank 1: keys are float32, and on rank 0 float64"),
        ("right-hand sides", "rank 1: right-hand sides are given, and on rank 0 left out"),
        ("norm", "rank 1: the norm is linf, and on rank 0 l2"),
        ("unknown norm", "rank 1: norm 'l7'"),
        ("queries", "rank 1: queries have dimension 2, and on rank 0 None"),
        ("reader", "rank 1: keys hold 24 sequences and selected 30"),
        ("reader later", "rank 1: keys hold 24 sequences and selected 30"),
        ("file", "rank 1: OSError: truncated file"),
        ("nan", "rank 1: block from sequence 0: keys hold nan at [4, 2, 3]"),
        ("index", "rank 1: index holds sequence 0, which has been held already"),
        ("no index", "index is given on some ranks and not on others"),
        ("other call", "rank 1: the call is solve_label_svm, and on rank 0 solve_att_svm"),
    ],
)
def test_an_error_reaches_all_in_one_line(case: str, words: str, tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path, lambda rank: wrong(case, rank))
    assert found[0] == found[1]
    assert found[0].startswith(f"InputError: {words}"), found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize("case", ["limit", "norm_ratio", "labels", "nan value"])
def test_an_error_of_a_joint_problem_reaches_all(case: str, tmp_path: Path) -> None:
    keys, selected, _ = problem(60)
    words = {
        "limit": "rank 1: limit 'loose' is unknown",
        "norm_ratio": "rank 1: norm_ratio is -1",
        "labels": "rank 1: labels have shape [29] for 30 samples",
        "nan value": "rank 1: values hold nan at [3, 0]",
    }[case]

    def work(rank: int) -> Any:
        limit: dict[str, Any] = {"limit": "relaxed"}
        values, labels = keys[rank::2], torch.ones(30)
        if rank == 1:
            limit = {"limit": {"limit": "loose", "norm_ratio": "rate_coupled"}.get(case, "relaxed"), "norm_ratio": -1}
            labels = labels[:29] if case == "labels" else labels
            if case == "nan value":
                values = values.clone()
                values[3, :, 0] = torch.nan
        shard = DistributedShard(keys[rank::2], range(rank, 60, 2), at_once=0)
        return solve_joint_svm(shard, values, labels, selected[rank::2], **limit)

    found = on_ranks(2, tmp_path, work)
    assert found[0] == found[1]
    assert found[0].startswith(f"InputError: {words}"), found[0]
