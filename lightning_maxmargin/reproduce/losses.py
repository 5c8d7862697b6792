"""Two sequences of different scores: the loss moves the path sideways by a constant, never its direction."""

from __future__ import annotations

import numpy as np
import torch

from lightning_maxmargin.core.losses import LOSSES, MarginLoss
from lightning_maxmargin.reproduce.experiment import Outcome, ProgressCallback
from lightning_maxmargin.reproduce.panel import Line, Panel, curve, ray
from lightning_maxmargin.reproduce.paths import cosine, record, track
from lightning_maxmargin.reproduce.problems import Problems

NAMES = {"correlation": "−u", "logistic": "logistic", "exponential": "exponential"}
DRAWN_SCORES = (1, 2, 5, 10, 100)


def losses(
    progress: ProgressCallback,
    scores: list[float],
    steps: int = 2000,
    naive_steps: int = 2000,
    lr: float = 0.1,
    shown: int = 200,
) -> Outcome:
    """p from 0 by normalised steps, for every loss and every score C of the first input (the second scores 1).

    A step of constant length shrinks p_2's distance from its limit by the factor 1 - lr: a plain step would shrink as
    the gradient does and p_2 would never arrive.

    Args:
        scores: the C.
        steps: of exact gradients.
        naive_steps: of naive float64 gradients.
        lr: of both.
        shown: steps in the picture.

    Returns:
        ``offset/LOSS/C``, p_2 at the end, also ``naive/`` of it; ``error/LOSS``, the largest distance from
        .5 ln(C l'(C) / l'(1)); ``cos/LOSS/C`` with (1, 0).
    """
    numbers: dict[str, float] = {}
    panels: list[Panel] = []
    p0 = torch.zeros(1, 2).double()
    for loss, name in NAMES.items():
        tracks = []
        for c in scores:
            data = Problems.of("losses", score=c)
            p = record(data.exact(p0, attention_lr=lr, loss=loss), steps)[0][:, 0]
            naive = data.naive(p0, attention_lr=lr, loss=loss)
            naive.run(naive_steps)
            key = f"{loss}/{c:g}"
            numbers[f"offset/{key}"], numbers[f"naive/offset/{key}"] = float(p[-1, 1]), float(naive.attention[1, 0])
            numbers[f"limit/{key}"] = _offset(loss, c)
            numbers[f"cos/{key}"] = cosine(p[-1], torch.tensor([1.0, 0.0]))
            numbers[f"naive/cos/{key}"] = cosine(naive.attention[:, 0], torch.tensor([1.0, 0.0]))
            if c in DRAWN_SCORES:
                tracks.append(track(p[: shown + 1], f"C = {c:g}"))
        for kind in ("", "naive/"):
            off = [abs(numbers[f"{kind}offset/{loss}/{c:g}"] - numbers[f"limit/{loss}/{c:g}"]) for c in scores]
            numbers[f"{kind}error/{loss}"] = max(off)
        limit = ray(np.array([1.0, 0.0]), "direction (1, 0)", "reference")
        panels.append(Panel(f"loss {name}", "p₁", "p₂", lines=[*tracks, limit], xlim=(-2, 12), ylim=(-6, 6)))
        progress(len(panels) / 3)
    return Outcome(numbers, [*panels, *_offsets(numbers, scores)])


def _offset(loss: str, c: float) -> float:
    chosen = LOSSES[loss]
    assert isinstance(chosen, MarginLoss)
    low, high = chosen.log_slope(torch.tensor([1.0, c]).double()).tolist()
    return 0.5 * (np.log(c) + high - low)


def _offsets(numbers: dict[str, float], scores: list[float]) -> list[Panel]:
    panel = Panel("offset at the end; dotted: ½ ln(C l′(C) / l′(1))", "C", "p₂", xlim=(0.5, 10.5), ylim=(-4, 2))
    error = Panel("distance from that limit", "C", "|p₂ − limit|", log="xy")
    c = np.array(scores)
    at = np.geomspace(1, 10, 100)
    # At C = 1 the data are symmetric and p₂ stays 0.
    some = c > 1
    for color, (loss, name) in zip(("strict", "relaxed", "head"), NAMES.items(), strict=True):
        limit = curve(numbers, f"limit/{loss}", scores, "").y
        dots = curve(numbers, f"offset/{loss}", scores, name, color, "dots")
        panel.lines += [Line(at, np.array([_offset(loss, x) for x in at]), "", color, "dotted"), dots]
        naive = curve(numbers, f"naive/offset/{loss}", scores, "").y
        for p2, label, kind in ((dots.y, "exact", "line"), (naive, "naive float64", "dashed")):
            error.lines.append(Line(c[some], np.abs(p2 - limit)[some] + 1e-17, f"{name}, {label}", color, kind))  # type: ignore[arg-type]
    return [panel, error]
