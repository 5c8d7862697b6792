"""Many instances trained as one tensor, each measured against its own SVMs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.selection import without_copies
from lightning_maxmargin.core.stack import InstanceStack
from lightning_maxmargin.keys import LIMITS
from lightning_maxmargin.metrics import direction_gap, globally_optimal, locally_optimal

#: Below this share of its SVM's margin a selection counts as not converged.
MIN_RELATIVE_MARGIN = 0.5
#: Nor does it where a selected token has less of its sequence's attention than this: in the plane half of the runs end
#: at a finite minimiser of the loss, where what is largest says nothing (n=T=5, d=2: norms of 0 to 14, a mass of .2).
MIN_SELECTED_MASS = 0.99


@dataclass
class EnsembleResult:
    """What became of every instance.

    Attributes:
        selected: (B, n), the tokens with the largest score.
        settled: (B,) bool: the attention margin is at least half of its SVM's, and every selected token has at least
            .99 of the attention of its sequence.
        globally_optimal: (B,) bool: every selected token has the best token score of its sequence.
        locally_optimal: (B,) bool: every selected token beats its support neighbours.
        relative_margin: (B,), attention margin over the strict SVM's; NaN where that is not certified.
        direction_gap: by limit (``strict``, and in joint training ``relaxed``, ``rate_coupled`` and ``head``), (B,);
            NaN where the limit is undefined or not certified.
        norm_ratio: (B,), rho = ||v|| / ||p||.
        norm: (B,), of p or W.
        status: of the strict SVMs.
        state: the weights that were measured; None of several processes' together.
    """

    selected: Tensor
    settled: Tensor
    globally_optimal: Tensor
    locally_optimal: Tensor
    relative_margin: Tensor
    direction_gap: dict[str, Tensor]
    norm_ratio: Tensor
    norm: Tensor
    status: tuple[str, ...]
    state: EnsembleState | None = field(default=None, repr=False)

    @staticmethod
    def cat(parts: list[EnsembleResult]) -> EnsembleResult:
        """The results of several processes as one, without their states.

        Args:
            parts: in the order of the ranks.
        """
        found: dict[str, Any] = {}
        for f in fields(EnsembleResult):
            each = [getattr(p, f.name) for p in parts]
            if f.name == "direction_gap":
                found[f.name] = {k: torch.cat([e[k] for e in each]) for k in each[0]}
            elif f.name == "status":
                found[f.name] = tuple(s for e in each for s in e)
            elif f.name != "state":
                found[f.name] = torch.cat(each)
        return EnsembleResult(**found)

    def shares(self) -> dict[str, float]:
        """Shares of converged instances, and among these of global, local and neither; median gaps of the converged.

        The selections that do not converge have no limit to be near, so they are counted and left out of the medians.
        """
        s = self.settled
        settled = s.double().mean().item()
        among = {
            "global": self.globally_optimal[s],
            "local": self.locally_optimal[s] & ~self.globally_optimal[s],
            "neither": ~self.locally_optimal[s] & ~self.globally_optimal[s],
        }
        numbers = {"settled": settled, **{k: v.double().mean().item() if len(v) else 0.0 for k, v in among.items()}}
        for limit, gap in self.direction_gap.items():
            known = gap[s & gap.isfinite()]
            if len(known):
                numbers[f"direction_gap/{limit}"] = known.median().item()
        return numbers


def measure(
    state: EnsembleState,
    keys: Tensor,
    labels: Tensor,
    values: Tensor | None = None,
    queries: Tensor | None = None,
    mask: Tensor | None = None,
) -> EnsembleResult:
    """Every instance of a trained ensemble against its own SVMs, in float64.

    Args:
        state: what was trained.
        keys: (B, n, T, d).
        labels: (B, n) in {-1, 1}; 0 at sequences that only fill an instance up to n.
        values: (B, n, T, dv); the keys where None.
        queries: (B, n, dq), or None where p was trained.
        mask: (B, n, T) bool.

    All of these on any device; what is measured is on the CPU.
    """
    from lightning_maxmargin.svm import solve_att_svm

    keys, labels = keys.cpu(), labels.cpu()
    values, queries, mask = (None if x is None else x.cpu() for x in (values, queries, mask))
    inputs = InstanceStack(keys, labels, keys if values is None else values, queries, mask)
    weight, head = _instances_first(state.attention), _instances_first(state.head)
    a = inputs.scores(weight)
    selected = a.argmax(2)
    strict = solve_att_svm(keys, selected, queries=queries, mask=mask)
    good = _certified(strict.status)
    rows = (a.gather(2, selected[..., None]) - a).scatter(2, selected[..., None], torch.inf)
    others = without_copies(keys.flatten(0, 1).double(), selected.flatten())
    mass = a.softmax(2)
    if others is not None:
        # Copies of a selected token share its attention, and the SVM has no row for them.
        copies = ~others.view(a.shape)
        rows, mass = rows.masked_fill(copies, torch.inf), _with_copies(mass, copies, selected)
    norm = weight.flatten(1).norm(dim=1)
    relative = torch.where(good, rows.flatten(1).min(1).values / norm / strict.margin, torch.nan)
    gaps = {"strict": _gaps(weight, strict.direction, good)}
    rho = head.norm(dim=1) / norm
    if state.train == "both":
        gaps |= _joint_gaps(inputs, weight, head, rho, selected)
    gamma = inputs.token_scores(head)
    masks = [None] * len(keys) if mask is None else list(mask)
    parts = list(zip(gamma, selected, masks, strict.support, good, strict=True))
    return EnsembleResult(
        selected=selected,
        settled=(relative >= MIN_RELATIVE_MARGIN) & (mass.amax(2) >= MIN_SELECTED_MASS).all(1),
        globally_optimal=torch.tensor([bool(globally_optimal(g, t, m).all()) for g, t, m, _, _ in parts]),
        locally_optimal=torch.tensor([bool(ok) and bool(locally_optimal(g, t, n).all()) for g, t, _, n, ok in parts]),
        relative_margin=relative,
        direction_gap=gaps,
        norm_ratio=rho,
        norm=norm,
        status=tuple(strict.status),
        state=state,
    )


def _with_copies(mass: Tensor, copies: Tensor, selected: Tensor) -> Tensor:
    return mass.scatter_add(2, selected[..., None], (mass * copies).sum(2, keepdim=True))


def _joint_gaps(
    inputs: InstanceStack, weight: Tensor, head: Tensor, rho: Tensor, selected: Tensor
) -> dict[str, Tensor]:
    """Gaps of the attention to the relaxed and rate-coupled limits, and of the head; NaN where one is undefined."""
    gaps = {k: torch.full((len(weight),), torch.nan, dtype=torch.float64) for k in ("relaxed", "rate_coupled", "head")}
    sizes = (inputs.labels != 0).sum(1)
    for n in sizes.unique().tolist():
        # Instances with as many sequences together, so that none is there to fill.
        at = torch.nonzero((sizes == n) & (rho > 0) & rho.isfinite())[:, 0]
        if len(at):
            for name, gap in _equal_gaps(inputs.part(at, n), weight[at], head[at], rho[at], selected[at, :n]).items():
                gaps[name][at] = gap
    return gaps


def _equal_gaps(
    inputs: InstanceStack, weight: Tensor, head: Tensor, rho: Tensor, selected: Tensor
) -> dict[str, Tensor]:
    from lightning_maxmargin.svm import solve_joint_svm

    known, gaps = None, {}
    for limit in LIMITS[1:]:
        joint = solve_joint_svm(
            inputs.keys, inputs.values, inputs.labels, selected, limit=limit,
            norm_ratio=rho if limit == "rate_coupled" else None, queries=inputs.queries, mask=inputs.mask, head=known,
        )  # fmt: skip
        known = joint.head
        gaps[limit] = _gaps(weight, joint.attention.direction, _certified(joint.attention.status))
    assert known is not None
    return {**gaps, "head": _gaps(head, known.direction, _certified(known.status))}


def _certified(status: object) -> Tensor:
    return torch.tensor([s == "certified" for s in status])  # type: ignore[attr-defined]


def _gaps(weight: Tensor, direction: Tensor, good: Tensor) -> Tensor:
    pairs = [direction_gap(w, s) if ok else None for w, s, ok in zip(weight, direction, good, strict=False)]
    return torch.tensor([_or_nan(p) for p in pairs], dtype=torch.float64)


def _or_nan(x: float | None) -> float:
    return float("nan") if x is None else x


def _instances_first(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64).movedim(-1, 0)
