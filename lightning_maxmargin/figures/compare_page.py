"""The page of ``maxmargin compare``: which run is better, and the documents where the two differ."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.curves import draw_panels
from lightning_maxmargin.figures.page import Figure, fill_page
from lightning_maxmargin.figures.page_curves import Panel, as_data, text_panels
from lightning_maxmargin.figures.page_data import Column, Reading, Row, rounded
from lightning_maxmargin.figures.read import read_metrics
from lightning_maxmargin.figures.style import result_of
from lightning_maxmargin.figures.windows import in_view, shorten, shown_name, visible
from lightning_maxmargin.figures.words import LONGEST_WORD, Shade, shades

if TYPE_CHECKING:
    from lightning_maxmargin.text.compare import Comparison

#: Documents of a page; those where the two differ come first.
MOST = 2_000
#: Documents that stand in the page as text.
STATIC = 10
#: By whether A and B are right; the order of the table.
OUTCOMES = {
    (True, False): "only A right",
    (False, True): "only B right",
    (False, False): "both wrong",
    (True, True): "both right",
}
COLUMNS = [
    Column("no.", "number", "number of the document in its file"),
    Column("label", "text", "the label of the document", True),
    Column("outcome", "outcome", "which of the two is right", True),
    Column("A", "text", "the label that A gives it", True),
    Column("B", "text", "the label that B gives it", True),
    Column("A's probability", "number", "of the label that A gives"),
    Column("B's probability", "number", "of the label that B gives"),
]


class Interval(NamedTuple):
    """A line of the table of numbers: a run or the difference, and each number with its interval."""

    name: str
    cells: list[str]


class Side(NamedTuple):
    """A document as one of the two reads it."""

    name: str
    words: list[Shade]


class Differing(NamedTuple):
    """A document that stands in the page as text."""

    number: int
    label: str
    outcome: str
    sides: list[Side]


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes the page of a comparison, whole or not at all: self-contained, at most 3 MB, no script but its own.

    Args:
        path: of the page, which is not there.
        comparison: of two runs on the same documents.

    Raises:
        OSError: it cannot be written.
    """
    # A lone surrogate has no UTF-8: it becomes a question mark.
    write_text(path, render(comparison), errors="replace")


def render(comparison: Comparison) -> str:
    """The page as text; everything that comes from the runs and documents is escaped."""
    found = comparison.found
    names = [f"{letter} {name}" for letter, name in zip("AB", found["runs"], strict=True)]
    panels, notes = _panels(comparison)
    order = _order(comparison)
    rows = [_row(comparison, i) for i in order[:MOST]]
    counts = _counts(comparison)
    context = {
        "name": f"{names[0]}, {names[1]}",
        "headline": [], "message": "", "keys": [],
        "sentences": found["sentences"],
        "intervals": intervals(found, names),
        "interval_columns": [name for name in ("accuracy", "AUPRC") if name.lower() in found],
        "outcomes": [(outcome, f"{counts[outcome]:,}") for outcome in OUTCOMES.values()],
        "documents_of": f"{found['documents']:,} documents of {visible(str(found['data']))}",
        "counts": f"{counts['only A right'] + counts['only B right']:,} of {len(order):,} documents only one of the "
        "two gets right; these come first",
        "not_listed": max(len(order) - MOST, 0),
        "panels": as_data(panels), "notes": notes, "figures": _figures(panels),
        "differing": [_differing(row, names) for row in rows[:STATIC]],
        "has_marks": any(reading.marked for row in rows for reading in row.readings),
    }  # fmt: skip
    return fill_page("compare.html", context, COLUMNS, rows, names)


def intervals(found: Mapping[str, Any], names: Sequence[str]) -> list[Interval]:
    """A, B and the difference, each number with its 95 % interval.

    Example:
        >>> both = {"mean": 0.5, "low": 0.25, "high": 0.75}
        >>> intervals({"accuracy": {"a": both, "b": both, "difference": both}}, ["A x", "B y"])[2]
        Interval(name='A − B', cells=['+0.500 [+0.250, +0.750]'])
    """
    parts = [found[name] for name in ("accuracy", "auprc") if name in found]
    lines = []
    for name, key in ((names[0], "a"), (names[1], "b"), ("A − B", "difference")):
        sign = "+" if key == "difference" else ""
        cells = ["{mean:{s}.3f} [{low:{s}.3f}, {high:{s}.3f}]".format(**part[key], s=sign) for part in parts]
        lines.append(Interval(name, cells))
    return lines


def _order(comparison: Comparison) -> list[int]:
    """The documents, those first that only one gets right."""
    at = {outcome: k for k, outcome in enumerate(OUTCOMES.values())}
    return sorted(range(len(comparison.measured[0].right)), key=lambda i: (at[_outcome(comparison, i)], i))


def _outcome(comparison: Comparison, i: int) -> str:
    a, b = (bool(measured.right[i]) for measured in comparison.measured)
    return OUTCOMES[a, b]


def _counts(comparison: Comparison) -> dict[str, int]:
    outcomes = [_outcome(comparison, i) for i in range(len(comparison.measured[0].right))]
    return {outcome: outcomes.count(outcome) for outcome in OUTCOMES.values()}


def _row(comparison: Comparison, i: int) -> Row:
    labels = comparison.documents.labels or []
    given, probabilities, readings = [], [], []
    for run, measured in zip(comparison.runs, comparison.measured, strict=True):
        pooled, words = measured.pooled[i], measured.words[i]
        weights = pooled.rationale("s").tolist()
        y = pooled.predicted
        evidence = (pooled.evidence[:, y] - pooled.evidence.mean(1)).tolist()
        heaviest = max(range(len(weights)), key=weights.__getitem__, default=0)
        readings.append(Reading(words, weights, evidence, measured.marks.get(i, ()), heaviest))
        given.append(shown_name(run.names[y]))
        probabilities.append(rounded(float(pooled.logits.softmax(0)[y])))
    return Row([i, shown_name(str(labels[i])), _outcome(comparison, i), *given, *probabilities], readings)


def _differing(row: Row, names: Sequence[str]) -> Differing:
    sides = []
    for name, given, reading in zip(names, row.cells[3:5], row.readings, strict=True):
        first, last = in_view(reading.words, reading.selected)
        drawn = shades(reading.words, reading.weights, reading.evidence or [])[first:last]
        short = [shade._replace(text=shorten(shade.text, LONGEST_WORD)) for shade in drawn]
        sides.append(Side(f"{name}: {given}", short))
    number, label, outcome = row.cells[:3]
    return Differing(number, label, outcome, sides)


def _panels(comparison: Comparison) -> tuple[list[Panel], list[str]]:
    """Curves of both in the same panels; a run whose metrics cannot be read is named."""
    metrics, notes = {}, []
    for letter, run in zip("AB", comparison.runs, strict=True):
        try:
            metrics[letter] = read_metrics(run.folder / "metrics.csv")
        except InputError as error:
            notes.append(f"No curves of {letter}: {error}")
    return text_panels(metrics) if metrics else [], notes


def _figures(panels: Sequence[Panel]) -> list[Figure]:
    if not panels:
        return []
    figure, stream = draw_panels(panels), BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    image = base64.b64encode(stream.getvalue()).decode("ascii")
    return [Figure(image, "Curves", "Loss, validation accuracy and median lead of both runs.", result_of(figure), True)]
