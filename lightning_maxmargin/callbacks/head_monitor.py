"""Watches every attention head of any LightningModule converge, or not, to its own Att-SVM."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

from lightning_maxmargin.callbacks.diagnosis import diagnose_heads
from lightning_maxmargin.callbacks.evaluation import Measured, Size
from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.callbacks.watch import Forward, Gathered, HeadWatch
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value
from lightning_maxmargin.keys_of_heads import medians_of_layers
from lightning_maxmargin.probe.attention import HeadSnapshot
from lightning_maxmargin.probe.capture import Reading
from lightning_maxmargin.probe.sources import AttentionSource
from lightning_maxmargin.reduce import measuring_ranks

#: Heads up to which each is a curve of its own.
MOST_SERIES = 16


class HeadMonitor(Monitor):
    """Logs, at geometrically spaced steps, every attention head of any LightningModule against its own Att-SVM.

    For each head: the margin of one query's attention, its share of the SVM's, the norm and the sparsity, as
    ``head0/KEY`` (``LAYER/head0/KEY`` with several layers); the keys are listed in :mod:`lightning_maxmargin.keys`.
    The processes share the heads out and measure in float64, and all receive the numbers. The cost is one pass over the
    samples per evaluation, in the training thread, and an SVM per head, solved every time, since a head's inputs change
    as well.

    Args:
        sources: the attention layer of the module, or several by name.
        data: a batch, or a loader or list of batches, the same on all processes.
        forward: ``forward(module, batch)``; else ``module(batch)``, or ``module(batch[0])`` for a tuple or list.
        samples: how many to evaluate, the first of the data; a loader may be endless, so the last evaluation is of
            these as well, or of as many of them as the budget covers.
        maps: of how many samples to keep the attention rows of every evaluation.
        per_decade: evaluations per factor of ten in steps.
        every_n_epochs: evaluates after so many epochs instead of the geometric steps.
        budget: share of the run's time, as of :class:`~lightning_maxmargin.callbacks.monitor.Monitor`; under 1 the
            weights at the start are evaluated as soon as it covers that.
        background: likewise.
        each_head: whether loggers get the numbers of every head. None is so for at most 16 heads: 72 would be 860
            curves. :attr:`last` has all.

    Where there are several layers, or not every head is logged, loggers get the medians of each layer, as
    ``LAYER/median/KEY``. W&B gets a picture of all heads at the end, ``heads/relative_margin``.

    Attributes:
        last: the latest numbers by key.
        history: all of them, with ``step`` and ``epoch``.
        heads: the latest :class:`HeadSnapshot` (on the first process).
        rows: (step, {head: (maps, T)}) of every evaluation (on the first process).
        message: which heads have no certified SVM.

    Raises:
        InputError: no data; a source's name is wrong or it is not what a source may be.

    Example:
        >>> source = AttentionSource(keys="attn.k", queries="attn.q", heads=2)
        >>> HeadMonitor(source, torch.zeros(4, 5, 8)).last
        {}
    """

    sources_of_keys = ("head", "heads")
    #: Of heads at random weights: one on 128 samples of 32 tokens of 384 took .5 to 1.9 s, on 50 of 16 .04 to .15.
    seconds_per_number = 8e-7

    def __init__(
        self,
        sources: AttentionSource | Mapping[str, AttentionSource],
        data: Any = None,
        forward: Forward | None = None,
        samples: int = 128,
        maps: int = 4,
        per_decade: int = 10,
        every_n_epochs: int | None = None,
        budget: float | None = None,
        background: bool | None = None,
        each_head: bool | None = None,
    ) -> None:
        super().__init__(per_decade, every_n_epochs, budget, samples, background)
        if data is None:
            raise InputError("HeadMonitor: sources need data: a batch, or a loader or list of batches")
        self.sources = {"": sources} if isinstance(sources, AttentionSource) else dict(sources)
        self.data, self.forward, self.maps, self.each_head = data, forward, maps, each_head
        self.samples: int = samples
        self.rows: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.heads: HeadSnapshot | None = None
        self._watch: HeadWatch

    from_start = True

    @property
    def _legacy_state_key(self) -> str:  # type: ignore[override]
        # Checkpoints of when one class was both monitors.
        return "MarginMonitor"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.everywhere = trainer.world_size > 1
        ranks = measuring_ranks(trainer)
        self._watch = HeadWatch(pl_module, self.sources, self.data, self.forward, self.samples, ranks)
        super().on_train_start(trainer, pl_module)

    def size(self) -> Size:
        heads, numbers = sum(self._watch.heads.values()), self._watch.numbers
        return Size(numbers, numbers, f"{heads} heads on the first {self.samples:,} samples", self._watch.count)

    def snapshot_of(self, pl_module: pl.LightningModule, samples: int | None) -> int | None:
        return samples

    def gather(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Gathered:
        return self._watch.gather(trainer, pl_module)

    def measure(self, step: int, snapshot: int | None, readings: dict[str, Reading]) -> Measured:
        return self.join([self._watch.measure({layer: reading.first(snapshot) for layer, reading in readings.items()})])

    def join(self, parts: list[HeadSnapshot | None]) -> Measured:
        heads = parts[0]  # the first process has them all, the others none
        if heads is None:
            return Measured({})
        statuses: list[str] = [solution.status for solution in heads.solutions.values()]
        counts: dict[str, Value] = {f"heads/{s}": float(statuses.count(s)) for s in ("certified", "infeasible")}
        counts["monitor/samples"] = float(len(next(iter(heads.attention.values()))))
        return Measured(heads.values | counts, heads)

    def keep(self, step: int, details: HeadSnapshot) -> None:
        self.heads = details
        self.rows.append((step, {head: s[: self.maps].clone() for head, s in details.attention.items()}))

    def logged(self, numbers: dict[str, float]) -> dict[str, float]:
        of_each = sum(self._watch.heads.values()) <= MOST_SERIES if self.each_head is None else self.each_head
        medians = medians_of_layers(numbers)
        if not of_each:
            return medians
        return {**numbers, **medians} if len(self._watch.heads) > 1 else numbers

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, WandbLogger) and (picture := self._picture()) is not None:
                logger.log_image("heads/relative_margin", [picture], step=trainer.global_step)

    def _picture(self) -> Any:
        """All heads at the end, as an image; None where nothing was measured."""
        from PIL import Image

        from lightning_maxmargin.figures.heads import draw_heads

        figure = draw_heads(self.last)
        if figure is None:
            return None
        with io.BytesIO() as file:
            figure.savefig(file, format="png")
            return Image.open(file).convert("RGB")

    def marks(self, trainer: pl.Trainer) -> dict[str, Any]:
        return {"epoch": trainer.current_epoch}

    def diagnose(self, pl_module: pl.LightningModule) -> str:
        return diagnose_heads(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        rows = state_dict.get("rows", [])
        if not isinstance(rows, list) or not all(map(_is_map, rows)):
            raise InputError("ckpt_path: its HeadMonitor has no attention rows; use another checkpoint")
        self.rows = rows


def _is_map(row: Any) -> bool:
    """Whether a checkpoint's row is one: a step, and the attention by head."""
    if not isinstance(row, tuple | list) or len(row) != 2:
        return False
    step, heads = row
    return (
        isinstance(step, int) and isinstance(heads, dict) and all(isinstance(x, torch.Tensor) for x in heads.values())
    )
