"""Statuses against exact rational arithmetic, on a few problems of every family of ``scripts/audit.py``; and the oracle
itself against answers found by trying."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_maxmargin.svm import RowProblem, solve_att_svm, solve_kept_svm, solve_label_svm
from tests.svm.audit_cases import batch_verdicts, verdicts
from tests.svm.audit_problems import FAMILIES, cases
from tests.svm.exact_oracle import Exact, contradicts, decide, meets
from tests.svm.exact_rows import attention_rows, given_rows, kept_rows, label_rows
from tests.svm.exact_verdicts import Answer, judge

EACH = 4
X = torch.tensor([[2.0, 0.5], [1.0, -1.0], [-0.25, -3.0]], dtype=torch.float64)
Y = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_status_is_wrong(family: str) -> None:
    for group in cases(family, EACH, seed=1):
        found = [verdict for case in group for verdict in verdicts(case)]
        found += batch_verdicts(group) if len(group) > 1 else []
        assert [(verdict.status, verdict.wrong) for verdict in found if verdict.wrong] == []


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_no_float_is_rounded(a: float, b: float) -> None:
    exact = Exact.of(np.array([a, b]))
    assert [exact.fraction(0), exact.fraction(1)] == [Fraction(a), Fraction(b)]
    assert exact.square() == Fraction(a) ** 2 + Fraction(b) ** 2


@pytest.mark.parametrize(
    ("rows", "feasible"),
    [
        ([[1, 2e-14], [-1, 2e-14]], True),
        ([[1, 2e-14], [-1, -2e-14]], False),
        ([[1, 0], [-1, 5e-324]], True),
        ([[1e-163]], True),
        ([[1e-170, 2e-170], [-1e-170, -2e-170]], False),
        ([[1e300, 1e-320], [-1e300, 1e-320]], True),
        ([[0.1, 0.2, 0.3], [0.1, 0.2, -0.3], [-0.2, -0.4, 0.0]], False),
        # 3 * 0.1 is not 0.3 in float64, and a direction sees it.
        ([[0.1, 1.0], [-0.3, -3.0]], True),
        ([[0.0, 0.0]], False),
        ([[1.0, 1.0], [0.0, 0.0]], False),
    ],
)
def test_gold(rows: list[list[float]], feasible: bool) -> None:
    digits = Exact.of(np.array(rows)).digits
    strict = np.ones(len(rows), bool)
    decision = decide(digits, strict)
    assert decision.feasible is feasible
    assert (meets if feasible else contradicts)(digits, strict, decision.proof)
    x = torch.tensor(rows, dtype=torch.float64)
    assert label_rows(x, torch.ones(len(rows))).feasible() is feasible
    assert given_rows(x, torch.ones(len(rows)), torch.zeros(len(rows))).feasible() is feasible


@pytest.mark.parametrize(
    ("rows", "rhs", "equal", "feasible"),
    [
        ([[1, 1], [1, 0]], [0, 1], [1, 0], True),
        ([[1, 0], [1, 0]], [1, 2], [1, 1], False),
        ([[1, 0], [2, 0]], [0.1, 0.2], [1, 1], True),
        ([[1, 0], [-1, 0]], [-1, -1], [0, 0], True),
        ([[1, 0], [-1, 0]], [1, -0.5], [0, 0], False),
        ([[0, 0]], [0], [1], True),
        ([[0, 0]], [1e-300], [1], False),
    ],
)
def test_gold_equalities(rows: list[list[float]], rhs: list[float], equal: list[int], feasible: bool) -> None:
    x, b = torch.tensor(rows, dtype=torch.float64), torch.tensor(rhs, dtype=torch.float64)
    assert given_rows(x, b, torch.tensor(equal)).feasible() is feasible


def test_decisions_agree_with_trying_all_small_directions_and_weights() -> None:
    g = np.random.default_rng(0)
    directions = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    weights = np.array(list(itertools.product(range(5), repeat=4)))
    seen = {True: 0, False: 0}
    for _ in range(300):
        rows, strict = g.integers(-1, 2, (4, 3)), g.random(4) < 0.6
        strict[g.integers(4)] = True
        values = directions @ rows.T
        feasible = bool(((values > 0) | (~strict & (values >= 0))).all(1).any())
        contradiction = bool((~(weights @ rows).any(1) & (weights @ strict > 0)).any())
        assert feasible != contradiction
        exact = Exact.of(rows.astype(float)).digits
        decision = decide(exact, strict)
        assert decision.feasible is feasible
        assert (meets if feasible else contradicts)(exact, strict, decision.proof)
        seen[feasible] += 1
    assert min(seen.values()) > 30


@pytest.mark.parametrize("family", ["labels: many rows", "labels: contradictory"])
def test_guesses_change_no_decision(family: str) -> None:
    for group in cases(family, 10, seed=4):
        problem = label_rows(**group[0].tensors())
        digits = problem.rows.digits[:40]
        strict = np.ones(len(digits), bool)
        plain = decide(digits, strict)
        g = np.random.default_rng(len(digits))
        for _ in range(3):
            guess, some = Exact.of(np.asarray(g.standard_normal(digits.shape[1]))).digits, g.random(len(digits)) < 0.5
            some[0] = True
            assert decide(digits, strict, guess, some).feasible == plain.feasible


def test_rows_are_those_of_the_library() -> None:
    for group in cases("queries: padding", 20, seed=2):
        more = group[0].tensors()
        problem, exact = RowProblem.attention(**more), attention_rows(**more)
        assert exact.ids.tolist() == problem.ids.tolist()
        scale = 2.0 ** float(exact.rows.exponent)
        found = np.array([[float(a) * scale for a in row] for row in exact.rows.digits]).reshape(-1, problem.dim)
        np.testing.assert_allclose(found, problem.rows(problem.ids), rtol=1e-14, atol=0)


def test_near_copies_are_merged_as_the_library_does() -> None:
    merged = 0
    for group in cases("attention: near copies", 60, seed=3):
        given = group[0].tensors()
        problem = RowProblem.attention(**given)
        assert attention_rows(**given).ids.tolist() == problem.ids.tolist()
        merged += problem.merged
    assert merged > 10


def test_lies_are_found() -> None:
    problem = label_rows(X, Y)
    truth = Answer.of(solve_label_svm(X, Y))
    assert judge(problem, truth) == replace(judge(problem, truth), status="certified", wrong="", feasible=True)
    lies = {
        "a direction meets the rows": replace(truth, status="infeasible"),
        "not above 0": replace(truth, direction=-truth.direction),
        "not 1": replace(truth, direction=truth.direction * (1 + 1e-6)),
        "the gap is": replace(truth, direction=truth.direction + np.array([1e-3, 2e-3])),
        "show no gap": replace(truth, dual=0 * truth.dual),
        "multiplier is negative": replace(truth, dual=truth.dual - 1e-12),
        "not finite": replace(truth, status="unverified", direction=truth.direction * np.nan),
    }
    # The direction of another gap keeps its smallest row at 1.
    moved = lies["the gap is"].direction
    lies["the gap is"] = replace(truth, direction=moved / float((X.numpy() @ moved * Y.numpy()).min()))
    for wrong, lie in lies.items():
        assert wrong in judge(problem, lie).wrong


def test_an_impossible_problem_is_never_certified() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    problem = label_rows(x, torch.ones(2))
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        found = judge(problem, Answer("certified", np.array(direction), np.ones(2), ""))
        assert (found.feasible, "not above 0" in found.wrong) == (False, True)
    assert judge(problem, Answer("infeasible", np.zeros(2), np.ones(2) / 2, "")).wrong == ""
    assert judge(problem, Answer("infeasible", np.zeros(2), -np.ones(2), "")).wrong == "a multiplier is negative"


@pytest.mark.parametrize(
    ("message", "true"),
    [
        ("separable with margin at least 0.79, optimum not proved", True),
        ("separable with margin at least 0.8, optimum not proved", False),
        ("no direction of norm below 1.25 meets the rows", True),
        ("no direction of norm below 1.26e+00 meets the rows", False),
    ],
)
def test_statements_of_unverified_answers_are_checked(message: str, true: bool) -> None:
    truth = Answer.of(solve_label_svm(X, Y))
    found = judge(label_rows(X, Y), replace(truth, status="unverified", message=message))
    assert (found.wrong == "") is true


def test_kept_tokens_are_equalities() -> None:
    keys = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [1.0, -1.0]]], dtype=torch.float64)
    kept = torch.tensor([[True, True, False, False]])
    problem = kept_rows(keys, kept)
    assert (problem.ids.tolist(), problem.equal.tolist()) == ([1, 2], [True, False])
    assert judge(problem, Answer.of(solve_kept_svm(keys, kept))).wrong == ""


def test_nothing_to_do_is_certified() -> None:
    keys = torch.ones(2, 1, 3, dtype=torch.float64)
    selected = torch.zeros(2, dtype=torch.int64)
    problem = attention_rows(keys, selected)
    assert judge(problem, Answer.of(solve_att_svm(keys, selected))).wrong == ""
    assert judge(problem, Answer("certified", np.ones(3), np.zeros(2), "")).wrong == "the zero direction is shorter"
