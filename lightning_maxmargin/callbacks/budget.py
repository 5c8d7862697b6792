"""What share of a run's time a monitor may take, and what it has taken."""

from __future__ import annotations

import time

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.limit_problems import SMALL_DATA_NUMBERS
from lightning_maxmargin.schedule import affordable

DEFAULT_SHARE = 0.05
#: What an evaluation is expected to take until one has been made, and more of it for each of the first numbers in the
#: keys and for each of the others: 150 sequences of 8 x 384 took .09 to .18 s, 500 .28, 500 of 128 x 384 .8 and 2,000
#: of these 1.9 (scripts/benchmarks/watching.py).
SECONDS_AT_LEAST, FIRST_NUMBERS, SECONDS_PER_FIRST, SECONDS_PER_NUMBER = 0.06, 2_000_000, 1.5e-7, 5.5e-8
#: Parts of the samples that are thought of for the last evaluation, each this share of the one before.
FEWER = 0.8


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


def guess(numbers: int, each: float = SECONDS_PER_NUMBER) -> float:
    """Seconds of the first evaluation of so many numbers in the keys, ``each`` of all but the first.

    Example:
        >>> round(guess(1_000_000), 2), round(guess(12_000_000), 2)
        (0.21, 0.91)
    """
    first = min(numbers, FIRST_NUMBERS)
    return SECONDS_AT_LEAST + first * SECONDS_PER_FIRST + (numbers - first) * each


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Budget:
    """The clock of one monitor in one run: all its evaluations must stay within a share of it, the last one included.

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
        self._numbers = self._whole = numbers
        self._each = SECONDS_PER_NUMBER
        self._last, self._before = 0.0, elapsed
        self._started: tuple[float, float] | None = None

    def start(
        self, share: float, numbers: int, whole: int | None = None, each: float = SECONDS_PER_NUMBER
    ) -> None:  # fmt: skip
        """Training begins, or goes on.

        Args:
            share: of the run's time.
            numbers: in the keys that an evaluation measures.
            whole: in all keys, where it measures some.
            each: seconds that a number is guessed to take until an evaluation has been made.
        """
        self._each = each
        self.share, self._numbers, self._started = share, numbers, _now()
        self._whole = numbers if whole is None else whole

    def stop(self) -> None:
        """Training is over."""
        self._before, self._started = self.elapsed, None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far: of the clock, or of the processor where these are fewer.

        An evaluation is counted in the processor's; where other programs have most of it, seconds of the clock would
        cover several times as many.
        """
        if self._started is None:
            return self._before
        return self._before + min(now - then for now, then in zip(_now(), self._started, strict=True))

    @property
    def expected(self) -> float:
        """Seconds of the next evaluation: as the last or as they are on average, whichever is more."""
        return max(self._last, self.spent / self.evaluations) if self.evaluations else guess(self._numbers, self._each)

    def expected_of(self, part: float) -> float:
        """Seconds of an evaluation of this part of the samples."""
        return self.expected * part if self.evaluations else guess(int(self._numbers * part), self._each)

    @property
    def expected_of_all(self) -> float:
        """Seconds of an evaluation of everything: as much more as there is to measure."""
        return (
            self.expected * self._whole / max(1, self._numbers) if self.evaluations else guess(self._whole, self._each)
        )

    def spend(self, seconds: float) -> None:
        """Counts an evaluation."""
        self.spent, self._last, self.evaluations = self.spent + seconds, seconds, self.evaluations + 1

    def refund(self) -> float:
        """Takes back the last evaluation, which has turned out to be the one at the end; returns its seconds."""
        seconds, self._last = self._last, 0.0
        self.spent, self.evaluations = self.spent - seconds, self.evaluations - 1
        return seconds

    def covers_another(self) -> bool:
        """Whether one more may be made now, with room left for the last one: for that of everything where half of the
        share holds it."""
        reserve = max(self.expected, min(self.expected_of_all, self.share * self.elapsed / 2))
        return affordable(self.spent + reserve, self.expected, self.elapsed, self.share)

    def covers_all(self) -> bool:
        """Whether the last one may be of everything."""
        return affordable(self.spent, self.expected_of_all, self.elapsed, self.share)

    def covered_part(self, least: float, besides: float = 0.0) -> float:
        """The part of the samples that the last one may be of: as many as what is left covers, ``least`` if fewer;
        ``besides`` are the seconds of what it measures on everything anyway."""
        part, spent = 1.0, self.spent + besides
        while part > least and not affordable(spent, self.expected_of(part), self.elapsed, self.share):
            part *= FEWER
        return max(part, least)
