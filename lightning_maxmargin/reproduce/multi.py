"""Three sequences, a given head: normalised against plain gradient descent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel, ray
from lightning_maxmargin.reproduce.paths import cosines, entries, gap_panel, record, separating_line, softmax, track
from lightning_maxmargin.reproduce.problems import Problems
from lightning_maxmargin.reproduce.states import PlainState

P_MM = r"$p^\mathrm{mm}$"
PRINTED_STEPS = (10, 50, 100, 200, 1000, 3000)


def multi(
    progress: ProgressCallback,
    starts: list[float],
    watched: list[float],
    steps: int = 3000,
    lr: float = 0.1,
    shown: int = 200,
) -> Outcome:
    """p from p(0) = (x, 0) for several x: normalised steps of length lr, and plain steps of rate 1.

    Args:
        starts: the x.
        watched: those whose softmax, norm and cosine are followed; the last one is drawn.
        steps: of normalised descent; plain descent runs for the first thousand.
        lr: of the normalised steps.
        shown: steps in the pictures.

    Returns:
        ``p_mm`` by entry; ``KIND/START/softmax/STEP``, ``KIND/START/norm/STEP`` and ``KIND/START/cos/STEP`` for KIND
        ``ngd`` and ``gd``, and ``naive/`` of the same.
    """
    from lightning_maxmargin.svm import solve_att_svm

    data = Problems.of("multi")
    keys = data.keys[0]
    selected = torch.zeros(len(keys), dtype=torch.long)
    # The keys are the two coordinates that W = diag(1, 1, 0) lets through: this SVM lies in W's range.
    target = solve_att_svm(keys, selected).direction
    p0 = torch.tensor([[x, 0.0] for x in starts]).double()
    exact = data.exact(p0, attention_lr=lr)
    plain = PlainState(exact.data, p0.T, exact.head, train="attention", attention_lr=1.0)
    some = min(steps, 1000)
    paths = {"ngd": record(exact, steps)[0], "gd": record(plain, some)[0]}
    progress(0.6)
    paths["naive/ngd"] = record(data.naive(p0, attention_lr=lr), some)[0]
    paths["naive/gd"] = record(data.naive(p0, attention_lr=1.0, plain=True), some)[0]
    numbers = entries("p_mm", target)
    for kind, path in paths.items():
        for x in watched:
            numbers |= _followed(data, path[:, starts.index(x)], target, f"{kind}/{x:g}")
    b = starts.index(watched[-1])
    return Outcome(numbers, _panels(data, paths, target, b, shown))


def _followed(data: Problems, path: Tensor, target: Tensor, key: str) -> dict[str, float]:
    mass = softmax(data, path)[..., 0].mean(1)
    at = [i for i in PRINTED_STEPS if i < len(path)]
    numbers = cosines(path, target, at, f"{key}/cos")
    for i in at:
        numbers[f"{key}/softmax/{i}"], numbers[f"{key}/norm/{i}"] = float(mass[i]), float(path[i].norm())
    return numbers


def _panels(data: Problems, paths: dict[str, Tensor], target: Tensor, b: int, shown: int) -> list[Panel]:
    selected = torch.zeros(data.keys.shape[1], dtype=torch.long)
    keys = data.keys[0].numpy()
    tokens = [
        Line(keys[:, 0, 0], keys[:, 0, 1], "selected tokens", "relaxed", "dots"),
        Line(keys[:, 1:, 0].ravel(), keys[:, 1:, 1].ravel(), "other tokens", "reference", "dots"),
    ]
    line = Line(*separating_line(data.keys[0], target, selected), "separating line", "reference", "dotted")
    tracks = [track(path[: shown + 1], color="attention") for path in paths["ngd"].unbind(1)]
    at = np.arange(shown + 1)
    seen = {"normalised": paths["ngd"][:, b], "plain": paths["gd"][:, b]}
    mass = [Line(at, softmax(data, p[: shown + 1])[..., 0].mean(1).numpy(), k) for k, p in seen.items()]
    norm = [Line(at, p[: shown + 1].norm(dim=1).numpy(), k) for k, p in seen.items()]
    naive = paths["naive/ngd"][:, b]
    lines = [(k, "", p, target, False) for k, p in seen.items()] + [
        ("normalised, naive float64", "", naive, target, True)
    ]
    return [
        Panel("paths, normalised steps", lines=[*tracks, *tokens, line, ray(target.numpy(), P_MM, "strict")],
              xlim=(-3, 14), ylim=(-3, 6)),
        Panel("softmax of token 0", "step", "mean", lines=mass),
        Panel("‖p‖", "step", lines=norm),
        gap_panel(f"gap to {P_MM}", lines),
    ]  # fmt: skip
