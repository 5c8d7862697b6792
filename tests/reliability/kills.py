"""kill -9 at a random time: the run that goes on ends as the one that was not killed, to the last bit."""

from __future__ import annotations

import csv
import random
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import newest_checkpoint
from lightning_maxmargin.run.resume import summarized_step
from tests.conftest import config
from tests.reliability.forked import EVERY, begin, kill, new_folder, run, told
from tests.reliability.test_resume import assert_same_run, checkpoint

STEPS = 400
WORDS = (
    "fit", "--config", config("joint/random"), "--data.batch_size", "8", "--trainer.max_steps", str(STEPS), "--wandb",
    "disabled", "--report", "false", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
)  # fmt: skip
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
#: Share of the cases with two processes.
OF_TWO = 0.25
#: Seconds from one save to the next at most: the interval, a save, a step, and a machine that does something else.
LOST = EVERY + 1.5
#: Columns of metrics.csv that say how long something took.
TIMED = ("monitor/seconds", "monitor/final_seconds", "monitor/lag_steps")


@cache
def whole(processes: int) -> tuple[dict[str, Any], list[dict[str, str]], float]:
    """Checkpoint and rows of the run that is not killed, and its seconds."""
    start = time.monotonic()
    with new_folder() as folder:
        status = run((*WORDS, *(TWO if processes == 2 else ()), "--run_dir", "run"), folder)
        assert status == 0, told(folder)
        return checkpoint(folder / "run"), rows(folder / "run"), time.monotonic() - start


def rows(run_dir: Path) -> list[dict[str, str]]:
    """What the monitor has logged, without times."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["norm/attention"]]
    return [{name: x for name, x in row.items() if name not in TIMED} for row in table]


def trial(rng: random.Random) -> str | None:
    """One run, killed once or twice."""
    processes = 2 if rng.random() < OF_TWO else 1
    words = (*WORDS, *(TWO if processes == 2 else ()), "--run_dir", "run")
    unbroken, logged, seconds = whole(processes)
    with new_folder() as folder:
        went_on_at: list[int | None] = []
        for _ in range(rng.choice((1, 2, 2))):
            wrong = killed(words, folder, rng.uniform(0.0, seconds))
            if wrong is not None:
                return wrong
            went_on_at.append(steps_of(folder))
        if steps_of(folder) is None:
            return None  # killed before there was anything to lose
        ended = summarized_step(folder / "run") == STEPS
        if not ended and (status := run((*words, "--ckpt_path", "last"), folder)):
            return f"the run that goes on ends with status {status}: {told(folder)}"
        try:
            assert_same_run(unbroken, checkpoint(folder / "run"))
        except AssertionError as error:
            told_at = f"{processes} processes, gone on at steps {went_on_at}"
            return f"silent: another end than the run that was not killed ({told_at}: {str(error)[:200]})"
        return wrong_rows(logged, rows(folder / "run"))


def killed(words: tuple[str, ...], folder: Path, seconds: float) -> str | None:
    """Begins the run, or goes on with it, and kills it; what is wrong with what it left."""
    steps = steps_of(folder)
    if steps == STEPS:
        return None
    if steps is None:
        shutil.rmtree(folder / "run", ignore_errors=True)
    process = begin((*words, *(() if steps is None else ("--ckpt_path", "last"))), folder)
    time.sleep(seconds)
    kill(process)
    saved, left = folder / "run" / "checkpoints", steps_of(folder)
    if any(saved.glob("*.ckpt")) and left is None:
        return "silent: no checkpoint that was left is whole"
    if left in (None, steps, STEPS):
        return None  # it had not trained yet, or had ended
    lost = time.time() - (saved / "last.ckpt").stat().st_mtime
    return f"{lost:.1f} s of work are lost" if lost > LOST else None


def steps_of(folder: Path) -> int | None:
    """Of the newest whole checkpoint; None where there is none."""
    try:
        return int(checkpoint(folder / "run", newest_checkpoint(folder / "run").stem)["global_step"])
    except InputError:
        return None


def wrong_rows(whole_run: list[dict[str, str]], found: list[dict[str, str]]) -> str | None:
    """What is wrong with the rows of a run that went on."""
    steps = [float(row["step"]) for row in found]
    if steps != sorted(set(steps)):
        return "silent: a step is logged twice, or out of order"
    by_step = {float(row["step"]): row for row in found}
    for row in whole_run:
        if by_step.get(float(row["step"])) != row:
            return f"silent: metrics.csv has another row at step {row['step']}"
    return None
