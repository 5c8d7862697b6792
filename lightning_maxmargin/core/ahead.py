"""What is needed next made by a thread, while what is here is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def by_thread(make: Callable[[Given], Made], given: Iterable[Given], prefetch: int, threads: int = 1) -> Iterator[Made]:
    """``make`` of all that is given, in its order, up to ``prefetch`` ahead, in so many threads.

    torch copies without the interpreter's lock, so the calling thread goes on meanwhile. An error of ``make`` is
    raised at the one that it belongs to.

    Example:
        >>> list(by_thread(lambda x: 2 * x, [1, 2, 3], prefetch=2))
        [2, 4, 6]
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for part in given:
                waiting.append(pool.submit(make, part))
                if len(waiting) > prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Lightning stops at len() and leaves the generator where it is.
            for later in waiting:
                later.cancel()


def beside(first: Callable[[], Given], second: Callable[[], Made], threads: int) -> tuple[Given, Made]:
    """What both make: the second first, or on a thread of its own while the first is made, where there are two.

    Example:
        >>> beside(lambda: 1, lambda: 2, threads=2)
        (1, 2)
    """
    if threads < 2:
        made = second()
        return first(), made
    with ThreadPoolExecutor(1, "beside") as pool:
        later = pool.submit(second)
        return first(), later.result()
