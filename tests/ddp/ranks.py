"""Processes over gloo for tests: forked, so that they cost a third of a second, and met by a file, not by a port."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist


def on_ranks(world: int, folder: Path, work: Callable[[int], Any], timeout: float = 300) -> list[Any]:
    """What ``work(rank)`` returns on each of so many processes, or its error as "Class: message".

    Raises: TimeoutError where one has not ended; the others are killed.
    """
    context = multiprocessing.get_context("fork")
    meet = folder / f"meet-{world}-{len(list(folder.iterdir()))}"
    ends = [context.Pipe(duplex=False) for _ in range(world)]
    children = [context.Process(target=_child, args=(rank, world, meet, work, ends[rank][1])) for rank in range(world)]
    for child in children:
        child.start()
    try:
        found = []
        for rank, (there, _) in enumerate(ends):
            if not there.poll(timeout):
                raise TimeoutError(f"rank {rank} of {world} has not ended after {timeout} s")
            found.append(pickle.loads(there.recv_bytes()))
        return found
    finally:
        for child in children:
            child.join(5)
            child.kill()


def _child(rank: int, world: int, meet: Path, work: Callable[[int], Any], end: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    try:
        found = work(rank)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    # Plain pickle: that of multiprocessing would share the tensors' memory, which goes with this process.
    end.send_bytes(pickle.dumps(found))
    dist.destroy_process_group()
