"""W&B's service stopped at a random moment: the run ends as one without W&B, at most ten seconds later."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

from tests.reliability.forked import new_folder
from tests.reliability.kills import WORDS, checkpoint, rows, whole, wrong_rows
from tests.reliability.test_resume import assert_same_run

#: Seconds that a run may end later for W&B.
LATER = 10.0


def trial(rng: random.Random) -> str | None:
    """One run whose W&B service is stopped some time after it has begun."""
    unbroken, logged, seconds = whole(1)
    words = [word for word in WORDS if word not in ("--wandb", "disabled")]
    command = [sys.executable, "-m", "lightning_maxmargin", *words, "--wandb", "offline", "--run_dir", "run"]
    with new_folder() as folder:
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not (folder / "run" / "wandb_id.txt").exists() and child.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, seconds / 2))
        stop_service(child.pid)
        while not (folder / "run" / "checkpoints" / "last.ckpt").exists() and child.poll() is None:
            time.sleep(0.02)
        try:
            said = child.communicate(timeout=60 + LATER)[1]
        except subprocess.TimeoutExpired:
            child.kill()
            return "the run waits for W&B for ever"
        ended = time.time() - (folder / "run" / "summary.json").stat().st_mtime
        if child.returncode or "Traceback" in said:
            return f"status {child.returncode}: {said[-1000:]}"
        if ended > LATER:
            return f"the run ended {ended:.1f} s after its summary was written"
        try:
            assert_same_run(unbroken, checkpoint(folder / "run"))
        except AssertionError as error:
            return f"silent: another end than without W&B ({str(error)[:200]})"
        return wrong_rows(logged, rows(folder / "run"))


def stop_service(process: int) -> None:
    """Stops W&B's own process, a child of this one; what is stopped for good is killed by who gives it up."""
    found = subprocess.run(["pgrep", "-P", str(process), "-f", "wandb-core"], capture_output=True, text=True).stdout
    for service in found.split():
        os.kill(int(service), signal.SIGSTOP)
