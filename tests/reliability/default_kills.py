"""kill -9 of a run with all its defaults: a checkpoint each 30 seconds, W&B, the report; one and two processes.

Each step waits, so that a run takes a minute and a half and many share a core. One process is forked from this one,
which has imported everything; of two Lightning starts the second by the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from lightning_maxmargin.run.last_checkpoint import SAVE_EVERY
from lightning_maxmargin.run.resume import summarized_step
from tests.conftest import QUIET, config
from tests.reliability.forked import begin, new_folder, run, started, told
from tests.reliability.kills import rows, steps_of, wrong_rows
from tests.reliability.test_resume import assert_same_run, checkpoint

STEPS, SLOW = 225, 0.4
RUN = ("fit", "--config", config("joint/random"), "--data.batch_size", "8", "--trainer.max_steps", str(STEPS),
       "--trainer.accelerator", "cpu", "--run_dir", "run")  # fmt: skip
TWO = ("--trainer.devices", "2")
#: Share of the cases with two processes: smaller than elsewhere, for the command line starts them, which costs most.
OF_TWO = 1 / 6
WAITING = (
    "--trust-config", "--trainer.callbacks",
    f"[{{class_path: tests.reliability.slow.Slow, init_args: {{seconds: {SLOW}}}}}]",
)  # fmt: skip
#: Seconds after its start that a run is killed: before its first checkpoint, between any two, near its end.
MOMENTS = (15.0, STEPS * SLOW + 10.0)
#: Seconds of work that a kill may cost.
LOST = 40.0
#: Seconds until a run that neither ends nor is killed has failed.
TOO_LONG = 600.0


@cache
def whole(processes: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Checkpoint and rows of the run that is not killed, which need not wait."""
    two = (*TWO, "--trainer.strategy", "ddp_fork") if processes == 2 else ()
    with new_folder() as folder:
        assert run((*RUN, *two, *QUIET), folder) == 0, told(folder)
        return checkpoint(folder / "run"), rows(folder / "run")


async def trial(rng: random.Random) -> str | None:
    """One run, killed once, which then goes on to its end."""
    processes, moment = 2 if rng.random() < OF_TWO else 1, rng.uniform(*MOMENTS)
    unbroken, logged = whole(processes)
    with new_folder() as folder:
        status, said, killed_at = await command(folder, processes, moment)
        if status != -signal.SIGKILL:
            return f"status {status} before it was killed: {said}" if status else None  # it had ended
        run_dir, at = folder / "run", steps_of(folder)
        lost = killed_at - begun(run_dir)
        if at != STEPS and lost > LOST:
            return f"{lost:.1f} s of work are lost"
        if at is None:
            if any((run_dir / "checkpoints").glob("*.ckpt")):
                return "silent: no checkpoint that was left is whole"
            shutil.rmtree(run_dir, ignore_errors=True)
        ended = summarized_step(run_dir) == STEPS
        if not ended:
            status, said, _ = await command(folder, processes, None, *(() if at is None else ("--ckpt_path", "last")))
            if status:
                return f"the run that goes on at step {at} ends with status {status}: {said}"
        return wrong_end(unbroken, logged, run_dir, f"{processes} processes, gone on at step {at}", ended)


def wrong_end(
    unbroken: dict[str, Any], logged: list[dict[str, str]], run_dir: Path, case: str, ended: bool
) -> str | None:
    """What is wrong with a run that was killed and has gone on."""
    try:
        assert_same_run(unbroken, checkpoint(run_dir))
    except AssertionError as error:
        return f"silent: another end than the run that was not killed ({case}: {str(error)[:200]})"
    if ended:
        return None  # killed while it drew its report
    missing = [name for name in ("summary.json", "report.html") if not (run_dir / name).is_file()]
    if missing:
        return f"silent: it has no {missing[0]} ({case})"
    ids = {path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")}
    if ids != {(run_dir / "wandb_id.txt").read_text().strip()}:
        return f"silent: its W&B runs are {ids} ({case})"
    return wrong_rows(logged, rows(run_dir))


def begun(run_dir: Path) -> float:
    """When what is not saved began: at the last checkpoint, or with the first row."""
    for name in ("checkpoints/last.ckpt", "checkpoints/before.ckpt", "config.yaml"):
        if (run_dir / name).is_file():
            return (run_dir / name).stat().st_mtime
    return time.time()


async def command(folder: Path, processes: int, killed_after: float | None, *more: str) -> tuple[int, str, float]:
    """Status, errors and end of the run, which is killed after so many seconds if it has not ended by then."""
    words = (*RUN, *more, *WAITING)
    process = begin(words, folder, errors_to_a_file, SAVE_EVERY) if processes == 1 else started((*words, *TWO), folder)
    end = time.monotonic() + (TOO_LONG if killed_after is None else killed_after)
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), errors(folder), time.time()
        await asyncio.sleep(0.05)
    killed_at = time.time()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return (-signal.SIGALRM if killed_after is None else status), errors(folder), killed_at


def errors_to_a_file() -> None:
    """A pipe that nobody reads is full of a progress bar after 64 KiB."""
    sys.stderr = open("errors.txt", "w", encoding="utf-8")  # noqa: SIM115  (the process ends with it)


def errors(folder: Path) -> str:
    """The end of what the command has said."""
    return (folder / "errors.txt").read_text(errors="replace")[-2000:]
