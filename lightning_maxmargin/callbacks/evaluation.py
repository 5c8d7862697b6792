"""One evaluation of a monitor: how much it measures, while it is under way, and what it found."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_maxmargin.core.ranks import Failure, as_failure
from lightning_maxmargin.keys import Value


class Measured(NamedTuple):
    """What an evaluation found: numbers by key, and what else the monitor keeps, on the processes that measure."""

    values: dict[str, Value]
    details: Any = None


class Size(NamedTuple):
    """Numbers in all keys and in those that an evaluation measures, which these are, in words for the log, of how many
    sequences, 0 where it cannot be of fewer, and the seconds of what the last one measures on everything anyway."""

    whole: int
    measured: int
    which: str
    sequences: int = 0
    besides: float = 0.0


@dataclass(frozen=True)
class Pending:
    """An evaluation under way.

    Attributes:
        step: whose weights are measured.
        marks: what else the history says of it.
        losses: of the training step before it, logged beside what it finds.
        failure: where its inputs could not be read.
        future: of the processes that measure.
        seconds: it has cost the training thread.
        last: whether it is the one at the end.
    """

    step: int
    marks: dict[str, Any]
    losses: dict[str, float]
    failure: Failure | None
    future: Future[tuple[Measured, float]] | None
    seconds: float
    last: bool

    @property
    def done(self) -> bool:
        """Whether nothing is waited for here."""
        return self.future is None or self.future.done()

    def outcome(self) -> tuple[Failure | None, Measured, float]:
        """What failed or was found, once it has, and the seconds of the thread that measured."""
        if self.failure is not None or self.future is None:
            return self.failure, Measured({}), 0.0
        # An error is not raised here: the other processes wait for an answer, and would wait half an hour.
        try:
            return None, *self.future.result()
        except Exception as error:
            return as_failure(error), Measured({}), 0.0
