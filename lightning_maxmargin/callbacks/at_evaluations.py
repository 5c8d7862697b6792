"""Lightning's early stopping and checkpoints on numbers of our monitors: evaluations count, not epochs."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import find_key, registered

#: What Lightning adds to the numbers of a run.
LIGHTNINGS = ("epoch", "step")
#: Who logs by itself, at every step or epoch.
ALWAYS_LOGGED = {"module", "run"}


def count_evaluations(callbacks: list[Callback]) -> None:
    """Makes every EarlyStopping and ModelCheckpoint on a number of a monitor look at new numbers alone.

    Between two evaluations Lightning's would take the last one again, as one without an improvement, and raise where a
    number is undefined. What they watch else, such as ``val/accuracy``, is left to them.

    A monitor does so for the trainer it is in, from Python as well.

    Args:
        callbacks: of a trainer.
    """
    for callback in callbacks:
        for theirs, ours in ((EarlyStopping, EarlyStoppingAtEvaluations), (ModelCheckpoint, CheckpointAtEvaluations)):
            # A callback of the user's own may call anything its monitor.
            if type(callback) is theirs and is_of_a_monitor(callback.monitor):
                # The user has made it, with all its options.
                callback.__class__ = ours


def refuse_unlogged(callbacks: list[Callback], model: pl.LightningModule, data: Any) -> None:
    """Refuses an EarlyStopping or ModelCheckpoint on a number that this run does not log: it would never act.

    Args:
        callbacks: of a trainer. Where one is of the user's own, or the model is, what they log is theirs to know.
        model: of the run.
        data: likewise.

    Raises:
        InputError: there is one.
    """
    if not all(_is_known(thing) for thing in (model, *callbacks)):
        return
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if (
            isinstance(callback, EarlyStopping | ModelCheckpoint)
            and name
            and not _is_logged(name, callbacks, model, data)
        ):
            near = difflib.get_close_matches(name, [key.name for key in registered() if key.format != "text"], 1)
            hint = f"did you mean {near[0]}?" if near and near[0] != name else "docs list the keys of a run"
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} watches {name!r}, which this run does not log; {hint}"
            )


def _is_known(thing: object) -> bool:
    return type(thing).__module__.partition(".")[0] in ("lightning_maxmargin", "pytorch_lightning")


def _is_logged(name: str, callbacks: list[Callback], model: pl.LightningModule, data: Any) -> bool:
    key = find_key(name)
    if name in LIGHTNINGS or any(name in getattr(getattr(c, "own", None), "metrics", ()) for c in callbacks):
        return True
    if key is None or key.format == "text" or name.startswith("test/"):
        return False
    measured = {"module"} | {source for c in callbacks if isinstance(c, Monitor) for source in c.sources_of_keys}
    # Data that are no module of ours may have such a split.
    has_val = not hasattr(data, "has_split") or data.has_split("val")
    if name.startswith("val/") and not (is_overridden("validation_step", model) and has_val):
        return False
    return bool(measured & set(key.sources))


def is_of_a_monitor(name: str | None) -> bool:
    """Whether a monitor measures this number, and nobody else logs it.

    Example:
        >>> is_of_a_monitor("norm/attention"), is_of_a_monitor("val/accuracy"), is_of_a_monitor(None)
        (True, False, False)
    """
    key = None if name is None else find_key(name)
    return key is not None and not ALWAYS_LOGGED & set(key.sources)


def stopped_early(trainer: pl.Trainer) -> str:
    """In words, where an EarlyStopping or a StopAtLimit has ended the run, or a limit was not met; empty elsewhere."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        ending = getattr(callback, "ending", None)
        reason = getattr(callback, "stopping_reason_message", None) if ending is None else ending(trainer)
        if isinstance(reason, str) and reason:
            how = "Ended" if trainer.global_step == trainer.max_steps else "Stopped early"
            of = f" of {trainer.max_steps:,}" if trainer.max_steps >= 0 else ""
            reason = reason.removesuffix(" Signaling Trainer to stop.")
            return f"{how} at step {trainer.global_step:,}{of}: {reason.rstrip('.')}."
    return ""


class _SeesEvaluations:
    """What the last number seen was of; kept in checkpoints, under the name that Lightning's own class has there."""

    monitor: Any
    _lightnings: ClassVar[str]
    _seen = 0

    @property
    def state_key(self) -> str:
        own: str = super().state_key  # type: ignore[misc]
        return own.replace(type(self).__qualname__, self._lightnings, 1)

    @property
    def _legacy_state_key(self) -> Any:
        """The name that earlier checkpoints have for it."""
        return super().state_key  # type: ignore[misc]

    def is_new(self, trainer: pl.Trainer) -> bool:
        """Whether the monitors have measured since this was asked last, and the number is defined."""
        key = find_key(self.monitor)
        monitors: list[Any] = [
            c
            for c in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(c, Monitor) and key is not None and set(key.sources) & set(c.sources_of_keys)
        ]
        made = sum(len(monitor.history) for monitor in monitors)
        if made == self._seen or self.monitor not in trainer.callback_metrics:
            return False
        self._seen = made
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "evaluations_seen": self._seen}  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict.get("evaluations_seen", 0)
        if not isinstance(self._seen, int):
            raise InputError(f"ckpt_path: its {self._lightnings} has not counted evaluations; use another checkpoint")
        super().load_state_dict(state_dict)  # type: ignore[misc]


class EarlyStoppingAtEvaluations(_SeesEvaluations, EarlyStopping):
    """``patience`` is in evaluations."""

    _lightnings = EarlyStopping.__qualname__

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        if self.is_new(trainer):
            super()._run_early_stopping_check(trainer)


class CheckpointAtEvaluations(_SeesEvaluations, ModelCheckpoint):
    """Saves the best of the evaluations."""

    _lightnings = ModelCheckpoint.__qualname__

    def _save_topk_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.is_new(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)
