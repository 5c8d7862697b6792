"""Regularisation paths: of p, in a cone, jointly, and under a nonlinear head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.data.paper import PaperData
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.paths import RegularizationPath, regularization_path
from lightning_maxmargin.paths.objective import Head
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Array, Line, Panel


def regularization_paths(
    progress: ProgressCallback,
    radii: Sequence[float],
    pairs: Sequence[Sequence[float]],
    starts: int = 4,
    cone: float = 0.004,
) -> Outcome:
    """Paths of p on ``multi``, of p near a locally optimal token, of W on ``visual1``, and joint on ``joint_relaxed``.

    Args:
        radii: of the first three.
        pairs: (r, R) of the last; the first four are the published ones.
        starts: random directions tried at each radius.
        cone: width of the local path's cone.

    Returns:
        ``gap/NAME`` to the SVM at the largest radius, ``angle/r,R`` of p in degrees, and ``residual``, the largest.
    """
    gaps: dict[str, Array] = {}
    residuals = []
    # With the tokens that each must select: not what a path found, which would agree with itself anywhere.
    cases: list[tuple[str, Any, list[int], dict[str, Any]]] = [
        ("p", "multi", [0, 0, 0], {}),
        ("local", "single_local", [1], {"selected": torch.tensor([1]), "cone": cone}),
        ("W", "visual1", [0, 2], {}),
    ]
    for at, (name, example, selected, options) in enumerate(cases):
        source = PaperData(example)
        path = regularization_path(source.splits["train"], radii, head=source.head, starts=starts, **options)
        gaps[name] = _gaps(path, source, torch.tensor(selected))
        residuals.append(path.residual.max())
        progress((at + 1) / 4)
    joint = regularization_path(PaperData("joint_relaxed").splits["train"], pairs, starts=starts)
    angles = [math.degrees(math.atan2(float(p[1]), float(p[0]))) for p in joint.attention]
    numbers = {f"gap/{name}": float(g[-1]) for name, g in gaps.items()}
    numbers |= {f"angle/{r:g},{R:g}": abs(a) for (r, R), a in zip(pairs, angles, strict=True)}
    numbers["residual"] = float(max(*residuals, joint.residual.max()))
    same = [k for k, (r, R) in enumerate(pairs) if r == R]
    norms = np.array([pairs[k][1] for k in same], float)
    panels = [
        _panel("attention under a given head", radii, gaps),
        Panel("joint path, r = R", "radius R", "angle of p to the relaxed SVM, degrees", log="xy",
              lines=[Line(norms, np.array([abs(angles[k]) for k in same]), "p")]),
    ]  # fmt: skip
    return Outcome(numbers, panels)


def nonlinear_head(progress: ProgressCallback, radii: Sequence[float], starts: int = 2) -> Outcome:
    """Paths of p on ``multi`` under heads that every mixture hurts, and under the linear one.

    The third coordinate x_3 is the score of a token, 1 for the selected and .5 for the others; c is the mean selected
    token: psi(x) = x_3^3, tanh 3 x_3, and x_3 - ||x - c||^2 / 10.

    Args:
        radii: of the paths.
        starts: random directions tried at each radius.

    Returns:
        ``gap/NAME`` to p_mm at the largest radius; ``residual``; ``mixing``: the least that psi loses by mixing, over
        1 - s_alpha, in 2,000 random mixtures of each sequence; positive where the assumption holds.
    """
    source = PaperData("multi")
    data = source.splits["train"]
    c = data.values[:, 0].mean(0)

    heads = {
        "cubic": lambda x: x[:, 2] ** 3,
        "tanh": lambda x: (3 * x[:, 2]).tanh(),
        "curved": lambda x: x[:, 2] - (x - c).square().sum(1) / 10,
        "linear": lambda x: x @ source.head,
    }
    gaps, residual, mixing = {}, 0.0, math.inf
    for at, (name, psi) in enumerate(heads.items()):
        path = regularization_path(data, radii, head=psi, starts=starts)
        gaps[name] = _gaps(path, source, torch.zeros(len(data), dtype=torch.long))
        residual = max(residual, float(path.residual.max()))
        mixing = min(mixing, _mixing(psi, data.values))
        progress((at + 1) / len(heads))
    numbers = {f"gap/{name}": float(g[-1]) for name, g in gaps.items()} | {"residual": residual, "mixing": mixing}
    return Outcome(numbers, [_panel("p of the path", radii, gaps)])


def _mixing(psi: Head, values: Tensor, draws: int = 2000) -> float:
    """min (psi(x_0) - psi(mixture)) / (1 - s_0) over random softmax weights, from nearly hard to uniform."""
    generator = torch.Generator().manual_seed(0)
    worst = math.inf
    for X in values:
        a = torch.randn(draws, len(X), generator=generator, dtype=torch.float64)
        s = (a * torch.logspace(-1, 1, draws, dtype=torch.float64)[:, None]).softmax(1)
        drop = psi(X[:1]) - psi(s @ X)
        worst = min(worst, float((drop / (1 - s[:, 0]).clamp_min(1e-9)).min()))
    return worst


def _gaps(path: RegularizationPath, source: PaperData, selected: Tensor) -> Array:
    """1 - cos to the SVM of these tokens at every radius."""
    from lightning_maxmargin.svm import solve_att_svm

    data = source.splits["train"]
    svm = solve_att_svm(data.keys, selected, queries=data.queries).direction
    return np.array([direction_gap(p, svm) for p in path.attention], float)


def _panel(title: str, radii: Sequence[float], gaps: dict[str, Array]) -> Panel:
    lines = [Line(np.array(radii, float), np.maximum(g, 1e-17), name) for name, g in gaps.items()]
    return Panel(title, "radius R", "1 − cos to the SVM", lines, log="xy")
