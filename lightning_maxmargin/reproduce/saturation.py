"""Where ordinary gradients end: autograd in three dtypes against exact directions, at a point and in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.gradient_errors import (
    COLORS,
    DTYPES,
    gaps_or_one,
    quartiles,
    random_errors,
    relaxed_errors,
)
from lightning_maxmargin.reproduce.panel import Line, Panel
from lightning_maxmargin.reproduce.paths import P0, V0, log_steps, record
from lightning_maxmargin.reproduce.problems import Problems, draw

CASES = {"joint_relaxed": "relaxed example", "joint_tight": "tight example", "visual1": "cross-attention example"}
SIZES: dict[str, Any] = {"n": 6, "T": 8, "d": 10}


def saturation(
    progress: ProgressCallback,
    seeds: int = 100,
    steps: int = 2000,
    points: int = 150,
    far_steps: int = 6000,
    lr: float = 0.1,
) -> Outcome:
    """Gradients of the attention along exact paths, and runs that step along each kind of gradient.

    Args:
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
        InputError: no seed converges in so few steps.
    """
    numbers: dict[str, float] = {}
    panels = [relaxed_errors(numbers, points, far_steps)]
    progress(0.2)
    random = draw(seeds, **SIZES, queries=True)
    at = np.unique(np.r_[0, log_steps(steps), [s for s in (500, 1000) if s < steps]])
    runs = _runs(random, at, lr)
    progress(0.7)
    target, margin, converged = _converged(random, runs["exact"], at)
    if not converged.any():
        raise InputError(f"saturation: after {steps} steps none of {seeds} seeds has converged; give more steps")
    numbers["random/unsettled"], numbers["random/settled"] = int((~converged).sum()), int(converged.sum())
    panels.append(random_errors(numbers, random, runs["exact"], margin, converged))
    for case in CASES:
        batch = Problems.of(case)
        runs_of = _runs(batch, at, lr, **({"attention": P0, "head": V0} if batch.head is None else {}))
        panels.append(_training(numbers, f"training, {CASES[case]}", case, runs_of, at, _limit(batch, case)))
        progress(0.7 + 0.05 * len(panels))
    kept = {kind: run[:, converged] for kind, run in runs.items()}
    title = f"training, random data, {int(converged.sum())} seeds"
    panels.append(_training(numbers, title, "random", kept, at, target[converged]))
    note = f"{int((~converged).sum())} of {seeds} seeds left out: token, SVM or softmax not converged at step {steps}."
    tight = "The tight example hides it: there rounded runs happen to stop within 2e-6 of the SVM."
    bands = "Bands: quartiles over the seeds; a gradient of exactly 0 counts as cosine 0."
    return Outcome(numbers, panels, [note, tight, bands])


def _runs(batch: Problems, at: np.ndarray, lr: float, **start: Tensor) -> dict[str, Tensor]:
    """Attention (steps, B, ...) of every kind of run."""
    options: dict[str, Any] = {"attention_lr": lr, "head_lr": lr, **start}
    models: dict[str, Any] = {name: batch.naive(dtype=dtype, **options) for name, dtype in DTYPES.items()}
    models["exact"] = batch.exact(**options)
    models["exact float32"] = batch.exact(dtype=torch.float32, **options)
    return {kind: record(model, int(at[-1]), at.tolist())[0] for kind, model in models.items()}


def _training(
    numbers: dict[str, float], title: str, case: str, runs: dict[str, Tensor], at: np.ndarray, target: Tensor
) -> Panel:
    """1 - cos with the SVM against the norm, median over the instances with quartiles where there are several."""
    panel = Panel(title, "‖W‖" if target[0].ndim == 2 else "‖p‖", "1 − cos to SVM", log="xy")
    if case.startswith("joint"):
        panel.ylim = (5e-8, 3)
    for kind, run in runs.items():
        q = np.array([quartiles(gaps_or_one(step, target)) for step in run[1:]])
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


def _limit(batch: Problems, case: str) -> Tensor:
    """The SVM of a worked example at the tokens that its exact run selects."""
    from lightning_maxmargin.svm import solve_att_svm, solve_joint_svm

    keys, labels = batch.keys[0], batch.labels[0]
    if case == "visual1":
        assert batch.queries is not None
        return solve_att_svm(keys, torch.tensor([0, 2]), queries=batch.queries[0]).direction[None]
    chosen = torch.ones(len(keys), dtype=torch.long)
    return solve_joint_svm(
        keys, keys, labels, chosen, limit="relaxed" if case == "joint_relaxed" else "strict"
    ).attention.direction[None]


def _converged(batch: Problems, path: Tensor, at: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """SVM (B, d, dq) and margin (B,) of the selected tokens; which stand since half time above .99."""
    from lightning_maxmargin.svm import solve_att_svm

    half, end = (batch.scores(path[i]).softmax(-1) for i in (int(np.searchsorted(at, at[-1] / 2)), -1))
    chosen = end.argmax(-1)
    solution = solve_att_svm(batch.keys, chosen, queries=batch.queries)
    still = (half.argmax(-1) == chosen).all(1) & (end.amax(-1) > 0.99).all(1)
    return solution.direction, torch.as_tensor(solution.margin), still & solution.certified
