"""A data set that stays in its file: steps per second, the memory that it takes, and what its margins are certified as.

    .venv/bin/python scripts/benchmarks/larger_than_memory.py [--quick] [--gigabytes 6] [--folder DIR] [--keep]

Writes keys (n, 128, 384) in float32 to a temporary folder of that size (1 GB; --quick: .1 GB), trains on them in
minibatches of 64 through ``maxmargin fit`` with every callback, and deletes them. RssAnon is what the process holds
that no file backs; pages of the mapped file are the system's to drop and are not in it. 6 GB take some minutes.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import json
import tempfile
import threading
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from rich.progress import track

from lightning_maxmargin.cli import main as maxmargin

COLUMNS = ["keys", "sequences", "steps", "steps/s", "RssAnon", "of the keys", "monitor", "status", "gap", "target"]
T, D, BATCH = 128, 384, 64
ROOT = Path(__file__).parents[2]


def anonymous() -> int:
    """Bytes of this process that no file backs (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def write(folder: Path, n: int, seed: int) -> None:
    """Gaussian keys; one token a sequence stands out by 12 along one direction and by its label along another."""
    draw = np.random.default_rng(seed)
    both = np.linalg.qr(draw.normal(size=(D, 2)))[0].T.astype(np.float32)
    labels = draw.choice([-1.0, 1.0], n)
    keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float32, (n, T, D))
    for at in track(range(0, n, 500), "writing"):
        part = draw.standard_normal((min(500, n - at), T, D), dtype=np.float32)
        which = np.arange(len(part)), draw.integers(T, size=len(part))
        part[which] += 12 * both[0] + 8 * labels[at : at + len(part), None].astype(np.float32) * both[1]
        keys[at : at + len(part)] = part
    keys.flush()
    np.save(folder / "labels.npy", labels)


def train(folder: str, steps: int, options: list[str]) -> tuple[int, dict[str, Any]]:
    """The most RssAnon while it runs, sampled every 20 ms, and the summary; in a process of its own."""
    torch.set_num_threads(1)
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    run = Path(folder) / "run"
    argv = ["fit", "--config", str(ROOT / "configs" / "tensor.yaml"), "--data.path", folder, "--data.mapped", "true"]
    argv += ["--data.batch_size", str(BATCH), "--trainer.max_steps", str(steps), "--trainer.precision", "32-true"]
    argv += ["--model.parametrization", "p", "--wandb", "disabled", "--report", "false", "--run_dir", str(run)]
    try:
        assert maxmargin([*argv, *options]) == 0
    finally:
        stop.set()
        thread.join()
    return most[0], json.loads((run / "summary.json").read_text())


def main() -> None:
    """Run the benchmark."""
    parser = common.flags(str(__doc__))
    parser.add_argument("--gigabytes", type=float, help="size of the keys; 1, and .1 with --quick")
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--folder", help="where the file is written; the system's folder of temporary files")
    parser.add_argument("options", nargs="*", help="further ones of maxmargin fit, behind --")
    given = parser.parse_args()
    size = given.gigabytes or (0.1 if given.quick else 1.0)
    n = round(size * 1e9 / (4 * T * D))
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        write(Path(folder), n, 0 if given.seed is None else given.seed)
        with get_context("spawn").Pool(1) as pool:
            most, found = pool.apply(train, (folder, given.steps, given.options))
    watched = found["monitor/seconds"] + (found.get("monitor/final_seconds") or 0.0)
    rate = found["steps"] / (found["seconds"] - watched)
    gap = found["svm/duality_gap"]
    row = [
        f"{size:g} GB", f"{n:,}", f"{found['steps']:,.0f}", f"{rate:.1f}", f"{most / 2**30:.2f} GiB",
        f"{most / (4 * n * T * D):.0%}", f"{watched:.0f} s", found["status/attention"],
        "" if gap is None else f"{gap:.0e}", "<= 2 GB of 6",
    ]  # fmt: skip
    notes = (
        "RssAnon is the peak of the whole process, with all libraries. Steps per second from the first look at the "
        "file on, which is read once to be checked and once for keys that are equal; without the monitor."
    )
    common.show("Data larger than memory", COLUMNS, [row], notes, given.keep)


if __name__ == "__main__":
    main()
