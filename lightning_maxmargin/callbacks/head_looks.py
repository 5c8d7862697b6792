"""What heads look at between two evaluations: a forward pass of a few samples, and no SVM."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_maxmargin.callbacks.budget import Budget
from lightning_maxmargin.callbacks.watch import HeadWatch
from lightning_maxmargin.schedule import affordable, next_step

#: Looks take at most this part of the monitor's share; the rest is left to evaluations.
PART = 0.4


class HeadLooks:
    """Reads the attention of the first samples at the steps of the geometric schedule that no evaluation is made at.

    An SVM per head costs seconds and a look hundredths of one, so the tokens that heads select are known at many more
    steps than their margins.

    Args:
        watch: reads the module.
        samples: how many are looked at.
        clock: the monitor's budget, which looks count in.
        per_decade: looks per factor of ten in steps.
    """

    def __init__(self, watch: HeadWatch, samples: int, clock: Budget, per_decade: int) -> None:
        self._watch, self._clock, self._per_decade = watch, clock, per_decade
        self._samples, self._batch = samples, first_of(watch.batches[0], samples)
        self._next, self._expected, self._spent = 0, 0.0, 0.0  # the first is made, and tells what one takes

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this step is one of the schedule; the same on all processes."""
        step = trainer.global_step
        if step < self._next:
            return False
        self._next = next_step(step, self._per_decade)
        return True

    def look(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Tensor] | None:
        """The attention (samples, T) of every head, on all processes; None where the budget does not cover it."""
        clock = self._clock
        covered = affordable(self._spent, self._expected, clock.elapsed, PART * clock.share)
        if not trainer.strategy.broadcast(covered):
            return None
        start = time.perf_counter(), time.process_time()
        found = self._watch.look(trainer, module, self._batch)
        if self._batch is not self._watch.batches[0] and self._cuts_tokens(found):
            self._batch = self._watch.batches[0]
            found = self._watch.look(trainer, module, self._batch)
        # As the budget counts: of the clock, or of the processor where these are fewer.
        self._expected = min(time.perf_counter() - start[0], time.process_time() - start[1])
        self._spent += self._expected
        clock.spent += self._expected
        return found

    def _cuts_tokens(self, found: Mapping[str, Tensor]) -> bool:
        """Whether the batch has its tokens first: to take the first rows of it is then to cut the sequences."""
        for layer, source in self._watch.sources.items():
            rows = found.get(f"{layer}/head0".removeprefix("/"))
            if rows is not None and (len(rows) > self._samples or rows.shape[1] != getattr(source, "tokens", 0) > 0):
                return True
        return False


def first_of(batch: Any, samples: int) -> Any:
    """The first samples of a batch: of every tensor with as many rows as its first one; a batch of a class as it is.

    Example:
        >>> import torch
        >>> {k: x.tolist() for k, x in first_of({"ids": torch.arange(3), "scale": torch.ones(1)}, 2).items()}
        {'ids': [0, 1], 'scale': [1.0]}
    """
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) and x.ndim else None, batch)
    if not isinstance(batch, Tensor | Mapping | tuple | list) or not tensors:
        return batch
    count = len(tensors[0])
    return tree_map(lambda x: x[:samples] if isinstance(x, Tensor) and x.ndim and len(x) == count else x, batch)
