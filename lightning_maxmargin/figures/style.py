"""One style for all figures: a fixed colour per limit, direct labels, no pyplot state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_maxmargin.atomic import whole
from lightning_maxmargin.figures.read import Array
from lightning_maxmargin.keys import ROUNDING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every common colour blindness; dashes repeat the difference in grey print.
COLORS = {
    "strict": "#D55E00",
    "relaxed": "#0072B2",
    "rate_coupled": "#009E73",
    "head": "#B8508E",
    "attention": "#222222",
    "entropy": "#8A6500",
    "reference": "#6B6B6B",
}
DASHES: dict[str, Any] = {
    "strict": (0, (5, 2)),
    "relaxed": (0, (2, 1.5)),
    "rate_coupled": (0, (7, 2, 1.5, 2)),
    "head": (0, (5, 2)),
}
NAMES = {k: k for k in ("strict", "relaxed", "head", "attention")} | {"rate_coupled": "rate-coupled"}
FLOOR = ROUNDING
# 8 inches at 160 dots: at 800 px on the screen a 10 point letter is 14 px high.
WIDTH, DPI = 8.0, 160
#: Of what a notebook shows, which has half of the dots.
SCREEN_DPI = 90
SMALL, TEXT, TITLE = 9.0, 10.0, 11.0


@cache
def _figure_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class PageFigure(Figure):
        """A figure that a notebook shows without pyplot, whose import alone tells it how to show matplotlib's."""

        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            width, height = self.get_size_inches()
            with io.BytesIO() as file:
                self.savefig(file, format="png", dpi=DPI)
                return file.getvalue(), {"width": round(width * SCREEN_DPI), "height": round(height * SCREEN_DPI)}

    return PageFigure


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A white figure on an Agg canvas, laid out so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_class()(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Writes it as its suffix says, in one move, so that a reader never meets half of it."""
    with whole(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=DPI)
    return path


def style_axes(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels, light grid, no box."""
    ax.set_title(title, fontsize=TEXT, loc="left")
    ax.set_xlabel(xlabel, fontsize=TEXT)
    ax.set_ylabel(ylabel, fontsize=TEXT)
    ax.tick_params(labelsize=SMALL)
    ax.grid(True, which="major", color="#E4E4E4", linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def suptitle(figure: Figure, text: str, columns: int = 2, notes: Sequence[str] = ()) -> None:
    """What is seen, under it one legend for all panels, where no line can pass through; notes in small print below."""
    found: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    # The suptitle is the legend's title: the layout keeps room for a legend and for the suptitle on the same spot.
    options: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "handlelength": 3.2, "columnspacing": 1.6}
    options |= {"title": text, "title_fontproperties": {"size": TITLE, "weight": "bold"}, "alignment": "left"}
    options |= {"loc": "outside upper left", "ncols": columns, "borderaxespad": 0.1}
    figure.legend(list(found.values()), list(found), **options)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=SMALL - 0.5, color="#444444", x=0.01, ha="left")


def result_of(figure: Figure) -> str:
    """What :func:`suptitle` says of the figure, with its notes."""
    titles = [legend.get_title().get_text() for legend in figure.legends]
    return ". ".join([*titles, *figure.get_supxlabel().split("\n")]).strip(". ")


def step_axis(ax: Axes, steps: Array) -> None:
    """A logarithmic step axis that still shows step 0."""
    from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

    positive = steps[steps > 0]
    if not len(positive):
        return
    first = 10.0 ** np.floor(np.log10(positive.min()))
    if positive.max() <= first * 3:
        return
    if (steps <= 0).any():
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
        ax.set_xlim(left=0)
        return
    ax.set_xscale("log")
    if positive.max() < 100 * positive.min():
        # Matplotlib would write 2 x 10^1, 3 x 10^1, ... over each other.
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))
        ax.xaxis.set_minor_formatter(NullFormatter())


def log_axis(ax: Axes, values: Array) -> None:
    """A logarithmic y axis with few enough ticks, at least two decades high."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = np.floor(np.log10(values.min()) - 0.1), np.ceil(np.log10(values.max()) + 0.1)
    if high - low < 2:
        low, high = low - 1, high + 1
    ax.set_yscale("log")
    ax.set_ylim(10.0**low, 10.0**high)
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())


def format_number(x: float | None) -> str:
    """Three digits; thousands in full: 0.0123, 1.67e-34, 12,345."""
    if x is None:
        return "—"
    if 999.5 <= abs(x) < 1e6:
        return f"{x:,.0f}"
    return f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def near_one(x: float) -> str:
    """0.786, or the distance from 1 where three digits would hide it: 1 − 8e-9."""
    if x == 1:
        return "1 (rounded)"
    if abs(1 - x) >= 1e-3:
        return f"{x:.3g}"
    return f"1 {'−' if x < 1 else '+'} {format_number(float(f'{abs(1 - x):.1g}'))}"


def floored(x: float) -> str:
    """A gap in digits, or that it is below what rounding allows to tell."""
    return format_number(x) if x >= FLOOR else f"below {FLOOR:g}"
