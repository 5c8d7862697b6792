"""Joint training of p and v in the plane: which SVM the paths end at, and where rounding sends them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.core.ensemble import EnsembleState
from lightning_maxmargin.core.instances import Instances, contract, scores
from lightning_maxmargin.data.paper import PaperData
from lightning_maxmargin.metrics import direction_gap
from lightning_maxmargin.reproduce.experiment import Outcome, Tick
from lightning_maxmargin.reproduce.panel import Line, Panel, ray
from lightning_maxmargin.reproduce.textbook import TextbookEnsemble

P0, V0 = (0.0, -1.0), (-1.0, 0.0)


def joint(
    tick: Tick, example: Literal["joint_tight", "joint_relaxed"], steps: int = 1000, lr: float = 0.1, shown: int = 200
) -> Outcome:
    """p and v of a planar example by normalised steps from p(0) = (0, -1), v(0) = (-1, 0).

    Args:
        tick: told the share done.
        example: ``joint_tight`` or ``joint_relaxed``.
        steps: of exact and of textbook float64 gradients.
        lr: of both.
        shown: steps in the picture of the paths.

    Returns:
        ``cos/LIMIT`` of p at the end and ``cos/LIMIT/200`` at step 200, ``cos/head`` likewise, each also as ``naive/``.
    """
    from lightning_maxmargin.svm import solve_joint_svm

    data = PaperData(example).sequences("train")
    assert data is not None
    keys, labels = data.keys.double(), data.labels.double()
    selected = torch.ones(len(keys), dtype=torch.long)
    relaxed = solve_joint_svm(keys, keys, labels, selected, limit="relaxed")
    strict = solve_joint_svm(keys, keys, labels, selected, limit="strict")
    targets = {
        "strict": strict.attention.direction,
        "relaxed": relaxed.attention.direction,
        "head": strict.head.direction,
    }
    p, v, mass, probability = _exact(keys, labels, steps, lr)
    tick(0.5)
    naive_p, naive_v = _textbook(keys, labels, steps, lr)
    numbers = _cosines(p, v, targets, shown) | _cosines(naive_p, naive_v, targets, shown, "naive/")
    rays = [ray(targets["strict"].numpy(), "p_mm", "strict")]
    if example == "joint_relaxed":
        rays.append(ray(targets["relaxed"].numpy(), "p_relax", "relaxed"))
    rays.append(ray(targets["head"].numpy(), "v_mm", "head"))
    at = np.arange(steps + 1)
    panels = [
        Panel(
            "paths, exact gradients", xlim=(-2, 15), ylim=(-3, 12),
            lines=[_path(p[:shown], "p", "attention"), _path(v[:shown], "v", "entropy"), *rays],
        ),
        Panel(
            "attention and prediction", "step", "mean", log="x",
            lines=[Line(at, mass, "softmax of token 1"), Line(at, probability, "logistic probability")],
        ),
        _gap_panel(p, naive_p, targets, example),
    ]  # fmt: skip
    return Outcome(numbers, panels, steps=2 * steps)


def _exact(keys: Tensor, labels: Tensor, steps: int, lr: float) -> tuple[np.ndarray, ...]:
    """Paths of p and v, (steps + 1, 2), mean softmax of token 1 and mean logistic probability, (steps + 1,)."""
    data = Instances.stack(keys[None], labels[None])
    p0, v0 = torch.tensor(P0).double()[:, None], torch.tensor(V0).double()[:, None]
    state = EnsembleState(data, p0, v0, attention_lr=lr, head_lr=lr)
    seen: list[tuple[Tensor, Tensor, float, float]] = []

    def look(_: int) -> None:
        s = scores(data, state.attention).softmax(0)
        f = (s * contract(state.head, data.values)).sum(0) * data.labels
        p, v = state.attention[:, 0].clone(), state.head[:, 0].clone()
        seen.append((p, v, float(s[1].mean()), float(f.sigmoid().mean())))

    look(0)
    state.run(steps, look)
    p, v, mass, probability = zip(*seen, strict=True)
    return torch.stack(p).numpy(), torch.stack(v).numpy(), np.array(mass), np.array(probability)


def _textbook(keys: Tensor, labels: Tensor, steps: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    p0, v0 = torch.tensor([P0]).double(), torch.tensor([V0]).double()
    model = TextbookEnsemble(keys[None], labels[None], attention=p0, head=v0, attention_lr=lr, head_lr=lr)
    p, v = [model.attention[0]], [model.head[0]]
    for _ in range(steps):
        model.step()
        p.append(model.attention[0])
        v.append(model.head[0])
    return torch.stack(p).numpy(), torch.stack(v).numpy()


def _path(points: np.ndarray, label: str, color: str) -> Line:
    return Line(points[:, 0], points[:, 1], label, color, "arrows")


def _cosines(
    p: np.ndarray, v: np.ndarray, targets: dict[str, Tensor], early: int, prefix: str = ""
) -> dict[str, float]:
    found = {}
    for name, target in targets.items():
        path = v if name == "head" else p
        for suffix, at in (("", -1), (f"/{early}", early)):
            gap = direction_gap(torch.tensor(path[at]), target)
            found[f"{prefix}cos/{name}{suffix}"] = float("nan") if gap is None else 1 - gap
    return found


def _gap_panel(p: np.ndarray, naive: np.ndarray, targets: dict[str, Tensor], example: str) -> Panel:
    at = np.unique(np.geomspace(1, len(p) - 1, 120).astype(int))
    limits = ("relaxed", "strict") if example == "joint_relaxed" else ("strict",)
    lines = []
    for limit in limits:
        for path, kind, words in ((p, "line", "exact"), (naive, "dashed", "textbook float64")):
            gaps = np.array([direction_gap(torch.tensor(path[i]), targets[limit]) for i in at], float)
            lines.append(Line(at, gaps, f"to {limit}, {words}", limit, "line" if kind == "line" else "dashed"))
    return Panel("direction gap of p", "step", "1 − cos", lines=lines, log="xy")
