"""The limit of training attention and head together: the label SVM of the selected tokens, then the attention SVM
with right-hand sides that depend on who supports the label SVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.api import GOAL, solve_att_svm, solve_label_svm
from lightning_maxmargin.svm.batch_input import check_batch
from lightning_maxmargin.svm.batch_joint import attention_batch
from lightning_maxmargin.svm.distributed import DistributedShard
from lightning_maxmargin.svm.distributed_solve import joint_of_ranks
from lightning_maxmargin.svm.doubles import to_array
from lightning_maxmargin.svm.limits import relaxed_rhs, spare_margins
from lightning_maxmargin.svm.norms.registry import Norm, check_norm, is_of_matrices
from lightning_maxmargin.svm.one_joint import margins_of, rate_coupled, selected_values
from lightning_maxmargin.svm.rows import Array, RowProblem
from lightning_maxmargin.svm.solution import BatchSolution, Solution, only, stack, undefined
from lightning_maxmargin.svm.solve import solve_problem

LIMITS = ("strict", "relaxed", "rate_coupled")


@dataclass(frozen=True)
class JointSolution:
    """Attention and head of one limit.

    Attributes:
        attention: its Solution; of a batch a BatchSolution.
        head: the label SVM's, likewise.
        limit: "strict" | "relaxed" | "rate_coupled".
        norm_ratio: rho = ||v||/||p|| of the rate-coupled one; (B,) of a batch whose instances differ.
        rhs: (n, T) right-hand sides of the attention rows, 0 where no row is live; None where the limit is not defined.
    """

    attention: Solution | BatchSolution
    head: Solution | BatchSolution
    limit: str
    norm_ratio: float | Tensor | None = None
    rhs: Tensor | None = None

    def _repr_html_(self) -> str:
        from lightning_maxmargin.svm.show import joint_html

        return joint_html(self)


def solve_joint_svm(
    keys: Tensor | DistributedShard,
    values: Tensor,
    labels: Tensor,
    selected: Tensor,
    *,
    limit: str = "strict",
    norm_ratio: float | Tensor | None = None,
    norm: Norm = "l2",
    head_norm: Norm | None = None,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    warm_start: JointSolution | Solution | BatchSolution | None = None,
    head: Solution | BatchSolution | None = None,
) -> JointSolution:
    r"""Where attention and head converge jointly ("Max-Margin Token Selection", arXiv 2306.13596).

    The head is the label SVM v of the selected values. With Gamma_i = y_i v'x_i/||v|| (classes: the smallest
    (V_y - V_k)'x/||V||) and Gamma = min Gamma_i, attention meets ``p'Delta_it >= b_i`` with smallest norm:
    strict b = 1; relaxed b = 1 for support inputs (Gamma_i = Gamma), 0 for others; rate_coupled maximises
    ``min_it p'Delta_it + rho (Gamma_i - Gamma)`` over ||p|| <= 1, p'Delta_it >= 0, with rho = ||v||/||p|| held.
    Every norm is that of its part: mirror descent of potential ``||.||_p^p / p`` for both ends at lp in all of these
    (measured; proved for the attention alone, arXiv 2410.14581), an optimizer of W beside another of v at two norms.

    Args:
        keys: (n, T, d). With a leading axis (B, n, T, d) every argument has one and both Solutions are stacked.
            Sequences on several processes: a ``DistributedShard`` of this one's keys, with the other arguments of this
            one's.
        values: (n, T, dv), or (n, dv) if already selected.
        labels: (n,) in {-1, 1}, or class indices.
        selected: (n,) token indices.
        limit: "strict" | "relaxed" | "rate_coupled".
        norm_ratio: rho > 0, for rate_coupled; (B,) with a leading axis where the instances differ.
        norm: of the attention, as in ``solve_att_svm``.
        head_norm: of the head, as in ``solve_label_svm``; ``norm`` where None, or "l2" for a binary head where that is
            one of matrices: of one row all of these are alike. The Gamma_i of a norm whose optimum need not be unique
            ("linf") are those of the head that was found.
        queries: (n, dq), for W.
        mask: (n, T), true on tokens.
        warm_start: an earlier JointSolution or attention Solution; never changes the answer.
        head: the label SVM, if known.

    Returns:
        JointSolution; the attention direction is scaled so that the largest right-hand side is 1. Without a separating
        head only strict is defined: the others return attention "unverified", zeros, and say so.

    Raises:
        InputError: an unknown limit, a missing norm_ratio, shapes that disagree, NaN or Inf.

    Example:
        >>> keys = torch.tensor([[[0.0, 0], [1, 1]], [[0, 0], [1, -1]], [[0, 0], [0.5, 1.5]]])
        >>> joint = solve_joint_svm(keys, keys, torch.tensor([1, -1, 1]), torch.tensor([1, 1, 1]), limit="relaxed")
        >>> joint.attention.status, round(joint.attention.margin, 9), joint.head.support.tolist()
        ('certified', 1.0, [0, 1])
    """
    norm = check_norm(norm, queries is not None)
    head_norm = None if head_norm is None else check_norm(head_norm, matrix=True)
    if isinstance(keys, DistributedShard):
        return _of_ranks(keys, values, labels, selected, limit, norm_ratio, (norm, head_norm), queries, mask, head)
    is_batch = np.ndim(keys) == 4
    rho = _check_limit(limit, norm_ratio, len(keys) if is_batch else None)
    if is_batch:
        return _batch(keys, values, labels, selected, limit, rho, (norm, head_norm), queries, mask, warm_start, head)
    problem = RowProblem.attention(keys, selected, queries, mask)
    x = selected_values(to_array(values, "values"), problem.selected, problem.live.shape[1])
    head = only(_head(torch.from_numpy(x), labels, norm, head_norm) if head is None else head)
    warm = warm_start.attention if isinstance(warm_start, JointSolution) else warm_start
    warm = None if warm is None else only(warm)
    if limit != "strict":
        margins = margins_of(head, x, labels)
        if margins is None:
            nothing = undefined(problem.shape, problem.live.shape, limit, head.status, problem.merged)
            return JointSolution(nothing, head, limit, norm_ratio)
        if limit == "rate_coupled":
            attention, problem = _rate_coupled(problem, float(rho) * spare_margins(margins[None])[0], warm, norm)
            return JointSolution(attention, head, limit, norm_ratio, torch.from_numpy(problem.rhs))
        problem = problem.with_rhs(np.broadcast_to(relaxed_rhs(margins[None])[0][:, None], problem.live.shape))
    attention = solve_problem(problem, warm, GOAL, norm)
    return JointSolution(attention, head, limit, norm_ratio, torch.from_numpy(problem.rhs))


def _head(x: Tensor, labels: Tensor, norm: Norm, head_norm: Norm | None) -> Solution | BatchSolution:
    """The label SVM in its norm; of x (n, d), or of B instances."""
    if head_norm is None:
        binary = bool(np.isin(to_array(labels, "labels"), (-1, 1)).all())
        head_norm = "l2" if binary and is_of_matrices(norm) else norm
    return solve_label_svm(x, labels, norm=head_norm)


def _of_ranks(
    shard: DistributedShard,
    values: Tensor,
    labels: Tensor,
    selected: Tensor,
    limit: str,
    norm_ratio: float | Tensor | None,
    norms: tuple[Norm, Norm | None],
    queries: Tensor | None,
    mask: Tensor | None,
    head: Solution | BatchSolution | None,
) -> JointSolution:
    """One problem, whose sequences lie on several processes."""

    def whole(**problem: Any) -> tuple[Solution, Solution, Tensor | None]:
        joint = solve_joint_svm(**problem, limit=limit, norm_ratio=norm_ratio, norm=norms[0], head_norm=norms[1])
        return only(joint.attention), only(joint.head), joint.rhs

    attention, head, rhs = joint_of_ranks(
        shard, values, labels, selected, limit=limit, norms=norms,
        check_limit=lambda: float(_check_limit(limit, norm_ratio, None)),
        queries=queries, mask=mask, head=None if head is None else only(head), whole=whole,
    )  # fmt: skip
    return JointSolution(attention, head, limit, norm_ratio, rhs)


def _batch(
    keys: Tensor,
    values: Tensor,
    labels: Tensor,
    selected: Tensor,
    limit: str,
    rho: Array,
    norms: tuple[Norm, Norm | None],
    queries: Tensor | None,
    mask: Tensor | None,
    warm: JointSolution | Solution | BatchSolution | None,
    head: Solution | BatchSolution | None,
) -> JointSolution:
    """B instances: all at once for binary labels in l2, one by one for classes and in other norms."""
    batch = check_batch(keys, selected, queries, mask, None)
    B, n, T, _ = batch.keys.shape
    x, y = to_array(values, "values"), to_array(labels, "labels")
    if len(x) != B or y.shape != (B, n) or x.shape[1:-1] not in ((n, T), (n,)):
        raise InputError(
            f"values have shape {list(x.shape)} and labels {list(y.shape)}: pass ({B}, {n}, {T}, dv) and ({B}, {n})"
        )
    if x.ndim == 4:
        x = np.take_along_axis(x, batch.selected[:, :, None, None], axis=2)[:, :, 0]
    norm, head_norm = norms
    heads = _head(torch.from_numpy(x), labels, norm, head_norm) if head is None else head
    if not isinstance(heads, BatchSolution):
        raise InputError(f"head is of one problem and keys hold {B}: pass the BatchSolution of their label SVMs")
    norm_ratio = torch.from_numpy(rho) if limit == "rate_coupled" else None

    def alone(b: int) -> JointSolution:
        z, m = (None if given is None else given[b] for given in (queries, mask))
        return solve_joint_svm(
            keys[b],
            torch.from_numpy(x[b]),
            labels[b],
            selected[b],
            limit=limit,
            norm_ratio=float(rho[b]) if limit == "rate_coupled" else None,
            norm=norm,
            head_norm=head_norm,
            queries=z,
            mask=m,
            head=heads[b],
        )

    if limit == "strict":
        old = warm.attention if isinstance(warm, JointSolution) else warm
        attention = solve_att_svm(keys, selected, queries=queries, mask=mask, norm=norm, warm_start=old)
        rows = batch.rows(slice(None))
        return JointSolution(attention, heads, limit, norm_ratio, torch.from_numpy(rows.spread(rows.rhs)))
    if heads.direction.ndim == 3 or norm != "l2" or heads.norm != "l2":
        parts = [alone(b) for b in range(B)]
        rhs = torch.stack([torch.zeros(n, T, dtype=torch.float64) if p.rhs is None else p.rhs for p in parts])
        return JointSolution(stack([only(p.attention) for p in parts]), heads, limit, norm_ratio, rhs)
    attention, rhs = attention_batch(
        batch, heads, x, y, None if norm_ratio is None else rho, lambda b: only(alone(b).attention)
    )
    return JointSolution(attention, heads, limit, norm_ratio, rhs)


def _check_limit(limit: str, norm_ratio: float | Tensor | None, count: int | None) -> Array:
    """rho as an array, (B,) of many instances or () of one; zeros where the limit has none."""
    shape = () if count is None else (count,)
    if limit not in LIMITS:
        raise InputError(f"limit {limit!r} is unknown: use one of {', '.join(LIMITS)}")
    if limit != "rate_coupled":
        return np.zeros(shape)
    rho = to_array(torch.as_tensor(torch.nan if norm_ratio is None else norm_ratio, dtype=torch.float64), "norm_ratio")
    if rho.shape not in ((), shape):
        each = "" if count is None else f", or one for each of {count} instances"
        raise InputError(f"norm_ratio has shape {list(rho.shape)}: pass a number{each}")
    if not (np.isfinite(rho) & (rho > 0)).all():
        raise InputError(f"norm_ratio is {norm_ratio}: rate_coupled needs ||v||/||p||, a positive number")
    return np.broadcast_to(rho, shape).copy()


def _rate_coupled(problem: RowProblem, spare: Array, warm: Solution | None, norm: Norm) -> tuple[Solution, RowProblem]:
    """The Solution and its rows; spare (n,)."""
    last = solve_problem(problem, warm, GOAL, norm)

    def solve(rhs: Array) -> Solution:
        nonlocal problem, last
        problem = problem.with_rhs(np.broadcast_to(rhs[:, None], problem.live.shape))
        last = solve_problem(problem, last, GOAL, norm)
        return last

    return rate_coupled(last, spare, solve), problem
