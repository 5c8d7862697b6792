"""What a scenario of reliability tells: how often it was tried, what failed, and what failed without a word."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Tries one case, drawn from the generator: None where it held, else what went wrong; begun with "silent" where the
#: user would not have been told.
Trial = Callable[[random.Random], "str | None"]
#: Likewise, of one that mostly waits: many at a time.
AsyncTrial = Callable[[random.Random], Awaitable["str | None"]]


@dataclass
class Tally:
    """Cases of a scenario, by what became of them.

    Attributes:
        cases: tried.
        failures: what went wrong, each with the seed that makes it again.
        silent: those of them that nobody would have noticed.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    def add(self, wrong: str | None, told: str) -> None:
        """One more case; ``told`` is how to make it again."""
        self.cases += 1
        if wrong is not None:
            self.failures.append(f"{told}: {wrong}")
            if wrong.startswith("silent"):
                self.silent.append(f"{told}: {wrong}")


def tries(trial: Trial, cases: int, seed: int, first: int = 0) -> Iterator[Tally]:
    """The tally after each case, from the ``first`` on; case i is drawn from ``random.Random(f"{seed}-{i}")``.

    Example:
        >>> *_, tally = tries(lambda rng: None if rng.random() < 2 else "silent", 3, seed=0)
        >>> tally.cases, tally.failures
        (3, [])
    """
    tally = Tally()
    for i in range(first, first + cases):
        try:
            wrong = trial(random.Random(f"{seed}-{i}"))
        except Exception as error:
            wrong = _unexpected(error)
        tally.add(wrong, f"{seed}-{i}")
        yield tally


def _unexpected(error: Exception) -> str:
    """Of a trial that could not be judged: a failure of the scenario, and no end of it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def tries_together(trial: AsyncTrial, cases: int, seed: int, at_once: int) -> Iterator[Tally]:
    """The same, ``at_once`` cases at a time in one thread: a process that forks should have no other.

    Example:
        >>> async def trial(rng: random.Random) -> str | None:
        ...     await asyncio.sleep(0.001 * rng.random())
        >>> *_, tally = tries_together(trial, 5, seed=0, at_once=3)
        >>> tally.cases
        5
    """
    tally, loop, slots = Tally(), asyncio.new_event_loop(), asyncio.Semaphore(at_once)

    async def one(i: int) -> tuple[str | None, str]:
        async with slots:
            try:
                return await trial(random.Random(f"{seed}-{i}")), f"{seed}-{i}"
            except Exception as error:
                return _unexpected(error), f"{seed}-{i}"

    left = {loop.create_task(one(i)) for i in range(cases)}
    try:
        while left:
            done, left = loop.run_until_complete(asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED))
            for task in done:
                tally.add(*task.result())
                yield tally
    finally:
        for task in left:
            task.cancel()
        loop.close()


def assert_none_failed(trial: Trial, cases: int, seed: int, first: int = 0) -> None:
    """The short form of a scenario, as a test."""
    tally = Tally()
    for tally in tries(trial, cases, seed, first):
        assert not tally.failures, tally.failures[-1]
    assert tally.cases == cases
