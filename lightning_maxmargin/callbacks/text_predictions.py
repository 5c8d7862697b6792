"""What ``predict`` writes of texts: a line of JSON each, in the order given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import distributed as dist

from lightning_maxmargin.atomic import whole
from lightning_maxmargin.figures.documents import page_beside, refuse_existing_page, write_page


class TextPredictions(Callback):
    """Writes ``index``, ``text``, ``label``, ``probability``, ``words``, ``lead`` and ``entropy`` of each document.

    Beside ``out.jsonl`` it draws ``out.html``, the same for people to read. Each file is whole or not there. Several
    processes hand their documents to the first one, batch by batch.

    Args:
        path: the file, which does not exist yet.
        page: whether to draw the page.

    Raises:
        InputError: when predicting starts, where the page is there already.
    """

    def __init__(self, path: Path, page: bool = True) -> None:
        self.path, self.count = path, 0
        self.page: Path | None = page_beside(path) if page else None
        self._stack = ExitStack()
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            if self.page is not None:
                refuse_existing_page(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self._stack.enter_context(whole(self.path))
            self._file = self._stack.enter_context(part.open("w", encoding="utf-8"))

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        rows = list(self._rows(trainer, pl_module, outputs, batch))
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(parts, rows)
            rows = sorted((row for part in parts for row in part), key=lambda row: row["index"])
        if self._file is not None:
            self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self.count += len(rows)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stack.close()
        if self._file is not None and self.page is not None:
            write_page(self.path)
        self._file = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stack.__exit__(type(exception), exception, None)

    @staticmethod
    def _rows(trainer: pl.Trainer, pl_module: Any, output: Any, batch: Any) -> Iterator[dict[str, Any]]:
        from lightning_maxmargin.text.selector import readings

        split = trainer.datamodule.splits["predict"]  # type: ignore[attr-defined]
        texts = batch["index"].tolist()
        mask = batch["mask"].cpu()
        for i, reading in zip(texts, readings(pl_module.model, split, texts, output, mask), strict=True):
            yield {"index": i, "text": split.documents.texts[i], **reading.as_json()}
