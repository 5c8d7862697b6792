"""Keys on an accelerator, pretended by the CPU: products in the keys' own dtype, the certificate in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import (
    DistributedShard,
    RowProblem,
    certify,
    device,
    only,
    solve_att_svm,
    solve_joint_svm,
)
from lightning_maxmargin.svm.device import shard_on_device
from lightning_maxmargin.svm.sources import LocalShard, MappedSource
from tests.svm.test_shards import problem, same


@pytest.fixture(autouse=True)
def cpu_as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "ON_THE_CPU", ())


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were fetched each time."""
    counts: list[int] = []
    before = device.DeviceShard._pairs

    def count(self: Any, ids: Any, *rest: Any) -> Any:
        counts.append(len(ids))
        return before(self, ids, *rest)

    monkeypatch.setattr(device.DeviceShard, "_pairs", count)
    return counts


CASES: list[dict[str, Any]] = [
    {}, {"dq": 5}, {"masked": True}, {"rhs": True}, {"dq": 3, "masked": True, "rhs": True},
    {"n": 150, "T": 64, "d": 64}, {"n": 300, "T": 33, "d": 24},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_in_memory(case: dict[str, Any], dtype: torch.dtype, fetched: list[int]) -> None:
    keys, selected, more = problem(**case)
    keys = keys.to(dtype)
    whole = only(solve_att_svm(keys, selected, **more))
    found = only(solve_att_svm(DistributedShard(keys, at_once=0), selected, **more))
    same(found, whole)
    assert whole.certified
    assert fetched
    every = RowProblem.attention(keys, selected, **more)
    assert certify(every, found.direction.numpy(), found.dual.numpy())[2] == "certified"


def test_few_rows_are_fetched(fetched: list[int]) -> None:
    keys, selected, _ = problem(300, 64, 16)
    solution = only(solve_att_svm(DistributedShard(keys.float(), at_once=0), selected))
    assert solution.certified
    assert sum(fetched) < 0.2 * 300 * 64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_reports_what_a_shard_on_the_cpu_reports(dtype: torch.dtype) -> None:
    keys, selected, more = problem(dq=5, rhs=True)
    keys = keys.to(dtype)
    there = shard_on_device(MappedSource(keys), selected, more["queries"], None, more["rhs"], 16, np.arange(60))
    here = LocalShard(RowProblem.attention(keys, selected, **more), 0, 16)
    assert there is not None
    np.testing.assert_allclose(there.mean_row(), here.mean_row(), rtol=1e-4 if dtype == torch.float32 else 1e-12)
    for seed in range(5):
        W = np.random.default_rng(seed).normal(size=(12, 5))
        ours, theirs = there.worst_rows(W, 20), here.worst_rows(W, 20)
        assert ours.smallest == pytest.approx(theirs.smallest, rel=1e-12)
        np.testing.assert_array_equal(np.sort(ours.ids), np.sort(theirs.ids))
        a, b = there.final(W), here.final(W)
        assert a.tight.tolist() == b.tight.tolist()
        assert (a.merged, a.live) == (b.merged, b.live)
        np.testing.assert_allclose((a.smallest, a.violation), (b.smallest, b.violation), rtol=1e-12)


def test_a_margin_that_single_precision_cannot_tell() -> None:
    """Two rows at 1 and 1 + 1e-9 of the direction: float32 sees both as one, and the answer rests on the smaller."""
    keys = torch.zeros(2, 2, 2, dtype=torch.float32)
    keys[0, 0, 0], keys[1, 0, 0] = 1.0, 1.0 + 2.0**-23
    keys[:, :, 1] = 1000.0
    found = only(solve_att_svm(DistributedShard(keys, at_once=0), torch.tensor([0, 0])))
    assert found.certified
    assert found.support.tolist() == [[0, 1]]
    assert found.margin == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("case", ["ties", "wrong", "equal tokens", "no right-hand side"])
def test_edges(case: str) -> None:
    keys, selected, _ = problem()
    keys, more = keys.float(), {}
    if case == "ties":
        keys[40, (selected[40] + 1) % 16] = keys[40, selected[40]]
    if case == "wrong":
        selected = (selected + 1) % 16
    if case == "equal tokens":
        keys = torch.ones_like(keys)
    if case == "no right-hand side":
        more["rhs"] = torch.zeros(60, 16)
    whole = only(solve_att_svm(keys, selected, **more))
    same(only(solve_att_svm(DistributedShard(keys, at_once=0), selected, **more)), whole)


@pytest.mark.parametrize("limit", ["strict", "relaxed", "rate_coupled"])
def test_joint(limit: str) -> None:
    keys, selected, _ = problem()
    keys = keys.float()
    labels = (keys[torch.arange(60), selected] @ torch.arange(-6.0, 6.0)).sign()
    more = {"limit": limit, "norm_ratio": 0.7 if limit == "rate_coupled" else None}
    whole = solve_joint_svm(keys, keys, labels, selected, **more)  # type: ignore[arg-type]
    found = solve_joint_svm(DistributedShard(keys, at_once=0), keys, labels, selected, **more)  # type: ignore[arg-type]
    same(only(found.head), only(whole.head))
    torch.testing.assert_close(found.attention.direction, whole.attention.direction, atol=1e-10, rtol=1e-10)
    assert found.rhs is not None
    assert whole.rhs is not None
    torch.testing.assert_close(found.rhs, whole.rhs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_sizes_that_single_precision_cannot_multiply(size: float) -> None:
    keys, selected, _ = problem()
    keys = (keys * size).float()
    whole = only(solve_att_svm(keys, selected))
    found = only(solve_att_svm(DistributedShard(keys, at_once=0), selected))
    assert found.status == whole.status == "certified"
    assert found.margin == pytest.approx(whole.margin, rel=1e-10)


def test_wrong_numbers_are_named() -> None:
    keys, selected, _ = problem()
    bad = keys.float()
    bad[10, 2, 3] = torch.nan
    with pytest.raises(InputError, match=r"keys hold nan at \[10, 2, 3\]"):
        solve_att_svm(DistributedShard(bad, at_once=0), selected)
    bad = keys.clone()
    bad[10, 2] = 1e200
    with pytest.raises(InputError, match=r"keys at \[10, 2\] have a size that float64 cannot square"):
        solve_att_svm(DistributedShard(bad, at_once=0), selected)
