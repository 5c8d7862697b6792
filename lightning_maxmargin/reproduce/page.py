"""The page over all experiments, as one HTML file without network and as Markdown for docs."""

from __future__ import annotations

import platform
from pathlib import Path

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.figures.assets import fill_template, in_base64
from lightning_maxmargin.reproduce.run import COLUMNS, Finished
from lightning_maxmargin.run.directory import versions

#: Above the tables.
LEGEND = (
    "Columns: published is what the paper or its public code prints; ours comes from exact gradients; naive from "
    "autograd through softmax in the precision of the publication, where it was run; asked is the bound that ours is "
    "held against; holds says whether it is met."
)


def write_page(finished: list[Finished], out: Path, quick: bool) -> Path:
    """Writes ``reproduction.html`` and ``reproduction.md`` into the directory, and returns the first."""
    text = fill_template(
        Path(__file__).with_name("page.html"),
        summary=summary_text(finished, quick),
        legend=LEGEND,
        option=" --quick" if quick else "",
        columns=COLUMNS,
        finished=finished,
        picture=lambda f: in_base64(f.folder / "figure.png"),
        versions=versions(),
    )
    page = out / "reproduction.html"
    write_text(page, text)
    write_text(out / "reproduction.md", as_markdown(finished, quick))
    return page


def summary_text(finished: list[Finished], quick: bool) -> str:
    """How many claims hold, in how long, on what."""
    rows = [row for f in finished for row in f.rows]
    seconds = sum(f.seconds for f in finished)
    kind = "with the reduced settings of --quick" if quick else "with the full settings"
    return (
        f"{sum(r.holds for r in rows)} of {len(rows)} claims hold, {len(finished)} experiments {kind}, "
        f"{time_text(seconds)} on {platform.machine()}."
    )


def time_text(seconds: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def as_markdown(finished: list[Finished], quick: bool) -> str:
    """One section per experiment: table of claims, figure, what was counted, time and ratio to the public loop."""
    lines = [summary_text(finished, quick), "", *_costs(finished), LEGEND, ""]
    for f in finished:
        e = f.experiment
        lines += [
            f"## {e.title}",
            "",
            f"`maxmargin reproduce {e.name}{' --quick' if quick else ''}` · {e.source} · {cost_text(f)}",
            "",
        ]
        lines += ["| " + " | ".join(COLUMNS[1:]) + " |", "|" + "---|" * (len(COLUMNS) - 1)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells[1:]) + " |" for row in f.rows]
        lines += ["", *(f"- {note}" for note in f.outcome.notes), ""]
        if f.outcome.panels:
            lines += [f"![{e.title}]({e.name}/figure.png)", ""]
    return "\n".join(lines)


def _costs(finished: list[Finished]) -> list[str]:
    """A table of time and speed, with a link to each section."""
    lines = ["| experiment | claims that hold | seconds | times the public loop |", "|---|---|---|---|"]
    for f in finished:
        ratio = "" if f.outcome.loop_ratio is None else f"{f.outcome.loop_ratio:.0f}"
        held = f"{sum(r.holds for r in f.rows)} of {len(f.rows)}"
        lines.append(f"| {f.experiment.name} | {held} | {f.seconds:.0f} | {ratio} |")
    return [*lines, ""]


def cost_text(f: Finished) -> str:
    """Seconds, and the speed of training over the public loop where it was measured."""
    ratio = f.outcome.loop_ratio
    return f"{f.seconds:.1f} s" + ("" if ratio is None else f", {ratio:.0f} times the public loop")
