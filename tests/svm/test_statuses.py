"""Statuses on random tiny problems against a linear program, alone and in batches: none may be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from lightning_maxmargin.svm import RowProblem, solve_att_svm

# HiGHS meets its constraints to 1e-7; an optimum t below this is zero to it.
ZERO = 1e-6


def room(problem: RowProblem) -> float:
    """max t <= 1 s.t. rows (of unit norm) @ p >= t b / ||row||, |p| <= 1: positive exactly where a direction exists."""
    ids = problem.ids
    norms = problem.row_norms.ravel()[ids]
    D, b = problem.rows(ids) / norms[:, None], problem.rhs.ravel()[ids] / norms
    b = b / b.max()
    d = D.shape[1]
    cost = np.append(np.zeros(d), -1.0)
    A, bounds = np.hstack([-D, b[:, None]]), [(-1, 1)] * d + [(0, 1)]
    found = linprog(cost, A_ub=A, b_ub=np.zeros(len(D)), bounds=bounds, method="highs-ds")
    assert found.status == 0
    return -float(found.fun)


def random_problems(count: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """(keys, selected, rhs) of batches of one shape: separable and not, right-hand sides 1 and 0/1."""
    g = torch.Generator().manual_seed(seed)
    batches = []
    while count > 0:
        B = min(count, 20)
        n, T, d = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 11), (2, 7), (2, 9)))
        keys = torch.randn(B, n, T, d, generator=g, dtype=torch.float64)
        if torch.rand((), generator=g) < 0.3:
            # Small whole numbers: ties, parallel and opposite rows.
            keys = (2 * keys).round()
        selected = torch.randint(T, (B, n), generator=g)
        if torch.rand((), generator=g) < 0.4:
            selected = (keys @ torch.randn(d, generator=g, dtype=torch.float64)).argmax(2)
        zero_one = torch.rand((), generator=g) < 0.5
        batches.append((keys, selected, (torch.rand(B, n, T, generator=g) < 0.5).double() if zero_one else None))
        count -= B
    return batches


def statuses_agree(count: int, seed: int) -> None:
    seen = {"certified": 0, "infeasible": 0}
    for keys, selected, rhs in random_problems(count, seed):
        many = {m: solve_att_svm(keys, selected, rhs=rhs, method=m) for m in ("daqp", "torch", "loop")}
        for b in range(len(keys)):
            problem = RowProblem.attention(keys[b], selected[b], rhs=None if rhs is None else rhs[b])
            if not (problem.rhs > 0).any():
                assert {m.status[b] for m in many.values()} == {"certified"}
                continue
            truth = "certified" if room(problem) > ZERO else "infeasible"
            assert {name: m.status[b] for name, m in many.items()} == dict.fromkeys(many, truth)
            seen[truth] += 1
    assert min(seen.values()) > 0.2 * count


def test_statuses_of_a_few() -> None:
    statuses_agree(200, seed=1)


@pytest.mark.slow
def test_statuses_of_two_thousand() -> None:
    statuses_agree(2000, seed=2)
