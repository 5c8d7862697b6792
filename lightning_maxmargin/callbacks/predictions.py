"""What ``predict`` writes of sequences: a line of JSON each, in their order, from all processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import distributed as dist

from lightning_maxmargin.atomic import write_output


class Predictions(Callback):
    """Writes ``index``, ``logits``, ``attention`` and ``selected`` of each sequence, whole or not at all.

    Several processes hand their sequences to the first one, which puts them into their order.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        columns = {name: x.tolist() for name, x in outputs.items()}
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts: list[Any] = [self.rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self.rows)
        if trainer.is_global_zero:
            rows = sorted((row for part in parts for row in part), key=lambda row: row["index"])
            write_output(self.path, "".join(json.dumps(row) + "\n" for row in rows))
