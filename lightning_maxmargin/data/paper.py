"""The worked examples of the papers, with their literal numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences
from lightning_maxmargin.data.base import SequenceData
from lightning_maxmargin.errors import InputError

Example = Literal[
    "single_global", "single_local", "multi", "joint_tight", "joint_relaxed", "losses", "visual1", "visual2"
]

# fmt: off
MULTI = [
    [(.774832, -.230472), (-1.086776, 1.169742), (-1.063203, .576956), (-1.252667, 1.069997),
     (-.476032, -.252468), (-.549456, -.770531), (-.386670, -.341298)],
    [(.688981, -.068272), (-.849962, .882900), (-.963304, 1.277873), (-.810740, .831265),
     (-.493681, -.598535), (-.412061, -.477518), (-.411769, -.520462)],
    [(.942066, .010501), (-.539559, .706221), (-1.113850, 1.183994), (-.742025, .704365),
     (-.594624, -.234945), (-.609949, -.595967), (-.713396, -.277012)],
]
VISUAL1 = [[(-.981497, .186395), (-1.135572, -.049839), (-1.456831, .114505)],
           [(.691717, -.168916), (.732313, -.017475), (.941347, -.289691)]]
VISUAL2 = [[(1, .5), (-.189725, -.798354), (-.797696, .305650), (-.619805, -.016822), (-1.172423, .246827)],
           [(1, -.5), (-.757443, .102617), (-.830786, .676377), (-.813182, .006708), (-.613163, -.054622)]]
# fmt: on


def _f64(numbers: object) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _scored(keys: object, scores: object, labels: object) -> tuple[Sequences, Tensor]:
    """Tokens (x, y, score) with W = diag(1,1,0) and v = (0,0,1): attention sees (x, y), the head reads the score."""
    k, g = _f64(keys), _f64(scores)
    return Sequences(k, _f64(labels), values=torch.cat([k, g[..., None]], 2)), _f64([0, 0, 1])


def _single(local_score: float) -> tuple[Sequences, Tensor]:
    return _scored([[(-0.1, 1), (1, 0), (0, 0)]], [[1, 0.9, local_score]], [1])


def _joint(x: float, y: float) -> tuple[Sequences, None]:
    return Sequences(_f64([[(0, 0), (1, 1)], [(0, 0), (1, -1)], [(0, 0), (x, y)]]), _f64([1, -1, 1])), None


def _cross(keys: object, queries: object, head: object) -> tuple[Sequences, Tensor]:
    return Sequences(_f64(keys), _f64([1, 1]), queries=_f64(queries)), _f64(head)


EXAMPLES: dict[str, Callable[[], tuple[Sequences, Tensor | None]]] = {
    "single_global": lambda: _single(0.9),
    "single_local": lambda: _single(0.0),
    "multi": lambda: _scored(MULTI, [[1] + [0.5] * 6] * 3, [1, 1, 1]),
    "joint_tight": lambda: _joint(0.5, 1.0),
    "joint_relaxed": lambda: _joint(0.5, 1.5),
    "visual1": lambda: _cross(VISUAL1, [(0.845011, 0.534748), (-0.636264, -0.771471)], (0.927320, 0.374270)),
    "visual2": lambda: _cross(VISUAL2, [(-0.539129, -0.842223), (0.952552, 0.304376)], (0.977124, 0.212671)),
}


class PaperData(SequenceData):
    """One worked example, in float64.

    ``single_*``, ``multi`` and ``losses`` fix W = diag(1,1,0) and v = (0,0,1): the keys are the first two coordinates,
    which is all that attention sees, and the head reads the third.

    Args:
        example: which one.
        score: C, the score of the first input of ``losses``.

    Raises:
        InputError: no such example.

    Source: ``single_*``, ``multi``, ``joint_*``, ``losses``: MMTS; ``visual*``: TFSVM, cross-attention queries.

    Example:
        >>> data = PaperData("joint_relaxed")
        >>> data.sequences("train").keys[2].tolist()
        [[0.0, 0.0], [0.5, 1.5]]
    """

    def __init__(self, example: Example = "joint_relaxed", score: float = 2.0) -> None:
        super().__init__()
        if example not in EXAMPLES and example != "losses":
            raise InputError(f"data.example: {example!r} is none of {', '.join([*EXAMPLES, 'losses'])}")
        self.example, self.score = example, score
        self._data, self.head = self._losses() if example == "losses" else EXAMPLES[example]()

    def _losses(self) -> tuple[Sequences, Tensor]:
        return _scored([[(0, 0), (1, 1)], [(0, 0), (1, -1)]], [[0, self.score], [0, 1]], [1, 1])

    def load(self) -> dict[str, Sequences]:
        return {"train": self._data}
