"""Reads the attention layers of a foreign LightningModule on all processes, which share the heads out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_maxmargin.callbacks.batches import batches_of, length_of, look_up, own_batches, real_share, size_of
from lightning_maxmargin.callbacks.model_call import Forward, by_signature, ways_to_call, without_effects
from lightning_maxmargin.core.ranks import Failure, Ranks, as_failure
from lightning_maxmargin.errors import InputError
from lightning_maxmargin.probe.attention import HeadProbe, HeadSnapshot, Source
from lightning_maxmargin.probe.capture import Reading, capture
from lightning_maxmargin.probe.discover import NO_ATTENTION, Discovery, find_attention, read_found
from lightning_maxmargin.probe.sources import AttentionSource, find_module
from lightning_maxmargin.probe.visible import QueryToken
from lightning_maxmargin.reduce import gather

#: Numbers in the keys of all layers up to which they are held, in float32: 1 GB.
MOST_NUMBERS = 2**28
#: Sequences on which layers are found.
TRIED = 16
#: Of another's error that is passed on.
MOST_LETTERS = 200


class Gathered(NamedTuple):
    """What all processes read, in the order of the batches; why, of a layer that cannot be read."""

    failure: Failure | None
    readings: dict[str, Reading | str]


class Found(NamedTuple):
    """How the module is called, and the layers that are found so."""

    forward: Forward
    discovery: Discovery


class HeadWatch:
    """Keeps the samples that are evaluated, and reads them whenever a monitor calls.

    Every process holds the same batches and runs every world-size-th of them; the last round is filled up with
    repeats that nobody uses, so that all processes run equally many passes, as sharded weights need.

    Args:
        trainer: of the run.
        module: that is watched.
        sources: by name of the layer, or ``auto``.
        data: a batch, or a loader or list of batches; read once. None is the trainer's own.
        forward: ``forward(module, batch)``; None follows from the module.
        samples: the first so many are evaluated.
        ranks: the processes that measure, each some of the heads.
        query_token: whose attention, of layers that are found.
        layers: which of those, a pattern; all where None.

    Attributes:
        count: of the samples that are evaluated.
        numbers: in the keys of all heads, about: as many tokens as the first batch is long.
        found: the layers, of ``auto``.

    Raises:
        InputError: a name that is no submodule, no attention, no way to call the module, or no samples.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        sources: Mapping[str, AttentionSource] | str,
        data: Any,
        forward: Forward | None,
        samples: int,
        ranks: Ranks | None = None,
        query_token: QueryToken = "auto",
        layers: str | None = None,
    ) -> None:
        self.samples, self.query_token = samples, query_token
        self.found: Discovery | None = None
        self.sources: dict[str, Source] = {}
        self._told: set[str] = set()
        if not isinstance(sources, str):
            self.heads = {layer: _count_heads(module, source) for layer, source in sources.items()}
            self.sources, self.forward = dict(sources), forward or (lambda m, batch: by_signature(m, batch))
        self.batches = own_batches(trainer, samples) if data is None else batches_of(data, samples)
        self.count = min(samples, sum(map(size_of, self.batches)))
        if isinstance(sources, str):
            self.forward, self.found = self._find(trainer, module, forward, layers)
            self.sources = dict(self.found.sources)
            self.heads = {layer: found.heads for layer, found in self.found.sources.items()}
            self._bound(module)
            self._refuse_missing(query_token)
        self.probe = HeadProbe(self.sources, ranks)
        sizes = {layer: self._numbers(module, source) for layer, source in self.sources.items()}
        numbers = self.count * sum(self.heads[layer] * size for layer, size in sizes.items())
        self.numbers = round(numbers * real_share(self.batches))

    def gather(self, trainer: pl.Trainer, module: pl.LightningModule) -> Gathered:
        """Reads the samples, on all processes; an error of one is handed to all and raised by none."""
        world, rank = trainer.world_size, trainer.global_rank
        mine: list[dict[str, Reading | str]] = []
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

    def look(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> dict[str, Tensor]:
        """The attention of every head on one batch, which all processes read alike."""
        return self.probe.look(self._read(trainer, module, batch), self.heads)

    def measure(self, readings: dict[str, Reading | str]) -> HeadSnapshot | None:
        """The numbers, on the first process; None on the others."""
        return self.probe.measure(readings, self.heads)

    def _find(
        self, trainer: pl.Trainer, module: pl.LightningModule, forward: Forward | None, layers: str | None
    ) -> Found:
        """The way to call the module in which it computes attention, and the layers; the same on all processes."""
        batch = self.batches[0]
        ways = ways_to_call(module, batch) if forward is None else [("forward(module, batch)", forward)]
        failed: list[str] = []
        refused: str | None = None
        for name, way in ways:
            outcome: Discovery | Failure
            try:
                run = self._pass(trainer, module, batch, way)
                outcome = find_attention(module, run, self.query_token, min(self.count, TRIED), layers)
            except Exception as error:
                outcome = as_failure(error)
            # A pass that fails on one process alone is no way for any.
            outcomes = gather(outcome)
            failure = next((x for x in outcomes if not isinstance(x, Discovery)), None)
            if failure is None:
                assert isinstance(outcome, Discovery)
                return Found(way, outcome)
            message = " ".join(failure[1].split())[:MOST_LETTERS]
            if message.startswith("HeadMonitor."):
                # The module was called: of two ways the one that met attention says more.
                refused = failure[1] if refused is None or NO_ATTENTION in refused else refused
            failed.append(f"{name}: {message}")
        if refused is not None:
            raise InputError(refused)
        why = "none follows from the module" if forward is None else "it fails"
        raise InputError(
            f"HeadMonitor.forward: {why} ({'; '.join(failed)}); pass forward=lambda module, batch: ..., where "
            f"the batch is a {type(batch).__name__}"
        )

    def _bound(self, module: nn.Module) -> None:
        """Takes fewer samples where the keys of all layers would fill the memory."""
        each = sum(self._numbers(module, source) for source in self.sources.values())
        if each * self.count <= MOST_NUMBERS:
            return
        kept = max(1, MOST_NUMBERS // each)
        rank_zero_info(
            f"HeadMonitor: {kept} of {self.count} samples, for the keys of {len(self.sources)} layers would have "
            f"{each * self.count:,} numbers; fewer layers (HeadMonitor.layers) leave room for more"
        )
        self.samples = self.count = kept
        needed = next(i for i in range(len(self.batches)) if sum(map(size_of, self.batches[: i + 1])) >= kept)
        self.batches = self.batches[: needed + 1]

    def _refuse_missing(self, query_token: QueryToken) -> None:
        """Raises InputError where a shorter batch has no such position: not hours later, when it is read."""
        lengths = [length_of(batch) for batch in self.batches]
        tokens = {source.tokens for source in self.sources.values() if not isinstance(source, AttentionSource)}
        shortest = min(lengths)
        if isinstance(query_token, int) and lengths[0] in tokens and not -shortest <= query_token < shortest:
            raise InputError(f"HeadMonitor.query_token: {query_token}; a batch that is watched has {shortest} tokens")

    def _numbers(self, module: nn.Module, source: Source) -> int:
        """In a layer's keys of one sample, about: as many tokens as the first batch has."""
        tokens = length_of(self.batches[0]) if isinstance(source, AttentionSource) else source.tokens
        return _width(module, source) * tokens

    def _pass(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, way: Forward) -> Callable[[], None]:
        batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))

        def run() -> None:
            # A forward of the user's may log or count as well as a training step.
            with without_effects(module), trainer.precision_plugin.forward_context():
                way(module, batch)

        return run

    def _read(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> dict[str, Reading | str]:
        run = self._pass(trainer, module, batch, self.forward)
        if self.found is not None:
            # Of all positions those of every batch, else the first samples.
            share = self.samples
            if self.query_token == "all":
                share = -(-self.count * size_of(batch) // max(1, sum(map(size_of, self.batches))))
            return read_found(module, self.found.sources, run, self.query_token, share)
        given = {name: source for name, source in self.sources.items() if isinstance(source, AttentionSource)}
        return dict(capture(module, given, run, lambda key: None if key is None else look_up(batch, key)))

    def _joined(self, found: list[tuple[Failure | None, list[dict[str, Reading | str]]]]) -> Gathered:
        failure = next((f for f, _ in found if f is not None), None)
        if failure is not None:
            return Gathered(failure, {})
        # Process r has the batches r, r + world, ...: back into the order of one process.
        parts = [found[b % len(found)][1][b // len(found)] for b in range(len(self.batches))]
        joined = {layer: _join([p[layer] for p in parts], self.samples) for layer in self.sources}
        for layer, reading in joined.items():
            if isinstance(reading, str) and layer not in self._told:
                self._told.add(layer)
                rank_zero_warn(f"HeadMonitor: {layer} is left out of this evaluation: {reading}")
        return Gathered(None, joined)


def _count_heads(module: nn.Module, source: AttentionSource) -> int:
    found = [find_module(module, name) for name in source.names]
    heads = source.heads or getattr(found[0], "num_heads", None)
    if not isinstance(heads, int):
        raise InputError(f"HeadMonitor.sources: {source.names[0]!r} is a {type(found[0]).__name__}; give heads")
    return heads


def _width(module: nn.Module, source: Source) -> int:
    """Dimensions of the layer's keys: the last axis of its first weight, 1 where there is none."""
    if not isinstance(source, AttentionSource) and source.folded:
        return source.keys.columns.shape[1]
    name = source.names[0] if isinstance(source, AttentionSource) else source.keys.module
    weights = [p for p in find_module(module, name).parameters() if p.ndim > 1]
    return weights[0].shape[-1] if weights else 1


def _join(parts: list[Reading | str], samples: int) -> Reading | str:
    """One reading of all; sequences of shorter batches are padded. Why, where one cannot be read."""
    read = [p for p in parts if isinstance(p, Reading)]
    if len(read) < len(parts):
        return next(p for p in parts if isinstance(p, str))
    longest = max(p.keys.shape[1] for p in read)
    if any(p.mask is not None or p.keys.shape[1] < longest for p in read):
        read = [replace(p, mask=torch.ones(p.keys.shape[:2]).bool() if p.mask is None else p.mask) for p in read]
    columns = {}
    for name in read[0].by_sample():
        # Tokens are the second axis, of the module's own attention the last.
        axis = {"attention": 2, "queries": 0, "positions": 0, "query_scales": 0}.get(name, 1)
        columns[name] = torch.cat([_pad(getattr(p, name), longest, axis) for p in read])[:samples]
    return replace(read[0], **columns)  # type: ignore[arg-type]


def _pad(x: Tensor, longest: int, axis: int) -> Tensor:
    if axis == 0 or x.shape[axis] == longest:
        return x
    shape = list(x.shape)
    shape[axis] = longest - x.shape[axis]
    return torch.cat([x, x.new_zeros(shape)], axis)
