"""A disk that is full for a while: training goes on, no checkpoint is lost, and the rows come later.

A real one where file systems can be mounted (by root): a small tmpfs, filled to its last byte, on which W&B writes too.
Elsewhere the limit of a file's size, which every writer of the process meets as an error of the system.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import newest_checkpoint
from tests.reliability.forked import begin, new_folder, told, wait
from tests.reliability.kills import STEPS, WORDS, checkpoint, rows, steps_of, whole, wrong_rows
from tests.reliability.test_resume import assert_same_run

#: Another file system than that of the run, where there is one.
ELSEWHERE = "/dev/shm"
#: Bytes of the small disk: a run with its W&B files takes 2 MB.
SIZE = 16 * 2**20
#: Words of a run that writes all it can.
ALL = tuple(word for word in WORDS if word not in ("--wandb", "disabled"))


def trial(rng: random.Random) -> str | None:
    """One run whose disk is full for a while, with its temporary files elsewhere in half of the cases."""
    whole(1)
    if can_mount() and rng.random() < 0.7:
        return on_a_real_disk(rng)
    return by_a_limit(rng)


def on_a_real_disk(rng: random.Random) -> str | None:
    """By a file that takes all that is left, written and removed by this process."""
    seconds = whole(1)[2]
    start, length = rng.uniform(0.2, seconds + 1.0), rng.uniform(0.1, 2.0)
    with new_folder() as folder, mounted(folder):
        process = begin((*ALL, "--run_dir", "run"), folder, rng.choice((None, elsewhere)))
        time.sleep(start)
        had = is_whole(folder)
        fill(folder / "filler")
        time.sleep(length)
        lost = had and not is_whole(folder)
        (folder / "filler").unlink()
        status = wait(process)
        if lost:
            return "silent: on the full disk the last whole checkpoint is gone"
        return wrong_end(folder, status, had)


def by_a_limit(rng: random.Random) -> str | None:
    """By the limit of a file's size."""
    seconds = whole(1)[2]
    start, length = rng.uniform(0.2, seconds), rng.uniform(0.1, 1.0)
    with new_folder() as folder:
        status = wait(begin((*WORDS, "--run_dir", "run"), folder, filling(folder, start, length, rng.random() < 0.5)))
        if (folder / "lost.txt").exists():
            return f"silent: {(folder / 'lost.txt').read_text()}"
        return wrong_end(folder, status, (folder / "had.txt").exists())


def wrong_end(folder: Path, status: int, had: bool) -> str | None:
    """What is wrong with a run that had room again; ``had`` a checkpoint when it had none."""
    unbroken, logged, _ = whole(1)
    said = told(folder)
    if status:
        # Full when it began or ended: one line, and the checkpoint of before.
        in_a_line = "Traceback" not in said and "maxmargin: error:" in said
        at = steps_of(folder)
        # Between its first save and its last step it goes on without room.
        at_its_end = at == STEPS or f" at step {STEPS}: checkpoints/last.ckpt is of before" in said
        return None if in_a_line and (at_its_end or (at is None and not had)) else f"status {status} at {at}: {said}"
    try:
        assert_same_run(unbroken, checkpoint(folder / "run"))
    except AssertionError as error:
        return f"silent: another end than with room on the disk ({str(error)[:200]})"
    return wrong_rows(logged, rows(folder / "run"))


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A small file system at this folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@cache
def can_mount() -> bool:
    """Whether this process may."""
    if os.geteuid() != 0:
        return False
    with new_folder() as folder:
        try:
            with mounted(folder):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def fill(file: Path) -> None:
    """Takes all that is left of a disk, to the last byte."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        for size in (2**16, 2**9, 1):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass


def elsewhere() -> None:
    """Temporary files on another file system, where there is one."""
    if os.access(ELSEWHERE, os.W_OK):
        os.environ["TMPDIR"] = ELSEWHERE


def filling(folder: Path, start: float, length: float, is_elsewhere: bool) -> Callable[[], None]:
    """What makes the disk of this process full from ``start`` on, for ``length`` seconds."""

    def full() -> None:
        time.sleep(start)
        if had := is_whole(folder):
            (folder / "had.txt").touch()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        time.sleep(length)
        has = is_whole(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if had and not has:
            (folder / "lost.txt").write_text("on the full disk the last whole checkpoint is gone")

    def begin_filling() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if is_elsewhere:
            elsewhere()
        threading.Thread(target=full, daemon=True).start()

    return begin_filling


def is_whole(folder: Path) -> bool:
    """Whether a whole checkpoint is there."""
    try:
        return newest_checkpoint(folder / "run").is_file()
    except InputError:
        return False
