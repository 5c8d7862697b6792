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
from lightning_maxmargin.probe.ensemble import MIN_RELATIVE_MARGIN, MIN_SELECTED_MASS
from lightning_maxmargin.reproduce.ensembles import Drawn, Speed, draw
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel

Norm = str | float
NORM_NAMES: dict[Norm, str] = {"l2": "Frobenius", "linf": "l∞"}
NORMS: tuple[Norm, ...] = ("l2", "linf", "spectral", 1.75, 3.0)


#: Each optimizer's label and the norm whose margin it should maximise.
OPTIMIZERS: dict[str, tuple[str, Norm]] = {
    "gd": ("GD (= mirror, p = 2)", "l2"),
    "sign": ("sign", "linf"),
    "spectral": ("spectral", "spectral"),
    "mirror1.75": ("mirror, p = 1.75", 1.75),
    "mirror3": ("mirror, p = 3", 3.0),
    "adam": ("Adam", "linf"),
    "muon": ("Muon-like", "spectral"),
}
#: Those that the theory is about: each should lead the column of its norm.
PROVED_OPTIMIZERS = ("gd", "sign", "spectral", "mirror1.75", "mirror3")


def name_of(norm: Norm) -> str:
    """As in keys and figures: l2, linf, spectral, l1.75."""
    return norm if isinstance(norm, str) else f"l{norm:g}"


class GeometryState(EnsembleState):
    """An ensemble of W moved as one of this package's optimizers moves a single one, with exact directions.

    Args:
        drawn: instances with queries; their heads are given.
        rule: ``gd``, ``sign``, ``spectral``, ``muon`` (spectral on an average of momentum .9), ``adam`` (eps 0, betas
            .9 and .999), or ``mirror`` with a p.
        lr: of the first step.
        decay: exponent a of lr / (1 + step / 10)^a.
        p: of ``mirror``.
    """

    def __init__(self, drawn: Drawn, rule: str, lr: float, decay: float = 0.0, p: float = 2.0) -> None:
        super().__init__(drawn.batch(), head=drawn.head.T, train="attention", attention_lr=lr, update=_rule(rule, p))
        self.first, self.decay = self.attention_lr, decay

    def move(self, g: InstanceDirections) -> None:
        self.attention_lr = self.first / (1 + self.steps / 10) ** self.decay
        super().move(g)


@dataclass(frozen=True)
class _AdamOfDirections(Adam):
    """Adam of directions whose weights sum to 1, which keep their scale by themselves."""

    gradient_scale: ClassVar[Literal["direction", "log_loss"]] = "direction"


def _rule(name: str, p: float) -> UpdateRule:
    rules = {
        "gd": Normalized(),
        "sign": Sign(),
        "spectral": Spectral(),
        "muon": Spectral(momentum=0.9),
        "adam": _AdamOfDirections(),
    }
    return Mirror(p) if name == "mirror" else rules[name]


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
        progress: callback that takes the share done.
        optimizers: rate, steps and exponent of decay of each of :data:`OPTIMIZERS`.
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
    for i, (key, (lr, steps, decay)) in enumerate(optimizers.items()):
        at = np.unique(np.geomspace(20, steps, 16).astype(int))
        path = _path(drawn, key, lr, decay, at, speed)
        progress((i + 0.6) / len(field))
        alpha, a = best.selected(path[-1])
        table = np.stack([best.relative(path[-1], alpha, norm) for norm in NORMS])
        label, own = OPTIMIZERS[key]
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


def _path(drawn: Drawn, key: str, lr: float, decay: float, at: np.ndarray, speed: Speed) -> list[Tensor]:
    """W (B, d, d) at the steps ``at``."""
    rule, p = ("mirror", float(key[6:])) if key.startswith("mirror") else (key, 2.0)
    state, wanted, seen = GeometryState(drawn, rule, lr, decay, p), set(at.tolist()), []

    def evaluate(step: int) -> None:
        if step in wanted:
            seen.append(state.attention.movedim(-1, 0).clone())

    with speed.training(drawn, int(at[-1])):
        state.run(int(at[-1]), evaluate)
    return seen


class Best:
    """The largest margins of the instances in every norm, each selection solved once.

    Args:
        drawn: instances with queries.
    """

    def __init__(self, drawn: Drawn) -> None:
        self.drawn = drawn
        self.missing = self.solved = 0
        self._known: dict[tuple[int, Norm, tuple[int, ...]], float] = {}

    def selected(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (B, n) and a (B, n, T)."""
        assert self.drawn.queries is not None
        a = torch.einsum("bntd,bde,bne->bnt", self.drawn.keys, W, self.drawn.queries)
        return a.argmax(2), a

    def relative(self, W: Tensor, alpha: Tensor, norm: Norm) -> np.ndarray:
        """Margin of W for the tokens alpha over the largest possible, (B,); NaN where that is not certified."""
        _, a = self.selected(W)
        rows = (a.gather(2, alpha[..., None]) - a).scatter(2, alpha[..., None], torch.inf).amin((1, 2))
        largest = torch.tensor([self._largest(b, norm, alpha[b]) for b in range(len(W))], dtype=torch.float64)
        return (rows / _length(W, norm) / largest).numpy()

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


def _length(W: Tensor, norm: Norm) -> Tensor:
    """||W|| of (B, d, d)."""
    if norm == "spectral":
        return torch.linalg.matrix_norm(W, 2)
    order = {"l2": 2.0, "linf": torch.inf}[norm] if isinstance(norm, str) else norm
    return torch.linalg.vector_norm(W.flatten(1), order, dim=1)


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
