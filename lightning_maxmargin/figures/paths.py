"""Paths of p (or W z_i) and v for two-dimensional data, beside the directions of their SVMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_maxmargin.figures import style
from lightning_maxmargin.figures.read import Array, RunFiles
from lightning_maxmargin.figures.style import COLORS, DASHES, NAMES
from lightning_maxmargin.keys import LIMITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The path runs to norms of a million; what it does is seen in the first 15.
MAX_NORM_SHOWN = 15.0
# More paths than this hide one another.
MAX_PATHS_SHOWN = 6
READING = "○ tokens of label +1, △ of label −1; filled: selected. + origin. Arrows: the way of the training."
GREYS = ("#222222", "#7A7A7A", "#4A4A4A", "#9A9A9A", "#333333", "#8A8A8A")


def draw_paths(run: RunFiles) -> Figure | None:
    """The first steps in the plane, and the angle from the SVM's direction over all norms; None without data."""
    paths = run.paths
    if paths is None or len(paths["step"]) == 0 or paths["attention"].shape[1] == 0:
        return None
    head = "head" in paths
    figure = style.new_figure(7.6 if head else 4.7)
    axes = figure.subplots(2, 2, height_ratios=[1.5, 1]) if head else figure.subplots(1, 2, width_ratios=[1.25, 1])
    planes, angles = (axes[0], axes[1]) if head else (axes[:1], axes[1:])
    shown = paths["attention"][:, :MAX_PATHS_SHOWN]
    rays = {k: paths[f"svm/{k}"][:MAX_PATHS_SHOWN] for k in LIMITS if f"svm/{k}" in paths}
    q = paths["attention"].shape[1]
    name = "p" if q == 1 else "W z"
    _plane(planes[0], shown, rays, paths, f"attention: path of {name if q == 1 else 'W z for each input'}", name)
    _angles(angles[0], shown, rays, run.text("svm/limit"), name)
    if head:
        v, ray = paths["head"][:, None], {"head": paths["svm/head"][None]} if "svm/head" in paths else {}
        _plane(planes[1], v, ray, paths, "head: path of v", "v")
        _angles(angles[1], v, ray, "head", "v")
    if head:
        figure.get_layout_engine().set(hspace=0.06)  # type: ignore[union-attr, call-arg]
    notes = [f"The first {MAX_PATHS_SHOWN} of {q} paths are drawn."] if q > MAX_PATHS_SHOWN else []
    trained = "attention and head" if head else "the attention"
    norm = style.format_number(float(np.linalg.norm(paths["attention"][-1], axis=1).max()))
    title = f"The first steps of {trained}, and their angle up to norm {norm}"
    style.suptitle(figure, title, 5 if q == 1 else 4, [*notes, READING])
    return figure


def _window(path: Array, rays: dict[str, Array], tokens: Array) -> tuple[Array, float]:
    """Centre and half side of the square drawn: origin, tokens, the path's beginning and the rays beside it."""
    norms = np.linalg.norm(path, axis=2)
    reach = max(
        min(MAX_NORM_SHOWN, float(norms.max())), 1.2 * float(np.linalg.norm(tokens, axis=1).max(initial=0.0)), 1e-6
    )
    tips = [r / np.maximum(np.linalg.norm(r, axis=1, keepdims=True), 1e-300) * reach for r in rays.values()]
    points = np.concatenate([np.zeros((1, 2)), tokens, path[norms <= reach], *tips])
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, 0.5 * float((high - low).max()) * 1.12


def _plane(ax: Axes, path: Array, rays: dict[str, Array], paths: dict[str, Array], title: str, name: str) -> None:
    """Paths (m, q, 2), SVM rays (q, 2) and tokens in the plane."""
    from matplotlib.ticker import MaxNLocator

    tokens = paths.get("values", paths["keys"]) if name == "v" else paths["keys"]
    centre, side = _window(path, rays, tokens[paths["mask"]])
    for key, directions in rays.items():
        for i, w in enumerate(directions):
            if np.linalg.norm(w) > 0:
                end = w / np.linalg.norm(w) * (4 * side + MAX_NORM_SHOWN)
                label = f"{NAMES[key]} SVM" if i == 0 else None
                ax.plot([0, end[0]], [0, end[1]], label=label, **_ray_look(key))
    for i in range(path.shape[1]):
        label = "path" if path.shape[1] == 1 else f"path of {name}{_index(i + 1)}"
        ax.plot(path[:, i, 0], path[:, i, 1], color=GREYS[i], linewidth=1.5, label=label, zorder=3)
        _arrows(ax, path[:, i], min(MAX_NORM_SHOWN, float(np.linalg.norm(path, axis=2).max())), side, GREYS[i])
    _tokens(ax, tokens, paths)
    ax.plot(0, 0, "+", color="#000000", markersize=9, markeredgewidth=1.3, zorder=6)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.set_xlim(centre[0] - side, centre[0] + side)
    ax.set_ylim(centre[1] - side, centre[1] + side)
    style.style_axes(ax, title, "first coordinate", "second coordinate")


def _ray_look(key: str) -> dict[str, Any]:
    """Limits may coincide: thin ones on the thick one leave all seen."""
    width, zorder = (3.8, 1.8) if key == "relaxed" else (1.9, 1.9)
    return {"color": COLORS[key], "linestyle": DASHES[key], "linewidth": width, "zorder": zorder}


def _index(i: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(c)] for c in str(i))


def _arrows(ax: Axes, path: Array, reach: float, side: float, color: str) -> None:
    """Small arrow heads where the path crosses shares of the norms in view."""
    norms = np.linalg.norm(path, axis=1)
    for share in (0.3, 0.55, 0.8):
        level = share * reach
        after = np.flatnonzero((norms[1:] > level) & (norms[:-1] <= level))
        if not len(after):
            continue
        k = after[0]
        a, b = path[k], path[k + 1]
        # The head sits where the segment crosses: a long last step would carry it out of view.
        tip = a + (level - norms[k]) / (norms[k + 1] - norms[k]) * (b - a)
        tail = tip - (b - a) / np.linalg.norm(b - a) * 1e-3 * side
        arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.2, "mutation_scale": 11}
        ax.annotate("", tip, tail, arrowprops=arrow, zorder=4)


def _tokens(ax: Axes, tokens: Array, paths: dict[str, Array]) -> None:
    """Points of the data: the shape is the label, filled where selected."""
    for positive, marker in ((True, "o"), (False, "^")):
        rows = paths["labels"] > 0 if positive else paths["labels"] <= 0
        chosen = np.zeros(paths["mask"].shape, dtype=bool)
        chosen[np.arange(len(chosen)), paths["selected"]] = True
        for fill, which in ((False, ~chosen), (True, chosen)):
            points = tokens[rows[:, None] & paths["mask"] & which]
            marker_style: dict[str, Any] = {"marker": marker, "edgecolor": "#333333", "linewidth": 0.9}
            marker_style |= (
                {"facecolor": "#F0C419", "s": 30, "zorder": 7} if fill else {"facecolor": "white", "s": 20, "zorder": 5}
            )
            ax.scatter(points[:, 0], points[:, 1], **marker_style)


def _angles(ax: Axes, path: Array, rays: dict[str, Array], limit: str, name: str) -> None:
    """Signed angle from the nearest limit's ray against norm, over the whole run; other rays as level lines."""
    base = limit if limit in rays else next(iter(rays), None)
    zero = rays[base] if base else path[-1]
    norms = np.linalg.norm(path, axis=2)
    for key, directions in rays.items():
        for i, angle in enumerate(_degrees(directions, zero)):
            label = None if i else f"{NAMES[key]} SVM"
            ax.axhline(angle, label=label, **_ray_look(key))
    for i in range(path.shape[1]):
        keep = norms[:, i] > 0
        label = "path" if path.shape[1] == 1 else f"path of {name}{_index(i + 1)}"
        line_style: dict[str, Any] = {"color": GREYS[i], "linewidth": 1.6, "marker": "o" if keep.sum() == 1 else None}
        ax.plot(norms[keep, i], _degrees(path[keep, i], zero[i]), label=label, **line_style)
    if (norms > 0).any() and norms.max() > 3 * norms[norms > 0].min():
        ax.set_xscale("log")
    where = f"the {NAMES[base]} SVM" if base and base != "head" else "its SVM" if base else "its end"
    style.style_axes(ax, f"angle from {where}, whole run", f"norm of {name} (log)", "angle (degrees)")


def _degrees(a: Array, b: Array) -> Array:
    """Signed angle of a from b, in (-180, 180]."""
    cross = b[..., 0] * a[..., 1] - b[..., 1] * a[..., 0]
    return np.degrees(np.arctan2(cross, (a * b).sum(-1)))
