"""Joint training with the ratio rho = ||v|| / ||p|| held: which of the three limits p goes to, against rho."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.ensemble import EnsembleResult, measure
from lightning_maxmargin.names import LIMITS
from lightning_maxmargin.reproduce.ensembles import Drawn, Speed, draw, percentiles, settled_words
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.textbook import TextbookEnsemble

WORDS = {"strict": "strict", "relaxed": "relaxed", "rate_coupled": "rate-coupled"}
#: Strict and relaxed limits nearer than this are the same one: every input supports the head.
APART = 1e-4


def rate_coupled(
    tick: Tick,
    rhos: list[float],
    seeds: int = 30,
    steps: int = 12000,
    n: int = 10,
    T: int = 6,
    d: int = 32,
) -> Outcome:
    """Trains all seeds at all ratios as one ensemble, p at rate 1 and v at rate rho, and solves every limit of each.

    Args:
        tick: told the share done.
        rhos: ratios of the norms; 1 among them.
        seeds: of the data.
        steps: normalised, of all.
        n: sequences.
        T: tokens.
        d: dimensions.

    Returns:
        ``LIMIT/RHO``: median of 1 - cos of p to that limit, over settled instances whose strict and relaxed limits
        differ, ``counted/RHO`` of them; ``settled/RHO``; ``share/LIMIT``: over all ratios, those of the same instances
        that are nearest to that limit;
        ``naive/LIMIT/1`` by textbook float32 gradients on at most 30 seeds, against the limits of what those select,
        settled or not.
    """
    drawn, speed = draw(seeds, n, T, d, labels="random"), Speed()
    many = drawn.repeated(len(rhos))
    rates = torch.tensor(rhos, dtype=torch.float64).repeat_interleave(seeds)
    # Exact directions need no more than float32; a norm of 240,000 puts an error of .01 on the logarithm of a weight.
    state = EnsembleState(many.stacked(torch.float32), attention_lr=1.0, head_lr=rates)
    with speed.training(many, steps):
        state.run(steps, lambda done: tick(0.6 * done / steps))
    result = measure(state, many.keys, many.labels)
    told = result.settled & _told_apart(many, result)
    few = draw(min(seeds, 30), n, T, d, labels="random")
    naive = _textbook(few, steps)
    gaps = {k: torch.where(told, result.direction_gap[k], torch.nan).view(-1, seeds).numpy() for k in LIMITS}
    settled = result.settled.view(-1, seeds)
    numbers = {f"settled/{rho:g}": float(x.double().mean()) for rho, x in zip(rhos, settled, strict=True)}
    numbers |= {f"counted/{rho:g}": float(x.sum()) for rho, x in zip(rhos, told.view(-1, seeds), strict=True)}
    for limit in LIMITS:
        numbers |= {f"{limit}/{rho:g}": _median(x) for rho, x in zip(rhos, gaps[limit], strict=True)}
        chosen = naive.direction_gap[limit][_told_apart(few, naive)].numpy()
        numbers[f"naive/{limit}/1"] = _median(chosen)
    known = told & torch.stack([result.direction_gap[k] for k in LIMITS]).isfinite().all(0)
    nearest = torch.stack([result.direction_gap[k] for k in LIMITS])[:, known].argmin(0)
    numbers |= {f"share/{limit}": float((nearest == i).double().mean()) for i, limit in enumerate(LIMITS)}
    late = int(naive.settled.sum())
    notes = [
        settled_words(result.settled),
        f"Of the settled, {int(told.sum()):,} have strict and relaxed limits that differ; in the others every input "
        "supports the head and the three limits are one. Gaps are over those that differ.",
        f"Of {len(few)} textbook float32 runs at rho = 1, {late} settled.",
    ]
    return Outcome(
        numbers, _panels(np.array(rhos), gaps, settled, told.view(-1, seeds)), notes, speed.steps, speed.ratio
    )


def _told_apart(drawn: Drawn, result: EnsembleResult) -> Tensor:
    """(B,): the strict and relaxed limits of what is selected differ."""
    from lightning_maxmargin.svm import solve_joint_svm

    both = [
        solve_joint_svm(drawn.keys, drawn.keys, drawn.labels, result.selected, limit=limit).attention
        for limit in ("strict", "relaxed")
    ]
    u, w = (torch.nn.functional.normalize(solution.direction, dim=1) for solution in both)
    good = torch.tensor([a == b == "certified" for a, b in zip(both[0].status, both[1].status, strict=True)])
    return good & ((u - w).square().sum(1) / 2 > APART)


def _textbook(drawn: Drawn, steps: int) -> EnsembleResult:
    """rho = 1 by autograd in float32, measured as the others are."""
    model = TextbookEnsemble(drawn.keys.float(), drawn.labels.float(), attention_lr=1.0, head_lr=1.0)
    model.run(steps)
    state = EnsembleState(drawn.stacked(), model.attention.T, model.head.T)
    return measure(state, drawn.keys, drawn.labels)


def _median(x: np.ndarray) -> float:
    x = x[np.isfinite(x)]
    return float(np.median(x)) if len(x) else float("nan")


def _panels(rhos: np.ndarray, gaps: dict[str, np.ndarray], settled: Tensor, told: Tensor) -> list[Panel]:
    lines = [percentiles(rhos, gaps[limit], WORDS[limit], limit) for limit in LIMITS]
    shares = [
        Line(rhos, settled.double().mean(1).numpy(), "settled", "attention"),
        Line(rhos, told.double().mean(1).numpy(), "and limits differ", "reference", "dashed"),
    ]
    rho = "ρ = ‖v‖ / ‖p‖"
    return [
        Panel("direction gap of p to each limit", rho, "1 − cos, median and 10–90 %", lines, "xy", ylim=(1e-7, 3.0)),
        Panel("instances", rho, "share", shares, "x", ylim=(0.0, 1.03)),
    ]
