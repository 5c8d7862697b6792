"""One self-contained HTML page about a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.assets import in_base64
from lightning_maxmargin.figures.diagnosis import diagnosis, number_table
from lightning_maxmargin.figures.draw import Drawn, draw_with_results
from lightning_maxmargin.figures.examples import choose, counts, show
from lightning_maxmargin.figures.head_grid import heads_context
from lightning_maxmargin.figures.headline import heads_headline, theory_headline
from lightning_maxmargin.figures.page import Figure, fill_page
from lightning_maxmargin.figures.page_curves import panels_of
from lightning_maxmargin.figures.page_data import example_rows
from lightning_maxmargin.figures.read import RERUN_HINT, RunFiles
from lightning_maxmargin.figures.text_report import text_context
from lightning_maxmargin.figures.windows import shorten

CAPTIONS = {
    "paths": (
        "Paths in the plane",
        "The weights of the attention (and of the head) as they grow, cut off at norm 15, with the rays of the SVM "
        "directions dashed. Below or beside: the angle between path and ray over the whole run.",
    ),
    "ensemble": (
        "All instances",
        "Left: the share of instances that have converged, and of these the globally and the locally optimal. "
        "Right: the share of converged instances whose direction gap at the end is at most x.",
    ),
    "direction_gap": (
        "Distance from the limits",
        "How far each direction is from its SVM as the norm grows. A line that falls converges to that limit; one that "
        "levels off converges elsewhere.",
    ),
    "relative_margin": (
        "Margin reached",
        "The margin of the trained weights as a share of the best possible one, and what is missing to it.",
    ),
    "curves": (
        "Curves",
        "Loss, validation accuracy (dotted: mean pooling, without attention) and the median lead over documents, which "
        "says how stable their selections are. Of models that we compared, a larger one went with better rationales on "
        "two of three data sets.",
    ),
    "heads": (
        "Attention heads",
        "The margin of every head's attention as a share of the best one for what it selects; hatched where its SVM "
        "has no certified solution.",
    ),
    "selected_mass": (
        "Hardness of the selection",
        "The attention on the selected token and its entropy: in the limit one token of each input holds everything.",
    ),
}


#: The panel that the page's script draws in place of a figure, which then is for print and where no script runs.
REPLACED = {
    "curves": "Loss",
    "direction_gap": "Direction gap",
    "relative_margin": "Relative margin",
    "selected_mass": "Selection",
}
#: Characters of the config on the page, and of the message.
LONGEST_CONFIG, LONGEST_MESSAGE = 50_000, 1_000


def write_report(run_dir: Path) -> Path:
    """Draws the figures into ``run_dir/figures`` and writes ``run_dir/report.html``, in one move.

    The page needs no network and runs no script but its own; it takes at most 3 MB, whatever the documents.

    Args:
        run_dir: the directory of a finished run.

    Returns:
        The path of the page.

    Raises:
        InputError: it is no run directory, or one of its files is damaged.
    """
    run = RunFiles.load(run_dir)
    drawn = draw_with_results(run, run.run_dir / "figures")
    page = run.run_dir / "report.html"
    # A lone surrogate, legal in JSON, has no UTF-8: it becomes a question mark.
    write_text(page, render(run, drawn), errors="replace")
    return page


def render(run: RunFiles, drawn: list[Drawn]) -> str:
    """The page as text; everything that comes from the run is escaped."""
    versions = run.summary.get("versions")
    if not isinstance(versions, dict):
        versions = {"versions": versions} if versions else {}
    common = {
        "name": shorten(run.text("name") or run.run_dir.resolve().name, 300),
        "message": shorten(run.text("message"), LONGEST_MESSAGE),
        "command": f"maxmargin fit --config {shlex.quote(str(run.run_dir / 'config.yaml'))} --run_dir NEW",
        "versions": versions,
        "config": shorten(run.config, LONGEST_CONFIG),
        "numbers": number_table(run),
        "keys": [row.name for row in number_table(run)],
        "counts": counts(run.examples) if run.examples else "",
        "heads": heads_context(run.heads) if run.heads else None,
    }
    if run.corpus is not None:
        template, own = "text_report.html", _of_text(run)
        common["counts"] = str(common["counts"]).replace("example", "document")
    else:
        template, own = "report.html", _of_heads(run) if run.heads else _of_theory(run)
    titles = {panel["title"] for panel in own["panels"]}
    figures = [
        Figure(in_base64(path), *CAPTIONS[path.stem], result, REPLACED.get(path.stem) in titles)
        for path, result in drawn
        if not (run.heads and path.stem == "heads")  # the grid is in the page
    ]
    columns, rows = example_rows(run.examples)
    return fill_page(template, {**common, **own, "figures": figures}, columns, rows, [""])


def _of_theory(run: RunFiles) -> dict[str, Any]:
    return {
        "headline": theory_headline(run),
        "diagnosis": diagnosis(run),
        "examples": [show(e) for e in choose(run.examples)] if run.examples else [],
        "panels": panels_of(run),
    }


def _of_heads(run: RunFiles) -> dict[str, Any]:
    """Of a module of the user's own: what its monitor says is the outcome, and no warning."""
    said = shorten(run.text("message"), LONGEST_MESSAGE)
    return _of_theory(run) | {"headline": heads_headline(run), "diagnosis": [said] if said else [], "message": ""}


def _of_text(run: RunFiles) -> dict[str, Any]:
    try:
        return text_context(run) | {"panels": panels_of(run)}
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"corpus.json or test.json of {run.run_dir} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"report: {what}; {RERUN_HINT}") from error
