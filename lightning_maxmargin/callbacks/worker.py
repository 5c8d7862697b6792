"""The thread that measures while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Worker:
    """Runs one evaluation after another on a thread of its own, whose torch operations take one core.

    An evaluation that is waited for runs here as well: on as many threads sums are added in the same order, so the
    numbers of foreground and background are the same to the last bit.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "monitor")
        before = torch.get_num_threads()
        # Of the calling thread alone; what torch keeps for threads to come is set back after it.
        self._pool.submit(torch.set_num_threads, 1).result()
        torch.set_num_threads(before)

    def submit(self, meanwhile: bool, measure: Callable[..., Any], *given: Any) -> Future[tuple[Any, float]]:
        """Begins ``measure(*given)``; the future holds what it returned and the seconds it took.

        Seconds of the processor where training goes on ``meanwhile``, for that is what it takes from it; of the clock
        where it is waited for.
        """
        clock = time.thread_time if meanwhile else time.perf_counter
        return self._pool.submit(_timed, clock, measure, *given)

    def stop(self) -> None:
        """Takes no more work; what runs ends by itself, for a solver cannot be interrupted."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(clock: Callable[[], float], measure: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    start = clock()
    found = measure(*given)
    return found, clock() - start
