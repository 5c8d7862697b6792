"""What a joint limit asks of one problem: selected values, label margins and the root of the rate-coupled limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import TOLERANCES
from lightning_maxmargin.svm.checks import check_labels, check_values
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.limits import Mask, label_margins, unit_norm_root
from lightning_maxmargin.svm.norms.names import norm_of
from lightning_maxmargin.svm.rows import Array, Index, RowProblem
from lightning_maxmargin.svm.solution import Solution, withdrawn


def selected_values(values: Any, selected: Index, tokens: int) -> Array:
    """values (n, T, dv), of which only the selected ones are read, or (n, dv) if already selected; as (n, dv)."""
    n, shape = len(selected), tuple(np.shape(values))
    if len(shape) == 3 and shape[:2] == (n, tokens):
        values = values[np.arange(n), selected]
    elif len(shape) != 2 or shape[0] != n:
        raise InputError(f"values have shape {list(shape)}: pass ({n}, {tokens}, dv), or ({n}, dv) if already selected")
    return check_values(values)


def margins_of(head: Solution, x: Array, labels: Tensor) -> Array | None:
    """Gamma_i (n,) over ||v|| in the norm of the head, or None where it does not separate."""
    v = to_array(head.direction, "head")
    if head.infeasible or not v.any():
        return None
    y, classes = check_labels(labels, len(x), len(v) if v.ndim == 2 else None, as_classes=v.ndim == 2)
    if v.shape[-1] != x.shape[1] or (classes is None) != (v.ndim == 1):
        raise InputError(f"head of shape {list(v.shape)} does not fit labels or values: solve it on the same data")
    if classes is None:
        margins, separates = label_margins(v[None], x[None], y[None])
        # Of unit length in the head's own norm.
        return margins[0] * (norm_of(v, "l2") / norm_of(v, head.norm)) if separates[0] else None
    # Over its largest entry, whose square would under- or overflow where values are extreme.
    v = v / np.abs(v).max()
    margins = RowProblem.multiclass(torch.from_numpy(x), labels, classes).margins(v).min(1) / norm_of(v, head.norm)
    return margins if margins.min() > 0 else None


def rate_coupled(
    strict: Solution, spare: Array, solve: Callable[[Array], Solution], start: float | None = None
) -> Solution:  # fmt: skip
    """The Solution at the root of ``unit_norm_root``.

    Args: strict, the Solution with right-hand sides 1; spare (n,), 0 for support inputs; solve(b) the one with b (n,);
        start, where to look for the root first, which is the margin of its solution; that of strict where None.
    """
    solution = strict

    def step(rhs: Array, _: Index) -> tuple[Array, Array, Mask]:
        nonlocal solution
        solution = solve(rhs[0])
        length, slopes = norm_of(solution.direction, solution.norm), solution.dual.sum(1).numpy()
        if solution.norm == "l2" and length > 0:
            slopes = slopes / length
        return np.array([length]), slopes[None], np.array([solution.certified])

    going = np.array([solution.certified and bool(solution.direction.any())])
    off = float(unit_norm_root(spare[None], np.array([start or solution.margin]), going, step)[0])
    if not (going[0] and solution.certified):
        return solution
    if off > TOLERANCES.unit:
        solution = withdrawn(solution, f"the norm misses 1 by {off:.1e} at its root")
    return replace(solution, violation=max(solution.violation, off))
