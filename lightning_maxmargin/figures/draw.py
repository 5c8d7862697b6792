"""The figures of a run: direction gap, relative margin, selected mass, and (in ``paths.py``) the paths of 2-d data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lightning_maxmargin.figures import style
from lightning_maxmargin.figures.curves import draw_curves
from lightning_maxmargin.figures.ensemble import draw_ensemble
from lightning_maxmargin.figures.heads import draw_heads
from lightning_maxmargin.figures.paths import draw_paths
from lightning_maxmargin.figures.read import Array, Metrics, RunFiles
from lightning_maxmargin.figures.style import COLORS, DASHES, FLOOR, NAMES
from lightning_maxmargin.keys import LIMITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOLID = "-"
#: x and y by name.
Series = dict[str, tuple[Array, Array]]
MASS = "attention/selected_mass"
MASS_LABELS = {MASS: "mass on the selected token", "attention/entropy": "entropy of the attention"}


class Drawn(NamedTuple):
    """A figure's file, and what it shows in a sentence."""

    path: Path
    result: str


def draw_figures(run: RunFiles, out: Path) -> list[Path]:
    """Draws every figure the run has data for, as PNG, 1,280 pixels wide.

    Args:
        run: the files of the run.
        out: the folder for ``paths.png``, ``ensemble.png``, ``direction_gap.png``, ``relative_margin.png`` and
            ``selected_mass.png``, or of a run on text ``curves.png``; ``heads.png`` where attention heads were watched.
            One of these left there by an earlier drawing and without data now is removed.

    Returns:
        The files drawn, in this order; a figure without data is not among them.

    Raises:
        OSError: the folder cannot be written.
    """
    return [drawn.path for drawn in draw_with_results(run, out)]


def draw_with_results(run: RunFiles, out: Path) -> list[Drawn]:
    """Draws every figure the run has data for, as PNG, and says what each shows.

    Args:
        run: the files of the run.
        out: as of :func:`draw_figures`.

    Returns:
        What was drawn, in the same order.

    Raises:
        OSError: the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    of_text = run.corpus is not None
    kinds: dict[str, Callable[[RunFiles], Figure | None] | None] = {
        "paths": draw_paths,
        "ensemble": draw_ensemble if run.metrics.has("ensemble/settled") else None,
        "direction_gap": draw_direction_gap,
        "relative_margin": draw_relative_margin,
        "selected_mass": draw_selected_mass,
    }
    # The limits describe no training on real text: there are the curves of any classifier instead.
    kinds = {name: None if of_text else draw for name, draw in kinds.items()}
    kinds["curves"] = draw_curves if of_text else None
    kinds["heads"] = lambda run: draw_heads(run.summary)
    drawn = []
    for name, draw in kinds.items():
        path = out / f"{name}.png"
        figure = draw(run) if draw else None
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            drawn.append(Drawn(style.save(figure, path), style.result_of(figure)))
    return drawn


def gap_lines(metrics: Metrics) -> list[tuple[str, str, Array, Array]]:
    """(colour key, label, norm, gap) of every line of the direction-gap figure."""
    lines = [(k, f"{NAMES[k]} SVM") for k in LIMITS if metrics.has(f"direction_gap/{k}")]
    keys = [(k, label, f"direction_gap/{k}", "norm/attention") for k, label in lines]
    if not keys:
        keys = [("attention", "attention SVM", "direction_gap/attention", "norm/attention")]
    keys.append(("head", "head SVM", "direction_gap/head", "norm/head"))
    found = [(k, label, *metrics.series(gap, against=norm)) for k, label, gap, norm in keys]
    return [(k, label, x[x > 0], y[x > 0]) for k, label, x, y in found if (x > 0).any()]


def draw_direction_gap(run: RunFiles) -> Figure | None:
    """Gap against norm on log-log axes, with the slope -2 that exact gradients show; None without data."""
    lines = gap_lines(run.metrics)
    if not lines:
        return None
    figure = style.new_figure(4.6)
    clipped = gap_panel(figure.add_subplot(), lines)
    note = f"{clipped:,} gaps below {FLOOR:g} are drawn at {FLOOR:g}: below, rounding is measured, not distance."
    style.suptitle(figure, _gap_title(lines), notes=[note] if clipped else [])
    return figure


def gap_panel(ax: Axes, lines: list[tuple[str, str, Array, Array]]) -> int:
    """Draws the gaps against the norms; returns how many are below what rounding allows to tell."""
    clipped = 0
    for key, label, x, y in lines:
        clipped += int((y < FLOOR).sum())
        # Relaxed and rate-coupled often coincide: the dashes on top let the line below be seen.
        dash = DASHES[key] if key in ("rate_coupled", "head") else SOLID
        line_style: dict[str, Any] = {"color": COLORS[key], "linestyle": dash, "linewidth": 1.8}
        line_style |= {"linewidth": 3.6, "zorder": 1.9} if key == "relaxed" else {}
        label = f"{label}: ends {'at ' if y[-1] >= FLOOR else ''}{style.floored(float(y[-1]))}"
        ax.plot(x, np.maximum(y, FLOOR), marker="o" if len(x) == 1 else None, label=label, **line_style)
    _slope(ax, lines)
    style.log_axis(ax, np.maximum(np.concatenate([y for *_, y in lines]), FLOOR))
    if max(x.max() for *_, x, _ in lines) > 3 * min(x.min() for *_, x, _ in lines):
        ax.set_xscale("log")
    scale = " (log)" if ax.get_xscale() == "log" else ""
    norms = f"norm: of p or W for the attention, of v for the head{scale}"
    style.style_axes(ax, "", norms, "direction gap, ½‖u − w‖² = 1 − cos (log)")
    return clipped


def _gap_title(lines: list[tuple[str, str, Array, Array]]) -> str:
    ends = {label.removesuffix(" SVM"): max(float(y[-1]), FLOOR) for key, label, _, y in lines if key != "head"}
    if not ends:
        return "Distance of the head's direction from its SVM"
    low = min(ends.values())
    # Limits that coincide differ by rounding alone: both are named.
    best = [name for name, gap in ends.items() if gap <= 2 * low]
    names = ", ".join(best[:-1]) + " and " + best[-1] if len(best) > 1 else best[0]
    end = style.format_number(low) if low > FLOOR else f"below {FLOOR:g}"
    return f"The attention ends nearest the {names} SVM{'s' if len(best) > 1 else ''}: gap {end}"


def _slope(ax: Axes, lines: list[tuple[str, str, Array, Array]]) -> None:
    """A grey line of slope -2 above the lowest curve of the attention, over the norms where it stays in view."""
    *_, x, y = min(lines, key=lambda line: (line[0] == "head", float(line[3][-1])))
    seen = y >= FLOOR
    if seen.sum() < 3 or x.max() < 30:
        return
    late = seen & (x >= np.sqrt(x[seen].min() * x[seen].max()))
    # 5 times the curve at its end, or, where it falls below sight, at the start of its later half.
    at = int(np.flatnonzero(late)[-1 if seen[-1] else 0])
    level = 5 * float(y[at]) * float(x[at]) ** 2
    start = max(float(x[late].min()), float(np.sqrt(level / 0.3)))
    stop = min(float(x.max()), float(np.sqrt(level / (30 * FLOOR))))
    if stop < 3 * start:
        return
    grid = np.array([start, stop])
    line_style: dict[str, Any] = {"color": COLORS["reference"], "linewidth": 1.2, "linestyle": (0, (1, 1.5))}
    ax.plot(grid, level / grid**2, label="slope −2: gap ∝ 1 / norm²", **line_style)


def draw_relative_margin(run: RunFiles) -> Figure | None:
    """Achieved over optimal margin against step, and what is missing to 1 on a log axis; None without data."""
    series = margin_series(run.metrics)
    if not series:
        return None
    figure = style.new_figure(4.0)
    left, right = figure.subplots(1, 2)
    negative, reached = margin_panel(left, series), []
    for key, (x, y) in series.items():
        reached += _missing(right, x, 1 - y, f"1 − relative margin of the {NAMES[key]}", _margin_style(key))
    _finish(right, "what is missing to 1", "1 − relative margin (log)", series)
    ends = ", ".join(f"{NAMES[k]} {style.near_one(float(y[-1]))}" for k, (_, y) in series.items())
    notes = [f"▽ {negative:,} negative margins, drawn at 0: some row is still on the wrong side."] if negative else []
    style.suptitle(figure, f"Margin over the SVM's margin, at the end: {ends}", notes=notes + reached)
    return figure


def margin_series(metrics: Metrics) -> Series:
    """Steps and relative margins of attention and head, as far as there are any."""
    return _series(metrics, {k: f"relative_margin/{k}" for k in ("attention", "head")})


def _series(metrics: Metrics, keys: dict[str, str]) -> Series:
    found = {name: metrics.series(key) for name, key in keys.items()}
    return {name: s for name, s in found.items() if len(s[0])}


def _margin_style(key: str) -> dict[str, Any]:
    return {"color": COLORS[key], "linewidth": 1.9, "linestyle": "--" if key == "head" else SOLID}


def margin_panel(left: Axes, series: Series) -> int:
    """Draws the relative margins; returns how many are negative."""
    negative = 0
    for key, (x, y) in series.items():
        low = y < 0
        negative += int(low.sum())
        line_style = _margin_style(key)
        left.plot(x, np.maximum(y, 0), label=NAMES[key], marker="o" if len(x) == 1 else None, **line_style)
        if low.any():
            mark: dict[str, Any] = {"marker": "v", "markersize": 4, "color": COLORS[key], "markerfacecolor": "white"}
            left.plot(x[low], np.zeros(low.sum()), linestyle="none", clip_on=False, **mark)
    left.axhline(1, color=COLORS["reference"], linewidth=1, linestyle=(0, (1, 1.5)))
    left.set_ylim(-0.02, max(1.1, min(1.5, max(float(y.max()) for _, y in series.values()) * 1.05)))
    # Above the highest curve's line at 1, inside the axes.
    text_style: dict[str, Any] = {"transform": left.get_yaxis_transform(), "fontsize": style.SMALL, "color": "#444444"}
    left.text(0.02, 1.015, "optimum", va="bottom", **text_style)
    _finish(left, "relative margin", "achieved / optimal margin", series)
    return negative


def _missing(ax: Axes, x: Array, y: Array, name: str, line_style: dict[str, Any]) -> list[str]:
    """Draws 1 - something on a log axis while it is positive; says from where on rounding has taken it."""
    keep = y >= FLOOR
    if keep.any():
        ax.plot(x[keep], y[keep], marker="o" if keep.sum() == 1 else None, **line_style)
    last = np.flatnonzero(keep)[-1] if keep.any() else -1
    return [f"{name} is below {FLOOR:g} from step {int(x[last + 1]):,} on."] if last + 2 < len(x) else []


def _finish(ax: Axes, title: str, ylabel: str, series: dict[str, tuple[Array, Array]]) -> None:
    """Axes common to the figures over steps."""
    style.step_axis(ax, np.concatenate([x for x, _ in series.values()]))
    style.style_axes(ax, title, "training step" + ("" if ax.get_xscale() == "linear" else " (log)"), ylabel)
    if "(log)" in ylabel:
        values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()] or [np.zeros(0)])
        if len(values):
            style.log_axis(ax, values)
        else:
            ax.text(0.5, 0.5, "nothing left to show", transform=ax.transAxes, ha="center", fontsize=style.TEXT)


def draw_selected_mass(run: RunFiles) -> Figure | None:
    """Attention on the selected token and entropy against step, and both on a log axis; None without data."""
    series = mass_series(run.metrics)
    if not series:
        return None
    figure = style.new_figure(4.0)
    left, right = figure.subplots(1, 2)
    mass_panel(left, series)
    notes = []
    for key, (x, y) in series.items():
        mass = key == MASS
        notes += _missing(right, x, 1 - y if mass else y, "1 − mass" if mass else "entropy", _mass_style(key))
    _finish(right, "what is missing to a hard selection", "1 − mass;  entropy (log)", series)
    end = series.get(MASS)
    what = "Attention on the selected token, at the end: "
    title = what + style.near_one(float(end[1][-1])) if end else "Entropy of the attention"
    style.suptitle(figure, title, notes=notes)
    return figure


def mass_series(metrics: Metrics) -> Series:
    """Steps, mass on the selected token and entropy, as far as there are any."""
    return _series(metrics, {key: key for key in MASS_LABELS})


def _mass_style(key: str) -> dict[str, Any]:
    color, dash = (COLORS["attention"], SOLID) if key == MASS else (COLORS["entropy"], "--")
    return {"color": color, "linewidth": 1.9, "linestyle": dash}


def mass_panel(ax: Axes, series: Series) -> None:
    """Draws mass and entropy."""
    for key, (x, y) in series.items():
        ax.plot(x, y, label=MASS_LABELS[key], marker="o" if len(x) == 1 else None, **_mass_style(key))
    ax.set_ylim(bottom=0, top=max(1.08, *(float(y.max()) * 1.1 for _, y in series.values())))
    _finish(ax, "mass and entropy", "mass (share);  entropy (nats)", series)
