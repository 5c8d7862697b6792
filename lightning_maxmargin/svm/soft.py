"""The soft-margin label SVM, for labels that no direction separates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.checks import check_labels, check_values
from lightning_maxmargin.svm.qp.active import Array, Mask, on_active
from lightning_maxmargin.svm.qp.interior import Rows, interior
from lightning_maxmargin.svm.solution import Solution
from lightning_maxmargin.svm.threads import one_thread

GAP_TOL = 1e-8


def solve_soft_label_svm(values: Tensor, labels: Tensor, cost: float = 1.0) -> Solution:
    r"""Binary hinge loss without intercept: ``argmin .5 ||v||^2 + cost * sum_i max(0, 1 - y_i v'x_i)``.

    Args: values (n, d), labels (n,) in {-1, 1}, cost > 0.
    Returns: Solution with direction (d,) as it minimises (not rescaled), dual (n,) in [0, cost], support (s,) the
        samples with a positive multiplier, gap the duality gap relative to the minimum, margin 1/||v|| (0 for v = 0).
    Raises: InputError on other labels, a cost that is not positive, shapes that disagree, NaN or Inf.

    Example:
        >>> solve_soft_label_svm(torch.tensor([[2.0], [-1.0], [-1.0]]), torch.tensor([1, -1, 1])).status
        'certified'
    """
    x = check_values(values)
    y, classes = check_labels(labels, len(x), None)
    if classes is not None:
        raise InputError("labels are class indices: the soft margin is offered for labels -1 and 1")
    if not (np.isfinite(cost) and cost > 0):
        raise InputError(f"cost is {cost}: pass a positive number")
    A = x * y[:, None]
    with one_thread():
        return _solve(A, cost)


def _solve(A: Array, cost: float) -> Solution:
    size = float(np.linalg.norm(A, axis=1).max())
    if size == 0:
        return _solution(A, np.full(len(A), float(cost)), cost)
    scaled = A / size
    bound = cost * size**2
    inner = interior(Rows(A=scaled), np.ones(len(A)), upper=bound)
    lam = np.minimum(inner.lam, bound)
    at_zero, at_bound = inner.slack > lam, inner.upper_slack > bound - lam
    best = _solution(A, lam / size**2, cost)
    for _ in range(15):
        lam = _on_free(scaled, at_zero, at_bound, bound)
        trial = _solution(A, np.clip(lam, 0.0, bound) / size**2, cost)
        if float(trial.gap) < float(best.gap):
            best = trial
        slack = scaled @ (lam @ scaled) - 1
        free = ~at_zero & ~at_bound
        now_zero = np.where(free, lam < -1e-13 * bound, at_zero & (slack > -1e-13))
        now_bound = np.where(free, lam > bound * (1 + 1e-13), at_bound & (slack < 1e-13))
        if (now_zero == at_zero).all() and (now_bound == at_bound).all():
            break
        at_zero, at_bound = now_zero, now_bound
    return best


def _on_free(A: Array, at_zero: Mask, at_bound: Mask, bound: float) -> Array:
    """lam (m,) with the bounds held and the free rows met with equality."""
    lam = np.where(at_bound, bound, 0.0)
    free = np.flatnonzero(~at_zero & ~at_bound)
    if len(free):
        lam[free] = on_active(A[free], None, 1 - A[free] @ (lam @ A), np.arange(len(free)))[0]
    return lam


def _solution(A: Array, lam: Array, cost: float) -> Solution:
    v = lam @ A
    square, margins = float(v @ v), A @ v
    primal = 0.5 * square + cost * float(np.maximum(0.0, 1 - margins).sum())
    dual = float(lam.sum()) - 0.5 * square
    # cost * n, the value at v = 0, bounds what the minimum can be.
    gap = (primal - dual) / max(primal, 1e-300)
    good = gap <= GAP_TOL and bool((lam >= 0).all()) and bool((lam <= cost * (1 + 1e-12)).all())
    words = f"certified: relative gap {gap:.1e}" if good else f"unverified: relative gap {gap:.1e}"
    return Solution(
        "certified" if good else "unverified",
        torch.from_numpy(v),
        1 / float(np.sqrt(square)) if square > 0 else 0.0,
        torch.from_numpy(lam),
        torch.from_numpy(np.flatnonzero(lam > 1e-9 * cost)),
        gap,
        0.0,
        1,
        words,
    )
