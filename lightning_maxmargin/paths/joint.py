"""The joint path of head and attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import MarginLoss, Sequences
from lightning_maxmargin.core.selection import hide
from lightning_maxmargin.paths.ball import Array, Objective, Point, minimize_on_ball, residual
from lightning_maxmargin.paths.fixed_head import direction, random_starts, size_of, svm_axis
from lightning_maxmargin.paths.objective import (
    Excess,
    apply_head,
    attention_scores,
    best_tokens,
    log_mean_loss,
    pooled_tokens,
)

MAX_SWEEPS = 300
# Both residuals below it end the sweeps: 1e-9 radians.
CONVERGED_RADIANS = 1e-9
# So do steps of both that rounding would make.
ROUNDING_STEP = 1e-13


class JointPath:
    """argmin_{||v|| <= r, ||p|| <= R} L(v, p) at growing radii, by alternating minimisation.

    Each of the two is exact in its log domain.

    One objective for both would be blind: at (r, R) = (100, 30) what p can still change in log L is e^-30 of it.
    So each part has its own, log L for v (convex) and log(L - L_ref(v)) for p, and what couples them fades just as
    softmax saturates.

    Args:
        data: in float64.
        loss: of the margins.
        starts: random directions of p tried at each radius.
        generator: of these.
    """

    def __init__(self, data: Sequences, loss: MarginLoss, starts: int, generator: np.random.Generator) -> None:
        self.data, self.loss = data, loss
        self.size = size_of(data)
        self.starts = random_starts(generator, starts, self.size)

    def solve(self, radii: Array) -> list[tuple[Point, Array]]:
        """(attention, head) of each pair (r, R)."""
        found: list[tuple[Point, Array]] = []
        for r, R in radii:
            starts = [self._first(), *self.starts, *([direction(found[-1][0].x)] if found else []), *self._svm(found)]
            tried = [self._descend(r, R, start) for start in starts]
            found.append(min(tried, key=lambda pv: self._order(*pv)))
        return found

    def _first(self) -> Array:
        """Where p = 0 would go under the mean head: no draw is needed to get an answer."""
        zero = torch.zeros(self.size, dtype=torch.float64, requires_grad=True)
        pooled = self._pooled(zero)
        v = (self.data.labels @ pooled).detach()
        (slope,) = torch.autograd.grad(self._margins(v, pooled).mean(), zero)
        return direction(slope.numpy())

    def _svm(self, found: list[tuple[Point, Array]]) -> list[Array]:
        """The SVM direction of the tokens selected last."""
        if not found:
            return []
        a = attention_scores(self.data, torch.from_numpy(found[-1][0].x))
        axis = svm_axis(self.data, hide(a, self.data.mask).argmax(1))
        return [] if axis is None else [axis]

    def _order(self, p: Point, v: Array) -> tuple[float, float]:
        """The loss to the digits that rounding leaves, then the residual."""
        value = float(log_mean_loss(self.loss, self._margins(torch.from_numpy(v), self._pooled(p.x))))
        return float(f"{value:.10g}"), p.residual

    def _descend(self, r: float, R: float, start: Array) -> tuple[Point, Array]:
        x = R * start
        v = direction(((self.data.labels / len(self.data)) @ self._pooled(x)).numpy())
        best = None
        for _ in range(MAX_SWEEPS):
            old = x, v
            v = minimize_on_ball(self._head_loss(x), r, direction(v)).x
            p = minimize_on_ball(self._excess(v), R, direction(x))
            x = p.x
            # The head's residual where the attention has gone meanwhile.
            p = replace(p, residual=max(p.residual, residual(self._head_loss(x), r, v)))
            if best is None or p.residual < best[0].residual:
                best = p, v
            # A start among wrong tokens can end where the loss is flat to rounding: it stays there.
            if p.residual <= CONVERGED_RADIANS or (_still(x, old[0]) and _still(v, old[1])):
                break
        assert best is not None
        return best

    def _excess(self, v: Array) -> Excess:
        head = torch.from_numpy(v)
        return Excess(self.data, head, self.loss, best_tokens(self.data, head))

    def _head_loss(self, x: Array) -> Objective:
        pooled = self._pooled(x)
        return lambda v: log_mean_loss(self.loss, self._margins(v, pooled))

    def _margins(self, v: Tensor, pooled: Tensor) -> Tensor:
        return self.data.labels * apply_head(v, pooled)

    def _pooled(self, x: Array | Tensor) -> Tensor:
        return pooled_tokens(self.data, torch.as_tensor(x))


def _still(new: Array, old: Array) -> bool:
    return bool(np.linalg.norm(new - old) <= ROUNDING_STEP * np.linalg.norm(new))
