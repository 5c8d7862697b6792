"""One sequence, a given head: which starts end at the global max-margin direction and which at a local one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Panel, ray
from lightning_maxmargin.reproduce.paths import cosine, entries, gap_panel, record, track
from lightning_maxmargin.reproduce.problems import Problems

LIMITS = ("gmm", "lmm")
COLORS = {"gmm": "relaxed", "lmm": "strict"}


def single(
    progress: ProgressCallback,
    example: Literal["single_global", "single_local"],
    starts: list[float],
    xlim: tuple[float, float],
    steps: int = 1000,
    lr: float = 0.1,
    shown: int = 200,
) -> Outcome:
    """p by normalised steps from p(0) = (0, y) for several y.

    Args:
        example: ``single_global`` or ``single_local``.
        starts: the y.
        xlim: of the picture.
        steps: of exact and of naive float64 gradients.
        lr: of both.
        shown: steps in the picture.

    Returns:
        ``gmm`` and ``lmm`` by entry; ``selected/Y`` of start Y; ``cos/Y`` with the limit of the selected token at the
        end and ``cos/Y/200`` at step 200; ``at/gmm`` and ``at/lmm``, runs that end within 1 - cos of 1e-3.
    """
    from lightning_maxmargin.svm import solve_att_svm

    data = Problems.of(example)
    limits = {name: solve_att_svm(data.keys[0], torch.tensor([i])).direction for i, name in enumerate(LIMITS)}
    p0 = torch.tensor([[0.0, y] for y in starts]).double()
    exact = data.exact(p0, attention_lr=lr)
    p, _ = record(exact, steps)
    progress(0.5)
    naive, _ = record(data.naive(p0, attention_lr=lr), steps)
    selected = exact.selected()[:, 0].tolist()
    numbers = entries("gmm", limits["gmm"]) | entries("lmm", limits["lmm"])
    numbers |= {f"selected/{y:g}": token for y, token in zip(starts, selected, strict=True)}
    numbers |= _cosines("", p, starts, selected, limits, shown) | _cosines(
        "naive/", naive, starts, selected, limits, shown
    )
    tracks = [track(p[: shown + 1, b], color=COLORS[LIMITS[token]]) for b, token in enumerate(selected)]
    used = LIMITS if 1 in selected else LIMITS[:1]
    rays = [ray(limits[name].numpy(), name.upper(), COLORS[name]) for name in used]
    lines = [
        (f"p(0) = (0, {y:g})", "", p[:, b], limits[LIMITS[token]], token == 1)
        for b, (y, token) in enumerate(zip(starts, selected, strict=True))
    ]
    panels = [
        Panel("paths, exact gradients", "p₁", "p₂", lines=[*tracks, *rays], xlim=xlim, ylim=(-2, 10)),
        gap_panel("gap to the limit of the selected token", lines),
    ]
    return Outcome(numbers, panels)


def _cosines(
    prefix: str, path: Tensor, starts: list[float], selected: list[int], limits: dict[str, Tensor], early: int
) -> dict[str, float]:
    numbers = {}
    for b, (y, token) in enumerate(zip(starts, selected, strict=True)):
        for suffix, at in (("", -1), (f"/{early}", early)):
            numbers[f"{prefix}cos/{y:g}{suffix}"] = cosine(path[at, b], limits[LIMITS[token]])
    for name, limit in limits.items():
        numbers[f"{prefix}at/{name}"] = sum(cosine(w, limit) > 1 - 1e-3 for w in path[-1])
    return numbers
