"""The curves of a page as its script draws them: the same lines as the figures, to be read point by point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_maxmargin.figures.read import Array, Metrics, RunFiles
from lightning_maxmargin.figures.style import FLOOR, NAMES
from lightning_maxmargin.keys import LIMITS
from lightning_maxmargin.keys_of_heads import short_names

#: Colours of ``page.css`` that lines of layers have.
COLORED = ("relaxed", "strict", "rate_coupled", "head", "entropy", "attention", "reference")
#: Points of a panel: more are closer together than the pixels of a screen.
POINTS = 800


class Line(NamedTuple):
    """A line of a panel: colour is a name of ``page.css``."""

    label: str
    color: str
    dash: bool
    x: Array
    y: Array


class Panel(NamedTuple):
    """Lines over a common axis."""

    title: str
    xlabel: str
    ylabel: str
    log_x: bool
    log_y: bool
    lines: list[Line]


def text_panels(runs: Mapping[str, Metrics], pools: Mapping[str, float | None] | None = None) -> list[Panel]:
    """Loss, validation accuracy and median lead of one or several runs on text; no panel of single points.

    Args:
        runs: metrics by the name that the legend has; an empty name is left out of it.
        pools: validation accuracy of mean pooling by the same names.
    """
    wanted = {
        "Loss": ("mean cross entropy", {"training": "train/loss", "validation": "val/loss"}),
        "Validation accuracy": ("share right", {"validation": "val/accuracy"}),
        "Median lead": ("lead / norm of p", {"training": "margin/median_lead"}),
    }
    panels = []
    for title, (ylabel, keys) in wanted.items():
        lines = [
            Line(f"{name} {of}".strip(), _color(at, of, len(runs)), of == "validation" and len(keys) > 1, *found)
            for at, (name, metrics) in enumerate(runs.items())
            for of, key in keys.items()
            if len((found := metrics.series(key))[0])
        ]
        if title == "Validation accuracy" and lines:
            lines += _pools(pools or {}, lines)
        if any(len(line.x) > 1 for line in lines):
            panels.append(Panel(title, "training step", ylabel, False, False, lines))
    return panels


def _color(at: int, of: str, runs: int) -> str:
    if runs > 1:
        return ("strict", "relaxed")[at % 2]
    return "relaxed" if of == "validation" else "strict"


def _pools(pools: Mapping[str, float | None], lines: Sequence[Line]) -> list[Line]:
    ends = np.array([min(line.x[0] for line in lines), max(line.x[-1] for line in lines)])
    return [
        Line(f"{name} mean pooling".strip(), "reference", True, ends, np.full(2, value))
        for name, value in pools.items()
        if value is not None
    ]


def theory_panels(metrics: Metrics) -> list[Panel]:
    """Direction gaps over the norm, and margins, hardness and loss over the steps; a panel without data is left out."""
    gaps = [
        _line(metrics, f"direction_gap/{k}", f"{NAMES[k]} SVM", k, "norm/attention", k == "rate_coupled")
        for k in LIMITS
    ]
    gaps.append(_line(metrics, "direction_gap/head", "head SVM", "head", "norm/head", True))
    margins = [_line(metrics, f"relative_margin/{k}", k, k, None, k == "head") for k in ("attention", "head")]
    hard = [
        _line(metrics, "attention/selected_mass", "mass on the selected token", "attention"),
        _line(metrics, "attention/entropy", "entropy of the attention", "entropy", None, True),
    ]
    loss = [_line(metrics, "train/loss", "training loss", "strict")]
    norm = "norm of the weights (log)"
    panels = [
        Panel("Direction gap", norm, "½‖u − w‖² (log)", True, True, gaps),
        _over_steps("Relative margin", "achieved / optimal margin", False, margins),
        _over_steps("Selection", "share; nats", False, hard),
        _over_steps("Loss", "mean loss (log)", True, loss),
    ]
    return [kept for kept in map(_drawable, panels) if any(len(line.x) > 1 for line in kept.lines)]


def _line(metrics: Metrics, key: str, label: str, color: str, over: str | None = None, dash: bool = False) -> Line:
    return Line(label, color, dash, *metrics.series(key, over))


def _over_steps(title: str, ylabel: str, log_y: bool, lines: list[Line]) -> Panel:
    """Over the logarithm of the step where the steps reach over more than two decades, as in the figures."""
    steps = np.concatenate([line.x[line.x > 0] for line in lines])
    is_long = len(steps) > 0 and steps.max() > 100 * steps.min()
    return Panel(title, "training step (log)" if is_long else "training step", ylabel, bool(is_long), log_y, lines)


def _drawable(panel: Panel) -> Panel:
    """Without what a logarithmic axis cannot show; a gap below rounding is drawn there."""
    lines = []
    for line in panel.lines:
        there = (line.x > 0) if panel.log_x else np.ones(len(line.x), dtype=bool)
        y = np.maximum(line.y, FLOOR) if panel.log_y else line.y
        lines.append(line._replace(x=line.x[there], y=y[there]))
    return panel._replace(lines=[line for line in lines if len(line.x)])


def as_data(panels: Iterable[Panel]) -> list[dict[str, Any]]:
    """The panels for JSON: of each one list of x, and of each line its y there, null in between.

    Example:
        >>> line = Line("loss", "strict", False, np.array([0.0, 5.0]), np.array([2.0, 1.0]))
        >>> as_data([Panel("Loss", "step", "loss", False, False, [line])])[0]["data"]
        [[0.0, 5.0], [2.0, 1.0]]
    """
    found = []
    for panel in panels:
        lines = [_thinned(line, POINTS) for line in panel.lines]
        xs = np.unique(np.concatenate([line.x for line in lines]))
        columns = [_numbers(xs)]
        for line in lines:
            y = np.full(len(xs), np.nan)
            y[np.searchsorted(xs, line.x)] = line.y
            columns.append(_numbers(y))
        found.append({
            "title": panel.title, "x": panel.xlabel, "y": panel.ylabel, "logX": panel.log_x, "logY": panel.log_y,
            "lines": [{"label": line.label, "color": line.color, "dash": line.dash} for line in lines],
            "data": columns,
        })  # fmt: skip
    return found


def _thinned(line: Line, most: int) -> Line:
    if len(line.x) <= most:
        return line
    at = np.unique(np.linspace(0, len(line.x) - 1, most).round().astype(int))
    return line._replace(x=line.x[at], y=line.y[at])


def _numbers(values: Array) -> list[float | None]:
    return [float(f"{x:.5g}") if np.isfinite(x) else None for x in values.tolist()]


def heads_panels(metrics: Metrics) -> list[Panel]:
    """Loss and accuracy that a module of the user's own has logged, and medians over the heads of its layers."""
    given = [
        ("Loss", "mean loss", _named(metrics, {"train/loss": "training", "val/loss": "validation"})),
        ("Accuracy", "share right", _named(metrics, {"train/accuracy": "training", "val/accuracy": "validation"})),
        ("Relative margin", "median over heads", _of_layers(metrics, "relative_margin/attention")),
        ("Selection", "attention on the selected token", _of_layers(metrics, "attention/selected_mass")),
    ]
    return [Panel(title, "training step", label, False, False, lines) for title, label, lines in given if lines]


def _named(metrics: Metrics, names: Mapping[str, str]) -> list[Line]:
    lines = [_line(metrics, key, label, _color(0, label, 1)) for key, label in names.items()]
    return [line for line in lines if len(line.x)]


def _of_layers(metrics: Metrics, key: str) -> list[Line]:
    """Of at most as many layers as there are colours, evenly; a point alone is no curve."""
    ending = f"/median/{key}"
    layers = [name.removesuffix(ending) for name in metrics.columns if name.endswith(ending)]
    chosen = [layers[round(i * (len(layers) - 1) / (len(COLORED) - 1))] for i in range(len(COLORED))] if layers else []
    chosen = layers if len(layers) <= len(COLORED) else chosen
    short = short_names(layers)
    lines = [_line(metrics, layer + ending, short[layer], c) for layer, c in zip(chosen, COLORED, strict=False)]
    return [line for line in lines if len(line.x) > 1]


def panels_of(run: RunFiles) -> list[dict[str, Any]]:
    """The curves of a run's page."""
    if run.heads is not None:
        return as_data(heads_panels(run.metrics))
    if run.corpus is None:
        return as_data(theory_panels(run.metrics))
    pool = run.corpus["mean_pool"]
    return as_data(text_panels({"": run.metrics}, {"": pool["accuracy"]["val"]} if pool else None))
