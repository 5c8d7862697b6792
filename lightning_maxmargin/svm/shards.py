"""Constraint generation where no one holds all keys: blocks of a file, or shards on several machines.

The working rows are held explicitly; each evaluation sends a direction to every part and gets back its worst rows. A
set of rows that no direction meets is proven so by the working rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.blocks import BlockShards
from lightning_maxmargin.svm.certificate import TOLERANCES, Certificate, relative_gap
from lightning_maxmargin.svm.certify import combination_rounding, missed_share
from lightning_maxmargin.svm.doubles import sparse_zeros
from lightning_maxmargin.svm.generate import (
    MAX_ADDED_ROWS,
    MAX_ROWS_AT_ONCE,
    MIN_KEPT_ROWS,
    Answer,
    EuclideanRounds,
    Evaluation,
    Generated,
    rounds_of,
    worth_keeping,
)
from lightning_maxmargin.svm.proofs import refuted, what_is_known
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Solution, answered, infeasible, nothing_to_separate
from lightning_maxmargin.svm.sources import (
    PairShard,
    ShardCertificate,
    ShardSummary,
    Source,
    joined,
    longest,
    merge,
)
from lightning_maxmargin.svm.threads import one_thread


class Shard(Protocol):
    """A place that holds some of the sequences. ``LocalShard`` is one in this process; another may ask a remote one."""

    def mean_row(self) -> Array:
        """The sum over sequences of their mean row, of the direction's shape."""
        ...

    def worst_rows(self, direction: Array, k: int, everything: bool = False) -> ShardSummary:
        """The k rows that the direction misses most (with ``everything`` the smallest, missed or not)."""
        ...

    def final(self, direction: Array) -> ShardCertificate:
        """What a certificate needs to know of the rows here."""
        ...

    def evaluate(self, direction: Array, k: int) -> tuple[ShardSummary, ShardCertificate]:
        """``worst_rows`` and ``final`` at once, for one look at the keys."""
        ...


GOAL = "puts the selected tokens first"
EachShard = Callable[[], Iterable[Shard]]


def solve_shards(each_shard: EachShard, grid: tuple[int, int], goal: str = GOAL) -> Solution:
    """The limit problem of all shards together; the answer and certificate of the problem in one piece.

    Args: each_shard() goes once over the shards, the same ones in the same order each time; grid (n, T) of the whole.
    Returns: Solution. Memory: the working rows, one shard at a time, and the (n, T) multipliers.
    Raises: InputError where there is no shard.

    Example:
        >>> import torch
        >>> keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> from lightning_maxmargin.svm.sources import LocalShard
        >>> shard = LocalShard(RowProblem.attention(keys, torch.tensor([0])), start=0)
        >>> [round(x, 4) for x in solve_shards(lambda: [shard], (1, 3)).direction.tolist()]
        [-0.099, 0.9901]
    """
    return solve_shards_from(each_shard, grid, goal)[0]


def solve_shards_from(
    each_shard: EachShard, grid: tuple[int, int], goal: str, first: ShardSummary | None = None
) -> tuple[Solution, ShardSummary | None]:
    """As :func:`solve_shards`, beginning at the working rows of an earlier answer; and those of this one."""
    with one_thread():
        warm = first is not None and bool((first.rhs > 0).any())
        working = first if first is not None and warm else _first_rows(each_shard)
        shape = working.shape
        if not np.isfinite(working.smallest):
            return _nothing(each_shard, grid, shape), None
        found = rounds_of(ShardRows(each_shard, working, _most(shape), warm))
        assert found is not None
        if found.answer.infeasible:
            return _infeasible(each_shard, grid, goal, found), found.working
        return _solved(grid, goal, found), found.working


def _first_rows(each_shard: EachShard) -> ShardSummary:
    """The smallest rows of the direction that is the mean of all."""
    starts = [shard.mean_row() for shard in each_shard()]
    if not starts:
        raise InputError("keys hold no block: yield at least one (m, T, d)")
    start = np.sum(starts, axis=0)
    most = _most(start.shape)
    # As many as are taken at once where all are in memory.
    at_first = max(most, min(300 + 2 * start.size, MAX_ROWS_AT_ONCE))
    return merge((shard.worst_rows(start, at_first, True) for shard in each_shard()), at_first)


def _most(shape: tuple[int, ...]) -> int:
    """Rows that one pass adds."""
    return max(MIN_KEPT_ROWS, min(int(np.prod(shape)), MAX_ADDED_ROWS))


def solve_source(
    source: Source, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None
) -> Solution:
    """``solve_att_svm`` on keys in blocks; the other arguments hold all sequences.

    Raises: InputError where blocks and arguments disagree; sequences are then counted from the start of their block.
    """
    n = len(selected)
    tokens = longest(mask, next((np.shape(block)[1] for _, block in source.blocks()), 0))
    return solve_shards(BlockShards(source, selected, queries, mask, rhs, tokens), (n, tokens))


@dataclass(frozen=True)
class ShardEvaluation(Evaluation[ShardSummary]):
    """Of all shards, with what the certificate of this very direction needs: the last pass is then the last round's."""

    certificate: ShardCertificate = field(default_factory=lambda: ShardCertificate.joined([]))


class ShardRows(EuclideanRounds):
    """Rows that the shards hold between them; working rows are copies of theirs.

    Args: each_shard() goes once over the shards; first, the rows to begin with; most, rows that one pass adds; warm,
        whether they are an earlier problem's, for which a rough answer would only cost a pass.
    """

    def __init__(self, each_shard: EachShard, first: ShardSummary, most: int, warm: bool) -> None:
        super().__init__()
        self.each_shard, self.start, self.most = each_shard, first, most
        self.gap = 0.0 if warm else self.gap

    def first(self) -> ShardSummary:
        return self.start

    def solve(self, working: ShardSummary) -> Answer:
        problem = working_problem(working)
        return self.answer_of(problem, problem.ids, False)

    def evaluate(self, working: ShardSummary, answer: Answer) -> Evaluation[ShardSummary]:
        p, length = answer.direction, float(np.linalg.norm(answer.direction))
        found, certificate = joined((shard.evaluate(p, self.most) for shard in self.each_shard()), self.most)
        gap = _gap(working_problem(working), working.rhs, answer.lam, found.smallest, length)
        zero = found.rhs == 0
        self.gap = gap + missed_share(found.depth[zero], np.full(int(zero.sum()), length))
        fresh = found.without(working.ids)
        done = len(fresh.ids) == 0 and not self.rough
        return ShardEvaluation(self.gap, fresh, done, found.smallest, certificate=certificate)

    def grow(self, working: ShardSummary, answer: Answer, evaluation: Evaluation[ShardSummary]) -> ShardSummary:
        problem, fresh, lam = working_problem(working), evaluation.fresh, answer.lam
        margins = problem.exact_margins(answer.direction, problem.ids)
        keep = worth_keeping(margins, working.rhs, problem.row_norms[:, 1], lam, len(fresh.ids), problem.dim)
        self.active = None if self.rough else np.concatenate([lam[keep] > 0, np.zeros(len(fresh.ids), bool)])
        return working.only(np.flatnonzero(keep)).plus(fresh)


def working_problem(rows: ShardSummary) -> RowProblem:
    """Explicit rows as a problem: row i is token 1 of sequence i, against the selected token 0."""
    keys = np.stack([rows.delta, np.zeros_like(rows.delta)], axis=1)
    rhs = np.stack([np.zeros_like(rows.rhs), rows.rhs], axis=1)
    m = len(rows.ids)
    live = np.column_stack([np.zeros(m, bool), np.ones(m, bool)])
    problem = RowProblem._build(keys, np.zeros(m, np.int64), rows.queries, rhs, live, merge=False)
    return replace(problem, rounded=np.column_stack([np.zeros(m, bool), rows.rounded]))


def working_shard(rows: ShardSummary, tokens: int) -> PairShard:
    """Explicit rows as a shard of their own; ``with_rhs`` takes one number a row."""
    return PairShard(working_problem(rows), 0, tokens, rows.ids)


def _gap(problem: RowProblem, rhs: Array, lam: Array, smallest: float, length: float) -> float:
    on = np.flatnonzero(lam)
    part = lam[on] / lam.max(initial=1e-300)
    ids = problem.ids[on]
    combined = float(np.linalg.norm(problem.combine(ids, part))) + combination_rounding(problem, ids, part)
    return min(relative_gap(float(part @ rhs[on]), combined, smallest, length), 1.0)


def _spread(grid: tuple[int, int], ids: Index, lam: Array) -> Array:
    dual = sparse_zeros(grid)
    dual.ravel()[ids] = lam
    return dual


def _solved(grid: tuple[int, int], goal: str, found: Generated[ShardSummary]) -> Solution:
    working, p, lam = found.working, found.answer.direction, found.answer.lam
    assert isinstance(found.evaluation, ShardEvaluation)
    smallest, final = found.evaluation.smallest, found.evaluation.certificate
    scale = 1 / smallest if smallest > 0 and np.isfinite(1 / smallest) else 1.0
    p, lam = p * scale, lam * scale
    length, lower = float(np.linalg.norm(p)), final.smallest * scale
    problem = working_problem(working)
    gap = _gap(problem, working.rhs, lam, lower, length)
    violation = final.violation
    met = lower / length if lower > 0 and violation == 0 else 0.0
    sound = bool((lam >= 0).all()) and smallest > 0 and abs(lower - 1) <= TOLERANCES.violation
    return answered(
        Certificate(gap, violation if smallest > 0 else 1.0, sound),
        p,
        _spread(grid, working.ids, lam),
        final.tight,
        margin=1 / length if length > 0 and smallest > 0 else 0.0,
        rounds=found.rounds,
        known=what_is_known(met, problem, problem.spread(problem.ids, lam), goal),
        merged=final.merged,
    )


def _nothing(each_shard: EachShard, grid: tuple[int, int], shape: tuple[int, ...]) -> Solution:
    final = ShardCertificate.joined(shard.final(np.zeros(shape)) for shard in each_shard())
    return nothing_to_separate(shape, grid, final.live, final.merged)


def _infeasible(each_shard: EachShard, grid: tuple[int, int], goal: str, found: Generated[ShardSummary]) -> Solution:
    problem, lam, shape = working_problem(found.working), found.answer.lam, found.answer.direction.shape
    dual = _spread(grid, found.working.ids, lam)
    merged = sum(shard.final(np.zeros(shape)).merged for shard in each_shard())
    proof = refuted(problem, problem.ids, lam)
    return infeasible(proof, shape, dual, np.argwhere(dual > 0), goal, found.rounds, merged)
