"""Checks of what a user hands in: each failure is one line saying what is wrong, where, and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.doubles import to_array

Array = npt.NDArray[np.float64]


def check_finite(x: Array, name: str) -> None:
    if np.isfinite(x).all():
        return
    where = tuple(int(at) for at in np.argwhere(~np.isfinite(x))[0])
    raise InputError(f"{name} hold {x[where]} at {list(where)}: remove or replace NaN and Inf")


def check_keys(keys: Tensor | Array) -> Array:
    """keys (n, T, d) as float64."""
    k: Array = to_array(keys, "keys")
    check_shape(k)
    return k


def check_shape(keys: npt.NDArray[Any]) -> None:
    """Refuses keys that are not (n, T, d)."""
    if keys.ndim != 3 or 0 in keys.shape:
        raise InputError(f"keys have shape {list(keys.shape)}: pass (sequences, tokens, features), none of them empty")


def check_mask(mask: Tensor | None, keys: Array) -> npt.NDArray[np.bool_]:
    """Mask (n, T), true on tokens and false on padding; every sequence keeps a token."""
    if mask is None:
        return np.ones(keys.shape[:2], bool)
    m = to_array(mask, "mask")
    if m.shape != keys.shape[:2]:
        raise InputError(f"mask has shape {list(m.shape)} and keys {list(keys.shape)}: pass a mask of (n, T)")
    if not np.isin(m, (0, 1)).all():
        raise InputError("mask holds numbers other than 0 and 1: pass true for tokens, false for padding")
    empty = np.flatnonzero(~m.astype(bool).any(1))
    if len(empty):
        raise InputError(f"mask hides every token of sequence {empty[0]}: drop the sequence or unmask a token")
    return m.astype(bool)


def check_selected(selected: Tensor, live: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Selected tokens (n,): whole numbers in 0..T-1, none on padding."""
    a = to_array(selected, "selected")
    n, T = live.shape
    if a.shape != (n,):
        raise InputError(f"selected has shape {list(a.shape)} for {n} sequences: pass one token index each, ({n},)")
    bad = np.flatnonzero(~(np.isfinite(a) & (a == np.floor(a)) & (a >= 0) & (a < T)))
    if len(bad):
        raise InputError(f"selected is {a[bad[0]]:g} for sequence {bad[0]}: pass a whole number from 0 to {T - 1}")
    alpha = a.astype(np.int64)
    hidden = np.flatnonzero(~live[np.arange(n), alpha])
    if len(hidden):
        i = hidden[0]
        raise InputError(f"selected token {alpha[i]} of sequence {i} is padding: select a token that the mask keeps")
    return alpha


def check_queries(queries: Tensor | None, n: int) -> Array | None:
    """Queries (n, dq) or None."""
    if queries is None:
        return None
    z = to_array(queries, "queries")
    if z.ndim != 2 or len(z) != n or z.shape[1] == 0:
        raise InputError(f"queries have shape {list(z.shape)} for {n} sequences: pass one query each, ({n}, dq)")
    check_finite(z, "queries")
    return z


def check_rhs(rhs: Tensor | Array | None, live: npt.NDArray[np.bool_]) -> Array | None:
    """Right-hand sides (n, T) >= 0, or None for ones; what stands on padding is ignored."""
    if rhs is None:
        return None
    b = to_array(rhs, "rhs")
    if b.shape != live.shape:
        raise InputError(f"rhs has shape {list(b.shape)} for {list(live.shape)} tokens: pass one number for each token")
    b = np.where(live, b, 0.0)
    check_finite(b, "rhs")
    if (b < 0).any():
        i, t = np.argwhere(b < 0)[0]
        raise InputError(f"rhs is {b[i, t]:g} at [{i}, {t}]: right-hand sides must be 0 or more")
    return b


def check_values(values: Tensor | Array) -> Array:
    """Values (n, d) as float64."""
    x = to_array(values, "values")
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"values have shape {list(x.shape)}: pass (samples, features), none of them empty")
    check_finite(x, "values")
    return x


def check_labels(labels: Tensor, n: int, num_classes: int | None, as_classes: bool = False) -> tuple[Array, int | None]:
    """Labels (n,) and the number of classes, None for labels in {-1, 1}."""
    y = to_array(labels, "labels")
    if y.shape != (n,):
        raise InputError(f"labels have shape {list(y.shape)} for {n} samples: pass one label each, ({n},)")
    if num_classes is None and not as_classes and np.isin(y, (-1, 1)).all():
        return y, None
    bad = np.flatnonzero(~(np.isfinite(y) & (y == np.floor(y)) & (y >= 0)))
    if len(bad):
        at = bad[0]
        raise InputError(f"labels hold {y[at]:g} at {at}: pass -1 and 1, or class indices from 0")
    classes = max(2, int(y.max()) + 1) if num_classes is None else num_classes
    if (y >= classes).any():
        at = int(np.argmax(y >= classes))
        raise InputError(f"labels hold class {y[at]:g} at {at} of {classes} classes: pass 0 to {classes - 1}")
    return y, classes
