"""Many steps with all callbacks, checkpoints and W&B: memory and open files stay as they are."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.reliability.forked import begin, new_folder, told, wait
from tests.reliability.kills import WORDS

STEPS = 10_000
#: Seconds between two looks.
LOOK_EVERY = 0.1
#: Kilobytes that the last quarter may have more than the second: what the allocator of C keeps to itself moves as much.
GROWN = 8_000


def trial(rng: random.Random, steps: int = STEPS) -> str | None:
    """One run of many steps, watched by a thread of its own."""
    words = [word for word in WORDS if word not in ("--wandb", "disabled")]
    words[words.index("--trainer.max_steps") + 1] = str(steps)
    seed = ("--data.seed", str(rng.randrange(1000)), "--trainer.log_every_n_steps", "5")
    with new_folder() as folder:
        status = wait(begin((*words, *seed, "--run_dir", "run"), folder, watching(folder / "looks.txt")), 1200)
        if status:
            return f"status {status}: {told(folder)}"
        looks = [tuple(map(int, line.split())) for line in (folder / "looks.txt").read_text().splitlines()]
        return wrong_looks(looks)


def wrong_looks(looks: list[tuple[int, ...]]) -> str | None:
    """What has grown from the second quarter of the looks (kilobytes, open files) to the last."""
    quarter = len(looks) // 4
    (memory, files), (memory_then, files_then) = (
        [median(look[i] for look in part) for i in (0, 1)]
        for part in (looks[quarter : 2 * quarter], looks[3 * quarter :])
    )
    if memory_then - memory > GROWN:
        return f"silent: memory grew by {memory_then - memory:,.0f} kB from {memory:,.0f}"
    if files_then > files:
        return f"silent: open files grew from {files:g} to {files_then:g}"
    return None


def watching(file: Path) -> Callable[[], None]:
    """What begins to note anonymous memory and open files of its process."""

    def look() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            memory = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
            with file.open("a") as looks:
                looks.write(f"{memory} {len(os.listdir('/proc/self/fd'))}\n")
            time.sleep(LOOK_EVERY)

    return threading.Thread(target=look, daemon=True).start
