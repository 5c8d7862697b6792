"""Sign descent, Signum, and spectral descent by SVD and by Newton-Schulz."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import SignDescent, Signum, SpectralDescent
from lightning_maxmargin.optim.steepest import newton_schulz, polar_factor


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioned(seed: int, m: int, n: int, smallest: float) -> Tensor:
    """Singular values from 1 down to ``smallest``, evenly in the logarithm."""
    U, _, Vh = torch.linalg.svd(gaussian(seed, m, n), full_matrices=False)
    return (U * torch.logspace(0, float(np.log10(smallest)), min(m, n), dtype=torch.float64)) @ Vh


def test_sign_step_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    w.grad = torch.tensor([1e-44, 0.0, -1e30])
    SignDescent([w], lr=0.25).step()
    assert w.tolist() == [0.75, 1.0, 1.25]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), momentum=st.sampled_from([0.0, 0.5, 0.9]))
def test_signum_recurrence(seed: int, momentum: float) -> None:
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = Signum([w], lr=0.5, momentum=momentum)
    m, want = np.zeros(4), np.zeros(4)
    for g in gaussian(seed, 6, 4):
        w.grad = g.clone()
        optimizer.step()
        m = momentum * m + (1 - momentum) * g.numpy() / np.abs(g.numpy()).max()
        want = want - 0.5 * np.sign(m)
        assert w.tolist() == want.tolist()
    assert optimizer.state[w]["average"].tolist() == pytest.approx(m.tolist(), rel=1e-12)


def test_signum_without_momentum_is_sign_descent() -> None:
    a, b = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    optimizers = [Signum([a], lr=0.1, momentum=0.0), SignDescent([b], lr=0.1)]
    for step in range(6):
        a.grad = b.grad = gaussian(step, 5).float()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(a, b)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_signum_momentum_must_be_below_one(momentum: float) -> None:
    with pytest.raises(InputError, match="momentum"):
        Signum([nn.Parameter(torch.zeros(1))], momentum=momentum)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (3, 3), (2, 5), (6, 4)]),
    scale=st.sampled_from([1e-200, 1.0, 1e200]),
)
def test_spectral_step_is_the_polar_factor(seed: int, shape: tuple[int, int], scale: float) -> None:
    G = gaussian(seed, *shape)
    w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    w.grad = scale * G
    SpectralDescent([w], lr=0.5).step()
    factor, _ = polar(G.numpy())
    # The polar factor's condition is 1/sigma_min: 1e-3 and less occurs among the examples.
    smallest = torch.linalg.svdvals(G)[-1].item()
    np.testing.assert_allclose(w.detach().numpy(), -0.5 * factor, atol=1e-14 / min(smallest, 1))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_rank_deficient_gradient_moves_its_range_alone(seed: int, rank: int, dtype: torch.dtype) -> None:
    """For G = A B' = Q_A (R_A R_B') Q_B' it is the polar factor of the invertible middle, between the bases."""
    A, B = gaussian(seed, 6, rank), gaussian(seed + 1, 4, rank)
    (QA, RA), (QB, RB) = torch.linalg.qr(A), torch.linalg.qr(B)
    core, _ = polar((RA @ RB.T).numpy())
    want = QA @ torch.from_numpy(core) @ QB.T
    got = polar_factor(A.to(dtype) @ B.to(dtype).T)
    smallest = torch.linalg.svdvals(A @ B.T)[rank - 1].item()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=0, atol=200 * eps / min(smallest, 1))
    # The projector onto the row space: its trace is the rank.
    assert (got.mT @ got).trace().item() == pytest.approx(rank, rel=1e-5)


def test_spectral_step_normalises_a_vector_and_flattens_more_dimensions() -> None:
    v, cube = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2, 3, dtype=torch.float64))
    G = gaussian(0, 2, 2, 3)
    v.grad, cube.grad = torch.tensor([3e-30, -4e-30]), G
    SpectralDescent([v, cube], lr=2.0).step()
    torch.testing.assert_close(v.detach(), torch.tensor([-1.2, 1.6]))
    torch.testing.assert_close(cube.detach(), -2 * torch.from_numpy(polar(G.view(2, 6).numpy())[0]).view(2, 2, 3))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(4, 4), (3, 7), (7, 3)]),
    smallest=st.sampled_from([1.0, 1e-1, 1e-3, 1e-5]),
)
def test_newton_schulz_against_svd(seed: int, shape: tuple[int, int], smallest: float) -> None:
    """20 steps bring 1e-5 of the largest to 1: 1e-5 (15/8)^18 is near 1, and two steps of third order remain."""
    G = conditioned(seed, *shape, smallest)
    exact = polar_factor(G)
    torch.testing.assert_close(newton_schulz(G, 25), exact, rtol=0, atol=1e-10)
    w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    w.grad = 1e-30 * G
    SpectralDescent([w], lr=1.0, method="newton_schulz").step()
    torch.testing.assert_close(w.detach(), -exact, rtol=0, atol=1e-2)


def test_newton_schulz_converges_to_third_order() -> None:
    """Singular value 1 - e goes to 1 - 5/2 e^3 + ...: (15 s - 10 s^3 + 3 s^5) / 8 at s = .9 by hand."""
    G = torch.diag(torch.tensor([0.9, 0.9], dtype=torch.float64)) * 2**0.5
    s = 1 / 2**0.5
    for steps in range(1, 5):
        s = (15 * s - 10 * s**3 + 3 * s**5) / 8
        assert newton_schulz(G, steps).diagonal().tolist() == pytest.approx([s, s], rel=1e-14)
    assert 1 - s < 1e-15


def test_newton_schulz_leaves_a_missing_rank_alone() -> None:
    """20 steps raise rounding, 1e-16, to 3e-11 at most."""
    G = gaussian(3, 6, 2) @ gaussian(4, 2, 5)
    torch.testing.assert_close(newton_schulz(G, 20), polar_factor(G), rtol=0, atol=1e-10)
    assert not newton_schulz(torch.zeros(2, 3)).any()


@pytest.mark.parametrize(
    ("words", "said"), [({"method": "muon"}, "svd or newton_schulz"), ({"steps": 0}, "steps is 0")]
)
def test_spectral_refuses(words: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SpectralDescent([nn.Parameter(torch.zeros(1))], **words)  # type: ignore[arg-type]
