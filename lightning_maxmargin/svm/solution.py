"""The answer to a limit problem, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

# A string, float or integer, or for stacked solutions a tuple of strings or a (B,) tensor.
Words = Any
Number = Any


@dataclass(frozen=True)
class Solution:
    """A certified answer, a proof that there is none, or the best direction found; never None, never NaN.

    status: "certified" | "infeasible" | "unverified".
    direction: (d,), (d, dq) or (K, d), smallest row (over its right-hand side) 1; zeros where infeasible.
    margin: 1/||direction|| in ``norm``; 0 where infeasible, inf where there is nothing to separate.
    dual: multipliers in the shape of the rows, (n, T), (n,) or (n, K), in l2 direction = sum dual * row, in other
        norms sum dual * row has dual norm 1 and b'dual is ||direction||; where infeasible the Farkas vector u >= 0,
        D'u = 0, b'u = 1.
    support: (s, 2) of (sequence, token), (s,) of samples for binary labels: rows tight at the optimum.
    gap, violation: relative duality gap (inf where infeasible) and largest relative violation, or ||D'u|| relative
        to sum(u ||row||).
    iterations: rounds of constraint generation. message: one line. merged: tokens equal to the selected one.
    norm: the norm it is stated in, as in ``solve_att_svm``. unique: whether an optimum of this norm is the only one;
        None for linf, spectral and nuclear, where it need not be: judge those by ``relative_margin_in``.

    All tensors are float64 on the CPU. Stacked solutions hold (B, ...) tensors, a tuple of statuses, lists elsewhere.
    """

    status: Words
    direction: Tensor
    margin: Number
    dual: Tensor
    support: Any
    gap: Number
    violation: Number
    iterations: Number
    message: Words
    merged: Number = 0
    norm: str | float = "l2"
    unique: bool | None = True


def stack(solutions: list[Solution]) -> Solution:
    """One Solution of many: tensors get a leading axis, statuses and messages become tuples, support a list."""
    numbers = {
        name: torch.tensor([getattr(s, name) for s in solutions]).to(kind)
        for name, kind in (
            ("margin", torch.float64),
            ("gap", torch.float64),
            ("violation", torch.float64),
            ("iterations", torch.int64),
            ("merged", torch.int64),
        )
    }
    return Solution(
        status=tuple(str(s.status) for s in solutions),
        direction=torch.stack([s.direction for s in solutions]),
        dual=torch.stack([s.dual for s in solutions]),
        support=[s.support for s in solutions],
        message=tuple(str(s.message) for s in solutions),
        norm=solutions[0].norm,
        unique=solutions[0].unique,
        **numbers,
    )


def unstack(solution: Solution, b: int) -> Solution | None:
    """Instance b of a stacked Solution, None where it is not stacked."""
    if isinstance(solution.status, str) or b >= len(solution.status):
        return None
    numbers = {k: getattr(solution, k)[b].item() for k in ("margin", "gap", "violation", "iterations", "merged")}
    return Solution(
        status=solution.status[b],
        direction=solution.direction[b],
        dual=solution.dual[b],
        support=solution.support[b],
        message=solution.message[b],
        norm=solution.norm,
        unique=solution.unique,
        **numbers,
    )


class Ragged(Sequence[Tensor]):
    """Pieces of one tensor, cut when asked for: a thousand small tensors take longer than their problems' rows."""

    def __init__(self, whole: Tensor, ends: list[int]) -> None:
        self.whole, self.ends = whole, ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> Tensor: ...

    @overload
    def __getitem__(self, at: slice) -> list[Tensor]: ...

    def __getitem__(self, at: int | slice) -> Tensor | list[Tensor]:
        if isinstance(at, slice):
            return [self[b] for b in range(*at.indices(len(self)))]
        b = range(len(self.ends))[at]
        return self.whole[self.ends[b - 1] if b else 0 : self.ends[b]]
