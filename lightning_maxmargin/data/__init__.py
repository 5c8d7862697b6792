"""Where sequences come from: one file per source."""

from __future__ import annotations

import importlib
from typing import Any

from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.data.instances import RandomInstances
from lightning_maxmargin.data.module_loaders import ModuleLoaders
from lightning_maxmargin.data.paper import PaperData
from lightning_maxmargin.data.random import RandomData
from lightning_maxmargin.data.tensors import TensorData

__all__ = ["ModuleLoaders", "PaperData", "PlantedText", "RandomData", "RandomInstances", "SequenceData", "TensorData"]


def __getattr__(name: str) -> Any:
    # Text stands above data; configs name it here.
    if name != "PlantedText":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("lightning_maxmargin.text").PlantedText
