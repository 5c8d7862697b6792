"""Both margins and directions of a model against their SVMs, at one moment: no Lightning in here."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_maxmargin.core import Sequences, TokenSelector, select, take_token, without_copies
from lightning_maxmargin.core.model import Output
from lightning_maxmargin.keys import LIMITS, Value, measured_by
from lightning_maxmargin.metrics import (
    attention_margin,
    direction_gap,
    entropy,
    globally_optimal,
    label_margin,
    locally_optimal,
    relative_margin,
    score_rows,
)
from lightning_maxmargin.metrics.selection import selected_mass
from lightning_maxmargin.probe.geometry import Geometry
from lightning_maxmargin.probe.own import OwnNumbers

if TYPE_CHECKING:
    from lightning_maxmargin.svm import JointSolution, Solution

#: Up to so many numbers in the keys every evaluation solves afresh, in a few milliseconds: an answer that began at the
#: last one differs in its last digit, and a resumed run has evaluated other steps.
SMALL_DATA_NUMBERS = 100_000


@dataclass
class Snapshot:
    """What was seen at one step.

    Attributes:
        values: every key that a selector has in :mod:`~lightning_maxmargin.keys`, None where one is undefined.
        solutions: the limit problems that are defined now, by name.
        selected: (n,), alpha.
        direction: p (d,) or W (d, dq).
        head: v (d,) or V (K, d); empty for a nonlinear head.
    """

    values: dict[str, Value]
    solutions: dict[str, JointSolution] = field(repr=False)
    selected: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    head: Tensor = field(repr=False)


class Probe:
    """Measures a model on one data set, in float64 on the CPU, keeping solutions while the selection stays.

    The strict and relaxed problems and the label SVM depend on the selected tokens alone, so they are solved again only
    when a selected token changes, from the last support rows; the rate-coupled one also follows rho.

    Args:
        data: all sequences.
        train: ``both``, ``attention`` (the head is given: the limit is the strict problem) or ``head`` (the attention
            is given: the label SVM is about the pooled inputs).
        norm: whose margin the optimizer maximises; where it is not l2, the strict SVM is solved in it as well.
        own: what the user measures besides.

    A nonlinear head has no label SVM, and of the limits of the attention only the strict one is defined.
    """

    def __init__(
        self, data: Sequences, train: str = "both", norm: str | float = "l2", own: OwnNumbers | None = None
    ) -> None:
        self.data = data.to("cpu").to(torch.float64)
        self.train, self._own = train, own
        self._small = self.data.keys.numel() <= SMALL_DATA_NUMBERS
        self._geometry = None if norm in ("l2", 2) else Geometry(self.data, norm, warm=not self._small)
        self._selected: Tensor | None = None
        self._others: Tensor | None = None  # the mask less copies of the selected tokens, which the SVM merges as well
        self._solutions: dict[str, JointSolution] = {}
        self._head: Solution | None = None

    @torch.no_grad()
    def measure(self, model: TokenSelector) -> Snapshot:
        """A snapshot of this model; the model itself is not touched."""
        from lightning_maxmargin.svm import only

        model = _double(model)
        output = model(self.data)
        alpha = select(output.scores, self.data.mask)
        norm, head_norm = float(model.direction.norm()), float(model.head.norm()) if model.linear else None
        rho = head_norm / norm if head_norm is not None and norm > 0 else None
        moved = self._selected is None or not torch.equal(alpha, self._selected)
        self._solve(alpha, output, model, rho)
        if moved:
            # Three passes over the keys, where the SVM has not counted already that there are none.
            strict = self._solutions.get("strict")
            none = strict is not None and only(strict.attention).merged == 0
            self._others = self.data.mask if none else without_copies(self.data.keys, alpha, self.data.mask)
        values: dict[str, Value] = dict.fromkeys(measured_by("selector"))
        values |= self._selection(model, output, alpha)
        values |= {"norm/attention": norm, "norm/head": head_norm, "norm_ratio": rho}
        values |= self._attention(model.direction, norm, output, alpha)
        if head_norm is not None:
            values |= self._label(model, head_norm, output, alpha)
        if self._geometry is not None and self.train != "head":
            values |= self._geometry.values(model, output.scores, alpha)
        if self._own is not None:
            values |= self._own.values(model, self.data, output, alpha)
        return Snapshot(values, dict(self._solutions), alpha, model.direction.clone(), head_vector(model))

    def start_from(self, part: Probe, rows: Tensor) -> None:
        """Begins where a probe of these rows of the data (m,) is: its SVMs' support is the first guess of ours."""
        from lightning_maxmargin.svm import only

        self._solutions = {
            limit: replace(found, attention=_of_all(only(found.attention), rows, len(self.data)))
            for limit, found in part._solutions.items()
        }
        self._head = None if part._head is None else _of_all(part._head, rows, len(self.data))

    # --- limit problems ---------------------------------------------------------------------------------------

    def _solve(self, alpha: Tensor, output: Output, model: TokenSelector, rho: float | None) -> None:
        from lightning_maxmargin.svm import only, solve_label_svm

        moved = self._selected is None or not torch.equal(alpha, self._selected)
        self._selected = alpha
        if not model.linear:
            if moved:
                self._solve_limit("strict", alpha, model, None)
            return
        warm = None if self._small else self._head
        if self.train == "head":
            pooled = torch.einsum("nt,ntd->nd", output.attention, self.data.values)
            self._head = only(solve_label_svm(pooled, self.data.labels, warm_start=warm))
            return
        if self.train == "both" and moved:
            chosen = take_token(self.data.values, alpha)
            self._head = only(solve_label_svm(chosen, self.data.labels, warm_start=warm))
        if moved:
            self._solutions.pop("rate_coupled", None)
        for limit in LIMITS if self.train == "both" else LIMITS[:1]:
            if moved or limit == "rate_coupled":
                self._solve_limit(limit, alpha, model, rho)

    def _solve_limit(self, limit: str, alpha: Tensor, model: TokenSelector, rho: float | None) -> None:
        from lightning_maxmargin.svm import JointSolution, solve_att_svm, solve_joint_svm

        before = self._solutions.pop(limit, None)
        warm = None if before is None or self._small else before.attention
        data, queries = self.data, model.queries(self.data)
        if limit == "strict":
            solution = solve_att_svm(data.keys, alpha, queries=queries, mask=data.mask, warm_start=warm)
            self._solutions[limit] = JointSolution(solution, self._head or solution, limit=limit)
        elif self._head is not None and self._head.status == "certified" and (rho or limit == "relaxed"):
            self._solutions[limit] = solve_joint_svm(
                data.keys, data.values, data.labels, alpha, limit=limit, norm_ratio=rho, queries=queries,
                mask=data.mask, head=self._head, warm_start=warm,
            )  # fmt: skip

    # --- what is measured -------------------------------------------------------------------------------------

    def _attention(self, direction: Tensor, norm: float, output: Output, alpha: Tensor) -> dict[str, Value]:
        from lightning_maxmargin.svm import only

        values: dict[str, Value] = {"margin/attention": attention_margin(output.scores, alpha, norm, self._others)}
        gaps = {}
        for limit, solution in self._solutions.items():
            if solution.attention.status == "certified":
                gap = direction_gap(direction, solution.attention.direction)
                gaps[limit] = values[f"direction_gap/{limit}"] = gap
        defined = {k: g for k, g in gaps.items() if g is not None}
        nearest = min(defined, key=lambda k: defined[k]) if defined else next(iter(self._solutions), None)
        if nearest is None:
            return values | {"status/attention": None, "svm/limit": None}
        best = only(self._solutions[nearest].attention)
        return values | {
            "direction_gap/attention": gaps.get(nearest),
            "relative_margin/attention": self._relative(self._solutions[nearest], output, alpha, norm),
            "status/attention": best.status.value,
            "svm/limit": nearest,
            "svm/duality_gap": best.gap,
            "svm/violation": best.violation,
            "svm/support": float(len(best.support)),
        }

    def _relative(self, solution: JointSolution, output: Output, alpha: Tensor, norm: float) -> Value:
        """min row/b over rows with b > 0, per unit norm, against the SVM's; or a negative row where b = 0."""
        if solution.attention.status != "certified" or norm == 0:
            return None
        rows = score_rows(output.scores, alpha, self._others)
        rhs = torch.ones_like(rows) if solution.rhs is None else solution.rhs
        least = torch.where(rhs > 0, rows / rhs.clamp_min(1e-300), torch.inf).min()
        broken = rows.where(rhs <= 0, torch.zeros_like(rows)).min()
        return relative_margin(
            float(torch.minimum(least, broken) if broken < 0 else least) / norm, solution.attention.margin
        )

    def _label(self, model: TokenSelector, norm: float, output: Output, alpha: Tensor) -> dict[str, Value]:
        if self.train == "head":
            logits = output.logits
        else:
            chosen = take_token(self.data.values, alpha)
            logits = model.logits(chosen)
        margin = label_margin(logits, self.data.labels, norm)
        values: dict[str, Value] = {"margin/head": margin, "status/head": None}
        if self._head is None:
            return values
        values["status/head"] = self._head.status.value
        if self._head.status == "certified":
            values["direction_gap/head"] = direction_gap(model.head, self._head.direction)
            values["relative_margin/head"] = relative_margin(margin, self._head.margin)
        return values

    def _selection(self, model: TokenSelector, output: Output, alpha: Tensor) -> dict[str, Value]:
        values: dict[str, Value] = {
            "attention/selected_mass": float(selected_mass(output.attention, alpha).mean()),
            "attention/entropy": float(entropy(output.attention).mean()),
        }
        if self.data.planted is not None:
            values["selection/accuracy"] = float((alpha == self.data.planted).double().mean())
        if model.num_classes == 2 and (not model.linear or bool(model.head.any())):
            logits = model.logits(self.data.values.flatten(0, 1)).view(self.data.values.shape[:2])
            gamma = self.data.labels[:, None] * logits
            values["selection/globally_optimal"] = float(globally_optimal(gamma, alpha, self.data.mask).double().mean())
            strict = self._solutions.get("strict")
            # A neighbour of a nonlinear head is judged by psi's slope, not by its own score.
            if model.linear and strict is not None and strict.attention.status == "certified":
                values["selection/locally_optimal"] = float(
                    locally_optimal(gamma, alpha, strict.attention.support).double().mean()
                )
        return values


def _of_all(solution: Solution, rows: Tensor, count: int) -> Solution:
    """The solution of a problem of these of ``count`` sequences, with the numbers that its rows have among all."""
    dual, support = solution.dual, solution.support
    whole = dual.new_zeros(count, *dual.shape[1:]).index_copy(0, rows, dual)
    at = rows[support] if support.ndim == 1 else torch.stack([rows[support[:, 0]], support[:, 1]], 1)
    return replace(solution, dual=whole, support=at)


def head_vector(model: TokenSelector) -> Tensor:
    """A copy of v or V; empty for a nonlinear head, which is no vector."""
    return model.head.detach().clone() if model.linear else torch.empty(0)


def _double(model: TokenSelector) -> TokenSelector:
    """The model in float64 on the CPU: itself where it is that already, for a copy costs as much as the solvers do."""
    tensors = [*model.parameters(), *model.buffers()]
    # A head of the user's may be in training mode, with batch statistics and random numbers of its own.
    if model.linear and all(
        t.device.type == "cpu" and t.dtype in (torch.float64, torch.int64, torch.bool) for t in tensors
    ):
        return model
    return copy.deepcopy(model).to("cpu").to(torch.float64).eval()
