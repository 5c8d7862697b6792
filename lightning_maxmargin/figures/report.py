"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.figures.diagnosis import diagnosis, number_table
from lightning_maxmargin.figures.draw import draw_figures
from lightning_maxmargin.figures.examples import choose, counts, show
from lightning_maxmargin.figures.read import RERUN_HINT, RunFiles
from lightning_maxmargin.figures.text_report import text_context

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


class Figure(NamedTuple):
    """A figure of the page: its bytes as base64, and its caption."""

    image: str
    title: str
    caption: str


def write_report(run_dir: Path) -> Path:
    """Draws the figures into ``run_dir/figures`` and writes ``run_dir/report.html``, in one move.

    The page needs no network and runs no script; the figures lie in it.

    Args:
        run_dir: the directory of a finished run.

    Returns:
        The path of the page.

    Raises:
        InputError: it is no run directory, or one of its files is damaged.
    """
    run = RunFiles.load(run_dir)
    figures = [Figure(in_base64(path), *CAPTIONS[path.stem]) for path in draw_figures(run, run.run_dir / "figures")]
    page = run.run_dir / "report.html"
    # A lone surrogate, legal in JSON, has no UTF-8: it becomes a question mark.
    write_text(page, render(run, figures), errors="replace")
    return page


def render(run: RunFiles, figures: list[Figure]) -> str:
    """The page as text; everything that comes from the run is escaped."""
    versions = run.summary.get("versions")
    if not isinstance(versions, dict):
        versions = {"versions": versions} if versions else {}
    common = {
        "name": run.text("name") or run.run_dir.resolve().name,
        "message": run.text("message"),
        "figures": figures,
        "command": f"maxmargin fit --config {shlex.quote(str(run.run_dir / 'config.yaml'))} --run_dir NEW",
        "versions": versions,
        "config": run.config,
    }
    folder = Path(__file__).parent
    if run.corpus is not None:
        return fill_template(folder / "text_report.html", **common, **_text(run))
    return fill_template(
        folder / "report.html",
        **common,
        diagnosis=diagnosis(run),
        numbers=number_table(run),
        examples=[show(e) for e in choose(run.examples)] if run.examples else [],
        counts=counts(run.examples) if run.examples else "",
    )


def _text(run: RunFiles) -> dict[str, Any]:
    try:
        return text_context(run)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"corpus.json or test.json of {run.run_dir} is damaged ({type(error).__name__}: {error})"
        raise InputError(f"report: {what}; {RERUN_HINT}") from error


def fill_template(path: Path, **names: Any) -> str:
    """A page from its template, where every text that is put in is escaped and every name must be there."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(path.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["sha256"] = in_sha256
    return environment.get_template(path.name).render(**names)


def in_sha256(script: str) -> str:
    """The hash of a page's own script: a browser that is told of it runs no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def in_base64(picture: Path) -> str:
    """The bytes of a picture as they lie in a page; nothing where there is none."""
    return base64.b64encode(picture.read_bytes()).decode("ascii") if picture.is_file() else ""
