"""Ends a run at its limit: the directions are there, or come no nearer, and the run says which."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.callbacks.margin_monitor import MarginMonitor
from lightning_maxmargin.errors import InputError

#: Below this share of its SVM's margin the attention has selected nothing.
NO_SELECTION = 0.1


class StopAtLimit(Callback):
    """Stops where attention and head are within ``gap`` of their limits, or have come no nearer for a while.

    It looks at the evaluations of the run's MarginMonitor: at the direction gap to the rate-coupled limit where that is
    defined, else to the nearest, and at the head's to the label SVM; where an optimum need not be unique, at what the
    relative margin lacks of 1.

    Args:
        gap: direction gap of both that is near enough.
        patience: evaluations, ten of which are a factor of ten in steps, over which the larger gap has to halve.
        min_steps: none is counted before.

    Attributes:
        stopping_reason_message: why it has stopped, None before: it has converged, or why not.

    Raises:
        InputError: a number out of range, or a run without a MarginMonitor.

    Example:
        >>> StopAtLimit(gap=1e-8).stopping_reason_message is None
        True
    """

    def __init__(self, gap: float = 1e-6, patience: int = 10, min_steps: int = 1000) -> None:
        if not 0 < gap < 1:
            raise InputError(f"StopAtLimit: gap is {gap}; expected a number between 0 and 1")
        if patience < 1 or min_steps < 0:
            raise InputError(f"StopAtLimit: patience is {patience}, min_steps {min_steps}; expected positive numbers")
        self.gap, self.patience, self.min_steps = gap, patience, min_steps
        self.stopping_reason_message: str | None = None
        self._seen, self._best, self._since, self._waited = 0, math.inf, 0, 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            # Right behind the monitor, or a batch more is trained, 100 steps in the shipped configs, before it looks. A
            # new list, because Lightning is going through this one.
            monitor, others = _monitor_of(trainer), [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
            at = others.index(monitor) + 1
            trainer.callbacks = [*others[:at], self, *others[at:]]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that was stopped here and goes on with other words is not at its end.
        self.stopping_reason_message = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._look_at_all(trainer)
        if self.stopping_reason_message is not None:
            trainer.should_stop = True

    def ending(self, trainer: pl.Trainer) -> str | None:
        """Why the run has ended here, where it has ended: also after as many steps as it was given.

        Args:
            trainer: of the run.
        """
        self._look_at_all(trainer)
        history = _monitor_of(trainer).history
        if self.stopping_reason_message is None and history and trainer.global_step == trainer.max_steps:
            near = farthest(history[-1]) <= self.gap
            how = "converged:" if near else "not converged in as many steps as it was given;"
            return f"{how} {_told(history[-1])}"
        return self.stopping_reason_message

    def _look_at_all(self, trainer: pl.Trainer) -> None:
        history = _monitor_of(trainer).history
        for row in history[self._seen :]:
            if self.stopping_reason_message is None:
                self._look(row)
        self._seen = len(history)

    def _look(self, row: Mapping[str, Any]) -> None:
        far, step = farthest(row), int(row["step"])
        if far <= self.gap:
            self.stopping_reason_message = f"converged: {_told(row)}"
            return
        if far < 0.5 * self._best or step < self.min_steps:
            self._best, self._since, self._waited = min(far, self._best), step, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.stopping_reason_message = (
                f"not converged: from step {self._since:,} to {step:,} it has come no nearer by half; {_told(row)}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "best": self._best, "since": self._since, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        found = [state_dict.get(name) for name in ("seen", "best", "since", "waited")]
        if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in found):
            raise InputError("ckpt_path: its StopAtLimit has not counted evaluations; use another checkpoint")
        self._seen, self._best, self._since, self._waited = found  # type: ignore[assignment]


def _monitor_of(trainer: pl.Trainer) -> MarginMonitor:
    found = [c for c in trainer.callbacks if isinstance(c, MarginMonitor)]  # type: ignore[attr-defined]
    if not found:
        raise InputError("StopAtLimit: there is no MarginMonitor, whose evaluations it looks at; add one")
    return found[0]


def farthest(row: Mapping[str, Any]) -> float:
    """The larger of the distances of attention and head from their limits, inf where one has none to be told by.

    Example:
        >>> farthest({"direction_gap/attention": 1e-3, "direction_gap/rate_coupled": 2e-3, "direction_gap/head": 1e-4})
        0.002
    """
    coupled = row.get("direction_gap/rate_coupled")
    attention = _distance(row, "attention") if coupled is None else float(coupled)
    if row.get("status/head") in (None, "infeasible"):
        # A given or nonlinear head, or labels that nothing separates: the attention alone has a limit.
        return attention if row.get("direction_gap/head") is None else max(attention, float(row["direction_gap/head"]))
    head = _distance(row, "head")
    return head if row.get("status/attention") is None else max(attention, head)


def _distance(row: Mapping[str, Any], part: str) -> float:
    gap, margin = row.get(f"direction_gap/{part}"), row.get(f"relative_margin/{part}")
    if gap is not None:
        return float(gap)
    return math.inf if margin is None else abs(1 - float(margin))


def _told(row: Mapping[str, Any]) -> str:
    parts = [(name, _distance(row, name)) for name in ("attention", "head")]
    if row.get("direction_gap/rate_coupled") is not None:
        parts[0] = ("attention", float(row["direction_gap/rate_coupled"]))
    known = [f"{distance:.1e} of the {name}" for name, distance in parts if distance < math.inf]
    told = f"the direction gap is {' and '.join(known)}" if known else "no limit is certified"
    margin = row.get("relative_margin/attention")
    if margin is not None and margin < NO_SELECTION:
        told += f"; the attention's margin is {margin:.1e} of its SVM's: these data have no hard selection"
    if row.get("status/head") == "infeasible":
        told += "; no head separates the labels"
    return told
