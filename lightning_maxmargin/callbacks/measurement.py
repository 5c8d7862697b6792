"""What a monitor measures, and what becomes of it: what each fills in for itself."""

from __future__ import annotations

from typing import Any, ClassVar

import pytorch_lightning as pl

from lightning_maxmargin.callbacks.budget import SECONDS_PER_NUMBER
from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.core.ranks import Failure
from lightning_maxmargin.keys import Source


class Measurement:
    """One evaluation of a run, as :class:`~lightning_maxmargin.callbacks.monitor.Monitor` makes it when it is due.

    In this order: :meth:`gather` on all processes; :meth:`snapshot_of` and :meth:`measure` on those that measure;
    :meth:`join` where these are several; :meth:`keep`, and :meth:`logged` for the loggers.
    """

    #: Whether every process measures a part of its own, to be joined; else the first measures and tells the others.
    everywhere: bool = False
    #: Of the keys that it measures, as the table of keys names them.
    sources_of_keys: ClassVar[tuple[Source, ...]] = ()
    #: What an evaluation is guessed to take until one has been made.
    seconds_per_number: ClassVar[float] = SECONDS_PER_NUMBER
    #: What the last evaluation measures on a sample where a run is short, in words.
    of_samples: ClassVar[str] = "These numbers are of"
    #: Whether the weights that training starts from are evaluated too.
    from_start: ClassVar[bool] = False

    def size(self) -> Size:
        """How much there is to measure, on the first process."""
        return Size(0, 0, "")

    def gather(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Failure | None, Any]:
        """What is read on all processes for the ones that measure, or what failed on one."""
        return None, None

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> Any:
        """What :meth:`measure` needs of the module: a copy wherever training goes on, see
        :attr:`~lightning_maxmargin.callbacks.monitor.Monitor.in_background`.

        Args:
            pl_module: now.
            samples: how many sequences are measured; all where None.
        """
        return None

    def measure(self, step: int, snapshot: Any, readings: Any) -> Measured:
        """What is found: a function of its arguments alone, on a thread of its own. It must not touch the module, the
        trainer nor what the monitor shows; an error reaches all processes."""
        raise NotImplementedError

    def join(self, parts: list[Any]) -> Measured:
        """Of the details of all processes, where ``everywhere``."""
        raise NotImplementedError

    def keep(self, step: int, details: Any) -> None:
        """Takes what was found beside the numbers, on the training thread, on the processes that have it."""

    def marks(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What the history says of an evaluation beside its step."""
        return {}

    def logged(self, numbers: dict[str, float]) -> dict[str, float]:
        """What loggers get of the numbers of an evaluation."""
        return numbers

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        """What the numbers mean, at the end; empty where they speak for themselves."""
        return ""
