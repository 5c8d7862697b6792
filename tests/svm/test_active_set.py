"""Limit problems with equalities: several kept tokens, their finite part, graph-SVM rows, and any rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm import Solution, solve_att_svm, solve_finite_part, solve_kept_svm, solve_rows
from lightning_maxmargin.svm.equalities import EqualityAnswer, EqualityRows, certify_equalities
from tests.svm.reference import reference_equalities

# What Clarabel's own answer is good for.
ORACLE = 2e-6
examples = settings(max_examples=25, deadline=None, derandomize=True)


def explicit(keys: Tensor, kept: Tensor, z: Tensor | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows of the statement, written out: every kept token against every other token of its sequence."""
    rows, rhs, equal = [], [], []
    for i, k in enumerate(keys):
        for o in torch.nonzero(kept[i]).ravel().tolist():
            for t in range(len(k)):
                if t == o:
                    continue
                delta = k[o] - k[t]
                rows.append((delta if z is None else torch.outer(delta, z[i])).ravel().numpy())
                rhs.append(0.0 if kept[i, t] else 1.0)
                equal.append(bool(kept[i, t]))
    return np.array(rows), np.array(rhs), np.array(equal)


def instance(seed: int, n: int, T: int, d: int, dq: int | None, share: float = 0.4) -> tuple:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, T, d, generator=g, dtype=torch.float64)
    z = None if dq is None else torch.randn(n, dq, generator=g, dtype=torch.float64)
    kept = torch.rand(n, T, generator=g) < share
    kept[torch.arange(n), torch.randint(T, (n,), generator=g)] = True
    return keys, kept, z, g


def agree(solution: Solution, theirs: np.ndarray | None) -> None:
    assert theirs is not None
    assert solution.status == "certified"
    ours = solution.direction.numpy().ravel()
    assert np.linalg.norm(ours - theirs) <= ORACLE * max(1.0, float(np.linalg.norm(theirs)))


@pytest.mark.parametrize("dq", [None, 3])
@pytest.mark.parametrize("seed", range(15))
def test_kept_sets_against_cvxpy(seed: int, dq: int | None) -> None:
    keys, kept, z, _ = instance(seed, 3, 4, 12 if dq is None else 6, dq)
    solution = solve_kept_svm(keys, kept, queries=z)
    rows, rhs, equal = explicit(keys, kept, z)
    agree(solution, reference_equalities(rows, rhs, equal))
    w = solution.direction.numpy().ravel()
    np.testing.assert_allclose(rows[equal] @ w, 0, atol=1e-11 * np.linalg.norm(w))
    assert (rows[~equal] @ w >= 1 - 1e-10).all()
    assert (solution.dual[~kept] >= 0).all()
    first = [int(k.nonzero()[0]) for k in kept]
    direct = [
        (keys[i, o] - keys[i]) if z is None else torch.einsum("td,e->tde", keys[i, o] - keys[i], z[i])
        for i, o in enumerate(first)
    ]
    combined = torch.tensordot(solution.dual, torch.stack(direct), dims=([0, 1], [0, 1]))
    torch.testing.assert_close(combined, solution.direction, atol=1e-10 * float(np.linalg.norm(w)), rtol=0)
    for i, t in solution.support.tolist():
        assert not kept[i, t]


@pytest.mark.parametrize("dq", [None, 4])
def test_one_kept_token_is_the_attention_svm(dq: int | None) -> None:
    keys, _, z, _ = instance(0, 6, 5, 7, dq)
    selected = (keys @ torch.ones(7, dtype=torch.float64)).argmax(1)
    if z is not None:
        z = z.abs()
    one = solve_kept_svm(keys, torch.nn.functional.one_hot(selected, 5), queries=z)
    plain = solve_att_svm(keys, selected, queries=z)
    assert one.status == plain.status == "certified"
    torch.testing.assert_close(one.direction, plain.direction, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(one.dual, plain.dual, atol=1e-8, rtol=1e-7)
    assert one.support.tolist() == plain.support.tolist()
    assert one.margin == pytest.approx(plain.margin, rel=1e-12)


def test_a_mask_and_copies_of_kept_tokens() -> None:
    keys, kept, _, _ = instance(1, 4, 5, 12, None)
    kept[:, :3] = torch.tensor([True, True, False])
    plain = solve_kept_svm(keys, kept)
    more = torch.cat([keys, keys[:, 1:2], torch.full((4, 1, 12), torch.nan)], dim=1)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[:, 6] = False
    flags = torch.cat([kept, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    again = solve_kept_svm(more, flags, mask=mask)
    assert (plain.status, again.status, again.merged) == ("certified", "certified", 4)
    torch.testing.assert_close(again.direction, plain.direction)
    assert not again.dual[:, 5:].any()


@pytest.mark.parametrize("dq", [None, 3])
@pytest.mark.parametrize("seed", range(5))
def test_finite_part_has_the_ratios(seed: int, dq: int | None) -> None:
    keys, kept, z, g = instance(seed, 3, 4, 12 if dq is None else 6, dq)
    kept[:, :2] = True
    s = torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.01
    solution = solve_finite_part(keys, kept, s, queries=z)
    assert solution.status == "certified"
    W = solution.direction
    scores = keys @ W if z is None else torch.einsum("ntd,de,ne->nt", keys, W, z)
    probabilities = torch.softmax(scores.masked_fill(~kept, -torch.inf), dim=1)
    expected = (s * kept) / (s * kept).sum(1, keepdim=True)
    torch.testing.assert_close(probabilities, expected, atol=1e-12, rtol=1e-10)
    rows, _, equal = explicit(keys, kept, z)
    logs = [
        math.log(float(s[i, o] / s[i, t]))
        for i in range(3)
        for o in range(4)
        for t in range(4)
        if kept[i, o] and kept[i, t] and o != t
    ]
    agree(solution, reference_equalities(rows[equal], np.array(logs), np.ones(len(logs), bool)))


def test_finite_part_and_direction_make_the_path() -> None:
    keys, kept, _, g = instance(2, 3, 4, 12, None)
    s = torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.1
    finite, far = solve_finite_part(keys, kept, s).direction, solve_kept_svm(keys, kept).direction
    weights = torch.softmax(keys @ (finite + 60 * far), dim=1)
    expected = (s * kept) / (s * kept).sum(1, keepdim=True)
    torch.testing.assert_close(weights, expected, atol=1e-9, rtol=0)


def test_ratios_that_no_direction_has() -> None:
    keys = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]], dtype=torch.float64)
    kept = torch.ones(2, 2, dtype=torch.bool)
    consistent = solve_finite_part(keys, kept, torch.tensor([[2.0, 1.0], [4.0, 1.0]]))
    assert consistent.status == "certified"
    assert float(consistent.direction) == pytest.approx(math.log(2))
    other = solve_finite_part(keys, kept, torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    assert (other.status, other.margin) == ("infeasible", 0.0)
    u = other.dual[:, 1]
    assert float(u @ torch.tensor([1.0, 2.0], dtype=torch.float64)) == pytest.approx(0, abs=1e-12)
    assert float(u.sum() * math.log(2)) == pytest.approx(1)
    same = solve_finite_part(torch.ones(1, 2, 3), kept[:1], torch.tensor([[0.75, 0.25]]))
    assert same.status == "infeasible"
    assert solve_finite_part(torch.ones(1, 2, 3), kept[:1], torch.ones(1, 2)).status == "certified"


def test_kept_tokens_that_cannot_be_told_apart_from_the_rest() -> None:
    # The token outside is half way between the kept two: the equality makes its row 0 >= 1.
    keys = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    solution = solve_kept_svm(keys, torch.tensor([[True, True, False]]))
    assert (solution.status, solution.margin) == ("infeasible", 0.0)
    assert float(solution.dual[0, 2]) == pytest.approx(1)
    combined = (solution.dual[0, :, None] * (keys[0, 0] - keys[0])).sum(0)
    assert float(combined.norm()) <= 1e-12


def test_graph_rows() -> None:
    # Priority graph on tokens e_0..e_3: 0 and 1 imply each other (one component), both precede 2, and 2 precedes 3.
    e = torch.eye(4, dtype=torch.float64)
    pairs = [(0, 1, True), (0, 2, False), (1, 2, False), (2, 3, False), (0, 3, False)]
    rows = torch.stack([e[i] - e[j] for i, j, _ in pairs])
    equal = torch.tensor([same for _, _, same in pairs])
    solution = solve_rows(rows, (~equal).double(), equal)
    assert solution.status == "certified"
    # Scores (a, a, a-1, a-2) of least norm: a = 3/4.
    torch.testing.assert_close(solution.direction, torch.tensor([0.75, 0.75, -0.25, -1.25], dtype=torch.float64))
    assert solution.support.tolist() == [1, 2, 3]


@pytest.mark.parametrize("seed", range(40))
def test_any_rows_against_cvxpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, d = int(rng.integers(1, 15)), int(rng.integers(1, 8))
    rows, rhs, equal = rng.normal(size=(m, d)), rng.normal(size=m), rng.random(m) < 0.25
    if seed % 3 == 0:
        rhs[equal] = 0
    if seed % 4 == 0:
        rows[m // 2 :] = rows[m // 2 :].round()
    solution = solve_rows(torch.tensor(rows), torch.tensor(rhs), torch.tensor(equal))
    theirs = reference_equalities(rows, rhs, equal)
    assert solution.status == ("infeasible" if theirs is None else "certified")
    dual = solution.dual.numpy()
    assert (dual[~equal] >= 0).all()
    if theirs is None:
        assert np.linalg.norm(dual @ rows) <= 1e-12 * (np.abs(dual) @ np.linalg.norm(rows, axis=1))
        assert dual @ rhs == pytest.approx(1)
        return
    agree(solution, theirs)
    missed = rhs - rows @ solution.direction.numpy()
    assert np.abs(missed[equal]).max(initial=0) <= 1e-9
    assert missed[~equal].max(initial=0) <= 1e-9


@examples
@given(st.integers(0, 10_000), st.integers(-8, 8), st.integers(1, 4))
def test_scale_and_repetition_change_nothing(seed: int, power: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    rows, equal = torch.tensor(rng.normal(size=(6, 9))), torch.tensor(rng.random(6) < 0.4)
    rhs = torch.tensor(rng.normal(size=6))
    plain = solve_rows(rows, rhs, equal)
    scale = torch.tensor(10.0 ** rng.uniform(-power, power, size=6)) if power > 0 else torch.ones(6).double()
    other = solve_rows((rows * scale[:, None]).repeat(times, 1), (rhs * scale).repeat(times), equal.repeat(times))
    assert plain.status == other.status == "certified"
    torch.testing.assert_close(other.direction, plain.direction, atol=1e-9 * float(plain.direction.norm()), rtol=0)
    farther = solve_rows(rows, rhs * 10.0**power, equal)
    torch.testing.assert_close(farther.direction, plain.direction * 10.0**power, rtol=1e-8, atol=1e-9 * 10.0**power)


def test_nothing_to_do() -> None:
    solution = solve_rows(torch.ones(2, 3), torch.tensor([0.0, -1.0]), torch.tensor([True, False]))
    assert (solution.status, solution.gap, solution.margin) == ("certified", 0.0, math.inf)
    assert not solution.direction.any()
    everything = solve_kept_svm(torch.randn(2, 1, 3), torch.ones(2, 1))
    assert (everything.status, everything.margin) == ("certified", math.inf)


def test_the_certificate_sees_through_wrong_answers() -> None:
    rows, rhs, equal = np.array([[1.0, 1.0], [1.0, 0.0]]), np.array([0.0, 1.0]), np.array([True, False])
    problem = EqualityRows(rows, rhs, equal)
    right = EqualityAnswer(np.array([1.0, -1.0]), np.array([-1.0, 2.0]), False, 1)
    found = certify_equalities(problem, right)
    assert (found.violation, found.status) == (0.0, "certified")
    assert abs(found.gap) <= 1e-15
    for w, dual in (
        ([1.0, -0.9], [-1.0, 2.0]),
        ([2.0, -2.0], [-1.0, 2.0]),
        ([1.0, -1.0], [-1.0, 1.0]),
        ([0.5, -0.5], [-1.0, 2.0]),
        ([1.0, -1.0], [0.0, -2.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ):
        wrong = EqualityAnswer(np.array(w), np.array(dual), False, 1)
        assert certify_equalities(problem, wrong).status == "unverified"
    assert (
        certify_equalities(problem, EqualityAnswer(np.zeros(2), np.array([-1.0, 1.0]), True, 1)).status == "unverified"
    )
    opposite = EqualityRows(np.array([[1.0], [-1.0]]), np.ones(2), np.zeros(2, bool))
    for u, status in (([0.5, 0.5], "infeasible"), ([0.5, 0.6], "unverified"), ([-0.5, -0.5], "unverified")):
        assert certify_equalities(opposite, EqualityAnswer(np.zeros(1), np.array(u), True, 1)).status == status


K, KEPT = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(3)[:2]
BAD = {
    "shape": (lambda: solve_kept_svm(K, torch.ones(3)), r"kept has shape \[3\] and keys \[2, 3, 4\]"),
    "numbers": (lambda: solve_kept_svm(K, KEPT * 2), "kept holds numbers other than 0 and 1"),
    "empty": (lambda: solve_kept_svm(K, KEPT * torch.tensor([[1.0], [0.0]])), "sequence 1 keeps no token"),
    "padding": (lambda: solve_kept_svm(K, KEPT, mask=1 - KEPT), "kept token 0 of sequence 0 is padding"),
    "nan": (lambda: solve_kept_svm(K * torch.nan, KEPT), "keys hold nan"),
    "queries": (lambda: solve_kept_svm(K, KEPT, queries=torch.ones(3, 2)), "queries have shape"),
    "probability": (lambda: solve_finite_part(K, KEPT, KEPT * 0), "kept token 0 of sequence 0 is 0: pass positive"),
    "probabilities": (lambda: solve_finite_part(K, KEPT, torch.ones(2)), r"probabilities have shape \[2\]"),
    "rows": (lambda: solve_rows(torch.ones(3), torch.ones(3), torch.ones(3)), r"rows have shape \[3\]"),
    "rhs": (lambda: solve_rows(torch.ones(3, 2), torch.ones(2), torch.ones(3)), r"rhs has shape \[2\] for 3 rows"),
    "equal": (lambda: solve_rows(torch.ones(3, 2), torch.ones(3), torch.ones(2)), r"equal has shape \[2\]"),
    "equal numbers": (lambda: solve_rows(torch.ones(1, 2), torch.ones(1), torch.tensor([2])), "equal holds numbers"),
    "rhs nan": (lambda: solve_rows(torch.ones(1, 2), torch.ones(1) * torch.nan, torch.ones(1)), r"rhs hold nan at"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_clear_line(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
