"""Which tokens decided, example by example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.atomic import write_text
from lightning_maxmargin.core import Sequences, select


class TokenMonitor(Callback):
    """At the end of fit, writes per example its tokens, the attention on each and the selected one.

    The first process writes ``tokens.jsonl`` into the run directory (one object a line: index, label, prediction,
    tokens, attention, selected, planted) and a table to W&B where that logs. Examples come from ``test``, else ``val``,
    else ``train``; data without texts are left out.

    Args:
        examples: how many, from the first on.
    """

    def __init__(self, examples: int = 200) -> None:
        self.examples = examples

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not hasattr(data, "texts"):
            return
        split = next((s for s in ("test", "val", "train") if data.sequences(s) is not None), "train")
        texts = data.texts(split)
        if texts is None:
            return
        rows = list(self.rows(pl_module, data.sequences(split)[: self.examples], texts))
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(trainer.default_root_dir) / "tokens.jsonl", "".join(lines))
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("tokens", columns=list(rows[0]), data=[[str(x) for x in row.values()] for row in rows])

    @torch.no_grad()
    def rows(self, pl_module: pl.LightningModule, data: Sequences, texts: list[list[str]]) -> Iterator[dict[str, Any]]:
        """One dictionary per example."""
        output = pl_module(data.to(pl_module.device))
        alpha = select(output.scores.cpu(), data.mask)
        for i in range(len(data)):
            length = len(texts[int(data.index[i])])
            logits = output.logits[i]
            yield {
                "index": int(data.index[i]),
                "label": int(data.labels[i]),
                "prediction": float(logits) if logits.ndim == 0 else int(logits.argmax()),
                "tokens": texts[int(data.index[i])],
                "attention": [round(x, 6) for x in output.attention[i, :length].tolist()],
                "selected": int(alpha[i]),
                "planted": None if data.planted is None else int(data.planted[i]),
            }
