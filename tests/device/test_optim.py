"""Every optimizer on a device: the weights of the CPU, and no step that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_maxmargin import optim
from tests.device.compare import close, covers
from tests.device.pretend import GPU, Gpu

OPTIMIZERS: dict[str, Callable[[Any], optim.MarginOptimizer | optim.OptimizerPerGroup]] = {
    "AcceleratedMargin": optim.AcceleratedMargin,
    "FactoredGD": optim.FactoredGD,
    "MirrorDescent": lambda params: optim.MirrorDescent(params, p=3.0),
    "NormalizedGD": optim.NormalizedGD,
    "NormalizedGD, polyak": lambda params: optim.NormalizedGD(params, step_size="polyak"),
    "OptimizerPerGroup": lambda params: optim.OptimizerPerGroup([optim.Signum(params)]),
    "SignDescent": optim.SignDescent,
    "Signum": optim.Signum,
    "SpectralDescent": optim.SpectralDescent,
    "SpectralDescent, newton_schulz": lambda params: optim.SpectralDescent(params, method="newton_schulz"),
    "TorchAdam": optim.TorchAdam,
    "TorchAdam, eps": lambda params: optim.TorchAdam(params, eps=1e-8),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@covers(*(f"optim.{name}" for name in optim.__all__ if name != "PowerDecay"))
def test_every_optimizer(gpu: Gpu, name: str) -> None:
    ended: list[Any] = []
    gradients = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for device in ("cpu", GPU):
        weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64, device=device))
        optimizer = OPTIMIZERS[name]([weight])
        for k, gradient in enumerate(gradients):
            if k == 3:  # as a run that goes on
                state, optimizer = optimizer.state_dict(), OPTIMIZERS[name]([weight])
                optimizer.load_state_dict(state)
            weight.grad = gradient.to(device)
            # The flag of a singular value decomposition is read by torch itself.
            with gpu.expecting(int(name == "SpectralDescent" and device == GPU)):
                optimizer.step()
        ended.append(weight)
    close(ended[1], ended[0])
