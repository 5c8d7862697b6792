"""Joint training with the ratio rho = ||v|| / ||p|| held: which of the three limits p goes to, against rho."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.keys import LIMITS
from lightning_maxmargin.probe.ensemble import EnsembleResult, measure
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.naive import NaiveEnsemble, Speed
from lightning_maxmargin.reproduce.panel import Line, Panel, percentiles
from lightning_maxmargin.reproduce.problems import Problems, converged_note, draw

LIMIT_NAMES = {"strict": "strict", "relaxed": "relaxed", "rate_coupled": "rate-coupled"}
#: Strict and relaxed limits nearer than this are the same one: every input supports the head.
MIN_LIMITS_GAP = 1e-4


def rate_coupled(
    progress: ProgressCallback,
    runs: list[list[float]],
    steps: int = 12000,
    n: int = 10,
    T: int = 6,
    d: int = 32,
) -> Outcome:
    """Trains all runs as one ensemble, p at rate 1 and v at rate rho, and solves every limit of each.

    Args:
        runs: pairs of a ratio of the norms and how many seeds it gets; the ratio 1 among them.
        steps: normalised, of all.
        n: sequences.
        T: tokens.
        d: dimensions.

    Returns:
        ``LIMIT/RHO``: median of 1 - cos of p to that limit, over converged instances whose strict and relaxed limits
        differ, ``counted/RHO`` of them; ``settled/RHO``; ``share/LIMIT``: over all ratios, those of the same instances
        that are nearest to that limit; ``naive/LIMIT/1`` by naive float32 gradients on at most 30 seeds, against the
        limits of what those select, converged or not.
    """
    rhos, seeds = [rho for rho, _ in runs], [int(count) for _, count in runs]
    of = torch.tensor(rhos, dtype=torch.float64).repeat_interleave(torch.tensor(seeds))
    drawn, speed = draw(max(seeds), n, T, d, labels="random"), Speed()
    batch = drawn.take(torch.cat([torch.arange(count) for count in seeds]))
    # Exact directions need no more than float32; a norm of 240,000 puts an error of .01 on the logarithm of a weight.
    state = EnsembleState(batch.batch(torch.float32), attention_lr=1.0, head_lr=of)
    with speed.training(batch, steps):
        state.run(steps, lambda done: progress(0.7 * done / steps))
    result = measure(state, batch.keys, batch.labels)
    differ = result.settled & _limits_differ(batch, result)
    gaps = {k: [result.direction_gap[k][differ & (of == rho)].numpy() for rho in rhos] for k in LIMITS}
    settled = np.array([float(result.settled[of == rho].double().mean()) for rho in rhos])
    counted = np.array([int(differ[of == rho].sum()) for rho in rhos])
    numbers = {f"{k}/{rho:g}": _median(x) for k in LIMITS for rho, x in zip(rhos, gaps[k], strict=True)}
    numbers |= {f"settled/{rho:g}": x for rho, x in zip(rhos, settled.tolist(), strict=True)}
    numbers |= {f"counted/{rho:g}": x for rho, x in zip(rhos, counted.tolist(), strict=True)}
    every = torch.stack([result.direction_gap[k] for k in LIMITS])
    nearest = every[:, differ & every.isfinite().all(0)].argmin(0)
    numbers |= {f"share/{limit}": float((nearest == i).double().mean()) for i, limit in enumerate(LIMITS)}
    naive, late = _naive(drawn.take(torch.arange(min(30, max(seeds)))), steps)
    notes = [
        converged_note(result.settled),
        f"Of the converged, {int(differ.sum()):,} have strict and relaxed limits that differ; in the others every "
        "input supports the head and the three limits are one. Gaps are over those that differ.",
        f"Of the naive float32 runs at rho = 1, {late} converged.",
    ]
    shares = settled, counted / np.array(seeds)
    return Outcome(numbers | naive, _panels(np.array(rhos), gaps, *shares), notes, speed.ratio)


def _limits_differ(drawn: Problems, result: EnsembleResult) -> Tensor:
    """(B,): the strict and relaxed limits of what is selected differ."""
    from lightning_maxmargin.svm import solve_joint_svm

    both = [
        solve_joint_svm(drawn.keys, drawn.keys, drawn.labels, result.selected, limit=limit).attention
        for limit in ("strict", "relaxed")
    ]
    u, w = (torch.nn.functional.normalize(solution.direction, dim=1) for solution in both)
    return both[0].certified & both[1].certified & ((u - w).square().sum(1) / 2 > MIN_LIMITS_GAP)


def _naive(drawn: Problems, steps: int) -> tuple[dict[str, float], str]:
    """``naive/LIMIT/1`` by autograd in float32, and how many of how many converged."""
    model = NaiveEnsemble(drawn.batch(torch.float32), attention_lr=1.0, head_lr=1.0)
    model.run(steps)
    result = measure(model, drawn.keys, drawn.labels)
    differ = _limits_differ(drawn, result)
    numbers = {f"naive/{limit}/1": _median(result.direction_gap[limit][differ].numpy()) for limit in LIMITS}
    return numbers, f"{int(result.settled.sum())} of {len(drawn)}"


def _median(x: np.ndarray) -> float:
    x = x[np.isfinite(x)]
    return float(np.median(x)) if len(x) else float("nan")


def _panels(
    rhos: np.ndarray, gaps: dict[str, list[np.ndarray]], settled: np.ndarray, differ: np.ndarray
) -> list[Panel]:
    lines = []
    for limit in LIMITS:
        padded = np.full((len(rhos), max(len(x) for x in gaps[limit])), np.nan)
        for row, x in zip(padded, gaps[limit], strict=True):
            row[: len(x)] = x
        lines.append(percentiles(rhos, padded, LIMIT_NAMES[limit], limit))
    shares = [
        Line(rhos, settled, "converged", "attention"),
        Line(rhos, differ, "and limits differ", "reference", "dashed"),
    ]
    rho = "ρ = ‖v‖ / ‖p‖"
    return [
        Panel("direction gap of p to each limit", rho, "1 − cos, median and 10–90 %", lines, "xy", ylim=(1e-7, 3.0)),
        Panel("instances", rho, "share", shares, "x", ylim=(0.0, 1.03)),
    ]
