"""The numbers of a selector by key: margins, and how near attention and head are to their limits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core import TokenSelector
from lightning_maxmargin.keys import LIMITS, Value
from lightning_maxmargin.metrics import (
    direction_gap,
    entropy,
    globally_optimal,
    locally_optimal,
    relative_margin,
    score_rows,
)
from lightning_maxmargin.metrics.margin import label_rows
from lightning_maxmargin.metrics.selection import selected_mass
from lightning_maxmargin.probe.forward_pass import Seen
from lightning_maxmargin.probe.limit_problems import LimitProblems
from lightning_maxmargin.probe.parts import Parts, Tally

#: Gaps that differ by less are of one direction: which is the least is rounding, and differs between processes.
TIE = 1e-12


def tally_of(model: TokenSelector, seen: Seen, parts: Parts, limits: LimitProblems, train: str) -> Tally:
    """What is summed and compared over all sequences, of those of this process."""
    output, alpha = seen.output, seen.selected
    tally = Tally(len(alpha))
    tally.add(mass=selected_mass(output.attention, alpha), entropy=entropy(output.attention))
    rows = score_rows(output.scores, alpha, seen.others)
    tally.lower(row=rows)
    for limit, solution in limits.solutions.items():
        if solution.rhs is None:
            continue  # each row asks for 1
        asked = solution.rhs[parts.rows]
        met = torch.where(asked > 0, rows / asked.clamp_min(1e-300), torch.inf)
        broken = rows.where(asked <= 0, torch.zeros_like(rows))
        tally.lower(**{f"met/{limit}": met, f"broken/{limit}": broken})
    if model.linear:
        logits = output.logits if train == "head" else model.logits(seen.chosen)
        tally.every["label"] = label_rows(logits.double(), parts.labels)
    if parts.data.planted is not None:
        tally.add(planted=alpha == parts.data.planted.cpu())
    if seen.gamma is not None:
        _tally_optimal(model, alpha, seen.gamma, parts, limits, tally)
    return tally


def _tally_optimal(
    model: TokenSelector, alpha: Tensor, gamma: Tensor, parts: Parts, limits: LimitProblems, tally: Tally
) -> None:
    from lightning_maxmargin.svm import only

    tally.add(globally=globally_optimal(gamma, alpha, parts.mask))
    strict = limits.solutions.get("strict")
    # A neighbour of a nonlinear head is judged by psi's slope, not by its own score.
    if model.linear and strict is not None and strict.attention.status == "certified":
        support, size = only(strict.attention).support, parts.ranks.size
        here = support[support[:, 0] % size == parts.ranks.rank]
        tally.add(locally=locally_optimal(gamma, alpha, torch.stack([here[:, 0] // size, here[:, 1]], 1)))


def selection_numbers(tally: Tally) -> dict[str, Value]:
    """What is selected, how much of it, and whether it is right."""
    keys = {"mass": "attention/selected_mass", "entropy": "attention/entropy", "planted": "selection/accuracy"}
    keys |= {"globally": "selection/globally_optimal", "locally": "selection/locally_optimal"}
    return {keys[name]: tally.mean(name) for name in tally.sums}


def attention_numbers(limits: LimitProblems, norm: float, gaps: dict[str, float], tally: Tally) -> dict[str, Value]:
    """The attention's margin, and how near it is to the nearest of its limits."""
    from lightning_maxmargin.svm import only

    values: dict[str, Value] = {"margin/attention": tally.least["row"] / norm if norm > 0 else 0.0}
    values |= {f"direction_gap/{limit}": gap for limit, gap in gaps.items()}
    margins = _relative_margins(limits, norm, tally)
    nearest = _nearest(limits, gaps, margins)
    if nearest is None:
        return values | {"status/attention": None, "svm/limit": None}
    best = only(limits.solutions[nearest].attention)
    return values | {
        "direction_gap/attention": gaps.get(nearest),
        "relative_margin/attention": margins.get(nearest),
        "status/attention": best.status.value,
        "svm/limit": nearest,
        "svm/duality_gap": best.gap,
        "svm/violation": best.violation,
        "svm/support": float(len(best.support)),
    }


def under_norm(values: dict[str, Value]) -> dict[str, Value]:
    """The attention's numbers in its norm, under the names that tell that it is not l2."""
    return {f"{key}/norm": values[f"{key}/attention"] for key in ("relative_margin", "direction_gap")}


def head_numbers(limits: LimitProblems, model: TokenSelector, norm: float, tally: Tally) -> dict[str, Value]:
    """The head's margin, and how near it is to the label SVM."""
    rows = tally.every["label"] / norm if norm > 0 else torch.zeros_like(tally.every["label"])
    margin = float(rows.min())
    values: dict[str, Value] = {
        "margin/head": margin,
        "margin/head_tenth": float(np.quantile(rows.numpy(), 0.1)),
        "margin/head_met": float((rows > 0).double().mean()),
        "status/head": None,
    }
    if limits.head is None:
        return values
    values["status/head"] = limits.head.status.value
    if limits.head.status == "certified":
        if limits.head.unique:
            values["direction_gap/head"] = direction_gap(model.head, limits.head.direction)
        values["relative_margin/head"] = relative_margin(margin, limits.head.margin)
    return values


def gaps_of(limits: LimitProblems, direction: Tensor) -> dict[str, float]:
    """Direction gaps to the certified limits that have one optimum only."""
    gaps = {
        limit: direction_gap(direction, solution.attention.direction)
        for limit, solution in limits.solutions.items()
        if solution.attention.status == "certified" and solution.attention.unique
    }
    return {limit: gap for limit, gap in gaps.items() if gap is not None}


def _relative_margins(limits: LimitProblems, norm: float, tally: Tally) -> dict[str, float]:
    """By certified limit: the smallest row over its right-hand side per unit norm against the SVM's, or a negative
    row whose right-hand side is 0."""
    from lightning_maxmargin.svm import only

    found: dict[str, float] = {}
    for limit, solution in limits.solutions.items():
        met, broken = tally.least.get(f"met/{limit}", tally.least["row"]), tally.least.get(f"broken/{limit}", 0.0)
        best = only(solution.attention)
        if best.status == "certified" and norm > 0:
            relative = relative_margin((min(met, broken) if broken < 0 else met) / norm, best.margin)
            found |= {} if relative is None else {limit: relative}
    return found


def _nearest(limits: LimitProblems, gaps: dict[str, float], margins: dict[str, float]) -> str | None:
    """The limit that the attention is nearest to, of equally near ones the first; by the relative margins where no
    limit has one optimum only."""
    if gaps:
        least = min(gaps.values())
        return next(k for k in LIMITS if k in gaps and gaps[k] <= least + TIE)
    if margins:
        largest = max(margins.values())
        return next(k for k in LIMITS if k in margins and margins[k] >= largest - TIE)
    return next(iter(limits.solutions), None)
