"""What the planar experiments share: an example from several starts, its path, and how far that is from an SVM."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.panel import Array, Line, Panel
from lightning_maxmargin.reproduce.problems import Problems

#: Where the joint examples start: p and v.
P0, V0 = torch.tensor([[0.0, -1.0]]).double(), torch.tensor([[-1.0, 0.0]]).double()


def softmax(problem: Problems, path: Tensor) -> Tensor:
    """Softmax of every token of the first instance along a path of p, (steps, d) to (steps, n, T)."""
    return torch.einsum("ntd,sd->snt", problem.keys[0], path).softmax(-1)


def separating_line(keys: Tensor, p: Tensor, selected: Tensor) -> tuple[Array, Array]:
    """Two far points of {x : p'x = c}, c half way between the lowest selected token and the highest other one."""
    a = keys @ p
    own = torch.nn.functional.one_hot(selected, a.shape[1]).bool()
    c = (a[own].min() + a[~own].max()) / 2
    foot, along = p * c / p.square().sum(), torch.stack([-p[1], p[0]]) / p.norm()
    ends = torch.stack([foot - 1e3 * along, foot + 1e3 * along]).numpy()
    return ends[:, 0], ends[:, 1]


def record(model: EnsembleState, steps: int, at: Iterable[int] | None = None) -> tuple[Tensor, Tensor]:
    """Attention (k, B, ...) and head (k, B, dv) on the way, at these steps or at all of them, the start included."""
    wanted = set(range(steps + 1) if at is None else at)
    seen = []
    for i in range(steps + 1):
        if i:
            model.step()
        if i in wanted:
            seen.append(tuple(x.double().clone().movedim(-1, 0) for x in (model.attention, model.head)))
    return torch.stack([w for w, _ in seen]), torch.stack([v for _, v in seen])


def cosine(w: Tensor, target: Tensor) -> float:
    """cos(w, target); NaN where one of them has no direction."""
    gap = direction_gap(w, target)
    return float("nan") if gap is None else 1 - gap


def cosines(path: Tensor, target: Tensor, at: Iterable[int], key: str) -> dict[str, float]:
    """``KEY/STEP`` of a path (steps + 1, ...) at these steps, as far as it goes."""
    return {f"{key}/{i}": cosine(path[i], target) for i in at if i < len(path)}


def gaps(path: Tensor, target: Tensor, at: Array) -> Array:
    """1 - cos of a path at these steps; NaN where there is no direction."""
    return np.array([direction_gap(path[i], target) for i in at], float)


def log_steps(steps: int) -> Array:
    """Steps 1 to ``steps``, evenly spaced in the logarithm."""
    return np.unique(np.geomspace(1, steps, 120).astype(int))


def gap_panel(title: str, lines: list[tuple[str, str, Tensor, Tensor, bool]]) -> Panel:
    """1 - cos against steps of (label, colour, path, target, whether dashed)."""
    drawn = []
    for label, color, path, target, dashed in lines:
        at = log_steps(len(path) - 1)
        drawn.append(Line(at, gaps(path, target, at), label, color or None, "dashed" if dashed else "line"))
    return Panel(title, "step", "1 − cos", lines=drawn, log="xy")


def track(path: Tensor, label: str = "", color: str | None = None, every: int = 10) -> Line:
    """A path (k, 2) in the plane, with arrow heads."""
    x = path.numpy()
    return Line(x[:, 0], x[:, 1], label, color, "arrows", every)


def entries(key: str, x: Tensor) -> dict[str, float]:
    """``KEY/0``, ``KEY/1``, ... of a vector, ``KEY/00``, ``KEY/01``, ... of a matrix."""
    return {f"{key}/{''.join(map(str, i))}": float(v) for i, v in np.ndenumerate(x.numpy())}
