"""Momentum and the margin it maximises: relative margins of attention with a bias, optimizer by norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.norms import scaled, unit
from lightning_maxmargin.core.rule import Rate, State, UpdateRule, moved
from lightning_maxmargin.core.updates import Adam, Signum, Spectral
from lightning_maxmargin.probe.ensemble import MIN_RELATIVE_MARGIN, MIN_SELECTED_MASS
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.geometry import AdamOfDirections, Best, DecayingState
from lightning_maxmargin.reproduce.panel import Array, Line, Panel
from lightning_maxmargin.reproduce.paths import record
from lightning_maxmargin.reproduce.problems import Problems, draw

#: max(||W||_spectral, ||b||_inf) of (W, b), the bias b being the last column.
HYBRID = "muon_sign"
NORMS = ("l2", "linf", "spectral", HYBRID)
NORM_NAMES = ("Frobenius", "l∞", "spectral", "hybrid")
BETA = 0.9


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """m <- beta m + (1 - beta) g / max|g|, w <- w - lr m / ||m||."""

    beta: float = BETA

    def start(self, weight: Tensor) -> State:
        return {"average": torch.zeros_like(weight)}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        average = self.beta * state["average"] + (1 - self.beta) * scaled(gradient)
        return moved(weight, unit(average), rate), {"average": average}


@dataclass(frozen=True)
class MuonSign(UpdateRule):
    """Muon moves W, Signum its bias, the last column, at one rate."""

    beta: float = BETA

    def start(self, weight: Tensor) -> State:
        return {"matrix": torch.zeros_like(weight[:, :-1]), "bias": torch.zeros_like(weight[:, -1:])}

    def step(self, weight: Tensor, gradient: Tensor, rate: Rate, state: State, count: int) -> tuple[Tensor, State]:
        matrix, bias = ({"average": state[name]} for name in ("matrix", "bias"))
        W, matrix = Spectral(momentum=self.beta).step(weight[:, :-1], gradient[:, :-1], rate, matrix, count)
        b, bias = Signum(self.beta).step(weight[:, -1:], gradient[:, -1:], rate, bias, count)
        return torch.cat([W, b], dim=1), {"matrix": matrix["average"], "bias": bias["average"]}


#: Each optimizer's label, the norm whose margin it should maximise, and its rule.
OPTIMIZERS: dict[str, tuple[str, str, UpdateRule]] = {
    "momentum": ("normalised momentum", "l2", Momentum()),
    "signum": ("Signum", "linf", Signum(BETA)),
    "adam": ("Adam, β₂ = .999", "linf", AdamOfDirections((BETA, 0.999))),
    "adam95": ("Adam, β₂ = .95", "linf", AdamOfDirections((BETA, 0.95))),
    "muon": ("Muon", "spectral", Spectral(momentum=BETA)),
    "muon_sign": ("Muon, Signum of the bias", HYBRID, MuonSign()),
}


@contextmanager
def hybrid_norm() -> Iterator[None]:
    """:data:`HYBRID` as a norm of limit problems, inside the block."""
    from lightning_maxmargin.svm import register_norm
    from lightning_maxmargin.svm.norms.registry import NORMS as KNOWN

    def sizes(W: Array) -> Array:
        return np.linalg.svd(W[:, :-1], compute_uv=False)

    def stated(W: Any) -> Any:
        import cvxpy as cp

        return cp.maximum(cp.sigma_max(W[:, :-1]), cp.norm_inf(W[:, -1]))

    register_norm(
        HYBRID,
        value=lambda W: max(sizes(W).max(), np.abs(W[:, -1]).max()),
        dual=lambda M: sizes(M).sum() + np.abs(M[:, -1]).sum(),
        of_matrices=True,
        expression=stated,
    )
    try:
        yield
    finally:
        del KNOWN[HYBRID]


@hybrid_norm()
def momentum_geometry(
    progress: ProgressCallback,
    optimizers: dict[str, list[float]],
    constant: list[float],
    raw: list[float],
    seeds: int = 24,
    n: int = 6,
    T: int = 8,
    d: int = 10,
    first: int = 0,
) -> Outcome:
    """Trains scores x'(W z + b) with every optimizer at rates lr (1 + t)^-power, and solves every norm's problem.

    Args:
        optimizers: rate, steps and power of decay of each of :data:`OPTIMIZERS`.
        constant: rate, steps and power of Signum, which is trained at this rate constant and decaying.
        raw: rate, steps and power of Adam of the gradient of log L itself; those of ``optimizers`` take directions,
            whose weights sum to 1.
        seeds: first, first + 1, ...
        n: sequences.
        T: tokens.
        d: dimensions of tokens and queries.
        first: seed.

    Returns:
        ``margin/OPTIMIZER/NORM``: median over converged runs of (min row / ||W||) over the largest possible, by the
        norms of (W, b). ``row/OPTIMIZER``: in its own norm less the largest in another; ``row_led/OPTIMIZER``: share
        of converged runs where it is above 0. ``column/OPTIMIZER``: in its own norm less the largest of the optimizers
        of other norms; of the seeds converged under all, ``column_led/OPTIMIZER`` is the share where it leads and
        ``column_worst/OPTIMIZER`` its smallest lead. ``decay/constant``, ``decay/power`` and their difference
        ``decay/gain``: Signum's l_inf margin as ``constant`` says. ``raw/NORM``: of Adam as ``raw`` says, converged by
        the l2 margin, and ``raw/row``, l_inf less l2. ``settled/OPTIMIZER``, and ``certified``, the share of problems
        that are.
    """
    drawn = with_bias(draw(first + seeds, n, T, d, queries=True).take(torch.arange(first, first + seeds)))
    best, margins, lines = Best(drawn), {}, []
    numbers: dict[str, float] = {}
    for i, (key, setting) in enumerate(optimizers.items()):
        label, own, rule = OPTIMIZERS[key]
        table, line = trained(best, rule, own, setting)
        margins[key] = table
        numbers[f"settled/{key}"] = float(np.isfinite(table[0]).mean())
        numbers |= {f"margin/{key}/{x}": float(np.nanmedian(table[j])) for j, x in enumerate(NORMS)}
        lines.append(replace(line, label=label))
        progress((i + 1) / (len(optimizers) + 2))
    numbers |= leads(margins)
    decays = []
    for key, power in (("constant", 0.0), ("power", constant[2])):
        table, line = trained(best, OPTIMIZERS["signum"][2], "linf", [*constant[:2], power])
        numbers[f"decay/{key}"] = float(np.nanmedian(table[NORMS.index("linf")]))
        decays.append(replace(line, label=f"{constant[0]:g} (1 + t)^-{power:g}" if power else f"{constant[0]:g}"))
    numbers["decay/gain"] = numbers["decay/power"] - numbers["decay/constant"]
    table, _ = trained(best, Adam((BETA, 0.999)), "l2", raw)
    numbers |= {f"raw/{x}": float(np.nanmedian(table[j])) for j, x in enumerate(NORMS)}
    numbers["raw/row"] = numbers["raw/linf"] - numbers["raw/l2"]
    numbers["certified"] = 1 - best.missing / best.solved
    counts = ", ".join(f"{OPTIMIZERS[key][0]} {round(numbers[f'settled/{key}'] * seeds)}" for key in optimizers)
    note = (
        f"Converged (half of the own SVM's margin, .99 of the attention), of {seeds}: {counts}; medians are of these."
    )
    return Outcome(numbers, _panels(margins, lines, decays), [note])


def with_bias(drawn: Problems) -> Problems:
    """The same with a 1 behind every query, whose column of W is a bias: scores x'(W z + b)."""
    assert drawn.queries is not None
    one = torch.ones_like(drawn.queries[..., :1])
    return replace(drawn, queries=torch.cat([drawn.queries, one], dim=2))


def trained(best: Best, rule: UpdateRule, own: str, setting: list[float]) -> tuple[Array, Line]:
    """Relative margins (norms, B) at the end, NaN where a run has not converged; and what ``own`` lacks on the way."""
    lr, steps, power = setting
    at = np.unique(np.geomspace(20, steps, 16).astype(int))
    path = record(DecayingState(best.drawn, rule, lr, power), int(at[-1]), at.tolist())[0]
    a = best.drawn.scores(path[-1])
    alpha = a.argmax(2)
    table = np.stack([best.relative(path[-1], alpha, norm) for norm in NORMS])
    hard = (a.softmax(2).amax(2).amin(1) >= MIN_SELECTED_MASS).numpy()
    settled = hard & (table[NORMS.index(own)] >= MIN_RELATIVE_MARGIN)
    missing = np.stack([1 - best.relative(W, alpha, own) for W in path])
    return np.where(settled, table, np.nan), Line(at, np.nanmedian(np.where(settled, missing, np.nan), axis=1))


def leads(margins: dict[str, Array]) -> dict[str, float]:
    """How far each optimizer leads in its own norm, along its row and down its column of the matrix."""
    found: dict[str, float] = {}
    everywhere = np.isfinite(np.stack(list(margins.values()))).all((0, 1))
    for key, table in margins.items():
        own = NORMS.index(OPTIMIZERS[key][1])
        others = np.delete(table, own, axis=0)
        settled = np.isfinite(table[own])
        rivals = np.stack([x[own] for k, x in margins.items() if OPTIMIZERS[k][1] != OPTIMIZERS[key][1]])
        middle = np.nanmedian(table[own])
        found[f"row/{key}"] = float(middle - np.nanmedian(others, axis=1).max())
        found[f"row_led/{key}"] = float((table[own] > others.max(0))[settled].mean())
        found[f"column/{key}"] = float(middle - np.nanmedian(rivals, axis=1).max())
        lead = (table[own] - rivals.max(0))[everywhere]
        found[f"column_led/{key}"] = float((lead > 0).mean())
        found[f"column_worst/{key}"] = float(lead.min(initial=np.inf))
    return found


def _panels(margins: dict[str, Array], lines: list[Line], decays: list[Line]) -> list[Panel]:
    image = np.array([np.nanmedian(table, axis=1) for table in margins.values()])
    labels, missing = [OPTIMIZERS[key][0] for key in margins], "1 − relative margin"
    return [
        Panel("relative margin, median", "norm of (W, b)", image=image, rows=labels, columns=list(NORM_NAMES)),
        Panel("short of the largest margin in the own norm", "step", missing, lines, "xy", ylim=(1e-3, 1)),
        Panel("Signum, constant and decaying rate: l∞", "step", missing, decays, "xy", ylim=(1e-2, 1)),
    ]
