"""The former place of :mod:`~lightning_maxmargin.core.batch` and its directions: imports of it go on working."""

from lightning_maxmargin.core.batch import Instances, contract, scores, targets, token_scores
from lightning_maxmargin.core.batch_directions import InstanceDirections, instance_directions

__all__ = [
    "InstanceDirections",
    "Instances",
    "contract",
    "instance_directions",
    "scores",
    "targets",
    "token_scores",
]
