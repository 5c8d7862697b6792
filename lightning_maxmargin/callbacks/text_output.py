"""What a run on text leaves: the model as Hugging Face keeps it, and which words decided in test documents."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_maxmargin.atomic import write_text


class SaveModel(Callback):
    """At the end of fit, writes ``model/`` (``save_pretrained``, with tokenizer) and ``tokens.jsonl``.

    Args:
        examples: documents in ``tokens.jsonl``, of the test split, else of validation.
    """

    def __init__(self, examples: int = 200) -> None:
        self.examples = examples

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        save_whole(pl_module, trainer.datamodule, run_dir / "model")  # type: ignore[attr-defined]
        data = trainer.datamodule  # type: ignore[attr-defined]
        split = "test" if "test" in data.splits else "val"
        rows = list(_examples(pl_module, data.labelled(split), self.examples))
        write_text(run_dir / "tokens.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def save_whole(pl_module: Any, data: Any, folder: Path) -> None:
    """The model and its tokenizer in this directory, whole or not there."""
    from lightning_maxmargin.text.tuning import merge_lora

    part = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
    try:
        pl_module.model.encoder = merge_lora(pl_module.model.encoder)
        pl_module.model.save_pretrained(part)
        data.encoder.tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@torch.no_grad()
def _examples(pl_module: Any, split: Any, count: int) -> Iterator[dict[str, Any]]:
    from lightning_maxmargin.text.selector import readings

    model = pl_module.model
    names = model.names
    model.eval()
    for start in range(0, min(count, len(split)), 32):
        texts = list(range(start, min(start + 32, count, len(split))))
        batch = {k: x.to(pl_module.device) for k, x in split[torch.tensor(texts)].items()}
        output = {k: v.cpu() for k, v in pl_module(batch).items()}
        for i, reading in zip(texts, readings(model, split, texts, output, batch["mask"].cpu()), strict=True):
            weights = [round(word.weight, 6) for word in reading.words]
            yield {
                "index": i,
                "label": None if split.labels is None else names[int(split.labels[i])],
                "prediction": reading.label,
                "tokens": [word.text for word in reading.words],
                "attention": weights,
                "selected": max(range(len(weights)), key=weights.__getitem__, default=None),
                "planted": None,
            }
