"""The guess of the active rows: its products, and that answers that begin with it are those that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_maxmargin.svm import RowProblem, newton, norm_of
from lightning_maxmargin.svm.newton import Part, UnitRows, likely_active
from lightning_maxmargin.svm.solve import solve_problem
from tests.svm.reference import reference_rows


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "MIN_ROWS", 1)
    monkeypatch.setattr(newton, "MIN_DIM", 1)


def classes(n: int, d: int, K: int, seed: int, wrong: float = 0.0) -> RowProblem:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = (x @ rng.standard_normal((d, K))).argmax(1)
    y = np.where(rng.random(n) < wrong, rng.integers(K, size=n), y)
    return RowProblem.multiclass(torch.from_numpy(x), torch.from_numpy(y), K)


def attention(n: int, T: int, d: int, dq: int, seed: int) -> RowProblem:
    """With padding, right-hand sides, some of them 0, and queries of very different size."""
    rng = np.random.default_rng(seed)
    keys, z = rng.standard_normal((n, T, d)), rng.standard_normal((n, dq)) * rng.uniform(0.1, 3, (n, 1))
    selected = np.einsum("ntd,nd->nt", keys, z @ rng.standard_normal((dq, d))).argmax(1)
    mask = rng.random((n, T)) < 0.8
    mask[np.arange(n), selected] = True
    rhs = rng.uniform(0.5, 2, (n, T)) * (rng.random((n, T)) < 0.9)
    tensors = (torch.from_numpy(x) for x in (keys, selected, z, mask, rhs))
    return RowProblem.attention(*tensors)


def problem_of(kind: str, seed: int) -> RowProblem:
    return classes(30, 6, 4, seed) if kind == "classes" else attention(12, 6, 5, 4, seed)


@pytest.mark.parametrize("kind", ["classes", "attention"])
def test_products_are_those_of_explicit_rows(kind: str) -> None:
    problem = problem_of(kind, 0)
    rows, rng = UnitRows(problem), np.random.default_rng(0)
    explicit = problem.rows(problem.ids) / problem.row_norms.ravel()[problem.ids, None]
    W = rng.standard_normal(problem.shape)
    np.testing.assert_allclose(rows.times(W).ravel()[problem.ids], explicit @ W.ravel(), atol=1e-12)
    some = np.sort(rng.choice(len(problem.ids), 20, replace=False))
    part, lam = Part(rows, problem.ids[some]), rng.random(20)
    np.testing.assert_allclose(part.times(W), explicit[some] @ W.ravel(), atol=1e-12)
    np.testing.assert_allclose(part.combine(lam).ravel(), lam @ explicit[some], atol=1e-12)


@pytest.mark.parametrize("kind", ["classes", "attention"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("always")
def test_optimum_is_cvxpys(kind: str, seed: int) -> None:
    problem = problem_of(kind, seed)
    assert likely_active(problem) is not None
    solution = solve_problem(problem)
    assert solution.certified
    found = reference_rows(problem)
    assert found is not None
    np.testing.assert_allclose(solution.direction.numpy(), found, atol=1e-6 * norm_of(found, "l2"))


@pytest.mark.parametrize("make", [lambda: classes(150, 30, 10, 1), lambda: attention(60, 24, 16, 16, 1)])
def test_answer_is_that_of_constraint_generation(
    make: Callable[[], RowProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make()
    guess = likely_active(problem)
    assert guess is not None
    ids, active = guess
    solution = solve_problem(problem)
    on = problem.spread(ids[active], np.ones(int(active.sum()))) > 0
    # What it is for: nine in ten of the active rows are among those it names, and it names few others.
    support = solution.dual.numpy() > 0
    assert (on & support).sum() >= 0.9 * support.sum()
    assert on.sum() <= 1.3 * support.sum()
    monkeypatch.setattr(newton, "MIN_ROWS", 10**9)
    before = solve_problem(problem)
    assert solution.certified
    assert before.certified
    assert float((solution.direction - before.direction).norm()) <= 1e-9 * float(before.direction.norm())


@pytest.mark.usefixtures("always")
def test_nothing_is_guessed_where_rows_cannot_be_met() -> None:
    problem = classes(300, 5, 4, 0, wrong=0.3)
    assert likely_active(problem) is None
    assert solve_problem(problem).infeasible
    no_row = classes(30, 6, 4, 0)
    no_row.row_norms[no_row.live] = 0
    assert likely_active(no_row) is None


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_ACTIVE"])
@pytest.mark.usefixtures("always")
def test_too_many_rows_are_left_to_constraint_generation(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, limit, 5)
    assert likely_active(classes(30, 6, 4, 0)) is None
