"""Each optimizer maximises its own margin: the diagonal of optimizer x norm on a fixed linear problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor, nn

from lightning_maxmargin.optim import (
    AcceleratedMargin,
    FactoredGD,
    MirrorDescent,
    NormalizedGD,
    SignDescent,
    Signum,
    SpectralDescent,
    TorchAdam,
)
from lightning_maxmargin.optim.base import MarginOptimizer


def newton_schulz(params: Any) -> SpectralDescent:
    return SpectralDescent(params, lr=0.1, method="newton_schulz")


MAKERS: dict[str, Callable[[Any], MarginOptimizer]] = {
    "NormalizedGD": lambda w: NormalizedGD(w, lr=0.1),
    "AcceleratedMargin": lambda w: AcceleratedMargin(w, lr=0.1),
    "SignDescent": lambda w: SignDescent(w, lr=0.02),
    "Signum": lambda w: Signum(w, lr=0.02),
    # torch's .999 remembers 1,000 steps: .940 at 3,000 of them, .969 at 10,000.
    "TorchAdam": lambda w: TorchAdam(w, lr=0.02, betas=(0.9, 0.9)),
    "SpectralDescent": lambda w: SpectralDescent(w, lr=0.1),
    "NewtonSchulz": newton_schulz,
    "Mirror1.5": lambda w: MirrorDescent(w, lr=0.1, p=1.5),
    "Mirror3": lambda w: MirrorDescent(w, lr=10.0, p=3.0),
    "FactoredGD": lambda w: FactoredGD(w, lr=0.05),
}
STEPS = 1500
#: Six rows, each a 4 x 4 matrix: with fewer rows than entries every one of them can be positive.
ROWS = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def train(name: str) -> tuple[str | float, Tensor]:
    """The optimizer's norm, and W after exact steps on log sum exp(-rows)."""
    factored = name == "FactoredGD"
    start = 0.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = [nn.Parameter(start), nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))]
    weights = weights if factored else weights[1:]
    optimizer = MAKERS[name](weights)
    with torch.no_grad():
        for _ in range(STEPS):
            W = weights[0] @ weights[1].T if factored else weights[0]
            G = -torch.einsum("m,mde->de", (-torch.einsum("mde,de->m", ROWS, W)).softmax(0), ROWS)
            if factored:
                weights[0].grad, weights[1].grad = G @ weights[1], G.T @ weights[0]
            else:
                weights[0].grad = G
            optimizer.step()
    return optimizer.margin_norm, (weights[0] @ weights[1].T if factored else weights[0]).detach()


def margin(W: Tensor, norm: str | float) -> float:
    if norm in ("spectral", "nuclear"):
        length = torch.linalg.matrix_norm(W, 2 if norm == "spectral" else "nuc")
    else:
        length = torch.linalg.vector_norm(W, {"l2": 2.0, "linf": torch.inf}.get(str(norm), norm))  # type: ignore[arg-type]
    return float(torch.einsum("mde,de->m", ROWS, W).min() / length)


def best(norm: str | float) -> float:
    W = cp.Variable((4, 4))
    entries = cp.vec(W, order="C")
    if norm == "spectral":
        objective: Any = cp.sigma_max(W)
    elif norm == "nuclear":
        objective = cp.normNuc(W)
    else:
        objective = cp.pnorm(entries, {"l2": 2, "linf": "inf"}.get(str(norm), norm))
    problem = cp.Problem(cp.Minimize(objective), [ROWS.flatten(1).numpy() @ entries >= 1])
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return margin(torch.as_tensor(W.value), norm)


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[str | float, Tensor]]:
    return {name: train(name) for name in MAKERS}


@pytest.mark.parametrize("name", MAKERS)
def test_iterate_maximises_its_own_margin(name: str, trained: dict[str, tuple[str | float, Tensor]]) -> None:
    norm, W = trained[name]
    largest = best(norm)
    own = margin(W, norm) / largest
    others = {n: margin(w, norm) / largest for n, (other, w) in trained.items() if other != norm}
    assert 0.99 < own < 1 + 1e-6
    assert own > max(others.values()), others


def test_norms_are_different_problems(trained: dict[str, tuple[str | float, Tensor]]) -> None:
    """No W is near the best of two of these norms: a column that anyone leads would show nothing."""
    ends = dict(trained.values())
    for norm in ("linf", "spectral", "nuclear", 3.0):
        assert all(margin(w, norm) < 0.98 * best(norm) for other, w in ends.items() if other != norm)
