"""Where ordinary gradients end: autograd in three dtypes against exact directions, at a point and in training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.gradients import Batch
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.paths import log_steps, record

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
COLORS = {"bfloat16": "entropy", "float32": "strict", "float64": "relaxed", "exact": "attention"}
LOST = 0.9
FAR = 6e6
SIZES = {"n": 6, "T": 8, "d": 10}


def saturation(
    tick: Tick, seeds: int = 100, steps: int = 2000, points: int = 150, far_steps: int = 6000, lr: float = 0.1
) -> Outcome:
    """Gradients of the attention along exact paths, and runs that step along each kind of gradient.

    Args:
        tick: told the share done.
        seeds: random instances, n=6, T=8, d=10, W trained, head given.
        steps: normalised steps of every run.
        points: of the relaxed example at which gradients are compared with one in 50 decimal digits.
        far_steps: of the run whose growing steps take ||p|| to 6e6.
        lr: of the normalised steps.

    Returns:
        ``lost/DTYPE``: the norm of p, relaxed example (margin 1), past which autograd's gradient has a cosine below .9
        with the true one; ``lost/random/DTYPE``, the same in norm of W times margin, median of the seeds;
        ``gradient/exact``: largest 1 - cos of ours; ``far/...``: 1 - cos of p with its limit at the norm reached;
        ``CASE/KIND`` and ``CASE/KIND/STEP``: cosine of a trained direction; ``random/unsettled``, seeds left out.

    Raises:
        InputError: no seed settles in so few steps.
    """
    numbers: dict[str, float] = {}
    panels = [_relaxed(numbers, points, far_steps)]
    tick(0.2)
    random = Batch.random(**SIZES, seeds=range(seeds))
    at = np.unique(np.r_[0, log_steps(steps), [s for s in (500, 1000) if s < steps]])
    runs = _runs(random, at, lr)
    tick(0.7)
    target, margin, settled = _settled(random, runs["exact"], at)
    if not settled.any():
        raise InputError(f"saturation: after {steps} steps none of {seeds} seeds has settled; give more steps")
    numbers["random/unsettled"], numbers["random/settled"] = int((~settled).sum()), int(settled.sum())
    panels.append(_random(numbers, random, runs["exact"], margin, settled))
    for title, example, limit in (
        ("training, relaxed example", "joint_relaxed", "relaxed"),
        ("training, tight example", "joint_tight", "strict"),
        ("training, cross-attention example", "visual1", ""),
    ):
        batch = Batch.of(example)
        panels.append(_training(numbers, title, example, _runs(batch, at, lr), at, _limit(batch, limit)))
        tick(0.7 + 0.05 * len(panels))
    kept = {kind: run[:, settled] for kind, run in runs.items()}
    title = f"training, random data, {int(settled.sum())} seeds"
    panels.append(_training(numbers, title, "random", kept, at, target[settled]))
    note = f"{int((~settled).sum())} of {seeds} seeds left out: token, SVM or softmax not settled at step {steps}."
    tight = "The tight example hides it: there rounded runs happen to stop within 2e-6 of the SVM."
    words = "Bands: quartiles over the seeds; a gradient of exactly 0 counts as cosine 0."
    return Outcome(numbers, panels, [note, tight, words], steps=5 * steps * (seeds + 3))


def _relaxed(numbers: dict[str, float], points: int, far_steps: int) -> Panel:
    """1 - cos with the gradient in 50 digits, along the exact path of the relaxed example."""
    batch = Batch.of("joint_relaxed")
    near = record(batch.exact(), 600, np.linspace(600 / points, 600, points).astype(int))
    far = _grow(batch, far_steps)
    p, v = torch.cat([near[0], far[0]])[:, 0], torch.cat([near[1], far[1]])[:, 0]
    norm = p.norm(dim=1).numpy()
    truth = [batch.decimal(*w) for w in zip(p, v, strict=True)]
    ours = np.array([_gap(batch.log_domain(a[None], b[None])[0], t) for a, b, t in zip(p, v, truth, strict=True)])
    numbers["gradient/exact"], numbers["far/norm"] = float(ours.max()), float(norm[-1])
    numbers["far/gap"] = _gap(p[-1], torch.tensor([1.0, 0.0]))
    order = np.argsort(norm)
    lines = [Line(norm[order], np.maximum(ours, 1e-17)[order], "exact", COLORS["exact"])]
    for name, dtype in DTYPES.items():
        # At the point that the dtype can hold, so that the gradient's error alone is seen.
        a, b = p.to(dtype).double(), v.to(dtype).double()
        there = truth if dtype is torch.float64 else [batch.decimal(*w) for w in zip(a, b, strict=True)]
        gap = np.array(
            [_gap(batch.autograd(x[None], y[None], dtype)[0], t) for x, y, t in zip(a, b, there, strict=True)]
        )
        numbers[f"lost/{name}"] = _lost(norm[:points], gap[:points])
        lines.insert(len(lines) - 1, Line(norm[order], np.maximum(gap, 1e-17)[order], name, COLORS[name]))
    return Panel("gradient, relaxed example (margin 1)", "‖p‖", "1 − cos to 50-digit gradient", lines, "xy",
                 xlim=(1, 1e7), ylim=(1e-18, 10))  # fmt: skip


def _grow(batch: Batch, steps: int) -> tuple[Tensor, Tensor]:
    """p and v of steps that grow with the square of their number, so that ||p|| reaches 6e6; 40 points past 60."""
    state = batch.exact()
    at, seen = np.unique(np.geomspace(steps / 60, steps, 40).astype(int)), []
    for i in range(1, steps + 1):
        # p zigzags between two rows: half as much again is walked.
        state.attention_lr = state.head_lr = torch.tensor(1.5 * FAR * 3 * i**2 / steps**3, dtype=torch.float64)
        state.step()
        if i in at:
            seen.append((state.attention.T.clone(), state.head.T.clone()))
    return torch.stack([p for p, _ in seen]), torch.stack([v for _, v in seen])


def _random(numbers: dict[str, float], batch: Batch, path: Tensor, margin: Tensor, settled: Tensor) -> Panel:
    """1 - cos with the exact gradient in float64, binned in ||W|| times margin: median and quartiles."""
    x = (path[1:].flatten(2).norm(dim=2) * margin)[:, settled].flatten().numpy()
    bins = np.geomspace(1, np.quantile(x, 0.99), 40)
    middle = np.sqrt(bins[1:] * bins[:-1])
    lines = []
    for name, dtype in DTYPES.items():
        found = []
        for w in path[1:]:
            w, v = w.to(dtype).double(), batch.head.to(dtype).double()
            g, t = batch.autograd(w, v, dtype), batch.log_domain(w, v)
            found.append([_gap(a, b) for a, b in zip(g[settled], t[settled], strict=True)])
        gap = np.array(found).flatten()
        q = np.array([_quartiles(gap[(x >= a) & (x < b)]) for a, b in pairwise(bins)])
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


def _runs(batch: Batch, at: np.ndarray, lr: float) -> dict[str, Tensor]:
    """Attention (steps, B, ...) of every kind of run."""
    models: dict[str, Any] = {name: batch.textbook(dtype, lr) for name, dtype in DTYPES.items()}
    models["exact"], models["exact float32"] = batch.exact(lr), batch.exact(lr, torch.float32)
    return {kind: record(model, int(at[-1]), at.tolist())[0] for kind, model in models.items()}


def _training(
    numbers: dict[str, float], title: str, case: str, runs: dict[str, Tensor], at: np.ndarray, target: Tensor
) -> Panel:
    """1 - cos with the SVM against the norm, median over the instances with quartiles where there are several."""
    panel = Panel(title, "‖W‖" if target[0].ndim == 2 else "‖p‖", "1 − cos to SVM", log="xy")
    if case.startswith("joint"):
        panel.ylim = (5e-8, 3)
    for kind, run in runs.items():
        q = np.array([_quartiles([_gap(w, t) for w, t in zip(step, target, strict=True)]) for step in run[1:]])
        norm = run[1:].flatten(2).norm(dim=2).median(1).values.numpy()
        for step in (500, 1000):
            if step in at:
                numbers[f"{case}/{kind}/{step}"] = 1 - float(q[at[1:] == step][0, 1])
        numbers[f"{case}/{kind}"] = 1 - float(q[-1, 1])
        dashed = kind == "exact float32"
        # One legend for all of them, in the panel of the random data.
        label = kind if case == "random" else ""
        line = Line(norm, np.maximum(q[:, 1], 1e-17), label, COLORS.get(kind, "head"), "dotted" if dashed else "line")
        if len(target) > 1 and not dashed:
            line.low, line.high = q[:, 0], q[:, 2]
        panel.lines.append(line)
        if not dashed:
            panel.lines.append(Line(norm[-1:], q[-1:, 1], color=COLORS[kind], kind="dots"))
    for suffix in ("", *(f"/{step}" for step in (500, 1000) if step in at)):
        numbers[f"naive/{case}/exact{suffix}"] = numbers[f"{case}/float64{suffix}"]
        numbers[f"naive/{case}/exact float32{suffix}"] = numbers[f"{case}/float32{suffix}"]
    return panel


def _limit(batch: Batch, limit: str) -> Tensor:
    """The SVM of a worked example at the tokens that its exact run selects."""
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm

    keys, labels = batch.keys[0], batch.labels[0]
    if not limit:
        queries = None if batch.queries is None else batch.queries[0]
        return solve_att_svm(keys, torch.tensor([0, 2]), queries=queries).direction[None]
    chosen = torch.ones(len(keys), dtype=torch.long)
    return solve_joint_svm(keys, keys, labels, chosen, limit=limit).attention.direction[None]


def _settled(batch: Batch, path: Tensor, at: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """SVM (B, d, dq) and margin (B,) of the selected tokens; which stand since half time above .99."""
    from lightning_maxmargin.svm import solve_att_svm

    half, end = (
        torch.einsum("bntd,bde,bne->bnt", batch.keys, path[i], batch.queries).softmax(-1)
        for i in (int(np.searchsorted(at, at[-1] / 2)), -1)
    )
    chosen = end.argmax(-1)
    solution = solve_att_svm(batch.keys, chosen, queries=batch.queries)
    certified = torch.tensor([status == "certified" for status in solution.status])
    still = (half.argmax(-1) == chosen).all(1) & (end.amax(-1) > 0.99).all(1)
    return solution.direction, torch.as_tensor(solution.margin), still & certified


def _gap(u: Tensor, w: Tensor) -> float:
    gap = direction_gap(u, w)
    return 1.0 if gap is None else gap


def _quartiles(x: Any) -> np.ndarray:
    return np.quantile(x, [0.25, 0.5, 0.75]) if len(x) else np.full(3, np.nan)


def _lost(norm: np.ndarray, gap: np.ndarray) -> float:
    """The norm from which 1 - cos stays above .1, between two points on a straight line in logarithms."""
    good = np.flatnonzero(gap < 1 - LOST)
    last = int(good[-1]) if len(good) else -1
    if not 0 <= last < len(norm) - 1:
        return float("nan")
    x, y = np.log(norm[last : last + 2]), np.log(gap[last : last + 2])
    return float(np.exp(np.interp(np.log(1 - LOST), y, x)))
