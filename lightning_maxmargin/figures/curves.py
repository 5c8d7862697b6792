"""The curves of a run on text: loss, accuracy and median lead over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_maxmargin.figures import style
from lightning_maxmargin.figures.page_curves import Panel
from lightning_maxmargin.figures.read import RunFiles
from lightning_maxmargin.figures.style import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "loss": (("train/loss", "training", "strict", "-"), ("val/loss", "validation", "relaxed", "--")),
    "validation accuracy": (("val/accuracy", "validation", "relaxed", "--"),),
    "median lead": (("margin/median_lead", "training", "strict", "-"),),
}
YLABELS = {"loss": "mean cross entropy", "validation accuracy": "share right", "median lead": "lead / norm of p"}


def draw_curves(run: RunFiles) -> Figure | None:
    """Training and validation loss, validation accuracy beside mean pooling's, median lead; None without data."""
    panels = {title: lines for title, lines in PANELS.items() if any(run.metrics.has(key) for key, *_ in lines)}
    if not panels:
        return None
    figure = style.new_figure(3.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for key, label, color, dash in lines:
            _line(ax, run, key, label, {"color": COLORS[color], "linestyle": dash, "linewidth": 1.9})
        if title == "validation accuracy":
            _mean_pool(ax, run)
        style.style_axes(ax, title, "training step", YLABELS[title])
        ax.margins(x=0.03, y=0.12)
    style.suptitle(figure, _title(run), columns=3)
    return figure


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """The panels of a page side by side, for print and where no script runs."""
    figure = style.new_figure(3.4)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in panel.lines:
            look: dict[str, Any] = {"color": COLORS[line.color], "linestyle": "--" if line.dash else "-"}
            ax.plot(line.x, line.y, label=line.label, linewidth=1.9, marker="o" if len(line.x) <= 5 else None, **look)
        style.style_axes(ax, panel.title.lower(), panel.xlabel, panel.ylabel)
        ax.margins(x=0.03, y=0.12)
    ends = [f"{line.label} {line.y[-1]:.3g}" for panel in panels[-1:] for line in panel.lines]
    style.suptitle(figure, f"{panels[-1].title} at the end: {', '.join(ends)}", columns=4)
    return figure


def _line(ax: Axes, run: RunFiles, key: str, label: str, line_style: dict[str, Any]) -> None:
    x, y = run.metrics.series(key)
    if len(x):
        ax.plot(x, y, label=label, marker="o" if len(x) <= 5 else None, markersize=4, **line_style)


def _mean_pool(ax: Axes, run: RunFiles) -> None:
    pool = (run.corpus or {}).get("mean_pool")
    if pool:
        ax.axhline(
            pool["accuracy"]["val"], color=COLORS["reference"], linewidth=1.6, linestyle=(0, (1, 1.5)),
            label="mean pooling",
        )  # fmt: skip


def _title(run: RunFiles) -> str:
    x, y = run.metrics.series("val/accuracy")
    if not len(y):
        return "Training"
    best = int(y.argmax())
    text = f"Validation accuracy ends at {y[-1]:.3f}"
    return text if y[best] <= y[-1] else f"{text}; it was {y[best]:.3f} at step {int(x[best]):,}"
