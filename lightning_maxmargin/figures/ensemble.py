"""The figure of an ensemble: where the instances went, and how far from their SVMs the converged ones are."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures import style
from lightning_maxmargin.figures.read import Array, Metrics, RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = {"settled": "attention", "global": "relaxed", "local": "strict", "neither": "reference"}
GAPS = ("strict", "relaxed", "rate_coupled", "head")


def draw_ensemble(run: RunFiles) -> Figure:
    """Shares against steps, and the distribution of the gaps at the end, of a run of an ensemble.

    Raises:
        InputError: ``instances.csv`` is damaged.
    """
    return ensemble_figure(run.metrics, read_gaps(run.run_dir / "instances.csv"))


def ensemble_figure(metrics: Metrics, gaps: dict[str, Array]) -> Figure:
    """The same of numbers.

    Args:
        metrics: of the shares.
        gaps: of the converged instances at the end, by limit.
    """
    figure = style.new_figure(4.2)
    left, right = figure.subplots(1, 2)
    _draw_shares(left, metrics)
    _draw_gaps(right, gaps)
    # Two legends: the same colours mean other things beside each other.
    left.legend(fontsize=style.SMALL, framealpha=0.8, edgecolor="none", loc="center right")
    right.legend(fontsize=style.SMALL, framealpha=0.8, edgecolor="none", loc="lower right")
    return figure


def _draw_shares(ax: Axes, metrics: Metrics) -> None:
    style.style_axes(ax, "share of instances", "step", "share")
    for name, color in SHARES.items():
        steps, share = metrics.series(f"ensemble/{name}")
        if len(steps):
            label = "converged" if name == "settled" else f"of these {name}"
            converged = metrics.series("ensemble/settled")[1]
            # Shares of nothing are no shares.
            share = share if name == "settled" else np.where(converged > 0, share, np.nan)
            marker = "o" if len(steps) == 1 else None
            ax.plot(steps, share, color=style.COLORS[color], linewidth=1.8, label=label, marker=marker)
            style.step_axis(ax, steps)
    ax.set_ylim(-0.02, 1.02)


def _draw_gaps(ax: Axes, gaps: dict[str, Array]) -> None:
    style.style_axes(ax, "converged: a gap of at most x", "direction gap at the end", "share")
    for name, x in gaps.items():
        if len(x):
            x = np.sort(np.maximum(x, style.FLOOR))
            label = f"{style.NAMES[name]} SVM, median {style.format_number(float(x[(len(x) - 1) // 2]))}"
            dash = style.DASHES[name] if name in ("rate_coupled", "head") else "-"
            share = np.arange(1, len(x) + 1) / len(x)
            ax.step(x, share, color=style.COLORS[name], linestyle=dash, linewidth=1.8, label=label, where="post")
    ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.02)


def read_gaps(path: Path) -> dict[str, Array]:
    """The finite gaps of the converged instances by limit, from ``instances.csv``; nothing where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        converged = [row for row in rows if row["settled"] == "1"]
        found = {}
        for name in GAPS:
            cells = [float(row.get(f"direction_gap/{name}") or "nan") for row in converged]
            found[name] = np.array([x for x in cells if math.isfinite(x)])
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"report: {path} is damaged: {error}; run `maxmargin fit` into a new --run_dir") from error
