"""Label and joint SVMs in other norms, against cvxpy on the problems as they are defined."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import norm_of, only, solve_joint_svm, solve_label_svm
from lightning_maxmargin.svm.norms.registry import entry_of

NORMS: list[Any] = [1.75, 3.0, "linf"]
# A cvxpy solver of cones stops at gaps of 1e-8 and below; its answers are compared at ten times that.
CLOSE = 1e-7


def drawn(
    seed: int, n: int = 10, T: int = 4, d: int = 9
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """keys (n, T, d), values likewise, labels (n,), selected (n,): labels that are not all support vectors."""
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, n, T, d, generator=g, dtype=torch.float64)
    labels = torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0).double()
    selected = (keys @ torch.randn(d, generator=g, dtype=torch.float64)).argmax(1)
    return keys, values, labels, selected


def rows_of(keys: torch.Tensor, selected: torch.Tensor) -> np.ndarray:
    """k_alpha - k_t of every other token: (n, T - 1, d)."""
    n, T, d = keys.shape
    chosen = keys[torch.arange(n), selected]
    others = torch.ones(n, T, dtype=torch.bool).scatter(1, selected[:, None], False)
    return (chosen[:, None] - keys)[others].view(n, T - 1, d).numpy()


def least(norm: Any, d: int, rows: np.ndarray, b: np.ndarray) -> float:
    """The smallest norm of a w with rows w >= b."""
    w = cp.Variable(d)
    expression = entry_of(norm).expression
    assert expression is not None
    problem = cp.Problem(cp.Minimize(expression(w)), [rows @ w >= b])
    return float(problem.solve(solver="CLARABEL"))


def spare_of(head: Any, values: torch.Tensor, labels: torch.Tensor, selected: torch.Tensor) -> np.ndarray:
    """Gamma_i - Gamma (n,), in the norm of the head."""
    chosen = values[torch.arange(len(values)), selected]
    margins = (labels * (chosen @ head.direction)).numpy() / norm_of(head.direction, head.norm)
    return margins - margins.min()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", NORMS)
def test_label_svm_is_the_smallest(norm: Any, seed: int) -> None:
    _, values, labels, selected = drawn(seed)
    x = values[torch.arange(len(values)), selected]
    found = only(solve_label_svm(x, labels, norm=norm))
    assert found.certified, found.message
    assert found.norm == norm
    rows = (labels[:, None] * x).numpy()
    assert 1 / found.margin == pytest.approx(least(norm, x.shape[1], rows, np.ones(len(x))), rel=CLOSE)
    # The dual says it by itself: ||v|| = sum lam, with ||sum lam y x||_dual = 1.
    combined = (found.dual[:, None] * torch.from_numpy(rows)).sum(0).numpy()
    assert entry_of(norm).dual(combined / abs(combined).max()) * abs(combined).max() == pytest.approx(1, rel=1e-9)
    assert float(found.dual.sum()) == pytest.approx(1 / found.margin, rel=1e-8)


@pytest.mark.parametrize("norm", [*NORMS, "spectral", "nuclear"])
def test_classes_in_every_norm(norm: Any) -> None:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(9, 7, generator=g, dtype=torch.float64), torch.arange(9) % 3
    found = only(solve_label_svm(x, y, norm=norm))
    assert found.certified, found.message
    V = cp.Variable((3, 7))
    rows = [
        (V[int(k)] - V[other]) @ x[i].numpy() >= 1 for i, k in enumerate(y) for other in range(3) if other != int(k)
    ]
    expression = entry_of(norm).expression
    assert expression is not None
    best = cp.Problem(cp.Minimize(expression(V)), rows).solve(solver="CLARABEL")
    assert 1 / found.margin == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", NORMS)
def test_relaxed_limit_is_the_smallest(norm: Any, seed: int) -> None:
    keys, values, labels, selected = drawn(seed)
    joint = solve_joint_svm(keys, values, labels, selected, limit="relaxed", norm=norm)
    attention, head = only(joint.attention), only(joint.head)
    assert attention.certified, attention.message
    assert attention.norm == head.norm == norm
    supports = spare_of(head, values, labels, selected) <= 1e-6 * head.margin
    b = np.repeat(supports.astype(float), keys.shape[1] - 1)
    rows = rows_of(keys, selected).reshape(-1, keys.shape[2])
    assert 0 < b.sum() < len(b)
    assert 1 / attention.margin == pytest.approx(least(norm, keys.shape[2], rows, b), rel=CLOSE)


@pytest.mark.parametrize("rho", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("norm", NORMS)
def test_rate_coupled_limit_is_the_largest(norm: Any, seed: int, rho: float) -> None:
    keys, values, labels, selected = drawn(seed)
    joint = solve_joint_svm(keys, values, labels, selected, limit="rate_coupled", norm_ratio=rho, norm=norm)
    attention, head = only(joint.attention), only(joint.head)
    assert attention.certified, attention.message
    spare = rho * spare_of(head, values, labels, selected)
    rows, d = rows_of(keys, selected), keys.shape[2]
    p, t = cp.Variable(d), cp.Variable()
    expression = entry_of(norm).expression
    assert expression is not None
    margins = rows.reshape(-1, d) @ p
    asked = [margins >= 0, margins + np.repeat(spare, rows.shape[1]) >= t, expression(p) <= 1]
    best = cp.Problem(cp.Maximize(t), asked).solve(solver="CLARABEL")
    unit = attention.direction.numpy() / norm_of(attention.direction, norm)
    found = (rows @ unit + spare[:, None]).min()
    assert (rows @ unit).min() >= -1e-8
    assert found == pytest.approx(best, rel=1e-6)


def test_attention_and_head_in_norms_of_their_own() -> None:
    keys, values, labels, selected = drawn(0)
    queries = torch.randn(len(keys), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for limit, rho in (("strict", None), ("relaxed", None), ("rate_coupled", 1.0)):
        joint = solve_joint_svm(
            keys, values, labels, selected, limit=limit, norm_ratio=rho, queries=queries, norm="spectral", head_norm=3.0
        )
        assert (only(joint.attention).norm, only(joint.head).norm) == ("spectral", 3.0)
        assert only(joint.attention).certified
        assert only(joint.head).certified
    # A binary head has one row, of which all norms of matrices are its length.
    assert only(solve_joint_svm(keys, values, labels, selected, queries=queries, norm="spectral").head).norm == "l2"


@pytest.mark.parametrize("limit", ["strict", "relaxed", "rate_coupled"])
def test_a_batch_is_its_instances(limit: str) -> None:
    many = [torch.stack(part) for part in zip(*(drawn(seed) for seed in range(3)), strict=True)]
    rho = 0.7 if limit == "rate_coupled" else None
    batch = solve_joint_svm(*many, limit=limit, norm_ratio=rho, norm=3.0)
    for b in range(3):
        single = solve_joint_svm(*(part[b] for part in many), limit=limit, norm_ratio=rho, norm=3.0)
        for name in ("attention", "head"):
            one, of_batch = only(getattr(single, name)), getattr(batch, name)[b]
            assert torch.equal(one.direction, of_batch.direction)
            assert one.norm == of_batch.norm == 3.0
            assert one.status == of_batch.status == "certified"


def test_l2_by_its_number_is_l2() -> None:
    keys, values, labels, selected = drawn(1)
    for limit, rho in (("relaxed", None), ("rate_coupled", 2.0)):
        both = [
            solve_joint_svm(keys, values, labels, selected, limit=limit, norm_ratio=rho, norm=norm)
            for norm in ("l2", 2)
        ]
        assert torch.equal(*(only(joint.attention).direction for joint in both))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"norm": "spectral"}, "norm 'spectral' is one of matrices"),
        ({"norm": "l7"}, "norm 'l7' is unknown"),
        ({"norm": 0.5}, "lp needs a number p"),
        ({"head_norm": "l7"}, "norm 'l7' is unknown"),
        ({"head_norm": "nuclear"}, "norm 'nuclear' is one of matrices"),
    ],
)
def test_norm_that_is_none(words: dict[str, Any], said: str) -> None:
    keys, values, labels, selected = drawn(0)
    with pytest.raises(InputError, match=said):
        solve_joint_svm(keys, values, labels, selected, **words)


def test_infeasible_labels_are_infeasible_in_every_norm() -> None:
    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([1, -1])
    for norm in NORMS:
        found = only(solve_label_svm(x, y, norm=norm))
        assert found.infeasible
        assert float(found.dual @ (y[:, None] * x)[:, 0]) == 0
