"""The parts of the solver one by one, the rarely taken roads among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_maxmargin.svm import RowProblem, solve_att_svm
from lightning_maxmargin.svm.certificate import relative_gap
from lightning_maxmargin.svm.generate import generate
from lightning_maxmargin.svm.qp.active import finish, gap_of, on_active, point_of
from lightning_maxmargin.svm.qp.farkas import accept, by_linear_program, farkas_from
from lightning_maxmargin.svm.qp.interior import Rows, interior
from lightning_maxmargin.svm.qp.working import SmallProblem, _multipliers_of, solve_small


def rows(m: int, r: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(m, r))
    A *= np.sign(A @ rng.normal(size=r))[:, None]
    return A / np.linalg.norm(A, axis=1)[:, None], np.ones(m)


def attention(n: int, T: int, d: int, dq: int | None = None, solvable: bool = True) -> RowProblem:
    g = torch.Generator().manual_seed(n + T + d)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    z = None if dq is None else torch.rand(n, dq, generator=g, dtype=torch.float64)
    selected = (keys @ torch.ones(d, dtype=torch.float64)).argmax(1)
    return RowProblem.attention(keys, selected if solvable else (selected + 1) % T, z)


@pytest.mark.parametrize("dq", [None, 3])
def test_structured_rows_equal_explicit_rows(dq: int | None) -> None:
    problem = attention(7, 5, 4, dq)
    ids, rng = problem.ids, np.random.default_rng(0)
    D, W, lam = problem.rows(ids), rng.normal(size=problem.shape), rng.random(len(ids))
    np.testing.assert_allclose(problem.margins(W).ravel()[ids], D @ W.ravel(), atol=1e-13)
    np.testing.assert_allclose(problem.exact_margins(W, ids), D @ W.ravel(), atol=1e-13)
    np.testing.assert_allclose(problem.gram(ids), D @ D.T, atol=1e-12)
    np.testing.assert_allclose(problem.gram(ids, ids[:3]), D @ D[:3].T, atol=1e-12)
    np.testing.assert_allclose(problem.combine(ids, lam).ravel(), lam @ D, atol=1e-12)
    np.testing.assert_allclose(problem.row_norms.ravel()[ids], np.linalg.norm(D, axis=1), rtol=1e-8)
    assert np.isinf(problem.margins(W)[~problem.live]).all()


@pytest.mark.parametrize(("m", "r"), [(40, 5), (8, 12), (30, 30)])
def test_interior_with_rows_equals_with_gram(m: int, r: int) -> None:
    A, b = rows(m, r)
    ours, theirs = interior(Rows(A=A), b), interior(Rows(gram=A @ A.T), b)
    np.testing.assert_allclose(ours.lam @ A, theirs.lam @ A, atol=1e-5 * np.linalg.norm(ours.lam @ A))
    point = point_of(A, None, ours.lam)
    assert gap_of(point, b) < 1e-6


@pytest.mark.parametrize("form", ["rows", "gram"])
@pytest.mark.parametrize("copies", [1, 10])
def test_finish_from_a_rough_guess(form: str, copies: int) -> None:
    A, b = rows(40, 5)
    A, b = np.repeat(A, copies, axis=0), np.repeat(b, copies)
    rough = interior(Rows(A=A), b, tol=1e-5)
    given = (A, None) if form == "rows" else (None, A @ A.T)
    done = finish(*given, b, rough.lam > rough.slack, rough.lam)
    assert done.gap < 1e-12
    assert (done.point.lam >= 0).all()
    assert (A @ (done.point.lam @ A) >= 1 - 1e-11).all()


@pytest.mark.parametrize("form", ["rows", "gram"])
def test_more_tight_rows_than_dimensions(form: str) -> None:
    # All rows touch p = (5, 0, 0): one multiplier for each, most bases have negative ones.
    rng = np.random.default_rng(0)
    side = rng.normal(size=(50, 2))
    A = np.column_stack([np.full(50, 0.2), np.sqrt(0.96) * side / np.linalg.norm(side, axis=1)[:, None]])
    inner = interior(Rows(A=A), np.ones(50))
    given = (A, None) if form == "rows" else (None, A @ A.T)
    done = finish(*given, np.ones(50), inner.lam > inner.slack, inner.lam)
    assert done.gap < 1e-12
    np.testing.assert_allclose(done.point.lam @ A, [5, 0, 0], atol=1e-10)


def test_dependent_active_rows_are_dropped() -> None:
    A = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for given in ((A, None), (None, A @ A.T)):
        lam, _ = on_active(*given, np.ones(3), np.arange(3))
        np.testing.assert_allclose(lam @ A, [1, 1], atol=1e-14)
        assert np.count_nonzero(lam) == 2


@pytest.mark.parametrize("dq", [None, 200])
def test_daqp_agrees_with_the_interior_point(dq: int | None) -> None:
    problem = attention(8, 5, 6, dq)
    small = SmallProblem(problem, problem.ids)
    assert (small.A is None) == (dq is not None)
    lam = _multipliers_of(small, None)
    assert lam is not None
    warm = _multipliers_of(small, lam)
    assert warm is not None
    np.testing.assert_allclose(warm, lam, atol=1e-8 * lam.max())
    direction = problem.combine(problem.ids, small.top * small.scale * lam)
    np.testing.assert_allclose(direction, solve_small(problem, problem.ids).direction, atol=1e-8)


def test_two_roads_to_a_farkas_vector() -> None:
    problem = attention(30, 6, 5, solvable=False)
    small = SmallProblem(problem, problem.ids)
    rng = np.random.default_rng(0)
    by_lp = by_linear_program(problem, problem.ids, small.scale, small.A)
    by_projection = farkas_from(problem, problem.ids, small.scale, small.A, rng.random(len(problem.ids)))
    for u in (by_lp, by_projection):
        assert u is not None
        assert accept(problem, problem.ids, u) is not None
    assert by_lp is not None
    assert np.count_nonzero(by_lp) <= 6


def test_no_farkas_vector_where_a_direction_exists() -> None:
    problem = attention(30, 6, 5)
    small = SmallProblem(problem, problem.ids)
    assert farkas_from(problem, problem.ids, small.scale, small.A, np.ones(len(problem.ids))) is None
    assert accept(problem, problem.ids, np.ones(len(problem.ids))) is None


def test_generation_looks_at_few_rows() -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 64, 16, generator=g, dtype=torch.float64)
    u = torch.randn(16, generator=g, dtype=torch.float64)
    problem = RowProblem.attention(keys, (keys @ u).argmax(1))
    outcome = generate(problem)
    assert len(outcome.ids) < 0.2 * len(problem.ids)
    assert problem.margins(outcome.direction).min() >= 1 - 1e-10


def planted(n: int, T: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    u = torch.nn.functional.normalize(torch.randn(d, generator=g, dtype=torch.float64), dim=0)
    selected = (keys @ u).argmax(1)
    keys[torch.arange(n), selected] += 0.5 * u
    return keys, selected


def test_medium() -> None:
    keys, selected = planted(100, 64, 128)
    solution = solve_att_svm(keys, selected)
    assert solution.status == "certified"
    # The solver's own gap; the Solution's has the bounds on rounding in it.
    problem = RowProblem.attention(keys, selected)
    ids = np.flatnonzero(solution.dual.numpy())
    lam, p = solution.dual.numpy().ravel()[ids], solution.direction.numpy()
    combined = float(np.linalg.norm(problem.combine(ids, lam)))
    assert relative_gap(float(lam.sum()), combined, float(problem.margins(p).min()), float(np.linalg.norm(p))) < 1e-12
    assert solution.gap < 1e-11


@pytest.mark.slow
def test_ill_conditioned_like_text() -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(3000, 8, 384, generator=g) / torch.arange(1, 385)
    solution = solve_att_svm(keys, (keys @ torch.randn(384, generator=g)).argmax(1))
    assert solution.status == "certified"
    assert solution.gap <= 1e-9


@pytest.mark.slow
def test_random_labels_on_features_like_text() -> None:
    from lightning_maxmargin.svm import certify_infeasible, solve_label_svm

    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 384, generator=g) / torch.arange(1, 385)
    y = torch.randint(2, (3000,), generator=g) * 2 - 1
    solution = solve_label_svm(x, y)
    dual = np.stack([np.zeros(3000), solution.dual.numpy()], axis=1)
    assert solution.status == "infeasible"
    assert certify_infeasible(RowProblem.binary(x, y), dual)[1] == "infeasible"
