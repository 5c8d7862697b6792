"""A transformer that is not this package's: MiniLM, all of it fine-tuned on film-review sentences, in plain Lightning.

    cd scripts && maxmargin fit --model review_transformer.ReviewTransformer --monitor.sources auto --trust-config \
        --trainer.max_epochs 3 --run_dir RUN

Nothing in here knows of lightning_maxmargin but for the sentences and the encoder, which its text extra brings.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_maxmargin.text.pretrained import pretrained_encoder
from lightning_maxmargin.text.records import read_splits


class ReviewTransformer(pl.LightningModule):
    """Sequence classification: 6 layers of 12 heads.

    Args:
        documents: training sentences; a quarter as many are for validation.
        max_length: word pieces that a sentence is cut at.
        batch_size: sentences of a step.
        lr: of AdamW.
    """

    def __init__(self, documents: int = 1000, max_length: int = 64, batch_size: int = 16, lr: float = 5e-5) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        self.save_hyperparameters()
        encoder = pretrained_encoder()
        self.tokenizer = encoder.tokenizer
        self.model = AutoModelForSequenceClassification.from_pretrained(encoder.folder, num_labels=2).train()
        self.lr, self.batch_size = lr, batch_size
        self.documents, self.max_length = documents, max_length
        self.rows: list[tuple[str, int]] = []

    def setup(self, stage: str) -> None:
        train = read_splits("rotten-tomatoes")["train"]
        assert train.labels is not None
        names = sorted(set(train.labels))
        order = torch.randperm(len(train.texts), generator=torch.Generator().manual_seed(0)).tolist()
        self.rows = [(train.texts[i], names.index(train.labels[i])) for i in order[: self.documents * 5 // 4]]

    def collate(self, rows: list[tuple[str, int]]) -> dict[str, Any]:
        texts, labels = zip(*rows, strict=True)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor(labels)}

    def train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.rows[: self.documents]
        return DataLoader(rows, self.batch_size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.rows[self.documents :]
        return DataLoader(rows, self.batch_size, collate_fn=self.collate)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        found = self.model(**batch).logits.argmax(1) == batch["labels"]
        self.log("val/accuracy", found.float().mean(), batch_size=len(found))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)
