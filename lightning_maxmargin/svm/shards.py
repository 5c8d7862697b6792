"""Constraint generation where no one holds all keys: blocks of a file, or shards on several machines.

The working rows are held explicitly; each look sends a direction to every part and gets back its worst rows. A set of
rows that no direction meets is proven so by the working rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certify import TOLERANCES, combination_rounding, is_certified, relative_gap
from lightning_maxmargin.svm.generate import MAX_ROUNDS, NEAR, Outcome, generate
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Solution, Status, answered, infeasible, nothing_to_separate
from lightning_maxmargin.svm.sources import Final, Report, Source, merge, parts_of
from lightning_maxmargin.svm.threads import one_thread


class Shard(Protocol):
    """A place that holds some of the sequences. ``Part`` is one in this process; another may ask a remote one."""

    def mean_row(self) -> Array:
        """The sum over sequences of their mean row, of the direction's shape."""
        ...

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> Report:
        """The k rows that the direction misses most (with ``everything`` the smallest, missed or not)."""
        ...

    def final(self, direction: Array) -> Final:
        """What a certificate needs to know of the rows here."""
        ...


Look = Callable[[], Iterable[Shard]]


def solve_shards(look: Look, grid: tuple[int, int], goal: str = "puts the selected tokens first") -> Solution:
    """The limit problem of all shards together; the answer and certificate of the problem in one piece.

    Args: look() goes once over the shards, the same ones in the same order each time; grid (n, T) of the whole.
    Returns: Solution. Memory: the working rows, one shard at a time, and the (n, T) multipliers.
    Raises: InputError where there is no shard.

    Example:
        >>> import torch
        >>> keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> from lightning_maxmargin.svm.sources import Part
        >>> shard = Part(RowProblem.attention(keys, torch.tensor([0])), start=0)
        >>> [round(x, 4) for x in solve_shards(lambda: [shard], (1, 3)).direction.tolist()]
        [-0.099, 0.9901]
    """
    with one_thread():
        starts = [shard.mean_row() for shard in look()]
        if not starts:
            raise InputError("keys hold no block: yield at least one (m, T, d)")
        start = np.sum(starts, axis=0)
        most = max(1000, min(start.size, 1500))
        working = merge((shard.worst_rows(start, most, True) for shard in look()), max(most, 300 + 2 * start.size))
        if not np.isfinite(working.smallest):
            return _nothing(look, grid, start.shape)
        return _rounds(look, grid, goal, working, most)


def solve_source(
    source: Source, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None
) -> Solution:
    """``solve_att_svm`` on keys in blocks; the other arguments hold all sequences.

    Raises: InputError where blocks and arguments disagree; sequences are then counted from the start of their block.
    """
    n, tokens = len(selected), next((np.shape(block)[1] for _, block in source.blocks()), 0)
    return solve_shards(lambda: parts_of(source, selected, queries, mask, rhs), (n, tokens))


def _rounds(look: Look, grid: tuple[int, int], goal: str, working: Report, most: int) -> Solution:
    warm: Index | None = None
    best: tuple[float, Report, Array, Array, float] | None = None
    for at in range(1, MAX_ROUNDS + 1):
        problem = working_problem(working)
        outcome = generate(problem, warm)
        lam = np.zeros(len(working.ids))
        lam[outcome.ids // 2] = outcome.lam
        if outcome.infeasible:
            return _infeasible(look, grid, goal, working, lam, outcome, at)
        p = outcome.direction
        found = merge((shard.worst_rows(p, most) for shard in look()), most)
        smallest = found.smallest
        length = float(np.linalg.norm(p))
        gap = _gap(problem, working.rhs, lam, smallest, length) + _missed(found, length)
        if best is None or gap <= best[0]:
            best = (gap, working, lam, p, smallest)
        fresh = found.without(working.ids)
        if len(fresh.ids) == 0 or at == MAX_ROUNDS:
            break
        keep = _kept(problem, working, lam, p, len(fresh.ids), most)
        active = np.concatenate([lam[keep] > 0, np.zeros(len(fresh.ids), bool)])
        working = working.only(keep).plus(fresh)
        warm = np.flatnonzero(active) * 2 + 1
    assert best is not None
    return _solved(look, grid, goal, best[1:], at)


def working_problem(rows: Report) -> RowProblem:
    """Explicit rows as a problem: row i is token 1 of sequence i, against the selected token 0."""
    keys = np.stack([rows.delta, np.zeros_like(rows.delta)], axis=1)
    rhs = np.stack([np.zeros_like(rows.rhs), rows.rhs], axis=1)
    m = len(rows.ids)
    return RowProblem._build(keys, np.zeros(m, np.int64), rows.queries, rhs, np.ones((m, 2), bool), merge=False)


def _gap(problem: RowProblem, rhs: Array, lam: Array, smallest: float, length: float) -> float:
    ids = np.flatnonzero(lam)
    part = lam[ids] / lam.max(initial=1e-300)
    at = ids * 2 + 1
    combined = float(np.linalg.norm(problem.combine(at, part))) + combination_rounding(problem, at, part)
    return min(relative_gap(float(part @ rhs[ids]), combined, smallest, length), 1.0)


def _missed(found: Report, length: float) -> float:
    """As ``generate.missed_of``, among the worst rows of all shards."""
    zero = found.rhs == 0
    return max(0.0, -float(found.depth[zero].min(initial=0.0))) / length if length > 0 else 0.0


def _kept(problem: RowProblem, working: Report, lam: Array, p: Array, fresh: int, most: int) -> Index:
    """As in ``generate``: all rows until they are many, then those near the margin."""
    m = len(working.ids)
    if m + fresh <= most:
        return np.arange(m)
    margins = problem.exact_margins(p, np.arange(m) * 2 + 1)
    near = margins < NEAR * working.rhs + 1e-12 * problem.row_norms[:, 1]
    return np.flatnonzero(near | (lam > 1e-3 * lam.max()))


def _spread(grid: tuple[int, int], ids: Index, lam: Array) -> Array:
    dual = np.zeros(grid)
    dual.ravel()[ids] = lam
    return dual


def _solved(
    look: Look, grid: tuple[int, int], goal: str, best: tuple[Report, Array, Array, float], rounds: int
) -> Solution:
    working, lam, p, smallest = best
    scale = 1 / smallest if smallest > 0 and np.isfinite(1 / smallest) else 1.0
    p, lam = p * scale, lam * scale
    finals = [shard.final(p) for shard in look()]
    length, lower = float(np.linalg.norm(p)), min(x.smallest for x in finals)
    gap = _gap(working_problem(working), working.rhs, lam, lower, length)
    violation = max(x.violation for x in finals)
    good = bool(is_certified(gap, violation, bool((lam >= 0).all()))) and abs(lower - 1) <= TOLERANCES.violation
    return answered(
        Status.CERTIFIED if good else Status.UNVERIFIED,
        p,
        _spread(grid, working.ids, lam),
        np.concatenate([x.tight for x in finals]),
        margin=1 / length if length > 0 and smallest > 0 else 0.0,
        gap=gap,
        violation=violation if smallest > 0 else 1.0,
        rounds=rounds,
        known=f"no direction was shown to be the one that {goal}, nor that none does",
        merged=sum(x.merged for x in finals),
    )


def _nothing(look: Look, grid: tuple[int, int], shape: tuple[int, ...]) -> Solution:
    finals = [shard.final(np.zeros(shape)) for shard in look()]
    return nothing_to_separate(shape, grid, any(x.live for x in finals), sum(x.merged for x in finals))


def _infeasible(
    look: Look, grid: tuple[int, int], goal: str, working: Report, u: Array, outcome: Outcome, rounds: int
) -> Solution:
    dual, shape = _spread(grid, working.ids, u), outcome.direction.shape
    merged = sum(shard.final(np.zeros(shape)).merged for shard in look())
    return infeasible(shape, dual, np.argwhere(dual > 0), goal, outcome.violation, rounds, merged)
