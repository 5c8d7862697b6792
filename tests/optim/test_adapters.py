"""torch's Adam: its own arithmetic where its epsilon is positive, and a limit of it where epsilon is zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import TorchAdam


def gradients(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_same_bits_as_torch(eps: float) -> None:
    """Also with eps = 0: the power of two changes no digit."""
    ours, theirs = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizers = (
        TorchAdam([ours], lr=0.1, betas=(0.8, 0.99), eps=eps),
        torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.99), eps=eps, foreach=False),
    )
    for g in gradients(20, 3, 2):
        for w, optimizer in zip((ours, theirs), optimizers, strict=True):
            w.grad = 1e-3 * g
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.ones(3, 2))


def test_first_step_is_a_sign_step() -> None:
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.tensor([2e-38, -1.0, 0.0])
    TorchAdam([w], lr=0.5, eps=0.0).step()
    # 2e-38 beside 1: its square is zero in float32, and it is left alone rather than divided by zero.
    assert w.tolist() == pytest.approx([0.0, 0.5, 0.0])


def test_entry_that_gets_its_first_gradient_late() -> None:
    """0/0 does not move; at step 3, m / (1 - .9^3) over sqrt(v / (1 - .999^3)) is by hand."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = TorchAdam([w], lr=1.0)
    for g in ([0.0, 1e-40], [0.0, 1e-40], [1e-40, 1e-40]):
        w.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    late = (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5
    assert w.tolist() == pytest.approx([-late, -3.0], rel=1e-9)


def test_zero_gradients_first_then_tiny_ones() -> None:
    """The scale is that of the first gradient that is not zero, not 0 and not fixed by the zeros."""
    w = nn.Parameter(torch.zeros(1))
    optimizer = TorchAdam([w], lr=1.0)
    for g in (0.0, 0.0, 1e-30):
        w.grad = torch.tensor([g])
        optimizer.step()
    late = (0.1 / (1 - 0.9**3)) / (0.001 / (1 - 0.999**3)) ** 0.5
    assert w.item() == pytest.approx(-late, rel=1e-5)


def test_nan_is_not_hidden() -> None:
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.tensor([float("nan"), 1.0])
    TorchAdam([w], lr=1.0).step()
    assert w.isnan().any()


def test_exact_norm_says_whether_every_epsilon_is_zero() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    assert TorchAdam(weights).exact_norm
    assert not TorchAdam(weights, eps=1e-8).exact_norm
    mixed = TorchAdam([{"params": [weights[0]]}, {"params": [weights[1]], "eps": 1e-8}], lr=1.0)
    assert not mixed.exact_norm
    for w in weights:
        w.grad = torch.tensor([-1e-8])
    mixed.step()
    # Without epsilon a whole step; with epsilon as large as the gradient half of one.
    assert [w.item() for w in weights] == pytest.approx([1, 0.5], rel=1e-5)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1), (0.9,), (0.9, float("nan"))])
def test_betas_must_be_below_one(betas: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="betas"):
        TorchAdam([nn.Parameter(torch.zeros(1))], betas=betas)


def test_epsilon_must_not_be_negative() -> None:
    with pytest.raises(InputError, match="eps"):
        TorchAdam([nn.Parameter(torch.zeros(1))], eps=-1e-8)
