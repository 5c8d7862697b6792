"""Many problems at once: the answers of one by one, whatever stands beside them in the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import (
    RowProblem,
    Solution,
    certify,
    certify_infeasible,
    solve_att_svm,
    solve_joint_svm,
    solve_label_svm,
)
from lightning_maxmargin.svm import batched as batched_module
from lightning_maxmargin.svm.many import gather, judge

METHODS = ["daqp", "torch"]


def problems(
    shape: tuple[int, int, int, int],
    *,
    seed: int = 0,
    dq: int | None = None,
    masked: bool = False,
    rhs: bool = False,
    separable: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    B, n, T, d = shape
    keys = torch.randn(shape, generator=g, dtype=torch.float64)
    u = torch.randn(B, 1, 1, d, generator=g, dtype=torch.float64)
    selected = (keys * u).sum(-1).argmax(2) if separable else torch.randint(T, (B, n), generator=g)
    more: dict[str, Any] = {}
    if dq is not None:
        more["queries"] = torch.randn(B, n, dq, generator=g, dtype=torch.float64)
    if masked:
        mask = torch.rand(B, n, T, generator=g) < 0.7
        more["mask"] = mask.scatter(2, selected[:, :, None], True)
        keys[~more["mask"]] = torch.nan
    if rhs:
        more["rhs"] = (torch.rand(B, n, T, generator=g) < 0.5).double()
    return keys, selected, more


def same(many: Solution, keys: Tensor, selected: Tensor, more: dict[str, Any], atol: float = 1e-9) -> None:
    """Each instance beside the one solved alone, and its certificate computed again by the one-instance code."""
    for b in range(len(keys)):
        given_b = {name: x[b] for name, x in more.items()}
        one = solve_att_svm(keys[b], selected[b], **given_b)
        assert many.status[b] == one.status
        torch.testing.assert_close(many.direction[b], one.direction, atol=atol, rtol=atol)
        assert many.margin[b] == pytest.approx(one.margin, rel=1e-9)
        assert many.merged[b] == one.merged
        problem = RowProblem.attention(keys[b], selected[b], **given_b)
        dual = many.dual[b].numpy()
        if one.status == "certified":
            assert many.support[b].tolist() == one.support.tolist()
            gap, violation, status = certify(problem, many.direction[b].numpy(), dual)
            assert status == "certified"
            assert many.gap[b] == pytest.approx(gap, abs=1e-11)
            assert many.violation[b] == pytest.approx(violation, abs=1e-11)
        elif one.status == "infeasible":
            assert certify_infeasible(problem, dual)[1] == "infeasible"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The instances that were solved again on their own."""
    seen: list[int] = []
    original = batched_module.replaced

    def watched(solution: Solution, others: dict[int, Solution]) -> Solution:
        seen.extend(others)
        return original(solution, others)

    monkeypatch.setattr(batched_module, "replaced", watched)
    return seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dq", [None, 3, 12])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rhs", [False, True])
def test_equals_one_by_one(method: str, dq: int | None, masked: bool, rhs: bool, alone: list[int]) -> None:
    keys, selected, more = problems((30, 6, 8, 10), dq=dq, masked=masked, rhs=rhs)
    same(solve_att_svm(keys, selected, **more, method=method), keys, selected, more)
    assert len(alone) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_infeasible_instances_leave_their_neighbours_alone(method: str, alone: list[int]) -> None:
    keys, selected, _ = problems((12, 6, 8, 10))
    bad = [0, 5, 11]
    selected[bad] = (selected[bad] + 1) % 8
    keys[bad, :, :, :] = keys[bad, :, :, :].round()
    keys[bad, 0, selected[bad, 0]] = 0.5 * (
        keys[bad, 0, (selected[bad, 0] + 1) % 8] + keys[bad, 0, selected[bad, 0] - 2]
    )
    many = solve_att_svm(keys, selected, method=method)
    assert [b for b, status in enumerate(many.status) if status == "infeasible"] == bad == alone
    assert all("no direction" in many.message[b] for b in bad)
    same(many, keys, selected, {})


@pytest.mark.parametrize("method", METHODS)
def test_random_selection(method: str) -> None:
    keys, selected, more = problems((40, 5, 6, 6), separable=False, rhs=True, masked=True)
    many = solve_att_svm(keys, selected, **more, method=method)
    assert {"certified", "infeasible"} == set(many.status)
    same(many, keys, selected, more)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    dq=st.one_of(st.none(), st.integers(1, 4)),
    masked=st.booleans(),
    rhs=st.booleans(),
    separable=st.booleans(),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    shape: tuple[int, int, int, int],
    dq: int | None,
    masked: bool,
    rhs: bool,
    separable: bool,
    method: str,
    seed: int,
) -> None:
    keys, selected, more = problems(shape, dq=dq, masked=masked, rhs=rhs, separable=separable, seed=seed)
    # Directions of nearly degenerate instances are known less well than to 1e-9; the certificates are compared too.
    same(solve_att_svm(keys, selected, **more, method=method), keys, selected, more, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_ties_nothing_to_do_and_chunks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched_module, "CHUNK", 1000)
    monkeypatch.setattr(batched_module, "TORCH_CHUNK", 1000)
    keys, selected, _ = problems((9, 4, 5, 6))
    twin = (selected[2, 1] + 1) % 5
    keys[2, 1, twin] = keys[2, 1, selected[2, 1]]
    keys[7] = 0.0
    many = solve_att_svm(keys, selected, method=method)
    assert many.merged.tolist() == [0, 0, 1, 0, 0, 0, 0, 16, 0]
    assert many.margin[7] == float("inf")
    same(many, keys, selected, {})


def test_one_token_each() -> None:
    many = solve_att_svm(torch.randn(3, 2, 1, 4), torch.zeros(3, 2))
    assert many.status == ("certified",) * 3
    assert torch.isinf(many.margin).all()
    assert [x.tolist() for x in many.support] == [[]] * 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("exponent", [-12, 12])
def test_scale(method: str, exponent: int) -> None:
    keys, selected, _ = problems((10, 6, 8, 10))
    base = solve_att_svm(keys, selected, method=method)
    scaled = solve_att_svm(keys * 10.0**exponent, selected, method=method)
    torch.testing.assert_close(scaled.direction * 10.0**exponent, base.direction, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_hard_instances_are_certified_or_unverified(method: str) -> None:
    g = torch.Generator().manual_seed(0)
    tiny = torch.randn(1, 10, 2, 5, generator=g, dtype=torch.float64)
    tiny[:, :, 1] = 0
    tiny[:, 5:] = -tiny[:, :5]
    tiny[:, :, 0, 0] = 1e-6
    sizes = torch.randn(1, 10, 2, 5, generator=g, dtype=torch.float64).abs()
    sizes[:, :, 1] = 0
    sizes *= 10.0 ** torch.linspace(-12, 12, 10, dtype=torch.float64)[:, None, None]
    equal = torch.zeros(1, 10, 2, 5, dtype=torch.float64)
    equal[:, :, 0] = torch.tensor([3.0, 0, 4.0, 0, 0])
    keys = torch.cat([tiny, sizes, equal])
    many = solve_att_svm(keys, torch.zeros(3, 10), method=method)
    assert set(many.status) <= {"certified", "unverified"}
    assert many.status[0] == many.status[2] == "certified"
    assert many.margin[0] == pytest.approx(1e-6, rel=1e-6)
    assert many.margin[2] == pytest.approx(5.0, rel=1e-12)
    for b, status in enumerate(many.status):
        problem = RowProblem.attention(keys[b], torch.zeros(10))
        assert certify(problem, many.direction[b].numpy(), many.dual[b].numpy())[2] == status


@pytest.mark.parametrize("dq", [None, 12])
def test_warm_start(dq: int | None) -> None:
    keys, selected, more = problems((20, 6, 8, 10), dq=dq)
    old = solve_att_svm(keys, selected, **more)
    moved = keys + 1e-3 * torch.randn(keys.shape, generator=torch.Generator().manual_seed(1), dtype=keys.dtype)
    same(solve_att_svm(moved, selected, **more, warm_start=old), moved, selected, more)
    wrong = solve_att_svm(-keys, selected, **more)
    same(solve_att_svm(moved, selected, **more, warm_start=wrong), moved, selected, more)


def test_labels() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 12, 5, generator=g, dtype=torch.float64)
    y = torch.sign(x @ torch.ones(5, dtype=torch.float64))
    y[3] = torch.randint(2, (12,), generator=g) * 2.0 - 1
    many = solve_label_svm(x, y)
    classes = solve_label_svm(x[:4], ((y[:4] + 1) / 2).long())
    for b in range(20):
        one = solve_label_svm(x[b], y[b])
        assert many.status[b] == one.status
        torch.testing.assert_close(many.direction[b], one.direction, atol=1e-9, rtol=1e-9)
        assert many.dual[b].shape == (12,)
        assert many.support[b].tolist() == one.support.tolist()
    assert many.status.count("infeasible") == 1
    assert classes.direction.shape == (4, 2, 5)


@pytest.mark.parametrize("limit", ["strict", "relaxed", "rate_coupled"])
@pytest.mark.parametrize("dq", [None, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_joint(limit: str, dq: int | None, masked: bool) -> None:
    keys, selected, more = problems((12, 8, 6, 10), dq=dq, masked=masked)
    g = torch.Generator().manual_seed(3)
    values = torch.randn(12, 8, 6, 9, generator=g, dtype=torch.float64)
    labels = torch.randint(2, (12, 8), generator=g) * 2 - 1
    # Of one instance no head separates the labels: twice the same value, two labels.
    values[4] = values[4, :1]
    values[4, :, :] = values[4, :, :1]
    labels[4, 0], labels[4, 1] = 1, -1
    many = solve_joint_svm(keys, values, labels, selected, limit=limit, norm_ratio=0.7, **more)
    assert many.head.status[4] == "infeasible"
    assert many.rhs is not None
    for b in range(12):
        given_b = {name: x[b] for name, x in more.items()}
        one = solve_joint_svm(keys[b], values[b], labels[b], selected[b], limit=limit, norm_ratio=0.7, **given_b)
        assert (many.attention.status[b], many.head.status[b]) == (one.attention.status, one.head.status)
        # The root of the rate-coupled limit is met to 1e-10 by each.
        torch.testing.assert_close(many.attention.direction[b], one.attention.direction, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(many.head.direction[b], one.head.direction, atol=1e-9, rtol=1e-9)
        rhs = torch.zeros(8, 6, dtype=torch.float64) if one.rhs is None else one.rhs
        torch.testing.assert_close(many.rhs[b], rhs, atol=1e-9, rtol=1e-9)
    assert many.attention.status.count("certified") == (12 if limit == "strict" else 11)


@pytest.mark.parametrize("fault", ["a dropped multiplier", "a negative multiplier", "a turned direction", "nan"])
def test_judge_refuses(fault: str) -> None:
    keys, selected, _ = problems((2, 6, 8, 10))
    many = solve_att_svm(keys, selected)
    rows = gather(keys.numpy(), selected.numpy(), None, None, None)
    p = many.direction.numpy().copy()
    lam = np.take_along_axis(many.dual.numpy().reshape(2, -1), rows.ids, axis=1)
    assert judge(rows, p, lam, 1e-7).good.all()
    if fault == "a dropped multiplier":
        lam[1, lam[1].argmax()] = 0
    elif fault == "a negative multiplier":
        lam[1, np.flatnonzero(lam[1] == 0)[0]] = -1e-9
    elif fault == "a turned direction":
        p[1, 0] += 1e-3
    else:
        p[1, 0] = np.nan
    assert judge(rows, p, lam, 1e-7).good.tolist() == [True, False]


def test_wrong_input_names_the_instance() -> None:
    keys, selected, _ = problems((3, 4, 5, 6))
    keys[1, 2, 3, 4] = torch.inf
    with pytest.raises(InputError, match=r"instance 1: keys hold inf at \[2, 3, 4\]"):
        solve_att_svm(keys, selected)
    keys, selected, _ = problems((3, 4, 5, 6))
    for wrong, words in (
        (selected + 5, "instance 0: selected is"),
        (selected[:, :2], "instance 0: selected has shape"),
    ):
        with pytest.raises(InputError, match=words):
            solve_att_svm(keys, wrong)
    with pytest.raises(InputError, match="method 'fast' is unknown: use one of auto"):
        solve_att_svm(keys, selected, method="fast")
    with pytest.raises(InputError, match="instance 0: queries have shape"):
        solve_att_svm(keys, selected, queries=torch.ones(3, 5, 2))
