"""Sizes of keys and of their differences to the selected one, in one pass over memory."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
# numpy 2's vecdot takes two thirds of einsum's time.
_dot = getattr(np, "vecdot", partial(np.einsum, "ntd,ntd->nt"))
# Half of a second-level cache of 1 MB.
CACHED = 65_536
# Below this float32 may round sums of squares to fewer digits, or to 0.
SMALLEST_SQUARE = 2.0**-100


def norms_and_products(keys: Array, selected: Index, rows: bool = False) -> tuple[Array, Array]:
    """||k_it|| and <k_it, k_i,alpha>, both (n, T), while a part of the keys is in cache: 8 ms for 200 MB, apart 11.

    rows: token 0 is selected and token 1 is zero.
    """
    n, T, d = keys.shape
    if rows:
        square = np.einsum("nd,nd->n", keys[:, 0], keys[:, 0])
        cross = np.column_stack([square, np.zeros(n)])
        return np.sqrt(cross), cross
    chosen = keys[np.arange(n), selected][:, :, None]
    squares, cross = np.empty((n, T)), np.empty((n, T, 1))
    step = max(1, CACHED // (T * d))
    for at in range(0, n, step):
        part = keys[at : at + step]
        _dot(part, part, out=squares[at : at + step])
        np.matmul(part, chosen[at : at + step], out=cross[at : at + step])
    return np.sqrt(squares), cross[:, :, 0]


def difference_norms(keys: Array, selected: Index, key_norms: Array, cross: Array) -> Array:
    """||Delta_it|| (n, T) by expanding the square; explicitly where that cancels more than half of the digits."""
    n = len(keys)
    total = key_norms**2
    total += total[np.arange(n), selected][:, None]
    squares = np.maximum(total - 2 * cross, 0.0)
    close = squares <= 1e-7 * total
    # The selected token's own difference is 0, not one to be subtracted afresh.
    squares[np.arange(n), selected], close[np.arange(n), selected] = 0.0, False
    i, t = np.divmod(np.flatnonzero(close), keys.shape[1])
    norms = np.sqrt(squares)
    norms[i, t] = np.linalg.norm(keys[i, selected[i]] - keys[i, t], axis=1)
    return norms


def single_differences(keys: Single, selected: Index) -> tuple[Single, Single]:
    """Upper bounds on ||Delta_it|| (n, T) of float32 keys, a tenth too large at most, and on ||k_i,alpha|| (n,).

    By expanding the square, with what float32 may lose in it; in float64 where that is more than a tenth.
    """
    n, T, d = keys.shape
    at = np.arange(n), selected
    chosen = keys[at][:, None]
    squares, cross = np.empty((2, n, T), np.float32)
    step = max(1, CACHED // (T * d))
    for part in (slice(at, at + step) for at in range(0, n, step)):
        _dot(keys[part], keys[part], out=squares[part])
        _dot(keys[part], chosen[part], out=cross[part])
    share, own = np.float32((d + 4) * np.finfo(np.float32).eps), squares[at]
    squares += own[:, None]
    lost = squares * share
    small = squares < SMALLEST_SQUARE
    cross *= 2
    squares -= cross
    close = (squares <= 10 * lost) | small
    squares += lost
    norms = np.sqrt(squares, out=squares)
    norms[at], close[at] = 0, False
    i, t = np.divmod(np.flatnonzero(close), T)
    norms[i, t] = np.linalg.norm(np.subtract(chosen[i, 0], keys[i, t], dtype=np.float64), axis=1)
    # Where small squares may be lost, what is added is more than they.
    return norms, np.sqrt(own * (1 + share) + np.float32(SMALLEST_SQUARE))


def safe_norms(x: Array) -> Array:
    """||x|| over the last axis at any scale: extreme numbers would under- or overflow in the squares."""
    size = np.abs(x).max(axis=-1, initial=0.0)
    scale = np.where((size > 0) & np.isfinite(size), size, 1.0)
    return size * np.linalg.norm(x / scale[..., None], axis=-1) if x.size else size
