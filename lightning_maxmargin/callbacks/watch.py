"""Reads the attention layers of a foreign LightningModule on all processes, which share the heads out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_maxmargin.core.ranks import Failure, Ranks, as_failure
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.attention import HeadProbe, HeadSnapshot
from lightning_maxmargin.probe.capture import Reading, capture, same_rng
from lightning_maxmargin.probe.sources import AttentionSource, find_module

Forward = Callable[[Any, Any], Any]


class Gathered(NamedTuple):
    """What all processes read, in the order of the batches."""

    failure: Failure | None
    readings: dict[str, Reading]


class HeadWatch:
    """Keeps the samples that are evaluated, and reads them whenever a monitor calls.

    Every process holds the same batches and runs every world-size-th of them; the last round is filled up with
    repeats that nobody uses, so that all processes run equally many passes, as sharded weights need.

    Args:
        sources: by name of the layer.
        data: a batch, or a loader or list of batches; read once.
        forward: ``forward(module, batch)``; None is ``module(batch)``, with the first entry of a tuple or list.
        samples: the first so many are evaluated.
        ranks: the processes that measure, each some of the heads.

    Attributes:
        count: of the samples that are evaluated.
        numbers: in the keys of all heads, about: as many tokens as the batch is long.

    Raises:
        InputError: a name that is no submodule, or there are no samples.
    """

    def __init__(
        self,
        module: nn.Module,
        sources: Mapping[str, AttentionSource],
        data: Any,
        forward: Forward | None,
        samples: int,
        ranks: Ranks | None = None,
    ) -> None:
        self.sources, self.forward, self.samples = dict(sources), forward or _first_entry, samples
        self.heads = {layer: _count_heads(module, source) for layer, source in self.sources.items()}
        self.batches = _batches(data, samples)
        self.probe = HeadProbe(self.sources, ranks)
        self.numbers = sum(self.heads[layer] * _width(module, source) for layer, source in self.sources.items())
        self.count = min(samples, sum(map(_size, self.batches)))
        self.numbers *= self.count * _length(self.batches[0])

    def gather(self, trainer: pl.Trainer, module: pl.LightningModule) -> Gathered:
        """Reads the samples, on all processes; an error of one is handed to all and raised by none."""
        world, rank = trainer.world_size, trainer.global_rank
        mine: list[dict[str, Reading]] = []
        failure: Failure | None = None
        try:
            for start in range(0, len(self.batches), world):
                batch = self.batches[min(start + rank, len(self.batches) - 1)]
                reading = self._read(trainer, module, batch)
                mine += [reading] if start + rank < len(self.batches) else []
        except Exception as error:
            failure = as_failure(error)
        if world == 1:
            return self._joined([(failure, mine)])
        found: list[Any] = [None] * world
        torch.distributed.all_gather_object(found, (failure, mine))
        return self._joined(found)

    def measure(self, readings: dict[str, Reading]) -> HeadSnapshot | None:
        """The numbers, on the first process; None on the others."""
        return self.probe.measure(readings, self.heads)

    def _read(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> dict[str, Reading]:
        batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))

        def run() -> None:
            with trainer.precision_plugin.forward_context():
                self.forward(module, batch)

        return capture(module, self.sources, run, lambda key: None if key is None else _look_up(batch, key))

    def _joined(self, found: list[tuple[Failure | None, list[dict[str, Reading]]]]) -> Gathered:
        failure = next((f for f, _ in found if f is not None), None)
        if failure is not None:
            return Gathered(failure, {})
        # Process r has the batches r, r + world, ...: back into the order of one process.
        parts = [found[b % len(found)][1][b // len(found)] for b in range(len(self.batches))]
        return Gathered(None, {layer: _join([p[layer] for p in parts], self.samples) for layer in self.sources})


def _count_heads(module: nn.Module, source: AttentionSource) -> int:
    found = [find_module(module, name) for name in source.names]
    heads = source.heads or getattr(found[0], "num_heads", None)
    if not isinstance(heads, int):
        raise InputError(f"HeadMonitor.sources: {source.names[0]!r} is a {type(found[0]).__name__}; give heads")
    return heads


def _batches(data: Any, samples: int) -> list[Any]:
    """As many as hold ``samples``: kept, since a loader that shuffles would give other samples at every evaluation."""
    if not _is_loader(data):
        return [data]
    kept: list[Any] = []
    seen = 0
    with same_rng():
        for batch in islice(data, samples):
            kept.append(batch)
            seen += _size(batch)
            if seen >= samples:
                break
    if not kept:
        raise InputError("HeadMonitor.data: the loader gave no batch")
    return kept


def _is_loader(data: Any) -> bool:
    if isinstance(data, Tensor | Mapping | tuple):
        return False
    if isinstance(data, list):
        return bool(data) and not isinstance(data[0], Tensor)
    return isinstance(data, Iterable) and not hasattr(data, "__dataclass_fields__")


def _size(batch: Any) -> int:
    """Samples of a batch: of its first tensor, or 1."""
    if isinstance(batch, Tensor):
        return len(batch)
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((len(x) for x in entries if isinstance(x, Tensor) and x.ndim), 1)


def _length(batch: Any) -> int:
    """Tokens of a batch: the second axis of its first tensor that has two or more, else 1."""
    if isinstance(batch, Tensor):
        return batch.shape[1] if batch.ndim > 1 else 1
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((x.shape[1] for x in entries if isinstance(x, Tensor) and x.ndim > 1), 1)


def _width(module: nn.Module, source: AttentionSource) -> int:
    """Dimensions of the layer's keys: the last axis of its first weight, 1 where there is none."""
    weights = [p for p in find_module(module, source.names[0]).parameters() if p.ndim > 1]
    return weights[0].shape[-1] if weights else 1


def _first_entry(module: Any, batch: Any) -> Any:
    return module(batch[0] if isinstance(batch, tuple | list) else batch)


def _look_up(batch: Any, key: str | int) -> Any:
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


def _join(parts: list[Reading], samples: int) -> Reading:
    """One reading of all; sequences of shorter batches are padded."""
    T = max(p.keys.shape[1] for p in parts)
    padded = any(p.mask is not None or p.keys.shape[1] < T for p in parts)
    columns: dict[str, Any] = {f.name: getattr(parts[0], f.name) for f in fields(Reading)}
    columns["keys"] = torch.cat([_pad(p.keys, T) for p in parts])[:samples]
    columns["queries"] = torch.cat([p.queries for p in parts])[:samples]
    if parts[0].values is not None:
        columns["values"] = torch.cat([_pad(p.values, T) for p in parts if p.values is not None])[:samples]
    if padded:
        masks = [torch.ones(p.keys.shape[:2], dtype=torch.bool) if p.mask is None else p.mask for p in parts]
        columns["mask"] = torch.cat([_pad(m, T) for m in masks])[:samples]
    return Reading(**columns)


def _pad(x: Tensor, T: int) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), T - x.shape[1], *x.shape[2:])], 1)
