"""What share of a run's time a monitor may take, and what it has taken."""

from __future__ import annotations

import time

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.selector import SMALL_DATA_NUMBERS
from lightning_maxmargin.schedule import affordable

DEFAULT_SHARE = 0.05
#: What an evaluation is expected to take until one has been made, and more of it for each number in the keys: 500
#: sequences of 8 x 384 took .31 s, 500 of 128 x 384 with all limits defined 1.8, and 72 heads 12.8 s for 2.3e8 numbers
#: (scripts/benchmarks/watching.py).
SECONDS_AT_LEAST, SECONDS_PER_NUMBER = 0.3, 8e-8


def check_budget(budget: float | None) -> None:
    """Refuses what is no share of a run.

    Raises:
        InputError: it is not above 0 and at most 1.
    """
    if budget is not None and not 0 < budget <= 1:
        raise InputError(f"monitor.budget: {budget}; expected a share of the run's time, above 0 and at most 1")


def share_of(budget: float | None, numbers: int) -> float:
    """The budget given; else 1 for keys of up to 100,000 numbers, which cost milliseconds, and 0.05 for more.

    Example:
        >>> share_of(None, 1_000), share_of(None, 1_000_000), share_of(0.2, 1_000)
        (1.0, 0.05, 0.2)
    """
    if budget is not None:
        return budget
    return 1.0 if numbers <= SMALL_DATA_NUMBERS else DEFAULT_SHARE


def guess(numbers: int) -> float:
    """Seconds of the first evaluation of so many numbers in the keys.

    Example:
        >>> guess(1_000_000)
        0.38
    """
    return SECONDS_AT_LEAST + numbers * SECONDS_PER_NUMBER


class Budget:
    """The clock of one monitor in one run: the evaluations before the last must stay within a share of it.

    Args:
        share: of the run's time.
        numbers: in the keys that an evaluation measures, from which the cost of the first is guessed.
        spent: seconds of earlier evaluations, of a run that is resumed.
        elapsed: its seconds so far.
        evaluations: how many there were.
    """

    def __init__(
        self, share: float = 1.0, numbers: int = 0, spent: float = 0.0, elapsed: float = 0.0, evaluations: int = 0
    ) -> None:
        self.share, self.spent, self.evaluations = share, spent, evaluations
        self._guess, self._last = guess(numbers), 0.0
        self._before = elapsed
        self._started: float | None = None

    def start(self, share: float, numbers: int) -> None:
        """Training begins, or goes on."""
        self.share, self._guess, self._started = share, guess(numbers), time.perf_counter()

    def stop(self) -> None:
        """Training is over."""
        self._before, self._started = self.elapsed, None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    @property
    def expected(self) -> float:
        """Seconds of the next evaluation: as the last or as they are on average, whichever is more."""
        return max(self._last, self.spent / self.evaluations) if self.evaluations else self._guess

    def spend(self, seconds: float) -> None:
        """Counts an evaluation."""
        self.spent, self._last, self.evaluations = self.spent + seconds, seconds, self.evaluations + 1

    def refund(self) -> float:
        """Takes back the last evaluation, which has turned out to be the one at the end; returns its seconds."""
        seconds, self._last = self._last, 0.0
        self.spent, self.evaluations = self.spent - seconds, self.evaluations - 1
        return seconds

    def covers_another(self) -> bool:
        """Whether one more may be made now."""
        return affordable(self.spent, self.expected, self.elapsed, self.share)
