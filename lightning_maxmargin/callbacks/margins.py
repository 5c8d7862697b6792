"""Watches both margins and directions converge to their SVMs."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.callbacks.probe import Probe, Snapshot, Value, head_vector
from lightning_maxmargin.callbacks.schedule import next_step
from lightning_maxmargin.callbacks.verdict import verdict
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.names import MEASURED


class MarginMonitor(Callback):
    """Logs, at geometrically spaced steps, the attention and label margin and the direction gaps to their SVMs.

    One process measures the whole training set in float64, all receive the numbers (or the error), and all log the
    same keys. The keys are listed in :mod:`lightning_maxmargin.names`; one that is undefined is left out of the log and
    null in :attr:`last`.

    The cost is two passes over the data per look, plus the SVMs whenever a selected token has changed since the last
    look; ``monitor/seconds`` says what it has come to.

    Args:
        per_decade: looks per factor of ten in steps.
        split: which split of the data module to measure.
        data: the sequences themselves, for use without one of this package's data modules.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step``.
        snapshot: the latest :class:`Snapshot` (on the first process).
        paths: (step, p or W, v) of every look at a two-dimensional problem.
        message: what the numbers mean, where they need words.

    Raises:
        InputError: there is neither ``data`` nor a data module of this package, or the module has no TokenSelector.

    Example:
        >>> monitor = MarginMonitor(per_decade=4)
        >>> monitor.last
        {}
    """

    def __init__(self, per_decade: int = 16, split: str = "train", data: Sequences | None = None) -> None:
        if per_decade < 1:
            raise InputError(f"monitor.per_decade: {per_decade}; a positive number is asked")
        self.per_decade, self.split, self.data = per_decade, split, data
        self.last: dict[str, Value] = {}
        self.history: list[dict[str, Any]] = []
        self.paths: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.snapshot: Snapshot | None = None
        self.message = ""
        self.seconds = 0.0
        self.sequences: Sequences
        self._probe: Probe | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model = _selector_of(pl_module)
        if trainer.is_global_zero:
            self.sequences = self._find(trainer)
            self._probe = Probe(self.sequences, getattr(pl_module, "train_part", "both"))
            if not self.paths:
                self._remember(trainer.global_step, model.direction, head_vector(model))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        pl_module.pause_at = next_step(trainer.global_step, self.per_decade)  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= int(pl_module.pause_at or 0) or trainer.global_step == trainer.max_steps:  # type: ignore[arg-type]
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and (not self.history or self.history[-1]["step"] != trainer.global_step):
            self.look(trainer, pl_module)
        if trainer.is_global_zero:
            self.message = verdict(self.history, pl_module)

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Value]:
        """Measures now, on one process, and logs on all."""
        outcome: tuple[str | None, dict[str, Value]] = (None, {})
        if trainer.is_global_zero:
            outcome = self._measure(trainer.global_step, _selector_of(pl_module))
        if trainer.world_size > 1:
            outcome = trainer.strategy.broadcast(outcome)
        error, values = outcome
        if error is not None:
            raise RuntimeError(f"MarginMonitor at step {trainer.global_step}: {error}")
        self.last = values
        self.history.append({"step": trainer.global_step, **values})
        numbers = {k: v for k, v in values.items() if k in MEASURED and isinstance(v, float) and abs(v) < float("inf")}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        # Without a logger: only for progress bars, checkpoints and early stopping.
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in numbers.items()})
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "paths": self.paths, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.paths, self.seconds = state_dict["history"], state_dict["paths"], state_dict["seconds"]

    # --- on the first process ---------------------------------------------------------------------------------

    def _measure(self, step: int, model: TokenSelector) -> tuple[str | None, dict[str, Value]]:
        start = time.perf_counter()
        assert self._probe is not None
        try:
            self.snapshot = self._probe.measure(model)
        except Exception as error:
            # Not raised here: the other processes wait for an answer, and would wait half an hour.
            return f"{type(error).__name__}: {error}", {}
        self._remember(step, self.snapshot.direction, self.snapshot.head)
        self.seconds += time.perf_counter() - start
        return None, {**self.snapshot.values, "monitor/seconds": self.seconds}

    def _remember(self, step: int, direction: torch.Tensor, head: torch.Tensor) -> None:
        """Paths in two dimensions, for the figure."""
        if direction.shape[0] == 2:
            # Cloned: .double().cpu() of a float64 tensor on the CPU is the live weight itself.
            self.paths.append((step, direction.detach().double().cpu().clone(), head.detach().double().cpu().clone()))

    def _find(self, trainer: pl.Trainer) -> Sequences:
        if self.data is not None:
            return self.data
        source = getattr(trainer.datamodule, "sequences", None)  # type: ignore[attr-defined]
        found = source(self.split) if source is not None else None
        if found is None:
            raise InputError(
                f"MarginMonitor: no {self.split!r} sequences; use a data module of this package or give data="
            )
        return found


def _selector_of(pl_module: pl.LightningModule) -> TokenSelector:
    found = getattr(pl_module, "selector", None)
    if not isinstance(found, TokenSelector):
        raise InputError(
            f"MarginMonitor: {type(pl_module).__name__} has no attribute 'selector' that is a TokenSelector"
        )
    return found
