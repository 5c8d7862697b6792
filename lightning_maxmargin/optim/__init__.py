"""Optimizers named after the margin they maximise: ``margin_norm`` says which limit problem belongs to each."""

from lightning_maxmargin.optim.accelerated import AcceleratedMargin
from lightning_maxmargin.optim.adapters import TorchAdam
from lightning_maxmargin.optim.base import MarginOptimizer
from lightning_maxmargin.optim.factored import FactoredGD
from lightning_maxmargin.optim.mirror import MirrorDescent
from lightning_maxmargin.optim.normalized import NormalizedGD
from lightning_maxmargin.optim.per_group import OptimizerPerGroup
from lightning_maxmargin.optim.power_decay import PowerDecay
from lightning_maxmargin.optim.steepest import SignDescent, Signum, SpectralDescent

__all__ = [
    "AcceleratedMargin",
    "FactoredGD",
    "MarginOptimizer",
    "MirrorDescent",
    "NormalizedGD",
    "OptimizerPerGroup",
    "PowerDecay",
    "SignDescent",
    "Signum",
    "SpectralDescent",
    "TorchAdam",
]
