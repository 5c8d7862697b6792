"""The answer to a limit problem, one or a stack of them: what it holds, and the only builders of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.svm.certificate import NOTHING, Certificate, Status, status_of

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Shape = tuple[int, ...]
NOT_UNIQUE = "the optimum need not be unique: judge by the relative margin"


@dataclass(frozen=True)
class Solution:
    """A certified answer, a proof that there is none, or the best direction found; never None, never NaN.

    All tensors are float64 on the CPU.

    Attributes:
        status: "certified" | "infeasible" | "unverified".
        direction: (d,), (d, dq) or (K, d), smallest row (over its right-hand side) 1; zeros where infeasible.
        margin: 1/||direction|| in ``norm``; 0 where infeasible, inf where there is nothing to separate.
        dual: multipliers in the shape of the rows, (n, T), (n,) or (n, K), in l2 direction = sum dual * row, in other
            norms sum dual * row has dual norm 1 and b'dual is ||direction||; where infeasible the Farkas vector u >= 0,
            D'u = 0, b'u = 1; where unverified the multipliers whose bound the message tells.
        support: (s, 2) of (sequence, token), (s,) of samples for binary labels: rows tight at the optimum.
        gap: relative duality gap, inf where infeasible.
        violation: largest relative violation of a row; where infeasible ||D'u|| relative to sum(u ||row||).
        iterations: rounds of constraint generation.
        message: what was shown, one line.
        merged: tokens equal to the selected one.
        norm: the norm it is stated in, as in ``solve_att_svm``.
        unique: whether an optimum of this norm is the only one; None for linf, spectral and nuclear, where it need not
            be: judge those by ``relative_margin_in``.

    Example:
        >>> from lightning_maxmargin import solve_label_svm
        >>> solution = solve_label_svm(torch.tensor([[2.0], [-1.0]]), torch.tensor([1, -1]))
        >>> solution.status, solution.direction.tolist(), solution.margin, solution.support.tolist()
        ('certified', [1.0], 1.0, [1])
    """

    status: Status
    direction: Tensor
    margin: float
    dual: Tensor
    support: Tensor
    gap: float
    violation: float
    iterations: int
    message: str
    merged: int = 0
    norm: str | float = "l2"
    unique: bool | None = True

    def in_norm(self, norm: str | float, unique: bool | None) -> Solution:
        """The same answer, stated in this norm.

        Args:
            norm: as in ``solve_att_svm``.
            unique: whether its optimum is the only one; None where that is not known.
        """
        return replace(self, norm=norm, unique=unique)

    @property
    def certified(self) -> bool:
        """Whether the status is "certified"."""
        return self.status is Status.CERTIFIED

    @property
    def infeasible(self) -> bool:
        """Whether the status is "infeasible"."""
        return self.status is Status.INFEASIBLE

    def _repr_html_(self) -> str:
        from lightning_maxmargin.svm.show import solution_html

        return solution_html(self)


@dataclass(frozen=True)
class BatchSolution:
    """B Solutions: their fields with a leading axis; ``[b]`` is one of them.

    Attributes:
        status: of each, a tuple of B.
        direction: (B, d), (B, d, dq) or (B, K, d).
        margin: (B,).
        dual: (B, n, T), (B, n) or (B, n, K).
        support: of each, a list of B tensors as in :class:`Solution`.
        gap: (B,) relative duality gaps.
        violation: (B,) largest relative violations.
        iterations: (B,) int64.
        message: of each, a tuple of B.
        merged: (B,) int64, tokens equal to the selected one.
        norm: that of all.
        unique: whether the optimum of this norm is the only one.

    Example:
        >>> from lightning_maxmargin import solve_label_svm
        >>> both = solve_label_svm(torch.tensor([[[2.0]], [[-1.0]]]), torch.tensor([[1], [-1]]))
        >>> both.status, both[1].direction.tolist()
        (('certified', 'certified'), [1.0])
    """

    status: tuple[Status, ...]
    direction: Tensor
    margin: Tensor
    dual: Tensor
    support: Sequence[Tensor]
    gap: Tensor
    violation: Tensor
    iterations: Tensor
    message: tuple[str, ...]
    merged: Tensor
    norm: str | float = "l2"
    unique: bool | None = True

    def __len__(self) -> int:
        return len(self.status)

    def __getitem__(self, b: int) -> Solution:
        return Solution(
            status=self.status[b],
            direction=self.direction[b],
            margin=float(self.margin[b]),
            dual=self.dual[b],
            support=self.support[b],
            gap=float(self.gap[b]),
            violation=float(self.violation[b]),
            iterations=int(self.iterations[b]),
            message=self.message[b],
            merged=int(self.merged[b]),
            norm=self.norm,
            unique=self.unique,
        )

    @property
    def certified(self) -> Tensor:
        """Which statuses are "certified": (B,) bool."""
        return torch.tensor([status is Status.CERTIFIED for status in self.status], dtype=torch.bool)

    @property
    def infeasible(self) -> Tensor:
        """Which statuses are "infeasible": (B,) bool."""
        return torch.tensor([status is Status.INFEASIBLE for status in self.status], dtype=torch.bool)

    def _repr_html_(self) -> str:
        from lightning_maxmargin.svm.show import batch_html

        return batch_html(self)

    def exchanged(self, others: Mapping[int, Solution]) -> BatchSolution:
        """The stack with some instances exchanged; its tensors are written to.

        Args:
            others: Solutions by the number of the instance whose place they take.
        """
        return self.with_part(np.array(list(others)), stack(list(others.values()))) if others else self

    def with_part(self, at: Index, part: BatchSolution) -> BatchSolution:
        """The stack with instances ``at`` exchanged for those of another; its tensors are written to.

        Args:
            at: (m,) numbers of the instances.
            part: their m answers.
        """
        status, message, support = list(self.status), list(self.message), list(self.support)
        for i, b in enumerate(at.tolist()):
            status[b], message[b], support[b] = part.status[i], part.message[i], part.support[i]
        where = torch.from_numpy(at)
        self.direction[where], self.dual[where] = part.direction, part.dual
        self.margin[where], self.gap[where], self.violation[where] = part.margin, part.gap, part.violation
        self.iterations[where], self.merged[where] = part.iterations, part.merged
        return replace(self, status=tuple(status), message=tuple(message), support=support)


def only(solution: Solution | BatchSolution) -> Solution:
    """The Solution of one problem.

    Args:
        solution: of one problem.

    Raises:
        InputError: it is of a batch.

    Example:
        >>> from lightning_maxmargin import solve_label_svm
        >>> only(solve_label_svm(torch.tensor([[2.0]]), torch.tensor([1]))).margin
        2.0
    """
    if isinstance(solution, BatchSolution):
        raise InputError(f"a BatchSolution of {len(solution)} where one Solution is expected: pass one of them, [b]")
    return solution


def stack(solutions: Sequence[Solution]) -> BatchSolution:
    """One BatchSolution of many."""

    def numbers(values: list[float] | list[int], kind: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=kind)

    return BatchSolution(
        status=tuple(s.status for s in solutions),
        direction=torch.stack([s.direction for s in solutions]),
        margin=numbers([s.margin for s in solutions]),
        dual=torch.stack([s.dual for s in solutions]),
        support=[s.support for s in solutions],
        gap=numbers([s.gap for s in solutions]),
        violation=numbers([s.violation for s in solutions]),
        iterations=numbers([s.iterations for s in solutions], torch.int64),
        message=tuple(s.message for s in solutions),
        merged=numbers([s.merged for s in solutions], torch.int64),
        norm=solutions[0].norm,
        unique=solutions[0].unique,
    )


def answered(
    certificate: Certificate,
    direction: Array,
    dual: Array,
    support: Index,
    *,
    margin: float,
    rounds: int,
    known: str = "",
    merged: int = 0,
    unique: bool | None = True,
) -> Solution:
    """A direction with its certificate; ``known`` is what the message says where that certifies nothing."""
    message = f"certified: relative gap {certificate.gap:.1e}" + ("" if unique else f"; {NOT_UNIQUE}")
    solution = object.__new__(Solution)
    # The constructor of a frozen class sets each field by a call, which takes 7 us more: a tenth of a small problem.
    solution.__dict__.update(
        status=certificate.status,
        direction=torch.from_numpy(direction),
        margin=margin,
        dual=torch.from_numpy(dual),
        support=torch.from_numpy(support),
        gap=certificate.gap,
        violation=certificate.violation,
        iterations=rounds,
        message=message if certificate.certified else f"unverified: {known}",
        merged=merged,
        norm="l2",
        unique=True,
    )
    return solution


def answered_batch(
    certified: Mask,
    direction: Array,
    dual: Array,
    support: Sequence[Tensor],
    *,
    margin: Array,
    gap: Array,
    violation: Array,
    merged: Index,
) -> BatchSolution:
    """Directions of B instances, ``certified`` (B,) by the rule or to be exchanged for what is found of them alone."""
    B = len(certified)
    message = f"certified: relative gap at most {gap.max(where=certified, initial=0.0):.1e}"
    return BatchSolution(
        status=tuple(map(status_of, certified.tolist())),
        direction=torch.from_numpy(direction),
        margin=torch.from_numpy(margin),
        dual=torch.from_numpy(dual),
        support=support,
        gap=torch.from_numpy(gap),
        violation=torch.from_numpy(violation),
        iterations=torch.ones(B, dtype=torch.int64),
        message=(message,) * B,
        merged=torch.from_numpy(merged),
    )


def infeasible(
    proof: Certificate, shape: Shape, dual: Array, support: Index, goal: str, rounds: int, merged: int = 0
) -> Solution:
    """The proof that no direction of this shape meets the rows; ``goal`` completes "no direction ..."."""
    used = int(np.count_nonzero(dual))
    message = f"no direction {goal}: the weights in `dual` combine {used} rows to zero"
    solution = answered(proof, np.zeros(shape), dual, support, margin=0.0, rounds=rounds, merged=merged)
    return replace(solution, message=message)


def nothing_to_separate(shape: Shape, grid: Shape, has_rows: bool, merged: int) -> Solution:
    """No row asks for anything: the zero direction meets them all."""
    words = "every right-hand side is 0" if has_rows else "no token competes with a selected one"
    message = f"{words}: the zero direction meets all rows"
    return replace(_zeros(Certificate(0.0, 0.0), shape, grid, merged), margin=float("inf"), message=message)


def undefined(shape: Shape, grid: Shape, limit: str, head: Status, merged: int) -> Solution:
    """A joint limit that rests on a head which does not separate."""
    known = f"the {limit} limit needs a head that separates the selected tokens, and the head is {head}: use strict"
    return replace(_zeros(NOTHING, shape, grid, merged), message=known)


def _zeros(certificate: Certificate, shape: Shape, grid: Shape, merged: int) -> Solution:
    nothing = np.zeros((0, 2), np.int64)
    return answered(certificate, np.zeros(shape), np.zeros(grid), nothing, margin=0.0, rounds=0, merged=merged)


def withdrawn(solution: Solution, known: str) -> Solution:
    """The same answer, certified no longer; ``known`` says why."""
    return replace(solution, status=NOTHING.status, message=f"unverified: {known}")
