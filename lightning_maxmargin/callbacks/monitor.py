"""When a run is measured, at what cost, and what becomes of the numbers: what the monitors share."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from lightning_maxmargin.callbacks.axes import define_axes_of
from lightning_maxmargin.callbacks.budget import SECONDS_PER_NUMBER, Budget, check_budget, share_of
from lightning_maxmargin.callbacks.evaluation import Measured, Pending, Size
from lightning_maxmargin.callbacks.next_epoch import begin_next_epoch
from lightning_maxmargin.callbacks.restored import keep_words
from lightning_maxmargin.callbacks.worker import Worker
from lightning_maxmargin.core.ranks import Failure, as_failure
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Source, Value, check_registered
from lightning_maxmargin.reduce import gather, leave_group_at_exit
from lightning_maxmargin.schedule import next_step

#: Steps per factor of ten at which several processes ask one another for a result that is under way: each costs them a
#: wait of .1 ms, and a result is at most 2.3 % of the run late.
POLLS_PER_DECADE = 100
#: Logged by modules, and at every evaluation beside its numbers.
LOSS = "train/loss"


#: Sequences that the last evaluation is of at least, however short the run: 50 of 8 x 384 took .05 s.
FEWEST = 50
#: Evaluations per decade that a schedule of whole steps can tell apart.
MOST_PER_DECADE = 10**9


class Monitor(Callback):
    """Measures at geometrically spaced steps, or every so many epochs, within a share of the run's time, and logs.

    An evaluation that is due is made once the budget covers it and the one before is done. Under a budget of 1 it is
    made at its step; under less the weights are copied, a thread of its own measures while training goes on, and the
    numbers are logged at the step they belong to, ``monitor/lag_steps`` later. The last evaluation is always made, when
    training is over, on everything where the budget covers that, else on the samples or as many of them as it covers:
    ``monitor/final_seconds``, which ``monitor/seconds`` leaves out. All together are within the budget, but for a run
    too short for an evaluation of fifty sequences.

    One process measures (where ``everywhere`` is false), all receive the numbers or the error, and all log the same
    keys at the same step; one that is undefined is left out of the log and null in :attr:`last`. A checkpoint waits
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
        self._due, self._next, self._poll = False, -1, -1
        self._size = Size(0, 0, "")
        self._has_said = False  # that evaluations are left out
        self._sampled = ""  # that the last one is not of everything
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

    # --- what a monitor says ----------------------------------------------------------------------------------

    def size(self) -> Size:
        """How much there is to measure, on the first process."""
        return Size(0, 0, "")

    def gather(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Failure | None, Any]:
        """What is read on all processes for the ones that measure, or what failed on one."""
        return None, None

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> Any:
        """What :meth:`measure` needs of the module: a copy wherever training goes on, see :attr:`in_background`.

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

    @property
    def in_background(self) -> bool:
        """Whether training goes on while an evaluation is made."""
        return self._clock.share < 1 if self.background is None else self.background

    # --- when -------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Which know the monitors.
        from lightning_maxmargin.callbacks.at_evaluations import count_evaluations, refuse_unlogged

        leave_group_at_exit()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit":
            refuse_unlogged(callbacks, pl_module, getattr(trainer, "datamodule", None))
        count_evaluations(callbacks)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            keep_words(trainer.callbacks, checkpoint["callbacks"], _may_stop(trainer, checkpoint))  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begin_next_epoch(trainer)
        size = self.size() if trainer.is_global_zero else Size(0, 0, "")
        size = trainer.strategy.broadcast(size)
        self._clock.start(share_of(self.budget, size.whole), size.measured, size.whole, self.seconds_per_number)
        self._size, self._has_said, self._sampled, self.at_end = size, False, "", False
        self._trainer, self._worker, self.final_seconds = trainer, Worker(), None
        if trainer.is_global_zero:
            define_axes_of(trainer.loggers)
        self._due, self._next, self._poll = self.from_start and not self.history, -1, -1
        why = "as given" if self.budget is not None else f"for keys of {size.whole:,} numbers"
        rank_zero_info(
            f"{type(self).__name__}: budget {self._clock.share:g} of the run's time ({why}), measured "
            f"{'in the background' if self.in_background else 'at once'}{', ' if size.which else ''}{size.which}"
        )
        if self._due:
            self._turn(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_epochs is not None:
            return
        step = trainer.global_step
        if step >= self._next:
            self._next = next_step(step, self.per_decade)
        if hasattr(pl_module, "pause_at"):
            # A module of many steps per batch ends one where the first of its monitors evaluates.
            paused: Any = pl_module.pause_at
            if paused is None or not step < paused < self._next:
                pl_module.pause_at = self._next  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._raise_failed()
        step = trainer.global_step
        if step == trainer.max_steps:
            self._finish(trainer, pl_module)
            return
        arrived = self.every_n_epochs is None and step >= self._next
        self._due = self._due or arrived
        if (self._pending is None and not self._due) or not (arrived or self._may_ask(trainer)):
            return
        self._turn(trainer, pl_module, self.every_n_epochs is None)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs is None:
            return
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._finish(trainer, pl_module)
        elif (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not self._seen(trainer):
            self._due = True
        if self._due:
            self._turn(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._raise_failed()
        if trainer.global_step:
            self._finish(trainer, pl_module)
        if trainer.is_global_zero:
            self.message = " ".join(filter(None, (self._ending(trainer), self.diagnose(pl_module), self._sampled)))
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

    def _may_ask(self, trainer: pl.Trainer) -> bool:
        """Whether processes ask one another now: at steps that all know, since each has a clock of its own."""
        step = trainer.global_step
        if trainer.world_size == 1:
            return True
        passed = step >= self._poll
        if passed:
            self._poll = next_step(step, POLLS_PER_DECADE)
        return passed

    def _turn(self, trainer: pl.Trainer, pl_module: pl.LightningModule, begin: bool = True) -> None:
        """Logs what is ready, and begins what is due where thread and budget allow it."""
        if self._pending is not None:
            # Under a budget of 1 the steps decide alone: the one before is waited for.
            must = self._due and self._clock.share >= 1
            if not (must or trainer.strategy.reduce_boolean_decision(self._pending.done)):
                return
            self._deliver(trainer)
        if begin and self._due and self._affordable(trainer):
            self._due = False
            self._begin(trainer, pl_module, self.samples)
            if not self.in_background:
                self._deliver(trainer)

    def _affordable(self, trainer: pl.Trainer) -> bool:
        if self._clock.share >= 1:
            return True
        covered = bool(trainer.strategy.broadcast(self._clock.covers_another()))
        if not covered and not self._has_said:
            self._has_said = True
            rank_zero_info(
                f"{type(self).__name__}: an evaluation takes about {self._clock.expected:.2g} s, so from step "
                f"{trainer.global_step} on they are made as {self._clock.share:g} of the run's time allows it; "
                "monitor.budget: 1 makes all"
            )
        return covered

    def _seen(self, trainer: pl.Trainer) -> bool:
        return bool(self.history) and self.history[-1]["step"] == trainer.global_step

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The evaluation at the end, on everything where the budget covers it."""
        self._due = False
        if self._pending is not None:
            self._deliver(trainer)
        if self._seen(trainer) and self.final_seconds is not None:
            return
        samples, self.at_end = self._last_samples(trainer), True
        if not self._seen(trainer) or (samples is None and self._size.measured < self._size.whole):
            self._begin(trainer, pl_module, samples, last=True)
            self._deliver(trainer)
        elif self.last:
            # Its step was an evaluation's already, of as much.
            self.final_seconds = self._clock.refund()
            self.last |= {"monitor/seconds": self.seconds, "monitor/final_seconds": self.final_seconds}
            self.history[-1] |= self.last

    def _last_samples(self, trainer: pl.Trainer) -> int | None:
        """Of how many sequences the last evaluation is: None for all, which is said where the budget covers fewer."""
        clock, count = self._clock, self._size.sequences
        if clock.share >= 1 or not trainer.strategy.broadcast(count > FEWEST and not clock.covers_all()):
            return None
        part = clock.covered_part(FEWEST / count, self._size.besides) if trainer.is_global_zero else 1.0
        samples = int(trainer.strategy.broadcast(round(count * part)))
        self._sampled = (
            f"{self.of_samples} {samples:,} sequences, for {clock.share:g} of the run's time does not cover the "
            f"{clock.expected_of_all:.2g} s that an evaluation of everything takes; monitor.budget: 1 makes it."
        )
        rank_zero_info(f"{type(self).__name__}: {self._sampled}")
        return samples

    # --- what becomes of the numbers --------------------------------------------------------------------------

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
        failure, found, seconds = pending.outcome()
        start = time.perf_counter()
        if self.everywhere:
            failure, found = self._joined(gather((failure, found.details)))
        seconds += pending.seconds + time.perf_counter() - start
        # The clock of the first process is that of all.
        failure, values, seconds = trainer.strategy.broadcast((failure, found.values, seconds))
        if failure is not None:
            kind, message = failure
            raise kind(f"{type(self).__name__} at step {pending.step}: {message}")
        if pending.last:
            self.final_seconds = seconds
        else:
            self._clock.spend(seconds)
        values |= {"monitor/seconds": self.seconds, "monitor/final_seconds": self.final_seconds}
        values["monitor/lag_steps"] = float(trainer.global_step - pending.step)
        if found.details is not None:
            self.keep(pending.step, found.details)
        self._log(trainer, pending, values)

    def _joined(self, parts: list[tuple[Failure | None, Any]]) -> tuple[Failure | None, Measured]:
        failure = next((failed for failed, _ in parts if failed is not None), None)
        return failure, Measured({}) if failure is not None else self.join([part for _, part in parts])

    def _log(self, trainer: pl.Trainer, pending: Pending, values: dict[str, Value]) -> None:
        self.last = values
        self.history.append({"step": pending.step, **values, **pending.marks})
        check_registered(values)
        numbers = {k: v for k, v in values.items() if isinstance(v, float) and abs(v) < float("inf")}
        for logger in trainer.loggers:
            logger.log_metrics(self.logged(numbers) | pending.losses, step=pending.step)
        # Without a logger: only for progress bars, checkpoints and early stopping. Nothing stays of the one before.
        for name in values.keys() - numbers.keys():
            trainer.callback_metrics.pop(name, None)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in {**self.logged(numbers), **numbers}.items()})

    # --- checkpoints ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._pending is not None and self._trainer is not None:
            try:
                self._deliver(self._trainer)
            except Exception as error:
                # The checkpoint is good; the run ends with this at its next step.
                self._failed = error
        return {
            "history": self.history, "seconds": self.seconds, "run_seconds": self._clock.elapsed,
            "evaluations": self._clock.evaluations,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        history = state_dict.get("history")
        if not isinstance(history, list) or not all(map(_is_row, history)):
            raise InputError(f"ckpt_path: its {type(self).__name__} has no history; use another checkpoint")
        elapsed, made = state_dict.get("run_seconds", 0.0), state_dict.get("evaluations", len(history))
        clock: Any = (state_dict.get("seconds"), elapsed, made)
        if not all(isinstance(x, int | float) and math.isfinite(x) and x >= 0 for x in clock):
            raise InputError(f"ckpt_path: its {type(self).__name__} has no clock; use another checkpoint")
        self.history = history
        self._clock = Budget(1.0, 0, *clock)

    def _raise_failed(self) -> None:
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed


def _may_stop(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether a run may end where a checkpoint is: Lightning trains on up to the least steps and epochs."""
    enough = checkpoint.get("global_step", 0) >= (trainer.min_steps or 0)
    return enough and checkpoint.get("epoch", 0) >= (trainer.min_epochs or 0)


def loss_of_this_step(trainer: pl.Trainer) -> dict[str, float]:
    """The loss that the training step before this has logged, or the latest of a module that logs no ``step``.

    Nothing where there is none, or it is the mean of more.
    """
    results: Any = getattr(trainer, "_results", None)
    logged = None if results is None else results.get(f"training_step.{LOSS}")
    metrics = trainer.callback_metrics
    if logged is None or not logged.meta.on_step or LOSS not in metrics:
        return {}
    # A module of many steps per batch says at which it has logged.
    step = metrics.get("step")
    return {LOSS: float(metrics[LOSS])} if step is None or int(step) == trainer.global_step else {}


def _is_row(row: Any) -> bool:
    """Whether a checkpoint's row of a history is one: its step, and numbers, words or nothing by name."""
    return isinstance(row, dict) and isinstance(row.get("step"), int) and all(map(_is_value, row.values()))


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)
