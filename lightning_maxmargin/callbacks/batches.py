"""The samples that heads are watched on: the user's, or the trainer's own, read without disturbing them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler

from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.capture import same_rng

#: Samples of a batch where the loader's own sampler decides that.
BATCH = 16
NO_DATA = "give HeadMonitor.data: a batch, or a loader or list of batches"


def batches_of(data: Any, samples: int) -> list[Any]:
    """As many as hold ``samples``: kept, since a loader that shuffles would give other samples at every evaluation.

    Args:
        data: a batch, or a loader or list of batches.
        samples: so many are wanted.

    Raises:
        InputError: there is none.
    """
    if not _is_loader(data):
        return [data]
    kept: list[Any] = []
    seen = 0
    with same_rng():
        for batch in islice(data, samples):
            kept.append(batch)
            seen += size_of(batch)
            if seen >= samples:
                break
    if not kept:
        raise InputError("HeadMonitor.data: the loader gave no batch")
    return kept


def own_batches(trainer: pl.Trainer, samples: int) -> list[Any]:
    """The first samples of the validation data, else of the training data, in their order; the same on all processes.

    Raises:
        InputError: there are none, or they can be read once only.
    """
    found: Any = None
    if trainer.is_global_zero:
        try:
            found = _read(trainer, samples)
        except Exception as error:
            found = InputError(f"HeadMonitor.data: the trainer's own cannot be read ({_line(error)}); {NO_DATA}")
    found = trainer.strategy.broadcast(found)
    if isinstance(found, InputError):
        raise found
    return list(found)


def _read(trainer: pl.Trainer, samples: int) -> list[Any]:
    loaders = trainer.val_dataloaders
    if isinstance(loaders, Mapping | list | tuple):
        # Validation takes its loaders one by one, training at once.
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders), None)
    loaders = trainer.train_dataloader if loaders is None else loaders
    if loaders is None:
        raise ValueError("there is none")
    read = tree_map(_unshuffled, loaders, is_leaf=lambda x: not isinstance(x, dict | list | tuple))
    if isinstance(loaders, dict | list | tuple):
        read = _together(read)
    return batches_of(read, samples)


def _together(loaders: Any) -> Iterator[Any]:
    combined = CombinedLoader(loaders, "min_size")
    iter(combined)
    for batch, _, _ in combined:
        yield batch


def _unshuffled(loader: Any) -> Any:
    """Another loader of the same data: the loader that trains keeps its workers, its sampler and where it is."""
    if not isinstance(loader, DataLoader):
        if isinstance(loader, Iterator):
            raise ValueError(f"a {type(loader).__name__} can be read once only")
        return loader
    if isinstance(loader.dataset, IterableDataset) and isinstance(loader.dataset, Iterator):
        raise ValueError(f"a {type(loader.dataset).__name__} can be read once only")
    batch = loader.batch_size
    if batch is None and loader.batch_sampler is not None:
        batch = BATCH
    dataset: Any = loader.dataset
    if isinstance(loader.sampler, SubsetRandomSampler):
        # A split of one dataset: the rest of it may be what is trained on.
        dataset = Subset(dataset, list(loader.sampler.indices))
    return DataLoader(dataset, batch, shuffle=False, collate_fn=loader.collate_fn)


def _is_loader(data: Any) -> bool:
    if isinstance(data, Tensor | Mapping | tuple):
        return False
    if isinstance(data, list):
        return bool(data) and not isinstance(data[0], Tensor)
    return isinstance(data, Iterable) and not hasattr(data, "__dataclass_fields__")


def _tensors(batch: Any) -> list[Tensor]:
    """Of a batch, those of a mapping, a sequence or a data class."""
    if isinstance(batch, Tensor):
        return [batch]
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    if hasattr(batch, "__dataclass_fields__"):
        entries = [getattr(batch, name) for name in batch.__dataclass_fields__]
    return [x for entry in entries for x in ([entry] if isinstance(entry, Tensor) else _tensors(entry))]


def size_of(batch: Any) -> int:
    """Samples of a batch: of its first tensor, or 1."""
    return next((len(x) for x in _tensors(batch) if x.ndim), 1)


def length_of(batch: Any) -> int:
    """Tokens of a batch: the second axis of its first tensor that has two or more, else 1."""
    return next((x.shape[1] for x in _tensors(batch) if x.ndim > 1), 1)


def real_share(batches: list[Any]) -> float:
    """The share of tokens that are no padding, as ``attention_mask`` says; 1 where a batch has none.

    Example:
        >>> import torch
        >>> real_share([{"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])}])
        0.5
    """
    masks = [batch.get("attention_mask") if isinstance(batch, Mapping) else None for batch in batches]
    known = [mask for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel()]
    if len(known) < len(batches):
        return 1.0
    return sum(int((mask != 0).sum()) for mask in known) / sum(mask.numel() for mask in known)


def look_up(batch: Any, key: str | int) -> Tensor:
    """A tensor of a batch.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(key, str) and not isinstance(batch, Mapping):
        found = getattr(batch, key, None)
    else:
        try:
            found = batch[key]
        except (KeyError, IndexError, TypeError):
            found = None
    if not isinstance(found, Tensor):
        raise InputError(f"AttentionSource.mask: the batch has no tensor {key!r}")
    return found


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
