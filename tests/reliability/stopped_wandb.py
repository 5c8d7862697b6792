"""W&B's service stopped at a random moment: the run ends as one without W&B, at most ten seconds later."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from tests.reliability.forked import new_folder
from tests.reliability.kills import WORDS, checkpoint, rows, whole, wrong_rows
from tests.reliability.test_resume import assert_same_run

#: Seconds that a run may end later for W&B.
LATER = 10.0


def trial(rng: random.Random) -> str | None:
    """One run whose W&B service is stopped some time after it has begun."""
    unbroken, logged, seconds = whole(1)
    with new_folder() as folder:
        child = begun(folder, "offline")
        while not (folder / "run" / "wandb_id.txt").exists() and child.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, seconds / 2))
        stop_service(child.pid)
        try:
            said = child.communicate(timeout=120)[1]
        except subprocess.TimeoutExpired:
            child.kill()
            return "the run waits for W&B for ever"
        later = since_summary(folder) - without()
        if child.returncode or "Traceback" in said:
            return f"status {child.returncode}: {said[-1000:]}"
        if later > LATER:
            return f"the run ended {later:.1f} s later than without W&B"
        try:
            assert_same_run(unbroken, checkpoint(folder / "run"))
        except AssertionError as error:
            return f"silent: another end than without W&B ({str(error)[:200]})"
        return wrong_rows(logged, rows(folder / "run"))


def begun(folder: Path, mode: str) -> subprocess.Popen[str]:
    """A run in a process of its own, which no test has imported W&B in."""
    words = [word for word in WORDS if word not in ("--wandb", "disabled")]
    command = [sys.executable, "-m", "lightning_maxmargin", *words, "--wandb", mode, "--run_dir", "run"]
    # Not W&B's own variables: the run would join the service of this process, if it has one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )


def since_summary(folder: Path) -> float:
    """Seconds since the run in this folder has written its summary: what it has done at its end."""
    return time.time() - (folder / "run" / "summary.json").stat().st_mtime


@cache
def without() -> float:
    """What that is without W&B."""
    with new_folder() as folder:
        begun(folder, "disabled").communicate()
        return since_summary(folder)


def stop_service(process: int) -> None:
    """Stops W&B's own process, a child of this one; what is stopped for good is killed by who gives it up."""
    found = subprocess.run(["pgrep", "-P", str(process), "-f", "wandb-core"], capture_output=True, text=True).stdout
    for service in found.split():
        os.kill(int(service), signal.SIGSTOP)
