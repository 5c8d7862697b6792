"""The path of the attention under a given head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import MarginLoss, Sequences
from lightning_maxmargin.paths.ball import Array, Cone, Point, minimize_on_ball
from lightning_maxmargin.paths.objective import Excess, Head, best_tokens

# A radius more than this times the last is reached in steps: a solution is then near the next one's start.
MAX_RADIUS_RATIO = 2.0


class AttentionPath:
    """argmin_{||p|| <= R} L(p) at growing radii.

    Args:
        data: in float64.
        head: v or psi.
        loss: of the margins.
        selected: of a local path; the best tokens of the head where None.
        cone: of a local path.
        starts: random directions tried at each radius.
        generator: of these.
    """

    def __init__(
        self,
        data: Sequences,
        head: Tensor | Head,
        loss: MarginLoss,
        selected: Tensor | None,
        cone: Cone | None,
        starts: int,
        generator: np.random.Generator,
    ) -> None:
        reference = best_tokens(data, head) if selected is None else selected
        self.f = Excess(data, head, loss, reference)
        self.cone = cone
        self.size = size_of(data)
        self.starts = random_starts(generator, starts, self.size)
        axis = svm_axis(data, reference) if cone is None else cone.axis
        self.fixed = [] if axis is None else [axis]

    def solve(self, radii: Array) -> list[Point]:
        """Up through the radii, then down again with what was found above."""
        points: list[Point] = []
        for R in radii:
            points.append(self._best(R, [*self.fixed, *self._spread(), *self._warm(points, R)]))
        for i in range(len(points) - 2, -1, -1):
            back = minimize_on_ball(self.f, radii[i], direction(points[i + 1].x), self.cone)
            points[i] = better(points[i], back)
        return points

    def _warm(self, points: list[Point], R: float) -> list[Array]:
        """The direction of the last solution, followed over the radii between."""
        if not points or not points[-1].x.any():
            return []
        x = points[-1].x
        r = float(np.linalg.norm(x))
        while r * MAX_RADIUS_RATIO < R:
            r *= MAX_RADIUS_RATIO
            x = minimize_on_ball(self.f, r, direction(x), self.cone).x
        return [direction(x)]

    def _spread(self) -> list[Array]:
        """Random directions, in a cone drawn into it."""
        if self.cone is None:
            return self.starts
        return [direction(self.cone.axis + np.sqrt(self.cone.width) * u) for u in self.starts]

    def _best(self, R: float, starts: list[Array]) -> Point:
        best = None
        for start in starts or [np.ones(self.size)]:
            point = minimize_on_ball(self.f, R, start, self.cone)
            best = point if best is None else better(best, point)
        assert best is not None
        return best


def better(a: Point, b: Point) -> Point:
    """The lower of two; of two alike the one with the smaller residual."""
    if abs(a.value - b.value) <= 1e-10 * max(1.0, abs(a.value)):
        return a if a.residual <= b.residual else b
    return a if a.value < b.value else b


def direction(x: Array) -> Array:
    """x / ||x||; of zero the first axis, so that there is a start."""
    size = np.linalg.norm(x)
    return x / size if size > 0 else np.eye(len(x))[0]


def size_of(data: Sequences) -> int:
    """Numbers in p or W."""
    return data.keys.shape[2] * (1 if data.queries is None else data.queries.shape[1])


def random_starts(generator: np.random.Generator, starts: int, size: int) -> list[Array]:
    """Unit vectors."""
    return [direction(u) for u in generator.normal(size=(starts, size))]


def svm_axis(data: Sequences, selected: Tensor) -> Array | None:
    """The unit SVM direction, flat, where there is one."""
    from lightning_maxmargin.svm import solve_att_svm

    svm = solve_att_svm(data.keys, selected, queries=data.queries, mask=data.mask)
    if svm.status != "certified" or not bool(torch.any(svm.direction != 0)):
        return None
    return direction(svm.direction.flatten().numpy())
