"""What the scripts of claims share: one claim asked and measured, runs of the command line, and their tables."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RUNS = Path(tempfile.mkdtemp(prefix="maxmargin-claims-"))
QUIET = ["--wandb", "disabled", "--report", "false", "--trainer.enable_progress_bar", "false"]


@dataclass
class Row:
    """One claim: what was asked, what was measured, by which command."""

    claim: str
    asked: str
    measured: str
    holds: bool
    command: str


def maxmargin(arguments: Sequence[str]) -> float:
    """Runs the command line in one thread; CPU seconds that it took."""
    # One thread: the operations are small, and a busy neighbour makes a second thread slower, not faster.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_maxmargin", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"maxmargin {' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fit(name: str, config: str, options: str = "") -> Path:
    """The run directory of this command; run once per name."""
    run_dir = RUNS / name
    if not (run_dir / "summary.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)  # of an earlier call that was interrupted
        maxmargin([*command(config, options).split()[1:], "--run_dir", str(run_dir), *QUIET])
    return run_dir


def command(config: str, options: str = "") -> str:
    """The command as a user types it."""
    return f"maxmargin fit --config configs/{config}.yaml {options}".strip()


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def report(rows: Sequence[Row], out: str | None, section: str, made_by: str, notes: Sequence[str] = ()) -> int:
    """Prints the table, and writes it into its section of a Markdown file; the exit status, 1 if a claim fails."""
    table = Table("claim", "asked", "measured", "holds")
    for row in rows:
        table.add_row(row.claim, row.asked, row.measured, "yes" if row.holds else "NO")
    Console().print(table, *notes, sep="\n\n")
    if out is not None:
        file = Path(out)
        old = file.read_text(encoding="utf-8") if file.exists() else "# Claims\n"
        file.write_text(with_section(old, section, markdown(rows, made_by, notes)), encoding="utf-8")
    return 0 if all(row.holds for row in rows) else 1


def with_section(text: str, section: str, body: str) -> str:
    """The text with this section's body in place of the old one, or at the end."""
    head, *parts = text.split("\n## ")
    kept = {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}
    kept[section] = body.strip()
    return "\n\n".join([head.strip(), *(f"## {name}\n\n{part}" for name, part in kept.items())]) + "\n"


def markdown(rows: Sequence[Row], made_by: str, notes: Sequence[str] = ()) -> str:
    """The table for the documentation."""
    from lightning_maxmargin.run.directory import versions

    lines = [
        f"Made by `{made_by}`; each line by the command at its end.", "", f"Versions: {versions()}.", "",
        "| claim | asked | measured | holds | command |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        escaped = r.command.replace("|", "\\|")
        lines.append(f"| {r.claim} | {r.asked} | {r.measured} | {'yes' if r.holds else 'no'} | `{escaped}` |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])
