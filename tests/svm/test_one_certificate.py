"""One certificate: for one problem, a batch, blocks, equalities and other norms the same gap and status."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.svm import (
    RowProblem,
    Status,
    certify,
    certify_infeasible,
    only,
    solve_att_svm,
    solve_rows,
)
from lightning_maxmargin.svm.batch_input import check_batch
from lightning_maxmargin.svm.batch_rows import judge
from lightning_maxmargin.svm.certificate import TOLERANCES, relative_gap
from lightning_maxmargin.svm.equalities import EqualityAnswer, EqualityRows, certify_equalities
from lightning_maxmargin.svm.norms.registry import NORMS, register_norm
from tests.svm.test_near_copies import near_copies


def degenerate(rng: np.random.Generator, n: int, T: int, d: int) -> np.ndarray:
    """Keys with whole numbers, copies, a zero token and one row of another size, each by chance."""
    keys = rng.normal(size=(n, T, d))
    if rng.random() < 0.3:
        keys = keys.round()
    if T > 1 and rng.random() < 0.3:
        keys[:, 1] = keys[:, 0]
    if rng.random() < 0.3:
        keys[0, 0] = 0
    if rng.random() < 0.3:
        keys[-1] *= 1e6
    return keys


def test_a_row_with_right_hand_side_0_that_is_missed_is_not_certified() -> None:
    """However well gap and multipliers fit the others: rows (1, 0) w >= 1 and (-1, 1) w >= 0."""
    keys = torch.tensor([[[0.0, 0.0], [-1.0, 0.0], [1.0, -1.0]]], dtype=torch.float64)
    problem = RowProblem.attention(keys, torch.tensor([0]), rhs=torch.tensor([[0.0, 1.0, 0.0]]))
    gap, violation, status = certify(problem, np.array([1.0, 0.0]), np.array([[0.0, 1.0, 0.0]]))
    assert abs(gap) < 1e-12
    assert violation == pytest.approx(math.sqrt(0.5))
    assert status == Status.UNVERIFIED


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 5), st.integers(1, 6), st.booleans())
def test_batch_blocks_and_one_problem_agree(seed: int, n: int, T: int, d: int, solved: bool) -> None:
    rng = np.random.default_rng(seed)
    keys = torch.from_numpy(degenerate(rng, n, T, d))
    selected = (keys @ torch.from_numpy(rng.normal(size=d))).argmax(1)
    problem = RowProblem.attention(keys, selected)
    one = solve_att_svm(keys, selected)
    direction, dual = one.direction.numpy(), one.dual.numpy()
    if not solved or one.status != "certified" or not direction.any():
        direction, dual = rng.normal(size=d), rng.random((n, T)) * problem.live
    gap, violation, status = certify(problem, direction, dual)
    blocks = solve_att_svm([keys[: n // 2], keys[n // 2 :]] if n > 1 else [keys], selected)
    stacked = solve_att_svm(keys[None], selected[None])[0]
    assert blocks.status == stacked.status == one.status
    many = check_batch(keys[None], selected[None], None, None, None)
    if not problem.live.any():
        assert (one.status, one.margin, blocks.margin, stacked.margin) == ("certified", math.inf, math.inf, math.inf)
        assert status == ("unverified" if direction.any() else "certified")
        assert many.rows(slice(None)).count.tolist() == [0]
        return
    rows = many.rows(slice(None))
    lam = np.take_along_axis(dual.reshape(1, -1), rows.ids, axis=1) * (1 if rows.live is None else rows.live)
    batch = judge(rows, direction[None], lam, TOLERANCES.tight)
    assert batch.gap[0] == pytest.approx(gap, abs=1e-9)
    assert batch.violation[0] == pytest.approx(violation, abs=1e-12)
    assert bool(batch.good[0]) == (status is Status.CERTIFIED)
    assert (max(blocks.gap, stacked.gap, one.gap) <= TOLERANCES.gap) == (one.status == "certified")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6))
def test_equalities_without_equalities_are_rows(seed: int, m: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    rows = degenerate(rng, 1, m, d)[0]
    if rng.random() < 0.7:
        rows *= np.where(rows @ rng.normal(size=d) < 0, -1, 1)[:, None]
    none = np.zeros(m, bool)
    solution = solve_rows(torch.from_numpy(rows), torch.ones(m), torch.from_numpy(none))
    problem = RowProblem.explicit(rows, np.ones(m))
    dual = np.column_stack([np.zeros(m), solution.dual.numpy()])
    refuted = solution.status == "infeasible"
    answer = EqualityAnswer(solution.direction.numpy(), solution.dual.numpy(), refuted, 1)
    theirs = certify_equalities(EqualityRows(rows, np.ones(m), none), answer)
    if refuted:
        missed, status = certify_infeasible(problem, dual)
        assert theirs.violation == pytest.approx(missed, abs=1e-15)
    else:
        gap, _, status = certify(problem, solution.direction.numpy(), dual)
        assert theirs.gap == pytest.approx(gap, abs=1e-9)
    assert theirs.status == status == solution.status


#: The order of each norm for ``numpy.linalg.norm`` of a vector, and of its dual.
ORDERS: dict[str | float, tuple[float, float]] = {"l2": (2, 2), "linf": (np.inf, 1), 1.5: (1.5, 3), 3.0: (3, 1.5)}


def gap_by_definition(rows: np.ndarray, w: np.ndarray, lam: np.ndarray, norm: str | float) -> float:
    """1 - dual / primal for right-hand sides 1, its square in l2, written out."""
    own, dual = ORDERS[norm]
    shown = lam.sum() / np.linalg.norm(lam @ rows, dual) * (rows @ w).min() / np.linalg.norm(w, own)
    return float(1 - (shown**2 if norm == "l2" else shown))


@pytest.mark.parametrize("norm", ORDERS)
@pytest.mark.parametrize("seed", range(5))
def test_each_norm_is_judged_by_its_own_definition(norm: str | float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = torch.from_numpy(degenerate(rng, 4, 4, 3))
    selected = (keys @ torch.from_numpy(rng.normal(size=3))).argmax(1)
    problem = RowProblem.attention(keys, selected)
    solution = solve_att_svm(keys, selected, norm=norm)
    assert problem.live.any()
    assert solution.status == "certified"
    rows, w, dual = problem.rows(problem.ids), solution.direction.numpy(), solution.dual.numpy()
    meant = gap_by_definition(rows, w, dual.ravel()[problem.ids], norm)
    assert meant - 1e-12 <= solution.gap <= meant + TOLERANCES.gap
    # Other directions and multipliers: the gap is what its definition says, rounding counted against it, and is
    # certified where that is within the tolerance.
    outcomes = set()
    for size in (1e-12, 1e-3, 1.0):
        other = w + size * np.linalg.norm(w) * rng.normal(size=3)
        lam = dual + size * dual.max() * rng.random(dual.shape) * problem.live
        for a, b in ((other, dual), (w, lam), (other, lam)):
            gap, _, status = certify(problem, a, b, norm)
            meant = gap_by_definition(rows, a, b.ravel()[problem.ids], norm) if (rows @ a).min() > 0 else 1.0
            assert min(meant, 1.0) - 1e-12 <= gap <= min(meant, 1.0) + TOLERANCES.gap
            assert status == ("certified" if abs(meant) <= TOLERANCES.gap else "unverified")
            outcomes.add(str(status))
    assert outcomes == {"certified", "unverified"}


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4), st.sampled_from([1, 2]))
def test_the_gap_of_numbers_is_that_of_arrays(numbers: list[float], power: int) -> None:
    one = relative_gap(*numbers, power)
    many = relative_gap(*(np.array([x]) for x in numbers), power)[0]
    assert one == many or abs(one - many) <= 1e-12 * abs(one)
    assert not np.isnan(one)


def test_the_gap_said_is_of_the_multipliers_returned() -> None:
    """Of l_inf, whose gap is a fraction: scaled by their largest, the multipliers judged were not those returned."""
    for seed, exponent in itertools.product(range(4), (-5.0, -6.0, -7.0)):
        keys, selected, _ = near_copies(seed, exponent, "pair", False)
        solution = only(solve_att_svm(keys, selected, norm="linf"))
        i, t = np.nonzero(np.arange(5) != selected.numpy()[:, None])
        fractions = np.vectorize(Fraction, otypes=[object])
        rows = fractions(keys.numpy()[i, selected.numpy()[i]]) - fractions(keys.numpy()[i, t])
        w, lam = fractions(solution.direction.numpy()), fractions(solution.dual.numpy()[i, t])
        gap = 1 - lam.sum() * (rows @ w).min() / (abs(lam @ rows).sum() * abs(w).max())
        assert gap <= solution.gap + 1e-16


@pytest.mark.parametrize("norm", ["l2", 3.0, "linf"])
def test_margins_that_overflow_show_nothing(norm: str | float) -> None:
    keys = torch.tensor([[[1e100, -1e100], [0.0, 0.0]]], dtype=torch.float64)
    problem = RowProblem.attention(keys, torch.tensor([0]))
    assert certify(problem, np.array([1e250, 1e250]), np.array([[0.0, 1.0]]), norm)[2] == "unverified"


def test_the_rounding_of_a_norm_from_outside_is_bounded_by_its_own_dual() -> None:
    """A dual norm 1e12 times the Euclidean one along an axis: what float64 loses there counts 1e12 times as much."""
    large = 1e12
    entry = register_norm(
        "uneven",
        lambda w: max(abs(w[0]), abs(w[1]) / large),
        lambda m: abs(m[0]) + large * abs(m[1]),
        solve=lambda _: None,
    )
    try:
        assert entry.dual_of_unit((2,)) == pytest.approx(math.hypot(1, large))
        # Two rows (1, x) and (1, -y) whose second coordinates cancel to rounding.
        keys = torch.tensor([[[1.0, 1.1], [0.0, 0.0]], [[1.0, -2.3], [0.0, 0.0]]], dtype=torch.float64)
        problem = RowProblem.attention(keys, torch.tensor([0, 0]))
        gap, _, status = certify(problem, np.array([1.0, 0.0]), np.array([[0.0, 1.0], [0.0, 1.1 / 2.3]]), "uneven")
        left = abs(Fraction(1.1) - Fraction(1.1 / 2.3) * Fraction(2.3)) * Fraction(large)
        value = 1 + Fraction(1.1 / 2.3)
        assert gap >= 1 - value / (value + left)
        assert status == "unverified"
    finally:
        del NORMS["uneven"]
