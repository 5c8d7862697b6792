"""Which optimizer maximises which margin: relative margins of W, optimizer by norm, on random data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.batch_directions import InstanceDirections
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.updates import Adam, Mirror, Normalized, Sign, Spectral, UpdateRule
from lightning_maxmargin.optim.power_decay import power_decay
from lightning_maxmargin.probe.ensemble import MIN_RELATIVE_MARGIN, MIN_SELECTED_MASS
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.naive import Speed
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.paths import record
from lightning_maxmargin.reproduce.problems import Problems, draw

Norm = str | float
NORM_NAMES: dict[Norm, str] = {"l2": "Frobenius", "linf": "l∞"}
NORMS: tuple[Norm, ...] = ("l2", "linf", "spectral", 1.75, 3.0)


@dataclass(frozen=True)
class AdamOfDirections(Adam):
    """Adam of directions whose weights sum to 1, which keep their scale by themselves."""

    gradient_scale: ClassVar[Literal["direction", "log_loss"]] = "direction"


#: Each optimizer's label, the norm whose margin it should maximise, and its rule.
OPTIMIZERS: dict[str, tuple[str, Norm, UpdateRule]] = {
    "gd": ("GD (= mirror, p = 2)", "l2", Normalized()),
    "sign": ("sign", "linf", Sign()),
    "spectral": ("spectral", "spectral", Spectral()),
    "mirror1.75": ("mirror, p = 1.75", 1.75, Mirror(1.75)),
    "mirror3": ("mirror, p = 3", 3.0, Mirror(3.0)),
    "adam": ("Adam", "linf", AdamOfDirections()),
    "muon": ("Muon-like", "spectral", Spectral(momentum=0.9)),
}
#: Those that the theory is about: each should lead the column of its norm.
PROVED_OPTIMIZERS = ("gd", "sign", "spectral", "mirror1.75", "mirror3")


def name_of(norm: Norm) -> str:
    """As in keys and figures: l2, linf, spectral, l1.75."""
    return norm if isinstance(norm, str) else f"l{norm:g}"


class DecayingState(EnsembleState):
    """W trained from 0 under the given heads by this rule, at the rates lr (1 + step)^-power."""

    def __init__(self, drawn: Problems, rule: UpdateRule, lr: float, power: float = 0.0) -> None:
        super().__init__(drawn.batch(), head=drawn.heads.T, train="attention", attention_lr=lr, update=rule)
        self.power = power

    def move(self, g: InstanceDirections) -> None:
        self.rate_scale = power_decay(self.steps, self.power)
        super().move(g)


def optimizer_geometry(
    progress: ProgressCallback,
    optimizers: dict[str, list[float]],
    seeds: int = 100,
    n: int = 6,
    T: int = 8,
    d: int = 10,
) -> Outcome:
    """Trains W with every optimizer and solves the problem of what each selects in every norm.

    Args:
        optimizers: rate, steps and power of decay of each of :data:`OPTIMIZERS`.
        seeds: 0, 1, ...
        n: sequences.
        T: tokens.
        d: dimensions of tokens and queries.

    Returns:
        ``margin/OPTIMIZER/NORM``: median over converged runs of (min row / ||W||) over the largest possible;
        ``lead/NORM``: that of the optimizer of the norm less the largest of the other four
        of :data:`PROVED_OPTIMIZERS`;
        ``led/NORM``: share of seeds, converged under all five, where it leads; ``settled/OPTIMIZER``.
    """
    drawn, speed, field = draw(seeds, n, T, d, queries=True), Speed(), list(optimizers)
    best = Best(drawn)
    margins: dict[str, np.ndarray] = {}
    numbers: dict[str, float] = {}
    lines = []
    for i, (key, (lr, steps, power)) in enumerate(optimizers.items()):
        at = np.unique(np.geomspace(20, steps, 16).astype(int))
        with speed.training(drawn, int(at[-1])):
            path = record(DecayingState(drawn, OPTIMIZERS[key][2], lr, power), int(at[-1]), at.tolist())[0]
        progress((i + 0.6) / len(field))
        a = drawn.scores(path[-1])
        alpha = a.argmax(2)
        table = np.stack([best.relative(path[-1], alpha, norm) for norm in NORMS])
        label, own, _ = OPTIMIZERS[key]
        hard = (a.softmax(2).amax(2).amin(1) >= MIN_SELECTED_MASS).numpy()
        settled = hard & (table[NORMS.index(own)] >= MIN_RELATIVE_MARGIN)
        margins[key] = np.where(settled, table, np.nan)
        numbers[f"settled/{key}"] = float(settled.mean())
        numbers |= {f"margin/{key}/{name_of(x)}": float(np.nanmedian(margins[key][j])) for j, x in enumerate(NORMS)}
        missing = np.stack([1 - best.relative(W, alpha, own) for W in path])
        middle = np.nanmedian(np.where(settled, missing, np.nan), axis=1)
        lines.append(Line(at, middle, f"{label}: {NORM_NAMES.get(own, name_of(own))}"))
        progress((i + 1) / len(field))
    numbers |= _leads(margins)
    counts = ", ".join(f"{OPTIMIZERS[key][0]} {round(numbers[f'settled/{key}'] * seeds)}" for key in field)
    notes = [
        f"Converged (half of the own SVM's margin, .99 of the attention), of {seeds}: {counts}; medians are of these.",
        f"Largest margins by this package's solvers; not certified, and left out: {best.missing} of {best.solved}.",
    ]
    return Outcome(numbers, _panels(field, margins, lines), notes, speed.ratio)


class Best:
    """The largest margins of the instances in every norm, each selection solved once.

    Args:
        drawn: instances with queries.
    """

    def __init__(self, drawn: Problems) -> None:
        self.drawn = drawn
        self.missing = self.solved = 0
        self._known: dict[tuple[int, Norm, tuple[int, ...]], float] = {}

    def relative(self, W: Tensor, alpha: Tensor, norm: Norm) -> np.ndarray:
        """Margin of W for the tokens alpha over the largest possible, (B,); NaN where that is not certified."""
        from lightning_maxmargin.svm import norm_of

        sizes = [norm_of(w, norm) * self._largest(b, norm, alpha[b]) for b, w in enumerate(W)]
        return (self.drawn.smallest_rows(W, alpha) / torch.tensor(sizes, dtype=torch.float64)).numpy()

    def _largest(self, b: int, norm: Norm, alpha: Tensor) -> float:
        from lightning_maxmargin.svm import only, solve_att_svm

        assert self.drawn.queries is not None
        key = (b, norm, tuple(alpha.tolist()))
        if key not in self._known:
            found = only(solve_att_svm(self.drawn.keys[b], alpha, queries=self.drawn.queries[b], norm=norm))
            good = found.status == "certified"
            self.solved, self.missing = self.solved + 1, self.missing + (not good)
            self._known[key] = found.margin if good else float("nan")
        return self._known[key]


def _leads(margins: dict[str, np.ndarray]) -> dict[str, float]:
    found = {}
    known = np.isfinite(np.stack([margins[key] for key in PROVED_OPTIMIZERS])).all((0, 1))
    for key in PROVED_OPTIMIZERS:
        j, name = NORMS.index(OPTIMIZERS[key][1]), name_of(OPTIMIZERS[key][1])
        middle = {k: np.nanmedian(margins[k][j]) for k in PROVED_OPTIMIZERS}
        found[f"lead/{name}"] = float(middle.pop(key) - max(middle.values()))
        rivals = np.stack([margins[k][j][known] for k in PROVED_OPTIMIZERS if k != key])
        found[f"led/{name}"] = float((margins[key][j][known] > rivals.max(0)).mean())
    return found


def _panels(field: list[str], margins: dict[str, np.ndarray], lines: list[Line]) -> list[Panel]:
    image = np.array([[np.nanmedian(x) for x in margins[key]] for key in field])
    names = [NORM_NAMES.get(norm, name_of(norm)) for norm in NORMS]
    return [
        Panel(
            "relative margin, median", "norm", image=image, rows=[OPTIMIZERS[key][0] for key in field], columns=names
        ),
        Panel(
            "short of the largest margin in the own norm", "step", "1 − relative margin", lines, "xy", ylim=(3e-6, 3)
        ),
    ]
