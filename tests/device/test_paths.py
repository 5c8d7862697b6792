"""Regularisation paths of data that are on a device."""

from __future__ import annotations

from typing import Any

import torch

from lightning_maxmargin.data import PaperData
from lightning_maxmargin.paths import RegularizationPath, regularization_path
from tests.device.compare import agree, covers
from tests.device.pretend import Gpu


@covers("paths.regularization_path", "paths.RegularizationPath")
def test_paths(gpu: Gpu) -> None:
    data: Any = PaperData("joint_relaxed").sequences("train")
    head, selected = torch.tensor([0.0, 1.0], dtype=torch.float64), data.values[..., 1].argmax(1)
    found = agree(regularization_path, data, [3.0], head=head, selected=selected, cone=0.1, starts=1, rtol=1e-6)
    assert isinstance(found, RegularizationPath)
