"""Every solver against cvxpy (and scikit-learn) on random problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor

from lightning_maxmargin.svm import (
    RowProblem,
    Solution,
    certify,
    solve_att_svm,
    solve_joint_svm,
    solve_label_svm,
)
from tests.svm.reference import (
    reference_binary,
    reference_multiclass,
    reference_rate_coupled,
    reference_rows,
)

# What Clarabel's own answer is good for.
ORACLE = 2e-6


def agree(ours: Tensor | np.ndarray, theirs: np.ndarray | None, tol: float = ORACLE) -> None:
    assert theirs is not None
    assert np.linalg.norm(np.asarray(ours) - theirs) <= tol * np.linalg.norm(theirs)


def judged(solution: Solution, problem: RowProblem) -> None:
    """Certified by the independent check, rows met, and direction = sum dual * row."""
    assert solution.status == "certified"
    direction, dual = solution.direction.numpy(), solution.dual.numpy()
    gap, violation, status = certify(problem, direction, dual)
    # Small problems take their margins from differences of keys, others from products: the last digits of a gap differ.
    assert (violation, status) == (solution.violation, "certified")
    assert gap == pytest.approx(solution.gap, rel=0, abs=1e-13)
    rows = problem.rows(problem.ids)
    assert (rows @ direction.ravel() >= problem.rhs.ravel()[problem.ids] - 1e-7).all()
    agree(dual.ravel()[problem.ids] @ rows, direction.ravel(), 1e-9)


def random_keys(seed: int, n: int, T: int, d: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    return keys, (keys @ torch.randn(d, generator=g, dtype=torch.float64)).argmax(1)


@pytest.mark.parametrize(("n", "T", "d"), [(1, 2, 1), (6, 8, 10), (10, 3, 40), (40, 20, 12), (60, 30, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_attention_p(n: int, T: int, d: int, seed: int) -> None:
    keys, selected = random_keys(seed, n, T, d)
    problem = RowProblem.attention(keys, selected)
    solution = solve_att_svm(keys, selected)
    judged(solution, problem)
    agree(solution.direction, reference_rows(problem))
    i, t = solution.support.T
    tight = problem.margins(solution.direction.numpy())[i, t]
    np.testing.assert_allclose(tight, 1, atol=1e-7)
    assert not solution.dual[~torch.from_numpy(problem.live)].any()
    carrying = torch.nonzero(solution.dual > 1e-6).tolist()
    assert all(pair in solution.support.tolist() for pair in carrying)


@pytest.mark.parametrize(("n", "T", "d", "dq"), [(4, 5, 3, 2), (6, 8, 10, 10), (5, 4, 30, 25), (30, 6, 4, 6)])
def test_attention_w(n: int, T: int, d: int, dq: int) -> None:
    keys, _ = random_keys(0, n, T, d)
    g = torch.Generator().manual_seed(1)
    z, W = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((n, dq), (d, dq)))
    selected = torch.einsum("ntd,de,ne->nt", keys, W, z).argmax(1)
    problem = RowProblem.attention(keys, selected, z)
    solution = solve_att_svm(keys, selected, queries=z)
    judged(solution, problem)
    agree(solution.direction, reference_rows(problem))


def test_ragged() -> None:
    keys, _ = random_keys(3, 12, 9, 7)
    lengths = torch.arange(12) % 8 + 2
    mask = torch.arange(9) < lengths[:, None]
    scores = (keys @ torch.ones(7, dtype=torch.float64)).masked_fill(~mask, -torch.inf)
    keys[~mask] = torch.nan
    selected = scores.argmax(1)
    solution = solve_att_svm(keys, selected, mask=mask)
    problem = RowProblem.attention(keys, selected, mask=mask)
    assert problem.live.sum() == (lengths - 1).sum()
    judged(solution, problem)
    agree(solution.direction, reference_rows(problem))
    assert not solution.dual[~mask].any()


@pytest.mark.parametrize("seed", range(6))
def test_zero_and_uneven_right_hand_sides(seed: int) -> None:
    keys, selected = random_keys(seed, 15, 10, 20)
    rhs = torch.rand(15, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rhs[rhs < 0.4] = 0
    problem = RowProblem.attention(keys, selected, rhs=rhs)
    solution = solve_att_svm(keys, selected, rhs=rhs)
    judged(solution, problem)
    agree(solution.direction, reference_rows(problem))


def joint_data(seed: int) -> tuple[Tensor, Tensor, Tensor, RowProblem, np.ndarray]:
    keys, selected = random_keys(seed, 10, 6, 32)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    labels = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64)
    selected = (keys @ keys[0, 0]).argmax(1)
    x = keys[torch.arange(10), selected].numpy()
    v = reference_binary(x, labels.numpy())
    assert v is not None
    margins = labels.numpy() * (x @ v) / np.linalg.norm(v)
    return keys, selected, labels, RowProblem.attention(keys, selected), margins - margins.min()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rho", [0.05, 0.3, 1.0, 20.0])
def test_rate_coupled(seed: int, rho: float) -> None:
    keys, selected, labels, problem, spare = joint_data(seed)
    joint = solve_joint_svm(keys, keys, labels, selected, limit="rate_coupled", norm_ratio=rho)
    assert joint.attention.status == "certified"
    p = joint.attention.direction.numpy()
    agree(p / np.linalg.norm(p), reference_rate_coupled(problem, rho * spare), 1e-4)

    def value(u: np.ndarray) -> float:
        return float((problem.margins(u / np.linalg.norm(u)) + rho * spare[:, None]).min())

    assert value(p) >= value(reference_rate_coupled(problem, rho * spare)) - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_relaxed(seed: int) -> None:
    keys, selected, labels, problem, spare = joint_data(seed)
    joint = solve_joint_svm(keys, keys, labels, selected, limit="relaxed")
    rhs = np.broadcast_to((spare <= 1e-6)[:, None], (10, 6)).astype(float)
    assert 0 < rhs.mean() <= 1
    judged(joint.attention, problem.with_rhs(rhs))
    agree(joint.attention.direction, reference_rows(problem.with_rhs(rhs)))


@pytest.mark.parametrize(("n", "d"), [(5, 9), (30, 30), (80, 5)])
def test_binary_labels(n: int, d: int) -> None:
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = torch.sign(x @ torch.randn(d, generator=g, dtype=torch.float64))
    solution = solve_label_svm(x, y)
    assert solution.status == "certified"
    assert solution.dual.shape == (n,)
    agree(solution.direction, reference_binary(x.numpy(), y.numpy()))
    agree((solution.dual * y) @ x, solution.direction.numpy(), 1e-9)
    np.testing.assert_allclose((y * (x @ solution.direction))[solution.support], 1, atol=1e-7)


def test_binary_labels_against_svc_without_intercept() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    y = torch.sign(x @ torch.randn(6, generator=g, dtype=torch.float64))
    # Mirroring every sample makes the intercept of SVC zero by symmetry.
    both, signs = np.concatenate([x, -x]), np.concatenate([y, -y])
    theirs = SVC(kernel="linear", C=1e10, tol=1e-8).fit(both, signs).coef_[0]
    agree(solve_label_svm(x, y).direction, theirs, 1e-5)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_classes(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    x = torch.randn(25, 8, generator=g, dtype=torch.float64)
    y = (x @ torch.randn(8, classes, generator=g, dtype=torch.float64)).argmax(1)
    solution = solve_label_svm(x, y, num_classes=classes)
    judged(solution, RowProblem.multiclass(x, y, classes))
    agree(solution.direction, reference_multiclass(x.numpy(), y.numpy(), classes))
    assert solution.dual.shape == (25, classes)


def test_two_classes_are_half_the_binary_answer_each() -> None:
    g = torch.Generator().manual_seed(8)
    x = torch.randn(20, 5, generator=g, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    v = solve_label_svm(x, 2 * y - 1).direction
    agree(solve_label_svm(x, y).direction, torch.stack([-v / 2, v / 2]).numpy(), 1e-10)
