"""The limit problems of a selector: what its attention and head are to converge to."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_maxmargin.core import TokenSelector
from lightning_maxmargin.core.ahead import beside
from lightning_maxmargin.keys import LIMITS
from lightning_maxmargin.probe.forward_pass import Seen
from lightning_maxmargin.probe.geometry import Norms
from lightning_maxmargin.probe.parts import NUMBERS_IN_MEMORY, NUMBERS_TO_COPY, Parts

if TYPE_CHECKING:
    from lightning_maxmargin.svm import JointSolution, Solution

#: Up to so many numbers in the keys every evaluation solves afresh, in a few milliseconds: an answer that began at the
#: last one differs in its last digit, and a resumed run has evaluated other steps.
SMALL_DATA_NUMBERS = 100_000


class LimitProblems:
    """Keeps solutions while the selection stays, and begins at the last ones where it has moved.

    Args:
        parts: the sequences of this process.
        train: as of :class:`~lightning_maxmargin.probe.selector.Probe`.
        small: whether every evaluation solves afresh.

    Attributes:
        solutions: those that are defined now, by name.
        head: the label SVM's, None where it is not solved.
    """

    def __init__(self, parts: Parts, train: str, small: bool) -> None:
        self.solutions: dict[str, JointSolution] = {}
        self.head: Solution | None = None
        self._parts, self._train, self._small = parts, train, small

    def solve(
        self, seen: Seen, moved: bool, model: TokenSelector, norms: Norms, rho: float | None, threads: int
    ) -> None:
        """Solves those that have changed, each in the norm of its part; ``rho`` is that of the rate-coupled one."""
        if self._train == "head" and model.linear:
            self.solve_head(seen, model, norms)
            return
        joint = self._train == "both" and model.linear
        # One for all limits of an evaluation: nothing changes between them.
        keys = self._shard(self._parts.data.keys, unchanging=True)
        if moved:
            self.solutions.pop("rate_coupled", None)
            # Processes ask one another in one order: there the two are solved in turn.
            threads = threads if self._parts.ranks.size == 1 and not self._parts.in_memory else 1
            label = partial(self._label_svm, seen, model, norms) if joint else lambda: self.head
            strict, self.head = beside(partial(self._strict, seen, norms, keys), label, threads)
            self.solutions["strict"] = _joined(strict, self.head, "strict")
        for limit in LIMITS[1:] if joint else ():
            if moved or limit == "rate_coupled":
                self._solve_limit(limit, seen, norms, rho, keys)

    def solve_head(self, seen: Seen, model: TokenSelector, norms: Norms) -> None:
        """Solves the label SVM alone."""
        self.head = self._label_svm(seen, model, norms)

    def start_from(self, part: LimitProblems, rows: Tensor) -> None:
        """Begins where those of these rows of the data (m,) are: their support is the first guess of ours."""
        from lightning_maxmargin.svm import only

        self.solutions = {
            limit: replace(found, attention=_of_all(only(found.attention), rows, self._parts.count))
            for limit, found in part.solutions.items()
        }
        self.head = None if part.head is None else _of_all(part.head, rows, self._parts.count)

    def _shard(self, x: Tensor, unchanging: bool = False) -> Any:
        """Keys or values of this process, as the solvers take them."""
        from lightning_maxmargin.svm import DistributedShard

        alone = self._parts.ranks.size == 1 and self._parts.in_memory
        return x if alone else DistributedShard(x, self._parts.index, self._parts.ranks, unchanging=unchanging)

    def _chosen(self, chosen: Tensor) -> Any:
        """The values of the selected tokens, likewise: few of all numbers, which one process solves in one piece."""
        from lightning_maxmargin.svm import DistributedShard

        if self._parts.ranks.size == 1 and chosen.numel() <= NUMBERS_IN_MEMORY:
            return chosen
        return DistributedShard(chosen, self._parts.index, self._parts.ranks, at_once=NUMBERS_TO_COPY)

    def _label_svm(self, seen: Seen, model: TokenSelector, norms: Norms) -> Solution:
        from lightning_maxmargin.svm import only, solve_label_svm

        # A few sequences may lack a class that the head has.
        classes = None if model.num_classes == 2 else model.num_classes
        warm = None if self._small else self.head
        values = self._chosen(seen.chosen)
        labels = self._parts.labels
        return only(solve_label_svm(values, labels, num_classes=classes, norm=norms.head, warm_start=warm))

    def _strict(self, seen: Seen, norms: Norms, keys: Any) -> Solution:
        from lightning_maxmargin.svm import only, solve_att_svm

        warm = self._before("strict")
        found = solve_att_svm(
            keys, seen.selected, queries=seen.queries, mask=self._parts.mask, norm=norms.attention, warm_start=warm
        )
        return only(found)

    def _before(self, limit: str) -> Solution | None:
        """Takes the attention of the last answer, to begin the next at."""
        from lightning_maxmargin.svm import only

        before = self.solutions.pop(limit, None)
        return None if before is None or self._small else only(before.attention)

    def _solve_limit(self, limit: str, seen: Seen, norms: Norms, rho: float | None, keys: Any) -> None:
        from lightning_maxmargin.svm import only, solve_joint_svm

        warm = self._before(limit)
        if limit == "rate_coupled" and not self._small:
            # Its first problem is the strict one, whose answer is known.
            warm = only(self.solutions["strict"].attention)
        if self.head is not None and self.head.status == "certified" and (rho or limit == "relaxed"):
            self.solutions[limit] = solve_joint_svm(
                keys, seen.chosen, self._parts.labels, seen.selected, limit=limit, norm_ratio=rho,
                norm=norms.attention, head_norm=norms.head, queries=seen.queries, mask=self._parts.mask,
                head=self.head, warm_start=warm,
            )  # fmt: skip


def _joined(attention: Solution, head: Solution | None, limit: str) -> JointSolution:
    from lightning_maxmargin.svm import JointSolution

    return JointSolution(attention, head or attention, limit=limit)


def _of_all(solution: Solution, rows: Tensor, count: int) -> Solution:
    """The solution of a problem of these of ``count`` sequences, with the numbers that its rows have among all."""
    dual, support = solution.dual, solution.support
    whole = dual.new_zeros(count, *dual.shape[1:]).index_copy(0, rows, dual)
    at = rows[support] if support.ndim == 1 else torch.stack([rows[support[:, 0]], support[:, 1]], 1)
    return replace(solution, dual=whole, support=at)
