"""Sets that are hard or impossible: certified, or infeasible with a checked proof, or unverified; never wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_maxmargin.svm import (
    RowProblem,
    Solution,
    certify,
    certify_infeasible,
    solve_att_svm,
    solve_joint_svm,
    solve_label_svm,
)


def f64(x: object) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def proven(solution: Solution, problem: RowProblem) -> None:
    """A Farkas vector, checked on explicit rows without the package's own arithmetic."""
    assert solution.status == "infeasible"
    assert solution.margin == 0
    assert solution.gap == float("inf")
    assert not solution.direction.any()
    assert "no direction" in str(solution.message)
    dual = solution.dual.numpy()
    if dual.ndim == 1:
        dual = np.stack([0 * dual, dual], axis=1)
    assert certify_infeasible(problem, dual)[1] == "infeasible"
    ids, u = problem.ids, dual.ravel()[problem.ids]
    rows = problem.rows(ids)
    assert (u >= 0).all()
    assert u @ problem.rhs.ravel()[ids] == pytest.approx(1, rel=1e-12)
    assert np.linalg.norm(u @ rows) <= 1e-12 * (u @ np.linalg.norm(rows, axis=1))


@pytest.mark.parametrize("margin", [1e-3, 1e-6])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_tiny_margins(margin: float, scale: float) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 5, generator=g, dtype=torch.float64)
    x[:, 1:] /= x[:, 1:].norm(dim=1, keepdim=True)
    x[:, 0] = margin
    solution = solve_label_svm(x * scale, torch.ones(60))
    assert solution.status == "certified"
    assert solution.margin == pytest.approx(margin * scale, rel=1e-9)
    torch.testing.assert_close(solution.direction * margin * scale, f64([1.0, 0, 0, 0, 0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("margin", [1e-7, 1e-9, 1e-11, 1e-13, 1e-15])
@pytest.mark.parametrize("seed", range(4))
def test_margins_below_what_float64_shows_are_never_called_impossible(margin: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 4, generator=g, dtype=torch.float64)
    x[:, 0] = margin
    solution = solve_label_svm(x, torch.ones(40))
    if solution.status == "infeasible":
        # Only where the rows cancel to rounding: the proof must hold all the same.
        proven(solution, RowProblem.binary(x, torch.ones(40)))
        assert margin < 1e-13
    elif solution.status == "certified":
        assert solution.margin == pytest.approx(margin, rel=1e-7)


@pytest.mark.parametrize("d", [2, 5, 30])
@pytest.mark.parametrize("seed", range(3))
def test_infeasible_attention(d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(40, 8, d, generator=g, dtype=torch.float64)
    selected = torch.randint(8, (40,), generator=g)
    proven(solve_att_svm(keys, selected), RowProblem.attention(keys, selected))


def test_infeasible_with_queries() -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 8, 4, generator=g, dtype=torch.float64)
    z = torch.randn(40, 3, generator=g, dtype=torch.float64)
    selected = torch.randint(8, (40,), generator=g)
    proven(solve_att_svm(keys, selected, queries=z), RowProblem.attention(keys, selected, z))


def test_infeasible_with_more_dimensions_than_rows() -> None:
    g = torch.Generator().manual_seed(0)
    # Multiples of 2^-20, so that the combination is one in exact arithmetic too.
    keys = (torch.randn(4, 3, 30, generator=g, dtype=torch.float64) * 2**20).round() / 2**20
    keys[0, 2] = 2 * keys[0, 0] - keys[0, 1]
    z = torch.randn(4, 25, generator=g, dtype=torch.float64)
    proven(solve_att_svm(keys, torch.zeros(4), queries=z), RowProblem.attention(keys, torch.zeros(4), z))


def test_random_labels() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 40, generator=g)
    y = torch.randint(2, (400,), generator=g) * 2 - 1
    proven(solve_label_svm(x, y), RowProblem.binary(x, y))


def test_contradictory_labels() -> None:
    x = f64([[1, 2], [1, 2], [3, 4]])
    y = torch.tensor([1, -1, 1])
    solution = solve_label_svm(x, y)
    proven(solution, RowProblem.binary(x, y))
    assert solution.dual[:2].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    classes = torch.tensor([0, 2, 1])
    proven(solve_label_svm(x, classes), RowProblem.multiclass(x, classes))


def test_zero_features_cannot_be_labelled() -> None:
    x = f64([[0, 0], [1, 2]])
    proven(solve_label_svm(x, torch.tensor([1, -1])), RowProblem.binary(x, torch.tensor([1, -1])))


def test_one_class() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, generator=g, dtype=torch.float64) + 0.1
    solution = solve_label_svm(x, torch.ones(20))
    assert solution.status == "certified"
    assert (x @ solution.direction).min() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("keys", [torch.randn(3, 1, 4), torch.ones(3, 5, 4)], ids=["one token", "identical tokens"])
def test_nothing_to_separate(keys: Tensor) -> None:
    solution = solve_att_svm(keys, torch.zeros(3, dtype=torch.long))
    assert solution.status == "certified"
    assert solution.margin == float("inf")
    assert not solution.direction.any()
    assert solution.merged == (0 if keys.shape[1] == 1 else 12)
    assert "no token competes" in str(solution.message)


def test_one_sequence() -> None:
    solution = solve_att_svm(f64([[[3.0, 4.0], [0.0, 0.0]]]), torch.tensor([0]))
    torch.testing.assert_close(solution.direction, f64([0.12, 0.16]), atol=1e-15, rtol=0)
    assert solution.margin == pytest.approx(5, abs=1e-14)


def test_exact_ties_are_merged_and_near_ties_kept() -> None:
    keys = f64([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0 - 1e-12, 0.0], [0.0, 0.0]]])
    exact = solve_att_svm(keys[:1], torch.tensor([0]))
    assert (exact.status, exact.merged, exact.direction.tolist()) == ("certified", 1, [1.0, 0.0])
    near = solve_att_svm(keys[1:], torch.tensor([0]))
    assert near.merged == 0
    assert near.status == "certified"
    assert near.margin == pytest.approx(float(keys[1, 0, 0] - keys[1, 1, 0]), rel=1e-12)


def test_a_near_tie_on_the_wrong_side() -> None:
    keys = f64([[[1.0, 0.0], [1.0 - 1e-12, 0.0], [2.0, 0.0]]])
    proven(solve_att_svm(keys, torch.tensor([0])), RowProblem.attention(keys, torch.tensor([0])))


def test_rows_of_very_different_size() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, 9, generator=g, dtype=torch.float64) * 10.0 ** torch.arange(-12, 12, 4)[:, None]
    solution = solve_label_svm(x, torch.ones(6))
    assert solution.status == "certified"
    assert (x @ solution.direction).min() == pytest.approx(1, rel=1e-6)


def test_unseparable_head_leaves_only_strict() -> None:
    keys = f64([[[0.0, 0], [1, 1]], [[0, 0], [1, 1]]])
    labels, selected = torch.tensor([1, -1]), torch.tensor([1, 1])
    strict = solve_joint_svm(keys, keys, labels, selected)
    assert (strict.attention.status, strict.head.status) == ("certified", "infeasible")
    for limit in ("relaxed", "rate_coupled"):
        joint = solve_joint_svm(keys, keys, labels, selected, limit=limit, norm_ratio=1.0)
        assert joint.attention.status == "unverified"
        assert not joint.attention.direction.any()
        assert "use strict" in str(joint.attention.message)


@pytest.mark.parametrize("fault", ["a dropped row", "a negative multiplier", "a turned direction", "a dead row"])
def test_certify_refuses(fault: str) -> None:
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(5, 6, 4, generator=g, dtype=torch.float64)
    selected = (keys @ torch.ones(4, dtype=torch.float64)).argmax(1)
    problem = RowProblem.attention(keys, selected)
    solution = solve_att_svm(keys, selected)
    p, lam = solution.direction.numpy().copy(), solution.dual.numpy().copy()
    assert certify(problem, p, lam)[2] == "certified"
    i, t = solution.support[0].tolist()
    if fault == "a dropped row":
        lam[i, t] = 0
    elif fault == "a negative multiplier":
        j = np.argwhere(problem.live & (lam == 0))[0]
        lam[tuple(j)] = -1e-9
    elif fault == "a turned direction":
        p[0] += 1e-3
    else:
        lam[0, selected[0]] = 1e-9
    assert certify(problem, p, lam)[2] == "unverified"


def test_certify_infeasible_refuses_a_feasible_set() -> None:
    problem = RowProblem.attention(f64([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]), torch.tensor([0]))
    assert certify_infeasible(problem, np.array([[0.0, 0.5, 0.5]])) == (pytest.approx(0.927, abs=1e-3), "unverified")
