"""Many small problems at once: everything is computed for all of them together, but for one call of DAQP each.

With n=6, T=8, d=10 a call of DAQP takes 7 to 11 microseconds, solving one problem alone in Python 470. An instance
whose answer is not certified here is solved again on its own, which also finds the proof that there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.batch_input import BatchInput, attribute_to_instance, check_batch
from lightning_maxmargin.svm.batch_rows import BatchRows, Mask, inverse, judge
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.qp.daqp import batch_multipliers
from lightning_maxmargin.svm.rows import Array, Index
from lightning_maxmargin.svm.solution import BatchSolution, Solution, answered_batch, stack
from lightning_maxmargin.svm.threads import one_thread

METHODS = ("auto", "daqp", "torch", "loop")
# Looser answers are certified too, but the one-instance path finishes them to rounding.
FINE_GAP = 1e-11
# Above this many numbers an instance is no small problem: the interior point overtakes DAQP (see qp.working).
MAX_BATCH_NUMBERS = 20_000
# Numbers in the rows of a chunk: 800 kB stay in the second-level cache.
CHUNK_NUMBERS = 100_000
# Earlier directions and multipliers, (B, d) or (B, d, dq) and (B, n, T).
Guess = tuple[Array, Array] | None


def solve_batch(
    keys: Tensor,
    selected: Tensor,
    queries: Tensor | None,
    mask: Tensor | None,
    rhs: Tensor | None,
    warm: BatchSolution | None,
    method: str,
    one: Callable[[int, Solution | None], Solution],
) -> BatchSolution:
    """B attention problems, stacked; the arguments of ``solve_att_svm``, each with a leading instance axis.

    Args: one(b, warm) solves instance b alone. method: "loop" for one by one; all other names mean the batch, which
        on one CPU core solves a thousand small problems in 12 ms, wherever the keys are.
    Raises: InputError, with the number of the instance that is wrong.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r} is unknown: use one of {', '.join(METHODS)}")
    batch = check_batch(keys, selected, queries, mask, rhs)

    def alone(b: int) -> Solution:
        return one(b, warm[b] if warm is not None and b < len(warm) else None)

    _, n, T, d = batch.keys.shape
    m, dim = n * T, d * (1 if batch.queries is None else batch.queries.shape[2])
    if method == "loop" or m * min(m, dim) > MAX_BATCH_NUMBERS:
        return stack([alone(b) for b in range(len(keys))])
    found = solve_rows(batch, alone, _guess(warm, batch))
    if found is None:
        attribute_to_instance(keys, selected, queries, mask, rhs)
        raise InputError("keys are too large to square: rescale them")
    return found


def label_batch(
    values: Tensor, labels: Tensor, num_classes: int | None, singly: bool, one: Callable[[int], Solution]
) -> BatchSolution:
    """B label problems, stacked: values (B, n, d), labels (B, n); ``one`` solves an instance alone, as classes need and
    as is asked by ``singly``."""
    x, y = to_array(values, "values"), to_array(labels, "labels")
    B, n, d = x.shape
    if (
        singly
        or num_classes is not None
        or y.shape != (B, n)
        or x.size == 0
        or not np.isin(y, (-1, 1)).all()
        or n * d > MAX_BATCH_NUMBERS
    ):
        if len(y) != B or B == 0:
            raise InputError(
                f"labels have {len(y)} instances and values {B}: give each the same leading axis, not empty"
            )
        return stack([one(b) for b in range(B)])
    rows = x * y[:, :, None]
    keys = np.stack([rows, np.zeros_like(rows)], axis=2)
    found = solve_rows(BatchInput(keys, np.zeros((B, n), np.int64), None, None, None, binary=True), one, None)
    return stack([one(b) for b in range(B)]) if found is None else found


def _guess(warm: BatchSolution | None, batch: BatchInput) -> Guess:
    """What an earlier stacked Solution says, where it has the shape of the problem."""
    if warm is None or tuple(warm.dual.shape) != batch.keys.shape[:3]:
        return None
    dq = () if batch.queries is None else (batch.queries.shape[2],)
    if tuple(warm.direction.shape) != (len(batch.keys), batch.keys.shape[3], *dq):
        return None
    return to_array(warm.direction, "direction"), to_array(warm.dual, "dual")


def _start(rows: BatchRows, direction: Array, dual: Array) -> Mask:
    """Rows (B, M) to start DAQP with: those active earlier, of instances where no margin of theirs has halved."""
    start = (np.take_along_axis(dual.reshape(len(dual), -1), rows.ids, axis=1) > 0) & (rows.rhs > 0)
    ratio = rows.margins(rows.projected(direction)) * inverse(rows.rhs)
    lowest = np.where(start, ratio, np.inf).min(axis=1, initial=np.inf)
    largest = np.where(start, ratio, -np.inf).max(axis=1, initial=-np.inf)
    return np.asarray(start & ((lowest > 0) & (lowest > 0.5 * largest))[:, None])


def solve_rows(batch: BatchInput, alone: Callable[[int], Solution], guess: Guess) -> BatchSolution | None:
    """All instances in chunks by DAQP, ``alone`` for those not certified; None on NaN or Inf."""
    with one_thread():
        whole = _in_chunks(batch, guess)
    if whole is None:
        return None
    again = np.flatnonzero(~whole.good).tolist()
    return _assembled(whole, batch.binary).exchanged({b: alone(b) for b in again})


@dataclass(frozen=True)
class _Judged:
    """Instances scaled to smallest row 1 and judged; ``good`` where the answer is as fine as one alone would be.

    direction (B, d) or (B, d, dq), dual (B, n, T), touching: numbers i * T + t of tight rows, ``touches`` (B,) of each
    instance one after the other; length, gap, violation, merged, good (B,).
    """

    direction: Array
    length: Array
    dual: Array
    touching: Index
    touches: Index
    gap: Array
    violation: Array
    merged: Index
    good: Mask


def _in_chunks(batch: BatchInput, guess: Guess) -> _Judged | None:
    step = max(1, CHUNK_NUMBERS // batch.keys[0].size)
    parts: list[_Judged] = []
    for at in range(0, len(batch.keys), step):
        cut = slice(at, at + step)
        rows = batch.rows(cut)
        if not np.isfinite(rows.delta.sum()):
            return None
        direction, lam = _solve(rows, None if guess is None else (guess[0][cut], guess[1][cut]))
        parts.append(_judged(rows, direction, lam))
    return _Judged(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Judged)))


def _solve(rows: BatchRows, guess: Guess) -> tuple[Array, Array]:
    """Directions (B, d) or (B, d, dq) and multipliers (B, M)."""
    start = None if guess is None else _start(rows, *guess)
    if rows.queries is None:
        # DAQP scales rows itself; only right-hand sides must have the size of the rows.
        top = rows.row_norms.max(axis=1, initial=0.0)[:, None]
        return batch_multipliers(rows.delta, rows.rhs * top, rows.count, start)
    scale = inverse(rows.row_norms)
    try:
        A: Array = np.asarray(np.linalg.cholesky(rows.gram()), np.float64)
    except np.linalg.LinAlgError:
        return np.zeros((len(scale), *rows.shape)), np.zeros_like(scale)
    b = rows.rhs * scale
    _, lam = batch_multipliers(A, b * inverse(b.max(axis=1, initial=0.0))[:, None], rows.count, start)
    lam *= scale
    return rows.combine(lam), lam


def _judged(rows: BatchRows, direction: Array, lam: Array) -> _Judged:
    found = judge(rows, direction, lam, TOLERANCES.tight)
    return _Judged(
        direction=found.direction,
        length=found.length,
        dual=rows.spread(found.lam),
        touching=rows.ids[found.tight],
        touches=found.tight.sum(1),
        gap=found.gap,
        violation=found.violation,
        merged=rows.merged,
        good=found.good & (found.gap <= FINE_GAP) & (found.violation <= FINE_GAP),
    )


def _assembled(found: _Judged, binary: bool) -> BatchSolution:
    sequence, token = np.divmod(found.touching, found.dual.shape[2])
    touching = torch.from_numpy(sequence if binary else np.stack([sequence, token], axis=1))
    return answered_batch(
        found.good,
        found.direction,
        np.ascontiguousarray(found.dual[:, :, 1]) if binary else found.dual,
        torch.split(touching, found.touches.tolist()),
        margin=inverse(found.length),
        gap=found.gap,
        violation=found.violation,
        merged=found.merged,
    )
