"""How wrong a gradient is: autograd in three dtypes against the log domain and 50 decimal digits, along exact paths."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal, localcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.paths import P0, V0, record
from lightning_maxmargin.reproduce.problems import Problems

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
COLORS = {"bfloat16": "entropy", "float32": "strict", "float64": "relaxed", "exact": "attention"}
LOST_COSINE = 0.9
FAR_NORM = 6e6


def relaxed_errors(numbers: dict[str, float], points: int, far_steps: int) -> Panel:
    """1 - cos with the gradient in 50 digits, along the exact path of the relaxed example."""
    batch = Problems.of("joint_relaxed")
    near = record(batch.exact(P0, V0), 600, np.linspace(600 / points, 600, points).astype(int))
    far = _grow(batch, far_steps)
    p, v = torch.cat([near[0], far[0]])[:, 0], torch.cat([near[1], far[1]])[:, 0]
    norm = p.norm(dim=1).numpy()
    truth = [in_decimals(batch, *w) for w in zip(p, v, strict=True)]
    ours = gaps_or_one(in_log_domain(batch, p, v), truth)
    numbers["gradient/exact"], numbers["far/norm"] = float(ours.max()), float(norm[-1])
    numbers["far/gap"] = float(gaps_or_one(p[-1:], [torch.tensor([1.0, 0.0])])[0])
    order = np.argsort(norm)
    lines = [Line(norm[order], np.maximum(ours, 1e-17)[order], "exact", COLORS["exact"])]
    for name, dtype in DTYPES.items():
        # At the point that the dtype can hold, so that the gradient's error alone is seen.
        a, b = p.to(dtype).double(), v.to(dtype).double()
        there = truth if dtype is torch.float64 else [in_decimals(batch, *w) for w in zip(a, b, strict=True)]
        gap = gaps_or_one(by_autograd(batch, a, b, dtype), there)
        numbers[f"lost/{name}"] = _lost(norm[:points], gap[:points])
        lines.insert(len(lines) - 1, Line(norm[order], np.maximum(gap, 1e-17)[order], name, COLORS[name]))
    return Panel("gradient, relaxed example (margin 1)", "‖p‖", "1 − cos to 50-digit gradient", lines, "xy",
                 xlim=(1, 1e7), ylim=(1e-18, 10))  # fmt: skip


def _grow(batch: Problems, steps: int) -> tuple[Tensor, Tensor]:
    """p and v of steps that grow with the square of their number, so that ||p|| reaches 6e6; 40 points past 60."""
    state = batch.exact(P0, V0)
    at, seen = np.unique(np.geomspace(steps / 60, steps, 40).astype(int)), []
    for i in range(1, steps + 1):
        # p zigzags between two rows: half as much again is walked.
        state.attention_lr = state.head_lr = torch.tensor(1.5 * FAR_NORM * 3 * i**2 / steps**3, dtype=torch.float64)
        state.step()
        if i in at:
            seen.append((state.attention.T.clone(), state.head.T.clone()))
    return torch.stack([p for p, _ in seen]), torch.stack([v for _, v in seen])


def random_errors(numbers: dict[str, float], batch: Problems, path: Tensor, margin: Tensor, settled: Tensor) -> Panel:
    """1 - cos with the exact gradient in float64, binned in ||W|| times margin: median and quartiles."""
    x = (path[1:].flatten(2).norm(dim=2) * margin)[:, settled].flatten().numpy()
    bins = np.geomspace(1, np.quantile(x, 0.99), 40)
    middle = np.sqrt(bins[1:] * bins[:-1])
    lines = []
    for name, dtype in DTYPES.items():
        found = []
        for w in path[1:]:
            w, v = w.to(dtype).double(), batch.heads.to(dtype).double()
            g, t = by_autograd(batch, w, v, dtype), in_log_domain(batch, w, v)
            found.append(gaps_or_one(g[settled], t[settled]))
        gap = np.concatenate(found)
        q = np.array([quartiles(gap[(x >= a) & (x < b)]) for a, b in pairwise(bins)])
        q = np.maximum(q, 1e-17)
        numbers[f"lost/random/{name}"] = _lost(middle, q[:, 1])
        lines.append(Line(middle, q[:, 1], name, COLORS[name], low=q[:, 0], high=q[:, 2]))
    return Panel(
        f"gradient, random data, {int(settled.sum())} seeds",
        "‖W‖ × margin",
        "1 − cos to exact gradient",
        lines,
        "xy",
        ylim=(1e-18, 10),
    )


def gaps_or_one(u: Iterable[Tensor], w: Iterable[Tensor]) -> np.ndarray:
    """1 - cos of each pair, and 1 where one of the two is zero."""
    gaps = [direction_gap(a, b) for a, b in zip(u, w, strict=True)]
    return np.array([1.0 if gap is None else gap for gap in gaps])


def quartiles(x: Any) -> np.ndarray:
    """Lower quartile, median, upper quartile; NaN of nothing."""
    return np.quantile(x, [0.25, 0.5, 0.75]) if len(x) else np.full(3, np.nan)


def _lost(norm: np.ndarray, gap: np.ndarray) -> float:
    """The norm from which 1 - cos stays above .1, between two points on a straight line in logarithms."""
    good = np.flatnonzero(gap < 1 - LOST_COSINE)
    last = int(good[-1]) if len(good) else -1
    if not 0 <= last < len(norm) - 1:
        return float("nan")
    x, y = np.log(norm[last : last + 2]), np.log(gap[last : last + 2])
    return float(np.exp(np.interp(np.log(1 - LOST_COSINE), y, x)))


def by_autograd(problems: Problems, attention: Tensor, head: Tensor, dtype: torch.dtype) -> Tensor:
    """-grad of the attention at (B, ...) by autograd in this dtype, as float64."""
    return -problems.naive(attention, head, dtype, train="attention").gradients()["attention"].double()


def in_log_domain(problems: Problems, attention: Tensor, head: Tensor) -> Tensor:
    """The exact direction at (B, ...), up to its length."""
    return problems.exact(attention, head, train="attention").step().attention.movedim(-1, 0)


def in_decimals(problems: Problems, p: Tensor, v: Tensor, digits: int = 50) -> Tensor:
    """The direction of the first instance at p (d,), v (dv,) in decimal digits, scaled to largest entry 1."""
    with localcontext(Context(prec=digits, Emin=-(10**9), Emax=10**9)):
        keys, values = _decimals(problems.keys[0]), _decimals(problems.values[0])
        q, u, labels = _decimals(p), _decimals(v), _decimals(problems.labels[0])
        total = [Decimal(0)] * len(q)
        for k, x, y in zip(keys, values, labels, strict=True):
            score, gamma = [_dot(t, q) for t in k], [y * _dot(t, u) for t in x]
            e = [(a - max(score)).exp() for a in score]
            s = [a / sum(e) for a in e]
            # gamma_t - sum_k s_k gamma_k without cancellation.
            c = [sum(b * (g - h) for b, h in zip(s, gamma, strict=True)) for g in gamma]
            m = _dot(s, gamma)
            slope = 1 / (1 + m.exp())
            for j in range(len(total)):
                total[j] += slope * sum(b * w * t[j] for b, w, t in zip(s, c, k, strict=True))
        top = max(abs(t) for t in total)
        return torch.tensor([float(t / top) for t in total], dtype=torch.float64)


def _decimals(x: Tensor) -> Any:
    return Decimal(x.item()) if x.ndim == 0 else [_decimals(y) for y in x]


def _dot(a: list[Decimal], b: list[Decimal]) -> Decimal:
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))
