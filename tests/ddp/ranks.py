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

    Raises: TimeoutError where one has not ended, RuntimeError where one ended unheard; others are killed.
    """
    context = multiprocessing.get_context("fork")
    meet = folder / f"meet-{world}-{len(list(folder.iterdir()))}"
    ends = [context.Pipe(duplex=False) for _ in range(world)]
    over = context.Event()
    children = [
        context.Process(target=_child, args=(rank, world, meet, work, ends[rank][1], over)) for rank in range(world)
    ]
    for child in children:
        child.start()
    for _, here in ends:
        here.close()  # the children's own: one that ends is heard of at once
    try:
        found = []
        for rank, (there, _) in enumerate(ends):
            if not there.poll(timeout):
                raise TimeoutError(f"rank {rank} of {world} has not ended after {timeout} s")
            try:
                found.append(pickle.loads(there.recv_bytes()))
            except EOFError as error:
                children[rank].join(5)
                raise RuntimeError(f"rank {rank} of {world} ended with {children[rank].exitcode}") from error
        return found
    finally:
        over.set()
        for child in children:
            child.join(5)
            child.kill()


def _child(rank: int, world: int, meet: Path, work: Callable[[int], Any], end: Any, over: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    failed = False
    try:
        found = work(rank)
    except Exception as error:
        found, failed = f"{type(error).__name__}: {error}", True
    # Plain pickle: that of multiprocessing would share the tensors' memory, which goes with this process.
    end.send_bytes(pickle.dumps(found))
    if not failed:
        # The others may still be meeting it, whom its end would fail; one that has failed ends, so that none waits.
        over.wait()
    dist.destroy_process_group()
