"""How fast each optimizer brings p to its limit in joint training: direction gap and margin against steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.batch import scores, token_scores
from lightning_maxmargin.core.batch_directions import InstanceDirections, instance_directions
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.probe.ensemble import EnsembleResult, measure
from lightning_maxmargin.reproduce.ensembles import Drawn, Speed, draw, percentiles
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel


class LossState(EnsembleState):
    """An ensemble moved by gradients with their scale: ``gd``, ``polyak`` (of log L, L* = 0) or ``adam`` (of log L).

    Args:
        drawn: the instances.
        rule: as above.
        lr: of p and v alike.
    """

    def __init__(self, drawn: Drawn, rule: str, lr: float) -> None:
        # Plain gradient descent is no rule of this package: it is here to be compared with.
        self.plain = rule == "gd"
        super().__init__(drawn.batch(), attention_lr=lr, head_lr=lr, update="normalized" if self.plain else rule)

    def gradients(self) -> tuple[list[Tensor], Tensor]:
        """Minus the gradients of log L, of p and v, and log L (B,): nothing of it underflows."""
        a, gamma = scores(self.data, self.attention), token_scores(self.data, self.head)
        g = instance_directions(self.data, a, gamma, self.loss)
        attention, head = g.of_log_loss()
        assert head is not None
        return [attention, head], g.loss.log()

    def move(self, g: InstanceDirections) -> None:
        if not self.plain:
            return super().move(g)
        attention, head = g.of_log_loss()
        assert head is not None
        self.attention.add_(attention * g.loss * self.attention_lr)
        self.head.add_(head * g.loss * self.head_lr)


def contenders(drawn: Drawn) -> dict[str, tuple[str, Callable[[], EnsembleState]]]:
    """Key: label and a fresh state."""

    def exact(update: str, lr: float) -> EnsembleState:
        return EnsembleState(drawn.batch(), attention_lr=lr, head_lr=lr, update=update)

    return {
        "gd": ("GD, rate 1", lambda: LossState(drawn, "gd", 1.0)),
        "polyak": ("Polyak", lambda: LossState(drawn, "polyak", 1.0)),
        "adam": ("Adam on log L, rate .1", lambda: LossState(drawn, "adam", 0.1)),
        "ngd.1": ("NGD, rate .1", lambda: exact("normalized", 0.1)),
        "ngd1": ("NGD, rate 1", lambda: exact("normalized", 1.0)),
        "accelerated": ("dual acceleration", lambda: exact("accelerated", 1.0)),
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
        progress: callback that takes the share done.
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
    field = contenders(drawn)
    gaps: dict[str, Tensor] = {}
    settled: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    lines: dict[str, list[Line]] = {"gap": [], "margin": []}
    for i, (key, (name, make)) in enumerate(field.items()):
        state = make()
        with speed.training(drawn, steps):
            path = _path(state, at)
        result = measure(state, drawn.keys, drawn.labels)
        settled[key] = result.settled
        gaps[key], margins = _along(drawn, path, result)
        shown = result.settled if result.settled.any() else torch.ones_like(result.settled)
        for name, values in (("gap", gaps[key]), ("margin", margins)):
            label = f"{name} ({float(result.settled.double().mean()):.0%})"
            lines[name].append(percentiles(at, values[:, shown].numpy(), label))
            numbers |= {f"{name}/{key}/{s}": float(values[at == s][0, shown].nanmedian()) for s in {1000, steps}}
        numbers[f"settled/{key}"] = float(result.settled.double().mean())
        progress((i + 1) / len(field))
    both = settled["ngd1"] & settled["ngd.1"] & settled["accelerated"]
    chosen = both.nonzero()[:wanted, 0]
    numbers["counted"] = float(len(chosen))
    early = {key: gaps[key][at == 1000][0, chosen].nanmedian() for key in ("ngd1", "ngd.1", "accelerated")}
    numbers |= {f"ratio/{key}/1000": float(early[key] / early["accelerated"]) for key in ("ngd1", "ngd.1")}
    counts = ", ".join(f"{name}: {int(settled[key].sum())}" for key, (name, _) in field.items())
    notes = [
        f"Converged (half of the SVM's margin, .99 of the attention), of {seeds}: {counts}.",
        f"{int(both.sum())} instances converge under NGD at both rates and under dual acceleration.",
        "The margin is the strict problem's; the limit at equal rates is the rate-coupled one, whose is less.",
    ]
    return Outcome(numbers, _panels(lines), notes, speed.ratio)


def _path(state: EnsembleState, at: np.ndarray) -> list[Tensor]:
    """p (B, d) at the steps ``at``."""
    wanted, seen = set(at.tolist()), []

    def evaluate(step: int) -> None:
        if step in wanted:
            seen.append(state.attention.T.clone())

    state.run(int(at[-1]), evaluate)
    return seen


def _along(drawn: Drawn, path: list[Tensor], result: EnsembleResult) -> tuple[Tensor, Tensor]:
    """Gap to the rate-coupled limit of what is selected last, and margin over the strict one's, (k, B)."""
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm

    gaps = torch.full((len(path), len(drawn)), torch.nan, dtype=torch.float64)
    for b, rho in enumerate(result.norm_ratio.tolist()):
        keys, selected = drawn.keys[b], result.selected[b]
        joint = solve_joint_svm(keys, keys, drawn.labels[b], selected, limit="rate_coupled", norm_ratio=rho)
        if joint.attention.status == "certified":
            u = joint.attention.direction / joint.attention.direction.norm()
            gaps[:, b] = torch.stack([(p[b] / p[b].norm() - u).square().sum() / 2 for p in path])
    best = solve_att_svm(drawn.keys, result.selected).margin
    chosen = result.selected[..., None]
    others = torch.zeros_like(drawn.keys[..., 0]).scatter(2, chosen, torch.inf)
    margins = []
    for p in path:
        a = torch.einsum("bntd,bd->bnt", drawn.keys, p)
        margins.append((a.gather(2, chosen) - a + others).amin((1, 2)) / p.norm(dim=1) / best)
    return gaps, torch.stack(margins)


def _panels(lines: dict[str, list[Line]]) -> list[Panel]:
    for line in lines["margin"]:
        line.label, line.low, line.high = "", None, None
    return [
        Panel("direction gap of p (share that converges)", "step", "1 − cos, median and 10–90 %", lines["gap"], "xy"),
        Panel("margin over the largest possible", "step", "median", lines["margin"], "x", ylim=(0.0, 1.03)),
    ]
