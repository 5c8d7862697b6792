"""LightningModules and data of a user's own, which know nothing of this package."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def rows(width: int = 16) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(64, 7, width, generator=generator), torch.arange(64) % 2)


class Classifier(pl.LightningModule):
    """Two layers of two heads, read at the first token."""

    def __init__(self, width: int = 16, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.encoder, self.head, self.lr = nn.TransformerEncoder(layer, 2), nn.Linear(width, 2), lr

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


class WithLoaders(Classifier):
    """The same with its own loaders, of words by number, so that the report knows the tokens."""

    def __init__(self, width: int = 16, lr: float = 1e-2) -> None:
        super().__init__(width, lr)
        self.words = nn.Embedding(11, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.words(x))

    def _loader(self) -> DataLoader[Any]:
        ids = torch.randint(11, (64, 7), generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(ids, torch.arange(64) % 2), 16)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader()


class LossAlone(WithLoaders):
    """Has no accuracy, and a number whose name is like a console's markup."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss[/b]", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Mean(WithLoaders):
    """No attention in it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Data(pl.LightningDataModule):
    """Train, validation and test of the same rows."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(), 16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(), 16)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(), 16)
