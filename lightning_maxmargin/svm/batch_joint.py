"""The limits of attention and head together for many instances at once; ``joint`` says what each limit is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.batch import Guess, solve_rows
from lightning_maxmargin.svm.batch_input import BatchInput
from lightning_maxmargin.svm.batch_rows import Mask
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import BatchSolution, Solution
from lightning_maxmargin.svm.solve import solve_problem

GOAL = "puts the selected tokens first"
MAX_NEWTON = 60


@dataclass(frozen=True)
class BatchJoint:
    """B attention problems whose right-hand sides depend on spare (B, n) = Gamma_i - Gamma, and whether they do."""

    batch: BatchInput
    spare: Array
    defined: Mask

    def solve(self, rhs: Array, at: Index, guess: Guess) -> BatchSolution:
        """Instances ``at`` with right-hand sides (b, n), the same for all rows of a sequence."""
        batch = self.batch
        part = BatchInput(
            batch.keys[at],
            batch.selected[at],
            None if batch.live is None else batch.live[at],
            None if batch.queries is None else batch.queries[at],
            np.ascontiguousarray(np.broadcast_to(rhs[:, :, None], (*rhs.shape, batch.keys.shape[2]))),
        )

        def alone(b: int) -> Solution:
            given = [None if x is None else torch.from_numpy(x[b]) for x in (part.queries, part.live, part.rhs)]
            keys, selected = torch.from_numpy(part.keys[b]), torch.from_numpy(part.selected[b])
            return solve_problem(RowProblem.attention(keys, selected, *given), goal=GOAL)

        found = solve_rows(part, alone, guess)
        if found is None:
            raise InputError("keys hold NaN or Inf, or numbers too large to square: remove or rescale them")
        return found

    def relaxed(self, smallest: Array) -> tuple[BatchSolution, Array]:
        """Right-hand side 1 for inputs that support the label SVM, 0 for the others."""
        rhs = (self.spare <= TOLERANCES.support * smallest[:, None]).astype(np.float64)
        return self.solve(rhs, np.arange(len(rhs)), None), rhs

    def rate_coupled(self, rho: Array) -> tuple[BatchSolution, Array, Mask]:
        """As ``joint._rate_coupled``, all instances in step: the Solution, its right-hand sides, and who got there."""
        spare, B = rho[:, None] * self.spare, len(self.spare)
        solution = self.solve(np.ones_like(spare), np.arange(B), None)
        going = self.defined & (solution.direction.flatten(1) != 0).any(dim=1).numpy()
        going &= solution.certified.numpy()
        tau = np.where(going, solution.margin.numpy(), 1.0)
        low, high, off, right = np.zeros(B), np.full(B, np.inf), np.full(B, np.inf), np.ones_like(spare)
        for _ in range(MAX_NEWTON):
            at = np.flatnonzero(going)
            if len(at) == 0:
                break
            t = tau[at]
            right[at] = np.where(spare[at] == 0, 1.0, np.maximum(0.0, 1 - spare[at] / t[:, None]))
            found = self.solve(right[at], at, (solution.direction.numpy()[at], solution.dual.numpy()[at]))
            solution = solution.with_part(at, found)
            length = t * found.direction.flatten(1).norm(dim=1).numpy()
            off[at] = np.abs(length - 1)
            low[at], high[at] = np.where(length < 1, t, low[at]), np.where(length < 1, high[at], t)
            weight = (found.dual.sum(2).numpy() * (spare[at] < t[:, None])).sum(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = t - (length - 1) * length / (t * weight)
            middle = np.where(np.isfinite(high[at]), 0.5 * (low[at] + high[at]), 2 * t)
            step = np.where((step > low[at]) & (step < high[at]), step, middle)
            stay = found.certified.numpy() & (off[at] > 0.1 * TOLERANCES.unit) & (step != t)
            tau[at], going[at] = np.where(stay, step, t), stay
        solution.violation[:] = torch.maximum(solution.violation, torch.from_numpy(np.where(self.defined, off, 0.0)))
        return solution, right, off <= TOLERANCES.unit


def label_margins(head: BatchSolution, x: Array, labels: Array) -> tuple[Array, Mask]:
    """Gamma_i (B, n) of binary heads, and whether the head separates (B,)."""
    v = head.direction.numpy()
    # Over its largest entry, whose square would under- or overflow where values are extreme.
    top = np.abs(v).max(axis=1)
    v = v / np.where(top > 0, top, 1.0)[:, None]
    length = np.linalg.norm(v, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = labels * np.einsum("bnd,bd->bn", x, v) / length[:, None]
    return margins, ~head.infeasible.numpy() & (length > 0) & (np.nan_to_num(margins).min(axis=1) > 0)


def attention_batch(
    batch: BatchInput, head: BatchSolution, x: Array, labels: Array, rho: Array | None, alone: Callable[[int], Solution]
) -> tuple[BatchSolution, Tensor]:
    """Attention of the relaxed limit (rho None) or the rate-coupled one, stacked, and right-hand sides (B, n, T).

    Args: x (B, n, dv) selected values, labels (B, n) in {-1, 1}; alone(b) for instances where the limit is not
        defined, whose right-hand sides are 0, or whose root was not met.
    """
    margins, defined = label_margins(head, x, labels)
    smallest = np.where(defined, margins.min(axis=1), 1.0)
    spare = np.where(defined[:, None], margins - smallest[:, None], 0.0)
    spare[spare <= TOLERANCES.label_rounding * smallest[:, None]] = 0.0
    problem, met = BatchJoint(batch, spare, defined), defined
    if rho is None:
        solution, rhs = problem.relaxed(smallest)
    else:
        solution, rhs, reached = problem.rate_coupled(rho)
        met = defined & reached
    rows = batch.rows(slice(None))
    spread = np.take_along_axis(rhs * defined[:, None], rows.ids // rows.grid[1], axis=1)
    spread = spread if rows.live is None else np.where(rows.live, spread, 0.0)
    others = {int(b): alone(int(b)) for b in np.flatnonzero(~met)}
    return solution.exchanged(others), torch.from_numpy(rows.spread(spread))
