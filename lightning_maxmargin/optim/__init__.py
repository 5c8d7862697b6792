"""Optimizers named after the margin they maximise: ``margin_norm`` says which limit problem belongs to each."""

from lightning_maxmargin.optim.accelerated import AcceleratedMargin
from lightning_maxmargin.optim.normalized import NormalizedGD

__all__ = ["AcceleratedMargin", "NormalizedGD"]
