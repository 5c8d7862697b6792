"""Runs experiments: figure, claims and numbers of each into its own folder, one table and one page over all."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lightning_maxmargin.reproduce.draw import draw_panels
from lightning_maxmargin.reproduce.experiment import Claim, Experiment, Outcome
from lightning_maxmargin.runs import versions, write_text

COLUMNS = ("experiment", "claim", "published", "ours", "naive", "asked", "holds", "why")


@dataclass(frozen=True)
class Row:
    """One claim and what was found."""

    experiment: str
    claim: Claim
    ours: float
    naive: float | None
    holds: bool

    @property
    def cells(self) -> list[str]:
        """The row as words, in the order of :data:`COLUMNS`."""
        c = self.claim
        published = "-" if c.published is None else str(c.published)
        naive = "-" if self.naive is None else _number(self.naive)
        holds = "yes" if self.holds else "NO"
        return [self.experiment, c.claim, published, _number(self.ours), naive, c.bound, holds, c.why or ""]


@dataclass(frozen=True)
class Finished:
    """An experiment that ran: its rows, its figure and its time."""

    experiment: Experiment
    outcome: Outcome
    rows: list[Row]
    folder: Path
    seconds: float


def run_experiments(experiments: list[Experiment], out: Path, quick: bool) -> list[Finished]:
    """Runs all of them with a progress bar; each writes ``out/NAME`` as soon as it is done.

    Args:
        experiments: in this order.
        out: an existing, empty directory.
        quick: whether with the settings of ``--quick``.
    """
    finished = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("reproduce", total=len(experiments))
        for done, experiment in enumerate(experiments):
            progress.update(bar, description=experiment.name, completed=done)
            finished.append(
                run_one(experiment, out, quick, lambda x, done=done: progress.update(bar, completed=done + min(x, 1.0)))
            )
        progress.update(bar, description="reproduce", completed=len(experiments))
    return finished


def run_one(experiment: Experiment, out: Path, quick: bool, tick: object = lambda _: None) -> Finished:
    """Runs one experiment and writes its folder: figure.png, figure.pdf, claims.csv, numbers.json."""
    start = time.perf_counter()
    outcome = experiment.run(tick, quick)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    rows = [_row(experiment, claim, outcome.numbers) for claim in experiment.claims]
    folder = out / experiment.name
    folder.mkdir()
    if outcome.panels:
        draw_panels(outcome.panels, experiment.title, folder / "figure")
    content = {
        "settings": experiment.chosen(quick),
        "numbers": {k: v if math.isfinite(v) else None for k, v in outcome.numbers.items()},
        "notes": outcome.notes,
        "seconds": seconds,
        "loop_ratio": outcome.loop_ratio,
        "versions": versions(),
    }
    write_text(folder / "numbers.json", json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
    write_text(folder / "claims.csv", as_csv(rows))
    return Finished(experiment, outcome, rows, folder, seconds)


def as_csv(rows: list[Row]) -> str:
    """The rows with a header, for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(row.cells for row in rows)
    return text.getvalue()


def print_claims(finished: list[Finished]) -> None:
    """One table over all claims, then one line on time and speed."""
    table = Table(title="claims")
    for column in COLUMNS[:-1]:
        table.add_column(column, justify="right" if column in ("published", "ours", "naive") else "left")
    for row in (row for f in finished for row in f.rows):
        table.add_row(*row.cells[:-1], style=None if row.holds else "bold red")
    console = Console(width=max(150, Console().width))
    console.print(table)
    rows = [row for f in finished for row in f.rows]
    console.print(f"{sum(r.holds for r in rows)} of {len(rows)} claims hold; {sum(f.seconds for f in finished):.0f} s")


def _row(experiment: Experiment, claim: Claim, numbers: dict[str, float]) -> Row:
    ours = numbers.get(claim.key, float("nan"))
    return Row(experiment.name, claim, ours, numbers.get(f"naive/{claim.key}"), claim.holds(numbers))


def _number(x: float) -> str:
    return f"{x:.6g}"
