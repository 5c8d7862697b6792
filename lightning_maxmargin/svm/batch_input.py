"""What a user hands in for many problems at once, checked: the checks of one problem for all sequences together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.batch_rows import BatchRows, Mask, gather
from lightning_maxmargin.svm.checks import check_mask, check_queries, check_rhs, check_selected
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.rows import Array, Index, RowProblem


@dataclass(frozen=True)
class BatchInput:
    """Checked input of B attention problems: keys (B, n, T, d), selected (B, n), live (B, n, T) or None for all.

    binary: rows of labels, as ``RowProblem.binary`` has them; nothing is merged.
    """

    keys: Array
    selected: Index
    live: Mask | None
    queries: Array | None
    rhs: Array | None
    binary: bool = False

    def rows(self, cut: slice) -> BatchRows:
        """The rows of some of the instances."""
        queries = None if self.queries is None else self.queries[cut]
        rhs = None if self.rhs is None else self.rhs[cut]
        live = None if self.live is None else self.live[cut]
        return gather(self.keys[cut], self.selected[cut], live, queries, rhs, not self.binary)


def check_batch(
    keys: Tensor, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None
) -> BatchInput:
    """The checks of one problem for B of them, on the sequences of all instances together."""
    count = len(keys)
    for name, x in (("selected", selected), ("queries", queries), ("mask", mask), ("rhs", rhs)):
        if x is not None and len(x) != count:
            raise InputError(f"{name} have {len(x)} instances and keys {count}: give each the same leading axis")
    if count == 0:
        raise InputError("keys hold no instance: pass (instances, sequences, tokens, features)")
    k = to_array(keys, "keys")
    try:
        return _check(k, selected, queries, mask, rhs)
    except (InputError, ValueError):
        attribute_to_instance(keys, selected, queries, mask, rhs)
        raise


def _check(k: Array, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None) -> BatchInput:
    B, n, T, d = k.shape
    if k.size == 0:
        raise InputError(f"keys have shape {list(k.shape)}: pass (instances, sequences, tokens, features), none empty")
    flat = k.reshape(B * n, T, d)
    live = check_mask(_flat(mask, (B, n, T)), flat)
    alpha = check_selected(_flat(selected, (B, n)), live)
    z = None if queries is None else check_queries(_flat(queries, (B, n, np.shape(queries)[-1])), B * n)
    b = None if rhs is None else check_rhs(_flat(rhs, (B, n, T)), live)
    return BatchInput(
        k,
        alpha.reshape(B, n),
        None if mask is None else live.reshape(B, n, T),
        None if z is None else z.reshape(B, n, -1),
        None if b is None else b.reshape(B, n, T),
    )


def _flat(x: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if x is None:
        return x  # type: ignore[return-value]
    if tuple(np.shape(x)) != shape:
        raise InputError(f"shape {list(np.shape(x))} where {list(shape)} belongs")
    return x.reshape((shape[0] * shape[1], *shape[2:]))


def attribute_to_instance(
    keys: Tensor, selected: Tensor, queries: Tensor | None, mask: Tensor | None, rhs: Tensor | None
) -> None:
    """Raise the one-instance error of the first instance that is wrong, with its number."""
    for b in range(len(keys)):
        given = [None if x is None else x[b] for x in (queries, mask, rhs)]
        try:
            RowProblem.attention(keys[b], selected[b], *given)
        except InputError as error:
            raise InputError(f"instance {b}: {error}") from error
