"""The recurrence of dual acceleration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.optim import AcceleratedMargin, NormalizedGD


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), lr=st.floats(1e-3, 1e3))
def test_recurrence(seed: int, lr: float) -> None:
    """m <- t/(t+1) (m + g), w <- w - lr (m + g), t from 0."""
    gradients = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = AcceleratedMargin([w], lr=lr)
    m, want = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t, g in enumerate(gradients):
        w.grad = g.clone()
        optimizer.step()
        m = t / (t + 1) * (m + g)
        want = want - lr * (m + g)
        torch.testing.assert_close(w.detach(), want, rtol=1e-13, atol=1e-13 * lr)
        torch.testing.assert_close(optimizer.state[w]["momentum"], m, rtol=1e-13, atol=1e-14)


def test_constant_gradient_moves_quadratically() -> None:
    """m_t = t/2 g, so w after n steps is -lr g (n + n (n - 1) / 4)."""
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AcceleratedMargin([w], lr=0.5)
    for n in range(1, 101):
        w.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        assert w.item() == pytest.approx(-0.5 * (n + n * (n - 1) / 4), rel=1e-13)


def test_momentum_of_a_late_parameter_starts_at_its_own_zero() -> None:
    early, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = AcceleratedMargin([early, late], lr=1.0)
    for step in range(4):
        early.grad = -torch.ones(1)
        late.grad = -torch.ones(1) if step >= 2 else None
        optimizer.step()
    assert late.item() == pytest.approx(2.5)  # what `early` was after its own two steps
    assert early.item() == pytest.approx(7)


def test_faster_than_normalised_on_a_linear_margin_problem() -> None:
    """Where it is proved: rows (1, 1), (1, -.5) have the maximum-margin direction (1, 0) + (0, 0) by hand below."""
    rows = torch.tensor([[1.0, 1.0], [1.0, -0.5]], dtype=torch.float64)
    # Both rows tight at w = (1, 0): 1 and 1; the multipliers 1/3 and 2/3 are positive, so it is optimal.
    best = torch.tensor([1.0, 0.0], dtype=torch.float64)
    gaps = []
    for make in (AcceleratedMargin, NormalizedGD):
        w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = make([w], lr=1.0)
        for _ in range(200):
            w.grad = -((-rows @ w.detach()).softmax(0) @ rows)
            optimizer.step()
        gaps.append(direction_gap(w, best))
    # The offset along the second axis settles at ln(2) / 1.5: the gap is its square over twice the norm squared.
    accelerated, normalised = gaps
    assert accelerated is not None
    assert normalised is not None
    assert normalised == pytest.approx((0.4621 / 200) ** 2 / 2, rel=0.05)
    assert accelerated < normalised / 1000
