"""The pretended device, and a Trainer on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy

from tests.device.pretend import GPU, Gpu, pretended_gpu
from tests.text.conftest import tiny_encoder  # noqa: F401  (a fixture)


class GpuAccelerator(CPUAccelerator):
    """One device, the pretended one."""

    def setup_device(self, device: torch.device) -> None:
        assert device == GPU

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [GPU]


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretended_gpu() as found:
        yield found


@pytest.fixture
def trainer(gpu: Gpu, tmp_path: Any) -> Callable[..., pl.Trainer]:
    """Makes a Trainer on the device, or with ``device=False`` one on the CPU."""

    def make(device: bool = True, **options: Any) -> pl.Trainer:
        on: dict[str, Any] = {"accelerator": "cpu"}
        if device:
            on = {"strategy": SingleDeviceStrategy(device=GPU, accelerator=GpuAccelerator())}
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        return pl.Trainer(
            **{**on, **quiet, "enable_model_summary": False, "max_epochs": -1, "default_root_dir": tmp_path, **options}
        )

    return make
