"""Keys on disk against the same keys in memory: time and the most memory that the solve allocates.

    .venv/bin/python scripts/benchmarks/blocks.py [--quick] [--keep]

Writes temporary files of 390 MB and 1.3 GB (--quick: 13 MB and 41 MB). About a minute.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import secrets
import statistics
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

COLUMNS = ["problem", "keys", "time", "passes", "memory taken", "of the keys", "status", "gap", "target"]
#: Sequences of the file that are made at once.
WRITTEN_AT_ONCE = 1_000


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


def write(path: Path, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """Gaussian keys in float32; the tokens that a random direction selects stand out by .5 along it. Selected (n,)."""
    draw = np.random.default_rng(seed)
    ahead = draw.normal(size=shape[2])
    ahead = (ahead / np.linalg.norm(ahead)).astype(np.float32)
    keys = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    selected = np.empty(shape[0], np.int64)
    for rows in (slice(at, at + WRITTEN_AT_ONCE) for at in range(0, shape[0], WRITTEN_AT_ONCE)):
        part = draw.standard_normal(keys[rows].shape, dtype=np.float32)
        selected[rows] = (part @ ahead).argmax(1)
        part[np.arange(len(part)), selected[rows]] += 0.5 * ahead
        keys[rows] = part
    keys.flush()
    return torch.from_numpy(selected)


def one_pass(keys: Any) -> float:
    """The largest of all scores, by one product in float32."""
    return float((keys.reshape(-1, keys.shape[2]) @ np.ones(keys.shape[2], np.float32)).max())


def measure(kind: str, path: Path, selected: torch.Tensor, runs: int) -> tuple[list[Any], ...]:
    """Seconds, passes and peak of each run, status and gap; in a process of its own, whose memory nobody used yet."""
    torch.set_num_threads(1)
    mapped = np.load(path, mmap_mode="r")
    keys: Any = mapped if kind == "memory-mapped" else torch.from_numpy(np.load(path))
    seconds, passes, most = [], [], []
    one_pass(mapped)
    for _ in range(runs):
        once = min(common.clock(partial(one_pass, mapped))[0] for _ in range(3))
        with peak() as seen:
            taken, found = common.clock(partial(solve_att_svm, keys, selected))
        seconds.append(taken)
        passes.append(taken / once)
        most.append(seen[0])
    return seconds, passes, most, [found.status, found.gap]


def main() -> None:
    """Run the benchmark."""
    options = common.flags(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    runs = 1 if options.quick else 3
    large, narrow = ((200, 64, 256), (2_500, 128, 32)) if options.quick else ((2_000, 128, 384), (78_125, 128, 32))
    cases = [(large, "in memory", ""), (large, "memory-mapped", ""), (narrow, "memory-mapped", "<= 20 passes")]
    rows = []
    for shape, kind, target in cases:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "keys.npy"
            selected = write(path, shape, seed)
            with get_context("spawn").Pool(1) as pool:
                seconds, passes, most, (status, gap) = pool.apply(measure, (kind, path, selected, runs))
        label, size = "n={:,}, T={}, d={}, float32".format(*shape), 4 * int(np.prod(shape))
        memory, share = f"{max(most) / 2**20:.0f} MB", f"{max(most) / size:.0%}"
        cells = [common.time_text(seconds), f"{statistics.median(passes):.0f}", memory, share]
        rows.append([label, kind, *cells, status, f"{gap:.0e}", target])
    notes = (
        f"Seed {seed}; medians of {runs}. A pass is one float32 product with the mapped file, in the same process. "
        "Memory is what the process took in addition, sampled; the keys themselves, in memory or mapped, are not "
        "counted. In memory, float32 keys are copied to float64."
    )
    common.show("Keys in blocks", COLUMNS, rows, notes, options.keep)


if __name__ == "__main__":
    main()
