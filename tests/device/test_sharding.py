"""What processes tell each other of a model that lies on the CPU still."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_maxmargin.modules import sharding
from tests.device.pretend import Gpu, on_gpu


def test_the_start_is_told_over_the_device(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes nothing from the CPU, and the weights stay there until they are in parts."""
    mine, first = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    told = iter((*first.parameters(), *first.buffers()))

    def broadcast(x: Tensor, source: Any) -> None:
        assert (on_gpu(x), source) == (True, 0)
        x.copy_(next(told).detach())

    first[1].running_mean.fill_(3.0)
    monkeypatch.setattr(sharding.dist, "broadcast", broadcast)
    sharding.share_start(mine, "cuda")
    for (name, x), y in zip(mine.state_dict().items(), first.state_dict().values(), strict=True):
        assert not on_gpu(x), name
        assert torch.equal(x, y), name
