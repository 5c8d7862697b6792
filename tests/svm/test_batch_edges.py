"""Batches at the edges: scales, degenerate sets, warm starts, labels, joint limits, wrong input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import RowProblem, certify, solve_att_svm, solve_joint_svm, solve_label_svm
from lightning_maxmargin.svm.batch_rows import gather, judge
from tests.svm.batch_problems import problems, same


@pytest.mark.parametrize("exponent", [-12, 12])
def test_scale(exponent: int) -> None:
    keys, selected, _ = problems((10, 6, 8, 10))
    base = solve_att_svm(keys, selected)
    scaled = solve_att_svm(keys * 10.0**exponent, selected)
    torch.testing.assert_close(scaled.direction * 10.0**exponent, base.direction, atol=1e-11, rtol=1e-11)


def test_hard_instances_are_certified_or_unverified() -> None:
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
    many = solve_att_svm(keys, torch.zeros(3, 10))
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
