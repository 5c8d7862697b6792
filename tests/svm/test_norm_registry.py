"""A norm of a user's own: solved by cvxpy or by the user, certified here by the dual norm that the user gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_maxmargin import JointSelection, MarginMonitor, solve_att_svm
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import SignDescent
from lightning_maxmargin.svm import RowProblem, WorkingRows, dual_norm_of, norm_of, register_norm
from lightning_maxmargin.svm.norms import registry
from lightning_maxmargin.svm.norms.linf import solve_linf
from tests.svm.test_norms import instance

WEIGHTS = np.array([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(registry.NORMS)
    yield
    registry.NORMS.clear()
    registry.NORMS.update(before)


def l1(w: Any) -> Any:
    import cvxpy as cp

    return cp.norm1(w if w.ndim == 1 else cp.vec(w, order="C"))


def add_l1() -> None:
    register_norm("l1", lambda w: abs(w).sum(), lambda m: abs(m).max(), expression=l1)


@pytest.mark.parametrize("seed", range(6))
def test_l1_by_cvxpy_is_a_linear_program(seed: int) -> None:
    from scipy.optimize import linprog

    add_l1()
    keys, selected, z = instance(seed, (5, 4, 3, 3))
    solution = solve_att_svm(keys, selected, queries=z, norm="l1")
    problem = RowProblem.attention(keys, selected, z)
    rows = problem.rows(problem.ids)
    exact = linprog(np.ones(18), A_ub=np.hstack([-rows, rows]), b_ub=-np.ones(len(rows)), method="highs")
    assert solution.certified
    assert 1 / solution.margin == pytest.approx(exact.fun, rel=1e-7)
    assert (solution.norm, solution.unique, "relative margin" in solution.message) == ("l1", None, True)


def test_many_rows_are_generated() -> None:
    add_l1()
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(80, 20, 8, generator=g, dtype=torch.float64)
    solution = solve_att_svm(keys, (keys @ torch.ones(8, dtype=torch.float64)).argmax(1), norm="l1")
    assert solution.certified
    assert solution.iterations > 1


def test_a_weighted_norm_is_the_euclidean_one_of_scaled_keys() -> None:
    import cvxpy as cp

    register_norm(
        "weighted",
        lambda w: np.linalg.norm(WEIGHTS * w),
        lambda m: np.linalg.norm(m / WEIGHTS),
        unique=True,
        expression=lambda w: cp.norm(cp.multiply(WEIGHTS, w)),
    )
    keys, _, _ = instance(3, (6, 4, 3, 1))
    selected = (keys @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)).argmax(1)
    solution = solve_att_svm(keys, selected, norm="weighted")
    plain = solve_att_svm(keys / torch.from_numpy(WEIGHTS), selected)
    assert solution.certified
    assert solution.unique
    assert solution.margin == pytest.approx(plain.margin, rel=1e-7)
    torch.testing.assert_close(solution.direction * torch.from_numpy(WEIGHTS), plain.direction, rtol=0, atol=1e-5)


def test_a_norm_of_matrices_with_a_solver_of_the_users_own() -> None:
    """The largest entry once more, by its own solver: the numbers are those of ``linf``."""

    def solve(working: WorkingRows) -> tuple[np.ndarray, np.ndarray] | None:
        answer = solve_linf(working.rows, working.rhs)
        return None if answer is None else answer[:2]

    register_norm("largest", lambda w: abs(w).max(), lambda m: abs(m).sum(), of_matrices=True, solve=solve)
    keys, selected, z = instance(1, (5, 4, 3, 2))
    mine, theirs = (solve_att_svm(keys, selected, queries=z, norm=norm) for norm in ("largest", "linf"))
    assert mine.certified
    assert torch.equal(mine.direction, theirs.direction)
    assert norm_of(mine.direction, "largest") == norm_of(mine.direction, "linf")
    assert dual_norm_of(mine.direction, "largest") == pytest.approx(dual_norm_of(mine.direction, "linf"), rel=1e-15)
    with pytest.raises(InputError, match=r"norm 'largest' is one of matrices: pass queries"):
        solve_att_svm(keys, selected, norm="largest")


def test_a_solver_that_is_wrong_certifies_nothing() -> None:
    register_norm(
        "wrong", lambda w: abs(w).sum(), lambda m: abs(m).max(), solve=lambda r: (r.start * 1.01, r.dual)
    )  # fmt: skip
    keys, selected, z = instance(2, (5, 4, 3, 3))
    solution = solve_att_svm(keys, selected, queries=z, norm="wrong")
    assert solution.status == "unverified"
    assert "separable with margin at least" in solution.message


def size(w: Any) -> Any:
    return abs(w).sum()


def largest(w: Any) -> Any:
    return abs(w).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "linf"}, "register_norm: there is a norm 'linf' already; choose another name"),
        ({"name": ""}, "register_norm: name is ''; expected a word"),
        ({"name": 3.0}, "register_norm: name is 3.0; expected a word"),
        ({"value": 3}, "register_norm: value of 'mine' is a int; expected a function"),
        ({"dual": None}, "register_norm: dual of 'mine' is a NoneType; expected a function"),
        ({"solve": 1}, "register_norm: solve of 'mine' is a int; expected a function"),
        ({"expression": None}, "register_norm: 'mine' has neither solve nor expression: give one"),
    ],
)
def test_what_a_norm_lacks_is_said(options: dict[str, Any], message: str) -> None:
    given = {"name": "mine", "value": size, "dual": largest, "expression": l1, **options}
    with pytest.raises(InputError, match=message):
        register_norm(**given)
    assert "mine" not in registry.NORMS


@pytest.mark.parametrize(
    ("value", "dual", "expression", "message"),
    [
        (size, lambda m: 0.5 * abs(m).max(), l1, r"norm 'mine': dual is too small: <M, W> = "),
        (lambda w: abs(w).sum() ** 2, largest, l1, r"norm 'mine': value is no norm: it is .* at 2 W"),
        (lambda w: abs(w), largest, l1, r"norm 'mine': value and dual must give a number for an array \[3, 3\]"),
        (size, largest, lambda w: w, r"norm 'mine': expression returned var\d+; expected a convex number of cvxpy"),
        (size, largest, lambda w: -l1(w), r"norm 'mine': expression returned -.*norm1"),
    ],
)
def test_parts_that_are_no_norm_are_found_out(value: Any, dual: Any, expression: Any, message: str) -> None:
    register_norm("mine", value, dual, expression=expression)
    keys, selected, z = instance(2, (5, 4, 3, 3))
    with pytest.raises(InputError, match=message):
        solve_att_svm(keys, selected, queries=z, norm="mine")


def test_an_unknown_norm_names_the_registered_ones_as_well() -> None:
    add_l1()
    with pytest.raises(InputError, match=r"use 'l2', 'linf', 'spectral', 'nuclear', 'l1', or a number p > 1 for lp"):
        norm_of(torch.ones(2), "l7")


def fit(margin_norm: str, monitor: MarginMonitor) -> MarginMonitor:
    class Own(SignDescent):
        pass

    Own.margin_norm = margin_norm
    model = JointSelection(dim=2, parametrization="p", optimizer=lambda params: Own(params, lr=0.1))
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=20, max_epochs=-1, callbacks=[monitor], accelerator="cpu", logger=False, **quiet)
    trainer.fit(model, datamodule=PaperData("joint_tight"))
    return monitor


def test_an_optimizer_may_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    add_l1()
    monitor = fit("l1", MarginMonitor())
    last, snapshot = monitor.last, monitor.snapshot
    assert snapshot is not None
    assert last["svm/norm"] == "l1"
    data = monitor.sequences
    solution = solve_att_svm(data.keys, snapshot.selected, norm="l1")
    achieved = float(last["margin/attention"]) / solution.margin  # type: ignore[arg-type]
    assert last["relative_margin/norm"] == pytest.approx(achieved, rel=1e-9)
    assert last["direction_gap/norm"] is None


def test_an_optimizer_that_names_no_norm_is_told_before_the_first_step() -> None:
    with pytest.raises(InputError, match=r"Own.margin_norm: norm 'l7' is unknown: use 'l2', "):
        fit("l7", MarginMonitor())
