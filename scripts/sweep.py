"""Runs a W&B sweep of method grid here, without a network, and prints a table of its runs.

    .venv/bin/python scripts/sweep.py configs/sweep/rates.yaml [--runs runs/rates] [--wandb offline] [--keys '[steps]']

The file is W&B's own: ``wandb sweep FILE`` and ``wandb agent`` run the same grid by a server. A run that is there
already, from an earlier call with the same ``--runs``, is not made again. Exit status 1 where a run has failed.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_maxmargin.atomic import whole_folder, write_text

#: What a run keeps of its place in the sweep.
WORDS = "sweep.json"
#: What W&B's agent puts in place of these in a command, besides the parameters.
MACROS = {"${env}", "${interpreter}", "${program}", "${args}", "${args_no_hyphens}"}


class RunError(Exception):
    """A run of the sweep has failed; the message is its last line."""


def grid(sweep: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the parameters."""
    values = {name: p["values"] if "values" in p else [p["value"]] for name, p in sweep["parameters"].items()}
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def refuse(told: str) -> NoReturn:
    """Ends with one line and status 2."""
    print(f"sweep: error: {told}", file=sys.stderr)
    sys.exit(2)


def read(file: Path) -> dict[str, Any]:
    """The sweep, or the end of the command where it is none."""
    try:
        sweep = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        refuse(f"{file} cannot be read ({str(error).splitlines()[0]})")
    if not isinstance(sweep, dict) or sweep.get("method") != "grid" or not isinstance(sweep.get("parameters"), dict):
        refuse(f"{file} is no sweep of method grid with parameters; others need W&B's server")
    for name, parameter in sweep["parameters"].items():
        if not isinstance(parameter, dict) or not {"value", "values"} & set(parameter):
            refuse(f"parameter {name} of {file} has neither value nor values; a grid needs them")
    return dict(sweep)


def words_of(sweep: dict[str, Any], chosen: dict[str, Any], run: Path, wandb: str) -> list[str]:
    """The command line of one run, without its program."""
    words = [word for word in sweep.get("command", []) if word not in MACROS and not word.startswith("--wandb=")]
    if words[:1] == ["maxmargin"]:
        words = words[1:]
    group = [f"--wandb_group={sweep.get('name', 'sweep')}"] if wandb != "disabled" else []
    own = [f"--wandb={wandb}", *group, f"--run_dir={run}", "--report=false", "--trainer.enable_progress_bar=false"]
    return [*words, *(f"--{name}={value}" for name, value in chosen.items()), *own]


def made(sweep: dict[str, Any], chosen: dict[str, Any], run: Path, wandb: str) -> dict[str, Any] | None:
    """The summary of the run, made unless it is there; None where it failed, which is told."""
    if run.exists():
        kept = run / WORDS
        if not kept.is_file() or json.loads(kept.read_text(encoding="utf-8")) != words_of(sweep, chosen, Path(), wandb):
            refuse(f"{run} is of another sweep, or of this one before it was edited; name another folder with --runs")
        return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    try:
        with whole_folder(run) as part:
            words = [sys.executable, "-m", "lightning_maxmargin", *words_of(sweep, chosen, part, wandb)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise RunError(lines[-1])
            write_text(part / WORDS, json.dumps(words_of(sweep, chosen, Path(), wandb)) + "\n")
    except (RunError, OSError) as error:
        print(f"{run.name}: {error}", file=sys.stderr)
        return None
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))


def main(file: str, runs: str | None = None, wandb: str = "offline", keys: list[str] | None = None) -> None:
    """Runs the grid and prints the table, the best run first.

    Args:
        file: of the sweep.
        runs: where the runs go; runs/NAME if not given.
        wandb: offline, online or disabled.
        keys: of summary.json, shown beside the sweep's metric.
    """
    sweep = read(Path(file))
    metric = sweep.get("metric", {}).get("name", "direction_gap/attention")
    shown = [metric, *(["svm/limit", "norm/attention"] if keys is None else keys)]
    folder = Path(runs or f"runs/{sweep.get('name', 'sweep')}")
    folder.mkdir(parents=True, exist_ok=True)
    combinations = list(grid(sweep))
    found = []
    for i, chosen in enumerate(track(combinations, description="runs")):
        found.append((chosen, made(sweep, chosen, folder / f"{i:03d}", wandb), i))
    sign = -1 if sweep.get("metric", {}).get("goal") == "maximize" else 1
    table = Table("run", *sweep["parameters"], *shown, title=str(sweep.get("name", file)))

    def rank(row: tuple[dict[str, Any], dict[str, Any] | None, int]) -> tuple[bool, float]:
        value = (row[1] or {}).get(metric)
        return value is None, sign * float(value or 0.0)

    for chosen, summary, i in sorted(found, key=rank):
        numbers = ("failed" if summary is None else _text(summary.get(key)) for key in shown)
        table.add_row(f"{i:03d}", *map(str, chosen.values()), *numbers)
    Console().print(table)
    sys.exit(any(summary is None for _, summary, _ in found))


def _text(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else "-" if x is None else str(x)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
