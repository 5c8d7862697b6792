"""What the planar experiments share: an example from several starts, its path, and how far that is from an SVM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.batch import Instances
from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.data.paper import PaperData
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.naive import NaiveEnsemble
from lightning_maxmargin.reproduce.panel import Array, Line, Panel


@dataclass(frozen=True)
class Setting:
    """A worked example in float64, and its given head; (n, T, d), (n,), (n, T, dv), (n, dq), (dv,)."""

    keys: Tensor
    labels: Tensor
    values: Tensor
    queries: Tensor | None
    head: Tensor | None

    @staticmethod
    def of(example: Any, **options: Any) -> Setting:
        """The example of this name in :class:`~lightning_maxmargin.data.PaperData`."""
        data = PaperData(example, **options)
        s = data.splits["train"]
        return Setting(s.keys, s.labels.double(), s.values, s.queries, data.head)

    def exact(self, attention: Tensor, head: Tensor | None = None, **options: Any) -> EnsembleState:
        """One instance per start: attention (B, d) or (B, d, dq), head (B, dv); without one the given head is kept."""
        return EnsembleState(self.stacked(len(attention)), attention.movedim(0, -1), **self._head(attention, head, -1),
                             **options)  # fmt: skip

    def naive(
        self, attention: Tensor, head: Tensor | None = None, dtype: torch.dtype = torch.float64, **options: Any
    ) -> NaiveEnsemble:
        """The same by autograd, in any dtype."""
        B = len(attention)
        keys, labels, values, queries = (
            None if x is None else _repeat(x, B).to(dtype) for x in (self.keys, self.labels, self.values, self.queries)
        )
        assert keys is not None
        assert labels is not None
        return NaiveEnsemble(keys, labels, values, queries, attention, **self._head(attention, head, 0), **options)

    def _head(self, attention: Tensor, head: Tensor | None, last: int) -> dict[str, Any]:
        if head is not None:
            return {"head": head.movedim(0, last)}
        assert self.head is not None
        return {"head": _repeat(self.head, len(attention)).movedim(0, last), "train": "attention"}

    def stacked(self, copies: int) -> Instances:
        """So many copies of the example, one for each start."""
        keys, labels, values, queries = (
            None if x is None else _repeat(x, copies) for x in (self.keys, self.labels, self.values, self.queries)
        )
        assert keys is not None
        assert labels is not None
        return Instances.stack(keys, labels, values, queries)

    def softmax(self, path: Tensor) -> Tensor:
        """Softmax of every token along a path of p, (steps, d) to (steps, n, T)."""
        return torch.einsum("ntd,sd->snt", self.keys, path).softmax(-1)

    def separating_line(self, p: Tensor, selected: Tensor) -> tuple[Array, Array]:
        """Two far points of {x : p'x = c}, c half way between the lowest selected token and the highest other one."""
        a = self.keys @ p
        own = torch.nn.functional.one_hot(selected, a.shape[1]).bool()
        c = (a[own].min() + a[~own].max()) / 2
        foot, along = p * c / p.square().sum(), torch.stack([-p[1], p[0]]) / p.norm()
        ends = torch.stack([foot - 1e3 * along, foot + 1e3 * along]).numpy()
        return ends[:, 0], ends[:, 1]


def _repeat(x: Tensor, copies: int) -> Tensor:
    return x.expand(copies, *x.shape)


def record(model: EnsembleState | NaiveEnsemble, steps: int, at: Iterable[int] | None = None) -> tuple[Tensor, Tensor]:
    """Attention (k, B, ...) and head (k, B, dv) on the way, at these steps or at all of them, the start included."""
    wanted = set(range(steps + 1) if at is None else at)
    last = isinstance(model, EnsembleState)
    seen = []
    for i in range(steps + 1):
        if i:
            model.step()
        if i in wanted:
            w, v = model.attention.double().clone(), model.head.double().clone()
            seen.append((w.movedim(-1, 0), v.movedim(-1, 0)) if last else (w, v))
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
