"""What a monitor shows in a notebook: its numbers with their meanings, and figures, with no directory of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.html_table import (
    STATUS_COLORS,
    block,
    details,
    faint,
    mark,
    number,
    paragraph,
    picture,
    table,
    words,
)
from lightning_maxmargin.keys import Value, find_key, registered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_maxmargin.figures.read import Metrics

NOTHING = "nothing measured yet: pl.Trainer(callbacks=[monitor]).fit(...) measures"


class Shown:
    """A monitor as a notebook shows it, and :meth:`plot`; a monitor says what its overview is and its main numbers.

    Attributes:
        headlines: keys that the table begins with; the others are behind a fold.
        curve: the key that :meth:`plot` draws into given axes where none is named.
    """

    last: dict[str, Value]
    history: list[dict[str, Any]]
    message: str
    headlines: ClassVar[tuple[str, ...]] = ()
    curve: ClassVar[str] = ""

    def plot(self, key: str | None = None, *, against: str | None = None, ax: Axes | None = None) -> Figure:
        """A figure of what was measured; a notebook shows it, and ``savefig`` writes it.

        Args:
            key: a number of :attr:`history`, or a panel of the overview by name; the overview where None.
            against: what a number is drawn against; the step where None.
            ax: axes of matplotlib to draw into; a figure of its own where None.

        Raises:
            InputError: nothing was measured, or not this.
        """
        from lightning_maxmargin.figures import style
        from lightning_maxmargin.figures.monitors import metrics_of

        if not self.history:
            raise InputError(f"{type(self).__name__}.plot: {NOTHING}")
        metrics = metrics_of(self.history)
        if key is None and ax is None and (whole := self.overview(metrics)) is not None:
            return whole
        panels = self.panels(metrics)
        name = key or next(iter(panels), self.curve)
        if against is not None or name not in panels:
            return self.draw_key(metrics, name, against, ax)
        own = ax is None
        ax = ax or style.new_figure(4.2).add_subplot()
        panels[name](ax)
        if not own and ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=style.SMALL, frameon=False)
        figure: Figure = ax.figure  # type: ignore[assignment]
        if own:
            style.suptitle(figure, f"{name.replace('_', ' ')}, step {int(metrics.step[-1]):,}")
        return figure

    def overview(self, metrics: Metrics) -> Figure | None:
        """The figure of :meth:`plot` without a key; None where there is nothing to draw."""
        return None

    def panels(self, metrics: Metrics) -> dict[str, Any]:
        """What can be drawn by name beside numbers: a function of axes each."""
        return {}

    def draw_key(self, metrics: Metrics, key: str, against: str | None, ax: Axes | None) -> Figure:
        """One number by its key."""
        from lightning_maxmargin.figures.monitors import draw_key

        return draw_key(metrics, key, against, ax)

    # --- as a page --------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Value]:
        """The latest, also of a monitor that a checkpoint has given its history."""
        return self.last or (self.history[-1] if self.history else {})

    def body(self) -> object:
        """What stands between the main numbers and the figure."""
        return ""

    def has_picture(self) -> bool:
        """Whether the overview belongs into the page."""
        return True

    def _repr_html_(self) -> str:
        name = type(self).__name__
        if not self.history:
            return block(name, paragraph(NOTHING))
        numbers, steps = self.numbers(), f"{len(self.history):,} evaluation{'s' if len(self.history) > 1 else ''}"
        rows = [number_row(key, numbers[key]) for key in self.headlines if numbers.get(key) is not None]
        message = paragraph(words(self.message)) if self.message else ""
        title = f"{name} at step {self.history[-1]['step']:,}, {steps}"
        return block(title, message, table(rows) if rows else "", self.body(), self._picture_in_page(), self._others())

    def _picture_in_page(self) -> object:
        from lightning_maxmargin.figures.monitors import metrics_of, png

        figure = self.overview(metrics_of(self.history)) if self.has_picture() else None
        return "" if figure is None else picture(png(figure), f"{type(self).__name__}: the figure of plot()")

    def _others(self) -> object:
        """The registered numbers that are no headline."""
        numbers = self.numbers()
        names = [key.name for key in registered() if key.name not in self.headlines]
        names += sorted(name for name in numbers if find_key(name) is None and name not in ("step", "epoch"))
        rows = [number_row(name, numbers[name]) for name in names if numbers.get(name) is not None]
        return details(f"{len(rows)} more numbers", table(rows)) if rows else ""


def number_row(name: str, x: Value) -> tuple[object, object, object]:
    """Name, value in the key's own format, and meaning."""
    from lightning_maxmargin.figures.diagnosis import FORMATS

    key = find_key(name)
    meaning = faint("" if key is None else key.meaning)
    if isinstance(x, int | float):
        shown: object = FORMATS[key.format](x) if key is not None and key.format in FORMATS else number(x)
    else:
        shown = mark(str(x), str(x)) if x in STATUS_COLORS else words(x)
    return name, shown, meaning
