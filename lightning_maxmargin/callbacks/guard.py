"""Stops at the first NaN or Inf, before it reaches the weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.optim import Optimizer

from lightning_maxmargin.errors import NonFiniteError


class FiniteGuard(Callback):
    """Checks every gradient before every optimizer step of any LightningModule.

    At the first NaN or Inf it stops with the tensor, the step and the samples named, and keeps the last good weights
    in ``checkpoints/last_good.ckpt`` of the run directory. A Trainer alone trains on with ruined weights and exits 0.

    Raises:
        NonFiniteError: a gradient is not finite.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._batch: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        names = {p: name for name, p in pl_module.named_parameters()}

        def check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                # A sum is finite only if every entry is, but for overflow; one number to check instead of a tensor.
                if p.grad is not None and not math.isfinite(p.grad.sum()) and not p.grad.isfinite().all():
                    raise NonFiniteError(self._message(pl_module, names.get(p, "a parameter")))

        self._handles = [o.register_step_pre_hook(check) for o in trainer.optimizers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for handle in self._handles:
            handle.remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last_good.ckpt")

    def _message(self, pl_module: pl.LightningModule, name: str) -> str:
        samples = self._bad_samples(pl_module)
        where = f" (samples {', '.join(map(str, samples[:10]))})" if samples else ""
        return (
            f"the gradient of {name} is not finite at step {pl_module.global_step}{where}: stopped before the weights "
            "changed; check these samples, or lower the learning rate"
        )

    def _bad_samples(self, pl_module: pl.LightningModule) -> list[int]:
        losses = getattr(pl_module, "sample_losses", None)
        index = getattr(self._batch, "index", None)
        if losses is None or index is None:
            return []
        with torch.no_grad():
            return index[~losses(self._batch).isfinite()].tolist()
