"""A user's own limit problem, as rows or in cvxpy: against cvxpy's own answers and ours, by hand, and what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from lightning_maxmargin import JointSelection, MarginMonitor, keys, solve_att_svm
from lightning_maxmargin.data import PaperData
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import RunFiles
from lightning_maxmargin.figures.diagnosis import number_table
from lightning_maxmargin.run.summary import write_summary
from lightning_maxmargin.svm import CustomSolution, dual_norm_of, norm_of, solve_cvxpy, solve_rows
from lightning_maxmargin.svm.norms import registry

OBJECTIVES: dict[str, tuple[Any, str | float]] = {
    "norm": (cp.norm, "l2"),
    "sum of squares": (cp.sum_squares, "l2"),
    "half of it": (lambda w: cp.sum_squares(w) / 2, "l2"),
    "sum of each square": (lambda w: cp.sum(cp.square(w)), "l2"),
    "squared norm": (lambda w: 0.5 * cp.square(cp.norm(w)), "l2"),
    "largest entry": (lambda w: cp.norm(w, "inf"), "linf"),
    "p above 2": (lambda w: cp.norm(w, 3), 3.0),
    "p below 2": (lambda w: 2 * cp.pnorm(w, 1.5), 1.5),
}
OF_MATRICES: dict[str, tuple[Any, str | float]] = {
    "Frobenius": (lambda W: cp.norm(W, "fro"), "l2"),
    "squares": (cp.sum_squares, "l2"),
    "spectral": (lambda W: cp.norm(W, 2), "spectral"),
    "sigma_max": (cp.sigma_max, "spectral"),
    "nuclear": (lambda W: cp.norm(W, "nuc"), "nuclear"),
    "largest entry": (lambda W: cp.norm(cp.vec(W, order="C"), "inf"), "linf"),
    "entries": (lambda W: cp.pnorm(cp.vec(W, order="F"), 1.5), 1.5),
}


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(keys, "_KEYS", dict(keys._KEYS))
    before = dict(registry.NORMS)
    yield
    registry.NORMS.clear()
    registry.NORMS.update(before)


def rows_of(seed: int, m: int = 12, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Rows that a direction meets, and that direction."""
    rng = np.random.default_rng(seed)
    rows, w = rng.standard_normal((m, d)), rng.standard_normal(d)
    return rows * np.sign(rows @ w)[:, None], w


def judged(solution: CustomSolution, norm: str | float) -> None:
    """Certified, by numbers computed here: rows met, signs of the dual, primal and dual value equal to 1e-8."""
    stated, shape = solution.problem, tuple(solution.direction.shape)
    assert (solution.status, solution.norm) == ("certified", norm)
    w, dual = solution.direction.numpy().ravel(), solution.dual.numpy()
    slack = stated.rows @ w - stated.rhs
    room = 1e-7 * (np.linalg.norm(stated.rows, axis=1) * np.linalg.norm(w) + np.abs(stated.rhs))
    assert (slack >= -room).all()
    assert (np.abs(slack[stated.equal]) <= room[stated.equal]).all()
    assert (dual[~stated.equal] >= 0).all()
    primal = norm_of(w.reshape(shape), norm)
    combined = (dual @ stated.rows).reshape(shape)
    assert float(dual @ stated.rhs) / dual_norm_of(combined, norm) == pytest.approx(primal, rel=1e-8)
    assert solution.margin == pytest.approx(1 / primal, rel=1e-12)
    if norm == "l2":
        np.testing.assert_allclose(combined.ravel(), w, atol=1e-4 * primal)
    else:
        assert dual_norm_of(combined, norm) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_stated_in_cvxpy_it_is_the_attention_svm_of_its_rows(name: str, seed: int) -> None:
    objective, norm = OBJECTIVES[name]
    rows, _ = rows_of(seed)
    w = cp.Variable(6)
    solution = solve_cvxpy(cp.Problem(cp.Minimize(objective(w)), [rows @ w >= 1]))
    judged(solution, norm)
    tokens = torch.from_numpy(np.stack([rows, np.zeros_like(rows)], axis=1))
    ours = solve_att_svm(tokens, torch.zeros(len(rows), dtype=torch.long), norm=norm)
    assert solution.margin == pytest.approx(ours.margin, rel=1e-7)
    assert solution.unique == ours.unique
    if ours.unique:
        torch.testing.assert_close(solution.direction, ours.direction, rtol=0, atol=1e-4)
    assert solve_rows(torch.from_numpy(rows), torch.ones(12), norm=norm).margin == pytest.approx(ours.margin, rel=1e-7)


@pytest.mark.parametrize("name", OF_MATRICES)
@pytest.mark.parametrize("seed", range(3))
def test_constraints_of_every_kind_on_a_matrix(name: str, seed: int) -> None:
    objective, norm = OF_MATRICES[name]
    rng = np.random.default_rng(seed)
    A, B, W0 = rng.standard_normal((4, 3)), rng.standard_normal((2, 5)), rng.standard_normal((3, 2))
    W = cp.Variable((3, 2))
    least = A @ W0 @ B - rng.random((4, 5))
    met = [least <= A @ W @ B, W[0, 0] == W[2, 1] + 0.5, cp.trace(W[:2]) <= 5, cp.constraints.NonNeg(W[1, 0] + 9)]
    problem = cp.Problem(cp.Minimize(objective(W)), met)
    solution = solve_cvxpy(problem)
    judged(solution, norm)
    value = norm_of(np.asarray(W.value), norm)
    assert 1 / solution.margin == pytest.approx(value, rel=1e-6)
    # Entries of a constraint by columns, and of W by rows.
    first = np.einsum("ij,kl->ikjl", A, B.T).reshape(4, 5, 6)
    np.testing.assert_allclose(solution.problem.rows[:20], first.transpose(1, 0, 2).reshape(20, 6), atol=1e-14)
    np.testing.assert_allclose(solution.problem.rhs[:20], least.ravel(order="F"), atol=1e-14)
    assert solution.problem.equal.tolist() == [False] * 20 + [True, False, False]
    again = solve_rows(
        torch.from_numpy(solution.problem.rows.reshape(-1, 3, 2)),
        torch.from_numpy(solution.problem.rhs),
        torch.from_numpy(solution.problem.equal),
        norm=norm,
    )
    judged(again, norm)
    assert again.margin == pytest.approx(solution.margin, rel=1e-7)


@pytest.mark.parametrize("norm", ["linf", 1.5, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_equalities_in_other_norms(norm: str | float, seed: int) -> None:
    rows, w = rows_of(seed)
    equal = np.arange(12) < 3
    rhs = np.where(equal, rows @ w, rows @ w - np.random.default_rng(seed).random(12))
    solution = solve_rows(torch.from_numpy(rows), torch.from_numpy(rhs), torch.from_numpy(equal), norm=norm)
    judged(solution, norm)
    W = cp.Variable(6)
    size = cp.norm(W, "inf" if norm == "linf" else norm)
    cp.Problem(cp.Minimize(size), [rows[:3] @ W == rhs[:3], rows[3:] @ W >= rhs[3:]]).solve(solver=cp.CLARABEL)
    assert 1 / solution.margin == pytest.approx(float(size.value), rel=1e-6)


def test_a_rough_answer_of_cvxpy_is_replaced_by_one_that_can_be_certified() -> None:
    rows, _ = rows_of(0)
    w = cp.Variable(6)
    rough: dict[str, Any] = {"solver": cp.SCS, "eps_abs": 1e-2, "eps_rel": 1e-2}
    problem = cp.Problem(cp.Minimize(cp.norm(w, "inf")), [rows @ w >= 1, cp.sum(w) == 0.1])
    problem.solve(**rough)
    theirs = np.asarray(w.value)
    solution = solve_cvxpy(problem, **rough)
    judged(solution, "linf")
    assert np.abs(theirs).max() != pytest.approx(1 / solution.margin, rel=1e-5)
    np.testing.assert_array_equal(w.value, solution.direction.numpy())


def test_a_parameter_is_read_at_its_value() -> None:
    w, b = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.norm(w)), [w >= b])
    for value in (np.array([1.0, 2.0]), np.array([3.0, 0.0])):
        b.value = value
        assert solve_cvxpy(problem).direction.tolist() == pytest.approx(value.tolist(), abs=1e-7)


@pytest.mark.parametrize("norm", ["l2", "linf", 3.0])
def test_contradictions_are_proved(norm: str | float) -> None:
    w = cp.Variable(2)
    size = {"l2": cp.norm(w), "linf": cp.norm(w, "inf"), "3.0": cp.norm(w, 3)}[str(norm)]
    contradictions = {
        "opposite rows": [w[0] >= 1, -w[0] >= 0],
        "with an equality": [w[0] + w[1] == 0, w >= 1],
        "a right-hand side below zero": [w[0] >= 1, w[0] <= 0.5],
        "a constant": [w[0] >= 1, cp.Constant(0) * w[1] >= 1],
    }
    for constraints in contradictions.values():
        solution = solve_cvxpy(cp.Problem(cp.Minimize(size), constraints))
        assert solution.status == "infeasible"
        stated, u = solution.problem, solution.dual.numpy()
        np.testing.assert_allclose(u @ stated.rows, 0, atol=1e-12)
        assert u @ stated.rhs > 0
        assert solution.margin == 0
        assert not solution.direction.any()


def test_cvxpys_word_alone_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that says optimal and is wrong: rows missed, or a norm too large; and one that says infeasible."""
    w = cp.Variable(2)
    for wrong, status in ((np.array([0.1, 0.0]), "optimal"), (np.array([5.0, 5.0]), "optimal"), (None, "infeasible")):

        def solve(self: cp.Problem, wrong: Any = wrong, status: str = status, **options: Any) -> None:
            self._status = status
            for variable in self.variables():
                variable.value = wrong
            for constraint in self.constraints:
                constraint.dual_variables[0].save_value(np.ones(constraint.shape))

        monkeypatch.setattr(cp.Problem, "solve", solve)
        # Rows that no solver of ours has in this norm.
        solution = solve_cvxpy(cp.Problem(cp.Minimize(cp.norm(w, "inf")), [w[0] >= 1, w[1] == 0.5]))
        assert solution.status == "unverified"
        judged(solve_cvxpy(cp.Problem(cp.Minimize(cp.norm(w)), [w[0] >= 1, w[1] == 0.5])), "l2")


def test_what_cannot_be_certified_is_unverified(own_registries: None) -> None:
    """With a dual norm that is too large no bound is tight; nothing but the norm's own dual proves an optimum."""
    registry.register_norm(
        "slack", lambda w: abs(w).sum(), lambda m: 2 * abs(m).max(), expression=lambda w: cp.norm1(w)
    )
    w = cp.Variable(2)
    solution = solve_cvxpy(cp.Problem(cp.Minimize(cp.norm1(w)), [w[0] + w[1] >= 1, w[0] == w[1]]), norm="slack")
    assert solution.status == "unverified"
    assert "no direction was shown to be the shortest that meets the rows, nor that none does" in solution.message
    assert "relative gap 5.0e-01" in solution.message
    assert solution.direction.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_an_objective_of_a_registered_norm(own_registries: None) -> None:
    w = cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.norm(w, 1)), [w[0] + 2 * w[1] >= 1, w[2] == 0])
    with pytest.raises(InputError, match=r"objective norm1\(var\d+\) is no norm .* a certificate here; .* norm="):
        solve_cvxpy(problem)
    registry.register_norm("l1", lambda w: abs(w).sum(), lambda m: abs(m).max(), expression=lambda w: cp.norm1(w))
    solution = solve_cvxpy(problem)
    judged(solution, "l1")
    assert solution.direction.tolist() == pytest.approx([0, 0.5, 0], abs=1e-7)
    named = solve_cvxpy(cp.Problem(cp.Minimize(cp.sum(cp.abs(w))), problem.constraints), norm="l1")
    assert named.margin == pytest.approx(solution.margin, rel=1e-8)


def test_a_norm_with_a_solver_alone_has_no_equalities(own_registries: None) -> None:
    registry.register_norm("mine", lambda w: abs(w).max(), lambda m: abs(m).sum(), solve=lambda working: None)
    with pytest.raises(InputError, match="norm 'mine' has no expression, which these rows need"):
        solve_rows(torch.eye(2), torch.ones(2), torch.tensor([True, False]), norm="mine")
    assert solve_rows(torch.eye(2), torch.ones(2), norm="mine").status == "certified"  # as the Euclidean answer is


def test_nothing_asked_is_the_zero_direction() -> None:
    w = cp.Variable(2)
    solution = solve_cvxpy(cp.Problem(cp.Minimize(cp.norm(w)), [w >= -1, w[0] == 0]))
    assert (solution.status, solution.margin) == ("certified", float("inf"))
    assert solution.direction.abs().max() < 1e-7
    assert solution.achieved(torch.ones(2)) is None


w2, W22, v2 = cp.Variable(2, name="w"), cp.Variable((2, 2)), cp.Variable(2, name="v")
least: Any = cp.Minimize(cp.norm(w2))
WRONG: dict[str, tuple[Any, str]] = {
    "no problem": (3, "a int is no cvxpy.Problem; state: minimise a norm of one variable"),
    "maximised": (cp.Problem(cp.Maximize(w2[0]), [w2 <= 1]), "the objective is maximised; state"),
    "no variable": (cp.Problem(cp.Minimize(0), []), r"it has 0 variables \(none\)"),
    "two variables": (cp.Problem(least, [w2 + v2 >= 1]), r"it has 2 variables \((w, v|v, w)\); state"),
    "scalar": (cp.Problem(cp.Minimize(cp.norm(cp.Variable()))), r"the variable has shape \[\]; expected"),
    "declared": (
        cp.Problem(cp.Minimize(cp.norm(cp.Variable(2, nonneg=True)))),
        "the variable is declared nonneg; state that as a constraint",
    ),
    "whole": (cp.Problem(cp.Minimize(cp.norm(cp.Variable(2, integer=True)))), "the variable is declared integer"),
    "not affine": (cp.Problem(least, [w2 >= 1, cp.norm(w2) <= 9]), r"constraint 1, .*, is not affine; state"),
    "a cone": (cp.Problem(cp.Minimize(cp.norm(W22)), [W22 >> 0]), "constraint 0 is a PSD; expected >=, <= or =="),
    "no constraint": (cp.Problem(least, []), "there is no constraint; state"),
    "no norm": (cp.Problem(cp.Minimize(cp.sum(w2)), [w2 >= 1]), r"the objective Sum.* is no norm of the variable"),
    "of a part": (cp.Problem(cp.Minimize(cp.norm(w2[:1])), [w2 >= 1]), "is no norm of the variable"),
    "weighted": (cp.Problem(cp.Minimize(cp.norm(cp.multiply([1, 2], w2))), [w2 >= 1]), "is no norm of the variable"),
    "negative": (cp.Problem(cp.Minimize(-1 * cp.norm(w2)), [w2 >= 1]), "is no norm of the variable"),
    "no value": (cp.Problem(least, [w2 >= cp.Parameter(2, name="b")]), "parameter b has no value; give it one"),
    "infinite": (cp.Problem(least, [w2 >= np.array([1.0, -np.inf])]), "constants of the constraints hold"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_statements_are_one_line(name: str) -> None:
    problem, message = WRONG[name]
    with pytest.raises(InputError, match=message) as error:
        solve_cvxpy(problem)
    assert "\n" not in str(error.value)


def test_wrong_norms_and_directions() -> None:
    with pytest.raises(InputError, match="norm 'spectral' is one of matrices"):
        solve_rows(torch.ones(1, 2), torch.ones(1), norm="spectral")
    with pytest.raises(InputError, match="norm 'l7' is unknown"):
        solve_cvxpy(cp.Problem(least, [w2 >= 1]), norm="l7")
    with pytest.raises(InputError, match="solver MOSEQ is not installed; use CLARABEL"):
        solve_cvxpy(cp.Problem(least, [w2 >= 1]), solver="MOSEQ")
    with pytest.raises(InputError, match=r"direction has shape \[3\], the limit problem's \[2\]"):
        solve_rows(torch.ones(1, 2), torch.ones(1)).achieved(torch.ones(3))


@pytest.mark.parametrize("norm", ["l2", "linf", 1.5])
def test_no_direction_achieves_more_than_the_optimum(norm: str | float) -> None:
    rows, _ = rows_of(4)
    rhs = 1 + torch.arange(12.0) / 4
    solution = solve_rows(torch.from_numpy(rows), rhs, norm=norm)
    assert solution.achieved(solution.direction) == pytest.approx(solution.margin, rel=1e-7)
    assert solution.achieved(7 * solution.direction) == pytest.approx(solution.margin, rel=1e-7)
    g = torch.Generator().manual_seed(0)
    near = solution.direction + 0.1 * torch.randn(200, 6, generator=g, dtype=torch.float64)
    assert all(float(solution.achieved(w) or 0) < solution.margin for w in near)  # type: ignore[arg-type]
    assert solution.achieved(torch.zeros(6)) == 0


def stated_in_cvxpy(data: Any, selected: torch.Tensor) -> CustomSolution:
    """The attention SVM with a second coordinate that may not be negative."""
    n = torch.arange(len(selected))
    rows = (data.keys[n, selected][:, None] - data.keys).flatten(0, 1)
    rows = rows[rows.any(1)].numpy()
    p = cp.Variable(rows.shape[1])
    return solve_cvxpy(cp.Problem(cp.Minimize(cp.norm(p)), [rows @ p >= 1, p[1] >= 0]))


def test_a_monitor_logs_it_and_run_files_hold_it(tmp_path: Path, own_registries: None) -> None:
    monitor = MarginMonitor(limits={"mine": stated_in_cvxpy})
    model = JointSelection(dim=2, parametrization="p", attention_lr=0.1, head_lr=0.1)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = CSVLogger(tmp_path, "", "")
    trainer = pl.Trainer(max_steps=50, max_epochs=-1, callbacks=[monitor], accelerator="cpu", logger=logger, **quiet)  # type: ignore[arg-type]
    trainer.fit(model, datamodule=PaperData("joint_tight"))
    last, snapshot = monitor.last, monitor.snapshot
    assert snapshot is not None
    strict = snapshot.solutions["strict"].attention
    if strict.direction[1] >= 0:
        assert last["direction_gap/mine"] == pytest.approx(last["direction_gap/strict"], rel=1e-5)
        achieved = float(last["margin/attention"]) / strict.margin  # type: ignore[arg-type]
        assert last["relative_margin/mine"] == pytest.approx(achieved, rel=1e-7)
    assert 0 < float(last["relative_margin/mine"]) <= 1  # type: ignore[arg-type]
    header = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"direction_gap/mine", "relative_margin/mine"} <= set(header)
    write_summary(tmp_path, {**last, "name": "x"})
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "config.yaml").write_text("trainer: {}\n")
    rows = {row.name: row for row in number_table(RunFiles.load(tmp_path))}
    for name in ("direction_gap/mine", "relative_margin/mine"):
        assert summary[name] == last[name]
        assert "mine" in rows[name].meaning
