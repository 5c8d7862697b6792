"""A disk that is full for a while: training goes on, no checkpoint is lost, and the rows come later."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.run.checkpoints import newest_checkpoint
from tests.reliability.forked import begin, new_folder, told, wait
from tests.reliability.kills import WORDS, checkpoint, rows, whole, wrong_rows
from tests.reliability.test_resume import assert_same_run

#: Another file system than that of the run, where there is one.
ELSEWHERE = "/dev/shm"


def trial(rng: random.Random) -> str | None:
    """One run whose disk is full for a while, with its temporary files elsewhere in half of the cases."""
    unbroken, logged, seconds = whole(1)
    start, length = rng.uniform(0.2, seconds), rng.uniform(0.1, 1.0)
    elsewhere = rng.random() < 0.5 and os.access(ELSEWHERE, os.W_OK)
    with new_folder() as folder:
        status = wait(begin((*WORDS, "--run_dir", "run"), folder, filling(folder, start, length, elsewhere)))
        said = told(folder)
        if (folder / "lost.txt").exists():
            return f"silent: {(folder / 'lost.txt').read_text()}"
        if status:
            # Full at the end of the run: one line, and the checkpoint of before.
            in_a_line = "Traceback" not in said and "maxmargin: error:" in said
            return None if in_a_line and is_whole(folder) else f"status {status}: {said}"
        try:
            assert_same_run(unbroken, checkpoint(folder / "run"))
        except AssertionError as error:
            return f"silent: another end than with room on the disk ({str(error)[:200]})"
        return wrong_rows(logged, rows(folder / "run"))


def filling(folder: Path, start: float, length: float, elsewhere: bool) -> Callable[[], None]:
    """What makes the disk of this process full from ``start`` on, for ``length`` seconds.

    By the limit of a file's size, which every writer of the process meets as an error of the system, torch's as well.
    """

    def full() -> None:
        time.sleep(start)
        had = is_whole(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        time.sleep(length)
        has = is_whole(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if had and not has:
            (folder / "lost.txt").write_text("on the full disk the last whole checkpoint is gone")

    def begin_filling() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if elsewhere:
            os.environ["TMPDIR"] = ELSEWHERE
        threading.Thread(target=full, daemon=True).start()

    return begin_filling


def is_whole(folder: Path) -> bool:
    """Whether a whole checkpoint is there."""
    try:
        return newest_checkpoint(folder / "run").is_file()
    except InputError:
        return False
