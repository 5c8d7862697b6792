"""Margins of attention and head against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_maxmargin.metrics import (
    attention_margin,
    label_margin,
    label_rows,
    relative_margin,
    score_rows,
)

whole = st.integers(-4, 4).map(float)


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[list[float]], list[int], list[list[bool]]]:
    """Scores with ties, a selected real token, and a mask."""
    n, T = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    scores = [[draw(whole) for _ in range(T)] for _ in range(n)]
    selected = [draw(st.integers(0, T - 1)) for _ in range(n)]
    mask = [[t == selected[i] or draw(st.booleans()) for t in range(T)] for i in range(n)]
    return scores, selected, mask


@settings(deadline=None, max_examples=100)
@given(problem=scored(), norm=st.floats(0.1, 10), masked=st.booleans())
def test_attention_margin_equals_brute_force(
    problem: tuple[list[list[float]], list[int], list[list[bool]]], norm: float, masked: bool
) -> None:
    scores, selected, mask = problem
    places = [
        (i, t)
        for i, row in enumerate(scores)
        for t in range(len(row))
        if t != selected[i] and (mask[i][t] or not masked)
    ]
    want = min((scores[i][selected[i]] - scores[i][t] for i, t in places), default=math.inf) / norm
    real = torch.tensor(mask) if masked else None
    assert attention_margin(torch.tensor(scores), torch.tensor(selected), norm, real) == pytest.approx(want, rel=1e-15)
    rows = score_rows(torch.tensor(scores), torch.tensor(selected), real)
    assert rows.isfinite().nonzero().tolist() == [list(place) for place in places]
    assert all(rows[i, t] == scores[i][selected[i]] - scores[i][t] for i, t in places)


def test_padding_of_nan_does_not_reach_the_margin() -> None:
    scores, mask = torch.tensor([[3.0, 1.0, torch.nan]]), torch.tensor([[True, True, False]])
    assert attention_margin(scores, torch.tensor([0]), 1.0, mask) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_keeps_float64(dtype: torch.dtype) -> None:
    """0.1 at 1e7 is within a float32 spacing: the difference is taken before it is lost only if the input holds it."""
    scores = torch.tensor([[1e7 + 0.1, 1e7]], dtype=torch.float64).to(dtype)
    want = float(scores[0, 0].double() - scores[0, 1].double())
    assert attention_margin(scores, torch.tensor([0]), 1.0) == want
    assert want == (0 if dtype == torch.float32 else pytest.approx(0.1, rel=1e-7))


def test_margins_of_a_zero_weight_are_zero() -> None:
    assert attention_margin(torch.zeros(1, 2), torch.tensor([0]), 0.0) == 0
    assert label_margin(torch.zeros(2), torch.ones(2), 0.0) == 0


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(whole, st.sampled_from([-1.0, 1.0])), min_size=1, max_size=6), norm=st.floats(0.1, 10))
def test_label_margin_equals_brute_force(pairs: list[tuple[float, float]], norm: float) -> None:
    logits, labels = torch.tensor(pairs).unbind(1)
    assert label_margin(logits, labels, norm) == pytest.approx(min(f * y for f, y in pairs) / norm, rel=1e-15)
    assert label_rows(logits, labels).tolist() == [f * y for f, y in pairs]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), n=st.integers(1, 4), K=st.integers(2, 4))
def test_multiclass_rows_equal_brute_force(data: st.DataObject, n: int, K: int) -> None:
    logits = [[data.draw(whole) for _ in range(K)] for _ in range(n)]
    labels = [data.draw(st.integers(0, K - 1)) for _ in range(n)]
    want = [f[y] - max(x for k, x in enumerate(f) if k != y) for f, y in zip(logits, labels, strict=True)]
    rows: Tensor = label_rows(torch.tensor(logits), torch.tensor(labels))
    assert rows.tolist() == want
    assert label_margin(torch.tensor(logits), torch.tensor(labels), 2.0) == min(want) / 2


def test_relative_margin() -> None:
    assert relative_margin(1.0, 1.0) == 1
    assert relative_margin(-0.5, 2.0) == -0.25
    assert [relative_margin(1.0, optimal) for optimal in (0.0, -1.0, math.inf, math.nan)] == [None] * 4
