"""A callback that measures a run on a schedule and within a budget: what the monitors share."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from lightning_maxmargin.callbacks.axes import define_axes_of
from lightning_maxmargin.callbacks.budget import Budget, check_budget, share_of
from lightning_maxmargin.callbacks.delivery import log_evaluation, loss_of_this_step, share_outcome
from lightning_maxmargin.callbacks.evaluation import Pending, Size
from lightning_maxmargin.callbacks.evaluation_schedule import EvaluationSchedule
from lightning_maxmargin.callbacks.measurement import Measurement
from lightning_maxmargin.callbacks.monitor_state import restored, state_of
from lightning_maxmargin.callbacks.next_epoch import begin_next_epoch
from lightning_maxmargin.callbacks.restored import keep_words, may_stop
from lightning_maxmargin.callbacks.shown import Shown
from lightning_maxmargin.callbacks.worker import Worker
from lightning_maxmargin.core.ranks import as_failure
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value
from lightning_maxmargin.reduce import leave_group_at_exit

#: Evaluations per decade that a schedule of whole steps can tell apart.
MOST_PER_DECADE = 10**9


class Monitor(Measurement, Shown, Callback):
    """Measures at geometrically spaced steps, or every so many epochs, within a share of the run's time, and logs.

    An evaluation that is due is made once the budget covers it and the one before is done. Under a budget of 1 it is
    made at its step; under less the weights are copied, a thread of its own measures while training goes on, and the
    numbers are logged at the step they belong to, ``monitor/lag_steps`` later. The last evaluation is always made, when
    training is over, on everything where the budget covers that, else on the samples or as many of them as it covers:
    ``monitor/final_seconds``, which ``monitor/seconds`` leaves out. All together are within the budget, but for a run
    too short for an evaluation of fifty sequences.

    One process measures (where ``everywhere`` is false), all receive the numbers or the error, and all log the same
    keys at the same step; one that is undefined is left out of the log and null in ``last``. A checkpoint waits
    for the evaluation under way: all waits together are within the budget.

    Args:
        per_decade: evaluations per factor of ten in steps.
        every_n_epochs: evaluates after so many epochs instead of the geometric steps.
        budget: share of the run's time that all evaluations may take, above 0 and at most 1; None is 1 where the keys
            have at most 100,000 numbers, as in theory's problems, and 0.05 else.
        samples: sequences of an evaluation; all where None. The last is of all where the budget covers it.
        background: whether training goes on meanwhile; None is so under a budget below 1.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step``.
        message: what the numbers mean, where they need a message, after where the run stopped early.
        seconds: what evaluations before the last have cost, of the processor's time where training went on.
        final_seconds: what the last has, None before it.
        at_end: whether the last is being made.

    Raises:
        InputError: a number that is not positive, a budget that is no share.
    """

    def __init__(
        self,
        per_decade: int = 10,
        every_n_epochs: int | None = None,
        budget: float | None = None,
        samples: int | None = None,
        background: bool | None = None,
    ) -> None:
        self.per_decade, self.every_n_epochs = per_decade, every_n_epochs
        self.budget, self.samples, self.background = budget, samples, background
        self.check_positive(per_decade=per_decade, every_n_epochs=every_n_epochs, samples=samples)
        if per_decade > MOST_PER_DECADE:
            raise InputError(f"monitor.per_decade: {per_decade}; expected at most {MOST_PER_DECADE:,}")
        check_budget(budget)
        self.last: dict[str, Value] = {}
        self.history: list[dict[str, Any]] = []
        self.message = ""
        self.final_seconds: float | None = None
        self._clock = Budget()
        self._trainer: pl.Trainer | None = None
        self._worker: Worker | None = None
        self._pending: Pending | None = None
        self._failed: Exception | None = None
        self._schedule: EvaluationSchedule  # made when training starts
        self.at_end = False

    @staticmethod
    def check_positive(**numbers: int | None) -> None:
        """Raises InputError where one of these arguments is there and not positive."""
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise InputError(f"monitor.{name}: {number}; expected a positive number")

    @property
    def seconds(self) -> float:
        return self._clock.spent

    @property
    def in_background(self) -> bool:
        """Whether training goes on while an evaluation is made."""
        return self._clock.share < 1 if self.background is None else self.background

    # --- when -------------------------------------------------------------------------------------------------

    #: Whether every sequence of an evaluation costs an SVM a head.
    of_heads = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Which know the monitors.
        from lightning_maxmargin.callbacks.at_evaluations import count_evaluations, refuse_unlogged

        leave_group_at_exit()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit":
            if trainer.global_step == 0:
                self.forget()  # a checkpoint's is read after this
            refuse_unlogged(callbacks, pl_module, getattr(trainer, "datamodule", None))
        count_evaluations(callbacks)

    def forget(self) -> None:
        """What an earlier run has left in this monitor: its numbers are not those of another one."""
        self.last, self.history, self.message, self._clock = {}, [], "", Budget()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            keep_words(trainer.callbacks, checkpoint["callbacks"], may_stop(trainer, checkpoint))  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begin_next_epoch(trainer)
        size = self.size() if trainer.is_global_zero else Size(0, 0, "")
        size = trainer.strategy.broadcast(size)
        self._clock.start(share_of(self.budget, size.whole), size.measured, size.whole, self.seconds_per_number)
        due = self.from_start and not self.history
        self._schedule = EvaluationSchedule(type(self).__name__, self._clock, size, due, self.of_heads)
        self.at_end = False
        self._trainer, self._worker, self.final_seconds = trainer, Worker(), None
        if trainer.is_global_zero:
            define_axes_of(trainer.loggers)
        self._schedule.announce(self.budget is not None, self.in_background)
        if self._schedule.due:
            self._turn(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_epochs is None:
            self._schedule.pause(trainer.global_step, self.per_decade, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._raise_failed()
        if trainer.global_step == trainer.max_steps:
            self._finish(trainer, pl_module)
            return
        arrived = self.every_n_epochs is None and self._schedule.arrives(trainer.global_step)
        if (self._pending is None and not self._schedule.due) or not (arrived or self._schedule.may_ask(trainer)):
            return
        self._turn(trainer, pl_module, self.every_n_epochs is None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs is None:
            return
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._finish(trainer, pl_module)
        elif (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not self._seen(trainer):
            self._schedule.due = True
        if self._schedule.due:
            self._turn(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise_failed()
        if trainer.global_step:
            self._finish(trainer, pl_module)
        if trainer.is_global_zero:
            parts = (self._ending(trainer), self.diagnose(pl_module), self._schedule.sampled)
            self.message = " ".join(filter(None, parts))
        self._stop()

    def _ending(self, trainer: pl.Trainer) -> str:
        """Where an EarlyStopping has ended the run, which the first monitor of a run says."""
        from lightning_maxmargin.callbacks.at_evaluations import stopped_early

        first = next(c for c in trainer.callbacks if isinstance(c, Monitor))  # type: ignore[attr-defined]
        return stopped_early(trainer) if first is self else ""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # The other processes may have no such exception: nothing is asked of them.
        self._pending = None
        self._stop()

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
        self._worker, self._trainer = None, None
        self._clock.stop()

    def _turn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, begin: bool = True) -> None:
        """Logs what is ready, and begins what is due where thread and budget allow it."""
        if self._pending is not None:
            # Under a budget of 1 the steps decide alone: the one before is waited for.
            must = self._schedule.due and self._clock.share >= 1
            if not (must or trainer.strategy.reduce_boolean_decision(self._pending.done)):
                return
            self._deliver(trainer)
        if begin and self._schedule.due and self._schedule.affords_another(trainer):
            self._schedule.due = False
            self._begin(trainer, pl_module, self.samples)
            if not self.in_background:
                self._deliver(trainer)

    def _seen(self, trainer: pl.Trainer) -> bool:
        return bool(self.history) and self.history[-1]["step"] == trainer.global_step

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The evaluation at the end, on everything where the budget covers it."""
        self._schedule.due = False
        if self._pending is not None:
            self._deliver(trainer)
        if self._seen(trainer) and self.final_seconds is not None:
            return
        samples, self.at_end = self._schedule.last_samples(trainer, self.of_samples), True
        if not self._seen(trainer) or (samples is None and self._schedule.is_of_samples):
            self._begin(trainer, pl_module, samples, last=True)
            self._deliver(trainer)
        elif self.last:
            # Its step was an evaluation's already, of as much.
            self.final_seconds = self._clock.refund()
            self.last |= {"monitor/seconds": self.seconds, "monitor/final_seconds": self.final_seconds}
            self.history[-1] |= self.last

    # --- one evaluation ---------------------------------------------------------------------------------------

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Value]:
        """Measures now, whatever the budget says, and logs on all processes."""
        if self._pending is not None:
            self._deliver(trainer)
        self._begin(trainer, pl_module, self.samples)
        self._deliver(trainer)
        return self.last

    def _begin(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, samples: int | None, last: bool = False
    ) -> None:
        start, step = time.perf_counter(), trainer.global_step
        failure, readings = self.gather(trainer, pl_module)
        measures, snapshot = self.everywhere or trainer.is_global_zero, None
        if failure is None and measures:
            try:
                snapshot = self.snapshot_of(pl_module, samples)
            except Exception as error:
                failure = as_failure(error)
        # Before the other thread begins, which has a clock of its own.
        seconds, future = time.perf_counter() - start, None
        if failure is None and measures:
            assert self._worker is not None
            meanwhile = self.in_background and not last
            future = self._worker.submit(meanwhile, self.measure, step, snapshot, readings)
        losses = loss_of_this_step(trainer)
        self._pending = Pending(step, self.marks(trainer), losses, failure, future, seconds, last)

    def _deliver(self, trainer: pl.Trainer) -> None:
        """Waits for the evaluation under way and logs it, on all processes."""
        assert self._pending is not None
        pending, self._pending = self._pending, None
        join = self.join if self.everywhere else None
        found, seconds = share_outcome(trainer, type(self).__name__, pending, join)
        if pending.last:
            self.final_seconds = seconds
        else:
            self._clock.spend(seconds)
        values = found.values
        values |= {"monitor/seconds": self.seconds, "monitor/final_seconds": self.final_seconds}
        values["monitor/lag_steps"] = float(trainer.global_step - pending.step)
        if found.details is not None:
            self.keep(pending.step, found.details)
        self.last = values
        self.history.append({"step": pending.step, **values, **pending.marks})
        log_evaluation(trainer, pending, values, self.logged)

    # --- checkpoints ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._pending is not None and self._trainer is not None:
            try:
                self._deliver(self._trainer)
            except Exception as error:
                # The checkpoint is good; the run ends with this at its next step.
                self._failed = error
        return state_of(self.history, self._clock)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._clock = restored(state_dict, type(self).__name__)

    def _raise_failed(self) -> None:
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
