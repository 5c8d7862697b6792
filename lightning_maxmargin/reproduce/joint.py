"""Joint training of p and v in the plane: which SVM the paths end at, and where rounding sends them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel, ray
from lightning_maxmargin.reproduce.paths import P0, V0, cosine, entries, gap_panel, record, softmax, track
from lightning_maxmargin.reproduce.problems import Problems

RAY_LABELS = {"strict": r"$p^\mathrm{mm}$", "relaxed": r"$p^\mathrm{relax}$", "head": r"$v^\mathrm{mm}$"}
NAMES = {"strict": "p_mm", "relaxed": "p_relax", "head": "v_mm"}


def joint(
    progress: ProgressCallback,
    example: Literal["joint_tight", "joint_relaxed"],
    steps: int = 1000,
    lr: float = 0.1,
    shown: int = 200,
) -> Outcome:
    """p and v of a planar example by normalised steps from p(0) = (0, -1), v(0) = (-1, 0).

    Args:
        example: ``joint_tight`` or ``joint_relaxed``.
        steps: of exact and of naive float64 gradients.
        lr: of both.
        shown: steps in the picture of the paths.

    Returns:
        ``cos/LIMIT`` of p at the end and ``cos/LIMIT/200`` at step 200, ``cos/head`` likewise, each also as ``naive/``;
        the SVMs' ``p_mm``, ``p_relax``, ``v_mm`` and ``label_margin`` by entry.
    """
    data = Problems.of(example)
    targets, numbers = _limits(data)
    p, v = record(data.exact(P0, V0, attention_lr=lr, head_lr=lr), steps)
    progress(0.5)
    naive_p, naive_v = record(data.naive(P0, V0, attention_lr=lr, head_lr=lr), steps)
    paths = {"": (p[:, 0], v[:, 0]), "naive/": (naive_p[:, 0], naive_v[:, 0])}
    for prefix, (of_p, of_v) in paths.items():
        for name, target in targets.items():
            path = of_v if name == "head" else of_p
            numbers[f"{prefix}cos/{name}"] = cosine(path[-1], target)
            numbers[f"{prefix}cos/{name}/{shown}"] = cosine(path[shown], target)
    limits = ("relaxed", "strict") if example == "joint_relaxed" else ("strict",)
    rays = [ray(targets[name].numpy(), RAY_LABELS[name], name) for name in (*limits, "head")]
    lines = [
        (f"to {limit}, {label}", limit, path, targets[limit], label != "exact")
        for limit in limits
        for path, label in ((p[:, 0], "exact"), (naive_p[:, 0], "naive float64"))
    ]
    panels = [_plane(p[:, 0], v[:, 0], rays, shown), _outputs(data, p[:, 0], v[:, 0]), gap_panel("gap of p", lines)]
    return Outcome(numbers, panels)


def _limits(data: Problems) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The three directions, and their entries with the label margins."""
    from lightning_maxmargin.svm import solve_joint_svm

    keys, labels = data.keys[0], data.labels[0]
    selected = torch.ones(len(keys), dtype=torch.long)
    strict, relaxed = (solve_joint_svm(keys, keys, labels, selected, limit=limit) for limit in ("strict", "relaxed"))
    found = {"strict": strict.attention.direction, "relaxed": relaxed.attention.direction,
             "head": strict.head.direction}  # fmt: skip
    numbers: dict[str, float] = {}
    for limit, name in NAMES.items():
        numbers |= entries(name, found[limit])
    return found, numbers | entries("label_margin", labels * (keys[:, 1] @ found["head"]))


def _plane(p: Tensor, v: Tensor, rays: list[Line], shown: int) -> Panel:
    lines = [track(p[: shown + 1], "p", "attention"), track(v[: shown + 1], "v", "entropy"), *rays]
    return Panel("paths, exact gradients", xlim=(-2, 15), ylim=(-3, 12), lines=lines)


def _outputs(data: Problems, p: Tensor, v: Tensor) -> Panel:
    s = softmax(data, p)
    f = torch.einsum("snt,ntd,sd->sn", s, data.values[0], v)
    lines = [
        Line(np.arange(len(p)), s[..., 1].mean(1).numpy(), "softmax of token 1"),
        Line(np.arange(len(p)), (data.labels[0] * f).sigmoid().mean(1).numpy(), "logistic probability"),
    ]
    return Panel("attention and prediction", "step", "mean", log="x", lines=lines)
