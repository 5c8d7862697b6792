"""One progress bar over all optimisation steps."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar


class StepProgress(ProgressBar):
    """Steps done of ``max_steps``, with the numbers that tell whether the directions converge.

    An epoch of full-batch training is a few milliseconds, so Lightning's bar per epoch would only flicker.

    Args:
        show: logged metrics to show behind the bar.
    """

    def __init__(
        self, show: tuple[str, ...] = ("direction_gap/attention", "direction_gap/head", "norm/attention")
    ) -> None:
        super().__init__()
        self.show = show
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not (self._enabled and trainer.is_global_zero):
            return
        from tqdm import tqdm

        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._bar = tqdm(
            total=total, initial=trainer.global_step, desc="fit", unit="step", file=sys.stderr, dynamic_ncols=True
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        self._bar.update(trainer.global_step - self._bar.n)
        numbers = {k: trainer.callback_metrics[k] for k in self.show if k in trainer.callback_metrics}
        self._bar.set_postfix({k: f"{float(x):.1e}" for k, x in numbers.items()}, refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
