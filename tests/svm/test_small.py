"""One small problem in few calls against the general path: the same status, direction, support and gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.svm import RowProblem, Solution, certify, certify_infeasible, solve_att_svm, solve_label_svm
from lightning_maxmargin.svm.shards import GOAL
from lightning_maxmargin.svm.small import attention_svm, label_svm
from lightning_maxmargin.svm.solve import solve_problem

examples = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
# From one row to 5,000 numbers and more, where it begins with a part of the rows.
sizes = st.tuples(st.integers(1, 60), st.integers(2, 10), st.integers(1, 12))
kinds = st.sampled_from(["plain", "whole", "repeated", "copies", "uneven", "random"])


def problem(seed: int, size: tuple[int, int, int], kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, selected tokens (separable unless "random") and for odd seeds a mask, with NaN on its padding."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(size, generator=g, dtype=torch.float64)
    if kind == "whole":
        keys = keys.mul(2).round()
    if kind == "repeated":
        keys = keys[:1].expand(size).clone()
    if kind == "copies":
        keys[0, 1] = keys[0, 0]
    if kind == "uneven":
        keys[-1] *= 1e4
    selected = (keys @ torch.randn(size[2], generator=g, dtype=torch.float64)).argmax(1)
    if kind == "random":
        selected = torch.randint(size[1], size[:1], generator=g)
    if seed % 2 == 0:
        return keys, selected, None
    mask = torch.rand(size[:2], generator=g) < 0.7
    mask[torch.arange(size[0]), selected] = True
    keys[~mask] = float("nan")
    return keys, selected, mask


def agree(found: Solution, general: Solution) -> None:
    """The same answer, as exact, and proved: of the row problem itself, not of what either path made of it."""
    assert found.status == general.status
    assert float((found.direction - general.direction).norm()) <= 1e-9 * float(general.direction.norm())
    assert found.margin == pytest.approx(general.margin, rel=1e-9)
    assert found.support.tolist() == general.support.tolist()
    assert found.merged == general.merged
    assert found.dual.shape == general.dual.shape
    if found.certified:
        assert found.gap <= max(1e-11, general.gap)


@examples
@given(seeds, sizes, kinds)
def test_attention_agrees_with_the_general_path(seed: int, size: tuple[int, int, int], kind: str) -> None:
    keys, selected, mask = problem(seed, size, kind)
    rows = RowProblem.attention(keys, selected, mask=mask)
    found, general = solve_att_svm(keys, selected, mask=mask), solve_problem(rows, None, GOAL)
    assert isinstance(found, Solution)
    if found.infeasible:
        assert general.infeasible
        assert certify_infeasible(rows, found.dual.numpy())[1] == "infeasible"
        assert float((found.dual * torch.from_numpy(rows.rhs)).sum()) > 0
        return
    agree(found, general)
    if rows.live.any():
        assert certify(rows, found.direction.numpy(), found.dual.numpy())[2] == found.status


@examples
@given(seeds, st.integers(1, 400), st.integers(1, 16), st.sampled_from(["plain", "whole", "repeated", "random"]))
def test_labels_agree_with_the_general_path(seed: int, n: int, d: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    if kind == "whole":
        x = x.mul(2).round()
    if kind == "repeated":
        x = x[torch.randint((n + 1) // 2, (n,), generator=g)]
    side = x @ torch.randn(d, generator=g, dtype=torch.float64)
    if kind == "random":
        side = torch.randn(n, generator=g)
    y = torch.where(side >= 0, 1, -1)
    rows = RowProblem.binary(x, y)
    found, general = solve_label_svm(x, y), solve_problem(rows, None, "separates the labels")
    assert isinstance(found, Solution)
    dual = np.column_stack([np.zeros(n), found.dual.numpy()])
    if found.infeasible:
        assert general.infeasible
        assert certify_infeasible(rows, dual)[1] == "infeasible"
        return
    assert general.support[:, 1].eq(1).all()
    assert found.status == general.status
    assert float((found.direction - general.direction).norm()) <= 1e-9 * float(general.direction.norm())
    assert found.support.tolist() == general.support[:, 0].tolist()
    assert certify(rows, found.direction.numpy(), dual)[2] == found.status == "certified"


@pytest.mark.parametrize("size", [(6, 8, 10), (30, 16, 16), (60, 32, 32), (40, 6, 60), (3, 4, 200)])
@pytest.mark.parametrize("masked", [False, True])
def test_what_it_is_for_needs_no_general_path(size: tuple[int, int, int], masked: bool) -> None:
    keys, selected, mask = problem(int(masked), size, "plain")
    found = attention_svm(keys, selected, mask)
    assert found is not None
    agree(found, solve_problem(RowProblem.attention(keys, selected, mask=mask), None, GOAL))


def test_labels_with_a_margin_need_no_general_path() -> None:
    values = torch.randn(500, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.where(values[:, 0] < 0, -1, 1)
    values[:, 0] += labels / 2
    assert label_svm(values, labels) is not None
    assert label_svm(values.numpy(), labels.numpy()) is not None


def test_a_missed_row_is_found_in_a_later_round() -> None:
    """Rows near the mean's direction are not among the first ones, here of 800 rows the one that decides."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(800, 8, generator=g, dtype=torch.float64)
    x[:, 0] = x[:, 0].abs() + 1
    # Short, so that its cosine to the mean is the largest and its margin the smallest.
    x[0] = 0.01 * x.mean(0)
    found = label_svm(x, torch.ones(800))
    assert found is not None
    assert found.iterations > 1
    assert 0 in found.support.tolist()
    assert float((x @ found.direction).min()) == pytest.approx(1, abs=1e-12)


OK, AT = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]], dtype=torch.float64), torch.tensor([0])
FEW: list[tuple[Any, Any, Any]] = [
    (OK[None], AT, None),
    (OK, AT.double(), None),
    (OK, torch.tensor([2]), None),
    (OK, torch.tensor([-1]), None),
    (OK, torch.tensor([0, 0]), None),
    (OK, AT, torch.ones(1, 2)),
    (OK, AT, torch.tensor([[False, True]])),
    (OK, AT, torch.tensor([[True, False]])),
    (OK * float("nan"), AT, None),
    (OK * float("inf"), AT, None),
    (OK * 1e-150, AT, None),
    (OK * 1e150, AT, None),
    (OK[:, [0, 0]], AT, None),
    (OK[:, :1], AT, None),
    (torch.tensor([[[1.0, 1e-15], [1.0, 0.0]]], dtype=torch.float64), AT, None),
    (torch.zeros(0, 2, 2), AT[:0], None),
    (list(OK), AT, None),
]


@pytest.mark.parametrize("given", FEW)
def test_the_rest_is_left_to_the_general_path(given: tuple[Any, Any, Any]) -> None:
    assert attention_svm(OK, AT, None) is not None
    assert attention_svm(*given) is None
