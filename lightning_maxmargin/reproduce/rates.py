"""How fast each optimizer brings p to its limit in joint training: direction gap and margin against steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.probe.ensemble import EnsembleResult, measure
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.naive import Speed
from lightning_maxmargin.reproduce.panel import Line, Panel, percentiles
from lightning_maxmargin.reproduce.paths import record
from lightning_maxmargin.reproduce.problems import Problems, draw
from lightning_maxmargin.reproduce.states import PlainState

#: Label, rate of p and v, and rule of each optimizer; plain gradient descent is no rule.
OPTIMIZERS: dict[str, tuple[str, float, str | None]] = {
    "gd": ("GD, rate 1", 1.0, None),
    "polyak": ("Polyak", 1.0, "polyak"),
    "adam": ("Adam on log L, rate .1", 0.1, "adam"),
    "ngd.1": ("NGD, rate .1", 0.1, "normalized"),
    "ngd1": ("NGD, rate 1", 1.0, "normalized"),
    "accelerated": ("dual acceleration", 1.0, "accelerated"),
}


def rates(
    progress: ProgressCallback,
    seeds: int = 80,
    steps: int = 10000,
    wanted: int = 50,
    n: int = 10,
    T: int = 6,
    d: int = 32,
) -> Outcome:
    """Trains p and v jointly from zero with every optimizer; each run is held against its own rate-coupled limit.

    Args:
        seeds: of the data.
        steps: of every optimizer, at least 1,000.
        wanted: instances, converged under both NGD and dual acceleration, that the ratios are over.
        n: sequences.
        T: tokens.
        d: dimensions.

    Returns:
        ``gap/KEY/STEP`` and ``margin/KEY/STEP`` at 1,000 and at the end, medians over the runs of an optimizer that
        converge (all, where none does), ``settled/KEY``; ``ratio/ngd1/1000`` and ``ratio/ngd.1/1000``: median gap of
        NGD over that of dual acceleration, over ``counted`` instances converged under all three.
    """
    drawn, speed = draw(seeds, n, T, d, labels="random"), Speed()
    at = np.unique(np.r_[np.geomspace(10, steps, 30).astype(int), 1000, steps])
    gaps: dict[str, Tensor] = {}
    settled: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    lines: dict[str, list[Line]] = {"gap": [], "margin": []}
    for i, (key, (label, lr, rule)) in enumerate(OPTIMIZERS.items()):
        kind, update = (EnsembleState, rule) if rule else (PlainState, "normalized")
        state = kind(drawn.batch(), attention_lr=lr, head_lr=lr, update=update)
        with speed.training(drawn, steps):
            path = record(state, steps, at.tolist())[0]
        result = measure(state, drawn.keys, drawn.labels)
        settled[key] = result.settled
        gaps[key], margins = _along(drawn, path, result)
        shown = result.settled if result.settled.any() else torch.ones_like(result.settled)
        for name, values in (("gap", gaps[key]), ("margin", margins)):
            of = f"{label} ({float(result.settled.double().mean()):.0%})"
            lines[name].append(percentiles(at, values[:, shown].numpy(), of))
            numbers |= {f"{name}/{key}/{s}": float(values[at == s][0, shown].nanmedian()) for s in {1000, steps}}
        numbers[f"settled/{key}"] = float(result.settled.double().mean())
        progress((i + 1) / len(OPTIMIZERS))
    both = settled["ngd1"] & settled["ngd.1"] & settled["accelerated"]
    chosen = both.nonzero()[:wanted, 0]
    numbers["counted"] = float(len(chosen))
    early = {key: gaps[key][at == 1000][0, chosen].nanmedian() for key in ("ngd1", "ngd.1", "accelerated")}
    numbers |= {f"ratio/{key}/1000": float(early[key] / early["accelerated"]) for key in ("ngd1", "ngd.1")}
    counts = ", ".join(f"{name}: {int(settled[key].sum())}" for key, (name, *_) in OPTIMIZERS.items())
    notes = [
        f"Converged (half of the SVM's margin, .99 of the attention), of {seeds}: {counts}.",
        f"{int(both.sum())} instances converge under NGD at both rates and under dual acceleration.",
        "The margin is the strict problem's; the limit at equal rates is the rate-coupled one, whose is less.",
    ]
    return Outcome(numbers, _panels(lines), notes, speed.ratio)


def _along(drawn: Problems, path: Tensor, result: EnsembleResult) -> tuple[Tensor, Tensor]:
    """Gap to the rate-coupled limit of what is selected last, and margin over the strict one's, (k, B)."""
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm

    limit = solve_joint_svm(
        drawn.keys, drawn.keys, drawn.labels, result.selected, limit="rate_coupled", norm_ratio=result.norm_ratio
    ).attention
    u, w = torch.nn.functional.normalize(limit.direction, dim=1), torch.nn.functional.normalize(path, dim=2)
    gaps = torch.where(torch.as_tensor(limit.certified), (w - u).square().sum(2) / 2, torch.nan)
    best = solve_att_svm(drawn.keys, result.selected).margin
    return gaps, torch.stack([drawn.smallest_rows(p, result.selected) / p.norm(dim=1) / best for p in path])


def _panels(lines: dict[str, list[Line]]) -> list[Panel]:
    for line in lines["margin"]:
        line.label, line.low, line.high = "", None, None
    return [
        Panel("direction gap of p (share that converges)", "step", "1 − cos, median and 10–90 %", lines["gap"], "xy"),
        Panel("margin over the largest possible", "step", "median", lines["margin"], "x", ylim=(0.0, 1.03)),
    ]
