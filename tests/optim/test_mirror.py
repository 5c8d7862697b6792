"""Mirror descent: the map, its inverse, and the step they make."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import MirrorDescent, NormalizedGD
from lightning_maxmargin.optim.mirror import mirror

powers = st.sampled_from([1.2, 1.5, 1.75, 2.0, 3.0, 5.0])


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def psi(w: np.ndarray, p: float) -> float:
    return float((np.abs(w) ** p).sum() / p)


def test_step_by_hand() -> None:
    """p = 3: grad psi(-2, 3) = (-4, 9); ||(1, -8)||_1.5 = (1 + 8^1.5)^(2/3); the root of what remains."""
    w = nn.Parameter(torch.tensor([-2.0, 3.0], dtype=torch.float64))
    w.grad = torch.tensor([1.0, -8.0], dtype=torch.float64)
    MirrorDescent([w], lr=2.0, p=3.0).step()
    norm = (1 + 8**1.5) ** (2 / 3)
    assert w.tolist() == pytest.approx([-math.sqrt(4 + 2 / norm), math.sqrt(9 + 16 / norm)], rel=1e-14)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), p=powers)
def test_inverse_map(seed: int, p: float) -> None:
    w = gaussian(seed, 3, 4)
    w[0, 0] = 0.0
    torch.testing.assert_close(mirror(mirror(w, p), p / (p - 1)), w, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), p=powers)
def test_map_is_the_gradient_of_the_potential(seed: int, p: float) -> None:
    """By central differences, and by duality: psi(w) + psi*(y) = w'y exactly where y is the gradient."""
    w = gaussian(seed, 5)
    # Away from 0, where for p < 2 the third derivative is infinite.
    w = w.sign() * (0.5 + w.abs())
    y = mirror(w, p)
    slope = [(psi((w + h).numpy(), p) - psi((w - h).numpy(), p)) / 2e-5 for h in 1e-5 * torch.eye(5).double()]
    assert y.tolist() == pytest.approx(slope, rel=1e-7)
    assert psi(w.numpy(), p) + psi(y.numpy(), p / (p - 1)) == pytest.approx(float(w @ y), rel=1e-13)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), p=powers)
def test_step_minimises_gradient_plus_bregman_distance(seed: int, p: float) -> None:
    """w' = argmin lr g'w' / ||g||_q + psi(w') - psi(w) - grad psi(w)'(w' - w), so its gradient vanishes there."""
    start, g = gaussian(seed, 4), gaussian(seed + 1, 4)
    w = nn.Parameter(start.clone())
    w.grad = g
    MirrorDescent([w], lr=0.3, p=p).step()
    q = p / (p - 1)
    linear = (0.3 * g / torch.linalg.vector_norm(g, q) - mirror(start, p)).numpy()

    def cost(x: np.ndarray) -> float:
        return float(linear @ x) + psi(x, p)

    here = w.detach().numpy()
    for move in 1e-3 * np.concatenate([np.eye(4), -np.eye(4)]):
        assert cost(here + move) > cost(here)
    # Forward differences of step 1e-8 are good to about 1e-6; kinks of the second derivative at 0 cost a little more.
    assert np.abs(approx_fprime(here, cost, 1e-8)).max() < 1e-3


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_p_two_is_normalised_gradient_descent(seed: int) -> None:
    a, b = (nn.Parameter(gaussian(seed, 2, 3)) for _ in range(2))
    optimizers = [MirrorDescent([a], lr=0.7, p=2.0), NormalizedGD([b], lr=0.7)]
    for step in range(4):
        a.grad = b.grad = gaussian(seed + 1 + step, 2, 3)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("p", [1.1, 1.75, 3.0])
def test_norm_grows_as_stated(p: float) -> None:
    """||w||_p = (lr steps)^(1/(p-1)) under a gradient that stays."""
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = MirrorDescent([w], lr=0.5, p=p)
    for _ in range(20):
        w.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        optimizer.step()
    assert torch.linalg.vector_norm(w.detach(), p).item() == pytest.approx(10 ** (1 / (p - 1)), rel=1e-12)


def test_groups_keep_their_rates() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for w in weights:
        w.grad = torch.tensor([-1e-30])
    MirrorDescent([{"params": [weights[0]], "lr": 4.0}, {"params": [weights[1]]}], lr=9.0, p=3.0).step()
    assert [w.item() for w in weights] == pytest.approx([2, 3])


@pytest.mark.parametrize("p", [1.0, 0.5, math.inf, math.nan])
def test_p_must_be_above_one_and_finite(p: float) -> None:
    with pytest.raises(InputError, match="p is"):
        MirrorDescent([nn.Parameter(torch.zeros(1))], p=p)
