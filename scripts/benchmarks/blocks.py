"""Keys on disk against the same keys in memory: time and the most memory that the solve allocates.

    .venv/bin/python scripts/benchmarks/blocks.py [--quick] [--keep]

Writes a temporary file of 390 MB (--quick: 13 MB). About a minute.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from lightning_maxmargin.svm import solve_att_svm

COLUMNS = ["problem", "keys", "time", "memory taken", "of the keys", "status", "gap"]


def anonymous() -> int:
    """Bytes of this process that no file backs (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most memory taken inside over what was held before, sampled every 5 ms."""
    start, most, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], anonymous() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def measure(kind: str, path: Path, selected: torch.Tensor, runs: int) -> tuple[list[float], int, str, float]:
    """Seconds of each run, the largest peak, status and gap; in a process of its own, whose memory nobody used yet."""
    torch.set_num_threads(1)
    keys: Any = np.load(path, mmap_mode="r") if kind == "memory-mapped" else torch.from_numpy(np.load(path))
    seconds, most = [], 0
    for _ in range(runs):
        with peak() as seen:
            taken, found = common.clock(partial(solve_att_svm, keys, selected))
        seconds.append(taken)
        most = max(most, seen[0])
    return seconds, most, found.status, found.gap


def main() -> None:
    """Run the benchmark."""
    options = common.flags(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    n, T, d = (200, 64, 256) if options.quick else (2000, 128, 384)
    runs = 1 if options.quick else 3
    keys, selected, _ = common.planted(n, T, d, seed)
    keys = keys.float()
    label, size = f"n={n}, T={T}, d={d}, float32", 4 * n * T * d
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.npy"
        np.save(path, keys.numpy())
        del keys
        rows = []
        for kind in ("in memory", "memory-mapped"):
            with get_context("spawn").Pool(1) as pool:
                seconds, most, status, gap = pool.apply(measure, (kind, path, selected, runs))
            memory, share = f"{most / 2**20:.0f} MB", f"{most / size:.0%}"
            rows.append([label, kind, common.time_text(seconds), memory, share, status, f"{gap:.0e}"])
    notes = (
        f"Seed {seed}; medians of {runs}. Memory is what the process took in addition, sampled; the keys themselves, "
        "in memory or mapped, are not counted. In memory, float32 keys are copied to float64."
    )
    common.show("Keys in blocks", COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
