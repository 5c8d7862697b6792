"""Where sequences come from: one file per source."""

from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.data.instances import RandomInstances
from lightning_maxmargin.data.paper import PaperData
from lightning_maxmargin.data.planted import PlantedText
from lightning_maxmargin.data.random import RandomData
from lightning_maxmargin.data.tensors import TensorData

__all__ = ["PaperData", "PlantedText", "RandomData", "RandomInstances", "SequenceData", "TensorData"]
