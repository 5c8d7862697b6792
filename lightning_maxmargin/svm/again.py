"""Many earlier answers at once: which of them are the answers still, told from the keys without forming a row.

A thousand problems of n=6, T=8, d=10 take 2 ms this way and 11 ms by solving them. The certificate is ``judge``'s, with
bounds on rounding up to sqrt(n T) times wider, as margins here are differences of products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_maxmargin.svm.batch_input import Many
from lightning_maxmargin.svm.batch_rows import Mask
from lightning_maxmargin.svm.rows import EPS, Array, Index

# Instances looked at first: where fewer than half of them pass, the keys have moved.
FIRST = 32
# Numbers in the keys of a chunk: temporaries stay below the 128 kB that malloc asks the system for anew each time.
CHUNK = 100_000


def applies(many: Many) -> bool:
    """Whether ``recheck`` knows these problems: right-hand sides of 1 and no queries."""
    return many.rhs is None and many.queries is None


def recheck(many: Many, p: Array, dual: Array, fine: float, tight: float) -> dict[str, Any] | None:
    """What ``judge`` would say of earlier directions p (B, d) and multipliers dual (B, n, T); "good" where sure.

    Where they are not the answers any more, the rows active in them are met with equality. None where that helps few
    of the first instances.
    """
    step = max(1, CHUNK // many.keys[0].size)
    parts: list[dict[str, Any]] = []
    with np.errstate(all="ignore"):
        old = _judge(many, p, dual, slice(0, FIRST), fine, tight)["good"].mean() >= 0.5
        if not old and not _meet(many, dual, slice(0, FIRST), fine, tight)["good"].mean() >= 0.5:
            return None
        for at in range(0, len(p), step):
            cut = slice(at, at + step)
            parts.append(_judge(many, p, dual, cut, fine, tight) if old else _meet(many, dual, cut, fine, tight))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _meet(many: Many, dual: Array, cut: slice, fine: float, tight: float) -> dict[str, Any]:
    """As ``_judge`` of the answers that meet the active rows with equality; exchanging rows once more costs as much."""
    part = many.some(cut)
    p, lam = _on(part, dual[cut] > 0)
    return _judge(part, p, lam, slice(None), fine, tight)


def _on(many: Many, active: Mask) -> tuple[Array, Array]:
    """p (B, d) that meets the active rows (B, n, T) with equality, and its multipliers (B, n, T)."""
    B, n, T, d = many.keys.shape
    row = np.flatnonzero(active)
    owner = row // (n * T)
    count = np.bincount(owner, minlength=B)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    # More rows than dimensions have no such p: what is left out is missed, and the instance solved in earnest.
    most = int(min(d, count.max(initial=1)))
    if (count > most).any():
        row, owner, place = (x[place < most] for x in (row, owner, place))
    keys = many.keys.reshape(-1, d)
    rows, on = np.zeros((B, most, d)), np.zeros((B, most, 1))
    rows[owner, place] = keys[row // T * T + many.selected.ravel()[row // T]] - keys[row]
    on[owner, place] = 1.0
    across, at = rows.transpose(0, 2, 1), np.arange(most)
    gram = np.matmul(rows, across)
    gram[:, at, at] += 1 - on[:, :, 0]
    lam = np.zeros((B, n, T))
    try:
        part = np.linalg.solve(gram, on)
    except np.linalg.LinAlgError:
        return np.zeros((B, d)), lam
    lam.ravel()[row] = part[owner, place, 0]
    return np.matmul(across, part)[:, :, 0], lam


def _judge(many: Many, p: Array, dual: Array, cut: slice, fine: float, tight: float) -> dict[str, Any]:
    p, lam = p[cut], dual[cut]
    B, n, T, d = many.keys[cut].shape
    keys = many.keys[cut].reshape(B, n * T, d)
    at = np.arange(B * n) * T + many.selected[cut].ravel()
    scores = np.matmul(keys, p[:, :, None])
    margins = (scores.ravel()[at].reshape(B, n, 1) - scores.reshape(B, n, T)).reshape(B, n * T)
    # The selected token is no row, padding neither.
    margins.ravel()[at] = np.inf
    if many.live is not None:
        margins[~many.live[cut].reshape(B, n * T)] = np.inf
    smallest, length = margins.min(axis=1), np.sqrt(np.einsum("bd,bd->b", p, p))
    flat = keys.reshape(B, -1)
    error = 8 * EPS * np.sqrt(np.einsum("bx,bx->b", flat, flat)) * length
    combined, value, clean = _combined(keys, lam, at, margins)
    # Both roundings count against the answer.
    combined += error / length * value
    gap = 1 - (value / combined * ((smallest - error) / length)) ** 2
    good = (smallest > error) & (gap <= fine) & clean & np.isfinite(smallest) & np.isfinite(value)
    touching = margins <= ((1 + tight) * smallest)[:, None]
    scale = 1 / smallest
    return {
        "direction": p * scale[:, None],
        "length": length * scale,
        "dual": lam * scale[:, None, None],
        "touching": np.flatnonzero(touching) % (n * T),
        "touches": np.count_nonzero(touching, axis=1),
        "gap": gap,
        "violation": np.zeros(B),
        "merged": np.zeros(B, np.int64),
        "good": good,
    }


def _combined(keys: Array, lam: Array, at: Array, margins: Array) -> tuple[Array, Array, Array]:
    """||D'lam||, sum lam and whether lam >= 0 is zero off the rows, all (B,)."""
    B, n, T = lam.shape
    weight = -lam
    total = lam.sum(axis=2)
    wrong = ~(lam >= 0) | ((lam != 0) & (margins == np.inf).reshape(lam.shape))
    clean = ~wrong.any(axis=(1, 2)) if wrong.any() else np.ones(B, bool)
    weight.ravel()[at] = total.ravel()
    v = np.matmul(weight.reshape(B, 1, n * T), keys)[:, 0]
    return np.sqrt(np.einsum("bd,bd->b", v, v)), total.sum(axis=1), clean


def joined(first: dict[str, Any], again: Index, second: dict[str, Any]) -> dict[str, Any]:
    """``first`` with the instances ``again`` as in ``second``."""
    owner = np.repeat(np.arange(len(first["gap"])), first["touches"])
    keep = ~np.isin(owner, again)
    owner = np.concatenate([owner[keep], np.repeat(again, second["touches"])])
    touching = np.concatenate([first["touching"][keep], second["touching"]])
    out = {name: x.copy() for name, x in first.items() if name != "touching"}
    for name in out:
        out[name][again] = second[name]
    return out | {"touching": touching[np.argsort(owner, kind="stable")]}
