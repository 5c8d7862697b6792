"""Tokens and sequences near one another: other norms end certified wherever the Euclidean one does.

Next to a token that nearly equals the selected one the optimum has norm 1e4 to 1e12 and all other rows are long. Two or
three sequences that nearly copy one another and select each other's tokens have rows of length 1 that nearly cancel:
there the multipliers are as large, and at 1e-8 a direction rounded to float64 is often not as good as that.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.svm import Solution, only, solve_att_svm

NORMS = (1.2, 1.75, 3.0, 8.0, "linf")
seeds = st.integers(0, 10_000)


def near_copies(seed: int, exponent: float, kind: str, matrix: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """6 sequences of 5 tokens: tokens near the first three's selected ones, or sequences near the first.

    The second in "sequences" and "pair", where it selects the next token, and the third too in "ring".
    """
    rng, apart = np.random.default_rng(seed), 10.0**exponent
    d = 8 if matrix else 24
    keys, selected = rng.standard_normal((6, 5, d)), rng.integers(5, size=6)
    z = rng.standard_normal((6, 4)) if matrix else None
    if kind == "tokens":
        for i in range(3):
            keys[i, selected[i] - 1] = keys[i, selected[i]] + apart * rng.standard_normal(d)
    for i in {"tokens": (), "sequences": (1,), "pair": (1,), "ring": (1, 2)}[kind]:
        keys[i], selected[i] = keys[0] + apart * rng.standard_normal((5, d)), selected[0]
        if kind != "sequences":
            selected[i] = (selected[0] + i) % 5
        if z is not None:
            z[i] = z[0]
    return torch.from_numpy(keys), torch.from_numpy(selected), None if z is None else torch.from_numpy(z)


def check(solution: Solution, keys: Tensor, selected: Tensor, z: Tensor | None, p: float) -> None:
    """Primal and dual values within 1e-8, by longer numbers and from the keys alone."""
    k = keys.numpy().astype(np.longdouble)
    delta = k[np.arange(len(k)), selected.numpy()][:, None] - k
    rows = delta if z is None else delta[..., None] * z.numpy()[:, None, None, :]
    rows = rows.reshape(*k.shape[:2], -1)
    w, lam = solution.direction.numpy().ravel().astype(np.longdouble), solution.dual.numpy().astype(np.longdouble)
    others = np.arange(k.shape[1]) != selected.numpy()[:, None]
    smallest = (rows @ w)[others].min()
    assert (lam >= 0).all()
    q = 1 / (1 - 1 / p)
    combined = np.einsum("nt,ntr->r", lam, rows)
    bound = lam.sum() / (np.abs(combined) ** q).sum() ** (1 / q)
    value = np.abs(w).max() if p == np.inf else (np.abs(w) ** p).sum() ** (1 / p)
    assert 0 <= 1 - bound * smallest / value + 1e-15 <= 1.1e-8
    assert abs(smallest - 1) <= 1e-9


LONGER = pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps,
    reason="numpy's longest numbers are float64 on this machine",
)


@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        ("tokens", -12),
        ("sequences", -12),
        pytest.param("pair", -7, marks=LONGER),
        pytest.param("ring", -6, marks=LONGER),
    ],
)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=seeds, share=st.floats(0, 1))
def test_certified_in_every_norm(kind: str, nearest: int, matrix: bool, seed: int, share: float) -> None:
    keys, selected, z = near_copies(seed, nearest - share * (nearest + 4), kind, matrix)
    euclidean = only(solve_att_svm(keys, selected, queries=z))
    for norm in NORMS:
        solution = only(solve_att_svm(keys, selected, queries=z, norm=norm))
        assert solution.status == euclidean.status, (norm, solution.message)
        if solution.certified:
            check(solution, keys, selected, z, np.inf if norm == "linf" else float(norm))


@LONGER
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("case", ["an unused coordinate", "right-hand sides of 0"])
def test_rows_that_nearly_cancel_beside(case: str, matrix: bool) -> None:
    """A coordinate that no row has leaves no equation for it; rows with b = 0 may be tight where the others start."""
    for seed, exponent in itertools.product(range(4), (-5.0, -6.0, -7.0)):
        keys, selected, z = near_copies(seed, exponent, "pair", matrix)
        rhs = None
        if case == "an unused coordinate":
            keys[..., 2] = 7.0
        else:
            rhs = torch.from_numpy((np.random.default_rng(seed).uniform(size=(6, 5)) > 0.3).astype(float))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            euclidean = only(solve_att_svm(keys, selected, queries=z, rhs=rhs))
            for norm in NORMS:
                solution = only(solve_att_svm(keys, selected, queries=z, rhs=rhs, norm=norm))
                assert solution.status == euclidean.status, (seed, exponent, norm, solution.message)
