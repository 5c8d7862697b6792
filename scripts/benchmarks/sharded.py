"""Memory of a rank beside its part of the keys, and time against one process: ``solve_att_svm(DistributedShard(...))``.

    .venv/bin/python scripts/benchmarks/sharded.py --world 2 --megabytes 400

Every rank maps one file of float32 keys and holds every world-size-th sequence of it. Printed per rank: its part, the
most anonymous memory (RssAnon of /proc, sampled) above what it had before the solve, and how far its direction is from
that of one process on the same file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from lightning_maxmargin.svm import DistributedShard, only, solve_att_svm, solve_joint_svm

TOKENS, DIM = 32, 64


def anonymous() -> float:
    """MB of memory that belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak(threading.Thread):
    """The most of ``anonymous`` while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.going = anonymous(), True

    def run(self) -> None:
        while self.going:
            self.most = max(self.most, anonymous())
            time.sleep(0.002)


def write(path: Path, n: int) -> torch.Tensor:
    """Keys whose tokens 0 are ahead by a common direction, and labels; a block at a time."""
    g, u = torch.Generator().manual_seed(0), torch.zeros(DIM)
    u[0] = 12.0
    array = np.lib.format.open_memmap(path, "w+", np.float32, (n, TOKENS, DIM))
    labels = torch.empty(n)
    for at in range(0, n, 1000):
        block = torch.randn(min(1000, n - at), TOKENS, DIM, generator=g)
        block[:, 0] += u
        labels[at : at + 1000] = block[:, 0, 1].sign()
        # A head that separates: the sign's coordinate is at least 1 from 0.
        block[:, 0, 1] += block[:, 0, 1].sign()
        array[at : at + 1000] = block.numpy()
    array.flush()
    return labels


def solved(keys: Any, part: Any, labels: torch.Tensor, selected: torch.Tensor, limit: str) -> Any:
    if limit == "attention":
        return only(solve_att_svm(keys, selected))
    return only(solve_joint_svm(keys, part, labels, selected, limit=limit).attention)


def rank_main(rank: int, world: int, folder: Path, labels: torch.Tensor, limit: str, end: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{limit}-{world}", rank=rank, world_size=world)
    mapped = np.load(folder / "keys.npy", mmap_mode="r")
    part = mapped[rank::world]
    shard = DistributedShard(part, range(rank, len(mapped), world))
    before, peak = anonymous(), Peak()
    peak.start()
    start = time.perf_counter()
    solution = solved(shard, part, labels[rank::world], torch.zeros(len(part), dtype=torch.int64), limit)
    seconds, peak.going = time.perf_counter() - start, False
    end.send((part.nbytes / 2**20, peak.most - before, seconds, str(solution.status), solution.direction.numpy()))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=400, help="of the whole file")
    parser.add_argument("--limits", nargs="+", default=["attention", "relaxed"])
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        n = asked.megabytes * 2**20 // (TOKENS * DIM * 4)
        labels = write(Path(folder) / "keys.npy", n)
        for limit in asked.limits:
            found = {}
            for world in (1, asked.world):
                ends = [context.Pipe(duplex=False) for _ in range(world)]
                ranks = [
                    context.Process(target=rank_main, args=(r, world, Path(folder), labels, limit, ends[r][1]))
                    for r in range(world)
                ]
                for process in ranks:
                    process.start()
                found[world] = [there.recv() for there, _ in ends]
                for process in ranks:
                    process.join()
            alone = found[1][0]
            for rank, (part, memory, seconds, status, direction) in enumerate(found[asked.world]):
                off = np.linalg.norm(direction - alone[4]) / np.linalg.norm(alone[4])
                print(
                    f"{limit}: rank {rank} of {asked.world}: part {part:.0f} MB, anonymous +{memory:.0f} MB, "
                    f"{seconds / alone[2]:.2f} of one process's time, {status}, off by {off:.1e}"
                )


if __name__ == "__main__":
    main()
