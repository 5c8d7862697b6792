"""The data of a LightningModule that brings its own loaders."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden


class ModuleLoaders(pl.LightningDataModule):
    """What ``train_dataloader`` and its sisters of the LightningModule give: for no ``--data``.

    Splits that the module has no loader for have no batches.

    Example:
        >>> ModuleLoaders().trainer is None
        True
    """

    def train_dataloader(self) -> Any:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return self._loader("val")

    def test_dataloader(self) -> Any:
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        return self._loader("predict")

    def _loader(self, split: str) -> Any:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        return getattr(module, f"{split}_dataloader")() if has_loader(module, split) else []


def has_loader(owner: Any, split: str) -> bool:
    """Whether a LightningModule or LightningDataModule defines ``SPLIT_dataloader`` itself.

    Example:
        >>> has_loader(pl.LightningModule(), "train"), has_loader(ModuleLoaders(), "val")
        (False, True)
    """
    return is_overridden(f"{split}_dataloader", owner)


def has_split(data: pl.LightningDataModule, module: pl.LightningModule, split: str) -> bool:
    """Whether there is such a split, of this package's data modules or anybody's.

    Args:
        data: the data module; :class:`ModuleLoaders` has the splits of ``module``.
        module: the model that is trained.
        split: ``train``, ``val``, ``test`` or ``predict``.
    """
    own = getattr(data, "has_split", None)
    if own is not None:
        return bool(own(split))
    return has_loader(module if isinstance(data, ModuleLoaders) else data, split)
