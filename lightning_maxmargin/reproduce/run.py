"""Runs experiments: figure, claims and numbers of each into its own folder, one table and one page over all."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.errors import InputError, NonFiniteError
from lightning_maxmargin.reproduce.draw import draw_panels
from lightning_maxmargin.reproduce.experiment import Claim, Experiment, Outcome, ProgressCallback, one_line
from lightning_maxmargin.run.directory import versions

COLUMNS = ("experiment", "claim", "published", "ours", "naive", "asked", "holds", "why")


@dataclass(frozen=True)
class Row:
    """One claim and what was found."""

    experiment: str
    claim: Claim
    ours: float | None
    naive: float | None
    holds: bool

    @property
    def cells(self) -> list[str]:
        """The row as text, in the order of :data:`COLUMNS`."""
        c = self.claim
        published = "-" if c.published is None else str(c.published)
        holds = "yes" if self.holds else "NO" if self.ours is not None else "no such number"
        return [
            self.experiment, c.claim, published, _number(self.ours), _number(self.naive), c.bound, holds, c.why or ""
        ]  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """An experiment that ran: its rows, its figure and its time."""

    experiment: Experiment
    outcome: Outcome
    rows: list[Row]
    folder: Path
    seconds: float


def run_experiments(experiments: list[Experiment], out: Path, quick: bool, finished: list[Finished]) -> None:
    """Runs all of them with a progress bar; each writes ``out/NAME`` as soon as it is done.

    Args:
        experiments: in this order.
        out: an existing, empty directory.
        quick: whether with the settings of ``--quick``.
        finished: where each goes at once, so that it is there if a later one fails or is interrupted.
    """
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

            def advance(share: float, done: int = done) -> None:
                progress.update(bar, completed=done + min(share, 1.0))

            finished.append(run_one(experiment, out, quick, advance))
        progress.update(bar, description="reproduce", completed=len(experiments))


#: What a function raises for settings of a wrong type or size, its own or torch's.
WRONG_SETTINGS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError)


def run_one(experiment: Experiment, out: Path, quick: bool, progress: ProgressCallback = lambda _: None) -> Finished:
    """Runs one experiment and writes its folder, all of it or none: figure.png, figure.pdf, claims.csv, numbers.json.

    Raises:
        InputError: the function fails with these settings.
    """
    start = time.perf_counter()
    try:
        with _one_thread():
            outcome = experiment.run(progress, quick)
    except (InputError, NonFiniteError):
        raise
    except WRONG_SETTINGS as error:
        raise InputError(f"reproduce: {experiment.name} fails with these settings ({one_line(error)})") from error
    seconds = time.perf_counter() - start
    rows = [_row(experiment, claim, outcome.numbers) for claim in experiment.claims]
    done = Finished(experiment, outcome, rows, out / experiment.name, seconds)
    done.folder.mkdir()
    try:
        _write(done, quick)
    except BaseException:
        shutil.rmtree(done.folder, ignore_errors=True)
        raise
    return done


@contextmanager
def _one_thread() -> Iterator[None]:
    """All experiments take 250 s so; on two threads 280 s, and 900 s where another process works."""
    import torch

    from lightning_maxmargin.svm.threads import one_thread

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_thread():
            yield
    finally:
        torch.set_num_threads(threads)


def _write(done: Finished, quick: bool) -> None:
    outcome = done.outcome
    if outcome.panels:
        draw_panels(outcome.panels, done.experiment.title, done.folder / "figure")
    content = {
        "settings": done.experiment.chosen(quick),
        "numbers": {k: float(v) if math.isfinite(v) else None for k, v in outcome.numbers.items()},
        "notes": outcome.notes,
        "seconds": done.seconds,
        "loop_ratio": outcome.loop_ratio,
        "versions": versions(),
    }
    write_text(done.folder / "numbers.json", json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
    write_text(done.folder / "claims.csv", as_csv(done.rows))


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
    ours, naive = numbers.get(claim.key), numbers.get(f"naive/{claim.key}")
    return Row(experiment.name, claim, ours, naive, claim.holds(numbers))


def _number(x: float | None) -> str:
    # Below 1e-15 it is the rounding of numbers near 1.
    return "-" if x is None else "0" if abs(x) < 1e-15 else f"{x:.6g}"
