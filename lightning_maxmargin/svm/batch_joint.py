"""The limits of attention and head together for many instances at once; ``joint`` says what each limit is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.api import GOAL
from lightning_maxmargin.svm.batch import Guess, solve_rows
from lightning_maxmargin.svm.batch_input import BatchInput
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.limits import Mask, label_margins, relaxed_rhs, spare_margins, unit_norm_root
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import BatchSolution, Solution
from lightning_maxmargin.svm.solve import solve_problem


def _solve(batch: BatchInput, rhs: Array, at: Index, guess: Guess = None) -> BatchSolution:
    """Instances ``at`` with right-hand sides (b, n), the same for all rows of a sequence."""
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


def _rate_coupled(batch: BatchInput, spare: Array, defined: Mask) -> tuple[BatchSolution, Array, Mask]:
    """The Solution at the root, its right-hand sides (B, n), and who got there (B,)."""
    rhs = np.ones_like(spare)
    solution = _solve(batch, rhs, np.arange(len(spare)))
    going = defined & solution.certified.numpy() & (solution.direction.flatten(1) != 0).any(dim=1).numpy()

    def solve(right: Array, at: Index) -> tuple[Array, Array, Mask]:
        nonlocal solution
        found = _solve(batch, right, at, (solution.direction.numpy()[at], solution.dual.numpy()[at]))
        solution, rhs[at] = solution.with_part(at, found), right
        norms = found.direction.flatten(1).norm(dim=1)
        return norms.numpy(), (found.dual.sum(2) / norms[:, None]).numpy(), found.certified.numpy()

    off = unit_norm_root(spare, solution.margin.numpy(), going, solve)
    solution.violation[:] = torch.maximum(solution.violation, torch.from_numpy(np.where(defined, off, 0.0)))
    return solution, rhs, off <= TOLERANCES.unit


def attention_batch(
    batch: BatchInput, head: BatchSolution, x: Array, labels: Array, rho: Array | None, alone: Callable[[int], Solution]
) -> tuple[BatchSolution, Tensor]:
    """Attention of the relaxed limit (rho None) or the rate-coupled one, stacked, and right-hand sides (B, n, T).

    Args: x (B, n, dv) selected values, labels (B, n) in {-1, 1}; alone(b) for instances where the limit is not
        defined, whose right-hand sides are 0, or whose root was not met.
    """
    margins, separates = label_margins(head.direction.numpy(), x, labels)
    defined = separates & ~head.infeasible.numpy()
    margins = np.where(defined[:, None], margins, 1.0)
    if rho is None:
        rhs, met = relaxed_rhs(margins), defined
        solution = _solve(batch, rhs, np.arange(len(rhs)))
    else:
        solution, rhs, reached = _rate_coupled(batch, rho[:, None] * spare_margins(margins), defined)
        met = defined & reached
    rows = batch.rows(slice(None))
    spread = np.take_along_axis(rhs * defined[:, None], rows.ids // rows.grid[1], axis=1)
    spread = spread if rows.live is None else np.where(rows.live, spread, 0.0)
    others = {int(b): alone(int(b)) for b in np.flatnonzero(~met)}
    return solution.exchanged(others), torch.from_numpy(rows.spread(spread))
