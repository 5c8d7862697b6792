"""Which optimum attention ends at on random data: the global one, a local one, or neither, against the dimension."""

from __future__ import annotations

import numpy as np
import torch

from lightning_maxmargin.probe.ensemble import EnsembleResult, measure
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.naive import Speed
from lightning_maxmargin.reproduce.panel import Array, Panel, curve
from lightning_maxmargin.reproduce.problems import Problems, converged_note, draw

COLORS = {"global": "#0072B2", "local": "#D55E00", "neither": "#222222", "not settled": "#999999"}


def random_optima(
    progress: ProgressCallback,
    sizes: list[list[int]],
    dims: list[int],
    seeds: int = 100,
    steps: int = 3000,
    lr: float = 0.1,
) -> Outcome:
    """Shares of runs by what they select, for p and for W, unit tokens and a unit head that is given.

    Args:
        sizes: pairs of n and T; the first is the one that the claims are about.
        dims: d.
        seeds: instances of each size and dimension.
        steps: normalised steps from zero.
        lr: of p or W.

    Returns:
        ``KIND/MODEL/NxT/D``, shares of all runs: global, local, neither, not settled. Of the first size ``gain/MODEL``,
        the share of global optima at the largest d less that at the smallest, and ``falls/MODEL``, its largest fall
        from a d to the next, and both for ``settled/MODEL``, the share among converged runs;
        ``optimal/MODEL``, the share of its converged runs that are locally optimal.
    """
    numbers: dict[str, float] = {}
    panels, settled, speed = [], [], Speed()
    runs = [(model, n, T, d) for model in ("p", "W") for n, T in sizes for d in dims]
    for at, (model, n, T, d) in enumerate(runs):
        result = _train(draw(seeds, n, T, d, queries=model == "W"), steps, lr, speed)
        settled.append(result.settled)
        numbers |= {f"{kind}/{model}/{n}x{T}/{d}": share for kind, share in _shares(result).items()}
        progress((at + 1) / len(runs))
    for model in ("p", "W"):
        numbers |= _summary(model, sizes[0], dims, numbers)
        panels += [_panel(model, n, T, dims, numbers) for n, T in sizes]
    return Outcome(numbers, panels, [converged_note(torch.cat(settled))], speed.ratio)


def _train(drawn: Problems, steps: int, lr: float, speed: Speed) -> EnsembleResult:
    state = drawn.exact(dtype=torch.float32, attention_lr=lr)
    with speed.training(drawn, steps):
        state.run(steps)
    return measure(state, drawn.keys, drawn.labels, queries=drawn.queries)


def _shares(result: EnsembleResult) -> dict[str, float]:
    """Of all runs, by kind."""
    s, best, local = result.settled, result.globally_optimal, result.locally_optimal
    kinds = {"global": s & best, "local": s & local & ~best, "neither": s & ~local & ~best, "not settled": ~s}
    return {kind: float(x.double().mean()) for kind, x in kinds.items()}


def _summary(model: str, size: list[int], dims: list[int], numbers: dict[str, float]) -> dict[str, float]:
    n, T = size
    share = {kind: curve(numbers, f"{kind}/{model}/{n}x{T}", dims, kind).y for kind in COLORS}
    with np.errstate(invalid="ignore"):
        of_settled = share["global"] / (1 - share["not settled"])
    good, bad = (share["global"] + share["local"]).sum(), share["neither"].sum()
    return {
        f"optimal/{model}": float(good / (good + bad)),
        **_trend(model, share["global"]),
        **_trend(f"settled/{model}", of_settled),
    }


def _trend(key: str, share: Array) -> dict[str, float]:
    """Last less first, and the largest fall from one to the next; NaN where one is (none converged)."""
    fall = np.maximum(0.0, -np.diff(share)).max(initial=0.0)  # not Python's max: it passes over NaN
    return {f"gain/{key}": float(share[-1] - share[0]), f"falls/{key}": float(fall)}


def _panel(model: str, n: int, T: int, dims: list[int], numbers: dict[str, float]) -> Panel:
    lines = [curve(numbers, f"{kind}/{model}/{n}x{T}", dims, kind, color) for kind, color in COLORS.items()]
    return Panel(f"{model}, n = {n}, T = {T}", "dimension d", "share of runs", lines, "x", ylim=(-0.03, 1.03))
