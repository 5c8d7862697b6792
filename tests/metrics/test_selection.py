"""What attention selects, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_maxmargin.metrics import entropy, globally_optimal, locally_optimal, selected_mass

whole = st.integers(-2, 2).map(float)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), n=st.integers(1, 4), T=st.integers(1, 5))
def test_optimality_equals_brute_force(data: st.DataObject, n: int, T: int) -> None:
    gamma = [[data.draw(whole) for _ in range(T)] for _ in range(n)]
    alpha = [data.draw(st.integers(0, T - 1)) for _ in range(n)]
    mask = [[t == a or data.draw(st.booleans()) for t in range(T)] for a in alpha]
    support = [(i, t) for i in range(n) for t in range(T) if t != alpha[i] and mask[i][t] and data.draw(st.booleans())]
    scores, selected, real = torch.tensor(gamma), torch.tensor(alpha), torch.tensor(mask)
    best = [all(gamma[i][a] >= g for g, m in zip(gamma[i], mask[i], strict=True) if m) for i, a in enumerate(alpha)]
    assert globally_optimal(scores, selected, real).tolist() == best
    assert globally_optimal(scores, selected).tolist() == [gamma[i][a] == max(gamma[i]) for i, a in enumerate(alpha)]
    local = [all(gamma[i][a] > gamma[i][t] for j, t in support if j == i) for i, a in enumerate(alpha)]
    rows = torch.tensor(support).reshape(-1, 2)
    assert locally_optimal(scores, selected, rows).tolist() == local
    # Strictly best of all is better than every neighbour.
    for i, a in enumerate(alpha):
        if all(gamma[i][a] > g for t, g in enumerate(gamma[i]) if t != a and mask[i][t]):
            assert best[i]
            assert local[i]


def test_a_tie_with_a_support_neighbour_is_not_locally_optimal() -> None:
    gamma, support = torch.tensor([[1.0, 1.0]]), torch.tensor([[0, 1]])
    assert locally_optimal(gamma, torch.tensor([0]), support).tolist() == [False]
    assert globally_optimal(gamma, torch.tensor([0])).tolist() == [True]


def test_padding_of_nan_does_not_count() -> None:
    gamma, mask = torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])
    assert globally_optimal(gamma, torch.tensor([0]), mask).tolist() == [True]


def test_entropy() -> None:
    attention = torch.tensor([[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0] * 4], dtype=torch.float64)
    assert entropy(attention).tolist() == pytest.approx([math.log(4), 0, math.log(2), 0], rel=1e-15)


def test_selected_mass() -> None:
    attention = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert selected_mass(attention, torch.tensor([1, 1])).tolist() == [0.75, 0]
