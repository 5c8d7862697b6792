"""Watches both margins and directions converge to their SVMs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.callbacks.schedule import next_step
from lightning_maxmargin.callbacks.verdict import heads_verdict, verdict
from lightning_maxmargin.callbacks.watch import Failure, Forward, Gathered, HeadWatch, as_failure
from lightning_maxmargin.core import Sequences, TokenSelector
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import check_registered
from lightning_maxmargin.probe.attention import HeadSnapshot
from lightning_maxmargin.probe.own import OwnNumbers
from lightning_maxmargin.probe.selector import Probe, Snapshot, Value, head_vector
from lightning_maxmargin.probe.sources import AttentionSource
from lightning_maxmargin.reduce import leave_group_at_exit


class MarginMonitor(Callback):
    """Logs, at geometrically spaced steps, the margins of attention and head against their SVMs.

    Of a module of this package: attention and label margin and the direction gaps. Of any other LightningModule, with
    ``sources``: for every head the margin of one query's attention against the head's own Att-SVM, its norm and its
    sparsity, as ``head0/KEY`` (``LAYER/head0/KEY`` with several layers). The keys are listed in
    :mod:`lightning_maxmargin.keys`.

    One process measures in float64, all receive the numbers (or the error), and all log the same keys; one that is
    undefined is left out of the log and null in :attr:`last`. The cost is two passes over the data per look, plus the
    SVMs: of a TokenSelector whenever a selected token has changed since the last look, of a foreign head at every look,
    since its inputs change as well. ``monitor/seconds`` says what it has come to.

    Args:
        per_decade: looks per factor of ten in steps.
        split: which split of the data module to measure.
        data: the sequences themselves, for use without one of this package's data modules. With ``sources``: a batch,
            or a loader or list of batches, the same on all processes.
        sources: the attention layer of a foreign module, or several by name.
        forward: with ``sources``, ``forward(module, batch)``; else ``module(batch)``, or ``module(batch[0])`` for a
            tuple or list.
        samples: with ``sources``, how many to look at.
        maps: with ``sources``, of how many samples to keep the attention rows of every look.
        every_n_epochs: look after so many epochs instead of the geometric steps.
        metrics: numbers of your own by key, ``metric(model, data, output, selected)``, measured at every look;
            :func:`~lightning_maxmargin.keys.register_key` gives one a meaning in the report.
        limits: limit problems of your own by name, ``limit(data, selected)``, a solution with ``status``,
            ``direction`` and ``margin``: ``mine`` logs ``direction_gap/mine``, and ``relative_margin/mine`` where the
            solution has ``achieved(direction)``.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step`` and ``epoch``.
        snapshot: the latest :class:`Snapshot` (on the first process).
        heads: with ``sources``, the latest :class:`HeadSnapshot` (on the first process).
        rows: with ``sources``, (step, {head: (maps, T)}) of every look (on the first process).
        paths: (step, p or W, v) of every look at a two-dimensional problem.
        message: what the numbers mean, where they need words.

    Raises:
        InputError: there is neither ``data`` nor a data module of this package; the module has no TokenSelector and no
            ``sources`` are given; a source's name is wrong or it is not what a source may be.

    Example:
        >>> source = AttentionSource(keys="attn.k", queries="attn.q", heads=2)
        >>> MarginMonitor(sources=source, data=torch.zeros(4, 5, 8)).last
        {}
    """

    def __init__(
        self,
        per_decade: int = 10,
        split: str = "train",
        data: Any = None,
        sources: AttentionSource | Mapping[str, AttentionSource] | None = None,
        forward: Forward | None = None,
        samples: int = 128,
        maps: int = 4,
        every_n_epochs: int | None = None,
        metrics: dict[str, Callable[..., Any]] | None = None,
        limits: dict[str, Callable[..., Any]] | None = None,
    ) -> None:
        for name, number in (("per_decade", per_decade), ("samples", samples), ("every_n_epochs", every_n_epochs)):
            if number is not None and number < 1:
                raise InputError(f"monitor.{name}: {number}; a positive number is asked")
        if sources is not None and data is None:
            raise InputError("MarginMonitor: sources need data: a batch, or a loader or list of batches")
        self.per_decade, self.split, self.data = per_decade, split, data
        self.sources = {"": sources} if isinstance(sources, AttentionSource) else dict(sources or {})
        self.forward, self.samples, self.maps, self.every_n_epochs = forward, samples, maps, every_n_epochs
        self.own = OwnNumbers(metrics, limits)
        self.last: dict[str, Value] = {}
        self.history: list[dict[str, Any]] = []
        self.paths: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.rows: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.snapshot: Snapshot | None = None
        self.heads: HeadSnapshot | None = None
        self.message = ""
        self.seconds = 0.0
        self.sequences: Sequences
        self._probe: Probe | None = None
        self._watch: HeadWatch | None = None
        self._next: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        leave_group_at_exit()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.sources:
            self._watch = HeadWatch(pl_module, self.sources, self.data, self.forward, self.samples)
            if not self.history:
                self.look(trainer, pl_module)
            return
        model = _selector_of(pl_module)
        if trainer.is_global_zero:
            self.sequences = self._find(trainer)
            norms = {getattr(o, "margin_norm", "l2") for o in trainer.optimizers}
            norm = norms.pop() if len(norms) == 1 else "l2"
            self._probe = Probe(self.sequences, getattr(pl_module, "train_part", "both"), norm, self.own)
            if not self.paths:
                self._remember(trainer.global_step, model.direction, head_vector(model))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._next = None if self.every_n_epochs else next_step(trainer.global_step, self.per_decade)
        if not self.sources:
            pl_module.pause_at = self._next  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (self._next is not None and trainer.global_step >= self._next) or trainer.global_step == trainer.max_steps:
            self.look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not self._seen(trainer):
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and not self._seen(trainer):
            self.look(trainer, pl_module)
        if trainer.is_global_zero:
            self.message = heads_verdict(self.last) if self.sources else verdict(self.history, pl_module)

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Value]:
        """Measures now, on one process, and logs on all."""
        start = time.perf_counter()
        gathered = None if self._watch is None else self._watch.gather(trainer, pl_module)
        outcome: tuple[Failure | None, dict[str, Value]] = (None, {})
        if trainer.is_global_zero:
            outcome = self._measure(trainer.global_step, pl_module, gathered)
            self.seconds += time.perf_counter() - start
            outcome[1]["monitor/seconds"] = self.seconds
        if trainer.world_size > 1:
            outcome = trainer.strategy.broadcast(outcome)
        failure, values = outcome
        if failure is not None:
            kind, words = failure
            raise kind(f"MarginMonitor at step {trainer.global_step}: {words}")
        self.last = values
        # Without sources an epoch is however many steps were left of the inner ones, which a resumed run divides anew.
        epoch = {"epoch": trainer.current_epoch} if self.sources else {}
        self.history.append({"step": trainer.global_step, **epoch, **values})
        check_registered(values)
        numbers = {k: v for k, v in values.items() if isinstance(v, float) and abs(v) < float("inf")}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        # Without a logger: only for progress bars, checkpoints and early stopping.
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in numbers.items()})
        return values

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "paths": self.paths, "seconds": self.seconds, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.paths, self.seconds = state_dict["history"], state_dict["paths"], state_dict["seconds"]
        self.rows = state_dict.get("rows", [])

    def _seen(self, trainer: pl.Trainer) -> bool:
        return bool(self.history) and self.history[-1]["step"] == trainer.global_step

    # --- on the first process ---------------------------------------------------------------------------------

    def _measure(
        self, step: int, pl_module: pl.LightningModule, gathered: Gathered | None
    ) -> tuple[Failure | None, dict[str, Value]]:
        # An error is not raised here: the other processes wait for an answer, and would wait half an hour.
        try:
            if self._watch is not None and gathered is not None:
                return gathered.failure, {} if gathered.failure else self._measure_heads(step, self._watch, gathered)
            assert self._probe is not None
            self.snapshot = self._probe.measure(_selector_of(pl_module))
        except Exception as error:
            return as_failure(error), {}
        self._remember(step, self.snapshot.direction, self.snapshot.head)
        return None, dict(self.snapshot.values)

    def _measure_heads(self, step: int, watch: HeadWatch, gathered: Gathered) -> dict[str, Value]:
        self.heads = watch.measure(gathered)
        self.rows.append((step, {head: s[: self.maps].clone() for head, s in self.heads.attention.items()}))
        statuses: list[str] = [solution.status for solution in self.heads.solutions.values()]
        counts = {f"heads/{s}": float(statuses.count(s)) for s in ("certified", "infeasible")}
        return self.heads.values | counts

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
            f"MarginMonitor: {type(pl_module).__name__} has no attribute 'selector' that is a TokenSelector; "
            "of any other module, name its attention: MarginMonitor(sources=AttentionSource(...), data=...)"
        )
    return found
