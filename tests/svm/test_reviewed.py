"""Statuses that a review found wrong: underflow hidden in a division, rounded differences, squares of extreme heads."""

from __future__ import annotations

import pytest
import torch

from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm, solve_label_svm

D = torch.float64


@pytest.mark.parametrize(
    "values", [[[1e100, 0.0], [-1e100, 1e-225]], [[3.0, 0.0], [-3.0, 5e-324]], [[1.0, 2e-14], [-1.0, 2e-14]]]
)
def test_a_column_that_vanishes_beside_another_still_separates(values: list[list[float]]) -> None:
    assert solve_label_svm(torch.tensor(values, dtype=D), torch.tensor([1, 1])).status != "infeasible"


def test_a_product_that_vanishes_still_separates() -> None:
    keys = torch.tensor([[[1e-110], [0.0]], [[-1e-110], [0.0]]], dtype=D)
    queries = torch.tensor([[1.0, 0.0], [1.0, 1e-220]], dtype=D)
    assert solve_att_svm(keys, torch.tensor([0, 0]), queries=queries).status != "infeasible"


def test_blocks_prove_nothing_by_rounded_differences() -> None:
    keys = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[-1.0, -1.0], [0.0, -1e-17]]], dtype=D)
    selected = torch.tensor([0, 0])
    assert solve_att_svm(keys, selected).status == "unverified"
    assert solve_att_svm([keys[:1], keys[1:]], selected).status == "unverified"
    # Exact differences still prove it.
    opposite = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[-1.0, -1.0], [0.0, 0.0]]], dtype=D)
    assert solve_att_svm([opposite[:1], opposite[1:]], selected).status == "infeasible"


@pytest.mark.parametrize("power", [-170, -100, 100, 200, 290])
@pytest.mark.parametrize("limit", ["relaxed", "rate_coupled"])
def test_joint_limits_do_not_depend_on_the_values_scale(power: int, limit: str) -> None:
    g = torch.Generator().manual_seed(0)
    keys, values = torch.randn(4, 3, 8, generator=g, dtype=D), torch.randn(4, 3, 8, generator=g, dtype=D)
    labels, selected = torch.tensor([1, -1, 1, 1]), torch.zeros(4).long()

    def solved(scale: float, batch: bool) -> torch.Tensor:
        given = (keys, values * scale, labels, selected)
        ratio = 1.0 / scale if limit == "rate_coupled" else None
        if batch:
            joint = solve_joint_svm(*(x[None] for x in given), limit=limit, norm_ratio=ratio)
            assert joint.attention.status == ("certified",)
            return joint.attention.direction[0]
        joint = solve_joint_svm(*given, limit=limit, norm_ratio=ratio)
        assert joint.attention.status == "certified"
        return joint.attention.direction

    one = solved(1.0, False)
    assert one.any()
    for batch in (False, True):
        torch.testing.assert_close(solved(10.0**power, batch), one, rtol=1e-6, atol=1e-6)
