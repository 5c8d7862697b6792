"""Random batches, and the comparison of a stacked Solution with one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_maxmargin.svm import RowProblem, Solution, certify, certify_infeasible, solve_att_svm


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
