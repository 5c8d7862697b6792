"""Which optimum attention ends at on random data: the global one, a local one, or neither, against the dimension."""

from __future__ import annotations

import numpy as np
import torch

from lightning_maxmargin.ensemble import EnsembleResult, train_ensemble
from lightning_maxmargin.reproduce.ensembles import Drawn, Speed, draw, settled_words
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.panel import Line, Panel

KINDS = {"global": "#0072B2", "local": "#D55E00", "neither": "#222222"}


def random_optima(
    tick: Tick,
    sizes: list[list[int]],
    dims: list[int],
    seeds: int = 100,
    steps: int = 3000,
    lr: float = 0.1,
) -> Outcome:
    """Shares of settled runs by what they select, for p and for W, unit tokens and a unit head that is given.

    Args:
        tick: told the share done.
        sizes: pairs of n and T; the first is the one that the claims are about.
        dims: d.
        seeds: instances of each size and dimension.
        steps: normalised steps from zero.
        lr: of p or W.

    Returns:
        ``KIND/MODEL/NxT/D`` for global, local, neither and settled; of the first size ``gain/MODEL``, the share of
        global optima at the largest d less that at the smallest, and ``falls/MODEL``, its largest fall from a d to
        the next; ``optimal/MODEL``, the share of all settled runs that are locally optimal.
    """
    numbers: dict[str, float] = {}
    panels, results, speed = [], [], Speed()
    for model in ("p", "W"):
        found: list[EnsembleResult] = []
        for n, T in sizes:
            for d in dims:
                drawn = draw(seeds, n, T, d, queries=model == "W")
                with speed.training(drawn, steps):
                    state = _train(drawn, steps, lr)
                found.append(state)
                shares = state.shares()
                numbers |= {f"{k}/{model}/{n}x{T}/{d}": shares[k] for k in ("settled", *KINDS)}
                tick((len(results) + len(found)) / (2 * len(sizes) * len(dims)))
        panels += [_panel(model, n, T, dims, numbers) for n, T in sizes]
        numbers |= _summary(model, found, [numbers[f"global/{model}/{sizes[0][0]}x{sizes[0][1]}/{d}"] for d in dims])
        results += found
    notes = [settled_words(torch.cat([r.settled for r in results]))]
    return Outcome(numbers, panels, notes, speed.steps, speed.ratio)


def _train(drawn: Drawn, steps: int, lr: float) -> EnsembleResult:
    return train_ensemble(
        drawn.keys, drawn.labels, steps=steps, queries=drawn.queries, head=drawn.head, train="attention",
        attention_lr=lr,
    )  # fmt: skip


def _summary(model: str, results: list[EnsembleResult], shares: list[float]) -> dict[str, float]:
    settled = torch.cat([r.settled for r in results])
    good = torch.cat([r.locally_optimal | r.globally_optimal for r in results])
    return {
        f"optimal/{model}": float(good[settled].double().mean()),
        f"settled/{model}": float(settled.double().mean()),
        f"gain/{model}": shares[-1] - shares[0],
        f"falls/{model}": float(max(0.0, -np.diff(shares).min())),
    }


def _panel(model: str, n: int, T: int, dims: list[int], numbers: dict[str, float]) -> Panel:
    x = np.array(dims)
    lines = [
        Line(x, np.array([numbers[f"{kind}/{model}/{n}x{T}/{d}"] for d in dims]), kind, color)
        for kind, color in KINDS.items()
    ]
    for line in lines:
        line.x = x
    return Panel(f"{model}, n = {n}, T = {T}", "dimension d", "share of settled runs", lines, "x", ylim=(-0.03, 1.03))
