"""The rows of every limit problem without rounding: keys are subtracted and multiplied as the numbers they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.svm import RowProblem
from tests.svm.exact_oracle import Exact, Integers, Mask, decide

Index = npt.NDArray[np.int64]
# A token is merged with the selected one when they differ by at most 8 roundings of the larger, 2**-49.
MERGE_BITS = 49
# Within this of that (relative, of squares) float64 norms decide, and the library's own word is taken.
MERGE_DOUBT = Fraction(1, 10**6)


@dataclass(frozen=True)
class ExactProblem:
    """``rows @ w >= rhs``, ``=`` where equal; ids are the places of the rows in the flat dual.

    general: with equalities or rhs of any sign, answered to tolerances relative to ``||row|| ||w|| + |rhs|``.
    """

    rows: Exact
    rhs: Exact
    equal: Mask
    ids: Index
    general: bool = False

    @property
    def strict(self) -> Mask:
        """Inequalities above 0."""
        return np.array([b > 0 for b in self.rhs.digits], bool) & ~self.equal

    def feasible(self, direction: Exact | None = None, support: Mask | None = None) -> bool:
        """Whether any direction meets the rows; guesses as in ``decide`` may save work."""
        if self.general:
            return decide(*self._lifted()).feasible
        guess = None if direction is None else direction.digits
        return decide(self.rows.digits, self.strict, guess, support).feasible

    def _lifted(self) -> tuple[Integers, Mask]:
        """Rows for (w, tau): ``rows @ w >= rhs tau``, tau > 0."""
        low = min(self.rows.exponent, self.rhs.exponent)
        rows = self.rows.digits * (1 << (self.rows.exponent - low))
        rhs = self.rhs.digits * (1 << (self.rhs.exponent - low))
        lifted = np.column_stack([rows, -rhs])
        above = np.array([0] * rows.shape[1] + [1], dtype=object)
        system = np.vstack([lifted, -lifted[self.equal], above[None]])
        return system, np.arange(len(system)) == len(system) - 1


def attention_rows(keys: Tensor, selected: Tensor, **more: Any) -> ExactProblem:
    """Of ``solve_att_svm``: live tokens against the selected one, times the query; near copies are no rows."""
    mask, rhs, queries = more.get("mask"), more.get("rhs"), more.get("queries")

    def library_live() -> Mask:
        return RowProblem.attention(keys, selected, **more).live

    live, delta = _differences(keys, selected.numpy(), mask, library_live)
    b = np.ones(live.shape) if rhs is None else rhs.numpy()
    return _token_problem(live, delta, queries, np.where(live, b, 0.0))


def label_rows(values: Tensor, labels: Tensor, num_classes: int | None = None) -> ExactProblem:
    """Of ``solve_label_svm``: y x, or (V_y - V_k)'x for classes."""
    x, y = Exact.of(values.numpy()), labels.long().tolist()
    n = len(y)
    if num_classes is None:
        rows = Exact(x.digits * np.array(y, dtype=object)[:, None], x.exponent)
        return ExactProblem(rows, _ones(n), np.zeros(n, bool), np.arange(n))
    unit = np.array(np.eye(num_classes, dtype=int).tolist(), dtype=object)
    delta = Exact(unit[y][:, None] - unit[None])
    live = np.ones((n, num_classes), bool)
    live[np.arange(n), y] = False
    return _token_problem(live, delta, values, live.astype(float))


def given_rows(rows: Tensor, rhs: Tensor, equal: Tensor) -> ExactProblem:
    """Of ``solve_rows``."""
    exact = Exact.of(rows.numpy()), Exact.of(rhs.double().numpy())
    return ExactProblem(*exact, equal.bool().numpy(), np.arange(len(rows)), general=True)


def kept_rows(keys: Tensor, kept: Tensor, **more: Any) -> ExactProblem:
    """Of ``solve_kept_svm``: the first kept token against all others, which is an equality inside the kept set."""
    inside, first = kept.bool().numpy(), kept.int().argmax(1)

    def library_live() -> Mask:
        return RowProblem.attention(keys, first, **more).live

    live, delta = _differences(keys, first.numpy(), more.get("mask"), library_live)
    k = keys.numpy()
    for i in np.flatnonzero(inside.sum(1) > 1):
        live[i] &= inside[i] | ~(k[i][:, None] == k[i][None, inside[i]]).all(-1).any(-1)
    found = _token_problem(live, delta, more.get("queries"), np.where(inside, 0.0, 1.0))
    return ExactProblem(found.rows, found.rhs, inside.ravel()[found.ids], found.ids, general=True)


def _token_problem(live: Mask, delta: Exact, queries: Tensor | None, rhs: npt.NDArray[np.float64]) -> ExactProblem:
    ids = np.flatnonzero(live)
    i, t = np.divmod(ids, live.shape[1])
    rows = delta[i, t]
    if queries is not None:
        z = Exact.of(queries.numpy())
        products = rows.digits[:, :, None] * z.digits[i][:, None, :]
        rows = Exact(products.reshape(len(ids), rows.digits.shape[1] * z.digits.shape[1]), rows.exponent + z.exponent)
    return ExactProblem(rows, Exact.of(rhs.ravel()[ids]), np.zeros(len(ids), bool), ids)


def _differences(
    keys: Tensor, selected: Index, mask: Tensor | None, library_live: Callable[[], Mask]
) -> tuple[Mask, Exact]:
    """Which tokens make rows (n, T), and the selected key minus each (n, T, d)."""
    n, T, _ = keys.shape
    live = np.ones((n, T), bool) if mask is None else mask.bool().numpy().copy()
    k = Exact.of(np.where(live[:, :, None], keys.double().numpy(), 0.0))
    chosen = k.digits[np.arange(n), selected]
    delta = Exact(chosen[:, None] - k.digits, k.exponent)
    live[np.arange(n), selected] = False
    for i, t in np.argwhere(live):
        off = _square(delta.digits[i, t]) << 2 * MERGE_BITS
        size = max(_square(k.digits[i, t]), _square(chosen[i]))
        doubtful = size > 0 and abs(Fraction(off, size) - 1) <= MERGE_DOUBT
        live[i, t] = library_live()[i, t] if doubtful else off > size
    return live, delta


def _square(vector: Integers) -> int:
    return int(sum(int(a) * int(a) for a in vector))


def _ones(count: int) -> Exact:
    return Exact(np.array([1] * count, dtype=object))
