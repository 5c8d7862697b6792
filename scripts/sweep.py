"""Runs a W&B sweep of method grid here, without a network, and prints a table of its runs.

    .venv/bin/python scripts/sweep.py configs/sweep/rates.yaml [--runs runs/rates] [--wandb offline] [--keys '[steps]']

The file is W&B's own: ``wandb sweep FILE`` and ``wandb agent`` run the same grid by a server. A run that is there
already, from an earlier call with the same ``--runs``, is not made again. Exit status 1 where a run has failed or the
sweep was interrupted, 2 where it cannot be run, which is told before any run.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from jsonargparse import auto_cli
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sweep_file import Sweep, read

from lightning_maxmargin.atomic import whole_folder, write_text
from lightning_maxmargin.errors import InputError

#: What a run keeps of its place in the sweep.
WORDS = "sweep.json"
#: Seconds that a run which is told to stop has for it.
STOPPING = 10.0


class RunError(Exception):
    """A run of the sweep has failed; the message is its last line."""


def check_words(sweep: Sweep, folder: Path, wandb: str) -> None:
    """Refuses a word that ``maxmargin fit`` does not take, by its own parser: all runs would fail, one by one.

    A program of the user's own is not asked.
    """
    if not sweep.is_ours:
        return
    from lightning_maxmargin.cli import main

    for chosen in sweep.each_value_once():
        words, told = sweep.words(chosen, folder / "000", wandb)[3:], io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            status = main([*words, "--print_config"])
        if status == 1:
            raise KeyboardInterrupt  # which it has turned into its status
        if status:
            raise InputError(told.getvalue().strip().rpartition("\n")[2].removeprefix("maxmargin: error: "))


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[int]:
    """The folder of the runs, which no other sweep writes to meanwhile; what killed ones have left in it is removed.

    Yields:
        A handle that the runs hold too: one that goes on without its sweep still writes there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"runs: {folder} cannot be made ({error.strerror}); name another folder") from error
    try:
        _lock(handle, folder)
        for left in folder.glob(".[0-9]*.part"):
            shutil.rmtree(left, ignore_errors=True)
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"runs: another sweep is writing to {folder}; wait for it, or name another folder") from error


def check_made(sweep: Sweep, runs: dict[Path, dict[str, Any]], wandb: str) -> None:
    """Refuses a run that is there and is none of this sweep."""
    for run, chosen in runs.items():
        if run.exists():
            try:
                kept = json.loads((run / WORDS).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                kept = None
            if kept != sweep.words(chosen, Path(), wandb):
                raise InputError(
                    f"runs: {run} is of another sweep, or of this one before it was edited; name another folder"
                )
            summary_of(run)


def summary_of(run: Path) -> dict[str, Any]:
    """The summary of a run that is made."""
    try:
        return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"runs: {run} has no whole summary.json; remove {run}, and it is made again") from error


def made(sweep: Sweep, chosen: dict[str, Any], run: Path, wandb: str, handle: int) -> dict[str, Any] | None:
    """The summary of the run, made unless it is there; None where it failed, which is told."""
    if run.exists():
        return summary_of(run)
    try:
        with whole_folder(run) as part:
            words = sweep.words(chosen, part, wandb)
            execute([sys.executable, *words[1:]] if words[0] == "python" else words, handle)
            if not (part / "summary.json").is_file():
                raise RunError("it has left no summary.json in its --run_dir")
            write_text(part / WORDS, json.dumps(sweep.words(chosen, Path(), wandb)) + "\n")
        return summary_of(run)
    except (RunError, InputError, OSError) as error:
        print(f"{run.name}: {error}", file=sys.stderr)
        return None


def execute(words: list[str], handle: int) -> None:
    """Runs a command to its end, or to that of the sweep.

    Raises:
        RunError: it has failed.
    """
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=[handle]
    ) as run:
        try:
            _, told = run.communicate()
        except BaseException:
            run.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.communicate(timeout=STOPPING)
            run.kill()
            raise
    if run.returncode:
        lines = told.strip().splitlines() or [f"status {run.returncode}"]
        raise RunError(lines[-1])


def show(sweep: Sweep, found: list[tuple[str, dict[str, Any], dict[str, Any] | None]], keys: list[str]) -> None:
    """The table, the best run first."""
    table = Table("run", *sweep.values, *keys, title=sweep.name)

    def rank(row: tuple[str, dict[str, Any], dict[str, Any] | None]) -> tuple[bool, float]:
        value = (row[2] or {}).get(sweep.metric)
        if not isinstance(value, int | float):
            return True, 0.0
        return False, -value if sweep.maximize else value

    for name, chosen, summary in sorted(found, key=rank):
        numbers = ("failed" if summary is None else _text(summary.get(key)) for key in keys)
        table.add_row(name, *map(str, chosen.values()), *numbers)
    Console().print(table)
    summaries = [summary for _, _, summary in found if summary is not None]
    for key in keys if summaries else ():
        if all(summary.get(key) is None for summary in summaries):
            print(f"sweep: no run has a {key} in its summary.json", file=sys.stderr)


def _text(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else "-" if x is None else str(x)


def run_sweep(file: Path, runs: str | None, wandb: str, keys: list[str]) -> int:
    """Runs the grid and prints the table; returns the exit status."""
    from lightning_maxmargin.run.options import WandbMode

    sweep = read(file)
    if wandb not in get_args(WandbMode):
        raise InputError(f"wandb: {wandb!r}; expected {', '.join(get_args(WandbMode))}")
    folder = Path(runs or f"runs/{sweep.name}")
    combinations = {folder / f"{i:03d}": chosen for i, chosen in enumerate(sweep.combinations())}
    check_words(sweep, folder, wandb)
    with own_folder(folder) as handle:
        check_made(sweep, combinations, wandb)
        found = []
        try:
            for run, chosen in track(combinations.items(), description="runs"):
                found.append((run.name, chosen, made(sweep, chosen, run, wandb, handle)))
        except KeyboardInterrupt:
            there = sum(run.exists() for run in combinations)
            again = shlex.join(["python", *sys.argv])
            print(f"sweep: interrupted; {there} of {len(combinations)} runs are made; go on with {again}",
                  file=sys.stderr)  # fmt: skip
            return 1
    show(sweep, found, list(dict.fromkeys([sweep.metric, *keys])))
    return int(any(summary is None for _, _, summary in found))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(file: str, runs: str | None = None, wandb: str = "offline", keys: list[str] | None = None) -> None:
    """Runs the grid and prints the table, the best run first.

    Args:
        file: of the sweep.
        runs: where the runs go; runs/NAME if not given.
        wandb: offline, online or disabled.
        keys: of summary.json, shown beside the sweep's metric.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(run_sweep(Path(file), runs, wandb, ["svm/limit", "norm/attention"] if keys is None else keys))
    except KeyboardInterrupt:
        print("sweep: interrupted before its first run", file=sys.stderr)
        sys.exit(1)
    except InputError as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
