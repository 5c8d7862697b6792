"""One certificate: for one problem, a batch, blocks, equalities and other norms the same gap and status."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.svm import RowProblem, Status, certify, solve_att_svm, solve_rows
from lightning_maxmargin.svm.batch_input import check_batch
from lightning_maxmargin.svm.batch_rows import judge
from lightning_maxmargin.svm.certify import TOLERANCES, is_certified, relative_gap
from lightning_maxmargin.svm.equalities import EqualityAnswer, EqualityRows, certify_equalities


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
    if not problem.live.any():
        return
    many = check_batch(keys[None], selected[None], None, None, None)
    rows = many.rows(slice(None))
    lam = np.take_along_axis(dual.reshape(1, -1), rows.ids, axis=1) * (1 if rows.live is None else rows.live)
    batch = judge(rows, direction[None], lam, TOLERANCES.tight)
    assert batch.gap[0] == pytest.approx(gap, abs=1e-9)
    assert batch.violation[0] == pytest.approx(violation, abs=1e-12)
    assert bool(batch.good[0]) == (status is Status.CERTIFIED)
    blocks = solve_att_svm([keys[: n // 2], keys[n // 2 :]] if n > 1 else [keys], selected)
    assert blocks.status == one.status
    if one.status == "certified":
        assert max(blocks.gap, one.gap) <= TOLERANCES.gap


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
    if solution.status != "infeasible":
        dual = np.column_stack([np.zeros(m), solution.dual.numpy()])
        gap, _, status = certify(problem, solution.direction.numpy(), dual)
        answer = EqualityAnswer(solution.direction.numpy(), solution.dual.numpy(), False, 1)
        theirs = certify_equalities(EqualityRows(rows, np.ones(m), none), answer)
        assert theirs[2] == status == solution.status
        assert theirs[0] == pytest.approx(gap, abs=1e-9)


@pytest.mark.parametrize("norm", ["l2", "linf", 1.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_norms_certify_by_the_same_rule(norm: str | float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys = torch.from_numpy(degenerate(rng, 4, 4, 3))
    selected = (keys @ torch.from_numpy(rng.normal(size=3))).argmax(1)
    solution = solve_att_svm(keys, selected, norm=norm)
    problem = RowProblem.attention(keys, selected)
    gap, violation, status = certify(problem, solution.direction.numpy(), solution.dual.numpy(), norm)
    if problem.live.any():
        assert status == solution.status
        assert bool(is_certified(gap, violation, True)) == (status is Status.CERTIFIED)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4), st.sampled_from([1, 2]))
def test_the_gap_of_numbers_is_that_of_arrays(numbers: list[float], power: int) -> None:
    one = relative_gap(*numbers, power)
    many = relative_gap(*(np.array([x]) for x in numbers), power)[0]
    assert one == many or abs(one - many) <= 1e-12 * abs(one)
    assert not np.isnan(one)
