"""Constant and Polyak steps of normalised gradient descent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.optim import NormalizedGD


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-300, 1e-160, 1e-30, 1.0, 1e30, 1e200]),
    lr=st.floats(1e-3, 1e3),
    shape=st.sampled_from([(1,), (3,), (2, 5)]),
)
def test_step_has_length_lr_against_the_gradient(seed: int, scale: float, lr: float, shape: tuple[int, ...]) -> None:
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    w.grad = scale * g
    NormalizedGD([w], lr=lr).step()
    torch.testing.assert_close(w.detach(), -lr * g / g.norm(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e30])
def test_tiny_and_huge_gradients_in_float32(scale: float) -> None:
    w = nn.Parameter(torch.zeros(2))
    w.grad = scale * torch.tensor([3.0, -4.0])
    NormalizedGD([w], lr=2.0).step()
    # 1e-44 is 7 of the smallest float32: its digits are gone, its length must not be.
    assert w.detach().double().norm().item() == pytest.approx(2, rel=2e-7)
    if scale > 1e-44:
        torch.testing.assert_close(w.detach(), torch.tensor([-1.2, 1.6]))


def test_each_tensor_is_normalised_by_itself() -> None:
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, 2))]
    weights[0].grad, weights[1].grad = torch.tensor([1e-9, 0.0]), 1e9 * torch.ones(2, 2)
    NormalizedGD(weights, lr=1.0).step()
    assert [w.detach().norm().item() for w in weights] == pytest.approx([1, 1])


def quadratic(w: nn.Parameter, optimizer: NormalizedGD, floor: float = 0.0) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = w.square().sum() / 2 + floor
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("floor", [0.0, 3.0])
def test_polyak_halves_a_quadratic(floor: float) -> None:
    """(L - L*) / ||g||^2 = 1/2 for L = ||w||^2 / 2 + L*."""
    w = nn.Parameter(torch.tensor([4.0, -8.0], dtype=torch.float64))
    optimizer = NormalizedGD([w], lr=1.0, step_size="polyak", optimum=floor)
    for step in range(1, 11):
        quadratic(w, optimizer, floor)
        assert w.tolist() == pytest.approx([4 / 2**step, -8 / 2**step], rel=1e-12)


def test_polyak_with_lr_two_lands_on_the_minimum_of_a_quadratic() -> None:
    w = nn.Parameter(torch.tensor([4.0, -8.0], dtype=torch.float64))
    quadratic(w, NormalizedGD([w], lr=2.0, step_size="polyak"))
    assert w.tolist() == pytest.approx([0, 0], abs=1e-15)


def test_polyak_takes_the_norm_over_all_tensors() -> None:
    weights = [nn.Parameter(torch.tensor([4.0])), nn.Parameter(torch.tensor([[-8.0]]))]
    optimizer = NormalizedGD(weights, lr=1.0, step_size="polyak")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((w.square().sum() / 2 for w in weights), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [w.item() for w in weights] == pytest.approx([2, -4])


def test_polyak_of_a_log_loss_needs_no_loss() -> None:
    """L = exp(-3w): grad log L = -3, so the step is 1/3; the true gradient -3L with loss L gives the same."""
    a, b = (nn.Parameter(torch.tensor([0.5], dtype=torch.float64)) for _ in range(2))
    logged, true = (NormalizedGD([w], lr=1.0, step_size="polyak") for w in (a, b))
    for step in range(1, 6):
        a.grad = torch.tensor([-3.0], dtype=torch.float64)
        logged.step()

        def closure() -> Tensor:
            loss = (-3 * b).exp().sum()
            (b.grad,) = torch.autograd.grad(loss, b)
            return loss

        true.step(closure)
        assert a.item() == pytest.approx(0.5 + step / 3, rel=1e-14)
        assert b.item() == pytest.approx(a.item(), rel=1e-13)


def test_polyak_step_is_never_longer_than_max_step() -> None:
    weights = [nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    for w, g in zip(weights, (3e-9, -4e-9), strict=True):
        w.grad = torch.tensor([g], dtype=torch.float64)
    NormalizedGD(weights, lr=1.0, step_size="polyak", max_step=10.0).step()
    assert [w.item() for w in weights] == pytest.approx([-6, 8])


def test_polyak_survives_a_tiny_gradient_in_float32() -> None:
    """The square of 1e-30 is zero in float32: no NaN, and no step past max_step."""
    w = nn.Parameter(torch.zeros(2))
    w.grad = torch.tensor([3e-30, 4e-30])
    NormalizedGD([w], lr=1.0, step_size="polyak", max_step=5.0).step()
    assert w.isfinite().all()
    assert w.detach().norm().item() == pytest.approx(5, rel=1e-6)


def test_polyak_rates_of_groups() -> None:
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for w in weights:
        w.grad = torch.tensor([1.0])
    NormalizedGD([{"params": [weights[0]], "lr": 0.5}, {"params": [weights[1]]}], lr=1.0, step_size="polyak").step()
    assert [w.item() for w in weights] == pytest.approx([-0.25, -0.5])


@pytest.mark.parametrize("step_size", ["adaptive", None])
def test_unknown_step_size(step_size: str | None) -> None:
    with pytest.raises(InputError, match="constant or polyak"):
        NormalizedGD([nn.Parameter(torch.zeros(1))], step_size=step_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_step", [0.0, -1.0, math.nan])
def test_max_step_must_be_positive(max_step: float) -> None:
    with pytest.raises(InputError, match="max_step"):
        NormalizedGD([nn.Parameter(torch.zeros(1))], step_size="polyak", max_step=max_step)
