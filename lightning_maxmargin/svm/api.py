"""What users call: the attention SVM, the label SVM and the two together, with their certificates."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.batch import label_batch, solve_batch
from lightning_maxmargin.svm.checks import check_labels, check_values
from lightning_maxmargin.svm.distributed import DistributedShard
from lightning_maxmargin.svm.distributed_solve import attention_of_ranks, labels_of_ranks
from lightning_maxmargin.svm.norms.registry import Norm, check_norm
from lightning_maxmargin.svm.rows import RowProblem
from lightning_maxmargin.svm.shards import GOAL, solve_source
from lightning_maxmargin.svm.small import attention_svm, label_svm
from lightning_maxmargin.svm.solution import BatchSolution, Solution
from lightning_maxmargin.svm.solve import solve_problem
from lightning_maxmargin.svm.sources import Blocks, as_source


def solve_att_svm(
    keys: Tensor | Blocks | DistributedShard,
    selected: Tensor,
    *,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
    rhs: Tensor | None = None,
    norm: Norm = "l2",
    warm_start: Solution | BatchSolution | None = None,
    method: str = "auto",
) -> Solution | BatchSolution:
    r"""Attention SVM: ``argmin ||p|| s.t. p'(k_{i,alpha_i} - k_it) >= b_it``, or ``||W||`` with queries z_i.

    The direction that attention converges to when it selects tokens alpha ("Max-Margin Token Selection in Attention
    Mechanism", arXiv 2306.13596; with W "Transformers as Support Vector Machines", arXiv 2308.16898). Each optimizer
    has its norm: gradient descent l2, sign descent linf, spectral descent spectral, training the factors of W = K Q'
    nuclear, mirror descent with potential ``||.||_p^p / p`` lp (arXiv 2410.14581).

    Args:
        keys: (n, T, d), any float dtype. With a leading axis (B, n, T, d) every argument has one. Keys that do not fit
            in memory: a ``numpy.memmap``, a list of blocks (m, T, d) of consecutive sequences, or a function that
            returns them anew for each of the five to ten evaluations. Sequences on several processes: a
            ``DistributedShard`` of this one's, with the other arguments of this one's.
        selected: (n,) token indices.
        queries: (n, dq), which make it the problem of W (d, dq).
        mask: (n, T), true on tokens.
        rhs: (n, T) right-hand sides >= 0, default 1.
        norm: "l2" (Frobenius for W), "linf", a number p in (1, inf) for lp of the entries, and with queries "spectral"
            or "nuclear". lp is certified on random data for 1.01 <= p <= 20; further out it may stay "unverified".
        warm_start: an earlier Solution whose support seeds the working set; never changes the answer.
        method: for a leading axis (B, n, T, d), "loop" solves the problems one by one; "auto", "daqp" and "torch" all
            mean the batch on the CPU, which solves a thousand small problems in 12 ms.

    Returns:
        Solution, with a leading axis a BatchSolution: direction (d,) or (d, dq), dual (n, T), float64 on the CPU.

    Raises:
        InputError: shapes that disagree, indices out of range or on padding, NaN or Inf, an unknown norm.

    Example:
        >>> keys = torch.tensor([[[-0.1, 1.0], [1.0, 0.0], [0.0, 0.0]]])
        >>> solution = solve_att_svm(keys, torch.tensor([0]))
        >>> solution.status, [round(x, 4) for x in solution.direction.tolist()]
        ('certified', [-0.099, 0.9901])
    """
    if norm == "l2" and queries is None and rhs is None and warm_start is None:
        found = attention_svm(keys, selected, mask)
        if found is not None:
            return found
    if isinstance(keys, DistributedShard):
        return attention_of_ranks(keys, selected, queries, mask, rhs, norm, solve_att_svm)
    norm = check_norm(norm, queries is not None)
    source = as_source(keys)
    if source is not None:
        if norm != "l2":
            raise InputError(f"norm {norm!r} needs the keys in memory: pass one tensor, or use 'l2'")
        return solve_source(source, selected, queries, mask, rhs)
    keys = cast(Tensor, keys)
    if np.ndim(keys) == 4:

        def one(b: int, warm: Solution | None) -> Solution:
            z, m, r = (None if x is None else x[b] for x in (queries, mask, rhs))
            return solve_problem(RowProblem.attention(keys[b], selected[b], z, m, r), warm, GOAL, norm)

        warm = warm_start if isinstance(warm_start, BatchSolution) else None
        # The batch knows the Euclidean geometry; other norms go one by one.
        return solve_batch(keys, selected, queries, mask, rhs, warm, method if norm == "l2" else "loop", one)
    problem = RowProblem.attention(keys, selected, queries, mask, rhs)
    return solve_problem(problem, warm_start if isinstance(warm_start, Solution) else None, GOAL, norm)


def solve_label_svm(
    values: Tensor | DistributedShard,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    norm: Norm = "l2",
    warm_start: Solution | BatchSolution | None = None,
) -> Solution | BatchSolution:
    r"""Label SVM without intercept: ``argmin ||v|| s.t. y_i v'x_i >= 1``, or Crammer-Singer for class indices.

    What a head converges to in direction; each optimizer has its norm, as in :func:`solve_att_svm`, of which this is
    the problem with keys ``[y_i x_i, 0]``.

    Args:
        values: (n, d), or a ``DistributedShard`` of this process's.
        labels: (n,) in {-1, 1} (binary), otherwise class indices 0..K-1 ({0, 1} are two classes).
            With a leading axis (B, n, d) and (B, n) B problems are solved at once and a BatchSolution returned.
        num_classes: K, default the largest label + 1.
        norm: "l2" (Frobenius for V), "linf", a number p in (1, inf), and for classes "spectral" or "nuclear".
        warm_start: an earlier Solution, which never changes the answer.

    Returns:
        Solution with direction (d,) and dual (n,), or (K, d) and (n, K), float64 on the CPU; a BatchSolution of a
        batch.

    Raises:
        InputError: other labels, shapes that disagree, NaN or Inf, an unknown norm.

    Example:
        >>> solve_label_svm(torch.tensor([[0.0, 2.0], [0.0, -1.0]]), torch.tensor([1, -1])).direction.tolist()
        [0.0, 1.0]
        >>> solve_label_svm(torch.tensor([[2.0, 1.0]]), torch.tensor([1]), norm="linf").margin  # at (1/3, 1/3)
        3.0
    """
    if norm == "l2" and num_classes is None and warm_start is None:
        found = label_svm(values, labels)
        if found is not None:
            return found
    norm = check_norm(norm, matrix=True)  # of a binary head once its labels are known
    if isinstance(values, DistributedShard):
        warm = warm_start if isinstance(warm_start, Solution) else None
        return labels_of_ranks(values, labels, num_classes, norm, solve_label_svm, warm)
    if np.ndim(values) == 3 and np.ndim(labels) == 2:

        def one(b: int) -> Solution:
            warm = warm_start[b] if isinstance(warm_start, BatchSolution) and b < len(warm_start) else None
            return _label_svm(values[b], labels[b], num_classes, norm, warm)

        # The batch knows the Euclidean geometry; other norms go one by one.
        return label_batch(values, labels, num_classes, norm != "l2", one)
    return _label_svm(values, labels, num_classes, norm, warm_start if isinstance(warm_start, Solution) else None)


def _label_svm(values: Tensor, labels: Tensor, num_classes: int | None, norm: Norm, warm: Solution | None) -> Solution:
    n = len(check_values(values))
    _, classes = check_labels(labels, n, num_classes)
    norm = check_norm(norm, classes is not None)
    if classes is not None:
        return solve_problem(RowProblem.multiclass(values, labels, classes), warm, "separates the classes", norm)
    solution = solve_problem(RowProblem.binary(values, labels), _as_pairs(warm), "separates the labels", norm)
    return replace(solution, dual=solution.dual[:, 1].clone(), support=solution.support[:, 0].clone())


def _as_pairs(warm: Solution | None) -> Solution | None:
    if warm is None or warm.support.ndim != 1:
        return None
    dual = torch.stack([torch.zeros_like(warm.dual), warm.dual], dim=-1)
    return replace(warm, support=torch.stack([warm.support, torch.ones_like(warm.support)], dim=1), dual=dual)
