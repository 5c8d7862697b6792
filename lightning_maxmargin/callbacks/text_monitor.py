"""Watches what a text selector selects, within a share of the run's time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_maxmargin.callbacks.monitor import Monitor
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.keys import Value
from lightning_maxmargin.probe.text import SelectionSums, TextUnits, attention_svm
from lightning_maxmargin.text.batches import Split
from lightning_maxmargin.text.hidden import batches_by_length
from lightning_maxmargin.text.model import MaxMarginForSequenceClassification

#: Documents whose SVM says what one of a document costs.
PILOT = 32
#: With padding, in one part: 50 MB of float64 keys of d = 384.
PIECES_AT_ONCE = 16_384


class TextMonitor(Monitor):
    """Logs after an epoch the median lead, entropy and Att-SVM margin of training documents, and at the end of all.

    An evaluation is left out while it would cost more than ``budget`` of the run so far; ``monitor/seconds`` says what
    they have come to, ``monitor/final_seconds`` what the one at the end took, which is always made.

    Args:
        samples: documents of an evaluation, drawn once by the data's seed; the end measures all.
        budget: share of the run's time that evaluations may take.
        final: whether to measure all documents at the end.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(self, samples: int = 500, budget: float = 0.05, final: bool = True) -> None:
        super().__init__(every_n_epochs=1)
        self.check_positive(samples=samples)
        if not 0 <= budget <= 1:
            raise InputError(f"monitor.budget: {budget}; expected a share from 0 to 1")
        self.samples, self.budget, self.final = samples, budget, final
        self.final_seconds: float | None = None
        self._per_document: float | None = None  # seconds of the SVM
        self._ending = False
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        data = trainer.datamodule  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(data.seed)
        split: Split = data.labelled("train")
        self._split = split
        self._counts = {
            f"text/{name}": float(sum(part.counts[name] for part in data.splits.values()))
            for name in ("truncated", "empty")
        }
        self._sample = torch.randperm(len(split), generator=generator)[: self.samples].sort().values.tolist()

    def on_train_batch_end(self, *_: Any) -> None:
        """Evaluations are after epochs and at the end."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs and self._affordable(trainer):
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.global_step:
            return
        before, start = self.seconds, time.perf_counter()
        self._ending = True
        self.evaluate(trainer, pl_module)
        self.seconds, self.final_seconds = before, time.perf_counter() - start
        self.last |= {"monitor/seconds": before, "monitor/final_seconds": self.final_seconds}
        if trainer.is_global_zero:
            self.message = self.diagnose(pl_module)

    def _affordable(self, trainer: pl.Trainer) -> bool:
        elapsed = time.perf_counter() - self._started
        last = self.seconds / max(len(self.history), 1)
        # All processes do as the first one says: each has a clock of its own.
        return bool(trainer.strategy.broadcast(self.seconds + last <= self.budget * elapsed))

    # --- what is measured -------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, step: int, pl_module: pl.LightningModule, readings: None) -> dict[str, Value]:
        model: MaxMarginForSequenceClassification = pl_module.model  # type: ignore[assignment]
        values: dict[str, Value] = dict(self._counts)
        texts = range(len(self._split)) if self._ending and self.final else self._sample
        selector = model.parts[0]
        values["norm/attention"] = norm = float(selector.direction.norm())
        values["norm/head"] = float(selector.head.norm())
        if model.config.per_class or getattr(pl_module, "tuning", False):
            # One selector a class has as many SVMs; of a trained encoder the keys are not on disk.
            return values
        sums = SelectionSums(norm)
        for part in self._units(pl_module, texts):
            sums.update(part.scores, part.attention, part.mask)
        values |= sums.compute()
        values |= self._svm(pl_module, list(texts), selector.direction.detach())
        return values

    def _svm(self, pl_module: pl.LightningModule, texts: list[int], direction: Any) -> dict[str, Value]:
        if not self._ending and self._per_document is None:
            texts = texts[:PILOT]
        elif not self._ending and self._per_document is not None:
            left = self.budget * (time.perf_counter() - self._started) - self.seconds
            if self._per_document * len(texts) > left:
                return {}
        start = time.perf_counter()
        longest = max(map(self._split.unit_count, texts), default=0)
        found = attention_svm(
            lambda: self._units(pl_module, texts), direction, len(texts) * longest * direction.shape[0], longest
        )
        self._per_document = (time.perf_counter() - start) / max(len(texts), 1)
        return found

    def _units(self, pl_module: pl.LightningModule, texts: Sequence[int]) -> Iterator[TextUnits]:
        for rows in batches_by_length(self._split.pieces, texts, PIECES_AT_ONCE):
            batch = self._split[torch.tensor(rows)]
            yield pl_module.units({name: x.to(pl_module.device) for name, x in batch.items()})  # type: ignore[operator]
