"""When a monitor evaluates, and of how many sequences: at the steps that are due, where its budget covers it."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from lightning_maxmargin.callbacks.budget import Budget
from lightning_maxmargin.callbacks.evaluation import Size
from lightning_maxmargin.schedule import next_step

#: This package's own, so that a notebook shows none of it unless its level is set to INFO.
LOGGER = logging.getLogger("lightning_maxmargin")
#: Steps per factor of ten at which several processes ask one another for a result that is under way: each costs them a
#: wait of .1 ms, and a result is at most 2.3 % of the run late.
POLLS_PER_DECADE = 100
#: Sequences that the last evaluation is of at least, however short the run: 50 of 8 x 384 took .05 s.
FEWEST = 50
#: Likewise where each has an SVM a head: 72 heads of a MiniLM took .8 to 1.6 s on 16 sentences, and minutes on 128.
FEWEST_OF_HEADS = 8


def in_seconds(x: float) -> str:
    """Two digits, and no power of ten.

    Example:
        >>> in_seconds(0.0123), in_seconds(4.56), in_seconds(123.4)
        ('0.012', '4.6', '123')
    """
    return f"{x:.2g}" if x < 100 else f"{x:,.0f}"


@rank_zero_only
def note(text: str) -> None:
    """Logs what a monitor does of its own accord, on the first process."""
    LOGGER.info(text)


class EvaluationSchedule:
    """The evaluations of one monitor in one run.

    Args:
        name: of the monitor, in what is said.
        clock: its budget, begun.
        size: how much there is to measure.
        due: whether the weights that training starts from are evaluated.
        of_heads: whether every sequence costs an SVM a head.

    Attributes:
        due: whether an evaluation is due that is not made yet.
        sampled: that the last one is not of everything, in words; empty where it is.
    """

    def __init__(self, name: str, clock: Budget, size: Size, due: bool, of_heads: bool = False) -> None:
        self.due, self.sampled, self._of_heads = due, "", of_heads
        self._name, self._clock, self._size = name, clock, size
        self._next, self._poll = -1, -1
        self._has_said = False  # that evaluations are left out

    def announce(self, given: bool, background: bool) -> None:
        """Says what evaluations cost and are of.

        Args:
            given: whether the budget is the user's.
            background: whether training goes on meanwhile.
        """
        size = self._size
        why = "as given" if given else f"for keys of {size.whole:,} numbers"
        note(
            f"{self._name}: budget {self._clock.share:g} of the run's time ({why}), measured "
            f"{'in the background' if background else 'at once'}{', ' if size.which else ''}{size.which}"
        )

    def pause(self, step: int, per_decade: int, pl_module: pl.LightningModule) -> None:
        """Lets a module of many steps per batch end one where the first of its monitors evaluates.

        Args:
            step: now.
            per_decade: evaluations per factor of ten in steps.
            pl_module: that is trained.
        """
        if step >= self._next:
            self._next = next_step(step, per_decade)
        if hasattr(pl_module, "pause_at"):
            paused: int | None = pl_module.pause_at  # type: ignore[assignment]
            if paused is None or not step < paused < self._next:
                pl_module.pause_at = self._next  # type: ignore[assignment]

    def arrives(self, step: int) -> bool:
        """Whether this step is one of those by factors of ten, where an evaluation is due."""
        arrived = step >= self._next
        self.due = self.due or arrived
        return arrived

    def may_ask(self, trainer: pl.Trainer) -> bool:
        """Whether processes ask one another now: at steps that all know, since each has a clock of its own."""
        step = trainer.global_step
        if trainer.world_size == 1:
            return True
        passed = step >= self._poll
        if passed:
            self._poll = next_step(step, POLLS_PER_DECADE)
        return passed

    def affords_another(self, trainer: pl.Trainer) -> bool:
        """Whether the budget covers an evaluation now; the first that it does not is said."""
        if self._clock.share >= 1:
            return True
        covered = bool(trainer.strategy.broadcast(self._clock.covers_another()))
        if not covered and not self._has_said:
            self._has_said = True
            note(
                f"{self._name}: an evaluation takes about {in_seconds(self._clock.expected)} s, so from step "
                f"{trainer.global_step} on they are made as {self._clock.share:g} of the run's time allows it; "
                "monitor.budget: 1 makes all"
            )
        return covered

    def last_samples(self, trainer: pl.Trainer, of_samples: str) -> int | None:
        """Of how many sequences the last evaluation is: None for all, which is said where the budget covers fewer.

        Args:
            trainer: of the run.
            of_samples: what is measured on a sample, in words.
        """
        clock, count = self._clock, self._size.sequences
        fewest = FEWEST_OF_HEADS if self._of_heads else FEWEST
        if clock.share >= 1 or not trainer.strategy.broadcast(count > fewest and not clock.covers_all()):
            return None
        part = clock.covered_part(fewest / count, self._size.besides) if trainer.is_global_zero else 1.0
        samples = int(trainer.strategy.broadcast(round(count * part)))
        self.sampled = (
            f"{of_samples} {samples:,} sequences, for {clock.share:g} of the run's time does not cover the "
            f"{in_seconds(clock.expected_of_all)} s that an evaluation of everything takes; monitor.budget: 1 makes it."
        )
        note(f"{self._name}: {self.sampled}")
        return samples

    @property
    def is_of_samples(self) -> bool:
        """Whether evaluations before the last are of some of the sequences."""
        return self._size.measured < self._size.whole
