"""What a scenario of reliability tells: how often it was tried, what failed, and what failed without a word."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

#: Tries one case, drawn from the generator: None where it held, else what went wrong; begun with "silent" where the
#: user would not have been told.
Trial = Callable[[random.Random], "str | None"]


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


def tries(trial: Trial, cases: int, seed: int) -> Iterator[Tally]:
    """The tally after each case; case i is drawn from ``random.Random(f"{seed}-{i}")``.

    Example:
        >>> *_, tally = tries(lambda rng: None if rng.random() < 2 else "silent", 3, seed=0)
        >>> tally.cases, tally.failures
        (3, [])
    """
    tally = Tally()
    for i in range(cases):
        tally.add(trial(random.Random(f"{seed}-{i}")), f"{seed}-{i}")
        yield tally


def assert_none_failed(trial: Trial, cases: int, seed: int) -> None:
    """The short form of a scenario, as a test."""
    tally = Tally()
    for tally in tries(trial, cases, seed):
        assert not tally.failures, tally.failures[-1]
    assert tally.cases == cases
